"""What would have happened, had these policies scheduled this traffic?

The scheduler, the pool and the reservations are the ones a gateway uses. The simulator brings time, arrivals and
servers, and says how stale scraped signals are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from time import perf_counter, perf_counter_ns
from typing import NamedTuple

import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.endpoints import KV_BLOCK_SIZE, KV_BLOCKS, KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.pool import InferencePool
from inferencesched.request import InferenceRequest, Usage
from inferencesched.reservation import Ledger, Reservation
from inferencesched.scheduler import Scheduler
from inferencesched.simulator.engine import EngineConfig, StepTime, timing
from inferencesched.simulator.metrics import summarise
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.server import FIRST_TOKEN, Events, Fleet
from inferencesched.simulator.workload import Workload

#: Called now and then with how many requests have arrived.
Progress = Callable[[int], None]
_PROGRESS_EVERY = 256


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which servers, how fast, and how well is the gateway informed?

    ``scrape_ms`` is how often each server's signals are read, at a phase of its own (50 ms as llm-d does; 0 is always
    fresh). What the gateway books itself is never stale. ``seed`` draws phases and the policy's chances.
    """

    servers: int = 8
    engine: EngineConfig = field(default_factory=EngineConfig)
    timing: StepTime = field(default_factory=lambda: timing("dynamo-mocker"))
    speedup: float = 1.0
    scrape_ms: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number("servers", self.servers, low=1)
        if not (isfinite(self.speedup) and self.speedup > 0):
            raise InvalidInputError("speedup", self.speedup, "a finite number above 0")
        if not (isfinite(self.scrape_ms) and self.scrape_ms >= 0):
            raise InvalidInputError("scrape_ms", self.scrape_ms, "a finite number of at least 0")
        whole_number("seed", self.seed)


class Replay(NamedTuple):
    """What came of it?

    ``figures`` as `metrics.summarise` gives them; per request, in trace order: ``server`` int64[N], ``ttft`` and
    ``e2e`` float64[N] ms; ``ledger`` is the pool's at the end. ``decision_us_p50`` is the median time of
    `Scheduler.schedule_and_reserve`, ``wall_s`` the replay's alone: neither parsing nor compiling.
    """

    policy: str
    figures: Mapping[str, float]
    server: IntArray
    ttft: FloatArray
    e2e: FloatArray
    ledger: Ledger
    decision_us_p50: float
    wall_s: float


class Simulation:
    """What happens, request by request? One replay of one workload under one scheduler; see `simulate`.

    Stepwise: `step` brings the next arrival and decides it, `finish` drains the servers.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        workload = workload.at_speed(cluster.speedup).in_blocks(cluster.engine.block_size)
        self.workload = workload
        self.policy = policy
        self.cluster = cluster
        self.fleet = Fleet(
            servers=cluster.servers,
            config=cluster.engine,
            timing=cluster.timing,
            input_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
            blocks=workload.blocks,
            offsets=workload.offsets,
        )
        self.scheduler: Scheduler = policy.build(self.fleet)
        self.pool = InferencePool()
        for server in range(cluster.servers):
            self.pool.join(
                f"server-{server}",
                values={KV_BLOCKS: cluster.engine.kv_blocks, KV_BLOCK_SIZE: cluster.engine.block_size},
            )
        streams = np.random.SeedSequence(cluster.seed).spawn(2)
        self.rng = np.random.default_rng(streams[0])
        self._phase = np.random.default_rng(streams[1]).random(cluster.servers) * cluster.scrape_ms
        self._scraped: FloatArray = np.full(cluster.servers, -inf)
        self._hashes = workload.block_hashes()
        self._inputs: list[int] = workload.input_tokens.tolist()
        self._outputs: list[int] = workload.output_tokens.tolist()
        self._arrival: list[float] = workload.arrival.tolist()
        self._bounds: list[int] = workload.offsets.tolist()
        self._clock = -1.0
        self.decided = 0
        self.reservations: list[Reservation | None] = [None] * len(workload)
        self.decision_ns = np.zeros(len(workload), dtype=np.int64)

    def request(self, place: int) -> InferenceRequest:
        """Return the request at this place of the trace, as a gateway would know it: no output length."""
        return InferenceRequest(
            request_id=str(place),
            input_tokens=self._inputs[place],
            block_hashes=self._hashes[self._bounds[place] : self._bounds[place + 1]],
        )

    def arrive(self) -> tuple[InferenceRequest, float]:
        """Advance everything to the next arrival; return it and its time in ms. Nothing is decided yet."""
        place = self.decided
        now = self._arrival[place]
        always_fresh = self.policy.scrapes and not self.cluster.scrape_ms
        if now > self._clock or always_fresh:  # what is always fresh shows whom this very moment brought
            ticks = self._ticks(now) if self.policy.scrapes else None
            self._deliver(self.fleet.advance(now, ticks))
            if ticks is not None:
                self._observe(ticks)
            self._clock = now
        return self.request(place), now

    def step(self) -> Reservation:
        """Bring the next arrival, decide it, and send it to its server."""
        request, now = self.arrive()
        place = self.decided
        began = perf_counter_ns()
        reservation = self.scheduler.schedule_and_reserve(request, self.pool, now=now / 1e3, rng=self.rng)
        self.decision_ns[place] = perf_counter_ns() - began
        self.fleet.enqueue(place, reservation.slot, now)
        self.reservations[place] = reservation
        self.decided += 1
        return reservation

    def finish(self) -> None:
        """Let every server finish what it has."""
        self._deliver(self.fleet.advance(inf))

    def _deliver(self, events: Events) -> None:
        """Tell the reservations what their servers did."""
        if not len(events.time):
            return
        for time, kind, place in zip(events.time.tolist(), events.kind.tolist(), events.request.tolist(), strict=True):
            reservation = self.reservations[place]
            assert reservation is not None
            if kind == FIRST_TOKEN:
                reservation.first_token(now=time / 1e3)
            else:
                usage = Usage(self._inputs[place], self._outputs[place], int(self.fleet.cached_tokens[place]))
                reservation.complete(usage, now=time / 1e3)

    def _ticks(self, now: float) -> FloatArray:
        """Return when each server was last read before `now`, float64[S] ms; NaN where that was delivered before."""
        interval = self.cluster.scrape_ms
        if not interval:
            return np.full(self.cluster.servers, now)
        ticks: FloatArray = np.minimum(np.floor((now - self._phase) / interval) * interval + self._phase, now)
        return np.where((ticks > self._scraped) & (ticks >= 0.0), ticks, np.nan)

    def _observe(self, ticks: FloatArray) -> None:
        """Tell the pool what the servers said at these times; of those never read it keeps knowing nothing."""
        if np.isnan(ticks).all():
            return
        self._scraped = np.where(np.isnan(ticks), self._scraped, ticks)
        waiting, running, usage = self.fleet.signals
        self.pool.observe_all(
            {WAITING_QUEUE_SIZE: waiting, RUNNING_REQUESTS: running, KV_CACHE_USAGE: usage}, now=self._scraped / 1e3
        )


def simulate(
    workload: Workload, policy: Policy, cluster: Cluster | None = None, *, progress: Progress | None = None
) -> Replay:
    """How does this policy serve this traffic on this cluster?

    Deterministic in its arguments but for the two times. Cost: the Mooncake conversation trace (12,031 requests,
    4.1 M output tokens) on 8 servers takes about half a second. Errors: `InvalidInputError` before anything runs,
    `RequestRefusedError` if the policy refuses a request.

    >>> from inferencesched.simulator import Traffic, generate, policy
    >>> replay = simulate(generate(Traffic(requests=20), seed=1), policy("round-robin"), Cluster(servers=2))
    >>> replay.figures["completed"], replay.ledger.inflight_requests
    (20, 0)
    """
    cluster = Cluster() if cluster is None else cluster
    simulation = Simulation(workload, policy, cluster)  # first: the whole workload has to fit
    _compile(workload, policy, cluster)
    began = perf_counter()
    for place in range(len(workload)):
        simulation.step()
        if progress is not None and place % _PROGRESS_EVERY == 0:
            progress(place)
    simulation.finish()
    wall = perf_counter() - began
    if progress is not None:
        progress(len(workload))
    fleet, arrival = simulation.fleet, simulation.workload.arrival
    return Replay(
        policy.name,
        summarise(simulation.workload, fleet),
        fleet.server.copy(),
        fleet.first_token - arrival,
        fleet.finish - arrival,
        simulation.pool.ledger(),
        float(np.median(simulation.decision_ns)) / 1e3 if len(workload) else float("nan"),
        wall,
    )


def _compile(workload: Workload, policy: Policy, cluster: Cluster) -> None:
    """Replay a few requests first, so that no kernel compiles while the clock runs."""
    trial = Simulation(workload.head(4), policy, cluster)
    for _ in range(len(trial.workload)):
        trial.step()
    trial.finish()
    summarise(trial.workload, trial.fleet)
