"""The prefix index as a DataProducer: from bookings, from events, from both."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix import TIER_WEIGHTS
from inferencesched.prefix.bookkeeping import BLIND_AFTER
from inferencesched.prefix.recency import Recency
from inferencesched.prefix.tiers import SPECULATIVE

BLOCK = 4


def pool_of(*names, **options):
    pool = isched.InferencePool()
    for name in names:
        pool.join(name, **options)
    return pool


def request_of(tokens, number="1", **options):
    return isched.InferenceRequest(request_id=number, tokens=np.array(tokens, dtype=np.uint32), **options)


def prompt(blocks, first=0):
    return range(first * BLOCK, (first + blocks) * BLOCK)


def at(now):
    return isched.CycleState(now, np.random.default_rng(0), 0)


def matches(producer, pool, request, now=0.0):
    """The share matched and the tokens, by endpoint."""
    columns = producer.produce(request, pool.snapshot(), at(now)).columns
    return columns[isched.PREFIX_MATCH].tolist(), columns[isched.PREFIX_TOKENS].tolist()


def send(producer, pool, request, name, now=0.0):
    """Book the request there, as the scheduler does; return the receipt and the slot."""
    endpoints = pool.snapshot()
    receipt = producer.produce(request, endpoints, at(now)).receipt
    slot = int(endpoints.slots[endpoints.names.index(name)])
    producer.commit(receipt, slot, now=now)
    return receipt, slot


def stored(tokens, first_hash=100, **options):
    tokens = tuple(tokens)
    hashes = tuple(first_hash + i for i in range(len(tokens) // BLOCK))
    return isched.BlockStored(block_hashes=hashes, token_ids=tokens, block_size=BLOCK, **options)


def tell(producer, pool, name, *events):
    endpoints = pool.snapshot()
    i = endpoints.names.index(name)
    producer.apply(endpoints.slots[i], endpoints.generations[i], isched.EventBatch(events=events))


# --- approximate -------------------------------------------------------------------------------------------------


def test_what_was_sent_is_matched_and_nothing_else():
    pool, producer = pool_of("a", "b"), isched.ApproximatePrefixProducer(block_size=BLOCK)
    send(producer, pool, request_of(prompt(3)), "b")
    assert matches(producer, pool, request_of(prompt(4))) == ([0.0, 0.75], [0.0, 12.0])
    assert matches(producer, pool, request_of(prompt(4), adapter="lora")) == ([0.0, 0.0], [0.0, 0.0])
    assert matches(producer, pool, request_of(prompt(4), cache_salt="mine")) == ([0.0, 0.0], [0.0, 0.0])
    assert matches(producer, pool, request_of(prompt(4), tenant="other")) == ([0.0, 0.0], [0.0, 0.0])


def test_without_hashes_and_tokens_nothing_is_known():
    pool, producer = pool_of("a"), isched.ApproximatePrefixProducer(block_size=BLOCK)
    share, tokens = matches(producer, pool, isched.InferenceRequest(request_id="1", input_tokens=100))
    assert np.isnan(share).all() and np.isnan(tokens).all()
    send(producer, pool, isched.InferenceRequest(request_id="1", input_tokens=100), "a")
    assert producer.index.blocks(0) == 0


def test_producing_changes_nothing():
    pool, producer = pool_of("a"), isched.ApproximatePrefixProducer(block_size=BLOCK)
    producer.produce(request_of(prompt(4)), pool.snapshot(), at(0.0))
    assert len(producer.index) == 0


def test_a_secret_seed_is_drawn_unless_one_is_given():
    request = request_of(prompt(4))
    secret = [isched.ApproximatePrefixProducer(block_size=BLOCK).hashes(request).tolist() for _ in range(3)]
    assert len({tuple(hashes) for hashes in secret}) == 3
    told = [isched.ApproximatePrefixProducer(block_size=BLOCK, seed=1337).hashes(request) for _ in range(2)]
    assert np.array_equal(told[0], told[1])
    assert np.array_equal(told[0], isched.block_hashes(request.tokens, BLOCK))


def test_tails_go_before_heads_and_no_prompt_leaves_more_than_its_head():
    pool = pool_of("a")
    producer = isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=6)
    send(producer, pool, request_of(prompt(4)), "a")
    send(producer, pool, request_of(prompt(4, first=100)), "a")
    assert matches(producer, pool, request_of(prompt(4)))[1] == [2 * BLOCK]
    assert matches(producer, pool, request_of(prompt(4, first=100)))[1] == [4 * BLOCK]
    send(producer, pool, request_of(prompt(50, first=500)), "a")
    assert matches(producer, pool, request_of(prompt(50, first=500)))[1] == [6 * BLOCK]
    assert producer.index.blocks(0) == 6 == len(producer.index)


def test_automatic_capacity_is_the_endpoint_s_own():
    pool = isched.InferencePool()
    pool.join("small", values={isched.KV_BLOCKS: 2, isched.KV_BLOCK_SIZE: 8})  # 16 tokens: 4 blocks of 4
    pool.join("large", values={isched.KV_BLOCKS: 10, isched.KV_BLOCK_SIZE: 8})
    pool.join("silent")
    producer = isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=7, automatic=True)
    request = request_of(prompt(30))
    for name in ("small", "large", "silent"):
        send(producer, pool, request, name)
    assert matches(producer, pool, request)[1] == [4.0 * BLOCK, 20.0 * BLOCK, 7.0 * BLOCK]
    producer.index.check()


def test_a_block_that_is_not_sent_again_is_forgotten_in_time():
    pool = pool_of("a", "b")
    producer = isched.ApproximatePrefixProducer(block_size=BLOCK, ttl=10.0)
    send(producer, pool, request_of(prompt(4)), "a", now=0.0)
    send(producer, pool, request_of(prompt(2)), "a", now=6.0)
    send(producer, pool, request_of(prompt(4)), "b", now=6.0)
    assert matches(producer, pool, request_of(prompt(4)), now=9.9)[1] == [16.0, 16.0]
    assert matches(producer, pool, request_of(prompt(4)), now=10.0)[1] == [8.0, 16.0]
    assert matches(producer, pool, request_of(prompt(4)), now=16.0)[1] == [0.0, 0.0]
    assert len(producer.index) == 0
    producer.index.check()


def test_a_slot_handed_to_another_starts_empty_even_before_anything_is_sent():
    pool, producer = pool_of("a", "b"), isched.ApproximatePrefixProducer(block_size=BLOCK, ttl=100.0)
    send(producer, pool, request_of(prompt(3)), "a")
    pool.leave("a")
    pool.join("c")
    assert matches(producer, pool, request_of(prompt(3)), now=1.0)[1] == [0.0, 0.0]
    send(producer, pool, request_of(prompt(1)), "c", now=1.0)
    assert matches(producer, pool, request_of(prompt(3)), now=1.0)[1] == [0.0, 4.0]


def test_feedback_shrinks_what_an_endpoint_is_believed_to_hold_and_lets_it_grow_again():
    pool, producer = pool_of("a"), isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=64)
    for i in range(16):
        send(producer, pool, request_of(prompt(4, first=100 * i)), "a")
    assert producer.index.blocks(0) == 64
    receipt, slot = send(producer, pool, request_of(prompt(4)), "a")
    producer.feedback(receipt, slot, cached_tokens=0)
    assert producer.index.blocks(0) == 56
    assert matches(producer, pool, request_of(prompt(4)))[1] == [16.0]  # it was computed just now
    for _ in range(8):
        receipt, slot = send(producer, pool, request_of(prompt(4)), "a")
        producer.feedback(receipt, slot, cached_tokens=12)  # all but the last block, which is always computed
    for i in range(16):
        send(producer, pool, request_of(prompt(4, first=100 * i)), "a")
    assert producer.index.blocks(0) == 64
    producer.index.check()


def expectations(*, listens):
    """A server of 40 blocks believed to have 400: how often was more expected of it than it had, and what was held?"""
    rng = np.random.default_rng(5)
    pool, producer = pool_of("a"), isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=400)
    truth = isched.PrefixIndex(1, 40)
    wrong = 0
    for _ in range(600):
        request = request_of(prompt(4, first=100 * int(60 * rng.random() ** 2)))
        hashes = producer.hashes(request)
        had = int(truth.match(hashes)[0])
        receipt, slot = send(producer, pool, request, "a")
        wrong += int(receipt.matched[0]) > had
        truth.insert(0, hashes)
        if listens:
            producer.feedback(receipt, slot, cached_tokens=had * BLOCK)
    producer.index.check()
    return wrong, producer.index.blocks(0)


def test_feedback_finds_the_true_capacity_of_a_server():
    (deaf, believed), (wrong, learnt) = expectations(listens=False), expectations(listens=True)
    assert believed == 240 and 20 <= learnt <= 80
    assert wrong < 0.2 * deaf


def test_feedback_for_an_endpoint_that_left_is_passed_over():
    pool, producer = pool_of("a"), isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=8)
    receipt, slot = send(producer, pool, request_of(prompt(4)), "a")
    pool.leave("a")
    pool.join("b")
    send(producer, pool, request_of(prompt(2)), "b")
    producer.feedback(receipt, slot, cached_tokens=0)
    assert producer.index.blocks(0) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: isched.ApproximatePrefixProducer(block_size=0), "block_size: got 0"),
        (lambda: isched.ApproximatePrefixProducer(capacity=0), "capacity: got 0"),
        (lambda: isched.ApproximatePrefixProducer(ttl=0.0), "ttl: got 0.0"),
        (lambda: isched.ApproximatePrefixProducer(max_blocks=0), "max_blocks: got 0"),
        (lambda: isched.ApproximatePrefixProducer(capacity=None, automatic=True), "automatic: got True"),
        (lambda: isched.ApproximatePrefixProducer().feedback(None, 0, -1), "cached_tokens: got -1"),
        (lambda: isched.ApproximatePrefixProducer(capacity=None).feedback(None, 0, 1), "capacity: got None"),
        (lambda: isched.PrecisePrefixProducer(weights={isched.Tier.HOST: 1.5}), r"weights\[HOST\]: got 1.5"),
        (lambda: isched.PrecisePrefixProducer(speculative_ttl=-1.0), "ttl: got -1.0"),
        (lambda: Recency(float("nan")), "ttl: got nan"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        call()


# --- precise -----------------------------------------------------------------------------------------------------


def precise(**options):
    return isched.PrecisePrefixProducer(block_size=BLOCK, **options)


def test_what_the_engine_says_is_matched_and_what_it_gives_up_is_not():
    pool, producer = pool_of("a", "b"), precise()
    tell(producer, pool, "b", stored(prompt(3)))
    assert matches(producer, pool, request_of(prompt(4))) == ([0.0, 0.75], [0.0, 12.0])
    tell(producer, pool, "b", isched.BlockRemoved(block_hashes=(101,)))
    assert matches(producer, pool, request_of(prompt(4))) == ([0.0, 0.25], [0.0, 4.0])
    tell(producer, pool, "b", isched.AllBlocksCleared())
    assert matches(producer, pool, request_of(prompt(4)))[1] == [0.0, 0.0]


def test_a_tier_is_worth_its_weight():
    pool, producer = pool_of("a", "b"), precise()
    tell(producer, pool, "a", stored(prompt(4)))
    tell(producer, pool, "a", isched.BlockStored(block_hashes=(100, 102), medium="CPU"))
    tell(producer, pool, "a", isched.BlockRemoved(block_hashes=(102, 103)))
    assert matches(producer, pool, request_of(prompt(4))) == ([(1 + 1 + 0.8) / 4, 0.0], [12.0, 0.0])
    heavy = precise(weights={isched.Tier.DEVICE: 0.5, isched.Tier.HOST: 1.0})
    tell(heavy, pool, "a", stored(prompt(4)))
    tell(heavy, pool, "a", isched.BlockStored(block_hashes=(100,), medium="CPU"))
    assert matches(heavy, pool, request_of(prompt(4)))[0] == [(1 + 3 * 0.5) / 4, 0.0]
    assert list(TIER_WEIGHTS) == list(isched.Tier)


def test_how_much_lies_on_which_tier():
    pool, producer = pool_of("a", "b", "c"), precise()
    tell(producer, pool, "a", stored(prompt(4)))
    tell(producer, pool, "a", isched.BlockStored(block_hashes=(100, 102), medium="CPU"))
    tell(producer, pool, "a", isched.BlockRemoved(block_hashes=(102, 103)))
    tell(producer, pool, "b", stored(prompt(2)))
    send(producer, pool, request_of(prompt(3)), "b", now=0.0)
    found = producer.tiers(request_of(prompt(5)), pool.snapshot(), now=1.0)
    assert [found.tiers(i) for i in range(3)] == [
        {isched.Tier.DEVICE: 2, isched.Tier.HOST: 1},
        {isched.Tier.DEVICE: 2, SPECULATIVE: 3},
        {},
    ]
    assert found.total == 5 and found.cached.tolist() == [3, 3, 0]
    assert found.weighted.tolist() == [1 + 1 + 0.8, 3.0, 0.0]
    later = producer.tiers(request_of(prompt(5)), pool.snapshot(), now=9.0)
    assert later.tiers(1) == {isched.Tier.DEVICE: 2} and later.tiers(0) == found.tiers(0)
    assert producer.tiers(isched.InferenceRequest(request_id="1"), pool.snapshot(), now=9.0) is None


def test_a_booking_counts_until_its_time_is_up_or_the_engine_says_so():
    pool, producer = pool_of("a", "b"), precise(speculative_ttl=2.0)
    send(producer, pool, request_of(prompt(4)), "a", now=0.0)
    assert matches(producer, pool, request_of(prompt(4)), now=1.9)[0] == [1.0, 0.0]
    assert matches(producer, pool, request_of(prompt(4)), now=2.0)[0] == [0.0, 0.0]
    send(producer, pool, request_of(prompt(4)), "a", now=3.0)
    tell(producer, pool, "a", stored(prompt(4)))
    assert matches(producer, pool, request_of(prompt(4)), now=9.0)[0] == [1.0, 0.0]
    assert len(producer.speculative) == 0


def test_without_speculation_only_the_engine_counts():
    pool, producer = pool_of("a"), precise(speculative_ttl=None)
    send(producer, pool, request_of(prompt(4)), "a")
    assert matches(producer, pool, request_of(prompt(4)))[0] == [0.0]


def test_a_slot_handed_to_another_engine_starts_empty():
    pool, producer = pool_of("a"), precise()
    tell(producer, pool, "a", stored(prompt(3)))
    pool.leave("a")
    pool.join("b")
    assert matches(producer, pool, request_of(prompt(3)))[1] == [0.0]
    tell(producer, pool, "b", stored(prompt(1)))
    assert matches(producer, pool, request_of(prompt(3)))[1] == [4.0]


def test_a_stream_is_taken_step_by_step():
    pool, producer = pool_of("a"), precise(speculative_ttl=None)
    endpoints = pool.snapshot()
    slot, generation = endpoints.slots[0], endpoints.generations[0]
    stream = isched.EventStream()
    first = stream.live(0, isched.EventBatch(events=(stored(prompt(2)),)))
    producer.take(slot, generation, first)
    assert matches(producer, pool, request_of(prompt(2)))[0] == [1.0]
    assert producer.stats.stored == 2


def test_a_hit_rate_that_stays_at_zero_is_said_aloud():
    pool, producer = pool_of("a"), precise(model="llama", speculative_ttl=None)
    assert producer.health().state == "learning"
    tell(producer, pool, "a", stored(prompt(3), lora_name="not-what-requests-say"))
    for _ in range(BLIND_AFTER - 1):
        matches(producer, pool, request_of(prompt(3)))
    assert producer.health().state == "learning"
    matches(producer, pool, request_of(prompt(3)))
    health = producer.health()
    assert health.state == "blind" and health.held == 3
    assert "compare block size, seed, model, adapter and salt" in str(health)
    tell(producer, pool, "a", stored(prompt(3), first_hash=900))
    matches(producer, pool, request_of(prompt(3)))
    assert producer.health().state == "healthy"


def test_the_union_is_the_larger_of_both():
    pool = pool_of("a", "b", "c")
    union = isched.UnionPrefixProducer(
        isched.ApproximatePrefixProducer(block_size=BLOCK), precise(speculative_ttl=None)
    )
    send(union, pool, request_of(prompt(2)), "a")
    tell(union.precise, pool, "b", stored(prompt(3)))
    assert matches(union, pool, request_of(prompt(4))) == ([0.5, 0.75, 0.0], [8.0, 12.0, 0.0])
    scheduler = isched.Scheduler(isched.default_profile(), producers=(union,))
    assert (
        scheduler.schedule(request_of(prompt(4)), pool.snapshot(), now=0.0, rng=np.random.default_rng(1)).endpoint
        == "b"
    )


def test_readers_and_writers_at_once_lose_nothing():
    """Events, bookings and matches from six threads; at the end what is held is what was said."""
    pool = pool_of("a", "b", "c")
    producer = precise(speculative_ttl=None)

    def work(number):
        name = "abc"[number % 3]
        for i in range(150):
            first = 1000 * number + 4 * i
            tell(producer, pool, name, stored(prompt(4, first=first), first_hash=first))
            assert matches(producer, pool, request_of(prompt(4, first=first)))[1][number % 3] == 16.0
            tell(producer, pool, name, isched.BlockRemoved(block_hashes=(first + 3,)))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    producer.index.check()
    assert [producer.index.blocks(slot) for slot in range(3)] == [2 * 150 * 3] * 3


@pytest.mark.parametrize("make", [isched.ApproximatePrefixProducer, isched.PrecisePrefixProducer])
def test_what_comes_late_for_who_left_leaves_the_new_owner_of_the_slot_alone(make):
    """A stage of an old decision is booked, and an engine's last event arrives, when the slot is another's already."""
    producer, pool = make(block_size=BLOCK), pool_of("a", "b")
    before, late = pool.snapshot(), request_of(prompt(4, first=50))
    receipt = producer.produce(late, before, at(0.0)).receipt
    pool.leave("b")
    pool.join("c")
    send(producer, pool, request_of(prompt(4)), "c")
    producer.commit(receipt, 1, now=0.0)
    if isinstance(producer, isched.PrecisePrefixProducer):
        batch = isched.EventBatch(events=(stored(prompt(4, first=50)),))
        producer.apply(before.slots[1], before.generations[1], batch)
    assert matches(producer, pool, request_of(prompt(4))) == ([0.0, 1.0], [0.0, 16.0])
    assert matches(producer, pool, late) == ([0.0, 0.0], [0.0, 0.0])


# --- recency -----------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 6)),
        max_size=20,
    ),
    st.integers(1, 12),
)
def test_what_expires_is_what_was_not_touched_for_so_long(touches, ttl):
    recency, last, now = Recency(float(ttl)), {}, 0
    for slot, blocks, wait in touches:
        now += wait
        gone = {(slot, block) for slot, due in recency.expire(float(now)) for block in due.tolist()}
        assert gone == {pair for pair, touched in last.items() if touched + ttl <= now}
        last = {pair: touched for pair, touched in last.items() if touched + ttl > now}
        recency.touch(slot, np.array(blocks, dtype=np.uint64), float(now))
        last.update({(slot, block): now for block in blocks})
        assert len(recency) == len(last)
