import math
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.filters.headers import host_and_port
from inferencesched.scorers.context import CONTEXT_LABEL, context_range
from inferencesched.testing import Scene, Server, all_checks_of
from tests import naive_affinity as naive
from tests.profiles import endpoints_of

REQUEST = isched.InferenceRequest(request_id="r")
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
HEAT = isched.Signal("heat", low=-math.inf)

VALUES = st.lists(st.none() | st.integers(-20, 20).map(float) | st.floats(-1e6, 1e6), min_size=1, max_size=7)
BETTER = st.sampled_from(("lower", "higher"))
RANGES = st.none() | st.tuples(st.floats(-50, 0), st.floats(1, 50))
COMPARISONS = {
    "LessThan": operator.lt,
    "LessThanOrEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqual": operator.ge,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
}


def heated(values):
    return endpoints_of({HEAT: [math.nan if value is None else value for value in values]})


# --- a filter and a scorer of any signal -------------------------------------------------------------------------


@given(
    VALUES, st.sampled_from(sorted(COMPARISONS)), st.integers(-20, 20), st.sampled_from(("Pass", "Fail")), st.booleans()
)
def test_the_filter_compares(values, comparison, threshold, missing, fallback):
    plugin = isched.EndpointAttributeFilter(HEAT, comparison, float(threshold), missing, fallback)
    keep = plugin.filter(REQUEST, heated(values), CYCLE).tolist()
    wanted = [missing == "Pass" if v is None else COMPARISONS[comparison](v, threshold) for v in values]
    assert keep == ([True] * len(values) if fallback and not any(wanted) else wanted)
    for i, kept in enumerate(keep):
        if not kept:
            assert comparison in plugin.why_dropped(REQUEST, heated(values), CYCLE, i)


@given(VALUES, BETTER, RANGES)
def test_the_scorer_is_its_formula(values, better, fixed):
    plugin = isched.EndpointAttributeScorer(HEAT, better, fixed)
    scores = plugin.score(REQUEST, heated(values), CYCLE)
    assert scores.tolist() == pytest.approx(naive.attribute_scores(values, better, fixed), abs=1e-9)
    assert all(0.0 <= score <= 1.0 for score in scores)
    assert plugin.scored(REQUEST, heated(values), CYCLE).tolist() == [value is not None for value in values]


@given(
    st.lists(st.none() | st.integers(-1000, 1000), min_size=1, max_size=7),
    BETTER,
    st.sampled_from((0.25, 1.0, 8.0)),
    st.integers(-500, 500),
)
def test_the_adaptive_range_does_not_see_units(values, better, scale, shift):
    """Scaled by a power of two and shifted, whole numbers stay exact: so do the scores."""
    plugin = isched.EndpointAttributeScorer(HEAT, better)
    other = [None if value is None else value * scale + shift for value in values]
    assert plugin.score(REQUEST, heated(values), CYCLE).tolist() == plugin.score(REQUEST, heated(other), CYCLE).tolist()


@given(VALUES, BETTER)
def test_which_way_is_better_turns_the_order_round(values, better):
    lower, higher = (
        isched.EndpointAttributeScorer(HEAT, each, (-30.0, 30.0)).score(REQUEST, heated(values), CYCLE)
        for each in ("lower", "higher")
    )
    known = np.array([value is not None for value in values])
    assert (lower + higher)[known].tolist() == pytest.approx([1.0] * int(known.sum()))


@given(VALUES, RANGES.filter(lambda limits: limits is not None), BETTER, st.data())
def test_with_a_fixed_range_nobody_else_matters(values, fixed, better, data):
    plugin, one = isched.EndpointAttributeScorer(HEAT, better, fixed), data.draw(st.sampled_from(values))
    together = plugin.score(REQUEST, heated(values), CYCLE)[values.index(one)]
    assert plugin.score(REQUEST, heated([one]), CYCLE)[0] == together


def test_a_signal_that_the_pool_lacks():
    for plugin in (isched.EndpointAttributeScorer(isched.Signal("odd"), "lower"),):
        with pytest.raises(isched.UnknownNameError, match="signal: got 'odd'"):
            plugin.score(REQUEST, heated([1.0]), CYCLE)


# --- context lengths ---------------------------------------------------------------------------------------------

RANGE = st.tuples(st.integers(0, 30_000), st.integers(0, 30_000)).map(sorted)


def length_scores(labels, tokens, **options):
    pool = isched.InferencePool()
    for i, label in enumerate(labels):
        pool.join(f"ep-{i}", labels={} if label is None else {CONTEXT_LABEL: label})
    request = isched.InferenceRequest(request_id="r", input_tokens=tokens)
    plugin, endpoints = isched.ContextLengthAware(**options), pool.snapshot()
    return plugin.score(request, endpoints, CYCLE).tolist(), plugin.filter(request, endpoints, CYCLE).tolist()


@given(st.lists(RANGE, min_size=1, max_size=5), st.integers(0, 40_000))
def test_ranges_score_by_their_formula_and_in_range_always_wins(ranges, tokens):
    scores, keep = length_scores([f"{low}-{high}" for low, high in ranges], tokens, filtering=True)
    assert scores == pytest.approx([naive.context_score(low, high, tokens) for low, high in ranges])
    fits = [low <= tokens <= high for low, high in ranges]
    assert keep == fits
    assert all((0.3 < score <= 1.0) if fit else (0.0 < score < 0.3) for score, fit in zip(scores, fits, strict=True))


@given(RANGE, st.integers(0, 40_000), st.integers(0, 40_000))
def test_out_of_range_the_nearer_is_better(bounds, one, other):
    def away(tokens):
        return max(bounds[0] - tokens, tokens - bounds[1])

    if min(away(one), away(other)) > 0:
        label = f"{bounds[0]}-{bounds[1]}"
        (first,), (second,) = length_scores([label], one)[0], length_scores([label], other)[0]
        assert (first > second) == (away(one) < away(other))


@given(st.integers(0, 1000), st.integers(1, 5000), st.integers(1, 5000))
def test_of_two_that_begin_alike_the_one_made_for_less_is_narrower(low, width, more):
    """With the same room in proportion, the narrower range scores better."""
    narrow, wide = length_scores([f"{low}-{low + width}", f"{low}-{low + width + more}"], low)[0]
    assert narrow > wide


def test_no_label_a_bad_one_and_no_length():
    labels = [None, "what", "0-100", "100-50", "5-5"]
    assert length_scores(labels, 5) == ([0.5, 0.0, length_scores(["0-100"], 5)[0][0], 0.0, 1.0], [True] * 5)
    assert length_scores(labels, 5, filtering=True)[1] == [True, False, True, False, True]
    assert length_scores(labels, None, filtering=True) == ([0.5, 0.0, 0.5, 0.0, 0.5], [True, False, True, False, True])


@pytest.mark.parametrize(("text", "bounds"), [("0-2048", (0, 2048)), (" 1 - +2 ", (1, 2)), ("7-7", (7, 7))])
def test_a_range(text, bounds):
    assert context_range(text) == bounds


@pytest.mark.parametrize(
    "text", ["", "-", "5", "1-2-3", "-1-5", "a-b", "1_0-20", "9-8", "1.5-2", "0-9223372036854775808", "٣-٤"]
)
def test_what_is_no_range(text):
    with pytest.raises(isched.InvalidInputError, match="context range"):
        context_range(text)


# --- headers -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(("a", "b", None)), min_size=1, max_size=5), st.sampled_from(("a", "B", "", None)))
def test_a_header_that_names_a_label_value(labels, asked):
    pool = isched.InferencePool()
    for i, label in enumerate(labels):
        pool.join(f"ep-{i}", labels={} if label is None else {"slice": label})
    request = isched.InferenceRequest(request_id="r", headers={} if asked is None else {"x-slice": asked})
    scores = isched.HeaderLabelAffinityScorer("X-Slice", "slice").score(request, pool.snapshot(), CYCLE)
    assert scores.tolist() == [float(bool(asked) and label == asked) for label in labels]


def asked_for(header, addresses):
    pool = isched.InferencePool()
    for i, address in enumerate(addresses):
        pool.join(f"ep-{i}", address=address)
    request = isched.InferenceRequest(request_id="r", headers={"test-epp-endpoint-selection": header})
    plugin, endpoints = isched.HeaderEndpointFilter(), pool.snapshot()
    order = plugin.order(request, endpoints).tolist()
    assert np.flatnonzero(plugin.filter(request, endpoints, CYCLE)).tolist() == sorted(order)
    return order


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ("10.0.0.2", [1]),
        ("10.0.0.2:81, 10.0.0.1:80", [0]),
        ("10.0.0.3,, 10.0.0.1 ,10.0.0.3:82", [2, 0]),
        ("[fd00::1]:83", [3]),
        ("fd00::1", [3]),
        ("[fd00::1]", [3]),
        ("[fd00::1]:84", []),
        ("", []),
        (" , ", []),
        ("10.0.0.9", []),
        ("10.0.0.1:80:80", []),
    ],
)
def test_addresses_in_the_order_of_the_header(header, order):
    assert asked_for(header, ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:82", "[fd00::1]:83"]) == order


def test_several_endpoints_on_one_ip():
    assert asked_for("10.0.0.1", ["10.0.0.1:80", "10.0.0.1:81"]) == [1]
    assert asked_for("10.0.0.1:80,10.0.0.1:81", ["10.0.0.1:80", "10.0.0.1:81"]) == [0]


def test_nobody_without_the_header():
    endpoints = endpoints_of({HEAT: [1.0]})
    assert isched.HeaderEndpointFilter().filter(REQUEST, endpoints, CYCLE).tolist() == [False]


def test_an_address_has_two_parts():
    assert host_and_port("[fd00::1") == ("fd00::1", "") and host_and_port(" host:1 ") == ("host", "1")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: isched.EndpointAttributeFilter(HEAT, "Around", 1.0), "comparison: got 'Around', allowed: one of Less"),
        (lambda: isched.EndpointAttributeFilter(HEAT, "Equal", math.nan), "value: got nan"),
        (lambda: isched.EndpointAttributeFilter(HEAT, "Equal", 1.0, "pass"), "on_missing: got 'pass'"),
        (lambda: isched.EndpointAttributeScorer(HEAT, "best"), "better: got 'best'"),
        (lambda: isched.EndpointAttributeScorer(HEAT, "lower", (1.0, 1.0)), "fixed_range: .*min < max"),
        (lambda: isched.EndpointAttributeScorer(HEAT, "lower", (0.0, math.inf)), "fixed_range"),
        (lambda: isched.EndpointAttributeScorer(HEAT, "lower", (math.nan, 1.0)), "fixed_range"),
        (lambda: isched.ContextLengthAware(""), "label: got ''"),
        (lambda: isched.HeaderLabelAffinityScorer("", "a"), "header: got ''"),
        (lambda: isched.HeaderLabelAffinityScorer("a", ""), "label: got ''"),
        (lambda: isched.HeaderEndpointFilter(""), "header: got ''"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()


# --- the contract ------------------------------------------------------------------------------------------------

SCENES = [
    Scene(
        "ranges and addresses",
        isched.InferenceRequest(
            request_id="r",
            input_tokens=700,
            headers={"x-slice": "a", "test-epp-endpoint-selection": "ep-2.example, ep-0.example:8000"},
        ),
        tuple(
            Server(f"ep-{i}", i, 10 + i, {"queue": 1.0}, labels)
            for i, labels in enumerate([{}, {CONTEXT_LABEL: "0-900", "slice": "a"}, {CONTEXT_LABEL: "1000-2000"}])
        ),
    )
]
QUEUE, USAGE = isched.WAITING_QUEUE_SIZE, isched.KV_CACHE_USAGE
CHECKS = [
    check
    for plugin in (
        isched.EndpointAttributeFilter(QUEUE, "LessThan", 10.0, fallback_on_empty=True),
        isched.EndpointAttributeFilter(USAGE, "GreaterThanOrEqual", 0.5, "Fail"),
        isched.EndpointAttributeFilter(USAGE, "NotEqual", 0.5),
        isched.EndpointAttributeScorer(QUEUE, "lower"),
        isched.EndpointAttributeScorer(USAGE, "higher", (0.2, 0.8)),
        isched.UtilizationFilter(((QUEUE, 5.0), (USAGE, 0.8)), True),
        isched.ContextLengthAware(filtering=True),
        isched.ContextLengthAware(),
        isched.HeaderLabelAffinityScorer("x-slice", "slice"),
        isched.HeaderEndpointFilter(),
    )
    for check in all_checks_of(plugin, more=SCENES)
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check):
    check()
