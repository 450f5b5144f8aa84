"""Which API is spoken, to go by the path of the URL?"""

from types import MappingProxyType
from typing import Final, Literal

BodyKind = Literal["chat", "completions", "responses", "embeddings", "messages", "vllm_generate", "sglang_generate"]

_PATHS: Final = MappingProxyType(
    {
        "/chat/completions": "chat",
        "/completions": "completions",
        "/responses": "responses",
        "/embeddings": "embeddings",
        "/messages": "messages",
        "/inference/v1/generate": "vllm_generate",
        "/generate": "sglang_generate",
    }
)
_ENDS: Final[tuple[tuple[str, BodyKind], ...]] = tuple(_PATHS.items())  # type: ignore[arg-type]  # as above


def body_kind(path: str) -> BodyKind | None:
    """Return which API a path is of, whatever stands before it; None for one that nobody knows. A query is passed over.

    >>> body_kind("/v1/chat/completions"), body_kind("/openai/v1/messages?beta=true"), body_kind("/v1/images")
    ('chat', 'messages', None)
    """
    for end in (path, path.partition("?")[0].rstrip("/")):
        for known, kind in _ENDS:
            if end.endswith(known):
                return kind
    return None
