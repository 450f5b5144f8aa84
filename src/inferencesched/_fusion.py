"""How does a profile's scoring become one kernel call?

Every scorer of the library has a twin in `_kernels.profile.weighed`; a scorer of anybody else's is called as it is, checked,
and handed to the kernel as a column. The sum is made in the order of the scorers either way, so that the plain path
(`plain_scores`) and the fused one agree to the last bit.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np

from inferencesched._kernels import profile, scoring
from inferencesched._kernels._compile import lent
from inferencesched._typing import BoolArray, FloatArray, IntArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    LAST_PICKED,
    LORA_ACTIVE,
    LORA_CAPACITY,
    LORA_WAITING,
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
    LoraAffinityScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

#: Standard signals have these rows in every pool: their columns come first.
ROW: Final = Layout(STANDARD_SIGNALS).row
PICKED_ROW: Final = ROW(LAST_PICKED)
PREFIX_TOKENS_ROW: Final = ROW(PREFIX_TOKENS)
#: What a booking changes, and what of a prompt an endpoint has.
FOLD_ROWS: Final = np.array(
    [
        *map(ROW, (INFLIGHT_REQUESTS, INFLIGHT_TOKENS, CONTEXT_TOKENS)),
        PICKED_ROW,
        PREFIX_TOKENS_ROW,
        ROW(PREFIX_MATCH),
    ],
    dtype=np.int64,
)
FOLD_ROWS.setflags(write=False)


class Op(NamedTuple):
    """What does a scorer's twin compute, from which rows, with which parameters?"""

    code: int
    row: int = 0
    second: int = 0
    third: int = 0
    parameters: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def _prefix(scorer: PrefixCacheScorer) -> Op | None:
    if scorer.producer:
        return None  # a column of that producer's own: no standard row
    parameters = (scorer.match_length_weight, scorer.match_length_scale_tokens, 0.0, 0.0)
    return Op(profile.PREFIX, ROW(PREFIX_MATCH), PREFIX_TOKENS_ROW, 0, parameters)


def _token_load(scorer: TokenLoadScorer) -> Op:
    return Op(
        profile.TOKEN_LOAD, ROW(INFLIGHT_TOKENS), PREFIX_TOKENS_ROW, 0, (scorer.queue_threshold_tokens, 0.0, 0.0, 0.0)
    )


def _active(scorer: ActiveRequestScorer) -> Op:
    parameters = (scorer.idle_threshold, scorer.max_busy_score, 0.0, 0.0)
    return Op(profile.ACTIVE, ROW(INFLIGHT_REQUESTS), 0, 0, parameters)


def _lora(scorer: LoraAffinityScorer) -> Op | None:
    if scorer.distinct:
        return None
    parameters = (scorer.running, scorer.room, scorer.waiting, scorer.full)
    return Op(profile.LORA, ROW(LORA_ACTIVE), ROW(LORA_WAITING), ROW(LORA_CAPACITY), parameters)


#: By exact type: a subclass may mean something else. None where a scorer's parameters have no twin.
_TWINS: Final[Mapping[type, Callable[[Any], Op | None]]] = MappingProxyType(
    {
        QueueScorer: lambda s: Op(profile.INVERSE_MINMAX, ROW(WAITING_QUEUE_SIZE)),
        RunningRequestsScorer: lambda s: Op(profile.INVERSE_MINMAX, ROW(RUNNING_REQUESTS)),
        KvCacheUtilizationScorer: lambda s: Op(profile.COMPLEMENT, ROW(KV_CACHE_USAGE)),
        PrefixCacheScorer: _prefix,
        TokenLoadScorer: _token_load,
        ActiveRequestScorer: _active,
        LoraAffinityScorer: _lora,
    }
)


@cache
def weigher() -> Callable[[FloatArray, FloatArray, BoolArray, int, FloatArray, float], FloatArray]:
    """Return `profile.weighed` as machine code that looks at its arrays where they lie."""
    table, masks = _tables()
    return lent(profile.weighed, table, table, masks, 0, table, 0.0)


@cache
def folder() -> Callable[[FloatArray, IntArray, BoolArray, FloatArray, IntArray, int, int, int], tuple[int, int]]:
    """Return `profile.fold` as machine code that looks at its arrays where they lie."""
    table, masks = _tables()
    return lent(profile.fold, np.empty((0, 0)), FOLD_ROWS, masks, table, np.empty((0, 5), dtype=np.int64), 0, 0, 0)


@cache
def single_folder() -> Callable[..., tuple[int, int, bool]]:
    """Return `profile.fold_one` as machine code that looks at its arrays where they lie."""
    table, masks = _tables()
    slots = np.empty(0, dtype=np.intp)
    slots.setflags(write=False)
    depths, requests = np.empty(0, dtype=np.int32), np.empty((0, 5), dtype=np.int64)
    some = (depths, slots, np.empty(0, dtype=np.bool_))
    return lent(profile.fold_one, np.empty((0, 0)), FOLD_ROWS, masks, table, requests, *some, 0, 0, 0, 0, 0)


def _tables() -> tuple[FloatArray, BoolArray]:
    """Return examples of what is handed over: what is read only may be, and what is not as well."""
    table, masks = np.empty((0, 0)), np.empty((0, 0), dtype=np.bool_)
    table.setflags(write=False)
    masks.setflags(write=False)
    return table, masks


@cache
def decider() -> Callable[
    [FloatArray, FloatArray, BoolArray, FloatArray, int, int, int, int], tuple[int, int, float, int]
]:
    """Return `profile.decide` as machine code that looks at its arrays where they lie."""
    table, masks = _tables()
    return lent(profile.decide, table, table, masks, table, 0, 0, 0, 0)


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
    """Which ops, rows and parameters does a profile's scoring amount to?

    ``fused`` says whether every scorer has a twin, so that nothing but the snapshot and the request's numbers is needed.
    """

    __slots__ = ("_foreign", "code", "fused", "loras")

    #: Where nothing is to be handed over.
    NO_EXTRA: Final[FloatArray] = np.empty((0, 0), dtype=np.float64)
    NO_MASKS: Final[BoolArray] = np.empty((0, 0), dtype=np.bool_)

    def __init__(self, scorers: tuple[WeightedScorer, ...]) -> None:
        self.code: FloatArray = np.zeros((len(scorers), profile.COLUMNS), dtype=np.float64)
        self._foreign: list[Scorer] = []
        self.loras = False
        for k, weighted in enumerate(scorers):
            twin = _TWINS.get(type(weighted.scorer))
            op = None if twin is None else twin(weighted.scorer)
            if op is None:
                op = Op(profile.EXTRA, 0, len(self._foreign))
                self._foreign.append(weighted.scorer)
            self.loras |= op.code == profile.LORA
            self.code[k] = (op.code, op.row, op.second, op.third, weighted.weight, *op.parameters)
        self.fused = not self._foreign

    def totals(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return the weighted sums, ``float64[E]``: to the last bit those of `plain_totals`."""
        extra, masks = self.extra(request, endpoints, cycle), self.masks(request, endpoints)
        return weigher()(endpoints.matrix, extra, masks, 0, self.code, float(request.prompt_tokens or 0))

    def best(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> tuple[int, float]:
        """Return the position that `MaxScorePicker` would pick of those totals, and its total."""
        best, ties, total, _ = self.decide(request, endpoints, cycle, 0)
        if ties > 1:
            best, _, total, _ = self.decide(request, endpoints, cycle, int(cycle.rng.random() * ties))
        return best, total

    def decide(
        self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, nth: int
    ) -> tuple[int, int, float, int]:
        """Return the nth of the best positions, how many are tied for it, its total, and the tokens it would compute."""
        return decider()(
            endpoints.matrix,
            self.extra(request, endpoints, cycle),
            self.masks(request, endpoints),
            self.code,
            request.prompt_tokens or 0,
            PICKED_ROW,
            PREFIX_TOKENS_ROW,
            nth,
        )

    def extra(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return the scores of the scorers without a twin, ``float64[K, E]``."""
        if not self._foreign:
            return self.NO_EXTRA
        extra = np.empty((len(self._foreign), len(endpoints)))
        for k, scorer in enumerate(self._foreign):
            extra[k] = checked_score(scorer, request, endpoints, cycle)
        return extra

    def masks(self, request: InferenceRequest, endpoints: Endpoints) -> BoolArray:
        """Return where the request's adapter runs and where it waits, ``bool[2, E]``; empty if no scorer asks."""
        return endpoints.residency(request.adapter_name) if self.loras else self.NO_MASKS
