"""Does the index stay whole, and right at every moment, while several threads match, insert and remove at once?"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import inferencesched as isched
from inferencesched._kernels.prefix_gate import enter, leave, shut, unshut
from tests import naive_prefix

WRITERS, READERS, STEPS = 3, 3, 800
#: A thread's turn, in seconds: as short as the interpreter makes it, so that turns end in the middle of things.
TURN = 1e-6


@pytest.fixture(autouse=True)
def short_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN)
    yield
    sys.setswitchinterval(before)


def fresh(rng, count):
    return rng.integers(1, 2**64, size=count, dtype=np.uint64)


class Storm:
    """Threads that write, each to endpoints of its own, and threads that read what all of them do.

    Endpoint 0 holds one chain throughout. Endpoint 1 + w is a writer's toggle: its chain is stored and removed by
    single calls, so whoever finds a part of it has seen a change half done. Endpoint 1 + WRITERS + w is the writer's
    field: branches of prompts that all share, in pieces, in any order. All of them make tables and pages grow.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.index = isched.PrefixIndex(1 + 2 * WRITERS)
        self.kept = fresh(rng, 700)
        self.toggles = [np.concatenate([self.kept[:40], fresh(rng, 300)]) for _ in range(WRITERS)]
        self.shared = [np.concatenate([self.kept[:90], fresh(rng, 120)]) for _ in range(4)]
        self.told = [[] for _ in range(WRITERS)]  # what each writer did to its field, for the twin
        self.stop = threading.Event()
        self.index.insert(0, self.kept)

    def write(self, w):
        rng = np.random.default_rng([5, w])
        toggle, field = 1 + w, 1 + WRITERS + w
        for step in range(STEPS):
            self.index.insert(toggle, self.toggles[w])
            prompt = self.shared[int(rng.integers(len(self.shared)))]
            chain = prompt[: int(rng.integers(1, len(prompt) + 1))]
            kind = int(rng.integers(5))
            if kind < 3:
                chain = np.concatenate([chain, fresh(rng, int(rng.integers(200)))])
                start = int(rng.integers(len(chain)))
                self.index.insert(field, chain, start=start)
                self.told[w].append((chain.tolist(), start))
            else:
                gone = chain[int(rng.integers(len(chain))) :]
                self.index.remove(field, gone[::-1].copy() if kind == 3 else gone)
                self.told[w].append((gone.tolist(), None))
            if step % 5 == 4:
                assert self.index.remove(toggle, self.toggles[w]) == len(self.toggles[w])
            if step % 100 == 99:
                self.index.clear(field)
                self.told[w].append((None, None))

    def read(self, r):
        """Return how often it looked; raise where something was seen that never was."""
        rng = np.random.default_rng([6, r])
        out, looks = np.zeros(self.index.endpoints, dtype=np.int32), 0
        chains = [self.kept, *self.toggles]
        whole = {0, len(self.toggles[0])}
        while not self.stop.is_set():
            w = int(rng.integers(WRITERS))
            for asked, depths in (
                (self.kept, self.index.match(self.kept, out)),
                (self.toggles[w], self.index.match(self.toggles[w])),
                *zip(chains, self.index.match_many(chains), strict=True),
            ):
                assert depths[0] == (700 if asked is self.kept else 40)
                for other in range(WRITERS):
                    mine = asked is self.toggles[other]
                    assert depths[1 + other] in (whole if mine else {0, 40})
            looks += 1
        return looks

    def run(self):
        with ThreadPoolExecutor(WRITERS + READERS) as pool:
            readers = [pool.submit(self.read, r) for r in range(READERS)]
            writers = [pool.submit(self.write, w) for w in range(WRITERS)]
            try:
                for writer in writers:
                    writer.result(timeout=120)
            finally:
                self.stop.set()
            return [reader.result(timeout=120) for reader in readers]


@pytest.mark.parametrize("seed", range(2))
def test_nobody_sees_a_change_half_done(seed):
    """And in the end it holds what each writer's calls, one after the other, make a set of hashes hold."""
    storm = Storm(seed)
    looks = storm.run()
    storm.index.check()
    assert min(looks) > 0 and storm.index.stats.segments_moved > 0
    for w, told in enumerate(storm.told):
        twin = naive_prefix.PrefixIndex(1)
        held = twin.held[0]
        for chain, start in told:
            if chain is None:
                held.clear()
            elif start is None:
                twin.remove(0, chain)
            else:
                held.update(dict.fromkeys(chain[start:]))
        field = 1 + WRITERS + w
        assert storm.index.blocks(field) == len(held)
        for chain in storm.shared + [np.array(chain, dtype=np.uint64) for chain, start in told if start is not None]:
            assert storm.index.match(chain)[field] == twin.match(chain.tolist())[0]


def test_endpoints_come_while_others_are_asked_for():
    """An answer has as many endpoints as there were at some time of its making."""
    index, chain = isched.PrefixIndex(1), np.arange(1, 30, dtype=np.uint64)
    index.insert(0, chain)

    def grow():
        for endpoints in range(2, 200):
            index.grow(endpoints)
            index.insert(endpoints - 1, chain)

    with ThreadPoolExecutor(1) as pool:
        growing = pool.submit(grow)
        before = 1
        while not growing.done():
            depths = index.match(chain).tolist()
            assert len(depths) >= before
            assert set(depths[: before - 1]) <= {29}
            before = len(depths)
        growing.result()
    index.check()
    assert index.match(chain).tolist() == [29] * 199


def test_a_shut_gate_lets_nobody_in_and_counts_nobody():
    root = np.zeros(64, dtype=np.int64)
    assert enter(root) and enter(root)
    leave(root)
    leave(root)
    shut(root)
    assert not enter(root) and not enter(root)
    shut(root)
    unshut(root)
    unshut(root)
    assert enter(root)
    leave(root)
    assert not root.any()


def test_a_writer_waits_for_those_who_are_in():
    root = np.zeros(64, dtype=np.int64)
    entered = enter(root)
    with ThreadPoolExecutor(1) as pool:
        shutting = pool.submit(shut, root)
        while enter(root):  # not yet shut
            leave(root)
        assert entered and not shutting.done()
        leave(root)
        shutting.result(timeout=60)
    assert not enter(root)


def test_a_reader_waits_for_a_writer():
    index, chain = isched.PrefixIndex(1), np.arange(1, 30, dtype=np.uint64)
    index.insert(0, chain)
    with ThreadPoolExecutor(1) as pool:
        with index._lock:
            shut(index._memory.root)
            answers = [pool.submit(index.match, chain)]
            assert not answers[0].done()
            unshut(index._memory.root)
        assert answers[0].result(timeout=60).tolist() == [29]


def test_an_index_whose_writer_was_interrupted_is_read_and_written():
    index, chain = isched.PrefixIndex(1), np.arange(1, 30, dtype=np.uint64)
    index.insert(0, chain)
    for call in (
        lambda: index.match(chain).tolist(),
        lambda: index.match_many([chain]).sum(axis=0).tolist(),
        lambda: index.insert(0, chain) or index.match(chain).tolist(),
    ):
        shut(index._memory.root)
        assert call() == [29]
        assert enter(index._memory.root)
        leave(index._memory.root)


def test_what_grew_away_stays_shut():
    """Its words move to a larger array when there are many pages; who still asks with the old one is sent away."""
    index, rng = isched.PrefixIndex(1), np.random.default_rng(3)
    old, chain = index._memory.root, fresh(rng, 40)
    index.insert(0, chain)
    while index._memory.root is old:
        index.insert(0, fresh(rng, 50_000))
    assert not enter(old)
    assert not index._match(old, chain, np.zeros(1, dtype=np.int32))
    assert index.match(chain).tolist() == [40]
