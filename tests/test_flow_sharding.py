"""What do ids cost that clients invent? As much as the queues, with shuffle sharding; as much as may be idle, without."""

import gc
import tracemalloc
from collections import Counter
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    DeficitLongestPrefix,
    DeficitRoundRobin,
    DoubleDeficitLongestPrefix,
    FlowController,
    GlobalStrict,
    LeastAttainedService,
    PriorityBand,
    QueueItem,
    RoundRobin,
    ShuffleSharding,
    StartTimeFair,
    VirtualTokenCounter,
)
from tests.flow_traces import Turnstile

POLICIES = [
    GlobalStrict(),
    RoundRobin(),
    VirtualTokenCounter(),
    StartTimeFair(),
    DeficitRoundRobin(),
    LeastAttainedService(),
    LeastAttainedService(head_wait=0.0),
    DeficitLongestPrefix(lambda ticket: 1.0),
    DoubleDeficitLongestPrefix(lambda ticket: {"s": 1.0}),
]


@given(st.text(min_size=1), st.integers(1, 300), st.integers(1, 10), st.integers(0, 2**64 - 1))
def test_a_hand_is_of_different_cards(flow, queues, hand, seed):
    hand = min(hand, queues)
    sharding = ShuffleSharding(queues, hand, seed)
    dealt = sharding.hand_of(flow)
    assert len(set(dealt)) == hand and all(0 <= card < queues for card in dealt)
    assert dealt == ShuffleSharding(queues, hand, seed).hand_of(flow)
    assert dealt[: hand - 1] == ShuffleSharding(queues, max(1, hand - 1), seed).hand_of(flow)[: hand - 1]


def test_every_card_is_dealt_as_often_and_every_hand_is_possible():
    sharding = ShuffleSharding()
    counts = Counter(card for i in range(20_000) for card in sharding.hand_of(f"tenant-{i}"))
    assert len(counts) == 64 and all(abs(count - 2_500) < 250 for count in counts.values())  # 5 deviations
    small = Counter(ShuffleSharding(5, 3).hand_of(f"{i}") for i in range(12_000))
    assert len(small) == 60 and max(small.values()) < 290
    assert comb(64, 8) == 4_426_165_368  # what the docstring says


def test_another_seed_deals_other_hands():
    hands = [ShuffleSharding(seed=seed).hand_of("tenant") for seed in range(50)]
    assert len(set(hands)) == 50


@given(st.dictionaries(st.integers(0, 63), st.integers(0, 5)))
def test_the_shortest_of_the_hand_takes_it(lengths):
    sharding = ShuffleSharding(prefix="q")
    chosen = sharding.choose("tenant", lambda name: lengths.get(int(name[1:]), 0))
    hand = sharding.hand_of("tenant")
    assert int(chosen[1:]) == min(hand, key=lambda card: (lengths.get(card, 0), hand.index(card)))


def test_a_flood_of_one_leaves_the_others_alone():
    """A thousand requests of one id fill its eight queues; another id has a queue without them."""
    gate, sharding = Turnstile(), ShuffleSharding()
    controller = FlowController(gate=gate, default=PriorityBand(0, fairness=RoundRobin()))
    for i in range(1_000):
        controller.submit(sharding.assign(QueueItem(request_id=f"{i}", flow="flood"), controller.bands), 0.0)
    assert [len(flow) for flow in controller.bands[0].flows.values()] == [125] * 8
    controller.submit(sharding.assign(QueueItem(request_id="other", flow="other"), controller.bands), 0.0)
    gate.left = 9
    assert "other" in [event.ticket.request_id for event in controller.step(0.0)]


@pytest.mark.parametrize(
    ("policy", "sharding"),
    [
        *((policy, None) for policy in POLICIES),
        (RoundRobin(), ShuffleSharding()),
        (VirtualTokenCounter(), ShuffleSharding()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_ids_without_end_take_bounded_memory(policy, sharding):
    """Each id sends one request, and is never seen again: from the two thousandth on nothing grows."""
    gate = Turnstile()
    controller = FlowController(gate=gate, default=PriorityBand(0, fairness=policy), most_idle=300)
    now = 0.0

    def clients(first, last):
        nonlocal now
        for i in range(first, last):
            now += 0.001
            item = QueueItem(request_id="r", flow=f"invented-{i}", input_tokens=1 + i % 7)
            item = item if sharding is None else sharding.assign(item, controller.bands)
            ticket = controller.submit(item, now)
            if i % 3:
                gate.left = 1
                for event in controller.step(now):
                    controller.completed(event.ticket, now=now)
            else:
                assert controller.cancel(ticket, now)
        gc.collect()

    def held():  # by this test alone: threads that other tests left may allocate beside it
        mine = tracemalloc.Filter(True, __file__, all_frames=True)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([mine]).traces)

    clients(0, 1_500)
    tracemalloc.start(8)
    clients(1_500, 2_000)
    before = held()
    clients(2_000, 4_000)
    after = held()
    tracemalloc.stop()
    assert len(controller.bands[0].flows) <= (300 if sharding is None else 64)
    assert after - before < 2_000 * 20  # a flow takes more than 200 bytes
    controller.check()


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: ShuffleSharding(queues=0), "queues"),
        (lambda: ShuffleSharding(hand=0), "hand"),
        (lambda: ShuffleSharding(queues=4, hand=5), "hand"),
        (lambda: ShuffleSharding(queues=2**20, hand=10), "hand"),
        (lambda: ShuffleSharding(seed=-1), "seed"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter
