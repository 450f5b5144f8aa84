import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.framework import reads_together
from tests.profiles import LOCAL_SCORERS, endpoints_of
from tests.profiles import pools as full_pools

CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
REQUEST = isched.InferenceRequest(request_id="r", input_tokens=300)


@dataclass(frozen=True, slots=True)
class Mask:
    """A filter whose answer is given."""

    keep: tuple[bool, ...]

    def filter(self, request, endpoints, cycle):
        return np.array(self.keep)


@dataclass(frozen=True, slots=True)
class Scores:
    """A scorer whose answer is given, with a word on those alone that `known` says."""

    values: tuple[float, ...]
    known: tuple[bool, ...] | None = None

    def score(self, request, endpoints, cycle):
        return np.array(self.values)


@dataclass(frozen=True, slots=True)
class Partial(Scores):
    def scored(self, request, endpoints, cycle):
        return np.array(self.known)


@dataclass(frozen=True, slots=True)
class Says:
    """Something that reads."""

    reads: tuple[isched.Reads, ...]


def places(count):
    return endpoints_of({isched.WAITING_QUEUE_SIZE: [0.0] * count})


def kept(plugin, count):
    return plugin.filter(REQUEST, places(count), CYCLE).tolist()


def masks(several):
    size = st.shared(st.integers(1, 6), key="size")
    one = size.flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n).map(tuple))
    return st.lists(one, min_size=1, max_size=4) if several else one


@given(masks(True))
def test_all_any_and_not(keeps):
    filters, count = tuple(Mask(keep) for keep in keeps), len(keeps[0])
    columns = list(zip(*keeps, strict=True))
    assert kept(isched.AllOf(filters), count) == [all(column) for column in columns]
    assert kept(isched.AnyOf(filters), count) == [any(column) for column in columns]
    assert kept(isched.Not(filters[0]), count) == [not keep for keep in keeps[0]]


@given(masks(True))
def test_de_morgan_and_twice_not(keeps):
    filters, count = tuple(Mask(keep) for keep in keeps), len(keeps[0])
    nots = tuple(isched.Not(plugin) for plugin in filters)
    assert kept(isched.Not(isched.AllOf(filters)), count) == kept(isched.AnyOf(nots), count)
    assert kept(isched.Not(isched.AnyOf(filters)), count) == kept(isched.AllOf(nots), count)
    assert kept(isched.Not(nots[0]), count) == kept(filters[0], count)


@given(masks(False))
def test_prefer_keeps_what_passes_or_everybody(keep):
    count = len(keep)
    assert kept(isched.Prefer(Mask(keep)), count) == (list(keep) if any(keep) else [True] * count)
    assert kept(isched.Prefer(isched.Prefer(Mask(keep))), count) == kept(isched.Prefer(Mask(keep)), count)


def test_sticky_while_it_is_worth_it():
    """Who has most of the prompt, as long as somebody has enough of it."""
    sticky = isched.Prefer(isched.AtLeast(isched.PrefixCacheScorer(), 0.8))
    some = endpoints_of({isched.PREFIX_MATCH: [0.9, 0.8, 0.7, math.nan]})
    none = endpoints_of({isched.PREFIX_MATCH: [0.1, 0.0]})
    assert sticky.filter(REQUEST, some, CYCLE).tolist() == [True, True, False, False]
    assert sticky.filter(REQUEST, none, CYCLE).tolist() == [True, True]


def test_prefer_says_why_in_its_filter_s_words():
    busy = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 5.0),))
    health = endpoints_of({isched.signals.HEALTH: [0.0, 1.0]})
    assert isched.Prefer(isched.HealthFilter()).why_dropped(REQUEST, health, CYCLE, 0) == "health 0, less than 0.5"
    told = isched.Prefer(Mask((False, True))).why_dropped(REQUEST, places(2), CYCLE, 0)
    assert told == "others pass Mask(keep=(False, True))"
    assert kept(isched.Prefer(busy), 2) == [True, True]


@pytest.mark.parametrize(
    "answer", [[True, False], np.array([1.0, 0.0]), np.array([True]), np.array([[True, False]]), None], ids=repr
)
def test_a_filter_inside_that_breaks_its_contract_is_named(answer):
    class Broken:
        def __repr__(self):
            return "Broken()"

        def filter(self, request, endpoints, cycle):
            return answer

    for plugin in (isched.Prefer(Broken()), isched.Not(Broken()), isched.AllOf((Broken(),)), isched.AnyOf((Broken(),))):
        with pytest.raises(isched.FilterError, match=r"Broken\(\) returned .*allowed: bool\[2\]"):
            plugin.filter(REQUEST, places(2), CYCLE)


@pytest.mark.parametrize("answer", [[0.5, 0.5], np.array([0, 1]), np.array([0.5]), None], ids=repr)
def test_a_scorer_inside_that_breaks_its_contract_is_named(answer):
    class Broken:
        def __repr__(self):
            return "Broken()"

        def score(self, request, endpoints, cycle):
            return answer

    for ask in (isched.AtLeast(Broken(), 0.5).filter, isched.Lexicographic((Broken(),)).score):
        with pytest.raises(isched.ScoreError, match=r"Broken\(\) returned .*allowed: float64\[2\]"):
            ask(REQUEST, places(2), CYCLE)


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_a_score_out_of_range_is_named(value):
    with pytest.raises(isched.ScoreError, match=f"{value} for 'ep-1'"):
        isched.Lexicographic((Scores((0.5, value)),)).score(REQUEST, places(2), CYCLE)


# --- what they read ----------------------------------------------------------------------------------------------

A, B = isched.WAITING_QUEUE_SIZE, isched.RUNNING_REQUESTS
READS = st.lists(
    st.builds(isched.Reads, st.sampled_from([A, B]), st.sampled_from(["lower", "higher", ""]), st.booleans()),
    max_size=2,
    unique_by=lambda read: read.signal,
)


@given(st.lists(READS, max_size=4))
def test_what_is_read_is_the_union(several):
    together = reads_together([Says(tuple(reads)) for reads in several])
    for signal in (A, B):
        told = [read for reads in several for read in reads if read.signal == signal]
        found = [read for read in together if read.signal == signal]
        assert len(found) == bool(told)
        for read in found:
            ways = {each.better for each in told}
            assert read.better == (ways.pop() if len(ways) == 1 else "")
            assert read.required == any(each.required for each in told)


def test_nothing_is_promised_of_who_does_not_say():
    says = Says((isched.Reads(A, "lower"),))
    assert reads_together([says]) == (isched.Reads(A, "lower"),)
    assert reads_together([says, Mask((True,))]) == (isched.Reads(A, ""),)
    busy = isched.UtilizationFilter(((A, 5.0),))
    assert isched.AllOf((busy,)).reads == isched.AnyOf((busy,)).reads == (isched.Reads(A, "lower"),)
    assert isched.Not(busy).reads == (isched.Reads(A, "higher"),)
    assert isched.Not(isched.Not(busy)).reads == busy.reads
    assert isched.Prefer(busy).reads == (isched.Reads(A, ""),)
    assert isched.AtLeast(isched.QueueScorer(), 0.5).reads == (isched.Reads(A, "lower"),)
    both = isched.Lexicographic((isched.QueueScorer(), isched.RunningRequestsScorer()))
    assert both.reads == (isched.Reads(A, ""), isched.Reads(B, ""))


FILTERS = st.recursive(
    st.one_of(
        st.builds(lambda q: isched.UtilizationFilter(((A, q),)), st.sampled_from([0.0, 2.0, 4.0])),
        st.builds(lambda q: isched.UtilizationFilter(((B, q), (A, 3.0))), st.sampled_from([1.0, 3.0])),
        st.builds(
            isched.AtLeast, st.sampled_from([isched.QueueScorer(), isched.RunningRequestsScorer()]), st.just(0.5)
        ),
    ),
    lambda inner: st.one_of(
        st.builds(isched.Not, inner),
        st.builds(isched.Prefer, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda fs: isched.AllOf(tuple(fs))),
        st.lists(inner, min_size=1, max_size=3).map(lambda fs: isched.AnyOf(tuple(fs))),
    ),
    max_leaves=4,
)
COUNTS = st.lists(st.integers(0, 5).map(float), min_size=4, max_size=4)


@given(FILTERS, COUNTS, COUNTS, st.integers(0, 3), st.integers(0, 5).map(float))
def test_what_is_still_promised_of_a_combination_holds(plugin, queues, running, at, value):
    columns = {A: queues, B: running}
    for read in plugin.reads:
        old = columns[read.signal][at]
        if read.better and (value < old if read.better == "lower" else value > old):
            changed = columns | {read.signal: [*columns[read.signal][:at], value, *columns[read.signal][at + 1 :]]}
            before, after = (plugin.filter(REQUEST, endpoints_of(c), CYCLE)[at] for c in (columns, changed))
            assert after >= before


# --- lexicographic -----------------------------------------------------------------------------------------------


def ranked(rows, resolution):
    """Dense ranks of the tuples of levels, scaled to [0, 1]; by sorting a set."""
    keys = [tuple(round(value / resolution) if resolution else value for value in row) for row in rows]
    levels = sorted(set(keys))
    return [levels.index(key) / (len(levels) - 1) if len(levels) > 1 else 1.0 for key in keys]


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 0.1, 0.14, 0.3, 0.5, 1.0])] * 3), min_size=1, max_size=7),
    st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    st.integers(1, 3),
)
def test_ranks_are_those_of_the_sorted_tuples(rows, resolution, count):
    rows = [row[:count] for row in rows]
    scorers = tuple(Scores(column) for column in zip(*rows, strict=True))
    scores = isched.Lexicographic(scorers, resolution).score(REQUEST, places(len(rows)), CYCLE)
    assert scores.tolist() == pytest.approx(ranked(rows, resolution))


@given(st.lists(LOCAL_SCORERS, min_size=1, max_size=3), full_pools(), st.sampled_from([0.0, 0.05, 0.5]))
def test_the_order_is_the_first_scorer_s_then_the_next_s(scorers, endpoints, resolution):
    scores = isched.Lexicographic(tuple(scorers), resolution).score(REQUEST, endpoints, CYCLE)
    each = [scorer.score(REQUEST, endpoints, CYCLE) for scorer in scorers]
    assert ((scores >= 0) & (scores <= 1)).all() and scores.max() == 1.0
    for i, j in itertools.permutations(range(len(endpoints)), 2):
        levels = [np.rint(column[[i, j]] / resolution) if resolution else column[[i, j]] for column in each]
        first = next((one - other for one, other in levels if one != other), 0.0)
        assert np.sign(scores[i] - scores[j]) == np.sign(first)


@given(st.lists(st.sampled_from([0.0, 0.4, 1.0]), min_size=2, max_size=6), st.data())
def test_a_rank_does_not_fall_when_only_its_own_score_rises(values, data):
    at = data.draw(st.integers(0, len(values) - 1))
    higher = data.draw(st.sampled_from([v for v in (0.0, 0.4, 0.7, 1.0) if v >= values[at]]))
    risen = [*values[:at], higher, *values[at + 1 :]]
    before, after = (
        isched.Lexicographic((Scores(tuple(v)),)).score(REQUEST, places(len(values)), CYCLE)[at]
        for v in (values, risen)
    )
    assert after >= before - 1e-12


def test_who_nobody_has_a_word_on_has_no_score():
    one = Partial((0.0, 0.0, 0.0), (True, False, False))
    other = Partial((0.0, 0.0, 0.0), (False, True, False))
    both = isched.Lexicographic((one, other))
    assert both.score(REQUEST, places(3), CYCLE).tolist() == [1.0, 1.0, 0.0]
    assert both.scored(REQUEST, places(3), CYCLE).tolist() == [True, True, False]
    assert isched.Lexicographic((one, Scores((0.0,) * 3))).scored(REQUEST, places(3), CYCLE).all()


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.AllOf(()), "filters"),
        (lambda: isched.AnyOf(()), "filters"),
        (lambda: isched.AtLeast(isched.QueueScorer(), 1.5), "minimum"),
        (lambda: isched.AtLeast(isched.QueueScorer(), math.nan), "minimum"),
        (lambda: isched.Lexicographic(()), "scorers"),
        (lambda: isched.Lexicographic((isched.QueueScorer(),), -0.1), "resolution"),
        (lambda: isched.Lexicographic((isched.QueueScorer(),), math.inf), "resolution"),
    ],
)
def test_bad_parameters(make, parameter):
    with pytest.raises(isched.InvalidInputError) as error:
        make()
    assert error.value.parameter == parameter
