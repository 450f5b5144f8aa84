"""What does one decision cost? `pytest benchmarks/bench_schedule.py --benchmark-only` (or ``make bench``).

8 endpoints is a small pool, 64 a usual one, 256 a large one, 1,024 beyond what one gateway has today. Four everyday scorers
(prefix 3, queue 2, KV 2, running 1), the prefix column already in the snapshot. Rivals, in the same run: the same sums
in plain numpy, and over dicts of objects, as gateways written in Python do it.

The reference benchmark's profile (queue 2, KV 2, prefix 3, LoRA 1, best total) at 5, 25, 100 and 1,000 endpoints, as llm-d's
own benchmark has them; at 100 beside py-inference-scheduler's, which has no LoRA scorer: three scorers of its own, a
prompt of one block for its prefix hashes, its words to standard output thrown away.
"""

import contextlib
import os

import numpy as np
import pytest

import inferencesched as isched

SIZES = (8, 64, 256, 1024)
SCORERS = (
    (isched.PrefixCacheScorer(), 3.0),
    (isched.QueueScorer(), 2.0),
    (isched.KvCacheUtilizationScorer(), 2.0),
    (isched.RunningRequestsScorer(), 1.0),
)
REQUEST = isched.InferenceRequest(request_id="bench", input_tokens=1000)


def everyday_pool(count):
    rng = np.random.default_rng(7)
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}")
    pool.observe_all(
        {
            isched.WAITING_QUEUE_SIZE: rng.integers(0, 30, count).astype(float),
            isched.KV_CACHE_USAGE: rng.random(count),
            isched.RUNNING_REQUESTS: rng.integers(0, 99, count).astype(float),
        },
        now=0.0,
    )
    share = rng.random(count)
    columns = {isched.PREFIX_MATCH: share, isched.PREFIX_TOKENS: share * 1000}
    return pool, pool.snapshot().with_columns(columns), rng


def everyday_scheduler():
    weighted = tuple(isched.WeightedScorer(scorer, weight) for scorer, weight in SCORERS)
    return isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), weighted))


def plain_numpy(queue, running, kv, prefix, last):
    """The same decision written with numpy's verbs."""

    def relative(column):
        low, high = column.min(), column.max()
        return np.ones_like(column) if high == low else (high - column) / (high - low)

    totals = 3.0 * prefix + 2.0 * relative(queue) + 2.0 * (1.0 - kv) + 1.0 * relative(running)
    tied = np.flatnonzero(totals == totals.max())
    return int(tied[np.argmin(last[tied])])


def dicts(endpoints):
    """The same decision over a list of dicts, a scorer at a time, as the field's own routers do."""

    def relative(key):
        values = [endpoint[key] for endpoint in endpoints]
        low, high = min(values), max(values)
        return {e["name"]: 1.0 if high == low else (high - e[key]) / (high - low) for e in endpoints}

    totals = {endpoint["name"]: 0.0 for endpoint in endpoints}
    for weight, scores in (
        (3.0, {e["name"]: e["prefix"] for e in endpoints}),
        (2.0, relative("queue")),
        (2.0, {e["name"]: 1.0 - e["kv"] for e in endpoints}),
        (1.0, relative("running")),
    ):
        for name, score in scores.items():
            totals[name] += weight * min(1.0, max(0.0, score))
    best = max(totals.values())
    tied = [endpoint for endpoint in endpoints if totals[endpoint["name"]] == best]
    return min(tied, key=lambda endpoint: endpoint["last"])["name"]


def columns(endpoints):
    return [
        endpoints[signal].copy()
        for signal in (
            isched.WAITING_QUEUE_SIZE,
            isched.RUNNING_REQUESTS,
            isched.KV_CACHE_USAGE,
            isched.PREFIX_MATCH,
            isched.LAST_PICKED,
        )
    ]


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule, four everyday scorers")
def bench_schedule(benchmark, count):
    _, endpoints, rng = everyday_pool(count)
    scheduler = everyday_scheduler()
    queue, running, kv, prefix, last = columns(endpoints)
    scheduler.schedule(REQUEST, endpoints, now=0.5, rng=rng)  # a first call compiles: not what is measured
    answer = benchmark(scheduler.schedule, REQUEST, endpoints, now=0.5, rng=rng)
    assert answer.endpoint == endpoints.name(plain_numpy(queue, running, kv, prefix, last))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule, four everyday scorers")
def bench_plain_numpy(benchmark, count):
    _, endpoints, _ = everyday_pool(count)
    benchmark(plain_numpy, *columns(endpoints))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule, four everyday scorers")
def bench_dict_of_objects(benchmark, count):
    _, endpoints, _ = everyday_pool(count)
    names = ("queue", "running", "kv", "prefix", "last")
    rows = zip(*(column.tolist() for column in columns(endpoints)), strict=True)
    objects = [{"name": f"ep-{i}", **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    scheduler, rng = everyday_scheduler(), np.random.default_rng(0)
    answer = benchmark(dicts, objects)
    assert answer == scheduler.schedule(REQUEST, endpoints, now=0.5, rng=rng).endpoint


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule_and_reserve (the snapshot made anew each time)")
def bench_schedule_and_reserve(benchmark, count):
    pool, _, rng = everyday_pool(count)
    scheduler = everyday_scheduler()
    benchmark.pedantic(
        lambda: scheduler.schedule_and_reserve(REQUEST, pool, now=0.5, rng=rng), rounds=3000, warmup_rounds=50
    )
    pool.check()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule_many, a burst of 256: decided and booked")
def bench_schedule_many(benchmark, count):
    pool, _, rng = everyday_pool(count)
    scheduler, burst = everyday_scheduler(), [REQUEST] * 256

    def settle():
        for reservation in pool.sweep(np.finfo(float).max):
            assert reservation.outcome == "expired"

    pool.reservation_ttl = 1.0
    benchmark.extra_info["requests"] = len(burst)
    benchmark.pedantic(
        lambda: scheduler.schedule_many(burst, pool, now=0.5, rng=rng), setup=settle, rounds=200, warmup_rounds=5
    )
    settle()
    pool.check()


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.benchmark(group="schedule_many, a burst of 256: decided, booked, each looked at and settled")
def bench_schedule_many_and_settle(benchmark, count):
    pool, _, rng = everyday_pool(count)
    scheduler = everyday_scheduler()

    def burst():
        for reservation in scheduler.schedule_many([REQUEST] * 256, pool, now=0.5, rng=rng):
            reservation.complete(now=0.5)

    benchmark.pedantic(burst, rounds=20, warmup_rounds=2)
    assert pool.ledger().inflight_requests == 0
    pool.check()


# -- a burst with a prefix index ------------------------------------------------------------------------------------

PREFIXED = tuple(isched.WeightedScorer(scorer, weight) for scorer, weight in SCORERS[:3])


def shared_prompts(count, rng):
    """Prompts of 64 blocks, the first half of each one of 40: chat with long system prompts."""
    heads = [rng.integers(0, 2**63, 32, dtype=np.uint64) for _ in range(40)]
    chains = [np.concatenate([heads[i % 40], rng.integers(0, 2**63, 32, dtype=np.uint64)]) for i in range(count)]
    return [isched.InferenceRequest(request_id="bench", block_hashes=chain, input_tokens=4096) for chain in chains]


@pytest.mark.benchmark(group="schedule_many with a prefix index, a burst of 256 at 64 endpoints")
def bench_schedule_many_with_prefixes(benchmark):
    """At most 1.3 times a match, an insertion and 1 us a request: see the next."""
    pool, _, rng = everyday_pool(64)
    producer = isched.ApproximatePrefixProducer(block_size=64, capacity=100_000, seed=1)
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), PREFIXED), producers=(producer,))
    scheduler.schedule_many(shared_prompts(2000, rng), pool, now=0.5, rng=rng)
    benchmark.extra_info["requests"] = 256
    benchmark.pedantic(
        lambda burst: scheduler.schedule_many(burst, pool, now=0.5, rng=rng),
        setup=lambda: ((shared_prompts(256, rng),), {}),
        rounds=60,
        warmup_rounds=3,
    )
    producer.index.check()


@pytest.mark.benchmark(group="schedule_many with a prefix index, a burst of 256 at 64 endpoints")
def bench_match_and_insert_alone(benchmark):
    """The same prompts, matched and inserted in turn by `PrefixIndex` itself."""
    rng = np.random.default_rng(7)
    index, depths = isched.PrefixIndex(64, 100_000), np.empty(64, dtype=np.int32)

    def burst(chains):
        for i, chain in enumerate(chains):
            index.match(chain, depths)
            index.insert(i % 64, chain)

    burst([request.block_hashes for request in shared_prompts(2000, rng)])
    benchmark.extra_info["requests"] = 256
    benchmark.pedantic(
        burst,
        setup=lambda: (([request.block_hashes for request in shared_prompts(256, rng)],), {}),
        rounds=60,
        warmup_rounds=3,
    )


# -- the reference benchmark's profile ------------------------------------------------------------------------------

REFERENCE_SIZES = (5, 25, 100, 1000)
REFERENCE = (
    (isched.QueueScorer(), 2.0),
    (isched.KvCacheUtilizationScorer(), 2.0),
    (isched.PrefixCacheScorer(), 3.0),
    (isched.LoraAffinityScorer(), 1.0),
)


def reference_pool(count):
    rng = np.random.default_rng(7)
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}")
        values = {
            isched.WAITING_QUEUE_SIZE: float(rng.integers(0, 30)),
            isched.KV_CACHE_USAGE: float(rng.random()),
            isched.RUNNING_REQUESTS: float(rng.integers(0, 99)),
        }
        pool.observe(f"ep-{i}", values, now=0.0, adapters=isched.Adapters(frozenset({f"lora-{i % 8}"}), frozenset(), 4))
    share = rng.random(count)
    columns = {isched.PREFIX_MATCH: share, isched.PREFIX_TOKENS: share * 1000}
    return pool.snapshot().with_columns(columns), rng


def reference_scheduler():
    weighted = tuple(isched.WeightedScorer(scorer, weight) for scorer, weight in REFERENCE)
    return isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), weighted))


@pytest.mark.parametrize("count", REFERENCE_SIZES)
@pytest.mark.benchmark(group="schedule, the reference benchmark's profile, compiled")
def bench_reference_profile(benchmark, count):
    endpoints, rng = reference_pool(count)
    scheduler = reference_scheduler()
    request = isched.InferenceRequest(request_id="bench", model="lora-3", input_tokens=1000)
    scheduler.schedule(request, endpoints, now=0.5, rng=rng)
    answer = benchmark(scheduler.schedule, request, endpoints, now=0.5, rng=rng)
    why = isched.explain(scheduler, request, endpoints, now=0.5, rng=rng)
    assert answer.endpoint == why.picked[0]


@pytest.mark.benchmark(group="schedule, the reference benchmark's profile, compiled")
def bench_py_inference_scheduler(benchmark):
    peer = pytest.importorskip("py_inference_scheduler", reason="a rival that `make bench` installs")
    count = 100
    rng = np.random.default_rng(7)
    scorers = [{"type": name, "weight": w} for name, w in (("waiting_queue", 2), ("kv_cache", 2), ("prefix_cache", 3))]
    described = {
        "profile_handler": {"type": "single_profile"},
        "profiles": {"default": {"scorers": scorers, "picker": {"type": "max_score"}}},
    }
    scheduler = peer.Scheduler.new_with_config(peer.SchedulerConfig.from_dict(described))
    request = peer.LLMRequest(request_id="bench", target_model="m", headers={}, body="x" * 64)
    candidates = [
        peer.Endpoint(
            f"ep-{i}",
            {"routing_stats": {"kv": float(rng.random()), "num_waiting_reqs": int(rng.integers(0, 30))}},
        )
        for i in range(count)
    ]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert benchmark(scheduler.run, request, candidates)
