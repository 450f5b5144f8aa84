"""Where did a request's time go? Spans of OpenTelemetry, made of the director's events.

::

    inferencesched.request            received .................................. answered or refused
      |-- inferencesched.admit        received ..... let go by the queue
      |-- inferencesched.schedule                   .. chosen
      `-- chat llama                                  handed over ..x........ ended      one for each attempt; x: the first token

Names and attributes of the span at the server are those of the semantic conventions for generative AI clients (``gen_ai.*``), 1.37 and
later; the others' begin with ``inferencesched.``. Prompts and answers are in none of them.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, final

from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from inferencesched.observability.events import (
    Dequeued,
    Ended,
    Enqueued,
    Event,
    FirstToken,
    PluginFailed,
    Received,
    Refused,
    Rewritten,
    Scheduled,
    Started,
)

#: ``gen_ai.operation.name`` of each API.
OPERATIONS: Final = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "vllm_generate": "text_completion",
    "sglang_generate": "text_completion",
    "embeddings": "embeddings",
}
_NANO: Final = 1_000_000_000
_SERVER_ERROR: Final = 500


@dataclass(slots=True)
class _Trace:
    """Which spans does a request have now?"""

    root: Span
    inside: context.Context
    operation: str
    begun: float
    since: float
    address: str = ""
    forward: Span | None = None


@final
class TracingSink:
    """Where did a request's time go? An `EventSink` that makes spans of what it hears.

    Parameters
    ----------
    tracer: of the gateway's; by default the global provider's.
    origin: the time of day, in seconds since the epoch, at which the director's clock was 0. By default that of ``time.monotonic``.

    The parent is the context that is current while `Director.decide` runs: that of a framework's own instrumentation, or of `Traced`.
    Give it beside the metrics: ``Sinks(MetricsSink(), TracingSink())``. Cost: that of four spans a request, some 120 us with the SDK's batches.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> spans, provider = InMemorySpanExporter(), TracerProvider()
    >>> provider.add_span_processor(SimpleSpanProcessor(spans))
    >>> from inferencesched.observability.events import Labels
    >>> sink = TracingSink(provider.get_tracer("gateway"), origin=0.0)
    >>> sink.emit(Received("r-1", Labels(model="llama"), 300, 1.0, "chat"))
    >>> sink.emit(Refused("r-1", Labels(model="llama"), "rate_limited", 429, "", 1.5))
    >>> [(span.name, span.attributes["http.response.status_code"]) for span in spans.get_finished_spans()][-1]
    ('inferencesched.request', 429)
    """

    def __init__(self, tracer: Tracer | None = None, *, origin: float | None = None) -> None:
        self._tracer = trace.get_tracer("inferencesched") if tracer is None else tracer
        self._origin = time.time() - time.monotonic() if origin is None else origin
        self._open: dict[str, _Trace] = {}
        self._calls: dict[type[Any], Callable[[Any, _Trace], None]] = {
            Rewritten: self._on_rewritten,
            Enqueued: self._on_enqueued,
            Dequeued: self._on_dequeued,
            Scheduled: self._on_scheduled,
            Started: self._on_started,
            FirstToken: self._on_first_token,
            PluginFailed: self._on_plugin_failed,
            Refused: self._on_refused,
            Ended: self._on_ended,
        }

    def __len__(self) -> int:
        """How many requests have spans that have not ended?"""
        return len(self._open)

    def emit(self, event: Event) -> None:
        """Take note of what happened."""
        if type(event) is Received:
            self._on_received(event)
            return
        call = self._calls.get(type(event))
        known = None if call is None else self._open.get(event.request_id)
        if call is not None and known is not None:
            call(event, known)

    # -- inside --------------------------------------------------------------------------------------

    def _time(self, at: float) -> int:
        return int((at + self._origin) * _NANO)

    def _on_received(self, event: Received) -> None:
        root = self._tracer.start_span(
            "inferencesched.request",
            kind=SpanKind.INTERNAL,
            start_time=self._time(event.at),
            attributes={
                "inferencesched.request_id": event.request_id,
                "inferencesched.priority": event.labels.priority,
                "gen_ai.request.model": event.labels.model,
                "http.request.body.size": event.size_bytes,
            },
        )
        inside = trace.set_span_in_context(root)
        operation = OPERATIONS.get(event.kind, "chat")
        self._open[event.request_id] = _Trace(root, inside, operation, event.at, event.at)

    def _on_rewritten(self, event: Rewritten, known: _Trace) -> None:
        known.root.add_event(
            "rewritten",
            {"inferencesched.rewrite": event.rewrite, "inferencesched.target_model": event.target},
            self._time(known.since),
        )

    def _on_enqueued(self, event: Enqueued, known: _Trace) -> None:
        known.since = event.at

    def _on_dequeued(self, event: Dequeued, known: _Trace) -> None:
        known.since += event.waited
        span = self._tracer.start_span(
            "inferencesched.admit",
            known.inside,
            start_time=self._time(known.begun),
            attributes={"inferencesched.outcome": event.outcome, "inferencesched.pool": event.labels.pool},
        )
        span.end(self._time(known.since))

    def _on_scheduled(self, event: Scheduled, known: _Trace) -> None:
        known.address = event.address
        span = self._tracer.start_span(
            "inferencesched.schedule",
            known.inside,
            start_time=self._time(known.since),
            attributes={
                "inferencesched.outcome": event.outcome,
                "inferencesched.endpoint": event.endpoint,
                "inferencesched.pool": event.labels.pool,
                **({} if event.prompt_tokens is None else {"inferencesched.prompt_tokens": event.prompt_tokens}),
                **({} if event.cached_tokens is None else {"inferencesched.cached_tokens": event.cached_tokens}),
            },
        )
        span.end(self._time(known.since + (event.seconds or 0.0)))

    def _on_started(self, event: Started, known: _Trace) -> None:
        if known.forward is not None:  # the attempt before this one has failed
            self._close(known.forward, "retried", event.at)
        host, _, port = known.address.rpartition(":")
        target = event.labels.target or event.labels.model
        known.since = event.at
        known.forward = self._tracer.start_span(
            f"{known.operation} {target}",
            known.inside,
            kind=SpanKind.CLIENT,
            start_time=self._time(event.at),
            attributes={
                "gen_ai.operation.name": known.operation,
                "gen_ai.request.model": target,
                "server.address": host or known.address,
                **({"server.port": int(port)} if port.isdigit() else {}),
                "inferencesched.endpoint": event.endpoint,
                "inferencesched.attempt": event.attempt,
            },
        )

    def _on_first_token(self, event: FirstToken, known: _Trace) -> None:
        if known.forward is not None:
            known.forward.set_attribute("inferencesched.ttft", event.ttft)
            known.forward.add_event("first_token", timestamp=self._time(known.begun + event.ttft))

    def _on_plugin_failed(self, event: PluginFailed, known: _Trace) -> None:
        known.root.add_event(
            "plugin_failed",
            {"inferencesched.stage": event.stage, "inferencesched.plugin": event.plugin, "error.type": event.error},
            self._time(known.since),
        )

    def _on_refused(self, event: Refused, known: _Trace) -> None:
        del self._open[event.request_id]
        root = known.root
        root.set_attribute("http.response.status_code", event.status)
        root.set_attribute("inferencesched.outcome", event.outcome)
        if event.status >= _SERVER_ERROR:
            self._close(root, event.outcome, event.at)
        else:
            root.end(self._time(event.at))

    def _on_ended(self, event: Ended, known: _Trace) -> None:
        del self._open[event.request_id]
        usage, failed = event.usage, event.outcome not in ("completed", "cancelled")
        known.root.set_attribute("inferencesched.outcome", event.outcome)
        known.root.set_attribute("inferencesched.tenant", event.labels.tenant)
        said = {
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        for span in (known.forward, known.root):
            if span is None:
                continue
            if span is known.forward:
                for name, value in said.items():
                    if value is not None:
                        span.set_attribute(name, value)
            if failed:
                self._close(span, event.outcome, event.at)
            else:
                span.end(self._time(event.at))

    def _close(self, span: Span, word: str, at: float) -> None:
        span.set_attribute("error.type", word)
        span.set_status(Status(StatusCode.ERROR, word))
        span.end(self._time(at))


@final
class Traced:
    """Whose trace is this request part of? An ASGI application round another that reads ``traceparent`` and what else is propagated.

    Not needed where a framework's own instrumentation does so.
    """

    __slots__ = ("_app",)

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer one request in its client's context."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        carried = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = context.attach(propagate.extract(carried))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)
