"""With which probability is whom picked? Against counting every draw there is, and against picking many times."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from tests.profiles import endpoints_of

TOTALS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, -1.0]), min_size=1, max_size=6)
PICKED = st.lists(st.integers(-1, 2).map(float), min_size=6, max_size=6)

STOCHASTIC = [
    isched.RandomPicker(),
    isched.WeightedRandomPicker(),
    isched.MaxScorePicker(),
    isched.PowerOfTwoPicker(),
    isched.PowerOfTwoPicker(3),
    isched.EpsilonGreedyPicker(0.3),
    isched.EpsilonGreedyPicker(0.0),
    isched.EpsilonGreedyPicker(1.0, 2),
    isched.SoftmaxPicker(0.5),
    isched.SoftmaxPicker(0.5, normalized=False, count=2),
    isched.SoftmaxPicker(0.0),
]


def places(totals, picked=None):
    return endpoints_of({isched.LAST_PICKED: ([-1.0] * 6 if picked is None else picked)[: len(totals)]})


def propensities(picker, totals, picked=None):
    return picker.propensities(np.array(totals, dtype=np.float64), places(totals, picked))


@pytest.mark.parametrize("picker", STOCHASTIC, ids=repr)
def test_who_draws_says_so(picker):
    assert isinstance(picker, isched.StochasticPicker)
    assert not isinstance(isched.RoundRobinPicker(), isched.StochasticPicker)  # its turn is no chance


@settings(max_examples=40)
@given(st.sampled_from(STOCHASTIC), TOTALS, PICKED)
def test_propensities_are_probabilities(picker, totals, picked):
    shares = propensities(picker, totals, picked)
    assert shares.shape == (len(totals),) and shares.dtype == np.float64
    assert (shares >= 0).all() and shares.sum() == pytest.approx(1.0, abs=1e-12)
    order = sorted(range(len(totals)), key=lambda i: totals[i])
    if not isinstance(picker, isched.RandomPicker):
        for worse, better in itertools.pairwise(order):
            if totals[worse] < totals[better]:
                assert shares[worse] <= shares[better] + 1e-12


@pytest.mark.parametrize("picker", STOCHASTIC, ids=repr)
@pytest.mark.parametrize(
    ("totals", "picked"),
    [([1.0, 3.0, 0.0, 4.0], None), ([2.0, 2.0, 2.0, 0.5], [3, 1, 1, 0]), ([0.0, -1.0, 0.0], None), ([5.0], None)],
)
def test_propensities_are_how_often_it_happens(picker, totals, picked):
    """Chi-square over 3,000 picks; 16.27 is the 99.9th percentile of 3 degrees of freedom. What is never never is."""
    picked = None if picked is None else [float(p) for p in picked]
    shares, endpoints = propensities(picker, totals, picked), places(totals, picked)
    state, column = isched.CycleState(0.0, np.random.default_rng(5), 0), np.array(totals)
    counts = Counter(int(picker.pick(column, endpoints, state)[0]) for _ in range(3000))
    assert {i for i in counts if shares[i] == 0} == set()
    assert sum((counts[i] - 3000 * p) ** 2 / (3000 * p) for i, p in enumerate(shares) if p > 0) < 16.27


@given(TOTALS, PICKED, st.integers(1, 7))
def test_the_best_of_a_few_by_counting_every_draw(totals, picked, choices):
    wins, size = Counter(), min(choices, len(totals))
    draws = list(itertools.permutations(range(len(totals)), size))
    for draw in draws:
        wins[min(draw, key=lambda i: (-totals[i], picked[i]))] += 1  # the first drawn of those tied
    shares = propensities(isched.PowerOfTwoPicker(choices), totals, picked)
    assert shares.tolist() == pytest.approx([wins[i] / len(draws) for i in range(len(totals))])


@given(TOTALS, st.sampled_from([0.05, 0.5, 3.0]), st.booleans())
def test_softmax_by_the_formula(totals, temperature, normalized):
    low, high = min(totals), max(totals)
    whole = temperature * ((high - low) if normalized else 1.0)
    likely = [math.exp((total - high) / whole) if high > low else 1.0 for total in totals]
    shares = propensities(isched.SoftmaxPicker(temperature, normalized), totals)
    assert shares.tolist() == pytest.approx([value / sum(likely) for value in likely])


@given(TOTALS, st.sampled_from([0.25, 4.0]), st.sampled_from([-3.0, 10.0]))
def test_normalized_softmax_knows_no_scale_and_no_origin(totals, scale, shift):
    one, other = (propensities(isched.SoftmaxPicker(0.3), t) for t in (totals, [scale * x + shift for x in totals]))
    assert one.tolist() == pytest.approx(other.tolist())


def test_softmax_of_hardly_any_difference():
    """Temperatures and differences as small as floats can be: still the best, never a number that is none."""
    picker = isched.SoftmaxPicker(5e-324)
    assert propensities(picker, [0.0, 5e-324, 0.0]).tolist() == [0.0, 1.0, 0.0]
    assert propensities(isched.SoftmaxPicker(5e-324, normalized=False), [0.0, 2.0]).tolist() == [0.0, 1.0]
    assert propensities(picker, [7.0, 7.0]).tolist() == [0.5, 0.5]


class Fixed:
    """A generator whose draws are given."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self, size=None):
        return np.array([self.draws.pop(0) for _ in range(size)]) if size else self.draws.pop(0)


def picks(picker, totals, *draws):
    return picker.pick(np.array(totals), places(totals), isched.CycleState(0.0, Fixed(*draws), 0)).tolist()


def test_epsilon_is_tried_first_and_the_best_are_behind():
    best = isched.EpsilonGreedyPicker(0.1, 3)
    assert picks(best, [1.0, 3.0, 2.0, 0.0], 0.05, 0.99, 0, 0, 0, 0) == [3, 1, 2]
    assert picks(best, [1.0, 3.0, 2.0, 0.0], 0.05, 0.3, 0, 0, 0, 0) == [1, 2, 0]  # the best is tried as well
    assert picks(best, [1.0, 3.0, 2.0, 0.0], 0.5, 0, 0, 0, 0) == [1, 2, 0]
    assert picks(isched.EpsilonGreedyPicker(0.1), [1.0, 3.0], 0.05, 0.0) == [0]
    assert picks(isched.EpsilonGreedyPicker(1.0, 2), [1.0], 0.05, 0.0, 0.0) == [0]


def test_an_epsilon_of_nought_never_tries():
    assert picks(isched.EpsilonGreedyPicker(0.0), [1.0, 3.0, 2.0], 0.0, 0.0) == [1]


def test_totals_whose_sum_is_no_float_still_have_shares():
    assert propensities(isched.WeightedRandomPicker(), [1.5e308, 1.5e308, 0.0]).tolist() == [0.5, 0.5, 0.0]
    assert propensities(isched.WeightedRandomPicker(), [5e-324, 1.5e-323]).tolist() == [0.25, 0.75]


def test_softmax_takes_a_draw_of_exactly_nought():
    assert picks(isched.SoftmaxPicker(count=3), [1.0, 1.0, 2.0], 0.5, 0.0, 0.5) == [1, 2, 0]


def test_the_same_draws_as_ever():
    """Two choices are drawn as they were before there could be more: a replay stays a replay."""
    assert [picks(isched.PowerOfTwoPicker(), [0.0, 1.0, 2.0], 0.4, x) for x in (0.2, 0.6)] == [[1, 0], [2, 1]]


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.EpsilonGreedyPicker(1.1), "epsilon"),
        (lambda: isched.EpsilonGreedyPicker(math.nan), "epsilon"),
        (lambda: isched.EpsilonGreedyPicker(count=0), "count"),
        (lambda: isched.SoftmaxPicker(-0.1), "temperature"),
        (lambda: isched.SoftmaxPicker(math.inf), "temperature"),
        (lambda: isched.SoftmaxPicker(count=0), "count"),
        (lambda: isched.PowerOfTwoPicker(0), "choices"),
    ],
)
def test_bad_parameters(make, parameter):
    with pytest.raises(isched.InvalidInputError) as error:
        make()
    assert error.value.parameter == parameter
