"""What an engine or a router reports, from its first look to the last block forgotten: one kernel an event.

They run one at a time; the gate (`prefix_gate`) is shut from the first change to the last, and readers are in before.
"""

import numpy as np

from inferencesched._kernels._compile import kernel, store32
from inferencesched._kernels.prefix_gate import shut, unshut
from inferencesched._kernels.prefix_holders import clear, drop, hold, shed
from inferencesched._kernels.prefix_memory import ABSENT, CROWDED, ENDS, LIMIT, find
from inferencesched._kernels.prefix_search import deepest, depth_of
from inferencesched._kernels.prefix_table import append, locate, trim
from inferencesched._typing import HashArray, IntArray

#: What `store` and `store_after` answer; below -1, -2 - i says that block i is in the index behind another block.
STORED, STORED_AND_CROWDED, UNKNOWN_PARENT = 0, 1, -1


@kernel
def _store(root: IntArray, endpoint: int, chain: HashArray, first: int, begin: int, parent: int) -> int:
    """Hold from depth `begin` on; block 0 has depth `first` and hangs on the block `parent`."""
    known, name = deepest(root, chain, first)
    shut(root)
    if known == 0:
        name = parent
    end = known if begin == first + chain.shape[0] else chain.shape[0]
    leaf = append(root, chain[:end], known, first + known, name)
    if leaf >= 0:
        hold(root, endpoint, begin, leaf)
        trim(root)
    unshut(root)
    if leaf < 0:
        return leaf - 1
    return STORED if root[CROWDED] == 0 else STORED_AND_CROWDED


@kernel
def store(root: IntArray, endpoint: int, chain: HashArray, start: int) -> int:
    """Let an endpoint hold blocks `start` and after of a whole chain."""
    return _store(root, endpoint, chain, 0, start, 0)


@kernel
def store_after(root: IntArray, endpoint: int, parent: np.uint64, chain: HashArray) -> int:
    """Let an endpoint hold a chain that goes on behind the block `parent`."""
    name = find(root, parent)
    if name == 0:
        return UNKNOWN_PARENT
    if chain.shape[0] == 0:
        return STORED
    depth = depth_of(root, name) + 1
    return _store(root, endpoint, chain, depth, depth, name)


@kernel
def take(root: IntArray, endpoint: int, blocks: HashArray) -> int:
    """Take blocks from an endpoint, in any order; return how many of them it held."""
    spans = np.empty((blocks.shape[0], 3), dtype=np.int64)
    count = locate(root, blocks, spans)
    shut(root)
    gone = drop(root, endpoint, spans, count)
    root[ABSENT] += blocks.shape[0] - gone
    trim(root)
    unshut(root)
    return gone


@kernel
def take_all(root: IntArray, endpoint: int) -> int:
    """Take everything from an endpoint; return how many blocks."""
    shut(root)
    gone = clear(root, endpoint)
    trim(root)
    unshut(root)
    return gone


@kernel
def limit(root: IntArray, endpoint: int, blocks: int) -> int:
    """Give an endpoint a capacity of its own, 0 for everybody's; return how many blocks had to go."""
    shut(root)
    store32(root[ENDS] + (endpoint << 4) + LIMIT, blocks)
    gone = shed(root, endpoint)
    trim(root)
    unshut(root)
    return gone
