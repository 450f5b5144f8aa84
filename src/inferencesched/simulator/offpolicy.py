"""How would another policy have done on a gateway's own log, before it routes a single request?

Off-policy evaluation: every logged decision says whom it chose, with which probability, and what came of it. Decisions that the other policy
would have made more often than the log count more, in proportion. Only a gateway that draws (`StochasticPicker`) has such a log.

Estimates are of the mean reward a decision; what a reward is (minus a time to the first token, 1 for an objective met) is the caller's.
"""

from collections.abc import Iterable, Sequence
from math import isfinite, nan, sqrt
from typing import Final, NamedTuple

import msgspec
import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IntArray
from inferencesched.errors import InvalidInputError, TraceError, whole_number
from inferencesched.simulator.lines import decoded
from inferencesched.simulator.statistics import NORMAL95

#: So far from 1 may probabilities sum up to.
_SUM: Final = 1e-6


class LoggedDecision(msgspec.Struct, frozen=True):
    """What does a log say of one decision?

    ``candidates`` by name, ``chosen`` one of them, ``propensity`` the probability with which it was; ``reward`` what came of it. ``features``, a row a
    candidate, are what a reward model is fitted to; empty where nobody wants one.
    """

    candidates: tuple[str, ...]
    chosen: str
    propensity: float
    reward: float
    features: tuple[tuple[float, ...], ...] = ()


class Log(NamedTuple):
    """A log as columns: N decisions of up to A candidates.

    ``chosen`` int64[N], ``propensity`` and ``reward`` float64[N]; ``present`` bool[N, A] says which candidates there were; ``features`` float64[N, A, F], F may be 0.
    """

    chosen: IntArray
    propensity: FloatArray
    reward: FloatArray
    present: BoolArray
    features: FloatArray

    @classmethod
    def of(cls, decisions: Sequence[LoggedDecision]) -> "Log":
        """Build from records. Errors: `InvalidInputError` for a record that cannot be, with its number from 0."""
        most = max((len(each.candidates) for each in decisions), default=0)
        width = len(decisions[0].features[0]) if decisions and decisions[0].features else 0
        log = cls(
            np.zeros(len(decisions), dtype=np.int64),
            np.zeros(len(decisions)),
            np.zeros(len(decisions)),
            np.zeros((len(decisions), most), dtype=np.bool_),
            np.zeros((len(decisions), most, width)),
        )
        for i, each in enumerate(decisions):
            wrong = _wrong(each, width)
            if wrong is not None:
                raise InvalidInputError(f"decisions[{i}].{wrong[0]}", wrong[1], wrong[2])
            log.chosen[i] = each.candidates.index(each.chosen)
            log.propensity[i], log.reward[i] = each.propensity, each.reward
            log.present[i, : len(each.candidates)] = True
            if width:
                log.features[i, : len(each.candidates)] = each.features
        return log

    def __len__(self) -> int:
        return len(self.chosen)


def _wrong(each: LoggedDecision, width: int) -> tuple[str, object, str] | None:
    """Return what is wrong with a record: which part, its value, what was allowed."""
    if not each.candidates or len(set(each.candidates)) != len(each.candidates):
        return "candidates", each.candidates, "at least one, each once"
    if each.chosen not in each.candidates:
        return "chosen", each.chosen, f"one of {', '.join(each.candidates)}"
    if not 0 < each.propensity <= 1:
        return "propensity", each.propensity, "above 0, at most 1: what was chosen had a chance"
    if not isfinite(each.reward):
        return "reward", each.reward, "a finite number"
    if each.features or width:
        rows = {len(row) for row in each.features}
        if len(each.features) != len(each.candidates) or rows != {width}:
            return "features", f"{len(each.features)} rows", f"{len(each.candidates)} rows of {width} numbers"
        if not all(isfinite(value) for row in each.features for value in row):
            return "features", "a number that is not finite", "finite numbers"
    return None


def read_log(lines: Iterable[bytes], *, name: str = "log") -> Log:
    """Read JSON lines of `LoggedDecision`. Errors: `TraceError` with the line."""
    decisions: list[LoggedDecision] = []
    for number, each in decoded(lines, LoggedDecision, name=name):
        width = (
            len(decisions[0].features[0])
            if decisions and decisions[0].features
            else len(each.features[0])
            if each.features
            else 0
        )
        wrong = _wrong(each, width)
        if wrong is not None:
            raise TraceError(name, number, *wrong, lines_read=len(decisions))
        decisions.append(each)
    return Log.of(decisions)


class Evaluation(NamedTuple):
    """What is the other policy worth, by one estimator?

    ``value`` is the mean reward, between ``low`` and ``high`` with 95 %. ``effective`` is how many decisions of the log say something about it (Kish's
    effective sample size), ``clipped`` the share of decisions whose weight was cut, ``greatest`` the greatest weight.
    """

    estimator: str
    value: float
    low: float
    high: float
    effective: float
    clipped: float
    greatest: float


def _weights(log: Log, target: FloatArray, cap: float | None) -> tuple[FloatArray, float, float]:
    """Return each decision's weight, the share that was cut, and the greatest."""
    if target.shape != log.present.shape:
        raise InvalidInputError(
            "target", f"shape {target.shape}", f"float64{list(log.present.shape)}: a probability a candidate"
        )
    if not (
        np.isfinite(target).all() and (target >= 0).all() and np.abs(target.sum(axis=1) - 1.0).max(initial=0.0) < _SUM
    ):
        raise InvalidInputError("target", "probabilities that do not sum up to 1", "at least 0 each, 1 in sum")
    absent = int((target * ~log.present).any(axis=1).sum())
    if absent:
        raise InvalidInputError("target", f"{absent} decisions for who was no candidate", "0 for who was none")
    if cap is not None and not cap > 0:
        raise InvalidInputError("cap", cap, "a number above 0, or None")
    raw = target[np.arange(len(log)), log.chosen] / log.propensity
    cut = raw if cap is None else np.minimum(raw, cap)
    return cut, float((cut < raw).mean()) if len(log) else nan, float(raw.max(initial=0.0))


def _told(
    name: str, terms: FloatArray, weights: FloatArray, clipped: float, greatest: float, value: float | None = None
) -> Evaluation:
    """Return the mean of independent terms with its normal interval."""
    count = len(terms)
    mean = float(terms.mean()) if value is None else value
    half = NORMAL95 * float(terms.std(ddof=1)) / sqrt(count) if count > 1 else nan
    squares = float((weights**2).sum())
    effective = float(weights.sum()) ** 2 / squares if squares else 0.0
    return Evaluation(name, mean, mean - half, mean + half, effective, clipped, greatest)


def ips(log: Log, target: FloatArray, *, cap: float | None = None) -> Evaluation:
    """What is the target worth, every reward weighed by how much oftener it would have chosen so? ``mean(w r)``, w = target / propensity.

    Unbiased without a `cap`, which trades that for less variance. `target` float64[N, A]: its probability of each candidate.
    Source: Horvitz and Thompson, "A Generalization of Sampling Without Replacement" (1952).

    >>> log = Log.of([LoggedDecision(("a", "b"), "a", 0.5, 1.0), LoggedDecision(("a", "b"), "b", 0.5, 3.0)])
    >>> ips(log, np.array([[1.0, 0.0], [1.0, 0.0]])).value
    1.0
    """
    _some(log)
    weights, clipped, greatest = _weights(log, target, cap)
    return _told("ips", weights * log.reward, weights, clipped, greatest)


def snips(log: Log, target: FloatArray, *, cap: float | None = None) -> Evaluation:
    """The same, divided by the mean weight: a constant added to every reward adds itself, no more. Biased by O(1/N), mostly with less variance.

    The interval is that of a ratio (delta method). Source: Swaminathan and Joachims, "The Self-Normalized Estimator for Counterfactual Learning" (2015).
    """
    _some(log)
    weights, clipped, greatest = _weights(log, target, cap)
    total = float(weights.sum())
    if not total:
        raise InvalidInputError(
            "target", "no weight on anything that was chosen", "a target that the log says something about"
        )
    value = float((weights * log.reward).sum()) / total
    terms = weights * (log.reward - value) / (total / len(log))
    return _told("snips", terms, weights, clipped, greatest, value)


def direct(log: Log, target: FloatArray, model: FloatArray) -> Evaluation:
    """What does a model of rewards say? ``mean(sum_a target(a) model(a))``: no weights, and all of the model's bias. `model` float64[N, A]."""
    _some(log)
    _, _, greatest = _weights(log, target, None)
    return _told("direct", (target * _modelled(log, model)).sum(axis=1), np.ones(len(log)), 0.0, greatest)


def doubly_robust(log: Log, target: FloatArray, model: FloatArray, *, cap: float | None = None) -> Evaluation:
    """What does the model say, mended by where it was wrong? ``mean(sum_a target(a) model(a) + w (r - model(chosen)))``.

    Right if either the propensities or the model are. Source: Dudik, Langford and Li, "Doubly Robust Policy Evaluation and Learning" (2011).
    """
    _some(log)
    weights, clipped, greatest = _weights(log, target, cap)
    expected = _modelled(log, model)
    residual = log.reward - expected[np.arange(len(log)), log.chosen]
    return _told("doubly robust", (target * expected).sum(axis=1) + weights * residual, weights, clipped, greatest)


def fitted_rewards(log: Log, *, folds: int = 5, ridge: float = 1.0, seed: int = 0) -> FloatArray:
    """Which reward would each candidate have brought, by a linear model of the log's features? ``float64[N, A]``, fitted crosswise.

    Each decision is foretold by a ridge regression on the other folds, so that no reward is in its own forecast. Features are scaled; the
    mean is not shrunk. Source: Hoerl and Kennard (1970); cross-fitting as in Chernozhukov et al. (2018).
    """
    _some(log)
    whole_number("folds", folds, low=2)
    if not log.features.shape[2]:
        raise InvalidInputError("features", "none", "a log with features")
    if not (isfinite(ridge) and ridge >= 0):
        raise InvalidInputError("ridge", ridge, "a finite number of at least 0")
    count = len(log)
    fold = np.random.default_rng(whole_number("seed", seed)).permutation(count) % folds
    seen = log.features[np.arange(count), log.chosen]
    centre, scale = seen.mean(axis=0), seen.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    every, own = (log.features - centre) / scale, (seen - centre) / scale
    out = np.zeros(log.present.shape)
    for k in range(folds):
        train, test = fold != k, fold == k
        if not train.any() or not test.any():
            continue
        x, y = own[train], log.reward[train]
        mean, middle = float(y.mean()), x.mean(axis=0)
        x = x - middle
        slopes = np.linalg.solve(x.T @ x + (ridge + 1e-12) * np.eye(x.shape[1]), x.T @ (y - mean))
        out[test] = (every[test] - middle) @ slopes + mean
    return np.where(log.present, out, 0.0)


def bootstrap(
    log: Log, target: FloatArray, *, cap: float | None = None, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Between which values lie 95 % of the self-normalised estimates of logs drawn again from this one? Seeded."""
    _some(log)
    whole_number("draws", draws, low=1)
    weights, _, _ = _weights(log, target, cap)
    rng = np.random.default_rng(whole_number("seed", seed))
    values = []
    for _ in range(draws):
        drawn = rng.integers(len(log), size=len(log))
        total = float(weights[drawn].sum())
        if total:
            values.append(float((weights[drawn] * log.reward[drawn]).sum()) / total)
    if not values:
        raise InvalidInputError(
            "target", "no weight on anything that was chosen", "a target that the log says something about"
        )
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _some(log: Log) -> None:
    if not len(log):
        raise InvalidInputError("log", "no decisions", "at least one")


def _modelled(log: Log, model: FloatArray) -> FloatArray:
    if model.shape != log.present.shape or not np.isfinite(model[log.present]).all():
        raise InvalidInputError("model", f"shape {model.shape}", f"finite float64{list(log.present.shape)}")
    return np.where(log.present, model, 0.0)
