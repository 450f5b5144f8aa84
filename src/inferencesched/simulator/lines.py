"""How are files of one JSON object a line read? Whatever is wrong is told with its line."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec

from inferencesched.errors import TraceError

T = TypeVar("T")


def decoded(lines: Iterable[bytes], kind: type[T], *, name: str) -> Iterator[tuple[int, T]]:
    """Yield each line's number, from 1, and what it holds; blank lines are passed over. Errors: `TraceError`."""
    decoder = msgspec.json.Decoder(kind)
    read = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TraceError(
                name, number, "line", repr(line[:60]), f"a JSON object ({error})", lines_read=read
            ) from error
        read += 1
        yield number, found
