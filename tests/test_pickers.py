import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from tests import naive
from tests.profiles import PICKERS, endpoints_of

TOTALS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.5, -1.0]), min_size=1, max_size=9)


def cycle(seed=0, sequence=0):
    return isched.CycleState(0.0, np.random.default_rng(seed), sequence)


def pick(picker, totals, picked=None, state=None):
    endpoints = endpoints_of({isched.LAST_PICKED: [-1.0] * len(totals) if picked is None else picked})
    return picker.pick(np.array(totals, dtype=np.float64), endpoints, state or cycle()).tolist()


def firsts(picker, totals, rounds=4000):
    endpoints, state = endpoints_of({isched.LAST_PICKED: [-1.0] * len(totals)}), cycle(1)
    column = np.array(totals, dtype=np.float64)
    counts = Counter(int(picker.pick(column, endpoints, state)[0]) for _ in range(rounds))
    return [counts[i] / rounds for i in range(len(totals))]


@given(PICKERS, TOTALS, st.integers(0, 2**32), st.integers(0, 99))
def test_every_picker_keeps_the_contract(picker, totals, seed, sequence):
    """Distinct positions, no more than asked for and at least one; equal arguments, equal answer."""
    answers = [pick(picker, totals, state=cycle(seed, sequence)) for _ in range(2)]
    assert answers[0] == answers[1]
    expected = picker.choices if isinstance(picker, isched.PowerOfTwoPicker) else picker.count
    assert len(answers[0]) == len(set(answers[0])) == min(expected, len(totals))
    assert all(0 <= position < len(totals) for position in answers[0])


@given(TOTALS, st.data(), st.integers(0, 2**32))
def test_max_score_takes_the_best_then_the_longest_waiting(totals, data, seed):
    picked = data.draw(st.lists(st.integers(-1, 2).map(float), min_size=len(totals), max_size=len(totals)))
    (one,) = pick(isched.MaxScorePicker(), totals, picked, cycle(seed))
    assert one in naive.best_of(totals, picked)
    order = pick(isched.MaxScorePicker(len(totals)), totals, picked, cycle(seed))
    keys = [(-totals[i], picked[i]) for i in order]
    assert keys == sorted(keys)


def test_a_tie_of_those_never_picked_is_drawn_evenly():
    shares = firsts(isched.MaxScorePicker(), [1.0, 0.5, 1.0, 1.0])
    assert shares[1] == 0.0
    assert [shares[i] for i in (0, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_random_is_even_whatever_the_totals():
    assert firsts(isched.RandomPicker(), [0.0, 9.0, 1.0, 5.0]) == pytest.approx([0.25] * 4, abs=0.03)


def test_weighted_random_follows_the_totals():
    assert firsts(isched.WeightedRandomPicker(), [1.0, 3.0, 0.0, 4.0]) == pytest.approx(
        [0.125, 0.375, 0, 0.5], abs=0.03
    )
    assert firsts(isched.WeightedRandomPicker(), [0.0, -1.0]) == pytest.approx([0.5, 0.5], abs=0.03)
    assert pick(isched.WeightedRandomPicker(3), [0.0, 1.0, -2.0])[0] == 1  # what is 0 or less comes last


def test_weighted_random_knows_totals_too_small_to_divide_by():
    """A half-life score of a very long queue is as small as a float can be: its share, not an overflow."""
    tiny = 5e-324
    assert firsts(isched.WeightedRandomPicker(), [tiny, 3 * tiny]) == pytest.approx([0.25, 0.75], abs=0.03)
    assert firsts(isched.WeightedRandomPicker(), [tiny, 1.0]) == [0.0, 1.0]


class Fixed:
    """A generator whose draws are given."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self, size=None):
        return np.array([self.draws.pop(0) for _ in range(size)]) if size else self.draws.pop(0)


def test_weighted_random_takes_a_draw_of_exactly_nought():
    state = isched.CycleState(0.0, Fixed(0.5, 0.0, 0.5), 0)
    assert pick(isched.WeightedRandomPicker(3), [1.0, 1.0, 2.0], state=state) == [1, 2, 0]


def test_round_robin_turns_with_the_commits():
    assert [pick(isched.RoundRobinPicker(), [0, 0, 0], state=cycle(0, n))[0] for n in range(5)] == [0, 1, 2, 0, 1]
    assert pick(isched.RoundRobinPicker(2), [0, 0, 0], state=cycle(0, 2)) == [2, 0]


def test_the_better_of_two():
    totals = [0.0, 1.0, 2.0, 3.0]
    shares = firsts(isched.PowerOfTwoPicker(), totals, rounds=6000)
    assert shares == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6], abs=0.03)  # the best of 2 of 4, by counting pairs
    assert pick(isched.PowerOfTwoPicker(), [7.0]) == [0]
    waiting = Counter(pick(isched.PowerOfTwoPicker(), [1.0, 1.0], [4.0, 2.0], cycle(seed))[0] for seed in range(20))
    assert waiting == {1: 20}  # the same total: who waited longer


@pytest.mark.parametrize(
    "picker", [isched.MaxScorePicker, isched.RandomPicker, isched.WeightedRandomPicker, isched.RoundRobinPicker]
)
@pytest.mark.parametrize("count", [0, -1, 1.5, math.nan])
def test_bad_counts(picker, count):
    with pytest.raises(isched.InvalidInputError, match=f"count: got {count}, allowed: an integer of at least 1"):
        picker(count)
