"""Who holds how many of a chain's first blocks? Looking into the memory that `prefix_memory` draws; nothing changes here.

What is known is closed under ancestors, so of a chain the first blocks are known and the rest is not: a k-ary search,
its probes independent of each other, finds the deepest, and its run with that run's ancestors is all there is to it.
Probes compare 34 bits; the block found in the end is compared in full, and its depth too.
"""

import numpy as np

from inferencesched._kernels._compile import kernel, load32, load64, signed
from inferencesched._kernels.prefix_memory import (
    BITS,
    COLUMN,
    CUTS,
    ENDPOINT,
    FOLLOW,
    HEAD,
    HI,
    LEVEL,
    LO,
    MIX,
    NAME,
    OLD,
    OLD_BITS,
    PARENT,
    START,
    TABLE,
    U0,
    U1,
    U30,
    U34,
    WIDTH,
    at,
    find,
    hash_of,
    moved,
    offset_of,
    run_of,
)
from inferencesched._typing import DepthArray, HashArray, IntArray


@kernel
def _probe(table: int, bits: int, tag: np.uint64) -> int:
    """Return a block whose 34 bits are these, or 0."""
    mask = (U1 << np.uint64(bits)) - U1
    i = tag >> (U34 - np.uint64(bits))
    while True:
        slot = load64(table + (signed(i) << 3))
        if slot == U0:
            return 0
        if (slot >> U30) == tag:
            return signed(slot & NAME)
        i = (i + U1) & mask


@kernel
def _look(root: IntArray, block: np.uint64) -> int:
    """Return a block whose 34 bits are these, or 0, in the table that is in charge of it."""
    tag = (block * MIX) >> U30
    if root[OLD] != 0 and not moved(root, tag):
        return _probe(root[OLD], root[OLD_BITS], tag)
    return _probe(root[TABLE], root[BITS], tag)


@kernel
def depth_of(root: IntArray, name: int) -> int:
    """Return a block's depth: how many are before it."""
    return load32(at(root, run_of(root, name)) + START) + offset_of(root, name)


@kernel
def deepest(root: IntArray, chain: HashArray, first: int) -> tuple[int, int]:
    """Return how many of the chain's first blocks are known, and the last of those; `first` is the depth of block 0."""
    low, high, name = 0, chain.shape[0], 0
    while low < high:
        step = (high - low + 7) >> 3
        end = high
        position = low - 1
        while position < end - 1:
            position = min(position + step, end - 1)
            found = _look(root, chain[position])
            if found == 0:
                high = position
                break
            name = found
            low = position + 1
    if low == 0 or (hash_of(root, name) == chain[low - 1] and depth_of(root, name) == first + low - 1):
        return low, name
    # 34 bits were not enough: look at each block in full.
    low, name = 0, 0
    while low < chain.shape[0]:
        found = find(root, chain[low])
        if found == 0 or depth_of(root, found) != first + low:
            break
        low, name = low + 1, found
    return low, name


@kernel
def _credit(root: IntArray, run: int, cover: int, out: DepthArray) -> None:
    """Take each endpoint that has got as far as this run on through it; `cover` of its blocks are asked for."""
    start = load32(run + START)
    column = load32(run + COLUMN)
    if column != 0:
        cuts = at(root, column)
        width = load32(cuts + WIDTH)
        cuts += CUTS
        for e in range(min(width, out.shape[0])):
            reached = min(load32(cuts + (e << 2)), cover)
            out[e] = start + reached if out[e] == start else out[e]
        return
    piece = load32(run + HEAD)
    while piece != 0:
        here = at(root, piece)
        e = load32(here + ENDPOINT)
        if out[e] == start + load32(here + LO):
            out[e] = start + min(load32(here + HI), cover)
        piece = load32(here + FOLLOW)


@kernel
def _depths(root: IntArray, chain: HashArray, out: DepthArray) -> None:
    for e in range(out.shape[0]):
        out[e] = 0
    known, name = deepest(root, chain, 0)
    if known == 0:
        return
    leaf = at(root, run_of(root, name))
    level = load32(leaf + LEVEL)
    if level <= 4:  # from the root down; above a short path one climbs again and again rather than keep a stack
        for up in range(level, 0, -1):
            run = leaf
            end = known
            for _ in range(up):
                end = load32(run + START)
                run = at(root, load32(run + PARENT))
            _credit(root, run, end - load32(run + START), out)
    else:
        path = np.empty(level + 1, dtype=np.int64)
        run = leaf
        for i in range(level, -1, -1):
            path[i] = run
            if i > 0:
                run = at(root, load32(run + PARENT))
        for i in range(level):
            start = load32(path[i + 1] + START)
            _credit(root, path[i], start - load32(path[i] + START), out)
    _credit(root, leaf, known - load32(leaf + START), out)


@kernel
def match(root: IntArray, chain: HashArray, out: DepthArray) -> None:
    """Fill out, int32[E], with how many of the chain's first blocks each endpoint holds."""
    _depths(root, chain, out)


@kernel
def match_many(root: IntArray, chains: HashArray, ends: IntArray, out: DepthArray) -> None:
    """Fill out, int32[Q, E], for chains that lie behind each other and end at `ends`, int64[Q]."""
    begin = 0
    for q in range(ends.shape[0]):
        _depths(root, chains[begin : ends[q]], out[q])
        begin = ends[q]
