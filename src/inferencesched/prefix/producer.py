"""How much of this prompt does each endpoint hold, from what we sent there?

The approximate prefix index as a `DataProducer`: what was sent to an endpoint is taken to be cached there, least
recently used first out. `inferencesched.prefix.precise` learns from the engines' own events instead.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from secrets import randbits
from typing import NamedTuple, final

import numpy as np

from inferencesched._typing import BoolArray, DepthArray, FloatArray, HashArray, IntArray
from inferencesched.endpoints import KV_BLOCK_SIZE, KV_BLOCKS, PREFIX_MATCH, PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.prefix.bookkeeping import IndexHealth, Lookups, Stays
from inferencesched.prefix.hashing import block_hashes
from inferencesched.prefix.index import PrefixIndex
from inferencesched.prefix.recency import Recency
from inferencesched.request import InferenceRequest
from inferencesched.signals import CACHED_BLOCKS


class PrefixReceipt(NamedTuple):
    """What has to be remembered if this decision is kept?

    `hashes` uint64[B] are the prompt's, None where nobody knows them; `matched` int64[E] blocks of it were found on each
    of the `endpoints` decided on.
    """

    hashes: HashArray | None
    endpoints: Endpoints
    matched: IntArray

    def position(self, slot: int) -> int:
        """Return which of the candidates has this slot."""
        slots: list[int] = self.endpoints.slots.tolist()
        return slots.index(slot)


def columns_of(matched: FloatArray, held: FloatArray, blocks: int, block_size: int) -> dict[Signal, FloatArray]:
    """Return what a scorer reads: the share `matched` (weighted) and the tokens `held` (not weighted)."""
    return {PREFIX_MATCH: matched / max(1, blocks), PREFIX_TOKENS: held * block_size}


def unknown_columns(endpoints: Endpoints, signals: Iterable[Signal]) -> dict[Signal, FloatArray]:
    """Return the columns for a request of which no hashes are known."""
    return dict.fromkeys(signals, np.full(len(endpoints), np.nan))


def hashes_of(
    request: InferenceRequest, block_size: int, max_blocks: int | None, *, seed: int, model: str, tenant: str
) -> HashArray | None:
    """Return the request's own hashes, or those of its tokens, at most `max_blocks`; None if it has neither."""
    hashes = request.block_hashes
    if hashes is None and request.tokens is not None:
        hashes = block_hashes(
            request.tokens,
            block_size,
            seed=seed,
            model=model,
            lora=request.adapter,
            salt=request.cache_salt,
            tenant=tenant,
        )
    return hashes if hashes is None or max_blocks is None else hashes[:max_blocks]


@final
class ApproximatePrefixProducer:
    """What did we send where, and so what is cached where?

    Fills ``PREFIX_MATCH`` (share of the prompt's full blocks) and ``PREFIX_TOKENS`` (those blocks in tokens); both
    are unknown for a request with neither hashes nor tokens. A request that brings its own ``block_hashes`` made them
    with the same `block_size`.

    Parameters
    ----------
    block_size: tokens a block.
    capacity: blocks an endpoint; None is unbounded. The reference's default is 31,250.
    automatic: an endpoint whose ``KV_BLOCKS`` and ``KV_BLOCK_SIZE`` are known has as much as those hold instead.
    ttl: seconds after which a block that was not sent again is forgotten; None is never. Costs some 100 bytes a block.
    max_blocks: how much is looked up and remembered of one prompt, in blocks; None is all.
    seed: of the hashes; None draws a secret one, so that no client can aim at another tenant's blocks. Decisions do
        not depend on it.
    count_blocks: fill ``CACHED_BLOCKS`` too, the matched blocks by number, for who asks for more than a share.

    Safe from any thread, for the endpoints of one pool. Cost: a match and, at commit, an insertion (`PrefixIndex`).
    A slot that was handed to another endpoint starts empty.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, default_profile
    >>> producer = ApproximatePrefixProducer(block_size=4)
    >>> scheduler = Scheduler(default_profile(), producers=(producer,))
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> rng = np.random.default_rng(3)
    >>> tokens = np.arange(16, dtype=np.uint32)
    >>> first = scheduler.schedule_and_reserve(InferenceRequest(request_id="1", tokens=tokens), pool, now=0.0, rng=rng)
    >>> again = scheduler.schedule_and_reserve(InferenceRequest(request_id="2", tokens=tokens), pool, now=0.1, rng=rng)
    >>> first.endpoint == again.endpoint, first.tokens, again.tokens
    (True, 16, 0)
    >>> print(producer.health())
    healthy: 1 of 2 prompts matched, 4 blocks held
    """

    def __init__(
        self,
        *,
        block_size: int = 64,
        capacity: int | None = 31_250,
        automatic: bool = False,
        ttl: float | None = None,
        max_blocks: int | None = None,
        seed: int | None = None,
        count_blocks: bool = False,
    ) -> None:
        whole_number("block_size", block_size, low=1)
        if max_blocks is not None:
            whole_number("max_blocks", max_blocks, low=1)
        if automatic and capacity is None:
            raise InvalidInputError("automatic", automatic, "a capacity, for endpoints that do not tell theirs")
        self.block_size = block_size
        self.max_blocks = max_blocks
        self.automatic = automatic
        self.ttl = ttl
        self.count_blocks = count_blocks
        self.seed = randbits(64) if seed is None else seed
        self.index = PrefixIndex(1, capacity)
        self._recency = None if ttl is None else Recency(ttl)
        self._stays = Stays()
        self._lookups = Lookups()
        self._limits: dict[int, tuple[int, int]] = {}  # slot -> what it has by its own word, and what is used of that
        self._lock = threading.Lock()  # the index has one writer, and no reader meanwhile

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (PREFIX_MATCH, PREFIX_TOKENS, CACHED_BLOCKS) if self.count_blocks else (PREFIX_MATCH, PREFIX_TOKENS)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[PrefixReceipt]:
        """Return the columns and what `commit` needs. Blocks whose time is up do not count, whoever asks next."""
        hashes = self.hashes(request)
        if hashes is None:
            nothing = np.zeros(len(endpoints), dtype=np.int64)
            return Produced(unknown_columns(endpoints, self.produces), PrefixReceipt(None, endpoints, nothing))
        with self._lock:
            self._forget_old(cycle.now)
            matched = np.empty(len(endpoints), dtype=np.int64)
            rows = np.empty((2, len(endpoints)))
            depths, slots, generations = self.index.match(hashes), endpoints.slots, endpoints.generations
            most = self._stays.held(depths, slots, generations, len(hashes), self.block_size, matched, rows)
            if len(hashes):
                self._lookups.count(hit=most > 0)
        columns = {PREFIX_MATCH: rows[0], PREFIX_TOKENS: rows[1]}
        if self.count_blocks:
            columns[CACHED_BLOCKS] = matched.astype(np.float64)
        return Produced(columns, PrefixReceipt(hashes, endpoints, matched), True)

    def commit(self, receipt: PrefixReceipt, slot: int, *, now: float) -> None:
        """Remember that the prompt went to `slot`."""
        if receipt.hashes is None:
            return
        endpoints, position = receipt.endpoints, receipt.position(slot)
        with self._lock:
            self._forget_old(now)
            self._remember(receipt.hashes, slot, int(endpoints.generations[position]), endpoints, position, now)

    def learn(self, hashes: HashArray, endpoints: Endpoints, name: str, *, now: float) -> bool:
        """Remember that a prompt went to an endpoint, from another gateway's word; return whether it is one of these endpoints.

        The hashes must have been made with this producer's block size and seed. Idempotent, but for the recency that it renews.
        """
        if name not in endpoints.names:
            return False
        position = endpoints.names.index(name)
        slot, generation = int(endpoints.slots[position]), int(endpoints.generations[position])
        with self._lock:
            self._forget_old(now)
            self._remember(hashes, slot, generation, endpoints, position, now)
        return True

    @contextmanager
    def sitting(self, endpoints: Endpoints, now: float) -> Iterator["PrefixSitting"]:
        """Look up and remember many prompts in turn, at one time and with the lock taken once: for `Scheduler.schedule_many`."""
        with self._lock:
            self._forget_old(now)
            yield PrefixSitting(self, endpoints, now)

    def feedback(self, receipt: PrefixReceipt, slot: int, cached_tokens: int) -> None:
        """What had the server cached of this prompt, by its own word (``cached_tokens`` of its response)?

        Less than was expected says that it holds less than it is believed to: its capacity here shrinks to seven
        eighths of what it is taken to hold. As much lets it grow again, by a sixty-fourth, up to what it has. The
        prompt itself stays: the server has computed it by now.
        Errors: `InvalidInputError` for a negative number, and for an index without capacity.
        """
        whole_number("cached_tokens", cached_tokens)
        if self.index.capacity is None:
            raise InvalidInputError("capacity", None, "a capacity: without one nothing is ever aged")
        if receipt.hashes is None or not len(receipt.hashes):
            return
        position = receipt.position(slot)
        expected, had = int(receipt.matched[position]), cached_tokens // self.block_size
        with self._lock:
            stay = receipt.endpoints.slots[[position]], receipt.endpoints.generations[[position]]
            if slot not in self._limits or not self._stays.current(*stay)[0]:
                return  # another endpoint has the slot by now
            most, used = self._limits[slot]
            if had < min(expected, (len(receipt.hashes) * self.block_size - 1) // self.block_size):
                used = max(1, len(receipt.hashes), min(used, self.index.blocks(slot)) * 7 // 8)
            elif expected:
                used += max(1, used // 64)
            self._set_limit(slot, most, min(used, most))

    def health(self) -> IndexHealth:
        """Does it find what it stores? See `IndexHealth`: ``blind`` is worth an alarm."""
        with self._lock:
            return self._lookups.health(self.index.stats.held)

    def hashes(self, request: InferenceRequest) -> HashArray | None:
        """Under which names is this prompt looked up? ``uint64[B]``; None if the request has neither hashes nor tokens."""
        return hashes_of(
            request, self.block_size, self.max_blocks, seed=self.seed, model=request.model, tenant=request.tenant
        )

    def _remember(
        self, hashes: HashArray, slot: int, generation: int, endpoints: Endpoints, position: int, now: float
    ) -> None:
        """Note that the prompt went to a slot; what another endpoint held there is forgotten."""
        if self._stays.over(slot, generation):
            return
        if self._stays.claim(slot, generation):
            self.index.clear(slot)
            self._limits.pop(slot, None)
            if self._recency is not None:
                self._recency.forget(slot)
        if len(self._stays) > self.index.endpoints:
            self.index.grow(len(self._stays))
        if self.index.capacity is not None:
            self._keep_limit(slot, endpoints, position)
        self.index.insert(slot, hashes)
        if self._recency is not None:
            self._recency.touch(slot, hashes, now)

    def _forget_old(self, now: float) -> None:
        if self._recency is not None:
            for slot, blocks in self._recency.expire(now):
                self.index.remove(slot, blocks)

    def _keep_limit(self, slot: int, endpoints: Endpoints, position: int) -> None:
        """Hold an endpoint to its own capacity, if it tells one."""
        most = self.index.capacity
        assert most is not None  # the caller asked
        if self.automatic:
            tokens = float(endpoints[KV_BLOCKS][position] * endpoints[KV_BLOCK_SIZE][position])
            if tokens == tokens:
                most = max(1, int(tokens) // self.block_size)
        if self._limits.get(slot, (0, 0))[0] != most:
            self._set_limit(slot, most, most)

    def _set_limit(self, slot: int, most: int, used: int) -> None:
        if self._limits.get(slot) != (most, used):
            self._limits[slot] = (most, used)
            self.index.limit(slot, used)


@final
class PrefixSitting:
    """Which endpoints hold each of many prompts, looked up and remembered in turn? Made by `ApproximatePrefixProducer.sitting`.

    ``depths`` int32[slots] is what the last `look_up` found, ``owned`` bool[E] whose slot's blocks are its own: what an
    endpoint holds is ``depths[slot]`` where it owns them, else 0. ``settled`` are positions whose slot and limit are looked
    after, which nothing changes meanwhile: there a `PrefixIndex.insert` does all that `remember` would.
    """

    __slots__ = (
        "_endpoints",
        "_generations",
        "_now",
        "_own",
        "_plain",
        "_producer",
        "depths",
        "owned",
        "settled",
        "slots",
    )

    def __init__(self, producer: ApproximatePrefixProducer, endpoints: Endpoints, now: float) -> None:
        self._producer = producer
        self._endpoints = endpoints
        self._now = now
        self.slots: list[int] = endpoints.slots.tolist()
        self._generations: list[int] = endpoints.generations.tolist()
        self.owned: BoolArray = producer._stays.current(endpoints.slots, endpoints.generations).copy()
        self.depths: DepthArray = np.zeros(producer.index.endpoints, dtype=np.int32)
        self.settled: set[int] = set()
        self._own = producer.max_blocks is None  # are a request's own hashes taken whole?
        self._plain = producer._recency is None

    def look_up(self, request: InferenceRequest) -> HashArray | None:
        """Fill ``depths``; return the prompt's hashes, None where nobody knows them: then nothing is filled."""
        hashes = request.block_hashes if self._own else None
        if hashes is None:
            hashes = self._producer.hashes(request)
        if hashes is not None:
            self._producer.index.match(hashes, self.depths)
        return hashes

    def count(self, hits: list[bool]) -> None:
        """Count lookups, of prompts with at least one block."""
        for hit in hits:
            self._producer._lookups.count(hit=hit)

    def remember(self, hashes: HashArray, position: int) -> None:
        """Note that a prompt went to the endpoint at a position."""
        slot, producer = self.slots[position], self._producer
        if self._plain:
            self.settled.add(position)
        producer._remember(hashes, slot, self._generations[position], self._endpoints, position, self._now)
        if not self.owned[position]:
            self.owned[position] = True
            if producer.index.endpoints != len(self.depths):
                self.depths = np.zeros(producer.index.endpoints, dtype=np.int32)
