"""What is a prompt made of, in the order in which a server's template lays it out?

Tools first (templates put them into the system's turn), then the system's words, then the turns. A piece is a text, a picture (a video, a
sound, a file) by the hash of where or what it is, or data that a template prints, such as the call of a tool.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
import xxhash
from msgspec import Raw

from inferencesched.errors import BodyError
from inferencesched.request import MediaItem
from inferencesched.routing.body import shapes

T = TypeVar("T")
Path = tuple[str | int, ...]
_OPEN: Final = 0x22  # a quotation mark
_ESCAPE: Final = b"\\"
_NULL: Final = b"null"
#: Which field of a part is which modality.
_MEDIA: Final = (
    ("image_url", "image"),
    ("video_url", "video"),
    ("audio_url", "audio"),
    ("input_audio", "audio"),
    ("source", "image"),
    ("file", "file"),
    ("file_data", "file"),
    ("file_url", "file"),
    ("file_id", "file"),
)


class Piece(NamedTuple):
    """One piece: where it stands (`path`), its raw JSON, and what it is. ``begins`` says that a new turn begins with it."""

    role: str
    path: Path
    raw: bytes
    begins: bool = False
    is_text: bool = True
    media: MediaItem | None = None


def given(raw: Raw) -> bytes:
    """Return the field's JSON; empty where it is missing or null."""
    said = bytes(raw)
    return b"" if said == _NULL else said


def letters(raw: bytes, path: Path = ()) -> str:
    """Return the text of a JSON string. Errors: `BodyError` for one that is none."""
    try:
        return shapes.STRING.decode(raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BodyError(dotted(path) or "text", _shown(raw), "a string") from error


def text_bytes(raw: bytes, path: Path = ()) -> bytes:
    """Return a JSON string's text as UTF-8. Without an escape in it that is what stands between the quotation marks."""
    if _ESCAPE not in raw:
        return raw[1:-1]
    return letters(raw, path).encode()


def dotted(path: Path) -> str:
    """Return a path as people write it.

    >>> dotted(("messages", 0, "content"))
    'messages[0].content'
    """
    return "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path).lstrip(".")


def pieces(shape: shapes.Shape) -> Iterator[Piece]:
    """Walk a prompt's pieces. Errors: `BodyError` for content that is neither text nor a list of parts."""
    if isinstance(shape, shapes.Chat):
        yield from _data("tools", ("tools",), shape.tools)
        yield from _data("tools", ("functions",), shape.functions)
        for i, message in enumerate(shape.messages):
            yield from _message(("messages", i), message)
    elif isinstance(shape, shapes.Messages):
        yield from _data("tools", ("tools",), shape.tools)
        yield from _content("system", ("system",), given(shape.system))
        for i, message in enumerate(shape.messages):
            yield from _message(("messages", i), message)
    elif isinstance(shape, shapes.Responses):
        yield from _data("tools", ("tools",), shape.tools)
        yield from _content("system", ("instructions",), given(shape.instructions))
        said = given(shape.input)
        if said[:1] == b"[":
            for i, item in enumerate(listed(shapes.ITEMS, said, ("input",))):
                yield from _responses_item(("input", i), item)
        else:
            yield from _content("user", ("input",), said)
    elif isinstance(shape, shapes.Completions):
        yield from _prompts("prompt", given(shape.prompt))
        yield from _content("suffix", ("suffix",), given(shape.suffix))
    elif isinstance(shape, shapes.Embeddings):
        yield from _prompts("input", given(shape.input))
    elif isinstance(shape, shapes.SglangGenerate):
        yield from _prompts("text", given(shape.text))
        for field, modality in (("image_data", "image"), ("video_data", "video"), ("audio_data", "audio")):
            said = given(getattr(shape, field))
            if said:
                yield Piece(
                    "user", (field,), said, False, False, MediaItem(xxhash.xxh3_64_intdigest(said), 1, modality)
                )


def plain(messages: Sequence[shapes.Message]) -> list[tuple[str, bytes]] | None:
    """Return the role and the raw text of each message, where that is all there is to them: what most requests are. Else None."""
    found: list[tuple[str, bytes]] = []
    nothing = shapes.NOTHING
    for message in messages:
        if message.tool_calls is not nothing or message.reasoning_content is not nothing:
            return None
        said = bytes(message.content)
        if not said or said[0] != _OPEN:
            return None
        found.append((message.role or "user", said))
    return found


def listed(decoder: msgspec.json.Decoder[list[T]], raw: bytes, path: Path) -> list[T]:
    """Return a list's items. Errors: `BodyError`."""
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BodyError(dotted(path), _shown(raw), f"a list: {error}") from error


def _shown(raw: bytes) -> str:
    return raw[:40].decode("utf-8", "replace") + ("..." if len(raw) > 40 else "")


def _data(role: str, path: Path, raw: Raw) -> Iterator[Piece]:
    said = given(raw)
    if said:
        yield Piece(role, path, said, True, False)


def _prompts(field: str, said: bytes) -> Iterator[Piece]:
    """Walk the prompts of a completion: one, or a list. Token ids are no text."""
    if said[:1] == b'"':
        yield Piece("user", (field,), said, True)
    elif said[:1] == b"[" and said[1:].lstrip()[:1] == b'"':
        for i, each in enumerate(listed(_RAWS, said, (field,))):
            yield Piece("user", (field, i), bytes(each), True)


def _message(path: Path, message: shapes.Message) -> Iterator[Piece]:
    role = message.role or "user"
    yield Piece(role, path, b"", True)
    if message.reasoning_content is not shapes.NOTHING:
        yield from _content(role, (*path, "reasoning_content"), given(message.reasoning_content), begins=False)
    said = given(message.content)
    if said:
        yield from _content(role, (*path, "content"), said, begins=False)
    if message.tool_calls is not shapes.NOTHING:
        yield from _printed(role, (*path, "tool_calls"), given(message.tool_calls))


def _responses_item(path: Path, item: shapes.Item) -> Iterator[Piece]:
    role = item.role or item.type or "user"
    yield Piece(role, path, b"", True)
    said = given(item.content)
    if said:
        yield from _content(role, (*path, "content"), said, begins=False)
    for field, raw in (("name", item.name), ("arguments", item.arguments), ("output", item.output)):
        yield from _printed(role, (*path, field), given(raw))


def _printed(role: str, path: Path, said: bytes) -> Iterator[Piece]:
    """Walk what a template prints: a text, or data as it is."""
    if said:
        yield Piece(role, path, said, False, said[0] == _OPEN)


def _content(role: str, path: Path, said: bytes, *, begins: bool = True) -> Iterator[Piece]:
    """Walk one content: a text, or a list of parts."""
    if not said:
        return
    if said[0] == _OPEN:
        yield Piece(role, path, said, begins)
        return
    if said[:1] != b"[":
        raise BodyError(dotted(path), _shown(said), "a string, a list of parts, or null")
    if begins:
        yield Piece(role, path, b"", True)
    for i, part in enumerate(listed(shapes.PARTS, said, path)):
        here = (*path, i)
        for field in ("text", "thinking", "refusal"):
            text = given(getattr(part, field))
            if text:
                if text[0] != _OPEN:
                    raise BodyError(dotted((*here, field)), _shown(text), "a string")
                yield Piece(role, (*here, field), text)
        for field, modality in _MEDIA:
            media = given(getattr(part, field))
            if media:
                kind = part.type if field == "source" and part.type else modality
                yield Piece(role, (*here, field), media, False, False, _media_of(media, kind))
        for field in ("name", "input"):
            data = given(getattr(part, field))
            if data:
                yield Piece(role, (*here, field), data, False, False)
        inner = given(part.content)
        if inner:
            yield from _content(role, (*here, "content"), inner, begins=False)


def _media_of(raw: bytes, modality: str) -> MediaItem:
    """Return the item of a picture's JSON. ``"URL"`` and ``{"url": "URL"}`` are the same one, whatever detail is asked for."""
    if raw[:1] == b"{":
        try:
            address = _ADDRESS.decode(raw)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BodyError(modality, _shown(raw), "a string, or an object with one") from error
        where = address.url or address.data or address.file_data or address.file_id
        said = where.encode() if where else raw
    else:
        said = text_bytes(raw) if raw[:1] == b'"' else raw
    return MediaItem(xxhash.xxh3_64_intdigest(said), 1, modality)


class _Address(msgspec.Struct):
    url: str = ""
    data: str = ""
    file_data: str = ""
    file_id: str = ""


_ADDRESS: Final = msgspec.json.Decoder(_Address)
_RAWS: Final = msgspec.json.Decoder(list[Raw])
