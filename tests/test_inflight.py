"""What a request counts for, and until when."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.producers.inflight import BySlot
from inferencesched.signals import UNCACHED_TOKENS

COUNTS = st.integers(0, 200)


@given(COUNTS, COUNTS, COUNTS, st.integers(1, 64))
def test_what_is_cached_need_not_be_computed(tokens, matched, total, size):
    uncached = isched.uncached_tokens(tokens, matched, total, size)
    assert uncached >= 0
    assert uncached >= isched.uncached_tokens(tokens, matched + 1, total, size)
    assert isched.uncached_tokens(tokens) == tokens
    if total * size <= tokens and matched <= total:
        assert uncached == tokens - matched * size


@given(st.integers(-5, 200), st.floats(0, 4), st.none() | st.integers(-5, 100), st.none() | st.integers(0, 100))
def test_the_estimate_keeps_to_its_caps(tokens, ratio, client, operator):
    estimate = isched.estimated_output_tokens(tokens, ratio, client_cap=client, operator_cap=operator)
    assert estimate >= 0
    caps = [cap for cap in (client, operator) if cap is not None and cap >= 0]
    plain = isched.estimated_output_tokens(tokens, ratio)
    assert estimate == min([plain, *caps])
    assert abs(plain - max(0, tokens) * ratio) <= 0.5


def test_halves_go_up():
    assert [isched.estimated_output_tokens(n) for n in (1, 3, 5)] == [2, 5, 8]  # not to the even one


def test_rules_of_release():
    plain, adds = isched.LoadEstimate(), isched.LoadEstimate(True)
    assert [it.at_first_token("prefill") for it in (plain, adds)] == ["settle", "settle"]
    assert [it.at_first_token("decode") for it in (plain, adds)] == ["tokens", "nothing"]
    assert plain.tokens(36, input_tokens=100) == 36
    assert adds.tokens(36, input_tokens=100, client_cap=10) == 46


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"output_ratio": -0.1}, "output_ratio: got -0.1"),
        ({"output_ratio": float("inf")}, "output_ratio: got inf"),
        ({"max_estimated_output_tokens": -1}, "max_estimated_output_tokens: got -1"),
    ],
)
def test_bad_estimates(parameters, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.LoadEstimate(**parameters)


def world(producer, names="ab"):
    pool = isched.InferencePool()
    for name in names:
        pool.join(name)
    profile = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.TokenLoadScorer()),))
    return pool, isched.Scheduler(profile, producers=(producer,)), np.random.default_rng(0)


def seen(producer, pool, tokens=100, **request):
    asked = isched.InferenceRequest(request_id="look", input_tokens=tokens, **request)
    return producer.produce(asked, pool.snapshot(), isched.CycleState(0.0, np.random.default_rng(0), 0)).columns


def test_by_default_it_only_says_what_the_prompt_would_cost():
    producer = isched.InflightLoadProducer()
    assert producer.produces == (UNCACHED_TOKENS,)
    pool, scheduler, rng = world(producer)
    matched = pool.snapshot().with_columns({isched.PREFIX_TOKENS: [64.0, np.nan]})
    request = isched.InferenceRequest(request_id="r", input_tokens=100)
    produced = producer.produce(request, matched, isched.CycleState(0.0, rng, 0))
    assert produced.columns[UNCACHED_TOKENS].tolist() == [36.0, 100.0]
    unknown = isched.InferenceRequest(request_id="r")
    assert producer.produce(unknown, matched, isched.CycleState(0.0, rng, 0)).columns[UNCACHED_TOKENS].tolist() == [
        0,
        0,
    ]
    scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng)
    assert seen(producer, pool)[UNCACHED_TOKENS].tolist() == [100.0, 100.0]


def test_output_is_expected_until_the_end():
    producer = isched.InflightLoadProducer(isched.LoadEstimate(True, 1.5, 120))
    pool, scheduler, rng = world(producer)
    request = isched.InferenceRequest(request_id="r", input_tokens=100)
    booked = scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng)
    place = pool.names.index(booked.endpoint)

    def tokens():
        return seen(producer, pool)[isched.INFLIGHT_TOKENS][place]

    assert tokens() == 100 + 120
    assert seen(producer, pool, max_output_tokens=7)[UNCACHED_TOKENS].tolist() == [107.0, 107.0]
    booked.first_token(now=0.1)
    assert tokens() == 120
    booked.complete(now=0.2)
    assert tokens() == 0


def test_of_two_requests_with_one_id_the_one_that_ended_is_over():
    producer = isched.InflightLoadProducer(isched.LoadEstimate(True))
    pool, scheduler, rng = world(producer)
    booked = [
        scheduler.schedule_and_reserve(
            isched.InferenceRequest(request_id="r", input_tokens=tokens), pool, now=0.0, rng=rng, exclude=other
        )
        for tokens, other in ((100, ["b"]), (1000, ["a"]))
    ]
    for each in booked:
        each.first_token(now=0.1)
    booked[0].complete(now=0.2)
    assert seen(producer, pool)[isched.INFLIGHT_TOKENS].tolist() == [0, 1500]
    booked[1].complete(now=0.2)
    assert seen(producer, pool)[isched.INFLIGHT_TOKENS].tolist() == [0, 0]


class Trips:
    """A producer that raises at the third decision."""

    produces, seen = (), 0

    def produce(self, request, endpoints, cycle):
        return isched.Produced({}, None)

    def commit(self, receipt, slot, *, now):
        pass

    def decided(self, receipt, result, *, now):
        self.seen += 1
        if self.seen == 3:
            raise RuntimeError("tripped")


def test_nothing_is_expected_of_what_was_withdrawn():
    """A batch of which the third fails: the first two are withdrawn, and so is what the producers heard of the third."""
    load = isched.InflightLoadProducer(isched.LoadEstimate(True))
    latency = isched.PredictedLatencyProducer(isched.OnlineLatencyPredictor(), streaming=True)
    pool = isched.InferencePool()
    for name in "ab":
        pool.join(name)
    scheduler = isched.Scheduler(isched.default_profile(), producers=(latency, load, Trips()))
    requests = [isched.InferenceRequest(request_id=str(i), input_tokens=100, slo_tpot=0.1) for i in range(4)]
    with pytest.raises(RuntimeError, match="tripped"):
        scheduler.schedule_many(requests, pool, now=0.0, rng=np.random.default_rng(0))
    assert pool.ledger().reserved_requests == 0
    assert seen(load, pool)[isched.INFLIGHT_TOKENS].tolist() == [0, 0]
    assert not load._open and not latency._running and not latency._booked


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from(["end", "fail", "leave", "twice", "move"])), max_size=8))
def test_nothing_is_expected_of_nobody(requests):
    """Whatever happens to requests and endpoints, the books are empty when all are settled."""
    producer = isched.InflightLoadProducer(isched.LoadEstimate(True))
    pool, scheduler, rng = world(producer, "abc")
    reservations = []
    for number, (tokens, fate) in enumerate(requests):
        request = isched.InferenceRequest(request_id=str(number % 3), input_tokens=tokens)
        result = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=rng)
        reservations.append(scheduler.reserve(result, pool, now=0.0))
        if fate == "twice":
            reservations.append(scheduler.reserve(result, pool, now=0.0))
        elif fate == "fail":
            reservations[-1].fail(now=0.0)
        elif fate == "move":
            reservations[-1].served_by("b", now=0.0)
        elif fate == "leave":
            name = reservations[-1].endpoint
            pool.leave(name)
            pool.join(name)
    expected = seen(producer, pool)[isched.INFLIGHT_TOKENS]
    assert (expected >= pool.snapshot()[isched.INFLIGHT_TOKENS]).all()
    for each in reservations:
        if each.settlement is None:
            each.complete(now=0.0)
    assert seen(producer, pool)[isched.INFLIGHT_TOKENS].tolist() == [0.0, 0.0, 0.0]
    pool.check()


def test_the_slot_of_one_who_left_starts_at_nothing():
    producer = isched.InflightLoadProducer(isched.LoadEstimate(True))
    pool, scheduler, rng = world(producer, "a")
    request = isched.InferenceRequest(request_id="r", input_tokens=10)
    scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng)
    pool.leave("a")
    pool.join("a")
    assert seen(producer, pool)[isched.INFLIGHT_TOKENS].tolist() == [0.0]


OPERATIONS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(-5, 5)), max_size=20)


@given(OPERATIONS)
def test_sums_by_slot(operations):
    """Against a dictionary by stay: only the latest stay of a slot has a sum, and none is below 0."""
    sums, latest, naive = BySlot(), {}, {}
    for slot, generation, amount in operations:
        sums.add(slot, generation, amount)
        if generation > latest.get(slot, 0):
            latest[slot] = generation
            naive[slot] = 0.0
        if generation == latest[slot]:
            naive[slot] = max(0.0, naive[slot] + amount)
    for slot, generation in latest.items():
        for later, expected in ((0, naive[slot]), (1, 0.0)):
            one = SimpleNamespace(slots=np.array([slot]), generations=np.array([generation + later]))
            assert sums.column(one).tolist() == [expected]
