"""Do the spans say what happened, in the names of the semantic conventions, and does each request's end?"""

import numpy as np
import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import inferencesched as isched
from inferencesched.adapters.opentelemetry import Traced, TracingSink
from inferencesched.director import Director, ServingPool
from inferencesched.flowcontrol import FlowController
from inferencesched.lifecycle import RetryPolicy
from tests.director_parts import queue

BODY = b'{"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}'


class Bench:
    """A director of two servers whose spans are kept."""

    def __init__(self, controller=None, **more):
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.tracer = provider.get_tracer("test")
        self.sink = TracingSink(self.tracer, origin=1000.0)
        pool = isched.InferencePool()
        for i in range(2):
            pool.join(f"ep-{i}", address=f"10.0.0.{i}:8000")
        serving = ServingPool(pool, isched.Scheduler(isched.default_profile()), controller or FlowController())
        self.director = Director({"llama": serving}, sink=self.sink, **more)
        self.rng = np.random.default_rng(7)

    def ask(self, now, body=BODY, headers=None, **more):
        return self.director.decide(body, headers or {}, now=now, rng=self.rng, **more)

    def named(self):
        return {span.name: span for span in self.spans.get_finished_spans()}


def test_a_request_that_is_answered():
    bench = Bench()
    life = bench.ask(1.0, headers={"x-request-id": "r-1"}).life
    life.first_byte(now=1.25)
    life.tokens(1, now=1.25)
    life.complete(isched.Usage(12, 5, 8), now=2.0)
    spans = bench.named()
    assert set(spans) == {"inferencesched.request", "inferencesched.admit", "inferencesched.schedule", "chat llama"}
    root, forward = spans["inferencesched.request"], spans["chat llama"]
    assert all(span.parent.span_id == root.context.span_id for span in spans.values() if span is not root)
    assert (root.start_time, root.end_time) == (1_001_000_000_000, 1_002_000_000_000)
    assert forward.kind is SpanKind.CLIENT
    said = dict(forward.attributes)
    assert said.pop("inferencesched.ttft") == 0.25
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "llama",
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 8,
        "server.address": "10.0.0.0" if said["inferencesched.endpoint"] == "ep-0" else "10.0.0.1",
        "server.port": 8000,
        "inferencesched.endpoint": life.endpoint,
        "inferencesched.attempt": 1,
    }
    assert [(event.name, event.timestamp) for event in forward.events] == [("first_token", 1_001_250_000_000)]
    assert root.attributes["inferencesched.request_id"] == "r-1"
    assert root.attributes["inferencesched.outcome"] == "completed"
    assert len(bench.sink) == 0


def test_a_retry_is_another_span_and_a_failure_has_its_word():
    bench = Bench(retry=RetryPolicy(2, budget=None))
    life = bench.ask(1.0).life
    first = life.endpoint
    again = bench.director.retry(life, "reset", now=1.5, rng=bench.rng)
    again.life.fail(now=2.0)
    attempts = [span for span in bench.spans.get_finished_spans() if span.name == "chat llama"]
    assert [span.attributes["inferencesched.attempt"] for span in attempts] == [1, 2]
    assert (
        attempts[0].attributes["inferencesched.endpoint"] == first != attempts[1].attributes["inferencesched.endpoint"]
    )
    assert [span.attributes["error.type"] for span in attempts] == ["retried", "failed"]
    assert bench.named()["inferencesched.request"].status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/chat/completions", b'{"model": "", "messages": [{"role": "user", "content": "x"}]}', 400)],
)
def test_a_refusal_before_anything_is_known_leaves_nothing_open(path, body, status):
    bench = Bench()
    assert bench.ask(1.0, body, path=path).status == status
    assert len(bench.sink) == 0


def test_a_request_that_waits_and_whose_client_goes():
    bench = Bench(queue(0))
    waiting = bench.ask(1.0)
    assert len(bench.sink) == 1
    bench.director.cancel(waiting.ticket, 3.0)
    spans = bench.named()
    assert set(spans) == {"inferencesched.request", "inferencesched.admit"}
    assert spans["inferencesched.admit"].attributes["inferencesched.outcome"] == "evicted_cancelled"
    assert spans["inferencesched.admit"].end_time - spans["inferencesched.admit"].start_time == 2_000_000_000
    assert len(bench.sink) == 0


def test_the_parent_is_whatever_is_current():
    bench = Bench()
    with bench.tracer.start_as_current_span("a framework's own") as parent:
        bench.ask(1.0).life.complete(now=2.0)
    root = bench.named()["inferencesched.request"]
    assert root.parent.span_id == parent.get_span_context().span_id


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_s_traceparent_is_read(anyio_backend):
    seen = []

    async def app(scope, receive, send):
        seen.append(trace.get_current_span().get_span_context())

    name = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await Traced(app)({"type": "http", "headers": [(b"traceparent", name.encode())]}, None, None)
    await Traced(app)({"type": "lifespan"}, None, None)
    assert [f"{each.trace_id:032x}" for each in seen] == ["0af7651916cd43dd8448eb211c80319c", "0" * 32]
    assert not trace.get_current_span(context.get_current()).get_span_context().is_valid


def test_any_way_of_a_request_leaves_no_span_open():
    rng = np.random.default_rng(3)
    bench = Bench(retry=RetryPolicy(3, budget=None))
    now = 1.0
    for i in range(300):
        now += 0.01
        decision = bench.ask(now, BODY if i % 7 else b"{")
        if decision.life is None:
            continue
        how = rng.integers(4)
        if how == 0:
            decision.life.complete(now=now)
        elif how == 1:
            decision.life.cancel(now=now)
        elif how == 2:
            decision.life.fail(now=now)
        else:
            retried = bench.director.retry(decision.life, "connect", now=now, rng=bench.rng)
            if retried.life is not None:
                retried.life.complete(now=now)
    assert len(bench.sink) == 0
    names = [span.name for span in bench.spans.get_finished_spans()]
    assert names.count("inferencesched.request") == 300 - len(range(0, 300, 7))
