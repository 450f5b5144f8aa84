"""Is every order an order, and the one that its policy promises? Against plain sorting, plain feasibility, plain sums."""

from dataclasses import dataclass
from itertools import pairwise, permutations
from math import inf, isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    AdaptiveLifo,
    Capacity,
    EarliestDeadline,
    FirstCome,
    Flow,
    LongestPrefix,
    QueueBudget,
    QueueItem,
    RoundRobin,
    SloDeadline,
    Ticket,
    WeightedShortestFirst,
)
from inferencesched.flowcontrol.flows import Band
from tests.flow_traces import named

WORTH = {"gold": 4.0, "lead": 0.5}
POLICIES = [
    FirstCome(),
    EarliestDeadline(QueueBudget(ttl=8.0)),
    EarliestDeadline(QueueBudget(ttl=None)),
    SloDeadline(),
    WeightedShortestFirst(ageing=0.0, weights=WORTH),
    WeightedShortestFirst(ageing=2.0, weights=WORTH),
    AdaptiveLifo(10**6),
    LongestPrefix(lambda ticket: 0.0),
]


def queue_of(policy):
    band = Band(0, Capacity(), policy, RoundRobin().start(), {}, protected=True)
    return Flow("f", band, policy.queue(), 1.0)


def ticket_of(flow, number, enqueued_at=0.0, cost=1.0, **said):
    return Ticket(QueueItem(request_id=f"r{number}", **said), flow, number, cost, enqueued_at)


@dataclass(frozen=True)
class Draft:
    """What a ticket is made of."""

    gap: float
    cost: float
    ttl: float | None
    slo: float | None
    deadline: float | None
    early: float
    objective: str


quarters = st.integers(0, 40).map(lambda n: n / 4)
drafts = st.builds(
    Draft,
    gap=quarters,
    cost=st.integers(0, 50).map(float),
    ttl=st.none() | quarters,
    slo=st.none() | quarters.filter(bool),
    deadline=st.none() | quarters,
    early=quarters,
    objective=st.sampled_from(("gold", "lead", "")),
)


def tickets_of(policy, drawn):
    """Return a flow and its tickets, by number; none is in the queue yet."""
    flow, now, tickets = queue_of(policy), 0.0, []
    for number, draft in enumerate(drawn):
        now += draft.gap
        tickets.append(
            ticket_of(
                flow,
                number,
                now,
                draft.cost,
                ttl=draft.ttl,
                slo_ttft=draft.slo,
                deadline=None if draft.deadline is None else now + draft.deadline,
                received_at=now - draft.early,
                objective=draft.objective,
            )
        )
    return flow, tickets


def place(policy, ticket, now=1000.0):
    """Where a ticket stands at some time, in plain numbers."""
    item = ticket.item
    match policy:
        case EarliestDeadline():
            ttl = min(inf if x is None else x for x in (item.ttl, policy.budget.ttl))
            return min(ticket.enqueued_at + ttl, inf if item.deadline is None else item.deadline), ticket.number
        case SloDeadline():
            due = inf if item.slo_ttft is None else item.received_at + item.slo_ttft
            return due, item.received_at, ticket.number
        case WeightedShortestFirst():
            worth = WORTH.get(item.objective, 1.0)
            return ticket.cost / worth - policy.ageing * (now - ticket.enqueued_at), ticket.number
    return (ticket.number,)


def before(policy, a, b):
    """Does a go before b, whichever of the two was put into the queue first?"""
    heads = set()
    for pair in ((a, b), (b, a)):
        queue = policy.queue()
        for ticket in pair:
            queue.push(ticket)
        heads.add(queue.head())
    (head,) = heads
    return head is a


@pytest.mark.parametrize("policy", POLICIES, ids=named)
@given(drawn=st.lists(drafts, min_size=3, max_size=3))
def test_an_order_is_strict_and_total(policy, drawn):
    """Irreflexive by construction: a queue has one head. Asymmetric, transitive, and of two different tickets one goes first."""
    _, (a, b, c) = tickets_of(policy, drawn)
    for x, y in permutations((a, b, c), 2):
        assert before(policy, x, y) != before(policy, y, x)
    for x, y, z in permutations((a, b, c)):
        assert not (before(policy, x, y) and before(policy, y, z)) or before(policy, x, z)


@pytest.mark.parametrize("policy", POLICIES, ids=named)
@given(drawn=st.lists(drafts, max_size=12), cancelled=st.integers(0, 2**12), now=st.floats(0.0, 1e3))
def test_a_queue_is_sorted(policy, drawn, cancelled, now):
    flow, tickets = tickets_of(policy, drawn)
    for ticket in tickets:
        flow.queue.push(ticket)
    left = [ticket for ticket in tickets if not cancelled >> ticket.number & 1]
    for ticket in tickets:
        if ticket not in left:
            flow.queue.remove(ticket)
    assert len(flow.queue) == len(left) and set(flow.queue) == set(left)
    gone = []
    while (head := flow.queue.head()) is not None:
        flow.queue.remove(head)
        gone.append(head)
    places = [place(policy, ticket, now) for ticket in gone]
    assert len(gone) == len(left)
    assert all(x <= y or isclose(x[0], y[0], rel_tol=1e-9, abs_tol=1e-6) for x, y in pairwise(places))


@given(drawn=st.lists(drafts, max_size=8), ttl=st.none() | quarters)
def test_equal_budgets_are_first_come_first_served(drawn, ttl):
    flow, tickets = tickets_of(EarliestDeadline(QueueBudget(ttl=ttl)), drawn)
    plain = [ticket_of(flow, t.number, t.enqueued_at) for t in tickets]
    for ticket in plain:
        flow.queue.push(ticket)
    assert [t.number for t in flow.queue] == sorted(t.number for t in plain)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=5))
def test_earliest_deadline_meets_every_deadline_that_can_be_met(jobs):
    """Requests that take a second each, released at whole seconds: against every way to put them into seconds."""
    jobs = sorted(jobs)
    seconds = range(max(release for release, _ in jobs) + len(jobs))
    feasible = any(
        all(release <= at < release + within for at, (release, within) in zip(slots, jobs, strict=True))
        for slots in permutations(seconds, len(jobs))
    )
    flow, met, waiting = queue_of(EarliestDeadline(QueueBudget(ttl=None))), 0, 0
    for second in seconds:
        for number, (release, within) in enumerate(jobs):
            if release == second:
                flow.queue.push(ticket_of(flow, number, float(release), ttl=float(within)))
                waiting += 1
        if (head := flow.queue.head()) is not None:
            flow.queue.remove(head)
            met += second + 1 <= head.enqueued_at + head.item.ttl
    assert (met == len(jobs)) or not feasible


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from(("gold", "lead", ""))), min_size=1, max_size=5))
def test_smiths_rule_makes_the_weighted_wait_least(jobs):
    def total(order):
        passed = weighted = 0.0
        for cost, objective in order:
            weighted += passed * WORTH.get(objective, 1.0)
            passed += cost
        return weighted

    flow = queue_of(WeightedShortestFirst(ageing=0.0, weights=WORTH))
    for number, (cost, objective) in enumerate(jobs):
        flow.queue.push(ticket_of(flow, number, cost=float(cost), objective=objective))
    ours = total([(t.cost, t.item.objective) for t in flow.queue])
    assert isclose(ours, min(map(total, permutations(jobs))))


@given(drawn=st.lists(drafts, min_size=2, max_size=15), ageing=st.sampled_from((0.5, 2.0)))
def test_nobody_starves_who_ages(drawn, ageing):
    policy = WeightedShortestFirst(ageing=ageing, weights=WORTH)
    flow, tickets = tickets_of(policy, drawn)
    for ticket in tickets:
        flow.queue.push(ticket)
    gone = []
    while (head := flow.queue.head()) is not None:
        patience = head.cost / WORTH.get(head.item.objective, 1.0) / ageing
        assert all(other.enqueued_at <= head.enqueued_at + patience + 1e-9 for other in gone)
        flow.queue.remove(head)
        gone.append(head)


# --- backlog and prefixes ------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 5))
def test_newest_first_while_many_wait(pushes, backlog):
    """The band's backlog decides, whichever flow it is of."""
    flow = queue_of(AdaptiveLifo(backlog))
    band, waiting = flow.band, []
    for number, push in enumerate(pushes):
        if push:
            ticket = ticket_of(flow, number)
            flow.queue.push(ticket)
            waiting.append(ticket)
            band.requests += 1
        elif waiting:
            head = flow.queue.head()
            assert head is (waiting[-1] if len(waiting) > backlog else waiting[0])
            flow.queue.remove(head)
            waiting.remove(head)
            band.requests -= 1
        assert list(flow.queue) == waiting and len(flow.queue) == len(waiting)


@given(st.lists(st.integers(-1, 9), max_size=60), st.integers(1, 5), st.integers(0, 4))
def test_the_longest_prefix_of_those_that_came_first(steps, look, patience):
    """Against the rule said plainly; who is first is passed `patience` times at most."""
    cached = {}
    flow = queue_of(LongestPrefix(lambda ticket: 10 - cached[ticket.number], look, patience))
    waiting, passed = [], 0
    for number, step in enumerate(steps):
        if step >= 0:
            cached[number] = step
            ticket = ticket_of(flow, number, input_tokens=10)
            flow.queue.push(ticket)
            waiting.append(ticket)
        elif waiting:
            best = max(waiting[:look], key=lambda ticket: (cached[ticket.number], -ticket.number))
            expected = best if passed < patience else waiting[0]
            assert flow.queue.head() is expected
            passed = 0 if expected is waiting[0] else passed + 1
            flow.queue.remove(expected)
            waiting.remove(expected)
    assert list(flow.queue) == waiting


def test_a_prefix_that_nobody_knows_is_none():
    flow = queue_of(LongestPrefix(lambda ticket: 5.0 if ticket.number == 2 else float("nan")))
    for number in range(4):
        flow.queue.push(ticket_of(flow, number, input_tokens=10))
    assert flow.queue.head().number == 2
    back = ticket_of(flow, -1, input_tokens=10)
    flow.queue.push(back)
    assert [t.number for t in flow.queue] == [-1, 0, 1, 2, 3]
    flow.queue.remove(flow.queue.head())
    assert flow.queue.head() is back


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: WeightedShortestFirst(ageing=-1.0), "ageing"),
        (lambda: WeightedShortestFirst(ageing=inf), "ageing"),
        (lambda: WeightedShortestFirst(weights={"a": 0.0}), "weights['a']"),
        (lambda: AdaptiveLifo(-1), "backlog"),
        (lambda: LongestPrefix(lambda t: 0.0, look=0), "look"),
        (lambda: LongestPrefix(lambda t: 0.0, patience=-1), "patience"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter
