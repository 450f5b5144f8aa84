"""What does the whole way of a request cost, and each part of it?

A chat body of 4 KB, 64 endpoints, a warm prefix index, an open gate, two meters, a rewrite, a route, metrics: a gateway's everyday decision.
Parts beside it: reading bodies of 4 KB, 32 KB and 1 MB, with escapes and without; guards with 200 patterns over 32 KB; limits; reading answers;
metrics. Rivals in the same run: ``json.loads``, msgspec without a shape, Python's ``re``, `prometheus_client`.
"""

import json
import random
import re
from itertools import count

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import inferencesched as isched
from inferencesched.adapters.re2 import Patterns
from inferencesched.director import Director, ServingPool
from inferencesched.flowcontrol import FlowController
from inferencesched.governance import (
    ApiKeys,
    Context,
    FinderGuard,
    Identity,
    KeyHolder,
    Keywords,
    Limit,
    PersonalData,
    Quota,
    Quotas,
    RateLimiter,
    RateRule,
)
from inferencesched.lifecycle import ResponseReader
from inferencesched.observability import FAMILIES, MetricsExtractor, MetricsSink, Registry, exposition
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.routing.body import parse_body
from inferencesched.routing.objectives import (
    InferenceObjective,
    ModelMatch,
    ModelRewrite,
    ModelTable,
    RewriteRule,
    WeightedModel,
)
from inferencesched.routing.routes import Backend, HTTPRoute, RouteRule, RouteTable
from inferencesched.routing.tokens import ByteTokenizer

ENDPOINTS = 64
PLAIN, ESCAPED = "and then it went on without a word ", 'he said "yes",\nand went … on '
SIZES = {"4 KB": 4_000, "32 KB": 32_000, "1 MB": 1_000_000}


def chat(size: int, words: str = PLAIN, turns: int = 8) -> bytes:
    """Return a chat of about so many bytes."""
    text = words * (size // turns // len(words.encode()))
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i} {text}"} for i in range(turns)]
    said = {"model": "llama", "messages": messages, "max_tokens": 256, "stream": True}
    return json.dumps(said, ensure_ascii=False).encode()


def director(without: str = "") -> Director:
    """Return a director of 64 endpoints with everything on but guards, and but for the part that is named."""
    isched.warmup()
    pool = isched.InferencePool()
    for i in range(ENDPOINTS):
        pool.join(f"ep-{i}", address=f"10.0.0.{i}:8000")
        columns = {isched.WAITING_QUEUE_SIZE: float(i % 5), isched.KV_CACHE_USAGE: 0.3, isched.RUNNING_REQUESTS: 3.0}
        pool.observe(f"ep-{i}", columns, now=0.0)
    producers = () if without == "prefix index" else (ApproximatePrefixProducer(block_size=16, seed=7),)
    stale = isched.StalePolicy(assume="trust")
    scheduler = isched.Scheduler(isched.default_profile(), producers=producers, stale=stale)
    rule = RewriteRule(ModelMatch(("llama",)), (WeightedModel("llama-8b", 9), WeightedModel("llama-8b-new", 1)))
    parts: dict[str, dict[str, object]] = {
        "models": {
            "models": ModelTable(
                rewrites=(ModelRewrite("canary", (rule,)),), objectives=(InferenceObjective("chat", 10),)
            )
        },
        "routes": {"routes": RouteTable([HTTPRoute("main", (RouteRule((Backend("llama"),)),))])},
        "identity": {"identity": ApiKeys({"sk-bench": KeyHolder("acme", 10)})},
        "limits": {
            "meters": (
                RateLimiter([RateRule(requests=(Limit(1e9),), tokens=(Limit(1e12),))]),
                Quotas([Quota(10**15)]),
            )
        },
        "metrics": {"sink": MetricsSink()},
    }
    kept = {name: part for each, named in parts.items() if each != without for name, part in named.items()}
    controller = None if without == "flow control" else FlowController()
    return Director({"llama": ServingPool(pool, scheduler, controller)}, **kept)  # type: ignore[arg-type]


HEADERS = {"host": "example.com", "x-api-key": "sk-bench", "x-llm-d-inference-objective": "chat"}


WITHOUT = ("", "prefix index", "flow control", "models", "metrics", "limits", "routes", "identity")


@pytest.mark.parametrize("without", WITHOUT)
@pytest.mark.benchmark(group="one decision on a 4 KB chat, 64 endpoints, prefix index warm, everything on but guards")
def bench_decide(benchmark: object, without: str) -> None:
    """`Director.decide` with the gate open; what ends the request is not timed. And what each part costs: the same without it."""
    made, body, rng, times = director(without), chat(4_000), np.random.default_rng(7), count(1)
    lives: list = []

    def before():
        while lives:
            lives.pop().complete(isched.Usage(1000, 50, 900), now=1.7e9 + next(times) * 1e-3)
        return (), {}

    def decide():
        decision = made.decide(body, HEADERS, now=1.7e9 + next(times) * 1e-3, rng=rng)
        lives.append(decision.life)

    for _ in range(300):
        before()
        decide()
    benchmark.pedantic(decide, setup=before, rounds=5_000)


@pytest.mark.benchmark(group="one decision on a 4 KB chat, 64 endpoints, prefix index warm, everything on but guards")
def bench_decide_and_complete(benchmark: object) -> None:
    """The same with its end: what a gateway spends on a request in all."""
    made, body, rng, times = director(), chat(4_000), np.random.default_rng(7), count(1)

    def whole():
        now = 1.7e9 + next(times) * 1e-3
        made.decide(body, HEADERS, now=now, rng=rng).life.complete(isched.Usage(1000, 50, 900), now=now)

    for _ in range(300):
        whole()
    benchmark(whole)


BODIES = {
    f"{size}, {kind}": chat(count, words)
    for size, count in SIZES.items()
    for kind, words in (("plain", PLAIN), ("escapes", ESCAPED))
}


@pytest.mark.parametrize("reader", ["parse_body", "prompt", "json.loads", "msgspec"])
@pytest.mark.parametrize("name", BODIES)
def bench_bodies(benchmark: object, name: str, reader: str) -> None:
    """Reading a body: its fields; its prompt and tokens too; and as plain JSON."""
    raw = BODIES[name]
    benchmark.group = f"a chat of {name} ({len(raw)} bytes)"
    tokenizer = ByteTokenizer()
    calls = {
        "parse_body": lambda: parse_body(raw, "chat"),
        "prompt": lambda: tokenizer.encode(parse_body(raw, "chat")),
        "json.loads": lambda: json.loads(raw),
        "msgspec": lambda: msgspec.json.decode(raw),
    }
    benchmark(calls[reader])
    benchmark.extra_info["MB/s"] = len(raw) / benchmark.stats.stats.median / 1e6


def prose(size: int = 32_768) -> str:
    """Return words that nobody looks for."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(2000)]
    return " ".join(rng.choices(words, k=size // 5))[:size]


PATTERNS = {f"rule-{i}": rf"(?:zeta{i}[- ]?code|secret{i}x\d{{3,6}}|token_{i}=\w{{8,64}})" for i in range(200)}
GUARDS = {
    "re2": lambda: Patterns(PATTERNS),
    "words": lambda: Keywords({f"rule-{i}": (f"zeta{i} project",) for i in range(200)}),
    "personal data": PersonalData,
}


@pytest.mark.parametrize("name", [*GUARDS, "re2, 3 hits", "Python's re"])
@pytest.mark.benchmark(group="guards: 200 patterns on 32 KB")
def bench_guards(benchmark: object, name: str) -> None:
    """A guard over 32 KB of text in which there is nothing, or little, to find."""
    text = prose()
    if name == "Python's re":
        one = re.compile("|".join(PATTERNS.values()))
        benchmark.pedantic(one.search, (text,), rounds=20)
        return
    if "hits" in name:
        text = f"{text[:9000]} secret7x1234 {text[9000:20000]} zeta9-code {text[20000:]} token_5=abcdefghij"
    guard = FinderGuard("g", GUARDS[name.partition(",")[0]]())
    benchmark(guard.check, (text,), Context())


@pytest.mark.benchmark(group="limits: reserve and settle")
def bench_rate_limiter(benchmark: object) -> None:
    """1,000 tenants, 4 models, requests and tokens both limited; a round is 4,000 pairs."""
    limiter = RateLimiter([RateRule(requests=(Limit(1e9, per=1.0),), tokens=(Limit(1e12),))])
    who, models, times = [Identity(f"t{i}") for i in range(1000)], "abcd", count()

    def pairs():
        now = next(times) * 1e-3
        for model in models:
            for identity in who:
                limiter.settle(limiter.reserve(identity, model, 900, now=now), 700, now=now)

    benchmark(pairs)
    benchmark.extra_info["pairs a second"] = 4000 / benchmark.stats.stats.median


@pytest.mark.benchmark(group="an answer, a chunk")
def bench_response_reader(benchmark: object) -> None:
    """256 events of a chat's stream, with the model's name given back; a round is all of them."""
    event = b'data: {"id":"1","model":"served","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'

    def read():
        reader = ResponseReader("chat", streaming=True, model="mine", served_model="served")
        for _ in range(256):
            reader.feed(event)

    benchmark(read)


def filled(gauges: int = 2000, histograms: int = 100) -> Registry:
    """Return a registry with so many series."""
    registry = Registry(FAMILIES)
    for i in range(gauges):
        registry.value("per_endpoint_queue_size", f"pool-{i % 20}", f"ep-{i}").value = float(i)
    for i in range(histograms):
        registry.histogram("request_ttft_seconds", "m", "m", f"flow-{i}", "0", "true").observe(0.1)
    return registry


@pytest.mark.parametrize("what", ["2,000 gauges", "100 histograms (2,700 lines)", "2,000 gauges, prometheus_client"])
@pytest.mark.benchmark(group="a scrape of our own metrics")
def bench_scrape(benchmark: object, what: str) -> None:
    """The text that Prometheus reads."""
    if "client" in what:
        theirs = CollectorRegistry()
        gauge = Gauge("queue", "x", ["name", "endpoint"], registry=theirs)
        for i in range(2000):
            gauge.labels(f"pool-{i % 20}", f"ep-{i}").set(i)
        benchmark(generate_latest, theirs)
        return
    registry = filled(histograms=0) if "gauges" in what else filled(gauges=0)
    benchmark(exposition, registry)


PAGE = (
    "".join(f'vllm:bucket{{engine="0",le="{i}"}} {i}\n' for i in range(2500))
    + 'vllm:num_requests_waiting{engine="0"} 3\nvllm:num_requests_running{engine="0"} 2\nvllm:kv_cache_usage_perc{engine="0"} 0.3\n'
)


@pytest.mark.parametrize("reader", ["MetricsExtractor", "prometheus_client"])
@pytest.mark.benchmark(group="a server's page of metrics, 2,503 lines")
def bench_page(benchmark: object, reader: str) -> None:
    """A page as a server's, of which three lines are wanted."""
    extractor = MetricsExtractor()
    if reader == "MetricsExtractor":
        benchmark(extractor.read, PAGE)
    else:
        benchmark.pedantic(lambda: list(text_string_to_metric_families(PAGE)), rounds=10)
