"""How does a profile's scoring become one kernel call?

Every scorer of the library has a twin in `_kernels.scoring.weighed`; a scorer of anybody else's is called as it is, checked,
and handed to the kernel as a column. The sum is made in the order of the scorers either way, so that the plain path
(`plain_scores`) and the fused one agree to the last bit.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    LAST_PICKED,
    PREFIX_MATCH,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    STANDARD_SIGNALS,
    WAITING_QUEUE_SIZE,
    Endpoints,
    Layout,
)
from inferencesched.errors import ScoreError
from inferencesched.framework import CycleState, Scorer, WeightedScorer
from inferencesched.request import InferenceRequest
from inferencesched.scorers import (
    ActiveRequestScorer,
    KvCacheUtilizationScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

#: Standard signals have these rows in every pool: their columns come first.
ROW: Final = Layout(STANDARD_SIGNALS).row
PICKED_ROW: Final = ROW(LAST_PICKED)
PREFIX_TOKENS_ROW: Final = ROW(PREFIX_TOKENS)

#: (op, row, second row, first parameter, second parameter), by exact type: a subclass may mean something else.
_TWINS: Final[dict[type, Callable[[Any], tuple[int, int, int, float, float]]]] = {
    QueueScorer: lambda s: (scoring.INVERSE_MINMAX, ROW(WAITING_QUEUE_SIZE), 0, 0.0, 0.0),
    RunningRequestsScorer: lambda s: (scoring.INVERSE_MINMAX, ROW(RUNNING_REQUESTS), 0, 0.0, 0.0),
    KvCacheUtilizationScorer: lambda s: (scoring.COMPLEMENT, ROW(KV_CACHE_USAGE), 0, 0.0, 0.0),
    PrefixCacheScorer: lambda s: (
        scoring.PREFIX,
        ROW(PREFIX_MATCH),
        PREFIX_TOKENS_ROW,
        s.match_length_weight,
        s.match_length_scale_tokens,
    ),
    TokenLoadScorer: lambda s: (
        scoring.TOKEN_LOAD,
        ROW(INFLIGHT_TOKENS),
        PREFIX_TOKENS_ROW,
        s.queue_threshold_tokens,
        0.0,
    ),
    ActiveRequestScorer: lambda s: (
        scoring.ACTIVE,
        ROW(INFLIGHT_REQUESTS),
        0,
        s.idle_threshold,
        s.max_busy_score,
    ),
}


def checked_score(scorer: Scorer, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
    """Call a scorer and hold it to its contract; `ScoreError` names what it returned and what was allowed."""
    scores = scorer.score(request, endpoints, cycle)
    allowed = f"float64[{len(endpoints)}] in [0, 1]"
    if not isinstance(scores, np.ndarray):
        raise ScoreError(scorer, f"a {type(scores).__name__}", allowed)
    if scores.shape != (len(endpoints),) or scores.dtype != np.float64:
        raise ScoreError(scorer, f"{scores.dtype}{list(scores.shape)}", allowed)
    bad = scoring.bad_score(np.ascontiguousarray(scores))
    if bad >= 0:
        raise ScoreError(scorer, f"{scores[bad]} for {endpoints.name(bad)!r}", allowed)
    return scores


def plain_scores(
    scorers: tuple[WeightedScorer, ...], request: InferenceRequest, endpoints: Endpoints, cycle: CycleState
) -> FloatArray:
    """Return every scorer's raw scores, ``float64[K, E]``: the slow, obvious twin, and what `explain` shows."""
    scores = np.empty((len(scorers), len(endpoints)))
    for k, weighted in enumerate(scorers):
        scores[k] = checked_score(weighted.scorer, request, endpoints, cycle)
    return scores


def plain_totals(scorers: tuple[WeightedScorer, ...], scores: FloatArray) -> FloatArray:
    """Return the weighted sums, ``float64[E]``, added in the order of the scorers."""
    totals = np.zeros(scores.shape[1])
    for weighted, row in zip(scorers, scores, strict=True):
        totals += weighted.weight * row
    return totals


class Program:
    """Which ops, rows and parameters does a profile's scoring amount to?"""

    __slots__ = ("_code", "_foreign", "_no_extra")

    def __init__(self, scorers: tuple[WeightedScorer, ...]) -> None:
        self._code: FloatArray = np.zeros((len(scorers), 6), dtype=np.float64)
        self._foreign: list[Scorer] = []
        self._no_extra: FloatArray = np.empty((0, 0), dtype=np.float64)
        for k, weighted in enumerate(scorers):
            twin = _TWINS.get(type(weighted.scorer))
            if twin is None:
                self._code[k] = (scoring.EXTRA, len(self._foreign), 0, weighted.weight, 0.0, 0.0)
                self._foreign.append(weighted.scorer)
            else:
                op, row, second, first, other = twin(weighted.scorer)
                self._code[k] = (op, row, second, weighted.weight, first, other)

    def totals(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return the weighted sums, ``float64[E]``: to the last bit those of `plain_totals`."""
        extra = self._extra(request, endpoints, cycle)
        return scoring.weighed(endpoints.matrix, extra, self._code, float(request.prompt_tokens or 0))

    def best(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> tuple[int, float]:
        """Return the position that `MaxScorePicker` would pick of those totals, and its total."""
        extra = self._extra(request, endpoints, cycle)
        tokens = float(request.prompt_tokens or 0)
        best, ties, total = scoring.decide(endpoints.matrix, extra, self._code, tokens, PICKED_ROW, 0)
        if ties > 1:
            nth = int(cycle.rng.random() * ties)
            best, _, total = scoring.decide(endpoints.matrix, extra, self._code, tokens, PICKED_ROW, nth)
        return best, total

    def _extra(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return the scores of the scorers that are not ours, ``float64[K, E]``."""
        if not self._foreign:
            return self._no_extra
        extra = np.empty((len(self._foreign), len(endpoints)))
        for k, scorer in enumerate(self._foreign):
            extra[k] = checked_score(scorer, request, endpoints, cycle)
        return extra
