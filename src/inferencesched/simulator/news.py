"""When does the gateway hear which blocks the servers hold, if it hears of them at all?

What engines publish as KV events, late and with losses as a run asks for, told to the `PrecisePrefixProducer` that a gateway
would have fed from its sockets. No wire format is read here: `inferencesched.prefix.kv_wire` has its own tests.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final, final

import numpy as np

from inferencesched._typing import IntArray
from inferencesched.pool import InferencePool
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.simulator.server import BlockNews
from inferencesched.simulator.workload import Workload

#: Where a row of news has its server, its request (-1: a block was evicted), and how many blocks or which one.
_SERVER, _REQUEST, _WHAT = range(3)


@final
class Newsroom:
    """Who hears of the servers' blocks, how late, and how much of it is lost?

    Each entry is lost by a draw of its own. `late` is ms from the beginning of the pass that stored or evicted.
    """

    def __init__(
        self,
        readers: Sequence[PrecisePrefixProducer],
        workload: Workload,
        pool: InferencePool,
        late: float,
        lost: float,
        seed: np.random.SeedSequence,
        at_slot: IntArray,
    ) -> None:
        self.late: Final = late
        self.lost: Final = lost
        self._readers = tuple(readers)
        self._pool = pool
        self._at_slot = at_slot
        self._hashes = workload.block_hashes()
        self._starts: list[int] = workload.offsets.tolist()
        self._own = int(workload.blocks.max(initial=-1)) + 1  # ids from here on are of generated tokens
        every = np.arange(self._own if readers else 0)
        self._names = replace(workload, blocks=every).block_hashes()  # by id
        self._rng = np.random.default_rng(seed)
        self._coming: deque[BlockNews] = deque()

    def tell(self, news: Sequence[BlockNews], now: float) -> None:
        """Take what was said up to `now`, ms, and tell whoever reads it what has arrived by then."""
        for each in news:
            kept = each.news[:, _REQUEST] >= 0
            kept |= each.news[:, _WHAT] < self._own
            if self.lost:
                kept &= self._rng.random(len(kept)) >= self.lost
            order = np.flatnonzero(kept)
            if self.late:  # servers speak in turn: what is late is heard in order of time
                order = order[np.argsort(each.time[order], kind="stable")]
            if len(order):
                self._coming.append(BlockNews(each.time[order], each.news[order]))
        while self._coming:
            first = self._coming[0]
            due = len(first.time) if not self.late else int(np.searchsorted(first.time, now - self.late, side="right"))
            if not due:
                return
            self._publish(first.news[:due])
            if due < len(first.time):
                self._coming[0] = BlockNews(first.time[due:], first.news[due:])
                return
            self._coming.popleft()

    def _publish(self, news: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
        """Tell all readers, evictions of one server that follow each other at once."""
        endpoints = self._pool.snapshot()
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        known = dict(zip(self._at_slot[endpoints.slots].tolist(), stays, strict=True))
        evicted = news[:, _REQUEST] < 0
        # a new stretch begins at a stored chain, and where server or kind change
        turns = np.flatnonzero(~evicted[1:] | ~evicted[:-1] | (np.diff(news[:, _SERVER]) != 0)) + 1
        begins = [0, *turns.tolist(), len(news)]
        for begin, end in pairwise(begins):
            server, request, what = news[begin].tolist()
            if server not in known:  # it has left
                continue
            slot, generation = known[server]
            if request < 0:
                gone = self._names[news[begin:end, _WHAT]]
                for reader in self._readers:
                    reader.evicted(slot, generation, gone)
            else:
                start = self._starts[request]
                for reader in self._readers:
                    reader.stored(slot, generation, self._hashes[start : start + what])
