import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import inferencesched as isched
from inferencesched.signals import HEALTH
from tests.naive_outlier import Doctor
from tests.profiles import endpoints_of

NAMES = "abcde"


def request(name="r"):
    return isched.InferenceRequest(request_id=name, input_tokens=100)


class Ward:
    """A pool, a scheduler that leaves the sick alone, and time."""

    def __init__(self, policy, names="", *scorers, ttl=math.inf):
        self.producer = isched.OutlierProducer(policy)
        self.pool = isched.InferencePool(reservation_ttl=ttl)
        profile = isched.SchedulingProfile(
            isched.MaxScorePicker(), tuple(isched.WeightedScorer(s) for s in scorers), (isched.HealthFilter(),)
        )
        self.scheduler = isched.Scheduler(profile, producers=(self.producer,), stale=isched.StalePolicy(assume="trust"))
        self.rng = np.random.default_rng(3)
        self.now = 0.0
        for name in names:
            self.pool.join(name)

    def send(self, only=None):
        away = [name for name in self.pool.names if only is not None and name != only]
        return self.scheduler.schedule_and_reserve(request(), self.pool, now=self.now, rng=self.rng, exclude=away)

    def fail(self, name, times=1):
        for _ in range(times):
            self.send(name).fail(now=self.now)

    def health(self):
        snapshot = self.pool.snapshot()
        cycle = isched.CycleState(self.now, self.rng, snapshot.sequence)
        column = self.producer.produce(request(), snapshot, cycle).columns[HEALTH]
        return dict(zip(self.pool.names, column.tolist(), strict=True))


POLICY = isched.OutlierPolicy(
    consecutive_failures=3,
    interval=5.0,
    stdev_factor=1.0,
    stdev_minimum_hosts=2,
    stdev_request_volume=3,
    failure_share=0.75,
    failure_minimum_hosts=1,
    failure_request_volume=4,
    base_ejection_time=4.0,
    max_ejection_time=10.0,
    trial_successes=2,
)


def test_failures_in_a_row_eject_and_a_success_between_them_does_not():
    ward = Ward(POLICY, "ab")
    ward.fail("a", 2)
    ward.send("a").complete(now=0.0)
    ward.fail("a", 2)
    assert ward.health() == {"a": 1.0, "b": 1.0}
    ward.fail("a")
    assert ward.health() == {"a": 0.0, "b": 1.0}
    assert {ward.send().endpoint for _ in range(4)} == {"b"}
    assert ward.producer.ejections == (isched.Ejection("a", 1, 4.0, 0),)


def test_what_was_sent_before_a_failure_says_nothing_of_the_server_after_it():
    ward = Ward(POLICY, "ab")
    streams = [
        ward.send("a") for _ in range(6)
    ]  # of a server that is told to stop: it ends what it has, and takes no more
    for second, stream in enumerate(streams[:3], start=1):
        ward.now = float(second)
        ward.fail("a")
        stream.complete(now=ward.now)
    assert ward.health()["a"] == 0.0
    ward = Ward(POLICY, "ab")
    ward.now = 1.0
    ward.fail("a", 2)
    ward.now = 1.5
    later = ward.send("a")
    ward.now = 2.0
    later.complete(now=2.0)
    ward.fail("a", 2)
    assert ward.health()["a"] == 1.0


def test_an_ejection_lasts_longer_each_time_up_to_the_most():
    ward, lasted = Ward(POLICY, "ab"), []
    for _ in range(4):
        ward.fail("a", 3 if not lasted else 1)  # the first by failures in a row, the others on trial
        (ejection,) = ward.producer.ejections
        lasted.append(ejection.until - ward.now)
        ward.now = ejection.until - 0.01
        assert ward.health()["a"] == 0.0
        ward.now = ejection.until
        assert ward.health()["a"] == 0.5
    assert lasted == [4.0, 8.0, 10.0, 10.0]


def test_on_trial_a_few_at_a_time_and_then_healthy():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1, trials=2, trial_successes=3), "ab")
    ward.fail("a")
    ward.now = 30.0
    first, second = ward.send("a"), ward.send("a")
    assert ward.health() == {"a": 0.0, "b": 1.0}  # two are on their way: no more
    first.complete(now=31.0)
    assert ward.health()["a"] == 0.5
    third = ward.send("a")
    second.complete(now=31.0)
    assert ward.producer.ejections[0].successes == 2
    third.complete(now=32.0)
    assert ward.health() == {"a": 1.0, "b": 1.0}
    assert ward.producer.ejections == ()


def test_what_was_sent_before_the_trial_decides_nothing():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1, trials=1, trial_successes=1), "ab")
    old, older = ward.send("a"), ward.send("a")
    ward.fail("a")
    ward.now = 29.0
    older.complete(now=29.0)
    assert ward.health()["a"] == 0.0
    ward.now = 30.0
    assert ward.health()["a"] == 0.0  # what it still holds on to counts as its trial
    old.fail(now=30.0)
    assert ward.health()["a"] == 0.5
    ward.send("a").complete(now=30.0)
    assert ward.health()["a"] == 1.0


@pytest.mark.parametrize(
    ("share", "names", "out"), [(0.5, "abcde", 2), (0.1, "abcde", 1), (1.0, "abc", 3), (0.5, "a", 0)]
)
def test_no_more_than_a_share_is_ejected(share, names, out):
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1, max_ejected=share), names)
    for name in names:
        ward.fail(name, 2)
    assert len(ward.producer.ejections) == out
    assert list(ward.health().values()).count(0.0) == out


def test_where_nobody_is_healthy_everybody_is_asked():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1, max_ejected=1.0), "ab")
    ward.fail("a")
    ward.fail("b")
    assert set(ward.health().values()) == {0.0}
    assert {ward.send().endpoint for _ in range(4)} == {"a", "b"}


def test_a_rate_far_below_the_others_ejects_when_the_interval_is_over():
    policy = isched.OutlierPolicy(
        consecutive_failures=0, stdev_factor=1.5, stdev_minimum_hosts=5, stdev_request_volume=4
    )
    ward = Ward(policy, NAMES)
    for name in NAMES:
        for n in range(4):
            sent = ward.send(name)
            sent.fail(now=0.0) if name == "c" and n % 2 else sent.complete(now=0.0)
    assert set(ward.health().values()) == {1.0}
    ward.now = 10.0
    ward.send("a")
    assert ward.health() == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 1.0}


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
def test_equal_rates_eject_nobody(rate):
    policy = isched.OutlierPolicy(consecutive_failures=0, stdev_minimum_hosts=3, stdev_request_volume=10)
    ward = Ward(policy, NAMES)
    for name in NAMES:
        for n in range(10):
            sent = ward.send(name)
            sent.complete(now=0.0) if n < 10 * rate else sent.fail(now=0.0)
    ward.now = 10.0
    ward.send("a")
    assert set(ward.health().values()) == {1.0}


def test_a_share_of_failures_ejects_and_the_worst_come_first():
    policy = isched.OutlierPolicy(
        consecutive_failures=0, stdev_factor=0, failure_share=0.5, failure_minimum_hosts=4, failure_request_volume=4
    )
    ward = Ward(policy, "abcd")
    for name, well in zip("abcd", (3, 2, 0, 1), strict=True):
        for n in range(4):
            sent = ward.send(name)
            sent.complete(now=0.0) if n < well else sent.fail(now=0.0)
    ward.now = 10.0
    ward.send("a")
    assert ward.health() == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}  # b is at the limit too: two of four are enough


def test_a_share_at_the_limit_is_enough():
    """1 - 9/10 is a little less than 0.1, in floats."""
    ward = Ward(isched.OutlierPolicy(failure_share=0.1, failure_minimum_hosts=1, failure_request_volume=10), "ab")
    for _ in range(9):
        ward.send("a").complete(now=0.0)
    ward.fail("a")
    ward.now = 10.0
    ward.send("b")
    assert ward.health() == {"a": 0.0, "b": 1.0}


def test_who_recovers_and_fails_again_is_known():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1, base_ejection_time=1.0, trial_successes=1), "ab")
    ward.fail("a")
    ward.now = 1.0
    ward.send("a").complete(now=1.0)
    ward.fail("a")
    assert ward.producer.ejections == (isched.Ejection("a", 2, 3.0, 0),)


def test_time_does_not_go_back():
    """An ending that is told late, with the time at which it was, does not end an ejection early."""
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab")
    late = ward.send("a")
    ward.now = 8.0
    ward.send("b").complete(now=8.0)
    late.fail(now=2.0)
    assert ward.producer.ejections[0].until == 38.0


def test_an_old_decision_does_not_bring_old_members_back():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab")
    old = ward.send("b")
    ward.pool.join("c")
    ward.fail("c")
    old.complete(now=0.0)
    assert ward.health() == {"a": 1.0, "b": 1.0, "c": 0.0}


@pytest.mark.parametrize("between", [True, False])
def test_who_was_moved_to_a_namesake_says_nothing_of_who_left(between):
    """Decided when a was another: whether it has the slot again, or another slot under the same name."""
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab")
    moved = ward.send("b")
    ward.pool.leave("a")
    if not between:
        ward.pool.join("x")  # takes the slot
    ward.pool.join("a")
    if between:
        ward.send("b").complete(now=0.0)
    moved.served_by("a", now=0.0)
    moved.fail(now=0.0)
    assert ward.producer.ejections == ()
    ward.producer.check()


def test_an_interval_without_ejection_forgets_one_of_them():
    ward = Ward(
        isched.OutlierPolicy(consecutive_failures=1, base_ejection_time=4.0, interval=5.0, trial_successes=1), "ab"
    )
    ward.fail("a")
    ward.now = 4.0
    ward.fail("a")
    assert ward.producer.ejections[0].times == 2
    ward.now = 12.0
    ward.send("a").complete(now=12.0)
    for ward.now in (17.0, 23.0, 29.0):
        ward.send("b").complete(now=ward.now)
    ward.fail("a")
    assert ward.producer.ejections[0].times == 1


@pytest.mark.parametrize("reason", ["client-disconnect", "evicted", "CancelledError"])
def test_what_is_not_the_server_s_fault_is_forgiven(reason):
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab")
    ward.send("a").fail(reason, now=0.0)
    assert ward.health()["a"] == 1.0
    with pytest.raises(ZeroDivisionError), ward.send("a"):
        1 / 0  # noqa: B018
    assert ward.health()["a"] == 0.0


def test_who_answers_nothing_fails_too():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab", ttl=5.0)
    ward.send("a")
    ward.pool.sweep(6.0)
    assert ward.health()["a"] == 0.0


def test_who_comes_back_begins_anew():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=1), "ab")
    pending = ward.send("a")
    ward.fail("a")
    ward.pool.leave("a")
    assert pending.settlement.outcome == "endpoint_left"
    ward.pool.join("a")
    assert ward.health() == {"b": 1.0, "a": 1.0}
    ward.send("b").complete(now=1.0)
    assert ward.producer.ejections == ()
    ward.producer.check()
    ward.pool.leave("b")
    ward.pool.join("c")  # the slot of b
    assert ward.health() == {"a": 1.0, "c": 1.0}


def test_state_is_bounded_by_the_pool():
    ward = Ward(isched.OutlierPolicy(consecutive_failures=2), "ab")
    for n in range(50):
        ward.pool.join(f"x{n}")
        ward.fail(f"x{n}", 3)
        ward.pool.leave(f"x{n}")
    ward.send("a").complete(now=0.0)
    ward.producer.check()
    assert len(ward.producer._stays) <= 2


@pytest.mark.parametrize("scorer", [isched.ActiveRequestScorer(), isched.TokenLoadScorer(1000.0)], ids=repr)
def test_who_fails_fast_attracts_no_traffic(scorer):
    """Three servers that take 20 steps a request, and one that refuses at once and so is always idle."""

    def traffic(policy):
        ward, busy, sent = Ward(policy, "abcd", scorer), [], Counter()
        for step in range(400):
            ward.now = step * 0.05
            for started, reservation in [entry for entry in busy if step - entry[0] >= 20]:
                busy.remove((started, reservation))
                reservation.complete(now=ward.now)
            reservation = ward.send()
            sent[reservation.endpoint] += 1
            if reservation.endpoint == "d":
                reservation.fail(now=ward.now)
            else:
                busy.append((step, reservation))
        return sent["d"]

    assert traffic(isched.OutlierPolicy(consecutive_failures=0, stdev_factor=0)) > 300
    assert traffic(isched.OutlierPolicy()) == 5


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), min_size=1, max_size=8), st.sampled_from([0.5, 1.0]))
def test_the_filter_never_keeps_nobody(health, minimum):
    endpoints, cycle = endpoints_of({HEALTH: health}), isched.CycleState(0.0, np.random.default_rng(0), 0)
    keep = isched.HealthFilter(minimum).filter(request(), endpoints, cycle)
    passed = [math.isnan(h) or h >= minimum for h in health]
    assert keep.tolist() == (passed if any(passed) else [True] * len(health))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8), st.data())
def test_better_health_is_never_worse(health, data):
    at, cycle = data.draw(st.integers(0, len(health) - 1)), isched.CycleState(0.0, np.random.default_rng(0), 0)
    better = [
        *health[:at],
        data.draw(st.sampled_from([h for h in (0.0, 0.25, 0.5, 1.0) if h >= health[at]])),
        *health[at + 1 :],
    ]
    plugin = isched.HealthFilter()
    before, after = (plugin.filter(request(), endpoints_of({HEALTH: h}), cycle)[at] for h in (health, better))
    assert after >= before
    assert [(read.signal, read.better) for read in plugin.reads] == [(HEALTH, "higher")]


def test_a_filter_says_why():
    cycle = isched.CycleState(0.0, np.random.default_rng(0), 0)
    endpoints = endpoints_of({HEALTH: [0.0, 1.0]})
    assert isched.HealthFilter().why_dropped(request(), endpoints, cycle, 0) == "health 0, less than 0.5"


BAD = [
    ("consecutive_failures", -1),
    ("interval", 0.0),
    ("interval", math.inf),
    ("stdev_factor", -1.0),
    ("stdev_minimum_hosts", 0),
    ("stdev_request_volume", 0),
    ("failure_share", 0.0),
    ("failure_share", 1.5),
    ("failure_minimum_hosts", 0),
    ("failure_request_volume", 1.5),
    ("base_ejection_time", -1.0),
    ("max_ejection_time", math.nan),
    ("max_ejected", 0.0),
    ("max_ejected", 1.1),
    ("trials", 0),
    ("trial_successes", 0),
]


@pytest.mark.parametrize(("parameter", "value"), BAD)
def test_bad_policies(parameter, value):
    with pytest.raises(isched.InvalidInputError) as error:
        isched.OutlierPolicy(**{parameter: value})
    assert error.value.parameter == parameter


@pytest.mark.parametrize("minimum", [0.0, 1.5, math.nan])
def test_bad_minimum(minimum):
    with pytest.raises(isched.InvalidInputError, match="minimum: got"):
        isched.HealthFilter(minimum)


# --- everything at once, against the diary -----------------------------------------------------------------------


class Wards(RuleBasedStateMachine):
    """Servers come, go and fail; requests end, move, hang and are taken back; time passes."""

    @initialize(
        trials=st.integers(1, 2),
        successes=st.integers(1, 3),
        share=st.sampled_from([0.3, 0.5, 1.0]),
        row=st.sampled_from([0, 2, 3]),
    )
    def begin(self, trials, successes, share, row):
        self.policy = isched.OutlierPolicy(
            consecutive_failures=row,
            interval=5.0,
            stdev_factor=0.8,
            stdev_minimum_hosts=2,
            stdev_request_volume=2,
            failure_share=0.7,
            failure_minimum_hosts=1,
            failure_request_volume=3,
            base_ejection_time=3.0,
            max_ejection_time=7.0,
            max_ejected=share,
            trials=trials,
            trial_successes=successes,
        )
        self.ward = Ward(self.policy, "abc", ttl=20.0)
        self.doctor = Doctor(self.policy)
        self.open = []  # (reservation, version, stays by name) as of the decision

    def known(self):
        snapshot = self.ward.pool.snapshot()
        return snapshot.version, dict(zip(snapshot.names, snapshot.members.stays, strict=True))

    @rule(name=st.sampled_from(NAMES))
    def come_or_go(self, name):
        if name not in self.ward.pool.names:
            self.ward.pool.join(name)
        elif len(self.ward.pool) > 1:
            settled = self.ward.pool.leave(name)
            for entry in self.gone([s.request_id for s in settled]):
                self.told(entry)
                self.doctor.tick(entry[0].settlement.settled_at)

    @rule(after=st.sampled_from([0.0, 0.5, 1.0, 3.0, 6.0]), only=st.none() | st.sampled_from(NAMES))
    def send(self, after, only):
        self.ward.now += after
        version, stays = self.known()
        expected = self.expected()
        booked = self.ward.scheduler.schedule_and_reserve(
            request(f"r-{self.ward.pool.sequence}"),
            self.ward.pool,
            now=self.ward.now,
            rng=self.ward.rng,
            exclude=[n for n in stays if only in stays and n != only],
        )
        if only not in stays:
            best = {name for name, health in expected.items() if health >= 0.5} or set(expected)
            assert booked.endpoint in best
        self.doctor.meet(version, [generation for _, generation in stays.values()])
        self.doctor.tick(self.ward.now)
        self.open.append((booked, version, stays))

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 99),
        how=st.sampled_from(["well", "ill", "ill", "forgiven"]),
        after=st.sampled_from([0.0, 0.1, 2.0]),
        late=st.sampled_from([0.0, 0.0, 1.0]),
    )
    def end(self, which, how, after, late):
        self.ward.now += after
        entry = self.open.pop(which % len(self.open))
        reservation = entry[0]
        at = max(reservation.touched_at, self.ward.now - late)
        if how == "well":
            reservation.complete(now=at)
        else:
            reservation.fail("error" if how == "ill" else "evicted", now=at)
        self.told(entry)
        self.heard(entry, None if how == "forgiven" else how == "well")

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 99), name=st.sampled_from(NAMES))
    def move(self, which, name):
        if name in self.ward.pool.names:
            self.open[which % len(self.open)][0].served_by(name, now=self.ward.now)

    @rule(name=st.sampled_from(NAMES))
    def take_back(self, name):
        """A booking is withdrawn: nobody hears of its end, and no trial is lost."""
        version, stays = self.known()
        booked = self.ward.send(name if name in stays else None)
        self.ward.pool.withdraw(booked)
        self.doctor.meet(version, [generation for _, generation in stays.values()])
        self.doctor.tick(self.ward.now)

    @rule()
    def hang(self):
        settled = self.ward.pool.sweep(self.ward.now)
        for entry in self.gone([s.request_id for s in settled]):
            self.told(entry)
            self.heard(entry, False)

    def gone(self, names):
        """The entries of these requests, in the order in which they were settled; they are open no more."""
        found = {entry[0].request_id: entry for entry in self.open if entry[0].request_id in names}
        self.open = [entry for entry in self.open if entry[0].request_id not in names]
        return [found[name] for name in names]

    def told(self, entry):
        _, version, stays = entry
        self.doctor.meet(version, [generation for _, generation in stays.values()])

    def heard(self, entry, well):
        reservation, _, stays = entry
        self.doctor.tick(reservation.settlement.settled_at)
        slot, generation = stays.get(reservation.endpoint, (-1, -1))
        living = generation in self.doctor.stays or generation in self.doctor.seen[1]
        if well is not None and slot == reservation.slot and living:
            self.doctor.ended(generation, well, reservation.reserved_at)

    def expected(self):
        snapshot = self.ward.pool.snapshot()
        inflight = snapshot[isched.INFLIGHT_REQUESTS].tolist()
        return {
            name: self.doctor.health(generation, self.ward.now, inflight[i])
            for i, (name, generation) in enumerate(zip(snapshot.names, snapshot.generations.tolist(), strict=True))
        }

    @invariant()
    def agree(self):
        if hasattr(self, "ward"):
            assert self.ward.health() == self.expected()
            self.ward.producer.check()

    @invariant()
    def told_of(self):
        if hasattr(self, "ward"):
            told = {(e.times, e.until, e.successes) for e in self.ward.producer.ejections}
            stays = self.doctor.stays.values()
            assert told == {(s.times, s.until, s.trials) for s in stays if s.until is not None}


TestWards = Wards.TestCase
TestWards.settings = settings(max_examples=80, stateful_step_count=50)
