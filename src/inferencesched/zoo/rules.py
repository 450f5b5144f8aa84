"""Which server do the field's rules of more than one case name?

Each rule is a scorer that gives its choice 1, and a choice of several the order that the rule leaves them in.
"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, PREFIX_MATCH, PREFIX_TOKENS, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known, minmax
from inferencesched.placement import RequestKey, preference
from inferencesched.request import InferenceRequest
from inferencesched.signals import PREDICTED_TPOT, PREDICTED_TTFT
from inferencesched.zoo.bookkeeping import HELD_BLOCKS
from inferencesched.zoo.costs import cost_of, finite

#: What sets the two rings of `DualMapScorer` apart.
_OTHER_RING = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class BusiestScorer:
    """Who has most to do? The floor below every floor: what a router does that has a sign wrong."""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(INFLIGHT_REQUESTS),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return known(minmax(endpoints[INFLIGHT_REQUESTS]))


@dataclass(frozen=True, slots=True)
class CacheAwareScorer:
    """Who has the prefix, as long as loads are even?

    With B requests in flight: if ``max B - min B > absolute`` and ``max B > relative * min B``, whoever has fewest. Else whoever has
    most of the prompt, if that is more than `threshold` of it. Else whoever's tree is smallest (``HELD_BLOCKS``).
    Source: SMG's ``cache_aware`` and its defaults; sgl-router's older ones were 0.3, 64 and 1.5.
    """

    threshold: float = 0.5
    absolute: float = 32.0
    relative: float = 1.1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InvalidInputError("threshold", self.threshold, "0 to 1")
        finite("absolute", self.absolute)
        finite("relative", self.relative)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(INFLIGHT_REQUESTS), Reads(PREFIX_MATCH), Reads(HELD_BLOCKS))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        load, match = endpoints[INFLIGHT_REQUESTS], known(endpoints[PREFIX_MATCH])
        most, least = float(np.fmax.reduce(load)), float(np.fmin.reduce(load))
        if most - least > self.absolute and most > self.relative * least:
            return cost_of(load)
        best = float(match.max())
        if best > self.threshold:
            return np.where(match == best, 1.0, 0.0)
        return cost_of(endpoints[HELD_BLOCKS])


@dataclass(frozen=True, slots=True)
class PrefixThenLoadScorer:
    """Who has most of the prompt, of those whose load is not unusual?

    If ``max B - min B > imbalance``, whoever has fewest requests in flight. Else, of the servers with some of the prefix, the one with
    most of it whose ``B <= mean + deviations * sigma``; with no such server, whoever has fewest requests.
    Source: AIBrix's ``prefix-cache`` and its defaults. sigma is the standard deviation over all servers.
    """

    imbalance: float = 8.0
    deviations: float = 1.0

    def __post_init__(self) -> None:
        finite("imbalance", self.imbalance)
        finite("deviations", self.deviations)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(INFLIGHT_REQUESTS), Reads(PREFIX_MATCH))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        load, match = endpoints[INFLIGHT_REQUESTS], known(endpoints[PREFIX_MATCH])
        if float(np.fmax.reduce(load) - np.fmin.reduce(load)) > self.imbalance:
            return cost_of(load)
        usual = (match > 0) & (load <= load.mean() + self.deviations * load.std())
        if not usual.any():
            return cost_of(load)
        best = float(match[usual].max())
        return np.where(usual & (match == best), 0.5 + 0.5 * cost_of(load), 0.0)


@dataclass(frozen=True, slots=True)
class PredictedFirstTokenScorer:
    """Who would answer first, by the forecast? Least ``PREDICTED_TTFT``: queue and own prefill.

    Mooncake's Conductor without its transfer of KV caches between servers, which needs servers that can; its early rejection is an
    admitter's. Source: Qin et al., "Mooncake" (FAST 2025), algorithm 1.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(PREDICTED_TTFT, "lower"),)

    def cost(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return seconds."""
        return endpoints[PREDICTED_TTFT]

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return cost_of(self.cost(request, endpoints, cycle))


@dataclass(frozen=True, slots=True)
class LoadGradientScorer:
    """Who is the most loaded that still meets the objectives?

    Of the servers whose predicted times are at most `ttft` and `tpot` seconds (the request's own objectives where it has some), the one
    with most requests in flight; where nobody meets them, the one with fewest. Lightly loaded servers stay free for those in a
    hurry. Source: PolyServe (arXiv 2507.17769), its load gradient; all servers are one bin here.
    """

    ttft: float = 2.0
    tpot: float = 0.025

    def __post_init__(self) -> None:
        finite("ttft", self.ttft)
        finite("tpot", self.tpot)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(PREDICTED_TTFT), Reads(PREDICTED_TPOT), Reads(INFLIGHT_REQUESTS))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        ttft = self.ttft if request.slo_ttft is None else request.slo_ttft
        tpot = self.tpot if request.slo_tpot is None else request.slo_tpot
        load = endpoints[INFLIGHT_REQUESTS]
        meets = (endpoints[PREDICTED_TTFT] <= ttft) & (endpoints[PREDICTED_TPOT] <= tpot)
        if not meets.any():
            return cost_of(load)
        return np.where(meets, 0.5 + 0.5 * known(minmax(np.where(meets, load, np.nan))), 0.0)


@dataclass(frozen=True, slots=True)
class DualMapScorer:
    """Which of the two servers that a prompt's beginning belongs to?

    Two independent rings name two candidates. The one with more of the prompt cached, unless its predicted time to first token is
    over `ttft` seconds: then the one with less prompt work in flight. Migration of hot spots is left out.
    Source: DualMap (ICLR 2026, arXiv 2602.06502), with rendezvous hashing in place of rings.
    """

    key: RequestKey = field(default_factory=lambda: RequestKey("prefix", blocks=4))
    ttft: float = 2.0

    def __post_init__(self) -> None:
        finite("ttft", self.ttft)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(PREFIX_TOKENS), Reads(PREDICTED_TTFT), Reads(INFLIGHT_TOKENS))

    def candidates(self, key: int, endpoints: Endpoints) -> tuple[int, int]:
        """Return the positions of the key's two; the same twice where there is one server."""
        if len(endpoints) == 1:
            return 0, 0
        first = int(preference(key, endpoints, weighted=False)[0])
        ring = preference(key ^ _OTHER_RING, endpoints, weighted=False)
        return first, int(ring[0] if ring[0] != first else ring[1])

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``: 1 for the choice, 0.5 for the other candidate, 0 for the rest; by load alone without a key."""
        key = self.key.of(request)
        if key is None:
            return cost_of(endpoints[INFLIGHT_TOKENS])
        one, other = self.candidates(key, endpoints)
        cached, queued = known(endpoints[PREFIX_TOKENS]), endpoints[INFLIGHT_TOKENS]
        if (cached[other], -queued[other]) > (cached[one], -queued[one]):
            one, other = other, one
        if endpoints[PREDICTED_TTFT][one] > self.ttft and queued[other] < queued[one]:
            one, other = other, one
        scores = np.zeros(len(endpoints))
        scores[other], scores[one] = 0.5, 1.0
        return scores


@dataclass(frozen=True, slots=True)
class IdleServersFilter:
    """Who has no prompt left to compute of ours? All where everybody has.

    SkyWalker pushes a request only to a server without a pending one, and holds it otherwise: holding is flow control's part
    (`ConcurrencyDetector` and its like), this is the choice among those who are free.
    Source: SkyWalker (EuroSys 2026, arXiv 2505.24095), selective pushing.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(INFLIGHT_TOKENS, "lower"),)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        free: BoolArray = endpoints[INFLIGHT_TOKENS] <= 0
        return free if free.any() else np.ones(len(endpoints), dtype=np.bool_)
