"""Do the adapters of frameworks that bring their own list of servers hold places, give them back, and follow the list?"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import inferencesched as isched
from inferencesched.adapters.balancing import STANDARD, Balancer, request_of
from inferencesched.adapters.verl import LoadBalancer
from inferencesched.config import build


class Clock:
    """A clock that is told what time it is."""

    def __init__(self):
        self.at = 0.0

    def __call__(self):
        return self.at


def balancer(servers=("a", "b", "c"), **more):
    made = Balancer(seed=7, **more)
    made.follow(dict.fromkeys(servers, ""))
    return made


def ask(i, tokens=None):
    return isched.InferenceRequest(request_id=f"r{i}", tokens=tokens)


def test_choosing_changes_nothing_and_the_same_state_answers_the_same():
    one, two = balancer(), balancer()
    first = [one.choose(ask(i)).target.endpoint for i in range(20)]
    assert first == [two.choose(ask(i)).target.endpoint for i in range(20)]
    assert one.pool.ledger() == two.pool.ledger()
    assert one.pool.ledger().inflight_requests == 0


def test_without_a_word_from_the_servers_what_is_in_flight_spreads_and_prefixes_gather():
    made = balancer()
    booked = [made.book(made.choose(ask(i))) for i in range(9)]
    assert sorted(each.endpoint for each in booked) == sorted("abc" * 3)
    for each in booked:
        made.end(each)
    tokens = np.arange(640, dtype=np.uint32)
    went = []
    for i in range(6):
        reservation = made.book(made.choose(ask(i, tokens)))
        went.append(reservation.endpoint)
        made.end(reservation)
    assert len(set(went)) == 1


def test_a_held_place_counts_is_moved_and_is_let_go_when_nobody_takes_it():
    clock = Clock()
    made = balancer(clock=clock, patience=5.0)
    chosen = [made.choose(ask(0))]
    made.hold("r0", chosen[0])
    for i in range(1, 6):
        chosen.append(made.choose(ask(i)))
        made.hold(f"r{i}", chosen[i])
    assert made.pool.ledger().inflight_requests == 6  # each knew of those before it
    assert sorted(made.pool.snapshot()[isched.INFLIGHT_REQUESTS].tolist()) == [2.0, 2.0, 2.0]
    made.hold("r0", made.choose(ask(0)))  # asked again: one place, not two
    assert made.pool.ledger().inflight_requests == 6
    assert made.take("r1", chosen[1].target.endpoint).endpoint == chosen[1].target.endpoint
    assert made.take("r1", chosen[1].target.endpoint) is None  # taken
    assert made.take("r2", "elsewhere") is None
    assert made.take("r2", chosen[2].target.endpoint) is None  # given back
    assert made.pool.ledger().inflight_requests == 5
    clock.at = 5.0
    made.hold("r9", made.choose(ask(9)))
    held = made.pool.ledger().inflight_requests
    assert held == 2  # r9, and r1 that was taken
    made.release("r9")
    made.release("nobody")
    assert made.pool.ledger().inflight_requests == held - 1


def test_following_lets_leave_and_a_new_address_is_another_server():
    made = Balancer()
    made.follow({"a": "10.0.0.1:80", "b": "10.0.0.2:80"})
    booked = {each.endpoint: each for each in (made.book(made.choose(ask(i))) for i in range(2))}
    assert set(booked) == {"a", "b"}
    made.follow({"a": "10.0.0.1:80"})
    assert booked["b"].settlement.outcome == "endpoint_left"
    assert made.end(booked["b"]) is None
    made.follow({"a": "10.0.0.9:80"})
    assert booked["a"].settlement.outcome == "endpoint_left"
    assert made.pool.snapshot().identity(0)[2] == "10.0.0.9:80"
    made.follow({})
    with pytest.raises(isched.NoEndpointsError):
        made.choose(ask(1))


def test_only_those_are_asked_who_may_be():
    made = balancer()
    assert {made.choose(ask(i), among=("b", "nobody")).target.endpoint for i in range(5)} == {"b"}
    assert {made.choose(ask(i), exclude=("a", "b")).target.endpoint for i in range(5)} == {"c"}
    with pytest.raises(isched.NoEndpointsError):
        made.choose(ask(1), among=())


def test_what_is_cached_is_forgotten_when_the_weights_change_and_what_is_in_flight_is_not():
    made, tokens = balancer(), np.arange(640, dtype=np.uint32)
    first = made.book(made.choose(ask(1, tokens)))
    made.forget()
    assert made.choose(ask(2, tokens)).target.endpoint != first.endpoint  # busy, and nothing speaks for it any more
    assert made.pool.ledger().inflight_requests == 1
    assert made.end(first).outcome == "completed"


def test_a_request_that_nobody_ends_is_gone_after_its_time():
    clock = Clock()
    made = balancer(clock=clock, ttl=10.0)
    made.book(made.choose(ask(1)))
    clock.at = 11.0
    made.choose(ask(2))
    assert made.pool.ledger().inflight_requests == 0


@pytest.mark.parametrize("patience", [0.0, -1.0, float("inf"), float("nan")])
def test_a_patience_that_is_none_is_refused(patience):
    with pytest.raises(isched.InvalidInputError, match="patience"):
        Balancer(patience=patience)


def test_a_framework_s_request_has_its_tokens_wherever_they_are():
    assert request_of("r", tokens=[1, 2, 3]).tokens.tolist() == [1, 2, 3]
    same = request_of("r", messages=[{"role": "user", "content": "a" * 400}])
    longer = request_of("r", messages=[{"role": "user", "content": "a" * 400 + "b" * 40}])
    assert (longer.tokens[:100] == same.tokens[:100]).all()
    assert request_of("r", prompt=[5, 6]).tokens.tolist() == [5, 6]
    assert request_of("r", messages=[{"role": "user", "content": object()}]).prompt_tokens is None
    assert request_of("r", messages="no list").prompt_tokens is None
    assert request_of("").prompt_tokens is None
    for bad in ([-1], [2**32], ["a"], 5.5, [[1], [2, 3]]):
        with pytest.raises(isched.InvalidInputError, match="tokens"):
            request_of("r", tokens=bad)


def test_the_standard_configuration_is_one_of_the_librarys_own_form():
    first, *_ = build(STANDARD).profiles["default"].scorers
    assert type(first.scorer).__name__ == "PrefixCacheScorer"


def test_verls_file_may_say_only_what_is_known():
    with pytest.raises(
        isched.ConfigError, match=r"\$\.block_size: got 16, allowed: one of router_class, scheduler, seed, ttl"
    ):
        LoadBalancer({}, {"block_size": 16})
    with pytest.raises(isched.ConfigError, match="kind"):
        LoadBalancer({}, {"scheduler": {"kind": "Nothing"}})


class Rollout(RuleBasedStateMachine):
    """verl's load balancer beside two dictionaries: samples end in any order, servers come and go."""

    def __init__(self):
        super().__init__()
        self.balancer = LoadBalancer({"s0": 0, "s1": 1}, {"seed": 3})
        self.servers = {"s0": 0, "s1": 1}
        self.there = []  # (server, sample), oldest first

    @rule(sample=st.integers(0, 6), prompt=st.integers(0, 3), known=st.booleans())
    def acquire(self, sample, prompt, known):
        ids = list(range(prompt * 100, prompt * 100 + 64)) if known else None
        if not self.servers:
            with pytest.raises(RuntimeError, match="No available servers"):
                self.balancer.acquire_server(f"r{sample}", prompt_ids=ids)
            return
        loads = {name: sum(server == name for server, _ in self.there) for name in self.servers}
        name, handle = self.balancer.acquire_server(f"r{sample}", prompt_ids=ids)
        assert handle == self.servers[name]
        if not known:
            assert loads[name] == min(loads.values())  # nothing else is known of anybody
        self.there.append((name, f"r{sample}"))

    @precondition(lambda self: self.there)
    @rule(data=st.data(), named=st.booleans())
    def release(self, data, named):
        name, sample = data.draw(st.sampled_from(self.there))
        if named:
            self.balancer.release_server(name, request_id=sample)
            self.there.remove((name, sample))
        else:
            self.balancer.release_server(name)
            self.there.remove(next(each for each in self.there if each[0] == name))

    @rule(name=st.sampled_from(["s0", "s1", "s2", "gone"]), sample=st.sampled_from(["r0", "nobody", None]))
    def release_late(self, name, sample):
        if not any(server == name and sample in (None, each) for server, each in self.there):
            self.balancer.release_server(name, request_id=sample)

    @rule(name=st.sampled_from(["s0", "s1", "s2"]), handle=st.integers())
    def add(self, name, handle):
        self.balancer.add_servers({name: handle})
        self.servers[name] = handle

    @rule(names=st.lists(st.sampled_from(["s0", "s1", "s2", "gone"]), max_size=3))
    def remove(self, names):
        self.balancer.remove_servers(names)
        self.servers = {name: handle for name, handle in self.servers.items() if name not in names}
        self.there = [each for each in self.there if each[0] in self.servers]

    @rule()
    def clear(self):
        self.balancer.clear_sticky_cache()

    @invariant()
    def the_books_agree(self):
        loads = {name: sum(server == name for server, _ in self.there) for name in self.servers}
        status = self.balancer.get_status()
        assert status["servers"] == loads
        assert self.balancer.get_total_inflight() == status["total_inflight"] == len(self.there)
        assert set(self.balancer.get_all_servers()) == set(self.servers)
        assert all(self.balancer.get_inflight_count(name) == load for name, load in loads.items())
        self.balancer._balancer.pool.check()


TestRollout = Rollout.TestCase
TestRollout.settings = settings(stateful_step_count=30, max_examples=60, deadline=None)
