"""Which policy is better, on the same traffic and the same servers?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import isfinite
from typing import NamedTuple

from inferencesched.errors import InvalidInputError
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.queueing import NONE, FlowControl
from inferencesched.simulator.replay import Replay, simulate
from inferencesched.simulator.simulation import Cluster
from inferencesched.simulator.workload import Workload

#: Called with (replays done, replays in all, requests of the present one that arrived).
ComparisonProgress = Callable[[int, int, int], None]


class Run(NamedTuple):
    """What came of one policy at one load? ``load`` multiplies the cluster's speed-up."""

    load: float
    replay: Replay


def compare(
    workload: Workload,
    policies: Sequence[Policy],
    cluster: Cluster | None = None,
    *,
    loads: Sequence[float] = (1.0,),
    flows: Sequence[FlowControl | None] = (None,),
    progress: ComparisonProgress | None = None,
) -> list[Run]:
    """How does each policy do at each load? One run a policy, a flow control (None is none) and a load, in that order.

    All see the same arrivals. Errors: those of `simulate`, and `InvalidInputError` for no policy or flow control, one given
    twice, or a load that is not a finite number above 0.

    >>> from inferencesched.simulator import Traffic, generate, policy
    >>> traffic = generate(Traffic(requests=20), seed=1)
    >>> runs = compare(traffic, [policy("random"), policy("least-request")], Cluster(servers=2))
    >>> [(run.replay.policy, run.load) for run in runs]
    [('random', 1.0), ('least-request', 1.0)]
    """
    cluster = Cluster() if cluster is None else cluster
    names = [policy.name for policy in policies]
    if not names or len(set(names)) != len(names):
        raise InvalidInputError("policies", names, "at least one policy, each once")
    if not loads or not all(isfinite(load) and load > 0 for load in loads):
        raise InvalidInputError("loads", list(loads), "finite numbers above 0, at least one")
    fronts = [NONE if flow is None else flow.name for flow in flows]
    if not fronts or len(set(fronts)) != len(fronts):
        raise InvalidInputError("flows", fronts, "at least one flow control, each once")
    runs: list[Run] = []
    total = len(names) * len(fronts) * len(loads)
    for policy, flow, load in product(policies, flows, loads):

        def tell(arrived: int, done: int = len(runs)) -> None:
            if progress is not None:
                progress(done, total, arrived)

        heavier = replace(cluster, speedup=cluster.speedup * load)
        runs.append(Run(load, simulate(workload, policy, heavier, flow=flow, progress=tell)))
    return runs
