"""The first walk through the flow controller: three tiers, capacity, displacement, time, outcomes."""

import pytest

from inferencesched.errors import InvalidInputError, TicketError
from inferencesched.flowcontrol import (
    Capacity,
    DeficitRoundRobin,
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
    StartTimeFair,
    VirtualTokenCounter,
)
from inferencesched.request import Usage


class Hatch:
    """A gate that a test opens and shuts."""

    def __init__(self, level=1.0):
        self.at = level
        self.left = None

    def observe(self, endpoints, now):
        self.at = 0.0 if len(endpoints) else 1.0

    def level(self, now):
        return 1.0 if self.left == 0 else self.at

    def dispatched(self, ticket, now):
        if self.left is not None:
            self.left -= 1

    def finished(self, ticket, now):
        pass


def item(name, **said):
    return QueueItem(request_id=name, **said)


def names(events):
    return [event.ticket.request_id for event in events]


def test_three_tiers():
    gate = Hatch()
    fair = VirtualTokenCounter()
    controller = FlowController(gate=gate, bands=[PriorityBand(p, fairness=fair) for p in (10, 0, -1)])
    for name, flow, priority in (
        ("low", "a", -1),
        ("a-1", "a", 0),
        ("a-2", "a", 0),
        ("b-1", "b", 0),
        ("high", "z", 10),
    ):
        controller.submit(item(name, flow=flow, priority=priority, input_tokens=10), now=1.0)
    assert controller.step(now=1.0) == []
    gate.at = 0.0
    assert names(controller.step(now=2.0)) == ["high", "a-1", "b-1", "a-2", "low"]
    assert controller.next_wakeup(now=2.0) is None
    controller.check()


@pytest.mark.parametrize(
    "fair", [VirtualTokenCounter(), StartTimeFair(), DeficitRoundRobin(10.0), RoundRobin(), GlobalStrict()]
)
def test_everything_goes_once_whatever_the_policy(fair):
    gate = Hatch()
    controller = FlowController(gate=gate, default=PriorityBand(0, fairness=fair))
    tickets = [
        controller.submit(item(f"{i}", flow=f"f{i % 7}", priority=i % 3 - 1, input_tokens=i), now=float(i))
        for i in range(60)
    ]
    gate.left, gate.at = 25, 0.0
    first = controller.step(now=59.5)
    assert len(first) == 25
    assert controller.cancel(tickets[59], now=60.0) is (tickets[59].outcome is QueueOutcome.EVICTED_CANCELLED)
    gate.left = None
    rest = controller.step(now=60.0)
    gone = [event for event in (*first, *rest) if isinstance(event, Dispatch)]
    assert len(set(names(gone))) == len(gone) == sum(ticket.outcome is QueueOutcome.DISPATCHED for ticket in tickets)
    for event in gone:
        controller.completed(event.ticket, Usage(7, 7, 0), now=61.0)
    controller.check()
    assert controller.step(now=1000.0) == []
    controller.check()


def test_what_does_not_fit_makes_room_or_is_rejected():
    gate = Hatch()
    controller = FlowController(gate=gate, capacity=Capacity(requests=2))
    older = controller.submit(item("older", priority=-1), now=0.0)
    newer = controller.submit(item("newer", priority=-1), now=0.0)
    refused = controller.submit(item("same", priority=-1), now=0.0)
    assert isinstance(refused, Rejection)
    assert refused.outcome is QueueOutcome.REJECTED_CAPACITY
    assert (refused.outcome.status, refused.outcome.reason) == (429, "rejected-saturated")
    assert "2 of 2 requests" in refused.detail
    high = controller.submit(item("high"), now=1.0)
    assert newer.outcome is QueueOutcome.EVICTED_DISPLACED
    (told,) = controller.step(now=1.0)
    assert isinstance(told, Displace) and told.ticket is newer and told.by is high
    controller.submit(item("high-2"), now=1.0)
    assert older.outcome is QueueOutcome.EVICTED_DISPLACED
    assert isinstance(controller.submit(item("high-3", priority=5), now=1.0), Rejection)
    controller.check()


def test_time():
    gate = Hatch()
    controller = FlowController(gate=gate, budget=QueueBudget(ttl=60.0, objectives={"fast": 5.0}))
    slow = controller.submit(item("slow"), now=0.0)
    fast = controller.submit(item("fast", objective="fast"), now=0.0)
    late = controller.submit(item("late", deadline=3.0), now=0.0)
    assert controller.next_wakeup(now=0.0) == 3.0
    assert controller.step(now=2.999) == []
    (told,) = controller.step(now=3.0)
    assert told == Expire(late, told.retry_after) and late.outcome is QueueOutcome.EVICTED_DEADLINE
    assert names(controller.step(now=5.0)) == ["fast"] and fast.outcome is QueueOutcome.EVICTED_TTL
    assert names(controller.step(now=60.0)) == ["slow"] and slow.outcome.reason == "rejected-ttl-expired"
    with pytest.raises(InvalidInputError, match="now: got 59"):
        controller.step(now=59.0)
    hopeless = controller.submit(item("hopeless", deadline=60.0), now=60.0)
    assert hopeless.outcome is QueueOutcome.REJECTED_DEADLINE
    controller.check()


def test_a_ticket_ends_once():
    controller = FlowController(inflight_ttl=10.0)
    ticket = controller.submit(item("r"), now=0.0)
    with pytest.raises(TicketError, match="'r' is not in flight: it waits"):
        controller.completed(ticket, now=0.0)
    controller.step(now=0.0)
    assert controller.cancel(ticket, now=0.0) is False
    controller.dispatched(ticket, "ep-1", now=0.0)
    controller.revoked(ticket, requeue=True, now=1.0)
    assert ticket.waiting
    controller.step(now=1.0)
    controller.completed(ticket, now=2.0)
    with pytest.raises(TicketError, match="ended as 'completed'"):
        controller.completed(ticket, now=2.0)
    lost = controller.submit(item("lost"), now=2.0)
    controller.step(now=2.0)
    assert controller.next_wakeup(now=2.0) == 12.0
    assert names(controller.step(now=12.0)) == ["lost"] and lost.outcome is QueueOutcome.LAPSED
    controller.check()


def test_shutdown():
    gate = Hatch()
    controller = FlowController(gate=gate)
    ticket = controller.submit(item("r"), now=0.0)
    assert names(controller.shutdown(now=1.0)) == ["r"]
    assert ticket.outcome.reason == "rejected-shutting-down"
    assert controller.submit(item("late"), now=1.0).outcome is QueueOutcome.REJECTED_SHUTDOWN
    assert controller.step(now=2.0) == []
    controller.check()
