"""Is each published rule what its source says? Hand-computed examples, each written out; and the contracts of the kinds."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    PREFIX_MATCH,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    CycleState,
    InferencePool,
    InferenceRequest,
    MaxScorePicker,
    Scheduler,
    SchedulingProfile,
    WeightedScorer,
    zoo,
)
from inferencesched.errors import InvalidInputError
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.signals import PREDICTED_TPOT, PREDICTED_TTFT
from inferencesched.testing import all_checks_of

CYCLE = CycleState(0.0, np.random.default_rng(0), 0)
ASK = InferenceRequest(request_id="r", input_tokens=1000)


def fleet(count=3, request=ASK, **_):
    """A pool of so many servers."""
    pool = InferencePool()
    for i in range(count):
        pool.join(f"s{i}", values={KV_BLOCKS: 100.0, KV_BLOCK_SIZE: 10.0})
    return pool


def seen(columns):
    """The snapshot of a pool with these columns."""
    count = len(next(iter(columns.values())))
    return fleet(count).snapshot().with_columns({signal: np.array(column, float) for signal, column in columns.items()})


def cost(scorer, columns, request=ASK):
    return scorer.cost(request, seen(columns), CYCLE).tolist()


def score(scorer, columns, request=ASK):
    return scorer.score(request, seen(columns), CYCLE).tolist()


# --- one formula ---------------------------------------------------------------------------------------------------

LOAD = {INFLIGHT_TOKENS: [500, 0, 2000], PREFIX_TOKENS: [600, 0, 1000], INFLIGHT_REQUESTS: [2, 3, 1]}


def test_lmetric_multiplies_prefill_work_and_requests():
    # (500 + 400) 2, (0 + 1000) 3, (2000 + 0) 1
    assert cost(zoo.LMetricScorer(), LOAD) == [1800, 3000, 2000]
    assert score(zoo.LMetricScorer(), LOAD) == [1.0, 0.0, pytest.approx(1000 / 1200)]


def test_lmetric_takes_an_idle_server_whatever_it_has_cached():
    assert cost(zoo.LMetricScorer(), LOAD | {INFLIGHT_REQUESTS: [2, 0, 1]})[1] == 0


def test_least_prefill_work_adds():
    assert cost(zoo.PrefillWorkScorer(), LOAD) == [900, 1000, 2000]


def test_an_unknown_match_covers_nothing_and_no_more_than_the_prompt_is_covered():
    columns = LOAD | {PREFIX_TOKENS: [nan, 4000, 1000]}
    assert cost(zoo.PrefillWorkScorer(), columns) == [1500, 0, 2000]


BLOCKS = {
    INFLIGHT_TOKENS: [640, 0, 1280],
    PREFIX_TOKENS: [320, 0, 640],
    zoo.ACTIVE_BLOCKS: [20, 10, 30],
    INFLIGHT_REQUESTS: [2, 1, 3],
}
TEN = InferenceRequest(request_id="r", input_tokens=640)  # ten blocks of 64


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, [20 - 5 + 20, 10 + 10, 30 - 10 + 30]),
        ({"credit": 0.0}, [40, 20, 60]),
        ({"credit": 2.0}, [20 - 10 + 20, 20, 30 - 20 + 30]),
        ({"prefill_scale": 4.0}, [60 + 20, 40 + 10, 80 + 30]),
        ({"request_weight": 8.0}, [35 + 16, 20 + 8, 50 + 24]),
        # excess of prefill in prompts: 1, 0, 2
        ({"decay": 1.0}, [20 - 5 / 2 + 20, 20, 30 - 10 / 3 + 30]),
        ({"credit": 9.0}, [0 + 20, 20, 0 + 30]),  # never below nothing
    ],
)
def test_dynamos_router_counts_blocks_to_prefill_and_to_decode(parameters, expected):
    assert cost(zoo.KvRouterScorer(**parameters), BLOCKS, TEN) == pytest.approx(expected)


def test_vllms_coordinator_counts_a_waiting_request_four_times_and_its_own():
    columns = {WAITING_QUEUE_SIZE: [2, 0, nan], RUNNING_REQUESTS: [1, 10, 0], zoo.SENT_SINCE: [0, 3, 0]}
    assert cost(zoo.CoordinatorScorer(), columns)[:2] == [9, 22]
    assert score(zoo.CoordinatorScorer(), columns) == [1.0, 0.0, 0.0]


def test_smgs_least_load_is_seconds_and_a_barrier():
    columns = {WAITING_QUEUE_SIZE: [2, 0, 0], INFLIGHT_TOKENS: [1000, 500, 0], KV_CACHE_USAGE: [0.5, 0.9, 1.0]}
    # (2 1024 + 1000) / 2000 + 0.15 / 1; 500 / 2000 + 0.15 * 9; 0.15 * 999
    assert cost(zoo.KvBarrierScorer(), columns) == pytest.approx([1.524 + 0.15, 0.25 + 1.35, 149.85])


def test_llumnix_has_free_blocks_a_request():
    columns = {CONTEXT_TOKENS: [400, 0, 1200], INFLIGHT_REQUESTS: [2, 0, 4]}
    # 60 free blocks for two, 100 for nobody, 20 too few for four
    assert cost(zoo.FreenessScorer(), columns) == [-30, -100, 5]


def test_the_forecast_decides_alone_for_mooncake():
    assert score(zoo.PredictedFirstTokenScorer(), {PREDICTED_TTFT: [0.3, 0.1, nan]}) == [0.0, 1.0, 0.0]


def test_the_busiest_is_best_for_the_floor():
    assert score(zoo.BusiestScorer(), {INFLIGHT_REQUESTS: [0, 5, 2]}) == [0.0, 1.0, pytest.approx(0.4)]


# --- rules of several cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "match", "held", "best"),
    [
        ([40, 0, 5], [0.9, 0, 0], [9, 5, 1], 1),  # 40 > 32 and 40 > 1.1 * 0: uneven, the least loaded
        ([33, 1, 5], [0.9, 0, 0], [9, 5, 1], 0),  # a difference of 32 is even
        ([400, 367, 380], [0.9, 0, 0], [9, 5, 1], 0),  # 33 apart, but not by 1.1 times
        ([2, 1, 5], [0.6, 0, 0], [9, 5, 1], 0),  # even: the longest prefix
        ([2, 1, 5], [0.5, 0, 0], [9, 5, 1], 2),  # no more than half of it: the smallest tree
    ],
)
def test_cache_aware_looks_at_loads_then_at_prefixes_then_at_trees(loads, match, held, best):
    columns = {INFLIGHT_REQUESTS: loads, PREFIX_MATCH: match, zoo.HELD_BLOCKS: held}
    assert int(np.argmax(score(zoo.CacheAwareScorer(), columns))) == best


@pytest.mark.parametrize(
    ("loads", "match", "best"),
    [
        ([9, 0, 5], [0.9, 0.1, 0], 1),  # 9 apart: the least loaded
        ([8, 0, 4], [0.9, 0.1, 0.2], 2),  # mean 4, sigma 3.27: 8 is unusual, 0.2 is the best of the usual ones
        ([5, 1, 3], [0.9, 0.1, 0.2], 2),  # mean 3, sigma 1.63: 5 is unusual
        ([4, 3, 3], [0.9, 0.9, 0.2], 1),  # mean 3.33, sigma 0.47: 4 is unusual
        ([3, 3, 3], [0.0, 0.0, 0.0], None),  # nobody has any of it: all alike
    ],
)
def test_aibrix_takes_the_longest_prefix_among_usual_loads(loads, match, best):
    answer = score(zoo.PrefixThenLoadScorer(), {INFLIGHT_REQUESTS: loads, PREFIX_MATCH: match})
    assert answer == [1.0, 1.0, 1.0] if best is None else int(np.argmax(answer)) == best


@pytest.mark.parametrize(
    ("ttft", "tpot", "best"),
    [
        ([1.0, 1.0, 3.0], [0.02, 0.02, 0.02], 1),  # the two first meet both; the second has more
        ([1.0, 3.0, 3.0], [0.02, 0.02, 0.02], 0),
        ([1.0, 1.0, 3.0], [0.02, 0.03, 0.02], 0),
        ([9.0, 9.0, 9.0], [0.02, 0.02, 0.02], 0),  # nobody: the least loaded
    ],
)
def test_polyserve_takes_the_most_loaded_that_meets_the_objectives(ttft, tpot, best):
    columns = {PREDICTED_TTFT: ttft, PREDICTED_TPOT: tpot, INFLIGHT_REQUESTS: [2, 4, 9]}
    assert int(np.argmax(score(zoo.LoadGradientScorer(), columns))) == best


def test_polyserve_asks_for_the_requests_own_objectives_first():
    columns = {PREDICTED_TTFT: [1.0, 1.9, 0.1], PREDICTED_TPOT: [0.02] * 3, INFLIGHT_REQUESTS: [2, 4, 1]}
    hurried = InferenceRequest(request_id="r", input_tokens=10, slo_ttft=0.5)
    assert np.argmax(score(zoo.LoadGradientScorer(), columns)) == 1
    assert np.argmax(score(zoo.LoadGradientScorer(), columns, hurried)) == 2


HASHED = InferenceRequest(request_id="r", input_tokens=40, block_hashes=np.arange(3, 7, dtype=np.uint64))


def test_dualmap_has_two_candidates_and_takes_the_better():
    scorer = zoo.DualMapScorer()
    pool = fleet(8)
    one, other = scorer.candidates(scorer.key.of(HASHED), pool.snapshot())
    assert one != other
    columns = {PREFIX_TOKENS: [0.0] * 8, PREDICTED_TTFT: [0.0] * 8, INFLIGHT_TOKENS: [0.0] * 8}
    columns[PREFIX_TOKENS][other] = 30.0
    answer = score(scorer, columns, HASHED)
    assert (answer[other], answer[one], sum(answer)) == (1.0, 0.5, 1.5)
    columns[PREDICTED_TTFT][other] = 2.1  # too late: the one with less to compute
    columns[INFLIGHT_TOKENS][other] = 5.0
    assert score(scorer, columns, HASHED)[one] == 1.0
    assert score(scorer, columns) == [1.0 if i != other else 0.0 for i in range(8)]  # no key: by load
    columns[INFLIGHT_TOKENS][one] = 5.0  # which is no better: stay
    assert score(scorer, columns, HASHED)[other] == 1.0


def test_dualmaps_candidates_are_spread_and_stay():
    scorer, counts = zoo.DualMapScorer(), np.zeros(6)
    endpoints = fleet(6).snapshot()
    for i in range(600):
        asked = InferenceRequest(request_id="r", block_hashes=np.arange(i, i + 4, dtype=np.uint64))
        pair = scorer.candidates(scorer.key.of(asked), endpoints)
        assert pair == scorer.candidates(scorer.key.of(asked), endpoints)
        counts[list(pair)] += 1
    assert counts.min() > 150  # of 1,200 to 6
    assert scorer.candidates(scorer.key.of(HASHED), fleet(1).snapshot()) == (0, 0)


def test_skywalker_keeps_who_has_nothing_pending_or_all():
    keep = zoo.IdleServersFilter().filter
    assert keep(ASK, seen({INFLIGHT_TOKENS: [0, 10, 0]}), CYCLE).tolist() == [True, False, True]
    assert keep(ASK, seen({INFLIGHT_TOKENS: [1, 10, 2]}), CYCLE).tolist() == [True, True, True]


def test_preble_exploits_a_long_prefix_unless_its_server_is_the_fullest():
    columns = {PREFIX_TOKENS: [600, 600, 0], zoo.PREBLE_LOAD: [3.0, 2.0, 1.0], INFLIGHT_REQUESTS: [1, 1, 1]}
    assert score(zoo.PrebleScorer(), columns) == [0.5, 1.0, 0.0]
    assert np.argmax(score(zoo.PrebleScorer(), columns | {PREFIX_TOKENS: [500, 500, 0]})) == 2  # half is not most
    full = columns | {INFLIGHT_REQUESTS: [5, 5, 1]}
    assert np.argmax(score(zoo.PrebleScorer(), full)) == 2
    assert np.argmax(score(zoo.PrebleScorer(imbalance=5.0), full)) == 1


def test_d2lpm_takes_the_longest_prefix_where_something_is_left():
    columns = {PREFIX_TOKENS: [600, 300, 300], zoo.DEFICIT: [-1, 10, 20]}
    assert score(zoo.DeficitPrefixScorer(), columns) == [0.0, 0.5, 1.0]
    assert score(zoo.DeficitPrefixScorer(), columns | {zoo.DEFICIT: [1, 10, 20]})[0] == 1.0


# --- what is counted -----------------------------------------------------------------------------------------------


def sent(scheduler, pool, request, now=0.0):
    return scheduler.schedule_and_reserve(request, pool, now=now, rng=np.random.default_rng(1))


def through(producer, count=2):
    """A pool, and a scheduler with this producer."""
    return fleet(count), Scheduler(SchedulingProfile(MaxScorePicker()), producers=(producer,))


def column(producer, signal, request, pool, now=0.0):
    produced = producer.produce(request, pool.snapshot(), CycleState(now, np.random.default_rng(0), 0))
    return produced.columns[signal].tolist()


def prompt(*blocks, name="r", **more):
    return InferenceRequest(request_id=name, block_hashes=np.array(blocks, dtype=np.uint64), **more)


def test_active_blocks_are_counted_once_however_many_hold_them():
    producer = zoo.ActiveBlocksProducer()
    pool, scheduler = through(producer, count=1)
    assert column(producer, zoo.ACTIVE_BLOCKS, prompt(1, 2, 3), pool) == [3]
    first = sent(scheduler, pool, prompt(1, 2, 3))
    second = sent(scheduler, pool, prompt(1, 2, 9, 10))
    assert column(producer, zoo.ACTIVE_BLOCKS, prompt(1, 2, 3, 4), pool) == [6]  # 1, 2, 3, 9, 10 and 4
    plain = sent(scheduler, pool, InferenceRequest(request_id="p", input_tokens=200))
    assert column(producer, zoo.ACTIVE_BLOCKS, prompt(7), pool) == [5 + 3 + 1]
    first.complete(now=1.0)
    plain.fail(now=1.0)
    assert column(producer, zoo.ACTIVE_BLOCKS, prompt(1, 2, 3), pool) == [5]
    second.complete(now=1.0)
    assert column(producer, zoo.ACTIVE_BLOCKS, prompt(7), pool) == [1]
    assert not producer._held and not producer._plain and not producer._booked


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=12))
def test_active_blocks_are_those_of_a_set(orders):
    producer = zoo.ActiveBlocksProducer()
    pool, scheduler = through(producer, count=1)
    flying = []
    for i, (root, length, ends) in enumerate(orders):
        chain = [100 * root + j for j in range(length)]
        flying.append((sent(scheduler, pool, prompt(*chain, name=str(i))), chain))
        if ends:
            flying.pop(len(flying) // 2)[0].complete(now=1.0)
        active = {block for _, held in flying for block in held}
        for probe in ([0, 1, 2], [300], [100, 101, 102, 103, 104, 105]):
            assert column(producer, zoo.ACTIVE_BLOCKS, prompt(*probe), pool) == [len(active | set(probe))]


def test_what_was_sent_since_the_last_look_counts():
    producer = zoo.SentSinceProducer()
    pool, scheduler = through(producer, count=1)
    assert column(producer, zoo.SENT_SINCE, ASK, pool) == [0]
    for expected in (1, 2):
        sent(scheduler, pool, ASK)
        assert column(producer, zoo.SENT_SINCE, ASK, pool) == [expected]
    pool.observe("s0", {WAITING_QUEUE_SIZE: 1.0}, now=1.0)
    assert column(producer, zoo.SENT_SINCE, ASK, pool) == [0]
    sent(scheduler, pool, ASK, now=1.0)
    assert column(producer, zoo.SENT_SINCE, ASK, pool) == [1]


def test_held_blocks_are_the_indexs():
    prefix = ApproximatePrefixProducer(block_size=10, capacity=None, seed=1)
    producer = zoo.HeldBlocksProducer(prefix)
    pool = fleet(2)
    scheduler = Scheduler(SchedulingProfile(MaxScorePicker()), producers=(prefix, producer))
    target = sent(scheduler, pool, prompt(1, 2, 3)).slot
    expected = [0.0, 0.0]
    expected[target] = 3.0
    assert column(producer, zoo.HELD_BLOCKS, ASK, pool) == expected


def test_preble_adds_what_was_sent_what_is_evicted_and_what_is_missed():
    producer = zoo.PrebleProducer(window=10.0, prefill=100.0, decode=10.0, output=20.0)
    pool, scheduler = through(producer, count=1)  # room for 1,000 tokens
    asked = InferenceRequest(request_id="r", input_tokens=600)
    assert column(producer, zoo.PREBLE_LOAD, asked, pool) == [6.0]
    sent(scheduler, pool, asked, now=0.0)
    # 6 s of prefill and 2 of decoding were sent, 6 are missed; 200 tokens would have to go, but nothing was ever hit
    assert column(producer, zoo.PREBLE_LOAD, asked, pool, now=5.0) == [14.0]
    half = {PREFIX_TOKENS: np.array([300.0])}
    receipt = producer.produce(asked, pool.snapshot().with_columns(half), CYCLE).receipt
    producer.commit(receipt, 0, now=5.0)
    # sent: 8, and 3 + 2; missed 900 of 1,200 prompt tokens: a quarter was hit; 900 + 600 - 1,000 = 500 evicted
    assert column(producer, zoo.PREBLE_LOAD, asked, pool, now=5.0) == [pytest.approx(13.0 + 6.0 + 500 * 0.25 / 100)]
    # only the second is in the window: half of its prompt was hit, nothing is evicted
    assert column(producer, zoo.PREBLE_LOAD, asked, pool, now=10.5) == [pytest.approx(5.0 + 6.0)]


def test_deficits_are_filled_up_when_nothing_is_left_and_charged_with_what_is_missed():
    producer = zoo.DeficitProducer(quantum=100.0)
    pool = fleet(2)
    scheduler = Scheduler(
        SchedulingProfile(MaxScorePicker(), (WeightedScorer(zoo.DeficitPrefixScorer()),)), producers=(producer,)
    )
    asked = InferenceRequest(request_id="r", input_tokens=70, fairness_id="a")
    assert column(producer, zoo.DEFICIT, asked, pool) == [100, 100]
    went = [sent(scheduler, pool, asked).slot for _ in range(4)]
    assert sorted(went) == [0, 0, 1, 1]
    # both are at -40: filled up once, to 60
    assert column(producer, zoo.DEFICIT, asked, pool) == [60, 60]
    other = InferenceRequest(request_id="r", input_tokens=70, fairness_id="b")
    assert column(producer, zoo.DEFICIT, other, pool) == [100, 100]
    huge = InferenceRequest(request_id="r", input_tokens=1000, fairness_id="b")
    one = sent(scheduler, pool, huge).slot
    two = sent(scheduler, pool, huge).slot
    assert {one, two} == {0, 1}
    assert column(producer, zoo.DEFICIT, other, pool) == [100, 100]  # from -900, in ten steps


# --- contracts -----------------------------------------------------------------------------------------------------

SCORERS = (
    zoo.LMetricScorer,
    zoo.PrefillWorkScorer,
    zoo.KvRouterScorer,
    zoo.CoordinatorScorer,
    zoo.KvBarrierScorer,
    zoo.FreenessScorer,
    zoo.BusiestScorer,
    zoo.CacheAwareScorer,
    zoo.PrefixThenLoadScorer,
    zoo.PredictedFirstTokenScorer,
    zoo.LoadGradientScorer,
    zoo.DualMapScorer,
    zoo.IdleServersFilter,
    zoo.PrebleScorer,
    zoo.DeficitPrefixScorer,
)
PRODUCERS = (
    zoo.ActiveBlocksProducer,
    zoo.SentSinceProducer,
    zoo.PrebleProducer,
    zoo.DeficitProducer,
    lambda: zoo.HeldBlocksProducer(ApproximatePrefixProducer(seed=1)),
)


@pytest.mark.parametrize("make", [*SCORERS, *PRODUCERS])
def test_each_keeps_the_contract_of_its_kind(make):
    for check in all_checks_of(make):
        check()


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: zoo.KvRouterScorer(credit=-1.0), "credit"),
        (lambda: zoo.KvRouterScorer(block_size=0), "block_size"),
        (lambda: zoo.KvRouterScorer(prefill_scale=inf), "prefill_scale"),
        (lambda: zoo.CoordinatorScorer(nan), "waiting_weight"),
        (lambda: zoo.KvBarrierScorer(throughput=0.0), "throughput"),
        (lambda: zoo.KvBarrierScorer(barrier=-0.1), "barrier"),
        (lambda: zoo.CacheAwareScorer(threshold=1.5), "threshold"),
        (lambda: zoo.CacheAwareScorer(relative=-1.0), "relative"),
        (lambda: zoo.PrefixThenLoadScorer(deviations=-1.0), "deviations"),
        (lambda: zoo.LoadGradientScorer(tpot=nan), "tpot"),
        (lambda: zoo.DualMapScorer(ttft=-1.0), "ttft"),
        (lambda: zoo.PrebleScorer(0.5), "imbalance"),
        (lambda: zoo.PrebleProducer(prefill=0.0), "prefill"),
        (lambda: zoo.PrebleProducer(output=-1.0), "output"),
        (lambda: zoo.DeficitProducer(quantum=0.0), "quantum"),
        (lambda: zoo.ActiveBlocksProducer(block_size=0), "block_size"),
    ],
)
def test_a_bad_parameter_is_named(make, parameter):
    with pytest.raises(InvalidInputError, match=f"^{parameter}: got"):
        make()
