"""What would have happened, had these policies scheduled this traffic?

The scheduler, the pool and the reservations are the ones a gateway uses. The simulator brings time, arrivals and
servers, and says how stale scraped signals are.
"""

from collections import deque
from dataclasses import dataclass, field
from math import inf, isfinite
from time import perf_counter_ns

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import KV_BLOCK_SIZE, KV_BLOCKS, KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE
from inferencesched.errors import InvalidInputError, not_negative, whole_number
from inferencesched.marginal import LateBinder
from inferencesched.members import Adapters
from inferencesched.pool import InferencePool
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.request import InferenceRequest, Usage
from inferencesched.reservation import Reservation
from inferencesched.simulator.engine import EngineConfig, StepTime, timing
from inferencesched.simulator.gateways import Gateways
from inferencesched.simulator.incidents import Autoscaling, Incident, ServerGroup, Transfer
from inferencesched.simulator.news import Newsroom
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.server import FIRST_TOKEN, Events, Fleet
from inferencesched.simulator.workload import Workload


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which servers, how fast, and how well is the gateway informed?

    ``scrape_ms`` is how often each server's signals are read, at a phase of its own (50 ms as llm-d does; 0 is always
    fresh). ``answer_ms`` is how late the gateway hears of a first token and of an end; ``news_ms`` how late of blocks that a
    server stored or evicted (its KV events), of which a share of ``news_lost`` never arrives. What the gateway books itself is never
    stale. ``seed`` draws phases, losses and the policy's chances.

    A real fleet: ``groups`` of servers that differ (then ``servers`` is their sum); ``incidents``, of which the pool hears ``detect_ms`` late if a server fails;
    ``autoscaling``; ``transfer`` of keys and values where a policy has prompts computed apart; ``gateways`` to which requests are dealt by lot, and
    who hear of each other ``gossip_ms`` late (infinite: never). All of them scrape at the same times.
    """

    servers: int = 8
    engine: EngineConfig = field(default_factory=EngineConfig)
    timing: StepTime = field(default_factory=lambda: timing("dynamo-mocker"))
    speedup: float = 1.0
    scrape_ms: float = 50.0
    seed: int = 0
    answer_ms: float = 0.0
    news_ms: float = 0.0
    news_lost: float = 0.0
    groups: tuple[ServerGroup, ...] = ()
    incidents: tuple[Incident, ...] = ()
    detect_ms: float = 1_000.0
    autoscaling: Autoscaling | None = None
    transfer: Transfer = field(default_factory=Transfer)
    gateways: int = 1
    gossip_ms: float = inf

    def __post_init__(self) -> None:
        if self.groups:
            object.__setattr__(self, "servers", sum(group.servers for group in self.groups))
        whole_number("servers", self.servers, low=1)
        whole_number("gateways", self.gateways, low=1)
        if not self.gossip_ms >= 0:
            raise InvalidInputError("gossip_ms", self.gossip_ms, "ms of at least 0, or inf for never")
        for incident in self.incidents:
            if incident.server >= self.servers:
                raise InvalidInputError("incidents", incident.server, f"servers 0 to {self.servers - 1}")
        if self.autoscaling is not None and self.autoscaling.first > self.servers:
            raise InvalidInputError("autoscaling.first", self.autoscaling.first, f"at most {self.servers} servers")
        if not (isfinite(self.speedup) and self.speedup > 0):
            raise InvalidInputError("speedup", self.speedup, "a finite number above 0")
        for name in ("scrape_ms", "answer_ms", "news_ms", "detect_ms"):
            not_negative(name, getattr(self, name))
        if not 0 <= self.news_lost <= 1:
            raise InvalidInputError("news_lost", self.news_lost, "0 to 1")
        whole_number("seed", self.seed)

    @property
    def eventful(self) -> bool:
        """Does anything happen to it that needs its own simulation?"""
        return bool(self.incidents) or self.autoscaling is not None or self.gateways > 1

    @property
    def each(self) -> tuple[ServerGroup, ...]:
        """Return which group each server is of."""
        alike = self.groups or (ServerGroup(self.servers),)
        return tuple(group for group in alike for _ in range(group.servers))

    def fleet(self, workload: Workload, *, news: bool = False) -> Fleet:
        """Return these servers, before this traffic."""
        return Fleet(
            servers=self.servers,
            config=self.engine,
            timing=self.timing,
            input_tokens=workload.input_tokens,
            output_tokens=workload.output_tokens,
            blocks=workload.blocks,
            offsets=workload.offsets,
            news=news,
            adapters=None if workload.adapter is None else workload.adapter + 1,
            timings=[group.timing or self.timing for group in self.each],
            kv_blocks=[group.kv_blocks or self.engine.kv_blocks for group in self.each],
        )


class Course:
    """What do the scheduler, the pool and the servers of one replay have to do with each other, whoever sends requests?"""

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        workload = workload.at_speed(cluster.speedup).in_blocks(cluster.engine.block_size)
        self.workload = workload
        self.policy = policy
        self.cluster = cluster
        self.fleet = cluster.fleet(workload, news=policy.news)
        streams = np.random.SeedSequence(cluster.seed).spawn(4)
        self.gateways = Gateways(policy, self.fleet, cluster.gateways, cluster.gossip_ms, streams[3])
        self.scheduler, self.pool = self.gateways.desks[0]
        #: Which server has which slot of the pools.
        self.at_slot = self.fleet.at_slot
        for server in range(cluster.servers):
            self.admit(server)
        self.rng = np.random.default_rng(streams[0])
        self._phase = np.random.default_rng(streams[1]).random(cluster.servers) * cluster.scrape_ms
        self._scraped: FloatArray = np.full(cluster.servers, -inf)
        self._hashes = workload.block_hashes()
        heard = (producer for desk in self.gateways.desks for producer in desk.scheduler.producers)
        precise = [producer for producer in heard if isinstance(producer, PrecisePrefixProducer)]
        late, lost = cluster.news_ms, cluster.news_lost
        self._news = Newsroom(precise, workload, self.pool, late, lost, streams[2], self.at_slot)
        self._unheard: deque[tuple[float, int, int]] = deque()  # when the gateway hears of it, kind and place
        self._inputs: list[int] = workload.input_tokens.tolist()
        self._outputs: list[int] = workload.output_tokens.tolist()
        self._arrival: list[float] = workload.arrival.tolist()
        self._bounds: list[int] = workload.offsets.tolist()
        self._tenant: list[int] | None = None if workload.tenant is None else workload.tenant.tolist()
        self._adapters = workload.adapters
        self._adapter: list[int] | None = None if workload.adapter is None else workload.adapter.tolist()
        self._clock = -1.0
        self.decided = 0
        #: Where it is asked for (`judge`): ms that each choice cost everybody more than the best one would have, float64[N], NaN where nobody looked.
        self.regret: FloatArray | None = None
        self.reservations: list[Reservation | None] = [None] * len(workload)
        self.decision_ns = np.zeros(len(workload), dtype=np.int64)

    def request(self, place: int) -> InferenceRequest:
        """Return the request at this place of the trace, as a gateway would know it: no output length."""
        hashes = self._hashes[self._bounds[place] : self._bounds[place + 1]]
        adapter = "" if self._adapter is None or self._adapter[place] < 0 else self._adapters[self._adapter[place]]
        if self._tenant is None:
            return InferenceRequest(
                request_id=str(place), input_tokens=self._inputs[place], block_hashes=hashes, adapter=adapter
            )
        tenant = self.workload.tenants[self._tenant[place]]
        return InferenceRequest(
            request_id=str(place),
            input_tokens=self._inputs[place],
            block_hashes=hashes,
            adapter=adapter,
            priority=tenant.priority,
            fairness_id=tenant.name,
            tenant=tenant.name,
            slo_ttft=tenant.slo_ttft,
        )

    def name_of(self, server: int) -> str:
        """Return what the pools call a server."""
        return f"server-{server}"

    def admit(self, server: int) -> None:
        """Have a server join every gateway's pool."""
        group = self.cluster.each[server]
        values = {KV_BLOCKS: self.fleet.rooms[server], KV_BLOCK_SIZE: self.cluster.engine.block_size}
        name = self.name_of(server)
        for _, pool in self.gateways.desks:
            pool.join(name, labels=group.labels, values=values)
            endpoints = pool.snapshot()
            self.at_slot[int(endpoints.slots[endpoints.names.index(name)])] = server

    def send(self, request: InferenceRequest, place: int, now: float) -> Reservation:
        """Decide where the request at this place of the trace goes, and send it there, at `now` ms."""
        began = perf_counter_ns()
        reservation = self.scheduler.schedule_and_reserve(request, self.pool, now=now / 1e3, rng=self.rng)
        self.decision_ns[place] = perf_counter_ns() - began
        server = int(self.at_slot[reservation.slot])
        self.judge(place, server, now)
        self.fleet.enqueue(place, server, now)
        self.reservations[place] = reservation
        return reservation

    def send_bound(self, binder: LateBinder, now: float) -> int:
        """Let a binder decide, at `now` ms, and send whom it lets go; return how many."""
        began = perf_counter_ns()
        sent = binder.step(self.pool, now=now / 1e3)
        took = perf_counter_ns() - began
        for each in sent:
            place = int(each.request.request_id)
            self.decision_ns[place] = took // len(sent)
            server = int(self.at_slot[each.reservation.slot])
            self.judge(place, server, now)
            self.fleet.enqueue(place, server, now, each.order)
            self.reservations[place] = each.reservation
            self.decided += 1
        return len(sent)

    def look(self, now: float) -> None:
        """Let the servers run up to `now`, tell the gateway what it has heard by then, and read the servers where the policy does."""
        ticks = self._ticks(now) if self.policy.scrapes else None
        self._hear(now, ticks)
        if ticks is not None:
            self._observe(ticks)
        self._clock = now

    def judge(self, place: int, server: int, now: float) -> None:
        """Note by how much a choice is worse than the best, by a one-step roll-out with true lengths; nothing unless ``regret`` is an array."""
        if self.regret is not None:
            outcome = self.fleet.rollout(place, now)
            cost = outcome.finish + outcome.delay
            self.regret[place] = float(cost[server] - cost.min())

    def finish(self) -> None:
        """Let every server finish what it has."""
        self._hear(inf, None)

    def _hear(self, now: float, ticks: FloatArray | None) -> None:
        """Let the servers run up to `now`, and tell the gateway what it has heard of it by then."""
        events = self._sift(self.fleet.advance(now, ticks))
        if self.policy.news:
            self._news.tell(self.fleet.block_news(), now)
        if len(events.time):
            times = (events.time + self.cluster.answer_ms).tolist()
            self._unheard.extend(zip(times, events.kind.tolist(), events.request.tolist(), strict=True))
        while self._unheard and self._unheard[0][0] <= now:
            self._answered(*self._unheard.popleft())

    def _sift(self, events: Events) -> Events:
        """Return what of these events answers somebody."""
        return events

    def _answered(self, now: float, kind: int, place: int) -> None:
        """Tell a reservation what its server did."""
        reservation = self.reservations[place]
        assert reservation is not None
        if reservation.settlement is not None:  # its server left, and it was told so
            return
        if kind == FIRST_TOKEN:
            reservation.first_token(now=now / 1e3)
        else:
            usage = Usage(self._inputs[place], self._outputs[place], int(self.fleet.cached_tokens[place]))
            reservation.complete(usage, now=now / 1e3)

    def _ticks(self, now: float) -> FloatArray:
        """Return when each server was last read before `now`, float64[S] ms; NaN where that was delivered before."""
        interval = self.cluster.scrape_ms
        if not interval:
            return np.full(self.cluster.servers, now)
        ticks: FloatArray = np.minimum(np.floor((now - self._phase) / interval) * interval + self._phase, now)
        return np.where((ticks > self._scraped) & (ticks >= 0.0), ticks, np.nan)

    def _observe(self, ticks: FloatArray) -> bool:
        """Tell the pool what the servers said at these times, if anything; of those never read it keeps knowing nothing."""
        if np.isnan(ticks).all():
            return False
        self._scraped = np.where(np.isnan(ticks), self._scraped, ticks)
        for _, pool in self.gateways.desks:
            there = self.at_slot[pool.snapshot().slots]
            waiting, running, usage = self.fleet.signals[:, there]
            times = self._scraped[there] / 1e3
            pool.observe_all({WAITING_QUEUE_SIZE: waiting, RUNNING_REQUESTS: running, KV_CACHE_USAGE: usage}, now=times)
            if self._adapter is not None and self.cluster.engine.adapter_slots:
                self._observe_adapters(pool, ticks)
        return True

    def _observe_adapters(self, pool: InferencePool, ticks: FloatArray) -> None:
        """Tell a pool which adapters the servers that were just read have."""
        for name, slot in zip(pool.names, pool.snapshot().slots.tolist(), strict=True):
            server = int(self.at_slot[slot])
            if ticks[server] == ticks[server]:
                loaded, running, waiting = (
                    frozenset(self._adapters[each - 1] for each in numbers)
                    for numbers in self.fleet.adapters_seen(server)
                )
                slots = self.cluster.engine.adapter_slots
                known = Adapters(running, waiting, slots, loaded, slots=slots)
                pool.observe(name, {}, now=float(self._scraped[server]) / 1e3, adapters=known)


class Simulation(Course):
    """What happens, request by request? One replay of one workload under one scheduler; see `simulate`.

    Stepwise: `step` brings the next arrival and decides it, `finish` drains the servers.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        if policy.bind is not None:
            raise InvalidInputError(
                "policy", policy.name, "a policy that sends each request when it comes (`LateSimulation`)"
            )
        super().__init__(workload, policy, cluster)

    def arrive(self) -> tuple[InferenceRequest, float]:
        """Advance everything to the next arrival; return it and its time in ms. Nothing is decided yet."""
        place = self.decided
        now = self._arrival[place]
        always_fresh = self.policy.scrapes and not self.cluster.scrape_ms
        if now > self._clock or always_fresh:  # what is always fresh shows whom this very moment brought
            self.look(now)
        return self.request(place), now

    def step(self) -> Reservation:
        """Bring the next arrival, decide it, and send it to its server."""
        request, now = self.arrive()
        place = self.decided
        self.decided += 1
        return self.send(request, place, now)
