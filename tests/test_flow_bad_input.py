"""What can go wrong at the queue has one stated outcome each: an error and nothing changed, or an outcome of the request."""

from collections import Counter
from math import inf, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, PluginError, TicketError, UnknownNameError
from inferencesched.flowcontrol import (
    Capacity,
    Dispatch,
    FirstCome,
    FlowController,
    GlobalStrict,
    OpenGate,
    PacedReclaimer,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    Rejection,
    RoundRobin,
    StaticLimit,
    StrictBands,
    Ticket,
    TokenCost,
    VirtualTokenCounter,
)
from inferencesched.pool import InferencePool
from inferencesched.request import Usage

NOBODY = InferencePool().snapshot()


class Shut(OpenGate):
    """A gate that is shut."""

    def level(self, now):
        return 1.0


class SaysCost:
    """A cost model that says what it is told."""

    def __init__(self, estimate=1.0, actual=1.0):
        self.said = estimate, actual

    def estimate(self, item):
        return self.said[0]

    def actual(self, item, usage):
        return self.said[1]


# --- what is refused, with what is wrong in the message ----------------------------------------------------------


def make(**said):
    return lambda: FlowController(**said)


def ask(**said):
    return lambda: QueueItem(request_id="r", **said)


def submit(item, **said):
    return lambda: FlowController(**said).submit(item, now=0.0)


REFUSED = {
    "capacity of 0 requests": (make(capacity=Capacity(requests=0)), "capacity.requests"),
    "capacity of 0 bytes in a band": (lambda: PriorityBand(0, Capacity(size_bytes=0)), "capacity.size_bytes"),
    "capacity below 0": (make(capacity=Capacity(tokens=-1)), "capacity.tokens"),
    "capacity of half a request": (make(capacity=Capacity(requests=1.5)), "capacity.requests"),
    "negative weight": (lambda: PriorityBand(0, weights={"a": -1.0}), "weights['a']"),
    "weight of 0": (lambda: PriorityBand(0, weights={"a": 0.0}), "weights['a']"),
    "weight of NaN": (lambda: PriorityBand(0, weights={"a": nan}), "weights['a']"),
    "infinite weight": (lambda: PriorityBand(0, weights={"a": inf}), "weights['a']"),
    "one priority twice": (make(bands=[PriorityBand(1), PriorityBand(1)]), "bands"),
    "a priority that is no number": (submit(QueueItem(request_id="r", priority=nan)), "priority"),
    "half a priority": (submit(QueueItem(request_id="r", priority=0.5)), "priority"),
    "NaN as cost": (ask(cost=nan), "cost"),
    "infinite cost": (ask(cost=inf), "cost"),
    "negative cost": (ask(cost=-1.0), "cost"),
    "a cost model that says NaN": (submit(QueueItem(request_id="r"), cost=SaysCost(nan)), "cost.estimate"),
    "a cost model that says less than 0": (submit(QueueItem(request_id="r"), cost=SaysCost(-1.0)), "cost.estimate"),
    "no flow": (ask(flow=""), "flow"),
    "a flow's id of a megabyte": (ask(flow="x" * 1_000_000), "flow"),
    "negative size": (ask(size_bytes=-1), "size_bytes"),
    "half a token": (ask(input_tokens=0.5), "input_tokens"),
    "negative time to live": (ask(ttl=-1.0), "ttl"),
    "time to live of NaN": (ask(ttl=nan), "ttl"),
    "deadline of NaN": (ask(deadline=nan), "deadline"),
    "objective of 0": (ask(slo_ttft=0.0), "slo_ttft"),
    "negative budget": (lambda: QueueBudget(ttl=-1.0), "ttl"),
    "budget of NaN": (lambda: QueueBudget(ttl=nan), "ttl"),
    "a flow's budget of NaN": (lambda: QueueBudget(flows={"a": nan}), "flows['a']"),
    "a ceiling of 0": (lambda: StaticLimit(0.0), "ceiling"),
    "a price of NaN": (lambda: TokenCost(nan), "prompt"),
    "displacement that nobody knows": (make(displace="all"), "displace"),
    "a mode that nobody knows": (make(mode="off"), "mode"),
    "flows that live no time": (make(flow_ttl=0.0), "flow_ttl"),
    "no revocation at all": (lambda: PacedReclaimer(most=0), "most"),
    "negative grace": (lambda: PacedReclaimer(grace=-1.0), "grace"),
    "timeout of NaN": (lambda: PacedReclaimer(timeout=nan), "timeout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused_and_named(name):
    attempt, parameter = REFUSED[name]
    with pytest.raises(InvalidInputError) as caught:
        attempt()
    assert caught.value.parameter == parameter
    assert len(str(caught.value)) < 250


def full():
    """Return a controller with everything in it, and one of each: waiting, in flight, ended."""
    controller = FlowController(capacity=Capacity(requests=3), inflight_ttl=1e6, reclaimer=PacedReclaimer())
    flying = controller.submit(QueueItem(request_id="flying", priority=-1), now=5.0)
    done = controller.submit(QueueItem(request_id="done"), now=5.0)
    controller.step(now=5.0)
    controller.completed(done, now=5.0)
    waiting = controller.submit(QueueItem(request_id="waiting"), now=5.0)
    return controller, waiting, flying, done


CALLS = {
    "submit": lambda c, w, f, now: c.submit(QueueItem(request_id="new"), now),
    "cancel": lambda c, w, f, now: c.cancel(w, now),
    "step": lambda c, w, f, now: c.step(now),
    "next_wakeup": lambda c, w, f, now: c.next_wakeup(now),
    "observe": lambda c, w, f, now: c.observe(NOBODY, now),
    "dispatched": lambda c, w, f, now: c.dispatched(f, "e", now),
    "completed": lambda c, w, f, now: c.completed(f, now=now),
    "revoked": lambda c, w, f, now: c.revoked(f, now=now),
    "revoke_failed": lambda c, w, f, now: c.revoke_failed(f, now=now),
    "desire": lambda c, w, f, now: c.desire([7], now),
    "shutdown": lambda c, w, f, now: c.shutdown(now),
}


@pytest.mark.parametrize("now", [4.999, nan, inf, -inf])
@pytest.mark.parametrize("name", CALLS)
def test_a_clock_that_goes_back_or_is_none_changes_nothing(name, now):
    controller, waiting, flying, _ = full()
    with pytest.raises(InvalidInputError, match="^now: "):
        CALLS[name](controller, waiting, flying, now)
    controller.check()
    assert waiting.waiting and flying.outcome is QueueOutcome.DISPATCHED
    assert CALLS[name](controller, waiting, flying, 5.0) is not NotImplemented  # the same call, in time


@pytest.mark.parametrize("which", ["waiting", "done"])
@pytest.mark.parametrize("name", ["dispatched", "completed", "revoked", "revoke_failed"])
def test_a_ticket_that_is_not_in_flight(name, which):
    controller, waiting, _, done = full()
    ticket = {"waiting": waiting, "done": done}[which]
    before = ticket.outcome
    with pytest.raises(TicketError, match="not in flight: it (waits|ended as 'completed')"):
        CALLS[name](controller, waiting, ticket, 6.0)
    assert ticket.outcome is before
    controller.check()


def test_another_controllers_ticket():
    controller, waiting, flying, _ = full()
    other = FlowController(gate=Shut())
    other.submit(QueueItem(request_id="mine"), now=0.0)
    for call in (
        lambda: other.cancel(waiting, now=9.0),
        lambda: other.completed(flying, now=9.0),
        lambda: other.revoked(flying, now=9.0),
    ):
        with pytest.raises(TicketError):
            call()
    assert waiting.waiting
    other.check()
    controller.check()


# --- what has an outcome -----------------------------------------------------------------------------------------


def test_a_ticket_completed_never_lapses():
    controller = FlowController(inflight_ttl=60.0)
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    controller.step(now=1.0)
    assert controller.next_wakeup(now=1.0) == 61.0
    assert controller.step(now=60.9) == []
    (event,) = controller.step(now=61.0)
    assert ticket.outcome is QueueOutcome.LAPSED
    assert (event.error().status, event.error().headers) == (500, {})
    with pytest.raises(TicketError, match="ended as 'lapsed'"):
        controller.completed(ticket, now=62.0)
    controller.check()


def test_a_cost_that_came_to_nan_leaves_the_ticket_in_flight():
    controller = FlowController(cost=SaysCost(actual=nan), default=PriorityBand(0, fairness=VirtualTokenCounter()))
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    controller.step(now=0.0)
    with pytest.raises(InvalidInputError, match="cost.actual"):
        controller.completed(ticket, Usage(1, 1, 0), now=1.0)
    assert ticket.outcome is QueueOutcome.DISPATCHED
    controller.completed(ticket, now=1.0)  # without usage it ends
    assert ticket.outcome is QueueOutcome.COMPLETED


def test_a_cancel_that_races_a_dispatch():
    """Whoever is first in the controller's order of calls wins: a dispatched request is not taken back, a cancelled one never goes."""
    controller = FlowController()
    ticket = controller.submit(QueueItem(request_id="late"), now=0.0)
    (event,) = controller.step(now=0.0)
    assert controller.cancel(ticket, now=0.0) is False
    assert event == Dispatch(ticket) and ticket.outcome is QueueOutcome.DISPATCHED
    controller.completed(ticket, now=1.0)
    early = controller.submit(QueueItem(request_id="early"), now=1.0)
    assert controller.cancel(early, now=1.0) is True
    assert controller.cancel(early, now=1.0) is False
    assert controller.step(now=1.0) == [] and early.outcome is QueueOutcome.EVICTED_CANCELLED
    controller.check()


def test_a_cancel_that_races_what_is_due():
    """A budget that is spent has no effect before `step` has said so."""
    controller = FlowController(gate=Shut(), budget=QueueBudget(ttl=1.0))
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    assert controller.cancel(ticket, now=5.0) is True
    assert controller.step(now=5.0) == [] and ticket.outcome is QueueOutcome.EVICTED_CANCELLED


def test_shutdown_with_full_queues():
    controller = FlowController(gate=Shut(), capacity=Capacity(requests=30))
    tickets = [controller.submit(QueueItem(request_id=f"{i}", priority=i % 3 - 1), now=0.0) for i in range(30)]
    over = controller.submit(QueueItem(request_id="over", priority=-1), now=0.0)
    assert isinstance(over, Rejection) and over.outcome is QueueOutcome.REJECTED_CAPACITY
    told = controller.shutdown(now=1.0)
    assert sorted(event.ticket.number for event in told) == [ticket.number for ticket in tickets]
    assert {ticket.outcome for ticket in tickets} == {QueueOutcome.EVICTED_SHUTDOWN}
    assert {(event.error().status, event.retry_after) for event in told} == {(503, inf)}
    assert controller.shutdown(now=1.0) == controller.step(now=9.0) == []
    assert controller.submit(QueueItem(request_id="late"), now=9.0).outcome is QueueOutcome.REJECTED_SHUTDOWN
    assert controller.next_wakeup(now=9.0) is None
    controller.check()


def test_what_made_room_is_told_even_when_the_queue_shuts_down_in_between():
    controller = FlowController(gate=Shut(), capacity=Capacity(requests=1))
    low = controller.submit(QueueItem(request_id="low", priority=-1), now=0.0)
    high = controller.submit(QueueItem(request_id="high"), now=0.0)
    assert [event.ticket for event in controller.shutdown(now=0.0)] == [low, high]
    controller.check()


@pytest.mark.parametrize(
    ("item", "outcome"),
    [
        (QueueItem(request_id="r", size_bytes=101), QueueOutcome.REJECTED_CAPACITY),
        (QueueItem(request_id="r", deadline=0.0), QueueOutcome.REJECTED_DEADLINE),
        (QueueItem(request_id="r", deadline=-inf), QueueOutcome.REJECTED_DEADLINE),
    ],
)
def test_what_can_never_be_is_rejected(item, outcome):
    controller = FlowController(capacity=Capacity(size_bytes=100))
    assert controller.submit(item, now=0.0).outcome is outcome
    controller.check()


def test_no_time_at_all_expires_at_the_next_step():
    controller = FlowController()
    ticket = controller.submit(QueueItem(request_id="r", ttl=0.0), now=0.0)
    controller.step(now=0.0)
    assert ticket.outcome is QueueOutcome.EVICTED_TTL


def test_a_queue_that_is_full_takes_nobody_back():
    gate = Shut()
    controller = FlowController(capacity=Capacity(requests=1))
    flying = controller.submit(QueueItem(request_id="flying"), now=0.0)
    controller.step(now=0.0)
    controller._dispatcher._gate = gate
    controller.submit(QueueItem(request_id="waiting"), now=1.0)
    assert controller.revoked(flying, now=2.0, requeue=True) is False
    assert flying.outcome is QueueOutcome.REVOKED
    controller.check()


def test_time_at_the_server_does_not_count_as_waiting():
    controller = FlowController(budget=QueueBudget(ttl=10.0))
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    controller.step(now=4.0)
    assert controller.revoked(ticket, now=100.0, requeue=True) is True
    assert ticket.expires_at == 106.0
    controller.check()


# --- policies that raise -----------------------------------------------------------------------------------------


class BlownError(Exception):
    """What a policy raises."""


class Fuse:
    """Blows at the n-th call of one method."""

    def __init__(self, name, at):
        self.name, self.left = name, at

    def burn(self, name):
        if name == self.name:
            self.left -= 1
            if self.left == 0:
                raise BlownError(name)


class Wired:
    """Stands in front of a policy: it does what the policy does, and then the fuse may blow."""

    def __init__(self, policy, fuse, prefix):
        self._policy, self._fuse, self._prefix = policy, fuse, prefix

    def __getattr__(self, name):
        method = getattr(self._policy, name)

        def call(*said, **named):
            answer = method(*said, **named)
            self._fuse.burn(f"{self._prefix}.{name}")
            return answer

        return call

    def __len__(self):
        return len(self._policy)

    def __iter__(self):
        return iter(self._policy)


class WiredFactory:
    """Stands in front of a policy that makes one order a band, or one queue a flow."""

    def __init__(self, policy, fuse, prefix):
        self._policy, self._fuse, self._prefix = policy, fuse, prefix

    def start(self):
        return Wired(self._policy.start(), self._fuse, self._prefix)

    def queue(self):
        self._fuse.burn(f"{self._prefix}.queue")
        return Wired(self._policy.queue(), self._fuse, self._prefix)


class Room:
    """A gate with so much room; it counts who is in flight."""

    def __init__(self, room):
        self.room, self.flying = room, 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return self.flying / self.room

    def dispatched(self, ticket, now):
        self.flying += 1

    def finished(self, ticket, now):
        self.flying -= 1


METHODS = {
    "order": ("arrived", "pick", "served", "settled", "changed"),
    "gate": ("level", "dispatched", "finished", "observe"),
    "limits": ("ceilings",),
    "bands": ("pick", "served"),
    "cost": ("estimate", "actual"),
    "reclaimer": ("reclaim", "dispatched", "finished"),
    "ordering": ("queue",),
}


@pytest.mark.parametrize("method", [f"{kind}.{name}" for kind, names in METHODS.items() for name in names])
@settings(max_examples=max(10, settings().max_examples // 5))
@given(
    st.sampled_from([GlobalStrict(), RoundRobin(), VirtualTokenCounter()]),
    st.integers(1, 12),
    st.lists(st.integers(0, 2**16), min_size=5, max_size=40),
)
def test_a_policy_that_raises_loses_nobody_and_sends_nobody_twice(method, fairness, at, steps):
    """It raises once, whenever; the gateway goes on. In the end everybody who was given a ticket has gone once, or was evicted."""
    fuse = Fuse(method, at)
    controller = FlowController(
        default=PriorityBand(
            0,
            fairness=WiredFactory(fairness, fuse, "order"),
            ordering=WiredFactory(FirstCome(), fuse, "ordering"),
        ),
        gate=Wired(Room(3), fuse, "gate"),
        limits=Wired(StaticLimit(), fuse, "limits"),
        band_policy=Wired(StrictBands(), fuse, "bands"),
        cost=Wired(TokenCost(), fuse, "cost"),
        reclaimer=Wired(PacedReclaimer(grace=0.0), fuse, "reclaimer"),
        capacity=Capacity(requests=12),
    )
    tickets, told, again, now = [], [], Counter(), 0.0
    for step in steps:
        now += 0.25
        kind, rest = step % 4, step // 4
        flying = [ticket for ticket in told if ticket.outcome is QueueOutcome.DISPATCHED]
        try:
            if kind == 0 or not tickets:
                item = QueueItem(
                    request_id=f"{len(tickets)}", flow=f"f{rest % 3}", priority=rest % 4 - 1, input_tokens=rest % 7
                )
                answer = controller.submit(item, now)
                tickets += [answer] if isinstance(answer, Ticket) else []
            elif kind == 1 and flying and rest % 3 == 0:
                back = flying[rest % len(flying)]
                try:
                    controller.revoked(back, now=now, requeue=True)
                finally:
                    again[back.number] += back.waiting
            elif kind == 1 and flying:
                controller.completed(flying[rest % len(flying)], Usage(3, rest % 5, 0), now=now)
            elif kind == 2:
                controller.cancel(tickets[rest % len(tickets)], now)
            else:
                told += [event.ticket for event in controller.step(now) if isinstance(event, Dispatch)]
        except BlownError:
            pass
        controller.check()
    fuse.left = 0  # it holds from now on
    for _ in range(3 * len(tickets) + 3):
        now += 0.25
        told += [event.ticket for event in controller.step(now) if isinstance(event, Dispatch)]
        for ticket in told:
            if ticket.outcome is QueueOutcome.DISPATCHED:
                controller.completed(ticket, now=now)
        controller.check()
    assert not [ticket for ticket in tickets if ticket.waiting]
    went = {QueueOutcome.COMPLETED, QueueOutcome.DISPATCHED, QueueOutcome.REVOKED}
    times = Counter(ticket.number for ticket in told)
    assert {t.number: again[t.number] + (t.outcome in went) for t in tickets} == {
        t.number: times[t.number] for t in tickets
    }


class Careless:
    """A fairness policy that does not keep its word."""

    def __init__(self, answer):
        self.answer = answer

    def start(self):
        return self

    def arrived(self, flow, now):
        pass

    served = settled = changed = arrived

    def pick(self, now, passed=()):
        return self.answer


def test_a_policy_that_breaks_its_word_is_named():
    controller = FlowController(default=PriorityBand(0, fairness=Careless(None)))
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    with pytest.raises(PluginError, match="Careless"):
        controller.step(now=0.0)
    assert ticket.waiting
    controller.check()
    with pytest.raises(UnknownNameError):
        FlowController(mode="")
