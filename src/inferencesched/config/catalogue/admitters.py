"""Who may be turned away, by the names of llm-d's router."""

from typing import Final

import msgspec

from inferencesched.admitters.latency_slo import LatencySloAdmitter
from inferencesched.admitters.probabilistic import ProbabilisticAdmitter
from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.signals import TTFT_HEADROOM, of_producer

_PREDICTED: Final = "predicted-latency-producer"


class ProbabilisticParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The fields of `ProbabilisticAdmitter`."""

    queue_depth_threshold: float = 5.0
    kv_cache_util_threshold: float = 0.8
    power: float = 5.0
    k: float = 300.0


class LatencySloParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The field of `LatencySloAdmitter`, and whose predictions count."""

    cold_kv_threshold: float = msgspec.field(default=0.02, name="coldKVThreshold")
    latency_prediction_info_producer_name: str = ""


def _probabilistic(p: ProbabilisticParameters, workshop: Workshop) -> ProbabilisticAdmitter:
    return ProbabilisticAdmitter(p.queue_depth_threshold, p.kv_cache_util_threshold, p.power, p.k)


def _read_probabilistic(plugin: ProbabilisticAdmitter) -> ProbabilisticParameters:
    return ProbabilisticParameters(
        queue_depth_threshold=plugin.queue_depth,
        kv_cache_util_threshold=plugin.kv_cache_util,
        power=plugin.power,
        k=plugin.k,
    )


def _latency_slo(p: LatencySloParameters, workshop: Workshop) -> LatencySloAdmitter:
    return LatencySloAdmitter(p.cold_kv_threshold, p.latency_prediction_info_producer_name)


def _read_latency_slo(plugin: LatencySloAdmitter) -> LatencySloParameters:
    return LatencySloParameters(cold_kv_threshold=plugin.cold_kv, latency_prediction_info_producer_name=plugin.producer)


def _latency_needs(p: LatencySloParameters) -> tuple[Need, ...]:
    return (Need(of_producer(TTFT_HEADROOM, p.latency_prediction_info_producer_name), _PREDICTED, required=False),)


SPECS: Final = (
    PluginSpec(
        "probabilistic-admitter",
        ("admitter",),
        ProbabilisticParameters,
        _probabilistic,
        ProbabilisticAdmitter,
        _read_probabilistic,
    ),
    PluginSpec(
        "latency-slo-admitter",
        ("admitter",),
        LatencySloParameters,
        _latency_slo,
        LatencySloAdmitter,
        _read_latency_slo,
        needs=_latency_needs,
    ),
)
