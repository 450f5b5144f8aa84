"""Who goes now? The three tiers, from the bands down to one ticket."""

from collections.abc import Sequence
from math import inf, nan
from types import MappingProxyType
from typing import Any, Final, final

from inferencesched.errors import PluginError
from inferencesched.flowcontrol.books import QueueBooks
from inferencesched.flowcontrol.estimates import DispatchRate
from inferencesched.flowcontrol.events import Dispatch, Event, Revoke
from inferencesched.flowcontrol.expiry import ExpiryHeap
from inferencesched.flowcontrol.flows import Band, Flow, Ticket
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.flowcontrol.policies import (
    BandPolicy,
    Gate,
    Reclaimer,
    RequestAwareGate,
    StrictBands,
    UsageLimitPolicy,
)

_record: Final[Any] = tuple.__new__
_DISPATCHED: Final = QueueOutcome.DISPATCHED  # a name of an Enum costs a lookup in its own dict


@final
class Dispatcher:
    """Who goes, while the gate is open? The part of a `FlowController` that takes tickets out of the queues to the servers."""

    __slots__ = (
        "_aware",
        "_band_policy",
        "_books",
        "_expiry",
        "_gate",
        "_inflight",
        "_legacy",
        "_limits",
        "_rate",
        "_reclaimer",
        "_strict",
        "seen",
    )

    def __init__(
        self,
        books: QueueBooks,
        gate: Gate,
        limits: UsageLimitPolicy,
        band_policy: BandPolicy,
        reclaimer: Reclaimer | None,
        expiry: ExpiryHeap,
        inflight: dict[int, Ticket],
        rate: DispatchRate,
        *,
        legacy: bool,
    ) -> None:
        self._books = books
        self._gate = gate
        self._aware = gate if isinstance(gate, RequestAwareGate) else None
        self._limits = limits
        self._band_policy = band_policy
        self._reclaimer = reclaimer
        self._expiry = expiry
        self._inflight = inflight
        self._rate = rate
        self._legacy = legacy
        self._strict = type(band_policy) is StrictBands
        #: When who might go last: the time, how full it was in the end, and the ceiling of each priority. For explanations.
        self.seen: tuple[float, float, Sequence[float], tuple[int, ...]] = (nan, nan, (), ())

    def drain(self, events: list[Event], now: float) -> None:
        """Dispatch while there is a band that may and has something waiting."""
        level, before = self._gate.level(now), len(events)
        ceilings = self._ceilings(level)
        if self._strict and self._aware is None:
            level = self._drain_strictly(ceilings, level, events, now)
        else:
            level = self._drain_choosing(ceilings, level, events, now)
        self.seen = (now, level, ceilings, self._books.priorities)
        if len(events) > before:
            self._rate.dispatched(len(events) - before, now)
        if self._reclaimer is not None and self._books.requests:
            for band, ceiling in zip(self._books.order, ceilings, strict=True):
                if band.requests:
                    inflight = MappingProxyType(self._inflight)
                    events += map(Revoke, self._reclaimer.reclaim(band, level, ceiling, inflight, now))

    @property
    def policy(self) -> BandPolicy:
        """Which band goes first?"""
        return self._band_policy

    @property
    def aware(self) -> bool:
        """Does the gate ask which servers a request could go to?"""
        return self._aware is not None

    def _drain_strictly(self, ceilings: Sequence[float], level: float, events: list[Event], now: float) -> float:
        """Empty band after band, from the greatest priority down, as far as each may; return the level at the end."""
        gate = self._gate
        for band, ceiling in zip(self._books.order, ceilings, strict=True):
            while band.requests and level < ceiling:
                flow = band.fairness.pick(now)
                head = None if flow is None else flow.queue.head()
                if head is None:
                    raise self._idle_pick(band, flow)
                self._dispatch(band, head, events, now)
                level = gate.level(now)
        return level

    def _drain_choosing(self, ceilings: Sequence[float], level: float, events: list[Event], now: float) -> float:
        """Dispatch one by one, from the band that the policy names, whoever the gate admits; return the level at the end."""
        waiting = [each for each in zip(self._books.order, ceilings, strict=True) if each[0].requests]
        passed: dict[int, set[Flow]] = {}
        while going := [band for band, ceiling in waiting if level < ceiling]:
            picked = self._band_policy.pick(going, now)
            chosen = next((each for each in waiting if each[0] is picked), None)
            if chosen is None:
                raise PluginError(self._band_policy, repr(picked), f"one of {going}")
            band, ceiling = chosen
            ticket = self._admitted(band, ceiling, passed.setdefault(band.priority, set()), now)
            if ticket is not None:
                self._dispatch(band, ticket, events, now)
                level = self._gate.level(now)
            if ticket is None or not band.requests:
                waiting.remove(chosen)
        return level

    def _ceilings(self, level: float) -> Sequence[float]:
        """Return each band's ceiling, the greatest priority first."""
        priorities = self._books.priorities
        if self._legacy:
            return (inf,) * len(priorities)
        ceilings = self._limits.ceilings(level, priorities)
        if len(ceilings) != len(priorities):
            raise PluginError(self._limits, f"{len(ceilings)} ceilings", f"one for each of {len(priorities)} bands")
        return ceilings

    def _admitted(self, band: Band, ceiling: float, passed: set[Flow], now: float) -> Ticket | None:
        """Return who goes next of those whose own servers have room, a head a flow; None where there is nobody."""
        while True:
            flow = band.fairness.pick(now, passed)
            if flow is None and passed:
                return None
            head = None if flow is None else flow.queue.head()
            if flow is None or head is None:
                raise self._idle_pick(band, flow)
            if self._aware is None or self._aware.admits(head, ceiling, now):
                return head
            passed.add(flow)

    @staticmethod
    def _idle_pick(band: Band, flow: Flow | None) -> PluginError:
        """Return the error of a fairness policy that has forgotten who waits."""
        allowed = f"a flow of which something waits: {band.requests} requests do"
        return PluginError(band.fairness, repr(flow), allowed)

    def _dispatch(self, band: Band, ticket: Ticket, events: list[Event], now: float) -> None:
        """Let a ticket go."""
        flow = ticket.flow
        flow.queue.remove(ticket)
        self._books.unbook(ticket, band.totals.dispatched)
        ticket.outcome = _DISPATCHED
        ticket.dispatched_at = now
        self._expiry.left(ticket)
        self._inflight[ticket.number] = ticket
        flow.inflight += 1
        band.inflight += 1
        events.append(_record(Dispatch, (ticket,)))
        try:
            self._gate.dispatched(ticket, now)
        finally:  # whatever one of them raises, the others are told
            try:
                band.fairness.served(flow, ticket.cost, now)
            finally:
                if not self._strict:
                    self._band_policy.served(band, ticket.cost, now)
                if self._reclaimer is not None:
                    self._reclaimer.dispatched(ticket, now)
