"""Where does a request cost least, by the formulas that others have published?

Each scorer has its formula in ``cost``, as its source states it, in units of the source; the score is where a cost lies
between the greatest (0) and the least (1) of the candidates. Written with: I prompt tokens, n of them not cached at a server, Q
tokens of prompts that a server still has to compute, B requests in flight there, W waiting and R running by its own word.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Endpoints,
)
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import inverse_minmax, known
from inferencesched.request import InferenceRequest
from inferencesched.zoo.bookkeeping import ACTIVE_BLOCKS, SENT_SINCE


def cost_of(cost: FloatArray) -> FloatArray:
    """How good is each cost, beside the others'? 1 the least, 0 the greatest and the unknown, ``float64[E]``."""
    return known(inverse_minmax(cost))


def uncached(request: InferenceRequest, endpoints: Endpoints) -> FloatArray:
    """How much of the prompt must each server compute? Tokens, ``float64[E]``; unknown matches cover nothing."""
    return np.maximum(0.0, (request.prompt_tokens or 0) - known(endpoints[PREFIX_TOKENS]))


def finite(name: str, value: float, low: float = 0.0) -> None:
    """Refuse what is not a finite number of at least `low`."""
    if not (isfinite(value) and value >= low):
        raise InvalidInputError(name, value, f"a finite number of at least {low:g}")


_PREFILL = (Reads(INFLIGHT_TOKENS, "lower"), Reads(PREFIX_TOKENS, "higher", required=False))


@dataclass(frozen=True, slots=True)
class LMetricScorer:
    """Where do fewest requests wait for fewest tokens? ``(Q + n) B``, no parameters.

    An idle server costs nothing whatever it has cached. Source: LMetric (OSDI 2026, arXiv 2603.15202).
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (*_PREFILL, Reads(INFLIGHT_REQUESTS, "lower"))

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return tokens times requests."""
        return (endpoints[INFLIGHT_TOKENS] + uncached(request, endpoints)) * endpoints[INFLIGHT_REQUESTS]

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class PrefillWorkScorer:
    """Who has least to compute until this prompt is done? ``Q + n`` tokens.

    The rule breaks ties by fewest requests: put an `ActiveRequestScorer` behind it (`Lexicographic`).
    Source: LPWL, least prefill work left, of the agentic-kvc report (2026).
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return _PREFILL

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return tokens."""
        return endpoints[INFLIGHT_TOKENS] + uncached(request, endpoints)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class KvRouterScorer:
    """Who has fewest blocks to prefill and to decode? Dynamo's KV router.

    ``s max(0, (Q + I) / b - c o / (1 + g x)) + D + w B`` in blocks of b tokens: o cached blocks, D different prompt blocks in flight
    with this request (`ActiveBlocksProducer`), x the excess of prefill over the least loaded, in prompts: ``(Q - min Q) / I``.

    Parameters
    ----------
    block_size: b, tokens. credit: c, Dynamo's ``overlap_score_credit``. prefill_scale: s, ``prefill_load_scale``.
    decay: g, how fast a cached block loses worth where prefill piles up. request_weight: w, ``decode_active_request_weight``.

    A temperature is the picker's: `SoftmaxPicker`, normalised, draws as Dynamo's ``router_temperature`` does, and at next to
    none draws ties evenly as Dynamo does at 0.
    Source: ai-dynamo 1.6.1, ``lib/kv-router``.
    """

    block_size: int = 64
    credit: float = 1.0
    prefill_scale: float = 1.0
    decay: float = 0.0
    request_weight: float = 0.0

    def __post_init__(self) -> None:
        finite("block_size", self.block_size, 1)
        for name in ("credit", "prefill_scale", "decay", "request_weight"):
            finite(name, getattr(self, name))

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (*_PREFILL, Reads(ACTIVE_BLOCKS, "lower"), Reads(INFLIGHT_REQUESTS, "lower"))

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return blocks."""
        queued, prompt = endpoints[INFLIGHT_TOKENS], float(request.prompt_tokens or 0)
        credit = self.credit * known(endpoints[PREFIX_TOKENS]) / self.block_size
        if self.decay and prompt:
            credit = credit / (1.0 + self.decay * (queued - np.fmin.reduce(queued)) / prompt)
        prefill = np.maximum(0.0, (queued + prompt) / self.block_size - credit)
        return (
            self.prefill_scale * prefill + endpoints[ACTIVE_BLOCKS] + self.request_weight * endpoints[INFLIGHT_REQUESTS]
        )

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class CoordinatorScorer:
    """Whose queue is shortest, one that waits counting as four that run? ``4 (W + u) + R``.

    u is what was sent there since the server was read (`SentSinceProducer`): a client of vLLM's coordinator counts its own.
    Unscraped servers have the worst score. Source: vLLM's data-parallel coordinator client, ``v1/engine/core_client.py``.
    """

    waiting_weight: float = 4.0

    def __post_init__(self) -> None:
        finite("waiting_weight", self.waiting_weight)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        scraped = (Reads(WAITING_QUEUE_SIZE, "lower"), Reads(RUNNING_REQUESTS, "lower"))
        return (*scraped, Reads(SENT_SINCE, "lower"))

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return requests, weighted."""
        waiting = endpoints[WAITING_QUEUE_SIZE] + endpoints[SENT_SINCE]
        return self.waiting_weight * waiting + endpoints[RUNNING_REQUESTS]

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class KvBarrierScorer:
    """Who will be done first, of a queue before a cache that fills? ``(W m + Q) / r + h k / (1 - k)`` seconds.

    W waiting requests of m tokens each and our own Q in flight, at r tokens a second; k is the share of the KV cache in use: the
    wait grows without bound as it fills up, as in an M/M/1 queue. Source: SMG's ``least_load`` and its defaults.
    """

    throughput: float = 2000.0
    mean_prefill: float = 1024.0
    barrier: float = 0.15

    def __post_init__(self) -> None:
        finite("mean_prefill", self.mean_prefill)
        finite("barrier", self.barrier)
        if not (isfinite(self.throughput) and self.throughput > 0):
            raise InvalidInputError("throughput", self.throughput, "a finite number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        scraped = (Reads(WAITING_QUEUE_SIZE, "lower"), Reads(KV_CACHE_USAGE, "lower"))
        return (*scraped, Reads(INFLIGHT_TOKENS, "lower"))

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return seconds; a full cache counts as 99.9 % full."""
        usage = np.minimum(endpoints[KV_CACHE_USAGE], 0.999)
        tokens = endpoints[WAITING_QUEUE_SIZE] * self.mean_prefill + endpoints[INFLIGHT_TOKENS]
        return tokens / self.throughput + self.barrier * usage / (1.0 - usage)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class FreenessScorer:
    """Who has most room a request? Freeness ``F = (M - V) / B``, the more the better.

    M is a server's KV cache in blocks, V what its requests use of it and what those that wait will use: all that we have in flight
    there, in blocks; B requests, at least 1. Priority headroom is not modelled. ``cost`` is ``-F``.
    Source: Sun et al., "Llumnix: Dynamic Scheduling for Large Language Model Serving" (OSDI 2024).
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        size = (Reads(KV_BLOCKS), Reads(KV_BLOCK_SIZE))
        return (*size, Reads(CONTEXT_TOKENS, "lower"), Reads(INFLIGHT_REQUESTS))

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return blocks a request, less than 0 where there is room."""
        size = endpoints[KV_BLOCK_SIZE]
        used = endpoints[CONTEXT_TOKENS] / np.where(size > 0, size, np.nan)
        return (used - endpoints[KV_BLOCKS]) / np.maximum(1.0, endpoints[INFLIGHT_REQUESTS])

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))
