import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched

QUEUE = isched.WAITING_QUEUE_SIZE
SEEN = st.none() | st.tuples(st.sampled_from([0.0, 1.0, 2.0, 4.0]), st.sampled_from([0.0, 3.0, 8.0, math.nan]))


def pool_of(seen):
    pool = isched.InferencePool()
    for i, report in enumerate(seen):
        pool.join(f"ep-{i}")
        if report is not None:
            pool.observe(f"ep-{i}", {QUEUE: report[1]}, now=report[0])
    return pool


def as_policies_have_it(seen, assume, after, now):
    """Each endpoint's queue as plug-ins may see it, by name; None where nobody is fresh enough to be asked."""
    fresh = [report is not None and now - report[0] <= after for report in seen]
    value = [math.nan if report is None else report[1] for report in seen]
    known = [v for v, new in zip(value, fresh, strict=True) if new and v == v]
    instead = sum(known) / len(known) if known and assume == "mean" else math.nan
    kept = [i for i in range(len(seen)) if assume != "exclude" or fresh[i]]
    if not kept:
        return None
    return {f"ep-{i}": value[i] if fresh[i] or assume == "trust" else instead for i in kept}


@given(
    st.lists(SEEN, min_size=1, max_size=6),
    st.sampled_from(["worst", "mean", "exclude", "trust"]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from([4.0, 5.0, 6.5]),
)
def test_each_policy_is_what_it_says(seen, assume, after, now):
    policy, endpoints = isched.StalePolicy(after, assume), pool_of(seen).snapshot()
    expected = as_policies_have_it(seen, assume, after, now)
    if expected is None:
        with pytest.raises(isched.NoEndpointsError, match=f"none of {len(seen)} endpoints was observed"):
            policy.apply(endpoints, now)
        return
    shown = policy.apply(endpoints, now)
    assert shown.names == tuple(expected)
    assert np.array_equal(shown[QUEUE], list(expected.values()), equal_nan=True)
    local = isched.INFLIGHT_REQUESTS
    assert np.array_equal(shown[local], np.zeros(len(expected)))


@given(st.lists(SEEN, min_size=1, max_size=6), st.sampled_from(["worst", "mean", "exclude", "trust"]))
def test_nothing_is_copied_where_all_are_fresh(seen, assume):
    endpoints = pool_of(seen).snapshot()
    never = any(report is None for report in seen)
    if not never or assume in ("worst", "trust"):
        assert isched.StalePolicy(50.0, assume).apply(endpoints, 5.0) is endpoints


def test_exactly_at_the_age_is_still_fresh():
    endpoints = pool_of([(0.0, 3.0)]).snapshot()
    policy = isched.StalePolicy(after=2.0)
    assert policy.apply(endpoints, 2.0) is endpoints
    assert np.isnan(policy.apply(endpoints, np.nextafter(2.0, 3.0))[QUEUE][0])
