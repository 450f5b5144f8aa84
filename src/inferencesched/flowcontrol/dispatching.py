"""Who goes now? The three tiers, from the bands down to one ticket."""

from math import inf
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

    def drain(self, events: list[Event], now: float) -> None:
        """Dispatch while there is a band that may and has something waiting."""
        books, gate, policy = self._books, self._gate, self._band_policy
        level, before = gate.level(now), len(events)
        waiting = [(band, ceiling) for band, ceiling in self._ceilings(level) if band.requests]
        passed: dict[int, set[Flow]] = {}
        strict = type(policy) is StrictBands
        while waiting:
            if strict:
                chosen = next(((band, ceiling) for band, ceiling in waiting if level < ceiling), None)
            else:
                going = [band for band, ceiling in waiting if level < ceiling]
                picked = policy.pick(going, now) if going else None
                chosen = next((each for each in waiting if each[0] is picked), None)
            if chosen is None:
                break
            band, ceiling = chosen
            if self._aware is None and strict:
                while band.requests and level < ceiling:
                    self._dispatch(band, self._head_of(band, now), events, now)
                    level = gate.level(now)
            else:
                ticket = self._admitted(band, ceiling, passed.setdefault(band.priority, set()), now)
                if ticket is None:
                    waiting.remove(chosen)
                    continue
                self._dispatch(band, ticket, events, now)
                level = gate.level(now)
            if not band.requests:
                waiting.remove(chosen)
        if len(events) > before:
            self._rate.dispatched(len(events) - before, now)
        if self._reclaimer is not None and books.requests:
            for band, ceiling in waiting:
                inflight = MappingProxyType(self._inflight)
                events += map(Revoke, self._reclaimer.reclaim(band, level, ceiling, inflight, now))

    def _ceilings(self, level: float) -> list[tuple[Band, float]]:
        """Return each band with its ceiling, the greatest priority first."""
        books = self._books
        if self._legacy:
            return [(band, inf) for band in books.ranked()]
        ceilings = self._limits.ceilings(level, books.priorities)
        if len(ceilings) != len(books.priorities):
            raise PluginError(
                self._limits, f"{len(ceilings)} ceilings", f"one for each of {len(books.priorities)} bands"
            )
        return list(zip(books.ranked(), ceilings, strict=True))

    def _head_of(self, band: Band, now: float) -> Ticket:
        """Return who goes next in a band in which somebody waits."""
        flow = band.fairness.pick(now)
        head = None if flow is None else flow.queue.head()
        if head is None:
            raise PluginError(
                band.fairness, repr(flow), f"a flow of which something waits: {band.requests} requests do"
            )
        return head

    def _admitted(self, band: Band, ceiling: float, passed: set[Flow], now: float) -> Ticket | None:
        """Return who goes next of those whose own servers have room, a head a flow; None where there is nobody."""
        while True:
            flow = band.fairness.pick(now, passed)
            head = None if flow is None else flow.queue.head()
            if flow is None or head is None:
                return None
            if self._aware is None or self._aware.admits(head, ceiling, now):
                return head
            passed.add(flow)

    def _dispatch(self, band: Band, ticket: Ticket, events: list[Event], now: float) -> None:
        """Let a ticket go."""
        flow = ticket.flow
        flow.queue.remove(ticket)
        self._books.unbook(ticket)
        ticket.outcome = QueueOutcome.DISPATCHED
        ticket.dispatched_at = now
        self._expiry.left(ticket)
        self._inflight[ticket.number] = ticket
        flow.inflight += 1
        band.inflight += 1
        band.totals.add(band.totals.dispatched, ticket.item)
        events.append(_record(Dispatch, (ticket,)))
        self._gate.dispatched(ticket, now)
        band.fairness.served(flow, ticket.cost, now)
        self._band_policy.served(band, ticket.cost, now)
