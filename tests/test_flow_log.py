"""A log of a controller replays to the same bytes; one that differs shows it."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InferenceSchedError, InvalidInputError
from inferencesched.flowcontrol import (
    Capacity,
    FlowController,
    PriorityBand,
    QueueBudget,
    QueueItem,
    Ticket,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.log import RecordedController, calls, replay
from inferencesched.request import Usage


class QueueGate:
    """Full while every server has something waiting; each dispatch counts."""

    def __init__(self):
        self.free = 2

    def observe(self, endpoints, now):
        self.free = int((endpoints[isched.WAITING_QUEUE_SIZE] == 0).sum())

    def level(self, now):
        return 0.0 if self.free > 0 else 1.0

    def dispatched(self, ticket, now):
        self.free -= 1

    def finished(self, ticket, now):
        self.free += 1


def controller():
    fair = VirtualTokenCounter()
    return FlowController(
        gate=QueueGate(),
        bands=[PriorityBand(0, capacity=Capacity(4), fairness=fair)],
        default=PriorityBand(0, fairness=fair),
        capacity=Capacity(6),
        budget=QueueBudget(ttl=5.0),
    )


def endpoints(waiting):
    pool = isched.InferencePool()
    for i, queue in enumerate(waiting):
        pool.join(f"ep-{i}", labels={"zone": "eu"})
        pool.observe(f"ep-{i}", {isched.WAITING_QUEUE_SIZE: float(queue)}, now=0.0)
    return pool.snapshot()


CALLS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "submit", "step", "step", "cancel", "observe", "done", "revoked", "wake", "back"]
        ),
        st.integers(0, 9),
        st.floats(0, 3),
    ),
    max_size=40,
)


@given(CALLS, st.booleans())
def test_a_log_replays_to_the_same_bytes(script, shut):
    recorded, now, tickets = RecordedController(controller()), 0.0, []
    for call, number, gap in script:
        now += gap
        some = tickets[number % len(tickets)] if tickets else None
        try:
            if call == "submit":
                deadline = now + 2 if number == 3 else None
                item = QueueItem(
                    request_id=f"r{number}",
                    flow=f"f{number % 3}",
                    priority=number % 3 - 1,
                    input_tokens=number,
                    deadline=deadline,
                )
                answer = recorded.submit(item, now)
                tickets += [answer] if isinstance(answer, Ticket) else []
            elif call == "step":
                for event in recorded.step(now):
                    recorded.dispatched(event.ticket, "ep-0", now)
            elif call == "observe":
                recorded.observe(endpoints([number % 2] * (number % 4)), now)
            elif call == "wake":
                recorded.next_wakeup(now)
            elif call == "back":
                recorded.step(now - 1.0)
            elif some is not None and call == "cancel":
                recorded.cancel(some, now)
            elif some is not None and call == "done":
                recorded.completed(some, Usage(number, 1, 0) if number % 2 else None, now=now)
            elif some is not None:
                recorded.revoked(some, requeue=number % 2 == 0, now=now)
        except InferenceSchedError:
            pass  # the refusal is in the log
    if shut:
        recorded.shutdown(now)
    recorded.check()
    log = recorded.log()
    assert replay(log, controller) == log
    assert len(list(calls(log))) >= len(script) - sum(call in ("cancel", "done", "revoked") for call, _, _ in script)


def test_another_controller_shows_where_it_decides_otherwise():
    recorded = RecordedController(controller())
    for i in range(5):
        recorded.submit(QueueItem(request_id=f"r{i}"), now=float(i))
    log = recorded.log()
    other = replay(log, lambda: FlowController(bands=[PriorityBand(0, capacity=Capacity(3))]))
    differing = [
        i for i, (ours, theirs) in enumerate(zip(calls(log), calls(other), strict=True)) if ours.answer != theirs.answer
    ]
    assert differing == [0, 1, 2, 3, 4]  # budgets differ from the first on; the fourth and fifth do not fit
    assert [call.answer[0] for call in calls(other)] == ["ticket"] * 3 + ["rejection"] * 2


@pytest.mark.parametrize("cut", [1, 3, 7, -1])
def test_what_is_no_log(cut):
    recorded = RecordedController(controller())
    recorded.submit(QueueItem(request_id="r"), now=1.0)
    with pytest.raises(InvalidInputError, match=r"log: got 'byte 0 of"):
        replay(recorded.log()[:cut], controller)
    with pytest.raises(InvalidInputError, match="log"):
        replay(b"\x03\x00\x00\x00\x93\x01\x02", controller)


def test_a_snapshot_is_as_it_was():
    seen = []

    class Looking(QueueGate):
        def observe(self, endpoints, now):
            seen.append(endpoints)

    recorded = RecordedController(FlowController(gate=Looking()))
    told = endpoints([0, 3])
    recorded.observe(told, now=1.0)
    replay(recorded.log(), lambda: FlowController(gate=Looking()))
    first, again = seen
    assert again.names == first.names and again.label("zone", "eu").all()
    assert np.array_equal(again.matrix, first.matrix, equal_nan=True)


def test_a_log_of_other_calls_or_other_tickets():
    def written(*body):
        packed = msgspec.msgpack.encode(list(body))
        return len(packed).to_bytes(4, "little") + packed

    with pytest.raises(InvalidInputError, match="log: got 'reboot', allowed: one of submit"):
        replay(written("reboot", 1.0, [], None), controller)
    with pytest.raises(InvalidInputError, match="log: got 'ticket 7', allowed: one of the 0"):
        replay(written("cancel", 1.0, [7], True), controller)
