"""Do the estimators give what their formulas say, on average the truth, and refuse what no log can tell?"""

from itertools import product
from math import inf, nan

import msgspec
import numpy as np
import pytest

from inferencesched.errors import InvalidInputError, TraceError
from inferencesched.simulator.offpolicy import (
    Log,
    LoggedDecision,
    bootstrap,
    direct,
    doubly_robust,
    fitted_rewards,
    ips,
    read_log,
    snips,
)

# chosen a, b, a with 0.5, 0.25, 0.8; rewards 2, 4, 1; the target takes a with 0.9, 0.9, 0.4
THREE = [
    LoggedDecision(("a", "b"), "a", 0.5, 2.0),
    LoggedDecision(("a", "b"), "b", 0.25, 4.0),
    LoggedDecision(("a", "b"), "a", 0.8, 1.0),
]
TARGET = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
MODEL = np.array([[1.0, 3.0], [2.0, 5.0], [1.0, 0.0]])


def test_three_decisions_by_hand():
    log = Log.of(THREE)
    # weights 1.8, 0.4, 0.5
    assert ips(log, TARGET).value == pytest.approx((3.6 + 1.6 + 0.5) / 3)
    assert snips(log, TARGET).value == pytest.approx(5.7 / 2.7)
    assert direct(log, TARGET, MODEL).value == pytest.approx((0.9 + 0.3 + 1.8 + 0.5 + 0.4 + 0.0) / 3)
    # the model says 1.2, 2.3 and 0.4; it was off by 1, -1 and 0, which weigh 1.8, 0.4 and 0.5
    assert doubly_robust(log, TARGET, MODEL).value == pytest.approx((3.0 + 1.9 + 0.4) / 3)
    assert ips(log, TARGET).effective == pytest.approx(2.7**2 / (1.8**2 + 0.4**2 + 0.5**2))


def test_weights_are_cut_and_it_is_said():
    found = ips(Log.of(THREE), TARGET, cap=1.0)
    assert found.value == pytest.approx((2.0 + 1.6 + 0.5) / 3)
    assert (found.clipped, found.greatest) == (pytest.approx(1 / 3), pytest.approx(1.8))
    assert ips(Log.of(THREE), TARGET).clipped == 0.0


def test_the_interval_is_that_of_the_mean():
    terms = np.array([3.6, 1.6, 0.5])
    found = ips(Log.of(THREE), TARGET)
    half = 1.959964 * terms.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((terms.mean() - half, terms.mean() + half))


REWARD = np.array([1.0, 5.0, 2.0])
LOGGING = np.array([0.2, 0.5, 0.3])
OTHER = np.array([0.6, 0.1, 0.3])


def drawn(chosen, shift=0.0):
    names = ("a", "b", "c")
    return Log.of([LoggedDecision(names, names[i], float(LOGGING[i]), float(REWARD[i]) + shift) for i in chosen])


@pytest.mark.parametrize("model", [np.zeros(3), REWARD, np.array([9.0, -2.0, 4.0])])
def test_on_average_over_all_logs_it_is_the_truth(model):
    """Every log of three decisions, each as likely as it is: no sampling."""
    target, truth = np.tile(OTHER, (3, 1)), float(OTHER @ REWARD)
    means = {"ips": 0.0, "dr": 0.0, "snips": 0.0}
    for chosen in product(range(3), repeat=3):
        likely = float(np.prod(LOGGING[list(chosen)]))
        log = drawn(chosen)
        means["ips"] += likely * ips(log, target).value
        means["dr"] += likely * doubly_robust(log, target, np.tile(model, (3, 1))).value
        means["snips"] += likely * snips(log, target).value
    assert means["ips"] == pytest.approx(truth) and means["dr"] == pytest.approx(truth)
    assert abs(means["snips"] - truth) > 0.01  # it is biased, in so small a log: else this could not tell them apart


def test_a_constant_adds_itself_only_where_weights_are_normalised():
    target = np.tile(OTHER, (3, 1))
    chosen = (0, 1, 1)
    assert snips(drawn(chosen, 10.0), target).value == pytest.approx(snips(drawn(chosen), target).value + 10.0)
    assert ips(drawn(chosen, 10.0), target).value != pytest.approx(ips(drawn(chosen), target).value + 10.0)


def test_doubly_robust_lies_between_its_parts():
    log, target = drawn((0, 1, 2, 1)), np.tile(OTHER, (4, 1))
    right = np.tile(REWARD, (4, 1))
    assert doubly_robust(log, target, right).value == pytest.approx(direct(log, target, right).value)
    assert doubly_robust(log, target, 0 * right).value == pytest.approx(ips(log, target).value)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, truth, held, strapped = np.random.default_rng(5), float(OTHER @ REWARD), 0, 0
    for k in range(200):
        log = drawn(rng.choice(3, p=LOGGING, size=150).tolist())
        found = snips(log, np.tile(OTHER, (150, 1)))
        held += found.low <= truth <= found.high
        if k < 60:
            low, high = bootstrap(log, np.tile(OTHER, (150, 1)), draws=200, seed=k)
            strapped += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99 and 0.85 <= strapped / 60 <= 1.0


def test_rewards_are_learnt_from_features_of_others():
    rng = np.random.default_rng(2)
    decisions = []
    for _ in range(300):
        features = rng.normal(size=(3, 2))
        chosen = int(rng.integers(3))
        reward = 4.0 + 2.0 * features[chosen, 0] - features[chosen, 1]
        rows = tuple(tuple(map(float, row)) for row in features)
        decisions.append(LoggedDecision(("a", "b", "c"), "abc"[chosen], 1 / 3, float(reward), rows))
    log = Log.of(decisions)
    model = fitted_rewards(log, ridge=0.0)
    assert model == pytest.approx(4.0 + 2.0 * log.features[..., 0] - log.features[..., 1], abs=1e-6)
    best = np.eye(3)[np.argmax(model, axis=1)]
    assert doubly_robust(log, best, model).value == pytest.approx(model.max(axis=1).mean(), abs=1e-6)
    assert np.array_equal(fitted_rewards(log, seed=3), fitted_rewards(log, seed=3))


def test_fewer_candidates_are_no_candidates():
    log = Log.of([LoggedDecision(("a",), "a", 1.0, 2.0), LoggedDecision(("a", "b"), "b", 0.5, 4.0)])
    assert log.present.tolist() == [[True, False], [True, True]]
    assert ips(log, np.array([[1.0, 0.0], [0.5, 0.5]])).value == pytest.approx((2.0 + 4.0) / 2)
    with pytest.raises(InvalidInputError, match="1 decisions for who was no candidate"):
        ips(log, np.array([[0.5, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize(
    "target",
    [np.ones((3, 2)), np.array([[0.9, 0.1]] * 2), np.array([[1.1, -0.1]] * 3), np.full((3, 2), nan)],
)
def test_what_are_no_probabilities_are_refused(target):
    with pytest.raises(InvalidInputError, match="target"):
        ips(Log.of(THREE), target)


def test_a_target_that_the_log_says_nothing_of_is_refused():
    never = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    for estimator in (snips, bootstrap):
        with pytest.raises(InvalidInputError, match="no weight"):
            estimator(Log.of(THREE), never)
    assert ips(Log.of(THREE), never).effective == 0.0
    with pytest.raises(InvalidInputError, match="no decisions"):
        ips(Log.of([]), np.zeros((0, 0)))


BAD = [
    ({"propensity": 0.0}, "propensity"),
    ({"propensity": 1.5}, "propensity"),
    ({"propensity": nan}, "propensity"),
    ({"reward": inf}, "reward"),
    ({"chosen": "c"}, "chosen"),
    ({"candidates": ()}, "candidates"),
    ({"candidates": ("a", "a")}, "candidates"),
    ({"features": ((1.0,),)}, "features"),
    ({"features": ((1.0,), (nan,))}, "features"),
]


@pytest.mark.parametrize(("change", "part"), BAD)
def test_a_record_that_cannot_be_is_named(change, part):
    with pytest.raises(InvalidInputError, match=part):
        Log.of(
            [
                msgspec.structs.replace(
                    THREE[0],
                    features=change.get("features", ()),
                    **{k: v for k, v in change.items() if k != "features"},
                )
            ]
        )


def test_a_log_is_read_line_by_line():
    lines = [msgspec.json.encode(each) for each in THREE]
    assert ips(read_log([*lines, b"\n"]), TARGET) == ips(Log.of(THREE), TARGET)
    for bad, part in ((b"{", "line"), (b'{"candidates":["a"],"chosen":"b","propensity":1,"reward":0}', "chosen")):
        with pytest.raises(TraceError, match=part) as error:
            read_log([lines[0], bad])
        assert error.value.line == 2 and error.value.lines_read == 1


@pytest.mark.parametrize(
    ("act", "parameter"),
    [
        (lambda log: ips(log, TARGET, cap=0.0), "cap"),
        (lambda log: direct(log, TARGET, np.zeros((3, 3))), "model"),
        (lambda log: doubly_robust(log, TARGET, np.full((3, 2), nan)), "model"),
        (fitted_rewards, "features"),
        (lambda log: fitted_rewards(log, folds=1), "folds"),
        (lambda log: bootstrap(log, TARGET, draws=0), "draws"),
    ],
)
def test_what_else_is_wrong_is_named(act, parameter):
    with pytest.raises(InvalidInputError, match=f"^{parameter}: got"):
        act(Log.of(THREE))
