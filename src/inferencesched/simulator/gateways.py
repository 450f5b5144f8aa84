"""What does each of several gateways know? A scheduler and a pool each, and the peers' word a little late."""

from collections import deque
from math import inf
from typing import NamedTuple, final

import numpy as np

from inferencesched.pool import InferencePool
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.replication import Replica
from inferencesched.scheduler import Scheduler
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.server import Fleet


class Desk(NamedTuple):
    """Who decides, on what? One gateway."""

    scheduler: Scheduler
    pool: InferencePool


@final
class Gateways:
    """Which gateway has which request, and what have they told each other?

    Requests are dealt by lot. Every `interval` ms each gateway says what it did since (`Replica.delta`), which the others hear `gossip_ms` later; infinite is
    never. Their prefix indices have the same seed, as they must.
    """

    def __init__(
        self,
        policy: Policy,
        fleet: Fleet,
        count: int,
        gossip_ms: float,
        seed: np.random.SeedSequence,
        *,
        interval: float = 20.0,
    ) -> None:
        self.desks: list[Desk] = []
        self.gossip_ms = gossip_ms
        self.interval = interval
        self._replicas: list[Replica] = []
        self._flushed = 0.0
        self._air: deque[tuple[float, int, bytes]] = deque()
        for i in range(count):
            pool, scheduler = InferencePool(), policy.build(fleet)
            if count > 1 and gossip_ms < inf:
                replica = Replica(f"gateway-{i}", life=1)
                own = [each for each in scheduler.producers if isinstance(each, ApproximatePrefixProducer)]
                peers = replica.watch("pool", pool, own[0] if own else None)
                self._replicas.append(replica)
                scheduler = Scheduler(
                    scheduler.profiles, handler=scheduler.handler, producers=(*scheduler.producers, peers)
                )
            self.desks.append(Desk(scheduler, pool))
        requests = len(fleet.server)
        self._dealt: list[int] = (
            np.random.default_rng(seed).integers(count, size=requests).tolist() if count > 1 else [0] * requests
        )

    def desk(self, place: int) -> Desk:
        """Return the gateway of the request at this place of the trace."""
        return self.desks[self._dealt[place]]

    def gossip(self, now: float) -> None:
        """Say what is to be said at `now` ms, and hear what has arrived by then."""
        if not self._replicas:
            return
        if now - self._flushed >= self.interval:
            self._flushed = now
            for i, replica in enumerate(self._replicas):
                delta = replica.delta(now=now / 1e3)
                if delta is not None:
                    self._air.append((now + self.gossip_ms, i, delta))
        while self._air and self._air[0][0] <= now:
            _, said, delta = self._air.popleft()
            for i, replica in enumerate(self._replicas):
                if i != said:
                    replica.merge(delta, now=now / 1e3)
