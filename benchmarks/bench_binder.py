"""What does a late decision cost: submit, look the prefix up, weigh every server, book?

64 endpoints (and 8), prompts of 24 blocks of which four are everybody's, two hundred requests in flight; nobody waits, so that each is sent at once. Prefixes by what was
sent where, by KV events, and by KV events with what was just booked. Rival in the same run: a scheduler with one scorer (`LMetricScorer`) and the same index.
"""

import itertools

import numpy as np
import pytest

from inferencesched import (
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    InferencePool,
    InferenceRequest,
    MaxScorePicker,
    Scheduler,
    SchedulingProfile,
    WeightedScorer,
)
from inferencesched.marginal import LateBinder
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.simulator import timing
from inferencesched.zoo import LMetricScorer

INDEXES = {
    "sent": lambda: ApproximatePrefixProducer(block_size=64, capacity=16_384, seed=1),
    "events": lambda: PrecisePrefixProducer(block_size=64, speculative_ttl=None),
    "events and booked": lambda: PrecisePrefixProducer(block_size=64, speculative_ttl=2.0),
}


def made(endpoints, index, *scorers):
    """A pool, a scheduler with this index, and requests without end."""
    pool = InferencePool()
    for i in range(endpoints):
        pool.join(f"s{i}", values={KV_BLOCKS: 16_384.0, KV_BLOCK_SIZE: 64.0})
    profile = SchedulingProfile(MaxScorePicker(), tuple(WeightedScorer(scorer) for scorer in scorers))
    rng = np.random.default_rng(0)
    prompts = [np.concatenate([np.arange(1, 5), rng.integers(1, 2**60, 20)]).astype(np.uint64) for _ in range(4000)]
    asked = (
        InferenceRequest(request_id=str(i), input_tokens=1536, block_hashes=prompts[i % len(prompts)])
        for i in itertools.count()
    )
    return pool, Scheduler(profile, producers=(INDEXES[index](),)), asked


def run(benchmark, decide, pool, asked):
    """Time `decide` on one request after another, ten milliseconds apart, two hundred in flight."""
    flying, clock = [], itertools.count()

    def before():
        if len(flying) > 200:
            flying.pop(0).complete(now=float(next(clock)))
        return (next(asked), next(clock) * 0.01), {}

    def one(request, now):
        flying.append(decide(request, now))
        return flying[-1]

    reservation = benchmark.pedantic(one, setup=before, rounds=3000, warmup_rounds=300)
    assert reservation.endpoint in pool.names


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("endpoints", [8, 64])
def bench_late(benchmark, endpoints, index):
    """Late binding."""
    pool, scheduler, asked = made(endpoints, index)
    binder = LateBinder(scheduler, timing("llama-3.1-8b-h100"), width=1e9)
    benchmark.group = f"{endpoints} endpoints"

    def decide(request, now):
        binder.submit(request, now=now)
        (sent,) = binder.step(pool, now=now)
        return sent.reservation

    run(benchmark, decide, pool, asked)


@pytest.mark.parametrize("endpoints", [8, 64])
def bench_at_once(benchmark, endpoints):
    """One scorer, sent at once."""
    pool, scheduler, asked = made(endpoints, "events", LMetricScorer())
    rng = np.random.default_rng(1)
    benchmark.group = f"{endpoints} endpoints"
    run(benchmark, lambda request, now: scheduler.schedule_and_reserve(request, pool, now=now, rng=rng), pool, asked)
