"""Whose is a slot now? What producers that remember endpoints have in common.

A slot is handed on when its endpoint leaves; a generation is one stay and never comes back. Who remembers by slot asks
here before believing what it remembers.
"""

from typing import final

import numpy as np

from inferencesched._typing import BoolArray, IndexArray, IntArray
from inferencesched.endpoints import Endpoints
from inferencesched.members import Membership


@final
class Tenancy:
    """Which stay does each slot's memory belong to, and which of them are over?

    What is remembered of a stay that is over is to be forgotten: `claim` says so of the slot it is handed, `departed`
    of all slots, whenever a snapshot tells of another membership. Snapshots may come late and out of order: a stay is
    never taken back for an older one.

    Cost: `owned` some 2 us, `departed` nothing where the membership is the one it saw last.

    >>> from inferencesched.pool import InferencePool
    >>> pool, tenancy = InferencePool(), Tenancy()
    >>> pool.join("a"); pool.join("b")
    >>> before = pool.snapshot()
    >>> tenancy.claim(0, before), tenancy.claim(1, before)
    ((True, False), (True, False))
    >>> _ = pool.leave("a")
    >>> pool.join("c")  # takes the slot
    >>> tenancy.owned(pool.snapshot()).tolist()
    [True, False]
    >>> tenancy.departed(pool.snapshot())
    [0]
    """

    __slots__ = ("_members", "_owners", "_version")

    def __init__(self) -> None:
        self._owners: IntArray = np.full(1, -1, dtype=np.int64)
        self._members: Membership | None = None
        self._version = -1

    def __len__(self) -> int:
        """How many slots are there room for?"""
        return len(self._owners)

    def claim(self, slot: int, endpoints: Endpoints) -> tuple[bool, bool]:
        """Give a slot to the stay that the snapshot has there; return whether it may have it, and whether it was another's.

        It may not where the slot is a newer stay's by now, or nobody's in the snapshot.
        """
        places = np.flatnonzero(endpoints.slots == slot)
        if not len(places):
            return False, False
        generation = int(endpoints.generations[places[0]])
        if slot >= len(self._owners):
            more = max(slot + 1, 2 * len(self._owners)) - len(self._owners)
            self._owners = np.concatenate([self._owners, np.full(more, -1, dtype=np.int64)])
        before = int(self._owners[slot])
        if before > generation:
            return False, False
        self._owners[slot] = generation
        return True, before not in (-1, generation)

    def owned(self, endpoints: Endpoints) -> BoolArray:
        """Return which of the candidates own what is remembered of their slots, ``bool[E]``."""
        return self.owns(endpoints.slots, endpoints.generations)

    def owns(self, slots: IndexArray, generations: IntArray) -> BoolArray:
        """Return which of these stays own what is remembered of their slots, ``bool[E]``."""
        last = len(self._owners) - 1
        owns: BoolArray = (slots <= last) & (self._owners[np.minimum(slots, last)] == generations)
        return owns

    def departed(self, endpoints: Endpoints) -> list[int]:
        """Return the slots whose stays are over by this snapshot, and give them up; none by an older one than before."""
        if endpoints.members is self._members or endpoints.version < self._version:
            return []
        self._members, self._version = endpoints.members, endpoints.version
        gone = (self._owners >= 0) & ~np.isin(self._owners, endpoints.members.generations)
        self._owners[gone] = -1
        return [int(slot) for slot in np.flatnonzero(gone)]

    def owner(self, slot: int) -> int:
        """Return the stay that owns a slot's memory, -1 for none."""
        return int(self._owners[slot]) if slot < len(self._owners) else -1
