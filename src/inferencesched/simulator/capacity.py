"""How much traffic can a fleet take before too many are served too late?"""

from dataclasses import replace
from math import isfinite
from typing import NamedTuple

from inferencesched.errors import InvalidInputError
from inferencesched.simulator.metrics import in_time
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.replay import Replay, simulate
from inferencesched.simulator.simulation import Cluster
from inferencesched.simulator.workload import Workload


class Capacity(NamedTuple):
    """Which speed-up is the greatest that still serves enough in time? Between ``held`` and ``failed``; ``points`` are all that were tried."""

    held: float
    failed: float
    points: tuple[tuple[float, float], ...]


def attainment(replay: Replay, workload: Workload, *, ttft_ms: float, tpot_ms: float) -> float:
    """Which share of the requests had their first token, and each one after it on average, in time?"""
    return float(in_time(replay.ttft, replay.e2e, workload.output_tokens, ttft_ms=ttft_ms, tpot_ms=tpot_ms).mean())


def capacity(
    workload: Workload,
    policy: Policy,
    cluster: Cluster | None = None,
    *,
    low: float,
    high: float,
    share: float = 0.9,
    ttft_ms: float = 2000.0,
    tpot_ms: float = 25.0,
    tolerance: float = 0.02,
) -> Capacity:
    """At which speed-up does the share served in time fall below `share`? Bisected to `tolerance` of it.

    The share is taken to fall as load grows; it need not, to the last request: the answer is one crossing. Errors: `InvalidInputError` where `low` does
    not hold or `high` does, and for bounds out of order. Cost: a replay a point, some 8 for a factor of 4.
    """
    if not (isfinite(high) and 0 < low < high):
        raise InvalidInputError("low, high", (low, high), "finite, 0 < low < high")
    if not 0 < share <= 1:
        raise InvalidInputError("share", share, "above 0, at most 1")
    if not 0 < tolerance < 1:
        raise InvalidInputError("tolerance", tolerance, "above 0, below 1")
    cluster = Cluster() if cluster is None else cluster
    points: list[tuple[float, float]] = []

    def holds(load: float) -> bool:
        replay = simulate(workload, policy, replace(cluster, speedup=load))
        points.append((load, attainment(replay, workload, ttft_ms=ttft_ms, tpot_ms=tpot_ms)))
        return points[-1][1] >= share

    if not holds(low):
        raise InvalidInputError(
            "low", low, f"a speed-up at which {share:.0%} are served in time, not {points[-1][1]:.1%}"
        )
    if holds(high):
        raise InvalidInputError(
            "high", high, f"a speed-up at which fewer than {share:.0%} are, not {points[-1][1]:.1%}"
        )
    while high - low > tolerance * low:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, high, tuple(sorted(points)))
