"""An explanation says what is so, and changes nothing."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, TicketError
from inferencesched.flowcontrol import (
    AdaptiveLifo,
    Capacity,
    DeficitLongestPrefix,
    DeficitRoundRobin,
    DoubleDeficitLongestPrefix,
    EarliestDeadline,
    FirstCome,
    FlowController,
    GlobalStrict,
    LeastAttainedService,
    LongestPrefix,
    PriorityBand,
    QueueBudget,
    QueueItem,
    RoundRobin,
    SoftCeiling,
    StartTimeFair,
    Ticket,
    VirtualTokenCounter,
    WeightedShares,
)
from inferencesched.flowcontrol.aio import AsyncFlowController
from inferencesched.flowcontrol.explain import NAMED, TicketRecord, explain
from inferencesched.flowcontrol.fairness import RankedOrder
from inferencesched.flowcontrol.log import RecordedController
from inferencesched.flowcontrol.threaded import ThreadedFlowController
from inferencesched.request import Usage
from tests.flow_shells import Slots


def uncached(ticket):
    return float(ticket.number * 7 % 11)


def by_server(ticket):
    return {f"s{i}": float((ticket.number + i) * 7 % 11) for i in range(ticket.number % 3)}


FAIR = (
    GlobalStrict(),
    RoundRobin(),
    VirtualTokenCounter(),
    StartTimeFair(),
    DeficitRoundRobin(8.0),
    LeastAttainedService(),
    LeastAttainedService(head_wait=0.0),
    DeficitLongestPrefix(uncached, quantum=8.0, look=2),
    DoubleDeficitLongestPrefix(by_server, quantum=8.0),
)
ORDERINGS = (FirstCome(), EarliestDeadline(QueueBudget(ttl=9.0)), AdaptiveLifo(3), LongestPrefix(uncached))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("submit", "submit", "submit", "step", "room", "cancel", "done", "revoked")), st.integers(0, 59)
    ),
    max_size=50,
)


def controller(fair, ordering, slots=2):
    band = PriorityBand(0, fairness=fair, ordering=ordering, weights={"f1": 2.0}, capacity=Capacity(20))
    return FlowController(default=band, gate=Slots(slots), limits=SoftCeiling(), budget=QueueBudget(ttl=40.0))


def drive(recorded, steps, looking):
    """Make the calls; `looking` is called after each of them, with all tickets."""
    tickets, now = [], 0.0
    for call, number in steps:
        now += 0.25
        some = tickets[number % len(tickets)] if tickets else None
        if call == "submit":
            item = QueueItem(
                request_id=f"r{len(tickets)}",
                flow=f"f{number % 4}",
                priority=number % 5 // 4,
                input_tokens=number % 13,
                ttl=1.0 + number,
            )
            answer = recorded.submit(item, now)
            tickets += [answer] if isinstance(answer, Ticket) else []
        elif call == "room":
            recorded.controller._gate.slots = number % 5
        elif call == "step" or some is None:
            recorded.step(now)
        elif call == "cancel":
            recorded.cancel(some, now)
        elif some.outcome is not None and some.outcome.value == "dispatched":
            if call == "done":
                recorded.completed(some, Usage(number, 1), now=now)
            else:
                recorded.revoked(some, now=now, requeue=True)
        looking(recorded, tickets, now)
    recorded.check()
    return recorded.log()


@given(STEPS, st.sampled_from(FAIR), st.sampled_from(ORDERINGS))
def test_who_asks_changes_nothing(steps, fair, ordering):
    def looks(recorded, tickets, now):
        for ticket in tickets:
            told = explain(recorded, ticket, now)
            assert msgspec.json.decode(msgspec.json.encode(told.to_dict()), type=TicketRecord) == told.to_dict()
            assert str(told)

    asked = drive(RecordedController(controller(fair, ordering)), steps, looks)
    assert drive(RecordedController(controller(fair, ordering)), steps, lambda *_: None) == asked


@pytest.mark.parametrize("fair", FAIR, ids=lambda fair: type(fair).__name__)
@given(st.sampled_from(ORDERINGS), STEPS)
def test_the_first_of_a_ranking_is_who_is_picked(fair, ordering, steps):
    def looks(recorded, tickets, now):
        for band in recorded.controller.bands:
            order = band.fairness
            assert isinstance(order, RankedOrder) and order.rule
            ranking = order.ranking(now)
            waiting = {flow for flow in band.flows.values() if len(flow.queue)}
            assert {flow for flow, _ in ranking} == waiting and len(ranking) == len(waiting)
            if ranking and not isinstance(fair, DoubleDeficitLongestPrefix):
                assert ranking[0][0] is order.pick(now)

    drive(RecordedController(controller(fair, ordering)), steps, looks)


@pytest.mark.parametrize("fair", [GlobalStrict(), RoundRobin()], ids=lambda fair: type(fair).__name__)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 1), st.integers(1, 30)), min_size=1, max_size=25),
    st.booleans(),
)
def test_so_many_are_before_it(fair, requests, by_deadline):
    """Exactly, where a turn is a request and no weight counts, or where there are no turns."""
    ordering = EarliestDeadline() if by_deadline else FirstCome()
    gate = Slots(0)
    core = FlowController(default=PriorityBand(0, fairness=fair, ordering=ordering), gate=gate)
    tickets = [
        core.submit(QueueItem(request_id=f"r{i}", flow=f"f{flow}", priority=priority, ttl=float(ttl)), now=0.0)
        for i, (flow, priority, ttl) in enumerate(requests)
    ]
    assert core.step(0.0) == []
    said = {ticket: explain(core, ticket, 0.0).to_dict() for ticket in tickets}
    gate.slots = 100
    for count, event in enumerate(core.step(0.0)):
        told = said[event.ticket]
        assert told["estimate"] == {"before": count, "wait": None}
        assert (told["state"], told["reason"]) == ("waits", "pool full")


def story():
    """A band above, two flows in this one, and one server's room."""
    gate = Slots(1)
    fair = PriorityBand(0, fairness=VirtualTokenCounter(), weights={"b": 2.0})
    core = FlowController(default=fair, gate=gate, budget=QueueBudget(ttl=60.0))
    tickets = {}
    for name, flow, priority, tokens, deadline in (
        ("first", "a", 0, 40, None),
        ("a-1", "a", 0, 10, None),
        ("b-1", "b", 0, 10, None),
        ("b-2", "b", 0, 10, 30.0),
        ("chat", "a", 5, 10, None),
    ):
        item = QueueItem(request_id=name, flow=flow, priority=priority, input_tokens=tokens, deadline=deadline)
        tickets[name] = core.submit(item, now=1.0)
        core.step(now=1.0)
    core.dispatched(tickets["first"], "ep-0", now=1.0)
    return core, tickets


def test_in_words():
    core, tickets = story()
    assert str(explain(core, tickets["b-2"], now=4.0)).splitlines() == [
        "request b-2 of b:0 waits, for 3 s: the pool is as full as its band may fill it",
        "  band 0, rank 2 of 2, 3 wait, 1 above it: level 1 of the pool, ceiling 1, shut",
        "  flow b, place 2 of 2, by the least counter of what was served (40), after a (40)",
        "  place 2 of 2 in its flow, after b-1",
        "  it may wait for 26 s more, until its deadline",
        "  3 are before it",
    ]
    assert str(explain(core, tickets["first"], now=4.0)) == "request first of a:0 is at ep-0, after a wait of 0 s"
    core.cancel(tickets["a-1"], now=5.0)
    assert str(explain(core, tickets["a-1"], now=6.0)).splitlines() == [
        "request a-1 of a:0 has ended as evicted_cancelled",
        "  its client sees 503, rejected-context-cancelled",
    ]
    core.completed(tickets["first"], now=7.0)
    assert (
        str(explain(core, tickets["first"], 8.0)) == "request first of a:0 has ended as completed, after a wait of 0 s"
    )
    assert [event.ticket for event in core.step(now=7.0)] == [tickets["chat"]]
    told = explain(core, tickets["b-1"], now=8.0)
    assert told.to_dict()["estimate"] == {"before": 0, "wait": pytest.approx(7.0)}
    assert "0 are before it: some" in str(told)


def test_as_plain_data():
    core, tickets = story()
    told = explain(core, tickets["b-2"], now=4.0).to_dict()
    assert told["band"] == {
        "priority": 0,
        "rank": 2,
        "bands": 2,
        "waiting": 3,
        "above": 1,
        "policy": "StrictBands",
        "level": 1.0,
        "ceiling": 1.0,
        "open": False,
    }
    assert told["turn"] == {
        "id": "b",
        "weight": 2.0,
        "waiting": 2,
        "in_flight": 0,
        "rule": "the least counter of what was served",
        "place": 2,
        "flows": 2,
        "number": 40.0,
        "ahead": [{"flow": "a", "number": 40.0, "waiting": 1}],
    }
    assert told["place"] == {"place": 2, "waiting": 2, "ahead": ["b-1"]}
    assert told["budget"] == {"expires_at": 30.0, "left": 26.0, "deadline": True}
    assert told["waited"] == 3.0 and told["cost"] == 10.0 and told["version"] == 1


def test_who_are_many_are_counted_and_not_named():
    core = FlowController(gate=Slots(0))
    tickets = [core.submit(QueueItem(request_id=f"r{i}"), now=0.0) for i in range(NAMED + 5)]
    told = explain(core, tickets[-1], now=0.0)
    assert told.to_dict()["reason"] == "no step since" and told.to_dict()["band"]["open"] is None
    assert told.to_dict()["place"]["ahead"] == [f"r{i}" for i in range(NAMED)]
    assert f"place {NAMED + 5} of {NAMED + 5} in its flow" in str(told) and "and 4 more" in str(told)


def test_words_of_a_client_are_escaped():
    core = FlowController(gate=Slots(0))
    ticket = core.submit(QueueItem(request_id="<script>", flow="<b>"), now=0.0)
    shown = explain(core, ticket, now=0.0)._repr_html_()
    assert "<script>" not in shown and "<b>" not in shown and "&lt;script&gt;" in shown


def test_servers_of_its_own_and_a_policy_of_ones_own():
    class Own(Slots):
        def admits(self, ticket, ceiling, now):
            return ticket.item.flow != "lora"

    class Plain:
        """A `FlowOrder` that does not tell."""

        def __init__(self, order):
            self._order = order

        def __getattr__(self, name):
            if name in ("ranking", "rule"):
                raise AttributeError(name)
            return getattr(self._order, name)

    class Policy:
        def start(self):
            return Plain(RoundRobin().start())

    core = FlowController(gate=Own(5), default=PriorityBand(0, fairness=Policy()))
    ticket = core.submit(QueueItem(request_id="r", flow="lora"), now=0.0)
    core.step(now=0.0)
    told = explain(core, ticket, now=1.0).to_dict()
    assert told["reason"] == "own servers full"
    assert (told["turn"]["place"], told["turn"]["flows"], told["turn"]["rule"]) == (None, 1, "")
    assert told["estimate"]["before"] is None
    shares = FlowController(gate=Slots(0), band_policy=WeightedShares({0: 0.5}))
    other = shares.submit(QueueItem(request_id="r"), now=0.0)
    assert explain(shares, other, now=0.0).to_dict()["estimate"]["before"] is None


@pytest.mark.parametrize("kind", [AsyncFlowController, ThreadedFlowController])
def test_a_shell_is_asked_for_what_it_let_wait(kind):
    shell = kind(FlowController(), clock=lambda: 5.0)
    with pytest.raises(TicketError, match="never queued"):
        shell.explain(shell.admit(QueueItem(request_id="r")))
    if kind is ThreadedFlowController:
        with shell.admit(QueueItem(request_id="r")) as admission:
            assert shell.explain(admission).to_dict()["state"] == "in flight"


def test_an_explanation_is_of_a_time():
    core, _ = story()
    before = core.submit(QueueItem(request_id="late"), now=9.0)
    assert explain(core, before, now=9.5).to_dict()["waited"] == 0.5
    with pytest.raises(InvalidInputError, match="now"):
        core.step(now=8.0)
