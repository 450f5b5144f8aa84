"""Is everybody served as the bounds say, in the worst of all intervals? Exactly, on traces that hypothesis finds."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import inf, isclose

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    AdaptiveLifo,
    DeficitLongestPrefix,
    DeficitRoundRobin,
    DoubleDeficitLongestPrefix,
    EarliestDeadline,
    FifoQueue,
    FlowController,
    GlobalStrict,
    LeastAttainedService,
    PriorityBand,
    QueueBudget,
    QueueItem,
    RoundRobin,
    StartTimeFair,
    TokenCost,
    VirtualTokenCounter,
    WaitMeans,
    jain_index,
)
from inferencesched.flowcontrol.fairness.attained import _Attained, _ScoreOrder, scaled
from inferencesched.flowcontrol.fairness.counters import _CounterOrder, _StartTimeOrder
from inferencesched.flowcontrol.fairness.turns import _DeficitOrder
from inferencesched.request import Usage
from tests.flow_traces import Alone, Load, Turnstile, Whole, loads, named, run, worst

SERVERS = ("s1", "s2", "s3")
DRIVERS = (Alone, Whole)


def uncached(ticket):
    """Any number of a prompt's tokens, the same whenever it is asked for."""
    return (ticket.number * 7919 + ticket.item.input_tokens) % (ticket.item.input_tokens + 1)


def uncached_by_server(ticket):
    tokens = ticket.item.input_tokens
    return {name: (ticket.number * 31 * (i + 1)) % (tokens + 1) for i, name in enumerate(SERVERS)}


def charged(ticket):
    return ticket.cost


#: What is a policy's bound on a load, by the weights of two flows?
BOUNDS = {
    VirtualTokenCounter(): lambda load, f, g: 2 * load.most / min(load.weights),
    StartTimeFair(): lambda load, f, g: load.most / f + load.most / g,
    DeficitRoundRobin(1.0): lambda load, f, g: 1.0 + load.most / f + load.most / g,
    DeficitRoundRobin(8.0): lambda load, f, g: 8.0 + load.most / f + load.most / g,
    DeficitRoundRobin(64.0): lambda load, f, g: 64.0 + load.most / f + load.most / g,
    DeficitLongestPrefix(uncached, quantum=1.0): lambda load, f, g: 2 * (load.most / min(load.weights) + 1.0),
    DeficitLongestPrefix(uncached, quantum=16.0): lambda load, f, g: 2 * (load.most / min(load.weights) + 16.0),
    DeficitLongestPrefix(uncached, quantum=16.0, look=1): lambda load, f, g: 2 * (load.most / min(load.weights) + 16.0),
    DoubleDeficitLongestPrefix(uncached_by_server, quantum=8.0): lambda load, f, g: (
        2 * len(SERVERS) * (load.most / min(load.weights) + 8.0)
    ),
}
NAMED = [pytest.param(policy, id=named(policy)[:60]) for policy in BOUNDS]
EVERY = [*NAMED, *(pytest.param(each, id=f"{each}") for each in (GlobalStrict(), RoundRobin(), LeastAttainedService()))]
EVERY.append(pytest.param(LeastAttainedService(head_wait=0.0, half_life=4.0), id="LeastAttainedService-heap"))


# --- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("policy", NAMED)
@given(load=loads())
def test_services_stay_within_the_bound(policy, driver, load):
    """In every interval in which both wait, however long, wherever it begins."""
    served = run(load, policy, driver, service=charged)
    assert worst(load, served, lambda f, g: BOUNDS[policy](load, f, g)) <= 1.0


@pytest.mark.parametrize("driver", DRIVERS)
@given(load=loads())
def test_counters_of_flows_that_wait_stay_within_one_charge(driver, load):
    def check(drive, waiting):
        counters = [drive.band.flows[f"f{i}"].counter for i in waiting]
        assert not counters or max(counters) - min(counters) <= load.most / min(load.weights)

    run(load, VirtualTokenCounter(), driver, check)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("policy", [VirtualTokenCounter(), StartTimeFair()])
@given(load=loads(settled=True))
def test_what_is_settled_later_costs_what_was_in_flight(policy, driver, load):
    """Estimates are off by E at most, K are in flight, C is the greatest charge: 2 (C + K E) / w."""
    most, least = load.most + load.off, min(load.weights)
    served = run(load, policy, driver)
    assert worst(load, served, lambda f, g: 2 * (most + load.inflight * load.off) / least) <= 1.0


@pytest.mark.parametrize("driver", DRIVERS)
@given(load=loads(flows=(2, 5)))
def test_turns_are_even_in_requests(driver, load):
    load = load._replace(weights=(1.0,) * len(load.weights))
    served = run(load, RoundRobin(), driver, service=lambda ticket: 1.0)
    assert worst(load, served, lambda f, g: 1.0) <= 1.0


# --- do the tests see? Policies that are broken on purpose -----------------------------------------------------------


class NoLift(_CounterOrder):
    def arrived(self, flow, now):
        self._put(flow, flow.counter)


class AtCompletion(_CounterOrder):
    def __init__(self):
        super().__init__()
        self.owed = {}

    def served(self, flow, cost, now):
        self.owed.setdefault(flow, deque()).append(cost)
        super().served(flow, 0.0, now)

    def settled(self, flow, correction, now):
        super().settled(flow, self.owed[flow].popleft() + correction, now)


class NoClock(_StartTimeOrder):
    def arrived(self, flow, now):
        flow.tag = flow.counter
        self._put(flow, flow.tag)


class KeepsDeficit(_DeficitOrder):
    def served(self, flow, cost, now):
        saved = flow.counter
        super().served(flow, cost, now)
        if flow.queue.head() is None:
            flow.counter = saved + 64.0

    def arrived(self, flow, now):
        saved = flow.counter
        super().arrived(flow, now)
        flow.counter += saved


@dataclass(frozen=True)
class Broken:
    order: type
    arguments: tuple[float, ...] = ()

    def start(self):
        return self.order(*self.arguments)


@pytest.mark.parametrize(
    ("mutant", "policy"),
    [
        (Broken(NoLift), VirtualTokenCounter()),
        (Broken(NoClock), StartTimeFair()),
        (Broken(KeepsDeficit, (8.0,)), DeficitRoundRobin(8.0)),
        (GlobalStrict(), VirtualTokenCounter()),
        (RoundRobin(), VirtualTokenCounter()),
        (DeficitLongestPrefix(uncached, quantum=1e9), DeficitLongestPrefix(uncached, quantum=1.0)),
    ],
    ids=lambda each: named(each)[:40],
)
def test_a_broken_policy_is_found(mutant, policy):
    bound = BOUNDS[policy]

    def broken(load):
        return worst(load, run(load, mutant, service=charged), lambda f, g: bound(load, f, g)) > 1.0

    assert broken(find(loads(), broken, settings=_SEARCH))


def test_charging_at_completion_alone_is_found():
    """llm-d's way: a flow sends a whole burst before it is charged anything."""

    def broken(load):
        most = load.most + load.off
        bound = 2 * (most + load.inflight * load.off) / min(load.weights)
        return worst(load, run(load, Broken(AtCompletion)), lambda f, g: bound) > 1.0

    assert broken(find(loads(settled=True), broken, settings=_SEARCH))


_SEARCH = settings(max_examples=2_000, derandomize=True, database=None, phases=[Phase.generate], deadline=None)


# --- every policy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY)
@settings(max_examples=30)
@given(load=loads(steps=60), chosen=st.integers(0, 31))
def test_who_is_passed_is_not_picked_and_the_rest_is(policy, load, chosen):
    def check(drive, waiting):
        passed = {drive.flows[i] for i in waiting if chosen >> i & 1}
        picked = drive.order.pick(drive.now, passed)
        left = [drive.flows[i] for i in waiting if drive.flows[i] not in passed]
        assert (picked in left) if left else picked is None
        assert drive.order.pick(drive.now, passed) is picked

    run(load, policy, check=check)


@pytest.mark.parametrize("policy", EVERY)
@settings(max_examples=20)
@given(load=loads(settled=True, steps=60))
def test_the_same_trace_is_served_the_same(policy, load):
    assert run(load, policy) == run(load, policy)


@pytest.mark.parametrize("policy", EVERY)
def test_who_comes_and_goes_without_end_leaves_nothing(policy):
    """A hundred waits for ever; ten thousand submit and give up: what a policy holds stays small."""
    drive = Alone(Load((1.0,) * 100, (), 1), policy)
    for i in range(100):
        drive.submit(i, 1.0)
    for number in range(10_000):
        flow = type(drive.flows[0])(f"passer-{number}", drive.band, FifoQueue(), 1.0)
        drive.flows.append(flow)
        drive.cancel(drive.submit(-1, 1.0))
        drive.flows.pop()
    order = drive.order
    held = [
        len(getattr(order, name))
        for name in ("_entries", "_turns", "_flows", "_ready", "_pairs")
        if name in {slot for each in type(order).__mro__ for slot in getattr(each, "__slots__", ())}
    ]
    assert held and max(held) <= 2 * 100 + 65


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: DeficitRoundRobin(0.0), "quantum"),
        (lambda: DeficitRoundRobin(inf), "quantum"),
        (lambda: LeastAttainedService(service=-0.1), "service"),
        (lambda: LeastAttainedService(half_life=-1.0), "half_life"),
        (lambda: LeastAttainedService(idle_ttl=-1.0), "idle_ttl"),
        (lambda: LeastAttainedService(head_wait=inf), "head_wait"),
        (lambda: DeficitLongestPrefix(uncached, quantum=-1.0), "quantum"),
        (lambda: DeficitLongestPrefix(uncached, prompt=inf), "prompt"),
        (lambda: DoubleDeficitLongestPrefix(uncached_by_server, look=0), "look"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter


# --- deficit round robin -------------------------------------------------------------------------------------------------


class PlainDeficit:
    """The textbook's rounds, one turn after the other; who has given up leaves when its turn comes."""

    def __init__(self, quantum):
        self.quantum = quantum
        self.turns = []
        self.saved = {}

    def arrived(self, flow, now):
        if (
            flow not in self.turns
        ):  # else it gave up and comes back: its place is its own, with what a turn that began there gave
            self.saved[flow] = 0.0
            self.turns.append(flow)
            if len(self.turns) == 1:
                self.begin()

    def begin(self):
        if self.turns:
            self.saved[self.turns[0]] += self.quantum * self.turns[0].weight

    def pick(self, now, passed=()):
        while self.turns:
            flow = self.turns[0]
            head = flow.queue.head()
            if head is not None and head.cost <= self.saved[flow]:
                return flow
            self.turns.pop(0)
            if head is not None:
                self.turns.append(flow)
            self.begin()
        return None

    def served(self, flow, cost, now):
        self.saved[flow] -= cost
        if flow.queue.head() is None:
            self.turns.pop(0)
            self.begin()

    def changed(self, flow, now):
        if flow.queue.head() is None:
            self.saved[flow] = 0.0

    def settled(self, flow, correction, now):
        if flow.queue.head() is not None:
            self.saved[flow] -= correction


@pytest.mark.parametrize("quantum", [0.25, 8.0])
@given(load=loads(settled=True))
def test_skipped_rounds_are_the_textbooks_rounds(quantum, load):
    assert run(load, DeficitRoundRobin(quantum)) == run(load, Broken(PlainDeficit, (quantum,)))


@given(load=loads())
def test_the_least_counter_and_the_least_start_tag_go(load):
    """Heaps with entries that have become void, against looking at everybody."""

    def least(value):
        def check(drive, waiting):
            if waiting:
                picked = drive.order.pick(drive.now)
                assert value(picked) == min(value(drive.flows[i]) for i in waiting)

        return check

    run(load, VirtualTokenCounter(), check=least(lambda flow: flow.counter))
    run(load, StartTimeFair(), check=least(lambda flow: flow.tag))


# --- global strict -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordering", [None, AdaptiveLifo(3), EarliestDeadline(QueueBudget(ttl=60.0))])
@given(load=loads())
def test_strict_is_one_queue(ordering, load):
    """Whatever the flows, requests go as if all were of one flow."""
    waiting = {}

    def check(drive, _):
        waiting.clear()
        waiting.update({t.number: t for flow in drive.band.flows.values() for t in flow.queue})

    gone = []

    def service(ticket):
        turned = isinstance(ordering, AdaptiveLifo) and len(waiting) > ordering.backlog
        assert ticket.number == (max(waiting) if turned else min(waiting))
        gone.append(ticket)
        return 1.0

    options = {} if ordering is None else {"ordering": ordering}
    assert len(run(load, GlobalStrict(), Whole, check, service, **options)) == len(gone)


# --- least attained service ----------------------------------------------------------------------------------------


@given(
    load=loads(settled=True),
    weights=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    half_life=st.sampled_from((0.0, 2.0, 60.0)),
)
def test_least_attained_service_is_the_formula(load, weights, half_life):
    """The whole formula beside it, from what was served and when, in plain numbers."""
    policy = LeastAttainedService(*weights, half_life=half_life)

    def check(drive, waiting):
        if not waiting:
            return
        heads = {i: drive.flows[i].queue.head() for i in waiting}
        services = {i: policy.attained(drive.flows[i], drive.now) for i in waiting}
        waits = {i: drive.now - heads[i].enqueued_at for i in waiting}

        def norm(values, i):
            least, most = min(values.values()), max(values.values())
            return 0.5 if least == most else (values[i] - least) / (most - least)

        scores = {i: weights[0] * (1 - norm(services, i)) + weights[1] * norm(waits, i) for i in waiting}
        picked = drive.flows.index(drive.order.pick(drive.now))
        assert isclose(scores[picked], max(scores.values()), abs_tol=1e-9)

    run(load, policy, check=check)


@given(load=loads(settled=True), half_life=st.sampled_from((0.0, 2.0, 60.0)))
def test_without_waits_a_heap_says_the_same(load, half_life):
    """Decay changes no order: who the heap picks has no more service than anybody else now."""
    policy = LeastAttainedService(service=1.0, head_wait=0.0, half_life=half_life)

    def check(drive, waiting):
        picked = drive.order.pick(drive.now)
        services = [policy.attained(drive.flows[i], drive.now) for i in waiting]
        assert picked is None or policy.attained(picked, drive.now) <= min(services) * (1 + 1e-9)

    assert not isinstance(policy.start(), _ScoreOrder)
    run(load, policy, check=check)


@given(
    charges=st.lists(st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 1e4)), max_size=20), half_life=st.floats(0.5, 100.0)
)
def test_service_decays(charges, half_life):
    flow = Alone(Load((1.0,), (), 1), RoundRobin()).flows[0]
    attained, now, sum_at_end = _Attained(half_life, inf), 0.0, 0.0
    end = sum(gap for gap, _ in charges)
    for gap, charge in charges:
        now += gap
        attained.add(flow, charge, now)
        sum_at_end += charge * 2 ** ((now - end) / half_life)
    assert isclose(attained.at(flow, end), sum_at_end, rel_tol=1e-6, abs_tol=1e-6)
    assert isclose(attained.at(flow, end + half_life), sum_at_end / 2, rel_tol=1e-6, abs_tol=1e-6)


def test_who_was_idle_for_long_begins_anew():
    controller = FlowController(bands=[PriorityBand(0, fairness=LeastAttainedService(half_life=0.0, idle_ttl=50.0))])
    first = controller.submit(QueueItem(request_id="1", input_tokens=100), now=0.0)
    controller.step(now=0.0)
    controller.completed(first, now=10.0)
    assert controller.submit(QueueItem(request_id="2"), now=59.0).flow.counter == 100.0
    controller.step(now=59.0)
    other = FlowController(bands=[PriorityBand(0, fairness=LeastAttainedService(half_life=0.0, idle_ttl=50.0))])
    first = other.submit(QueueItem(request_id="1", input_tokens=100), now=0.0)
    other.step(now=0.0)
    other.completed(first, now=10.0)
    assert other.submit(QueueItem(request_id="2"), now=60.0).flow.counter == 0.0


def test_scaled():
    assert [scaled(5.0, 10.0, 10.0), scaled(0.0, 0.0, 10.0), scaled(10.0, 0.0, 10.0)] == [0.5, 0.0, 1.0]


# --- locality --------------------------------------------------------------------------------------------------------


def test_the_longest_prefix_goes_first_while_its_flow_has_a_balance():
    cached = {"hit": 90, "miss": 0}
    kinds = {0: "hit", 1: "miss"}
    policy = DeficitLongestPrefix(
        lambda ticket: 100 - cached[kinds[int(ticket.flow.id[1])]], quantum=100.0, look=8, prompt=1.0
    )
    drive = Alone(Load((1.0, 1.0), (), 100), policy)
    for i in range(40):
        drive.submit(i % 2, 100, tokens=100)
    gone = [drive.dispatch() for _ in range(22)]
    names = [ticket.flow.id for ticket in gone]
    assert names == ["f0"] * 10 + ["f1"] + ["f0"] * 10 + ["f1"]
    assert [ticket.cost for ticket in gone[9:11]] == [10.0, 100.0]


@pytest.mark.parametrize(("cached", "counter"), [(0.0, -10.0), (0.5, -55.0), (None, -100.0)])
def test_the_server_says_what_was_cached(cached, counter):
    """90 of 100 tokens were expected to be cached, and were: with `cached=0` the charge stands."""
    band = PriorityBand(0, fairness=DeficitLongestPrefix(lambda ticket: 10.0, quantum=1.0))
    controller = FlowController(bands=[band], cost=TokenCost(cached=cached))
    ticket = controller.submit(QueueItem(request_id="r", input_tokens=100), now=0.0)
    controller.step(now=0.0)
    assert ticket.cost == 10.0 and ticket.flow.counter == 1.0 - 10.0
    controller.completed(ticket, Usage(100, 0, 90), now=1.0)
    assert ticket.flow.counter == 1.0 + counter


def test_what_nobody_knows_is_not_cached():
    drive = Alone(Load((1.0,), (), 1), DeficitLongestPrefix(lambda ticket: float("nan")))
    ticket = drive.submit(0, 100, tokens=100)
    assert drive.dispatch() is ticket and ticket.cost == 100.0


def test_a_flow_keeps_to_its_server_until_its_balance_there_is_spent():
    told = []
    policy = DoubleDeficitLongestPrefix(
        lambda ticket: {"warm": 10.0, "cold": 100.0}, lambda t, server: told.append((t.number, server)), quantum=25.0
    )
    drive = Alone(Load((1.0,), (), 100), policy)
    for _ in range(8):
        drive.submit(0, 100, tokens=100)
    while drive.dispatch() is not None:
        pass
    assert [server for _, server in told] == ["warm"] * 3 + ["cold"] + ["warm"] * 3 + ["cold"] * 0 + ["warm"]
    assert [number for number, _ in told] == list(range(8))


def test_without_a_server_there_is_one_without_a_name():
    told = []
    drive = Alone(
        Load((1.0,), (), 100), DoubleDeficitLongestPrefix(lambda ticket: {}, lambda t, server: told.append(server))
    )
    ticket = drive.submit(0, 100, tokens=100)
    assert drive.dispatch() is ticket
    assert told == []


# --- measures ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.0, 1e9), max_size=20), st.floats(1e-3, 1e3))
def test_jain(values, factor):
    index, n = jain_index(values), len(values)
    assert 1 / max(n, 1) - 1e-9 <= index <= 1.0 + 1e-9
    if sum(values) > 1e-3:
        assert isclose(jain_index([factor * value for value in values]), index, rel_tol=1e-6)
        exact = [Fraction(value) for value in values]
        assert isclose(index, sum(exact) ** 2 / (n * sum(x * x for x in exact)), rel_tol=1e-9)
    if n > 1 and max(values) > 1e-3 and max(values) > 1.001 * min(values):
        assert index < 1.0


def test_jain_refuses_what_is_no_share():
    for value in (-1.0, float("nan"), inf):
        with pytest.raises(InvalidInputError, match="values"):
            jain_index([1.0, value])
    assert [jain_index([]), jain_index([5.0]), jain_index([0.0, 0.0])] == [1.0, 1.0, 1.0]


def test_waits_that_nobody_knows_count_in_no_mean():
    waits = WaitMeans()
    for wait in (1.0, float("nan"), 3.0):
        waits.add("a", wait)
    assert (waits.mean("a"), waits.known("a"), waits.dispatches("a")) == (2.0, 2, 3)
    assert (waits.mean("b"), waits.known("b"), waits.dispatches("b"), waits.index()) == (0.0, 0, 0, 1.0)
    waits.forget("a")
    assert waits.dispatches("a") == 0


# --- the measure itself --------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(load=loads(steps=40))
def test_the_worst_interval_is_the_worst_of_all(load):
    """Every pair of flows, every interval, one by one."""
    served = run(load, GlobalStrict(), service=charged)
    greatest = 0.0
    for f, g in combinations(range(len(load.weights)), 2):
        for begin in range(len(served)):
            ahead = 0.0
            for each in served[begin:]:
                both = (each.waiting[f], each.waiting[g])
                if -1 in both or both != (served[begin].waiting[f], served[begin].waiting[g]):
                    break
                ahead += {f: 1, g: -1}.get(each.flow, 0) * each.service / load.weights[each.flow]
                greatest = max(greatest, abs(ahead))
    assert isclose(worst(load, served, lambda f, g: 1.0), greatest)


def test_the_turnstile_lets_so_many_through():
    gate = Turnstile()
    controller = FlowController(gate=gate)
    for i in range(3):
        controller.submit(QueueItem(request_id=f"{i}"), now=0.0)
    gate.left = 2
    assert len(controller.step(now=0.0)) == 2
