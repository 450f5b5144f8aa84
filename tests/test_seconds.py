import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from tests.profiles import endpoints_of

CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
NAN = math.nan
TOKENS = st.integers(0, 9).map(lambda n: 1000.0 * n) | st.just(NAN)
SPEEDS = st.sampled_from([0.0, 500.0, 2000.0, 16000.0, NAN])
USAGE = st.sampled_from([0.0, 0.25, 0.9, 1.0, NAN])
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 4.0, NAN])
SCORERS = st.builds(
    isched.LoadSecondsScorer, st.sampled_from([0.5, 10.0]), st.sampled_from([0.0, 1e-4]), st.sampled_from([0.0, 0.15])
)


def request(tokens=3000):
    return isched.InferenceRequest(request_id="r", input_tokens=tokens)


@st.composite
def pools(draw):
    count = draw(st.integers(1, 6))

    def column(values):
        return draw(st.lists(values, min_size=count, max_size=count))

    return {
        isched.INFLIGHT_TOKENS: column(TOKENS),
        isched.PREFIX_TOKENS: column(TOKENS),
        isched.PREFILL_THROUGHPUT: column(SPEEDS),
        isched.CONTEXT_TOKENS: column(TOKENS),
        isched.KV_CACHE_USAGE: column(USAGE),
        isched.INFLIGHT_REQUESTS: column(st.integers(0, 5).map(float) | st.just(NAN)),
        isched.CAPACITY_WEIGHT: column(WEIGHTS),
    }


def seconds(scorer, row, prompt):
    """The formula for one endpoint, in plain numbers; NaN where anything that counts is unknown."""
    covered = 0.0 if math.isnan(row[isched.PREFIX_TOKENS]) else row[isched.PREFIX_TOKENS]
    tokens = row[isched.INFLIGHT_TOKENS] + max(0.0, (prompt or 0) - covered)
    speed, total = row[isched.PREFILL_THROUGHPUT], 0.0
    terms = [tokens, speed]
    if scorer.seconds_per_context_token:
        terms.append(row[isched.CONTEXT_TOKENS])
        total += scorer.seconds_per_context_token * row[isched.CONTEXT_TOKENS]
    if scorer.kv_barrier:
        usage = row[isched.KV_CACHE_USAGE]
        terms.append(usage)
        total += math.inf if usage == 1 else scorer.kv_barrier * usage / (1 - usage)
    if any(math.isnan(term) for term in terms):
        return NAN
    return total + (math.inf if speed == 0 else tokens / speed)


@given(SCORERS, pools(), st.sampled_from([None, 0, 3000]))
def test_seconds_are_the_formula_s(scorer, columns, prompt):
    endpoints = endpoints_of(columns)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    expected = [seconds(scorer, row, prompt) for row in rows]
    scores = scorer.score(request(prompt), endpoints, CYCLE)
    scored = scorer.scored(request(prompt), endpoints, CYCLE)
    assert scored.tolist() == [not math.isnan(s) for s in expected]
    assert scores.tolist() == pytest.approx(
        [0.0 if math.isnan(s) else 1 - min(s, scorer.horizon) / scorer.horizon for s in expected]
    )


def test_a_fast_server_may_have_more_to_do():
    endpoints = endpoints_of(
        {isched.INFLIGHT_TOKENS: [9000.0, 4000.0, 0.0], isched.PREFILL_THROUGHPUT: [16000.0, 2000.0, NAN]}
    )
    scorer = isched.LoadSecondsScorer()
    assert scorer.seconds(request(1000), endpoints)[:2].tolist() == [0.625, 2.5]
    assert scorer.score(request(1000), endpoints, CYCLE).tolist() == pytest.approx([0.9375, 0.75, 0.0])
    assert isched.TokenLoadScorer().score(request(1000), endpoints, CYCLE).argmax() == 2  # tokens alone know no speed


@given(SCORERS, pools(), st.data())
def test_a_score_of_seconds_does_not_depend_on_the_others(scorer, columns, data):
    endpoints = endpoints_of(columns)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(endpoints), max_size=len(endpoints))))
    whole = scorer.score(request(), endpoints, CYCLE)
    assert np.array_equal(scorer.score(request(), endpoints.where(keep), CYCLE), whole[keep])


def scaled(columns, scorer):
    """(load + step) / weight, compared; plain numbers."""
    loads, weights = columns[scorer.signal], columns[isched.CAPACITY_WEIGHT]
    told = [1.0 if math.isnan(w) else w for w in weights]
    each = [NAN if w == 0 else (load + scorer.step) / w for load, w in zip(loads, told, strict=True)]
    known = [x for x in each if not math.isnan(x)]
    if scorer.full is not None:
        return [0.0 if math.isnan(x) else 1 - min(x, scorer.full) / scorer.full for x in each]
    low, high = (min(known), max(known)) if known else (0, 0)
    return [0.0 if math.isnan(x) else 1.0 if high == low else (high - x) / (high - low) for x in each]


SCALED = st.builds(
    isched.CapacityScaledScorer,
    st.sampled_from([isched.INFLIGHT_REQUESTS, isched.INFLIGHT_TOKENS]),
    st.sampled_from([0.0, 1.0, 500.0]),
    st.none() | st.sampled_from([4.0, 5000.0]),
)


@given(SCALED, pools())
def test_load_for_its_size_is_the_formula_s(scorer, columns):
    endpoints = endpoints_of(columns)
    assert scorer.score(request(), endpoints, CYCLE).tolist() == pytest.approx(scaled(columns, scorer))
    known = [not math.isnan(load) for load in columns[scorer.signal]]
    assert scorer.scored(request(), endpoints, CYCLE).tolist() == known


def test_of_two_idle_servers_the_greater_is_the_better():
    columns = {isched.INFLIGHT_REQUESTS: [0.0, 0.0, 3.0], isched.CAPACITY_WEIGHT: [1.0, 4.0, 4.0]}
    assert isched.CapacityScaledScorer().score(request(), endpoints_of(columns), CYCLE).tolist() == [0.0, 1.0, 0.0]


def test_requests_are_shared_in_proportion_to_capacity():
    """A fold of 60 over capacities 1, 2 and 3: within one of 10, 20 and 30."""
    pool = isched.InferencePool()
    for name, weight in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        pool.join(name, values={isched.CAPACITY_WEIGHT: weight})
    profile = isched.SchedulingProfile(
        isched.MaxScorePicker(), (isched.WeightedScorer(isched.CapacityScaledScorer(full=100.0)),)
    )
    requests = [isched.InferenceRequest(request_id=str(n)) for n in range(60)]
    isched.Scheduler(profile).schedule_many(requests, pool, now=0.0, rng=np.random.default_rng(0))
    assert np.abs(pool.snapshot()[isched.INFLIGHT_REQUESTS] - [10, 20, 30]).max() <= 1


@given(SCORERS | SCALED, pools(), st.data())
def test_what_is_declared_better_never_makes_it_worse(scorer, columns, data):
    at = data.draw(st.integers(0, len(columns[isched.KV_CACHE_USAGE]) - 1))
    read = data.draw(st.sampled_from(scorer.reads))
    value = columns[read.signal][at]
    others = {v for c in columns.values() for v in c if not math.isnan(v)} if read.signal.high > 1 else {0.0, 0.5, 1.0}
    better = data.draw(st.sampled_from(sorted(others)))
    if math.isnan(value) or ((better < value) == (read.better == "higher") and better != value):
        return
    changed = columns | {read.signal: [*columns[read.signal][:at], better, *columns[read.signal][at + 1 :]]}
    before, after = (scorer.score(request(), endpoints_of(c), CYCLE)[at] for c in (columns, changed))
    assert after >= before - 1e-12


def test_only_what_counts_is_read():
    def names(scorer):
        return [read.signal.name for read in scorer.reads]

    assert names(isched.LoadSecondsScorer()) == ["inflight_tokens", "prefix_tokens", "prefill_throughput"]
    assert names(isched.LoadSecondsScorer(1.0, 1e-4, 0.1))[3:] == ["context_tokens", "kv_cache_usage"]


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.LoadSecondsScorer(0.0), "horizon"),
        (lambda: isched.LoadSecondsScorer(math.inf), "horizon"),
        (lambda: isched.LoadSecondsScorer(1.0, -1.0), "seconds_per_context_token"),
        (lambda: isched.LoadSecondsScorer(1.0, 0.0, NAN), "kv_barrier"),
        (lambda: isched.CapacityScaledScorer(step=-1.0), "step"),
        (lambda: isched.CapacityScaledScorer(full=0.0), "full"),
    ],
)
def test_bad_parameters(make, parameter):
    with pytest.raises(isched.InvalidInputError) as error:
        make()
    assert error.value.parameter == parameter
