"""Which blocks are known: the table, the runs and their chunks. `prefix_memory` draws them.

A block is known while somebody holds it or a block behind it. So a run may be cut where no piece and no child ends:
`ENDING` counts its pieces that reach its end and `ENDING_CHILDREN` the runs that hang there, and while both are 0 it is
`PENDING`, in a list that `trim` works off.

The table grows without a pause: `begin_move` puts a new one beside the old, `move` carries over a few segments of 1,024
slots at a time. Blocks are ordered by their 34 bits in both, and the moved part always ends at an empty slot, so that
where a block would like to be tells which table is in charge of it: below `MOVED`, counted from `MOVE_FROM` round the
old table, it is the new one. Near the end, what overflows at `MOVE_FROM` comes to lie in slots that have been moved and are
empty: many more are moved before each event than it has blocks, so that it never gets as far as what is not.
"""

import numpy as np

from inferencesched._kernels._compile import kernel, load32, load64, signed, store32, store64
from inferencesched._kernels.prefix_gate import shut, unshut
from inferencesched._kernels.prefix_memory import (
    BASE,
    BELOW,
    BITS,
    BLOCKS,
    CHILD,
    COLUMN,
    COVER,
    CUTS,
    ENDING,
    ENDING_CHILDREN,
    FOLLOW,
    FREE_CELLS,
    HASHES,
    HEAD,
    HI,
    LAST,
    LENGTH,
    LEVEL,
    LEVELS,
    MIX,
    MOVE_FROM,
    MOVED,
    NAME,
    NEXT,
    OLD,
    OLD_BITS,
    OWNER,
    PARENT,
    PENDING,
    PREVIOUS,
    RUNS,
    SEGMENT,
    SEGMENTS,
    START,
    TABLE,
    TO_TRIM,
    U0,
    U1,
    U30,
    U34,
    USED,
    WIDTH,
    at,
    fetch,
    find,
    hash_of,
    moved,
    new_cell,
    offset_of,
    run_of,
)
from inferencesched._typing import HashArray, IntArray

#: So many blocks ahead their slots are fetched: a table is larger than a cache.
AHEAD = 8


@kernel
def _free_cell(root: IntArray, unit: int) -> None:
    store32(at(root, unit), root[FREE_CELLS])
    root[FREE_CELLS] = unit


# --- the table ---------------------------------------------------------------------------------------------------


@kernel
def _put(root: IntArray, block: np.uint64, name: int) -> bool:
    """Enter a block; False, and nothing entered, where its hash is known."""
    tag = (block * MIX) >> U30
    table, bits = root[TABLE], root[BITS]
    if root[OLD] != 0 and not moved(root, tag):
        table, bits = root[OLD], root[OLD_BITS]
    mask = (U1 << np.uint64(bits)) - U1
    i = tag >> (U34 - np.uint64(bits))
    while True:
        slot = load64(table + (signed(i) << 3))
        if slot == U0:
            break
        if (slot >> U30) == tag and hash_of(root, signed(slot & NAME)) == block:
            return False
        i = (i + U1) & mask
    store64(table + (signed(i) << 3), (tag << U30) | np.uint64(name))
    root[USED] += 1
    return True


@kernel
def _erase(root: IntArray, block: np.uint64, name: int) -> None:
    """Take a block out, and move those behind it up to where they would like to be."""
    tag = (block * MIX) >> U30
    table, bits = root[TABLE], root[BITS]
    if root[OLD] != 0 and not moved(root, tag):
        table, bits = root[OLD], root[OLD_BITS]
    mask = (U1 << np.uint64(bits)) - U1
    shift = U34 - np.uint64(bits)
    wanted = (tag << U30) | np.uint64(name)
    i = tag >> shift
    while load64(table + (signed(i) << 3)) != wanted:
        i = (i + U1) & mask
    j = i
    while True:
        j = (j + U1) & mask
        slot = load64(table + (signed(j) << 3))
        if slot == U0:
            break
        home = (slot >> U30) >> shift
        if ((j - home) & mask) >= ((j - i) & mask):
            store64(table + (signed(i) << 3), slot)
            i = j
    store64(table + (signed(i) << 3), U0)
    root[USED] -= 1


@kernel
def begin_move(root: IntArray, address: int, bits: int) -> None:
    """Put a new table of 2^bits empty slots at `address` in charge of what is moved, of nothing yet."""
    first = 0
    while load64(root[TABLE] + (first << 3)) != U0:
        first += 1
    shut(root)
    root[OLD], root[OLD_BITS] = root[TABLE], root[BITS]
    root[TABLE], root[BITS] = address, bits
    root[MOVE_FROM], root[MOVED] = first, 0
    unshut(root)


@kernel
def move(root: IntArray, segments: int) -> bool:
    """Carry over `segments` segments and what hangs over their end; True when the old table is empty."""
    old, bits = root[OLD], root[BITS]
    size = 1 << root[OLD_BITS]
    table = root[TABLE]
    mask = (U1 << np.uint64(bits)) - U1
    shift = U34 - np.uint64(bits)
    done = int(root[MOVED])
    goal = min(done + segments * SEGMENT, size)
    root[SEGMENTS] += (goal - done + SEGMENT - 1) // SEGMENT
    shut(root)
    while True:
        address = old + (((root[MOVE_FROM] + done) & (size - 1)) << 3)
        slot = load64(address)
        if slot == U0:
            if done >= goal:
                break
        else:
            i = (slot >> U30) >> shift
            while load64(table + (signed(i) << 3)) != U0:
                i = (i + U1) & mask
            store64(table + (signed(i) << 3), slot)
            store64(address, U0)
        done += 1
    root[MOVED] = done
    if done >= size:
        root[OLD], root[OLD_BITS], root[MOVE_FROM], root[MOVED] = 0, 0, 0, 0
    unshut(root)
    return bool(done >= size)


# --- runs --------------------------------------------------------------------------------------------------------


@kernel
def _new_run(root: IntArray, parent: int, start: int) -> int:
    unit = new_cell(root)
    run = at(root, unit)
    for field in range(0, 64, 4):
        store32(run + field, 0)
    store32(run + PARENT, parent)
    store32(run + START, start)
    root[RUNS] += 1
    if parent != 0:
        above = at(root, parent)
        level = load32(above + LEVEL) + 1
        store32(run + LEVEL, level)
        root[LEVELS] = max(root[LEVELS], level)
        sibling = load32(above + CHILD)
        store32(run + NEXT, sibling)
        if sibling != 0:
            store32(at(root, sibling) + PREVIOUS, unit)
        store32(above + CHILD, unit)
    return unit


@kernel
def _free_run(root: IntArray, unit: int) -> None:
    """Forget a run that has no blocks and no children."""
    run = at(root, unit)
    parent, after, before = load32(run + PARENT), load32(run + NEXT), load32(run + PREVIOUS)
    if after != 0:
        store32(at(root, after) + PREVIOUS, before)
    if before != 0:
        store32(at(root, before) + NEXT, after)
    elif parent != 0:
        store32(at(root, parent) + CHILD, after)
    root[RUNS] -= 1
    _free_cell(root, unit)


@kernel
def _shorten(root: IntArray, run: int, keep: int) -> None:
    """Forget the blocks of a run behind its first `keep`."""
    length = load32(run + LENGTH)
    while length > keep:
        unit = load32(run + LAST)
        chunk = at(root, unit)
        base = load32(chunk + BASE)
        for place in range(length - base):
            fetch(root, load64(chunk + HASHES + (place << 3)))
        while length > keep and length > base:
            length -= 1
            place = length - base
            _erase(root, load64(chunk + HASHES + (place << 3)), ((unit >> 1) << 3) | place)
        if length == base:
            store32(run + LAST, load32(chunk + BELOW))
            _free_cell(root, unit)
    store32(run + LENGTH, keep)


@kernel
def append(root: IntArray, chain: HashArray, known: int, depth: int, name: int) -> int:
    """Make the blocks of a chain from `known` on known, behind the block `name` (0: nothing is before them).

    `depth` is that of the first of them. They lengthen the run before them where that ends there, and begin a new one
    elsewhere. Returns the run in which the chain ends and leaves in root[COVER] how many of its blocks the chain
    covers; or -1 - i where block i is known in some other place, and then nothing has changed.
    """
    unit, cover = 0, 0
    if name != 0:
        unit, cover = run_of(root, name), offset_of(root, name) + 1
    root[COVER] = cover
    if known == chain.shape[0]:
        return unit
    fresh = unit == 0 or cover < load32(at(root, unit) + LENGTH)
    if fresh:
        unit = _new_run(root, unit, depth)
    run = at(root, unit)
    before = load32(run + LENGTH)
    length = before
    last = load32(run + LAST)
    place = length % BLOCKS
    chunk = at(root, last) if last != 0 else 0
    for i in range(known, min(known + AHEAD, chain.shape[0])):
        fetch(root, chain[i])
    for i in range(known, chain.shape[0]):
        if i + AHEAD < chain.shape[0]:
            fetch(root, chain[i + AHEAD])
        if place == 0:
            below, last = last, new_cell(root)
            chunk = at(root, last)
            store32(chunk + OWNER, unit)
            store32(chunk + BASE, length)
            store32(chunk + BELOW, below)
            store32(run + LAST, last)
        store64(chunk + HASHES + (place << 3), chain[i])
        if not _put(root, chain[i], ((last >> 1) << 3) | place):
            if place == 0:
                store32(run + LAST, load32(chunk + BELOW))
                _free_cell(root, last)
            store32(run + LENGTH, length)
            _shorten(root, run, before)
            if fresh:
                _free_run(root, unit)
            return -1 - i
        length += 1
        place = place + 1 if place < BLOCKS - 1 else 0
    store32(run + LENGTH, length)
    store32(run + ENDING, 0)
    store32(run + ENDING_CHILDREN, 0)
    root[COVER] = length
    return unit


@kernel
def locate(root: IntArray, blocks: HashArray, spans: IntArray) -> int:
    """Fill spans, int64[B, 3], with (run, lo, hi) of those blocks that are known; return how many.

    Blocks that follow each other upwards or downwards in a run make one span. Downwards, as engines evict, costs no
    search: the chunk is at hand.
    """
    count = 0
    unit, lo, hi, chunk, place = 0, 0, 0, 0, 0
    for i in range(blocks.shape[0]):
        block = blocks[i]
        if unit != 0 and lo > 0:
            before, spot = chunk, place - 1
            if place == 0:
                before, spot = at(root, load32(chunk + BELOW)), BLOCKS - 1
            if load64(before + HASHES + (spot << 3)) == block:
                chunk, place, lo = before, spot, lo - 1
                continue
        name = find(root, block)
        if name == 0:
            continue
        found = at(root, (name >> 3) << 1)
        owner = load32(found + OWNER)
        offset = load32(found + BASE) + (name & 7)
        if owner == unit and offset == hi:
            hi += 1
            continue
        if unit != 0:
            spans[count, 0], spans[count, 1], spans[count, 2] = unit, lo, hi
            count += 1
        unit, lo, hi, chunk, place = owner, offset, offset + 1, found, name & 7
    if unit != 0:
        spans[count, 0], spans[count, 1], spans[count, 2] = unit, lo, hi
        count += 1
    return count


# --- forgetting --------------------------------------------------------------------------------------------------


@kernel
def _furthest(root: IntArray, piece: int, keep: int, ending: int) -> tuple[int, int]:
    """Return the end of the piece of a list that goes furthest, and how many go as far."""
    while piece != 0:
        here = at(root, piece)
        hi = load32(here + HI)
        if hi > keep:
            keep, ending = hi, 1
        elif hi == keep:
            ending += 1
        piece = load32(here + FOLLOW)
    return keep, ending


@kernel
def trim(root: IntArray) -> None:
    """Forget what is known for nobody, at the ends of the runs that are waiting for it, and so on towards the root."""
    while root[TO_TRIM] != 0:
        unit = root[TO_TRIM]
        run = at(root, unit)
        after = load32(run + PENDING)
        root[TO_TRIM] = max(after, 0)
        store32(run + PENDING, 0)
        while load32(run + ENDING) == 0 and load32(run + ENDING_CHILDREN) == 0:
            keep, ending = 0, 0
            column = load32(run + COLUMN)
            if column != 0:
                heads = at(root, column)
                width = load32(heads + WIDTH)
                heads += CUTS + (width << 2)
                for e in range(width):
                    keep, ending = _furthest(root, load32(heads + (e << 2)), keep, ending)
            else:
                keep, ending = _furthest(root, load32(run + HEAD), keep, ending)
            start, held, children = load32(run + START), keep, 0
            child = load32(run + CHILD)
            while child != 0:
                here = at(root, child)
                attached = load32(here + START) - start
                if attached > keep:
                    keep, children = attached, 1
                elif attached == keep:
                    children += 1
                child = load32(here + NEXT)
            _shorten(root, run, keep)
            if keep > 0:
                store32(run + ENDING, ending if held == keep else 0)
                store32(run + ENDING_CHILDREN, children)
                break
            parent = load32(run + PARENT)
            _free_run(root, unit)
            if parent == 0:
                break
            unit, run = parent, at(root, parent)
            if start - load32(run + START) == load32(run + LENGTH):
                store32(run + ENDING_CHILDREN, load32(run + ENDING_CHILDREN) - 1)
            if load32(run + PENDING) != 0:
                break
