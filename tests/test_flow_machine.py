"""The flow controller against its slow twin, call by call; that the comparison would notice; and that equal calls are equal bytes."""

import os
import subprocess
import sys
from hashlib import sha256
from math import inf
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from inferencesched.flowcontrol import (
    Capacity,
    DeficitRoundRobin,
    Displace,
    FlowController,
    OpenGate,
    QueueItem,
    RoundRobin,
    StartTimeFair,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.books import QueueBooks
from inferencesched.flowcontrol.dispatching import Dispatcher
from inferencesched.flowcontrol.estimates import DispatchRate
from inferencesched.flowcontrol.expiry import ExpiryHeap
from inferencesched.flowcontrol.idle import IdleFlows
from inferencesched.flowcontrol.queue import FifoQueue, OrderedQueue
from inferencesched.request import Usage
from tests.flow_pair import CALLS, Pair, act, script
from tests.flow_settings import SETTINGS
from tests.naive_flow import Setting
from tests.naive_turns import FAIRNESS


class Controllers(RuleBasedStateMachine):
    """Every rule is a call to both, after which `Pair.compare` looks at everything."""

    pair: Pair

    @initialize(setting=st.sampled_from(list(SETTINGS.values())), seed=st.integers(0, 2**32))
    def begin(self, setting, seed):
        self.pair = Pair(setting)
        self.a_while(seed)

    def a_while(self, seed):
        random = Random(seed)
        for _ in range(30):
            act(self.pair, random.choice(CALLS), random.choice)

    def call(self, name, data):
        act(self.pair, name, lambda among: data.draw(st.sampled_from(among)))

    @rule(data=st.data())
    def a_request_comes(self, data):
        self.call("submit", data)

    @rule(data=st.data())
    def another_comes(self, data):
        self.call("submit", data)

    @rule(data=st.data())
    def the_controller_steps(self, data):
        self.call("step", data)

    @rule(data=st.data())
    def it_steps_again_and_a_server_is_done(self, data):
        self.call("complete", data)
        self.call("step", data)

    @rule(data=st.data(), name=st.sampled_from(("pass", "pass", "pass", "wake", "wake", "leap", "back")))
    def time(self, data, name):
        self.call(name, data)

    @rule(
        data=st.data(),
        name=st.sampled_from(("complete", "complete", "complete", "settle", "requeue", "revoke", "failed")),
    )
    def a_server_says(self, data, name):
        self.call(name, data)

    @rule(data=st.data())
    def a_client_goes(self, data):
        self.call("cancel", data)

    @rule(data=st.data(), name=st.sampled_from(("valve", "pool", "block")))
    def the_pool_changes(self, data, name):
        self.call(name, data)

    @rule(data=st.data(), name=st.sampled_from(("desire", "wrong")))
    def the_gateway_says(self, data, name):
        self.call(name, data)

    @rule(seed=st.integers(0, 2**32))
    def a_while_passes(self, seed):
        """So much happens that queues are full and flows take turns: what single calls seldom come to."""
        self.a_while(seed)

    def teardown(self):
        if hasattr(self, "pair"):
            self.pair.end()


TestControllers = Controllers.TestCase
TestControllers.settings = settings(stateful_step_count=25)


@pytest.mark.parametrize("name", SETTINGS)
def test_long_scripts(name):
    for seed in range(2):
        script(SETTINGS[name], seed, length=120)


def many_come_and_go():
    """So many that what is kept for nothing shows; the first stays, and so does every sixth, in no order of their times."""
    pair = Pair(Setting("many", ttl=90.0, band_capacity=Capacity()))
    pair.turn_valve(True)
    pair.submit(QueueItem(request_id="first", ttl=1.0))
    for number in range(130):
        pair.submit(QueueItem(request_id=f"{number}", flow=f"f{number % 7}", ttl=2.0 + number * 37 % 83))
        if number % 6:
            pair.about("cancel", pair.tickets[-1])
    while pair.twin.waiting():
        pair.wake()
        pair.turn_valve(True)
    pair.end()


def taken_back_again_and_again():
    """Requests that expire at their deadline, whenever they were queued."""
    pair = Pair(Setting("again", fairness="rr", ttl=None, slots=1))
    for flow in "abc":
        pair.submit(QueueItem(request_id=flow, flow=flow, deadline=1e6))
    for _ in range(120):
        pair.now += 0.25
        (event,) = pair.plainly("step")
        assert pair.about("revoked", event.ticket, requeue=True)
    pair.end()


@pytest.mark.parametrize("directed", [many_come_and_go, taken_back_again_and_again])
def test_the_heap_of_what_expires_stays_small(directed):
    directed()


@pytest.mark.parametrize("fairness", FAIRNESS)
def test_many_change_their_minds_and_those_that_stay_go_in_turn(fairness):
    """More places are given up than a fairness policy keeps."""
    pair = Pair(Setting(fairness, fairness, ttl=None, slots=1, band_capacity=Capacity()))
    pair.turn_valve(True)
    for flow in "abca":
        pair.submit(QueueItem(request_id=flow, flow=flow, input_tokens=3))
    for number in range(110):
        pair.submit(QueueItem(request_id=f"{number}", flow="abcdefg"[number % 7], input_tokens=number % 5))
        if number % 8:
            pair.about("cancel", pair.tickets[-1])
    pair.turn_valve(False)
    while pair.twin.waiting():
        (event,) = pair.plainly("step")
        pair.about("completed", event.ticket, usage=Usage(event.ticket.number % 6, 0, None))
    pair.end()


# -- would it notice? ------------------------------------------------------------------------------------------

MUTANTS = {}


def mutant(target, name, *where):
    """Register a wrong method in place of a right one, which it is given; `where` are settings, or directed scripts."""

    def register(make):
        MUTANTS[make.__name__] = (target, name, make, where)
        return make

    return register


_VTC, _SFQ, _DRR, _RR = (
    type(policy.start()) for policy in (VirtualTokenCounter(), StartTimeFair(), DeficitRoundRobin(), RoundRobin())
)


@mutant(_VTC, "arrived", "vtc")
def who_comes_back_is_not_lifted(right):
    def arrived(self, flow, now):
        before = flow.counter
        right(self, flow, now)
        self.settled(flow, (before - flow.counter) * flow.weight, now)

    return arrived


@mutant(_VTC, "settled", "vtc")
def what_it_came_to_cost_is_taken_off(right):
    return lambda self, flow, correction, now: right(self, flow, -correction, now)


@mutant(_VTC, "settled", "vtc", "legacy")
def who_is_taken_back_has_paid(right):
    return lambda self, flow, correction, now: right(self, flow, max(0.0, correction), now)


@mutant(_VTC, "served", "vtc")
def weights_are_the_wrong_way_round(right):
    return lambda self, flow, cost, now: right(self, flow, cost * flow.weight * flow.weight, now)


@mutant(_SFQ, "served", "sfq", "sfq, newest first")
def virtual_time_stands_still(right):
    def served(self, flow, cost, now):
        time = self._time
        right(self, flow, cost, now)
        self._time = time

    return served


@mutant(_DRR, "arrived", "drr", "drr by deadline")
def who_had_emptied_has_saved_a_quantum(right):
    def arrived(self, flow, now):
        right(self, flow, now)
        flow.counter += self._quantum

    return arrived


@mutant(_DRR, "settled", "drr", "drr by deadline")
def a_deficit_never_knows_what_it_came_to_cost(right):
    return lambda self, flow, correction, now: None


@mutant(_RR, "served", "rr", "rr by objective")
def the_turn_is_not_remembered(right):
    def served(self, flow, cost, now):
        right(self, flow, cost, now)
        self._last = None

    return served


@mutant(FlowController, "cancel", "vtc")
def a_cancelled_request_keeps_its_place(right):
    def cancel(self, ticket, now):
        done = right(self, ticket, now)
        if done:
            self._books.size_bytes += ticket.item.size_bytes
        return done

    return cancel


@mutant(QueueBooks, "victims", "strict", "drr, any makes room")
def the_oldest_makes_room(right):
    def victims(self, item, below):
        found = right(self, item, below)
        return [found[0].flow.band.oldest] if len(found) == 1 else found

    return victims


@mutant(QueueBooks, "victims", "sfq, held back", "ageing")
def whoever_is_lower_makes_room(right):
    return lambda self, item, below: right(self, item, inf)


@mutant(QueueBooks, "forget", "ageing", "vtc, all forgotten soon")
def bands_are_never_forgotten(right):
    return lambda self, band: None


@mutant(ExpiryHeap, "any_due", "vtc", "ageing")
def expiry_is_an_instant_late(right):
    return lambda self, now: self.next() < now


@mutant(ExpiryHeap, "restart", "strict", "vtc")
def a_pool_that_empties_leaves_the_heap_as_it_was(right):
    return lambda self, waiting: None


@mutant(ExpiryHeap, "_forget", many_come_and_go)
def who_has_gone_stays_in_the_heap(right):
    return lambda self: None


@mutant(FifoQueue, "_insert", "vtc", "strict")
def who_is_taken_back_goes_to_the_end(right):
    def insert(self, ticket):
        ticket.previous, self._last.next = self._last, ticket
        self._last = ticket
        self._count += 1

    return insert


@mutant(OrderedQueue, "head", "drr by deadline")
def the_last_deadline_goes_first(right):
    return lambda self: self._tickets[-1][2] if self._tickets else None


@mutant(FlowController, "_rest", "vtc")
def a_flow_is_never_idle(right):
    return lambda self, flow, now: None


@mutant(IdleFlows, "_forget", "vtc, all forgotten soon")
def the_least_idle_is_forgotten(right):
    def forget(self, at):
        first, self._first = self._first, self._last
        right(self, at)
        self._first = first if self._first is None else self._first

    return forget


@mutant(IdleFlows, "collect", "drr by deadline", "ageing")
def idle_flows_are_kept(right):
    return lambda self, now: None


@mutant(FlowController, "_reject", "vtc")
def who_was_rejected_is_not_counted(right):
    def reject(self, band, item, *said):
        answer = right(self, band, item, *said)
        if band is not None:
            band.totals.submitted[0] -= 1
            band.totals.rejected[0] -= 1
        return answer

    return reject


@mutant(FlowController, "_lapse", "drr, any makes room")
def nothing_lapses(right):
    return lambda self, events, now: None


@mutant(FlowController, "_expires_at", "vtc", "strict")
def budgets_do_not_start_anew(right):
    def expires_at(self, ticket):
        since, self._empty_since = self._empty_since, -inf
        at = right(self, ticket)
        self._empty_since = since
        return at

    return expires_at


@mutant(FlowController, "_finish", "vtc")
def the_gate_is_not_told_who_has_finished(right):
    def finish(self, ticket, outcome, now):
        gate, self._gate = self._gate, OpenGate()
        right(self, ticket, outcome, now)
        self._gate = gate

    return finish


@mutant(FlowController, "next_wakeup", "rr by objective")
def it_sleeps_through_what_lapses(right):
    def next_wakeup(self, now):
        ttl, self._inflight_ttl = self._inflight_ttl, inf
        at = right(self, now)
        self._inflight_ttl = ttl
        return at

    return next_wakeup


@mutant(FlowController, "submit", "strict", "drr, any makes room")
def who_made_room_is_not_told(right):
    def submit(self, item, now):
        answer = right(self, item, now)
        self._events = [event for event in self._events if not isinstance(event, Displace)]
        return answer

    return submit


@mutant(FlowController, "revoked", "vtc", "strict")
def time_at_a_server_counts_as_waiting(right):
    def revoked(self, ticket, *, now, requeue=False):
        at = ticket.enqueued_at
        waits = right(self, ticket, now=now, requeue=requeue)
        ticket.enqueued_at = at
        return waits

    return revoked


@mutant(FlowController, "shutdown", "vtc")
def shutdown_lets_others_in(right):
    def shutdown(self, now):
        events = right(self, now)
        self._closed = False
        return events

    return shutdown


@mutant(FlowController, "_turn", "vtc")
def the_clock_may_go_back(right):
    def turn(self, now):
        self._now = now

    return turn


@mutant(Dispatcher, "_ceilings", "sfq, held back", "aware, vtc")
def nothing_is_held_back(right):
    return lambda self, level: [1.0] * len(self._books.order)


@mutant(DispatchRate, "retry_after", "vtc")
def whoever_was_refused_may_come_back_at_once(right):
    return lambda self, ahead, now: 1.0


def noticed(where):
    """Does any of the scripts stumble? Errors of other kinds than a comparison's are the mutant's own."""
    for seed in range(12):
        for each in where:
            try:
                if callable(each):
                    each()
                else:
                    script(SETTINGS[each], seed, length=120)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_controller_is_noticed(name, monkeypatch):
    target, method, make, where = MUTANTS[name]
    monkeypatch.setattr(target, method, make(getattr(target, method)))
    assert noticed(where)


# -- equal calls, equal bytes --------------------------------------------------------------------------------------


def digest(seed):
    """Return what a recorded controller wrote along one script a setting, as a hash; and how much it was."""
    logs = [script(setting, seed, recorded=True).real.log() for setting in SETTINGS.values()]
    return f"{sha256(b''.join(logs)).hexdigest()} {sum(map(len, logs))}"


def test_equal_calls_are_equal_bytes_whatever_the_order_of_sets():
    here = digest(3)
    assert digest(3) == here != digest(4)
    program = "from tests.test_flow_machine import digest; print(digest(3))"
    others = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "31337")
    ]
    assert [other.communicate()[0].strip() for other in others] == [here, here]
