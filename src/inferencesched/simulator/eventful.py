"""What if servers fail, join and leave while requests come, prompts are computed apart, and several gateways decide?

A gateway's ways are kept: a server that does not answer is tried no more for this request and another is asked at once; who had its first token when its server
died is lost; a server that is drained ends what it has. Deterministic, as everything here.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from heapq import heappop, heappush
from math import inf, nan
from typing import Final

from inferencesched.errors import InvalidInputError, RequestRefusedError
from inferencesched.observability.autoscaling import Autoscaler
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Reservation
from inferencesched.simulator.incidents import Autoscaling
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.server import FINISHED, Events
from inferencesched.simulator.simulation import Cluster, Simulation
from inferencesched.simulator.workload import Workload

_NOT_THERE: Final = "connect"


class EventfulSimulation(Simulation):
    """What happens, request by request, to a fleet that things happen to? See `simulate`.

    ``lost`` are those whose server died after their first token, ``refused`` those whom nobody took, places in the trace; ``retried`` how often another server was
    asked; ``moved_ms`` how long keys and values took from one server to another, summed, and ``moved`` how often they did; ``sizes`` when how many servers were ready.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        super().__init__(workload, policy, cluster)
        self.lost: list[int] = []
        self.refused: list[int] = []
        self.retried = 0
        self.moved, self.moved_ms = 0, 0.0
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0  # ties happen in the order in which they were planned
        self._down: set[int] = set()
        self._draining: set[int] = set()
        self._booting: set[int] = set()
        #: Whose prompt is computed apart: its booking there, and who decodes.
        self._apart: dict[int, tuple[Reservation, int]] = {}
        scaling, absent = cluster.autoscaling, set[int]()
        for incident in sorted(cluster.incidents, key=lambda each: each.at_ms, reverse=True):
            (absent.add if incident.what == "join" else absent.discard)(incident.server)
        if scaling is not None:
            absent |= set(range(scaling.first, self.fleet.servers))
            self._plan(scaling.every_ms, partial(self._scale, scaling.autoscaler(self.fleet.servers), scaling))
        for incident in cluster.incidents:
            happen = {"fail": self._fail, "join": self._join, "drain": self._drain}[incident.what]
            self._plan(incident.at_ms, partial(happen, incident.server))
        for server in sorted(absent):
            self._leave(server)
        self.sizes: list[tuple[float, int]] = [(0.0, len(self.pool.names))]

    # -- time ------------------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Let happen what happens up to `now`, ms, in order of time; read the servers where the policy does."""
        while True:
            due = min(now, self._agenda[0][0]) if self._agenda else now
            at = min(due, self.fleet.advance_to_event(due)) if self.policy.staged else due
            if at == inf:
                self._hear(inf, None)
                if not self._agenda:
                    return
                continue
            super().look(at)
            self.gateways.gossip(at)
            self._leave_if_done()
            while self._agenda and self._agenda[0][0] <= at:
                heappop(self._agenda)[2](at)
            if at >= now:
                return

    def finish(self) -> None:
        """Let everything end."""
        self.look(inf)

    def _plan(self, at: float, act: Callable[[float], None]) -> None:
        self._number += 1
        heappush(self._agenda, (at, self._number, act))

    # -- requests --------------------------------------------------------------------------------------------------

    def send(
        self, request: InferenceRequest, place: int, now: float, exclude: frozenset[str] = frozenset()
    ) -> Reservation:
        """Decide where a request goes and send it there; a server that is down is found out by asking it."""
        scheduler, pool = self.gateways.desk(place)
        exclude |= frozenset(map(self.name_of, self._draining))
        while True:
            try:
                with pool.lock:
                    result = scheduler.schedule(request, pool.snapshot(), now=now / 1e3, rng=self.rng, exclude=exclude)
                    booked = dict(
                        scheduler.reserve_stages(result, pool, now=now / 1e3)
                        if len(result.profiles) > 1
                        else {result.primary: scheduler.reserve(result, pool, now=now / 1e3)}
                    )
            except RequestRefusedError:
                self.refused.append(place)
                raise
            servers = {name: self.at_slot[each.slot] for name, each in booked.items()}
            dead = frozenset(booked[name].endpoint for name, server in servers.items() if server in self._down)
            if not dead:
                break
            self.retried += 1
            exclude |= dead
            for each in booked.values():
                each.fail(_NOT_THERE, now=now / 1e3)
        main, server = booked.pop(result.primary), servers[result.primary]
        self.reservations[place] = main
        if booked:
            ((name, before),) = booked.items()  # prompts are computed in one stage: nothing is encoded here
            self._apart[place] = (before, server)
            self.fleet.prefill_only(place)
            server = servers[name]
        self.judge(place, server, now)
        self.fleet.enqueue(place, server, now)
        return main

    def _again(self, place: int, now: float, exclude: frozenset[str]) -> None:
        """Ask somebody else for a request that had no token yet."""
        self.retried += 1
        self.fleet.afresh(place, self._outputs[place])
        with suppress(RequestRefusedError):  # counted where it was raised
            self.send(self.request(place), place, now, exclude)

    def _sift(self, events: Events) -> Events:
        """Take out what prefill servers did: it is the decode servers that answer. Their keys and values are sent on."""
        if not self._apart:
            return events
        keep = [place not in self._apart for place in events.request.tolist()]
        for time, kind, place in zip(events.time.tolist(), events.kind.tolist(), events.request.tolist(), strict=True):
            if kind == FINISHED and place in self._apart:
                before, server = self._apart[place]
                before.complete(now=time / 1e3)
                took = self.cluster.transfer.ms(self.fleet.missing_tokens(place, server))
                self.moved, self.moved_ms = self.moved + 1, self.moved_ms + took
                self._plan(time + took, partial(self._hand_over, place))
        return Events(events.time[keep], events.kind[keep], events.request[keep])

    def _hand_over(self, place: int, now: float) -> None:
        _, server = self._apart.pop(place)
        reservation = self.reservations[place]
        assert reservation is not None
        self.fleet.hand_over(place, self._outputs[place])
        if reservation.settlement is None and server not in self._down:
            self.fleet.enqueue(place, server, now)
            return
        if reservation.settlement is None:
            reservation.fail(_NOT_THERE, now=now / 1e3)
        self._again(place, now, frozenset({reservation.endpoint}))

    # -- servers ---------------------------------------------------------------------------------------------------

    def _there(self) -> list[int]:
        """Return which servers the gateways know."""
        return sorted(self.at_slot[self.pool.snapshot().slots].tolist())

    def _fail(self, server: int, now: float) -> None:
        """Lose a server; who had no token yet is sent elsewhere at once, and the pool hears of it later."""
        if server in self._down or server not in self._there():
            return
        self._down.add(server)
        again, lost = self.fleet.crash(server)
        self._sized(now)
        name = frozenset({self.name_of(server)})
        for place in lost.tolist():
            self.lost.append(place)
            self._failed(place, now)
        for place in again.tolist():
            self._failed(place, now)
            self._again(place, now, name)
        self._plan(now + self.cluster.detect_ms, lambda _: self._leave(server) if server in self._down else None)

    def _failed(self, place: int, now: float) -> None:
        apart, reservation = self._apart.pop(place, None), self.reservations[place]
        for each in (None if apart is None else apart[0], reservation):
            if each is not None and each.settlement is None:
                each.fail("server_died", now=now / 1e3)

    def _join(self, server: int, now: float) -> None:
        self._booting.discard(server)
        if server in self._there() and server not in self._down:
            self._draining.discard(server)
            self._sized(now)
            return
        self._leave(server)
        self._down.discard(server)
        self.admit(server)
        self._sized(now)

    def _drain(self, server: int, now: float) -> None:
        if server in self._there() and server not in self._down:
            self._draining.add(server)
            self._sized(now)

    def _leave(self, server: int) -> None:
        self._draining.discard(server)
        if server in self._there():
            for desk in self.gateways.desks:
                desk.pool.leave(self.name_of(server))

    def _leave_if_done(self) -> None:
        """Have those leave who are drained and have nothing left to do."""
        for server in sorted(self._draining):
            coming = any(server == each for _, each in self._apart.values())
            if not coming and not self.fleet.in_flight(server):
                self._leave(server)

    def _ready(self) -> list[int]:
        """Return who takes requests."""
        return [server for server in self._there() if server not in self._draining | self._down]

    def _sized(self, now: float) -> None:
        self.sizes.append((now, len(self._ready())))

    def _scale(self, scaler: Autoscaler, scaling: Autoscaling, now: float) -> None:
        """Ask how many servers should be there, and have them join or drain."""
        in_flight = sum(desk.pool.ledger().inflight_requests for desk in self.gateways.desks)
        ready = self._ready()
        wanted = scaler.recommend(now=now / 1e3, ready=len(ready), demand=in_flight)
        missing = max(0, wanted - len(ready) - len(self._booting))
        back = sorted(self._draining)[:missing]  # who is still there need not boot
        for server in back:
            self._join(server, now)
        taken = self._down | self._booting | set(self._there())
        absent = [server for server in range(self.fleet.servers) if server not in taken]
        for server in absent[: missing - len(back)]:
            self._booting.add(server)
            self._plan(now + scaling.boot_ms, partial(self._join, server))
        for server in ready[wanted:]:
            self._drain(server, now)
        if in_flight or self.decided < len(self._arrival):
            self._plan(now + scaling.every_ms, partial(self._scale, scaler, scaling))

    def figures(self) -> Mapping[str, float]:
        """What happened beside what is always told?"""
        end = max((time for time in self.fleet.finish.tolist() if time == time), default=0.0)
        times = [min(time, end) for time, _ in self.sizes] + [end]
        spent = sum(size * (after - time) for (_, size), time, after in zip(self.sizes, times, times[1:], strict=False))
        return {
            "lost": len(self.lost),
            "refused": len(self.refused),
            "retried": self.retried,
            "moved_ms": self.moved_ms / self.moved if self.moved else nan,
            "servers_mean": spent / end if end else nan,
        }


def refuse_eventful(cluster: Cluster, policy: Policy, where: str) -> None:
    """Raise `InvalidInputError` where a kind of simulation knows of no incidents, autoscaling, stages or further gateways."""
    if cluster.eventful or policy.staged:
        raise InvalidInputError(
            "cluster", where, "incidents, autoscaling, stages and several gateways in an open loop without flow control"
        )
