"""Predicted latency, by the names of llm-d's router: its producer, its scorer and the two filters before it."""

import msgspec

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.filters.latency import PrefixCacheAffinityFilter, SloHeadroomTierFilter, TtftSource
from inferencesched.producers.latency import PredictedLatencyProducer
from inferencesched.producers.regression import OnlineLatencyPredictor
from inferencesched.scorers.latency import LatencyScorer, Strategy
from inferencesched.signals import PREDICTED_TTFT, TTFT_HEADROOM, of_producer

_PREDICTED = "predicted-latency-producer"
_APPROXIMATE = "approx-prefix-cache-producer"


class LatencyScorerParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The fields of `LatencyScorer`, and whose predictions and matches count."""

    ttft_weight: float = 0.8
    tpot_weight: float = 0.2
    headroom_selection_strategy: Strategy = "least"
    composite_kv_weight: float = msgspec.field(default=1.0, name="compositeKVWeight")
    composite_queue_weight: float = 1.0
    composite_prefix_weight: float = 1.0
    latency_prediction_info_producer_name: str = ""
    prefix_match_info_producer_name: str = ""


class SloHeadroomTierParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``epsilonExploreNeg``: how often those that miss an objective get a chance; whose predictions count."""

    epsilon_explore_neg: float = 0.01
    latency_prediction_info_producer_name: str = ""


class PrefixCacheAffinityParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """The fields of `PrefixCacheAffinityFilter`, and whose matches and predictions count.

    ``inFlightLoadProducerName`` has no effect: what is in flight is the pool's own count.
    """

    affinity_threshold: float = 0.8
    exploration_probability: float = 0.0
    max_ttft_penalty_ms: float = msgspec.field(default=18_000.0, name="maxTTFTPenaltyMs")
    ttft_source: TtftSource = "prefillThroughput"
    peak_prefill_throughput: float = 15_928.0
    prefix_match_info_producer_name: str = ""
    latency_prediction_info_producer_name: str = ""
    in_flight_load_producer_name: str = ""


class PredictedLatencyParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``sloBufferFactor``, ``streamingMode``, ``endpointRoleLabel``, ``predictInProduce``: see `PredictedLatencyProducer`.

    ``prefixMatchInfoProducerName``: whose matches count. ``samplingMean`` and ``maxDecodeTokenSamplesForPrediction`` are
    checked and without effect: the learner here, an `OnlineLatencyPredictor`, takes an answer's mean. So is ``contextTTL``:
    a request is forgotten when its reservation ends.
    """

    sampling_mean: float = 1000.0
    max_decode_token_samples_for_prediction: int = 0
    slo_buffer_factor: float = 1.0
    context_ttl: int | str = msgspec.field(default="5m", name="contextTTL")
    streaming_mode: bool = False
    endpoint_role_label: str = ""
    predict_in_produce: bool = True
    prefix_match_info_producer_name: str = ""


def _scorer(p: LatencyScorerParameters, workshop: Workshop) -> LatencyScorer:
    return LatencyScorer(
        p.ttft_weight,
        p.tpot_weight,
        p.headroom_selection_strategy,
        p.composite_kv_weight,
        p.composite_queue_weight,
        p.composite_prefix_weight,
        p.latency_prediction_info_producer_name,
        p.prefix_match_info_producer_name,
    )


def _read_scorer(scorer: LatencyScorer) -> LatencyScorerParameters:
    return LatencyScorerParameters(
        ttft_weight=scorer.ttft_weight,
        tpot_weight=scorer.tpot_weight,
        headroom_selection_strategy=scorer.headroom_selection_strategy,
        composite_kv_weight=scorer.composite_kv_weight,
        composite_queue_weight=scorer.composite_queue_weight,
        composite_prefix_weight=scorer.composite_prefix_weight,
        latency_prediction_info_producer_name=scorer.producer,
        prefix_match_info_producer_name=scorer.prefix_producer,
    )


def _tier(p: SloHeadroomTierParameters, workshop: Workshop) -> SloHeadroomTierFilter:
    return SloHeadroomTierFilter(p.epsilon_explore_neg, p.latency_prediction_info_producer_name)


def _read_tier(plugin: SloHeadroomTierFilter) -> SloHeadroomTierParameters:
    return SloHeadroomTierParameters(
        epsilon_explore_neg=plugin.epsilon_explore_neg, latency_prediction_info_producer_name=plugin.producer
    )


def _affinity(p: PrefixCacheAffinityParameters, workshop: Workshop) -> PrefixCacheAffinityFilter:
    return PrefixCacheAffinityFilter(
        p.affinity_threshold,
        p.exploration_probability,
        p.max_ttft_penalty_ms,
        p.ttft_source,
        p.peak_prefill_throughput,
        p.prefix_match_info_producer_name,
        p.latency_prediction_info_producer_name,
    )


def _read_affinity(plugin: PrefixCacheAffinityFilter) -> PrefixCacheAffinityParameters:
    return PrefixCacheAffinityParameters(
        affinity_threshold=plugin.affinity_threshold,
        exploration_probability=plugin.exploration_probability,
        max_ttft_penalty_ms=plugin.max_ttft_penalty_ms,
        ttft_source=plugin.ttft_source,
        peak_prefill_throughput=plugin.peak_prefill_throughput,
        prefix_match_info_producer_name=plugin.prefix_producer,
        latency_prediction_info_producer_name=plugin.latency_producer,
    )


def _affinity_needs(p: PrefixCacheAffinityParameters) -> tuple[Need, ...]:
    prefix = Need(of_producer(PREFIX_MATCH, p.prefix_match_info_producer_name), _APPROXIMATE)
    if p.ttft_source == "latencyPredictor" and p.max_ttft_penalty_ms:
        return (prefix, Need(of_producer(PREDICTED_TTFT, p.latency_prediction_info_producer_name), _PREDICTED))
    return (prefix,)


def _producer(p: PredictedLatencyParameters, workshop: Workshop) -> PredictedLatencyProducer:
    if not p.sampling_mean > 0:
        raise InvalidInputError("sampling_mean", p.sampling_mean, "a number above 0")
    whole_number("max_decode_token_samples_for_prediction", p.max_decode_token_samples_for_prediction)
    return PredictedLatencyProducer(
        OnlineLatencyPredictor(),
        slo_buffer_factor=p.slo_buffer_factor,
        streaming=p.streaming_mode,
        endpoint_role_label=p.endpoint_role_label,
        predict=p.predict_in_produce,
        prefix_producer=p.prefix_match_info_producer_name,
    )


def _read_producer(producer: PredictedLatencyProducer) -> PredictedLatencyParameters:
    return PredictedLatencyParameters(
        slo_buffer_factor=producer.slo_buffer_factor,
        streaming_mode=producer.streaming,
        endpoint_role_label=producer.endpoint_role_label,
        predict_in_produce=producer.predict,
        prefix_match_info_producer_name=producer.prefix_producer,
    )


SPECS = (
    PluginSpec(
        "latency-scorer",
        ("scorer",),
        LatencyScorerParameters,
        _scorer,
        LatencyScorer,
        _read_scorer,
        lambda p: (
            Need(of_producer(TTFT_HEADROOM, p.latency_prediction_info_producer_name), _PREDICTED),
            Need(of_producer(PREFIX_MATCH, p.prefix_match_info_producer_name), _APPROXIMATE),
        ),
    ),
    PluginSpec(
        "slo-headroom-tier-filter",
        ("filter",),
        SloHeadroomTierParameters,
        _tier,
        SloHeadroomTierFilter,
        _read_tier,
        lambda p: (Need(of_producer(TTFT_HEADROOM, p.latency_prediction_info_producer_name), _PREDICTED),),
    ),
    PluginSpec(
        "prefix-cache-affinity-filter",
        ("filter",),
        PrefixCacheAffinityParameters,
        _affinity,
        PrefixCacheAffinityFilter,
        _read_affinity,
        _affinity_needs,
    ),
    PluginSpec(
        _PREDICTED,
        ("producer",),
        PredictedLatencyParameters,
        _producer,
        PredictedLatencyProducer,
        _read_producer,
        lambda p: (Need(of_producer(PREFIX_TOKENS, p.prefix_match_info_producer_name), _APPROXIMATE),),
    ),
)
