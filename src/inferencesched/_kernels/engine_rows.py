"""What one endpoint holds, by the engine's names: a tree of rows, and which of our own blocks is complete where.

A row is a block of the engine, or a piece of one in which several own blocks are complete: then there is a row for each,
all but the last without a name (ANONYMOUS). So at most one own block is complete in a row::

    rows    int32[R, 7]    BEFORE  the row that this one hangs behind, -1 at the beginning of a prompt
                           FIRST, NEXT, PREVIOUS    its children, a list
                           SAME, SAME_PREVIOUS      other rows in which the same own block is complete and held, a list
                           STATE   tiers (bits 0-3), levels of its own block (bits 4-8), flags
    words   uint64[R, 4]   NAME, the engine's hash; KEY, the last own block complete here or before; SEED, of the domain;
                           TAIL_HASH, of the tokens behind that own block
    copies  int32[R, P]    copies in each place, which is a tier and a group of layers
    names   int32[2^b]     row + 1 by name, 0 is empty: open addressing, never more than half full
    own     int32[2^b]     row + 1 by own block: the first of its SAME list
    meta    int64[4]       FREE, the first of the free rows (by NEXT, -1 for none); TOP, rows ever used; LIVE; FREED

*Levels* are on what an own block is held: bit 0 is any tier that counts, bits 1 to 4 the tiers. A row has the levels that
it and all rows have which its own block touches: those before it whose TAIL is in it.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._typing import DepthArray as RowArray
from inferencesched._typing import HashArray, IntArray

BEFORE, FIRST, NEXT, PREVIOUS, SAME, SAME_PREVIOUS, STATE = range(7)
NAME, KEY, SEED, TAIL_HASH = range(4)
FREE, TOP, LIVE, FREED = range(4)

TIERS = 0b1111
LEVEL_SHIFT = 4
LEVELS = 0b11111
COMPLETE, TAIL, ANONYMOUS, KEYED, USED = 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13
ANY = 1

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
U32 = np.uint64(32)


# --- tables ------------------------------------------------------------------------------------------------------


@kernel
def _home(table: RowArray, word: np.uint64) -> int:
    """Return the slot where a word would like to be: the table's length is a power of two, of at most 32 bits."""
    return int((word * GOLDEN) >> U32) & int(table.shape[0] - 1)


@kernel
def slot_of(table: RowArray, words: HashArray, column: int, word: np.uint64) -> int:
    """Return the slot of a word, or the empty one where it belongs."""
    i, mask = _home(table, word), table.shape[0] - 1
    while table[i] != 0 and words[table[i] - 1, column] != word:
        i = (i + 1) & mask
    return i


@kernel
def _erase(table: RowArray, words: HashArray, column: int, i: int) -> None:
    """Empty a slot, and move those behind it up to where they would like to be."""
    mask, j = table.shape[0] - 1, i
    while True:
        j = (j + 1) & mask
        if table[j] == 0:
            break
        home = _home(table, words[table[j] - 1, column])
        if ((j - home) & mask) >= ((j - i) & mask):
            table[i] = table[j]
            i = j
    table[i] = 0


@kernel
def fill(rows: RowArray, words: HashArray, meta: IntArray, names: RowArray, own: RowArray) -> None:
    """Enter all rows into two empty tables."""
    for r in range(meta[TOP]):
        state = rows[r, STATE]
        if state & USED and not state & ANONYMOUS:
            names[slot_of(names, words, NAME, words[r, NAME])] = r + 1
        if (state >> LEVEL_SHIFT) & LEVELS and rows[r, SAME_PREVIOUS] < 0:
            own[slot_of(own, words, KEY, words[r, KEY])] = r + 1


@kernel
def find(names: RowArray, words: HashArray, name: np.uint64) -> int:
    """Return the row of the engine's block, -1 where it is not known."""
    return int(names[slot_of(names, words, NAME, name)]) - 1


# --- levels ------------------------------------------------------------------------------------------------------


@kernel
def _levels(tiers: int, counted: int) -> int:
    return (tiers << 1) | (ANY if tiers & counted else 0)


@kernel
def _complete_on(rows: RowArray, r: int, counted: int) -> int:
    """Return the levels on which the own block that is complete in a row is held."""
    levels = _levels(rows[r, STATE] & TIERS, counted)
    b = rows[r, BEFORE]
    while b >= 0 and rows[b, STATE] & TAIL:
        levels &= _levels(rows[b, STATE] & TIERS, counted)
        if rows[b, STATE] & COMPLETE:
            break
        b = rows[b, BEFORE]
    return levels


@kernel
def mask(rows: RowArray, words: HashArray, own: RowArray, key: np.uint64) -> int:
    """Return the tiers on which an own block is held."""
    levels, r = 0, own[slot_of(own, words, KEY, key)] - 1
    while r >= 0:
        levels |= (rows[r, STATE] >> LEVEL_SHIFT) & LEVELS
        r = rows[r, SAME]
    return levels >> 1


@kernel
def _turn(rows: RowArray, words: HashArray, own: RowArray, r: int, now: int) -> int:
    """Give a row's own block these levels; 1 where it is held from now on, -1 where it is not any more, else 0."""
    was = (rows[r, STATE] >> LEVEL_SHIFT) & LEVELS
    if was == now:
        return 0
    i = slot_of(own, words, KEY, words[r, KEY])
    change = 0
    if (was ^ now) & ANY:
        change = 1 if now & ANY else -1
        x = own[i] - 1
        while x >= 0:
            if x != r and (rows[x, STATE] >> LEVEL_SHIFT) & ANY:
                change = 0
                break
            x = rows[x, SAME]
    if was == 0:
        first = own[i] - 1
        rows[r, SAME], rows[r, SAME_PREVIOUS] = first, -1
        if first >= 0:
            rows[first, SAME_PREVIOUS] = r
        own[i] = r + 1
    elif now == 0:
        behind, before = rows[r, SAME], rows[r, SAME_PREVIOUS]
        if behind >= 0:
            rows[behind, SAME_PREVIOUS] = before
        if before >= 0:
            rows[before, SAME] = behind
        elif behind >= 0:
            own[i] = behind + 1
        else:
            _erase(own, words, KEY, i)
    rows[r, STATE] = (rows[r, STATE] & ~(LEVELS << LEVEL_SHIFT)) | (now << LEVEL_SHIFT)
    return change


@kernel
def _refresh(
    rows: RowArray, words: HashArray, own: RowArray, r: int, counted: int, out: HashArray, count: int, as_row: bool
) -> int:
    """Bring a row's levels up to date; if its own block is held, or is not held any more, it goes to `out`."""
    if rows[r, STATE] & COMPLETE and _turn(rows, words, own, r, _complete_on(rows, r, counted)) != 0:
        out[count] = np.uint64(r) if as_row else words[r, KEY]
        count += 1
    return count


@kernel
def head(rows: RowArray, r: int) -> int:
    """Return the first row of the engine's block that has its name in row r."""
    while rows[r, BEFORE] >= 0 and rows[rows[r, BEFORE], STATE] & ANONYMOUS:
        r = rows[r, BEFORE]
    return r


@kernel
def move(
    rows: RowArray,
    words: HashArray,
    own: RowArray,
    r: int,
    tiers: int,
    counted: int,
    out: HashArray,
    count: int,
    as_row: bool,
) -> int:
    """Say on which tiers the engine's block of row r lies, and refresh all own blocks that touch it."""
    x = head(rows, r)
    while True:
        rows[x, STATE] = (rows[x, STATE] & ~TIERS) | tiers
        count = _refresh(rows, words, own, x, counted, out, count, as_row)
        if x == r:
            break
        x = rows[x, FIRST]
    if not rows[r, STATE] & TAIL:
        return count
    x = rows[r, FIRST]
    while x >= 0:  # down every branch, to the first row in which an own block is complete
        count = _refresh(rows, words, own, x, counted, out, count, as_row)
        if not rows[x, STATE] & COMPLETE and rows[x, FIRST] >= 0:
            x = rows[x, FIRST]
            continue
        while x != r and rows[x, NEXT] < 0:
            x = rows[x, BEFORE]
        if x == r:
            break
        x = rows[x, NEXT]
    return count


# --- rows --------------------------------------------------------------------------------------------------------


@kernel
def new(
    rows: RowArray, words: HashArray, copies: RowArray, meta: IntArray, before: int, seed: np.uint64, flags: int
) -> int:
    """Return a new row, linked behind another one; -1 for none."""
    r = meta[FREE]
    if r >= 0:
        meta[FREE] = rows[r, NEXT]
    else:
        r = meta[TOP]
        meta[TOP] += 1
    rows[r, BEFORE], rows[r, FIRST], rows[r, NEXT], rows[r, PREVIOUS] = before, -1, -1, -1
    rows[r, SAME], rows[r, SAME_PREVIOUS], rows[r, STATE] = -1, -1, flags | USED
    words[r, NAME], words[r, KEY], words[r, SEED], words[r, TAIL_HASH] = 0, 0, seed, 0
    for place in range(copies.shape[1]):
        copies[r, place] = 0
    if before >= 0:
        behind = rows[before, FIRST]
        rows[r, NEXT] = behind
        if behind >= 0:
            rows[behind, PREVIOUS] = r
        rows[before, FIRST] = r
    return int(r)


@kernel
def _free(rows: RowArray, meta: IntArray, r: int) -> None:
    before, behind = rows[r, PREVIOUS], rows[r, NEXT]
    if behind >= 0:
        rows[behind, PREVIOUS] = before
    if before >= 0:
        rows[before, NEXT] = behind
    elif rows[r, BEFORE] >= 0:
        rows[rows[r, BEFORE], FIRST] = behind
    rows[r, STATE] = 0
    rows[r, NEXT] = meta[FREE]
    meta[FREE] = r


@kernel
def _release(rows: RowArray, words: HashArray, names: RowArray, meta: IntArray, freed: RowArray, r: int) -> None:
    """Forget the block of row r, and those before it, as far as no copy and no child keeps them."""
    while r >= 0 and not rows[r, STATE] & TIERS and rows[r, FIRST] < 0:
        _erase(names, words, NAME, slot_of(names, words, NAME, words[r, NAME]))
        meta[LIVE] -= 1
        if rows[r, STATE] & TAIL:
            freed[meta[FREED]] = r
            meta[FREED] += 1
        begin = head(rows, r)
        before = rows[begin, BEFORE]
        while True:
            up = rows[r, BEFORE]
            _free(rows, meta, r)
            if r == begin:
                break
            r = up
        r = before


@kernel
def settle(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    tier_of: RowArray,
    names: RowArray,
    own: RowArray,
    meta: IntArray,
    r: int,
    counted: int,
    lost: HashArray,
    count: int,
    freed: RowArray,
) -> int:
    """Bring a block up to date after copies of it went."""
    tiers = 0
    for place in range(tier_of.shape[0]):
        if copies[r, place] > 0:
            tiers |= tier_of[place]
    if tiers != rows[r, STATE] & TIERS:
        count = move(rows, words, own, r, tiers, counted, lost, count, False)
        _release(rows, words, names, meta, freed, r)
    return count
