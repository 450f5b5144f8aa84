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

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn, TypeVar, final

import numpy as np
from numpy import ndarray
from numpy.typing import NDArray

from inferencesched._kernels._compile import lent
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
from inferencesched._kernels.prefix_gate import unshut
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
from inferencesched._kernels.prefix_search import match, match_each, match_many, match_tokens
from inferencesched._typing import DepthArray, HashArray, IntArray, TokenArray
from inferencesched.errors import InvalidInputError, UnknownParentError, whole_number
from inferencesched.prefix._audit import audit
from inferencesched.prefix._memory import Memory
from inferencesched.prefix.hashing import SEED, domain_seed, token_array

_HASH = np.dtype(np.uint64)
_DEPTH = np.dtype(np.int32)
_HELD = 0
_KIND = id(ndarray)
Scalar = TypeVar("Scalar", bound=np.generic)


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
    30 bytes a known block.

    Safe from any thread: changes take the index's one lock, one after the other; matches run beside each other without
    it, and wait for a change that is on its way. That costs a match some 10 ns and a change 0.15 us.

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
        self._lock = threading.Lock()
        self._match, self._match_each, self._match_many, self._match_tokens = _readers()
        self._store, self._store_after, self._take = _writers()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PrefixIndex cannot be copied or pickled: its records name each other by address")

    def __len__(self) -> int:
        """How many different blocks are known?"""
        return int(self._memory.root[USED])

    def blocks(self, slot: int) -> int:
        """How many blocks does this endpoint hold, within and behind holes?"""
        slot = self._slot(slot)
        with self._lock:
            return int(self._memory.ends[slot, _HELD])

    @property
    def nbytes(self) -> int:
        """How much memory does the index take, in bytes?"""
        with self._lock:
            return self._memory.nbytes()

    @property
    def stats(self) -> IndexStats:
        """How full is it, and what has happened to it?"""
        words = (USED, RUNS, PIECES, COLUMNS, SEGMENTS, EVICTED, ABSENT)
        with self._lock:
            memory = self._memory
            blocks, runs, pieces, columns, segments, evicted, absent = memory.root[list(words)].tolist()
            held = int(memory.ends[:, _HELD].sum(dtype=np.int64))
            slots, nbytes = len(memory.table), memory.nbytes()
        return IndexStats(blocks, held, runs, pieces, columns, slots, nbytes, segments, evicted, absent)

    def match(self, hashes: HashArray, out: DepthArray | None = None) -> DepthArray:
        """How many of a prompt's first blocks does each endpoint hold, without a gap? ``uint64[B] -> int32[E]``.

        `out`, int32[E] and contiguous, is filled and returned where given.
        """
        depths = np.empty(self.endpoints, dtype=_DEPTH) if out is None else out
        if type(hashes) is ndarray and type(depths) is ndarray:
            try:
                done = self._match(self._memory.root, hashes, depths)
            except TypeError:  # another dtype or layout
                done = False
            if done:
                return depths
        chain = self._hashes(hashes)
        return self._by_the_lock(lambda root, depths: self._match(root, chain, depths), out)

    def match_tokens(
        self,
        tokens: TokenArray,
        block_size: int,
        out: DepthArray | None = None,
        *,
        seed: int = SEED,
        model: str = "",
        lora: str = "",
        salt: str = "",
        tenant: str = "",
    ) -> DepthArray:
        """How many of a prompt's first blocks does each endpoint hold, from its tokens? ``uint32[T] -> int32[E]``.

        What `match` answers for the `block_hashes` of these tokens, in one call. Of a prompt of which little is known
        only the first part is hashed, to four times what is known. Arguments and errors are those of both.

        >>> from inferencesched.prefix.hashing import block_hashes
        >>> index, tokens = PrefixIndex(endpoints=2), np.arange(12, dtype=np.uint32)
        >>> index.insert(1, block_hashes(tokens[:8], 4, salt="mine"))
        >>> index.match_tokens(tokens, 4, salt="mine"), index.match_tokens(tokens, 4)
        (array([0, 2], dtype=int32), array([0, 0], dtype=int32))
        """
        if block_size < 1:
            raise InvalidInputError("block_size", block_size, "an integer of at least 1")
        local = np.uint64(domain_seed(seed, model=model, lora=lora, salt=salt, tenant=tenant))
        chained, array = np.uint64(seed), token_array(tokens)
        depths = np.empty(self.endpoints, dtype=_DEPTH) if out is None else self._checked(out, (self.endpoints,))
        if self._match_tokens(self._memory.root, array, block_size, local, chained, depths):
            return depths if out is None else out
        return self._by_the_lock(
            lambda root, depths: self._match_tokens(root, array, block_size, local, chained, depths), out
        )

    def match_many(
        self, hashes: Sequence[HashArray] | HashArray, out: DepthArray | None = None, *, ends: IntArray | None = None
    ) -> DepthArray:
        """How many of the first blocks of each of these prompts does each endpoint hold? ``int32[Q, E]``.

        Row i is what `match` answers for ``hashes[i]``. The prompts may lie behind each other in one array as well:
        `hashes` uint64[N], and `ends` int64[Q] says where each of them ends. `out`, int32[Q, E] and contiguous, is
        filled and returned where given.
        """
        each = tuple(hashes) if ends is None else ()
        count = len(each) if ends is None else len(ends)
        depths = np.empty((count, self.endpoints), dtype=_DEPTH) if out is None else out
        try:
            if type(depths) is not ndarray:
                done = False
            elif ends is None:
                done = self._match_each(self._memory.root, each, _KIND, depths)
            elif isinstance(hashes, ndarray) and isinstance(ends, ndarray):
                done = self._match_many(self._memory.root, hashes, ends, depths)
            else:
                done = False
        except TypeError:  # another dtype or layout
            done = False
        if done:
            return depths
        if ends is None:
            each = tuple(map(self._hashes, each))
            return self._by_the_lock(lambda root, depths: self._match_each(root, each, _KIND, depths), out, count)
        chains = self._hashes(hashes)
        rising = self._ends(ends, len(chains))
        return self._by_the_lock(lambda root, depths: self._match_many(root, chains, rising, depths), out, count)

    def insert(self, slot: int, hashes: HashArray, *, start: int = 0) -> None:
        """Which blocks does the endpoint hold from now on? Blocks `start` and after of this chain.

        `hashes`, uint64[B], is the whole chain from its first block. Blocks before `start` become known and, where
        the endpoint holds them, recently used; they are not taken to be held. What is held already stays held.
        """
        slot, chain = self._slot(slot), self._hashes(hashes)
        if not 0 <= start <= len(chain):
            raise InvalidInputError("start", start, f"an integer in [0, len(hashes) = {len(chain)}]")
        with self._lock:
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
        with self._lock:
            self._prepare(len(chain))
            answer = self._store_after(self._memory.root, slot, np.uint64(parent), chain)
            if answer == UNKNOWN_PARENT:
                raise UnknownParentError("parent", int(parent), "the hash of a block that is in the index")
            self._finish(answer, chain)

    def remove(self, slot: int, hashes: HashArray) -> int:
        """How many of these blocks did the endpoint hold? It holds them no more; others are counted and passed over."""
        slot, blocks = self._slot(slot), self._hashes(hashes)
        with self._lock:
            self._memory.reserve(0, 2 * len(blocks) + 2)
            return self._take(self._memory.root, slot, blocks)

    def clear(self, slot: int) -> None:
        """Is the endpoint empty, as after a restart? It is after this. Cost: what it holds, not what the index does."""
        slot = self._slot(slot)
        with self._lock:
            take_all(self._memory.root, slot)

    def limit(self, slot: int, capacity: int | None) -> int:
        """May this endpoint hold more or fewer blocks than the others? None: as many. Returns how many had to go.

        Only where the index has a capacity; it stays when the endpoint is cleared.
        """
        slot = self._slot(slot)
        if self.capacity is None:
            raise InvalidInputError("capacity", capacity, "an index that was made with one")
        if capacity is not None:
            capacity = min(whole_number("capacity", capacity, 1), 2**31 - 1)
        with self._lock:
            return limit(self._memory.root, slot, capacity or 0)

    def grow(self, endpoints: int) -> None:
        """Is there room for so many endpoints? There is after this; the new ones hold nothing."""
        with self._lock:
            if endpoints < self.endpoints:
                allowed = f"an integer of at least {self.endpoints}, the present size"
                raise InvalidInputError("endpoints", endpoints, allowed)
            self._memory.grow(endpoints)
            self.endpoints = endpoints

    def reserve(self, blocks: int) -> None:
        """Is there room for so many blocks more? There is after this, and no growth before they are stored."""
        if blocks < 0:
            raise InvalidInputError("blocks", blocks, "an integer of at least 0")
        with self._lock:
            self._memory.reserve(blocks, 2 * (blocks // BLOCKS + 2))

    def pieces(self) -> tuple[DepthArray, HashArray, DepthArray]:
        """Who holds what, all of it, as arrays? What a snapshot is made of; see `inferencesched.prefix.snapshot.Pieces`."""
        with self._lock:
            root = self._memory.root
            runs = np.zeros((int(root[RUNS]), 4), dtype=np.int32)
            held = np.zeros((int(root[PIECES]), 4), dtype=_DEPTH)
            gather(root, self.endpoints, np.zeros(int(root[TOP]), dtype=np.int32), runs, held)
            hashes = np.zeros(int(root[USED]), dtype=_HASH)
            collect(root, runs, len(runs), hashes)
        return runs[:, 1:].copy(), hashes, held

    def check(self) -> None:
        """Does every part of the index agree with every other? Raises AssertionError where not; for tests: it is slow."""
        with self._lock:
            audit(self._memory, self.endpoints)

    def _by_the_lock(
        self, read: Callable[[IntArray, DepthArray], bool], out: DepthArray | None, *rows: int
    ) -> DepthArray:
        """Read while nobody changes anything: after a look that came too early, or with arguments that it refused."""
        with self._lock:
            shape, root = (*rows, self.endpoints), self._memory.root
            depths = np.empty(shape, dtype=_DEPTH) if out is None else self._checked(out, shape)
            unshut(root)  # whoever shut it has not come back: an interrupt, or no memory
            read(root, depths)
        return depths if out is None else out

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
        """Return hashes as a kernel reads them: contiguous, aligned, of the one dtype, and no subclass."""
        if not isinstance(hashes, ndarray) or hashes.dtype != _HASH or hashes.ndim != 1:
            raise InvalidInputError("hashes", _kind(hashes), "a uint64 array of one dimension")
        return _plain(hashes, _HASH)

    @staticmethod
    def _ends(ends: Any, blocks: int) -> IntArray:
        """Refuse ends that a kernel would follow out of its array."""
        if not isinstance(ends, ndarray) or ends.dtype != np.int64 or ends.ndim != 1 or not ends.flags.c_contiguous:
            raise InvalidInputError("ends", _kind(ends), "a contiguous int64 array of one dimension")
        rises = not len(ends) or (ends[0] >= 0 and (ends[1:] >= ends[:-1]).all())
        if not rises or (int(ends[-1]) if len(ends) else 0) != blocks:
            raise InvalidInputError(
                "ends", ends.tolist(), f"numbers that do not fall, the last {blocks} as there are blocks"
            )
        return _plain(ends, np.dtype(np.int64))

    def _checked(self, out: Any, shape: tuple[int, ...]) -> DepthArray:
        if not isinstance(out, ndarray) or out.dtype != _DEPTH or out.shape != shape or not out.flags.carray:
            raise InvalidInputError("out", _kind(out), f"a contiguous, writable int32 array of shape {shape}")
        return out.view(_DEPTH, ndarray)


def _plain(array: NDArray[Scalar], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
    """Return an array as it is where it is plain, and a copy or another view of it otherwise."""
    flags = array.flags
    if type(array) is ndarray and array.dtype is dtype and flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, dtype, ("C", "A")).view(dtype, ndarray)


@cache
def _readers() -> tuple[
    Callable[[IntArray, HashArray, DepthArray], bool],
    Callable[[IntArray, tuple[HashArray, ...], int, DepthArray], bool],
    Callable[[IntArray, HashArray, IntArray, DepthArray], bool],
    Callable[[IntArray, TokenArray, int, np.uint64, np.uint64, DepthArray], bool],
]:
    """Compile what is called for every request."""
    root, hashes, ends, tokens, depths, rows = _examples()
    return (
        lent(match, root, hashes, depths),
        lent(match_each, root, (hashes,), 0, rows),
        lent(match_many, root, hashes, ends, rows),
        lent(match_tokens, root, tokens, 1, np.uint64(0), np.uint64(0), depths),
    )


@cache
def _writers() -> tuple[
    Callable[[IntArray, int, HashArray, int], int],
    Callable[[IntArray, int, np.uint64, HashArray], int],
    Callable[[IntArray, int, HashArray], int],
]:
    """Compile what is called for every event."""
    root, hashes, *_ = _examples()
    return (
        lent(store, root, 0, hashes, 0),
        lent(store_after, root, 0, np.uint64(0), hashes),
        lent(take, root, 0, hashes),
    )


def _examples() -> tuple[IntArray, HashArray, IntArray, TokenArray, DepthArray, DepthArray]:
    """Return arrays as they are passed; what is only read may be read-only."""
    hashes, tokens = np.empty(0, dtype=_HASH), np.empty(0, dtype=np.uint32)
    root, ends = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for array in (hashes, ends, tokens):
        array.setflags(write=False)
    return root, hashes, ends, tokens, np.empty(0, dtype=_DEPTH), np.empty((0, 0), dtype=_DEPTH)


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
