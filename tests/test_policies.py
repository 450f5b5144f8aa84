"""Does each policy by name do what its name says?"""

import copy
from math import inf

import numpy as np
import pytest

from inferencesched import INFLIGHT_REQUESTS, Scheduler
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.simulator import (
    POLICIES,
    Cluster,
    EngineConfig,
    Simulation,
    Traffic,
    Workload,
    generate,
    policy,
    simulate,
)
from inferencesched.simulator.policies import CEILING, FLOOR

SERVERS = 4
#: Who sends each request when it comes.
AT_ONCE = [name for name, each in POLICIES.items() if each.bind is None]
#: Who is meant to leave servers free.
FILLS_UP = ("always-busiest", "polyserve")
TRAFFIC = generate(Traffic(requests=60, rate=30.0, system_tokens=600, user_tokens=300, output_tokens=40), seed=5)


def decided(name, workload=TRAFFIC, **cluster):
    """Yield a simulation before each decision, and the server that was decided on after it."""
    simulation = Simulation(workload, policy(name), Cluster(**({"servers": SERVERS} | cluster)))
    for _ in range(len(workload)):
        simulation.arrive()
        before = simulation.pool.snapshot()
        yield simulation, before, simulation.step().slot
    simulation.finish()


def burst(count, *, tokens=100, blocks=()):
    """So many equal requests at once."""
    return Workload.of("burst", [0.0] * count, [tokens] * count, [5] * count, [list(blocks)] * count, block_size=64)


# --- by name -----------------------------------------------------------------------------------------------------


def test_every_policy_is_found_under_its_name():
    assert [policy(name) for name in POLICIES] == list(POLICIES.values())
    assert all(name == found.name and found.what for name, found in POLICIES.items())
    assert {FLOOR, CEILING} <= set(POLICIES)


@pytest.mark.parametrize("name", ["", "Random", "least-requests", "gie"])
def test_an_unknown_policy_lists_the_names_there_are(name):
    with pytest.raises(UnknownNameError) as error:
        policy(name)
    assert str(error.value) == f"policy: got {name!r}, allowed: one of {', '.join(POLICIES)}"


def test_the_names_cannot_be_changed():
    with pytest.raises(TypeError):
        POLICIES["mine"] = POLICIES["random"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_builds_a_scheduler_of_its_own_and_serves_everybody(name):
    fleet = Simulation(TRAFFIC, policy("random"), Cluster(servers=SERVERS)).fleet
    first, second = policy(name).build(fleet), policy(name).build(fleet)
    assert isinstance(first, Scheduler) and first is not second
    assert all(one is not other for one, other in zip(first.producers, second.producers, strict=True))
    replay = simulate(TRAFFIC, policy(name), Cluster(servers=SERVERS))
    assert replay.policy == name and replay.figures["completed"] == len(TRAFFIC)
    if name not in FILLS_UP:
        assert set(replay.server.tolist()) == set(range(SERVERS))


@pytest.mark.parametrize("name", AT_ONCE)
def test_only_a_policy_that_reads_scraped_signals_is_given_them(name):
    *_, (simulation, _, _) = decided(name)
    known = simulation.pool.snapshot().age(1e9) < np.inf
    assert known.all() if policy(name).scrapes else not known.any()


# --- what each does ----------------------------------------------------------------------------------------------


def test_round_robin_takes_turns():
    assert simulate(TRAFFIC, policy("round-robin"), Cluster(servers=SERVERS)).server.tolist() == [
        i % SERVERS for i in range(len(TRAFFIC))
    ]


def test_random_favours_nobody_and_knows_no_turns():
    servers = simulate(burst(2000), policy("random"), Cluster(servers=SERVERS, seed=3)).server
    counts = np.bincount(servers, minlength=SERVERS)
    assert ((counts - 500) ** 2 / 500).sum() < 16.27, "chi squared of 3 degrees at 0.1 %"
    pairs = np.bincount(servers[:-1] * SERVERS + servers[1:], minlength=SERVERS**2)
    assert ((pairs - 1999 / 16) ** 2 / (1999 / 16)).sum() < 37.7, "15 degrees at 0.1 %"


def test_least_request_goes_where_fewest_are_in_flight():
    """In flight by the gateway's own books, which agree with what the servers have not finished."""
    for simulation, before, chosen in decided("least-request"):
        unfinished = np.isnan(simulation.fleet.finish)
        unfinished[simulation.decided - 1 :] = False
        inflight = np.bincount(simulation.fleet.server[unfinished], minlength=SERVERS)
        assert before[INFLIGHT_REQUESTS].tolist() == inflight.tolist()
        assert inflight[chosen] == inflight.min()


def test_least_request_spreads_a_burst_evenly():
    servers = simulate(burst(4 * SERVERS), policy("least-request"), Cluster(servers=SERVERS)).server
    assert np.bincount(servers).tolist() == [4] * SERVERS


def test_power_of_two_takes_the_less_loaded_of_two():
    """So never the one that has more than all others; and not always the one that has least, which is not always drawn."""
    least = []
    for _, before, chosen in decided("power-of-two"):
        inflight = before[INFLIGHT_REQUESTS]
        assert not (inflight[chosen] > np.delete(inflight, chosen)).all()
        least.append(inflight[chosen] == inflight.min())
    assert 0.5 < np.mean(least) < 1.0


def test_gie_default_goes_where_the_prefix_is_among_idle_servers():
    rows = [[0, 1, 2, 3], [10, 11, 12, 13], [0, 1, 2, 3], [10, 11, 12, 14]]
    workload = Workload.of("pairs", [0.0, 0.0, 9000.0, 9000.0], [257] * 4, [2] * 4, rows, block_size=64)
    servers = simulate(workload, policy("gie-default"), Cluster(servers=SERVERS)).server.tolist()
    assert servers[2] == servers[0] != servers[1] == servers[3]


def test_gie_default_knows_of_cached_prefixes_only_what_it_sent():
    """Its index holds as many blocks as a server: what was sent long ago is forgotten there as it is here."""
    simulation = Simulation(TRAFFIC, policy("gie-default"), Cluster(servers=2, engine=EngineConfig(kv_blocks=300)))
    (producer,) = simulation.scheduler.producers
    assert (producer.block_size, producer.index.capacity) == (64, 300)


def test_clairvoyant_goes_where_everybody_loses_least():
    """Own latency and the delay of the others, from futures that are played to their end: nothing else comes."""
    simulation = Simulation(TRAFFIC, policy("clairvoyant"), Cluster(servers=3))
    for place in range(len(TRAFFIC)):
        _, now = simulation.arrive()
        bare = copy.deepcopy(simulation.fleet)
        bare.advance(inf)
        costs = []
        for server in range(3):
            future = copy.deepcopy(simulation.fleet)
            future.enqueue(place, server, now)
            future.advance(inf)
            delay = np.nansum(future.finish - bare.finish)
            costs.append(future.finish[place] - now + delay)
        chosen = simulation.step().slot
        assert costs[chosen] == pytest.approx(min(costs), rel=1e-9)


def test_clairvoyant_changes_nothing_by_looking():
    simulation = Simulation(TRAFFIC, policy("clairvoyant"), Cluster(servers=SERVERS))
    for _ in range(20):
        request, now = simulation.arrive()
        before = [array.tobytes() for array in simulation.fleet._live]
        simulation.scheduler.schedule(request, simulation.pool.snapshot(), now=now / 1e3, rng=simulation.rng)
        assert [array.tobytes() for array in simulation.fleet._live] == before
        simulation.step()


def test_a_request_may_make_the_others_quicker():
    """The mocker rounds the mean prompt of a pass down: one shorter prompt more can save 200 others 3 ms each."""
    tokens = [11] * 200 + [10]
    workload = Workload.of("burst", [0.0] * 201, tokens, [1] * 201, [[]] * 201, block_size=64)
    replay = simulate(workload, policy("clairvoyant"), Cluster(servers=1))
    assert replay.figures["completed"] == 201


@pytest.mark.parametrize("seed", range(4))
def test_clairvoyant_is_no_worse_than_any_other(seed):
    """Mean latency of loaded servers; not a theorem (a roll-out sees no later arrivals), so over fixed seeds."""
    traffic = generate(Traffic(requests=150, rate=15.0), seed=seed)
    cluster = Cluster(servers=SERVERS, seed=seed, engine=EngineConfig(kv_blocks=4096))
    mean = {name: simulate(traffic, policy(name), cluster).figures["e2e_mean"] for name in POLICIES}
    assert mean[CEILING] == min(mean.values()) < mean[FLOOR]


def test_who_holds_requests_back_is_no_plain_simulation():
    with pytest.raises(InvalidInputError, match="marginal"):
        Simulation(TRAFFIC, policy("marginal"), Cluster())


# --- regret ------------------------------------------------------------------------------------------------------


def test_regret_is_what_a_choice_costs_more_than_the_best():
    cluster = Cluster(servers=3)
    found = {
        name: simulate(TRAFFIC, policy(name), cluster, regret=True).figures
        for name in ("clairvoyant", "least-request", "random", "always-busiest", "marginal")
    }
    assert found["clairvoyant"]["regret_ms"] == 0.0
    assert 0 < found["marginal"]["regret_ms"] < found["random"]["regret_ms"] < found["always-busiest"]["regret_ms"]
    plain = simulate(TRAFFIC, policy("least-request"), cluster).figures
    assert {**plain, "regret_ms": found["least-request"]["regret_ms"]} == found[
        "least-request"
    ]  # to look changes nothing


def test_one_choice_by_hand():
    """Two servers, one busy: what the second of two requests costs more on the busy one than on the idle one."""
    workload = Workload.of("two", [0.0, 10.0], [3000, 3000], [20, 20], [[], []], block_size=64)
    simulation = Simulation(workload, policy("random"), Cluster(servers=2))
    simulation.regret = np.full(2, np.nan)
    first = simulation.step().slot
    _, now = simulation.arrive()
    outcome = simulation.fleet.rollout(1, now)
    simulation.judge(1, first, now)
    worse = outcome.finish[first] + outcome.delay[first] - outcome.finish[1 - first]
    assert simulation.regret[1] == pytest.approx(worse) and worse > 0
    simulation.judge(1, 1 - first, now)
    assert simulation.regret.tolist() == [0.0, 0.0]
