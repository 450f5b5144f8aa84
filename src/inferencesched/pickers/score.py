"""Who has the best total? Equal totals go to the least recently picked, then to the seeded generator."""

from dataclasses import dataclass

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._typing import FloatArray, IndexArray
from inferencesched.endpoints import LAST_PICKED, Endpoints
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Reads


@dataclass(frozen=True, slots=True)
class MaxScorePicker:
    """Whose total is highest?

    Equal endpoints get equal load within one: a tie goes to the least recently picked, and only endpoints that were
    never picked are drawn by chance. `count` is how many to return, best first.
    """

    count: int = 1

    def __post_init__(self) -> None:
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? When an endpoint was picked last decides between equal totals."""
        return (Reads(LAST_PICKED, "lower"),)

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``."""
        picked = endpoints[LAST_PICKED]
        if self.count == 1:
            best, ties = scoring.best_of(totals, picked)
            if ties > 1:
                best = scoring.nth_tied(totals, picked, best, int(cycle.rng.random() * ties))
            return np.array([best], dtype=np.intp)
        order: IndexArray = np.lexsort((cycle.rng.random(len(totals)), picked, -totals))
        return order[: self.count]


@dataclass(frozen=True, slots=True)
class PowerOfTwoPicker:
    """Of two drawn at random, whose total is higher?

    Two distinct candidates, uniformly; a tie goes to the less recently picked, then to the first drawn.
    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001).
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? When an endpoint was picked last decides between equal totals."""
        return (Reads(LAST_PICKED, "lower"),)

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[2]``, the better of the two first; ``intp[1]`` where there is one candidate."""
        count = len(totals)
        if count == 1:
            return np.zeros(1, dtype=np.intp)
        first = int(cycle.rng.random() * count)
        other = int(cycle.rng.random() * (count - 1))
        other += other >= first
        picked = endpoints[LAST_PICKED]
        if (totals[other], -picked[other]) > (totals[first], -picked[first]):
            first, other = other, first
        return np.array([first, other], dtype=np.intp)
