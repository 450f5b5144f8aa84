"""What if requests come when their sessions are ready for them, and not when a trace says?"""

from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from time import perf_counter

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError
from inferencesched.marginal import LateBinder
from inferencesched.simulator.eventful import refuse_eventful
from inferencesched.simulator.metrics import summarise
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.replay import Replay
from inferencesched.simulator.server import FINISHED
from inferencesched.simulator.simulation import Cluster, Course
from inferencesched.simulator.workload import Workload


class ClosedSimulation(Course):
    """What happens, event by event, if clients wait for answers? See `simulate_sessions`.

    ``arrival`` float64[N] ms is when each request came, NaN while it has not. The cluster's speed-up has sessions begin so many times as often; their
    pauses stay as they are.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster) -> None:
        if workload.precedence is None:
            raise InvalidInputError(
                "workload.precedence", None, "who waits for whom: without it there is no closed loop"
            )
        refuse_eventful(cluster, policy, "a closed loop")
        super().__init__(workload, policy, cluster)
        count, precedence = len(workload), workload.precedence
        self.arrival: FloatArray = np.full(count, np.nan)
        self.binder: LateBinder | None = None if policy.bind is None else policy.bind(self.fleet, self.scheduler)
        self._think: list[float] = precedence.think.tolist()
        self._open = np.diff(precedence.offsets).tolist()  # how many each still waits for
        self._behind: list[list[int]] = [[] for _ in range(count)]
        for place in range(count):
            for each in precedence.waits_for(place).tolist():
                self._behind[each].append(place)
        self._coming: list[tuple[float, int]] = []
        for place in range(count):
            if not self._open[place]:
                heappush(self._coming, (self._arrival[place], place))

    def run(self) -> None:
        """Let everybody come, and everything end."""
        while True:
            due = self._coming[0][0] if self._coming else inf
            if self._unheard:
                due = min(due, self._unheard[0][0])
            at = self.fleet.advance_to_event(due)
            if at == inf:  # nobody comes, nobody is heard of, and no server has anything to do
                break
            self.look(at)
            came = False
            while self._coming and self._coming[0][0] <= at:
                came = True
                self._come(heappop(self._coming)[1], at)
            if self.binder is not None and (came or len(self.binder)):
                self.send_bound(self.binder, at)
        if self.binder is not None and len(self.binder):
            raise InvalidInputError("binder", f"{len(self.binder)} waiting", "nobody who can go nowhere")

    def _come(self, place: int, now: float) -> None:
        self.arrival[place] = now
        request = self.request(place)
        if self.binder is not None:
            self.binder.submit(request, now=now / 1e3)
        else:
            self.send(request, place, now)
            self.decided += 1

    def _answered(self, now: float, kind: int, place: int) -> None:
        """Tell the gateway, and have those come who waited for it."""
        super()._answered(now, kind, place)
        if kind == FINISHED:
            for each in self._behind[place]:
                self._open[each] -= 1
                if not self._open[each]:
                    heappush(self._coming, (now + self._think[each], each))


def simulate_sessions(workload: Workload, policy: Policy, cluster: Cluster | None = None) -> Replay:
    """How does this policy serve these sessions, whose next request waits for the last one's answer?

    As `simulate`, in a closed loop: who waits for nobody comes at its arrival, everybody else a pause after those it waits for
    (``workload.precedence``) have ended at the client. Times to the first token count from when a request came. Deterministic in its arguments but for the two
    times. Cost: some 5 us a pass of any server, as the next thing to happen has to be looked for.

    >>> from inferencesched.simulator import Precedence, Traffic, generate, policy
    >>> traffic = generate(Traffic(requests=4), seed=1)
    >>> talk = Precedence.of([[], [0], [1], []], [0.0, 100.0, 100.0, 0.0])
    >>> replay = simulate_sessions(replace(traffic, precedence=talk), policy("round-robin"), Cluster(servers=2))
    >>> replay.figures["completed"], replay.ledger.inflight_requests
    (4, 0)
    """
    cluster = Cluster() if cluster is None else cluster
    simulation = ClosedSimulation(workload, policy, cluster)
    began = perf_counter()
    simulation.run()
    wall = perf_counter() - began
    fleet = simulation.fleet
    came = replace(simulation.workload, arrival=simulation.arrival)
    return Replay(
        policy.name,
        summarise(came, fleet),
        fleet.server.copy(),
        fleet.first_token - simulation.arrival,
        fleet.finish - simulation.arrival,
        simulation.pool.ledger(),
        float(np.median(simulation.decision_ns)) / 1e3 if len(workload) else float("nan"),
        wall,
    )
