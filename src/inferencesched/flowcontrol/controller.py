"""Whether and when may a request go?

A state machine that is turned by hand: no clock, no thread, no future. `submit` queues, `step` says what happens now, `observe`
and `completed` tell it what the servers do. Three tiers, strict: the band by priority, the flow by fairness, the item by
ordering.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from math import inf, nan
from sys import maxsize
from typing import Any, Final, Literal, final, get_args

from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError, TicketError, UnknownNameError
from inferencesched.flowcontrol.bands import PriorityBand
from inferencesched.flowcontrol.books import QueueBooks
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.dispatching import Dispatcher
from inferencesched.flowcontrol.estimates import DispatchRate
from inferencesched.flowcontrol.events import Displace, Event, Expire, Rejection
from inferencesched.flowcontrol.expiry import ExpiryHeap
from inferencesched.flowcontrol.flows import Band, Capacity, Flow, QueueItem, Ticket
from inferencesched.flowcontrol.idle import IdleFlows
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.flowcontrol.policies import (
    BandPolicy,
    CostModel,
    Gate,
    OpenGate,
    PlacedGate,
    Reclaimer,
    StaticLimit,
    StrictBands,
    TokenCost,
    UsageLimitPolicy,
)
from inferencesched.request import Usage

Displacement = Literal["sheddable", "any", "never"]
Mode = Literal["queue", "legacy"]

_record: Final[Any] = tuple.__new__
_UNLIMITED: Final = Capacity()
_DROPPED: Final = "the pool is full (llm-d: system saturated, sheddable request dropped)"


@final
class FlowController:
    """Whether and when may a request go?

    Parameters
    ----------
    bands: what is known of some priorities beforehand; others are made when their first request comes, like `default` (or
        `sheddable`, below 0), and collected again.
    gate: how full the servers are; without one everything goes at once.
    limits: up to which saturation each band may dispatch.
    band_policy: which band goes first; strictly the highest priority unless said otherwise.
    capacity: how much may wait in all bands together.
    cost: what a flow is charged for a request.
    budget: how long a request may wait.
    displace: who makes room when all bands together are full: what is below priority 0 (``sheddable``), whatever is below
        the arrival's priority (``any``), or nobody (``never``). Lowest band first, newest first.
    mode: ``legacy`` is llm-d's gate-off behaviour: no queue; below priority 0 is rejected while the pool is full.
    reclaimer: whom to take back from the servers for a band that is kept waiting; None is nobody.
    flow_ttl, band_ttl: seconds after which an idle flow, an empty band are forgotten.
    most_idle: how many idle flows are remembered at most; the longest idle is forgotten first.
    first_token: seconds that a first token takes once a request is dispatched: a request whose deadline cannot be met, as far
        as can be told from the present rate, is rejected at once. None rejects only what is too late already.
    inflight_ttl: seconds after which a dispatched request of which nobody says how it ended is given up (``lapsed``).

    Not safe from several threads: the shells are (`flowcontrol.aio`, `flowcontrol.threaded`). Cost: some 7 us for one request
    from `submit` to `completed`; every call is at most logarithmic in what waits.

    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> controller = FlowController()
    >>> ticket = controller.submit(QueueItem(request_id="r-1", flow="tenant-a", input_tokens=700), now=10.0)
    >>> ticket
    Ticket('r-1' of tenant-a:0, waiting)
    >>> controller.step(now=10.0)
    [Dispatch(ticket=Ticket('r-1' of tenant-a:0, dispatched))]
    >>> controller.completed(ticket, now=12.0)
    >>> ticket.outcome.value
    'completed'
    """

    def __init__(
        self,
        *,
        bands: Sequence[PriorityBand] = (),
        default: PriorityBand | None = None,
        sheddable: PriorityBand | None = None,
        gate: Gate | None = None,
        limits: UsageLimitPolicy | None = None,
        band_policy: BandPolicy | None = None,
        capacity: Capacity = _UNLIMITED,
        cost: CostModel | None = None,
        budget: QueueBudget | None = None,
        displace: Displacement = "sheddable",
        mode: Mode = "queue",
        reclaimer: Reclaimer | None = None,
        flow_ttl: float = 300.0,
        band_ttl: float = 600.0,
        most_idle: int = 100_000,
        inflight_ttl: float = inf,
        first_token: float | None = None,
    ) -> None:
        if displace not in get_args(Displacement):
            raise UnknownNameError("displace", displace, get_args(Displacement))
        if mode not in get_args(Mode):
            raise UnknownNameError("mode", mode, get_args(Mode))
        for name, seconds in (("flow_ttl", flow_ttl), ("band_ttl", band_ttl), ("inflight_ttl", inflight_ttl)):
            if not seconds > 0:
                raise InvalidInputError(name, seconds, "seconds above 0")
        self._default = PriorityBand(0) if default is None else default
        self._sheddable = self._default if sheddable is None else sheddable
        self._gate: Gate = OpenGate() if gate is None else gate
        self._placed = self._gate if isinstance(self._gate, PlacedGate) else None
        self._cost: CostModel = TokenCost() if cost is None else cost
        self._budget = QueueBudget() if budget is None else budget
        self._below = {"sheddable": 0, "any": maxsize, "never": None}[displace]
        self._legacy = mode == "legacy"
        self._reclaimer = reclaimer
        self._band_ttl = band_ttl
        self._inflight_ttl = inflight_ttl
        self._first_token = first_token
        self._idle = IdleFlows(flow_ttl, most_idle)
        self._expiry = ExpiryHeap()
        self._books = QueueBooks(capacity)
        self.capacity: Final = capacity
        # by number, in the order of dispatch; where the first is asked for, without the holes that a dict leaves
        self._inflight: dict[int, Ticket] = {} if inflight_ttl == inf else OrderedDict()
        self._events: list[Event] = []
        self._rate = DispatchRate()
        self._dispatcher = Dispatcher(
            self._books,
            self._gate,
            StaticLimit() if limits is None else limits,
            StrictBands() if band_policy is None else band_policy,
            reclaimer,
            self._expiry,
            self._inflight,
            self._rate,
            legacy=self._legacy,
        )
        self._now = -inf
        self._number = 0
        self._empty = False  # has the pool no endpoints, as far as is known?
        self._empty_since = -inf  # since when it has been like that
        self._closed = False
        self._collected = -inf
        for band in bands:
            if -band.priority in self._books.bands:
                raise InvalidInputError("bands", band.priority, "each priority once")
            self._books.make(band, protected=True)
        if 0 not in self._books.bands:
            self._books.make(self._default.at(0), protected=True)
        self._books.configured = frozenset(self._books.priorities)

    # -- what arrives ------------------------------------------------------------------------------

    def submit(self, item: QueueItem, now: float) -> Ticket | Rejection:
        """Queue a request, or say why not. What had to make room for it is told by the next `step`.

        Errors: `InvalidInputError` for a time before the last one; what a policy raises, and then nothing is queued.
        """
        if not self._now <= now < inf:
            self._turn(now)
        self._now = now
        if self._closed:
            return self._reject(None, item, QueueOutcome.REJECTED_SHUTDOWN, "it is shutting down", inf)
        books = self._books
        band = books.bands.get(-item.priority)
        if band is None:
            template = self._sheddable if item.priority < 0 else self._default
            band = books.make(template.at(item.priority), protected=False)
            band.idle_since = now
        if self._legacy and item.priority < 0 and self._gate.level(now) >= 1.0:
            return self._reject(band, item, QueueOutcome.REJECTED_CAPACITY, _DROPPED, 1.0)
        if item.deadline is not None and not self._feasible(item, band, now):
            return self._reject(band, item, QueueOutcome.REJECTED_DEADLINE, "its deadline cannot be met", inf)
        victims: list[Ticket] | None = None
        if not books.fits(band, item):
            lacking = books.lacking_in(band, item)
            if not lacking:
                lacking = books.lacking(item)
                victims = None if self._below is None else books.victims(item, self._below)
            if not victims:
                outcome = QueueOutcome.REJECTED_NO_ENDPOINTS if self._empty else QueueOutcome.REJECTED_CAPACITY
                return self._reject(band, item, outcome, lacking, self._rate.retry_after(band.requests + 1, now))
        flow = band.flows.get(item.flow)
        if flow is None:
            flow = Flow(item.flow, band, band.ordering.queue(), band.weights.get(item.flow, 1.0))
        ticket = Ticket(item, flow, self._number, self._charge(item), now)
        queue = flow.queue
        first = queue.head() is None
        queue.push(ticket)
        try:
            if first:
                band.fairness.arrived(flow, now)
            elif queue.head() is ticket:
                band.fairness.changed(flow, now)
            for victim in victims or ():
                self._events.append(Displace(victim, ticket, self._rate.retry_after(books.requests, now)))
                self._evict(victim, QueueOutcome.EVICTED_DISPLACED, now)
        except BaseException:
            ticket.outcome = QueueOutcome.REJECTED_OTHER
            queue.remove(ticket)
            band.fairness.changed(flow, now)
            raise
        # nothing below raises: from here on the request is queued
        self._number += 1
        self._queued(ticket)
        return ticket

    def cancel(self, ticket: Ticket, now: float) -> bool:
        """Take back a request whose client has gone; its place is free at once. True where it was still waiting.

        False where it was dispatched before, or has ended: then it is `completed` that says when the server is done with it.
        Errors: `TicketError` for another controller's.
        """
        self._turn(now)
        if ticket.outcome is not None:
            return False
        if self._books.bands.get(-ticket.flow.band.priority) is not ticket.flow.band:
            raise TicketError(f"ticket of request {ticket.request_id!r} is another controller's")
        self._evict(ticket, QueueOutcome.EVICTED_CANCELLED, now)
        return True

    # -- what happens now --------------------------------------------------------------------------

    def step(self, now: float) -> list[Event]:
        """Say what happens now: who goes, who has waited too long, who made room, whom to take back.

        Drains while the gate is open. Errors: what a policy raises; what was decided before is told by the next `step`,
        and the request it stumbled over still waits, or is among those told.
        """
        if not self._now <= now < inf:
            self._turn(now)
        self._now = now
        events, self._events = self._events, []
        try:
            if self._expiry.any_due(now):
                for ticket in self._expiry.due(now):
                    self._expire(ticket, events, now)
            if self._inflight_ttl < inf:
                self._lapse(events, now)
            if self._books.requests and not self._closed:
                self._dispatcher.drain(events, now)
            if now - self._collected >= 1.0:
                self._collect(now)
        except BaseException:
            self._events = events + self._events
            raise
        return events

    def next_wakeup(self, now: float) -> float | None:
        """When does `step` have something to do by itself, without an arrival, a completion or an observation? None for never."""
        self._turn(now)
        if self._events:
            return now
        at = self._expiry.next()
        if self._inflight_ttl < inf and self._inflight:
            at = min(at, next(iter(self._inflight.values())).dispatched_at + self._inflight_ttl)
        if self._reclaimer is not None and self._books.requests:
            at = min(at, self._reclaimer.next_wakeup(now))
        return None if at == inf else max(at, now)

    def shutdown(self, now: float) -> list[Event]:
        """Let nobody in any more, and everybody out who waits; what is in flight may complete. Returns what `step` would."""
        self._turn(now)
        self._closed = True
        for band in self._books.ranked():
            while band.oldest is not None:
                self._events.append(Expire(band.oldest, inf))
                self._evict(band.oldest, QueueOutcome.EVICTED_SHUTDOWN, now)
        events, self._events = self._events, []
        return events

    # -- what the servers do -------------------------------------------------------------------------

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Learn what is known of the servers. When the pool becomes empty, or ceases to be, all budgets start anew."""
        self._turn(now)
        empty = not len(endpoints)
        self._gate.observe(endpoints, now)
        if empty != self._empty:
            self._empty, self._empty_since = empty, now
            waiting = [ticket for band in self._books.ranked() for ticket in band.newest_first()]
            for ticket in waiting:
                ticket.expires_at = self._expires_at(ticket)
            self._expiry.restart(waiting)

    def dispatched(self, ticket: Ticket, endpoint: str, now: float) -> None:
        """Say to which server a request went. Errors: `TicketError` unless it is in flight."""
        self._turn(now)
        self._in_flight(ticket)
        ticket.endpoint = endpoint
        if self._placed is not None:
            self._placed.placed(ticket, now)

    def completed(self, ticket: Ticket, usage: Usage | None = None, *, now: float) -> None:
        """Say that a server is done with a request; its flow is charged what it came to cost.

        Errors: `TicketError` unless it is in flight: it waits still, or has ended before.
        """
        if not self._now <= now < inf:
            self._turn(now)
        self._now = now
        if self._inflight.get(ticket.number) is not ticket:
            self._in_flight(ticket)
        if usage is not None and ticket.item.cost is None:
            actual = self._cost.actual(ticket.item, usage)
            if not 0.0 <= actual < inf:
                raise InvalidInputError("cost.actual", actual, "a finite number of at least 0")
            if actual != ticket.cost:
                ticket.flow.band.fairness.settled(ticket.flow, actual - ticket.cost, now)
        self._finish(ticket, QueueOutcome.COMPLETED, now)

    def revoked(self, ticket: Ticket, *, now: float, requeue: bool = False) -> bool:
        """Say that a server stopped working on a request. With `requeue` it waits again, where it was in its flow.

        Re-queue only what has not streamed a token yet. What it has waited counts, its time at the server does not. Its flow
        is charged nothing for it. Returns whether it waits: not where the queue is full, or is shutting down. Errors:
        `TicketError` unless it is in flight.
        """
        self._turn(now)
        self._in_flight(ticket)
        flow, band, item = ticket.flow, ticket.flow.band, ticket.item
        band.fairness.settled(flow, -ticket.cost, now)
        if not requeue or self._closed or not self._books.fits(band, item):
            self._finish(ticket, QueueOutcome.REVOKED, now)
            return False
        try:
            self._finish(ticket, None, now)
        finally:  # whatever a policy raises: it waits
            ticket.enqueued_at += now - ticket.dispatched_at
            ticket.dispatched_at, ticket.endpoint = nan, ""
            band.totals.undo(band.totals.dispatched, item)
            band.totals.undo(band.totals.submitted, item)  # as it is about to be counted again
            first = not len(flow.queue)
            flow.queue.push(ticket)
            self._queued(ticket)
            told = band.fairness.arrived if first else band.fairness.changed
            told(flow, now)
        return True

    def revoke_failed(self, ticket: Ticket, *, now: float) -> None:
        """Say that a server would not stop: the request goes on, and may be revoked again. Errors: as `revoked`."""
        self._turn(now)
        self._in_flight(ticket)
        if self._reclaimer is not None:
            self._reclaimer.failed(ticket, now)

    @property
    def bands(self) -> Sequence[Band]:
        """Which bands are there, and what do they hold, the greatest priority first? To look at, not to change."""
        return tuple(self._books.order)

    def desire(self, priorities: Collection[int], now: float) -> None:
        """Say which priorities objectives have: their bands are there from now on, and not collected when they are idle."""
        self._turn(now)
        self._books.desire([(self._sheddable if each < 0 else self._default).at(each) for each in priorities], now)

    def check(self) -> None:
        """Assert that everything adds up. For tests; linear in all that waits and is in flight."""
        self._books.check()
        flying: dict[int, int] = {}
        for number, ticket in self._inflight.items():
            assert number == ticket.number
            assert ticket.outcome is QueueOutcome.DISPATCHED
            flying[id(ticket.flow)] = flying.get(id(ticket.flow), 0) + 1
        flows = [flow for band in self._books.ranked() for flow in band.flows.values()]
        assert {id(flow): flow.inflight for flow in flows if flow.inflight} == flying
        idle = [flow for flow in flows if not flow.inflight and not len(flow.queue)]
        assert len(idle) == len(self._idle)
        assert all((flow.idle_since < inf) == (not flow.inflight and not len(flow.queue)) for flow in flows)

    # -- inside ------------------------------------------------------------------------------------

    def _turn(self, now: float) -> None:
        """Take the time; it never goes back."""
        if not self._now <= now < inf:
            raise InvalidInputError("now", now, f"a finite time of at least {self._now}, the last one")
        self._now = now

    def _reject(
        self, band: Band | None, item: QueueItem, outcome: QueueOutcome, detail: str, retry_after: float
    ) -> Rejection:
        if band is not None:
            band.totals.add(band.totals.submitted, item)
            band.totals.add(band.totals.rejected, item)
        wait = nan if band is None else self._rate.wait(band.requests + 1, self._now)
        return Rejection(item, outcome, retry_after, wait, detail)

    def _charge(self, item: QueueItem) -> float:
        cost = self._cost.estimate(item) if item.cost is None else item.cost
        if not 0.0 <= cost < inf:
            raise InvalidInputError("cost.estimate", cost, "a finite number of at least 0")
        return cost

    def _feasible(self, item: QueueItem, band: Band, now: float) -> bool:
        """Can its deadline be met, as far as is known?"""
        assert item.deadline is not None  # the caller asked
        if item.deadline <= now:
            return False
        if self._first_token is None:
            return True
        ahead = 1 + sum(each.requests for each in self._books.ranked() if each.priority >= band.priority)
        wait = self._rate.wait(ahead, now)
        return not now + (0.0 if wait != wait else wait) + self._first_token > item.deadline

    def _queued(self, ticket: Ticket) -> None:
        """Book a ticket that has just been put into its flow's queue."""
        flow = ticket.flow
        band = flow.band
        band.flows[flow.id] = flow
        band.idle_since = inf
        if flow.idle_since < inf:
            self._idle.remove(flow)
        self._books.book(ticket, band.totals.submitted)
        ticket.expires_at = self._expires_at(ticket)
        self._expiry.add(ticket)

    def _expires_at(self, ticket: Ticket) -> float:
        """Return when its budget is spent, which starts anew when the pool becomes empty or ceases to be; or its deadline."""
        item, since = ticket.item, ticket.enqueued_at
        if since < self._empty_since:
            since = self._empty_since
        at = since + self._budget.seconds(item, self._empty)
        return at if item.deadline is None or at < item.deadline else item.deadline

    def _evict(self, ticket: Ticket, outcome: QueueOutcome, now: float) -> None:
        """Take a ticket out of its queue for good; its place is free at once."""
        flow = ticket.flow
        band = flow.band
        flow.queue.remove(ticket)
        self._books.unbook(ticket, band.totals.evicted)
        ticket.outcome = outcome
        self._expiry.left(ticket)
        try:
            band.fairness.changed(flow, now)
        finally:
            self._rest(flow, now)

    def _rest(self, flow: Flow, now: float) -> None:
        """Note a flow, and a band, of which nothing is left."""
        if not flow.inflight and not len(flow.queue) and flow.idle_since == inf:
            self._idle.add(flow, now)
            band = flow.band
            if not band.requests and not band.inflight:
                band.idle_since = now

    def _expire(self, ticket: Ticket, events: list[Event], now: float) -> None:
        item = ticket.item
        if item.deadline is not None and item.deadline <= now:
            outcome = QueueOutcome.EVICTED_DEADLINE
        else:
            outcome = QueueOutcome.EVICTED_NO_ENDPOINTS if self._empty else QueueOutcome.EVICTED_TTL
        events.append(Expire(ticket, self._rate.retry_after(self._books.requests, now)))
        self._evict(ticket, outcome, now)

    def _lapse(self, events: list[Event], now: float) -> None:
        """Give up what was dispatched so long ago that nobody will say how it ended."""
        while self._inflight:
            ticket = next(iter(self._inflight.values()))
            if ticket.dispatched_at + self._inflight_ttl > now:  # as `next_wakeup` has it, to the last bit
                return
            events.append(Expire(ticket, inf))
            self._finish(ticket, QueueOutcome.LAPSED, now)

    def _in_flight(self, ticket: Ticket) -> None:
        if self._inflight.get(ticket.number) is not ticket:
            state = "it waits" if ticket.outcome is None else f"it ended as {ticket.outcome.value!r}"
            raise TicketError(f"ticket of request {ticket.request_id!r} is not in flight: {state}")

    def _finish(self, ticket: Ticket, outcome: QueueOutcome | None, now: float) -> None:
        """Take a ticket off what is in flight."""
        flow = ticket.flow
        del self._inflight[ticket.number]
        ticket.outcome = outcome
        flow.inflight -= 1
        flow.band.inflight -= 1
        if outcome is not None:
            self._rest(flow, now)
        try:
            self._gate.finished(ticket, now)
        finally:
            if self._reclaimer is not None:
                self._reclaimer.finished(ticket, now)

    def _collect(self, now: float) -> None:
        """Forget flows and bands that nobody has used for long enough; looked at once a second."""
        self._collected = now
        self._idle.collect(now)
        for band in list(self._books.ranked()):
            if not band.protected and not band.flows and now - band.idle_since >= self._band_ttl:
                self._books.forget(band)
