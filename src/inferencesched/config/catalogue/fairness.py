"""Which flow of a band goes next, and in which order a flow waits, by the names of llm-d's router.

Beside its policies stand ours, under names of their own.
"""

from typing import Any, Final, Literal

import msgspec

from inferencesched.config.spec import Kind, Nothing, Parameters, PluginSpec
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.fairness import (
    DeficitRoundRobin,
    GlobalStrict,
    LeastAttainedService,
    RoundRobin,
    StartTimeFair,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.ordering import AdaptiveLifo, EarliestDeadline, SloDeadline, WeightedShortestFirst
from inferencesched.flowcontrol.policies import FirstCome

_SWEEP: Final = 300.0


class ProgramAwareParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``lasWeightService``, ``lasWeightHeadWait``: what service and waiting count for. ``lasHalfLifeSeconds``: how fast service is forgotten.

    ``evictionTtlSeconds``: after which idle time a flow begins anew. ``evictionSweepSeconds`` has no effect: it is forgotten when it is
    looked at. ``strategy``: las.
    """

    strategy: Literal["las"] = "las"
    las_weight_service: float = 0.8
    las_weight_head_wait: float = 0.2
    las_half_life_seconds: float = 60.0
    eviction_ttl_seconds: float = 3600.0
    eviction_sweep_seconds: float = _SWEEP


class DeficitRoundRobinParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``quantum``: what a turn adds to what a flow may cost."""

    quantum: float = 4096.0


class AdaptiveLifoParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``backlog``: with more waiting in the band the newest goes first."""

    backlog: int = 100


class ShortestFirstParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``ageing``: how much cost a second of waiting makes up for. ``weights``: what requests of an objective are worth, by its name."""

    ageing: float = 100.0
    weights: dict[str, float] = msgspec.field(default_factory=dict)


def _las(parameters: ProgramAwareParameters, workshop: object) -> LeastAttainedService:
    if not parameters.eviction_sweep_seconds > 0:
        raise InvalidInputError("evictionSweepSeconds", parameters.eviction_sweep_seconds, "seconds above 0")
    return LeastAttainedService(
        parameters.las_weight_service,
        parameters.las_weight_head_wait,
        parameters.las_half_life_seconds,
        parameters.eviction_ttl_seconds,
    )


def _read_las(policy: LeastAttainedService) -> ProgramAwareParameters:
    return ProgramAwareParameters(
        las_weight_service=policy.service,
        las_weight_head_wait=policy.head_wait,
        las_half_life_seconds=policy.half_life,
        eviction_ttl_seconds=policy.idle_ttl,
    )


def _read_deadline(policy: EarliestDeadline) -> Nothing:
    if policy != EarliestDeadline():
        raise InvalidInputError("budget", policy.budget, "the default one: a configuration cannot say another")
    return Nothing()


def _plain(name: str, kind: Kind, made: Any, origin: Literal["llm-d", "own"] = "llm-d") -> PluginSpec:
    """Return the entry of a policy without parameters."""
    return PluginSpec(name, (kind,), Nothing, lambda p, w: made(), made, lambda policy: Nothing(), origin=origin)


SPECS: Final = (
    _plain("global-strict-fairness-policy", "fairness-policy", GlobalStrict),
    _plain("round-robin-fairness-policy", "fairness-policy", RoundRobin),
    PluginSpec(
        "program-aware-fairness",
        ("fairness-policy",),
        ProgramAwareParameters,
        _las,
        LeastAttainedService,
        _read_las,
    ),
    _plain("virtual-token-counter-fairness-policy", "fairness-policy", VirtualTokenCounter, "own"),
    _plain("start-time-fairness-policy", "fairness-policy", StartTimeFair, "own"),
    PluginSpec(
        "deficit-round-robin-fairness-policy",
        ("fairness-policy",),
        DeficitRoundRobinParameters,
        lambda p, w: DeficitRoundRobin(p.quantum),
        DeficitRoundRobin,
        lambda policy: DeficitRoundRobinParameters(quantum=policy.quantum),
        origin="own",
    ),
    _plain("fcfs-ordering-policy", "ordering-policy", FirstCome),
    PluginSpec(
        "edf-ordering-policy",
        ("ordering-policy",),
        Nothing,
        lambda p, w: EarliestDeadline(),
        EarliestDeadline,
        _read_deadline,
    ),
    _plain("slo-deadline-ordering-policy", "ordering-policy", SloDeadline),
    PluginSpec(
        "adaptive-lifo-ordering-policy",
        ("ordering-policy",),
        AdaptiveLifoParameters,
        lambda p, w: AdaptiveLifo(p.backlog),
        AdaptiveLifo,
        lambda policy: AdaptiveLifoParameters(backlog=policy.backlog),
        origin="own",
    ),
    PluginSpec(
        "weighted-shortest-first-ordering-policy",
        ("ordering-policy",),
        ShortestFirstParameters,
        lambda p, w: WeightedShortestFirst(p.ageing, p.weights),
        WeightedShortestFirst,
        lambda policy: ShortestFirstParameters(ageing=policy.ageing, weights=dict(policy.weights)),
        origin="own",
    ),
)
