"""How does a gateway avoid compiling during its first requests?"""

import numpy as np

from inferencesched.endpoints import KV_CACHE_USAGE, WAITING_QUEUE_SIZE
from inferencesched.explain import explain
from inferencesched.framework import SchedulingProfile, WeightedScorer
from inferencesched.normalize import inverse_minmax, minmax
from inferencesched.pickers import MaxScorePicker
from inferencesched.placement import preference
from inferencesched.pool import InferencePool
from inferencesched.prefix.events import KVEventApplier
from inferencesched.prefix.hashing import SEED, block_hashes
from inferencesched.prefix.index import PrefixIndex
from inferencesched.prefix.kv_records import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.prefix.snapshot import take_snapshot
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler
from inferencesched.scorers import KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer
from inferencesched.staleness import StalePolicy


def warmup() -> None:
    """Is everything compiled that a gateway calls? It is after this.

    Walks one small pool through the kernels of scoring, hashing, the prefix index and KV events; those of the simulator
    compile when it runs. Cost: some twenty seconds the first time on a machine, 0.3 s from numba's disk cache. Changes nothing
    else.

    >>> warmup()
    """
    pool = InferencePool()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pool.join(name)
        pool.observe(name, {WAITING_QUEUE_SIZE: 1.0, KV_CACHE_USAGE: 0.5}, now=0.0)
    scorers = tuple(WeightedScorer(s) for s in (PrefixCacheScorer(), QueueScorer(), KvCacheUtilizationScorer()))
    producer = ApproximatePrefixProducer(block_size=16, capacity=8)
    scheduler = Scheduler(SchedulingProfile(MaxScorePicker(), scorers), producers=(producer,), stale=StalePolicy())
    other = Scheduler(SchedulingProfile(MaxScorePicker(count=2), scorers))  # any picker but the fused one
    request = InferenceRequest(request_id="warm-up", tokens=np.arange(320, dtype=np.uint32))
    explain(scheduler, request, pool.snapshot(), now=0.0, rng=rng)
    other.schedule(request, pool.snapshot(), now=0.0, rng=rng)
    for _ in range(3):
        scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng).complete(now=0.0)
    scheduler.schedule(
        request, pool.snapshot(), now=0.0, rng=rng, exclude={"c"}
    )  # part of a pool: its arrays may be written to
    _walk_index()
    _walk_events()
    for column in (pool.snapshot()[WAITING_QUEUE_SIZE], np.zeros(3)):  # read-only, and not
        minmax(column)
        inverse_minmax(column)
    preference(0, pool.snapshot())


def _walk_index() -> None:
    """Walk a crowded prefix index through every event, with arrays that may be written to and with others."""
    index = PrefixIndex(9)
    tokens = np.arange(320, dtype=np.uint32)
    tokens.setflags(write=False)
    chain = block_hashes(tokens, 16)
    frozen = chain.copy()
    frozen.setflags(write=False)
    for slot in range(9):
        for hashes in (chain, frozen):
            index.insert(slot, hashes[:5])
            index.insert_after(slot, int(chain[4]), hashes[5:])
    for hashes in (chain, frozen):
        index.match(hashes)
        index.remove(0, hashes)
    index.match_many([chain])
    index.reserve(2_000)
    index.insert(0, chain)
    take_snapshot(index, seed=SEED, block_size=16).restore()
    index.clear(0)
    bounded = PrefixIndex(1, 8)
    bounded.insert(0, chain)
    bounded.limit(0, 4)


def _walk_events() -> None:
    """Walk what an engine may say through an applier of its own."""
    applier = KVEventApplier(PrefixIndex(1), block_size=16)
    stored = BlockStored(block_hashes=tuple(range(100)), token_ids=tuple(range(1_600)), block_size=16)
    behind = BlockStored(block_hashes=(100,), parent_block_hash=99, token_ids=tuple(range(16)), block_size=16)
    host = BlockStored(block_hashes=(1,), medium="CPU")
    applier.apply(0, EventBatch(events=(stored, behind, host, BlockRemoved(block_hashes=(1,)))))
    applier.apply(0, EventBatch(events=(AllBlocksCleared(medium="CPU"), AllBlocksCleared())))
    applier.match_tiers(0, block_hashes(np.arange(16, dtype=np.uint32), 16))
