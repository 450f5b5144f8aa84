"""Where does a prefix index keep what it knows?

In pages and tables that never move, so that growing copies nothing but a few words; their addresses stand in one array,
``root``, which is all that a kernel is given. `inferencesched._kernels.prefix_memory` draws what is in them.
"""

import mmap
import sys
from contextlib import suppress
from typing import final

import numpy as np

from inferencesched._kernels.prefix_gate import shut
from inferencesched._kernels.prefix_holders import widen
from inferencesched._kernels.prefix_memory import (
    BITS,
    CAPACITY,
    ENDPOINTS,
    ENDS,
    GATE,
    MOVE_FROM,
    MOVED,
    PAGE,
    PAGES,
    SEGMENT,
    TABLE,
    TOP,
    USED,
)
from inferencesched._kernels.prefix_table import begin_move, move
from inferencesched._typing import DepthArray, HashArray, IntArray
from inferencesched.errors import InvalidInputError

#: Slots are filled up to three quarters: eight lie in a cache line, and a block is found in one or two of those.
FILL_OF_FOUR = 3
#: Segments moved for each 64 blocks stored, while the table grows. Doubling ends long before the next begins.
PACE = 1
#: Bytes that are given back at once.
LEAF = mmap.PAGESIZE
MOST_ENDPOINTS = 16_384
MOST_PAGES = 1 << 15


@final
class Memory:
    """Is there room for what comes next? The arrays behind one index, and their growth.

    `carry` and `reserve` come before a change: the kernels take what they need and do not ask.
    """

    def __init__(self, endpoints: int, capacity: int | None) -> None:
        self.root: IntArray = np.zeros(PAGES + 96, dtype=np.int64)
        self.pages: list[DepthArray] = []
        self.old: HashArray | None = None
        self._old_area: mmap.mmap | None = None
        self._area: mmap.mmap | None = None
        self._released = 0
        self.root[TOP] = 2  # unit 0 is nobody's name
        self.root[CAPACITY] = capacity or 0
        self.table: HashArray = np.zeros(SEGMENT, dtype=np.uint64)
        self.root[TABLE], self.root[BITS] = address(self.table), SEGMENT.bit_length() - 1
        self.ends: DepthArray = np.zeros((0, 4), dtype=np.int32)
        self.grow(endpoints)
        self._units = self._slots = 0  # at least so many are free

    def grow(self, endpoints: int) -> None:
        """Make room for so many endpoints."""
        if endpoints > MOST_ENDPOINTS:
            raise InvalidInputError("endpoints", endpoints, f"an integer of at most {MOST_ENDPOINTS}")
        if endpoints > len(self.ends):
            width = max(8, 1 << (endpoints - 1).bit_length())
            ends = np.zeros((width, 4), dtype=np.int32)
            ends[: len(self.ends)] = self.ends
            self.ends = ends
            self.root[ENDS] = address(ends)
            widen(self.root, width)
        self.root[ENDPOINTS] = endpoints

    def reserve(self, blocks: int, units: int) -> None:
        """Make room for so many blocks more in the table, and for so many units of records."""
        self._units -= units
        if self._units < 0:
            self._units = len(self.pages) * PAGE - int(self.root[TOP]) - units
            while self._units < 0:
                self._add_page()
        self._slots -= blocks
        if self._slots < 0:
            self._slots = self._free_slots() - blocks
            if self._slots < 0:
                self._widen_table(blocks)

    def carry(self, blocks: int) -> None:
        """Move a piece of the old table into the new one: PACE segments for each 64 blocks that are stored."""
        if move(self.root, PACE * ((blocks + 63) // 64)):
            self.old = self._old_area = None
        elif self.old is not None and self._old_area is not None and sys.platform != "win32":
            done = min(int(self.root[MOVE_FROM] + self.root[MOVED]), len(self.old))
            end = done * 8 // LEAF * LEAF
            if end > self._released:
                self._old_area.madvise(mmap.MADV_DONTNEED, self._released, end - self._released)
                self._released = end

    def nbytes(self) -> int:
        """Return how many bytes all arrays take; pages count from their first use."""
        old = 0 if self.old is None else self.old.nbytes
        return int(self.root[TOP]) * 32 + self.table.nbytes + old + self.ends.nbytes + self.root.nbytes

    def _free_slots(self) -> int:
        return (len(self.table) >> 2) * FILL_OF_FOUR - int(self.root[USED])

    def _widen_table(self, blocks: int) -> None:
        if self.old is not None:  # a giant among events: what is left of the last growth has to be over first
            move(self.root, len(self.old) // SEGMENT)
            self.old = self._old_area = None
        bits = int(self.root[BITS]) + 1
        while ((1 << bits) >> 2) * FILL_OF_FOUR - int(self.root[USED]) < blocks:
            bits += 1
        table, area = _empty_slots(1 << bits)
        begin_move(self.root, address(table), bits)
        self.old, self.table = self.table, table
        self._old_area, self._area = self._area, area
        self._released = -(-int(self.root[MOVE_FROM]) * 8 // LEAF) * LEAF
        self.carry(blocks)
        self._slots = self._free_slots() - blocks

    def _add_page(self) -> None:
        if len(self.pages) == MOST_PAGES:
            raise MemoryError(f"a prefix index takes at most {MOST_PAGES * PAGE * 32} bytes of records")
        page = np.empty(PAGE * 8, dtype=np.int32)
        if PAGES + len(self.pages) == len(self.root):
            shut(self.root)  # for ever: whoever comes late with the old one is sent away, to come with the new one
            self.root = np.concatenate([self.root, np.zeros(len(self.root), dtype=np.int64)])
            self.root[GATE] = 0
        self.root[PAGES + len(self.pages)] = address(page)
        self.pages.append(page)
        self._units += PAGE


def _empty_slots(count: int) -> tuple[HashArray, mmap.mmap | None]:
    """Return so many zeros, and the area they lie in where the system gives out its pages one by one.

    A table of megabytes from numpy lies in huge pages, and to touch the first byte of one costs as much as clearing all
    of it: up to milliseconds in an event that stores a few blocks. What has been moved is given back the same way.
    """
    if sys.platform == "win32" or count * 8 < 16 * LEAF:
        return np.zeros(count, dtype=np.uint64), None
    area = mmap.mmap(-1, count * 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without huge pages refuses to do without them
            area.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(area, dtype=np.uint64), area


def address(array: "HashArray | DepthArray") -> int:
    """Where does an array begin?"""
    return int(array.ctypes.data)
