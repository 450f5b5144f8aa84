"""Is every frame applied once and in order, whatever the socket loses, repeats or begins anew?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.sequence import END, EventStream, ReplayRequest, StreamStep

GAP = (1, 3, 4)


def run(stream, *sequences):
    """Publish frames whose payload is their number; return (kind, what is ready) of each."""
    steps = []
    for sequence in sequences:
        step = stream.live(sequence, sequence)
        stream.check()
        assert all(number == payload for number, payload in step.ready)
        steps.append((step.kind, [number for number, _ in step.ready]))
    return steps


def test_frames_in_order_are_ready_at_once():
    assert run(EventStream(), 0, 1, 2) == [("next", [0]), ("next", [1]), ("next", [2])]


def test_a_gap_asks_once_and_holds_what_comes_meanwhile():
    stream = EventStream()
    run(stream, 0)
    assert stream.live(2, "c") == StreamStep("gap", request=ReplayRequest(1))
    assert stream.live(3, "d") == StreamStep("held") and stream.held == 2 and stream.replaying
    assert stream.replayed(1, "b") == StreamStep("next", ready=((1, "b"), (2, "c"), (3, "d")))
    assert stream.replayed(2, "c") == StreamStep("duplicate")
    assert stream.replayed(END, "") == StreamStep("end") and not stream.replaying
    assert run(stream, 4) == [("next", [4])]


def test_a_late_subscriber_sees_a_gap_from_0():
    stream = EventStream()
    assert stream.live(27, "x") == StreamStep("gap", request=ReplayRequest(0))


def test_a_frame_that_comes_late_fills_its_gap():
    stream = EventStream()
    assert run(stream, 0, 2, 1) == [("next", [0]), ("gap", []), ("next", [1, 2])]
    assert stream.replay_ended().kind == "end"


def test_what_was_applied_is_dropped():
    stream = EventStream()
    assert run(stream, 0, 1, 1, 2, 1) == [
        ("next", [0]),
        ("next", [1]),
        ("duplicate", []),
        ("next", [2]),
        ("duplicate", []),
    ]
    assert stream.behind == 2
    assert run(EventStream(), 0, 0) == [("next", [0]), ("duplicate", [])]


def test_a_replay_that_loses_frames_is_asked_again_from_the_first_that_is_missing():
    stream = EventStream()
    run(stream, 0, 6)
    for sequence in (1, 2, 4, 5):
        stream.replayed(sequence, sequence)
    step = stream.replay_ended()
    assert (step.kind, step.request) == ("gap", ReplayRequest(3)) and stream.expected == 3
    assert [number for number, _ in stream.replayed(3, 3).ready] == [3, 4, 5, 6]
    assert stream.replay_ended().kind == "end"


def test_two_replays_in_a_row_without_the_missing_frame_are_enough():
    """As of a publisher that keeps the last frames only."""
    stream = EventStream()
    run(stream, 7)
    for asked in (True, False):
        stream.replayed(5, 5), stream.replayed(6, 6)
        step = stream.replay_ended()
        assert (step.request == ReplayRequest(0)) is asked
    assert step == StreamStep("lost", ready=((5, 5), (6, 6), (7, 7)), forget=True, lost=5)
    assert run(stream, 8) == [("next", [8])]


def test_a_replay_that_brings_something_starts_the_count_anew():
    stream = EventStream()
    run(stream, 0, 5)
    assert stream.replay_ended().request == ReplayRequest(1)
    stream.replayed(1, 1)
    assert stream.replay_ended().request == ReplayRequest(2)
    assert stream.replay_ended() == StreamStep("lost", ready=((5, 5),), forget=True, lost=3)


def test_what_is_lost_may_leave_another_gap_behind_it():
    stream = EventStream()
    run(stream, *GAP)
    step = stream.give_up()
    assert step == StreamStep("lost", ready=((1, 1),), request=ReplayRequest(2), forget=True, lost=1)
    stream.check()
    stream.replay_ended()
    assert stream.replay_ended() == StreamStep("lost", ready=((3, 3), (4, 4)), forget=True, lost=1)


def test_without_a_replay_socket_a_gap_is_a_loss_at_once():
    stream = EventStream(replay=False)
    assert stream.live(27, "x") == StreamStep("lost", ready=((27, "x"),), forget=True, lost=27)
    assert run(stream, 28, 30) == [("next", [28]), ("lost", [30])]
    assert stream.give_up() == StreamStep("end")


def test_not_more_than_hold_frames_wait():
    stream = EventStream(hold=3)
    assert run(stream, 5, 6, 7) == [("gap", []), ("held", []), ("held", [])]
    step = stream.live(8, 8)
    assert (step.kind, step.lost, len(step.ready), step.forget) == ("lost", 5, 4, True)
    run(stream, 20)
    for sequence in (15, 16):
        stream.replayed(sequence, sequence)
    assert stream.replayed(17, 17).kind == "lost"
    stream.check()


def test_frame_0_again_is_a_restart():
    stream = EventStream()
    run(stream, 0, 1, 2)
    assert stream.live(0, "new") == StreamStep("restart", ready=((0, "new"),), forget=True)
    assert run(stream, 1) == [("next", [1])]


def test_a_restart_while_a_replay_is_awaited_drops_what_is_held_and_what_comes_of_it():
    stream = EventStream()
    run(stream, 27)
    assert stream.live(0, "new") == StreamStep("restart", ready=((0, "new"),), forget=True)
    assert stream.held == 0
    assert stream.replayed(1, "old") == StreamStep("duplicate") and stream.expected == 1
    assert stream.replay_ended() == StreamStep("end")


def test_another_start_time_is_a_restart_and_asks_from_0():
    stream = EventStream()
    run(stream, 0, 1, 2)
    assert stream.process_started(100.0).kind == "same"
    assert stream.process_started(100.0).kind == "same"
    run(stream, 1)
    assert stream.process_started(200.0) == StreamStep("restart", request=ReplayRequest(0), forget=True)
    stream.replayed(0, 0)
    assert stream.expected == 1
    quiet = EventStream(replay=False)
    quiet.process_started(1.0)
    assert quiet.process_started(2.0) == StreamStep("restart", forget=True)
    quiet.check()


def test_a_restart_is_told_once():
    """Frame 0 tells of it, the metrics a while later: forgetting twice would lose what came between."""
    stream = EventStream()
    stream.process_started(100.0)
    run(stream, 0, 1, 0, 1)
    assert stream.process_started(200.0).kind == "same" and stream.expected == 2
    assert stream.process_started(300.0).kind == "restart", "and the next one counts again"


def test_a_second_restart_whose_beginning_was_missed_is_not_taken_for_the_first():
    stream = EventStream()
    stream.process_started(100.0)
    run(stream, 0, 1, 2, 3, 0, 1, 2)
    run(stream, 1, 2)
    assert stream.process_started(200.0).kind == "restart"


@pytest.mark.parametrize("call", [lambda s, n: s.live(n, ""), lambda s, n: s.replayed(n, "")])
@pytest.mark.parametrize("sequence", [-2, 2**63])
def test_numbers_out_of_range_are_refused(call, sequence):
    stream = EventStream()
    with pytest.raises(isched.InvalidInputError, match=r"sequence: got .*, allowed: an integer in \[0, 2\^63\)"):
        call(stream, sequence)
    assert stream.expected == 0 and stream.held == 0


def test_parameters_are_checked():
    with pytest.raises(isched.InvalidInputError, match="hold: got 0"):
        EventStream(hold=0)
    with pytest.raises(isched.InvalidInputError, match="now: got nan"):
        EventStream().process_started(float("nan"))


# --- the parts of messages ---------------------------------------------------------------------------------------


def test_a_request_is_an_empty_part_and_eight_bytes():
    assert ReplayRequest(258).parts() == (b"", b"\0\0\0\0\0\0\1\2")


def test_replies_come_with_a_topic_and_without():
    number = (5).to_bytes(8, "big")
    assert isched.decode_replay_reply([b"", b"kv@a@m", number, b"p"]) == ("kv@a@m", 5, b"p")
    assert isched.decode_replay_reply([b"", number, b"p"]) == ("", 5, b"p")
    assert isched.decode_replay_reply([b"", b"", b"\xff" * 8, b""]).sequence == END
    assert isched.decode_replay_reply([b"", b"\xff" * 8, b""]).sequence == END


@pytest.mark.parametrize(
    ("decode", "parts", "message"),
    [
        (isched.decode_event_frame, [b"t", b"\0" * 8], "frame: got '2 parts'"),
        (isched.decode_event_frame, [b"t", b"\0" * 7, b""], "sequence: got '7 bytes', allowed: 8 bytes, big-endian"),
        (isched.decode_event_frame, [b"t", b"\xff" * 8, b""], "sequence: got -1, allowed: an integer of at least 0"),
        (isched.decode_event_frame, [b"\xff", b"\0" * 8, b""], "topic: got .*, allowed: UTF-8"),
        (isched.decode_replay_reply, [b"t", b"\0" * 8, b""], "reply: got '3 parts', allowed: an empty part, topic"),
        (isched.decode_replay_reply, [b"", b"t", b"\0" * 8, b"", b""], "reply: got '5 parts'"),
        (isched.decode_replay_reply, [b"", b"\xff" * 7 + b"\xfe", b""], "sequence: got -2"),
        (isched.decode_replay_reply, [b"", b"t", b"", b""], "sequence: got '0 bytes'"),
    ],
)
def test_parts_that_are_none_are_refused(decode, parts, message):
    with pytest.raises(isched.KVEventError, match=message):
        decode(parts)


@pytest.mark.parametrize(
    ("topic", "expected"),
    [
        ("kv@pod-123@llama-2-7b", ("pod-123", "llama-2-7b")),
        ("kv@a@m@x", ("a", "m@x")),
        ("kv@a", ("kv@a", "")),
        ("", ("", "")),
    ],
)
def test_topics(topic, expected):
    assert isched.parse_topic(topic) == expected


# --- a lossy world -----------------------------------------------------------------------------------------------


@given(
    lost=st.lists(st.booleans(), min_size=1, max_size=30),
    replay_loss=st.lists(st.integers(0, 4), max_size=40),
    kept=st.integers(1, 30),
    lag=st.integers(0, 6),
    hold=st.integers(1, 40),
)
def test_a_lossy_stream_is_applied_in_order_once(lost, replay_loss, kept, lag, hold):
    """Frames get lost, replays lose some and know only the last; in the end all is applied or said to be lost."""
    stream, chance = EventStream(hold=hold), iter(replay_loss)
    applied, forgotten, waiting = [], 0, []

    def follow(step):
        nonlocal forgotten
        stream.check()
        if step.forget:
            forgotten += step.lost
            applied.clear()
        for number, _ in step.ready:
            assert not applied or number == applied[-1] + 1, "in order, once"
            applied.append(number)
        if step.request:
            waiting.append((step.request.start, lag))

    def answer(published):
        """The replay socket answers the oldest request, a while after it was asked."""
        if waiting and waiting[0][1] <= 0:
            start, _ = waiting.pop(0)
            for number in range(max(start, published - kept), published):
                if next(chance, 1):
                    follow(stream.replayed(number, number))
            follow(stream.replayed(END, None))
        waiting[:] = [(start, left - 1) for start, left in waiting]

    for number, gone in enumerate(lost):
        if not gone:
            follow(stream.live(number, number))
        answer(number + 1)
    follow(stream.live(len(lost), len(lost)))
    for _ in range(200):
        answer(len(lost) + 1)
    assert not waiting and not stream.held and stream.expected == len(lost) + 1
    assert applied[-1] == len(lost)
    assert len(applied) == len(lost) + 1 or forgotten or applied[0] > 0
