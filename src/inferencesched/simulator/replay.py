"""What came of it, had these policies scheduled this traffic?"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from time import perf_counter
from typing import NamedTuple

import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError, RequestRefusedError
from inferencesched.reservation import Ledger
from inferencesched.simulator.admission import QueuedSimulation
from inferencesched.simulator.compiled import CompiledSimulation, compilable
from inferencesched.simulator.eventful import EventfulSimulation, refuse_eventful
from inferencesched.simulator.late import LateSimulation
from inferencesched.simulator.metrics import summarise
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.queueing import NONE, FlowControl
from inferencesched.simulator.server import Fleet
from inferencesched.simulator.simulation import Cluster, Simulation
from inferencesched.simulator.waiting import Waiting, waited
from inferencesched.simulator.workload import Workload

#: Called now and then with how many requests have arrived.
Progress = Callable[[int], None]
_PROGRESS_EVERY = 256


class Replay(NamedTuple):
    """What came of it?

    ``figures`` as `metrics.summarise` gives them; per request, in trace order: ``server`` int64[N], ``ttft`` and
    ``e2e`` float64[N] ms; ``ledger`` is the pool's at the end. ``decision_us_p50`` is the median time of
    `Scheduler.schedule_and_reserve`, ``wall_s`` the replay's alone: neither parsing nor compiling. ``flow`` is the flow control in
    front, ``waiting`` what came of that, by tenant and priority: None without flow control and tenants. Who was not served has no
    server (-1) and no times (NaN).
    """

    policy: str
    figures: Mapping[str, float]
    server: IntArray
    ttft: FloatArray
    e2e: FloatArray
    ledger: Ledger
    decision_us_p50: float
    wall_s: float
    flow: str = NONE
    waiting: Waiting | None = None

    @property
    def label(self) -> str:
        """What is it called beside others?"""
        return self.policy if self.flow == NONE else f"{self.policy} behind {self.flow}"


def simulate(
    workload: Workload,
    policy: Policy,
    cluster: Cluster | None = None,
    *,
    flow: FlowControl | None = None,
    progress: Progress | None = None,
    compiled: bool = True,
    regret: bool = False,
) -> Replay:
    """How does this policy serve this traffic on this cluster, with or without flow control in front?

    The simplest policies run in one kernel, with the same results, unless `compiled` is False: their decisions are not timed then. With `regret` every choice
    is held against a one-step roll-out of all servers with true lengths: the figure ``regret_ms`` is the mean of what it cost everybody more than the best (about 1 ms
    a decision and 8 servers).

    Deterministic in its arguments but for the two times. Cost: the Mooncake conversation trace (12,031 requests,
    4.1 M output tokens) on 8 servers takes about half a second; with flow control some 10 ms more for every second in which
    somebody waits. Errors: `InvalidInputError` before anything runs, `RequestRefusedError` if the policy refuses a request.

    >>> from inferencesched.simulator import Traffic, generate, policy
    >>> replay = simulate(generate(Traffic(requests=20), seed=1), policy("round-robin"), Cluster(servers=2))
    >>> replay.figures["completed"], replay.ledger.inflight_requests
    (20, 0)
    """
    cluster = Cluster() if cluster is None else cluster
    if compiled and not regret and flow is None and compilable(policy, cluster):
        return _compiled(workload, policy, cluster, progress)
    simulation = _begin(workload, policy, cluster, flow)  # first: the whole workload has to fit
    if regret:
        simulation.regret = np.full(len(workload), np.nan)
    _compile(workload, policy, cluster, flow)
    began = perf_counter()
    for place in range(len(workload)):
        _step(simulation)
        if progress is not None and place % _PROGRESS_EVERY == 0:
            progress(place)
    simulation.finish()
    wall = perf_counter() - began
    if progress is not None:
        progress(len(workload))
    fleet, arrival = simulation.fleet, simulation.workload.arrival
    decided = simulation.decision_ns[fleet.server >= 0]
    waiting: Waiting | None = None
    if isinstance(simulation, QueuedSimulation):
        waiting = waited(
            simulation.workload,
            fleet,
            simulation.outcomes,
            simulation.wait,
            simulation.contended,
            most_waiting=simulation.most_waiting,
        )
    elif workload.tenant is not None:
        waiting = waited(simulation.workload, fleet)
    figures = dict(summarise(simulation.workload, fleet))
    if isinstance(simulation, EventfulSimulation):
        figures |= simulation.figures()
    figures |= _memories(cluster, fleet)
    if simulation.regret is not None:
        judged = simulation.regret[~np.isnan(simulation.regret)]
        figures["regret_ms"] = float(judged.mean()) if len(judged) else float("nan")
    return Replay(
        policy.name,
        figures,
        fleet.server.copy(),
        fleet.first_token - arrival,
        fleet.finish - arrival,
        Ledger(*map(sum, zip(*(desk.pool.ledger() for desk in simulation.gateways.desks), strict=True))),
        float(np.median(decided)) / 1e3 if len(decided) else float("nan"),
        wall,
        NONE if flow is None else flow.name,
        waiting,
    )


def _compiled(workload: Workload, policy: Policy, cluster: Cluster, progress: Progress | None) -> Replay:
    simulation = CompiledSimulation(workload, policy, cluster)
    trial = CompiledSimulation(workload.head(4), policy, cluster)
    trial.advance()
    trial.finish()
    summarise(trial.workload, trial.fleet)
    began = perf_counter()
    while simulation.decided < len(workload):
        simulation.advance()
        if progress is not None:
            progress(simulation.decided)
    simulation.finish()
    wall = perf_counter() - began
    if progress is not None:
        progress(len(workload))
    fleet, arrival = simulation.fleet, simulation.workload.arrival
    return Replay(
        policy.name,
        dict(summarise(simulation.workload, fleet)) | _memories(cluster, fleet),
        fleet.server.copy(),
        fleet.first_token - arrival,
        fleet.finish - arrival,
        simulation.ledger(),
        float("nan"),
        wall,
        waiting=None if workload.tenant is None else waited(simulation.workload, fleet),
    )


def _memories(cluster: Cluster, fleet: Fleet) -> dict[str, float]:
    """Return what came of LoRA slots and the hosts' memories, where there are any."""
    figures: dict[str, float] = {}
    if cluster.engine.adapter_slots:
        figures["adapter_loads"] = fleet.adapter_loads
    if cluster.engine.host_blocks:
        figures["fetched_blocks"] = fleet.fetched_blocks
    return figures


def _step(simulation: Simulation | QueuedSimulation | LateSimulation) -> None:
    """Bring the next arrival; in a fleet that things happen to, one whom nobody takes is counted, and the run goes on."""
    if not isinstance(simulation, EventfulSimulation):
        simulation.step()
        return
    with suppress(RequestRefusedError):
        simulation.step()


def _begin(
    workload: Workload, policy: Policy, cluster: Cluster, flow: FlowControl | None
) -> Simulation | QueuedSimulation | LateSimulation:
    if (cluster.eventful or policy.staged) and flow is None and policy.bind is None:
        return EventfulSimulation(workload, policy, cluster)
    refuse_eventful(cluster, policy, "flow control or late binding")
    if policy.bind is not None:
        if flow is not None:
            raise InvalidInputError("flow", flow.name, f"none: {policy.name} has requests wait itself")
        return LateSimulation(workload, policy, cluster)
    if flow is None:
        return Simulation(workload, policy, cluster)
    return QueuedSimulation(workload, policy, cluster, flow)


def _compile(workload: Workload, policy: Policy, cluster: Cluster, flow: FlowControl | None) -> None:
    """Replay a few requests first, so that no kernel compiles while the clock runs."""
    trial = _begin(workload.head(4), policy, cluster, flow)
    for _ in range(len(trial.workload)):
        _step(trial)
    trial.finish()
    summarise(trial.workload, trial.fleet)
