"""Do the simulated servers do what the written rules say, to the last bit and the last block?

`tests/naive_engine.py` is the rules in plain Python. Workloads are tiny and so are servers: blocks of a few tokens, and so
few of them that they are evicted and requests are thrown out.
"""

import copy
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferencesched._kernels import serving_state as columns
from inferencesched.errors import InvalidInputError
from inferencesched.simulator import EngineConfig, Fleet, timing
from inferencesched.simulator.server import FINISHED, FIRST_TOKEN
from tests import naive_engine

MOCKER = timing("dynamo-mocker")
H100 = timing("llama-3.1-8b-h100")


def fleet_of(rows, *, servers=1, timing=MOCKER, adapters=None, timings=None, rooms=None, **config):
    """A fleet for these (input tokens, output tokens, block ids)."""
    inputs, outputs, blocks = zip(*rows, strict=True)
    return Fleet(
        servers,
        EngineConfig(**config),
        timing,
        np.array(inputs, dtype=np.int64),
        np.array(outputs, dtype=np.int64),
        np.array([block for row in blocks for block in row], dtype=np.int64),
        np.cumsum([0, *map(len, blocks)], dtype=np.int64),
        adapters=None if adapters is None else np.array(adapters, dtype=np.int64),
        timings=timings,
        kv_blocks=rooms,
    )


def drained(fleet, *, at=0.0, server=0):
    """Send everything to one server at once and let it finish."""
    for place in range(len(fleet.server)):
        fleet.enqueue(place, server, at)
    events = fleet.advance(inf)
    fleet.check()
    return events


# --- fixed examples ----------------------------------------------------------------------------------------------


def test_one_request_alone():
    """A pass of prefill, whose end is the first token, then a pass a token: (100 + k) of 1,048,576 tokens attended."""
    fleet = fleet_of([(100, 3, [])])
    events = drained(fleet)
    prefill = 4.209989e-7 * 100**2 + 1.518344e-2 * 100 + 16.50142
    decode = [-25.74 * p**2 + 54.01 * p + 5.74 for p in (101 / 1_048_576, 102 / 1_048_576)]
    assert fleet.first_token[0] == pytest.approx(prefill, rel=1e-14)
    assert fleet.finish[0] == pytest.approx(prefill + sum(decode), rel=1e-14)
    assert events.kind.tolist() == [FIRST_TOKEN, FINISHED] and events.request.tolist() == [0, 0]
    assert events.time.tolist() == [fleet.first_token[0], fleet.finish[0]]
    assert (fleet.passes, fleet.evictions, fleet.server.tolist()) == (3, 0, [0])


@pytest.mark.parametrize("outputs", [0, 1])
def test_whoever_asks_for_one_token_or_none_ends_with_the_first(outputs):
    fleet = fleet_of([(100, outputs, [])])
    drained(fleet)
    assert fleet.finish[0] == fleet.first_token[0] > 0 and fleet.passes == 1
    assert all(np.isnan(fleet.itl((50, 99))))


def test_an_event_a_ms_later_changes_nothing_before_it():
    fleet = fleet_of([(100, 3, [])] * 2)
    fleet.enqueue(0, 0, 0.0)
    assert len(fleet.advance(18.0).time) == 0
    assert np.isnan(fleet.first_token).all() and fleet.server.tolist() == [0, -1]
    assert fleet.advance(19.0).kind.tolist() == [FIRST_TOKEN]


def test_what_ends_at_the_very_time_has_ended_and_what_could_start_then_has_not():
    fleet = fleet_of([(100, 3, [])] * 2)
    fleet.enqueue(0, 0, 0.0)
    probe = copy.deepcopy(fleet)
    first = float(probe.advance(19.0).time[0])
    assert fleet.advance(first).kind.tolist() == [FIRST_TOKEN]
    fleet.enqueue(1, 0, first)  # just in time for the pass that starts now
    fleet.advance(inf)
    assert fleet.first_token[1] > first
    assert fleet.finish[0] > probe.finish[0] or fleet.passes == 4


def test_requests_that_come_together_share_a_pass_and_their_first_blocks():
    fleet = fleet_of([(100, 2, [0]), (130, 2, [0, 1]), (130, 2, [0, 1])])
    drained(fleet)
    assert fleet.cached_tokens.tolist() == [0, 64, 128]
    assert len(set(fleet.first_token.tolist())) == 1 and fleet.passes == 2


def test_at_least_one_token_is_computed():
    fleet = fleet_of([(128, 1, [0, 1])] * 2)
    drained(fleet)
    assert fleet.cached_tokens.tolist() == [0, 64]


def test_without_prefix_caching_nothing_is_found_and_nothing_is_shared():
    rows = [(256, 2, [0, 1, 2, 3])] * 2
    shared, alone = fleet_of(rows, kv_blocks=16), fleet_of(rows, kv_blocks=16, prefix_caching=False)
    for fleet, held in ((shared, 4), (alone, 4 + 4)):
        for place in range(2):
            fleet.enqueue(place, 0, 0.0)
        fleet.advance(1.0, np.array([1.0]))
        fleet.check()
        assert fleet.signals[:, 0].tolist() == [0.0, 2.0, held / 16]
        fleet.advance(inf)
    assert shared.cached_tokens.tolist() == [0, 192]
    assert alone.cached_tokens.tolist() == [0, 0] and (alone.first_token > shared.first_token).all()


def test_without_prefix_caching_there_is_nothing_to_regret():
    fleet = fleet_of([(256, 2, [0, 1, 2, 3])] * 2, servers=2, prefix_caching=False)
    fleet.enqueue(0, 0, 0.0)
    fleet.advance(100.0)
    fleet.enqueue(1, 1, 100.0)
    assert fleet.regret_blocks == 0


def test_regret_counts_the_blocks_that_the_best_server_had_and_the_chosen_one_had_not():
    fleet = fleet_of([(256, 2, [0, 1, 2, 3]), (128, 2, [0, 1]), (256, 2, [0, 1, 2, 3])], servers=2)
    fleet.enqueue(0, 0, 0.0)
    fleet.advance(100.0)
    fleet.enqueue(1, 1, 100.0)  # could have reused 1 block: its last token is computed anyway
    assert fleet.regret_blocks == 1
    fleet.advance(200.0)
    fleet.enqueue(2, 1, 200.0)  # 3 there, 2 here
    assert fleet.regret_blocks == 2


def test_a_prompt_longer_than_a_pass_is_computed_in_chunks():
    fleet = fleet_of([(20, 1, [])], max_tokens=8)
    drained(fleet)
    assert fleet.passes == 3
    twins = fleet_of([(20, 1, []), (3, 1, [])], max_tokens=8)
    drained(twins)
    assert twins.passes == 3 and twins.first_token[0] == twins.first_token[1], "the last chunk leaves it 4 tokens"


def test_nobody_overtakes_the_head_of_the_line():
    """8 blocks: 5 are held when one comes that wants 6 and one that wants 1."""
    fleet = fleet_of([(20, 1, []), (24, 1, []), (4, 1, [])], kv_blocks=8, block_size=4)
    drained(fleet)
    assert fleet.first_token[0] < fleet.first_token[1] == fleet.first_token[2]
    assert fleet.preemptions.sum() == 0


def test_the_last_to_come_is_thrown_out_when_blocks_run_out_and_comes_back_first():
    """Two of 4 tokens and 1 block each on 3 blocks: when both need a second one, the later has to go."""
    fleet = fleet_of([(4, 5, []), (4, 5, []), (4, 1, [])], kv_blocks=3, block_size=4, max_sequences=2)
    drained(fleet)
    assert fleet.preemptions.tolist() == [0, 1, 0]
    assert fleet.finish[0] < fleet.finish[1]
    assert fleet.cached_tokens.tolist() == [0, 0, 0]
    assert fleet.prompt_tokens_all.tolist() == [4, 4 + 5, 4], "what it had generated is computed again"


def test_whoever_comes_while_the_one_thrown_out_waits_comes_after_it():
    """Nobody else was waiting when it was thrown out."""
    fleet = fleet_of([(4, 5, []), (4, 5, []), (4, 1, [])], kv_blocks=3, block_size=4)
    fleet.enqueue(0, 0, 0.0)
    fleet.enqueue(1, 0, 0.0)
    now = 0.0
    while not fleet.preemptions[1]:
        now += 1.0
        fleet.advance(now)
        fleet.check()
    fleet.enqueue(2, 0, now)
    fleet.check()
    fleet.advance(inf)
    assert fleet.finish[0] < fleet.first_token[2] and not np.isnan(fleet.finish).any()
    assert fleet.preemptions.tolist() == [0, 1, 0]


def test_a_server_that_cannot_hold_the_longest_request_is_refused():
    with pytest.raises(InvalidInputError, match="kv_blocks: got 3, allowed: at least 4: the longest request must fit"):
        fleet_of([(5, 1, []), (9, 4, [])], kv_blocks=3, block_size=4)


def test_block_ids_must_fit_into_31_bits():
    with pytest.raises(InvalidInputError, match="blocks: got 2147483648, allowed: block ids below 2\\*\\*31"):
        fleet_of([(128, 128, [2**31 - 4])])


@pytest.mark.parametrize("server", [-1, 2, 1000])
def test_a_server_that_is_not_there_is_refused(server):
    fleet = fleet_of([(9, 1, [])], servers=2)
    before = bytes_of(fleet)
    with pytest.raises(InvalidInputError) as error:
        fleet.enqueue(0, server, 0.0)
    assert str(error.value) == f"server: got {server}, allowed: 0 to 1"
    assert bytes_of(fleet) == before


@pytest.mark.parametrize("place", [-1, 1, 2])
def test_a_request_that_is_not_there_or_was_sent_before_is_refused(place):
    fleet = fleet_of([(9, 1, [])] * 2)
    fleet.enqueue(1, 0, 0.0)
    before = bytes_of(fleet)
    for send in (lambda: fleet.enqueue(place, 0, 1.0), lambda: fleet.rollout(place, 1.0)):
        with pytest.raises(InvalidInputError) as error:
            send()
        assert str(error.value) == f"place: got {place}, allowed: a request of the trace that was not sent yet"
    assert bytes_of(fleet) == before


@pytest.mark.parametrize("now", [nan, inf, -inf])
def test_a_time_that_is_not_finite_is_refused(now):
    fleet = fleet_of([(9, 1, [])])
    for send in (lambda: fleet.enqueue(0, 0, now), lambda: fleet.rollout(0, now)):
        with pytest.raises(InvalidInputError, match=f"^now: got {now}, allowed: a finite number of ms$"):
            send()


def test_time_cannot_be_unknown_and_samples_are_one_a_server():
    fleet = fleet_of([(9, 1, [])], servers=2)
    with pytest.raises(InvalidInputError, match="^until: got nan, allowed: ms, or inf for the end of all work$"):
        fleet.advance(nan)
    for samples in (np.zeros(1), np.zeros(3), np.zeros((2, 1)), np.zeros(2, dtype=np.int64)):
        with pytest.raises(InvalidInputError, match="^samples: got .*, allowed: float64\\[2\\]$"):
            fleet.advance(1.0, samples)


@pytest.mark.parametrize("row", [(0, 1, []), (1, -1, [])])
def test_requests_without_a_prompt_are_refused(row):
    """A server would make passes for ever that compute nothing."""
    with pytest.raises(
        InvalidInputError, match="^input_tokens, output_tokens: got .*, allowed: at least 1, at least 0$"
    ):
        fleet_of([(9, 1, []), row])


@pytest.mark.parametrize("servers", [0, -1, 1.5])
def test_a_fleet_has_a_whole_number_of_servers(servers):
    with pytest.raises(InvalidInputError, match=f"^servers: got {servers}, allowed: an integer of at least 1$"):
        fleet_of([(9, 1, [])], servers=servers)


def test_percentiles_of_gaps_are_those_of_numpy_over_every_gap():
    rows = [(7 * i + 1, i % 5, []) for i in range(12)]
    fleet = fleet_of(rows, kv_blocks=25, block_size=4, max_tokens=16)
    twin = naive_engine.Fleet(1, fleet.config, MOCKER, rows)
    drained(fleet)
    for place in range(len(rows)):
        twin.enqueue(place, 0, 0.0)
    twin.advance(inf, [nan])
    gaps = np.concatenate([np.diff(request.tokens_at) for request in twin.requests])
    points = (0, 1, 25, 50, 90, 99, 100)
    assert fleet.itl(points) == pytest.approx((gaps.mean(), *np.percentile(gaps, points)), rel=1e-12)


# --- against the twin --------------------------------------------------------------------------------------------


@st.composite
def configs(draw):
    """A server on which everything happens that can."""
    return {
        "block_size": draw(st.integers(1, 4) | st.just(16)),
        "max_sequences": draw(st.sampled_from([1, 2, 3, 5, 256])),
        "max_tokens": draw(st.sampled_from([1, 2, 3, 5, 8, 8192])),
        "prefix_caching": draw(st.sampled_from([True, True, True, False])),
    }


@st.composite
def prompts(draw, size, names):
    """A prompt, its answer's length, and the ids of its blocks: equal ids mean an equal block after an equal prefix."""
    inputs = draw(st.integers(1, 14))
    outputs = draw(st.sampled_from([0, 1, 2, 3, 5, 9, 20, 60]))
    # the trace may leave blocks unnamed, and may name a last one that is not full
    depth = draw(st.integers(0, inputs // size + 1)) if draw(st.booleans()) else inputs // size
    path, ids = (), []
    for _ in range(depth):
        path = (*path, draw(st.sampled_from([0, 0, 0, 1])))
        ids.append(names.setdefault(path, len(names)))
    return inputs, outputs, ids


@st.composite
def workloads(draw):
    config = draw(configs())
    size, names = config["block_size"], {}
    rows = draw(st.lists(prompts(size, names), min_size=1, max_size=9))
    longest = max(-(-(inputs + outputs) // size) for inputs, outputs, _ in rows)
    config["kv_blocks"] = longest + draw(st.sampled_from([0, 0, 1, 2, 4, 30]))
    return rows, config


#: When the next request comes: with the one before, at the very end of a pass, or some ms later.
GAPS = st.sampled_from([0.0, 0.0, "end of a pass", 1.0, 7.3, 40.0, 150.0, 400.0]) | st.floats(0.0, 100.0)
#: When a server's signals are read: as a share of the time between two arrivals; None is not.
READS = st.sampled_from([None, 0.0, 0.5, 1.0]) | st.floats(0.0, 1.0)


def assert_alike(fleet, twin):
    """Everything that can be seen of a fleet equals the twin's, to the last bit."""
    requests = twin.requests
    np.testing.assert_array_equal(fleet.first_token, [request.first_token for request in requests])
    np.testing.assert_array_equal(fleet.finish, [request.finish for request in requests])
    admissions = [request.admissions for request in requests]
    assert fleet.cached_tokens.tolist() == [each[0][0] if each else 0 for each in admissions]
    assert fleet.cached_tokens_all.tolist() == [sum(cached for cached, _ in each) for each in admissions]
    assert fleet.prompt_tokens_all.tolist() == [sum(known for _, known in each) for each in admissions]
    assert fleet.preemptions.tolist() == [request.preemptions for request in requests]
    assert fleet.server.tolist() == [-1 if request.server is None else request.server for request in requests]
    assert fleet.passes == sum(server.passes for server in twin.servers)
    assert fleet.evictions == sum(server.evictions for server in twin.servers)
    assert fleet.regret_blocks == twin.regret_blocks
    np.testing.assert_array_equal(fleet.signals, np.array(twin.signals).T)


def assert_same_events(events, expected):
    kinds = {FIRST_TOKEN: "first token", FINISHED: "finished"}
    found = zip(events.time.tolist(), [kinds[k] for k in events.kind.tolist()], events.request.tolist(), strict=True)
    assert list(found) == expected


def assert_same_gaps(fleet, twin):
    count = fleet._live.tally[columns.GAPS]
    lengths, weights = fleet._live.gaps[:, :count]
    expected = [gap for request in twin.requests for gap in np.diff(request.tokens_at).tolist()]
    assert sorted(np.repeat(lengths, weights.astype(int)).tolist()) == sorted(expected)


@settings(max_examples=max(400, settings.default.max_examples))
@given(workloads(), st.data(), st.sampled_from([MOCKER, H100]), st.integers(1, 3))
def test_servers_do_what_the_rules_say(workload, data, model, servers):
    rows, config = workload
    fleet = fleet_of(rows, servers=servers, timing=model, **config)
    twin = naive_engine.Fleet(servers, fleet.config, model, rows)
    now = 0.0
    for place in range(len(rows)):
        gap = data.draw(GAPS)
        later = min(now + 400.0, twin.next_end()) if gap == "end of a pass" else now + gap
        reads = [data.draw(READS) for _ in range(servers)]
        samples = np.array([nan if share is None else min(now + share * (later - now), later) for share in reads])
        now = later
        assert_same_events(fleet.advance(now, samples), twin.advance(now, samples))
        server = data.draw(st.integers(0, servers - 1))
        fleet.enqueue(place, server, now)
        twin.enqueue(place, server, now)
        fleet.check()
        assert_alike(fleet, twin)
    for later in data.draw(st.sampled_from([[], [20.0] * 12, [100.0] * 4])):
        now += later
        assert_same_events(fleet.advance(now), twin.advance(now, [nan] * servers))
        fleet.check()
        assert_alike(fleet, twin)
    assert_same_events(fleet.advance(inf), twin.advance(inf, [nan] * servers))
    fleet.check()
    assert_alike(fleet, twin)
    assert_same_gaps(fleet, twin)
    assert not np.isnan(fleet.finish).any()


# --- whatever happens --------------------------------------------------------------------------------------------


def bytes_of(fleet):
    """Everything that the future depends on."""
    expected = (fleet.signals, np.array(fleet.regret_blocks))
    return [array.tobytes() for array in (*fleet._live, *expected)]


def visible(fleet):
    """What was decided and what came of it, of a fleet whatever way it took there."""
    live = fleet._live
    heads = [column for column in range(live.servers.shape[1]) if column != columns.TOP]
    running = [live.queue[s, : live.servers[s, columns.RUNNING]].tolist() for s in range(fleet.servers)]
    arrays = (
        live.requests,
        live.times,
        live.servers[:, heads],
        live.clocks,
        live.tally[[columns.PASSES, columns.EVICTED]],
    )
    return [array.tobytes() for array in arrays], running


class Servers(RuleBasedStateMachine):
    """A fleet under any sequence of what a gateway may do to it; `check` after every step."""

    @initialize(
        workload=workloads(), servers=st.integers(1, 3), model=st.sampled_from([MOCKER, H100]), spare=st.integers(0, 9)
    )
    def empty(self, workload, servers, model, spare):
        rows, config = workload
        self.rows = (rows * 10)[:10]
        self.build = lambda: fleet_of(self.rows, servers=servers, timing=model, **config)
        self.fleet = self.build()
        self.servers = servers
        self.now = 0.0
        self.sent = []  # (place, server, when)
        self.events = []
        self.foreseen = {}  # server -> (place, first token, finish), until something else is sent there

    def advance(self, until, samples=None):
        events = self.fleet.advance(until, samples)
        self.events += zip(events.time.tolist(), events.kind.tolist(), events.request.tolist(), strict=True)
        assert (np.diff(events.time) >= 0).all()
        assert ((events.time > self.now) | (until == self.now)).all() and (events.time <= until).all()
        self.now = until

    @rule(gap=st.sampled_from([0.0, 1.0, 8.0, 60.0, 200.0]) | st.floats(0.0, 50.0), share=READS)
    def time_passes(self, gap, share):
        until = self.now + gap
        read = nan if share is None else min(self.now + share * gap, until)
        self.advance(until, np.full(self.servers, read))
        if share is not None:
            assert not np.isnan(self.fleet.signals).any()

    @precondition(lambda self: len(self.sent) < len(self.rows))
    @rule(data=st.data())
    def a_request_comes(self, data):
        place, server = len(self.sent), data.draw(st.integers(0, self.servers - 1))
        self.fleet.enqueue(place, server, self.now)
        self.sent.append((place, server, self.now))
        self.foreseen.pop(server, None)

    @precondition(lambda self: len(self.sent) < len(self.rows))
    @rule(data=st.data())
    def a_request_comes_and_what_if(self, data):
        """A roll-out changes nothing, and foretells what happens if nothing more comes."""
        place, before, bare = len(self.sent), bytes_of(self.fleet), copy.deepcopy(self.fleet)
        outcome = self.fleet.rollout(place, self.now)
        assert bytes_of(self.fleet) == before
        again = self.fleet.rollout(place, self.now)
        assert all(map(np.array_equal, outcome, again))
        bare.advance(inf)
        server = data.draw(st.integers(0, self.servers - 1))
        future = copy.deepcopy(self.fleet)
        future.enqueue(place, server, self.now)
        future.advance(inf)
        assert outcome.first_token[server] == future.first_token[place]
        assert outcome.finish[server] == future.finish[place]
        others = [i for i, where, _ in self.sent if where == server and np.isnan(self.fleet.finish[i])]
        delay = future.finish[others].sum() - bare.finish[others].sum()
        assert outcome.delay[server] == pytest.approx(delay, rel=1e-9, abs=1e-6)
        self.fleet.enqueue(place, server, self.now)
        self.sent.append((place, server, self.now))
        self.foreseen[server] = (place, outcome.first_token[server], outcome.finish[server])

    @precondition(lambda self: self.sent)
    @rule()
    def many_small_steps_are_one_big_step(self):
        other = self.build()
        for place, server, when in self.sent:
            other.advance(when)
            other.enqueue(place, server, when)
        other.advance(self.now)
        assert visible(other) == visible(self.fleet)

    @rule()
    def everything_ends(self):
        self.advance(inf)
        assert not np.isnan(self.fleet.finish[: len(self.sent)]).any()
        assert (self.fleet._live.servers[:, [columns.WAITING, columns.RUNNING]] == 0).all()
        for place, first, finish in self.foreseen.values():
            assert (self.fleet.first_token[place], self.fleet.finish[place]) == (first, finish)
        self.now = max([0.0, *(when for *_, when in self.sent), *(time for time, *_ in self.events)])

    @invariant()
    def the_books_are_right(self):
        self.fleet.check()

    @invariant()
    def nobody_is_lost(self):
        """Sent = waiting + running + finished, by server; events tell each first token and each end once."""
        live = self.fleet._live
        done = ~np.isnan(self.fleet.finish)
        for s in range(self.servers):
            there = int(live.servers[s, columns.WAITING] + live.servers[s, columns.RUNNING])
            ended = int((done & (self.fleet.server == s)).sum())
            assert there + ended == sum(where == s for _, where, _ in self.sent)
        told = {(kind, place): time for time, kind, place in self.events}
        assert len(told) == len(self.events)
        for kind, times in ((FIRST_TOKEN, self.fleet.first_token), (FINISHED, self.fleet.finish)):
            assert {p: t for (k, p), t in told.items() if k == kind} == {
                p: t for p, t in enumerate(times.tolist()) if t == t
            }

    @invariant()
    def who_has_work_goes_on(self):
        """A pass under way ends later than now; without one, whoever has work starts at now or later."""
        live = self.fleet._live
        for s in range(self.servers):
            end, ready = live.clocks[s]
            work = live.servers[s, columns.WAITING] + live.servers[s, columns.RUNNING]
            if end < inf:
                assert end > self.now and work > 0
            else:
                assert (self.now <= ready < inf) if work else ready == inf


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=max(60, settings.default.max_examples // 2), stateful_step_count=20)
