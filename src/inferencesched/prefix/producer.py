"""How much of this prompt does each endpoint hold?

The prefix index as a `DataProducer`. First version: approximate, from our own bookings alone (what was sent to an
endpoint is taken to be cached there, least recently used first out).
"""

import threading
from typing import NamedTuple, final

import numpy as np

from inferencesched._typing import HashArray, IndexArray, IntArray
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.prefix.hashing import block_hashes
from inferencesched.prefix.index import PrefixIndex
from inferencesched.request import InferenceRequest


class PrefixReceipt(NamedTuple):
    """What has to be remembered if this decision is kept?"""

    hashes: HashArray | None
    slots: IndexArray
    generations: IntArray


@final
class ApproximatePrefixProducer:
    """What did we send where, and so what is cached where?

    Fills ``PREFIX_MATCH`` (share of the prompt's full blocks) and ``PREFIX_TOKENS`` (those blocks in tokens); both
    are unknown for a request with neither hashes nor tokens. `capacity` is blocks an endpoint (None: unbounded; the
    reference's default is 31,250), `block_size` tokens a block, `max_blocks` caps what is looked up of one prompt.
    A request that brings its own ``block_hashes`` made them with the same `block_size`.
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
    """

    def __init__(self, *, block_size: int = 64, capacity: int | None = 31_250, max_blocks: int | None = None) -> None:
        whole_number("block_size", block_size, low=1)
        if max_blocks is not None:
            whole_number("max_blocks", max_blocks, low=1)
        self.block_size = block_size
        self.max_blocks = max_blocks
        self.index = PrefixIndex(1, capacity)
        self._generations: IntArray = np.full(1, -1, dtype=np.int64)  # of whom each slot's blocks are
        self._lock = threading.Lock()  # the index has one writer, and no reader meanwhile

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (PREFIX_MATCH, PREFIX_TOKENS)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[PrefixReceipt]:
        """Return both columns and what `commit` needs."""
        slots, generations = endpoints.slots, endpoints.generations
        hashes = self._hashes(request)
        if hashes is None:
            unknown = np.full(len(endpoints), np.nan)
            return Produced({PREFIX_MATCH: unknown, PREFIX_TOKENS: unknown}, PrefixReceipt(None, slots, generations))
        with self._lock:
            depth = self.index.match(hashes)
            if len(slots) and slots.max() >= len(depth):
                depth = np.concatenate([depth, np.zeros(int(slots.max()) + 1 - len(depth), dtype=np.int32)])
                known = np.concatenate(
                    [self._generations, np.full(len(depth) - len(self._generations), -1, dtype=np.int64)]
                )
            else:
                known = self._generations
            matched = np.where(known[slots] == generations, depth[slots], 0).astype(np.float64)
        columns = {PREFIX_MATCH: matched / max(1, len(hashes)), PREFIX_TOKENS: matched * self.block_size}
        return Produced(columns, PrefixReceipt(hashes, slots, generations))

    def commit(self, receipt: PrefixReceipt, slot: int, *, now: float) -> None:
        """Remember that the prompt went to `slot`."""
        if receipt.hashes is None:
            return
        generation = int(receipt.generations[np.flatnonzero(receipt.slots == slot)[0]])
        with self._lock:
            size = len(self._generations)
            if slot >= size:
                size = max(slot + 1, 2 * size)
                self.index.grow(size)
                self._generations = np.concatenate(
                    [self._generations, np.full(size - len(self._generations), -1, dtype=np.int64)]
                )
            if self._generations[slot] != generation:
                self.index.clear(slot)
                self._generations[slot] = generation
            self.index.insert(slot, receipt.hashes)

    def _hashes(self, request: InferenceRequest) -> HashArray | None:
        hashes = request.block_hashes
        if hashes is None and request.tokens is not None:
            hashes = block_hashes(
                request.tokens,
                self.block_size,
                model=request.model,
                lora=request.adapter,
                salt=request.cache_salt,
                tenant=request.tenant,
            )
        return hashes if hashes is None or self.max_blocks is None else hashes[: self.max_blocks]
