"""Which fields of the known APIs say what is asked, of whom, and how long it may get?

Only these are read; everything else stays as it came. Texts are left as raw JSON here: most requests need their bytes, not their
letters. Fields: the public references of the OpenAI and Anthropic APIs, vLLM's ``/inference/v1/generate`` and SGLang's ``/generate``.
"""

from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import Raw

from inferencesched.routing.body.kinds import BodyKind

NOTHING: Final = Raw(b"")
Cap = int | None


class StreamOptions(msgspec.Struct):
    """What of a streamed answer is asked for?"""

    include_usage: bool | None = None


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str = ""
    content: Raw = NOTHING
    tool_calls: Raw = NOTHING
    reasoning_content: Raw = NOTHING


class Item(msgspec.Struct):
    """One item of a Responses input: a message, the call of a tool, or what it gave."""

    role: str = ""
    content: Raw = NOTHING
    type: str = ""
    name: Raw = NOTHING
    arguments: Raw = NOTHING
    output: Raw = NOTHING


class Part(msgspec.Struct):
    """One piece of a message's content."""

    type: str = ""
    text: Raw = NOTHING
    thinking: Raw = NOTHING
    refusal: Raw = NOTHING
    image_url: Raw = NOTHING
    video_url: Raw = NOTHING
    audio_url: Raw = NOTHING
    input_audio: Raw = NOTHING
    source: Raw = NOTHING
    file: Raw = NOTHING
    file_data: Raw = NOTHING
    file_id: Raw = NOTHING
    file_url: Raw = NOTHING
    name: Raw = NOTHING
    input: Raw = NOTHING
    content: Raw = NOTHING


class Common(msgspec.Struct):
    """What all of them have."""

    model: str | None = None
    stream: bool | None = None
    cache_salt: str | None = None


class Chat(Common):
    """OpenAI's chat."""

    messages: list[Message] = []
    tools: Raw = NOTHING
    functions: Raw = NOTHING
    max_tokens: Cap = None
    max_completion_tokens: Cap = None
    n: Cap = None
    stream_options: StreamOptions | None = None


class Completions(Common):
    """OpenAI's completions."""

    prompt: Raw = NOTHING
    suffix: Raw = NOTHING
    max_tokens: Cap = None
    n: Cap = None
    stream_options: StreamOptions | None = None


class Responses(Common):
    """OpenAI's responses."""

    instructions: Raw = NOTHING
    input: Raw = NOTHING
    tools: Raw = NOTHING
    max_output_tokens: Cap = None


class Embeddings(Common):
    """OpenAI's embeddings."""

    input: Raw = NOTHING


class Messages(Common):
    """Anthropic's messages."""

    system: Raw = NOTHING
    messages: list[Message] = []
    tools: Raw = NOTHING
    max_tokens: Cap = None


class Sampling(msgspec.Struct):
    """How an engine's own API is told how long an answer may get."""

    max_tokens: Cap = None
    max_new_tokens: Cap = None
    n: Cap = None


class Generate(Common):
    """vLLM's ``/inference/v1/generate``."""

    token_ids: Raw = NOTHING
    sampling_params: Sampling | None = None
    stream_options: StreamOptions | None = None


class SglangGenerate(Common):
    """SGLang's ``/generate``."""

    text: Raw = NOTHING
    input_ids: Raw = NOTHING
    image_data: Raw = NOTHING
    video_data: Raw = NOTHING
    audio_data: Raw = NOTHING
    sampling_params: Sampling | list[Sampling] | None = None


Shape = Chat | Completions | Responses | Embeddings | Messages | Generate | SglangGenerate

DECODERS: Final[MappingProxyType[BodyKind, msgspec.json.Decoder[Any]]] = MappingProxyType(
    {
        "chat": msgspec.json.Decoder(Chat),
        "completions": msgspec.json.Decoder(Completions),
        "responses": msgspec.json.Decoder(Responses),
        "embeddings": msgspec.json.Decoder(Embeddings),
        "messages": msgspec.json.Decoder(Messages),
        "vllm_generate": msgspec.json.Decoder(Generate),
        "sglang_generate": msgspec.json.Decoder(SglangGenerate),
    }
)
ITEMS: Final = msgspec.json.Decoder(list[Item])
PARTS: Final = msgspec.json.Decoder(list[Part])
STRING: Final = msgspec.json.Decoder(str)
STRINGS: Final = msgspec.json.Decoder(list[str])
TOKENS: Final = msgspec.json.Decoder(list[int])
TOKEN_LISTS: Final = msgspec.json.Decoder(list[list[int]])
