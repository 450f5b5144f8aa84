"""Does anything stay behind after two million requests whose clients go whenever they like?

    python tests/soak/soak_director.py [--requests 2000000] [--seed 0]

Requests come, wait, are served, tried again, cut off at any point of their lives, while servers leave and come back and time goes on.
In the end every counter must be zero; memory is read on the way, and must be flat after the first tenth.
"""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import inferencesched as isched
from inferencesched.director import Decision, Director, ServingPool
from inferencesched.flowcontrol import Capacity, FlowController, PriorityBand, QueueBudget, VirtualTokenCounter
from inferencesched.governance import Limit, Quota, Quotas, RateLimiter, RateRule
from inferencesched.governance.meters import Identity
from inferencesched.lifecycle import RetryPolicy
from inferencesched.observability import MetricsSink
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.request import Usage
from inferencesched.routing.objectives import InferenceObjective, ModelTable

SERVERS = 8
NAMES = tuple(f"ep-{i}" for i in range(SERVERS))
BODIES = tuple(
    json.dumps({"model": "llama", "messages": [{"role": "user", "content": f"Question {i}. " * (1 + i % 7)}]}).encode()
    for i in range(64)
)
OBJECTIVES = ("urgent", "", "batch")


class Places:
    """A gate of so many places."""

    def __init__(self, room: int) -> None:
        self.room, self.inside = room, 0

    def observe(self, endpoints: object, now: float) -> None: ...

    def level(self, now: float) -> float:
        return self.inside / self.room

    def dispatched(self, ticket: object, now: float) -> None:
        self.inside += 1

    def finished(self, ticket: object, now: float) -> None:
        self.inside -= 1


class Tenants:
    """A tenant of a few hundred, whose priority is bounded."""

    def identify(self, headers: dict[str, str], claims: object, *, now: float) -> Identity:
        tenant = headers["x-tenant"]
        return Identity(tenant, tenant, 10, tenant, True)


def resident() -> float:
    """Return the process's memory, MiB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


class Soak:
    """A director, its servers, and clients that go whenever they like."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pool = isched.InferencePool()
        for name in NAMES:
            self.pool.join(name)
        self.gate = Places(48)
        self.controller = FlowController(
            gate=self.gate,
            default=PriorityBand(0, capacity=Capacity(64), fairness=VirtualTokenCounter()),
            capacity=Capacity(80),
            budget=QueueBudget(ttl=2.0),
            displace="any",
            flow_ttl=20.0,
        )
        producer = ApproximatePrefixProducer(block_size=16, capacity=4096, seed=7)
        scheduler = isched.Scheduler(isched.default_profile(), producers=(producer,))
        self.limiter = RateLimiter([RateRule(requests=(Limit(200, per=1.0),), tokens=(Limit(1e6, per=1.0),))], most=500)
        self.quotas = Quotas([Quota(10**12, period="hour")])
        self.sink = MetricsSink(most_flows=100)
        self.director = Director(
            {"llama": ServingPool(self.pool, scheduler, self.controller)},
            models=ModelTable(objectives=(InferenceObjective("urgent", 10), InferenceObjective("batch", -1))),
            identity=Tenants(),
            meters=(self.limiter, self.quotas),
            retry=RetryPolicy(attempts=2),
            sink=self.sink,
        )
        self.now = 1.7e9
        self.waiting: list = []
        self.lives: list = []
        self.ends: Counter[str] = Counter()
        self.answered = 0

    def take(self, decision: Decision) -> None:
        self.answered += 1
        self.ends[decision.outcome] += 1
        if decision.life is not None:
            self.lives.append(decision.life)

    def step(self) -> None:
        for decision in self.director.step(self.now, self.rng):
            self.take(decision)

    def one(self, draws: list[float]) -> None:
        """Let one request come, and a few things happen."""
        self.now += 0.01 * draws[0]
        headers = {"x-tenant": f"t-{int(draws[1] * 300)}", "x-llm-d-inference-objective": OBJECTIVES[int(draws[2] * 3)]}
        body = BODIES[int(draws[3] * 64)]
        if draws[4] < 0.01:
            body = body[: int(len(body) * draws[5])]
        answer = self.director.decide(body, headers, now=self.now, rng=self.rng)
        if isinstance(answer, Decision):
            self.take(answer)
        else:
            self.waiting.append(answer)
        if self.waiting and draws[6] < 0.1:
            at = int(draws[7] * len(self.waiting))
            waiting = self.waiting[at]
            self.waiting[at] = self.waiting[-1]
            self.waiting.pop()
            decision = self.director.cancel(waiting.ticket, self.now)
            if decision is not None:
                self.take(decision)
        for i in (8, 10, 12):
            if self.lives and draws[i] < 0.34:
                at = int(draws[i + 1] * len(self.lives))
                life = self.lives[at]
                self.lives[at] = self.lives[-1]
                self.lives.pop()
                self.end(life, draws[i])
        if draws[14] < 0.001 and len(self.pool) > 2:
            self.pool.leave(self.pool.names[int(draws[15] * len(self.pool))])
        elif draws[14] > 0.998 and len(self.pool) < SERVERS:
            self.pool.join(next(name for name in NAMES if name not in self.pool.names))
        self.step()

    def end(self, life: object, draw: float) -> None:
        """Let a request go on a little and end, at some point of its life, in some way."""
        way = int(draw * 100_000) % 8
        if way & 1:
            life.first_token(now=self.now)
        if way & 2:
            life.tokens(3, now=self.now)
        if way == 0:
            decision = self.director.retry(life, "reset", now=self.now, rng=self.rng)
            if decision.forwarded:
                self.lives.append(life)
                return
        elif way in (3, 5):
            life.cancel(now=self.now)
        elif way == 6:
            life.fail(now=self.now)
        else:
            life.complete(Usage(100, 20, 50), now=self.now)
        self.ends[life.outcome] += 1

    def run(self, requests: int, say: object = lambda words: None) -> list[float]:
        """Run so many requests, end everybody, and hold every counter against zero; return the memory on the way."""
        memory: list[float] = []
        block = 1000
        for begin in range(0, requests, block):
            for draws in self.rng.random((min(block, requests - begin), 16)).tolist():
                self.one(draws)
            if len(self.waiting) > 1000:
                self.waiting = [each for each in self.waiting if each.ticket.outcome is None]
            if begin % max(block, requests // 20 // block * block) == 0:
                memory.append(resident())
                say(f"{begin:>9} requests, {memory[-1]:.1f} MiB, {len(self.director)} here")
        for life in self.lives:
            life.cancel(now=self.now)
        for decision in self.director.shutdown(self.now):
            self.take(decision)
        for life in self.lives:
            life.cancel(now=self.now)
        self.check(requests)
        return memory

    def check(self, requests: int) -> None:
        """Raise `AssertionError` unless everybody was answered once and nothing stayed behind."""
        self.director.check()
        assert self.answered == requests, (self.answered, requests)
        assert len(self.director) == 0, len(self.director)
        ledger = self.pool.ledger()
        assert (ledger.inflight_requests, ledger.inflight_tokens) == (0, 0), ledger
        assert self.gate.inside == 0, self.gate.inside
        assert not sum(band.requests + band.inflight for band in self.controller.bands)
        for tenant in range(300):
            left = self.limiter.left(Identity(f"t-{tenant}"), "llama", now=self.now + 1e9)
            assert left == {"requests": 200, "tokens": 1e6}, left
        for name in ("request_running", "flow_control_queue_size", "flow_control_queue_bytes"):
            family = next(each for each in self.sink.registry.families if each.name.endswith(f"_{name}"))
            for sample in self.sink.registry.samples(family):
                assert sample.value == 0, sample
        assert not self.sink._received


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    soak, began = Soak(options.seed), time.monotonic()
    memory = soak.run(options.requests, say)
    took = time.monotonic() - began
    settled = memory[max(1, len(memory) // 10) :]
    say(f"{options.requests} requests in {took:.0f} s: every counter at zero")
    say(f"memory from a tenth on: {min(settled):.1f} to {max(settled):.1f} MiB")
    say(", ".join(f"{name} {count}" for name, count in soak.ends.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
