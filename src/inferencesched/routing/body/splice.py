"""Where in a body's bytes does a value stand, and how is it replaced without touching anything else?

What a gateway does not know it must not change: numbers keep their digits, keys their order, spaces their places. So a new model name,
or a redacted text, is cut into the bytes that came.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from inferencesched.errors import BodyError
from inferencesched.routing.body.pieces import Path

_BLANKS: Final = " \t\n\r"
_KEY: Final = b'"model"'


def spliced_model(raw: bytes, known: str, name: str) -> bytes:
    """Return the body with `name` as its model: each top-level ``model`` that there is, or a first one where there is none.

    `known` is the model that was read, empty for none.
    """
    value = _quoted(name)
    at = raw.find(_KEY)
    # The only key of that spelling, and no escape that could spell it otherwise: then it is the one.
    if known and at >= 0 and raw.find(_KEY, at + 1) < 0 and (b"\\" not in raw or b"\\u00" not in raw):
        start = at + len(_KEY)
        begin = raw.find(b'"', start)
        end = raw.find(b'"', begin + 1)
        if raw[start:begin].strip() == b":" and raw[begin + 1 : end] == known.encode():
            return raw[:begin] + value + raw[end + 1 :]
    text = raw.decode()
    spans = [span for path, span in _walk(text, lambda path: len(path) <= 1) if path == ("model",)]
    quoted = value.decode()
    if not spans:
        start = text.index("{") + 1
        comma = "" if text[start:].lstrip(_BLANKS)[:1] == "}" else ", "
        return f'{text[:start]}"model": {quoted}{comma}{text[start:]}'.encode()
    return _replaced(text, [(span, quoted) for span in spans])


@lru_cache(maxsize=1024)
def _quoted(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False).encode()


def spliced_texts(raw: bytes, texts: Mapping[Path, str]) -> bytes:
    """Return the body with other strings at these paths, everything else as it came."""
    text = raw.decode()
    prefixes = {path[:i] for path in texts for i in range(len(path) + 1)}
    found = {path: span for path, span in _walk(text, prefixes.__contains__) if path in texts}
    missing = texts.keys() - found.keys()
    if missing:
        raise BodyError("texts", min(map(str, missing)), "paths of strings in the body")
    return _replaced(text, [(found[path], json.dumps(said, ensure_ascii=False)) for path, said in texts.items()])


def _replaced(text: str, changes: Collection[tuple[tuple[int, int], str]]) -> bytes:
    pieces, at = [], 0
    for (begin, end), said in sorted(changes):
        pieces += [text[at:begin], said]
        at = end
    return "".join((*pieces, text[at:])).encode()


def _walk(text: str, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, tuple[int, int]]]:
    """Walk the values of a JSON text with their places; into those containers only that `enter` names. A later key wins in `dict`."""
    try:
        yield from _value(text, _blank(text, 0), (), enter)
    except RecursionError as error:
        raise BodyError("body", "nested too deep", "fewer levels") from error


def _blank(text: str, at: int) -> int:
    while text[at : at + 1] in _BLANKS and at < len(text):
        at += 1
    return at


def _value(text: str, at: int, path: Path, enter: Callable[[Path], bool]) -> Iterator[tuple[Path, tuple[int, int]]]:
    opening = text[at]
    if opening not in "{[" or not enter(path):
        yield path, (at, _end(text, at))
        return
    begin, at = at, _blank(text, at + 1)
    number = 0
    while text[at] not in "}]":
        if opening == "{":
            key: str | int
            key, at = _DECODER.parse_string(text, at + 1, False)
            at = _blank(text, _blank(text, at) + 1)
        else:
            key = number
        end = at
        for each in _value(text, at, (*path, key), enter):
            yield each
            end = each[1][1]
        at = _blank(text, end)
        number += 1
        if text[at] == ",":
            at = _blank(text, at + 1)
    yield path, (begin, at + 1)


# The standard library's scanner of one value, and of one string: both say where it ends.
_DECODER: Final[Any] = json.JSONDecoder(strict=False)
_SCAN: Final = _DECODER.scan_once


def _end(text: str, at: int) -> int:
    if text[at] == '"':
        return int(_DECODER.parse_string(text, at + 1, False)[1])
    return int(_SCAN(text, at)[1])
