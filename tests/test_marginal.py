"""Is a request's cost what the formula says, and does a binder hold and send as it promises?"""

from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from inferencesched import (
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    PREFIX_TOKENS,
    InferencePool,
    InferenceRequest,
    LabelFilter,
    MaxScorePicker,
    Produced,
    Scheduler,
    SchedulingProfile,
    Usage,
)
from inferencesched._kernels import marginal as kernels
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.marginal import LateBinder, MarginalCost
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.simulator import TIMINGS, Cluster, EngineConfig, Traffic, generate, policy, simulate, timing
from inferencesched.simulator.engine import step_ms
from inferencesched.simulator.late import LateSimulation

H100 = timing("llama-3.1-8b-h100")
TRAFFIC = generate(Traffic(requests=150, rate=25.0, system_tokens=900, user_tokens=300, output_tokens=60), seed=3)


# --- the model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dynamo-mocker", "llama-3.1-8b-h100", "qwen3-8b-h100"])
@given(tokens=st.integers(1, 4000), before=st.integers(0, 30_000), decodes=st.lists(st.integers(1, 9000), max_size=9))
def test_passes_take_what_the_simulated_server_takes(name, tokens, before, decodes):
    kind, coefficients = timing(name).parameters()
    config = EngineConfig()
    arguments = float(sum(decodes)), float(len(decodes)), float(config.kv_tokens)
    expected = step_ms(timing(name), prefill=((before, tokens),), decode=tuple(decodes))
    ours = kernels.prefill_ms(kind, coefficients, 8192.0, float(tokens), float(before), *arguments)
    assert ours == pytest.approx(expected, rel=1e-12)
    if decodes:
        assert kernels.decode_ms(kind, coefficients, *arguments) == pytest.approx(
            step_ms(timing(name), decode=tuple(decodes)), rel=1e-12
        )


@given(st.sampled_from(sorted(TIMINGS)), st.integers(1, 40_000), st.integers(0, 40_000), st.integers(1, 200))
def test_a_long_prompt_is_the_sum_of_its_chunks(name, tokens, before, requests):
    kind, coefficients = timing(name).parameters()

    def passes(tokens, before, most):
        return kernels.prefill_ms(kind, coefficients, most, float(tokens), float(before), 5000.0, float(requests), 1e6)

    chunk = 2048 - requests
    apart = [passes(min(chunk, tokens - at), before + at, 1e9) for at in range(0, tokens, chunk)]
    assert passes(tokens, before, 2048.0) == pytest.approx(sum(apart))


def naive_costs(model, most, cost, output, reuse, prompt, cached, state):
    """The formula, written out."""
    kind, t = model.parameters()
    best = max(cached)
    answers = []
    for w, h in enumerate(cached):
        drain, requests, context, blocks, queued, room = state[:, w]
        tokens = max(1.0, prompt - h)
        own = kernels.prefill_ms(kind, t, most, tokens, h, context, requests, room)
        if queued > 0 and queued + tokens + requests <= most:  # one pass computes both
            both, there = (
                kernels.prefill_ms(kind, t, most, count, 0.0, context, requests, room)
                for count in (queued + tokens, queued)
            )
            own = min(own, max(0.0, both - there))
        slope = t[4] if kind else max(0.0, (2 * t[3] * min(1.0, context / room) + t[4]) / room)
        token = t[2] if kind else t[1]
        stick = cost.duplicate + cost.crowding * reuse / (1 - min(reuse, 0.95))
        full = blocks / room
        answers.append(
            cost.own * (drain + own)
            + cost.stall * requests * own
            + output * slope * (context + cost.others * requests * prompt)
            + stick * (best - h) * token * (1 + requests)
            + cost.barrier * max(0.0, full - cost.barrier_at) / (1 - cost.barrier_at)
        )
    return answers


STATES = st.lists(
    st.tuples(
        st.floats(0, 900), st.integers(0, 60), st.integers(0, 300_000), st.integers(0, 400_000), st.integers(0, 20_000)
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", ["dynamo-mocker", "llama-3.1-8b-h100"])
@given(STATES, st.integers(1, 20_000), st.data())
def test_a_cost_is_what_the_formula_says(name, servers, prompt, data):
    model, cost = timing(name), MarginalCost()
    state = np.array([(*server, 400_000) for server in servers], dtype=np.float64).T.copy()
    cached = np.array(data.draw(st.lists(st.integers(0, prompt), min_size=len(servers), max_size=len(servers))), float)
    reuse = data.draw(st.floats(0, 1))
    kind, coefficients = model.parameters()
    out, passes = np.empty(len(servers)), np.empty(len(servers))
    best = kernels.costs(
        kind, coefficients, 8192.0, cost.weights(), 200.0, reuse, float(prompt), cached, state,
        np.ones(len(servers), dtype=np.bool_), out, passes,
    )  # fmt: skip
    expected = naive_costs(model, 8192.0, cost, 200.0, reuse, float(prompt), cached.tolist(), state)
    assert out.tolist() == pytest.approx(expected, rel=1e-9)
    assert best == int(np.argmin(out))


def test_nobody_who_may_not_is_chosen_and_what_they_have_cached_does_not_count():
    kind, coefficients = H100.parameters()
    state = np.array([[0.0, 0, 0, 0, 0, 1e6]] * 3).T.copy()
    out, passes = np.empty(3), np.empty(3)

    def ask(allowed):
        return kernels.costs(
            kind, coefficients, 8192.0, MarginalCost().weights(), 200.0, 0.0, 1000.0, np.array([1000.0, 0.0, 0.0]),
            state, np.array(allowed), out, passes,
        )  # fmt: skip

    assert ask([True, True, True]) == 0
    assert ask([False, True, True]) == 1 and np.isinf(out[0])
    assert out[1] == pytest.approx(15 * step_ms(H100, prefill=((0, 1000),)))  # no prefix to have twice
    assert ask([False, False, False]) == -1


@pytest.mark.parametrize("parameter", ["own", "stall", "others", "duplicate", "crowding", "barrier", "barrier_at"])
@pytest.mark.parametrize("value", [-1.0, nan, 1e400])
def test_a_bad_weight_is_named(parameter, value):
    with pytest.raises(InvalidInputError, match=f"^{parameter}: got"):
        MarginalCost(**{parameter: value})


# --- holding and sending -------------------------------------------------------------------------------------------


def fleet(count=2, **values):
    pool = InferencePool()
    for i in range(count):
        pool.join(f"s{i}", values={KV_BLOCKS: 1000.0, KV_BLOCK_SIZE: 64.0} | values)
    return pool


def binder(*filters, **parameters):
    parameters = {"slack": 0.0} | parameters
    prefix = ApproximatePrefixProducer(block_size=64, seed=1)
    scheduler = Scheduler(SchedulingProfile(MaxScorePicker(), (), filters), producers=(prefix,))
    return LateBinder(scheduler, H100, **parameters)


def ask(name, tokens=1000, **more):
    return InferenceRequest(request_id=name, input_tokens=tokens, **more)


def names(sent):
    return [each.request.request_id for each in sent]


def test_who_finds_a_free_server_goes_at_once_and_the_next_wait():
    pool, late = fleet(2), binder()
    for i in range(5):
        late.submit(ask(f"r{i}"), now=0.0)
    first = late.step(pool, now=0.0)
    # two a server: the second finds one mean prompt there, and not more
    assert len(first) == 4 and len(late) == 1
    assert sorted(each.reservation.endpoint for each in first) == ["s0", "s0", "s1", "s1"]
    assert late.step(pool, now=0.01) == []
    there = [each.reservation for each in first if each.reservation.endpoint == "s1"]
    there[0].first_token(now=0.02)
    there[1].first_token(now=0.02)
    (last,) = late.step(pool, now=0.02)
    assert last.reservation.endpoint == "s1" and last.waited == 0.02


def test_the_short_go_first_and_nobody_starves():
    pool, late = fleet(1), binder(patience=0.5)
    late.submit(ask("now", 9000), now=0.0)
    (sent,) = late.step(pool, now=0.0)
    late.submit(ask("long", 20_000), now=1.0)
    for i in range(60):  # a short one every second: after 40 of them the long one has waited as long as it is longer
        late.submit(ask(f"short{i}", 100), now=1.0 + i)
    order = []
    for i in range(61):
        if sent is not None:
            sent.reservation.complete(now=100.0 + i)
        gone = late.step(pool, now=100.0 + i)
        order += names(gone)
        sent = gone[-1] if gone else None
        for each in gone[:-1]:
            each.reservation.complete(now=100.0 + i)
    assert 35 <= order.index("long") <= 45


def test_a_full_cache_is_waited_for_but_an_empty_server_takes_anything():
    pool, late = fleet(1), binder(width=100.0)
    late.submit(ask("first", 40_000), now=0.0)
    late.submit(ask("second", 40_000), now=0.0)  # the server has 64,000 tokens
    (sent,) = late.step(pool, now=0.0)
    sent.reservation.first_token(now=1.0)
    assert late.step(pool, now=1.0) == []
    sent.reservation.complete(now=2.0)
    assert len(late.step(pool, now=2.0)) == 1
    late.submit(ask("huge", 90_000), now=3.0)
    empty = fleet(1)
    assert len(late.step(empty, now=3.0)) == 1


def test_filters_say_who_may_and_whoever_may_go_nowhere_waits():
    pool = fleet(1)
    late = binder(LabelFilter("zone", ("eu",)))
    late.submit(ask("r"), now=0.0)
    assert late.step(pool, now=0.0) == [] and len(late) == 1
    pool.join("eu", labels={"zone": "eu"})
    (sent,) = late.step(pool, now=0.1)
    assert sent.reservation.endpoint == "eu"


def test_a_prefix_is_gone_to_and_looked_for_again():
    pool, late = fleet(2), binder(refresh=0.0)
    chain = np.arange(1, 31, dtype=np.uint64)
    late.submit(ask("a", 1920, block_hashes=chain), now=0.0)
    (sent,) = late.step(pool, now=0.0)
    sent.reservation.first_token(now=0.1)
    late.submit(ask("b", 1930, block_hashes=chain), now=1.0)
    (again,) = late.step(pool, now=1.0)
    assert again.reservation.endpoint == sent.reservation.endpoint
    assert (sent.reservation.tokens, again.reservation.tokens) == (1920, 10)
    assert 0 < late.reuse < 0.02


def test_it_learns_how_long_answers_are():
    pool, late = fleet(1), binder(output=200.0)
    late.submit(ask("r"), now=0.0)
    (sent,) = late.step(pool, now=0.0)
    sent.reservation.complete(Usage(1000, 1200, 0), now=1.0)
    assert late.output == pytest.approx(210.0)


def test_why_somebody_waits_is_told_and_the_parts_add_up():
    pool, late = fleet(2), binder(LabelFilter("zone", ("eu",)), width=0.0)
    pool.join("eu", values={KV_BLOCKS: 1000.0, KV_BLOCK_SIZE: 64.0}, labels={"zone": "eu"})
    pool.join("eu2", values={KV_BLOCKS: 40.0, KV_BLOCK_SIZE: 64.0}, labels={"zone": "eu"})
    for i in range(3):
        late.submit(ask(f"r{i}", 2000 + i), now=0.0)
    assert sorted(each.reservation.endpoint for each in late.step(pool, now=0.0)) == ["eu", "eu2"]
    told = late.explain("r2", pool, now=0.01)
    assert (told.request_id, told.ahead, told.waited) == ("r2", 0, 0.01)
    assert [each.waits_for for each in told.servers] == ["prefill", "prefill", "filters", "filters"]
    assert told.servers[0].endpoint == "eu" and told.servers[1].barrier > 1000 > told.servers[0].barrier
    state = late._state(pool.snapshot(), 0.01)
    out, passes = np.empty(4), np.empty(4)
    kernels.costs(
        late.kind, late._timing, 8192.0, late._weights, late.output, late.reuse, 2002.0, np.zeros(4), state,
        np.ones(4, dtype=np.bool_), out, passes,
    )  # fmt: skip
    by_name = dict(zip(pool.names, out.tolist(), strict=True))
    assert {each.endpoint: each.cost for each in told.servers} == pytest.approx(by_name)
    assert "eu2" in str(told) and len(late) == 1
    with pytest.raises(UnknownNameError, match="r9"):
        late.explain("r9", pool, now=0.01)


@pytest.mark.parametrize(("count", "calls"), [(1, {1, 2}), (3, {1, 2}), (3, {2, 5}), (6, {6, 10})])
def test_nobody_is_lost_when_a_booking_fails(count, calls):
    class Fails:
        """A producer that cannot learn at two of its calls."""

        def __init__(self):
            self.called = 0

        produces = (PREFIX_TOKENS,)

        def produce(self, request, endpoints, cycle):
            return Produced({PREFIX_TOKENS: np.zeros(len(endpoints))}, None)

        def commit(self, receipt, slot, *, now):
            self.called += 1
            if self.called in calls:
                raise ConnectionError("not now")

    pool = fleet(3)
    late = LateBinder(Scheduler(SchedulingProfile(MaxScorePicker()), producers=(Fails(),)), H100)
    for i in range(count):
        late.submit(ask(f"r{i}"), now=0.0)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            late.step(pool, now=0.0)
        assert len(late) == count and pool.ledger().inflight_requests == 0
    assert sorted(names(late.step(pool, now=0.0))) == [f"r{i}" for i in range(count)]
    assert len(late) == 0 and pool.ledger().inflight_requests == count


def test_who_left_waits_no_more():
    pool, late = fleet(1), binder()
    late.submit(ask("a"), now=0.0)
    assert late.withdraw("a") and not late.withdraw("a")
    for name in ("b", "c", "d"):
        late.submit(ask(name), now=0.0)
    late.step(pool, now=0.0)
    assert len(late) == 1
    assert late.withdraw("d") and len(late) == 0 and late.step(pool, now=0.0) == []


@pytest.mark.parametrize(
    ("act", "parameter"),
    [
        (lambda: binder(window=0), "window"),
        (lambda: binder(patience=-1.0), "patience"),
        (lambda: binder(width=nan), "width"),
        (lambda: binder(kv_tokens=0), "kv_tokens"),
        (lambda: binder().submit(ask("r"), now=nan), "now"),
        (lambda: binder().submit(InferenceRequest(request_id="r"), now=0.0), "input_tokens"),
        (lambda: [late := binder(), late.submit(ask("r"), now=0.0), late.submit(ask("r"), now=0.0)], "request_id"),
    ],
)
def test_what_is_wrong_is_named(act, parameter):
    with pytest.raises(InvalidInputError, match=parameter):
        act()


class Binding(RuleBasedStateMachine):
    """Whatever happens, everybody who was submitted waits, is in flight, has ended, or was withdrawn: exactly one of them."""

    @initialize(width=st.sampled_from([0.0, 1.0, 4.0]), window=st.sampled_from([1, 3, 32]))
    def begin(self, width, window):
        self.pool, self.late = fleet(3), binder(width=width, window=window)
        self.now, self.count = 0.0, 0
        self.waiting, self.flying, self.ended = set(), {}, set()

    def step(self):
        queued = dict.fromkeys(self.pool.names, 0.0)
        for reservation in self.flying.values():
            if reservation.first_token_at != reservation.first_token_at:
                queued[reservation.endpoint] += reservation.tokens
        usual = self.late.uncached
        for sent in self.late.step(self.pool, now=self.now):
            name = sent.request.request_id
            assert name in self.waiting and sent.waited >= 0
            if usual == usual:  # the mean moves a little with each that goes
                assert (
                    queued[sent.reservation.endpoint] <= self.late.width * max(usual, self.late.uncached) * 1.2 + 1e-9
                )
            queued[sent.reservation.endpoint] += sent.reservation.tokens
            self.waiting.remove(name)
            self.flying[name] = sent.reservation

    @rule(tokens=st.integers(1, 5000), blocks=st.integers(0, 12), root=st.integers(1, 4), soon=st.booleans())
    def submit(self, tokens, blocks, root, soon):
        chain = np.array([1000 * root + i for i in range(min(blocks, tokens // 64))], dtype=np.uint64)
        name = str(self.count)
        self.count += 1
        self.late.submit(InferenceRequest(request_id=name, input_tokens=tokens, block_hashes=chain), now=self.now)
        self.waiting.add(name)
        if soon:
            self.step()

    @rule(nth=st.integers(0, 30), how=st.sampled_from(["first", "complete", "fail"]), took=st.floats(0.001, 0.3))
    def hear(self, nth, how, took):
        self.now += took
        if self.flying:
            name = sorted(self.flying)[nth % len(self.flying)]
            reservation = self.flying[name]
            if how == "first":
                reservation.first_token(now=self.now)
            else:
                del self.flying[name]
                self.ended.add(name)
                reservation.complete(Usage(10, 20, 0), now=self.now) if how == "complete" else reservation.fail(
                    now=self.now
                )
        self.step()

    @rule(nth=st.integers(0, 30))
    def withdraw(self, nth):
        if self.waiting:
            name = sorted(self.waiting)[nth % len(self.waiting)]
            assert self.late.withdraw(name)
            self.waiting.remove(name)

    @rule(leaves=st.booleans())
    def change(self, leaves):
        if leaves and len(self.pool.names) > 1:
            name = self.pool.names[0]
            self.pool.leave(name)
            for request, reservation in list(self.flying.items()):
                if reservation.settlement is not None:
                    del self.flying[request]
                    self.ended.add(request)
        else:
            self.pool.join(f"late{self.count}-{self.now}", values={KV_BLOCKS: 1000.0, KV_BLOCK_SIZE: 64.0})
            self.count += 1
        self.step()

    @invariant()
    def nobody_is_lost(self):
        if hasattr(self, "late"):
            assert len(self.late) == len(self.waiting)
            assert self.pool.ledger().inflight_requests == len(self.flying)
            books, endpoints = self.late._books, self.pool.snapshot()
            assert sum(map(len, books.pending)) <= len(self.flying) + len(self.ended)
            for slot, queued in zip(endpoints.slots.tolist(), endpoints[INFLIGHT_TOKENS].tolist(), strict=True):
                if slot < len(books.pending) and books.rows[kernels.TOKENS, slot] == queued:
                    owed = [each for each, _ in books.pending[slot] if each.first_token_at != each.first_token_at]
                    assert sum(each.tokens for each in owed if each.settlement is None) <= queued


TestBinding = Binding.TestCase
TestBinding.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# --- in the simulator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.5, 3.0, 12.0])
def test_everybody_is_served_whatever_the_load_and_a_run_repeats(speed):
    cluster = Cluster(servers=3, speedup=speed, answer_ms=5.0, news_ms=50.0)
    one, other = (simulate(TRAFFIC, policy("marginal"), cluster) for _ in range(2))
    assert one.figures["completed"] == len(TRAFFIC) and one.ledger.inflight_requests == 0
    assert one.server.tolist() == other.server.tolist() and repr(one.figures) == repr(other.figures)


def test_it_waits_only_where_servers_are_busy():
    light, heavy = (
        LateSimulation(TRAFFIC, policy("marginal"), Cluster(servers=3, speedup=speed)) for speed in (0.2, 12.0)
    )
    for simulation in (light, heavy):
        while simulation.arrived < len(TRAFFIC):
            simulation.step()
        simulation.finish()
    assert np.median(light.wait) == 0.0 < np.median(heavy.wait)
    assert (light.wait >= 0).all() and (heavy.fleet.first_token >= heavy.workload.arrival + heavy.wait).all()


def test_only_a_policy_that_binds_can_be_simulated_so():
    with pytest.raises(InvalidInputError, match="a policy that binds late"):
        LateSimulation(TRAFFIC, policy("random"), Cluster())
