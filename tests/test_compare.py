"""Does every policy see the same traffic, in the order asked for?"""

import numpy as np
import pytest

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Cluster, Run, Traffic, compare, generate, policy, simulate

TRAFFIC = generate(Traffic(requests=40, rate=20.0), seed=1)
CLUSTER = Cluster(servers=2, seed=5)
PAIR = (policy("random"), policy("least-request"))


def test_one_run_a_policy_and_a_load_each_as_if_alone():
    runs = compare(TRAFFIC, PAIR, CLUSTER, loads=(0.5, 2.0))
    assert [(run.replay.policy, run.load) for run in runs] == [
        ("random", 0.5),
        ("random", 2.0),
        ("least-request", 0.5),
        ("least-request", 2.0),
    ]
    for run in runs:
        alone = simulate(TRAFFIC, policy(run.replay.policy), Cluster(servers=2, seed=5, speedup=run.load))
        assert isinstance(run, Run) and run.replay.figures == alone.figures
        np.testing.assert_array_equal(run.replay.e2e, alone.e2e)
        assert run.replay.ledger == alone.ledger


def test_a_load_multiplies_the_speed_of_the_cluster():
    (run,) = compare(TRAFFIC, PAIR[:1], Cluster(servers=2, speedup=3.0), loads=(2.0,))
    (once,) = compare(TRAFFIC, PAIR[:1], Cluster(servers=2))
    assert run.replay.figures["offered_rps"] == pytest.approx(6.0 * once.replay.figures["offered_rps"])


def test_progress_counts_replays_and_arrivals():
    told = []
    compare(TRAFFIC, PAIR, CLUSTER, loads=(1.0, 2.0), progress=lambda *args: told.append(args))
    assert {(done, total) for done, total, _ in told} == {(0, 4), (1, 4), (2, 4), (3, 4)}
    assert told == sorted(told) and told[-1] == (3, 4, len(TRAFFIC))


@pytest.mark.parametrize("policies", [(), (PAIR[0], PAIR[0])])
def test_no_policy_or_one_twice_is_refused(policies):
    names = [each.name for each in policies]
    with pytest.raises(InvalidInputError) as error:
        compare(TRAFFIC, policies, CLUSTER)
    assert str(error.value) == f"policies: got {names}, allowed: at least one policy, each once"


@pytest.mark.parametrize(
    "loads", [(), (1.0, 0.0), (-1.0,), (float("nan"), 1.0), (1.0, float("nan")), (1.0, float("inf"))]
)
def test_loads_that_cannot_be_are_refused_before_anything_runs(loads):
    told = []
    with pytest.raises(InvalidInputError) as error:
        compare(TRAFFIC, PAIR, CLUSTER, loads=loads, progress=lambda *args: told.append(args))
    assert str(error.value) == f"loads: got {list(loads)}, allowed: finite numbers above 0, at least one"
    assert told == []
