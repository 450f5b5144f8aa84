import math
from collections import Counter

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.placement import RequestKey, has_room, preference
from tests import naive_placement as naive

NAMES = [f"ep-{i}" for i in range(12)]
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0, math.nan])
LOADS = st.integers(0, 9).map(float) | st.just(math.nan)
KEYS = st.integers(0, 2**64 - 1)
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)


def pool_of(weights):
    """A pool of these names with these capacities."""
    pool = isched.InferencePool()
    for name, weight in weights.items():
        pool.join(name, values={isched.CAPACITY_WEIGHT: weight})
    return pool


def endpoints_of(weights, loads=None):
    endpoints = pool_of(weights).snapshot()
    if loads is None:
        return endpoints
    return endpoints.with_columns({isched.INFLIGHT_REQUESTS: np.array([loads[name] for name in weights])})


def asked(word):
    return isched.InferenceRequest(request_id="r", session_id=word)


def order_of(key, endpoints, **how):
    return [endpoints.name(i) for i in preference(key, endpoints, **how)]


def kept(plugin, request, endpoints):
    return {endpoints.name(int(i)) for i in np.flatnonzero(plugin.filter(request, endpoints, CYCLE))}


@st.composite
def crowds(draw):
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 9))]
    return {name: draw(WEIGHTS) for name in names}


# --- the key -----------------------------------------------------------------------------------------------------


def test_a_request_is_known_by_what_the_key_says():
    hashes = np.array([7, 9, 11], dtype=np.uint64)
    request = isched.InferenceRequest(
        request_id="r",
        model="m",
        tenant="t",
        session_id="s",
        fairness_id="f",
        headers={"x-user": " u "},
        block_hashes=hashes,
    )
    words = {"session": "s", "model": "m", "adapter": "m", "tenant": "t", "fairness": "f"}
    for source, word in words.items():
        assert RequestKey(source).of(request) == xxhash.xxh3_64_intdigest(word.encode())
    assert RequestKey("header", "x-user").of(request) == xxhash.xxh3_64_intdigest(b"u")
    assert [RequestKey("prefix", blocks=n).of(request) for n in (1, 2, 3, 9)] == [7, 9, 11, 11]


def test_a_prompt_without_block_hashes_is_known_by_its_first_tokens():
    def key(ids, **how):
        return RequestKey("prefix", **how).of(
            isched.InferenceRequest(request_id="r", tokens=np.array(ids, dtype=np.uint32))
        )

    assert key([1, 2, 3], tokens=2) == key([1, 2, 4, 5], tokens=2) != key([1, 3], tokens=2)
    assert key([1, 2]) != key([1, 2, 3])
    assert key([]) is None


@pytest.mark.parametrize("source", ["session", "adapter", "model", "tenant", "fairness", "prefix"])
def test_a_request_may_have_no_key(source):
    bare = isched.InferenceRequest(request_id="r")
    endpoints = endpoints_of({"a": 1.0, "b": 1.0})
    key = RequestKey(source)
    assert key.of(bare) is None
    assert isched.RendezvousFilter(key).filter(bare, endpoints, CYCLE).tolist() == [True, True]
    assert isched.BoundedLoadFilter(key).filter(bare, endpoints, CYCLE).tolist() == [True, True]
    for scorer in (isched.RendezvousScorer(key), isched.BoundedLoadScorer(key)):
        assert scorer.score(bare, endpoints, CYCLE).tolist() == [0.0, 0.0]
        assert scorer.scored(bare, endpoints, CYCLE).tolist() == [False, False]
        assert scorer.scored(asked("s"), endpoints, CYCLE).all() == (source == "session")


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"source": "cookie"}, "source"),
        ({"source": "header"}, "header"),
        ({"source": "session", "header": "x"}, "header"),
        ({"source": "header", "header": "X-User"}, "header"),
        ({"source": "prefix", "blocks": 0}, "blocks"),
        ({"source": "prefix", "tokens": 1.5}, "tokens"),
    ],
)
def test_bad_keys(arguments, parameter):
    with pytest.raises(isched.InvalidInputError) as error:
        RequestKey(**arguments)
    assert error.value.parameter == parameter


@pytest.mark.parametrize("plugin", [isched.RendezvousFilter, isched.RendezvousScorer])
def test_bad_replicas(plugin):
    with pytest.raises(isched.InvalidInputError, match="replicas: got 0"):
        plugin(replicas=0)


@pytest.mark.parametrize("plugin", [isched.BoundedLoadFilter, isched.BoundedLoadScorer])
@pytest.mark.parametrize("balance", [0.0, -1.0, math.inf, math.nan])
def test_bad_balances(plugin, balance):
    with pytest.raises(isched.InvalidInputError, match="balance: got"):
        plugin(balance=balance)
    with pytest.raises(isched.InvalidInputError, match="replicas: got -1"):
        plugin(replicas=-1)


# --- the order ---------------------------------------------------------------------------------------------------


@given(KEYS, crowds())
def test_the_order_is_the_twin_s(key, weights):
    assert order_of(key, endpoints_of(weights)) == naive.preference(key, weights)
    assert order_of(key, endpoints_of(weights), weighted=False) == naive.preference(key, dict.fromkeys(weights, 1.0))


@given(KEYS, crowds(), st.data())
def test_who_leaves_moves_nobody_else(key, weights, data):
    """The order of the others is what it was, whether somebody left the pool or was filtered out."""
    gone = data.draw(st.sampled_from(sorted(weights)))
    whole = endpoints_of(weights)
    left = {name: weight for name, weight in weights.items() if name != gone}
    if any(weight > 0 for weight in left.values()) == any(weight > 0 for weight in weights.values()):
        expected = [name for name in order_of(key, whole) if name != gone]
        keep = np.array([name != gone for name in whole.names])
        if left:
            assert order_of(key, endpoints_of(left)) == order_of(key, whole.where(keep)) == expected


@settings(max_examples=50)
@given(crowds(), st.integers(1, 3), st.data())
def test_only_the_keys_of_a_departed_endpoint_move(weights, replicas, data):
    plugin = isched.RendezvousFilter(replicas=replicas)
    weights = {name: 1.0 if math.isnan(weight) else weight + 0.5 for name, weight in weights.items()} | {"x": 1.0}
    gone = data.draw(st.sampled_from(sorted(weights)))
    left = {name: weight for name, weight in weights.items() if name != gone}
    before, after = endpoints_of(weights), endpoints_of(left) if left else None
    for n in range(20):
        had = kept(plugin, asked(f"s-{n}"), before)
        assert len(had) == min(replicas, len(weights))
        if after is not None:
            has = kept(plugin, asked(f"s-{n}"), after)
            assert has == had if gone not in had else had - {gone} <= has and gone not in has


def test_keys_fall_in_proportion_to_the_weights():
    """Chi-square over 6,000 keys, 3 degrees of freedom: 16.27 is the 99.9th percentile."""
    weights = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 1.0, "e": 0.0}
    endpoints, count = endpoints_of(weights), 6000
    rng = np.random.default_rng(11)
    for fair, how in ((weights, True), (dict.fromkeys(weights, 1.0), False)):
        keys = rng.integers(0, 2**64, count, dtype=np.uint64)
        firsts = Counter(order_of(int(key), endpoints, weighted=how)[0] for key in keys)
        expected = {name: count * weight / sum(fair.values()) for name, weight in fair.items()}
        assert firsts["e"] == 0 or not how
        square = sum((firsts[name] - value) ** 2 / value for name, value in expected.items() if value)
        assert square < (16.27 if how else 18.47)  # 4 degrees for the even one


def test_a_second_choice_is_as_even_as_the_first():
    """What one endpoint gives up is spread over all others, not heaped on a neighbour."""
    endpoints = endpoints_of(dict.fromkeys(NAMES[:6], 1.0))
    seconds = Counter(order_of(key, endpoints)[1] for key in range(6000) if order_of(key, endpoints)[0] == NAMES[0])
    total = sum(seconds.values())
    assert set(seconds) == set(NAMES[1:6])
    square = sum((count - total / 5) ** 2 / (total / 5) for count in seconds.values())
    assert square < 18.47  # 4 degrees of freedom, 99.9 %


# --- the bound ---------------------------------------------------------------------------------------------------


@given(crowds(), st.data(), st.sampled_from([0.01, 0.25, 1.0, 5.0]))
def test_room_is_the_twin_s_and_somebody_has_it(weights, data, balance):
    loads = {name: data.draw(LOADS) for name in weights}
    endpoints = endpoints_of(weights, loads)
    room = {endpoints.name(int(i)) for i in np.flatnonzero(has_room(endpoints, balance))}
    assert room == naive.with_room(loads, weights, balance)
    assert room


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=8), st.sampled_from([0.01, 0.25, 1.0]))
def test_for_equal_weights_the_bound_is_the_paper_s(loads, balance):
    """Capacity ceil((1 + e) m / n), m with the new one: it may take one more where that is not exceeded."""
    names = dict(zip(NAMES, loads, strict=False))
    endpoints = endpoints_of(dict.fromkeys(names, 1.0), names)
    # as a whole number first: (1 + e) m / n may lie a rounding above the integer that it is
    capacity = math.ceil(round((1 + balance) * (sum(loads) + 1) / len(loads), 9))
    assert has_room(endpoints, balance).tolist() == [load + 1 <= capacity for load in loads]


@settings(max_examples=40)
@given(
    st.integers(2, 6),
    st.sampled_from([0.1, 0.25, 1.0]),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=60),
)
def test_no_placement_goes_over_the_bound(count, balance, steps):
    """Four hot keys over a pool that books and settles: each placement leaves its endpoint within the ceiling."""
    pool = pool_of(dict.fromkeys(NAMES[:count], 1.0))
    plugin = isched.BoundedLoadFilter(balance=balance)
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), filters=(plugin,)))
    rng, running = np.random.default_rng(0), []
    for word, ends in steps:
        if ends and running:
            running.pop(0).complete(now=1.0)
        booked = scheduler.schedule_and_reserve(asked(f"s-{word}"), pool, now=1.0, rng=rng)
        running.append(booked)
        load = pool.snapshot()[isched.INFLIGHT_REQUESTS]
        most = math.ceil(round((1 + balance) * load.sum() / count, 9))
        assert load[pool.names.index(booked.endpoint)] <= most


@given(KEYS, crowds(), st.data(), st.integers(1, 3))
def test_a_full_endpoint_hands_on_along_the_key_s_order(key, weights, data, replicas):
    loads = {name: data.draw(LOADS) for name in weights}
    endpoints = endpoints_of(weights, loads)
    request = isched.InferenceRequest(request_id="r", block_hashes=np.array([key], dtype=np.uint64))
    prefix = RequestKey("prefix")
    room = naive.with_room(loads, weights, 0.25)
    expected = [name for name in naive.preference(key, weights) if name in room][:replicas]
    assert kept(isched.BoundedLoadFilter(prefix, replicas=replicas), request, endpoints) == set(expected)
    scores = isched.BoundedLoadScorer(prefix, replicas=replicas).score(request, endpoints, CYCLE)
    assert scores.tolist() == pytest.approx(
        [1 - expected.index(name) / replicas if name in expected else 0.0 for name in endpoints.names]
    )


# --- scores, and which way is better -----------------------------------------------------------------------------


@given(KEYS, crowds(), st.integers(1, 4))
def test_a_score_falls_with_the_rank(key, weights, replicas):
    endpoints = endpoints_of(weights)
    request = isched.InferenceRequest(request_id="r", block_hashes=np.array([key], dtype=np.uint64))
    scores = isched.RendezvousScorer(RequestKey("prefix"), replicas).score(request, endpoints, CYCLE)
    order = naive.preference(key, weights)
    assert scores.tolist() == pytest.approx([max(0.0, 1 - order.index(n) / replicas) for n in endpoints.names])
    assert set(scores > 0) <= {True, False} and (scores > 0).sum() == min(replicas, len(weights))


PLUGINS = st.one_of(
    st.builds(isched.RendezvousFilter, st.just(RequestKey("prefix")), st.integers(1, 3)),
    st.builds(
        isched.BoundedLoadFilter, st.just(RequestKey("prefix")), st.sampled_from([0.1, 0.5, 4.0]), st.integers(1, 3)
    ),
    st.builds(isched.RendezvousScorer, st.just(RequestKey("prefix")), st.integers(1, 3)),
    st.builds(
        isched.BoundedLoadScorer, st.just(RequestKey("prefix")), st.sampled_from([0.1, 0.5, 4.0]), st.integers(1, 3)
    ),
)


@settings(max_examples=200)
@given(PLUGINS, KEYS, crowds(), st.data())
def test_what_is_declared_better_never_makes_it_worse(plugin, key, weights, data):
    """One endpoint's signal improves, the others' stay."""
    weights = {name: 1.0 if math.isnan(weight) else weight for name, weight in weights.items()}
    loads = {name: data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])) for name in weights}
    name, by = data.draw(st.sampled_from(sorted(weights))), data.draw(st.sampled_from([0.25, 1.0, 3.0]))
    request = isched.InferenceRequest(request_id="r", block_hashes=np.array([key], dtype=np.uint64))
    at = list(weights).index(name)

    def fares(weights, loads):
        endpoints = endpoints_of(weights, loads)
        if isinstance(plugin, (isched.RendezvousFilter, isched.BoundedLoadFilter)):
            return float(plugin.filter(request, endpoints, CYCLE)[at])
        return plugin.score(request, endpoints, CYCLE)[at]

    before = fares(weights, loads)
    declared = {read.signal: read.better for read in plugin.reads}
    assert declared[isched.CAPACITY_WEIGHT] == "higher"
    assert fares(weights | {name: weights[name] + by}, loads) >= before
    if isched.INFLIGHT_REQUESTS in declared:
        assert declared[isched.INFLIGHT_REQUESTS] == "lower"
        assert fares(weights, loads | {name: max(0.0, loads[name] - by)}) >= before


def test_without_weights_none_are_read():
    for plugin in (isched.RendezvousFilter, isched.RendezvousScorer):
        assert plugin(weighted=False).reads == ()
    for plugin in (isched.BoundedLoadFilter, isched.BoundedLoadScorer):
        assert [read.signal for read in plugin(weighted=False).reads] == [isched.INFLIGHT_REQUESTS]


def test_a_pool_of_no_capacity_at_all_still_serves():
    endpoints = endpoints_of({"a": 0.0, "b": 0.0}, {"a": 3.0, "b": 0.0})
    assert has_room(endpoints, 0.25).tolist() == [False, True]
    assert sorted(order_of(5, endpoints)) == ["a", "b"]
