import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from tests import naive
from tests.profiles import LOCAL_SCORERS, endpoints_of, pools

NAN = math.nan
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)


def scores(scorer, columns, tokens=None, **request):
    request = isched.InferenceRequest(request_id="r", input_tokens=tokens, **request)
    return scorer.score(request, endpoints_of(columns), CYCLE).tolist()


@given(pools(), LOCAL_SCORERS, st.integers(0, 2000) | st.none())
def test_each_scorer_is_its_formula(endpoints, scorer, tokens):
    request = isched.InferenceRequest(request_id="r", input_tokens=tokens)
    everybody = [
        {signal.name: float(endpoints[signal][i]) for signal in endpoints.layout.signals} for i in range(len(endpoints))
    ]
    expected = [naive.score_of(scorer, endpoint, everybody, tokens) for endpoint in everybody]
    ours = scorer.score(request, endpoints, CYCLE)
    assert ours.dtype == np.float64 and ours.shape == (len(endpoints),)
    assert ours.tolist() == pytest.approx(expected, abs=1e-12)
    assert all(0.0 <= score <= 1.0 for score in ours)


@pytest.mark.parametrize(
    ("scorer", "signal"),
    [
        (isched.QueueScorer(), isched.WAITING_QUEUE_SIZE),
        (isched.RunningRequestsScorer(), isched.RUNNING_REQUESTS),
    ],
)
def test_relative_load(scorer, signal):
    assert scores(scorer, {signal: [10, 5, 0]}) == [0.0, 0.5, 1.0]
    assert scores(scorer, {signal: [7, 7, 7]}) == [1.0, 1.0, 1.0]
    assert scores(scorer, {signal: [10, NAN, 0]}) == [0.0, 0.0, 1.0]
    assert scores(scorer, {signal: [NAN]}) == [0.0]


def test_free_kv_cache():
    assert scores(isched.KvCacheUtilizationScorer(), {isched.KV_CACHE_USAGE: [0.25, 1.0, 0.0, NAN]}) == [0.75, 0, 1, 0]


def test_prefix_share_and_length():
    columns = {isched.PREFIX_MATCH: [0.5, 1.0, 0.0, NAN], isched.PREFIX_TOKENS: [4096, 20000, 0, NAN]}
    assert scores(isched.PrefixCacheScorer(), columns) == [0.5, 1.0, 0.0, 0.0]
    assert scores(isched.PrefixCacheScorer(1.0), columns) == [0.25, 1.0, 0.0, 0.0]
    assert scores(isched.PrefixCacheScorer(0.5), columns) == [0.375, 1.0, 0.0, 0.0]


def test_tokens_to_compute():
    columns = {isched.INFLIGHT_TOKENS: [0, 300, 2000, 0], isched.PREFIX_TOKENS: [0, 100, 0, NAN]}
    scorer = isched.TokenLoadScorer(1000.0)
    assert scores(scorer, columns, tokens=200) == pytest.approx([0.8, 0.6, 0.0, 0.8])
    assert scores(scorer, columns, tokens=None) == [1.0, 0.7, 0.0, 1.0]
    assert scores(scorer, columns, tokens=50)[1] == 0.7  # more matched than asked: nothing to compute


def test_requests_in_flight():
    columns = {isched.INFLIGHT_REQUESTS: [0, 1, 2, 4]}
    assert scores(isched.ActiveRequestScorer(), columns) == [1.0, 0.75, 0.5, 0.0]
    assert scores(isched.ActiveRequestScorer(1.0, 0.5), columns) == [1.0, 1.0, 0.25, 0.0]
    assert scores(isched.ActiveRequestScorer(), {isched.INFLIGHT_REQUESTS: [0, 0]}) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("scorer", "signal"),
    [
        (isched.TokenLoadScorer(1000.0), isched.INFLIGHT_TOKENS),
        (isched.ActiveRequestScorer(), isched.INFLIGHT_REQUESTS),
    ],
)
def test_even_a_local_column_that_somebody_made_unknown_is_worst(scorer, signal):
    assert scores(scorer, {signal: [NAN, 0.0, 3.0]})[0] == 0.0


ADAPTERS = st.frozensets(st.sampled_from("wxyz"), max_size=3)


@given(st.lists(st.tuples(ADAPTERS, ADAPTERS, st.integers(0, 4)) | st.none(), min_size=1, max_size=5))
def test_lora_tiers(reports):
    pool = isched.InferencePool()
    for i, report in enumerate(reports):
        pool.join(f"ep-{i}")
        if report is not None:
            pool.observe(f"ep-{i}", {}, now=0.0, adapters=isched.Adapters(*report))
    request = isched.InferenceRequest(request_id="r", model="base", adapter="x")
    ours = isched.LoraAffinityScorer().score(request, pool.snapshot(), CYCLE)
    assert ours.tolist() == [0.0 if report is None else naive.lora_score(*report, "x") for report in reports]


def test_without_an_adapter_the_model_is_looked_up():
    pool = isched.InferencePool()
    pool.join("a")
    pool.observe("a", {}, now=0.0, adapters=isched.Adapters(frozenset({"x"}), capacity=1))
    by_model = isched.InferenceRequest(request_id="r", model="x")
    assert isched.LoraAffinityScorer().score(by_model, pool.snapshot(), CYCLE).tolist() == [1.0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: isched.PrefixCacheScorer(1.5), "match_length_weight: got 1.5"),
        (lambda: isched.PrefixCacheScorer(0.5, 0.0), "match_length_scale_tokens: got 0.0"),
        (lambda: isched.TokenLoadScorer(0.0), "queue_threshold_tokens: got 0.0"),
        (lambda: isched.TokenLoadScorer(NAN), "queue_threshold_tokens: got nan"),
        (lambda: isched.ActiveRequestScorer(-1.0), "idle_threshold: got -1.0"),
        (lambda: isched.ActiveRequestScorer(NAN), "idle_threshold: got nan"),
        (lambda: isched.ActiveRequestScorer(0.0, 1.5), "max_busy_score: got 1.5"),
        (lambda: isched.LoraAffinityScorer(room=2.0), "room: got 2.0"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()
