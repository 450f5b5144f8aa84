"""Is it known who waits for whom, also when requests are cut off, moved or left out?"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Tenant, Workload
from inferencesched.simulator.workload import Precedence, gathered

TALK = Precedence.of([[], [0], [], [1, 0], [2]], [0.0, 500.0, 0.0, 20.0, 0.0])
FIVE = replace(
    Workload.of("five", [0, 1, 2, 3, 4], [130, 64, 64, 64, 64], [1] * 5, [[0, 1], [0], [2], [0], [2]], block_size=64),
    precedence=TALK,
)


@st.composite
def precedences(draw, most=12):
    count = draw(st.integers(0, most))
    rows = [draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(count)]
    return rows, Precedence.of(rows, [float(i) if row else 0.0 for i, row in enumerate(rows)])


def reached(rows):
    """Conversations by walking from each request to whoever waits for it, or is waited for."""
    near = [set(row) for row in rows]
    for i, row in enumerate(rows):
        for j in row:
            near[j].add(i)
    number = {}
    for i in range(len(rows)):
        if i in number:
            continue
        todo, label = [i], len(set(number.values()))
        while todo:
            at = todo.pop()
            if at not in number:
                number[at] = label
                todo += near[at]
    return [number[i] for i in range(len(rows))]


def test_what_it_says():
    TALK.validate(5)
    assert TALK.places.tolist() == [0, 0, 1, 2] and TALK.offsets.tolist() == [0, 0, 1, 1, 3, 4]
    assert [TALK.waits_for(i).tolist() for i in range(5)] == [[], [0], [], [0, 1], [2]]
    assert TALK.think.tolist() == [0.0, 500.0, 0.0, 20.0, 0.0] and len(TALK) == 5
    assert TALK.sessions().tolist() == [0, 0, 1, 0, 1]


@given(precedences())
def test_conversations_are_what_can_be_reached(drawn):
    rows, precedence = drawn
    precedence.validate(len(rows))
    assert [precedence.waits_for(i).tolist() for i in range(len(rows))] == [sorted(row) for row in rows]
    assert precedence.sessions().tolist() == reached(rows)


@given(precedences(), st.integers(0, 14))
def test_the_head_is_that_of_the_first(drawn, count):
    rows, precedence = drawn
    head = precedence.head(count)
    head.validate(min(count, len(rows)))
    assert [head.waits_for(i).tolist() for i in range(len(head))] == [sorted(row) for row in rows[:count]]
    assert head.think.tolist() == precedence.think.tolist()[:count]


@given(precedences(), st.data())
def test_whole_conversations_can_be_taken_in_any_order_that_keeps_their_own(drawn, data):
    rows, precedence = drawn
    session = reached(rows)
    kept = data.draw(st.sets(st.sampled_from(session))) if rows else set()
    queues = {label: [i for i in range(len(rows)) if session[i] == label] for label in kept}
    order = []
    while any(queues.values()):
        label = data.draw(st.sampled_from(sorted(label for label in queues if queues[label])))
        order.append(queues[label].pop(0))
    taken = precedence.taken(np.array(order, dtype=np.int64))
    taken.validate(len(order))
    assert [[order[place] for place in taken.waits_for(i).tolist()] for i in range(len(order))] == [
        sorted(rows[i]) for i in order
    ], "within a conversation the order is kept, so that ascending stays ascending"
    assert taken.think.tolist() == [precedence.think[i] for i in order]


@pytest.mark.parametrize("order", [[1], [1, 0], [3, 0, 1], [0, 1, 4]])
def test_nobody_loses_whom_they_wait_for(order):
    with pytest.raises(InvalidInputError, match="^order: "):
        TALK.taken(np.array(order))


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"think": [0.0, 500.0]}, "precedence.think"),
        ({"think": [0.0, -1.0, 0.0, 0.0, 0.0]}, "precedence.think"),
        ({"think": [0.0, float("nan"), 0.0, 0.0, 0.0]}, "precedence.think"),
        ({"think": [0.0, float("inf"), 0.0, 0.0, 0.0]}, "precedence.think"),
        ({"think": [0.0, 0.0, 7.0, 0.0, 0.0]}, "precedence.think"),
        ({"offsets": [0, 0, 1, 1, 3]}, "precedence.offsets"),
        ({"offsets": [0, 0, 1, 1, 3, 5]}, "precedence.offsets"),
        ({"offsets": [1, 1, 1, 1, 3, 4]}, "precedence.offsets"),
        ({"offsets": [0, 2, 1, 1, 3, 4]}, "precedence.offsets"),
        ({"places": [1, 0, 1, 2]}, "precedence.places"),
        ({"places": [0, 0, 1, 4]}, "precedence.places"),
        ({"places": [0, -1, 1, 2]}, "precedence.places"),
        ({"places": [0, 1, 0, 2]}, "precedence.places"),
        ({"places": [0, 0, 0, 2]}, "precedence.places"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(change, parameter):
    whole = {"places": [0, 0, 1, 2], "offsets": [0, 0, 1, 1, 3, 4], "think": [0.0, 5.0, 0.0, 0.0, 0.0]}
    columns = {name: np.array(values) for name, values in (whole | change).items()}
    with pytest.raises(InvalidInputError) as error:
        replace(FIVE, precedence=Precedence(**columns)).validate()
    assert error.value.parameter == parameter


def test_a_workload_refuses_the_precedence_of_another():
    FIVE.validate()
    with pytest.raises(InvalidInputError, match="^precedence.think: "):
        replace(FIVE, precedence=TALK.head(4)).validate()
    with pytest.raises(InvalidInputError, match="^precedence.think: "):
        Workload.of("one", [0], [1], [1], [[]], block_size=64, precedence=TALK)


def test_a_workload_keeps_it():
    for same in (FIVE.at_speed(4.0), FIVE.in_blocks(16), FIVE.tagged([Tenant("a"), Tenant("b")], seed=1)):
        same.validate()
        assert same.precedence is TALK, "pauses do not change with the speed"
    assert FIVE.at_speed(4.0).arrival.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    for count in range(7):
        head = FIVE.head(count)
        head.validate()
        assert len(head.precedence) == min(count, 5)


def test_without_it_everybody_is_a_conversation_of_their_own():
    assert FIVE.sessions().tolist() == [0, 0, 1, 0, 1]
    assert replace(FIVE, precedence=None).sessions().tolist() == [0, 1, 2, 3, 4]


@given(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=6), st.data())
def test_rows_are_gathered_as_a_list_would(rows, data):
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    flat = [item for row in rows for item in row]
    fresh, index = gathered(offsets, np.array(order, dtype=np.int64))
    assert [flat[i] for i in index] == [item for i in order for item in rows[i]]
    assert np.diff(fresh).tolist() == [len(rows[i]) for i in order]
