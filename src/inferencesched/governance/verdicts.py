"""What may a guard say, and who is one?"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

Phase = Literal["request", "response"]


class Allow(NamedTuple):
    """Nothing speaks against it."""


class Block(NamedTuple):
    """It may not pass. ``guard`` and ``rule`` are low-cardinality names; ``detail`` never holds what was matched."""

    guard: str
    rule: str
    detail: str = ""


class Redact(NamedTuple):
    """It may pass with these texts in the place of those that were shown, one for one."""

    texts: tuple[str, ...]
    rules: tuple[str, ...]


Verdict = Allow | Block | Redact
ALLOW = Allow()


class Context(NamedTuple):
    """Whose text is it, and which way does it go?"""

    phase: Phase = "request"
    tenant: str = ""
    now: float = 0.0


class Guard(Protocol):
    """May this text pass?"""

    @property
    def name(self) -> str:
        """What is it called, in records and metrics?"""
        ...

    def check(self, texts: Sequence[str], context: Context) -> Verdict:
        """Return what it says of these texts, all of one request or answer."""
        ...


class Span(NamedTuple):
    """Where in a text does a rule match, and what stands there instead? ``text[begin:end]``; None blocks."""

    begin: int
    end: int
    rule: str
    replacement: str | None = None


class Finder(Protocol):
    """Where do rules match in one text? What streams are guarded by.

    No match is longer than `longest`, and whether there is one depends on no more than `longest` characters before it and one
    behind it. Of all matches that begin at or after `start` the first counts, then the first that begins where that ended or later.
    """

    @property
    def longest(self) -> int:
        """How many characters has the longest possible match?"""
        ...

    def find(self, text: str, start: int = 0) -> Sequence[Span]:
        """Return the matches that begin at `start` or later, in order, none over another."""
        ...
