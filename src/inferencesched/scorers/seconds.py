"""How long would it take there? For pools whose servers are not equally fast.

A count of requests or tokens means another thing on another accelerator; seconds mean the same everywhere.
"""

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import (
    CAPACITY_WEIGHT,
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    PREFILL_THROUGHPUT,
    PREFIX_TOKENS,
    Endpoints,
    Signal,
)
from inferencesched.errors import InvalidInputError, duration
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import inverse, inverse_minmax, known
from inferencesched.placement import capacities
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class LoadSecondsScorer:
    """Who could begin to answer soonest, on accelerators of any speed?

    ``1 - min(s, horizon) / horizon`` with s in seconds::

        s = (inflight_tokens + max(0, prompt - prefix_tokens)) / prefill_throughput
            + seconds_per_context_token * context_tokens
            + kv_barrier * u / (1 - u)                         u = kv_cache_usage

    Reads ``INFLIGHT_TOKENS`` (local, never stale; lower is better), ``PREFIX_TOKENS`` (cycle; higher is better, unknown covers
    nothing) and ``PREFILL_THROUGHPUT`` (static, tokens/s; higher is better); with the second term ``CONTEXT_TOKENS`` (local; lower
    is better), with the third ``KV_CACHE_USAGE`` (scraped; lower is better). A prompt of unknown length adds nothing.
    The score is absolute: who else is a candidate does not change it. An endpoint of unknown throughput, load or
    usage has no score (0); one of throughput 0 scores 0.

    Parameters
    ----------
    horizon: from how many seconds on all are equally bad.
    seconds_per_context_token: what each token held for running requests adds, as they slow a prefill's steps down; 0 leaves
        the term out. For Llama-3.1-8B on an H100 a step takes some 4e-8 s longer for each.
    kv_barrier: the wait for KV blocks at half usage, seconds; 0 leaves the term out. SMG's is 0.15.

    Source: SMG's ``least_load`` policy, ``(queued + inflight tokens) / throughput + 0.15 s * k / (1 - k)``; llm-d's issues
    1868 and 2201 ask for the like.
    """

    horizon: float = 10.0
    seconds_per_context_token: float = 0.0
    kv_barrier: float = 0.0

    def __post_init__(self) -> None:
        duration("horizon", self.horizon)
        for name, seconds in (
            ("seconds_per_context_token", self.seconds_per_context_token),
            ("kv_barrier", self.kv_barrier),
        ):
            if not (isfinite(seconds) and seconds >= 0):
                raise InvalidInputError(name, seconds, "a finite number of seconds of at least 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        reads = [
            Reads(INFLIGHT_TOKENS, "lower"),
            Reads(PREFIX_TOKENS, "higher", required=False),
            Reads(PREFILL_THROUGHPUT, "higher"),
        ]
        if self.seconds_per_context_token:
            reads.append(Reads(CONTEXT_TOKENS, "lower"))
        if self.kv_barrier:
            reads.append(Reads(KV_CACHE_USAGE, "lower"))
        return tuple(reads)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(inverse(self.seconds(request, endpoints), self.horizon))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: whose seconds are known."""
        return ~np.isnan(self.seconds(request, endpoints))

    def seconds(self, request: InferenceRequest, endpoints: Endpoints) -> FloatArray:
        """How many seconds, by endpoint? ``float64[E]``, NaN where something is unknown, inf where never."""
        uncached = np.maximum(0.0, (request.prompt_tokens or 0) - known(endpoints[PREFIX_TOKENS]))
        tokens, speed = endpoints[INFLIGHT_TOKENS] + uncached, endpoints[PREFILL_THROUGHPUT]
        moving = speed != 0.0  # unknown counts as moving: what comes out is unknown then
        seconds = np.where(moving, tokens / np.where(moving, speed, 1.0), np.where(np.isnan(tokens), np.nan, inf))
        if self.seconds_per_context_token:
            seconds = seconds + self.seconds_per_context_token * endpoints[CONTEXT_TOKENS]
        if self.kv_barrier:
            usage = endpoints[KV_CACHE_USAGE]
            full = usage >= 1.0
            barrier = np.where(full, inf, usage / np.where(full, 1.0, 1.0 - usage))
            seconds = seconds + self.kv_barrier * barrier
        return seconds


@dataclass(frozen=True, slots=True)
class CapacityScaledScorer:
    """Who has least to do for its size?

    ``(load + step) / weight``, the least of which is best. Compared with the other candidates,
    ``(max - x) / (max - min)`` and 1 where all are equal, or with `full`, ``1 - min(x, full) / full``. Reads `signal` (lower
    is better; as stale as it is) and ``CAPACITY_WEIGHT`` (static; higher is better, unknown is 1). A weight of 0 scores 0:
    nothing more is to go there. An endpoint whose load is unknown has no score (0).

    Parameters
    ----------
    signal: what counts as load.
    step: what this request adds to it, in its unit, so that of two idle endpoints the greater is the better.
    full: which load for each unit of capacity counts as full; None compares with the other candidates.

    Source: the shortest expected delay of Linux's IPVS (``sed``), ``(connections + 1) / weight``.
    """

    signal: Signal = INFLIGHT_REQUESTS
    step: float = 1.0
    full: float | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.step) and self.step >= 0):
            raise InvalidInputError("step", self.step, "a finite number of at least 0")
        if self.full is not None and not (isfinite(self.full) and self.full > 0):
            raise InvalidInputError("full", self.full, "a finite number above 0, or None")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(self.signal, "lower"), Reads(CAPACITY_WEIGHT, "higher", required=False))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        weights = capacities(endpoints)
        open_ = weights > 0.0
        scaled = np.where(open_, (endpoints[self.signal] + self.step) / np.where(open_, weights, 1.0), np.nan)
        return known(inverse_minmax(scaled) if self.full is None else inverse(scaled, self.full))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: whose load is known."""
        return ~np.isnan(endpoints[self.signal])
