"""Which cluster should take it, where each endpoint stands for a whole pool in a cluster?

The formulas of one pool's scorers on what each cluster says of its own. A cluster that says nothing is left out of minima
and maxima, and counts as not scored rather than as bad: `scored` tells them apart, both score 0.
Source: llm-d router's multi-cluster variants.
"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import inverse, inverse_minmax, known, ratio
from inferencesched.request import InferenceRequest
from inferencesched.signals import MULTICLUSTER_KV_CACHE_USAGE, MULTICLUSTER_QUEUE_SIZE, of_producer

#: Whose prefix matches are meant where none is named.
_PRODUCER = "multicluster-approx-prefix-cache-producer"


@dataclass(frozen=True, slots=True)
class MultiClusterQueueScorer:
    """Which cluster's waiting queue is shortest, among the candidates that tell?

    ``(max - q) / (max - min)``, 1 where all are equal. Reads ``MULTICLUSTER_QUEUE_SIZE`` (scraped), which the pool must
    have been made with; lower is better.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(MULTICLUSTER_QUEUE_SIZE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse_minmax(endpoints[MULTICLUSTER_QUEUE_SIZE]))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return who told, ``bool[E]``."""
        return ~np.isnan(endpoints[MULTICLUSTER_QUEUE_SIZE])


@dataclass(frozen=True, slots=True)
class MultiClusterKvCacheUtilizationScorer:
    """Which cluster has most of its KV cache free?

    ``1 - usage``. Reads ``MULTICLUSTER_KV_CACHE_USAGE`` (scraped, a fraction), which the pool must have been made with;
    lower is better.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(MULTICLUSTER_KV_CACHE_USAGE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse(endpoints[MULTICLUSTER_KV_CACHE_USAGE]))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return who told, ``bool[E]``."""
        return ~np.isnan(endpoints[MULTICLUSTER_KV_CACHE_USAGE])


@dataclass(frozen=True, slots=True)
class MultiClusterPrefixCacheScorer:
    """Which cluster was sent most of this prompt's prefix?

    ``w * min(1, tokens / scale)**2 + (1 - w) * matched / total`` with w = `match_length_weight`, as `PrefixCacheScorer`.
    Reads ``PREFIX_MATCH`` and ``PREFIX_TOKENS`` (cycle) of `producer`; higher is better.
    """

    producer: str = _PRODUCER
    match_length_weight: float = 0.0
    match_length_scale_tokens: float = 8192.0

    def __post_init__(self) -> None:
        if not 0 <= self.match_length_weight <= 1:
            raise InvalidInputError("match_length_weight", self.match_length_weight, "0 to 1")
        if not self.match_length_scale_tokens > 0 and self.match_length_weight > 0:
            raise InvalidInputError("match_length_scale_tokens", self.match_length_scale_tokens, "a number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        tokens = of_producer(PREFIX_TOKENS, self.producer)
        longer = (Reads(tokens, "higher"),) if self.match_length_weight > 0 else ()
        return (Reads(of_producer(PREFIX_MATCH, self.producer), "higher"), *longer)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        share = known(endpoints[of_producer(PREFIX_MATCH, self.producer)])
        weight = self.match_length_weight
        if weight == 0.0:
            return share
        reach = known(ratio(endpoints[of_producer(PREFIX_TOKENS, self.producer)], self.match_length_scale_tokens))
        return weight * (reach * reach) + (1.0 - weight) * share

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return of whom what counts is known, ``bool[E]``: the match, or its length where that has a weight."""
        told = ~np.isnan(endpoints[of_producer(PREFIX_MATCH, self.producer)])
        if self.match_length_weight > 0:
            told |= ~np.isnan(endpoints[of_producer(PREFIX_TOKENS, self.producer)])
        return told
