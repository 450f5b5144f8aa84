"""How long is a prompt, in tokens, and which ones are they?

A gateway with a tokenizer knows; one without can count on this: prompts that begin alike have bytes that begin alike. So the bytes
themselves, some four to a token, make a key that is as good for finding prefixes, and an estimate of the length.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final, Protocol

import numpy as np

from inferencesched._typing import TokenArray
from inferencesched.errors import whole_number
from inferencesched.routing.body import RequestBody

_WORD: Final = 4


class Tokenizer(Protocol):
    """Which tokens will a model server see?"""

    def encode(self, body: RequestBody) -> TokenArray:
        """Return the prompt's token ids, ``uint32[T]``; a longer prompt that begins alike begins with the same ids."""
        ...


def pack_bytes(text: bytes, bytes_per_token: int = _WORD) -> TokenArray:
    r"""Return text as ids that stand for so many bytes each, ``uint32[T]``, T rounded up.

    Four bytes are the id itself, little-endian, so that hashing the ids is hashing the text; of more or fewer bytes, each id is
    a hash. The last one is padded with zeros. Source of the packing: llm-d-router, ``dataproducer/tokenizer`` (estimate).

    >>> pack_bytes(b"the quick").tobytes()
    b'the quick\x00\x00\x00'
    >>> len(pack_bytes(b"the quick", 3))
    3
    """
    size = whole_number("bytes_per_token", bytes_per_token, 1)
    if size == _WORD:
        missing = -len(text) % _WORD
        return np.frombuffer(text + b"\x00" * missing if missing else text, dtype="<u4").astype(np.uint32, copy=False)
    count = ceil(len(text) / size)
    rows = np.zeros(count * size, dtype=np.uint8)
    rows[: len(text)] = np.frombuffer(text, dtype=np.uint8)
    ids = np.zeros(count, dtype=np.uint32)
    for column in rows.reshape(count, size).T:
        ids *= np.uint32(16777619)  # FNV-1a, 32 bits
        ids ^= column
    return ids


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """How long is a prompt where nobody has its model's tokenizer? So many bytes are a token, a picture so many tokens.

    Token ids that the client gave are taken as they are. Cost: 3 us for 4 KB.

    >>> from inferencesched.routing.body import parse_body
    >>> body = parse_body(b'{"model": "m", "prompt": "The quick brown fox jumps"}', "completions")
    >>> len(ByteTokenizer().encode(body))
    8
    """

    bytes_per_token: int = _WORD
    media_tokens: int = 225

    def __post_init__(self) -> None:
        whole_number("bytes_per_token", self.bytes_per_token, 1)
        whole_number("media_tokens", self.media_tokens)

    def encode(self, body: RequestBody) -> TokenArray:
        """Return ids for the prompt's bytes; a picture's come where it stands.  Errors: `BodyError` for a text that is none."""
        if body.tokens is not None:
            return body.tokens
        if not body.has_media:
            return pack_bytes(body.prompt(), self.bytes_per_token)
        ids: list[TokenArray] = []
        for piece in body.prompt_pieces():
            if isinstance(piece, bytes):
                ids.append(pack_bytes(piece, self.bytes_per_token))
            else:
                low, high = piece.hash & 0xFFFFFFFF, piece.hash >> 32
                filler = np.full(max(2, self.media_tokens * piece.size), low, dtype=np.uint32)
                filler[1] = high
                ids.append(filler)
        return np.concatenate(ids) if ids else np.empty(0, dtype=np.uint32)
