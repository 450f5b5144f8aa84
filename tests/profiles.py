"""Strategies and builders for pools and profiles."""

import numpy as np
from hypothesis import strategies as st

import inferencesched as isched

QUEUES = st.integers(0, 6).map(float) | st.just(float("nan"))
SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0, float("nan")]) | st.floats(0, 1)
COUNTS = st.integers(0, 5).map(float)


def endpoints_of(columns):
    """A snapshot of ep-0, ep-1, ... with these columns (lists), cycle and local ones included."""
    count = len(next(iter(columns.values())))
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}")
    return pool.snapshot().with_columns({s: np.array(v, dtype=np.float64) for s, v in columns.items()})


@st.composite
def pools(draw):
    count = draw(st.integers(1, 9))

    def column(values):
        return draw(st.lists(values, min_size=count, max_size=count))

    endpoints = endpoints_of(
        {
            isched.WAITING_QUEUE_SIZE: column(QUEUES),
            isched.RUNNING_REQUESTS: column(QUEUES),
            isched.KV_CACHE_USAGE: column(SHARES),
            isched.PREFIX_MATCH: column(SHARES),
            isched.PREFIX_TOKENS: column(COUNTS.map(lambda x: 64 * x) | st.just(float("nan"))),
            isched.INFLIGHT_REQUESTS: column(COUNTS | st.sampled_from([0.5, float("nan")])),
            isched.INFLIGHT_TOKENS: column(COUNTS.map(lambda x: 100 * x) | st.just(float("nan"))),
            isched.PREFILL_THROUGHPUT: column(st.sampled_from([0.0, 100.0, 7000.0, float("nan")])),
            isched.LAST_PICKED: column(st.integers(-1, 3).map(float)),
            isched.LORA_ACTIVE: column(COUNTS),
            isched.LORA_WAITING: column(COUNTS),
            isched.LORA_CAPACITY: column(QUEUES),
        }
    )
    keep = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    return endpoints.where(keep) if keep.any() else endpoints


class Foreign:
    """A scorer that is not the library's."""

    def score(self, request, endpoints, cycle):
        return 1.0 / (1.0 + isched.known(endpoints[isched.INFLIGHT_REQUESTS]))


#: The scorers that are a formula of one snapshot's columns: all have a twin in the fused kernel.
LOCAL_SCORERS = st.one_of(
    st.just(isched.QueueScorer()),
    st.just(isched.RunningRequestsScorer()),
    st.just(isched.KvCacheUtilizationScorer()),
    st.builds(isched.PrefixCacheScorer, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([100.0, 8192.0])),
    st.builds(isched.TokenLoadScorer, st.sampled_from([300.0, 4194304.0])),
    st.builds(isched.ActiveRequestScorer, st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
)
#: Those of other families that are such a formula as well, and have a twin too.
COLUMN_SCORERS = st.one_of(
    LOCAL_SCORERS,
    st.builds(isched.LoadAwareScorer, st.sampled_from([2.0, 128.0])),
    st.builds(
        isched.EndpointAttributeScorer,
        st.sampled_from([isched.RUNNING_REQUESTS, isched.KV_CACHE_USAGE, isched.INFLIGHT_TOKENS]),
        st.sampled_from(["lower", "higher"]),
        st.none() | st.sampled_from([(0.0, 1.0), (0.25, 3.5), (-2.0, 150.0)]),
    ),
    st.builds(isched.LoadSecondsScorer, st.sampled_from([0.5, 10.0]), st.sampled_from([0.0, 0.0, 0.1])),
)
SCORERS = st.one_of(COLUMN_SCORERS, st.just(isched.LoraAffinityScorer()), st.just(Foreign()))
PICKERS = st.one_of(
    st.builds(isched.MaxScorePicker, st.integers(1, 3)),
    st.builds(isched.RandomPicker, st.integers(1, 3)),
    st.builds(isched.WeightedRandomPicker, st.integers(1, 3)),
    st.builds(isched.RoundRobinPicker, st.integers(1, 3)),
    st.builds(isched.PowerOfTwoPicker, st.integers(1, 4)),
    st.builds(isched.EpsilonGreedyPicker, st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 3)),
    st.builds(isched.SoftmaxPicker, st.sampled_from([0.0, 0.1, 2.0]), st.booleans(), st.integers(1, 3)),
)


def profiles():
    weighted = st.builds(isched.WeightedScorer, SCORERS, st.sampled_from([1.0, 2.0, 0.3, 0.0, -1.0]))
    return st.builds(
        lambda picker, scorers: isched.SchedulingProfile(picker, tuple(scorers)),
        PICKERS,
        st.lists(weighted, max_size=5),
    )
