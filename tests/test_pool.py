import math
import threading

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

import inferencesched as isched
from tests import naive


def pool_of(*names, **options):
    pool = isched.InferencePool(**options)
    for name in names:
        pool.join(name)
    return pool


def test_unknown_is_nan_and_local_columns_are_zero():
    pool = pool_of("a")
    endpoints = pool.snapshot()
    for signal in isched.STANDARD_SIGNALS:
        if signal.freshness in ("scraped", "static", "cycle"):
            assert math.isnan(endpoints[signal][0]), signal
    assert endpoints[isched.INFLIGHT_REQUESTS][0] == 0
    assert endpoints.age(5.0)[0] == math.inf
    assert endpoints.last_picked.tolist() == [-1]


def test_a_snapshot_does_not_change_and_cannot_be_changed():
    pool = pool_of("a", "b")
    pool.observe("a", {isched.WAITING_QUEUE_SIZE: 1}, now=0)
    before = pool.snapshot()
    assert pool.snapshot() is before
    pool.observe("a", {isched.WAITING_QUEUE_SIZE: 7}, now=1)
    pool.reserve("a", request_id="r", tokens=3, now=1)
    pool.leave("b")
    assert before[isched.WAITING_QUEUE_SIZE][0] == 1
    assert before[isched.INFLIGHT_TOKENS][0] == 0
    assert before.names == ("a", "b")
    with pytest.raises(ValueError, match="read-only"):
        before[isched.WAITING_QUEUE_SIZE][0] = 9


def test_where_compresses_and_returns_itself_when_nothing_is_dropped():
    pool = pool_of("a", "b", "c")
    pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([9.0, 2.0, 1.0])}, now=0.0)
    endpoints = pool.snapshot()
    assert endpoints.where(np.ones(3, dtype=bool)) is endpoints
    two = endpoints.where(np.array([False, True, True]))
    assert two.names == ("b", "c") and two[isched.WAITING_QUEUE_SIZE].max() == 2.0
    one = two.where(np.array([False, True]))
    assert one.names == ("c",) and one.slots.tolist() == [2] and one.name(0) == "c"


def test_with_columns_adds_and_replaces_without_touching_the_original():
    mine = isched.Signal("mine")
    endpoints = pool_of("a", "b").snapshot()
    wider = endpoints.with_columns({mine: np.array([1.0, 2.0]), isched.PREFIX_MATCH: np.array([0.5, 0.0])})
    assert wider[mine].tolist() == [1.0, 2.0]
    assert wider[isched.PREFIX_MATCH].tolist() == [0.5, 0.0]
    assert np.isnan(endpoints[isched.PREFIX_MATCH]).all()
    with pytest.raises(isched.UnknownNameError, match="mine"):
        endpoints[mine]
    with pytest.raises(isched.InvalidInputError, match="float64\\[2\\]"):
        endpoints.with_columns({mine: np.zeros(3)})


def test_labels_and_adapters_are_seen_through_where():
    pool = isched.InferencePool()
    pool.join("a", labels={"role": "decode"})
    pool.join("b", labels={"role": "prefill"})
    pool.observe("b", {}, now=0.0, adapters=isched.Adapters(frozenset({"x"}), frozenset({"y"}), 2))
    endpoints = pool.snapshot()
    assert endpoints.label("role", "decode").tolist() == [True, False]
    assert endpoints.hosts("x").tolist() == [False, True]
    assert endpoints.awaits("y").tolist() == [False, True]
    assert endpoints[isched.LORA_CAPACITY].tolist()[1] == 2
    only = endpoints.where(np.array([False, True]))
    assert only.label("role", "decode").tolist() == [False] and only.hosts("x").tolist() == [True]


def test_slots_are_reused_and_generations_are_not():
    pool = pool_of("a", "b", "c")
    first = dict(zip(pool.names, pool.snapshot().generations.tolist(), strict=True))
    pool.leave("b")
    pool.join("d")
    pool.join("b")
    endpoints = pool.snapshot()
    assert endpoints.names == ("a", "c", "d", "b")
    assert endpoints.slots.tolist() == [0, 2, 1, 3]
    assert endpoints.generations[3] != first["b"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: p.join("a"), isched.DuplicateEndpointError, "'a'"),
        (lambda p: p.join(""), isched.InvalidInputError, "name"),
        (lambda p: p.leave("zz"), isched.UnknownNameError, "zz.*one of a"),
        (lambda p: p.observe("zz", {}, now=2), isched.UnknownNameError, "zz"),
        (lambda p: p.observe("a", {isched.Signal("odd"): 1}, now=2), isched.UnknownNameError, "odd"),
        (
            lambda p: p.observe("a", {isched.KV_CACHE_USAGE: 1.5}, now=2),
            isched.InvalidInputError,
            "kv_cache_usage.*1.5",
        ),
        (lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: -1}, now=2), isched.InvalidInputError, "-1"),
        (lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: math.inf}, now=2), isched.InvalidInputError, "inf"),
        (lambda p: p.observe("a", {isched.INFLIGHT_REQUESTS: 1}, now=2), isched.InvalidInputError, "local"),
        (lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: 1}, now=0.5), isched.InvalidInputError, "now: got 0.5"),
        (
            lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: 1}, now=math.nan),
            isched.InvalidInputError,
            "now: got nan",
        ),
        (
            lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: 3, isched.KV_CACHE_USAGE: 2.0}, now=2),
            isched.InvalidInputError,
            "kv_cache_usage",
        ),
        (lambda p: p.observe_all({isched.WAITING_QUEUE_SIZE: np.zeros(3)}, now=2), isched.InvalidInputError, "shape"),
        (lambda p: p.observe_all({isched.KV_CACHE_USAGE: np.array([2.0])}, now=2), isched.InvalidInputError, "2.0"),
        (lambda p: p.observe_all({isched.KV_CACHE_USAGE: np.array([0.2])}, now=0.5), isched.InvalidInputError, "now"),
        (lambda p: p.observe_all({}, now=math.inf), isched.InvalidInputError, "now: got inf"),
        (lambda p: p.observe_all({}, now=np.array([math.nan])), isched.InvalidInputError, "now: got nan"),
        (lambda p: p.observe_all({}, now=np.zeros(3)), isched.InvalidInputError, r"now: got 'shape \(3,\)'"),
        (lambda p: p.reserve("zz", request_id="r", now=2), isched.UnknownNameError, "zz"),
        (lambda p: p.reserve("a", request_id="r", tokens=-1, now=2), isched.InvalidInputError, "tokens"),
        (lambda p: p.reserve("a", request_id="r", tokens=math.nan, now=2), isched.InvalidInputError, "tokens: got nan"),
        (lambda p: p.reserve("a", request_id="r", tokens=1.5, now=2), isched.InvalidInputError, "tokens: got 1.5"),
        (lambda p: p.reserve("a", request_id="r", context_tokens=-1, now=2), isched.InvalidInputError, "context_tok"),
        (lambda p: p.reserve("a", request_id="r", now=math.nan), isched.InvalidInputError, "now: got nan"),
        (lambda p: p.sweep(math.nan), isched.InvalidInputError, "now: got nan"),
        (
            lambda p: p.observe("a", {isched.WAITING_QUEUE_SIZE: 1}, now=2, adapters=isched.Adapters(capacity=-1)),
            isched.InvalidInputError,
            "adapters.capacity: got -1",
        ),
        (
            lambda p: p.join("b", values={isched.WAITING_QUEUE_SIZE: 1}),
            isched.InvalidInputError,
            "waiting_queue_size: got 'a scraped signal', allowed: a static signal",
        ),
        (lambda p: p.reserve("a", request_id="r", now=2, generation=99), isched.EndpointGoneError, "'a'"),
    ],
)
def test_bad_input_is_refused_and_nothing_changes(call, error, words):
    pool = pool_of("a")
    pool.observe("a", {isched.WAITING_QUEUE_SIZE: 5, isched.KV_CACHE_USAGE: 0.5}, now=1.0)
    before = pool.snapshot()
    with pytest.raises(error, match=words):
        call(pool)
    assert pool.snapshot() is before
    pool.check()


@pytest.mark.parametrize("options", [{"reservation_ttl": 0.0}, {"reservation_ttl": math.nan}])
def test_bad_parameters(options):
    with pytest.raises(isched.InvalidInputError, match="reservation_ttl"):
        isched.InferencePool(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "name: got ''"),
        ({"name": "x", "low": 2.0, "high": 1.0}, "low: got 2.0"),
        ({"name": "x", "low": math.nan}, "low: got nan"),
        ({"name": "x", "default": -1.0}, "default: got -1.0, allowed: 0.0 to inf, or NaN"),
        ({"name": "x", "freshness": "old"}, "freshness: got 'old', allowed: one of scraped, local, static, cycle"),
    ],
)
def test_bad_signals(options, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.Signal(**options)


def test_a_signal_of_one_s_own_is_a_column_like_any_other():
    mine = isched.Signal("temperature", "celsius", high=150.0)
    pool = isched.InferencePool(signals=(mine,))
    pool.join("a")
    assert math.isnan(pool.snapshot()[mine][0])
    pool.observe("a", {mine: 70.0}, now=0.0)
    assert pool.snapshot()[mine][0] == 70.0
    with pytest.raises(isched.InvalidInputError, match="temperature: got 200.0, allowed: 0.0 to 150.0"):
        pool.observe("a", {isched.Signal("temperature"): 200.0}, now=1.0)  # the pool's own word counts


def test_a_pool_refuses_two_signals_of_one_name():
    with pytest.raises(isched.InvalidInputError, match="each name once"):
        isched.InferencePool(signals=(isched.Signal("waiting_queue_size"),))


def test_the_life_of_a_reservation():
    pool = pool_of("a", "b")
    reservation = pool.reserve("a", request_id="r", tokens=100, context_tokens=120, now=1.0)
    assert pool.snapshot()[isched.INFLIGHT_TOKENS].tolist() == [100, 0]
    assert pool.snapshot()[isched.LAST_PICKED].tolist() == [0, -1]
    reservation.first_token(now=1.5)
    reservation.first_token(now=1.6)  # told twice: counted once
    assert pool.snapshot()[isched.INFLIGHT_TOKENS].tolist() == [0, 0]
    reservation.progress(30, now=2.0)
    assert pool.snapshot()[isched.CONTEXT_TOKENS].tolist() == [150, 0]
    reservation.served_by("b", now=2.1)
    assert pool.snapshot()[isched.CONTEXT_TOKENS].tolist() == [0, 150]
    assert pool.snapshot()[isched.INFLIGHT_REQUESTS].tolist() == [0, 1]
    done = reservation.complete(isched.Usage(120, 30, 20), now=3.0)
    assert done.outcome == "completed" and done.endpoint == "b" and done.output_tokens == 30
    assert (done.reserved_at, done.first_token_at, done.settled_at) == (1.0, 1.5, 3.0)
    assert pool.ledger() == isched.Ledger(1, 1, 0, 100, 100, 0)
    pool.check()


def test_settling_twice_is_a_typed_error_and_changes_nothing():
    pool = pool_of("a")
    reservation = pool.reserve("a", request_id="r", tokens=5, now=0.0)
    reservation.fail("upstream", now=1.0)
    before = pool.snapshot()
    for again in (
        lambda: reservation.complete(now=2.0),
        lambda: reservation.fail(now=2.0),
        lambda: reservation.first_token(now=2.0),
        lambda: reservation.progress(1, now=2.0),
        lambda: reservation.served_by("a", now=2.0),
    ):
        with pytest.raises(isched.AlreadySettledError, match="'r'.*'failed'"):
            again()
    assert pool.snapshot() is before
    assert pool.ledger().settled_requests == 1


def test_settling_after_the_endpoint_left():
    pool = pool_of("a", "b")
    reservation = pool.reserve("a", request_id="r", tokens=5, now=0.0)
    other = pool.reserve("b", request_id="s", tokens=7, now=0.0)
    (settled,) = pool.leave("a")
    assert settled.outcome == "endpoint_left" and settled.request_id == "r"
    pool.join("a")
    with pytest.raises(isched.EndpointGoneError, match="'r' on 'a'"):
        reservation.complete(now=1.0)
    assert pool.snapshot()[isched.INFLIGHT_TOKENS].tolist() == [7, 0]
    other.complete(now=1.0)
    pool.check()


def test_sweep_settles_what_went_silent_only():
    pool = pool_of("a", reservation_ttl=10.0)
    silent = pool.reserve("a", request_id="silent", tokens=5, now=0.0)
    busy = pool.reserve("a", request_id="busy", tokens=5, now=0.0)
    busy.progress(1, now=8.0)
    assert pool.sweep(10.0) == []
    (expired,) = pool.sweep(10.5)
    assert (expired.request_id, expired.outcome) == ("silent", "expired")
    with pytest.raises(isched.AlreadySettledError, match="expired"):
        silent.complete(now=11.0)
    busy.complete(now=11.0)
    assert pool.ledger() == isched.Ledger(2, 2, 0, 10, 10, 0)


def test_a_context_manager_settles_once():
    pool = pool_of("a")
    with pool.reserve("a", request_id="ok", now=0.0) as ok:
        ok.progress(1, now=3.0)
    assert ok.settlement is not None and ok.settlement.outcome == "completed" and ok.settlement.settled_at == 3.0
    with pytest.raises(ZeroDivisionError), pool.reserve("a", request_id="bad", now=0.0) as bad:
        raise ZeroDivisionError
    assert bad.settlement is not None and bad.settlement[2:4] == ("failed", "ZeroDivisionError")
    with pool.reserve("a", request_id="own", now=0.0) as own:
        own.fail("shed", now=1.0)
    assert own.settlement is not None and own.settlement.reason == "shed"
    pool.check()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (lambda r: r.progress(-1, now=1.0), "tokens: got -1"),
        (lambda r: r.progress(0.5, now=1.0), "tokens: got 0.5"),
        (lambda r: r.progress(1, now=math.nan), "now: got nan"),
        (lambda r: r.first_token(now=math.nan), "now: got nan"),
        (lambda r: r.served_by("a", now=math.inf), "now: got inf"),
        (lambda r: r.served_by("zz", now=1.0), "endpoint: got 'zz'"),
        (lambda r: r.complete(now=math.nan), "now: got nan"),
        (lambda r: r.fail(now=math.nan), "now: got nan"),
    ],
)
def test_an_event_that_makes_no_sense_is_refused_and_nothing_changes(event, words):
    pool = pool_of("a")
    reservation = pool.reserve("a", request_id="r", tokens=9, now=0.0)
    before = pool.snapshot()
    with pytest.raises(isched.InvalidInputError, match=words):
        event(reservation)
    assert pool.snapshot() is before and reservation.touched_at == 0.0 and reservation.settlement is None
    pool.check()


def test_leaving_the_block_after_a_sweep_settles_nothing_twice():
    pool = pool_of("a", reservation_ttl=10.0)
    with pool.reserve("a", request_id="r", now=0.0) as reservation:
        pool.sweep(99.0)
    assert reservation.settlement.outcome == "expired" and pool.ledger().settled_requests == 1


def test_masks_remember_no_word_of_a_client_s():
    """Any client may ask for any adapter: what nobody has must leave no trace."""
    pool = isched.InferencePool()
    pool.join("a", labels={"zone": "eu"})
    pool.observe("a", {}, now=0.0, adapters=isched.Adapters(frozenset({"x"}), frozenset({"y"}), 2))
    endpoints = pool.snapshot()
    for i in range(50):
        for mask in (endpoints.hosts(f"x{i}"), endpoints.awaits(f"x{i}"), endpoints.label("zone", f"x{i}")):
            assert mask.tolist() == [False]
    masks = (endpoints.hosts("x"), endpoints.awaits("y"), endpoints.label("zone", "eu"))
    for mask, kept in zip(
        masks,
        (endpoints._residency._running, endpoints._residency._waiting, endpoints.members._labels),
        strict=True,
    ):
        assert mask.tolist() == [True] and len(kept._masks) == 1
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = False


def test_a_column_is_checked_against_its_signal():
    endpoints = pool_of("a", "b").snapshot()
    for column, words in (
        ([0.5, 1.5], r"kv_cache_usage: got .1\.5 for .*'b.*, allowed: 0.0 to 1.0"),
        ([math.inf, 0.5], "inf for 'a'"),
        (["x", "y"], "kv_cache_usage"),
        ([[0.5, 0.5]], "shape"),
    ):
        with pytest.raises(isched.InvalidInputError, match=words):
            endpoints.with_columns({isched.KV_CACHE_USAGE: column})
    mixed = endpoints.with_columns({isched.KV_CACHE_USAGE: [math.nan, 1]})
    assert math.isnan(mixed[isched.KV_CACHE_USAGE][0]) and mixed[isched.KV_CACHE_USAGE][1] == 1.0


def test_observing_a_column_of_nothing_known():
    pool = pool_of("a", "b")
    pool.observe_all({isched.KV_CACHE_USAGE: np.full(2, math.nan)}, now=1.0)
    assert np.isnan(pool.snapshot()[isched.KV_CACHE_USAGE]).all()
    with pytest.raises(isched.InvalidInputError, match="inf"):
        pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([1.0, math.inf])}, now=2.0)
    pool_of().observe_all({isched.KV_CACHE_USAGE: np.empty(0)}, now=1.0)


def test_age_and_the_oldest():
    pool = pool_of("a", "b", "c")
    pool.observe("a", {}, now=3.0)
    pool.observe("b", {}, now=5.0)
    endpoints = pool.snapshot()
    assert endpoints.age(7.0).tolist() == [4.0, 2.0, math.inf]
    assert endpoints.oldest == (-math.inf, 3.0)
    assert endpoints.where(np.array([False, True, False])).oldest == (5.0, 5.0)
    assert endpoints.where(np.array([False, False, True])).oldest == (-math.inf, math.inf)
    assert [endpoints.stay(i) for i in range(3)] == [(0, 1), (1, 2), (2, 3)]


def test_ten_threads_lose_nothing():
    pool = pool_of(*"abcdefgh")
    scheduler = isched.Scheduler(isched.default_profile())
    each, kept = 200, []

    def work(number):
        rng = np.random.default_rng(number)
        mine = []
        for i in range(each):
            request = isched.InferenceRequest(request_id=f"{number}-{i}", input_tokens=i + 1)
            mine.append(scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng))
            if i % 7 == 0:
                mine[-1].first_token(now=0.5)
            if i % 3 == 0:
                mine.pop(0).complete(now=1.0)
        kept.append(mine)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.check()
    ledger = pool.ledger()
    assert ledger.reserved_requests == 10 * each == ledger.settled_requests + ledger.inflight_requests
    assert ledger.reserved_tokens == 10 * sum(range(1, each + 1)) == ledger.settled_tokens + ledger.inflight_tokens
    assert ledger.inflight_requests == sum(map(len, kept))


class PoolMachine(RuleBasedStateMachine):
    """Any order of joining, leaving, observing, booking and settling: the books agree with the naive ones."""

    reservations = Bundle("reservations")

    def __init__(self):
        super().__init__()
        self.pool = isched.InferencePool(reservation_ttl=50.0)
        self.books = naive.Books()
        self.now = 0.0

    @rule(name=st.sampled_from("abcd"))
    def join(self, name):
        if name in self.books.names:
            with pytest.raises(isched.DuplicateEndpointError):
                self.pool.join(name)
        else:
            self.pool.join(name)
            self.books.names.append(name)

    @precondition(lambda self: self.books.names)
    @rule(data=st.data())
    def leave(self, data):
        name = data.draw(st.sampled_from(self.books.names))
        assert len(self.pool.leave(name)) == len(self.books.leave(name))

    @precondition(lambda self: self.books.names)
    @rule(data=st.data(), value=st.floats(0, 1), wait=st.floats(0, 30))
    def observe(self, data, value, wait):
        name = data.draw(st.sampled_from(self.books.names))
        self.now += wait
        self.pool.observe(name, {isched.KV_CACHE_USAGE: value}, now=self.now)
        position = self.pool.names.index(name)
        assert self.pool.snapshot()[isched.KV_CACHE_USAGE][position] == value

    @precondition(lambda self: self.books.names)
    @rule(target=reservations, data=st.data(), tokens=st.integers(0, 1000))
    def reserve(self, data, tokens):
        name = data.draw(st.sampled_from(self.books.names))
        reservation = self.pool.reserve(name, request_id="r", tokens=tokens, context_tokens=tokens + 1, now=self.now)
        self.books.reserve(reservation.number, name, tokens, tokens + 1)
        return reservation

    def alive(self, reservation):
        return reservation.number in self.books.open

    @rule(reservation=reservations)
    def first_token(self, reservation):
        if self.alive(reservation):
            reservation.first_token(now=self.now)
            self.books.first_token(reservation.number)
        else:
            with pytest.raises(isched.ReservationError):
                reservation.first_token(now=self.now)

    @rule(reservation=reservations, tokens=st.integers(0, 9))
    def progress(self, reservation, tokens):
        if self.alive(reservation):
            reservation.progress(tokens, now=self.now)
            self.books.progress(reservation.number, tokens)

    @precondition(lambda self: self.books.names)
    @rule(reservation=reservations, data=st.data())
    def move(self, reservation, data):
        name = data.draw(st.sampled_from(self.books.names))
        if self.alive(reservation):
            reservation.served_by(name, now=self.now)
            self.books.move(reservation.number, name)

    @rule(reservation=consumes(reservations), well=st.booleans())
    def settle(self, reservation, well):
        settle = reservation.complete if well else reservation.fail
        if self.alive(reservation):
            settle(now=self.now)
            self.books.settle(reservation.number)
        else:
            with pytest.raises(isched.ReservationError):
                settle(now=self.now)

    @precondition(lambda self: self.books.names)
    @rule(data=st.data(), tokens=st.integers(0, 1000))
    def reserve_and_withdraw(self, data, tokens):
        name = data.draw(st.sampled_from(self.books.names))
        before = self.pool.snapshot().matrix.tobytes(), self.pool.ledger()
        self.pool.withdraw(self.pool.reserve(name, request_id="r", tokens=tokens, now=self.now))
        assert (self.pool.snapshot().matrix.tobytes(), self.pool.ledger()) == before

    @rule()
    def sweep(self):
        before = set(self.books.open)
        count = len(self.pool.sweep(self.now))
        alive = {reservation.number for reservation in self.pool._inflight.values()}
        assert len(before - alive) == count
        for number in before - alive:
            self.books.settle(number)

    @invariant()
    def agree(self):
        self.pool.check()
        books, endpoints = self.books, self.pool.snapshot()
        assert list(endpoints.names) == books.names
        for signal, column in zip(
            (isched.INFLIGHT_REQUESTS, isched.INFLIGHT_TOKENS, isched.CONTEXT_TOKENS), books.columns(), strict=True
        ):
            assert endpoints[signal].tolist() == column
        ledger = self.pool.ledger()
        assert ledger[:3] == (books.reserved, books.settled, len(books.open))
        assert ledger[3:5] == (books.reserved_tokens, books.settled_tokens)


TestPoolMachine = PoolMachine.TestCase


def test_a_mask_of_another_length_is_refused():
    pool = isched.InferencePool()
    for name in "abc":
        pool.join(name)
    for keep in ([True, False], [True, True], [True] * 4, [[True, True, False]]):
        with pytest.raises(isched.InvalidInputError, match=r"keep: got 'shape .*', allowed: bool\[3\]"):
            pool.snapshot().where(np.array(keep))


def test_a_set_of_adapters_that_its_owner_changes_later():
    pool, running = isched.InferencePool(), {"x"}
    pool.join("a")
    for now, hosted in enumerate((False, True)):
        pool.observe("a", {}, now=now, adapters=isched.Adapters(running=running, capacity=4))
        assert pool.snapshot().hosts("y").tolist() == [hosted]
        running.add("y")


def test_in_one_go_some_have_never_said_anything():
    pool = isched.InferencePool()
    for name in "ab":
        pool.join(name)
    pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([3.0, math.nan])}, now=np.array([1.0, -math.inf]))
    assert pool.snapshot().age(2.0).tolist() == [1.0, math.inf]
    with pytest.raises(isched.InvalidInputError, match="now: got -inf"):
        pool.observe_all({}, now=-math.inf)
