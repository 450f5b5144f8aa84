"""Up to which saturation may each band dispatch?

The highest band up to 1.0, lower ones to less, so that room is left for who may come. Ceilings never rise from a band to a lower
one. A band behind a ceiling waits, it is not shed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal, final, get_args

from inferencesched.errors import InvalidInputError, UnknownNameError

Domain = Literal["rank", "value"]


@dataclass(frozen=True, slots=True)
class PriorityHoldback:
    """How much room is held back from lower priorities, whatever the saturation?

    From `max_ceiling` for the highest band to `min_ceiling` for the lowest, in between linearly: by ``rank`` in equal steps, by
    ``value`` as the priorities lie. One band alone, or several of one priority, have `max_ceiling`.
    Source: llm-d router's ``priority-holdback-policy``.

    >>> PriorityHoldback(0.5).ceilings(0.0, [100, 2, 1]), PriorityHoldback(0.5, domain="value").ceilings(0.0, [90, 50, 10])
    ([1.0, 0.75, 0.5], [1.0, 0.75, 0.5])
    """

    min_ceiling: float
    max_ceiling: float = 1.0
    domain: Domain = "rank"

    def __post_init__(self) -> None:
        if not 0 <= self.min_ceiling < 1:
            raise InvalidInputError("min_ceiling", self.min_ceiling, "at least 0, below 1")
        if not 0 < self.max_ceiling <= 1:
            raise InvalidInputError("max_ceiling", self.max_ceiling, "above 0, at most 1")
        if not self.min_ceiling < self.max_ceiling:
            raise InvalidInputError("min_ceiling", self.min_ceiling, f"below max_ceiling = {self.max_ceiling}")
        if self.domain not in get_args(Domain):
            raise UnknownNameError("domain", self.domain, get_args(Domain))

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """Return a ceiling for each priority, greatest priority first."""
        if not priorities:
            return []
        low, room = self.min_ceiling, self.max_ceiling - self.min_ceiling
        last = len(priorities) - 1
        if not last:
            return [self.max_ceiling]
        if self.domain == "rank":
            return [self.max_ceiling, *(low + room * (last - i) / last for i in range(1, last)), low]
        least, spread = priorities[last], priorities[0] - priorities[last]
        if not spread:
            return [self.max_ceiling] * (last + 1)
        return [self.max_ceiling if p == priorities[0] else low + room * (p - least) / spread for p in priorities]


@final
class SoftReflectiveCeiling:
    """How are lower bands let in now and then, the more seldom the fuller the pool? As llm-d does it.

    Of N bands, number i is open below ``1 - i * s / (N - 1)``; above, only at every k-th call, ``k = round(s / (1 - s))``, all that are
    above together; at 1 never. The first is always open. From a saturation of 0.5 to 0.6 k is 1: there the ceiling does
    nothing (see `SoftCeiling`). Source: llm-d router's ``soft-reflective-ceiling-policy``. It counts calls: one policy a
    controller.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls = 0

    def __repr__(self) -> str:
        return "SoftReflectiveCeiling()"

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """Return a ceiling for each priority, greatest priority first: 1 where it is open now, else 0."""
        open_now = False
        if 1 - saturation <= saturation < 1:
            self._calls += 1
            every = max(1, floor(saturation / (1 - saturation + 1e-9) + 0.5))
            open_now = self._calls % every == 0
        return _reflected(saturation, priorities, open_now)


@final
class SoftCeiling:
    """How are lower bands let in now and then, the more seldom the fuller the pool, with nowhere a step?

    As `SoftReflectiveCeiling`, and instead of a whole number of calls it follows the share that is meant: bands above their
    ceiling are open in ``(1 - s) / s`` of the calls, 1 at a saturation of 0.5, 0 at 1. What a call leaves of the share is carried to
    the next (Bresenham's error diffusion): after any number of calls the times it was open are less than 1 off the sum of the
    shares. It counts: one policy a controller.

    >>> soft = SoftCeiling()
    >>> [soft.ceilings(0.55, [1, 0])[1] for _ in range(11)]
    [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    __slots__ = ("_carried",)

    def __init__(self) -> None:
        self._carried = 0.0

    def __repr__(self) -> str:
        return "SoftCeiling()"

    @staticmethod
    def share(saturation: float) -> float:
        """In which share of the calls is a band open that is above its ceiling?

        >>> SoftCeiling.share(0.5), SoftCeiling.share(0.75) * 3, SoftCeiling.share(1.0)
        (1.0, 1.0, 0.0)
        """
        if saturation >= 1:
            return 0.0
        return min(1.0, (1 - saturation) / saturation) if saturation > 0 else 1.0

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """Return a ceiling for each priority, greatest priority first: 1 where it is open now, else 0."""
        open_now = False
        if 1 - saturation <= saturation < 1:
            self._carried += self.share(saturation)
            open_now = self._carried >= 1 - 1e-9  # a sum of thirds is not quite 1
            self._carried -= open_now
        return _reflected(saturation, priorities, open_now)


def _reflected(saturation: float, priorities: Sequence[int], open_now: bool) -> list[float]:
    """Return 1 for the bands that are below their reflected ceiling, and for all others where they are open now."""
    if not priorities:
        return []
    last = max(1, len(priorities) - 1)
    lower = (open_now or (saturation < 1 and saturation < 1 - i * saturation / last) for i in range(1, len(priorities)))
    return [1.0, *map(float, lower)]
