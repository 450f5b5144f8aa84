"""Filters and scorers of any signal, by the names of llm-d's router, where signals are attributes of endpoints."""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Final, Literal

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    KV_CACHE_USAGE,
    RUNNING_REQUESTS,
    STANDARD_SIGNALS,
    WAITING_QUEUE_SIZE,
    Signal,
)
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.filters.attributes import Comparison, EndpointAttributeFilter
from inferencesched.filters.load import UtilizationFilter
from inferencesched.scorers.attributes import EndpointAttributeScorer
from inferencesched.signals import MULTICLUSTER_KV_CACHE_USAGE, MULTICLUSTER_QUEUE_SIZE, of_producer

#: Who fills an attribute unless another producer is named.
DEFAULT_PRODUCER: Final = "core-metrics-extractor"
#: llm-d's attributes that are signals of ours under another name.
ATTRIBUTES: Final[Mapping[str, Signal]] = MappingProxyType(
    {
        "llm-d.ai/multicluster-queue-size": MULTICLUSTER_QUEUE_SIZE,
        "llm-d.ai/multicluster-kv-cache-utilization": MULTICLUSTER_KV_CACHE_USAGE,
        **{signal.name: signal for signal in STANDARD_SIGNALS},
    }
)
Metric = Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]
#: What a ``utilization-filter`` calls the signals that it knows.
METRICS: Final[Mapping[Metric, Signal]] = MappingProxyType(
    {
        "active-requests": INFLIGHT_REQUESTS,
        "running-requests": RUNNING_REQUESTS,
        "waiting-queue": WAITING_QUEUE_SIZE,
        "kv-cache-utilization": KV_CACHE_USAGE,
    }
)


def signal_of(parameter: str, attribute: str, producer: str | None = None) -> Signal:
    """Which signal is an attribute of llm-d, as `producer` fills it? None is its usual one, "" any.

    The signal may be negative, and has no unit: nobody said. Errors: `InvalidInputError` for an empty name, and for
    ``Attribute/Producer`` in one word, which nothing would ever fill.

    >>> signal_of("attribute", "GPUUtilization", "dcgm-extractor")
    Signal('GPUUtilization@dcgm-extractor')
    """
    if not attribute:
        raise InvalidInputError(parameter, attribute, "the name of an attribute: it is required")
    if producer is None and "/" in attribute:
        name, _, filler = attribute.rpartition("/")
        words = f'split it into attribute: "{name}" and producer: "{filler}"'
        raise InvalidInputError(parameter, attribute, f'a name without "/": {words}, or say producer: "" for any')
    signal = ATTRIBUTES.get(attribute) or Signal(attribute, low=-inf)
    return signal if producer in (None, "", DEFAULT_PRODUCER) else of_producer(signal, producer)


def attribute_of(signal: Signal) -> tuple[str, str | None]:
    """Return the attribute and the producer that `signal_of` makes this signal of."""
    name, _, producer = signal.name.partition("@")
    known = next((attribute for attribute, each in ATTRIBUTES.items() if each == Signal(name)), name)
    return known, producer or ("" if "/" in known else None)


class ThresholdParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``operator`` and ``value``: what the attribute is compared with, and how."""

    operator: str = ""
    value: float = 0.0


class FilterAlgorithmParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``type``: threshold, so far the only one; ``threshold``: its own parameters."""

    type: str = ""
    threshold: ThresholdParameters | None = None


class AttributeFilterParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``attribute`` and ``producer`` name the signal; ``onMissing``: Pass or Fail; ``fallbackOnEmpty``; ``algorithm``."""

    attribute: str = ""
    producer: str | None = None
    on_missing: str = "Pass"
    fallback_on_empty: bool = False
    algorithm: FilterAlgorithmParameters = FilterAlgorithmParameters()


class FixedRangeParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``min`` and ``max`` of the range."""

    min: float = 0.0
    max: float = 0.0


class AdaptiveRangeParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The range is that of the candidates: there is nothing to say."""


class NormalizationParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``fixedRange`` or ``adaptiveRange``, the latter if neither."""

    fixed_range: FixedRangeParameters | None = None
    adaptive_range: AdaptiveRangeParameters | None = None


class ScorerAlgorithmParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``type``: linear_lower_is_better or linear_higher_is_better; ``normalization``: of which range."""

    type: str = ""
    normalization: NormalizationParameters = NormalizationParameters()


class AttributeScorerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``attributeKey`` and ``producer`` name the signal; ``algorithm``."""

    attribute_key: str = ""
    producer: str | None = None
    algorithm: ScorerAlgorithmParameters = ScorerAlgorithmParameters()


class ConditionParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``metric``: active-requests, running-requests, waiting-queue or kv-cache-utilization; ``maxValue``: the most that passes."""

    metric: Metric
    max_value: float


class UtilizationParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``conditions``, at least one; ``fallbackOnEmpty``; ``inFlightLoadProducerName`` is read over: the pool counts itself."""

    conditions: tuple[ConditionParameters, ...] = ()
    fallback_on_empty: bool = False
    in_flight_load_producer_name: str = ""


def _filter(p: AttributeFilterParameters, workshop: Workshop) -> EndpointAttributeFilter:
    signal = signal_of("attribute", p.attribute, p.producer)
    on_missing: Literal["Pass", "Fail"]
    if p.on_missing in ("", "Pass"):
        on_missing = "Pass"
    elif p.on_missing == "Fail":
        on_missing = "Fail"
    else:
        raise UnknownNameError("onMissing", p.on_missing, ("Pass", "Fail"))
    if p.algorithm.type != "threshold":
        raise UnknownNameError("algorithm.type", p.algorithm.type, ("threshold",))
    threshold = p.algorithm.threshold
    if threshold is None:
        raise InvalidInputError("algorithm.threshold", None, "an operator and a value: it is required")
    for known in _COMPARISONS:
        if threshold.operator == known:
            return EndpointAttributeFilter(signal, known, threshold.value, on_missing, p.fallback_on_empty)
    raise UnknownNameError("algorithm.threshold.operator", threshold.operator, _COMPARISONS)


_COMPARISONS: Final[tuple[Comparison, ...]] = (
    "LessThan",
    "LessThanOrEqual",
    "GreaterThan",
    "GreaterThanOrEqual",
    "Equal",
    "NotEqual",
)


def _read_filter(plugin: EndpointAttributeFilter) -> AttributeFilterParameters:
    attribute, producer = attribute_of(plugin.signal)
    threshold = ThresholdParameters(operator=plugin.comparison, value=plugin.value)
    return AttributeFilterParameters(
        attribute=attribute,
        producer=producer,
        on_missing=plugin.on_missing,
        fallback_on_empty=plugin.fallback_on_empty,
        algorithm=FilterAlgorithmParameters(type="threshold", threshold=threshold),
    )


def _scorer(p: AttributeScorerParameters, workshop: Workshop) -> EndpointAttributeScorer:
    signal = signal_of("attributeKey", p.attribute_key, p.producer)
    way = p.algorithm.type
    if way not in _WAYS:
        raise UnknownNameError("algorithm.type", way, tuple(_WAYS))
    ranges = p.algorithm.normalization
    if ranges.fixed_range is not None and ranges.adaptive_range is not None:
        raise InvalidInputError("algorithm.normalization", "both", "fixedRange or adaptiveRange, at most one of them")
    fixed = ranges.fixed_range
    if fixed is None:
        return EndpointAttributeScorer(signal, _WAYS[way])
    if not fixed.min < fixed.max:
        where = "algorithm.normalization.fixedRange"
        raise InvalidInputError(where, f"min {fixed.min:g}, max {fixed.max:g}", "min < max")
    return EndpointAttributeScorer(signal, _WAYS[way], (fixed.min, fixed.max))


_WAYS: Final[Mapping[str, Literal["lower", "higher"]]] = MappingProxyType(
    {"linear_lower_is_better": "lower", "linear_higher_is_better": "higher"}
)


def _read_scorer(plugin: EndpointAttributeScorer) -> AttributeScorerParameters:
    attribute, producer = attribute_of(plugin.signal)
    limits = plugin.fixed_range
    fixed = None if limits is None else FixedRangeParameters(min=limits[0], max=limits[1])
    return AttributeScorerParameters(
        attribute_key=attribute,
        producer=producer,
        algorithm=ScorerAlgorithmParameters(
            type=f"linear_{plugin.better}_is_better", normalization=NormalizationParameters(fixed_range=fixed)
        ),
    )


def _utilization(p: UtilizationParameters, workshop: Workshop) -> UtilizationFilter:
    if not p.conditions:
        raise InvalidInputError("conditions", [], "at least one metric and its maxValue")
    for i, each in enumerate(p.conditions):
        signal = METRICS[each.metric]
        if not signal.low <= each.max_value <= signal.high:
            raise InvalidInputError(f"conditions[{i}].maxValue", each.max_value, f"{signal.low:g} to {signal.high:g}")
    limits = tuple((METRICS[each.metric], each.max_value) for each in p.conditions)
    return UtilizationFilter(limits, p.fallback_on_empty)


def _read_utilization(plugin: UtilizationFilter) -> UtilizationParameters:
    names = {signal: name for name, signal in METRICS.items()}
    for signal, _ in plugin.limits:
        if signal not in names:
            raise UnknownNameError("limits", signal.name, [each.name for each in names])
    return UtilizationParameters(
        conditions=tuple(
            ConditionParameters(metric=names[signal], max_value=maximum) for signal, maximum in plugin.limits
        ),
        fallback_on_empty=plugin.fallback_on_empty,
    )


SPECS: Final = (
    PluginSpec(
        "endpoint-attribute-filter",
        ("filter",),
        AttributeFilterParameters,
        _filter,
        EndpointAttributeFilter,
        _read_filter,
        stability="alpha",
    ),
    PluginSpec(
        "endpoint-attribute-scorer",
        ("scorer",),
        AttributeScorerParameters,
        _scorer,
        EndpointAttributeScorer,
        _read_scorer,
        stability="alpha",
    ),
    PluginSpec(
        "utilization-filter",
        ("filter",),
        UtilizationParameters,
        _utilization,
        UtilizationFilter,
        _read_utilization,
        stability="alpha",
    ),
)
