"""Saturation detectors, staleness, stages, reach: formulas against slow twins, and laws."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InvalidInputError
from inferencesched.filters.labels import ROLE_LABEL
from inferencesched.flowcontrol import (
    CapacityWeighted,
    ConcurrencyDetector,
    Greatest,
    Hysteresis,
    Mean,
    ObservedGate,
    Quantile,
    Reading,
    RequestReach,
    SaturationGate,
    Stages,
    Stale,
    UtilizationDetector,
    saturation_by_stage,
)
from inferencesched.flowcontrol.stages import PARTS, STAGE_LABEL
from tests import naive_saturation as naive

NAN = st.just(nan)
AGGREGATES = {"mean": Mean(), "weighted": CapacityWeighted(), "max": Greatest(), "quantile": Quantile(0.75)}
STALES = st.builds(
    Stale,
    st.sampled_from([0.2, 1.0]),
    st.sampled_from(["last", "saturated", "ignore"]),
    st.sampled_from([0.5, 10.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
ROLES = st.sampled_from(["prefill", "decode", "both", "", "encode"])
SERVERS = st.fixed_dictionaries(
    {
        "waiting": st.integers(0, 20).map(float) | NAN,
        "running": st.integers(0, 40).map(float) | NAN,
        "usage": st.floats(0, 1) | NAN,
        "age": st.sampled_from([0.0, 0.1, 0.2, 0.5, 3.0, inf]),
        "weight": st.sampled_from([1.0, 2.0, 0.5]),
        "role": ROLES,
        "requests": st.integers(0, 200),
        "tokens": st.integers(0, 2_000_000),
    }
)
POOLS = st.lists(SERVERS, max_size=7)
WAITS = st.sampled_from([0.0, 0.05, 0.3, 2.0, 20.0])


def snapshot(servers, at=100.0):
    """Servers that were observed so long before; an age of inf is never."""
    pool = isched.InferencePool()
    for i, server in enumerate(servers):
        labels = {STAGE_LABEL: server["role"]} if server["role"] else {}
        pool.join(f"e{i}", labels=labels, values={isched.CAPACITY_WEIGHT: server["weight"]})
        if server["age"] < inf:
            said = {
                isched.WAITING_QUEUE_SIZE: server["waiting"],
                isched.RUNNING_REQUESTS: server["running"],
                isched.KV_CACHE_USAGE: server["usage"],
            }
            pool.observe(f"e{i}", said, now=at - server["age"])
    endpoints = pool.snapshot()
    return endpoints.with_columns(
        {
            isched.INFLIGHT_REQUESTS: np.array([float(s["requests"]) for s in servers]),
            isched.INFLIGHT_TOKENS: np.array([float(s["tokens"]) for s in servers]),
        }
    )


def expected(servers, loads, ages, stale, name):
    counts = naive.judged(loads, ages, stale)
    pairs = [(c, s["weight"]) for c, s in zip(counts, servers, strict=True) if c == c]
    if not pairs:
        return 1.0
    return naive.aggregate(name, [c for c, _ in pairs], [w for _, w in pairs], 0.75)


# --- formulas ----------------------------------------------------------------------------------------------------


@given(POOLS, STALES, st.sampled_from(list(AGGREGATES)), st.sampled_from([0.0, 0.15, 9.0]))
def test_utilization_is_as_written_down(servers, stale, name, later):
    detector = UtilizationDetector(stale=stale, aggregate=AGGREGATES[name])
    loads = [naive.utilization(s["waiting"], s["usage"]) if s["age"] < inf else nan for s in servers]
    now = 100.0 + later
    ages = [now - (100.0 - s["age"]) for s in servers]
    got = detector.saturation(snapshot(servers), now)
    assert got == pytest.approx(expected(servers, loads, ages, stale, name), abs=1e-9)


@given(POOLS, st.sampled_from(["requests", "tokens", "hybrid"]), st.sampled_from(list(AGGREGATES)))
def test_concurrency_is_as_written_down(servers, mode, name):
    detector = ConcurrencyDetector(mode, 100, 1_000_000, aggregate=AGGREGATES[name])
    requests = [s["requests"] / 100 for s in servers]
    tokens = [s["tokens"] / 1e6 for s in servers]
    loads = {"requests": requests, "tokens": tokens, "hybrid": list(map(max, requests, tokens))}[mode]
    got = detector.saturation(snapshot(servers), 1e9)  # however late: what is counted here is never stale
    assert got == pytest.approx(expected(servers, loads, [0.0] * len(servers), Stale(), name), abs=1e-9)


@given(POOLS, STALES, st.sampled_from(list(AGGREGATES)), st.lists(WAITS, min_size=1, max_size=4), st.booleans())
def test_a_gate_without_credit_says_what_the_detector_says(servers, stale, name, waits, by_stage):
    """At whatever time it is asked after the observation: the books grow old as the snapshot does."""
    detector = UtilizationDetector(stale=stale, aggregate=AGGREGATES[name])
    stages = Stages() if by_stage else None
    gate, plain = SaturationGate(detector, credit=None, stages=stages), ObservedGate(detector, stages=stages)
    endpoints = snapshot(servers)
    assert gate.level(0.0) == plain.level(0.0) == 1.0
    gate.observe(endpoints, 100.0)
    plain.observe(endpoints, 100.0)
    for now in sorted(100.0 + wait for wait in waits):
        assert gate.level(now) == pytest.approx(plain.level(now), abs=1e-9)


# --- FC11: more load is never less saturation --------------------------------------------------------------------


@given(POOLS.filter(bool), STALES, st.sampled_from(list(AGGREGATES)), st.data())
def test_adding_load_never_lowers_saturation(servers, stale, name, data):
    place = data.draw(st.integers(0, len(servers) - 1))
    more = dict(servers[place])
    more["waiting"] += data.draw(st.integers(0, 9))
    more["usage"] = float(np.minimum(1.0, more["usage"] + data.draw(st.floats(0, 1))))  # unknown stays unknown
    more["requests"] += data.draw(st.integers(0, 90))
    more["tokens"] += data.draw(st.integers(0, 900_000))
    after = [*servers[:place], more, *servers[place + 1 :]]
    mode = data.draw(st.sampled_from(["requests", "tokens", "hybrid"]))
    for detector in (
        UtilizationDetector(stale=stale, aggregate=AGGREGATES[name]),
        ConcurrencyDetector(mode, aggregate=AGGREGATES[name]),
    ):
        for now in (100.0, 101.0):
            less = detector.saturation(snapshot(servers), now)
            assert detector.saturation(snapshot(after), now) >= less - 1e-12


READINGS = st.builds(
    Reading,
    st.integers(0, 9).map(float) | NAN,
    st.integers(0, 40).map(float) | NAN,
    st.floats(0, 1) | NAN,
    st.integers(0, 200).map(float),
    st.integers(0, 1_000_000).map(float),
    st.integers(1, 40).map(float) | NAN,
    st.just(1e6) | NAN,
)
DETECTORS = st.sampled_from(
    [UtilizationDetector(), *(ConcurrencyDetector(mode) for mode in ("requests", "tokens", "hybrid"))]
)


@given(READINGS, DETECTORS, st.integers(-50, 50), st.integers(-90_000, 90_000), st.integers(0, 9), st.integers(0, 9000))
def test_more_to_do_is_never_less_full(reading, detector, requests, tokens, more, more_tokens):
    less = detector.projected(reading, requests, tokens)
    full = detector.projected(reading, requests + more, tokens + more_tokens)
    assert full >= less - 1e-12 or less != less
    assert less >= 0 or less != less


@given(POOLS, DETECTORS)
def test_nothing_more_to_do_is_the_load(servers, detector):
    endpoints = snapshot(servers)
    for i, load in enumerate(detector.loads(endpoints).tolist()):
        columns = (
            isched.WAITING_QUEUE_SIZE,
            isched.RUNNING_REQUESTS,
            isched.KV_CACHE_USAGE,
            isched.INFLIGHT_REQUESTS,
            isched.INFLIGHT_TOKENS,
        )
        reading = Reading(*(float(endpoints[column][i]) for column in columns))
        assert detector.projected(reading, 0, 0) == pytest.approx(load, abs=1e-12, nan_ok=True)


# --- aggregates --------------------------------------------------------------------------------------------------

LOADS = st.lists(st.floats(0, 9), min_size=1, max_size=9)


@given(LOADS, st.data())
def test_aggregates_lie_between_and_rise_with_each_load(loads, data):
    weights = np.array(data.draw(st.lists(st.floats(0.1, 9), min_size=len(loads), max_size=len(loads))))
    place, more = data.draw(st.integers(0, len(loads) - 1)), data.draw(st.floats(0, 5))
    before, after = np.array(loads), np.array(loads)
    after[place] += more
    for aggregate in AGGREGATES.values():
        value = aggregate.of(before, weights)
        assert min(loads) - 1e-9 <= value <= max(loads) + 1e-9
        assert aggregate.of(after, weights) >= value - 1e-9


def test_a_capacity_that_is_not_known_is_as_the_others():
    servers = [{"role": "", "age": 0.0, "waiting": w, "running": 0.0, "usage": 0.0, "weight": c, "requests": 0, "tokens": 0}
               for w, c in ((0.0, 1.0), (10.0, 3.0), (5.0, nan))]  # fmt: skip
    detector = UtilizationDetector(aggregate=CapacityWeighted())
    assert detector.saturation(snapshot(servers), 100.0) == pytest.approx((0 * 1 + 2 * 3 + 1 * 2) / 6)
    alone = [{**each, "weight": nan} for each in servers]
    assert detector.saturation(snapshot(alone), 100.0) == pytest.approx(1.0)


# --- stale, and never heard of -----------------------------------------------------------------------------------


def servers_of(*pairs):
    """(waiting, age) each."""
    rest = {"running": 0.0, "usage": 0.0, "weight": 1.0, "role": "", "requests": 0, "tokens": 0}
    return [{"waiting": float(waiting), "age": age, **rest} for waiting, age in pairs]


@pytest.mark.parametrize(
    ("assume", "levels"),
    [
        # all fresh; one stale; all stale; all stale for long; one never heard of; nobody ever heard of
        ("last", [0.4, 0.4, 0.4, 0.5, 0.4, 1.0]),
        ("ignore", [0.4, 0.6, 0.4, 0.5, 0.4, 1.0]),
        ("saturated", [0.4, 0.8, 1.0, 1.0, 0.7, 1.0]),
    ],
)
def test_what_an_old_word_is_worth(assume, levels):
    detector = UtilizationDetector(stale=Stale(2.0, assume, half_life=1e6))
    long = UtilizationDetector(stale=Stale(2.0, assume, half_life=1e-3))
    pools = [
        (detector, servers_of((1, 0.0), (3, 0.0))),
        (detector, servers_of((1, 2.5), (3, 0.0))),
        (detector, servers_of((1, 2.5), (3, 2.5))),
        (long, servers_of((1, 9.0), (3, 9.0))),
        (detector, servers_of((2, 0.0), (3, inf))),
        (detector, servers_of((1, inf), (3, inf))),
    ]
    got = [each.saturation(snapshot(servers), 100.0) for each, servers in pools]
    assert got == pytest.approx(levels, abs=1e-5)


def test_a_word_fades_by_half_each_half_life():
    stale = Stale(2.0, "last", half_life=10.0, toward=0.5)
    assert [stale.fading(age) for age in (0.0, 2.0, 12.0, 22.0, inf)] == [1.0, 1.0, 0.5, 0.25, 0.0]


def test_an_age_of_exactly_the_threshold_is_fresh():
    detector = UtilizationDetector(stale=Stale(0.5, "saturated"))
    assert detector.saturation(snapshot(servers_of((0, 0.5))), 100.0) == 0.0
    assert detector.saturation(snapshot(servers_of((0, 0.75))), 100.0) == 1.0
    assert detector.stale_endpoints(snapshot(servers_of((0, 0.5), (0, 0.75), (0, inf))), 100.0).tolist() == [
        False,
        True,
        True,
    ]


def test_one_of_queue_and_cache_is_enough():
    queue, cache = servers_of((10, 0.0)), servers_of((nan, 0.0))
    queue[0]["usage"], cache[0]["usage"] = nan, 0.4
    assert UtilizationDetector().saturation(snapshot(queue), 100.0) == 2.0
    assert UtilizationDetector().saturation(snapshot(cache), 100.0) == 0.5


def test_an_empty_pool_is_full():
    for detector in (
        UtilizationDetector(),
        UtilizationDetector(stale=Stale(assume="saturated")),
        ConcurrencyDetector(),
    ):
        assert detector.saturation(snapshot([]), 0.0) == 1.0
        gate = SaturationGate(detector)
        gate.observe(snapshot([]), 0.0)
        assert gate.level(0.0) == 1.0
    gate = SaturationGate(unknown=inf)
    assert gate.level(0.0) == inf
    gate.observe(snapshot([]), 0.0)
    assert gate.level(0.0) == inf


# --- as filters --------------------------------------------------------------------------------------------------

REQUEST = isched.InferenceRequest(request_id="r")


def kept(detector, endpoints, now=100.0):
    cycle = isched.CycleState(now, np.random.default_rng(0), 0)
    return np.flatnonzero(detector.filter(REQUEST, endpoints, cycle)).tolist()


@given(POOLS, st.sampled_from([0.0, 0.2, 1.0]))
def test_the_utilization_filter_is_as_written_down(servers, headroom):
    detector = UtilizationDetector(headroom=headroom, stale=Stale(0.2))
    fine = [
        i
        for i, s in enumerate(servers)
        if s["age"] <= 0.2 + 1e-9 and s["waiting"] < 5 * (1 + headroom) and s["usage"] < 0.8 * (1 + headroom)
    ]
    exact = [i for i in fine if 100.0 - (100.0 - servers[i]["age"]) <= 0.2]
    assert kept(detector, snapshot(servers)) == (exact or list(range(len(servers))))


@given(POOLS, st.sampled_from(["requests", "tokens", "hybrid"]), st.sampled_from([0.0, 0.2]))
def test_the_concurrency_filter_is_as_written_down(servers, mode, headroom):
    detector = ConcurrencyDetector(mode, 100, 1_000_000, headroom)
    requests, tokens = int(100 * (1 + headroom)), int(1_000_000 * (1 + headroom))
    fine = [
        i
        for i, s in enumerate(servers)
        if (mode == "tokens" or s["requests"] < requests) and (mode == "requests" or s["tokens"] < tokens)
    ]
    assert kept(detector, snapshot(servers)) == fine


def test_why_a_filter_dropped_one():
    endpoints = snapshot([{**servers_of((7, 0.5))[0], "usage": 0.25, "requests": 120, "tokens": 9}])
    cycle = isched.CycleState(100.0, np.random.default_rng(0), 0)
    assert (
        UtilizationDetector().why_dropped(REQUEST, endpoints, cycle, 0) == "7 waiting, cache 0.25 full, said 0.5 s ago"
    )
    assert ConcurrencyDetector().why_dropped(REQUEST, endpoints, cycle, 0) == "120 requests and 9 tokens in flight"


def test_a_detector_filters_in_a_profile():
    pool = isched.InferencePool()
    for name, waiting in (("busy", 9), ("free", 1)):
        pool.join(name)
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: waiting, isched.KV_CACHE_USAGE: 0.1}, now=0.0)
    profile = isched.SchedulingProfile(isched.MaxScorePicker(), filters=(UtilizationDetector(),))
    scheduler = isched.Scheduler(profile)
    rng = np.random.default_rng(0)
    chosen = {scheduler.schedule(REQUEST, pool.snapshot(), now=0.1, rng=rng).endpoint for _ in range(20)}
    assert chosen == {"free"}


# --- stages ------------------------------------------------------------------------------------------------------


def test_the_label_is_that_of_the_filters():
    assert STAGE_LABEL == ROLE_LABEL


@given(st.lists(st.sampled_from([*PARTS, "encode", "nonsense", None]), max_size=9))
def test_parts_are_as_written_down(roles):
    pool = isched.InferencePool()
    for i, role in enumerate(roles):
        pool.join(f"e{i}", labels={} if role is None else {STAGE_LABEL: role})
    parts = Stages().parts(pool.snapshot())
    for name, part in parts._asdict().items():
        assert part.tolist() == [PARTS.get(role or "") == name for role in roles]
    prefill = [p or b for p, b in zip(parts.prefill, parts.interleaved, strict=True)]
    decode = [d or b for d, b in zip(parts.decode, parts.interleaved, strict=True)]
    stages = [stage for stage in (prefill, decode) if any(stage)] or [[True] * len(roles)]
    assert [stage.tolist() for stage in Stages().of(pool.snapshot())] == stages


def test_the_fullest_stage_counts():
    servers = servers_of((10, 0.0), (0, 0.0), (0, 0.0), (0, 0.0))
    servers[0]["role"] = "prefill"
    endpoints = snapshot(servers)
    detector = UtilizationDetector()
    assert detector.saturation(endpoints, 100.0) == 0.5
    assert saturation_by_stage(detector, endpoints, 100.0) == 2.0
    servers[1]["role"] = "both"  # computes prompts too
    assert saturation_by_stage(detector, snapshot(servers), 100.0) == 1.0


# --- hysteresis --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 2), max_size=60))
def test_between_its_bounds_a_gate_stays_as_it_is(levels):
    hysteresis, shut = Hysteresis(0.5, 1.0), False
    for level in levels:
        now = hysteresis.shut(shut, level)
        if 0.5 <= level < 1.0:
            assert now is shut
        else:
            assert now is (level >= 1.0)
        shut = now


def test_a_gate_that_was_full_opens_late():
    gate = SaturationGate(UtilizationDetector(), credit=None, hysteresis=Hysteresis(0.5, 1.0))
    seen = []
    for waiting in (4, 5, 4, 3, 2, 3, 4, 5):
        gate.observe(snapshot(servers_of((waiting, 0.0))), 100.0)
        seen.append(gate.level(100.0))
    assert seen == [0.8, 1.0, 1.0, 1.0, 0.4, 0.6, 0.8, 1.0]
    gate.observe(snapshot(servers_of((9, 0.0))), 100.0)
    assert gate.level(100.0) == 1.8 == gate.saturation(100.0)


# --- whom a request could go to ----------------------------------------------------------------------------------


def fleet():
    pool = isched.InferencePool()
    pool.join("a", address="10.0.0.1:8000", labels={"model": "llama", "tier": "gold"})
    pool.join("b", address="10.0.0.2:8000", labels={"model": "llama"})
    pool.join("c", address="10.0.0.3:8000", labels={"model": "qwen"})
    adapters = {"a": isched.Adapters(frozenset({"poet"}), capacity=1), "b": isched.Adapters(capacity=2)}
    for name in "abc":
        pool.observe(name, {}, now=0.0, adapters=adapters.get(name, isched.Adapters(frozenset({"x"}), capacity=1)))
    return pool.snapshot()


def names_of(reach, **said):
    mask = reach.of(isched.InferenceRequest(request_id="r", **said), fleet())
    return "abc" if mask is None else "".join(name for name, there in zip("abc", mask, strict=True) if there)


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({}, "abc"),
        ({"headers": {"x-gateway-destination-endpoint-subset": "10.0.0.1:8000, b"}}, "ab"),
        ({"headers": {"x-gateway-destination-endpoint-subset": "10.0.0.3"}}, "c"),
        ({"headers": {"x-gateway-destination-endpoint-subset": "10.9.9.9:8000"}}, "abc"),
        ({"headers": {"x-tier": "gold"}}, "a"),
        ({"headers": {"x-tier": "lead"}}, "abc"),
        ({"model": "llama"}, "ab"),
        ({"model": "nobody"}, "abc"),
        ({"adapter": "poet"}, "ab"),  # a has it, b has room
        ({"adapter": "x"}, "bc"),
        ({"adapter": "novel"}, "abc"),
        ({"model": "llama", "headers": {"x-tier": "gold"}}, "a"),
        ({"model": "qwen", "headers": {"x-tier": "gold"}}, "abc"),  # nobody is both
    ],
)
def test_whom_a_request_could_go_to(said, names):
    assert names_of(RequestReach(labels=(("x-tier", "tier"),), model_label="model"), **said) == names


def test_what_is_not_asked_for_is_not_looked_at():
    reach = RequestReach(subset_header="", adapters=False)
    said = {"headers": {"x-gateway-destination-endpoint-subset": "a"}, "adapter": "poet", "model": "llama"}
    assert names_of(reach, **said) == "abc"


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: UtilizationDetector(0.0), "queue_depth_threshold"),
        (lambda: UtilizationDetector(nan), "queue_depth_threshold"),
        (lambda: UtilizationDetector(5.0, 1.5), "kv_cache_util_threshold"),
        (lambda: UtilizationDetector(5.0, 0.0), "kv_cache_util_threshold"),
        (lambda: UtilizationDetector(headroom=-0.1), "headroom"),
        (lambda: UtilizationDetector(headroom=nan), "headroom"),
        (lambda: ConcurrencyDetector("magic"), "mode"),
        (lambda: ConcurrencyDetector(max_concurrency=0), "max_concurrency"),
        (lambda: ConcurrencyDetector(max_token_concurrency=-1), "max_token_concurrency"),
        (lambda: ConcurrencyDetector(headroom=inf), "headroom"),
        (lambda: Stale(0.0), "after"),
        (lambda: Stale(nan), "after"),
        (lambda: Stale(assume="hope"), "assume"),
        (lambda: Stale(half_life=0.0), "half_life"),
        (lambda: Stale(toward=-1.0), "toward"),
        (lambda: Quantile(1.5), "share"),
        (lambda: Hysteresis(1.0, 1.0), "lo"),
        (lambda: Hysteresis(-0.1, 1.0), "lo"),
        (lambda: Stages(""), "label"),
        (lambda: RequestReach(labels=(("X-Upper", "l"),)), "labels"),
        (lambda: SaturationGate(unknown=nan), "unknown"),
    ],
)
def test_bad_parameters_are_refused(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter


@settings(max_examples=20)
@given(POOLS)
def test_asking_changes_nothing(servers):
    endpoints = snapshot(servers)
    before = endpoints.matrix.copy()
    detector = UtilizationDetector(stale=Stale(0.2, "ignore"), aggregate=CapacityWeighted())
    assert detector.saturation(endpoints, 100.0) == detector.saturation(endpoints, 100.0)
    assert np.array_equal(before, endpoints.matrix, equal_nan=True)
