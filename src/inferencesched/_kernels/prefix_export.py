"""All of a prefix index as plain arrays: runs with the hashes of their blocks, and who holds which piece of which run."""

import numpy as np

from inferencesched._kernels._compile import kernel, load32, load64
from inferencesched._kernels.prefix_memory import (
    BASE,
    BELOW,
    BLOCKS,
    ENDS,
    HASHES,
    HI,
    LAST,
    LENGTH,
    LEVEL,
    LO,
    NEWER,
    OLDEST,
    PARENT,
    RUN,
    START,
    at,
)
from inferencesched._typing import DepthArray, HashArray, IntArray


@kernel
def gather(root: IntArray, endpoints: int, numbers: DepthArray, runs: DepthArray, pieces: DepthArray) -> int:
    """Number the runs, a parent before its children, and list the pieces; return how many pieces.

    numbers int32[units] is 0 and gets a run's number + 1; runs int32[R, 4] its unit, start, length and its parent's
    number (-1: none); pieces int32[P, 4] endpoint, run's number, and the blocks [lo, hi) held, least recently used first
    of each endpoint. Every run is held, or is before one that is: so all are found.
    """
    found = listed = 0
    for endpoint in range(endpoints):
        piece = load32(root[ENDS] + (endpoint << 4) + OLDEST)
        while piece != 0:
            here = at(root, piece)
            unit = load32(here + RUN)
            while numbers[unit] == 0:
                # up to the last ancestor without a number, then down again: as often as there are levels, at worst
                top = unit
                for _ in range(load32(at(root, unit) + LEVEL)):
                    parent = load32(at(root, top) + PARENT)
                    if numbers[parent] != 0:
                        break
                    top = parent
                run = at(root, top)
                parent = load32(run + PARENT)
                runs[found, 0] = top
                runs[found, 1] = load32(run + START)
                runs[found, 2] = load32(run + LENGTH)
                runs[found, 3] = numbers[parent] - 1 if parent != 0 else -1
                found += 1
                numbers[top] = found
            pieces[listed, 0] = endpoint
            pieces[listed, 1] = numbers[unit] - 1
            pieces[listed, 2] = load32(here + LO)
            pieces[listed, 3] = load32(here + HI)
            listed += 1
            piece = load32(here + NEWER)
    return listed


@kernel
def collect(root: IntArray, runs: DepthArray, count: int, hashes: HashArray) -> None:
    """Write the hashes of the first `count` runs behind each other."""
    begin = 0
    for r in range(count):
        length = runs[r, 2]
        chunk = load32(at(root, runs[r, 0]) + LAST)
        while chunk != 0:
            here = at(root, chunk)
            base = load32(here + BASE)
            for place in range(min(BLOCKS, length - base)):
                hashes[begin + base + place] = load64(here + HASHES + (place << 3))
            chunk = load32(here + BELOW)
        begin += length


@kernel
def chain_of(runs: DepthArray, begins: IntArray, hashes: HashArray, run: int, stop: int) -> HashArray:
    """Return the whole chain from its first block to block `stop` (not included) of a run, ``uint64[start + stop]``."""
    depth = runs[run, 1] + stop
    chain = np.empty(depth, dtype=np.uint64)
    while run >= 0:
        start = runs[run, 1]
        for i in range(depth - start):
            chain[start + i] = hashes[begins[run] + i]
        depth = start
        run = runs[run, 3]
    return chain
