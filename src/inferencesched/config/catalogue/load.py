"""Scorers and producers of load, by the names of llm-d's router."""

from inferencesched.config.spec import Need, Nothing, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_TOKENS
from inferencesched.producers.inflight import InflightLoadProducer, LoadEstimate
from inferencesched.scorers.load import (
    ActiveRequestScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)
from inferencesched.signals import of_producer


class LoadAwareParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``threshold``: how long a queue counts as full; 0 or less is the default, as in llm-d."""

    threshold: float = 128.0


class ActiveRequestParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``idleThreshold``: up to how many requests an endpoint is idle; below 0 is 0. ``maxBusyScore``: what the least busy other gets.

    As in llm-d a ``maxBusyScore`` outside of 0 to 1 is left out, and ``requestTimeout`` is deprecated and without effect.
    ``inFlightLoadProducerName`` has none here: what is in flight is the pool's own count.
    """

    request_timeout: str = ""
    idle_threshold: int = 0
    max_busy_score: float | None = None
    in_flight_load_producer_name: str = ""


class TokenLoadParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``queueThresholdTokens``: where an endpoint's load counts as full; 0 or less is the default, as in llm-d.

    ``inFlightLoadProducerName`` has no effect: what is in flight is the pool's own count.
    """

    queue_threshold_tokens: float = 4194304.0
    in_flight_load_producer_name: str = ""


class InflightLoadParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``addEstimatedOutputTokens``, ``outputRatio``, ``maxEstimatedOutputTokens``: see `LoadEstimate`.

    ``prefixMatchInfoProducerName``: whose matches count. ``syncCrossReplicaState`` is the gateway's affair.
    """

    add_estimated_output_tokens: bool = False
    output_ratio: float = 1.5
    max_estimated_output_tokens: int | None = None
    prefix_match_info_producer_name: str = ""
    sync_cross_replica_state: bool = True


def _load_aware(parameters: LoadAwareParameters, workshop: Workshop) -> LoadAwareScorer:
    return LoadAwareScorer(parameters.threshold) if parameters.threshold > 0 else LoadAwareScorer()


def _active(parameters: ActiveRequestParameters, workshop: Workshop) -> ActiveRequestScorer:
    most = parameters.max_busy_score
    busy = most if most is not None and 0 <= most <= 1 else 1.0
    return ActiveRequestScorer(float(max(0, parameters.idle_threshold)), busy)


def _read_active(scorer: ActiveRequestScorer) -> ActiveRequestParameters:
    # a threshold is a number of requests: between two whole ones it means the lower
    return ActiveRequestParameters(idle_threshold=int(scorer.idle_threshold), max_busy_score=scorer.max_busy_score)


def _token_load(parameters: TokenLoadParameters, workshop: Workshop) -> TokenLoadScorer:
    threshold = parameters.queue_threshold_tokens
    return TokenLoadScorer(threshold) if threshold > 0 else TokenLoadScorer()


def _inflight(parameters: InflightLoadParameters, workshop: Workshop) -> InflightLoadProducer:
    estimate = LoadEstimate(
        parameters.add_estimated_output_tokens, parameters.output_ratio, parameters.max_estimated_output_tokens
    )
    return InflightLoadProducer(estimate, prefix_producer=parameters.prefix_match_info_producer_name)


def _read_inflight(producer: InflightLoadProducer) -> InflightLoadParameters:
    estimate = producer.estimate
    return InflightLoadParameters(
        add_estimated_output_tokens=estimate.add_estimated_output_tokens,
        output_ratio=estimate.output_ratio,
        max_estimated_output_tokens=estimate.max_estimated_output_tokens,
        prefix_match_info_producer_name=producer.prefix_producer,
    )


SPECS = (
    PluginSpec("queue-scorer", ("scorer",), Nothing, lambda p, w: QueueScorer(), QueueScorer, lambda s: Nothing()),
    PluginSpec(
        "running-requests-size-scorer",
        ("scorer",),
        Nothing,
        lambda p, w: RunningRequestsScorer(),
        RunningRequestsScorer,
        lambda s: Nothing(),
    ),
    PluginSpec(
        "kv-cache-utilization-scorer",
        ("scorer",),
        Nothing,
        lambda p, w: KvCacheUtilizationScorer(),
        KvCacheUtilizationScorer,
        lambda s: Nothing(),
    ),
    PluginSpec(
        "load-aware-scorer",
        ("scorer",),
        LoadAwareParameters,
        _load_aware,
        LoadAwareScorer,
        lambda s: LoadAwareParameters(threshold=s.threshold),
    ),
    PluginSpec(
        "active-request-scorer", ("scorer",), ActiveRequestParameters, _active, ActiveRequestScorer, _read_active
    ),
    PluginSpec(
        "token-load-scorer",
        ("scorer",),
        TokenLoadParameters,
        _token_load,
        TokenLoadScorer,
        lambda s: TokenLoadParameters(queue_threshold_tokens=s.queue_threshold_tokens),
        lambda p: (Need(PREFIX_TOKENS, "approx-prefix-cache-producer", required=False),),
    ),
    PluginSpec(
        "inflight-load-producer",
        ("producer",),
        InflightLoadParameters,
        _inflight,
        InflightLoadProducer,
        _read_inflight,
        lambda p: (
            Need(
                of_producer(PREFIX_TOKENS, p.prefix_match_info_producer_name),
                "approx-prefix-cache-producer",
                required=bool(p.prefix_match_info_producer_name),
            ),
        ),
    ),
)
