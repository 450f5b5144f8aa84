"""Plug-ins for pools whose endpoints are clusters, by the names of llm-d's router.

The pool must have been made with the signals that they read (``InferencePool(signals=...)``), and be told of them.
"""

from typing import Final

from inferencesched.config.catalogue.prefix import approximate, read_approximate
from inferencesched.config.spec import Need, Nothing, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS
from inferencesched.prefix.parameters import ApproximateParameters
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.scorers.multicluster import (
    MultiClusterKvCacheUtilizationScorer,
    MultiClusterPrefixCacheScorer,
    MultiClusterQueueScorer,
)
from inferencesched.signals import of_producer

_PRODUCER: Final = "multicluster-approx-prefix-cache-producer"


class MultiClusterPrefixParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """As ``prefix-cache-scorer``; without a name it reads the matches of clusters, not those of pods."""

    prefix_match_info_producer_name: str = ""
    match_length_weight: float = 0.0
    match_length_scale_tokens: float = 8192

    @property
    def producer(self) -> str:
        """Whose matches are read?"""
        return self.prefix_match_info_producer_name or _PRODUCER


def _prefix(parameters: MultiClusterPrefixParameters, workshop: Workshop) -> MultiClusterPrefixCacheScorer:
    return MultiClusterPrefixCacheScorer(
        parameters.producer, parameters.match_length_weight, parameters.match_length_scale_tokens
    )


def _read_prefix(scorer: MultiClusterPrefixCacheScorer) -> MultiClusterPrefixParameters:
    return MultiClusterPrefixParameters(
        prefix_match_info_producer_name="" if scorer.producer == _PRODUCER else scorer.producer,
        match_length_weight=scorer.match_length_weight,
        match_length_scale_tokens=scorer.match_length_scale_tokens,
    )


def _prefix_needs(parameters: MultiClusterPrefixParameters) -> tuple[Need, ...]:
    signals = (PREFIX_MATCH, PREFIX_TOKENS) if parameters.match_length_weight else (PREFIX_MATCH,)
    return tuple(Need(of_producer(signal, parameters.producer), _PRODUCER) for signal in signals)


SPECS = (
    PluginSpec(
        "multicluster-queue-scorer",
        ("scorer",),
        Nothing,
        lambda p, w: MultiClusterQueueScorer(),
        MultiClusterQueueScorer,
        lambda s: Nothing(),
        stability="alpha",
    ),
    PluginSpec(
        "multicluster-kv-cache-utilization-scorer",
        ("scorer",),
        Nothing,
        lambda p, w: MultiClusterKvCacheUtilizationScorer(),
        MultiClusterKvCacheUtilizationScorer,
        lambda s: Nothing(),
        stability="alpha",
    ),
    PluginSpec(
        "multicluster-prefix-cache-scorer",
        ("scorer",),
        MultiClusterPrefixParameters,
        _prefix,
        MultiClusterPrefixCacheScorer,
        _read_prefix,
        _prefix_needs,
        stability="alpha",
    ),
    PluginSpec(
        _PRODUCER,
        ("producer",),
        ApproximateParameters,
        approximate,
        ApproximatePrefixProducer,
        read_approximate,
        stability="alpha",
    ),
)
