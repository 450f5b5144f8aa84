"""Which policy is better, on the same traffic and the same servers?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from inferencesched.errors import InvalidInputError
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.simulation import Cluster, Replay, simulate
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
    progress: ComparisonProgress | None = None,
) -> list[Run]:
    """How does each policy do at each load? One run a policy and a load, in that order; all see the same arrivals.

    Errors: those of `simulate`, and `InvalidInputError` for no policy, one given twice, or a load that is not a
    finite number above 0.

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
    runs: list[Run] = []
    total = len(names) * len(loads)
    for policy in policies:
        for load in loads:

            def tell(arrived: int, done: int = len(runs)) -> None:
                if progress is not None:
                    progress(done, total, arrived)

            heavier = replace(cluster, speedup=cluster.speedup * load)
            runs.append(Run(load, simulate(workload, policy, heavier, progress=tell)))
    return runs
