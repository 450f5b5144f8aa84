import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched._kernels import scoring
from inferencesched._kernels._compile import KERNELS
from tests import naive

NAN = float("nan")
NUMBERS = st.integers(0, 4).map(float) | st.floats(-1e6, 1e6) | st.just(NAN)
COLUMNS = st.lists(NUMBERS, max_size=23)


@given(COLUMNS)
def test_span_is_the_least_and_the_greatest_known(values):
    known = [v for v in values if v == v]
    expected = (min(known), max(known)) if known else (np.inf, -np.inf)
    assert scoring.span(np.array(values, dtype=np.float64)) == expected


@pytest.mark.parametrize("name", ["minmax", "inverse_minmax"])
@given(values=COLUMNS)
def test_the_relative_ones_equal_their_twins(name, values):
    ours = getattr(isched, name)(np.array(values, dtype=np.float64))
    assert np.array_equal(ours, np.array(getattr(naive, name)(values), dtype=np.float64), equal_nan=True)
    known = ours[~np.isnan(ours)]
    assert ((known >= 0.0) & (known <= 1.0)).all()


def test_what_each_says_of_a_few():
    x = np.array([10.0, 5.0, NAN, 0.0])
    assert np.array_equal(isched.inverse_minmax(x), [0.0, 0.5, NAN, 1.0], equal_nan=True)
    assert np.array_equal(isched.minmax(x), [1.0, 0.5, NAN, 0.0], equal_nan=True)
    assert np.array_equal(isched.ratio(x, 8.0), [1.0, 0.625, NAN, 0.0], equal_nan=True)
    assert np.array_equal(isched.inverse(x, 8.0), [0.0, 0.375, NAN, 1.0], equal_nan=True)
    assert isched.known(x).tolist() == [10.0, 5.0, 0.0, 0.0]
    assert isched.known(x, 0.5).tolist() == [10.0, 5.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["minmax", "inverse_minmax"])
def test_all_equal_is_best_and_all_unknown_stays_unknown(name):
    normalise = getattr(isched, name)
    assert normalise(np.full(5, 3.0)).tolist() == [1.0] * 5
    assert np.isnan(normalise(np.full(5, NAN))).all()
    assert len(normalise(np.empty(0))) == 0


def test_integers_and_strides_are_taken_as_they_come():
    assert isched.minmax(np.array([4, 2, 0])).tolist() == [1.0, 0.5, 0.0]
    assert isched.minmax(np.array([4.0, 9.0, 2.0, 9.0, 0.0, 9.0])[::2]).tolist() == [1.0, 0.5, 0.0]


@given(st.lists(st.sampled_from([-np.inf, 0.0, 3.0, 9.5]), max_size=9))
def test_oldest_is_the_least_time_with_and_without_those_never_seen(times):
    seen = [t for t in times if t > -np.inf]
    expected = (min(times, default=np.inf), min(seen, default=np.inf))
    assert scoring.oldest(np.array(times, dtype=np.float64)) == expected


@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, -0.1, 1.1, NAN, np.inf, -np.inf]), max_size=6))
def test_the_first_bad_value_is_found(values):
    x = np.array(values, dtype=np.float64)
    bad = [i for i, v in enumerate(values) if not 0.0 <= v <= 1.0]
    assert scoring.bad_score(x) == (bad[0] if bad else -1)
    out = [i for i in bad if values[i] == values[i]]
    assert scoring.out_of_range(x, 0.0, 1.0) == (out[0] if out else -1)
    infinite = [i for i, v in enumerate(values) if np.isinf(v)]
    assert scoring.out_of_range(x, -np.inf, np.inf) == (infinite[0] if infinite else -1)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.integers(-1, 2)), min_size=1, max_size=12))
def test_the_best_is_the_least_recently_picked_of_the_highest(pairs):
    totals, picked = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    expected = naive.best_of(totals.tolist(), picked.tolist())
    best, ties = scoring.best_of(totals, picked)
    assert (best, ties) == (expected[0], len(expected))
    assert [scoring.nth_tied(totals, picked, best, nth) for nth in range(ties)] == expected


def test_a_kernel_compiles_for_read_only_and_for_writable_arrays_and_no_more():
    """Wrappers coerce everything else: an int column, a stride, a float32 compile nothing new."""
    pool = isched.InferencePool()
    for name in "abc":
        pool.join(name)
    pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([3, 1, 2])}, now=0)
    endpoints = pool.snapshot()
    wide = np.arange(12.0).reshape(3, 4)
    for column in (
        endpoints[isched.WAITING_QUEUE_SIZE],
        np.arange(3),
        np.arange(3, dtype=np.float32),
        np.arange(6.0)[::2],
        wide[:, 1],
        wide.T[0][:3],
    ):
        isched.minmax(column)
        isched.inverse_minmax(column)
        endpoints.with_columns({isched.WAITING_QUEUE_SIZE: column})
    isched.explain(
        isched.Scheduler(isched.default_profile()),
        isched.InferenceRequest(request_id="r", input_tokens=3),
        endpoints,
        now=0,
        rng=np.random.default_rng(0),
    )
    compiled = {name: len(k.signatures) for name, k in KERNELS.items() if name.startswith(scoring.__name__)}
    assert compiled["inferencesched._kernels.scoring.minmax"] >= 1
    # an array may be read-only or not: two for each array, and no kernel here is called with more than two kinds
    assert {name: count for name, count in compiled.items() if count > 4} == {}
