"""How do many servers' loads become one number?

The mean hides a full server behind empty ones, the greatest lets one full server stop all the others: what is right depends
on whether a request can go anywhere. Every aggregate here rises, or stays, when any one load rises.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import CAPACITY_WEIGHT, Endpoints
from inferencesched.errors import InvalidInputError


class Aggregate(Protocol):
    """How full is a pool whose servers are as full as that?"""

    @property
    def linear(self) -> bool:
        """Is it the sum of ``weight * load`` over the sum of weights? Then one server's change costs no look at the others."""
        ...

    def weights(self, endpoints: Endpoints) -> FloatArray:
        """Return how much each server counts, ``float64[E]``, above 0."""
        ...

    def of(self, loads: FloatArray, weights: FloatArray) -> float:
        """Return the load of all, of at least one server; none is NaN."""
        ...


@dataclass(frozen=True, slots=True)
class Mean:
    """How full is the average server? llm-d's, and right where a request may go to any of equal servers.

    >>> Mean().of(np.array([0.0, 2.0]), np.ones(2))
    1.0
    """

    @property
    def linear(self) -> bool:
        """It is."""
        return True

    def weights(self, endpoints: Endpoints) -> FloatArray:
        """Return the same for all."""
        return np.ones(len(endpoints))

    def of(self, loads: FloatArray, weights: FloatArray) -> float:
        """Return the sum by the count."""
        return float(loads.sum() / len(loads))


@dataclass(frozen=True, slots=True)
class CapacityWeighted:
    """How full is the pool, where a server twice as large counts twice?

    Reads ``CAPACITY_WEIGHT`` (static): a server of which it is not known, or is 0, counts as the mean of those of which it is,
    and all alike where it is known of nobody.
    """

    @property
    def linear(self) -> bool:
        """It is."""
        return True

    def weights(self, endpoints: Endpoints) -> FloatArray:
        """Return each server's capacity."""
        weights = endpoints[CAPACITY_WEIGHT]
        known = weights > 0
        if known.all():
            return weights
        return np.where(known, weights, weights[known].mean() if known.any() else 1.0)

    def of(self, loads: FloatArray, weights: FloatArray) -> float:
        """Return the weighted mean."""
        return float((loads * weights).sum() / weights.sum())


@dataclass(frozen=True, slots=True)
class Greatest:
    """How full is the fullest server? Right where each request has its own server, so that no other can help out."""

    @property
    def linear(self) -> bool:
        """It is not."""
        return False

    def weights(self, endpoints: Endpoints) -> FloatArray:
        """Return the same for all."""
        return np.ones(len(endpoints))

    def of(self, loads: FloatArray, weights: FloatArray) -> float:
        """Return the maximum."""
        return float(loads.max())


@dataclass(frozen=True, slots=True)
class Quantile:
    """How full is the server that so large a share of the others does not exceed? Between two, linearly.

    0.9 closes when a tenth of the servers is full, however empty the rest. Source: the complaint that a mean dilutes
    (llm-d-router, issue 2173).

    >>> Quantile(0.5).of(np.array([0.0, 0.25, 9.0]), np.ones(3))
    0.25
    """

    share: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InvalidInputError("share", self.share, "0 to 1")

    @property
    def linear(self) -> bool:
        """It is not."""
        return False

    def weights(self, endpoints: Endpoints) -> FloatArray:
        """Return the same for all."""
        return np.ones(len(endpoints))

    def of(self, loads: FloatArray, weights: FloatArray) -> float:
        """Return the quantile."""
        return float(np.quantile(loads, self.share))
