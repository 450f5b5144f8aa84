"""Which endpoint has least to do? An endpoint whose signal is unknown scores 0, the worst.

Formulas are the reference's (llm-d router, ``pkg/epp/framework/plugins/scheduling/scorer``), where an unscraped
endpoint counts as idle instead.
"""

from dataclasses import dataclass
from math import inf

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Endpoints,
)
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import inverse, inverse_minmax, known
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class QueueScorer:
    """Whose waiting queue is shortest, among the candidates?

    ``(max - q) / (max - min)``, 1 where all are equal. Reads ``WAITING_QUEUE_SIZE`` (scraped); lower is better.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(WAITING_QUEUE_SIZE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse_minmax(endpoints[WAITING_QUEUE_SIZE]))


@dataclass(frozen=True, slots=True)
class RunningRequestsScorer:
    """Who runs fewest requests, among the candidates?

    As `QueueScorer`, on ``RUNNING_REQUESTS`` (scraped); lower is better.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(RUNNING_REQUESTS, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse_minmax(endpoints[RUNNING_REQUESTS]))


@dataclass(frozen=True, slots=True)
class KvCacheUtilizationScorer:
    """Who has most KV cache free?

    ``1 - usage``. Reads ``KV_CACHE_USAGE`` (scraped, a fraction); lower is better.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(KV_CACHE_USAGE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse(endpoints[KV_CACHE_USAGE]))


@dataclass(frozen=True, slots=True)
class LoadAwareScorer:
    """How far is the waiting queue from full?

    0.5 with an empty queue, else ``0.5 * (1 - min(q, threshold) / threshold)``: never above 0.5, whoever the other
    candidates are. Reads ``WAITING_QUEUE_SIZE`` (scraped); lower is better. Source: llm-d router's ``load-aware-scorer``.
    """

    threshold: float = 128.0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < inf:
            raise InvalidInputError("threshold", self.threshold, "a finite number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(WAITING_QUEUE_SIZE, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]`` in [0, 0.5]."""
        return known(0.5 * inverse(endpoints[WAITING_QUEUE_SIZE], self.threshold))


@dataclass(frozen=True, slots=True)
class TokenLoadScorer:
    """Who has fewest tokens to compute, this prompt's included?

    ``1 - min(t, threshold) / threshold`` with t = ``INFLIGHT_TOKENS`` (local, never stale) and what of this prompt
    ``PREFIX_TOKENS`` (cycle) does not cover; lower is better. A prompt of unknown length adds nothing, as it would
    add the same everywhere; an unknown match covers nothing.
    """

    queue_threshold_tokens: float = 4194304.0

    def __post_init__(self) -> None:
        if not self.queue_threshold_tokens > 0:
            raise InvalidInputError("queue_threshold_tokens", self.queue_threshold_tokens, "a number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(INFLIGHT_TOKENS, "lower"), Reads(PREFIX_TOKENS, "higher", required=False))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        uncached = np.maximum(0.0, (request.prompt_tokens or 0) - known(endpoints[PREFIX_TOKENS]))
        return known(inverse(endpoints[INFLIGHT_TOKENS] + uncached, self.queue_threshold_tokens))


@dataclass(frozen=True, slots=True)
class ActiveRequestScorer:
    """Who has fewest of our requests in flight?

    1 up to `idle_threshold` requests, else ``(max - n) / max * max_busy_score``. Reads ``INFLIGHT_REQUESTS``
    (local, never stale); lower is better.
    """

    idle_threshold: float = 0.0
    max_busy_score: float = 1.0

    def __post_init__(self) -> None:
        if not self.idle_threshold >= 0:
            raise InvalidInputError("idle_threshold", self.idle_threshold, "a number of at least 0")
        if not 0 <= self.max_busy_score <= 1:
            raise InvalidInputError("max_busy_score", self.max_busy_score, "0 to 1")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(INFLIGHT_REQUESTS, "lower"),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        active = endpoints[INFLIGHT_REQUESTS]
        most = float(np.fmax.reduce(active, initial=1.0))
        busy = known((most - active) / most * self.max_busy_score)
        return np.where(active <= self.idle_threshold, 1.0, busy)
