"""Which sheddable requests are turned away, the more the fuller the servers are?"""

from dataclasses import dataclass
from math import inf

import numpy as np

from inferencesched.endpoints import KV_CACHE_USAGE, WAITING_QUEUE_SIZE, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Denial, Reads
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class ProbabilisticAdmitter:
    """Which sheddable requests are turned away, the more the fuller the servers are?

    Only those below priority 0, with probability ``min(k * saturation ** power, 1)``. Saturation is the mean over endpoints of
    ``max(queue / queue_depth, kv / kv_cache_util)``; an endpoint of which nothing is known counts as 1. With the defaults everybody
    sheddable is turned away from a saturation of 0.32 on. A pool without endpoints turns nobody away: that is for others to say.
    Source: llm-d router's ``probabilistic-admitter``.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a")
    >>> pool.observe("a", {WAITING_QUEUE_SIZE: 4.0, KV_CACHE_USAGE: 0.1}, now=0.0)
    >>> cycle = CycleState(0.0, np.random.default_rng(7), 0)
    >>> ProbabilisticAdmitter().admit(InferenceRequest(request_id="r", priority=-1), pool.snapshot(), cycle).status
    429
    >>> ProbabilisticAdmitter().admit(InferenceRequest(request_id="r"), pool.snapshot(), cycle) is None
    True
    """

    queue_depth: float = 5.0
    kv_cache_util: float = 0.8
    power: float = 5.0
    k: float = 300.0

    def __post_init__(self) -> None:
        for name in ("queue_depth", "kv_cache_util", "power", "k"):
            value = getattr(self, name)
            if not 0 < value < inf:
                raise InvalidInputError(name, value, "a finite number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does it go by?"""
        return Reads(WAITING_QUEUE_SIZE, "lower"), Reads(KV_CACHE_USAGE, "lower")

    def saturation(self, endpoints: Endpoints) -> float:
        """Return how full the servers are, 0 without any."""
        if not len(endpoints):
            return 0.0
        load = np.fmax(endpoints[WAITING_QUEUE_SIZE] / self.queue_depth, endpoints[KV_CACHE_USAGE] / self.kv_cache_util)
        return float(np.where(np.isnan(load), 1.0, load).mean())

    def admit(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Denial | None:
        """Return why not, or None; draws for a sheddable request only."""
        if request.priority >= 0 or not len(endpoints):
            return None
        probability = min(self.k * self.saturation(endpoints) ** self.power, 1.0)
        if cycle.rng.random() < probability:
            return Denial(f"sheddable, and the servers are full (turned away with probability {probability:.3g})")
        return None
