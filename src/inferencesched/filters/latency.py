"""Which endpoints would serve the request in time, and is a cached prefix worth the wait?"""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Literal, get_args

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import INFLIGHT_TOKENS, PREFIX_MATCH, Endpoints
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.signals import PREDICTED_TTFT, TPOT_HEADROOM, TTFT_HEADROOM, of_producer

TtftSource = Literal["prefillThroughput", "latencyPredictor"]


@dataclass(frozen=True, slots=True)
class SloHeadroomTierFilter:
    """Who is predicted to meet both objectives?

    Keeps those whose headrooms are both at least 0; with probability `epsilon_explore_neg` the others instead, so that
    they get a chance to show that they have recovered. An endpoint without a prediction is one of the others. Keeps
    all where nobody has a prediction, where one side is empty, and of one candidate; so it never empties.

    Reads ``TTFT_HEADROOM`` and ``TPOT_HEADROOM`` (cycle, seconds); higher is better. `producer` names one of several
    producers of them. Draws from ``cycle.rng`` where both sides have somebody. Source: llm-d router's
    ``slo-headroom-tier-filter``.
    """

    epsilon_explore_neg: float = 0.01
    producer: str = ""

    def __post_init__(self) -> None:
        _share("epsilon_explore_neg", self.epsilon_explore_neg)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Higher is better as long as nobody explores."""
        better: Literal["higher", ""] = "" if self.epsilon_explore_neg else "higher"
        return (
            Reads(of_producer(TTFT_HEADROOM, self.producer), better),
            Reads(of_producer(TPOT_HEADROOM, self.producer), better),
        )

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        ttft = endpoints[of_producer(TTFT_HEADROOM, self.producer)]
        tpot = endpoints[of_producer(TPOT_HEADROOM, self.producer)]
        meets: BoolArray = (ttft >= 0) & (tpot >= 0)
        if len(endpoints) <= 1 or meets.all() or not meets.any():
            return np.ones(len(endpoints), dtype=np.bool_)
        return ~meets if cycle.rng.random() < self.epsilon_explore_neg else meets


@dataclass(frozen=True, slots=True)
class PrefixCacheAffinityFilter:
    """Who has the prefix, as long as going there does not cost too much time to first token?

    Keeps the *sticky* endpoints, those with at least `affinity_threshold` of the prompt cached, unless the quickest of
    them is behind the quickest of the others by more than `max_ttft_penalty_ms`; then, and where nobody is sticky, all
    are kept: it never empties. A threshold of 0 or less turns it off, a penalty of 0 sticks at any price, and with
    probability `exploration_probability` all are kept, so that prefixes spread.

    Time to first token is what `ttft_source` says: ``prefillThroughput`` is prompt tokens in flight over
    `peak_prefill_throughput` (tokens/s; the default was measured for a 32B model on two H100), ``latencyPredictor`` is
    ``PREDICTED_TTFT``. Where that is unknown, an endpoint is never the quickest of its side.

    Reads ``PREFIX_MATCH`` (cycle), ``INFLIGHT_TOKENS`` (local) or ``PREDICTED_TTFT`` (cycle). `prefix_producer` and
    `latency_producer` name one of several producers. What is better depends on which side an endpoint is. Scorers behind
    it should weigh load only: a weighted prefix score would undo the release. Source: llm-d router's
    ``prefix-cache-affinity-filter``.
    """

    affinity_threshold: float = 0.8
    exploration_probability: float = 0.0
    max_ttft_penalty_ms: float = 18_000.0
    ttft_source: TtftSource = "prefillThroughput"
    peak_prefill_throughput: float = 15_928.0
    prefix_producer: str = ""
    latency_producer: str = ""

    def __post_init__(self) -> None:
        if not self.affinity_threshold <= 1:
            raise InvalidInputError("affinity_threshold", self.affinity_threshold, "at most 1; 0 or less turns it off")
        _share("exploration_probability", self.exploration_probability)
        if not (isfinite(self.max_ttft_penalty_ms) and self.max_ttft_penalty_ms >= 0):
            allowed = "a finite number of at least 0; 0 sticks at any price"
            raise InvalidInputError("max_ttft_penalty_ms", self.max_ttft_penalty_ms, allowed)
        if self.ttft_source not in get_args(TtftSource):
            raise UnknownNameError("ttft_source", self.ttft_source, list(get_args(TtftSource)))
        if not (isfinite(self.peak_prefill_throughput) and self.peak_prefill_throughput >= 0):
            allowed = "a finite number of at least 0"
            raise InvalidInputError("peak_prefill_throughput", self.peak_prefill_throughput, allowed)
        if not self.peak_prefill_throughput and self.max_ttft_penalty_ms and not self._predicts:
            allowed = "a number above 0 where ttft_source is 'prefillThroughput'"
            raise InvalidInputError("peak_prefill_throughput", self.peak_prefill_throughput, allowed)

    @property
    def _predicts(self) -> bool:
        return self.ttft_source == "latencyPredictor"

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Those of the gate only where there is one."""
        prefix = Reads(of_producer(PREFIX_MATCH, self.prefix_producer))
        if not self.max_ttft_penalty_ms:
            return (prefix,)
        return (
            prefix,
            Reads(of_producer(PREDICTED_TTFT, self.latency_producer) if self._predicts else INFLIGHT_TOKENS),
        )

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        everybody = np.ones(len(endpoints), dtype=np.bool_)
        if len(endpoints) <= 1 or self.affinity_threshold <= 0:
            return everybody
        if self.exploration_probability and cycle.rng.random() < self.exploration_probability:
            return everybody
        share = known(endpoints[of_producer(PREFIX_MATCH, self.prefix_producer)])
        sticky: BoolArray = share >= self.affinity_threshold
        if sticky.all() or not sticky.any():
            return everybody
        if self.max_ttft_penalty_ms:
            ttft = known(self._ttft_ms(endpoints), inf)
            quickest, elsewhere = float(ttft[sticky].min()), float(ttft[~sticky].min())
            behind = round(quickest - elsewhere, 6)  # to the nanosecond: columns are seconds
            if behind > self.max_ttft_penalty_ms:  # both unknown: no number, and no reason to leave
                return everybody
        return sticky

    def _ttft_ms(self, endpoints: Endpoints) -> FloatArray:
        """Return each endpoint's time to first token, ms, NaN where it is unknown."""
        if self._predicts:
            return endpoints[of_producer(PREDICTED_TTFT, self.latency_producer)] * 1e3
        return endpoints[INFLIGHT_TOKENS] / self.peak_prefill_throughput * 1e3


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InvalidInputError(name, value, "0 to 1")
