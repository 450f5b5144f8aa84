"""Who is next, by lot or by turn?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import FloatArray, IndexArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Reads


@dataclass(frozen=True, slots=True)
class RandomPicker:
    """Who is drawn, all being equally likely? Totals are ignored."""

    count: int = 1

    def __post_init__(self) -> None:
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None."""
        return ()

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``, without repetition."""
        if self.count == 1:
            return np.array([int(cycle.rng.random() * len(totals))], dtype=np.intp)
        order: IndexArray = cycle.rng.permutation(len(totals))
        return order[: self.count]

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: one in E for each."""
        return np.full(len(totals), 1.0 / len(totals))


@dataclass(frozen=True, slots=True)
class WeightedRandomPicker:
    """Who is drawn, in proportion to the totals?

    P(first) = total / sum; totals of 0 or less come last; where none is above 0 the draw is uniform.
    Source: A-Res, Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): greatest u**(1/total)
    first. The keys here are log(-log(u)) - log(total), least first: the same order, and no total is too small for it.
    """

    count: int = 1

    def __post_init__(self) -> None:
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None."""
        return ()

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``, without repetition."""
        draws = 1.0 - cycle.rng.random(len(totals))  # above 0: a draw of exactly 1 has a key of -inf, and is first
        positive = totals > 0.0
        with np.errstate(divide="ignore"):
            keys = np.log(-np.log(draws)) - np.log(np.where(positive, totals, 1.0))
        order: IndexArray = np.lexsort((keys, ~positive))
        return order[: self.count]

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: the share of the totals above 0; one in E for each where none is."""
        shares: FloatArray = np.maximum(totals, 0.0)
        most = shares.max()
        if not most > 0.0:
            return np.full(len(totals), 1.0 / len(totals))
        shares = shares / most  # first: the sum of the greatest floats is no float
        likely: FloatArray = shares / shares.sum()
        return likely


@dataclass(frozen=True, slots=True)
class RoundRobinPicker:
    """Whose turn is it? Position ``sequence % E``, so there is no hidden cursor; totals are ignored.

    Under filters that drop other endpoints for each request, turns are uneven: `MaxScorePicker` without scorers
    gives the turn to whoever waited longest.
    """

    count: int = 1

    def __post_init__(self) -> None:
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None."""
        return ()

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``."""
        count = len(totals)
        return (cycle.sequence + np.arange(min(self.count, count), dtype=np.intp)) % count
