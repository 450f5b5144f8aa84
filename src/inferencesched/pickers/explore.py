"""Who gets the request, if now and then somebody else should be tried?

What is always given to the best is never learnt of the others, and gateways that see the same stale numbers all pick the
same endpoint. Both pickers say with which probability they pick whom.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from inferencesched._typing import FloatArray, IndexArray
from inferencesched.endpoints import LAST_PICKED, Endpoints
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Reads
from inferencesched.pickers.score import MaxScorePicker

#: A logarithm that no draw makes up for, and that is still a number.
_NEVER: Final = -1e300


@dataclass(frozen=True, slots=True)
class EpsilonGreedyPicker:
    """Who has the best total, but for one time in `1 / epsilon`, when anybody is drawn?

    With probability `epsilon` a candidate drawn uniformly (the best among them), else `MaxScorePicker`'s. The fallbacks of
    either are in that picker's order. Reads ``LAST_PICKED`` for ties (local; lower is better).
    Source: Sutton and Barto, "Reinforcement Learning" (1998), section 2.2; asked for in the Gateway API Inference
    Extension's issue 2591.
    """

    epsilon: float = 0.05
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise InvalidInputError("epsilon", self.epsilon, "0 to 1")
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(LAST_PICKED, "lower"),)

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``, best first behind who is tried."""
        if cycle.rng.random() >= self.epsilon:
            return MaxScorePicker(self.count).pick(totals, endpoints, cycle)
        tried = int(cycle.rng.random() * len(totals))
        if self.count == 1:
            return np.array([tried], dtype=np.intp)
        order = MaxScorePicker(self.count).pick(totals, endpoints, cycle)
        return np.concatenate([np.array([tried], dtype=np.intp), order[order != tried]])[: self.count]

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: epsilon / E, and ``1 - epsilon`` more for the best."""
        best = MaxScorePicker().propensities(totals, endpoints)
        return self.epsilon / len(totals) + (1.0 - self.epsilon) * best


@dataclass(frozen=True, slots=True)
class SoftmaxPicker:
    """Who is drawn, the better the likelier by a factor of e for each `temperature`?

    ``p ~ exp((total - max) / (temperature * (max - min)))`` if `normalized`, so that only the totals' order and spacing
    count: the worst is ``exp(-1 / temperature)`` times as likely as the best. Otherwise ``p ~ exp(total / temperature)``. All
    equal is uniform; a temperature of 0 is `MaxScorePicker`. The fallbacks are drawn from those that are left, in the
    same manner. Reads ``LAST_PICKED`` for ties at a temperature of 0 (local; lower is better).

    Source: Dynamo's KV router (``router_temperature``, there 0 unless set) over costs scaled to [0, 1]; drawn by adding
    Gumbel noise and sorting, Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them" (2019).
    """

    temperature: float = 0.1
    normalized: bool = True
    count: int = 1

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidInputError("temperature", self.temperature, "a finite number of at least 0")
        whole_number("count", self.count, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(LAST_PICKED, "lower"),)

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[min(count, E)]``, without repetition."""
        if self.temperature == 0.0:
            return MaxScorePicker(self.count).pick(totals, endpoints, cycle)
        draws = 1.0 - cycle.rng.random(len(totals))  # above 0: a draw of exactly 1 is first
        with np.errstate(divide="ignore"):
            keys = self._logits(totals) - np.log(-np.log(draws))
        order: IndexArray = np.argsort(-keys, kind="stable")
        return order[: self.count]

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: the softmax of the totals."""
        if self.temperature == 0.0:
            return MaxScorePicker().propensities(totals, endpoints)
        likely = np.exp(self._logits(totals))
        shares: FloatArray = likely / likely.sum()
        return shares

    def _logits(self, totals: FloatArray) -> FloatArray:
        """Return how much less likely than the best each is, as a logarithm, ``float64[E]``."""
        behind = totals - totals.max()
        whole = self.temperature * (-float(behind.min()) if self.normalized else 1.0)
        if whole > 0.0:
            with np.errstate(over="ignore"):
                logits: FloatArray = np.maximum(behind / whole, _NEVER)
                return logits
        return np.where(behind < 0.0, _NEVER, 0.0)
