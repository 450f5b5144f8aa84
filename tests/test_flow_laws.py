"""The laws of the queue, through the controller: FC1, FC2, FC3, FC7 and FC8 of the reference, on random traces."""

from collections import Counter
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from inferencesched.flowcontrol import (
    Capacity,
    Dispatch,
    Displace,
    Expire,
    FlowController,
    GlobalStrict,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    Rejection,
    RoundRobin,
    Ticket,
    VirtualTokenCounter,
)
from inferencesched.pool import InferencePool

EMPTY = InferencePool()
FULL = InferencePool()
FULL.join("e")
EMPTY, FULL = EMPTY.snapshot(), FULL.snapshot()
#: Exact in binary: budgets add up without rounding.
TICK = 0.125


class Turnstile:
    """A gate that lets so many through, and ceilings by priority."""

    def __init__(self):
        self.left = 0
        self.lowest = -(10**6)

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return 0.0 if self.left > 0 else 1.0

    def dispatched(self, ticket, now):
        self.left -= 1

    def finished(self, ticket, now):
        pass

    def ceilings(self, saturation, priorities):
        return [1.0 if priority >= self.lowest else 0.0 for priority in priorities]


class Book:
    """What a trace should have come to, kept beside the controller by nothing but additions."""

    def __init__(self):
        self.submitted = []
        self.ends = {}  # request id -> every end that was told of it

    def end(self, name, outcome):
        self.ends.setdefault(name, []).append(outcome)

    def tell(self, events):
        for event in events:
            match event:
                case Dispatch():
                    self.end(event.ticket.request_id, "dispatched")
                case Expire() | Displace():
                    self.end(event.ticket.request_id, event.ticket.outcome.value)

    def waiting(self):
        return [item for item in self.submitted if item.request_id not in self.ends]


def used(items):
    return (len(items), sum(each.size_bytes for each in items), sum(each.tokens for each in items))


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**16)), max_size=60)
CAPACITIES = st.builds(Capacity, *(st.one_of(st.none(), st.integers(1, most)) for most in (12, 60, 80)))


@given(
    STEPS,
    CAPACITIES,
    CAPACITIES,
    st.sampled_from(["sheddable", "any", "never"]),
    st.sampled_from([GlobalStrict(), RoundRobin(), VirtualTokenCounter()]),
)
def test_everybody_ends_once_and_the_sums_are_those_of_who_waits(steps, total, band, displace, fairness):
    """FC1, FC2: one end each; what is held is the sum over who waits, after every call, and never above a limit."""
    gate, book, tickets, now = Turnstile(), Book(), [], 0.0
    controller = FlowController(
        gate=gate,
        limits=gate,
        capacity=total,
        default=PriorityBand(0, band, fairness),
        displace=displace,
        budget=QueueBudget(ttl=20 * TICK, no_endpoint_ttl=5 * TICK),
    )
    for kind, rest in steps:
        now += (rest % 4) * TICK
        if kind <= 4:
            item = QueueItem(
                request_id=f"r{len(book.submitted)}",
                flow=f"f{rest % 3}",
                priority=rest % 5 - 2,
                size_bytes=rest % 23,
                input_tokens=rest % 31,
                ttl=None if rest % 2 else (rest % 9) * TICK,
            )
            book.submitted.append(item)
            answer = controller.submit(item, now)
            if isinstance(answer, Rejection):
                book.end(item.request_id, answer.outcome.value)
            else:
                tickets.append(answer)
        elif kind <= 6:
            gate.left = rest % 4
            book.tell(controller.step(now))
        elif kind == 7 and tickets:
            ticket = tickets[rest % len(tickets)]
            if controller.cancel(ticket, now):
                book.end(ticket.request_id, ticket.outcome.value)
        elif kind == 8:
            controller.observe(EMPTY if rest % 2 else FULL, now)
        elif kind == 9 and rest % 50 == 0:
            book.tell(controller.shutdown(now))
        controller.check()
        gate.left = 0
        book.tell(controller.step(now))  # whoever made room is told
        held = [(each.requests, each.size_bytes, each.tokens) for each in controller.bands]
        assert tuple(map(sum, zip(*held, strict=True))) == used(book.waiting())
        for each in controller.bands:
            mine = used([item for item in book.waiting() if item.priority == each.priority])
            assert (each.requests, each.size_bytes, each.tokens) == mine
            assert all(limit is None or value <= limit for value, limit in zip(mine, each.capacity, strict=True))
        assert all(limit is None or value <= limit for value, limit in zip(used(book.waiting()), total, strict=True))
    book.tell(controller.shutdown(now))
    assert Counter(map(len, book.ends.values())) == ({1: len(book.submitted)} if book.submitted else {})


@given(STEPS, st.sampled_from([GlobalStrict(), RoundRobin(), VirtualTokenCounter()]))
def test_nobody_goes_before_somebody_of_a_higher_open_band(steps, fairness):
    """FC3: of each step, whoever goes has nobody waiting above him whose band was open; a shut band does not stop the others."""
    gate, waiting, now = Turnstile(), [], 0.0
    controller = FlowController(gate=gate, limits=gate, default=PriorityBand(0, fairness=fairness))
    for kind, rest in steps:
        now += TICK
        if kind <= 5:
            item = QueueItem(request_id=f"{rest}", flow=f"f{rest % 3}", priority=rest % 5 - 2)
            waiting.append(controller.submit(item, now))
            continue
        gate.left, gate.lowest = rest % 6, rest % 7 - 4
        went = [event.ticket for event in controller.step(now) if isinstance(event, Dispatch)]
        for ticket in went:
            waiting.remove(ticket)
            assert ticket.item.priority >= gate.lowest
            assert ticket.item.priority >= max((other.item.priority for other in waiting), default=-inf)
        there = [ticket for ticket in waiting if ticket.item.priority >= gate.lowest]
        assert len(went) == rest % 6 or not there


@given(
    st.lists(st.integers(-5, 5), max_size=80),
    st.integers(1, 12),
)
def test_displacement_keeps_the_stable_top(priorities, most):
    """FC7: of any burst those stay that are first by priority, then by arrival: `sorted` says which."""
    controller = FlowController(gate=Turnstile(), capacity=Capacity(requests=most), displace="any")
    answers = [
        controller.submit(QueueItem(request_id=f"{i}", priority=priority), now=0.0)
        for i, priority in enumerate(priorities)
    ]
    kept = [i for i, answer in enumerate(answers) if isinstance(answer, Ticket) and answer.waiting]
    assert kept == sorted(sorted(range(len(priorities)), key=lambda i: -priorities[i])[:most])


@given(st.lists(st.integers(-5, 5), max_size=80), st.integers(1, 12))
def test_whoever_is_not_sheddable_stays(priorities, most):
    """By default nobody of priority 0 or more gives up his place, and only he is refused for whom no sheddable one is left."""
    controller = FlowController(gate=Turnstile(), capacity=Capacity(requests=most))
    for i, priority in enumerate(priorities):
        there = [ticket for band in controller.bands for ticket in band.newest_first()]
        below = sorted(
            (ticket for ticket in there if ticket.item.priority < min(0, priority)),
            key=lambda ticket: (ticket.item.priority, -ticket.number),
        )
        answer = controller.submit(QueueItem(request_id=f"{i}", priority=priority), now=0.0)
        full = len(there) == most
        assert isinstance(answer, Ticket) == (not full or bool(below))
        gone = [ticket for ticket in there if not ticket.waiting]
        assert gone == (below[:1] if full else [])
        assert all(ticket.outcome is QueueOutcome.EVICTED_DISPLACED for ticket in gone)


EVENTS = st.lists(st.tuples(st.sampled_from(["arrive", "step", "flip", "open"]), st.integers(1, 12)), max_size=40)


@given(EVENTS, st.integers(1, 40), st.integers(1, 40))
def test_nobody_waits_past_his_budget(events, ttl, empty_ttl):
    """FC8: where somebody steps whenever `next_wakeup` says so, a budget is spent at its very instant, and not before.

    The twin charges a request from when it came or from when the pool last became empty or ceased to be, whichever was later.
    """
    gate, empty, since, now = Turnstile(), False, -inf, 0.0
    controller = FlowController(
        gate=gate, limits=gate, budget=QueueBudget(ttl=ttl * TICK, no_endpoint_ttl=empty_ttl * TICK)
    )
    waiting: list[Ticket] = []

    def due(ticket):
        own = inf if ticket.item.ttl is None else ticket.item.ttl
        at = max(ticket.enqueued_at, since) + min(own, (empty_ttl if empty else ttl) * TICK)
        return at if ticket.item.deadline is None else min(at, ticket.item.deadline)

    def turn():
        told = [event.ticket for event in controller.step(now) if isinstance(event, Expire)]
        assert set(told) == {ticket for ticket in waiting if due(ticket) <= now}
        for ticket in told:
            late = ticket.item.deadline is not None and ticket.item.deadline <= now
            other = QueueOutcome.EVICTED_NO_ENDPOINTS if empty else QueueOutcome.EVICTED_TTL
            assert ticket.outcome is (QueueOutcome.EVICTED_DEADLINE if late else other)
        waiting[:] = [ticket for ticket in waiting if ticket.waiting]

    for number, (what, ticks) in enumerate(events):
        until = now + ticks * TICK
        while (at := controller.next_wakeup(now)) is not None and at <= until:
            assert at == min(map(due, waiting))
            now = at
            turn()
        now = until
        turn()
        if what == "arrive":
            item = QueueItem(
                request_id=f"{number}",
                ttl=ticks * TICK if number % 3 == 0 else None,
                deadline=now + 2 * ticks * TICK if number % 5 == 0 else None,
            )
            waiting.append(controller.submit(item, now))
        elif what == "flip":
            empty, since = not empty, now
            controller.observe(EMPTY if empty else FULL, now)
        elif what == "open":
            gate.left = 1
            gone = [event.ticket for event in controller.step(now) if isinstance(event, Dispatch)]
            gate.left = 0
            waiting[:] = [ticket for ticket in waiting if ticket not in gone]
        assert controller.next_wakeup(now) == (min(map(due, waiting)) if waiting else None)
        controller.check()
