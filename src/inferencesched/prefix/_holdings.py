"""What does one endpoint hold, by the engine's own names, and what is that in ours?

An engine's blocks form trees: each hangs behind another, or begins a prompt. A block of ours is held where all of the
engine's blocks that it touches are held::

    engine, 16 tokens     a ── b ── c ── d ── e ──          own, 64: one block, complete at d, which needs a, b, c, d;
    own, 64 tokens        └─────── 1 ──────┘                a, b and c end in the middle: they have a tail

    engine, 64 tokens     ─────── a ───────                 own, 16: four blocks, all complete at a, which need a only
    own, 16 tokens        ─ 1 ─ 2 ─ 3 ─ 4 ─

Rules:

* an engine's block is known while a copy of it is held anywhere, or one behind it is known: so a parent that is known
  leads back to the beginning of the prompt;
* copies are counted for each place, which is a tier and a group of layers: what was stored n times is there until it
  was removed n times;
* a block of ours counts once for each block of the engine at which it is complete, and on each level: on any tier
  that counts, and on each tier by itself.

All of it lies in arrays, which `inferencesched._kernels.engine_rows` draws: a million objects would stop the process
for a tenth of a second whenever Python looks for garbage.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
import xxhash

from inferencesched._kernels import engine_blocks, engine_rows
from inferencesched._kernels._compile import entry
from inferencesched._kernels.engine_rows import BEFORE, FREED, KEY, KEYED, LIVE, SEED, STATE, TOP
from inferencesched._typing import DepthArray, HashArray, IntArray, TokenArray
from inferencesched.prefix.kv_records import Tier

ROWS = 64  # to begin with; they double
#: Places that are none: all of some tiers, and one where nothing ever was.
EVERYWHERE, NOWHERE = -1, -2
_NO_KEYS: HashArray = np.empty(0, dtype=np.uint64)
_NO_TOKENS: TokenArray = np.empty(0, dtype=np.uint32)
_NO_ROWS: DepthArray = np.empty(0, dtype=np.int32)


class Tail(NamedTuple):
    """What is behind the last own block at the end of a block of the engine: tokens, and digests of extra keys."""

    tokens: TokenArray
    digests: tuple[int, ...]


NO_TAIL = Tail(_NO_TOKENS, ())


class Before(NamedTuple):
    """Where a block hangs: a row (-1 for the beginning of a prompt), its last own block, its domain's seed, its tail."""

    row: int
    key: int | None
    seed: int
    tail: Tail


class Run(NamedTuple):
    """Own blocks in a chain, behind the own block `parent`, which is complete at or before `row`."""

    parent: int | None
    row: int
    keys: HashArray


class Scratch:
    """Where kernels write what they found: shared, as one call follows the other."""

    def __init__(self) -> None:
        self.blocks: HashArray = np.empty(ROWS, dtype=np.uint64)
        self.rows: DepthArray = np.empty(ROWS, dtype=np.int32)

    def fit(self, size: int) -> None:
        """Make room for so many."""
        if len(self.blocks) < size:
            self.blocks = np.empty(size, dtype=np.uint64)
            self.rows = np.empty(size, dtype=np.int32)


@final
class Holdings:
    """What does one endpoint hold? `counted` are the tiers that make a block of ours count as held.

    `whole` says of groups of layers, by number, whether they attend to the whole prompt; `window` is the attention window
    that is followed, where an engine names one.
    """

    __slots__ = (
        "copies",
        "counted",
        "meta",
        "names",
        "own",
        "places",
        "rows",
        "scratch",
        "tails",
        "tier_of",
        "whole",
        "window",
        "words",
    )

    def __init__(self, counted: Tier, scratch: Scratch) -> None:
        self.counted = int(counted)
        self.scratch = scratch
        self.whole: dict[int, bool] = {}
        self.window: int | None = None
        self.forget()

    def forget(self) -> None:
        """Know no block any more; what is known of groups and windows stays."""
        self.rows: DepthArray = np.empty((ROWS, 7), dtype=np.int32)
        self.words: HashArray = np.empty((ROWS, 4), dtype=np.uint64)
        self.names: DepthArray = np.zeros(2 * ROWS, dtype=np.int32)
        self.own: DepthArray = np.zeros(2 * ROWS, dtype=np.int32)
        self.meta: IntArray = np.array([-1, 0, 0, 0], dtype=np.int64)
        self.copies: DepthArray = np.zeros((ROWS, 1), dtype=np.int32)
        self.places: dict[tuple[int, int | None], int] = {}
        self.tier_of: DepthArray = _NO_ROWS
        self.tails: dict[int, Tail] = {}
        self.scratch.fit(ROWS)

    def __len__(self) -> int:
        """How many of the engine's blocks are known?"""
        return int(self.meta[LIVE])

    @property
    def nbytes(self) -> int:
        """How much memory do the arrays take?"""
        arrays = (self.rows, self.words, self.names, self.own, self.copies)
        return sum(array.nbytes for array in arrays)

    def place(self, tier: int, group: int | None) -> int:
        """Return the number of a place; makes a column of counters for a new one."""
        number = self.places.get((tier, group))
        if number is None:
            number = self.places[tier, group] = len(self.places)
            self.tier_of = np.append(self.tier_of, np.int32(tier))
            if number:
                self.copies = np.ascontiguousarray(np.pad(self.copies, ((0, 0), (0, 1))))
        return number

    def before(self, name: int) -> Before | None:
        """Where do blocks behind this one of the engine hang? None where it is not known."""
        row = compiled().find(self.names, self.words, np.uint64(name))
        if row < 0:
            return None
        keyed = self.rows[row, STATE] & KEYED
        key = int(self.words[row, KEY]) if keyed else None
        return Before(row, key, int(self.words[row, SEED]), self.tails.get(row, NO_TAIL))

    def store(
        self,
        names: HashArray,
        keys: HashArray,
        tails: Sequence[Tail | None] | None,
        before: Before,
        size: int,
        own_size: int,
        place: int,
        tier: int,
    ) -> tuple[int, int, list[Run]]:
        """Add a copy of each of the engine's blocks `names`, in which the own blocks `keys` are complete.

        Returns how many got one, how many of those their first in this place, and which own blocks are held from now
        on. Fewer than all: the next one is known as another block.
        """
        self._fit(len(names) + len(keys))
        scratch, hashes = self.scratch, np.zeros(len(names), dtype=np.uint64)
        if tails is not None:
            for i, tail in enumerate(tails):
                if tail is not None:
                    hashes[i] = _tail_hash(tail)
        stored, first, gained = compiled().store(
            self.rows,
            self.words,
            self.copies,
            self.names,
            self.own,
            self.meta,
            names,
            keys,
            hashes,
            before.row,
            np.uint64(before.seed),
            len(before.tail.tokens),
            size,
            own_size,
            place,
            tier,
            self.counted,
            scratch.blocks,
            scratch.rows,
        )
        if tails is not None:
            for row, tail in zip(scratch.rows[:stored].tolist(), tails, strict=False):
                if tail is not None:
                    self.tails[row] = tail
        return stored, first, self._runs(gained)

    def move(self, names: HashArray, place: int, tier: int) -> tuple[int, int, list[Run]]:
        """Add a copy of each of these blocks that is known. Returns how many were, how many first, what is held now."""
        known, first, gained = compiled().place(
            self.rows,
            self.words,
            self.copies,
            self.names,
            self.own,
            names,
            place,
            tier,
            self.counted,
            self.scratch.blocks,
        )
        return known, first, self._runs(gained)

    def take(self, names: HashArray, place: int, tiers: int = 0) -> tuple[int, HashArray]:
        """Take a copy of each block out of a place, or EVERYWHERE all copies on these tiers.

        Returns how many blocks had one there, and which own blocks are not held any more.
        """
        if place == NOWHERE:
            return 0, _NO_KEYS
        there, lost = compiled().take(
            self.rows,
            self.words,
            self.copies,
            self.tier_of,
            self.names,
            self.own,
            self.meta,
            names,
            place,
            tiers,
            self.counted,
            self.scratch.blocks,
            self.scratch.rows,
        )
        return there, self._lost(lost)

    def clear_tiers(self, tiers: int) -> HashArray:
        """Take all copies on these tiers; returns which own blocks are not held any more."""
        lost = compiled().clear_tiers(
            self.rows,
            self.words,
            self.copies,
            self.tier_of,
            self.names,
            self.own,
            self.meta,
            tiers,
            self.counted,
            self.scratch.blocks,
            self.scratch.rows,
        )
        return self._lost(lost)

    def chain(self, row: int) -> HashArray:
        """Return the own blocks from the beginning of the prompt to the last one complete at this row."""
        count = compiled().chain(self.rows, self.words, row, _NO_KEYS)
        out = np.empty(count, dtype=np.uint64)
        compiled().chain(self.rows, self.words, row, out)
        return out

    def mask(self, key: int) -> int:
        """Return the tiers on which an own block is held, as `Tier` flags."""
        return compiled().mask(self.rows, self.words, self.own, np.uint64(key))

    def _runs(self, gained: int) -> list[Run]:
        if not gained:
            return []
        rows, keys = self.scratch.blocks, np.empty(gained, dtype=np.uint64)
        starts = np.empty(gained, dtype=np.int32)
        count = compiled().runs(self.rows, self.words, rows, gained, keys, starts)
        bounds = [*starts[:count].tolist(), gained]
        found = []
        for begin, end in pairwise(bounds):
            row = int(self.rows[int(rows[begin]), BEFORE])
            keyed = row >= 0 and self.rows[row, STATE] & KEYED
            found.append(Run(int(self.words[row, KEY]) if keyed else None, row, keys[begin:end]))
        return found

    def _lost(self, count: int) -> HashArray:
        freed = int(self.meta[FREED])
        if freed:
            for row in self.scratch.rows[:freed].tolist():
                self.tails.pop(row, None)
            self.meta[FREED] = 0
        return self.scratch.blocks[:count].copy()

    def _fit(self, rows: int) -> None:
        """Make room for so many rows more."""
        needed, size = int(self.meta[TOP]) + rows, len(self.rows)
        if needed <= size:
            return
        while size < needed:
            size *= 2
        more = size - len(self.rows)
        self.rows, self.words, self.copies = (
            np.concatenate((array, np.empty((more, array.shape[1]), dtype=array.dtype)))
            for array in (self.rows, self.words, self.copies)
        )
        self.names, self.own = np.zeros(2 * size, dtype=np.int32), np.zeros(2 * size, dtype=np.int32)
        compiled().fill(self.rows, self.words, self.meta, self.names, self.own)
        self.scratch.fit(size)


def _tail_hash(tail: Tail) -> int:
    """Tell tails apart: two blocks with no own block complete in them differ in nothing else."""
    digests = np.array(tail.digests, dtype="<u8").tobytes()
    return xxhash.xxh3_64_intdigest(len(digests).to_bytes(8, "little") + digests + tail.tokens.astype("<u4").tobytes())


class _Compiled(NamedTuple):
    find: Callable[..., int]
    store: Callable[..., tuple[int, int, int]]
    place: Callable[..., tuple[int, int, int]]
    take: Callable[..., tuple[int, int]]
    clear_tiers: Callable[..., int]
    chain: Callable[..., int]
    mask: Callable[..., int]
    runs: Callable[..., int]
    fill: Callable[..., None]


@cache
def compiled() -> _Compiled:
    """Compile the kernels, at the first call."""
    table: Any = np.zeros(2, dtype=np.int32)
    rows, copies, meta = np.zeros((1, 7), dtype=np.int32), np.zeros((1, 1), dtype=np.int32), np.zeros(4, dtype=np.int64)
    words, word, blocks = np.zeros((1, 4), dtype=np.uint64), np.uint64(0), np.zeros(1, dtype=np.uint64)
    state = (rows, words, copies, table, table, table, meta)
    return _Compiled(
        find=entry(engine_rows.find, table, words, word),
        store=entry(
            engine_blocks.store,
            *(rows, words, copies, table, table, meta, blocks, blocks, blocks),
            *(0, word, 0, 1, 1, 0, 1, 1, blocks, table),
        ),
        place=entry(engine_blocks.place, rows, words, copies, table, table, blocks, 0, 1, 1, blocks),
        take=entry(engine_blocks.take, *state, blocks, 0, 1, 1, blocks, table),
        clear_tiers=entry(engine_blocks.clear_tiers, *state, 1, 1, blocks, table),
        chain=entry(engine_blocks.chain, rows, words, 0, blocks),
        mask=entry(engine_rows.mask, rows, words, table, word),
        runs=entry(engine_blocks.runs, rows, words, blocks, 0, blocks, table),
        fill=entry(engine_rows.fill, rows, words, meta, table, table),
    )
