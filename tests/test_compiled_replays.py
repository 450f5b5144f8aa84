"""Do policies that run in one kernel make the choices of their plug-ins, draw for draw?"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import (
    POLICIES,
    Cluster,
    EngineConfig,
    Tenant,
    Traffic,
    Workload,
    generate,
    policy,
    simulate,
)
from inferencesched.simulator.compiled import CompiledSimulation

NAMES = [name for name, each in POLICIES.items() if each.compiled is not None]
TRAFFIC = generate(Traffic(requests=120, rate=25.0, system_tokens=900, user_tokens=300, output_tokens=60), seed=3)
SMALL = EngineConfig(kv_blocks=int((TRAFFIC.input_tokens + TRAFFIC.output_tokens).max()) // 64 + 40)


def both(name, workload, cluster):
    """The same replay, with the kernel and with the plug-ins."""
    return [simulate(workload, policy(name), cluster, compiled=compiled) for compiled in (True, False)]


def same(one, other):
    assert one.server.tolist() == other.server.tolist()
    for column in ("ttft", "e2e"):
        assert np.array_equal(getattr(one, column), getattr(other, column), equal_nan=True)
    assert repr(one.figures) == repr(other.figures)
    assert one.ledger == other.ledger


def test_the_simplest_policies_have_a_kernel():
    assert NAMES == ["random", "round-robin", "least-request", "power-of-two"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(servers=st.integers(1, 7), seed=st.integers(0, 99), speed=st.sampled_from([0.3, 2.0, 20.0]), small=st.booleans())
def test_a_kernel_makes_the_choices_of_the_plug_ins(name, servers, seed, speed, small):
    engine = SMALL if small else EngineConfig()
    same(*both(name, TRAFFIC, Cluster(servers=servers, engine=engine, speedup=speed, seed=seed)))


@pytest.mark.parametrize("name", NAMES)
def test_who_comes_at_the_same_time_is_decided_in_turn(name):
    burst = Workload.of("burst", [0.0] * 40 + [5.0] * 40, [200] * 80, [3] * 80, [[0, 1, 2]] * 80, block_size=64)
    same(*both(name, burst, Cluster(servers=6)))


@pytest.mark.parametrize("name", NAMES)
def test_tenants_are_told_apart_all_the_same(name):
    tagged = TRAFFIC.tagged((Tenant("a"), Tenant("b")), seed=1)
    one, other = both(name, tagged, Cluster(servers=3))
    same(one, other)
    assert repr(one.waiting) == repr(other.waiting) and one.waiting is not None


def test_chunks_change_nothing_and_progress_is_told():
    cluster = Cluster(servers=4, speedup=3.0)
    whole = simulate(TRAFFIC, policy("random"), cluster)
    simulation = CompiledSimulation(TRAFFIC, policy("random"), cluster)
    while simulation.decided < len(TRAFFIC):
        simulation.advance(7)
    simulation.finish()
    assert simulation.fleet.server.tolist() == whole.server.tolist()
    told = []
    simulate(TRAFFIC, policy("random"), cluster, progress=told.append)
    assert told[-1] == len(TRAFFIC)


def test_late_answers_and_other_policies_go_the_long_way():
    late = Cluster(servers=2, answer_ms=5.0)
    assert simulate(TRAFFIC, policy("least-request"), late).decision_us_p50 > 0
    with pytest.raises(InvalidInputError, match="a policy that has a kernel"):
        CompiledSimulation(TRAFFIC, policy("lmetric"), Cluster())


def test_nothing_at_all_is_replayed_too():
    same(*both("least-request", replace(TRAFFIC).head(0), Cluster(servers=2)))
