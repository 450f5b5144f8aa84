"""Do several gateways come to know the same, in whatever order, however often, and with whatever loss they hear of each other?"""

import copy
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import inferencesched as isched
from inferencesched.errors import QuotaExceededError
from inferencesched.governance import Identity, Quota, Quotas
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.replication import Merged, Replica, SharedQuotas

NAMES = ("ep-0", "ep-1", "ep-2")


class Gateway:
    """One of several gateways before the same three servers."""

    def __init__(self, origin, life=1, seed=7, order=NAMES, **more):
        self.replica = Replica(origin, life=life, **more)
        self.pool = isched.InferencePool()
        for name in order:
            self.pool.join(name)
        self.prefix = ApproximatePrefixProducer(block_size=4, seed=seed)
        self.peers = self.replica.watch("llama", self.pool, self.prefix)
        scorers = (isched.WeightedScorer(isched.PrefixCacheScorer(), 1.0),)
        profile = isched.SchedulingProfile(picker=isched.MaxScorePicker(), scorers=scorers)
        self.scheduler = isched.Scheduler(profile, producers=(self.prefix, self.peers))
        self.rng = np.random.default_rng(3)
        self.open = []

    def ask(self, prompt, now=1.0, at=None):
        request = isched.InferenceRequest(
            request_id="r", tokens=np.arange(prompt * 100, prompt * 100 + 40, dtype=np.uint32)
        )
        exclude = () if at is None else [name for name in NAMES if name != at]
        result = self.scheduler.schedule(request, self.pool.snapshot(), now=now, rng=self.rng, exclude=exclude)
        self.open.append(self.scheduler.reserve(result, self.pool, now=now))
        return self.open[-1]

    def depths(self, prompt, now=1.0):
        request = isched.InferenceRequest(
            request_id="r", tokens=np.arange(prompt * 100, prompt * 100 + 40, dtype=np.uint32)
        )
        cycle = isched.CycleState(now, self.rng, 0)
        endpoints = self.pool.snapshot()
        found = self.prefix.produce(request, endpoints, cycle).columns[isched.PREFIX_TOKENS]
        return dict(zip(endpoints.names, found.tolist(), strict=True))

    def loads(self, now=1.0):
        request = isched.InferenceRequest(request_id="r")
        endpoints, _ = self.scheduler.produce(request, self.pool.snapshot(), isched.CycleState(now, self.rng, 0))
        return dict(zip(endpoints.names, endpoints[isched.INFLIGHT_REQUESTS].tolist(), strict=True))


def deltas_of(origin):
    """Some deltas of one gateway, as it goes on."""
    gateway, said = Gateway(origin), []
    for i in range(4):
        gateway.ask(i % 3, now=1.0 + i, at=NAMES[(i + len(origin)) % 3])
        if i == 2:
            gateway.open.pop(0).complete(now=4.0)
        gateway.replica.quotas.add([("q", 0, i + 1)], 100.0)
        said.append(gateway.replica.delta(now=1.0 + i))
    return said


def told(gateway):
    """All that a gateway has been told."""
    return gateway.loads(), [gateway.depths(i) for i in range(3)], gateway.replica.quotas.used("q", [0, 1])


def test_any_order_and_any_repetition_comes_to_the_same():
    said = deltas_of("a") + deltas_of("bb")[:2]
    results = []
    for order in list(permutations(range(6)))[::37]:
        gateway = Gateway("c")
        for i in order:
            gateway.replica.merge(said[i], now=5.0)
            gateway.replica.merge(said[order[0]], now=5.0)
        results.append(told(gateway))
        gateway.replica.check()
    assert all(each == results[0] for each in results)
    loads, depths, used = results[0]
    assert sum(loads.values()) == 3 + 2
    assert used == [10 + 3, 0]
    assert all(any(each.values()) for each in depths)


def test_a_lost_delta_is_healed_by_the_next_but_for_its_prefixes():
    said = deltas_of("a")
    gateway = Gateway("c")
    merged = gateway.replica.merge(said[-1], now=5.0)
    assert merged == Merged("a", True, 1, 1, 0)
    assert sum(gateway.loads().values()) == 3
    assert gateway.replica.quotas.used("q", [0]) == [10]


def test_one_s_own_and_what_was_merged_are_nothing_new():
    gateway = Gateway("a")
    gateway.ask(1)
    delta = gateway.replica.delta(now=1.0)
    assert gateway.replica.merge(delta, now=1.0) == Merged()
    other = Gateway("b")
    assert other.replica.merge(delta, now=1.0).origin == "a"
    assert other.replica.merge(delta, now=1.0) == Merged()


def test_nothing_new_is_nothing_said_until_the_heart_beats():
    gateway = Gateway("a", heartbeat=1.0)
    assert gateway.replica.delta(now=0.0) is not None
    assert gateway.replica.delta(now=0.5) is None
    gateway.ask(1, now=0.6)
    assert gateway.replica.delta(now=0.6) is not None
    assert gateway.replica.delta(now=0.7) is None
    assert gateway.replica.delta(now=1.7) is not None


def test_peers_are_seen_in_decisions_and_the_silent_are_forgotten():
    one, two = Gateway("one"), Gateway("two", order=NAMES[::-1])
    for _ in range(4):
        one.ask(0, at="ep-1")
    two.replica.merge(one.replica.delta(now=1.0), now=10.0)
    assert two.loads() == {"ep-0": 0.0, "ep-1": 4.0, "ep-2": 0.0}
    assert two.pool.ledger().inflight_requests == 0  # its own books are its own
    assert two.ask(0).endpoint == "ep-1"  # where the prefix is
    assert two.loads()["ep-1"] == 5.0
    assert two.replica.peers(now=12.0) == {"one": 2.0}
    assert two.replica.expire(now=15.0) == []
    assert two.replica.expire(now=15.1) == ["one"]
    assert two.loads()["ep-1"] == 1.0
    assert two.replica.load_of("llama", "ep-1") == (0, 0, 0)


def test_several_gateways_go_round_in_turn_as_one_does():
    gateways = [Gateway(name) for name in ("one", "two", "three")]
    went = []
    for i in range(30):
        asking = gateways[i % 3]
        went.append(asking.ask(50 + i).endpoint)  # each prompt is a new one: nobody has it
        delta = asking.replica.delta(now=1.0)
        for other in gateways:
            other.replica.merge(delta, now=1.0)
    assert all(sorted(went[i : i + 3]) == sorted(NAMES) for i in range(3, 27)), went


def test_a_gateway_that_starts_again_has_nothing_in_flight_and_what_it_used_stays_used():
    old, two = Gateway("one", life=1), Gateway("two")
    old.ask(0, at="ep-0")
    old.replica.quotas.add([("q", 0, 5)], 100.0)
    late = old.replica.delta(now=1.0)
    two.replica.merge(late, now=1.0)
    old.ask(1, at="ep-0")
    later = old.replica.delta(now=1.1)
    new = Gateway("one", life=2)
    new.replica.quotas.add([("q", 0, 2)], 100.0)
    two.replica.merge(new.replica.delta(now=2.0), now=2.0)
    assert sum(two.loads().values()) == 0.0
    assert two.replica.quotas.used("q", [0]) == [7]
    two.replica.merge(later, now=2.1)  # of the life before: its prefixes are true, its loads are not
    assert sum(two.loads().values()) == 0.0
    assert two.depths(1)["ep-0"] == 40.0
    two.replica.check()


def test_other_hashes_and_unknown_names_mean_nothing_here():
    one = Gateway("one", seed=1)
    one.ask(0, at="ep-0")
    delta = one.replica.delta(now=1.0)
    assert Gateway("two", seed=2).replica.merge(delta, now=1.0).foreign == 1
    small = Gateway("two", seed=1, order=("ep-1",))
    merged = small.replica.merge(delta, now=1.0)
    assert (merged.prefixes, merged.foreign) == (0, 1)
    assert small.loads() == {"ep-1": 0.0}
    small.pool.join("ep-0")
    assert small.loads() == {"ep-1": 0.0, "ep-0": 1.0}  # what was told before it joined here


def test_quotas_are_everybodys():
    one, two = Replica("one", life=1), Replica("two", life=1)
    mine, theirs = (Quotas([Quota(1000)], store=each.quotas) for each in (one, two))
    who = Identity("acme")
    mine.reserve(who, "llama", 700, now=1.0)
    two.merge(one.delta(now=1.0), now=1.0)
    with pytest.raises(QuotaExceededError):
        theirs.reserve(who, "llama", 400, now=1.0)
    grant = theirs.reserve(who, "llama", 300, now=1.0)
    one.merge(two.delta(now=1.0), now=1.0)
    assert mine.left(who, "llama", now=1.0) == theirs.left(who, "llama", now=1.0) == [0]
    theirs.settle(grant, 100, now=2.0)
    one.merge(two.delta(now=2.0), now=2.0)
    assert mine.left(who, "llama", now=2.0) == [200]


def test_counters_go_when_their_time_is_over():
    store = SharedQuotas()
    store.add([("q", 0, 5), ("q", 1, 1)], 10.0)
    store.add([("q", 1, 1)], 20.0)
    assert store.sweep(10.0) == 1
    assert (store.used("q", [0, 1]), len(store)) == ([0, 2], 1)
    assert [each.window for each in store.said(everything=False)] == [1]


def test_what_waits_to_be_said_is_bounded():
    gateway = Gateway("a", most_chains=3, most_blocks=2)
    for i in range(5):
        gateway.ask(i, at="ep-0")
    assert gateway.replica.unsaid == 2
    other = Gateway("b")
    assert other.replica.merge(gateway.replica.delta(now=1.0), now=1.0).prefixes == 3
    assert [other.depths(i)["ep-0"] for i in range(5)] == [0.0, 0.0, 8.0, 8.0, 8.0]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_delta_change_nothing(data):
    gateway = Gateway("a")
    before = told(gateway)
    with pytest.raises(isched.DeltaError):
        gateway.replica.merge(data, now=1.0)
    assert told(gateway) == before


@given(st.data())
@settings(max_examples=60)
def test_a_delta_that_is_cut_off_or_of_another_version_is_refused(data):
    delta = deltas_of("a")[0]
    cut = data.draw(st.integers(0, len(delta) - 1))
    with pytest.raises(isched.DeltaError):
        Gateway("b").replica.merge(delta[:cut], now=1.0)
    assert delta[1] == 1  # the version, first of all
    with pytest.raises(isched.DeltaError, match="version: got 2, allowed: 1"):
        Gateway("b").replica.merge(delta[:1] + b"\x02" + delta[2:], now=1.0)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"silence": 0.0}, "silence"),
        ({"heartbeat": 5.0}, "heartbeat"),
        ({"refresh": float("inf")}, "refresh"),
        ({"most_chains": 0}, "most_chains"),
        ({"most_blocks": 0}, "most_blocks"),
        ({"life": -1}, "life"),
        ({"origin": ""}, "origin"),
    ],
)
def test_parameters_that_cannot_be_are_named(more, word):
    with pytest.raises(isched.InvalidInputError, match=word):
        Replica(**{"origin": "a", "life": 1, **more})
    gateway = Gateway("a")
    with pytest.raises(isched.InvalidInputError, match="name"):
        gateway.replica.watch("llama", gateway.pool)


class Fleet(RuleBasedStateMachine):
    """Three gateways whose deltas come late, twice, out of order or never: each knows what the newest it heard said, and no more."""

    def __init__(self):
        super().__init__()
        self.gateways = [Gateway(name, silence=1e6, heartbeat=1e5, refresh=1e5) for name in "abc"]
        self.now = 1.0
        self.air = []  # (who said it, bytes, its order, what was new in it)
        self.said = {}
        self.heard = [{} for _ in self.gateways]  # by listener: (who, loads or quotas) -> (order, what was true)

    @rule(who=st.integers(0, 2), prompt=st.integers(0, 5), at=st.sampled_from(NAMES))
    def ask(self, who, prompt, at):
        self.gateways[who].ask(prompt, self.now, at)

    @rule(who=st.integers(0, 2), which=st.integers(0, 9))
    def end(self, who, which):
        gateway = self.gateways[who]
        if gateway.open:
            gateway.open.pop(which % len(gateway.open)).complete(now=self.now)

    @rule(who=st.integers(0, 2), amount=st.integers(1, 9))
    def use(self, who, amount):
        self.gateways[who].replica.quotas.add([("q", 0, amount)], 1e9)

    @rule(who=st.integers(0, 2))
    def say(self, who):
        gateway = self.gateways[who]
        delta = gateway.replica.delta(now=self.now)
        if delta is not None:
            loads, used = copy.deepcopy(gateway.peers.mine()), gateway.replica.quotas._mine.get(("q", 0), 0)
            before = self.said.get(who, (None, 0))
            self.said[who] = loads, used
            news = None if loads == before[0] else loads, None if used == before[1] else used
            self.air.append((who, delta, len(self.air), news))

    @rule(listener=st.integers(0, 2), which=st.integers(0, 1000))
    def hear(self, listener, which):
        if not self.air:
            return
        who, delta, order, news = self.air[which % len(self.air)]
        self.gateways[listener].replica.merge(delta, now=self.now)
        if who != listener:
            for what, value in enumerate(news):
                before = self.heard[listener].get((who, what))
                if value is not None and (before is None or before[0] < order):
                    self.heard[listener][who, what] = order, value

    @invariant()
    def each_knows_the_newest_it_heard(self):
        for gateway, heard in zip(self.gateways, self.heard, strict=True):
            gateway.replica.check()
            gateway.pool.check()
            mine = gateway.peers.mine()
            for name in NAMES:
                told = [value.get(name, (0,))[0] for (_, what), (_, value) in heard.items() if what == 0]
                assert gateway.loads()[name] == mine.get(name, (0,))[0] + sum(told)
            used = sum(value for (_, what), (_, value) in heard.items() if what == 1)
            used += gateway.replica.quotas._mine.get(("q", 0), 0)
            assert gateway.replica.quotas.used("q", [0]) == [used]

    def teardown(self):
        """Whoever has heard everything knows the same as the others."""
        self.now += 1
        for who, _ in enumerate(self.gateways):
            self.say(who)
        for gateway in self.gateways:
            for _, delta, *_ in self.air:
                gateway.replica.merge(delta, now=self.now)
        loads = [gateway.loads() for gateway in self.gateways]
        assert loads[0] == loads[1] == loads[2]
        depths = [[gateway.depths(i) for i in range(6)] for gateway in self.gateways]
        assert depths[0] == depths[1] == depths[2]


TestFleet = Fleet.TestCase
TestFleet.settings = settings(stateful_step_count=30, max_examples=50, deadline=None)
