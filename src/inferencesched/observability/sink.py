"""Which numbers does an event move?

`MetricsSink` listens to a director and keeps the registry. What clients may choose is capped (`BoundedLabel`); the series of one set of
labels are looked up once, so that an event costs a microsecond or two.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched.endpoints import KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE, Endpoints, Signal
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.observability.events import (
    Dequeued,
    Ended,
    Enqueued,
    Event,
    FirstToken,
    Labels,
    OutputTokens,
    Received,
    Refused,
    Rewritten,
    Scheduled,
    Started,
)
from inferencesched.observability.families import FAMILIES
from inferencesched.observability.labels import MOST_VALUES, BoundedLabel
from inferencesched.observability.registry import Histogram, Registry, Value

_POOL_GAUGES: Final[tuple[tuple[str, str, Signal], ...]] = (
    ("average_kv_cache_utilization", "std_dev_kv_cache_utilization", KV_CACHE_USAGE),
    ("average_queue_size", "std_dev_queue_size", WAITING_QUEUE_SIZE),
    ("average_running_requests", "std_dev_running_requests", RUNNING_REQUESTS),
)
_KEPT: Final = 4096


class _Series(NamedTuple):
    """The series of one set of labels that every request moves."""

    key: tuple[str, str, str, str]
    pool: str
    total: Value
    running: Value
    size: Histogram
    waiting: Value
    waiting_bytes: Value
    gone: dict[str, tuple[Histogram, Value]]  # how long they waited, and how many they are, by outcome


@final
class MetricsSink:
    """Which numbers does an event move?

    Parameters
    ----------
    registry: where they are kept; one of its own unless given.
    most_models, most_flows: how many different model names and fairness ids have series of their own.
    pinned_models: names that always have: those of rewrite rules (`ModelTable.names`).

    It never raises and never waits. Cost: 1 to 3 us an event.

    >>> sink = MetricsSink()
    >>> sink.emit(Received("r", Labels("llama", "llama-8b", "me", 0, "pool"), 512, 1.0))
    >>> sink.registry.value("request_total", "llama", "llama-8b", "me", "0").value
    1.0
    """

    __slots__ = ("_calls", "_flows", "_models", "_received", "_series", "registry")

    def __init__(
        self,
        registry: Registry | None = None,
        *,
        most_models: int = MOST_VALUES,
        most_flows: int = MOST_VALUES,
        pinned_models: Iterable[str] = (),
    ) -> None:
        self.registry = Registry(FAMILIES) if registry is None else registry
        self._models = BoundedLabel(most_models, pinned=pinned_models)
        self._flows = BoundedLabel(most_flows)
        self._series: dict[Labels, _Series] = {}
        self._received: dict[str, float] = {}
        self._calls = {
            Received: self._on_received,
            Rewritten: self._on_rewritten,
            Enqueued: self._on_enqueued,
            Dequeued: self._on_dequeued,
            Scheduled: self._on_scheduled,
            Started: self._on_started,
            FirstToken: self._on_first_token,
            OutputTokens: self._on_output_tokens,
            Refused: self._on_refused,
            Ended: self._on_ended,
        }

    def emit(self, event: Event) -> None:
        """Take note of what happened."""
        call = self._calls.get(type(event))
        if call is not None:
            call(event)  # type: ignore[operator]  # each has its own event's

    # -- what is looked at, and not told --------------------------------------------------------------

    def observe_pool(self, name: str, endpoints: Endpoints) -> None:
        """Note what is known of a pool's servers; what is unknown counts in no mean."""
        value = self.registry.value
        value("ready_endpoints", name).value = float(len(endpoints))
        for mean, deviation, signal in _POOL_GAUGES:
            column = endpoints[signal]
            known = column[~np.isnan(column)]
            if len(known):
                value(mean, name).value = float(known.mean())
                value(deviation, name).value = float(known.std())
            else:
                self.registry.remove(mean, name=name)
                self.registry.remove(deviation, name=name)
        queue = endpoints[WAITING_QUEUE_SIZE].tolist()
        self.registry.remove("per_endpoint_queue_size", name=name)
        for endpoint, waiting in zip(endpoints.names, queue, strict=True):
            if waiting == waiting:
                value("per_endpoint_queue_size", name, endpoint).value = waiting

    def observe_queue(
        self, pool: str, controller: FlowController, saturation: Mapping[str, float] | None = None
    ) -> None:
        """Note how full a pool's queue is, by band and in all, and how full the pool: `saturation` by stage."""
        registry = self.registry
        for name in ("flow_control_capacity_utilization_requests", "flow_control_capacity_utilization_bytes"):
            registry.remove(name, inference_pool=pool)
        for band in controller.bands:
            label = str(band.priority)
            for name, held, most in (
                ("flow_control_capacity_utilization_requests", band.requests, band.capacity.requests),
                ("flow_control_capacity_utilization_bytes", band.size_bytes, band.capacity.size_bytes),
            ):
                if most is not None:
                    registry.value(name, label, pool).value = held / most
        bands, all_of_them = controller.bands, controller.capacity
        for name, held, room in (
            (
                "flow_control_global_capacity_utilization_requests",
                sum(band.requests for band in bands),
                all_of_them.requests,
            ),
            (
                "flow_control_global_capacity_utilization_bytes",
                sum(band.size_bytes for band in bands),
                all_of_them.size_bytes,
            ),
        ):
            if room is None:
                registry.remove(name, inference_pool=pool)
            else:
                registry.value(name, pool).value = held / room
        registry.remove("flow_control_pool_saturation", inference_pool=pool)
        for stage, level in (saturation or {}).items():
            if level == level:
                registry.value("flow_control_pool_saturation", pool, stage).value = level

    def forget_flow(self, fairness_id: str, priority: int) -> int:
        """Forget the series of a flow that was collected; return how many. Those of ``other`` are everybody's, and stay."""
        if fairness_id not in ("", "other"):
            self._flows.forget(fairness_id)
            self._series = {
                labels: series for labels, series in self._series.items() if labels.fairness_id != fairness_id
            }
            return sum(
                self.registry.remove(name, fairness_id=fairness_id, priority=str(priority))
                for name, family in FAMILIES.items()
                if name.startswith("llm_d_epp_flow_control_") and "fairness_id" in family.labels
            )
        return 0

    # -- what is told ---------------------------------------------------------------------------------

    def _of(self, labels: Labels) -> _Series:
        series = self._series.get(labels)
        if series is None:
            if len(self._series) >= _KEPT:
                self._series.clear()
            bound = self._models.bound
            model, target, flow = bound(labels.model), bound(labels.target), self._flows.bound(labels.fairness_id)
            key = (model, target, flow, str(labels.priority))
            queue = (flow, str(labels.priority), labels.pool, model, target)
            registry = self.registry
            series = self._series[labels] = _Series(
                key,
                labels.pool,
                registry.value("llm_d_epp_request_total", *key),
                registry.value("llm_d_epp_request_running", *key),
                registry.histogram("llm_d_epp_request_size_bytes", *key),
                registry.value("llm_d_epp_flow_control_queue_size", *queue),
                registry.value("llm_d_epp_flow_control_queue_bytes", *queue),
                {},
            )
        return series

    def _on_received(self, event: Received) -> None:
        series = self._of(event.labels)
        series.total.value += 1.0
        series.size.observe(event.size_bytes)
        self._received[event.request_id] = event.at

    def _on_rewritten(self, event: Rewritten) -> None:
        bound = self._models.bound
        self.registry.value(
            "llm_d_epp_model_rewrite_decisions_total", event.rewrite, bound(event.model), bound(event.target)
        ).value += 1.0

    def _on_enqueued(self, event: Enqueued) -> None:
        series = self._of(event.labels)
        series.waiting.value += 1.0
        series.waiting_bytes.value += event.size_bytes

    def _on_dequeued(self, event: Dequeued) -> None:
        series = self._of(event.labels)
        series.waiting.value -= 1.0
        series.waiting_bytes.value -= event.size_bytes
        gone = series.gone.get(event.outcome)
        if gone is None:
            gone = series.gone[event.outcome] = self._gone(series, QueueOutcome(event.outcome).reference)
        gone[0].observe(event.waited)
        gone[1].value += 1.0

    def _gone(self, series: _Series, outcome: str) -> tuple[Histogram, Value]:
        model, target, flow, priority = series.key
        name = "llm_d_epp_flow_control_request_queue_duration_seconds"
        return (
            self.registry.histogram(name, flow, priority, outcome, series.pool, model, target),
            self.registry.value("llm_d_epp_flow_control_requests_total", outcome, priority, series.pool),
        )

    def _on_scheduled(self, event: Scheduled) -> None:
        status = "success" if event.outcome == "success" else "failure"
        port = event.address.rpartition(":")[2] if ":" in event.address else ""
        target = self._models.bound(event.labels.target)
        self.registry.value("llm_d_epp_scheduler_attempts_total", status, target, event.endpoint, "", port).value += 1.0
        if event.seconds is not None:
            self.registry.histogram("llm_d_epp_scheduler_e2e_duration_seconds").observe(event.seconds)

    def _on_started(self, event: Started) -> None:
        if event.attempt == 1:
            self._of(event.labels).running.value += 1.0
            received = self._received.pop(event.request_id, None)
            if received is not None:
                self.registry.histogram("llm_d_epp_request_processing_duration_seconds").observe(event.at - received)

    def _on_first_token(self, event: FirstToken) -> None:
        key = self._of(event.labels).key
        streaming = "true" if event.streaming else "false"
        self.registry.histogram("llm_d_epp_request_ttft_seconds", *key, streaming).observe(event.ttft)

    def _on_output_tokens(self, event: OutputTokens) -> None:
        key = self._of(event.labels).key
        self.registry.histogram("llm_d_epp_request_streaming_itl_seconds", *key).observe(event.gap)

    def _on_refused(self, event: Refused) -> None:
        self._received.pop(event.request_id, None)
        self._error(event.labels, event.code)

    def _on_ended(self, event: Ended) -> None:
        series = self._of(event.labels)
        series.running.value -= 1.0
        self._received.pop(event.request_id, None)
        if event.code:
            self._error(event.labels, event.code)
        key, usage, histogram = series.key, event.usage, self.registry.histogram
        histogram("llm_d_epp_request_duration_seconds", *key).observe(event.duration)
        for name, count in (
            ("llm_d_epp_request_input_tokens", usage.input_tokens),
            ("llm_d_epp_request_cached_tokens", usage.cached_tokens),
            ("llm_d_epp_request_output_tokens", usage.output_tokens),
            ("llm_d_epp_response_size_bytes", event.size_bytes),
        ):
            if count is not None:
                histogram(name, *key).observe(count)
        output = usage.output_tokens
        if output:
            histogram("llm_d_epp_request_ntpot_seconds", *key).observe(event.duration / output)
            if event.streaming and event.ttft is not None and output > 1:
                tpot = (event.duration - event.ttft) / (output - 1)
                histogram("llm_d_epp_request_streaming_tpot_seconds", *key).observe(tpot)

    def _error(self, labels: Labels, code: str) -> None:
        bound = self._models.bound
        flow = self._flows.bound(labels.fairness_id)
        self.registry.value(
            "llm_d_epp_request_error_total",
            bound(labels.model),
            bound(labels.target),
            flow,
            str(labels.priority),
            code,
        ).value += 1.0
