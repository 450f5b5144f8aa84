"""How well did a replay go?

Times are ms. TTFT is first token minus arrival; TPOT = (E2E - TTFT) / (output - 1), of requests with two tokens or more;
ITL is every gap between two tokens of a request; percentiles interpolate linearly (numpy's default).
"""

from collections.abc import Mapping
from math import inf
from typing import Final

import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IntArray
from inferencesched.simulator.server import Fleet
from inferencesched.simulator.workload import Workload

#: What "good" means in ``goodput_requests``: time to the first token, and mean time per output token after it.
GOOD_TTFT_MS: Final = 2000.0
GOOD_TPOT_MS: Final = 25.0


def _percentiles(name: str, values: FloatArray, points: tuple[int, ...]) -> dict[str, float]:
    """Return ``name_mean`` and ``name_pNN``; NaN where there is nothing to measure."""
    if not len(values):
        return {f"{name}_mean": float("nan")} | {f"{name}_p{point}": float("nan") for point in points}
    found = np.percentile(values, points)
    return {f"{name}_mean": float(values.mean())} | {
        f"{name}_p{point}": float(value) for point, value in zip(points, found, strict=True)
    }


def in_time(
    ttft: FloatArray,
    e2e: FloatArray,
    outputs: IntArray,
    *,
    ttft_ms: float = GOOD_TTFT_MS,
    tpot_ms: float = GOOD_TPOT_MS,
) -> BoolArray:
    """Which requests had their first token within a bound, and on average each one after it? ``bool[N]``; who never ended was not."""
    per_token = np.where(outputs >= 2, (e2e - ttft) / np.maximum(1, outputs - 1), 0.0)
    within: BoolArray = (ttft <= ttft_ms) & (per_token <= tpot_ms)
    return within


def summarise(workload: Workload, fleet: Fleet) -> Mapping[str, float]:
    """What are the figures of this drained fleet?

    Keys as in Dynamo's replay reports: ``completed``, ``offered_rps`` (arrivals per second), ``rps`` and ``out_tps`` (per
    second, from the first arrival to the last token), ``hit`` (share of prompt tokens found cached, re-admissions after
    preemption included) and ``hit_first`` (without them), ``ttft_*``, ``tpot_*``, ``itl_*``, ``e2e_*``,
    ``readmissions``, ``regret_blocks`` (cached blocks on the best server beyond those on the chosen one, summed), ``uneven_requests`` and
    ``uneven_prefill`` (the most of any server over the mean: requests, and prompt tokens that it had to compute), ``growth`` (requests in flight when
    arrivals end, over their mean in the middle half of the arrivals: above 1.5 the fleet did not keep up), ``goodput_requests``. Requests that never finished are left out of all but ``hit``, those that were never sent of that, too.
    """
    done = ~np.isnan(fleet.finish)
    arrival, outputs = workload.arrival[done], workload.output_tokens[done]
    ttft = fleet.first_token[done] - arrival
    e2e = fleet.finish[done] - arrival
    several = outputs >= 2
    tpot = (e2e[several] - ttft[several]) / (outputs[several] - 1)
    first = float(workload.arrival.min(initial=inf))
    seconds = (float(fleet.finish[done].max()) - first) / 1e3 if done.any() else float("nan")
    prompts = max(1, int(fleet.prompt_tokens_all.sum()))
    itl_mean, itl_p50, itl_p99 = fleet.itl((50, 99))
    span = (float(workload.arrival.max()) - first) / 1e3 if len(workload) else 0.0
    figures: dict[str, float] = {
        "completed": int(done.sum()),
        "offered_rps": len(workload) / span if span > 0 else float("nan"),
        "rps": int(done.sum()) / seconds,
        "out_tps": int(outputs.sum()) / seconds,
        "hit": int(fleet.cached_tokens_all.sum()) / prompts,
        "hit_first": int(fleet.cached_tokens.sum()) / max(1, int(workload.input_tokens[fleet.server >= 0].sum())),
    }
    figures |= _percentiles("ttft", ttft, (50, 90, 95, 99))
    figures |= _percentiles("tpot", tpot, (50, 90, 99))
    figures |= {"itl_mean": itl_mean, "itl_p50": itl_p50, "itl_p99": itl_p99}
    figures |= _percentiles("e2e", e2e, (50, 90, 99))
    figures["readmissions"] = int(fleet.preemptions.sum())
    figures["regret_blocks"] = fleet.regret_blocks
    figures |= _balance(fleet, workload)
    figures["growth"] = _growth(workload.arrival[fleet.server >= 0], fleet.finish[fleet.server >= 0])
    figures["goodput_requests"] = int(in_time(ttft, e2e, outputs).sum())
    return figures


def _balance(fleet: Fleet, workload: Workload) -> dict[str, float]:
    """Return how uneven the servers' shares were; NaN where nothing was sent."""
    sent = fleet.server >= 0
    computed = (workload.input_tokens - fleet.cached_tokens)[sent]
    found = {}
    for name, weights in (("uneven_requests", None), ("uneven_prefill", computed)):
        shares = np.bincount(fleet.server[sent], weights=weights, minlength=fleet.servers)
        found[name] = float(shares.max() / shares.mean()) if shares.any() else float("nan")
    return found


def _growth(arrival: FloatArray, finish: FloatArray) -> float:
    """Return how many were in flight when the last came, over the mean of the middle half of arrivals; NaN for fewer than eight."""
    count = len(arrival)
    if count < 8:
        return float("nan")
    came, ended = np.sort(arrival), np.sort(finish[~np.isnan(finish)])
    flying = np.arange(1, count + 1) - np.searchsorted(ended, came, side="left")
    usual = float(flying[count // 4 : count - count // 4].mean())
    return float(flying[-1]) / max(1.0, usual)
