"""Whose predicted latency suits the request's objectives?"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import INFLIGHT_REQUESTS, KV_CACHE_USAGE, PREFIX_MATCH, WAITING_QUEUE_SIZE, Endpoints
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.signals import TPOT_HEADROOM, TTFT_HEADROOM, of_producer

Strategy = Literal["least", "most"]

#: Headrooms that differ by no more than this are the same; in the unit of the columns.
_SAME = 1e-9
_STEPS = 100


@dataclass(frozen=True, slots=True)
class LatencyScorer:
    """Who meets the objectives, and with how much room to spare?

    Headroom is objective less prediction. One group of candidates is scored and everybody else gets 0:

    1. whoever meets both objectives; one without a prediction counts as meeting both exactly;
    2. if nobody does, those to whom we have sent nothing that is still in flight;
    3. else those who miss the time per token only; else the first token only; else both.

    Within the group each headroom's size is put on a scale of 0 to 1, least to most (0.5 where all are the same, and the
    other headroom then counts alone), and c is their mean by `ttft_weight` and `tpot_weight`. ``least`` fills up those
    nearest to the objective, ``(int(100 (1 - c)) + 1) / 100``; ``most`` keeps away from it, ``(int(100 c) + 1) / 100``.
    A group that misses an objective is always ranked by ``least``. At most 1; never 0 inside the group.

    Where nobody has a prediction: ``round(100 x) / 100`` of the weighted mean x of free KV cache, ``(max - q) / max`` of
    the waiting queue (1 where nobody waits) and the prefix match; unknown counts as 0.

    Reads ``TTFT_HEADROOM`` and ``TPOT_HEADROOM`` (cycle), ``INFLIGHT_REQUESTS`` (local), ``KV_CACHE_USAGE`` and
    ``WAITING_QUEUE_SIZE`` (scraped) and ``PREFIX_MATCH`` (cycle); what is better depends on the group. `producer` and
    `prefix_producer` name one of several producers of predictions and of matches. Cost: 30 us at 64 endpoints.
    Source: llm-d router's ``latency-scorer``.

    >>> from inferencesched import InferencePool
    >>> pool = InferencePool()
    >>> for name in "abc":
    ...     pool.join(name)
    >>> headroom = {TTFT_HEADROOM: [0.1, 0.3, -0.2], TPOT_HEADROOM: [0.0, 0.0, 0.0]}
    >>> endpoints = pool.snapshot().with_columns(headroom)
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> LatencyScorer().score(InferenceRequest(request_id="r"), endpoints, cycle)
    array([1.  , 0.01, 0.  ])
    """

    ttft_weight: float = 0.8
    tpot_weight: float = 0.2
    headroom_selection_strategy: Strategy = "least"
    composite_kv_weight: float = 1.0
    composite_queue_weight: float = 1.0
    composite_prefix_weight: float = 1.0
    producer: str = ""
    prefix_producer: str = ""

    def __post_init__(self) -> None:
        weights = {
            "ttft_weight": self.ttft_weight,
            "tpot_weight": self.tpot_weight,
            "composite_kv_weight": self.composite_kv_weight,
            "composite_queue_weight": self.composite_queue_weight,
            "composite_prefix_weight": self.composite_prefix_weight,
        }
        for name, value in weights.items():
            if not (isfinite(value) and value >= 0):
                raise InvalidInputError(name, value, "a finite number of at least 0")
        if self.headroom_selection_strategy not in get_args(Strategy):
            raise UnknownNameError(
                "headroom_selection_strategy", self.headroom_selection_strategy, list(get_args(Strategy))
            )

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (
            Reads(of_producer(TTFT_HEADROOM, self.producer)),
            Reads(of_producer(TPOT_HEADROOM, self.producer)),
            Reads(INFLIGHT_REQUESTS),
            Reads(KV_CACHE_USAGE),
            Reads(WAITING_QUEUE_SIZE),
            Reads(of_producer(PREFIX_MATCH, self.prefix_producer)),
        )

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        ttft = endpoints[of_producer(TTFT_HEADROOM, self.producer)]
        tpot = endpoints[of_producer(TPOT_HEADROOM, self.producer)]
        predicted = ~(np.isnan(ttft) | np.isnan(tpot))
        if not predicted.any():
            return self._composite(endpoints)
        ttft, tpot = np.where(predicted, ttft, 0.0), np.where(predicted, tpot, 0.0)
        group, meets = _group(ttft, tpot, endpoints[INFLIGHT_REQUESTS])
        scores = np.zeros(len(endpoints), dtype=np.float64)
        scores[group] = self._within(ttft[group], tpot[group], most=meets and self._prefers_most)
        return scores

    @property
    def _prefers_most(self) -> bool:
        return self.headroom_selection_strategy == "most"

    def _within(self, ttft: FloatArray, tpot: FloatArray, *, most: bool) -> FloatArray:
        """Return the scores of one group, ``float64`` of its size."""
        total = self.ttft_weight + self.tpot_weight
        alpha, beta = (self.ttft_weight / total, self.tpot_weight / total) if total > 0 else (1.0, 0.0)
        first, first_range = _scaled(np.abs(ttft))
        token, token_range = _scaled(np.abs(tpot))
        if first_range <= _SAME < token_range:
            alpha, beta = 0.0, 1.0
        elif token_range <= _SAME < first_range:
            alpha, beta = 1.0, 0.0
        combined = alpha * first + beta * token
        steps = np.trunc((combined if most else 1.0 - combined) * _STEPS) + 1.0
        return np.minimum(1.0, steps / _STEPS)

    def _composite(self, endpoints: Endpoints) -> FloatArray:
        """Return what stands in for predictions, ``float64[E]``."""
        kv, queue, prefix = self.composite_kv_weight, self.composite_queue_weight, self.composite_prefix_weight
        total = kv + queue + prefix
        kv, queue, prefix = (kv / total, queue / total, prefix / total) if total > 0 else (1.0, 0.0, 0.0)
        waiting = endpoints[WAITING_QUEUE_SIZE]
        longest = float(np.fmax.reduce(waiting, initial=0.0))
        short = (longest - waiting) / longest if longest > 0 else np.where(np.isnan(waiting), np.nan, 1.0)
        free = known(1.0 - endpoints[KV_CACHE_USAGE])
        match = known(endpoints[of_producer(PREFIX_MATCH, self.prefix_producer)])
        mean = kv * free + queue * known(short) + prefix * match
        return np.minimum(1.0, np.floor(_STEPS * mean + 0.5) / _STEPS)


def _group(ttft: FloatArray, tpot: FloatArray, inflight: FloatArray) -> tuple[BoolArray, bool]:
    """Return who is scored, ``bool[E]``, and whether they meet both objectives."""
    late, slow = ttft < 0, tpot < 0
    meets = ~(late | slow)
    if meets.any():
        return meets, True
    idle = inflight == 0
    for group in (idle, slow & ~late, late & ~slow):
        if group.any():
            return group, False
    return late & slow, False


def _scaled(sizes: FloatArray) -> tuple[FloatArray, float]:
    """Return sizes from 0, the least, to 1, the most, and how far those are apart; 0.5 where they are the same."""
    least = float(sizes.min())
    apart = float(sizes.max()) - least
    if apart <= _SAME:
        return np.full(len(sizes), 0.5), apart
    return (sizes - least) / apart, apart
