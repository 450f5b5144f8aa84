"""The library in a benchmark of prefix indexes that replays the same operations through several: one adapter a peer.

Run beside the harness that brings `index_peers.py` (the reference material's bench folder)::

    python bench_index.py --verify --peers DynamoRadix,Ours --extra benchmarks/peers/ours.py
    python bench_index.py          --peers DynamoRadix,Ours --extra benchmarks/peers/ours.py
"""

import numpy as np
from index_peers import Adapter

from inferencesched import PrefixIndex, __version__

CHAIN = np.arange(64, dtype=np.uint64) * 77 + 1


class Ours(Adapter):
    """PrefixIndex through its public methods: chained hashes in, depths of all endpoints out."""

    name = "inferencesched PrefixIndex"
    version = __version__

    def build(self, workers, capacity):
        self.index = PrefixIndex(workers)
        self.out = np.zeros(workers, dtype=np.int32)

    def prep_query(self, local, chain):
        return np.ascontiguousarray(chain)

    def prep_store(self, worker, local, chain, start):
        return np.ascontiguousarray(chain), start

    def prep_remove(self, worker, chain):
        return np.ascontiguousarray(chain)

    def warmup(self):
        """Compile everything, and leave the index as it was: empty."""
        for worker in range(self.index.endpoints):
            self.index.insert(worker, CHAIN)
        self.index.match(CHAIN, self.out)
        self.index.remove(0, CHAIN[::-1].copy())
        for worker in range(self.index.endpoints):
            self.index.clear(worker)

    def match(self, query):
        return self.index.match(query, self.out)

    def store(self, worker, item):
        chain, start = item
        self.index.insert(worker, chain, start=start)

    def remove(self, worker, blocks):
        self.index.remove(worker, blocks)

    def depths(self, raw):
        return {int(i): int(raw[i]) for i in np.flatnonzero(raw)}

    def nbytes(self):
        return self.index.nbytes


ADAPTERS = {"Ours": Ours}
