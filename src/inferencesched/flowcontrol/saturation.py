"""How full are the servers? 1.0 is full; more is possible.

A detector says how full each server is, an `Aggregate` makes one number of that, `Stale` says what an old word is worth. What a
`SaturationGate` adds is in `inferencesched.flowcontrol.gate`: what was sent since the last word.
"""

from dataclasses import dataclass, field
from math import inf, isfinite, nan
from typing import Final, Literal, NamedTuple, Protocol, get_args

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    OBSERVED_AT,
    WAITING_QUEUE_SIZE,
    Endpoints,
)
from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.flowcontrol.aggregates import Aggregate, Mean
from inferencesched.flowcontrol.stages import Stages
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest

Assumption = Literal["last", "saturated", "ignore"]
ConcurrencyMode = Literal["requests", "tokens", "hybrid"]


@dataclass(frozen=True, slots=True)
class Stale:
    """What is the word of a server worth that has said nothing for more than `after` seconds?

    * ``last``: what it said last, drifting to `toward`, half of the way every `half_life` seconds;
    * ``saturated``: it is full, exactly 1.0, as in llm-d, and so is one that never said anything;
    * ``ignore``: it does not count; where nobody else does either, the last word of all counts, as under ``last``.

    Under ``last`` and ``ignore`` a server that never said anything does not count, and a pool of which nobody did is full: all
    stale is not saturated, nothing known is. llm-d's `after` is 0.2: one late scrape closes the gate. Here it is 2 s, as in
    `inferencesched.staleness.StalePolicy`.
    """

    after: float = 2.0
    assume: Assumption = "last"
    half_life: float = 10.0
    toward: float = 0.5

    def __post_init__(self) -> None:
        for name, seconds in (("after", self.after), ("half_life", self.half_life)):
            if not seconds > 0:
                raise InvalidInputError(name, seconds, "seconds above 0")
        if self.assume not in get_args(Assumption):
            raise UnknownNameError("assume", self.assume, get_args(Assumption))
        if not (isfinite(self.toward) and self.toward >= 0):
            raise InvalidInputError("toward", self.toward, "a finite number of at least 0")

    def fading(self, age: float) -> float:
        """Return how much of the last word is left at this age: 1 while it is fresh."""
        return 1.0 if age <= self.after else float(2.0 ** ((self.after - age) / self.half_life))

    def judged(self, loads: FloatArray, age: FloatArray) -> FloatArray:
        """Return what counts as each server's load, ``float64[E]``; NaN where it does not count.

        >>> Stale(assume="saturated").judged(np.array([0.25, 0.25, nan]), np.array([0.0, 5.0, inf]))
        array([0.25, 1.  , 1.  ])
        >>> Stale().judged(np.array([0.25, 0.25, nan]), np.array([0.0, 12.0, inf]))
        array([0.25 , 0.375,   nan])
        """
        stale = ~(age <= self.after)
        if self.assume == "saturated":
            return np.where(stale | np.isnan(loads), 1.0, loads)
        if not stale.any():
            return loads
        if self.assume == "ignore" and not np.isnan(loads[~stale]).all():
            return np.where(stale, nan, loads)
        left = np.exp2((self.after - age[stale]) / self.half_life)
        judged = loads.copy()
        judged[stale] = self.toward + (loads[stale] - self.toward) * left
        return judged


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """When is a gate shut, that it may not flutter? From `hi` on, until the saturation is below `lo`.

    In between it stays as it was.
    """

    lo: float = 0.8
    hi: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.lo < self.hi < inf:
            raise InvalidInputError("lo", self.lo, f"at least 0, and below hi = {self.hi}")

    def shut(self, before: bool, level: float) -> bool:
        """Return whether it is shut now, where it was shut or not `before`.

        >>> [Hysteresis().shut(before, 0.9) for before in (True, False)]
        [True, False]
        """
        return level >= self.hi or (before and level >= self.lo)


class Reading(NamedTuple):
    """What is known of one server? NaN is unknown. ``slots`` is how many requests it runs at once, ``kv_tokens`` how many tokens
    its cache holds.
    """

    waiting: float = nan
    running: float = nan
    kv_usage: float = nan
    requests: float = nan
    tokens: float = nan
    slots: float = nan
    kv_tokens: float = nan

    @property
    def present(self) -> float:
        """How many requests are there, as far as is known?"""
        if self.waiting == self.waiting and self.running == self.running:
            return self.waiting + self.running
        return self.requests if self.requests == self.requests else 0.0


class SaturationDetector(Protocol):
    """How full are these servers?"""

    def saturation(self, endpoints: Endpoints, now: float) -> float:
        """Return their saturation; 1.0 where there are none, or nothing is known."""
        ...


class ProjectingDetector(SaturationDetector, Protocol):
    """How full would a server be with so much more to do? A detector that can say this can be given credit."""

    @property
    def stale(self) -> Stale:
        """What is an old word worth?"""
        ...

    @property
    def aggregate(self) -> Aggregate:
        """How do many loads become one?"""
        ...

    def told_at(self, endpoints: Endpoints) -> FloatArray:
        """Return when each server's numbers were true, ``float64[E]``; inf for numbers that are always up to date."""
        ...

    def loads(self, endpoints: Endpoints) -> FloatArray:
        """Return how full each server is, ``float64[E]``; NaN is unknown."""
        ...

    def projected(self, reading: Reading, requests: int, tokens: int) -> float:
        """Return how full a server is once so many more requests and tokens are there, or so many fewer; NaN is unknown.

        With none it is what `loads` says. More never makes it less.
        """
        ...


def saturation_of(detector: ProjectingDetector, endpoints: Endpoints, now: float) -> float:
    """How full are these servers together, by a detector's own formula? 1.0 where nothing is known."""
    loads = detector.stale.judged(detector.loads(endpoints), now - detector.told_at(endpoints))
    known = ~np.isnan(loads)
    if not known.any():
        return 1.0
    return detector.aggregate.of(loads[known], detector.aggregate.weights(endpoints)[known])


def saturation_by_stage(
    detector: SaturationDetector, endpoints: Endpoints, now: float, stages: Stages | None = None
) -> float:
    """How full is the fullest stage? Of the stages that anybody does; of the whole pool, where nobody does any.

    Source: llm-d router's stage-aware gating. Without `stages` the label is ``llm-d.ai/role``.
    """
    stages = Stages() if stages is None else stages
    return max(detector.saturation(endpoints.where(stage), now) for stage in stages.of(endpoints))


@dataclass(frozen=True, slots=True)
class UtilizationDetector:
    """How full is a server's queue, and how full its cache? Whichever is the fuller.

    ``max(waiting / queue_depth_threshold, kv / kv_cache_util_threshold)``, and `aggregate` of that; 1.0 for an empty pool and for one
    of which nothing is known. Where only one of the two is known of a server, it is that one.

    In a profile it is a filter: it keeps who is below both thresholds with `headroom` on top (0.2 is a fifth more), and is not
    stale; everybody, where nobody is. Unknown is not below a threshold.

    Reads ``WAITING_QUEUE_SIZE`` and ``KV_CACHE_USAGE`` (scraped; lower is better) and ``OBSERVED_AT``. Source: llm-d router's
    ``utilization-detector``, whose word for stale is `Stale(0.2, "saturated")`. Cost: 10 us at 64 endpoints.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> for name, waiting, usage in (("a", 2, 0.5), ("b", 10, 0.1)):
    ...     pool.join(name)
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: waiting, KV_CACHE_USAGE: usage}, now=0.0)
    >>> UtilizationDetector().saturation(pool.snapshot(), now=0.0)
    1.3125
    """

    queue_depth_threshold: float = 5.0
    kv_cache_util_threshold: float = 0.8
    headroom: float = 0.0
    stale: Stale = field(default_factory=Stale)
    aggregate: Aggregate = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if not 0 < self.queue_depth_threshold < inf:
            raise InvalidInputError("queue_depth_threshold", self.queue_depth_threshold, "requests above 0")
        if not 0 < self.kv_cache_util_threshold <= 1:
            raise InvalidInputError("kv_cache_util_threshold", self.kv_cache_util_threshold, "above 0, at most 1")
        _check_headroom(self.headroom)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(WAITING_QUEUE_SIZE, "lower"), Reads(KV_CACHE_USAGE, "lower"), Reads(OBSERVED_AT))

    def told_at(self, endpoints: Endpoints) -> FloatArray:
        """Return when each server was observed."""
        return endpoints[OBSERVED_AT]

    def loads(self, endpoints: Endpoints) -> FloatArray:
        """Return the fuller of queue and cache of each server."""
        queue = endpoints[WAITING_QUEUE_SIZE] / self.queue_depth_threshold
        return np.fmax(queue, endpoints[KV_CACHE_USAGE] / self.kv_cache_util_threshold)

    def projected(self, reading: Reading, requests: int, tokens: int) -> float:
        """Return the load with so many more: they take the free slots first, and then wait; fewer are taken off the queue.

        A server with a queue has no free slot, whatever it could run; of how many it could run nothing is known without
        `slots`, and then none are free. Tokens fill the cache, where its size is known.
        """
        queue = reading.waiting
        if requests > 0:
            free = reading.slots - reading.running if queue == 0 else 0.0
            if requests > free or free != free:
                queue += requests - free if free > 0 else requests
        elif queue + requests >= 0:
            queue += requests
        elif queue == queue:
            queue = 0.0
        usage = reading.kv_usage
        if tokens and reading.kv_tokens > 0:
            usage += tokens / reading.kv_tokens
            usage = 0.0 if usage < 0 else usage
        queue /= self.queue_depth_threshold
        usage /= self.kv_cache_util_threshold
        return queue if queue >= usage or usage != usage else usage

    def saturation(self, endpoints: Endpoints, now: float) -> float:
        """Return the saturation of these servers."""
        return saturation_of(self, endpoints, now)

    def stale_endpoints(self, endpoints: Endpoints, now: float) -> BoolArray:
        """Return who has said nothing for too long, or never, ``bool[E]``: what llm-d counts as a metric."""
        return ~(now - endpoints[OBSERVED_AT] <= self.stale.after)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: fresh, and below both thresholds with headroom; all, where nobody is."""
        more = 1.0 + self.headroom
        keep: BoolArray = endpoints[WAITING_QUEUE_SIZE] < self.queue_depth_threshold * more
        keep &= endpoints[KV_CACHE_USAGE] < self.kv_cache_util_threshold * more
        keep &= ~self.stale_endpoints(endpoints, cycle.now)
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return what it said last."""
        waiting, usage = float(endpoints[WAITING_QUEUE_SIZE][position]), float(endpoints[KV_CACHE_USAGE][position])
        age = cycle.now - float(endpoints[OBSERVED_AT][position])
        return f"{waiting:g} waiting, cache {usage:g} full, said {age:g} s ago"


_LOCAL: Final = Stale()


@dataclass(frozen=True, slots=True)
class ConcurrencyDetector:
    """How much has a server in hand of what it may have at once? Counted here, so never stale.

    * ``requests``: in flight, of `max_concurrency`;
    * ``tokens``: in flight, of `max_token_concurrency`;
    * ``hybrid``: whichever is the fuller, server by server.

    In a profile it is a filter: it keeps who is strictly below ``int(limit * (1 + headroom))``, and nobody where nobody is: a
    limit that gives way is none.

    Reads ``INFLIGHT_REQUESTS`` and ``INFLIGHT_TOKENS`` (local: what the pool has booked; lower is better). Source: llm-d
    router's ``concurrency-detector``. Cost: 8 us at 64 endpoints.
    """

    mode: ConcurrencyMode = "requests"
    max_concurrency: int = 100
    max_token_concurrency: int = 1_000_000
    headroom: float = 0.0
    aggregate: Aggregate = field(default_factory=Mean)

    def __post_init__(self) -> None:
        if self.mode not in get_args(ConcurrencyMode):
            raise UnknownNameError("mode", self.mode, get_args(ConcurrencyMode))
        for name, limit in (
            ("max_concurrency", self.max_concurrency),
            ("max_token_concurrency", self.max_token_concurrency),
        ):
            whole_number(name, limit, 1)
        _check_headroom(self.headroom)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        requests = (Reads(INFLIGHT_REQUESTS, "lower"),) if self.mode != "tokens" else ()
        return requests if self.mode == "requests" else (*requests, Reads(INFLIGHT_TOKENS, "lower"))

    @property
    def stale(self) -> Stale:
        """What is an old word worth? There is none: a server of which nothing is known does not count."""
        return _LOCAL

    def told_at(self, endpoints: Endpoints) -> FloatArray:
        """Return that the numbers are always up to date."""
        return np.full(len(endpoints), inf)

    def loads(self, endpoints: Endpoints) -> FloatArray:
        """Return the share in hand of each server."""
        if self.mode == "requests":
            return endpoints[INFLIGHT_REQUESTS] / self.max_concurrency
        tokens = endpoints[INFLIGHT_TOKENS] / self.max_token_concurrency
        if self.mode == "tokens":
            return tokens
        return np.fmax(endpoints[INFLIGHT_REQUESTS] / self.max_concurrency, tokens)

    def projected(self, reading: Reading, requests: int, tokens: int) -> float:
        """Return the share in hand with so many more; it does not go below none."""
        by_requests = _floor(reading.requests + requests) / self.max_concurrency
        if self.mode == "requests":
            return by_requests
        by_tokens = _floor(reading.tokens + tokens) / self.max_token_concurrency
        if self.mode == "tokens":
            return by_tokens
        return by_requests if by_requests >= by_tokens or by_tokens != by_tokens else by_tokens

    def saturation(self, endpoints: Endpoints, now: float) -> float:
        """Return the saturation of these servers."""
        return saturation_of(self, endpoints, now)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: strictly below the limit with headroom."""
        keep: BoolArray = np.ones(len(endpoints), dtype=np.bool_)
        if self.mode != "tokens":
            keep &= endpoints[INFLIGHT_REQUESTS] < int(self.max_concurrency * (1.0 + self.headroom))
        if self.mode != "requests":
            keep &= endpoints[INFLIGHT_TOKENS] < int(self.max_token_concurrency * (1.0 + self.headroom))
        return keep

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return what it has in hand."""
        requests, tokens = endpoints[INFLIGHT_REQUESTS][position], endpoints[INFLIGHT_TOKENS][position]
        return f"{requests:g} requests and {tokens:g} tokens in flight"


def _check_headroom(headroom: float) -> None:
    if not (isfinite(headroom) and headroom >= 0):
        raise InvalidInputError("headroom", headroom, "a finite number of at least 0")


def _floor(count: float) -> float:
    return 0.0 if count < 0 else count
