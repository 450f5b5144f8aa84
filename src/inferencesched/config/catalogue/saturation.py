"""Saturation detectors and limits of usage, by the names of llm-d's router.

A detector is a filter too: in a profile it keeps endpoints with room. ``staleEndpoints`` and what is behind it are ours; without
them a detector is what it is in llm-d.
"""

from typing import Final, Literal

from inferencesched.config.spec import Nothing, Parameters, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.aggregates import Aggregate, CapacityWeighted, Greatest, Mean, Quantile
from inferencesched.flowcontrol.limits import PriorityHoldback, SoftReflectiveCeiling
from inferencesched.flowcontrol.policies import StaticLimit
from inferencesched.flowcontrol.saturation import ConcurrencyDetector, Stale, UtilizationDetector
from inferencesched.prefix.parameters import go_duration

AggregateName = Literal["mean", "capacity", "max", "quantile"]


class UtilizationDetectorParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``queueDepthThreshold``, ``kvCacheUtilThreshold``: where a server is full. ``metricsStalenessThreshold``: when its word is old.

    ``headroom``: how much above the thresholds the filter still keeps. Ours: ``staleEndpoints`` (saturated, ignore, last) is what an old
    word counts, ``staleHalfLife`` and ``staleToward`` how it fades under the last two; ``aggregate`` (mean, capacity, max, quantile) is how
    servers make a pool, ``quantile`` which one.
    """

    queue_depth_threshold: int = 5
    kv_cache_util_threshold: float = 0.8
    metrics_staleness_threshold: str = "200ms"
    headroom: float = 0.0
    stale_endpoints: Literal["saturated", "ignore", "last"] = "saturated"
    stale_half_life: str = "10s"
    stale_toward: float = 0.5
    aggregate: AggregateName = "mean"
    quantile: float = 0.9


class ConcurrencyDetectorParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``concurrencyMode``: requests, tokens or hybrid. ``maxConcurrency``, ``maxTokenConcurrency``: where a server is full.

    ``headroom``: how much above that the filter still keeps. ``inFlightLoadProducerName`` has no effect: what is in flight is the pool's
    own count. Ours: ``aggregate`` and ``quantile``, as of the utilization detector.
    """

    concurrency_mode: Literal["requests", "tokens", "hybrid"] = "requests"
    max_concurrency: int = 100
    max_token_concurrency: int = 1_000_000
    headroom: float = 0.0
    in_flight_load_producer_name: str = ""
    aggregate: AggregateName = "mean"
    quantile: float = 0.9


class StaticLimitParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``threshold``: up to which saturation every band dispatches."""

    threshold: float = 1.0


class HoldbackParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``minCeiling``: for the lowest band. ``maxCeiling``: for the highest. ``domain``: rank or value. ``shape``: linear."""

    min_ceiling: float
    max_ceiling: float = 1.0
    domain: Literal["rank", "value"] = "rank"
    shape: Literal["linear"] = "linear"


def seconds(parameter: str, text: str) -> float:
    """Return a duration as seconds; `InvalidInputError` for what is none.

    >>> seconds("metricsStalenessThreshold", "200ms")
    0.2
    """
    found = go_duration(text)
    if found is None:
        raise InvalidInputError(parameter, text, "a duration, as in 200ms")
    return found


def duration(value: float) -> str:
    """Return seconds as a duration that reads as the same.

    >>> duration(0.2), duration(2.0)
    ('0.2s', '2s')
    """
    return f"{value:.12f}".rstrip("0").rstrip(".") + "s"


def _aggregate(name: AggregateName, share: float) -> Aggregate:
    plain: dict[AggregateName, Aggregate] = {"mean": Mean(), "capacity": CapacityWeighted(), "max": Greatest()}
    return plain[name] if name in plain else Quantile(share)


def _name_of(aggregate: Aggregate) -> tuple[AggregateName, float]:
    """Return how a configuration says an aggregate."""
    match aggregate:
        case Mean():
            return "mean", 0.9
        case CapacityWeighted():
            return "capacity", 0.9
        case Greatest():
            return "max", 0.9
        case Quantile():
            return "quantile", aggregate.share
    raise InvalidInputError("aggregate", aggregate, "one of the library's: a configuration cannot say another")


def _utilization(parameters: UtilizationDetectorParameters, workshop: Workshop) -> UtilizationDetector:
    return UtilizationDetector(
        parameters.queue_depth_threshold,
        parameters.kv_cache_util_threshold,
        parameters.headroom,
        Stale(
            seconds("metricsStalenessThreshold", parameters.metrics_staleness_threshold),
            parameters.stale_endpoints,
            seconds("staleHalfLife", parameters.stale_half_life),
            parameters.stale_toward,
        ),
        _aggregate(parameters.aggregate, parameters.quantile),
    )


def _read_utilization(detector: UtilizationDetector) -> UtilizationDetectorParameters:
    threshold = detector.queue_depth_threshold
    if threshold != int(threshold):
        raise InvalidInputError(
            "queue_depth_threshold", threshold, "a whole number: a configuration cannot say another"
        )
    aggregate, share = _name_of(detector.aggregate)
    usual = UtilizationDetectorParameters()
    after = detector.stale.after
    return UtilizationDetectorParameters(
        queue_depth_threshold=int(threshold),
        kv_cache_util_threshold=detector.kv_cache_util_threshold,
        metrics_staleness_threshold=_said(after, usual.metrics_staleness_threshold),
        headroom=detector.headroom,
        stale_endpoints=detector.stale.assume,
        stale_half_life=_said(detector.stale.half_life, usual.stale_half_life),
        stale_toward=detector.stale.toward,
        aggregate=aggregate,
        quantile=share,
    )


def _said(value: float, usual: str) -> str:
    """Return a duration in the usual words, where it is the usual one."""
    return usual if go_duration(usual) == value else duration(value)


def _concurrency(parameters: ConcurrencyDetectorParameters, workshop: Workshop) -> ConcurrencyDetector:
    return ConcurrencyDetector(
        parameters.concurrency_mode,
        parameters.max_concurrency,
        parameters.max_token_concurrency,
        parameters.headroom,
        _aggregate(parameters.aggregate, parameters.quantile),
    )


def _read_concurrency(detector: ConcurrencyDetector) -> ConcurrencyDetectorParameters:
    aggregate, share = _name_of(detector.aggregate)
    return ConcurrencyDetectorParameters(
        concurrency_mode=detector.mode,
        max_concurrency=detector.max_concurrency,
        max_token_concurrency=detector.max_token_concurrency,
        headroom=detector.headroom,
        aggregate=aggregate,
        quantile=share,
    )


def _holdback(parameters: HoldbackParameters, workshop: Workshop) -> PriorityHoldback:
    return PriorityHoldback(parameters.min_ceiling, parameters.max_ceiling, parameters.domain)


def _read_holdback(policy: PriorityHoldback) -> HoldbackParameters:
    return HoldbackParameters(min_ceiling=policy.min_ceiling, max_ceiling=policy.max_ceiling, domain=policy.domain)


SPECS: Final = (
    PluginSpec(
        "utilization-detector",
        ("saturation-detector", "filter"),
        UtilizationDetectorParameters,
        _utilization,
        UtilizationDetector,
        _read_utilization,
    ),
    PluginSpec(
        "concurrency-detector",
        ("saturation-detector", "filter"),
        ConcurrencyDetectorParameters,
        _concurrency,
        ConcurrencyDetector,
        _read_concurrency,
    ),
    PluginSpec(
        "static-usage-limit-policy",
        ("usage-limit-policy",),
        StaticLimitParameters,
        lambda p, w: StaticLimit(p.threshold),
        StaticLimit,
        lambda limit: StaticLimitParameters(threshold=limit.ceiling),
    ),
    PluginSpec(
        "priority-holdback-policy",
        ("usage-limit-policy",),
        HoldbackParameters,
        _holdback,
        PriorityHoldback,
        _read_holdback,
        stability="alpha",
    ),
    PluginSpec(
        "soft-reflective-ceiling-policy",
        ("usage-limit-policy",),
        Nothing,
        lambda p, w: SoftReflectiveCeiling(),
        SoftReflectiveCeiling,
        lambda policy: Nothing(),
        stability="alpha",
    ),
)
