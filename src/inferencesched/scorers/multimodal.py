"""Who need not look at the request's pictures again?"""

from dataclasses import dataclass

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.signals import ENCODER_MATCH, of_producer


@dataclass(frozen=True, slots=True)
class EncoderCacheScorer:
    """Who has most of the request's pictures, videos and sounds in its encoder cache, by size?

    The share itself; unknown is 0, as for a request without any. Reads ``ENCODER_MATCH`` (cycle, a fraction), that of
    `producer` where several producers fill it; higher is better.
    Source: llm-d router's ``mm-embeddings-cache-scorer``.
    """

    producer: str = ""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(of_producer(ENCODER_MATCH, self.producer), "higher"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(endpoints[of_producer(ENCODER_MATCH, self.producer)])
