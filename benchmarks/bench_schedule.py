"""What does one decision cost? `pytest benchmarks/bench_schedule.py --benchmark-only` (or ``make bench``).

8 endpoints is a small pool, 64 a usual one, 256 a large one, 1,024 beyond what one gateway has today. Four everyday scorers
(prefix 3, queue 2, KV 2, running 1), the prefix column already in the snapshot. Rivals, in the same run: the same sums
in plain numpy, and over dicts of objects, as gateways written in Python do it.
"""

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
@pytest.mark.benchmark(group="schedule_many, a burst of 256, settled again")
def bench_schedule_many(benchmark, count):
    pool, _, rng = everyday_pool(count)
    scheduler = everyday_scheduler()

    def burst():
        for reservation in scheduler.schedule_many([REQUEST] * 256, pool, now=0.5, rng=rng):
            reservation.complete(now=0.5)

    benchmark.pedantic(burst, rounds=20, warmup_rounds=2)
    assert pool.ledger().inflight_requests == 0
    pool.check()
