"""How much of this prompt does each endpoint hold, by the engines' own word?

The exact prefix index as a `DataProducer`, fed with KV events, and its union with what we sent ourselves: an event tells
of a block when it is stored, a booking tells of it while the request is on its way.
"""

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray, HashArray, IntArray
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.prefix.bookkeeping import IndexHealth, Lookups, Stays
from inferencesched.prefix.events import KVEventApplier, KVEventStats
from inferencesched.prefix.hashing import SEED
from inferencesched.prefix.index import PrefixIndex
from inferencesched.prefix.kv_records import BlockStored, EventBatch, Tier, tier_of
from inferencesched.prefix.parameters import PreciseParameters
from inferencesched.prefix.producer import (
    ApproximatePrefixProducer,
    PrefixReceipt,
    columns_of,
    hashes_of,
    unknown_columns,
)
from inferencesched.prefix.recency import Recency
from inferencesched.prefix.sequence import StreamStep
from inferencesched.prefix.tiers import SPECULATIVE, TierMatch, tier_match
from inferencesched.request import InferenceRequest
from inferencesched.signals import CACHED_BLOCKS, READABLE_BLOCKS

#: What a block is worth where it lies: the device's and the host's as in llm-d, the slower ones as in Dynamo.
TIER_WEIGHTS: Final[Mapping[Tier, float]] = MappingProxyType(
    {Tier.DEVICE: 1.0, Tier.HOST: 0.8, Tier.DISK: 0.25, Tier.EXTERNAL: 0.25}
)


@final
class PrecisePrefixProducer:
    """Which blocks does each engine say that it holds?

    Fills ``PREFIX_MATCH`` (share of the prompt's full blocks held without a gap, each weighed by the best tier it lies
    on) and ``PREFIX_TOKENS`` (those blocks in tokens, not weighed). A block that was just booked counts in full, until
    the engine confirms it or `speculative_ttl` seconds have passed: so that a burst of equal prompts stays together.

    Parameters
    ----------
    block_size: tokens a block of our own; the engines' may differ.
    model, tenant, seed: domains of the hashes, for events and requests alike (`block_hashes`).
    weights: what a block is worth on each tier, 0 to 1; the best that it lies on counts.
    speculative_ttl: seconds; None takes the engines' word alone.
    max_blocks: how much is looked up of one prompt, in blocks; None is all.
    count_blocks: fill ``CACHED_BLOCKS`` too, the blocks behind ``PREFIX_TOKENS`` by number, and ``READABLE_BLOCKS``: those that
        lie in the host's memory by the engine's word, without a gap, where another server can read them.
    settings: the parameters of a configuration that this was made from, for whoever opens the engines' sockets.

    Nothing is evicted here: engines say what they gave up. `apply` and `take` are fed from whatever reads the engines'
    sockets; an endpoint that came back (another generation of its slot) starts empty. Safe from any thread, for the
    endpoints of one pool. Cost: a match, and where blocks lie on several tiers some us and 1 us a block for each
    endpoint that holds part of the prompt.

    >>> from inferencesched import InferencePool, InferenceRequest
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> endpoints = pool.snapshot()
    >>> producer = PrecisePrefixProducer(block_size=4, model="llama")
    >>> stored = BlockStored(block_hashes=(91, 92), token_ids=tuple(range(8)), block_size=4)
    >>> slot, generation = endpoints.slots[1], endpoints.generations[1]
    >>> producer.apply(slot, generation, EventBatch(events=(stored,)))
    >>> request = InferenceRequest(request_id="1", tokens=np.arange(16, dtype=np.uint32))
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> producer.produce(request, endpoints, cycle).columns[PREFIX_MATCH]
    array([0. , 0.5])
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        model: str = "",
        tenant: str = "",
        seed: int = SEED,
        weights: Mapping[Tier, float] = TIER_WEIGHTS,
        speculative_ttl: float | None = 2.0,
        max_blocks: int | None = None,
        count_blocks: bool = False,
        settings: PreciseParameters | None = None,
    ) -> None:
        whole_number("block_size", block_size, low=1)
        if max_blocks is not None:
            whole_number("max_blocks", max_blocks, low=1)
        self.weights = dict(weights)
        self.speculative_ttl = speculative_ttl
        self.count_blocks = count_blocks
        self.settings = settings
        for tier, weight in weights.items():
            if not 0.0 <= weight <= 1.0:
                raise InvalidInputError(f"weights[{tier.name}]", weight, "a number from 0 to 1")
        self.block_size = block_size
        self.model = model
        self.tenant = tenant
        self.seed = seed
        self.max_blocks = max_blocks
        self.index = PrefixIndex(1)
        self.speculative = PrefixIndex(1)
        self._applier = KVEventApplier(self.index, block_size=block_size, model=model, tenant=tenant, seed=seed)
        self._recency = None if speculative_ttl is None else Recency(speculative_ttl)
        #: What a block is worth by its flags: the best of the tiers it lies on.
        self._worth: FloatArray = np.array(
            [max((weights.get(tier, 1.0) for tier in Tier if flags & tier), default=0.0) for flags in range(16)]
        )
        self._plain = not count_blocks and float(self._worth[int(Tier.DEVICE)]) == 1.0
        self._mixed: set[int] = set()  # slots that were said to hold something elsewhere than on the device
        self._stays = Stays()
        self._lookups = Lookups()
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        plain = (PREFIX_MATCH, PREFIX_TOKENS)
        return (*plain, CACHED_BLOCKS, READABLE_BLOCKS) if self.count_blocks else plain

    @property
    def stats(self) -> KVEventStats:
        """What have the events brought so far?"""
        return self._applier.stats

    def apply(self, slot: int, generation: int, batch: EventBatch) -> None:
        """What does this engine say? `slot` and `generation` are its endpoint's. Errors: `KVEventError`.

        What comes late of an engine that left, after another endpoint has its slot, is passed over.
        """
        with self._lock:
            if self._stays.over(int(slot), int(generation)):
                return
            slot = self._claim(slot, generation)
            self._note_tiers(slot, batch)
            self._applier.apply(slot, batch)

    def take(self, slot: int, generation: int, step: StreamStep[EventBatch]) -> None:
        """What does a step of this engine's stream change (`EventStream`)? As `apply`. Errors: `KVEventError`."""
        with self._lock:
            if self._stays.over(int(slot), int(generation)):
                return
            slot = self._claim(slot, generation)
            for _, batch in step.ready:
                self._note_tiers(slot, batch)
            self._applier.take(slot, step)

    def stored(self, slot: int, generation: int, hashes: HashArray) -> None:
        """Which blocks does this engine hold, by our own hashes? ``uint64[B]``, the chain from its first block.

        For who learns of an engine's blocks otherwise than by its events; one endpoint is told of by one of the two ways.
        """
        with self._lock:
            if not self._stays.over(int(slot), int(generation)):
                self.index.insert(self._claim(slot, generation), hashes)

    def evicted(self, slot: int, generation: int, hashes: HashArray) -> None:
        """Which blocks does this engine hold no more, by our own hashes? ``uint64[B]``; those that it did not hold are passed over."""
        with self._lock:
            if not self._stays.over(int(slot), int(generation)):
                self.index.remove(self._claim(slot, generation), hashes)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[PrefixReceipt]:
        """Return the columns and what `commit` needs."""
        hashes = self.hashes(request)
        if hashes is None:
            nothing = np.zeros(len(endpoints), dtype=np.int64)
            return Produced(unknown_columns(endpoints, self.produces), PrefixReceipt(None, endpoints, nothing))
        with self._lock:
            self._forget_old(cycle.now)
            slots = endpoints.slots
            if self._plain and not self._mixed:
                return self._in_one(hashes, endpoints)
            owned = self._stays.current(slots, endpoints.generations)
            places = np.where(owned, slots, 0)
            told = np.where(owned, self.index.match(hashes)[places], 0).astype(np.int64)
            worth = self._weighed(hashes, told, places)
            booked = np.where(owned, self.speculative.match(hashes)[places], 0)
            readable = self._readable(hashes, told, places) if self.count_blocks else None
            if len(hashes):
                self._lookups.count(hit=bool(told.any()))
        reach = np.maximum(told, booked)
        # a booked block is on its way to the device: it counts in full, and the rest behind it as told
        matched = np.maximum(worth, booked)
        columns = columns_of(matched, reach.astype(np.float64), len(hashes), self.block_size)
        if readable is not None:
            columns |= {CACHED_BLOCKS: reach.astype(np.float64), READABLE_BLOCKS: readable}
        return Produced(columns, PrefixReceipt(hashes, endpoints, reach))

    def _in_one(self, hashes: HashArray, endpoints: Endpoints) -> Produced[PrefixReceipt]:
        """Return the same, where all that is held lies on the device, and counts in full: in one kernel."""
        slots, generations = endpoints.slots, endpoints.generations
        matched, rows = np.empty(len(endpoints), dtype=np.int64), np.empty((2, len(endpoints)))
        depths = self.index.match(hashes)
        if self._recency is not None:
            if len(hashes):
                told = self._stays.held(depths, slots, generations, len(hashes), self.block_size, matched, rows)
                self._lookups.count(hit=told > 0)
            np.maximum(depths, self.speculative.match(hashes), out=depths)
        most = self._stays.held(depths, slots, generations, len(hashes), self.block_size, matched, rows)
        if len(hashes) and self._recency is None:
            self._lookups.count(hit=most > 0)
        return Produced(
            {PREFIX_MATCH: rows[0], PREFIX_TOKENS: rows[1]}, PrefixReceipt(hashes, endpoints, matched), True
        )

    def tiers(self, request: InferenceRequest, endpoints: Endpoints, *, now: float) -> TierMatch | None:
        """On which tiers does each endpoint hold how many of the prompt's first blocks? None without hashes or tokens.

        Plain counts, by row of `endpoints`, for logs, metrics and scorers of your own; nothing is remembered of the
        question. A booked block that is not confirmed yet counts under `SPECULATIVE`. Cost as for `produce`.
        """
        hashes = self.hashes(request)
        if hashes is None:
            return None
        flags = np.zeros((len(endpoints), len(hashes)), dtype=np.uint64)
        with self._lock:
            self._forget_old(now)
            told, booked = self.index.match(hashes), self.speculative.match(hashes)
            owned = self._stays.current(endpoints.slots, endpoints.generations)
            for i in np.flatnonzero(owned).tolist():
                slot = int(endpoints.slots[i])
                held = told[slot]
                flags[i, :held] = self._applier.tiers_of(slot, hashes[:held]) if slot in self._mixed else Tier.DEVICE
                flags[i, : booked[slot]] |= np.uint64(SPECULATIVE)
        return tier_match([flags], {int(tier): weight for tier, weight in self.weights.items()})

    def commit(self, receipt: PrefixReceipt, slot: int, *, now: float) -> None:
        """Expect the prompt's blocks on `slot`, until they are confirmed or their time is up."""
        if receipt.hashes is None or self._recency is None:
            return
        with self._lock:
            self._forget_old(now)
            generation = int(receipt.endpoints.generations[receipt.position(slot)])
            if self._stays.over(slot, generation):
                return
            self._claim(slot, generation)
            self.speculative.insert(slot, receipt.hashes)
            self._recency.touch(slot, receipt.hashes, now)

    def health(self) -> IndexHealth:
        """Do requests find what the engines say they hold? Booked blocks do not count. See `IndexHealth`."""
        with self._lock:
            return self._lookups.health(self.index.stats.held)

    def hashes(self, request: InferenceRequest) -> HashArray | None:
        """Under which names is this prompt looked up? ``uint64[B]``; None if the request has neither hashes nor tokens."""
        return hashes_of(
            request, self.block_size, self.max_blocks, seed=self.seed, model=self.model, tenant=self.tenant
        )

    def _claim(self, slot: int, generation: int) -> int:
        slot = int(slot)
        if self._stays.claim(slot, int(generation)):
            self._applier.clear(slot)
            self.speculative.clear(slot)
            self._mixed.discard(slot)
            if self._recency is not None:
                self._recency.forget(slot)
        if len(self._stays) > self.index.endpoints:
            self.index.grow(len(self._stays))
            self.speculative.grow(len(self._stays))
        return slot

    def _note_tiers(self, slot: int, batch: EventBatch) -> None:
        if any(type(event) is BlockStored and tier_of(event.medium) != Tier.DEVICE for event in batch.events):
            self._mixed.add(slot)

    def _weighed(self, hashes: HashArray, told: IntArray, slots: IntArray) -> FloatArray:
        """Return what the matched blocks are worth, float64[E]."""
        worth: FloatArray = told * self._worth[int(Tier.DEVICE)]
        if not self._mixed:
            return worth
        for i in np.flatnonzero(told).tolist():
            if int(slots[i]) in self._mixed:
                flags = self._applier.tiers_of(int(slots[i]), hashes[: told[i]])
                worth[i] = self._worth[flags.astype(np.intp)].sum()
        return worth

    def _readable(self, hashes: HashArray, told: IntArray, slots: IntArray) -> FloatArray:
        """Return how many of the first blocks lie in each host's memory, float64[E]."""
        depths: FloatArray = np.zeros(len(slots))
        for i in np.flatnonzero(told).tolist():
            if int(slots[i]) in self._mixed:
                depths[i] = self._applier.match_tiers(int(slots[i]), hashes[: told[i]]).get(Tier.HOST, 0)
        return depths

    def _forget_old(self, now: float) -> None:
        if self._recency is not None:
            for slot, blocks in self._recency.expire(now):
                self.speculative.remove(slot, blocks)


class UnionReceipt(NamedTuple):
    """What do both have to remember?"""

    approximate: PrefixReceipt
    precise: PrefixReceipt


@final
class UnionPrefixProducer:
    """Who holds more of this prompt, by the engines' word or by ours? For each endpoint the larger.

    For pools where only some engines publish events. Each keeps its own index; both are asked, both learn.
    """

    def __init__(self, approximate: ApproximatePrefixProducer, precise: PrecisePrefixProducer) -> None:
        self.approximate = approximate
        self.precise = precise

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (PREFIX_MATCH, PREFIX_TOKENS)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[UnionReceipt]:
        """Return the larger of both columns, and both receipts."""
        ours = self.approximate.produce(request, endpoints, cycle)
        theirs = self.precise.produce(request, endpoints, cycle)
        columns = {signal: np.fmax(ours.columns[signal], theirs.columns[signal]) for signal in self.produces}
        return Produced(columns, UnionReceipt(ours.receipt, theirs.receipt))

    def commit(self, receipt: UnionReceipt, slot: int, *, now: float) -> None:
        """Let both learn where the request went."""
        self.approximate.commit(receipt.approximate, slot, now=now)
        self.precise.commit(receipt.precise, slot, now=now)
