"""Who is scored and who is kept by predicted latency: against slow twins, and what never happens."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.signals import PREDICTED_TTFT, TPOT_HEADROOM, TTFT_HEADROOM, of_producer
from tests import naive_latency
from tests.profiles import endpoints_of

NAN = math.nan
REQUEST = isched.InferenceRequest(request_id="r")
HEADROOMS = st.none() | st.sampled_from([-0.5, -0.25, 0.0, 0.25, 1.0]) | st.floats(-2, 2).map(lambda x: round(x, 3))
SHARES = st.none() | st.sampled_from([0.0, 0.25, 0.8, 1.0]) | st.floats(0, 1)
ENDPOINT = st.fixed_dictionaries(
    {
        "ttft": HEADROOMS,
        "tpot": HEADROOMS,
        "inflight": st.integers(0, 3),
        "kv": SHARES,
        "queue": st.none() | st.integers(0, 5),
        "match": SHARES,
    }
)
SCORERS = st.builds(
    isched.LatencyScorer,
    st.sampled_from([0.8, 0.0, 0.3]),
    st.sampled_from([0.2, 0.0, 1.0]),
    st.sampled_from(["least", "most"]),
    st.sampled_from([1.0, 0.0, 3.0]),
    st.sampled_from([1.0, 0.0]),
    st.sampled_from([1.0, 0.0]),
)


def cycle(draw=0.5):
    class Chance:
        def random(self):
            return draw

    return isched.CycleState(0.0, Chance(), 0)


def table(endpoints):
    """The snapshot of what the twins get as dicts."""
    columns = {
        TTFT_HEADROOM: "ttft",
        TPOT_HEADROOM: "tpot",
        isched.INFLIGHT_REQUESTS: "inflight",
        isched.KV_CACHE_USAGE: "kv",
        isched.WAITING_QUEUE_SIZE: "queue",
        isched.PREFIX_MATCH: "match",
    }
    return endpoints_of(
        {signal: [NAN if e[key] is None else float(e[key]) for e in endpoints] for signal, key in columns.items()}
    )


@settings(max_examples=150)
@given(SCORERS, st.lists(ENDPOINT, min_size=1, max_size=6))
def test_latency_scores_are_the_reference_s(scorer, endpoints):
    ours = scorer.score(REQUEST, table(endpoints), cycle()).tolist()
    assert ours == naive_latency.latency_scores(scorer, endpoints)
    assert all(0.0 <= score <= 1.0 for score in ours)


@settings(max_examples=50)
@given(SCORERS, st.lists(ENDPOINT, min_size=1, max_size=6))
def test_somebody_always_gets_a_score_where_there_are_predictions(scorer, endpoints):
    predicted = any(e["ttft"] is not None and e["tpot"] is not None for e in endpoints)
    assume(predicted)
    assert max(scorer.score(REQUEST, table(endpoints), cycle())) > 0.0


@settings(max_examples=50)
@given(SCORERS, st.lists(ENDPOINT, min_size=1, max_size=6), st.sampled_from([0.25, 8.0]))
def test_the_unit_of_headrooms_does_not_matter(scorer, endpoints, factor):
    """A power of two, which changes no digit."""
    scaled = [
        {**e, "ttft": e["ttft"] and e["ttft"] * factor, "tpot": e["tpot"] and e["tpot"] * factor} for e in endpoints
    ]
    assert np.array_equal(
        scorer.score(REQUEST, table(endpoints), cycle()), scorer.score(REQUEST, table(scaled), cycle())
    )


@settings(max_examples=50)
@given(st.lists(ENDPOINT, min_size=2, max_size=6), st.randoms())
def test_the_order_of_candidates_does_not_matter(endpoints, random):
    order = list(range(len(endpoints)))
    random.shuffle(order)
    scores = isched.LatencyScorer().score(REQUEST, table(endpoints), cycle())
    assert isched.LatencyScorer().score(REQUEST, table([endpoints[i] for i in order]), cycle()).tolist() == [
        scores[i] for i in order
    ]


def test_one_who_meets_the_objectives_is_scored_alone():
    columns = {
        TTFT_HEADROOM: [0.3, 0.1, -0.1, NAN],
        TPOT_HEADROOM: [0.0, 0.0, 0.5, NAN],
        isched.INFLIGHT_REQUESTS: [3, 3, 0, 3],
    }
    least = isched.LatencyScorer().score(REQUEST, endpoints_of(columns), cycle())
    most = isched.LatencyScorer(headroom_selection_strategy="most").score(REQUEST, endpoints_of(columns), cycle())
    assert least[2] == most[2] == 0.0
    assert least[0] < least[1] <= least[3] == 1.0  # one without a prediction is exactly at the objective
    assert most[0] == 1.0 > most[1] > most[3] > 0.0


# --- tiers -------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    st.lists(st.tuples(HEADROOMS, HEADROOMS), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.floats(0, 0.99),
)
def test_tiers_never_empty_and_never_mix(headrooms, epsilon, draw):
    told = [(NAN if a is None else a, NAN if b is None else b) for a, b in headrooms]
    endpoints = endpoints_of({TTFT_HEADROOM: [a for a, _ in told], TPOT_HEADROOM: [b for _, b in told]})
    keep = isched.SloHeadroomTierFilter(epsilon).filter(REQUEST, endpoints, cycle(draw))
    meets = [a >= 0 and b >= 0 for a, b in told]
    assert keep.any()
    if len(told) == 1 or all(meets) or not any(meets):
        assert keep.all()
    else:
        assert keep.tolist() == ([not m for m in meets] if draw < epsilon else meets)


def test_the_other_tier_gets_its_share():
    endpoints = endpoints_of({TTFT_HEADROOM: [0.1, -0.1], TPOT_HEADROOM: [0.1, 0.1]})
    state = isched.CycleState(0.0, np.random.default_rng(4), 0)
    explored = sum(isched.SloHeadroomTierFilter(0.2).filter(REQUEST, endpoints, state)[1] for _ in range(4000))
    assert 700 < explored < 900


# --- prefixes that are worth a wait ------------------------------------------------------------------------------

AFFINITY = st.builds(
    isched.PrefixCacheAffinityFilter,
    st.sampled_from([-1.0, 0.0, 0.25, 0.8, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 50.0, 1000.0]),
    st.sampled_from(["prefillThroughput", "latencyPredictor"]),
    st.sampled_from([1000.0, 15928.0]),
)
WAITS = st.none() | st.integers(0, 2000)


def places(plugin, shares, waits):
    """A snapshot in which times to first token are these, ms."""
    ms = np.array([NAN if wait is None else float(wait) for wait in waits])
    return endpoints_of(
        {
            isched.PREFIX_MATCH: [NAN if share is None else share for share in shares],
            isched.INFLIGHT_TOKENS: ms * plugin.peak_prefill_throughput / 1e3,
            PREDICTED_TTFT: ms / 1e3,
        }
    )


@settings(max_examples=150)
@given(AFFINITY, st.lists(st.tuples(SHARES, WAITS), min_size=1, max_size=6), st.floats(0, 0.99))
def test_stickiness_is_the_reference_s(plugin, endpoints, draw):
    shares, waits = [s for s, _ in endpoints], [w for _, w in endpoints]
    keep = plugin.filter(REQUEST, places(plugin, shares, waits), cycle(draw))
    assert keep.tolist() == naive_latency.sticky(plugin, shares, waits, draw)
    assert keep.any()


@settings(max_examples=60)
@given(st.lists(st.tuples(SHARES, WAITS), min_size=1, max_size=6), st.integers(1, 900), st.integers(0, 900))
def test_a_higher_price_keeps_no_more(endpoints, penalty, more):
    shares, waits = [s for s, _ in endpoints], [w for _, w in endpoints]
    low = isched.PrefixCacheAffinityFilter(max_ttft_penalty_ms=float(penalty))
    high = isched.PrefixCacheAffinityFilter(max_ttft_penalty_ms=float(penalty + more))
    kept_low = low.filter(REQUEST, places(low, shares, waits), cycle())
    kept_high = high.filter(REQUEST, places(high, shares, waits), cycle())
    assert (kept_high <= kept_low).all()


def test_exactly_the_price_is_still_paid():
    plugin = isched.PrefixCacheAffinityFilter(ttft_source="latencyPredictor", max_ttft_penalty_ms=100.0)
    for base in (0.0, 1001.0, 1003.0):  # a thousandth of these, times a thousand, is not they
        assert plugin.filter(REQUEST, places(plugin, [1.0, 0.0], [base + 100.0, base]), cycle()).tolist() == [
            True,
            False,
        ]
        assert plugin.filter(REQUEST, places(plugin, [1.0, 0.0], [base + 101.0, base]), cycle()).all()


def test_several_producers_of_one_signal():
    named = of_producer(TTFT_HEADROOM, "other"), of_producer(TPOT_HEADROOM, "other")
    endpoints = endpoints_of({named[0]: [0.1, -0.1], named[1]: [0.1, 0.1], isched.PREFIX_MATCH: [NAN, NAN]})
    assert isched.SloHeadroomTierFilter(0.0, "other").filter(REQUEST, endpoints, cycle()).tolist() == [True, False]
    assert isched.LatencyScorer(producer="other").score(REQUEST, endpoints, cycle()).tolist() == [0.51, 0.0]
    prefix = of_producer(isched.PREFIX_MATCH, "mine"), of_producer(isched.PREFIX_TOKENS, "mine")
    matched = endpoints_of({prefix[0]: [0.5, 1.0], prefix[1]: [4096.0, 8192.0]})
    assert isched.PrefixCacheScorer(producer="mine").score(REQUEST, matched, cycle()).tolist() == [0.5, 1.0]
    assert isched.PrefixCacheScorer(1.0, producer="mine").score(REQUEST, matched, cycle()).tolist() == [0.25, 1.0]
    sticky = isched.PrefixCacheAffinityFilter(prefix_producer="mine", max_ttft_penalty_ms=0.0)
    assert sticky.filter(REQUEST, matched, cycle()).tolist() == [False, True]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 300) | st.just(NAN), min_size=1, max_size=6), st.sampled_from([1.0, 10.0, 128.0]))
def test_load_aware_is_half_a_ratio(queues, threshold):
    scores = isched.LoadAwareScorer(threshold).score(
        REQUEST, endpoints_of({isched.WAITING_QUEUE_SIZE: queues}), cycle()
    )
    expected = [0.0 if q != q else 0.5 if q == 0 else 0.5 * (1 - min(q, threshold) / threshold) for q in queues]
    assert scores.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: isched.LatencyScorer(ttft_weight=-1.0), "ttft_weight: got -1.0"),
        (lambda: isched.LatencyScorer(composite_kv_weight=NAN), "composite_kv_weight: got nan"),
        (
            lambda: isched.LatencyScorer(headroom_selection_strategy="some"),
            "headroom_selection_strategy: got 'some'.*least, most",
        ),
        (lambda: isched.SloHeadroomTierFilter(1.5), "epsilon_explore_neg: got 1.5"),
        (lambda: isched.PrefixCacheAffinityFilter(1.5), "affinity_threshold: got 1.5"),
        (lambda: isched.PrefixCacheAffinityFilter(0.5, -0.1), "exploration_probability: got -0.1"),
        (lambda: isched.PrefixCacheAffinityFilter(max_ttft_penalty_ms=-1.0), "max_ttft_penalty_ms: got -1.0"),
        (lambda: isched.PrefixCacheAffinityFilter(ttft_source=""), "ttft_source: got ''.*prefillThroughput"),
        (lambda: isched.PrefixCacheAffinityFilter(peak_prefill_throughput=0.0), "peak_prefill_throughput: got 0.0"),
        (lambda: isched.PrefixCacheAffinityFilter(peak_prefill_throughput=-1.0), "peak_prefill_throughput: got -1.0"),
        (lambda: isched.LoadAwareScorer(0.0), "threshold: got 0.0"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()


def test_what_is_read_follows_the_parameters():
    def names(plugin):
        return [read.signal.name for read in plugin.reads]

    assert names(isched.PrefixCacheAffinityFilter()) == ["prefix_match", "inflight_tokens"]
    assert names(isched.PrefixCacheAffinityFilter(ttft_source="latencyPredictor")) == ["prefix_match", "predicted_ttft"]
    assert names(isched.PrefixCacheAffinityFilter(max_ttft_penalty_ms=0.0)) == ["prefix_match"]
    assert names(isched.PrefixCacheScorer()) == ["prefix_match"]
    assert names(isched.PrefixCacheScorer(0.5, producer="p")) == ["prefix_match@p", "prefix_tokens@p"]
    assert isched.SloHeadroomTierFilter(0.0).reads[0].better == "higher"
    assert isched.SloHeadroomTierFilter(0.1).reads[0].better == ""
    assert isched.LoraAffinityScorer().reads[2].better == "higher"
    assert isched.LoraAffinityScorer(room=0.1).reads[2].better == ""
    with pytest.raises(isched.DependencyError, match="ttft_headroom"):
        isched.Scheduler(
            isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.LatencyScorer()),))
        )
