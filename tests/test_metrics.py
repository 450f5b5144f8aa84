"""Are the figures what plain arithmetic makes of each request's own times?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.simulator import (
    Cluster,
    EngineConfig,
    Fleet,
    Simulation,
    Traffic,
    Workload,
    generate,
    policy,
    timing,
)
from inferencesched.simulator.metrics import GOOD_TPOT_MS, GOOD_TTFT_MS, summarise
from tests import naive_engine

#: Few blocks, so that requests are thrown out and admitted again.
TIGHT = Cluster(servers=2, engine=EngineConfig(kv_blocks=120), seed=1)
TRAFFIC = generate(
    Traffic(requests=120, rate=2.0, system_tokens=600, user_tokens=300, output_tokens=90, think_seconds=2.0), seed=3
)


def played(workload, cluster, name="round-robin", drain=True):
    simulation = Simulation(workload, policy(name), cluster)
    for _ in range(len(workload)):
        simulation.step()
    if drain:
        simulation.finish()
    return simulation.workload, simulation.fleet


def recomputed(workload, fleet):
    """The same figures, from a twin that keeps every token's time: request by request, no columns."""
    rows = [
        (int(workload.input_tokens[i]), int(workload.output_tokens[i]), workload.full_blocks(i).tolist())
        for i in range(len(workload))
    ]
    twin = naive_engine.Fleet(fleet.servers, fleet.config, timing("dynamo-mocker"), rows)
    for place, (arrival, server) in enumerate(zip(workload.arrival.tolist(), fleet.server.tolist(), strict=True)):
        twin.advance(arrival, [float("nan")] * fleet.servers)
        twin.enqueue(place, server, arrival)
    twin.advance(float("inf"), [float("nan")] * fleet.servers)
    ttft, tpot, gaps, e2e, good = [], [], [], [], 0
    for request, arrival in zip(twin.requests, workload.arrival.tolist(), strict=True):
        times = request.tokens_at
        ttft.append(times[0] - arrival)
        e2e.append(request.finish - arrival)
        gaps += np.diff(times).tolist()
        per_token = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        tpot += [per_token] if len(times) > 1 else []
        good += ttft[-1] <= 2000.0 and per_token <= 25.0
    admissions = [admission for request in twin.requests for admission in request.admissions]
    seconds = (max(request.finish for request in twin.requests) - float(workload.arrival[0])) / 1e3
    span = (workload.arrival[-1] - workload.arrival[0]) / 1e3
    figures = {
        "completed": len(rows),
        "offered_rps": len(rows) / span if span else float("nan"),
        "rps": len(rows) / seconds,
        "out_tps": sum(outputs for _, outputs, _ in rows) / seconds,
        "hit": sum(cached for cached, _ in admissions) / sum(known for _, known in admissions),
        "hit_first": sum(request.admissions[0][0] for request in twin.requests) / sum(inputs for inputs, *_ in rows),
    }
    for name, values, points in (
        ("ttft", ttft, (50, 90, 95, 99)),
        ("tpot", tpot, (50, 90, 99)),
        ("itl", gaps, (50, 99)),
        ("e2e", e2e, (50, 90, 99)),
    ):
        figures[f"{name}_mean"] = np.mean(values) if values else float("nan")
        figures |= {f"{name}_p{p}": np.percentile(values, p) if values else float("nan") for p in points}
    servers = fleet.server.tolist()
    shares = [[0] * fleet.servers, [0] * fleet.servers]
    for server, (inputs, *_), request in zip(servers, rows, twin.requests, strict=True):
        shares[0][server] += 1
        shares[1][server] += inputs - request.admissions[0][0]
    came = workload.arrival.tolist()
    # who came, itself included, less who had ended before
    flying = [i + 1 - sum(request.finish < at for request in twin.requests) for i, at in enumerate(came)]
    usual = flying[len(came) // 4 : len(came) - len(came) // 4]
    return figures | {
        "readmissions": sum(request.preemptions for request in twin.requests),
        "regret_blocks": twin.regret_blocks,
        "uneven_requests": max(shares[0]) / np.mean(shares[0]),
        "uneven_prefill": max(shares[1]) / np.mean(shares[1]),
        "growth": flying[-1] / max(1.0, np.mean(usual)) if len(came) >= 8 else float("nan"),
        "goodput_requests": good,
    }


def test_the_figures_are_those_of_each_token_s_time():
    workload, fleet = played(TRAFFIC, TIGHT)
    figures = summarise(workload, fleet)
    expected = recomputed(workload, fleet)
    assert figures == pytest.approx(expected, rel=1e-9)
    assert list(figures) == list(expected), "in this order"
    assert figures["readmissions"] > 0 and figures["regret_blocks"] > 0
    assert 0 < figures["goodput_requests"] < len(workload)
    assert figures["hit"] != figures["hit_first"] > 0


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 60), st.integers(0, 12), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_the_workload(rows):
    rows.sort()
    arrival, inputs, outputs, family = zip(*rows, strict=True)
    blocks = [[100 * f + j for j in range(n // 8)] for f, n in zip(family, inputs, strict=True)]
    workload = Workload.of("any", arrival, inputs, outputs, blocks, block_size=8)
    cluster = Cluster(servers=2, engine=EngineConfig(kv_blocks=10, block_size=8, max_sequences=3, max_tokens=24))
    workload, fleet = played(workload, cluster)
    assert summarise(workload, fleet) == pytest.approx(recomputed(workload, fleet), rel=1e-9, nan_ok=True)


def test_requests_that_are_not_finished_are_left_out():
    workload, fleet = played(TRAFFIC, TIGHT, drain=False)
    done = ~np.isnan(fleet.finish)
    assert 0 < done.sum() < len(workload)
    figures = summarise(workload, fleet)
    assert figures["completed"] == done.sum()
    assert figures["ttft_mean"] == pytest.approx((fleet.first_token - workload.arrival)[done].mean())
    assert figures["rps"] == pytest.approx(done.sum() / (np.nanmax(fleet.finish) - workload.arrival[0]) * 1e3)


def test_where_there_is_nothing_to_measure_there_is_no_number():
    workload = Workload.of("one", [5.0], [10], [1], [[]], block_size=64)
    figures = summarise(*played(workload, Cluster(servers=1)))
    unknown = {name for name, value in figures.items() if np.isnan(value)}
    assert unknown == {
        "offered_rps", "tpot_mean", "tpot_p50", "tpot_p90", "tpot_p99", "itl_mean", "itl_p50", "itl_p99", "growth"
    }  # fmt: skip
    assert figures["ttft_mean"] == figures["ttft_p99"] == figures["e2e_p50"] > 0 and figures["goodput_requests"] == 1
    fleet = Fleet(
        1, EngineConfig(), timing("dynamo-mocker"), *[np.array([10])] * 2, np.array([], int), np.array([0, 0])
    )
    nothing = summarise(workload, fleet)
    assert (nothing["completed"], nothing["hit"], nothing["goodput_requests"]) == (0, 0.0, 0)
    assert np.isnan(nothing["rps"]) and np.isnan(nothing["ttft_p50"])


def test_good_means_both_bounds():
    """A prompt that takes longer than the first bound, and one beside which tokens take longer than the second."""
    assert (GOOD_TTFT_MS, GOOD_TPOT_MS) == (2000.0, 25.0)
    engine = EngineConfig(kv_blocks=4000)
    late = Workload.of("late", [0.0], [120_000], [2], [[]], block_size=64)
    workload, fleet = played(late, Cluster(servers=1, engine=engine))
    assert fleet.first_token[0] > 2000.0 and summarise(workload, fleet)["goodput_requests"] == 0
    slow = Workload.of("slow", [0.0, 20.0], [100, 8000], [3, 1], [[], []], block_size=64)
    workload, fleet = played(slow, Cluster(servers=1, engine=engine))
    assert (fleet.finish[0] - fleet.first_token[0]) / 2 > 25.0 and summarise(workload, fleet)["goodput_requests"] == 1
