"""What does an operator look at? A Grafana dashboard, as data, of the metrics that there are and of no others."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from inferencesched.observability.families import PREFIX


class Panel(NamedTuple):
    """One picture: its title, its unit in Grafana's words, and its queries with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _quantiles(name: str, by: str = "") -> tuple[tuple[str, str], ...]:
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    return tuple(
        (
            f"histogram_quantile({q}, sum by ({labels}) (rate({PREFIX}{name}_bucket[$__rate_interval])))",
            f"p{q * 100:g}{legend}",
        )
        for q in (0.5, 0.95, 0.99)
    )


PANELS: Final = (
    Panel(
        "Requests a second",
        "reqps",
        ((f"sum by (target_model_name) (rate({PREFIX}request_total[$__rate_interval]))", "{{target_model_name}}"),),
    ),
    Panel(
        "Errors a second",
        "reqps",
        ((f"sum by (error_code) (rate({PREFIX}request_error_total[$__rate_interval]))", "{{error_code}}"),),
    ),
    Panel("Time to first token", "s", _quantiles("request_ttft_seconds")),
    Panel("Time per output token, streaming", "s", _quantiles("request_streaming_tpot_seconds")),
    Panel("Duration", "s", _quantiles("request_duration_seconds")),
    Panel("Time in the queue, by priority", "s", _quantiles("flow_control_request_queue_duration_seconds", "priority")),
    Panel(
        "Waiting, by priority",
        "short",
        ((f"sum by (priority) ({PREFIX}flow_control_queue_size)", "{{priority}}"),),
    ),
    Panel(
        "Ends in the queue, a second",
        "reqps",
        ((f"sum by (outcome) (rate({PREFIX}flow_control_requests_total[$__rate_interval]))", "{{outcome}}"),),
    ),
    Panel("Saturation", "percentunit", ((f"{PREFIX}flow_control_pool_saturation", "{{inference_pool}} {{stage}}"),)),
    Panel(
        "Waiting at the servers",
        "short",
        ((f"{PREFIX}per_endpoint_queue_size", "{{model_server_endpoint}}"),),
    ),
    Panel("KV cache use", "percentunit", ((f"{PREFIX}average_kv_cache_utilization", "{{name}}"),)),
    Panel(
        "Prompt tokens that were cached",
        "percentunit",
        (
            (
                " / ".join(
                    f"sum(rate({PREFIX}request_{which}_tokens_sum[$__rate_interval]))" for which in ("cached", "input")
                ),
                "cached",
            ),
        ),
    ),
    Panel("Endpoints", "short", ((f"{PREFIX}ready_endpoints", "{{name}}"),)),
    Panel(
        "At a server", "short", ((f"sum by (target_model_name) ({PREFIX}request_running)", "{{target_model_name}}"),)
    ),
)


def dashboard(title: str = "Inference gateway") -> Mapping[str, Any]:
    """Return the dashboard in Grafana's JSON model, two panels a row; write it to a file with any JSON encoder."""
    return {
        "title": title,
        "uid": "inferencesched",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": i + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": 12 * (i % 2), "y": 8 * (i // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + j), "expr": query, "legendFormat": legend}
                    for j, (query, legend) in enumerate(panel.queries)
                ],
            }
            for i, panel in enumerate(PANELS)
        ],
    }
