"""Which metric families are there, with which labels and buckets?

The names, labels and buckets of llm-d's router (``pkg/epp/metrics/llm_d_router_metrics.go``, snapshot of August 2026), so that dashboards and
autoscalers that were made for it go on. ``32778`` is its own slip, and kept.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from inferencesched.errors import InvalidInputError

PREFIX: Final = "llm_d_epp_"
Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """What is one family? ``name`` with its prefix; ``buckets`` of a histogram, without +Inf."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "histogram") != bool(self.buckets):
            raise InvalidInputError("buckets", self.buckets, "buckets for a histogram, and for nothing else")
        if any(a >= b for a, b in zip(self.buckets, self.buckets[1:], strict=False)):
            raise InvalidInputError("buckets", self.buckets, "in ascending order")


_M: Final = ("model_name", "target_model_name")
_MF: Final = (*_M, "fairness_id", "priority")
_PLUGIN: Final = ("plugin_name", "plugin_type")
_POOL: Final = ("name",)
_IP: Final = ("inference_pool",)
_FLOW: Final = ("fairness_id", "priority", "inference_pool", *_M)

_LATENCY: Final = (
    *(
        0.005,
        0.025,
        0.05,
        0.1,
        0.2,
        0.4,
        0.6,
        0.8,
        1,
        1.25,
        1.5,
        2,
        3,
        4,
        5,
        6,
        8,
        10,
        15,
        20,
        30,
        45,
        60,
        120,
        180,
        240,
    ),
    *(300, 360, 480, 600, 900, 1200, 1800, 2700, 3600),
)
_TTFT: Final = _LATENCY[:24]
_TPOT: Final = (
    *(0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.8, 1, 2),
)
_ITL: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2)
_NTPOT: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_REQUEST_BYTES: Final = tuple(float(64 << i) for i in range(25))
_POWERS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_RESPONSE_BYTES: Final = (*_POWERS, 16384, 32778, 65536)
_TOKENS: Final = (*_RESPONSE_BYTES, 131072, 262144, 524288, 1048576)
_SCHEDULER: Final = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_QUEUE: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PROCESSING: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def _family(name: str, kind: Kind, help_: str, labels: tuple[str, ...] = (), buckets: tuple[float, ...] = ()) -> Family:
    return Family(PREFIX + name, kind, help_, labels, tuple(map(float, buckets)))


_ALL: Final = (
    _family("request_total", "counter", "Requests that came and could be read.", _MF),
    _family("request_error_total", "counter", "Requests that ended in an error.", (*_MF, "error_code")),
    _family("request_duration_seconds", "histogram", "From arrival to the end of the answer.", _MF, _LATENCY),
    _family("request_size_bytes", "histogram", "Size of the request's body.", _MF, _REQUEST_BYTES),
    _family("response_size_bytes", "histogram", "Size of the answer's body.", _MF, _RESPONSE_BYTES),
    _family("request_input_tokens", "histogram", "Prompt tokens, by the server's word.", _MF, _TOKENS),
    _family(
        "request_cached_tokens", "histogram", "Prompt tokens that were cached, by the server's word.", _MF, _TOKENS
    ),
    _family("request_output_tokens", "histogram", "Output tokens, by the server's word.", _MF, _POWERS),
    _family("request_running", "gauge", "Requests at a server.", _MF),
    _family("request_ntpot_seconds", "histogram", "Duration for each output token.", _MF, _NTPOT),
    _family("request_ttft_seconds", "histogram", "From arrival to the first token.", (*_MF, "streaming"), _TTFT),
    _family("request_streaming_tpot_seconds", "histogram", "Time for each token after the first.", _MF, _TPOT),
    _family("request_streaming_itl_seconds", "histogram", "Between two tokens.", _MF, _ITL),
    _family("average_kv_cache_utilization", "gauge", "Mean KV cache use of a pool.", _POOL),
    _family("average_queue_size", "gauge", "Mean requests that wait at a server.", _POOL),
    _family("average_running_requests", "gauge", "Mean requests that run at a server.", _POOL),
    _family("std_dev_kv_cache_utilization", "gauge", "Standard deviation of KV cache use.", _POOL),
    _family("std_dev_queue_size", "gauge", "Standard deviation of waiting requests.", _POOL),
    _family("std_dev_running_requests", "gauge", "Standard deviation of running requests.", _POOL),
    _family("ready_endpoints", "gauge", "Endpoints in the pool.", _POOL),
    _family("per_endpoint_queue_size", "gauge", "Requests that wait at one server.", ("name", "model_server_endpoint")),
    _family("scheduler_e2e_duration_seconds", "histogram", "What a decision costs.", (), _SCHEDULER),
    _family(
        "scheduler_attempts_total",
        "counter",
        "Decisions asked for.",
        ("status", "target_model_name", "endpoint_name", "namespace", "port"),
    ),
    _family(
        "plugin_duration_seconds",
        "histogram",
        "What a plug-in costs.",
        ("extension_point", "plugin_type", "plugin_name"),
        _SCHEDULER,
    ),
    _family(
        "request_processing_duration_seconds",
        "histogram",
        "From arrival to the server, queue included.",
        (),
        _PROCESSING,
    ),
    _family("info", "gauge", "Which build this is.", ("commit", "build_ref")),
    _family(
        "flow_control_request_queue_duration_seconds",
        "histogram",
        "Time in the queue.",
        ("fairness_id", "priority", "outcome", "inference_pool", *_M),
        _QUEUE,
    ),
    _family(
        "flow_control_dispatch_cycle_duration_seconds", "histogram", "What a turn of the queue costs.", (), _SCHEDULER
    ),
    _family("flow_control_queue_size", "gauge", "Requests that wait.", _FLOW),
    _family("flow_control_queue_bytes", "gauge", "Bytes that wait.", _FLOW),
    _family("flow_control_pool_saturation", "gauge", "How full a pool is.", ("inference_pool", "stage")),
    _family("flow_control_stale_endpoints", "gauge", "Endpoints that were not heard of lately.", ("detector",)),
    _family(
        "flow_control_capacity_utilization_requests", "gauge", "Share of a band's room.", ("priority", "inference_pool")
    ),
    _family(
        "flow_control_capacity_utilization_bytes", "gauge", "Share of a band's bytes.", ("priority", "inference_pool")
    ),
    _family(
        "flow_control_global_capacity_utilization_requests", "gauge", "Share of all room; absent without a cap.", _IP
    ),
    _family(
        "flow_control_global_capacity_utilization_bytes", "gauge", "Share of all bytes; absent without a cap.", _IP
    ),
    _family("flow_control_requests_total", "counter", "Ends in the queue.", ("outcome", "priority", "inference_pool")),
    _family(
        "flow_control_revocations_issued_total", "counter", "Requests to be taken back.", ("priority", "inference_pool")
    ),
    _family(
        "model_rewrite_decisions_total",
        "counter",
        "Names replaced.",
        ("model_rewrite_name", "model_name", "target_model"),
    ),
    _family(
        "inflight_requests",
        "gauge",
        "Requests booked at a server.",
        ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority"),
    ),
    _family(
        "inflight_tokens",
        "gauge",
        "Prompt tokens booked at a server.",
        ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority"),
    ),
    _family("prefix_indexer_size", "gauge", "Blocks held in a prefix index.", _PLUGIN),
    _family("program_aware_jains_fairness_index", "gauge", "How evenly flows are served.", ()),
)
#: All families, by name.
FAMILIES: Final = MappingProxyType({family.name: family for family in _ALL})

#: Families of the reference that nobody here fills, and why.
LEFT_OUT: Final = MappingProxyType(
    {
        "plugin_data_scope_violations_total": "a plug-in here cannot reach data that it does not declare",
        "response_processing_duration_seconds": "the gateway's own time, which the library does not see",
        "flow_control_request_enqueue_duration_seconds": "there is no hand-over: a request is queued in the call that asks",
        "flow_control_revocations_total": "how a revocation ended is an outcome of `flow_control_requests_total`",
        "flow_control_reclaim_target": "reclaiming works with requests, not with a share of saturation",
        "flow_control_pending_reclaim": "the same",
        "flow_control_revocation_confirmation_seconds": "the gateway's own time",
        "datalayer_poll_errors_total": "scraping is the gateway's",
        "datalayer_extract_errors_total": "the same",
        "prefix_indexer_hit_ratio": "a hit is in `request_cached_tokens` over `request_input_tokens`",
        "prefix_indexer_hit_bytes": "blocks have no bytes here",
        "program_aware_avg_wait_time_milliseconds": "a series for every program that ever came",
        "program_aware_attained_service_tokens": "the same",
        "inference_request_metric": "the predictors' own, not joined here",
        "request_predicted_ttft_seconds": "the same",
        "request_predicted_tpot_seconds": "the same",
        "request_ttft_prediction_duration_seconds": "the same",
        "request_tpot_prediction_duration_seconds": "the same",
        "request_slo_violation_total": "part of `ScalingSignal`",
        "disagg_decision_total": "the handlers' own, not joined here",
        "disaggregatedset_strict_header_no_match_total": "the screener's own, not joined here",
        "disaggregatedset_revision_gating_share": "the same",
        "extproc_streams_inflight": "an adapter's",
        "extproc_streams_duration_seconds": "the same",
        "extproc_streams_total": "the same",
    }
)


def family(name: str) -> Family:
    """Return a family by its name, with or without the prefix. Errors: `KeyError`.

    >>> family("request_running").labels
    ('model_name', 'target_model_name', 'fairness_id', 'priority')
    """
    return FAMILIES[name if name.startswith(PREFIX) else PREFIX + name]
