"""What does a plug-in's author read when a check fails?"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

CheckedKind = Literal["filter", "scorer", "picker", "profile-handler", "producer", "assigner", "decider"]


class CheckFailure(AssertionError):  # noqa: N818  # what test runners call a failure is no error
    """Which promise did a plug-in break: what was done, what came back, and what is allowed?

    >>> raise CheckFailure("scorer:range", "Mine()", "score() of 'usual'", "1.5 for 'ep-2'", "0 to 1")
    Traceback (most recent call last):
    ...
    inferencesched.testing.failure.CheckFailure: Mine() fails scorer:range
      done:    score() of 'usual'
      got:     1.5 for 'ep-2'
      allowed: 0 to 1
    """

    def __init__(self, check: str, plugin: str, done: str, got: str, allowed: str) -> None:
        self.check = check
        self.plugin = plugin
        self.done = done
        self.got = got
        self.allowed = allowed
        super().__init__(f"{plugin} fails {check}\n  done:    {done}\n  got:     {got}\n  allowed: {allowed}")


@dataclass(frozen=True, slots=True)
class Check:
    """Which promise is this, of which plug-in? Call it: it returns nothing, or raises `CheckFailure`.

    ``str(check)`` is ``kind:name``, a good id for a parametrised test.
    """

    kind: CheckedKind
    name: str
    plugin: str
    run: Callable[["Check"], None] = field(repr=False, compare=False)

    def __call__(self) -> None:
        self.run(self)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def fail(self, done: str, got: str, allowed: str, cause: BaseException | None = None) -> NoReturn:
        """Raise the failure."""
        raise CheckFailure(str(self), self.plugin, done, got, allowed) from cause
