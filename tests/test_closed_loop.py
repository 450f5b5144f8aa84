"""Do sessions wait for their answers?"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Cluster, Precedence, Traffic, generate, policy, simulate, simulate_sessions
from inferencesched.simulator.closed import ClosedSimulation

TRAFFIC = generate(Traffic(requests=40, rate=20.0, system_tokens=600, user_tokens=300, output_tokens=40), seed=5)


def tree(waits, workload=TRAFFIC, pause=250.0):
    """The traffic, with these waits."""
    waits = [*waits, *[[]] * (len(workload) - len(waits))]
    return replace(workload, precedence=Precedence.of(waits, [pause if each else 0.0 for each in waits]))


FOREST = st.lists(st.lists(st.integers(0, 39), max_size=2, unique=True), max_size=40).map(
    lambda rows: [sorted({place for place in row if place < i}) for i, row in enumerate(rows)]
)


# --- who waits for whom ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(waits=FOREST, late=st.sampled_from([0.0, 30.0]), name=st.sampled_from(["least-request", "lmetric", "marginal"]))
def test_each_comes_a_pause_after_those_it_waits_for_have_ended(waits, late, name):
    sessions = tree(waits)
    simulation = ClosedSimulation(sessions, policy(name), Cluster(servers=2, answer_ms=late))
    simulation.run()
    finish = simulation.fleet.finish
    assert not np.isnan(finish).any() and simulation.pool.ledger().inflight_requests == 0
    for i in range(len(sessions)):
        before = sessions.precedence.waits_for(i)
        due = max(finish[before]) + late + sessions.precedence.think[i] if len(before) else TRAFFIC.arrival[i]
        assert simulation.arrival[i] == pytest.approx(due)


@pytest.mark.parametrize("name", ["round-robin", "least-request", "dynamo-kv", "gie-default", "marginal"])
def test_sessions_that_wait_for_nobody_are_an_open_loop(name):
    cluster = Cluster(servers=3, scrape_ms=0.0 if name == "gie-default" else 50.0)
    closed, opened = simulate_sessions(tree([]), policy(name), cluster), simulate(TRAFFIC, policy(name), cluster)
    assert closed.server.tolist() == opened.server.tolist()
    assert repr(closed.figures) == repr(opened.figures)


def test_slow_servers_are_asked_less():
    chain = tree([[], *([i] for i in range(39))], pause=0.0)
    one = simulate_sessions(chain, policy("round-robin"), Cluster(servers=1))
    alone = simulate(TRAFFIC, policy("round-robin"), Cluster(servers=1))
    assert one.figures["ttft_p99"] < alone.figures["ttft_p99"]  # never two at once
    assert one.figures["offered_rps"] == pytest.approx(one.figures["rps"], rel=0.2)


def test_a_run_repeats():
    runs = [simulate_sessions(tree([[], [0], [1]]), policy("random"), Cluster(servers=3, seed=4)) for _ in range(2)]
    assert runs[0].server.tolist() == runs[1].server.tolist() and repr(runs[0].figures) == repr(runs[1].figures)


def test_without_a_precedence_there_is_no_loop():
    with pytest.raises(InvalidInputError, match="precedence"):
        simulate_sessions(TRAFFIC, policy("random"))
