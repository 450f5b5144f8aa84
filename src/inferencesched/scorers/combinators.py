"""What do scorers make together, beside a weighted sum?"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError, ScoreError
from inferencesched.framework import CycleState, PartialScorer, Reads, Scorer, reads_together, without_promise
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class Lexicographic:
    """Who is best by the first scorer, among those by the second, and so on?

    Scores are rounded to the nearest multiple of `resolution`, so that what is hardly different is a tie that the next
    scorer decides; at 0 they are taken as they are. The order is mapped to ranks in [0, 1]: of n places the best is 1, the next
    ``(n - 2) / (n - 1)``, the last 0; equals share a place, and all equal are 1. No sum of weights does this: there enough of the
    second outweighs the first.

    Reads what its scorers read. Which way is better is not promised, even where they do: a rank depends on the others'
    scores. An endpoint that none of the scorers has a word on has no score (0).

    >>> from inferencesched.pool import InferencePool
    >>> from inferencesched.scorers.affinity import PrefixCacheScorer
    >>> from inferencesched.scorers.load import QueueScorer
    >>> from inferencesched.endpoints import PREFIX_MATCH, WAITING_QUEUE_SIZE
    >>> pool = InferencePool()
    >>> for name in ("a", "b", "c"):
    ...     pool.join(name)
    >>> endpoints = pool.snapshot().with_columns(
    ...     {PREFIX_MATCH: np.array([0.52, 0.0, 0.5]), WAITING_QUEUE_SIZE: np.array([9.0, 0.0, 3.0])}
    ... )
    >>> cycle, request = CycleState(0.0, np.random.default_rng(0), 0), InferenceRequest(request_id="r-1")
    >>> Lexicographic((PrefixCacheScorer(), QueueScorer()), resolution=0.1).score(request, endpoints, cycle)
    array([0.5, 0. , 1. ])
    """

    scorers: tuple[Scorer, ...]
    resolution: float = 0.01

    def __post_init__(self) -> None:
        if not self.scorers:
            raise InvalidInputError("scorers", self.scorers, "at least one scorer")
        if not (isfinite(self.resolution) and 0 <= self.resolution <= 1):
            raise InvalidInputError("resolution", self.resolution, "0 to 1")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return without_promise(reads_together(self.scorers))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        keys = np.array([_checked(scorer, request, endpoints, cycle) for scorer in self.scorers])
        if self.resolution > 0:
            keys = np.rint(keys / self.resolution)
        order = np.lexsort(keys[::-1])  # worst first; the last key that it is given counts most
        differs = (np.diff(keys[:, order], axis=1) != 0).any(axis=0)
        places = np.zeros(len(endpoints))
        places[order[1:]] = np.cumsum(differs)
        last = places.max(initial=0.0)
        ranks = places / last if last > 0 else np.ones(len(endpoints))
        return np.where(self.scored(request, endpoints, cycle), ranks, 0.0)

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: on whom any of the scorers has a word."""
        anybody = np.zeros(len(endpoints), dtype=np.bool_)
        for scorer in self.scorers:
            if not isinstance(scorer, PartialScorer):
                return np.ones(len(endpoints), dtype=np.bool_)
            anybody |= scorer.scored(request, endpoints, cycle)
        return anybody


def _checked(scorer: Scorer, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
    """Return one scorer's scores; `ScoreError` names it if they are not ``float64[E]`` in [0, 1]."""
    scores = scorer.score(request, endpoints, cycle)
    allowed = f"float64[{len(endpoints)}] in [0, 1]"
    if not isinstance(scores, np.ndarray) or scores.shape != (len(endpoints),) or scores.dtype != np.float64:
        what = f"{scores.dtype}{list(scores.shape)}" if isinstance(scores, np.ndarray) else f"a {type(scores).__name__}"
        raise ScoreError(scorer, what, allowed)
    bad = scoring.bad_score(np.ascontiguousarray(scores))
    if bad >= 0:
        raise ScoreError(scorer, f"{scores[bad]} for {endpoints.name(bad)!r}", allowed)
    return scores
