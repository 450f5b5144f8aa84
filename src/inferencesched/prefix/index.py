"""Which endpoint holds how many of a prompt's first blocks?

Rules:

* a block goes by its chained hash (`inferencesched.prefix.hashing`), so one hash stands for the whole prefix;
* what is *known* is closed under ancestors: a block that nobody holds stays known while somebody holds one behind it;
* a hole counts as one: what an endpoint holds behind a block it lost does not match until the block is back;
* an error is raised before anything changes.

The structure, in `inferencesched._kernels`: blocks that came together are a *run*; a table leads from a hash to its run
(`prefix_table`); pieces of runs say who holds what (`prefix_holders`). To match, the deepest known block is searched for
and its run and that run's ancestors are walked once (`prefix_search`). It goes back to the radix trees of SGLang and
Dynamo, with two differences: one hash is asked for instead of every block compared, as hashes are chained, and runs
never split.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn, final

import numpy as np
from numpy import ndarray

from inferencesched._kernels._compile import entry
from inferencesched._kernels.prefix_events import (
    STORED_AND_CROWDED,
    UNKNOWN_PARENT,
    limit,
    store,
    store_after,
    take,
    take_all,
)
from inferencesched._kernels.prefix_export import collect, gather
from inferencesched._kernels.prefix_holders import crowd
from inferencesched._kernels.prefix_memory import (
    ABSENT,
    BLOCKS,
    COLUMNS,
    EVICTED,
    LEVELS,
    PAGE,
    PIECES,
    RUNS,
    SEGMENTS,
    TOP,
    USED,
)
from inferencesched._kernels.prefix_search import match, match_many
from inferencesched._typing import DepthArray, HashArray, IntArray
from inferencesched.errors import InvalidInputError, UnknownParentError, whole_number
from inferencesched.prefix._audit import audit
from inferencesched.prefix._memory import Memory

_HASH = np.dtype(np.uint64)
_DEPTH = np.dtype(np.int32)
_HELD = 0


class IndexStats(NamedTuple):
    """How full is a prefix index, and what has happened to it?

    `blocks` are known, once however many endpoints hold them; `held` counts each with each endpoint that holds it.
    `runs`, `pieces` and `columns` are its records, `slots` its table's size, `nbytes` its memory. Since it was made:
    `segments_moved` of 1,024 slots by growth, `evicted` blocks over capacity, `absent` blocks that were to be removed
    and were not there.
    """

    blocks: int
    held: int
    runs: int
    pieces: int
    columns: int
    slots: int
    nbytes: int
    segments_moved: int
    evicted: int
    absent: int


@final
class PrefixIndex:
    """Which endpoint holds how many of a prompt's first blocks?

    `endpoints` are slots 0, 1, ...: small stable integers (`Endpoints.slots`). `capacity` is blocks an endpoint, None
    is unbounded: the exact index of what engines report. With a capacity it is the approximate index of what was sent
    where: over it, the least recently inserted go first, and of one chain its tail before its head, so that what is
    left still is a prefix. A chain longer than the capacity keeps its head.

    Cost: a match looks at about 8 hashes for each factor of 8 in the prompt's length, then at the few runs that it
    lies in; a change looks at each block once. Growth copies nothing: see `IndexStats.segments_moved`. Memory is about
    30 bytes a known block. Not safe from several threads at once.

    >>> index = PrefixIndex(endpoints=2)
    >>> chain = np.array([11, 12, 13], dtype=np.uint64)
    >>> index.insert(0, chain)
    >>> index.insert(1, chain[:2])
    >>> index.match(chain)
    array([3, 2], dtype=int32)
    >>> index.remove(0, chain[1:2])
    1
    >>> index.match(chain)
    array([1, 2], dtype=int32)
    """

    def __init__(self, endpoints: int, capacity: int | None = None) -> None:
        if endpoints < 0:
            raise InvalidInputError("endpoints", endpoints, "an integer of at least 0")
        if capacity is not None and capacity < 1:
            raise InvalidInputError("capacity", capacity, "an integer of at least 1, or None")
        self.capacity = capacity
        self.endpoints = endpoints
        self._memory = Memory(endpoints, capacity)
        self._out: DepthArray | None = None
        self._match, self._store, self._store_after, self._take = _entries()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PrefixIndex cannot be copied or pickled: its records name each other by address")

    def __len__(self) -> int:
        """How many different blocks are known?"""
        return int(self._memory.root[USED])

    def blocks(self, slot: int) -> int:
        """How many blocks does this endpoint hold, within and behind holes?"""
        return int(self._memory.ends[self._slot(slot), _HELD])

    @property
    def nbytes(self) -> int:
        """How much memory does the index take, in bytes?"""
        return self._memory.nbytes()

    @property
    def stats(self) -> IndexStats:
        """How full is it, and what has happened to it?"""
        root = self._memory.root
        words = (RUNS, PIECES, COLUMNS, SEGMENTS, EVICTED, ABSENT)
        runs, pieces, columns, segments, evicted, absent = (int(root[word]) for word in words)
        held = int(self._memory.ends[:, _HELD].sum(dtype=np.int64))
        return IndexStats(
            len(self), held, runs, pieces, columns, len(self._memory.table), self.nbytes, segments, evicted, absent
        )

    def match(self, hashes: HashArray, out: DepthArray | None = None) -> DepthArray:
        """How many of a prompt's first blocks does each endpoint hold, without a gap? ``uint64[B] -> int32[E]``.

        `out`, int32[E] and contiguous, is filled and returned where given.
        """
        if type(hashes) is not ndarray or hashes.dtype != _HASH or hashes.ndim != 1:
            hashes = self._hashes(hashes)
        if out is None:
            out = np.empty(self.endpoints, dtype=_DEPTH)
        elif out is not self._out:
            self._out = self._checked(out, (self.endpoints,))
        if not self._match(self._memory.root, hashes, out):
            self._match(self._memory.root, np.ascontiguousarray(hashes), out)
        return out

    def match_many(
        self, hashes: Sequence[HashArray] | HashArray, out: DepthArray | None = None, *, ends: IntArray | None = None
    ) -> DepthArray:
        """How many of the first blocks of each of these prompts does each endpoint hold? ``int32[Q, E]``.

        Row i is what `match` answers for ``hashes[i]``, several times faster for short prompts. Faster still where the
        prompts lie behind each other in one array already: `hashes` uint64[N], and `ends` int64[Q] says where each of
        them ends. `out`, int32[Q, E] and contiguous, is filled and returned where given.
        """
        shape = (len(hashes) if ends is None else len(ends), self.endpoints)
        out = np.empty(shape, dtype=_DEPTH) if out is None else self._checked(out, shape)
        if ends is not None:
            chains = self._hashes(hashes)
            self._check_ends(ends, len(chains))
        elif not shape[0]:
            return out
        else:
            try:
                chains = np.concatenate(hashes, dtype=_HASH, casting="no")
            except (TypeError, ValueError):  # one of them is no such array: which?
                chains = np.concatenate([self._hashes(each) for each in hashes])
            chains = self._hashes(chains)
            ends = np.fromiter(map(len, hashes), dtype=np.int64, count=shape[0]).cumsum()
        match_many(self._memory.root, chains, ends, out)
        return out

    def insert(self, slot: int, hashes: HashArray, *, start: int = 0) -> None:
        """Which blocks does the endpoint hold from now on? Blocks `start` and after of this chain.

        `hashes`, uint64[B], is the whole chain from its first block. Blocks before `start` become known and, where
        the endpoint holds them, recently used; they are not taken to be held. What is held already stays held.
        """
        slot, chain = self._slot(slot), self._hashes(hashes)
        if not 0 <= start <= len(chain):
            raise InvalidInputError("start", start, f"an integer in [0, len(hashes) = {len(chain)}]")
        self._prepare(len(chain))
        self._finish(self._store(self._memory.root, slot, chain, start), chain)

    def insert_after(self, slot: int, parent: int, hashes: HashArray) -> None:
        """Which blocks behind a known one does the endpoint hold from now on? As an engine reports what it stored.

        `parent` is the chained hash of the block before ``hashes[0]``. The endpoint need not hold it, but it has to be
        known: `UnknownParentError` otherwise, and nothing has changed.
        """
        slot, chain = self._slot(slot), self._hashes(hashes)
        if not 0 <= parent < 1 << 64:
            raise InvalidInputError("parent", parent, "an integer in [0, 2^64)")
        self._prepare(len(chain))
        answer = self._store_after(self._memory.root, slot, np.uint64(parent), chain)
        if answer == UNKNOWN_PARENT:
            raise UnknownParentError("parent", int(parent), "the hash of a block that is in the index")
        self._finish(answer, chain)

    def remove(self, slot: int, hashes: HashArray) -> int:
        """How many of these blocks did the endpoint hold? It holds them no more; others are counted and passed over."""
        slot, blocks = self._slot(slot), self._hashes(hashes)
        self._memory.reserve(0, 2 * len(blocks) + 2)
        return self._take(self._memory.root, slot, blocks)

    def clear(self, slot: int) -> None:
        """Is the endpoint empty, as after a restart? It is after this. Cost: what it holds, not what the index does."""
        take_all(self._memory.root, self._slot(slot))

    def limit(self, slot: int, capacity: int | None) -> int:
        """May this endpoint hold more or fewer blocks than the others? None: as many. Returns how many had to go.

        Only where the index has a capacity; it stays when the endpoint is cleared.
        """
        slot = self._slot(slot)
        if self.capacity is None:
            raise InvalidInputError("capacity", capacity, "an index that was made with one")
        if capacity is not None:
            capacity = min(whole_number("capacity", capacity, 1), 2**31 - 1)
        return limit(self._memory.root, slot, capacity or 0)

    def grow(self, endpoints: int) -> None:
        """Is there room for so many endpoints? There is after this; the new ones hold nothing."""
        if endpoints < self.endpoints:
            raise InvalidInputError(
                "endpoints", endpoints, f"an integer of at least {self.endpoints}, the present size"
            )
        self._memory.grow(endpoints)
        self.endpoints = endpoints
        self._out = None

    def reserve(self, blocks: int) -> None:
        """Is there room for so many blocks more? There is after this, and no growth before they are stored."""
        if blocks < 0:
            raise InvalidInputError("blocks", blocks, "an integer of at least 0")
        self._memory.reserve(blocks, 2 * (blocks // BLOCKS + 2))

    def pieces(self) -> tuple[DepthArray, HashArray, DepthArray]:
        """Who holds what, all of it, as arrays? What a snapshot is made of; see `inferencesched.prefix.snapshot.Pieces`."""
        root = self._memory.root
        runs = np.zeros((int(root[RUNS]), 4), dtype=np.int32)
        held = np.zeros((int(root[PIECES]), 4), dtype=_DEPTH)
        gather(root, self.endpoints, np.zeros(int(root[TOP]), dtype=np.int32), runs, held)
        hashes = np.zeros(int(root[USED]), dtype=_HASH)
        collect(root, runs, len(runs), hashes)
        return runs[:, 1:].copy(), hashes, held

    def check(self) -> None:
        """Does every part of the index agree with every other? Raises AssertionError where not; for tests: it is slow."""
        audit(self._memory, self.endpoints)

    def _prepare(self, blocks: int) -> None:
        """Make room for a chain: a chunk for six blocks, and for each run on its way a piece and what is cut off one."""
        memory = self._memory
        memory.reserve(blocks, 2 * (blocks // BLOCKS + 4) + 4 * (int(memory.root[LEVELS]) + 2))
        if memory.old is not None:
            memory.carry(blocks)

    def _finish(self, answer: int, chain: HashArray) -> None:
        if answer == STORED_AND_CROWDED:
            self._memory.reserve(0, 2 * PAGE)  # the rest of a page may be too short for a column
            crowd(self._memory.root)
        elif answer < UNKNOWN_PARENT:
            allowed = "chained hashes: this one is in the index behind another block"
            raise InvalidInputError("hashes", int(chain[-2 - answer]), allowed)

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < self.endpoints:
            raise InvalidInputError("slot", slot, f"an integer in [0, {self.endpoints})")
        return slot

    def _hashes(self, hashes: Any) -> HashArray:
        """Return contiguous hashes: an array of another layout is another type to a kernel."""
        if not isinstance(hashes, np.ndarray) or hashes.dtype != _HASH or hashes.ndim != 1:
            raise InvalidInputError("hashes", _kind(hashes), "a uint64 array of one dimension")
        return np.ascontiguousarray(hashes)

    @staticmethod
    def _check_ends(ends: Any, blocks: int) -> None:
        """Refuse ends that a kernel would follow out of its array."""
        if not isinstance(ends, np.ndarray) or ends.dtype != np.int64 or ends.ndim != 1 or not ends.flags.c_contiguous:
            raise InvalidInputError("ends", _kind(ends), "a contiguous int64 array of one dimension")
        rises = not len(ends) or (ends[0] >= 0 and (ends[1:] >= ends[:-1]).all())
        if not rises or (int(ends[-1]) if len(ends) else 0) != blocks:
            raise InvalidInputError(
                "ends", ends.tolist(), f"numbers that do not fall, the last {blocks} as there are blocks"
            )

    def _checked(self, out: Any, shape: tuple[int, ...]) -> DepthArray:
        if (
            not isinstance(out, np.ndarray)
            or out.dtype != _DEPTH
            or out.shape != shape
            or not out.flags.c_contiguous
            or not out.flags.writeable
        ):
            raise InvalidInputError("out", _kind(out), f"a contiguous, writable int32 array of shape {shape}")
        return out


@cache
def _entries() -> tuple[
    Callable[[IntArray, HashArray, DepthArray], bool],
    Callable[[IntArray, int, HashArray, int], int],
    Callable[[IntArray, int, np.uint64, HashArray], int],
    Callable[[IntArray, int, HashArray], int],
]:
    """Compile what is called for every request and event; read-only hashes go through the same code."""
    root, hashes, depths = np.empty(0, dtype=np.int64), np.empty(0, dtype=_HASH), np.empty(0, dtype=_DEPTH)
    return (
        entry(match, root, hashes, depths),
        entry(store, root, 0, hashes, 0),
        entry(store_after, root, 0, np.uint64(0), hashes),
        entry(take, root, 0, hashes),
    )


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
