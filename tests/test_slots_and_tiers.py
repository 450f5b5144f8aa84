"""LoRA slots, a host's memory for blocks, prompts computed elsewhere, servers that differ and servers that fail: as the rules say.

`tests/naive_engine.py` is the rules in plain Python; fleets are tiny, so that everything that can happen does.
"""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import timing
from tests import naive_engine
from tests.test_server import GAPS, assert_same_events, fleet_of, workloads

MOCKER = timing("dynamo-mocker")
H100 = timing("llama-3.1-8b-h100")
A100 = timing("llama-3.1-8b-a100")


# --- fixed examples ----------------------------------------------------------------------------------------------


def test_loading_an_adapter_holds_up_the_pass_and_is_paid_once():
    plain = fleet_of([(100, 2, [])])
    plain.enqueue(0, 0, 0.0)
    plain.advance(inf)
    fleet = fleet_of([(100, 2, []), (100, 2, [])], adapters=[1, 1], adapter_slots=1, adapter_ms=500.0)
    fleet.enqueue(0, 0, 0.0)
    fleet.advance(2_000.0)
    fleet.enqueue(1, 0, 2_000.0)
    fleet.advance(inf)
    assert fleet.first_token[0] == pytest.approx(500.0 + plain.first_token[0])
    assert fleet.first_token[1] - 2_000.0 == pytest.approx(plain.first_token[0]) and fleet.adapter_loads == 1


def test_who_finds_no_slot_waits_and_those_behind_may_go():
    fleet = fleet_of([(100, 9, []), (100, 1, []), (100, 1, [])], adapters=[1, 2, 1], adapter_slots=1)
    for place in range(3):
        fleet.enqueue(place, 0, 0.0)
    fleet.advance(30.0, np.array([30.0]))
    fleet.check()
    assert fleet.adapters_seen(0) == ({1}, {1}, {2})
    fleet.advance(inf)
    fleet.check()
    assert fleet.first_token[0] == fleet.first_token[2] < fleet.finish[0] < fleet.first_token[1]


def test_the_adapter_used_longest_ago_makes_room():
    fleet = fleet_of([(100, 1, [])] * 4, adapters=[1, 2, 3, 1], adapter_slots=2, adapter_ms=10.0)
    for place in range(4):
        fleet.enqueue(place, 0, 1_000.0 * place)
        fleet.advance(1_000.0 * place + 999.0)
    assert fleet.adapter_loads == 4, "3 took the slot of 1"


def test_evicted_blocks_come_back_from_the_hosts_memory_at_their_price():
    """A prompt of 4 blocks, one that leaves it one of them, and the first again: 2 blocks are fetched, and 8 tokens computed."""
    rows = [(32, 1, [0, 1, 2, 3]), (48, 1, [4, 5, 6, 7, 8, 9]), (32, 1, [0, 1, 2, 3])]
    found = {}
    for host in (0, 16):
        fleet = fleet_of(rows, kv_blocks=7, block_size=8, host_blocks=host, block_ms=2.0)
        for place in range(3):
            fleet.enqueue(place, 0, 1_000.0 * place)
            fleet.advance(1_000.0 * place + 999.0)
            fleet.check()
        found[host] = (fleet.cached_tokens.tolist(), fleet.fetched_blocks)
        took = fleet.first_token[2] - 2_000.0
        computed = {0: 24, 16: 8}[host]
        assert took == pytest.approx(
            4.209989e-7 * computed**2 + 1.518344e-2 * computed + 16.50142 + 2.0 * found[host][1]
        )
    assert found == {0: ([0, 0, 8], 0), 16: ([0, 0, 24], 2)}


def test_a_prompt_computed_elsewhere_costs_its_last_token_here_and_all_its_blocks():
    fleet = fleet_of([(100, 3, [])], servers=2)
    fleet.prefill_only(0)
    fleet.enqueue(0, 0, 0.0)
    assert len(fleet.advance(inf).time) == 2
    fleet.hand_over(0, 3)
    assert np.isnan(fleet.first_token[0])
    fleet.enqueue(0, 1, 100.0)
    fleet.advance(100.5, np.array([nan, 100.5]))
    fleet.check()
    assert fleet.signals[2, 1] == pytest.approx(2 / 16_384), "room for all 100 tokens"
    fleet.advance(inf)
    one = 4.209989e-7 + 1.518344e-2 + 16.50142
    assert fleet.first_token[0] == pytest.approx(100.0 + one) and fleet.server[0] == 1
    assert fleet.prompt_tokens_all.tolist() == [100], "counted once"


def test_servers_differ():
    rows = [(1_000, 2, [])] * 2
    fleet = fleet_of(rows, servers=2, timings=[H100, A100], rooms=[100, 50])
    for server in range(2):
        fleet.enqueue(server, server, 0.0)
    fleet.advance(10.0, np.array([10.0, 10.0]))
    assert fleet.signals[2].tolist() == pytest.approx([16 / 100, 16 / 50])
    outcome_of_both = fleet.first_token.copy()
    fleet.advance(inf)
    assert np.isnan(outcome_of_both).all() and fleet.first_token[1] > 1.5 * fleet.first_token[0]
    fleet.check()
    again = fleet_of([*rows, (1_000, 2, [])], servers=2, timings=[H100, A100], rooms=[100, 50])
    outcome = again.rollout(2, 0.0)
    assert outcome.first_token.tolist() == pytest.approx(fleet.first_token.tolist())


def test_a_server_that_fails_loses_its_cache_and_whoever_had_begun():
    fleet = fleet_of([(100, 50, [0]), (100, 1, [0]), (100, 1, [0])], max_sequences=1)
    fleet.enqueue(0, 0, 0.0)
    fleet.enqueue(1, 0, 0.0)
    fleet.advance(50.0)
    again, lost = fleet.crash(0)
    fleet.check()
    assert (again.tolist(), lost.tolist()) == ([1], [0])
    assert len(fleet.advance(10_000.0).time) == 0 and np.isnan(fleet.finish[0])
    fleet.enqueue(1, 0, 10_000.0)
    fleet.advance(11_000.0)
    assert fleet.cached_tokens[1] == 0, "nothing is left of it"
    fleet.enqueue(2, 0, 11_000.0)
    fleet.advance(inf)
    assert fleet.cached_tokens[2] == 64 and fleet.server.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"timings": [H100]}, "timings: got '1 of them', allowed: one for each of 2 servers"),
        ({"rooms": [9, 9, 9]}, "kv_blocks: got '3 of them', allowed: one for each of 2 servers"),
        ({"rooms": [9, 1]}, "kv_blocks: got 1, allowed: at least 2: the longest request must fit"),
        ({"adapters": [1, -1]}, "adapters: got 'length 2, from -1', allowed: 2 integers of at least 0"),
        ({"adapters": [1]}, "adapters: got 'length 1, from 0', allowed: 2 integers of at least 0"),
        ({"adapter_slots": -1}, "adapter_slots: got -1, allowed: an integer of at least 0"),
        ({"block_ms": nan}, "block_ms: got nan, allowed: a finite number of ms of at least 0"),
    ],
)
def test_what_cannot_be_is_refused(more, message):
    with pytest.raises(InvalidInputError) as error:
        fleet_of([(100, 2, [])] * 2, servers=2, **more)
    assert str(error.value) == message


def test_only_a_server_that_is_there_can_fail():
    with pytest.raises(InvalidInputError, match="^server: got 1, allowed: 0 to 0$"):
        fleet_of([(100, 2, [])]).crash(1)


# --- against the twin --------------------------------------------------------------------------------------------


@settings(max_examples=max(400, settings.default.max_examples))
@given(workloads(), st.data(), st.integers(1, 3))
def test_servers_do_what_the_rules_say(workload, data, servers):
    rows, config = workload
    config |= {
        "adapter_slots": data.draw(st.sampled_from([0, 1, 1, 2, 3])),
        "adapter_ms": data.draw(st.sampled_from([0.0, 5.5])),
        "host_blocks": data.draw(st.sampled_from([0, 1, 3, 50])),
        "block_ms": data.draw(st.sampled_from([0.0, 0.7])),
    }
    timings = data.draw(st.lists(st.sampled_from([MOCKER, H100, A100]), min_size=servers, max_size=servers))
    rooms = [config["kv_blocks"] + data.draw(st.sampled_from([0, 0, 5])) for _ in range(servers)]
    adapters = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    fleet = fleet_of(rows, servers=servers, timings=timings, rooms=rooms, adapters=adapters, **config)
    twin = naive_engine.Fleet(servers, fleet.config, MOCKER, rows)
    for server, model, room in zip(twin.servers, timings, rooms, strict=True):
        server.timing, server.config = model, replace(fleet.config, kv_blocks=room)
    for request, adapter in zip(twin.requests, adapters, strict=True):
        request.adapter = adapter
    now, silent = 0.0, [nan] * servers

    def advance(until):
        assert_same_events(fleet.advance(until), twin.advance(until, silent))
        fleet.check()

    for place in range(len(rows)):
        gap = data.draw(GAPS)
        now = min(now + 400.0, twin.next_end()) if gap == "end of a pass" else now + gap
        advance(now)
        what = data.draw(st.sampled_from(["", "", "", "crash", "hand over"]))
        if what == "crash":
            server = data.draw(st.integers(0, servers - 1))
            again, lost = fleet.crash(server)
            assert (again.tolist(), lost.tolist()) == twin.servers[server].crash()
            fleet.check()
        if what == "hand over":
            twin.requests[place].given = rows[place][0]
            fleet.hand_over(place, rows[place][1])
        server = data.draw(st.integers(0, servers - 1))
        fleet.enqueue(place, server, now)
        twin.enqueue(place, server, now)
        fleet.check()
        for at, each in enumerate(twin.servers):
            fleet.advance(now, np.where(np.arange(servers) == at, now, nan))
            if fleet.config.adapter_slots:
                loaded, running, waiting = fleet.adapters_seen(at)
                assert loaded == set(each.slots)
                assert running == {r.adapter for r in each.running} - {0}
                assert waiting == {r.adapter for r in each.waiting} - {0}
    advance(inf)
    requests = twin.requests
    np.testing.assert_array_equal(fleet.first_token, [request.first_token for request in requests])
    np.testing.assert_array_equal(fleet.finish, [request.finish for request in requests])
    admissions = [request.admissions for request in requests]
    assert fleet.cached_tokens.tolist() == [each[0][0] if each else 0 for each in admissions]
    assert fleet.prompt_tokens_all.tolist() == [sum(known for _, known in each) for each in admissions]
    assert fleet.adapter_loads == sum(server.loads for server in twin.servers)
    assert fleet.fetched_blocks == sum(server.fetched for server in twin.servers)
    assert fleet.evictions == sum(server.evictions for server in twin.servers)
