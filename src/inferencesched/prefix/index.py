"""Which endpoint holds how many of a prompt's first blocks?

Rules:

* a block goes by its chained hash (`inferencesched.prefix.hashing`), so one hash stands for the whole prefix;
* what is *known* is closed under ancestors: a block that nobody holds stays known while somebody holds one behind it;
* a hole counts as one: what an endpoint holds behind a block it lost does not match until the block is back;
* an error is raised before anything changes.
"""

from collections import OrderedDict
from typing import Any, final

import numpy as np

from inferencesched._typing import DepthArray, HashArray
from inferencesched.errors import InvalidInputError, UnknownParentError


class _Block:
    """A known block: where it hangs, what hangs on it, and a bit for each endpoint that holds it."""

    __slots__ = ("children", "depth", "holders", "parent")

    def __init__(self, parent: int | None, depth: int) -> None:
        self.parent = parent
        self.depth = depth
        self.children = 0
        self.holders = 0


@final
class PrefixIndex:
    """Which endpoint holds how many of a prompt's first blocks?

    `endpoints` are slots 0, 1, ...: small stable integers (`Endpoints.slots`). `capacity` is blocks an endpoint, None
    is unbounded: the exact index of what engines report. With a capacity it is the approximate index of what was sent
    where: over it, the least recently inserted go first, and of one chain its tail before its head, so that what is
    left still is a prefix. A chain longer than the capacity keeps its head.

    Not safe from several threads at once.

    >>> index = PrefixIndex(endpoints=2)
    >>> chain = np.array([11, 12, 13], dtype=np.uint64)
    >>> index.insert(0, chain)
    >>> index.insert(1, chain[:2])
    >>> index.match(chain)
    array([3, 2], dtype=int32)
    >>> index.remove(0, chain[1:2])
    1
    >>> index.match(chain)
    array([1, 2], dtype=int32)
    """

    def __init__(self, endpoints: int, capacity: int | None = None) -> None:
        if endpoints < 0:
            raise InvalidInputError("endpoints", endpoints, "an integer of at least 0")
        if capacity is not None and capacity < 1:
            raise InvalidInputError("capacity", capacity, "an integer of at least 1, or None")
        self.capacity = capacity
        self._known: dict[int, _Block] = {}
        self._held: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(endpoints)]

    def __len__(self) -> int:
        """How many different blocks are known?"""
        return len(self._known)

    @property
    def endpoints(self) -> int:
        """How many slots are there?"""
        return len(self._held)

    def blocks(self, slot: int) -> int:
        """How many blocks does this endpoint hold, within and behind holes?"""
        return len(self._held[self._slot(slot)])

    def insert(self, slot: int, hashes: HashArray, *, start: int = 0) -> None:
        """Which blocks does the endpoint hold from now on? Blocks `start` and after of this chain.

        `hashes`, uint64[B], is the whole chain from its first block. Blocks before `start` become known and, where
        the endpoint holds them, recently used; they are not taken to be held. What is held already stays held.
        """
        slot, chain = self._slot(slot), self._hashes(hashes)
        if not 0 <= start <= len(chain):
            raise InvalidInputError("start", start, f"an integer in [0, len(hashes) = {len(chain)}]")
        self._check_chain(chain, 0)
        self._insert(slot, chain, start)

    def insert_after(self, slot: int, parent: int, hashes: HashArray) -> None:
        """Which blocks behind a known one does the endpoint hold from now on? As an engine reports what it stored.

        `parent` is the chained hash of the block before `hashes[0]`. The endpoint need not hold it, but it has to be
        known: `UnknownParentError` otherwise, and nothing has changed.
        """
        slot, chain = self._slot(slot), self._hashes(hashes)
        block = self._known.get(int(parent))
        if block is None:
            raise UnknownParentError("parent", int(parent), "the hash of a block that is in the index")
        self._check_chain(chain, block.depth + 1)
        if chain:
            before = self._path(int(parent))
            self._insert(slot, [*before, *chain], len(before))

    def remove(self, slot: int, hashes: HashArray) -> int:
        """How many of these blocks did the endpoint hold? It holds them no more; others are passed over."""
        slot, chain = self._slot(slot), self._hashes(hashes)
        there = [block for block in dict.fromkeys(chain) if block in self._held[slot]]
        for block in there:
            self._drop(slot, block)
        return len(there)

    def clear(self, slot: int) -> None:
        """Is the endpoint empty, as after a restart? It is after this."""
        for block in list(self._held[self._slot(slot)]):
            self._drop(slot, block)

    def grow(self, endpoints: int) -> None:
        """Is there room for so many endpoints? There is after this; the new ones hold nothing."""
        if endpoints < len(self._held):
            raise InvalidInputError(
                "endpoints", endpoints, f"an integer of at least {len(self._held)}, the present size"
            )
        self._held += [OrderedDict() for _ in range(endpoints - len(self._held))]

    def match(self, hashes: HashArray, out: DepthArray | None = None) -> DepthArray:
        """How many of a prompt's first blocks does each endpoint hold, without a gap? ``uint64[B] -> int32[E]``.

        `out`, int32[E] and contiguous, is filled and returned where given.
        """
        chain = self._hashes(hashes)
        if out is None:
            out = np.zeros(len(self._held), dtype=np.int32)
        elif not isinstance(out, np.ndarray) or out.dtype != np.int32 or out.shape != (len(self._held),):
            raise InvalidInputError("out", _kind(out), f"an int32 array of shape ({len(self._held)},)")
        else:
            out[:] = 0
        holding = (1 << len(self._held)) - 1
        for depth, block in enumerate(chain):
            known = self._known.get(block)
            holding &= known.holders if known is not None and known.depth == depth else 0
            if not holding:
                break
            rest = holding
            while rest:
                lowest = rest & -rest
                out[lowest.bit_length() - 1] += 1
                rest ^= lowest
        return out

    def check(self) -> None:
        """Does every part of the index agree with every other? Raises AssertionError where not; for tests."""
        children = dict.fromkeys(self._known, 0)
        for block in self._known.values():
            if block.parent is not None:
                children[block.parent] += 1
                assert block.depth == self._known[block.parent].depth + 1
            else:
                assert block.depth == 0
        for name, block in self._known.items():
            assert block.children == children[name]
            assert block.children or block.holders, f"{name} is known for nothing"
            assert block.holders == sum(1 << i for i, held in enumerate(self._held) if name in held)
        for held in self._held:
            assert self._known.keys() >= held.keys()
            assert self.capacity is None or len(held) <= self.capacity

    def _insert(self, slot: int, chain: list[int], start: int) -> None:
        held = self._held[slot]
        for block in chain[start:]:
            held.setdefault(block)
        if start == len(chain):
            chain = [block for block in chain if block in self._known]
        previous: int | None = None
        for depth, name in enumerate(chain):
            known = self._known.get(name)
            if known is None:
                known = self._known[name] = _Block(previous, depth)
                if previous is not None:
                    self._known[previous].children += 1
            if depth >= start:
                known.holders |= 1 << slot
            previous = name
        for name in reversed(chain):
            if name in held:
                held.move_to_end(name)
        while self.capacity is not None and len(held) > self.capacity:
            self._drop(slot, next(iter(held)))

    def _drop(self, slot: int, name: int) -> None:
        """Take one block from an endpoint, and forget what is known for nobody any more."""
        del self._held[slot][name]
        block = self._known[name]
        block.holders &= ~(1 << slot)
        while not block.holders and not block.children:
            del self._known[name]
            if block.parent is None:
                break
            name = block.parent
            block = self._known[name]
            block.children -= 1

    def _path(self, name: int) -> list[int]:
        path = [name]
        while (parent := self._known[path[-1]].parent) is not None:
            path.append(parent)
        return path[::-1]

    def _check_chain(self, chain: list[int], first: int) -> None:
        """A hash stands for one prefix, so it has one depth."""
        if len(set(chain)) < len(chain):
            raise InvalidInputError("hashes", "the same hash twice", "chained hashes, each of one prefix")
        for depth, name in enumerate(chain, first):
            known = self._known.get(name)
            if known is not None and known.depth != depth:
                raise InvalidInputError("hashes", name, f"chained hashes: this one is known as block {known.depth}")

    def _slot(self, slot: int) -> int:
        if not 0 <= slot < len(self._held):
            raise InvalidInputError("slot", slot, f"an integer in [0, {len(self._held)})")
        return int(slot)

    def _hashes(self, hashes: Any) -> list[int]:
        if not isinstance(hashes, np.ndarray) or hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise InvalidInputError("hashes", _kind(hashes), "a uint64 array of one dimension")
        return hashes.tolist()  # type: ignore[no-any-return]


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
