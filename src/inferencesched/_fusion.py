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
    PREFILL_THROUGHPUT,
    PREFIX_MATCH,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    STANDARD_SIGNALS,
    WAITING_QUEUE_SIZE,
    Endpoints,
    Layout,
    Signal,
)
from inferencesched.errors import ScoreError
from inferencesched.framework import CycleState, Scorer, WeightedScorer
from inferencesched.request import InferenceRequest
from inferencesched.scorers import (
    ActiveRequestScorer,
    EncoderCacheScorer,
    EndpointAttributeScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    LoadSecondsScorer,
    LoraAffinityScorer,
    MultiClusterKvCacheUtilizationScorer,
    MultiClusterPrefixCacheScorer,
    MultiClusterQueueScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
    SessionAffinityScorer,
    TokenLoadScorer,
)
from inferencesched.sessions import BoundSession
from inferencesched.signals import (
    ENCODER_MATCH,
    MULTICLUSTER_KV_CACHE_USAGE,
    MULTICLUSTER_QUEUE_SIZE,
    SESSION_BOUND,
    of_producer,
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
    """What does a scorer's twin compute, from which columns, with which parameters?"""

    code: int
    signal: Signal | None = None
    second: Signal | None = None
    third: Signal | None = None
    parameters: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


def _prefix(scorer: PrefixCacheScorer | MultiClusterPrefixCacheScorer) -> Op:
    match, tokens = (of_producer(signal, scorer.producer) for signal in (PREFIX_MATCH, PREFIX_TOKENS))
    weight = scorer.match_length_weight
    parameters = (weight, scorer.match_length_scale_tokens, 0.0, 0.0)
    return Op(profile.PREFIX, match, tokens if weight > 0.0 else None, None, parameters)


def _token_load(scorer: TokenLoadScorer) -> Op:
    return Op(profile.TOKEN_LOAD, INFLIGHT_TOKENS, PREFIX_TOKENS, None, (scorer.queue_threshold_tokens, 0.0, 0.0, 0.0))


def _active(scorer: ActiveRequestScorer) -> Op:
    return Op(profile.ACTIVE, INFLIGHT_REQUESTS, None, None, (scorer.idle_threshold, scorer.max_busy_score, 0.0, 0.0))


def _lora(scorer: LoraAffinityScorer) -> Op | None:
    if scorer.distinct:
        return None
    parameters = (scorer.running, scorer.room, scorer.waiting, scorer.full)
    return Op(profile.LORA, LORA_ACTIVE, LORA_WAITING, LORA_CAPACITY, parameters)


def _attribute(scorer: EndpointAttributeScorer) -> Op:
    lower = scorer.better == "lower"
    if scorer.fixed_range is None:
        return Op(profile.INVERSE_MINMAX if lower else profile.MINMAX, scorer.signal)
    low, high = scorer.fixed_range
    return Op(profile.PLACE, scorer.signal, None, None, (low, high - low, float(lower), 0.0))


def _session(scorer: SessionAffinityScorer) -> Op | None:
    strategy = scorer.strategy
    return Op(profile.COLUMN, of_producer(SESSION_BOUND, strategy.producer)) if type(strategy) is BoundSession else None


def _seconds(scorer: LoadSecondsScorer) -> Op | None:
    if scorer.seconds_per_context_token or scorer.kv_barrier:
        return None
    return Op(profile.SECONDS, INFLIGHT_TOKENS, PREFIX_TOKENS, PREFILL_THROUGHPUT, (scorer.horizon, 0.0, 0.0, 0.0))


#: By exact type: a subclass may mean something else. None where a scorer's parameters have no twin. Who has none here reads
#: more than columns: labels, headers, the session's token, a whole distribution of hashes.
_TWINS: Final[Mapping[type, Callable[[Any], Op | None]]] = MappingProxyType(
    {
        QueueScorer: lambda s: Op(profile.INVERSE_MINMAX, WAITING_QUEUE_SIZE),
        RunningRequestsScorer: lambda s: Op(profile.INVERSE_MINMAX, RUNNING_REQUESTS),
        KvCacheUtilizationScorer: lambda s: Op(profile.COMPLEMENT, KV_CACHE_USAGE),
        LoadAwareScorer: lambda s: Op(profile.LOAD_AWARE, WAITING_QUEUE_SIZE, None, None, (s.threshold, 0.0, 0.0, 0.0)),
        PrefixCacheScorer: _prefix,
        TokenLoadScorer: _token_load,
        ActiveRequestScorer: _active,
        LoraAffinityScorer: _lora,
        EndpointAttributeScorer: _attribute,
        LoadSecondsScorer: _seconds,
        SessionAffinityScorer: _session,
        EncoderCacheScorer: lambda s: Op(profile.COLUMN, of_producer(ENCODER_MATCH, s.producer)),
        MultiClusterQueueScorer: lambda s: Op(profile.INVERSE_MINMAX, MULTICLUSTER_QUEUE_SIZE),
        MultiClusterKvCacheUtilizationScorer: lambda s: Op(profile.COMPLEMENT, MULTICLUSTER_KV_CACHE_USAGE),
        MultiClusterPrefixCacheScorer: _prefix,
    }
)
_STANDARD: Final = Layout(STANDARD_SIGNALS)


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

    __slots__ = ("_foreign", "_ops", "_resolved", "code", "fixed", "fused", "loras")

    #: Where nothing is to be handed over.
    NO_EXTRA: Final[FloatArray] = np.empty((0, 0), dtype=np.float64)
    NO_MASKS: Final[BoolArray] = np.empty((0, 0), dtype=np.bool_)

    def __init__(self, scorers: tuple[WeightedScorer, ...]) -> None:
        self._foreign: list[Scorer] = []
        self._ops: list[tuple[Op, float]] = []
        for weighted in scorers:
            twin = _TWINS.get(type(weighted.scorer))
            op = None if twin is None else twin(weighted.scorer)
            if op is None:
                op = Op(profile.EXTRA, parameters=(float(len(self._foreign)), 0.0, 0.0, 0.0))
                self._foreign.append(weighted.scorer)
            self._ops.append((op, weighted.weight))
        self.loras = any(op.code == profile.LORA for op, _ in self._ops)
        self.fused = not self._foreign
        self.fixed = all(signal is None or signal.name in _STANDARD.rows for op, _ in self._ops for signal in op[1:4])
        self.code: FloatArray = self._for(_STANDARD) if self.fixed else np.empty((0, profile.COLUMNS))
        self._resolved: tuple[Layout, FloatArray] = (_STANDARD, self.code)

    def _for(self, layout: Layout) -> FloatArray:
        """Return the program with the rows of a layout, ``float64[K, COLUMNS]``."""
        code = np.zeros((len(self._ops), profile.COLUMNS), dtype=np.float64)
        for k, (op, weight) in enumerate(self._ops):
            rows = (0 if signal is None else layout.row(signal) for signal in (op.signal, op.second, op.third))
            code[k] = (op.code, *rows, weight, *op.parameters)
        return code

    def code_of(self, layout: Layout) -> FloatArray:
        """Return the program for a snapshot's layout: standard signals have the same rows in all of them.

        Errors: `UnknownNameError` for a pool that lacks a column, as the scorer itself has it.
        """
        if self.fixed:
            return self.code
        known, code = self._resolved
        if known is not layout:
            code = self._for(layout)
            self._resolved = (layout, code)  # at once: any thread may ask
        return code

    def totals(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return the weighted sums, ``float64[E]``: to the last bit those of `plain_totals`."""
        extra, masks = self.extra(request, endpoints, cycle), self.masks(request, endpoints)
        return weigher()(
            endpoints.matrix, extra, masks, 0, self.code_of(endpoints.layout), float(request.prompt_tokens or 0)
        )

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
            self.code_of(endpoints.layout),
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
