"""What was sent since the last word counts: the gate's books against a slow twin, and what that does to a burst."""

from itertools import pairwise
from math import ceil, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    CapacityWeighted,
    ConcurrencyDetector,
    Dispatch,
    FlowController,
    Gate,
    Greatest,
    Hysteresis,
    InFlightCredit,
    Mean,
    PlacedGate,
    PriorityBand,
    PriorityHoldback,
    Quantile,
    QueueItem,
    RequestAwareGate,
    RequestSaturationGate,
    SaturationGate,
    Stages,
    Stale,
    StaticLimit,
    Ticket,
    UtilizationDetector,
)
from inferencesched.flowcontrol.flows import Band, Capacity, Flow
from inferencesched.flowcontrol.policies import FirstCome
from inferencesched.flowcontrol.stages import STAGE_LABEL
from inferencesched.signals import MAX_RUNNING
from tests.fleet import Burst, run
from tests.naive_saturation import NaiveGate

AGGREGATES = {"mean": Mean(), "weighted": CapacityWeighted(), "max": Greatest(), "quantile": Quantile(0.75)}
FLOW = Flow("f", Band(0, Capacity(), FirstCome(), None, {}, protected=True), FirstCome().queue(), 1.0)


def ticket(number, tokens=0, request=None):
    return Ticket(QueueItem(request_id=f"r{number}", input_tokens=tokens, request=request), FLOW, number, 1.0, 0.0)


# --- the numbers to hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scrape", [0.05, 0.2, 1.0])
def test_a_burst_does_not_overshoot(scrape):
    """8 servers of 32 slots, exponential service of mean 2 s, 800 arrivals within 100 ms, least known load, 4 s.

    Five may wait at a server, 40 at all: with credit never more than 1.1 of that do, and no fewer requests complete.
    """
    burst = Burst(servers=8, slots=32, mean=2.0, arrivals=800, within=0.1, until=4.0, scrape=scrape)
    for seed in range(10):
        with_credit = run(burst, seed, SaturationGate(credit=InFlightCredit(slots=32)))
        without = run(burst, seed, SaturationGate(credit=None))
        assert with_credit.peak <= 1.1 * 40
        assert with_credit.completed >= without.completed
        assert without.peak > 9 * 40  # what the credit is for


def test_a_burst_does_not_overshoot_where_nobody_tells_where_requests_go():
    for seed in range(3):
        outcome = run(Burst(scrape=1.0), seed, SaturationGate(credit=InFlightCredit(slots=32)), told=False)
        assert outcome.peak <= 1.1 * 40
        assert outcome.completed >= run(Burst(scrape=1.0), seed, SaturationGate(credit=None)).completed


def test_slots_can_be_learnt():
    """It costs requests until the servers were seen with a queue, and never many that wait."""
    outcome = run(Burst(scrape=0.05), 0, SaturationGate())
    told = run(Burst(scrape=0.05), 0, SaturationGate(credit=InFlightCredit(slots=32)))
    assert outcome.peak <= 1.1 * 40
    assert outcome.completed >= 0.9 * told.completed


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 7),
    st.sampled_from([0.05, 0.3, 1.0]),
    st.sampled_from([0.4, 0.5, 1.0, 1.5]),
    st.integers(0, 9),
)
def test_no_overshoot_whatever_the_fleet(servers, slots, depth, scrape, ceiling, seed):
    """FC9: what may wait at all servers is the ceiling's share of the thresholds; below it the last one was let go."""
    burst = Burst(servers, slots, 0.5, 10 * servers * (slots + depth), 0.2, 1.5, scrape)
    gate = SaturationGate(UtilizationDetector(depth), credit=InFlightCredit(slots=slots))
    outcome = run(burst, seed, gate, limits=StaticLimit(ceiling))
    assert outcome.peak <= ceil(ceiling * depth * servers)
    assert outcome.peak > ceiling * depth * servers - 1  # nor is anything held back for nothing


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5),
    st.sampled_from([0.3, 0.5, 1.0, 2.0]),
    st.randoms(use_true_random=False),
)
def test_credit_is_spent_exactly_wherever_requests_go(servers, ceiling, random):
    """FC9, server by server: told where each request went, the gate knows what waits."""
    pool = isched.InferencePool(signals=(MAX_RUNNING,))
    there = []
    for i, (slots, busy, queued) in enumerate(servers):
        running, waiting = min(busy, slots), queued if busy >= slots else 0
        pool.join(f"e{i}", values={MAX_RUNNING: slots})
        said = {isched.WAITING_QUEUE_SIZE: waiting, isched.RUNNING_REQUESTS: running, isched.KV_CACHE_USAGE: 0.0}
        pool.observe(f"e{i}", said, now=0.0)
        there.append(running + waiting)
    gate = SaturationGate(UtilizationDetector(4))
    gate.observe(pool.snapshot(), 0.0)

    def waiting_now():
        return sum(max(0, here - slots) for here, (slots, _, _) in zip(there, servers, strict=True))

    sent, most = [], ceiling * 4 * len(servers)
    while gate.level(0.0) < ceiling:
        assert waiting_now() < most
        each = ticket(len(sent))
        gate.dispatched(each, 0.0)
        place = random.randrange(len(servers))
        each.endpoint = f"e{place}"
        there[place] += 1
        gate.placed(each, 0.0)
        sent.append((each, place))
    assert waiting_now() >= most - 1e-9
    for each, place in sent:  # what ends makes room at once
        gate.finished(each, 0.0)
        there[place] -= 1
        assert gate.level(0.0) == pytest.approx(waiting_now() / 4 / len(servers))


# --- the books against a slow twin -------------------------------------------------------------------------------

READINGS = st.fixed_dictionaries(
    {
        "waiting": st.integers(0, 6).map(float) | st.just(nan),
        "running": st.integers(0, 6).map(float) | st.just(nan),
        "usage": st.sampled_from([0.0, 0.25, 0.5, 1.0, nan]),
    }
)
OPERATIONS = st.one_of(
    st.tuples(st.just("observe"), st.dictionaries(st.integers(0, 4), READINGS, max_size=5)),
    st.tuples(st.just("scrape"), st.dictionaries(st.integers(0, 4), READINGS, min_size=1, max_size=5)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.05, 0.1, 0.5, 3.0])),
    st.tuples(st.just("send"), st.integers(0, 300)),
    st.tuples(st.just("burst"), st.integers(2, 9)),
    st.tuples(st.just("place"), st.integers(0, 30), st.integers(0, 5)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("leave"), st.integers(0, 4)),
)
STALES = st.builds(
    Stale,
    st.just(1.0),
    st.sampled_from(["last", "saturated", "ignore"]),
    st.just(2.0),
    st.sampled_from([0.0, 0.5]),
)


class World:
    """A pool, a gate, and its twin."""

    def __init__(self, stale, name, lag, slots, by_stage):
        self.pool = isched.InferencePool()
        self.now = 0.0
        self.roles = ["prefill", "decode", "both", "", "encode"]
        for i in range(5):
            self.join(i)
        self.gate = SaturationGate(
            UtilizationDetector(stale=stale, aggregate=AGGREGATES[name]),
            credit=InFlightCredit(slots, lag),
            stages=Stages() if by_stage else None,
        )
        self.twin = NaiveGate(stale, name, 0.75, lag, slots, by_stage)
        self.tickets = []
        self.flying = []

    def join(self, i):
        values = {isched.CAPACITY_WEIGHT: 1.0 + i, isched.KV_BLOCKS: 10, isched.KV_BLOCK_SIZE: 100 if i % 2 else 0}
        self.pool.join(f"e{i}", labels={STAGE_LABEL: self.roles[i]} if self.roles[i] else {}, values=values)

    def scrape(self, readings):
        """The servers say something, and the gate does not hear it yet."""
        for i, said in readings.items():
            if f"e{i}" not in self.pool.names:
                self.join(i)
            columns = {
                isched.WAITING_QUEUE_SIZE: said["waiting"],
                isched.RUNNING_REQUESTS: said["running"],
                isched.KV_CACHE_USAGE: said["usage"],
            }
            self.pool.observe(f"e{i}", columns, now=self.now)

    def observe(self, readings):
        self.scrape(readings)
        endpoints = self.pool.snapshot()
        rows = []
        for place, name in enumerate(endpoints.names):
            i = int(name[1:])
            rows.append(
                {
                    "name": name,
                    "generation": int(endpoints.generations[place]),
                    "told": float(endpoints[isched.OBSERVED_AT][place]),
                    "waiting": float(endpoints[isched.WAITING_QUEUE_SIZE][place]),
                    "running": float(endpoints[isched.RUNNING_REQUESTS][place]),
                    "usage": float(endpoints[isched.KV_CACHE_USAGE][place]),
                    "inflight": float(endpoints[isched.INFLIGHT_REQUESTS][place]),
                    "kv_tokens": 1000.0 if i % 2 else 0.0,
                    "weight": 1.0 + i,
                    "role": self.roles[i],
                }
            )
        self.gate.observe(endpoints, self.now)
        self.twin.observe(rows, self.now)

    def do(self, operation):
        word, what, *more = operation
        if word == "observe":
            self.observe(what)
        elif word == "scrape":
            self.scrape(what)
        elif word == "burst":
            for _ in range(what):
                self.do(("send", 10))
        elif word == "wait":
            self.now += what
        elif word == "send":
            each = ticket(len(self.tickets), what)
            self.tickets.append(each)
            self.flying.append(each)
            self.gate.dispatched(each, self.now)
            self.twin.dispatched(each.number, what, self.now)
        elif word == "place" and self.flying:
            each = self.flying[what % len(self.flying)]
            each.endpoint = f"e{more[0]}"
            self.gate.placed(each, self.now)
            self.twin.placed(each.number, each.endpoint, each.item.tokens, self.now)
        elif word == "end" and self.flying:
            each = self.flying.pop(what % len(self.flying))
            self.gate.finished(each, self.now)
            self.twin.finished(each.number, each.item.tokens, self.now)
        elif word == "leave" and f"e{what}" in self.pool.names:
            self.pool.leave(f"e{what}")


@given(
    STALES,
    st.sampled_from(list(AGGREGATES)),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 4.0]),
    st.booleans(),
    st.lists(OPERATIONS, max_size=40),
)
def test_the_books_say_what_the_twin_says(stale, name, lag, slots, by_stage, operations):
    world = World(stale, name, lag, slots, by_stage)
    assert world.gate.level(0.0) == 1.0
    for operation in operations:
        world.do(operation)
        assert world.gate.level(world.now) == pytest.approx(world.twin.level(world.now), abs=1e-9)


@given(STALES, st.sampled_from(list(AGGREGATES)), st.booleans(), st.lists(OPERATIONS, max_size=30))
def test_what_goes_out_never_lowers_the_level_and_what_ends_never_raises_it(stale, name, by_stage, operations):
    """FC11, for the gate."""
    world = World(stale, name, 0.0, 4.0, by_stage)
    world.observe({i: {"waiting": 1.0, "running": 4.0, "usage": 0.1} for i in range(5)})
    for operation in operations:
        before = world.gate.level(world.now)
        world.do(operation)
        after = world.gate.level(world.now)
        if operation[0] in ("send", "burst"):
            assert after >= before - 1e-9
        elif operation[0] == "end":
            assert after <= before + 1e-9


def test_a_ticket_leaves_nothing_behind():
    world = World(Stale(), "mean", 0.0, 4.0, False)
    reading = {"waiting": 0.0, "running": 0.0, "usage": 0.0}
    world.observe(dict.fromkeys(range(5), reading))
    for round_ in range(50):
        for i in range(20):
            world.do(("send", i))
        for _ in range(20):
            world.do(("place", round_, round_ % 5))
            world.do(("end", 0))
        assert world.gate.level(world.now) == 0.0
    books = world.gate._books
    assert not world.gate._counted
    assert not any(server.sent or server.done for server in books.servers)
    assert all(len(stage._heap) <= 4 * 5 + 64 for stage in books.stages)


# --- in the flow controller --------------------------------------------------------------------------------------


def observed(*servers, slots=4.0, now=0.0):
    """(waiting, running) each."""
    pool = isched.InferencePool(signals=(MAX_RUNNING,))
    for i, (waiting, running) in enumerate(servers):
        pool.join(f"e{i}", values={MAX_RUNNING: slots})
        said = {isched.WAITING_QUEUE_SIZE: waiting, isched.RUNNING_REQUESTS: running, isched.KV_CACHE_USAGE: 0.0}
        pool.observe(f"e{i}", said, now=now)
    return pool


def submitted(controller, count, now=0.0, **said):
    return [controller.submit(QueueItem(request_id=f"r{i}", **said), now=now) for i in range(count)]


def went(events):
    return [event.ticket for event in events if isinstance(event, Dispatch)]


def test_gates_are_gates():
    gate: Gate = SaturationGate()
    assert isinstance(gate, PlacedGate) and not isinstance(gate, RequestAwareGate)
    assert isinstance(RequestSaturationGate(), RequestAwareGate)


def test_nothing_goes_before_anything_is_known():
    controller = FlowController(gate=SaturationGate())
    submitted(controller, 3)
    assert went(controller.step(now=0.0)) == []
    pool = isched.InferencePool()
    pool.join("silent")
    controller.observe(pool.snapshot(), now=0.0)
    assert went(controller.step(now=0.0)) == []
    pool.observe("silent", {isched.WAITING_QUEUE_SIZE: 0, isched.RUNNING_REQUESTS: 0}, now=1.0)
    controller.observe(pool.snapshot(), now=1.0)
    assert went(controller.step(now=1.0))


def test_the_controller_tells_the_gate_where_a_request_went():
    """All to one server: its queue is what waits, although another would have had room."""
    controller = FlowController(gate=SaturationGate(UtilizationDetector(2), credit=InFlightCredit()))
    controller.observe(observed((0, 0), (0, 0), slots=2.0).snapshot(), now=0.0)
    submitted(controller, 20)
    first = went(controller.step(now=0.0))
    assert len(first) == 2 * 2 + 2 * 2
    for each in first:
        controller.dispatched(each, "e0", now=0.0)
    assert controller._gate.level(0.0) == pytest.approx((8 - 2) / 2 / 2)
    assert went(controller.step(now=0.0)) == []
    for each in first[:3]:
        controller.completed(each, now=0.1)
    assert len(went(controller.step(now=0.1))) == 3  # 5 there: 3 wait; the empty one takes 2, and one waits


def test_lower_bands_stop_earlier_between_observations_too():
    bands = [PriorityBand(p) for p in (10, 0)]
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4))
    controller = FlowController(bands=bands, gate=gate, limits=PriorityHoldback(0.5))
    controller.observe(observed((0, 4)).snapshot(), now=0.0)
    submitted(controller, 20, priority=0)
    assert len(went(controller.step(now=0.0))) == 5
    submitted(controller, 20, priority=10)
    assert len(went(controller.step(now=0.0))) == 5
    assert went(controller.step(now=0.0)) == []


def test_what_was_observed_is_not_counted_twice_and_what_was_not_is():
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4, lag=0.1))
    pool = observed((0, 4))
    gate.observe(pool.snapshot(), 0.0)
    early, late = ticket(1), ticket(2)
    gate.dispatched(early, 0.5)
    gate.dispatched(late, 0.95)
    assert gate.level(0.95) == 0.2
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 1}, now=1.0)
    gate.observe(pool.snapshot(), 1.0)
    assert gate.level(1.0) == 0.2  # the late one may not be among what the server told
    gate.observe(pool.snapshot(), 1.5)  # the same word again
    assert gate.level(1.5) == 0.2
    gate.finished(early, 1.05)  # nor may its end
    assert gate.level(1.5) == 0.2
    gate.finished(late, 1.6)
    assert gate.level(1.6) == 0.1


def test_an_end_that_an_observation_may_show_is_not_counted_twice():
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4, lag=0.1))
    pool = observed((6, 4))
    gate.observe(pool.snapshot(), 0.0)
    each = ticket(1)
    gate.dispatched(each, 0.1)
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 7}, now=0.5)
    gate.observe(pool.snapshot(), 0.5)
    gate.finished(each, 1.15)
    assert gate.level(1.15) == 0.6
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 6}, now=1.1)
    gate.observe(pool.snapshot(), 1.2)  # heard of late: told less than the lag before the gateway knew of the end
    assert gate.level(1.2) == 0.6


def test_a_request_is_not_at_a_server_before_it_was_sent_there():
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4))
    pool = observed((0, 4))
    gate.observe(pool.snapshot(), 0.0)
    each = ticket(1)
    gate.dispatched(each, 0.1)
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 0}, now=0.5)
    each.endpoint = "e0"
    gate.placed(each, 1.0)
    gate.observe(pool.snapshot(), 1.1)
    assert gate.level(1.1) == 0.1


def test_what_happens_at_the_time_of_an_observation_is_before_or_after_it_as_it_was_told():
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4))
    pool = observed((1, 4), now=1.0)
    before, after = ticket(1), ticket(2)
    gate.observe(observed((0, 4)).snapshot(), 0.0)
    gate.observe(pool.snapshot(), 1.0)
    gate.dispatched(after, 1.0)
    assert gate.level(1.0) == 0.2
    gate.observe(pool.snapshot(), 1.0)  # the same word again
    assert gate.level(1.0) == 0.2
    gate.dispatched(before, 2.0)
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 3}, now=2.0)
    gate.observe(pool.snapshot(), 2.0)
    assert gate.level(2.0) == 0.3


def test_how_many_a_server_runs_is_learnt_from_its_queue():
    gate = SaturationGate(UtilizationDetector(10))
    pool = observed((0, 3), slots=nan)
    gate.observe(pool.snapshot(), 0.0)
    for i in range(4):
        gate.dispatched(ticket(i), 0.5)
    assert gate.level(0.5) == 0.1  # it ran three without a queue: it may run six
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 2, isched.RUNNING_REQUESTS: 5}, now=1.0)
    gate.observe(pool.snapshot(), 1.0)
    assert gate.level(1.0) == 0.2
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 0, isched.RUNNING_REQUESTS: 4}, now=2.0)
    gate.observe(pool.snapshot(), 2.0)
    for i in range(10, 13):
        gate.dispatched(ticket(i), 2.5)
    assert gate.level(2.5) == 0.2  # five, and no more


def test_tokens_fill_a_cache_whose_size_is_known():
    pool = isched.InferencePool()
    pool.join("e0", values={isched.KV_BLOCKS: 100, isched.KV_BLOCK_SIZE: 16})
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 0, isched.RUNNING_REQUESTS: 0, isched.KV_CACHE_USAGE: 0.3}, now=0.0)
    gate = SaturationGate(credit=InFlightCredit(slots=64))
    gate.observe(pool.snapshot(), 0.0)
    big = ticket(1, tokens=800)
    gate.dispatched(big, 0.0)
    assert gate.level(0.0) == pytest.approx((0.3 + 0.5) / 0.8)
    gate.finished(big, 1.0)
    assert gate.level(1.0) == pytest.approx(0.3 / 0.8)


def test_requests_in_flight_count_once_with_the_pools_own_books():
    """The concurrency detector reads what the pool has booked: a snapshot of now knows all that was placed."""
    pool = isched.InferencePool()
    pool.join("e0")
    gate = SaturationGate(ConcurrencyDetector(max_concurrency=4), credit=InFlightCredit(lag=0.2))
    controller = FlowController(gate=gate)
    controller.observe(pool.snapshot(), now=0.0)
    submitted(controller, 9)
    first = went(controller.step(now=0.0))
    assert len(first) == 4
    booked = []
    for each in first:
        booked.append(pool.reserve("e0", request_id=each.request_id, tokens=0, now=0.0))
        controller.dispatched(each, "e0", now=0.0)
    assert gate.level(0.0) == 1.0
    controller.observe(pool.snapshot(), now=0.0)
    assert gate.level(0.0) == 1.0
    booked[0].complete(now=0.5)
    controller.completed(first[0], now=0.5)
    assert gate.level(0.5) == 0.75
    controller.observe(pool.snapshot(), now=0.5)
    assert gate.level(0.5) == 0.75
    assert len(went(controller.step(now=0.5))) == 1


def test_a_server_that_left_takes_its_credit_along():
    pool = observed((0, 4), (0, 4))
    gate = SaturationGate(UtilizationDetector(10), credit=InFlightCredit(slots=4))
    gate.observe(pool.snapshot(), 0.0)
    each = ticket(1)
    gate.dispatched(each, 0.0)
    each.endpoint = "e1"
    gate.placed(each, 0.0)
    assert gate.level(0.0) == 0.05
    pool.leave("e1")
    gate.observe(pool.snapshot(), 0.0)
    assert gate.level(0.0) == 0.0
    gate.finished(each, 0.5)
    assert gate.level(0.5) == 0.0
    other = ticket(2)
    other.endpoint = "nowhere"
    gate.dispatched(other, 0.5)
    gate.placed(other, 0.5)
    assert gate.level(0.5) == 0.1


def test_a_request_counts_in_each_stage():
    pool = isched.InferencePool(signals=(MAX_RUNNING,))
    for name, role in (("p", "prefill"), ("d0", "decode"), ("d1", "decode")):
        pool.join(name, labels={STAGE_LABEL: role}, values={MAX_RUNNING: 1})
        pool.observe(
            name, {isched.WAITING_QUEUE_SIZE: 0, isched.RUNNING_REQUESTS: 1, isched.KV_CACHE_USAGE: 0}, now=0.0
        )
    gate = SaturationGate(UtilizationDetector(10), stages=Stages())
    gate.observe(pool.snapshot(), 0.0)
    each = ticket(1)
    gate.dispatched(each, 0.0)
    assert gate.level(0.0) == 0.1  # of prefill; decode has 0.05
    each.endpoint = "d1"
    gate.placed(each, 0.0)
    assert gate.level(0.0) == 0.1
    gate.finished(each, 0.0)
    assert gate.level(0.0) == 0.0


def test_hysteresis_keeps_a_gate_shut_until_there_is_room():
    gate = SaturationGate(UtilizationDetector(4), credit=InFlightCredit(slots=4), hysteresis=Hysteresis(0.5, 1.0))
    controller = FlowController(gate=gate)
    controller.observe(observed((0, 4)).snapshot(), now=0.0)
    submitted(controller, 20)
    first = went(controller.step(now=0.0))
    assert len(first) == 4
    counts = []
    for each in first:
        controller.completed(each, now=1.0)
        counts.append(len(went(controller.step(now=1.0))))
    assert counts == [0, 0, 3, 0]  # one of four is left; then three go, and it is shut again


# --- for this very request ---------------------------------------------------------------------------------------


def asking(subset):
    return isched.InferenceRequest(request_id="q", headers={"x-gateway-destination-endpoint-subset": subset})


def test_a_full_subset_holds_up_its_own_only():
    gate = RequestSaturationGate(UtilizationDetector(5))
    controller = FlowController(gate=gate)
    controller.observe(observed((30, 4), (0, 4)).snapshot(), now=0.0)
    assert gate.saturation(0.0) == 3.0
    waiting = controller.submit(QueueItem(request_id="full", flow="a", request=asking("e0")), now=0.0)
    free = controller.submit(QueueItem(request_id="free", flow="b", request=asking("e1")), now=0.0)
    anywhere = controller.submit(QueueItem(request_id="any", flow="c", request=isched.InferenceRequest(request_id="z")), now=0.0)  # fmt: skip
    silent = controller.submit(QueueItem(request_id="silent", flow="d"), now=0.0)
    assert went(controller.step(now=0.0)) == [free]
    assert waiting.waiting and anywhere.waiting and silent.waiting


def test_each_stage_of_a_request_must_have_room():
    pool = isched.InferencePool()
    for name, role, waiting in (("p0", "prefill", 9), ("p1", "prefill", 0), ("d0", "decode", 0), ("e0", "encode", 9)):
        pool.join(name, labels={STAGE_LABEL: role})
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: waiting, isched.RUNNING_REQUESTS: 1}, now=0.0)
    gate = RequestSaturationGate(UtilizationDetector(5), stages=Stages(), credit=None)
    gate.observe(pool.snapshot(), 0.0)
    admitted = {said: gate.admits(ticket(1, request=asking(said)), 1.0, 0.0) for said in ("p0,d0", "p1,d0", "d0", "e0")}
    assert admitted == {"p0,d0": False, "p1,d0": True, "d0": True, "e0": True}
    assert not gate.admits(ticket(1, request=asking("p0,p1")), 0.9, 0.0)
    assert gate.admits(ticket(1, request=asking("p0,p1")), 0.91, 0.0)


@given(STALES, st.sampled_from(list(AGGREGATES)), st.lists(OPERATIONS, max_size=25), st.data())
def test_what_all_have_in_common_is_the_least(stale, name, operations, data):
    """No subset is below the level, and each is as full as a gate of its own says that looks at nothing else."""
    world = World(stale, name, 0.0, 4.0, False)
    gate = RequestSaturationGate(UtilizationDetector(stale=stale, aggregate=AGGREGATES[name]), credit=None)
    for operation in operations:
        world.do(operation)
    world.observe({0: {"waiting": 1.0, "running": 1.0, "usage": 0.5}})
    endpoints = world.pool.snapshot()
    gate.observe(endpoints, world.now)
    chosen = data.draw(st.sets(st.sampled_from(endpoints.names), min_size=1))
    each = ticket(0, request=asking(",".join(chosen)))
    own = SaturationGate(UtilizationDetector(stale=stale, aggregate=AGGREGATES[name]), credit=None)
    own.observe(endpoints.where(np.isin(endpoints.names, list(chosen))), world.now)
    level = own.level(world.now)
    if stale.assume != "ignore" or len(chosen) == len(endpoints):  # who else is fresh decides who is ignored
        assert gate.admits(each, level + 1e-9, world.now)
        assert not gate.admits(each, level - 1e-9, world.now)
    assert gate.level(world.now) <= gate.saturation(world.now) + 1e-9
    for low, high in pairwise(sorted((level - 0.5, level, level + 0.5))):
        assert gate.admits(each, high, world.now) >= gate.admits(each, low, world.now)


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: InFlightCredit(slots=0), "slots"),
        (lambda: InFlightCredit(slots=nan), "slots"),
        (lambda: InFlightCredit(lag=-0.1), "lag"),
        (lambda: InFlightCredit(lag=nan), "lag"),
    ],
)
def test_bad_parameters_are_refused(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter
