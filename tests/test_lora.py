"""Adapters: who has them, who has room, and what is better for whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.framework import PartialScorer, Reader
from tests import naive, naive_latency

CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
NAMES = st.frozensets(st.sampled_from("wxyz"), max_size=4)
REPORTS = st.builds(isched.Adapters, NAMES, NAMES, st.integers(0, 5), NAMES, NAMES, st.integers(0, 4))


def pool_of(reports):
    pool = isched.InferencePool()
    for i, report in enumerate(reports):
        pool.join(f"ep-{i}")
        if report is not None:
            pool.observe(f"ep-{i}", {}, now=0.0, adapters=report)
    return pool.snapshot()


def score(scorer, reports, **request):
    asked = isched.InferenceRequest(request_id="r", **({"adapter": "x"} | request))
    return scorer.score(asked, pool_of(reports), CYCLE).tolist()


@settings(max_examples=60)
@given(st.lists(REPORTS | st.none(), min_size=1, max_size=5))
def test_residency_is_its_table(reports):
    scorer, endpoints = isched.LoraResidencyScorer(), pool_of(reports)
    request = isched.InferenceRequest(request_id="r", adapter="x")
    expected = [naive_latency.residency(report, "x") for report in reports]
    assert scorer.score(request, endpoints, CYCLE).tolist() == [tier or 0.0 for tier in expected]
    assert scorer.scored(request, endpoints, CYCLE).tolist() == [tier is not None for tier in expected]
    assert isinstance(scorer, PartialScorer) and isinstance(scorer, Reader)


@settings(max_examples=60)
@given(REPORTS, st.sampled_from(["load it", "offload it", "a slot more", "one loaded less", "one busy less"]))
def test_what_is_better_never_scores_less(report, change):
    better = {
        "load it": report._replace(loaded=report.loaded | {"x"}),
        "offload it": report._replace(offloaded=report.offloaded | {"x"}),
        "a slot more": report._replace(slots=report.slots + 1),
        "one loaded less": report._replace(loaded=report.loaded - {"w"}),
        "one busy less": report._replace(running=report.running - {"w"}, waiting=report.waiting - {"w"}),
    }[change]
    if change == "one loaded less" and report.slots <= len(report.loaded) - 1:
        return  # who has more than it can hold, and nothing idle but "w", is no better without it
    before, after = score(isched.LoraResidencyScorer(), [report, better])
    assert after >= before


@settings(max_examples=40)
@given(st.lists(REPORTS, min_size=1, max_size=5), st.permutations(range(5)))
def test_residency_depends_on_the_server_alone(reports, order):
    places = [i for i in order if i < len(reports)]
    scores = score(isched.LoraResidencyScorer(), reports)
    assert score(isched.LoraResidencyScorer(), [reports[i] for i in places]) == [scores[i] for i in places]


def test_a_request_for_the_base_model_goes_where_slots_are_free():
    reports = [isched.Adapters(loaded=frozenset("wx"), slots=4), isched.Adapters(loaded=frozenset("wx"), slots=1), None]
    scorer = isched.LoraResidencyScorer(base_models=("llama",))
    assert score(scorer, reports, adapter="", model="llama") == [0.5, 0.0, 0.0]
    assert score(scorer, reports, adapter="", model="") == [0.5, 0.0, 0.0]
    assert score(scorer, reports, adapter="", model="x") == [1.0, 1.0, 0.0]  # a model of that name is an adapter
    assert score(scorer, reports, adapter="x", model="llama") == [1.0, 1.0, 0.0]


def test_a_stale_report_is_no_report():
    pool = isched.InferencePool()
    pool.join("a")
    pool.observe("a", {}, now=0.0, adapters=isched.Adapters(loaded=frozenset("x"), slots=2))
    stale = isched.StalePolicy(1.0, "worst").apply(pool.snapshot(), 5.0)
    request = isched.InferenceRequest(request_id="r", adapter="x")
    assert isched.LoraResidencyScorer().score(request, stale, CYCLE).tolist() == [0.0]
    assert isched.LoraResidencyScorer().scored(request, stale, CYCLE).tolist() == [False]


@settings(max_examples=60)
@given(st.lists(REPORTS | st.none(), min_size=1, max_size=5))
def test_an_adapter_that_runs_and_waits_may_count_once(reports):
    once = score(isched.LoraAffinityScorer(distinct=True), reports)
    twice = score(isched.LoraAffinityScorer(), reports)
    for report, one, two in zip(reports, once, twice, strict=True):
        if report is None:
            assert one == two == 0.0
            continue
        assert one == naive.lora_score(report.running, report.waiting - report.running, report.capacity, "x")
        assert one >= two


@settings(max_examples=40)
@given(st.lists(REPORTS, min_size=2, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_counts_of_adapters_follow_the_filters(reports, keep):
    endpoints = pool_of(reports)
    kept = np.array(keep[: len(reports)])
    if not kept.any():
        return
    some = endpoints.where(kept)
    assert some.adapters_in_use.tolist() == [
        len(r.running | r.waiting) for r, k in zip(reports, kept, strict=True) if k
    ]
    idle = [len(r.loaded - r.running - r.waiting) for r, k in zip(reports, kept, strict=True) if k]
    assert some.adapters_idle.tolist() == idle


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"gpu": 1.5}, "gpu: got 1.5, allowed: 0 to 1"),
        ({"cpu": 0.5}, "free_slot: got 0.6, allowed: 0 to 0.5, the tier before it"),
        ({"saturated": 0.4}, "saturated: got 0.4"),
        ({"evictable": float("nan")}, "evictable: got nan"),
        ({"base_models": "llama"}, "base_models: got 'llama'"),
    ],
)
def test_tiers_are_in_order(parameters, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.LoraResidencyScorer(**parameters)
