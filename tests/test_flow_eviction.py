"""Who is taken back from the servers, how many, and how soon again: against a slow twin, and in a pool that fills up."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    Dispatch,
    EveryVictim,
    FlowController,
    NewestFirst,
    PacedReclaimer,
    QueueItem,
    QueueOutcome,
    Revoke,
    SheddableVictims,
    StaticLimit,
    min_required,
    revocations,
)
from inferencesched.flowcontrol.eviction import Evictables
from tests.naive_eviction import NaiveReclaimer

TICK = 0.125


class Pool:
    """A gate that counts who is in flight: with so many it is full."""

    def __init__(self, most):
        self.most, self.flying = most, 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return self.flying / self.most

    def dispatched(self, ticket, now):
        self.flying += 1

    def finished(self, ticket, now):
        self.flying -= 1


def item(name, priority, **said):
    return QueueItem(request_id=name, priority=priority, ttl=1e9, **said)


def revoked(events):
    return [event.ticket for event in events if isinstance(event, Revoke)]


# --- how many ----------------------------------------------------------------------------------------------------

NUMBERS = st.floats(0.0, 8.0)


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_never_more_than_there_are_and_more_when_it_is_fuller(level, more, ceiling, inflight, evictable, most):
    count = revocations(level, ceiling, inflight, evictable, most=most)
    assert 0 <= count <= min(most, evictable)
    assert (count > 0) == (level > 0 and level >= ceiling and inflight > 0 and evictable > 0)
    assert revocations(level + more, ceiling, inflight, evictable, most=most) >= count
    assert revocations(level, ceiling, inflight, evictable, pending=more, most=most) <= count


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_enough_and_not_one_too_many(inflight, room, most):
    """Where each in flight takes an equal share, as many are revoked as bring it to the ceiling, at least one."""
    level, ceiling = inflight / room, 1.0
    count = revocations(level, ceiling, inflight, inflight, most=most)
    over = inflight - room
    assert count == (0 if over < 0 else min(max(over, 1), most, inflight))


@pytest.mark.parametrize("level", [nan, 0.0, -1.0])
def test_what_nobody_knows_evicts_nobody(level):
    assert revocations(level, 0.0, 5, 5) == 0


def test_infinitely_full_is_full():
    assert revocations(inf, 1.0, 5, 5, most=3) == 3


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_the_fewest_by_trying_all(preload, arrivals, capacity, ceiling):
    """Evict so many, then let arrivals go one by one while the share in use is below the ceiling."""

    def admitted(evictions):
        there, gone = preload - evictions, 0
        while gone < arrivals and capacity and there / capacity < ceiling:
            there, gone = there + 1, gone + 1
        return gone

    tried = [admitted(evictions) for evictions in range(preload + 1)]
    best = max(tried)
    got = min_required(preload, arrivals, capacity, ceiling)
    assert (got.admitted, got.evictions) == (best, tried.index(best) if best else 0)


def test_bounds_of_numbers():
    with pytest.raises(InvalidInputError, match="ceiling"):
        min_required(1, 1, 1, nan)
    with pytest.raises(InvalidInputError, match="capacity"):
        min_required(1, 1, -1, 1.0)


# --- who ---------------------------------------------------------------------------------------------------------


def ticket(number, priority, dispatched_at):
    controller = FlowController()
    made = controller.submit(item(f"{number}", priority), now=0.0)
    made.number, made.dispatched_at = number, dispatched_at
    return made


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5), st.booleans()), max_size=25),
    st.integers(0, 30),
    st.integers(-3, 4),
    st.sampled_from([SheddableVictims(), SheddableVictims(2), EveryVictim()]),
)
def test_victims_are_in_order(said, count, below, accept):
    held, there = Evictables(accept, NewestFirst()), []
    for number, (priority, at, gone) in enumerate(said):
        made = ticket(number, priority, float(at))
        held.track(made)
        there.append(made)
        if gone:
            assert held.untrack(there.pop(0)) is True
    assert held.untrack(ticket(-1, -1, 0.0)) is False
    mine = sorted(
        filter(accept.accepts, there), key=lambda each: (each.item.priority, -each.dispatched_at, -each.number)
    )
    assert list(held) == mine and len(held) == len(mine) and held.inflight == len(there)
    assert held.lowest() == (mine[0].item.priority if mine else None)
    wanted = [each for each in mine if each.item.priority < below][:count]
    assert held.take(count, below) == wanted
    assert held.inflight == len(there) - len(wanted)


def test_an_order_that_says_nan():
    class Nowhere:
        def key(self, ticket):
            return nan

    with pytest.raises(InvalidInputError, match="victim key"):
        Evictables(EveryVictim(), Nowhere()).track(ticket(0, -1, 0.0))


# --- how soon ----------------------------------------------------------------------------------------------------


STEPS = st.tuples(st.sampled_from(["arrive", "end", "victim", "back", "fail", "wait"]), st.integers(0, 60))


@given(
    st.lists(st.integers(-3, 0), min_size=4, max_size=12),
    st.integers(1, 4),
    st.lists(STEPS, min_size=8, max_size=60),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_a_controller_revokes_as_the_twin_does(low, left, steps, most, grace):
    """A pool is full, and then smaller than it was: the same decisions with the twin, whichever way requests end."""
    pairs = []
    for make in (PacedReclaimer, NaiveReclaimer):
        gate = Pool(len(low))
        controller = FlowController(gate=gate, reclaimer=make(most=most, grace=grace * TICK, timeout=8 * TICK))
        tickets = [controller.submit(item(f"low-{i}", priority), now=0.0) for i, priority in enumerate(low)]
        assert len(controller.step(now=0.0)) == len(low)
        gate.most = left
        pairs.append((controller, tickets, []))
    now = 0.0
    for number, (what, rest) in enumerate(steps):
        now += TICK * (rest % 3 if what != "wait" else rest % 12)
        one, other = (turned(*pair, what, rest, number, now) for pair in pairs)
        assert one == other
        assert pairs[0][0].next_wakeup(now) == pairs[1][0].next_wakeup(now)


def turned(controller, tickets, victims, what, rest, number, now):
    """Do one thing, and see what happens then, by names."""
    flying = [each for each in tickets if each.outcome is QueueOutcome.DISPATCHED]
    asked = [each for each in victims if each.outcome is QueueOutcome.DISPATCHED]
    match what:
        case "arrive":
            tickets.append(controller.submit(item(f"{number}", rest % 4 - 1), now))
        case "end" if flying:
            controller.completed(flying[rest % len(flying)], now=now)
        case "victim" if asked:
            controller.revoked(asked[rest % len(asked)], now=now)
        case "back" if asked:
            controller.revoked(asked[rest % len(asked)], now=now, requeue=True)
        case "fail" if asked:
            controller.revoke_failed(asked[rest % len(asked)], now=now)
    events = controller.step(now)
    victims += revoked(events)
    controller.check()
    return [(type(event).__name__, event.ticket.request_id) for event in events]


def pool_of(count, priority, **said):
    """Return a full pool of requests of this priority, and who is in it."""
    reclaimer = PacedReclaimer(**said)
    controller = FlowController(gate=Pool(count), reclaimer=reclaimer)
    flying = [controller.submit(item(f"low-{i}", priority), now=0.0) for i in range(count)]
    for i in range(count):
        assert len(controller.step(now=i * TICK)) == (count if i == 0 else 0)
    return controller, reclaimer, flying


def test_stop_and_wait():
    controller, reclaimer, flying = pool_of(4, -1, grace=0.5, timeout=10.0)
    high = [controller.submit(item(f"high-{i}", 0), now=1.0) for i in range(3)]
    (first,) = revoked(controller.step(now=1.0))  # the pool is full exactly: one
    assert first is flying[3]
    assert controller.step(now=2.0) == [] and controller.next_wakeup(now=2.0) == 11.5
    assert controller.revoked(first, now=2.0) is False
    assert first.outcome.headers() == {"x-llm-d-request-dropped-reason": "evicted"}
    assert controller.step(now=2.0) == [Dispatch(high[0])]  # its place went to who waited for it
    assert controller.next_wakeup(now=2.0) == 2.5  # and the next one is asked for when that has shown
    assert controller.step(now=2.25) == []
    assert revoked(controller.step(now=2.5)) == [flying[2]]
    assert (reclaimer.issued, reclaimer.confirmed, reclaimer.timed_out, reclaimer.failures) == (2, 1, 0, 0)
    assert reclaimer.pending(now=2.5) == 0.25 and not reclaimer.ready(now=2.5)
    controller.check()


def test_a_server_that_never_answers_is_not_waited_for_for_ever():
    controller, reclaimer, flying = pool_of(3, -1, grace=0.5, timeout=10.0)
    controller.submit(item("high", 0), now=1.0)
    assert revoked(controller.step(now=1.0)) == [flying[2]]
    assert controller.step(now=11.25) == []
    assert reclaimer.timed_out == 1
    assert revoked(controller.step(now=11.5)) == [flying[1]]  # somebody else: the first was asked already
    controller.completed(flying[2], now=12.0)  # too late to be a confirmation
    assert reclaimer.confirmed == 0


def test_a_server_that_will_not_may_be_asked_again():
    controller, reclaimer, flying = pool_of(3, -1)
    controller.submit(item("high", 0), now=1.0)
    for _ in range(3):
        assert revoked(controller.step(now=1.0)) == [flying[2]]
        controller.revoke_failed(flying[2], now=1.0)
        assert reclaimer.evictable == 3
    assert (reclaimer.issued, reclaimer.failures) == (3, 3)
    controller.revoke_failed(flying[0], now=1.0)  # it was not asked: nothing
    assert reclaimer.failures == 3
    controller.check()


def test_a_revoked_request_that_is_queued_again_goes_when_there_is_room():
    controller, _, flying = pool_of(2, -1, grace=0.0)
    high = controller.submit(item("high", 5), now=1.0)
    (victim,) = revoked(controller.step(now=1.0))
    assert controller.revoked(victim, now=2.0, requeue=True) is True
    assert victim.waiting and controller.step(now=2.0) == [Dispatch(high)]
    controller.completed(flying[0], now=3.0)
    assert controller.step(now=3.0) == [Dispatch(victim)]
    controller.completed(victim, now=4.0)
    assert victim.outcome is QueueOutcome.COMPLETED
    controller.check()


def test_nobody_is_revoked_for_his_equal_or_for_a_band_that_may_not_go_at_all():
    controller, _, _ = pool_of(2, -1)
    controller.submit(item("equal", -1), now=1.0)
    controller.submit(item("lower", -2), now=1.0)
    assert controller.step(now=1.0) == []
    controller, _, _ = pool_of(2, 3)
    controller.submit(item("higher", 4), now=1.0)
    assert controller.step(now=1.0) == []  # 3 is not sheddable
    controller, _, _ = pool_of(2, 3, victims=EveryVictim())
    controller.submit(item("higher", 4), now=1.0)
    assert len(revoked(controller.step(now=1.0))) == 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_a_burst_evicts_no_more_than_it_needs(most, burst, at_once):
    """One who waits takes one place. Where nobody overtakes, paced eviction comes within one decision of the analytic minimum."""
    reclaimer = PacedReclaimer(most=at_once, grace=0.0)
    controller = FlowController(gate=Pool(most), limits=StaticLimit(1.0), reclaimer=reclaimer)
    for i in range(most):
        controller.submit(item(f"low-{i}", -1), now=0.0)
    controller.step(now=0.0)
    high = [controller.submit(item(f"high-{i}", 1), now=1.0) for i in range(burst)]
    now = 1.0
    for _ in range(most + burst + 2):
        now += 1.0
        for victim in revoked(controller.step(now)):
            controller.revoked(victim, now=now)
    gone = sum(each.outcome is QueueOutcome.DISPATCHED for each in high)
    fewest = min_required(most, burst, most, 1.0)
    assert gone == fewest.admitted
    assert fewest.evictions <= reclaimer.issued < fewest.evictions + at_once
