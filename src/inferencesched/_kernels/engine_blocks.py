"""What an engine's events do to what an endpoint holds: `engine_rows` draws it.

A call is for one event. Who calls makes room first: for all new rows, tables of twice as many slots as there are rows, and
`gained`, `lost`, `found` and `freed` as long as the rows are.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.engine_rows import (
    ANONYMOUS,
    BEFORE,
    COMPLETE,
    KEY,
    KEYED,
    LIVE,
    NAME,
    SEED,
    STATE,
    TAIL,
    TAIL_HASH,
    TIERS,
    TOP,
    USED,
    find,
    head,
    move,
    new,
    settle,
    slot_of,
)
from inferencesched._typing import DepthArray as RowArray
from inferencesched._typing import HashArray, IntArray

#: More copies than these are not told apart.
MOST = (1 << 31) - 1


# --- what events do ----------------------------------------------------------------------------------------------


@kernel
def store(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    names: RowArray,
    own: RowArray,
    meta: IntArray,
    stored: HashArray,
    keys: HashArray,
    tail_hashes: HashArray,
    parent: int,
    seed: np.uint64,
    skip: int,
    size: int,
    own_size: int,
    place: int,
    tier: int,
    counted: int,
    gained: HashArray,
    found: RowArray,
) -> tuple[int, int, int]:
    """Add a copy of each block of a chain behind row `parent` (-1 for none).

    Of `size` tokens each, `skip` tokens behind the last own block; `keys` are the own blocks complete in them, in order,
    `tail_hashes` those of what is behind these at the end of each block. `found` gets their rows, `gained` the rows in
    which own blocks are held from now on. Returns how many blocks got a copy, how many of those their first in this
    place, and how many rows gained. A block that is known as another one ends it.
    """
    before, done, end, first, count = parent, 0, skip, 0, 0
    for i in range(stored.shape[0]):
        end += size
        complete = end // own_size
        slot = slot_of(names, words, NAME, stored[i])
        r = names[slot] - 1
        keyed = complete > 0 or (parent >= 0 and rows[parent, STATE] & KEYED != 0)
        key = np.uint64(0)
        if complete > 0:
            key = keys[complete - 1]
        elif keyed:
            key = words[parent, KEY]
        if r < 0:
            for k in range(done, complete - 1):
                before = new(rows, words, copies, meta, before, seed, ANONYMOUS | COMPLETE | KEYED)
                words[before, KEY] = keys[k]
            flags = (COMPLETE if complete > done else 0) | (KEYED if keyed else 0)
            if complete * own_size < end:
                flags |= TAIL
            r = new(rows, words, copies, meta, before, seed, flags)
            words[r, NAME], words[r, KEY], words[r, TAIL_HASH] = stored[i], key, tail_hashes[i]
            names[slot] = r + 1
            meta[LIVE] += 1
        elif (
            rows[head(rows, r), BEFORE] != before
            or words[r, SEED] != seed
            or words[r, KEY] != key
            or words[r, TAIL_HASH] != tail_hashes[i]
            or (rows[r, STATE] & KEYED != 0) != keyed
        ):
            return i, first, count
        if copies[r, place] == 0:
            first += 1
            if not rows[r, STATE] & tier:
                tiers = (rows[r, STATE] & TIERS) | tier
                count = move(rows, words, own, r, tiers, counted, gained, count, True)
        copies[r, place] = min(copies[r, place] + 1, MOST)
        found[i] = r
        before, done = r, complete
    return stored.shape[0], first, count


@kernel
def place(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    names: RowArray,
    own: RowArray,
    stored: HashArray,
    place: int,
    tier: int,
    counted: int,
    gained: HashArray,
) -> tuple[int, int, int]:
    """Add a copy of each block that is known. Returns how many were, how many first in this place, and rows gained."""
    known, first, count = 0, 0, 0
    for name in stored:
        r = find(names, words, name)
        if r >= 0:
            known += 1
            if copies[r, place] == 0:
                first += 1
                if not rows[r, STATE] & tier:
                    tiers = (rows[r, STATE] & TIERS) | tier
                    count = move(rows, words, own, r, tiers, counted, gained, count, True)
            copies[r, place] = min(copies[r, place] + 1, MOST)
    return known, first, count


@kernel
def take(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    tier_of: RowArray,
    names: RowArray,
    own: RowArray,
    meta: IntArray,
    removed: HashArray,
    place: int,
    tiers: int,
    counted: int,
    lost: HashArray,
    freed: RowArray,
) -> tuple[int, int]:
    """Take a copy of each block out of one place, or all copies on these tiers where `place` is -1.

    `lost` gets the own blocks not held any more, `freed` (meta[FREED] of them) the rows with a tail that are free now.
    Returns how many blocks had a copy there, and how many own blocks are lost.
    """
    there, count = 0, 0
    for name in removed:
        r = find(names, words, name)
        if r < 0:
            continue
        if place >= 0:
            if copies[r, place] > 0:
                there += 1
                copies[r, place] -= 1
                if copies[r, place] == 0:
                    count = settle(rows, words, copies, tier_of, names, own, meta, r, counted, lost, count, freed)
        elif rows[r, STATE] & tiers:
            there += 1
            count = _drop(rows, words, copies, tier_of, names, own, meta, r, tiers, counted, lost, count, freed)
    return there, count


@kernel
def _drop(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    tier_of: RowArray,
    names: RowArray,
    own: RowArray,
    meta: IntArray,
    r: int,
    tiers: int,
    counted: int,
    lost: HashArray,
    count: int,
    freed: RowArray,
) -> int:
    for p in range(tier_of.shape[0]):
        if tier_of[p] & tiers:
            copies[r, p] = 0
    return settle(rows, words, copies, tier_of, names, own, meta, r, counted, lost, count, freed)


@kernel
def clear_tiers(
    rows: RowArray,
    words: HashArray,
    copies: RowArray,
    tier_of: RowArray,
    names: RowArray,
    own: RowArray,
    meta: IntArray,
    tiers: int,
    counted: int,
    lost: HashArray,
    freed: RowArray,
) -> int:
    """Take all copies of all blocks on these tiers. Returns how many own blocks are lost."""
    count = 0
    for r in range(meta[TOP]):
        if rows[r, STATE] & USED and not rows[r, STATE] & ANONYMOUS and rows[r, STATE] & tiers:
            count = _drop(rows, words, copies, tier_of, names, own, meta, r, tiers, counted, lost, count, freed)
    return count


# --- the way back ------------------------------------------------------------------------------------------------


@kernel
def runs(rows: RowArray, words: HashArray, gained: HashArray, count: int, keys: HashArray, starts: RowArray) -> int:
    """Write the own blocks of these rows to `keys`, and to `starts` where one does not follow the one before it."""
    found = 0
    for i in range(count):
        r = int(gained[i])
        before = rows[r, BEFORE]
        keyed = before >= 0 and rows[before, STATE] & KEYED != 0
        if i == 0 or not keyed or words[before, KEY] != keys[i - 1]:
            starts[found] = i
            found += 1
        keys[i] = words[r, KEY]
    return found


@kernel
def chain(rows: RowArray, words: HashArray, r: int, out: HashArray) -> int:
    """Write the own blocks from the beginning of the prompt to row r into `out`; returns how many."""
    count, x = 0, r
    while x >= 0:
        count += 1 if rows[x, STATE] & COMPLETE else 0
        x = rows[x, BEFORE]
    x, i = r, count
    while x >= 0:
        if rows[x, STATE] & COMPLETE:
            i -= 1
            if i < out.shape[0]:
                out[i] = words[x, KEY]
        x = rows[x, BEFORE]
    return count
