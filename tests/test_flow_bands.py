"""Which band goes: strictly the greatest priority, with ageing, or with shares that nobody falls below. Through the controller."""

from typing import NamedTuple

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    Dispatch,
    FlowController,
    PriorityBand,
    QueueItem,
    RoundRobin,
    StrictBands,
    StrictWithAgeing,
    TokenCost,
    WeightedShares,
)
from tests.flow_traces import Turnstile

PRIORITIES = (10, 5, 0, -1, -3)


class Went(NamedTuple):
    """A dispatch: of which band, at which cost, when, and in which of its times of waiting each band was before (-1: in none)."""

    priority: int
    cost: int
    now: float
    waiting: dict[int, int]
    oldest: dict[int, float]


def drive(policy, steps, gap=0.25):
    """Drive a controller along steps: submissions of 1 to 16 tokens to some band, cancels, and dispatches one by one."""
    gate, now = Turnstile(), 0.0
    controller = FlowController(
        gate=gate,
        bands=[PriorityBand(priority, fairness=RoundRobin()) for priority in PRIORITIES],
        band_policy=policy,
        cost=TokenCost(1.0, 0.0),
    )
    waiting = {priority: [] for priority in PRIORITIES}
    epochs = dict.fromkeys(PRIORITIES, 0)
    went = []

    def dispatch():
        gate.left = 1
        before = {p: epochs[p] if waiting[p] else -1 for p in PRIORITIES}
        oldest = {p: waiting[p][0].enqueued_at for p in PRIORITIES if waiting[p]}
        gone = [event.ticket for event in controller.step(now) if isinstance(event, Dispatch)]
        assert len(gone) == any(waiting.values())
        for ticket in gone:
            priority = ticket.item.priority
            waiting[priority].remove(ticket)
            epochs[priority] += not waiting[priority]
            went.append(Went(priority, ticket.item.input_tokens, now, before, oldest))
        gate.left = 0

    for step in steps:
        now += gap
        kind, rest = step % 8, step // 8
        priority, rest = PRIORITIES[rest % len(PRIORITIES)], rest // len(PRIORITIES)
        if kind < 4:
            for i in range(1 + rest % 3):
                item = QueueItem(
                    request_id="r", flow=f"f{rest % 2}", priority=priority, input_tokens=1 + (rest * (i + 1)) % 16
                )
                waiting[priority].append(controller.submit(item, now))
        elif kind < 7:
            for _ in range(1 + rest % 3):
                dispatch()
        elif waiting[priority]:
            ticket = waiting[priority].pop(rest % len(waiting[priority]))
            assert controller.cancel(ticket, now)
            epochs[priority] += not waiting[priority]
    while any(waiting.values()):
        dispatch()
    controller.check()
    return went


lists_of_steps = st.lists(st.integers(0, 2**20), max_size=80)


@given(lists_of_steps)
def test_strict_is_strict(steps):
    assert all(each.priority == max(each.oldest) for each in drive(StrictBands(), steps))


# --- ageing ------------------------------------------------------------------------------------------------------------


@given(lists_of_steps, st.sampled_from((0.5, 2.0, 1e6)), st.integers(0, 12), st.booleans())
def test_ageing_is_the_formula(steps, seconds, most, lift):
    policy = StrictWithAgeing(seconds, most, lift)
    for each in drive(policy, steps):
        raised = {p: p + min(most, (each.now - at) // seconds) for p, at in each.oldest.items()}
        if not lift:
            raised = {p: min(r, 0) if p < 0 else r for p, r in raised.items()}
        assert each.priority == max(raised, key=lambda p: (raised[p], p))


@given(lists_of_steps, st.sampled_from((0.1, 1.0)))
def test_who_is_sheddable_never_passes_who_is_not(steps, seconds):
    for each in drive(StrictWithAgeing(seconds, 100), steps):
        assert each.priority >= 0 or max(each.oldest) < 0


@pytest.mark.parametrize(("low", "high"), [(0, 10), (5, 10), (0, 5), (-3, -1)])
def test_nobody_waits_for_ever_behind_who_goes_at_once(low, high):
    seconds, gate = 2.0, Turnstile()
    controller = FlowController(gate=gate, band_policy=StrictWithAgeing(seconds, most=20))
    controller.submit(QueueItem(request_id="low", priority=low), 0.0)
    now, gone = 0.0, []
    while "low" not in gone:
        controller.submit(QueueItem(request_id="high", priority=high), now)
        gate.left = 1
        gone += [event.ticket.request_id for event in controller.step(now)]
        now += 0.25
        assert now <= (high - low + 1) * seconds + 0.25
    assert now > (high - low) * seconds


# --- shares -----------------------------------------------------------------------------------------------------------

SHARES = [
    {10: 0.5, 5: 0.25, 0: 0.125, -1: 0.0625, -3: 0.0625},
    {10: 0.2, 5: 0.2, 0: 0.2, -1: 0.2, -3: 0.2},
    {0: 0.3, -3: 0.1},
    {-3: 1.0},
    {5: 0.9, -1: 0.05, -3: 0.05},
]


def lacking(went, shares):
    """Return by how much a band fell behind its share most, over all intervals in which it waited all the while."""
    most = 0.0
    for priority, share in shares.items():
        period, behind, least = None, 0.0, 0.0
        for each in went:
            if each.waiting[priority] != period:
                period, behind, least = each.waiting[priority], 0.0, 0.0
            if period == -1:
                continue
            behind += share * each.cost - (each.cost if each.priority == priority else 0)
            least = min(least, behind)
            most = max(most, behind - least)
    return most


@pytest.mark.parametrize("quantum", [16.0, 50.0])
@pytest.mark.parametrize("shares", SHARES, ids=str)
@given(steps=lists_of_steps)
def test_every_band_gets_its_share(shares, quantum, steps):
    """s * W - (quantum + L), L = 16, whatever the others do."""
    assert lacking(drive(WeightedShares(shares, quantum), steps), shares) <= quantum + 16 + 1e-6


@given(steps=lists_of_steps)
def test_without_shares_it_is_strict(steps):
    assert [each.priority for each in drive(WeightedShares({}), steps)] == [
        each.priority for each in drive(StrictBands(), steps)
    ]


def test_strict_bands_keep_no_share():
    shares = SHARES[1]
    search = settings(max_examples=2_000, derandomize=True, database=None, phases=[Phase.generate], deadline=None)
    assert find(lists_of_steps, lambda steps: lacking(drive(StrictBands(), steps), shares) > 16 + 16, settings=search)


def test_the_rest_goes_to_the_greatest_priority():
    gate = Turnstile()
    controller = FlowController(gate=gate, band_policy=WeightedShares({5: 0.2, 0: 0.1}, quantum=10.0), cost=TokenCost())
    for i in range(600):
        controller.submit(QueueItem(request_id=f"{i}", priority=(10, 5, 0)[i % 3], input_tokens=10), 0.0)
    gate.left = 200
    gone = [event.ticket.item.priority for event in controller.step(0.0)]
    assert [gone.count(priority) for priority in (10, 5, 0)] == [140, 40, 20]


def test_who_was_away_has_saved_nothing():
    """A band comes back after the others got a thousand times its share: it does not get that now."""
    gate, policy = Turnstile(), WeightedShares({5: 0.5, 0: 0.5}, quantum=10.0)
    controller = FlowController(gate=gate, band_policy=policy, cost=TokenCost())
    for i in range(1_000):
        controller.submit(QueueItem(request_id=f"a{i}", priority=5, input_tokens=10), 0.0)
    gate.left = 500
    controller.step(0.0)
    for i in range(100):
        controller.submit(QueueItem(request_id=f"b{i}", input_tokens=10), 1.0)
    gate.left = 100
    gone = [event.ticket.item.priority for event in controller.step(1.0)]
    assert abs(gone.count(0) - 50) <= 2


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: StrictWithAgeing(0.0), "seconds"),
        (lambda: StrictWithAgeing(most=-1), "most"),
        (lambda: WeightedShares({0: 0.6, 1: 0.6}), "shares"),
        (lambda: WeightedShares({0: -0.1}), "shares[0]"),
        (lambda: WeightedShares({0: float("nan")}), "shares[0]"),
        (lambda: WeightedShares({0: 0.1}, quantum=0.0), "quantum"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter
