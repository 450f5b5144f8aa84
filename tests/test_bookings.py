"""Many requests in one go: the same decisions as one by one, the same books, and records that are made when looked at."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from tests.profiles import COLUMN_SCORERS

ADAPTERS = ("", "x", "y", "z")
LORA = st.builds(
    isched.LoraAffinityScorer,
    running=st.sampled_from([1.0, 0.9]),
    room=st.just(0.8),
    waiting=st.sampled_from([0.6, 0.1]),
    full=st.sampled_from([0.0, 0.2]),
    distinct=st.booleans(),
)
WEIGHTED = st.builds(isched.WeightedScorer, COLUMN_SCORERS | LORA, st.sampled_from([1.0, 2.0, 0.3, 0.0, -1.0]))
STALE = st.builds(
    isched.StalePolicy, after=st.sampled_from([0.5, 2.0]), assume=st.sampled_from(["worst", "mean", "exclude", "trust"])
)


def rng(seed=0):
    return np.random.default_rng(seed)


@st.composite
def twins(draw):
    """Two pools in one state: endpoints seen at different times or never, adapters here and there, something in flight."""
    count = draw(st.integers(1, 6))
    seen = draw(st.lists(st.none() | st.sampled_from([0.0, 1.0, 3.0]), min_size=count, max_size=count))
    queues = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    held = draw(st.lists(st.sets(st.sampled_from(ADAPTERS)), min_size=count, max_size=count))
    booked = draw(st.lists(st.integers(0, count - 1), max_size=4))
    pools = []
    for _ in range(2):
        pool = isched.InferencePool(reservation_ttl=10.0)
        for i in range(count):
            pool.join(f"ep-{i}", address=f"10.0.0.{i}:80")
            if seen[i] is not None:
                adapters = isched.Adapters(frozenset(list(held[i])[:1]), frozenset(list(held[i])[1:]), 2)
                values = {isched.WAITING_QUEUE_SIZE: float(queues[i]), isched.KV_CACHE_USAGE: queues[i] / 4}
                pool.observe(f"ep-{i}", values, now=seen[i], adapters=adapters)
        for i in booked:
            pool.reserve(f"ep-{i}", request_id="before", tokens=100 * i, context_tokens=7, now=0.0)
        pools.append(pool)
    return pools


REQUESTS = st.lists(
    st.builds(
        lambda length, adapter, tokens: isched.InferenceRequest(
            request_id="r",
            adapter=adapter,
            input_tokens=None if tokens else length,
            tokens=np.zeros(length, dtype=np.uint32) if tokens and length is not None else None,
        ),
        st.integers(0, 900) | st.none(),
        st.sampled_from(ADAPTERS),
        st.booleans(),
    ),
    min_size=2,
    max_size=12,
)


@given(twins(), st.lists(WEIGHTED, max_size=4), STALE, REQUESTS, st.integers(0, 2**32))
def test_in_one_go_is_one_by_one(pools, weighted, stale, requests, seed):
    together, single = pools
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), tuple(weighted)), stale=stale)
    many, one = rng(seed), rng(seed)
    answers = scheduler.schedule_many(requests, together, now=3.5, rng=many)
    alone = []
    for request in requests:
        try:
            alone.append(scheduler.schedule_and_reserve(request, single, now=3.5, rng=one))
        except isched.RequestRefusedError as refusal:
            alone.append(refusal)
    assert together.snapshot().matrix.tobytes() == single.snapshot().matrix.tobytes()
    assert together.snapshot().version == single.snapshot().version
    assert together.snapshot().sequence == single.snapshot().sequence and together.ledger() == single.ledger()
    assert many.bit_generator.state == one.bit_generator.state
    assert len(answers) == len(alone)
    for ours, theirs in zip(answers, alone, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, isched.Reservation):
            for name in isched.Reservation.__slots__:
                if name not in ("_books", "listeners"):
                    assert getattr(ours, name) == pytest.approx(getattr(theirs, name), nan_ok=True)
    together.check()
    single.check()


PROMPTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 70),
        st.sampled_from(["tokens", "hashes", "length"]),
        st.sampled_from(ADAPTERS),
    ),
    min_size=2,
    max_size=14,
)


def prompt(number, said):
    family, length, how, adapter = said
    tokens = (np.arange(length) % 41 + 100 * family * (np.arange(length) > 20)).astype(np.uint32)
    if how == "tokens":
        return isched.InferenceRequest(request_id=f"r{number}", tokens=tokens, adapter=adapter)
    if how == "hashes":
        chain = isched.block_hashes(tokens, 4, seed=3)
        return isched.InferenceRequest(
            request_id=f"r{number}", block_hashes=chain, input_tokens=length, adapter=adapter
        )
    return isched.InferenceRequest(request_id=f"r{number}", input_tokens=length, adapter=adapter)


@given(
    twins(),
    st.lists(WEIGHTED, max_size=4),
    STALE,
    st.lists(PROMPTS, min_size=1, max_size=3),
    st.fixed_dictionaries(
        {
            "capacity": st.sampled_from([None, 3, 20]),
            "ttl": st.sampled_from([None, 0.5]),
            "max_blocks": st.sampled_from([None, 5]),
            "count_blocks": st.booleans(),
        }
    ),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_in_one_go_is_one_by_one_with_prefixes_too(pools, weighted, stale, bursts, options, leaving, seed):
    """Three bursts, time and membership in between: the same endpoints, the same books, the same index."""
    together, single = pools
    profile = isched.SchedulingProfile(isched.MaxScorePicker(), tuple(weighted))
    ours, theirs = (isched.ApproximatePrefixProducer(block_size=4, seed=3, **options) for _ in range(2))
    many, one = (isched.Scheduler(profile, stale=stale, producers=(producer,)) for producer in (ours, theirs))
    generators = rng(seed), rng(seed)
    for turn, burst in enumerate(bursts):
        now = 3.5 + 0.3 * turn
        requests = [prompt(i, said) for i, said in enumerate(burst)]
        answers = many.schedule_many(requests, together, now=now, rng=generators[0])
        for request, answer in zip(requests, answers, strict=True):
            try:
                alone = one.schedule_and_reserve(request, single, now=now, rng=generators[1])
            except isched.RequestRefusedError as refusal:
                alone = refusal
            assert type(answer) is type(alone)
            if isinstance(alone, isched.Reservation):
                assert (answer.endpoint, answer.tokens, answer.number) == (alone.endpoint, alone.tokens, alone.number)
        assert together.snapshot().matrix.tobytes() == single.snapshot().matrix.tobytes()
        assert generators[0].bit_generator.state == generators[1].bit_generator.state
        assert ours.health() == theirs.health() and ours.index.stats == theirs.index.stats
        if leaving and len(together.names) > 1:
            gone = together.names[0]
            for pool in pools:
                pool.leave(gone)
                pool.join("new", address="x:1") if "new" not in pool.names else None
    ours.index.check()
    together.check()


def booked(count=6, endpoints=3):
    pool = isched.InferencePool(reservation_ttl=10.0)
    for i in range(endpoints):
        pool.join(f"ep-{i}")
    requests = [isched.InferenceRequest(request_id=f"r-{i}", input_tokens=10 * i) for i in range(count)]
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker()))
    return pool, scheduler.schedule_many(requests, pool, now=1.0, rng=rng())


def test_the_books_know_all_before_a_record_is_made():
    pool, bookings = booked()
    assert repr(bookings) == "Bookings(6 from 0)" and len(bookings) == 6
    assert pool.ledger() == isched.Ledger(6, 0, 6, 150, 0, 150)
    assert bookings.unmade == 6
    third = bookings[2]
    assert third is bookings[2] is bookings[-4] and bookings.unmade == 5
    assert third.request_id == "r-2" and third.tokens == third.context_tokens == 20 and third.reserved_at == 1.0
    assert third.complete(now=2.0).outcome == "completed"
    assert pool.ledger() == isched.Ledger(6, 1, 5, 150, 20, 130)
    pool.check()
    assert bookings.unmade == 0 and [each.request_id for each in bookings[4:]] == ["r-4", "r-5"]
    with pytest.raises(isched.AlreadySettledError):
        bookings[2].fail(now=3.0)
    with pytest.raises(IndexError):
        bookings[6]


def test_whoever_leaves_takes_the_unmade_along():
    pool, bookings = booked()
    gone = pool.leave("ep-1")
    assert len(gone) == 2 and {each.outcome for each in gone} == {"endpoint_left"}
    assert sorted(each.request_id for each in gone) == [each.request_id for each in gone]
    assert pool.ledger().inflight_requests == 4
    for each in bookings:
        if each.settlement is None:
            each.complete(now=5.0)
    assert pool.ledger().inflight_tokens == 0 == pool.ledger().inflight_requests
    pool.check()


def test_the_unmade_expire_and_the_newest_can_be_withdrawn():
    pool, bookings = booked()
    pool.withdraw(bookings[5])
    assert pool.ledger().reserved_requests == 5
    pool.check()
    assert len(pool.sweep(11.1)) == 5 and pool.ledger().inflight_requests == 0
    pool.check()


def test_two_threads_make_one_record():
    for _ in range(30):
        pool, bookings = booked(40)
        found = [[], []]
        threads = [threading.Thread(target=mine.extend, args=(bookings,)) for mine in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(ours is theirs for ours, theirs in zip(*found, strict=True))
        pool.check()
