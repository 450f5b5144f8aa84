"""Are the probabilities that a log would hold those with which a scheduler picks?"""

from collections import Counter

import numpy as np
import pytest

from inferencesched import (
    ActiveRequestScorer,
    EpsilonGreedyPicker,
    InferencePool,
    InferenceRequest,
    LabelFilter,
    MaxScorePicker,
    Scheduler,
    SchedulingProfile,
    SoftmaxPicker,
    WeightedScorer,
)
from inferencesched.errors import FilteredOutError, InvalidInputError
from inferencesched.propensities import propensities

ASK = InferenceRequest(request_id="r", input_tokens=10)


def fleet():
    pool = InferencePool()
    for i in range(4):
        pool.join(f"s{i}", labels={"zone": "eu" if i < 3 else "us"})
        for j in range(i):
            pool.reserve(f"s{i}", request_id=f"{i}-{j}", tokens=1, now=0.0)
    return pool


def scheduler(picker, *filters):
    return Scheduler(SchedulingProfile(picker, (WeightedScorer(ActiveRequestScorer()),), filters))


@pytest.mark.parametrize("picker", [SoftmaxPicker(0.5), EpsilonGreedyPicker(0.4), MaxScorePicker()])
def test_they_are_how_often_each_is_picked(picker):
    pool, decides, rng = fleet(), scheduler(picker, LabelFilter("zone", ("eu",))), np.random.default_rng(1)
    told = propensities(decides, ASK, pool.snapshot(), now=1.0, rng=np.random.default_rng(0))
    picked = Counter(decides.schedule(ASK, pool.snapshot(), now=1.0, rng=rng).endpoint for _ in range(6000))
    assert set(told) == {"s0", "s1", "s2"} and sum(told.values()) == pytest.approx(1.0)
    for name, likely in told.items():
        assert picked[name] / 6000 == pytest.approx(likely, abs=0.025)


def test_what_cannot_be_told_is_refused():
    pool = fleet()

    class Silent:
        def pick(self, totals, endpoints, cycle):
            return np.array([0])

    def ask(decides):
        propensities(decides, ASK, pool.snapshot(), now=1.0, rng=np.random.default_rng(0))

    with pytest.raises(InvalidInputError, match="picker"):
        ask(scheduler(Silent()))
    with pytest.raises(FilteredOutError):
        ask(scheduler(MaxScorePicker(), LabelFilter("zone", ("mars",))))
