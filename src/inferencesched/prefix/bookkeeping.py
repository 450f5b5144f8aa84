"""Whose blocks does a slot of a prefix index hold, and does the index find anything?

What the producers of this package have in common.
"""

from typing import Final, Literal, NamedTuple, final

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._typing import BoolArray, DepthArray, FloatArray, IndexArray, IntArray

#: So many lookups without a hit, while blocks are stored, are no accident.
BLIND_AFTER: Final = 100


class IndexHealth(NamedTuple):
    """Does the index find what it stores?

    `lookups` of prompts with at least one block, `hits` of them with at least one block matched, `since_hit` lookups since
    the last; `held` is blocks now held, over all endpoints. ``state`` is ``healthy``, ``learning`` (too few lookups to
    tell, or nothing stored) or ``blind``: a hit rate that stays at zero while blocks are stored, which is what a wrong
    block size, seed, model name or salt looks like.
    """

    lookups: int
    hits: int
    since_hit: int
    held: int

    @property
    def state(self) -> Literal["healthy", "learning", "blind"]:
        """Which of the three?"""
        if self.held and self.since_hit >= BLIND_AFTER:
            return "blind"
        return "healthy" if self.hits else "learning"

    def __str__(self) -> str:
        words = f"{self.state}: {self.hits} of {self.lookups} prompts matched, {self.held} blocks held"
        if self.state == "blind":
            words += f"; none of the last {self.since_hit} did: compare block size, seed, model, adapter and salt"
        return words


@final
class Stays:
    """Whose blocks does each slot hold? A generation a slot; -1 is nobody's yet. A slot never goes back to an older stay: who
    comes late for one asks `over` first.

    >>> stays = Stays()
    >>> stays.claim(2, generation=7), stays.claim(2, generation=7), stays.claim(2, generation=8)
    (False, False, True)
    >>> stays.current(np.array([0, 2]), np.array([7, 8]))
    array([False,  True])
    >>> stays.over(2, generation=7), stays.over(2, generation=8)
    (True, False)
    """

    __slots__ = ("_generations",)

    def __init__(self) -> None:
        self._generations: IntArray = np.full(1, -1, dtype=np.int64)

    def __len__(self) -> int:
        """How many slots are there room for?"""
        return len(self._generations)

    def over(self, slot: int, generation: int) -> bool:
        """Return whether the slot is a newer stay's by now: what is still said of this one is about somebody who left."""
        return slot < len(self._generations) and int(self._generations[slot]) > generation

    def claim(self, slot: int, generation: int) -> bool:
        """Give a slot to an endpoint's stay; return whether it was somebody else's before."""
        self._room(slot + 1)
        before = int(self._generations[slot])
        self._generations[slot] = generation
        return before not in (-1, generation)

    def held(
        self,
        depths: DepthArray,
        slots: IndexArray,
        generations: IntArray,
        blocks: int,
        block_size: int,
        matched: IntArray,
        rows: FloatArray,
    ) -> int:
        """Fill in what each endpoint holds of a prompt, as `scoring.held_by_stays` does; return the most that any holds.

        A slot that nobody has claimed yet holds nothing.
        """
        most = scoring.held_by_stays(depths, slots, generations, self._generations, blocks, block_size, matched, rows)
        if most < 0:
            self._room(int(slots.max()) + 1)
            room = np.zeros(max(len(depths), len(self._generations)), dtype=depths.dtype)
            room[: len(depths)] = depths
            most = scoring.held_by_stays(room, slots, generations, self._generations, blocks, block_size, matched, rows)
        return int(most)

    def _room(self, slots: int) -> None:
        """See to it that there is room for so many slots."""
        if slots > len(self._generations):
            more = max(slots, 2 * len(self._generations)) - len(self._generations)
            self._generations = np.concatenate([self._generations, np.full(more, -1, dtype=np.int64)])

    def current(self, slots: IndexArray, generations: IntArray) -> BoolArray:
        """Return which of these stays own their slot's blocks, ``bool[E]``."""
        if not len(slots) or slots.max() < len(self._generations):
            everywhere: BoolArray = self._generations[slots] == generations
            return everywhere
        known = slots < len(self._generations)
        owned = np.zeros(len(slots), dtype=np.bool_)
        owned[known] = self._generations[slots[known]] == generations[known]
        return owned


@final
class Lookups:
    """How often was something looked up, and found?"""

    __slots__ = ("hits", "lookups", "since_hit")

    def __init__(self) -> None:
        self.lookups = self.hits = self.since_hit = 0

    def count(self, *, hit: bool) -> None:
        """Count one lookup."""
        self.lookups += 1
        self.hits += hit
        self.since_hit = 0 if hit else self.since_hit + 1

    def health(self, held: int) -> IndexHealth:
        """Return the counts with what is held now."""
        return IndexHealth(self.lookups, self.hits, self.since_hit, held)
