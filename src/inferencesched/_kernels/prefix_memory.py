"""What lies where in the memory of a prefix index, and how a record and a block are found in it.

``root``, int64[], holds counters and addresses (the words named below), then from word `PAGES` on the addresses of pages
of 8,192 units of 32 bytes. A record is named by its first unit, never 0; its fields are int32 and named by their byte
offset:

* a run, two units: blocks that follow each other, held by some endpoints and not by others. Runs never split: a child
  may hang on any block of its parent, and a run grows at its end. `START` is the depth of its first block; where it has a single piece, from its first block on, `SOLE`
  is the endpoint + 1 and `SOLE_CUT` the piece's end, so that matching need not look at the piece;
* a chunk, two units: the hashes of six blocks of a run in order; a run's chunks are a stack, `LAST` on top;
* a piece, one unit: an endpoint holds blocks [LO, HI) of a run. A run's pieces are a list by endpoint and `LO`, an
  endpoint's are a list from `OLDEST` to `NEWEST`;
* a column, for a run that many endpoints hold: for each endpoint how many of the run's first blocks it holds without a
  gap (`CUTS`), then the head of its own list of pieces of that run;
* an endpoint, at ``root[ENDS]``: how many blocks it holds, the ends of its list of pieces, and its own capacity where
  that is not everybody's.

The table has 2^bits slots, uint64, 0 where empty: 34 bits of the mixed hash, then 30 bits of a block's name, which is
its chunk's unit / 2 * 8 + its place. The first `bits` of the 34 are where the block would like to be; it is there or
behind, without an empty slot between. While the table grows there are two (`prefix_table`): `moved` says which of them
is in charge of a hash.

A block is known while somebody holds it or a block behind it: what is known is closed under ancestors.
"""

import numpy as np

from inferencesched._kernels._compile import kernel, load32, load64, prefetch, signed
from inferencesched._typing import IntArray

TABLE, BITS, OLD, OLD_BITS, MOVE_FROM, MOVED, USED = range(7)
TOP, FREE_CELLS, FREE_PIECES, FREE_COLUMNS, ENDS, CAPACITY, COLUMN_WIDTH = range(7, 14)
RUNS, PIECES, COLUMNS, LEVELS, SEGMENTS, EVICTED, ABSENT = range(14, 21)
#: What one kernel leaves for the next: a block, how much of its run a chain covers, runs that wait.
FOUND, COVER, TO_TRIM, CROWDED = range(21, 25)
#: Who is in (`prefix_gate`), and how many endpoints an answer has.
GATE, ENDPOINTS = range(25, 27)
PAGES = 32

PARENT, START, LENGTH, LAST, HEAD, COUNT, COLUMN = range(0, 28, 4)
ENDING, CHILD, ENDING_CHILDREN, NEXT, PREVIOUS, LEVEL, PENDING, SOLE, SOLE_CUT = range(28, 64, 4)
OWNER, BASE, BELOW, _, HASHES = range(0, 20, 4)
ENDPOINT, LO, HI, FOLLOW, OLDER, NEWER, RUN = range(0, 28, 4)
WIDTH, CUTS = 0, 32
HELD, OLDEST, NEWEST, LIMIT = range(0, 16, 4)

BLOCKS = 6  # in a chunk
SEGMENT = 1024  # slots
PAGE = 8192  # units
MIX = np.uint64(0x9E3779B97F4A7C15)
NAME = np.uint64((1 << 30) - 1)
U64, U34, U30, U1, U0 = (np.uint64(n) for n in (64, 34, 30, 1, 0))


@kernel
def at(root: IntArray, unit: int) -> int:
    """Return a record's address."""
    return int(root[PAGES + (unit >> 13)]) + ((unit & 8191) << 5)


@kernel
def new_cell(root: IntArray) -> int:
    """Take two units."""
    unit = int(root[FREE_CELLS])
    if unit != 0:
        root[FREE_CELLS] = load32(at(root, unit))
    else:
        unit = int(root[TOP])
        root[TOP] = unit + 2
    return unit


@kernel
def hash_of(root: IntArray, name: int) -> np.uint64:
    """Return a block's hash."""
    return load64(at(root, (name >> 3) << 1) + HASHES + ((name & 7) << 3))


@kernel
def run_of(root: IntArray, name: int) -> int:
    """Return the unit of a block's run."""
    return load32(at(root, (name >> 3) << 1) + OWNER)


@kernel
def offset_of(root: IntArray, name: int) -> int:
    """Return which block of its run this is."""
    return load32(at(root, (name >> 3) << 1) + BASE) + (name & 7)


@kernel
def moved(root: IntArray, tag: np.uint64) -> bool:
    """Is the new table in charge, while the table grows?"""
    bits = root[OLD_BITS]
    home = signed(tag >> (U34 - np.uint64(bits)))
    return bool(((home - root[MOVE_FROM]) & ((1 << bits) - 1)) < root[MOVED])


@kernel
def fetch(root: IntArray, block: np.uint64) -> None:
    """Start to read where a block would like to be; while the table grows, in the new one."""
    prefetch(root[TABLE] + (signed((block * MIX) >> (U64 - np.uint64(root[BITS]))) << 3))


@kernel
def find(root: IntArray, block: np.uint64) -> int:
    """Return the block of that hash, or 0."""
    tag = (block * MIX) >> U30
    table, bits = root[TABLE], root[BITS]
    if root[OLD] != 0 and not moved(root, tag):
        table, bits = root[OLD], root[OLD_BITS]
    mask = (U1 << np.uint64(bits)) - U1
    i = tag >> (U34 - np.uint64(bits))
    while True:
        slot = load64(table + (signed(i) << 3))
        if slot == U0:
            return 0
        if (slot >> U30) == tag:
            name = signed(slot & NAME)
            if hash_of(root, name) == block:
                return name
        i = (i + U1) & mask
