"""Scorers of prefixes and of LoRA adapters, by the names of llm-d's router; residency by ours."""

from typing import Any, Final

import msgspec

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS
from inferencesched.errors import InvalidInputError
from inferencesched.prefix.parameters import PreciseParameters
from inferencesched.scorers.affinity import LoraAffinityScorer, PrefixCacheScorer
from inferencesched.scorers.lora import LoraResidencyScorer
from inferencesched.signals import of_producer

_APPROXIMATE: Final = "approx-prefix-cache-producer"
_PRECISE: Final = "precise-prefix-cache-producer"


class PrefixCacheParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``prefixMatchInfoProducerName``: whose matches count. ``matchLengthWeight``: how much the absolute length counts.

    ``matchLengthScaleTokens``: which length is as good as any longer one.
    """

    prefix_match_info_producer_name: str = ""
    match_length_weight: float = 0.0
    match_length_scale_tokens: float = 8192


class LoraAffinityParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``distinct``, which llm-d does not have: an adapter that runs and waits takes one place, not two."""

    distinct: bool = False


class LoraResidencyParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``gpu``, ``cpu``, ``freeSlot``, ``evictable``, ``saturated``: the tiers. ``baseModels``: names that are no adapter's."""

    gpu: float = 1.0
    cpu: float = 0.7
    free_slot: float = 0.6
    evictable: float = 0.3
    saturated: float = 0.0
    base_models: tuple[str, ...] = ()


def _prefix(parameters: PrefixCacheParameters, workshop: Workshop) -> PrefixCacheScorer:
    return PrefixCacheScorer(
        parameters.match_length_weight,
        parameters.match_length_scale_tokens,
        parameters.prefix_match_info_producer_name,
    )


def _read_prefix(scorer: PrefixCacheScorer) -> PrefixCacheParameters:
    return PrefixCacheParameters(
        prefix_match_info_producer_name=scorer.producer,
        match_length_weight=scorer.match_length_weight,
        match_length_scale_tokens=scorer.match_length_scale_tokens,
    )


def _prefix_needs(parameters: PrefixCacheParameters) -> tuple[Need, ...]:
    name = parameters.prefix_match_info_producer_name
    signals = (PREFIX_MATCH, PREFIX_TOKENS) if parameters.match_length_weight else (PREFIX_MATCH,)
    return tuple(Need(of_producer(signal, name), _APPROXIMATE) for signal in signals)


def _precise(parameters: PreciseParameters, workshop: Workshop) -> PrefixCacheScorer:
    return PrefixCacheScorer(producer=_PRECISE)


def _precise_needs(parameters: PreciseParameters) -> tuple[Need, ...]:
    given: dict[str, Any] = _said(parameters)
    return (Need(of_producer(PREFIX_MATCH, _PRECISE), _PRECISE, given),)


def _said(parameters: msgspec.Struct) -> dict[str, Any]:
    """Return what parameters say beyond their defaults, by the configuration's names."""
    plain = type(parameters)()
    said = msgspec.to_builtins(parameters)
    default = msgspec.to_builtins(plain)
    if not isinstance(said, dict) or not isinstance(default, dict):
        raise InvalidInputError("parameters", said, "a mapping")
    return {name: value for name, value in said.items() if value != default.get(name)}


def _residency(parameters: LoraResidencyParameters, workshop: Workshop) -> LoraResidencyScorer:
    return LoraResidencyScorer(**msgspec.structs.asdict(parameters))


def _read_residency(scorer: LoraResidencyScorer) -> LoraResidencyParameters:
    return LoraResidencyParameters(
        gpu=scorer.gpu,
        cpu=scorer.cpu,
        free_slot=scorer.free_slot,
        evictable=scorer.evictable,
        saturated=scorer.saturated,
        base_models=scorer.base_models,
    )


SPECS = (
    PluginSpec(
        "prefix-cache-scorer",
        ("scorer",),
        PrefixCacheParameters,
        _prefix,
        PrefixCacheScorer,
        _read_prefix,
        _prefix_needs,
    ),
    PluginSpec(
        "precise-prefix-cache-scorer",
        ("scorer",),
        PreciseParameters,
        _precise,
        needs=_precise_needs,
        stability="deprecated",
        instead="precise-prefix-cache-producer with prefix-cache-scorer",
    ),
    PluginSpec(
        "lora-affinity-scorer",
        ("scorer",),
        LoraAffinityParameters,
        lambda p, w: LoraAffinityScorer(distinct=p.distinct),
        LoraAffinityScorer,
        lambda s: LoraAffinityParameters(distinct=s.distinct),
    ),
    PluginSpec(
        "lora-residency-scorer",
        ("scorer",),
        LoraResidencyParameters,
        _residency,
        LoraResidencyScorer,
        _read_residency,
        origin="own",
    ),
)
