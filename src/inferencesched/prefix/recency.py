"""Which blocks has nobody asked for in a while?

For indexes that learn from bookings: a block that was not booked again for `ttl` seconds is not taken to be cached any
longer. Time is the caller's.
"""

from collections import deque
from typing import final

import numpy as np

from inferencesched._typing import HashArray
from inferencesched.errors import InvalidInputError


@final
class Recency:
    """Which blocks of which slot were touched last when, and which are due?

    `ttl` is seconds. Each touch is looked at once more when it is due, so that the cost is a dict entry a block a touch,
    and the memory about 100 bytes a block that is not due yet.

    >>> recency = Recency(ttl=10.0)
    >>> recency.touch(0, np.array([1, 2], dtype=np.uint64), now=0.0)
    >>> recency.touch(0, np.array([1], dtype=np.uint64), now=8.0)
    >>> [(slot, blocks.tolist()) for slot, blocks in recency.expire(now=10.0)]
    [(0, [2])]
    """

    def __init__(self, ttl: float) -> None:
        if not ttl > 0:
            raise InvalidInputError("ttl", ttl, "seconds above 0")
        self.ttl = ttl
        self._touches: deque[tuple[float, int, HashArray]] = deque()
        self._last: dict[int, dict[int, float]] = {}

    def __len__(self) -> int:
        """How many pairs of slot and block are remembered?"""
        return sum(map(len, self._last.values()))

    def touch(self, slot: int, hashes: HashArray, now: float) -> None:
        """Remember that these blocks were asked for; `now` does not go back."""
        if self._touches and now < self._touches[-1][0]:
            now = self._touches[-1][0]  # a late caller: as of the latest time known
        self._touches.append((now, slot, hashes))
        self._last.setdefault(slot, {}).update(dict.fromkeys(hashes.tolist(), now))

    def expire(self, now: float) -> list[tuple[int, HashArray]]:
        """Return what is due at `now`, by slot, and forget it."""
        due = []
        while self._touches and self._touches[0][0] + self.ttl <= now:
            touched, slot, hashes = self._touches.popleft()
            last = self._last.get(slot)
            if last is None:
                continue
            # what was touched again since has a later entry of its own
            gone = [block for block in dict.fromkeys(hashes.tolist()) if last.get(block) == touched]
            for block in gone:
                del last[block]
            if gone:
                due.append((slot, np.array(gone, dtype=np.uint64)))
        return due

    def forget(self, slot: int) -> None:
        """Forget a slot: it was handed to somebody else."""
        self._last.pop(slot, None)
