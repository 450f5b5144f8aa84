import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from tests.profiles import endpoints_of

REQUEST = isched.InferenceRequest(request_id="r")
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
QUEUE, USAGE = isched.WAITING_QUEUE_SIZE, isched.KV_CACHE_USAGE
COLUMN = {QUEUE: [5.0, 6.0, math.nan, 0.0], USAGE: [0.5, 0.1, 0.1, 0.9]}


def kept(limits, columns=COLUMN, **options):
    return isched.UtilizationFilter(limits, **options).filter(REQUEST, endpoints_of(columns), CYCLE).tolist()


def test_at_the_limit_is_kept_and_unknown_is_not():
    assert kept(((QUEUE, 5.0),)) == [True, False, False, True]
    assert kept(((QUEUE, 5.0), (USAGE, 0.8))) == [True, False, False, False]


def test_fallback_when_nobody_passes():
    assert kept(((USAGE, 0.05),)) == [False] * 4
    assert kept(((USAGE, 0.05),), fallback_on_empty=True) == [True] * 4
    assert kept(((QUEUE, 0.0),), fallback_on_empty=True) == [False, False, False, True]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 2.0, math.nan]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_it_is_every_limit_for_every_endpoint(rows, queue, usage, fallback):
    columns = dict(zip((QUEUE, USAGE), map(list, zip(*rows, strict=True)), strict=True))
    expected = [q <= queue and u <= usage for q, u in rows]
    if fallback and not any(expected):
        expected = [True] * len(rows)
    assert kept(((QUEUE, queue), (USAGE, usage)), columns, fallback_on_empty=fallback) == expected


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ((), "limits"),
        (((USAGE, 1.5),), r"limits\[kv_cache_usage\]: got 1.5, allowed: 0.0 to 1.0"),
        (((QUEUE, -1.0),), r"limits\[waiting_queue_size\]: got -1.0"),
        (((QUEUE, math.nan),), "got nan"),
    ],
)
def test_bad_limits(limits, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.UtilizationFilter(limits)


def test_a_limit_on_a_signal_the_pool_does_not_have():
    with pytest.raises(isched.UnknownNameError, match="signal: got 'odd'"):
        kept(((isched.Signal("odd"), 1.0),))
