"""How near to its own endpoint does a key fall?

As the filters of `inferencesched.filters.hashing`, but something to weigh against load rather than a verdict.
"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IndexArray
from inferencesched.endpoints import CAPACITY_WEIGHT, INFLIGHT_REQUESTS, Endpoints
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Reads
from inferencesched.placement import RequestKey, check_balance, has_room, preference
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class RendezvousScorer:
    """How high is each endpoint in the order of this request's key?

    ``1 - rank / replicas`` for the first `replicas` in the key's order (`inferencesched.placement.preference`), 0 for the
    rest: with 3 replicas 1, 2/3, 1/3, 0, 0... When an endpoint leaves, only those behind it move, one place up. A
    request without the key has no score. Reads ``CAPACITY_WEIGHT`` if `weighted` (static; higher is better, unknown
    is 1). Source: Thaler and Ravishankar (1998), as there.
    """

    key: RequestKey = field(default_factory=RequestKey)
    replicas: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        whole_number("replicas", self.replicas, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(CAPACITY_WEIGHT, "higher", required=False),) if self.weighted else ()

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        key = self.key.of(request)
        if key is None:
            return np.zeros(len(endpoints))
        return _ranked(preference(key, endpoints, weighted=self.weighted), self.replicas)

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: nobody for a request without the key."""
        return np.full(len(endpoints), self.key.of(request) is not None)


@dataclass(frozen=True, slots=True)
class BoundedLoadScorer:
    """How high is each endpoint in the order of this request's key, of those who have room?

    As `RendezvousScorer`, after those without room are struck out: they score 0. Room is below
    ``(1 + balance) * w / sum(w)`` of all in flight and this request, as in `BoundedLoadFilter`. A request without the
    key has no score. Reads ``INFLIGHT_REQUESTS`` (local, never stale; lower is better) and, if `weighted`,
    ``CAPACITY_WEIGHT`` (static; higher is better, unknown is 1).
    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016).
    """

    key: RequestKey = field(default_factory=RequestKey)
    balance: float = 0.25
    replicas: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        check_balance(self.balance)
        whole_number("replicas", self.replicas, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        load = Reads(INFLIGHT_REQUESTS, "lower")
        return (load, Reads(CAPACITY_WEIGHT, "higher", required=False)) if self.weighted else (load,)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        key = self.key.of(request)
        if key is None:
            return np.zeros(len(endpoints))
        order = preference(key, endpoints, weighted=self.weighted)
        room = has_room(endpoints, self.balance, weighted=self.weighted)
        return _ranked(order[room[order]], self.replicas, len(endpoints))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: nobody for a request without the key."""
        return np.full(len(endpoints), self.key.of(request) is not None)


def _ranked(order: IndexArray, replicas: int, count: int | None = None) -> FloatArray:
    """Return ``1 - rank / replicas`` for the first of `order`, ``float64[count]``, 0 for the rest."""
    scores = np.zeros(len(order) if count is None else count)
    first = order[:replicas]
    scores[first] = 1.0 - np.arange(len(first)) / replicas
    return scores
