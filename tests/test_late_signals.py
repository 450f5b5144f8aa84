"""What if the gateway hears late, or never, of what the servers do? And do engines serve in the order that they are told?"""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched import INFLIGHT_REQUESTS, PREFIX_TOKENS, CycleState
from inferencesched._kernels import serving
from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Cluster, EngineConfig, Fleet, Simulation, Traffic, flow, generate, policy, simulate
from inferencesched.simulator import server as servers
from inferencesched.simulator.engine import timing
from inferencesched.simulator.news import Newsroom

TRAFFIC = generate(
    Traffic(requests=150, rate=25.0, system_prompts=4, system_tokens=900, user_tokens=300, output_tokens=60), seed=3
)
#: So few blocks that servers evict, and preempt.
SMALL = EngineConfig(kv_blocks=int((TRAFFIC.input_tokens + TRAFFIC.output_tokens).max()) // 64 + 60)
SPEED = 3.0


def cluster(**changes):
    return Cluster(**({"servers": 3, "engine": SMALL, "speedup": SPEED} | changes))


def prefixes(simulation, request):
    """What the policy's index says, in blocks by server."""
    endpoints = simulation.pool.snapshot()
    cycle = CycleState(simulation._clock / 1e3, np.random.default_rng(0), 0)
    column = simulation.scheduler.producers[0].produce(request, endpoints, cycle).columns[PREFIX_TOKENS]
    return (column / SMALL.block_size).astype(int).tolist()


def replayed(**changes):
    """Yield a simulation before each decision, and the request that is to be decided."""
    simulation = Simulation(TRAFFIC, policy("dynamo-kv"), cluster(**changes))
    for _ in range(len(TRAFFIC)):
        request, now = simulation.arrive()
        yield simulation, request, now
        simulation.step()
    simulation.finish()


def test_what_is_told_at_once_is_what_the_servers_hold():
    found = 0
    for simulation, request, _ in replayed():
        fleet = simulation.fleet
        truth = np.zeros(3, dtype=np.int64)
        serving.overlaps(fleet._live, simulation.decided, truth)
        most = (request.input_tokens - 1) // SMALL.block_size  # the last token is computed whatever is cached
        told = [min(blocks, most) for blocks in prefixes(simulation, request)]
        assert told == truth.tolist()
        found += max(told)
    assert fleet.evictions > 100 and found > 100


@pytest.mark.parametrize("late", [40.0, 700.0])
def test_what_is_told_late_is_what_the_servers_held_then(late, monkeypatch):
    said = []  # of every server, in order
    tell = Newsroom.tell

    def recorded(room, news, now):
        said.extend(
            (time, *row) for each in news for time, row in zip(each.time.tolist(), each.news.tolist(), strict=True)
        )
        tell(room, news, now)

    monkeypatch.setattr(Newsroom, "tell", recorded)
    found = 0
    for simulation, request, now in replayed(news_ms=late):
        workload = simulation.workload
        held = [set(), set(), set()]
        for time, server, place, what in said:
            if time <= now - late and place >= 0:
                held[server].update(workload.blocks[workload.offsets[place] :][:what].tolist())
            elif time <= now - late:
                held[server].discard(what)
        blocks = workload.full_blocks(simulation.decided).tolist()
        depths = [next((i for i, block in enumerate(blocks) if block not in there), len(blocks)) for there in held]
        assert prefixes(simulation, request) == depths
        found += max(depths)
    assert found > 50


@pytest.mark.parametrize("changes", [{"news_ms": 1e9}, {"news_lost": 1.0}])
def test_who_hears_nothing_knows_nothing(changes):
    for simulation, request, _ in replayed(**changes):
        assert prefixes(simulation, request) == [0, 0, 0]


def test_losses_are_drawn_by_the_seed():
    runs = [
        simulate(TRAFFIC, policy("dynamo-kv"), cluster(news_lost=lost, seed=seed)).server.tolist()
        for lost, seed in ((0.0, 1), (0.5, 1), (0.5, 1), (0.5, 2))
    ]
    assert runs[1] == runs[2]
    assert runs[0] != runs[1] != runs[3]


def test_a_full_log_changes_nothing(monkeypatch):
    before = simulate(TRAFFIC, policy("dynamo-kv"), cluster()).figures
    monkeypatch.setattr(servers, "_LOG", 0)
    assert simulate(TRAFFIC, policy("dynamo-kv"), cluster()).figures == before
    monkeypatch.undo()
    gated = flow("fcfs")
    before = simulate(TRAFFIC, policy("dynamo-kv"), cluster(), flow=gated)
    monkeypatch.setattr(servers, "_LOG", 0)
    after = simulate(TRAFFIC, policy("dynamo-kv"), cluster(), flow=gated)
    assert repr((after.figures, after.waiting)) == repr((before.figures, before.waiting))  # some are NaN


def test_who_does_not_ask_for_news_has_no_log():
    fleet = Simulation(TRAFFIC, policy("round-robin"), cluster()).fleet
    assert len(fleet._live.log) == 0 and fleet.block_news() == []


@pytest.mark.parametrize("late", [0.0, 5.0, 300.0])
def test_answers_reach_the_gateway_late(late):
    simulation = Simulation(TRAFFIC, policy("least-request"), cluster(answer_ms=late))
    seen = []
    for _ in range(len(TRAFFIC)):
        _, now = simulation.arrive()
        seen.append((now, simulation.pool.snapshot()[INFLIGHT_REQUESTS].sum()))
        simulation.step()
    simulation.finish()
    heard = simulation.fleet.finish + late
    assert [count for _, count in seen] == [int((heard[:i] > now).sum()) for i, (now, _) in enumerate(seen)]
    assert simulation.pool.ledger().inflight_requests == 0
    first = simulation.reservations[0]
    assert first.first_token_at == pytest.approx((simulation.fleet.first_token[0] + late) / 1e3)


def test_flow_control_hears_late_too_and_everybody_is_served():
    runs = [
        simulate(TRAFFIC, policy("least-request"), cluster(answer_ms=late), flow=flow("fcfs")) for late in (0.0, 200.0)
    ]
    for run in runs:
        assert run.figures["completed"] == len(TRAFFIC) and run.ledger.inflight_requests == 0
    assert runs[0].figures["ttft_mean"] != runs[1].figures["ttft_mean"]


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"answer_ms": -1.0}, "answer_ms"),
        ({"news_ms": inf}, "news_ms"),
        ({"news_lost": 1.1}, "news_lost"),
    ],
)
def test_a_bad_delay_is_named(changes, parameter):
    with pytest.raises(InvalidInputError, match=parameter):
        Cluster(**changes)


# --- order ---------------------------------------------------------------------------------------------------------


def line(orders, *, ordered):
    """In which order are so many requests served by an engine that runs one at a time?"""
    count = len(orders)
    config = replace(EngineConfig(max_sequences=1), ordered=ordered)
    lengths = np.full(count, 50), np.full(count, 2)
    fleet = Fleet(1, config, timing("dynamo-mocker"), *lengths, np.arange(0), np.zeros(count + 1, dtype=np.int64))
    for place, order in enumerate(orders):
        fleet.enqueue(place, 0, 0.0, order)
        fleet.check()
    fleet.advance(inf)
    fleet.check()
    return np.argsort(fleet.first_token, kind="stable").tolist()


@settings(max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_an_ordered_engine_serves_the_least_first_and_ties_as_they_came(orders):
    assert line(orders, ordered=True) == sorted(range(len(orders)), key=lambda place: (orders[place], place))
    assert line(orders, ordered=False) == list(range(len(orders)))
