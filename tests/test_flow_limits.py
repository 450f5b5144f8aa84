"""Ceilings of bands (FC6), and limits that learn from times to the first token."""

from fractions import Fraction
from itertools import pairwise
from math import inf, log10, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    AdaptiveGate,
    Aimd,
    Dispatch,
    FlowController,
    Gradient2,
    InFlightCredit,
    LimitState,
    PlacedGate,
    PriorityBand,
    PriorityHoldback,
    QueueItem,
    SaturationGate,
    SoftCeiling,
    SoftReflectiveCeiling,
    StaticLimit,
    UtilizationDetector,
    Vegas,
)
from tests import naive_saturation as naive

PRIORITIES = st.lists(st.integers(-100, 100), max_size=7).map(lambda each: sorted(each, reverse=True))
SATURATIONS = st.floats(0, 2) | st.sampled_from([0.0, 0.5, 0.55, 0.6, 0.75, 0.99, 1.0])
BOUNDS = st.tuples(st.floats(0, 0.99), st.floats(0.001, 1)).filter(lambda pair: pair[0] < pair[1])


# --- FC6: ceilings -----------------------------------------------------------------------------------------------


@given(BOUNDS, st.sampled_from(["rank", "value"]), PRIORITIES, SATURATIONS)
def test_holdback_is_as_written_down_and_never_rises(bounds, domain, priorities, saturation):
    low, high = bounds
    assert not PriorityHoldback(low, high, domain).ceilings(saturation, [])
    ceilings = list(PriorityHoldback(low, high, domain).ceilings(saturation, priorities))
    assert ceilings == pytest.approx(naive.holdback(low, high, domain, priorities) if priorities else [])
    assert all(above >= below - 1e-12 for above, below in pairwise(ceilings))
    assert all(low - 1e-12 <= ceiling <= high + 1e-12 for ceiling in ceilings)
    if ceilings:
        assert ceilings[0] == high


@given(BOUNDS, st.lists(st.integers(-100, 100), min_size=2, max_size=7, unique=True), st.integers(1, 50))
def test_by_value_a_higher_priority_is_never_held_back_more(bounds, priorities, more):
    """Raising one priority, with the ends where they are, never lowers its ceiling."""
    ordered = sorted(priorities, reverse=True)
    policy = PriorityHoldback(*bounds, "value")
    before = dict(zip(ordered, policy.ceilings(0.5, ordered), strict=True))
    for priority in ordered[1:-1]:
        raised = min(priority + more, ordered[0])
        again = sorted([raised, *(p for p in ordered if p != priority)], reverse=True)
        after = dict(zip(again, policy.ceilings(0.5, again), strict=True))
        assert after[raised] >= before[priority] - 1e-12


@given(st.lists(SATURATIONS, max_size=60), PRIORITIES)
def test_soft_ceilings_never_rise_and_never_shut_the_first(saturations, priorities):
    for policy in (SoftReflectiveCeiling(), SoftCeiling(), StaticLimit(0.7)):
        for saturation in saturations:
            ceilings = list(policy.ceilings(saturation, priorities))
            assert len(ceilings) == len(priorities)
            assert all(above >= below for above, below in pairwise(ceilings))
            if ceilings and not isinstance(policy, StaticLimit):
                assert ceilings[0] == 1.0
                assert set(ceilings) <= {0.0, 1.0}


@given(st.lists(st.floats(0.5, 1) | st.sampled_from([0.5, 0.55, 0.75, 0.999]), max_size=200))
def test_a_soft_ceiling_is_open_as_often_as_is_meant(saturations):
    """Whatever the saturation does in between, the times it was open are less than 1 off the sum of the shares."""
    policy, opens, shares = SoftCeiling(), 0, 0.0
    for saturation, twin in zip(saturations, naive.soft_opens(saturations), strict=True):
        ceiling = policy.ceilings(saturation, [1, 0])[1]
        opens += ceiling > 0
        shares += SoftCeiling.share(saturation)
        assert opens == twin
        assert -1 < opens - shares < 1e-6


@pytest.mark.parametrize("tenths", range(50, 60))
def test_there_is_no_dead_zone(tenths):
    """From 0.5 to 0.6 llm-d's lower bands are always open; here they are open in (1 - s) / s of the calls."""
    saturation = tenths / 100
    theirs, ours = SoftReflectiveCeiling(), SoftCeiling()
    opens = [sum(policy.ceilings(saturation, [1, 0])[1] for _ in range(1000)) for policy in (theirs, ours)]
    assert opens[0] == 1000
    assert opens[1] == pytest.approx(1000 * float(Fraction(100 - tenths, tenths)), abs=1)


@given(st.floats(0, 2), st.floats(0, 2))
def test_the_fuller_the_more_seldom(one, other):
    low, high = sorted((one, other))
    assert SoftCeiling.share(high) <= SoftCeiling.share(low)


def test_a_band_below_its_reflected_ceiling_is_open_at_every_call():
    policy = SoftCeiling()
    seen = [policy.ceilings(0.65, [2, 1, 0]) for _ in range(50)]  # reflected: 1, 0.675, 0.35
    assert all(ceilings[1] == 1.0 for ceilings in seen)
    assert 0 < sum(ceilings[2] for ceilings in seen) < 50


def test_lower_bands_trickle_through_a_busy_pool():
    """In the controller: at a saturation of 0.75 the lowest band goes at every third step."""
    pool = isched.InferencePool()
    pool.join("e0")
    pool.observe("e0", {isched.WAITING_QUEUE_SIZE: 75, isched.RUNNING_REQUESTS: 1}, now=0.0)
    bands = [PriorityBand(1), PriorityBand(0)]
    gate = SaturationGate(UtilizationDetector(100), credit=None)
    controller = FlowController(bands=bands, gate=gate, limits=SoftCeiling())
    controller.observe(pool.snapshot(), now=0.0)
    went = []
    for i in range(9):
        controller.submit(QueueItem(request_id=f"r{i}"), now=0.0)
        went.append(len(controller.step(now=0.0)))
    assert went == [0, 0, 3, 0, 0, 3, 0, 0, 3]


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: PriorityHoldback(-0.1), "min_ceiling"),
        (lambda: PriorityHoldback(1.0), "min_ceiling"),
        (lambda: PriorityHoldback(nan), "min_ceiling"),
        (lambda: PriorityHoldback(0.5, 0.0), "max_ceiling"),
        (lambda: PriorityHoldback(0.5, 1.1), "max_ceiling"),
        (lambda: PriorityHoldback(0.5, 0.5), "min_ceiling"),
        (lambda: PriorityHoldback(0.5, domain="tier"), "domain"),
        (lambda: Aimd(timeout=0.0), "timeout"),
        (lambda: Aimd(backoff=1.0), "backoff"),
        (lambda: Aimd(initial=5.0), "initial"),
        (lambda: Aimd(least=0.5), "least"),
        (lambda: Aimd(least=30.0, most=20.0), "most"),
        (lambda: Aimd(most=inf), "most"),
        (lambda: Gradient2(tolerance=0.5), "tolerance"),
        (lambda: Gradient2(smoothing=0.0), "smoothing"),
        (lambda: Gradient2(queue=nan), "queue"),
        (lambda: Gradient2(window=0), "window"),
        (lambda: Vegas(probe_every=0.0), "probe_every"),
    ],
)
def test_bad_parameters_are_refused(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter


# --- limits that learn -------------------------------------------------------------------------------------------

ALGORITHMS = [Aimd(timeout=2.0, least=2.0), Gradient2(least=2.0), Vegas(), Vegas(probe_every=0.2, most=50.0)]
EVERY = st.sampled_from(ALGORITHMS)
TIMES = st.floats(0.001, 20) | st.sampled_from([0.0, 0.5, 2.0])
SAMPLES = st.lists(st.tuples(TIMES, st.floats(0, 1.2), st.booleans()), max_size=60)


def walked(algorithm, samples):
    """The states after each sample; `share` of the limit is in flight."""
    state = algorithm.start()
    for seconds, share, dropped in samples:
        before = state
        state = algorithm.after(state, seconds, int(share * state.limit), dropped and share > 1)
        yield before, state, int(share * before.limit), dropped and share > 1


@given(EVERY, SAMPLES)
def test_a_limit_stays_within_its_bounds_and_does_not_grow_unused(algorithm, samples):
    for before, after, inflight, dropped in walked(algorithm, samples):
        assert algorithm.least <= after.limit <= algorithm.most
        if 2 * inflight < before.limit or dropped:
            assert after.limit <= before.limit


@given(EVERY, SAMPLES, TIMES, TIMES, st.floats(0, 1.2))
def test_a_longer_time_never_makes_a_higher_limit(algorithm, samples, one, other, share):
    state = algorithm.start()
    for _, after, _, _ in walked(algorithm, samples):
        state = after
    inflight, (short, long) = int(share * state.limit), sorted((one, other))
    limits = [algorithm.after(state, seconds, inflight).limit for seconds in (short, long)]
    assert limits[1] <= limits[0] + 1e-9
    assert algorithm.after(state, short, inflight, dropped=True).limit <= limits[1] + 1e-9


@given(EVERY, SAMPLES, st.floats(0.01, 10))
def test_a_constant_time_leads_somewhere(algorithm, samples, seconds):
    state = algorithm.start()
    for _, after, _, _ in walked(algorithm, samples):
        state = after
    limits = []
    for _ in range(2500):
        state = algorithm.after(state, seconds, int(state.limit))
        limits.append(state.limit)
    assert max(limits[-200:]) - min(limits[-200:]) < 0.01


def test_aimd_by_hand():
    aimd = Aimd(timeout=1.0, initial=20.0, least=10.0, most=22.0)
    limits, state = [], aimd.start()
    for seconds, inflight in ((0.5, 10), (0.5, 10), (0.5, 11), (0.5, 11), (1.0, 11), (1.1, 0), (0.2, 9), (9.0, 9)):
        state = aimd.after(state, seconds, inflight)
        limits.append(state.limit)
    assert limits == [21.0, 21.0, 22.0, 22.0, 22.0, 19.0, 19.0, 17.0]
    assert aimd.after(state, nan, 9, dropped=True).limit == 15.0


def test_gradient_by_hand():
    gradient = Gradient2()
    state = gradient.after(LimitState(100.0, 1.0, 10), 3.0, 80)
    usual = 1.0 + 2 / 601 * 2.0
    assert state == LimitState(pytest.approx(0.8 * 100 + 0.2 * (1.5 * usual / 3 * 100 + 4)), pytest.approx(usual), 11)
    assert gradient.after(LimitState(100.0, 1.0, 10), 1.2, 80).limit == pytest.approx(100 + 0.2 * 4)
    assert gradient.after(LimitState(100.0, 1.0, 10), 50.0, 80).limit == pytest.approx(0.8 * 100 + 0.2 * 54)
    quick = gradient.after(LimitState(100.0, 1.0, 10), 0.1, 10)  # unused: the usual time moves, and shrinks
    assert quick == LimitState(100.0, pytest.approx(0.95 * (1 - 2 / 601 * 0.9)), 11)
    warm = gradient.start()
    for seconds in (1.0, 3.0):
        warm = gradient.after(warm, seconds, 0)
    assert warm.baseline == 2.0


def test_vegas_by_hand():
    vegas, step = Vegas(), log10(200)
    for seconds, change in ((1.0, 6), (1.005, 6), (1.02, 1), (1.05, 0), (1.2, -1), (0.5, 6)):
        assert vegas.after(LimitState(200.0, 1.0, 0), seconds, 150).limit == pytest.approx(200 + change * step)
    assert vegas.after(LimitState(200.0, 1.0, 0), 1.2, 99).limit == 200.0
    assert vegas.after(LimitState(200.0, 1.0, 0), nan, 0, dropped=True).limit == pytest.approx(200 - step)
    assert vegas.after(LimitState(200.0, 1.0, 5999), 9.0, 150) == LimitState(200.0, 9.0, 0)
    assert vegas.after(LimitState(1.0, 1.0, 0), 1.0, 1).limit == 7.0  # a step is at least 1


def test_vegas_finds_what_the_servers_can_do():
    """64 at once take 0.5 s to the first token, more queue: the limit settles near that, from below and from above."""
    vegas = Vegas(probe_every=1e6)
    for start in (20.0, 400.0):
        state = LimitState(start, 0.5, 10)
        limits = []
        for _ in range(2000):
            inflight = int(state.limit)
            state = vegas.after(state, 0.5 * max(1.0, inflight / 64), inflight)
            limits.append(state.limit)
        assert min(limits[-500:]) >= 64 and max(limits[-500:]) <= 64 * 1.5


def test_a_gradient_answers_to_a_change():
    gradient = Gradient2(initial=100.0)
    state = gradient.start()
    for _ in range(50):
        state = gradient.after(state, 0.5, int(state.limit))
    calm = state.limit
    for _ in range(30):
        state = gradient.after(state, 2.0, int(state.limit))
    assert state.limit < calm / 3
    for _ in range(200):
        state = gradient.after(state, 0.5, int(state.limit))
    assert state.limit > calm * 0.9


# --- as a gate ---------------------------------------------------------------------------------------------------


def submitted(controller, count, now=0.0):
    return [controller.submit(QueueItem(request_id=f"r{i}"), now=now) for i in range(count)]


def went(events):
    return [event.ticket for event in events if isinstance(event, Dispatch)]


def test_an_adaptive_gate_keeps_to_its_limit():
    gate = AdaptiveGate(Aimd(timeout=1.0, initial=4.0, least=1.0))
    controller = FlowController(gate=gate)
    tickets = submitted(controller, 40)
    assert went(controller.step(now=0.0)) == tickets[:4]
    gate.first_token(tickets[0], now=0.5)
    assert (gate.limit, len(gate.inflight)) == (5.0, 4)
    gate.first_token(tickets[1], now=1.5)
    assert gate.limit == 4.0
    gate.dropped(tickets[2], now=1.5)
    assert gate.limit == 3.0
    controller.completed(tickets[2], now=1.6)
    assert went(controller.step(now=1.6)) == []
    controller.completed(tickets[3], now=1.7)
    assert went(controller.step(now=1.7)) == [tickets[4]]
    gate.first_token(tickets[3], now=1.8)  # it has ended: nothing is learnt
    gate.dropped(tickets[9], now=1.8)  # it waits still
    assert gate.limit == 3.0


def test_a_first_token_before_its_dispatch_is_refused():
    gate = AdaptiveGate(Gradient2())
    controller = FlowController(gate=gate)
    [each] = submitted(controller, 1, now=5.0)
    controller.step(now=5.0)
    for now in (4.0, nan, inf):
        with pytest.raises(InvalidInputError, match="now"):
            gate.first_token(each, now=now)
    assert gate.limit == 20.0


def test_an_adaptive_gate_and_another_both_have_to_be_open():
    pool = isched.InferencePool()
    for name in ("a", "b"):
        pool.join(name)
        pool.observe(
            name, {isched.WAITING_QUEUE_SIZE: 0, isched.RUNNING_REQUESTS: 0, isched.KV_CACHE_USAGE: 0.0}, now=0.0
        )
    inner = SaturationGate(UtilizationDetector(2), credit=InFlightCredit(slots=1))
    gate = AdaptiveGate(Aimd(initial=5.0, least=1.0), inner)
    assert isinstance(gate, PlacedGate)
    controller = FlowController(gate=gate)
    tickets = submitted(controller, 20)
    assert went(controller.step(now=0.0)) == []  # nothing is known of the servers
    controller.observe(pool.snapshot(), now=0.0)
    assert went(controller.step(now=0.0)) == tickets[:5]
    for each in tickets[:5]:
        controller.dispatched(each, "a", now=0.0)
    assert gate.level(0.0) == inner.level(0.0) == 1.0  # 4 wait at a, and 2 were meant to at each: as full as the limit
    for each in tickets[:5]:
        controller.completed(each, now=1.0)
    assert inner.level(1.0) == 0.0
    assert len(went(controller.step(now=1.0))) == 5
