"""Who has the best total? Equal totals go to the least recently picked, then to the seeded generator."""

from dataclasses import dataclass
from math import comb

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

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: 1, or its even share for each of those who are tied to the last."""
        picked = endpoints[LAST_PICKED]
        best, ties = scoring.best_of(totals, picked)
        return np.where((totals == totals[best]) & (picked == picked[best]), 1.0 / ties, 0.0)


@dataclass(frozen=True, slots=True)
class PowerOfTwoPicker:
    """Of two drawn at random, whose total is higher?

    Distinct candidates, uniformly, `choices` of them: 2, or more to lean further to the best (1 is `RandomPicker`, all of
    them `MaxScorePicker`). A tie goes to the less recently picked, then to who was drawn first. Reads
    ``LAST_PICKED`` (local; lower is better).
    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001).
    """

    choices: int = 2

    def __post_init__(self) -> None:
        whole_number("choices", self.choices, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(LAST_PICKED, "lower"),)

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(choices, E)]``, the best of those drawn first."""
        count = len(totals)
        if count == 1:
            return np.zeros(1, dtype=np.intp)
        picked = endpoints[LAST_PICKED]
        if self.choices != 2:
            drawn: IndexArray = cycle.rng.permutation(count)[: self.choices]
            return drawn[np.lexsort((picked[drawn], -totals[drawn]))]  # stable: a tie stays in the order of the draw
        first = int(cycle.rng.random() * count)
        other = int(cycle.rng.random() * (count - 1))
        other += other >= first
        if (totals[other], -picked[other]) > (totals[first], -picked[first]):
            first, other = other, first
        return np.array([first, other], dtype=np.intp)

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: who is first of any `choices` of E, by counting them.

        With b candidates better and s tied (itself included) one of the s is best in ``C(E-b, d) - C(E-b-s, d)`` of the
        ``C(E, d)`` draws, each as often as the others.
        """
        count, picked = len(totals), endpoints[LAST_PICKED]
        size = min(self.choices, count)
        shares, better = np.zeros(count), 0
        order = np.lexsort((picked, -totals)).tolist()
        while better < count:
            at = order[better]
            tied = (totals == totals[at]) & (picked == picked[at])
            same = int(tied.sum())
            draws = comb(count - better, size) - comb(count - better - same, size)
            shares[tied] = draws / comb(count, size) / same
            better += same
        return shares
