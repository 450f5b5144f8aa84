"""All of the prefix package at once: engines' events by tier, bookings, time, restarts and replicas, against a twin of dicts."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import inferencesched as isched
from inferencesched.prefix import TIER_WEIGHTS
from tests import naive_prefix

BLOCK, TTL, CAPACITY = 2, 5.0, 3
ENDPOINTS = ("a", "b")
MEDIA = {"GPU": isched.Tier.DEVICE, "CPU": isched.Tier.HOST, "DISK": isched.Tier.DISK}
PATHS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=2, max_size=4)
SLOTS = st.integers(0, len(ENDPOINTS) - 1)


class Prefixes(RuleBasedStateMachine):
    """Whatever engines say and routers book, in any order; every part's `check` after each step."""

    @initialize(paths=PATHS)
    def begin(self, paths):
        self.paths = paths
        self.now = 0.0
        self.pool = isched.InferencePool()
        for name in ENDPOINTS:
            self.pool.join(name)
        self.endpoints = self.pool.snapshot()
        self.precise = isched.PrecisePrefixProducer(block_size=BLOCK, speculative_ttl=TTL)
        self.approximate = isched.ApproximatePrefixProducer(block_size=BLOCK, capacity=CAPACITY, seed=1337)
        self.copies = [{} for _ in ENDPOINTS]  # (block, tier) -> how often it was stored and not removed
        self.booked = [{} for _ in ENDPOINTS]  # block -> until when it is expected
        self.sent = naive_prefix.PrefixIndex(len(ENDPOINTS), CAPACITY)

    def path(self, data):
        path = data.draw(st.sampled_from(self.paths), "path")
        return path[: data.draw(st.integers(1, len(path)), "length")]

    def tokens(self, path):
        return tuple(token for i, step in enumerate(path) for token in (10 * i, 10 * i + step))

    def request(self, path):
        return isched.InferenceRequest(request_id="1", tokens=np.array(self.tokens(path), dtype=np.uint32))

    def chain(self, path):
        return naive_prefix.block_hashes(self.tokens(path), BLOCK)

    def tell(self, slot, event):
        batch = isched.EventBatch(events=(event,))
        self.precise.apply(self.endpoints.slots[slot], self.endpoints.generations[slot], batch)

    @rule(data=st.data(), slot=SLOTS, medium=st.sampled_from(sorted(MEDIA)))
    def an_engine_stores(self, data, slot, medium):
        path = self.path(data)
        chain = self.chain(path)
        self.tell(
            slot,
            isched.BlockStored(block_hashes=tuple(chain), token_ids=self.tokens(path), block_size=BLOCK, medium=medium),
        )
        for block in chain:
            key = (block, MEDIA[medium])
            self.copies[slot][key] = self.copies[slot].get(key, 0) + 1

    @rule(data=st.data(), slot=SLOTS, medium=st.sampled_from(sorted(MEDIA)))
    def an_engine_gives_up(self, data, slot, medium):
        chain = self.chain(self.path(data))
        gone = data.draw(st.lists(st.sampled_from(chain), max_size=3, unique=True), "gone")
        self.tell(slot, isched.BlockRemoved(block_hashes=tuple(gone), medium=medium))
        for block in gone:
            key = (block, MEDIA[medium])
            if self.copies[slot].get(key, 0) > 1:
                self.copies[slot][key] -= 1
            else:
                self.copies[slot].pop(key, None)

    @rule(slot=SLOTS)
    def an_engine_is_cleared(self, slot):
        self.tell(slot, isched.AllBlocksCleared())
        self.copies[slot].clear()

    @rule(data=st.data(), slot=SLOTS)
    def a_request_is_booked(self, data, slot):
        path = self.path(data)
        union = isched.UnionPrefixProducer(self.approximate, self.precise)
        cycle = isched.CycleState(self.now, np.random.default_rng(0), 0)
        receipt = union.produce(self.request(path), self.endpoints, cycle).receipt
        union.commit(receipt, int(self.endpoints.slots[slot]), now=self.now)
        self.booked[slot].update(dict.fromkeys(self.chain(path), self.now + TTL))
        self.sent.insert(slot, self.chain(path))

    @rule(seconds=st.sampled_from([1.0, 2.5, 5.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(slots=st.sets(SLOTS))
    def a_replica_starts_from_what_we_know(self, slots):
        """Whole, then a delta of some: a second replica answers as we do."""
        index = self.precise.index
        same = {"seed": self.precise.seed, "block_size": BLOCK}
        whole = isched.take_snapshot(index, cursors=dict.fromkeys(range(index.endpoints), 1), **same)
        replica = isched.IndexSnapshot.from_bytes(whole.to_bytes()).restore()
        delta = isched.take_snapshot(
            index, slots=tuple(slot for slot in sorted(slots) if slot < index.endpoints), cursors={0: 2}, **same
        )
        delta.merge_into(replica, cursors=whole.cursors, **same)
        replica.check()
        for path in self.paths:
            chain = np.array(self.chain(path), dtype=np.uint64)
            assert replica.match(chain).tolist() == index.match(chain).tolist()

    @rule()
    def the_router_restarts(self):
        """Its own bookings come back from a snapshot, as old as they were."""
        snapshot = isched.take_snapshot(self.approximate.index, seed=1337, block_size=BLOCK)
        self.approximate.index = isched.IndexSnapshot.from_bytes(snapshot.to_bytes()).restore()

    @invariant()
    def both_agree_with_the_twins(self):
        self.precise.index.check()
        self.precise.speculative.check()
        self.approximate.index.check()
        self.precise._applier.check()
        cycle = isched.CycleState(self.now, np.random.default_rng(0), 0)
        for path in self.paths:
            chain = self.chain(path)
            told = self.precise.produce(self.request(path), self.endpoints, cycle).columns
            for slot in range(len(ENDPOINTS)):
                worth, held, expected = self.twin(slot, chain)
                assert abs(told[isched.PREFIX_MATCH][slot] * len(chain) - max(worth, expected)) < 1e-9
                assert told[isched.PREFIX_TOKENS][slot] == BLOCK * max(held, expected)
            sent = self.approximate.produce(self.request(path), self.endpoints, cycle).columns[isched.PREFIX_TOKENS]
            assert sent.tolist() == [BLOCK * depth for depth in self.sent.match(chain)]

    def twin(self, slot, chain):
        """What the leading blocks are worth by tier, how many are held, and how many are expected."""
        worth, held, expected = 0.0, 0, 0
        for block in chain:
            tiers = [tier for tier in isched.Tier if self.copies[slot].get((block, tier))]
            if not tiers:
                break
            worth, held = worth + max(TIER_WEIGHTS[tier] for tier in tiers), held + 1
        for block in chain:
            if not self.booked[slot].get(block, 0.0) > self.now:
                break
            expected += 1
        return worth, held, expected


TestPrefixes = Prefixes.TestCase
TestPrefixes.settings = settings(stateful_step_count=40, max_examples=120)
