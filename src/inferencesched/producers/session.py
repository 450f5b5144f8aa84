"""Which endpoint was a session bound to?"""

from collections import OrderedDict
from typing import Final, NamedTuple, final

from xxhash import xxh3_128_hexdigest

from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError, finite_time, whole_number
from inferencesched.framework import CycleState, Filter, Produced, Reader, Reads, SchedulingResult
from inferencesched.request import InferenceRequest
from inferencesched.sessions import SESSION_HEADER, SessionSource, place_of_session, session_of
from inferencesched.signals import SESSION_BOUND, of_producer

#: A session's name that is longer is remembered by its hash.
LONGEST_NAME: Final = 64


class SessionReceipt(NamedTuple):
    """Which session was it, and was its endpoint looked for among the candidates and not found?"""

    session: str
    absent: bool = False


@final
class SessionBindingProducer:
    """Which endpoint was this session bound to?

    Fills ``SESSION_BOUND``: 1 for the endpoint that the request's session is bound to, 0 for the others, NaN for a request without
    a session and for a session that is not bound. The first decision that is kept binds a session, and the binding holds: that
    load outvotes it once does not move it. It moves only if its endpoint was not among the candidates of a decision that is kept.
    Endpoints are known by name: one that comes back has its sessions again.

    Parameters
    ----------
    sources: where a request says which session it belongs to; the first that says anything counts.
    profile: whose target is bound, the primary profile's if empty. Where that profile did not run, nothing is bound.
    ttl: seconds after which a binding that was not used (its endpoint picked) is forgotten.
    sweep: seconds between two clearings of what is forgotten; it is memory that waits, never a decision.
    name: of this producer, where there are several: ``BoundSession(name)`` reads it.
    filters: who has to pass these to count as a candidate: the filters before the one that asks for the session.
    capacity: most bindings; the longest unused goes first.

    It hears of decisions by `DecisionListener`: `commit` has nothing to do. Read from any thread; written under the lock of the one
    pool that it serves. Cost: a look-up and a column; a binding takes some 300 bytes.
    Source: llm-d router's session affinity by ``session_id``. Errors: `InvalidInputError`.

    >>> import numpy as np
    >>> from inferencesched import BoundSession, InferencePool, Scheduler, SchedulingProfile, SessionAffinityFilter
    >>> from inferencesched import MaxScorePicker
    >>> profile = SchedulingProfile(MaxScorePicker(), filters=(SessionAffinityFilter(BoundSession()),))
    >>> scheduler = Scheduler(profile, producers=(SessionBindingProducer(),))
    >>> pool, rng = InferencePool(), np.random.default_rng(1)
    >>> for name in "abcd":
    ...     pool.join(name)
    >>> def turn(number):
    ...     request = InferenceRequest(request_id=f"r-{number}", headers={"x-session-id": "s"})
    ...     return scheduler.schedule_and_reserve(request, pool, now=float(number), rng=rng).endpoint
    >>> len({turn(number) for number in range(8)})
    1
    """

    def __init__(
        self,
        sources: tuple[SessionSource, ...] = (SessionSource(header=SESSION_HEADER),),
        *,
        profile: str = "",
        ttl: float = 300.0,
        sweep: float = 10.0,
        name: str = "",
        filters: tuple[Filter, ...] = (),
        capacity: int = 1 << 20,
    ) -> None:
        self.sources = tuple(sources)
        if not self.sources:
            raise InvalidInputError("sources", sources, "at least one SessionSource")
        for parameter, seconds in (("ttl", ttl), ("sweep", sweep)):
            if not seconds > 0:
                raise InvalidInputError(parameter, seconds, "seconds above 0")
        self.profile = profile
        self.ttl = ttl
        self.sweep = sweep
        self.name = name
        self.filters = tuple(filters)
        self.capacity = whole_number("capacity", capacity, low=1)
        self._signal = of_producer(SESSION_BOUND, name)
        self._bindings: OrderedDict[str, tuple[str, float]] = (
            OrderedDict()
        )  # session -> endpoint, used; longest unused first
        self._swept = -float("inf")

    def __repr__(self) -> str:
        places = ", ".join(f"{place} {name!r}" for source in self.sources for place, name in source.named.items())
        return f"SessionBindingProducer({places}{f', profile {self.profile!r}' if self.profile else ''})"

    def __len__(self) -> int:
        return len(self._bindings)

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which column does it fill?"""
        return (self._signal,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Those of its `filters`."""
        return tuple(read for each in self.filters if isinstance(each, Reader) for read in each.reads)

    def bound(self, session: str, *, now: float) -> str:
        """Return which endpoint has the session; empty is none."""
        endpoint, used = self._bindings.get(_short(session), ("", now))
        return "" if now - used > self.ttl else endpoint

    def session(self, request: InferenceRequest) -> str:
        """Return which session the request belongs to; empty is none."""
        return _short(session_of(request, self.sources))

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[SessionReceipt]:
        """Return the column, and whether the session's endpoint is missing."""
        session = self.session(request)
        endpoint = self.bound(session, now=cycle.now) if session else ""
        column = place_of_session(endpoints, endpoint)
        absent = False
        if endpoint and len(endpoints):
            absent = not (column.any() and (not self.filters or self._passes(request, endpoints, cycle, endpoint)))
        return Produced({self._signal: column}, SessionReceipt(session, absent))

    def commit(self, receipt: SessionReceipt, slot: int, *, now: float) -> None:
        """Return: whose slot it is decides, and that is told by `decided`."""

    def decided(self, receipt: SessionReceipt, result: SchedulingResult, *, now: float) -> None:
        """Bind the session to what the profile picked, unless it is bound and its endpoint was there."""
        finite_time(now)
        picked = result.profiles.get(self.profile or result.primary)
        if not receipt.session or picked is None or not picked.targets:
            return
        endpoint = picked.target.endpoint
        if now - self._swept >= self.sweep:
            self._swept = now
            self._forget(now)
        if receipt.absent or self.bound(receipt.session, now=now) in ("", endpoint):
            self._bindings[receipt.session] = (endpoint, now)
            self._bindings.move_to_end(receipt.session)
            while len(self._bindings) > self.capacity:
                self._bindings.popitem(last=False)

    def _passes(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, endpoint: str) -> bool:
        for each in self.filters:
            endpoints = endpoints.where(each.filter(request, endpoints, cycle))
        return bool(place_of_session(endpoints, endpoint).any())

    def _forget(self, now: float) -> None:
        while self._bindings:
            session = next(iter(self._bindings))
            if now - self._bindings[session][1] <= self.ttl:
                return
            del self._bindings[session]


def _short(session: str) -> str:
    """Return a name of bounded length: what a client says is remembered for as long as its session, however long it is."""
    return session if len(session) <= LONGEST_NAME else f"xxh3:{xxh3_128_hexdigest(session.encode())}"
