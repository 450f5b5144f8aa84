"""May this prompt go to a model, and its answer to the client?

A chain of guards, in order, over requests, answers, and answers as they stream. Each says `Allow`, `Block` or `Redact`; the first
block counts, redactions add up. What a guard may cost and what becomes of a request when it fails is said for each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, final

from inferencesched.errors import GuardBlockedError, InvalidInputError, UnknownNameError
from inferencesched.governance.finders import redacted
from inferencesched.governance.verdicts import (
    ALLOW,
    Allow,
    Block,
    Context,
    Finder,
    Guard,
    Phase,
    Redact,
    Span,
    Verdict,
)
from inferencesched.routing.body import RequestBody

__all__ = [
    "ALLOW",
    "Allow",
    "Block",
    "Context",
    "Finder",
    "FinderGuard",
    "Guard",
    "GuardChain",
    "GuardStream",
    "Guarded",
    "Redact",
    "SizeGuard",
    "Span",
    "Verdict",
]

_BOTH: Final[tuple[Phase, ...]] = ("request", "response")


@dataclass(frozen=True, slots=True)
class FinderGuard:
    """What does a guard say that goes by where a `Finder` finds something? It can follow a stream.

    >>> from inferencesched.governance.finders import Keywords
    >>> FinderGuard("words", Keywords({"project": ("blue moon",)})).check(["The Blue Moon plan"], Context())
    Block(guard='words', rule='project', detail='')
    """

    name: str
    finder: Finder

    def check(self, texts: Sequence[str], context: Context) -> Verdict:
        """Block at the first match that blocks, else redact what is found."""
        out: list[str] = []
        rules: dict[str, None] = {}
        for text in texts:
            found = self.finder.find(text)
            for span in found:
                if span.replacement is None:
                    return Block(self.name, span.rule)
                rules[span.rule] = None
            out.append(redacted(text, found) if found else text)
        return Redact(tuple(out), tuple(rules)) if rules else ALLOW


@dataclass(frozen=True, slots=True)
class SizeGuard:
    """Is it too much, or not text at all?

    ``characters`` in all, ``texts`` in number, ``line`` the longest line; ``controls`` allows control characters other than tab and
    line ends.
    """

    name: str = "size"
    characters: float = inf
    texts: float = inf
    line: float = inf
    controls: bool = True

    def __post_init__(self) -> None:
        for parameter in ("characters", "texts", "line"):
            value = getattr(self, parameter)
            if not value >= 1:
                raise InvalidInputError(parameter, value, "at least 1")

    def check(self, texts: Sequence[str], context: Context) -> Verdict:
        """Block where a limit is passed."""
        if len(texts) > self.texts:
            return Block(self.name, "texts", f"{len(texts)} of at most {self.texts:g}")
        total = sum(map(len, texts))
        if total > self.characters:
            return Block(self.name, "characters", f"{total} of at most {self.characters:g}")
        if self.line < inf:
            longest = max((len(line) for text in texts for line in text.splitlines()), default=0)
            if longest > self.line:
                return Block(self.name, "line", f"{longest} of at most {self.line:g}")
        if not self.controls and any(ord(each) < 32 and each not in "\t\n\r" for text in texts for each in text):
            return Block(self.name, "controls")
        return ALLOW


@dataclass(frozen=True, slots=True)
class Guarded:
    """How does a guard stand in a chain?

    Parameters
    ----------
    guard: what is asked.
    phases: for requests, for answers, or both.
    on_error: ``closed`` blocks what it cannot judge (it raised, or took longer than its budget), ``open`` lets it pass.
    budget: seconds that it may take, by the chain's clock; None is any.
    """

    guard: Guard
    phases: tuple[Phase, ...] = _BOTH
    on_error: Literal["open", "closed"] = "closed"
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("open", "closed"):
            raise UnknownNameError("on_error", self.on_error, ("open", "closed"))
        if not self.phases or not set(self.phases) <= set(_BOTH):
            raise UnknownNameError("phases", self.phases, _BOTH)
        if self.budget is not None and not self.budget > 0:
            raise InvalidInputError("budget", self.budget, "seconds above 0, or None")


@final
class GuardChain:
    """May it pass?

    Parameters
    ----------
    guards: in the order in which they are asked; a bare guard is asked in both phases and fails closed.
    clock: seconds, for budgets; without it nobody is timed.
    on_failure: told of guard and error (`TimeoutError` where it took too long), whatever its policy.

    A guard that takes too long is not interrupted: its verdict is dropped, and its policy counts. That a later guard sees what an
    earlier one left of the texts is a law; after a block nobody else is asked. Cost: 1 us a guard and what it costs itself.

    >>> from inferencesched.governance.personal import PersonalData
    >>> chain = GuardChain((FinderGuard("personal", PersonalData()),))
    >>> chain.check_response(["write to me@example.com"], now=0.0)
    Redact(texts=('write to [email]',), rules=('email',))
    """

    __slots__ = ("_clock", "_on_failure", "guards")

    def __init__(
        self,
        guards: Sequence[Guard | Guarded],
        *,
        clock: Callable[[], float] | None = None,
        on_failure: Callable[[Guard, Exception], object] | None = None,
    ) -> None:
        self.guards = tuple(each if isinstance(each, Guarded) else Guarded(each) for each in guards)
        self._clock = clock
        self._on_failure = on_failure
        if clock is None and any(each.budget is not None for each in self.guards):
            raise InvalidInputError("clock", None, "a clock, since a guard has a budget")

    def check_request(self, body: RequestBody, *, tenant: str = "", now: float) -> Verdict:
        """Return what the chain says of a prompt. ``Redact.texts`` stand for ``body.texts()``."""
        return self._check(body.texts(), Context("request", tenant, now))

    def check_response(self, texts: Sequence[str], *, tenant: str = "", now: float) -> Verdict:
        """Return what the chain says of a whole answer."""
        return self._check(tuple(texts), Context("response", tenant, now))

    def stream(self, *, tenant: str = "", now: float) -> "GuardStream":
        """Return what follows one answer as it streams. Guards that are no `FinderGuard` see the whole text once, at its end."""
        return GuardStream(self, Context("response", tenant, now))

    def _check(self, texts: tuple[str, ...], context: Context) -> Verdict:
        rules: dict[str, None] = {}
        for place in self.guards:
            if context.phase not in place.phases:
                continue
            verdict = self._asked(place, texts, context)
            if isinstance(verdict, Block):
                return verdict
            if isinstance(verdict, Redact):
                texts = verdict.texts
                rules.update(dict.fromkeys(verdict.rules))
        return Redact(texts, tuple(rules)) if rules else ALLOW

    def _asked(self, place: Guarded, texts: tuple[str, ...], context: Context) -> Verdict:
        guard, clock = place.guard, self._clock
        try:
            began = clock() if clock is not None else 0.0
            verdict = guard.check(texts, context)
            if isinstance(verdict, Redact) and len(verdict.texts) != len(texts):
                raise InvalidInputError("texts", len(verdict.texts), f"{len(texts)}, one for each that was shown")
            if clock is not None and place.budget is not None:
                took = clock() - began
                if took > place.budget:
                    raise TimeoutError(f"{guard.name} took {took:.3g} s of {place.budget:g}")
        except Exception as error:  # noqa: BLE001  a guard's, whatever it is: its policy says what follows
            if self._on_failure is not None:
                self._on_failure(guard, error)
            return Block(guard.name, "failed") if place.on_error == "closed" else ALLOW
        return verdict


@final
class GuardStream:
    """What of an answer may go out now? Made by `GuardChain.stream`, for one answer.

    What could still become a match is held back: at most the finder's `longest` characters for each guard. Law: cut into any
    chunks, what `feed` and `finish` give together is what a whole text would have given, it is blocked exactly where the whole
    would be, and nothing of a match goes out before it is judged.
    """

    __slots__ = ("_chain", "_context", "_rest", "_stages", "_whole")

    def __init__(self, chain: GuardChain, context: Context) -> None:
        self._chain = chain
        self._context = context
        places = [place for place in chain.guards if "response" in place.phases]
        self._stages = [
            _Stage(each.guard.name, each.guard.finder) for each in places if isinstance(each.guard, FinderGuard)
        ]
        self._rest = [each for each in places if not isinstance(each.guard, FinderGuard)]
        self._whole: list[str] = []

    def feed(self, text: str, *, now: float) -> str:
        """Return what may go out, given some more. Errors: `GuardBlockedError`."""
        return self._through(text, last=False)

    def finish(self, *, now: float) -> str:
        """Return what was held back: there is no more. Errors: `GuardBlockedError`."""
        out = self._through("", last=True)
        if self._rest:
            whole = "".join((*self._whole, out))
            for place in self._rest:
                verdict = self._chain._asked(place, (whole,), self._context)
                if isinstance(verdict, Block):
                    raise GuardBlockedError(verdict.guard, verdict.rule, verdict.detail)
        return out

    def _through(self, text: str, *, last: bool) -> str:
        for stage in self._stages:
            text = stage.pass_on(text, last=last)
        if self._rest and text:
            self._whole.append(text)
        return text


@final
class _Stage:
    """One finder over a stream: `_held` is what is not judged yet, behind `_seen`, the last that went out."""

    __slots__ = ("_finder", "_held", "_name", "_seen")

    def __init__(self, name: str, finder: Finder) -> None:
        self._name = name
        self._finder = finder
        self._held = ""
        self._seen = ""

    def pass_on(self, text: str, *, last: bool) -> str:
        seen = len(self._seen)
        whole = self._seen + self._held + text
        # A match that begins before `settled` ends before the text does, with the character behind it in view.
        settled = len(whole) if last else len(whole) - self._finder.longest
        if settled <= seen and not last:
            self._held += text
            return ""
        out: list[str] = []
        at = seen
        for span in self._finder.find(whole, seen):
            if span.begin >= settled and not last:
                break
            if span.replacement is None:
                raise GuardBlockedError(self._name, span.rule)
            out += [whole[at : span.begin], span.replacement]
            at = span.end
        end = max(at, settled)
        out.append(whole[at:end])
        self._seen, self._held = whole[max(0, end - self._finder.longest) : end], whole[end:]
        return "".join(out)
