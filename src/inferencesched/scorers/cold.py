"""Where should a prompt go that nobody has cached?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import PREFIX_MATCH, Endpoints
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest
from inferencesched.signals import COLD_RANK, of_producer


@dataclass(frozen=True, slots=True)
class NoHitLruScorer:
    """Who got a cold prompt longest ago, or never?

    0.5 for all where any candidate has any of the prompt: then others decide. Else, with n candidates, those that never
    got a cold prompt come first, in the order in which they joined the pool: ``1 - i / (n - 1)`` for the i-th; behind them
    ``max(0, 1 - (m + r) / (n - 1))`` with m of those that never did, and r the rank in the whole pool's order of last
    use. One candidate scores 1.

    Reads ``COLD_RANK`` (cycle, `inferencesched.producers.NoHitLruProducer`), that of `cold_producer` where there are
    several; lower is better, -1 and unknown are never. Reads ``PREFIX_MATCH`` (cycle), that of `producer`; unknown is no match.
    Source: llm-d router's ``no-hit-lru-scorer``, whose never-used endpoints come in the order of the candidates; a pool's
    snapshot has its members in the order in which they joined.
    """

    producer: str = ""
    cold_producer: str = ""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (
            Reads(of_producer(COLD_RANK, self.cold_producer), "lower"),
            Reads(of_producer(PREFIX_MATCH, self.producer), required=False),
        )

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        count = len(endpoints)
        match = of_producer(PREFIX_MATCH, self.producer)
        if match.name in endpoints.layout.rows and (endpoints[match] > 0.0).any():
            return np.full(count, 0.5)
        if count <= 1:
            return np.ones(count)
        ranks = endpoints[of_producer(COLD_RANK, self.cold_producer)]
        never = ~(ranks >= 0.0)
        among = np.searchsorted(np.sort(endpoints.generations[never]), endpoints.generations)
        places = np.where(never, among, never.sum() + ranks)
        return np.maximum(0.0, 1.0 - places / (count - 1))
