"""How many requests may be in flight, where nobody wants to tune a number?

The time to the first token tells: where it stays what it was there is room, where it grows a queue does. Not the time to the
last token, which depends on how much there is to say. Formulas of Netflix' ``concurrency-limits``, as values that
answer with the next state; `AdaptiveGate` holds the state. All keep their limit within [`least`, `most`], never answer a longer
time with a higher limit, and never raise a limit of which less than half is used.
"""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10, nan
from typing import NamedTuple, Protocol, final

from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.flows import Ticket
from inferencesched.flowcontrol.policies import Gate, OpenGate, PlacedGate


class LimitState(NamedTuple):
    """What does a limit remember? ``baseline`` is the time it compares with, NaN before the first sample; ``samples`` counts them."""

    limit: float
    baseline: float = nan
    samples: int = 0


class AdaptiveLimit(Protocol):
    """What is the limit after one more sample?"""

    def start(self) -> LimitState:
        """Return the state before the first sample."""
        ...

    def after(self, state: LimitState, seconds: float, inflight: int, dropped: bool = False) -> LimitState:
        """Return the state after a first token that took so long, with so many in flight when it came.

        `dropped` is for a request that came to nothing for want of room: then `seconds` do not count.
        """
        ...


@dataclass(frozen=True, slots=True)
class Aimd:
    """Does the first token come in time? Then one more, if the limit is in use; else a tenth fewer.

    ``floor(backoff * limit)`` after a drop or after more than `timeout` seconds; ``limit + 1`` where ``2 * inflight >= limit``.
    A constant time leads to `most` or to `least`. Source: TCP; Netflix' ``AIMDLimit``.

    >>> Aimd(timeout=2.0).after(LimitState(50.0), 0.5, inflight=30).limit, Aimd(timeout=2.0).after(LimitState(50.0), 3.0, inflight=30).limit
    (51.0, 45.0)
    """

    timeout: float = 5.0
    backoff: float = 0.9
    initial: float = 20.0
    least: float = 20.0
    most: float = 200.0

    def __post_init__(self) -> None:
        _check_bounds(self.initial, self.least, self.most)
        if not self.timeout > 0:
            raise InvalidInputError("timeout", self.timeout, "seconds above 0")
        if not 0 < self.backoff < 1:
            raise InvalidInputError("backoff", self.backoff, "above 0, below 1")

    def start(self) -> LimitState:
        """Return the initial limit."""
        return LimitState(float(self.initial))

    def after(self, state: LimitState, seconds: float, inflight: int, dropped: bool = False) -> LimitState:
        """Return one more, fewer, or the same."""
        limit = state.limit
        if dropped or seconds > self.timeout:
            limit = float(floor(limit * self.backoff))
        elif 2 * inflight >= limit:
            limit += 1
        return LimitState(_within(limit, self.least, self.most), nan, state.samples + 1)


@dataclass(frozen=True, slots=True)
class Gradient2:
    """How does this first token compare with the usual one? The limit follows the ratio, plus room for a short queue.

    ``g = clamp(tolerance * usual / seconds, 0.5, 1)``, ``limit = (1 - smoothing) * limit + smoothing * (g * limit + queue)``. The usual time
    is an exponential average over some `window` samples (the plain mean of the first ten), which shrinks by 5 % at a sample less than
    half of it, so that it is not held up by what was. Below half of the limit in use nothing changes but the usual time. A
    drop counts as g = 0.5. A constant time leads to `most`: it answers to a change. Where servers stay overloaded the usual time
    creeps up to the long one, and the limit with it, so `most` should be one that they survive. Source: Netflix' ``Gradient2Limit``,
    which knows no drops.
    """

    tolerance: float = 1.5
    smoothing: float = 0.2
    queue: float = 4.0
    window: int = 600
    initial: float = 20.0
    least: float = 20.0
    most: float = 200.0

    def __post_init__(self) -> None:
        _check_bounds(self.initial, self.least, self.most)
        if not 1 <= self.tolerance < inf:
            raise InvalidInputError("tolerance", self.tolerance, "a finite number of at least 1")
        if not 0 < self.smoothing <= 1:
            raise InvalidInputError("smoothing", self.smoothing, "above 0, at most 1")
        if not 0 <= self.queue < inf:
            raise InvalidInputError("queue", self.queue, "a finite number of at least 0")
        if not self.window >= 1:
            raise InvalidInputError("window", self.window, "at least 1")

    def start(self) -> LimitState:
        """Return the initial limit."""
        return LimitState(float(self.initial))

    def after(self, state: LimitState, seconds: float, inflight: int, dropped: bool = False) -> LimitState:
        """Return the limit moved a fifth of the way to what the ratio asks for."""
        limit, usual, samples = state
        gradient = 0.5
        if not dropped:
            samples += 1
            weight = 1 / samples if samples <= 10 else 2 / (self.window + 1)
            usual = seconds if usual != usual else usual + weight * (seconds - usual)
            gradient = max(0.5, min(1.0, self.tolerance * usual / seconds)) if seconds > 0 else 1.0
            before = usual
            usual *= 0.95 if before > 2 * seconds else 1.0
            if 2 * inflight < limit:
                return LimitState(limit, usual, samples)
        wanted = gradient * limit + (0.0 if dropped else self.queue)
        limit = (1 - self.smoothing) * limit + self.smoothing * wanted
        return LimitState(_within(limit, self.least, self.most), usual, samples)


@dataclass(frozen=True, slots=True)
class Vegas:
    """How many requests queue, to go by how much longer than the shortest time the first token took?

    ``q = ceil(limit * (1 - shortest / seconds))``, with steps of ``log10(limit)``, at least 1: no more than one step queued raises
    the limit by six, fewer than three by one, more than six lower it by one; so does a drop. Every `probe_every` times `limit`
    samples the shortest time is forgotten and measured anew. A constant time leads to `most`. Source: TCP Vegas; Netflix'
    ``VegasLimit``, which passes over a sample that is the shortest yet, so that a longer one can do better, and draws when it
    measures anew.
    """

    probe_every: float = 30.0
    initial: float = 20.0
    least: float = 1.0
    most: float = 1000.0

    def __post_init__(self) -> None:
        _check_bounds(self.initial, self.least, self.most)
        if not self.probe_every > 0:
            raise InvalidInputError("probe_every", self.probe_every, "a number above 0")

    def start(self) -> LimitState:
        """Return the initial limit."""
        return LimitState(float(self.initial))

    def after(self, state: LimitState, seconds: float, inflight: int, dropped: bool = False) -> LimitState:
        """Return the limit a step higher, lower, or as it was."""
        limit, shortest, samples = state
        step = max(1.0, log10(limit))
        if dropped:
            return LimitState(_within(limit - step, self.least, self.most), shortest, samples)
        if samples + 1 >= self.probe_every * limit:
            return LimitState(limit, seconds, 0)
        samples += 1
        if not seconds >= shortest:
            shortest = seconds
        if 2 * inflight >= limit:
            queued = ceil(limit * (1 - shortest / seconds)) if seconds > 0 else 0
            if queued <= step:
                limit += 6 * step
            elif queued < 3 * step:
                limit += step
            elif queued > 6 * step:
                limit -= step
        return LimitState(_within(limit, self.least, self.most), shortest, samples)


@final
class AdaptiveGate:
    """How full is the pool, of as many requests as a limit allows that learns from times to the first token?

    ``inflight / limit``; or, where that is more, what another gate says. Tell it each first token (`first_token`), and each request
    that came to nothing for want of room (`dropped`). One limit for all servers together: when some join or leave, it takes the
    samples of a while to notice. Every call is O(1).

    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> gate = AdaptiveGate(Aimd(initial=2, least=1))
    >>> controller = FlowController(gate=gate)
    >>> tickets = [controller.submit(QueueItem(request_id=f"r-{i}"), now=0.0) for i in range(4)]
    >>> len(controller.step(now=0.0))
    2
    >>> gate.first_token(tickets[0], now=0.3)
    >>> gate.limit, len(controller.step(now=0.3))
    (3.0, 1)
    """

    __slots__ = ("_adaptive", "_gate", "_inflight", "_placed", "_state")

    def __init__(self, adaptive: AdaptiveLimit, gate: Gate | None = None) -> None:
        self._adaptive = adaptive
        self._gate: Gate = OpenGate() if gate is None else gate
        self._placed = self._gate if isinstance(self._gate, PlacedGate) else None
        self._state = adaptive.start()
        self._inflight: dict[int, None] = {}

    @property
    def limit(self) -> float:
        """How many may be in flight now?"""
        return self._state.limit

    @property
    def inflight(self) -> AbstractSet[int]:
        """Whose numbers are in flight?"""
        return self._inflight.keys()

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Tell the other gate."""
        self._gate.observe(endpoints, now)

    def level(self, now: float) -> float:
        """Return the share of the limit that is in flight, or the other gate's word where that is more."""
        return max(len(self._inflight) / self._state.limit, self._gate.level(now))

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Count one more."""
        self._inflight[ticket.number] = None
        self._gate.dispatched(ticket, now)

    def placed(self, ticket: Ticket, now: float) -> None:
        """Tell the other gate, if it wants to know."""
        if self._placed is not None:
            self._placed.placed(ticket, now)

    def finished(self, ticket: Ticket, now: float) -> None:
        """Count one fewer."""
        self._inflight.pop(ticket.number, None)
        self._gate.finished(ticket, now)

    def first_token(self, ticket: Ticket, now: float) -> None:
        """Learn how long the first token took since the dispatch. Of a ticket that is not in flight nothing is learnt."""
        seconds = now - ticket.dispatched_at
        if ticket.number in self._inflight:
            if not 0 <= seconds < inf:
                raise InvalidInputError("now", now, f"a finite time of at least {ticket.dispatched_at}, the dispatch")
            self._state = self._adaptive.after(self._state, seconds, len(self._inflight))

    def dropped(self, ticket: Ticket, now: float) -> None:
        """Learn that a request came to nothing for want of room; `finished` is still to come."""
        if ticket.number in self._inflight:
            self._state = self._adaptive.after(self._state, inf, len(self._inflight), dropped=True)


def _check_bounds(initial: float, least: float, most: float) -> None:
    if not 1 <= least < inf:
        raise InvalidInputError("least", least, "a finite number of at least 1")
    if not (least <= most and isfinite(most)):
        raise InvalidInputError("most", most, f"a finite number of at least {least}")
    if not least <= initial <= most:
        raise InvalidInputError("initial", initial, f"{least} to {most}")


def _within(limit: float, least: float, most: float) -> float:
    return least if limit < least else min(limit, most)
