"""Is a replay the same every time, are signals as old as it says, and do the books agree at the end?"""

import copy
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InvalidInputError, RequestRefusedError
from inferencesched.simulator import (
    POLICIES,
    Cluster,
    EngineConfig,
    Policy,
    Simulation,
    Traffic,
    Workload,
    generate,
    policy,
    simulate,
    timing,
)

TRAFFIC = generate(Traffic(requests=80, rate=40.0, system_tokens=600, user_tokens=300, output_tokens=40), seed=2)


def burst(count, *, tokens=100, at=0.0):
    return Workload.of("burst", [at] * count, [tokens] * count, [5] * count, [[]] * count, block_size=64)


def result(replay):
    """All of a replay but the two times it took, as bytes: equal or not, NaN or not."""
    figures = np.array([*replay.figures.values()])
    arrays = (figures, replay.server, replay.ttft, replay.e2e, np.array(replay.ledger))
    return replay.policy, list(replay.figures), [array.tobytes() for array in arrays]


# --- the same every time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_bytes(name):
    once, again = (simulate(TRAFFIC, policy(name), Cluster(servers=3, seed=11)) for _ in range(2))
    assert result(once) == result(again)


@pytest.mark.parametrize("name", ["random", "power-of-two", "gie-default"])
def test_another_seed_gives_another_replay(name):
    one, other = (simulate(TRAFFIC, policy(name), Cluster(servers=3, seed=seed)) for seed in (1, 2))
    assert one.server.tolist() != other.server.tolist()


def test_a_policy_without_chance_knows_no_seed():
    one, other = (simulate(TRAFFIC, policy("round-robin"), Cluster(servers=3, seed=seed)) for seed in (1, 2))
    assert result(one) == result(other)


def test_chances_of_the_policy_do_not_move_the_scrapes():
    """Two streams of one seed: another policy, or a longer trace, sees the servers at the same moments."""
    phases = [
        Simulation(workload, policy(name), Cluster(servers=4, seed=9))._phase.tolist()
        for workload, name in ((TRAFFIC, "random"), (TRAFFIC, "gie-default"), (TRAFFIC.head(3), "random"))
    ]
    assert phases[0] == phases[1] == phases[2] and len(set(phases[0])) == 4


def test_progress_is_told_and_changes_nothing():
    told = []
    replay = simulate(TRAFFIC, policy("random"), Cluster(servers=3), progress=told.append, compiled=False)
    assert told[0] == 0 and told[-1] == len(TRAFFIC) and told == sorted(told)
    assert result(replay) == result(simulate(TRAFFIC, policy("random"), Cluster(servers=3)))


# --- the books ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_at_the_end_everything_reserved_is_settled(name):
    ledger = simulate(TRAFFIC, policy(name), Cluster(servers=3)).ledger
    assert ledger.reserved_requests == ledger.settled_requests == len(TRAFFIC) and ledger.inflight_requests == 0
    assert ledger.reserved_tokens == ledger.settled_tokens > 0 and ledger.inflight_tokens == 0


def test_on_the_way_the_books_of_the_gateway_are_those_of_the_servers():
    """In flight by the pool = sent and not finished; tokens owed = prompts whose first token has not come."""
    simulation = Simulation(TRAFFIC, policy("least-request"), Cluster(servers=3))
    for place in range(len(TRAFFIC)):
        simulation.arrive()
        simulation.pool.check()
        fleet, snapshot = simulation.fleet, simulation.pool.snapshot()
        for server in range(3):
            there = (fleet.server == server) & (np.arange(len(TRAFFIC)) < place)
            assert snapshot[isched.INFLIGHT_REQUESTS][server] == (there & np.isnan(fleet.finish)).sum()
            owed = simulation.workload.input_tokens[there & np.isnan(fleet.first_token)].sum()
            assert snapshot[isched.INFLIGHT_TOKENS][server] == owed
        simulation.step()
    simulation.finish()
    assert simulation.pool.ledger().inflight_requests == 0


def test_results_are_by_place_in_the_trace():
    replay = simulate(TRAFFIC, policy("round-robin"), Cluster(servers=3), compiled=False)
    assert len(replay.ttft) == len(replay.e2e) == len(replay.server) == len(TRAFFIC)
    assert (replay.ttft > 0).all() and (replay.e2e >= replay.ttft).all()
    assert ((replay.e2e > replay.ttft) == (TRAFFIC.output_tokens > 1)).all()
    assert replay.decision_us_p50 > 0 and replay.wall_s > 0


def test_a_request_alone_takes_what_its_passes_take():
    replay = simulate(burst(1, at=500.0), policy("random"), Cluster(servers=2))
    prefill = 4.209989e-7 * 100**2 + 1.518344e-2 * 100 + 16.50142
    assert replay.ttft[0] == pytest.approx(prefill, rel=1e-12), "from its arrival, not from the trace's start"


def test_arrivals_so_many_times_as_fast():
    fast = simulate(TRAFFIC, policy("round-robin"), Cluster(servers=3, speedup=4.0))
    same = simulate(TRAFFIC.at_speed(4.0), policy("round-robin"), Cluster(servers=3))
    assert result(fast) == result(same)


def test_a_workload_without_requests_gives_figures_without_numbers():
    figures = simulate(Workload.of("none", [], [], [], [], block_size=64), policy("gie-default")).figures
    assert figures["completed"] == 0 and np.isnan(figures["ttft_mean"]) and np.isnan(figures["rps"])


# --- what the gateway knows --------------------------------------------------------------------------------------


def test_a_gateway_does_not_know_how_long_the_answer_will_be():
    simulation = Simulation(TRAFFIC, policy("random"), Cluster(servers=2))
    request = simulation.request(7)
    assert (request.request_id, request.input_tokens) == ("7", int(TRAFFIC.input_tokens[7]))
    assert request.max_output_tokens is None and request.tokens is None


@pytest.mark.parametrize("block_size", [64, 32])
def test_a_gateway_knows_the_hashes_of_full_blocks(block_size):
    """Prompts of 130 tokens, whose trace names the third block, too; equal ones share all that is full."""
    rows = [[0, 1, 2], [0, 1, 3]]
    workload = Workload.of("two", [0.0, 1.0], [130, 130], [1, 1], rows, block_size=64)
    engine = EngineConfig(block_size=block_size)
    simulation = Simulation(workload, policy("random"), Cluster(servers=2, engine=engine))
    one, other = (simulation.request(place).block_hashes.tolist() for place in range(2))
    assert one == other and len(set(one)) == 128 // block_size


@pytest.mark.parametrize("scrape_ms", [50.0, 7.0, 0.0])
def test_signals_are_as_old_as_it_says(scrape_ms):
    """At each arrival every server's signals are those of its last tick, to the last bit."""
    cluster = Cluster(servers=3, scrape_ms=scrape_ms, seed=4, engine=EngineConfig(kv_blocks=300))
    workload = Workload.of(
        "ticks",
        [0.0, 0.0, 0.0, 3.0, 60.0, 60.0, 60.0, 61.0, 140.0, 140.0, 900.0, 901.0, 902.0, 5000.0],
        [800, 3000, 50] * 4 + [64, 64],
        [9, 1, 30] * 4 + [2, 2],
        [[]] * 14,
        block_size=64,
    )
    simulation = Simulation(workload, policy("gie-default"), cluster)
    expected = np.full((3, 3), np.nan)
    observed = np.full(3, -inf)
    for _ in range(len(workload)):
        probe = copy.deepcopy(simulation.fleet)
        _, now = simulation.arrive()
        snapshot = simulation.pool.snapshot()
        ticks = simulation._scraped.copy()
        np.testing.assert_allclose(snapshot.age(now / 1e3), (now - ticks) / 1e3, rtol=0, atol=1e-12)
        assert (ticks >= observed).all() and (ticks <= now).all()
        for server in np.flatnonzero(ticks > observed) if scrape_ms else range(3):
            assert now - ticks[server] <= scrape_ms
            past = copy.deepcopy(probe)
            past.advance(ticks[server], np.full(3, ticks[server]))
            expected[:, server] = past.signals[:, server]
        observed = ticks
        phase = simulation._phase
        assert ((now < phase) == (ticks == -inf)).all(), "never read before its first tick"
        for signal, values in zip(
            (isched.WAITING_QUEUE_SIZE, isched.RUNNING_REQUESTS, isched.KV_CACHE_USAGE), expected, strict=True
        ):
            np.testing.assert_array_equal(snapshot[signal], values)
        simulation.step()
    assert not np.isnan(expected).any()


def test_what_was_never_read_is_unknown():
    simulation = Simulation(burst(1), policy("gie-default"), Cluster(servers=3, scrape_ms=50.0))
    simulation.arrive()
    snapshot = simulation.pool.snapshot()
    for signal in (isched.WAITING_QUEUE_SIZE, isched.RUNNING_REQUESTS, isched.KV_CACHE_USAGE):
        assert np.isnan(snapshot[signal]).all()
    assert (snapshot.age(0.0) == inf).all()


def test_always_fresh_signals_show_what_came_at_the_same_time():
    """A burst at one moment: whoever was just sent is waiting when the next is decided."""
    simulation = Simulation(burst(6), policy("gie-default"), Cluster(servers=2, scrape_ms=0.0))
    for place in range(6):
        simulation.arrive()
        assert simulation.pool.snapshot()[isched.WAITING_QUEUE_SIZE].sum() == place
        simulation.step()
    assert np.bincount(simulation.fleet.server).tolist() == [3, 3]


def test_no_signal_comes_from_the_future():
    """Where an arrival lies a rounding error before a tick, the tick is not read yet, or read as of the arrival."""
    cluster = Cluster(servers=1, scrape_ms=33.3, seed=0)
    phase = float(Simulation(burst(1), policy("gie-default"), cluster)._phase[0])
    arrivals = np.array([np.nextafter(k * 33.3 + phase, 0.0) for k in range(3000)])
    ticks = np.floor((arrivals - phase) / 33.3) * 33.3 + phase
    assert (ticks > arrivals).any(), "rounding brings it about"
    workload = Workload.of("edge", arrivals, [10] * 3000, [1] * 3000, [[]] * 3000, block_size=64)
    simulation = Simulation(workload, policy("gie-default"), cluster)
    for _ in range(3000):
        _, now = simulation.arrive()
        assert simulation.pool.snapshot().age(now / 1e3).min() >= 0.0
        simulation.step()


def test_staler_signals_are_no_help():
    """Deciding by queue and KV alone, a burst is spread by fresh signals and heaped by stale ones."""
    blind = Policy(
        "queue",
        "fewest waiting",
        lambda fleet: isched.Scheduler(
            isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.QueueScorer()),))
        ),
        scrapes=True,
    )
    traffic = generate(Traffic(requests=300, rate=60.0), seed=1)
    mean = {ms: simulate(traffic, blind, Cluster(servers=8, scrape_ms=ms)).figures["ttft_mean"] for ms in (0.0, 5e3)}
    assert mean[0.0] < mean[5e3]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"servers": 0}, "servers: got 0, allowed: an integer of at least 1"),
        ({"servers": -3}, "servers: got -3, allowed: an integer of at least 1"),
        ({"servers": 2.5}, "servers: got 2.5, allowed: an integer of at least 1"),
        ({"servers": float("nan")}, "servers: got nan, allowed: an integer of at least 1"),
        ({"speedup": 0.0}, "speedup: got 0.0, allowed: a finite number above 0"),
        ({"speedup": -1.0}, "speedup: got -1.0, allowed: a finite number above 0"),
        ({"speedup": float("nan")}, "speedup: got nan, allowed: a finite number above 0"),
        ({"speedup": inf}, "speedup: got inf, allowed: a finite number above 0"),
        ({"scrape_ms": -1.0}, "scrape_ms: got -1.0, allowed: a finite number of at least 0"),
        ({"scrape_ms": float("nan")}, "scrape_ms: got nan, allowed: a finite number of at least 0"),
        ({"scrape_ms": inf}, "scrape_ms: got inf, allowed: a finite number of at least 0"),
        ({"seed": -1}, "seed: got -1, allowed: an integer of at least 0"),
        ({"seed": 0.5}, "seed: got 0.5, allowed: an integer of at least 0"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(change, message):
    with pytest.raises(InvalidInputError) as error:
        Cluster(**change)
    assert str(error.value) == message


@pytest.mark.parametrize("kv_blocks", [1, 10])
def test_a_workload_longer_than_the_cache_is_refused_before_anything_runs(kv_blocks):
    """Whether its first request fits or not, it is told what its longest needs."""
    told = []
    workload = Workload.of("long", [0.0] * 9, [200] * 8 + [641], [1] * 9, [[]] * 9, block_size=64)
    with pytest.raises(InvalidInputError) as error:
        simulate(workload, policy("random"), Cluster(engine=EngineConfig(kv_blocks=kv_blocks)), progress=told.append)
    assert str(error.value) == f"kv_blocks: got {kv_blocks}, allowed: at least 11: the longest request must fit"
    assert told == []


def test_block_sizes_that_do_not_divide_the_trace_are_refused():
    with pytest.raises(InvalidInputError, match="block_size: got 48, allowed: a divisor of 64"):
        simulate(TRAFFIC, policy("random"), Cluster(engine=EngineConfig(block_size=48)))


def test_a_policy_that_refuses_a_request_says_so():
    class Nobody:
        def filter(self, request, endpoints, cycle):
            return np.zeros(len(endpoints), dtype=np.bool_)

    profile = isched.SchedulingProfile(isched.RandomPicker(), filters=(Nobody(),))
    nobody = Policy("nobody", "serves nobody", lambda fleet: isched.Scheduler(profile))
    with pytest.raises(RequestRefusedError):
        simulate(TRAFFIC, nobody, Cluster(servers=2))


# --- any workload ------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 200), st.integers(1, 300), st.integers(0, 20), st.integers(0, 3)),
        min_size=1,
        max_size=25,
    ),
    name=st.sampled_from(sorted(name for name, each in POLICIES.items() if each.bind is None)),
    model=st.sampled_from(["dynamo-mocker", "llama-3.1-8b-h100"]),
    scrape_ms=st.sampled_from([0.0, 50.0]),
)
def test_everybody_is_served_and_nobody_before_coming(rows, name, model, scrape_ms):
    rows.sort()
    workload = Workload.of(
        "any",
        [arrival for arrival, *_ in rows],
        [inputs for _, inputs, *_ in rows],
        [outputs for *_, outputs, _ in rows],
        [[100 * family + j for j in range(inputs // 16)] for _, inputs, _, family in rows],
        block_size=16,
    )
    engine = EngineConfig(kv_blocks=24, block_size=16, max_sequences=4, max_tokens=64)
    cluster = Cluster(servers=2, engine=engine, timing=timing(model), scrape_ms=scrape_ms)
    simulation = Simulation(workload, policy(name), cluster)
    for place in range(len(workload)):
        simulation.step()
        simulation.fleet.check()
        simulation.pool.check()
        assert simulation.decided == place + 1
    simulation.finish()
    fleet = simulation.fleet
    assert (fleet.first_token > workload.arrival).all() and (fleet.finish >= fleet.first_token).all()
    assert simulation.pool.ledger().inflight_requests == 0
