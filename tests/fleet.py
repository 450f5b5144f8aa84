"""A handful of servers behind a flow controller, event by event: how much waits at the servers when everybody comes at once?

Each server runs so many requests at once and queues the rest, first come, first served. Service times are exponential, and
belong to the server: the n-th request that it starts takes the n-th time, whichever that is, so that two runs differ by what
the gate did only. Whom a request goes to is least known load: what the gateway knows to be there.
"""

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

import numpy as np

import inferencesched as isched
from inferencesched.flowcontrol import FlowController, Gate, QueueItem, Ticket, UsageLimitPolicy


class Burst(NamedTuple):
    """What comes, to whom?"""

    servers: int = 8
    slots: int = 32
    mean: float = 2.0
    arrivals: int = 800
    within: float = 0.1
    until: float = 4.0
    scrape: float = 0.2


class Outcome(NamedTuple):
    """What came of it? ``peak`` is the most that waited at all servers together, ``fullest`` at one of them."""

    peak: int
    fullest: int
    completed: int
    dispatched: int


class Server:
    """One server: so many at once, the rest in a queue."""

    def __init__(self, times):
        self.times = iter(times)
        self.running = 0
        self.waiting = deque()


def run(burst: Burst, seed: int, gate: Gate, *, told: bool = True, limits: UsageLimitPolicy | None = None) -> Outcome:
    """Let a burst come. Scrapes are at 0 and every `scrape` seconds; what is due at one time happens in the order of its kind.

    Without `told` nobody tells the controller where a request went.
    """
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.random(burst.arrivals)) * burst.within
    servers = [Server(rng.exponential(burst.mean, burst.arrivals).tolist()) for _ in range(burst.servers)]
    pool = isched.InferencePool()
    for i in range(burst.servers):
        pool.join(f"s{i}")
    controller = FlowController(gate=gate, limits=limits)
    due: list[tuple[float, int, int, object]] = []
    order = count()
    for scrape in range(round(burst.until / burst.scrape)):
        heappush(due, (scrape * burst.scrape, 1, next(order), None))
    for i, at in enumerate(arrivals.tolist()):
        heappush(due, (at, 2, next(order), i))
    known = [0] * burst.servers
    peak = fullest = completed = dispatched = 0

    def start(place: int, ticket: Ticket, now: float) -> None:
        servers[place].running += 1
        heappush(due, (now + next(servers[place].times), 0, next(order), (place, ticket)))

    while due and due[0][0] < burst.until:
        now, kind, _, what = heappop(due)
        if kind == 0:
            place, ticket = what
            server = servers[place]
            server.running -= 1
            known[place] -= 1
            completed += 1
            if server.waiting:
                start(place, server.waiting.popleft(), now)
            controller.completed(ticket, now=now)
        elif kind == 1:
            for i, server in enumerate(servers):
                said = {
                    isched.WAITING_QUEUE_SIZE: len(server.waiting),
                    isched.RUNNING_REQUESTS: server.running,
                    isched.KV_CACHE_USAGE: 0.0,
                }
                pool.observe(f"s{i}", said, now=now)
            controller.observe(pool.snapshot(), now=now)
        else:
            controller.submit(QueueItem(request_id=f"r{what}"), now=now)
        for event in controller.step(now=now):
            ticket = event.ticket
            place = known.index(min(known))
            known[place] += 1
            dispatched += 1
            if told:
                controller.dispatched(ticket, f"s{place}", now=now)
            if servers[place].running < burst.slots:
                start(place, ticket, now)
            else:
                servers[place].waiting.append(ticket)
        peak = max(peak, sum(len(server.waiting) for server in servers))
        fullest = max(fullest, *(len(server.waiting) for server in servers))
    controller.check()
    return Outcome(peak, fullest, completed, dispatched)
