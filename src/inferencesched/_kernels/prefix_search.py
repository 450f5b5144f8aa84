"""Who holds how many of a chain's first blocks? Looking into the memory that `prefix_memory` draws; nothing changes here.

What is known is closed under ancestors, so of a chain the first blocks are known and the rest is not: a k-ary search,
its probes independent of each other, finds the deepest, and its run with that run's ancestors is all there is to it.
Probes compare 34 bits; the block found in the end is compared in full, and its depth too.
"""

import numpy as np

from inferencesched._kernels._compile import (
    array32,
    count_of,
    frozen,
    hashes_at,
    is_hashes,
    item_of,
    kernel,
    load32,
    load64,
    prefetch,
    signed,
)
from inferencesched._kernels.hashing import chain_into
from inferencesched._kernels.prefix_gate import enter, leave
from inferencesched._kernels.prefix_memory import (
    BITS,
    COLUMN,
    CUTS,
    ENDPOINT,
    ENDPOINTS,
    FOLLOW,
    HEAD,
    HI,
    LEVEL,
    LO,
    MIX,
    NAME,
    OLD,
    OLD_BITS,
    OWNER,
    PARENT,
    SOLE,
    SOLE_CUT,
    START,
    TABLE,
    U0,
    U1,
    U30,
    U64,
    WIDTH,
    at,
    find,
    hash_of,
    moved,
    offset_of,
    run_of,
)
from inferencesched._typing import DepthArray, HashArray, IntArray, TokenArray

WAYS = 8  # of the search: so many probes are under way at once
FIRST_PIECE = 256  # blocks that are hashed before the first look


@kernel
def _probe(table: int, bits: int, mixed: np.uint64) -> int:
    """Return a block whose 34 bits are these, or 0."""
    tag = mixed >> U30
    mask = (U1 << np.uint64(bits)) - U1
    i = mixed >> (U64 - np.uint64(bits))
    while True:
        slot = load64(table + (signed(i) << 3))
        if slot == U0:
            return 0
        if (slot >> U30) == tag:
            return signed(slot & NAME)
        i = (i + U1) & mask


@kernel
def depth_of(root: IntArray, name: int) -> int:
    """Return a block's depth: how many are before it."""
    return load32(at(root, run_of(root, name)) + START) + offset_of(root, name)


@kernel
def deepest(root: IntArray, chain: HashArray, first: int) -> tuple[int, int]:
    """Return how many of the chain's first blocks are known, and the last of those; `first` is the depth of block 0."""
    low, high, name, chunk = 0, chain.shape[0], 0, 0
    # Read once: after a hint to the processor the compiler would read them anew each time.
    table, bits, growing = root[TABLE], root[BITS], root[OLD] != 0
    shift = U64 - np.uint64(bits)
    while low < high:
        step = (high - low + WAYS - 1) // WAYS
        last = high - 1
        position = low - 1
        while position < last:  # all at once: reading them one after the other waits for each
            position = min(position + step, last)
            prefetch(table + (signed((chain[position] * MIX) >> shift) << 3))
        position = low - 1
        while position < last:
            position = min(position + step, last)
            mixed = chain[position] * MIX
            if growing and not moved(root, mixed >> U30):
                found = _probe(root[OLD], root[OLD_BITS], mixed)
            else:
                found = _probe(table, bits, mixed)
            if found == 0:
                high = position
                break
            name = found
            low = position + 1
        if name != 0 and low < high:  # what is found next mostly lies in the same run: fetch that on the way
            if chunk != 0:
                prefetch(at(root, load32(chunk + OWNER)))
            chunk = at(root, (name >> 3) << 1)
            prefetch(chunk)
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
    sole = load32(run + SOLE)
    if sole != 0:
        if out[sole - 1] == start:
            out[sole - 1] = start + min(load32(run + SOLE_CUT), cover)
        return
    column = load32(run + COLUMN)
    if column != 0:
        here = at(root, column)
        cuts = array32(here + CUTS, load32(here + WIDTH))
        # In int32 throughout, so that eight fit into a register.
        first, most = np.int32(start), np.int32(cover)
        for e in range(min(cuts.shape[0], out.shape[0])):
            reached = min(cuts[e], most)
            out[e] = np.int32(first + reached) if out[e] == first else out[e]
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
def match(root: IntArray, chain: HashArray, out: DepthArray) -> bool:
    """Fill out, int32[E], with how many of the chain's first blocks each endpoint holds.

    False, and nothing done, where the index is being changed, or has another number of endpoints: the caller need not
    ask about it before, which costs more than this.
    """
    if not enter(root):
        return False
    fits = bool(out.shape[0] == root[ENDPOINTS])
    if fits:
        _depths(root, chain, out)
    leave(root)
    return fits


@kernel
def match_many(root: IntArray, chains: HashArray, ends: IntArray, out: DepthArray) -> bool:
    """Fill out, int32[Q, E], for chains that lie behind each other and end at `ends`, int64[Q]; or False as above."""
    begin = 0
    for q in range(ends.shape[0]):
        if ends[q] < begin:
            return False
        begin = ends[q]
    if begin != chains.shape[0] or out.shape[0] != ends.shape[0] or not enter(root):
        return False
    fits = bool(out.shape[1] == root[ENDPOINTS])
    if fits:
        begin = 0
        for q in range(ends.shape[0]):
            _depths(root, chains[begin : ends[q]], out[q])
            begin = ends[q]
    leave(root)
    return fits


@kernel
def match_each(root: IntArray, chains: tuple[HashArray, ...], kind: int, out: DepthArray) -> bool:
    """Fill out, int32[Q, E], for a tuple of chains that was lent; or False as above, or where one is no such array.

    `kind` is ``id(numpy.ndarray)``.
    """
    count = count_of(chains)
    for q in range(count):
        if not is_hashes(item_of(chains, q), kind):
            return False
    if out.shape[0] != count or not enter(root):
        return False
    fits = bool(out.shape[1] == root[ENDPOINTS])
    if fits:
        for q in range(count):
            _depths(root, frozen(hashes_at(item_of(chains, q))), out[q])
    leave(root)
    return fits


@kernel
def match_tokens(
    root: IntArray, tokens: TokenArray, size: int, local_seed: np.uint64, chain_seed: np.uint64, out: DepthArray
) -> bool:
    """Fill out, int32[E], for the chain of these tokens' blocks; or False as above.

    The chain is hashed in pieces, each three times as long as all before it, until a block is not known: behind that no
    other is.
    """
    count = tokens.shape[0] // size
    chain = np.empty(count, dtype=np.uint64)
    done, known = 0, True
    while done < count and known:
        goal = min(count, max(FIRST_PIECE, 4 * done))
        previous = chain[done - 1] if done > 0 else U0
        chain_into(
            tokens[done * size : goal * size], size, local_seed, chain_seed, previous, done == 0, chain[done:goal]
        )
        done = goal
        if done < count:
            if not enter(root):
                return False
            known = find(root, chain[done - 1]) != 0
            leave(root)
    return match(root, frozen(chain[:done]), out)
