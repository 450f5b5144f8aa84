"""How are latencies learnt while requests end? Online least squares that forgets, and the quantiles of what it misses."""

from math import isfinite, pi, sqrt
from statistics import NormalDist
from typing import Final, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.producers.forecast import (
    CONTEXT,
    FEATURES,
    INPUT,
    KV_USAGE,
    PREFILL_ROLE,
    QUEUED,
    REQUESTS,
    UNCACHED,
    WAITING,
    LatencyOutcome,
    LatencyPrediction,
)

#: What an unknown of the scraped features is taken for moves so far towards each new value.
_MEMORY: Final = 0.02
#: From which sum of squares on an observation counts for less.
_LEVERAGE: Final = 1e4


@final
class RecursiveLeastSquares:
    """Which linear function explains what was seen, lately above all?

    Recursive least squares with exponential forgetting, in information form: ``R = forgetting R + x x' + (1 - forgetting)
    ridge I``, then ``coefficients += R^-1 x (value - coefficients x)``. An observation's weight falls by `forgetting` with
    each later one, so that some ``1 / (1 - forgetting)`` of them count. Where features stand still, plain forgetting lets
    the covariance R^-1 grow without end, and one odd observation then throws everything over; here it never exceeds
    ``1 / ridge`` in any direction, what is not seen any more keeps its coefficient, and directions that are seen are
    forgotten as before. R is a sum of squares, so that rounding cannot take its sign; and observations count less where
    the features' squares sum to more than 10,000, so that R keeps its digits.

    Sources: Ljung and Soederstrom, "Theory and Practice of Recursive Identification" (1983); Gunnarsson, "Combining
    Tracking and Regularization in Recursive Least Squares Identification" (1996). Cost: some 25 us an observation of 9 features.

    >>> line = RecursiveLeastSquares(2)
    >>> for x in range(20):
    ...     line.observe(np.array([1.0, x / 10]), 3.0 + 2.0 * x / 10)
    >>> line.coefficients.round(3)
    array([3., 2.])
    """

    __slots__ = ("coefficients", "forgetting", "information", "ridge")

    def __init__(self, features: int, *, forgetting: float = 0.998, ridge: float = 1e-4) -> None:
        whole_number("features", features, low=1)
        if not 0 < forgetting <= 1:
            raise InvalidInputError("forgetting", forgetting, "above 0, and at most 1")
        if not (isfinite(ridge) and ridge > 0):
            raise InvalidInputError("ridge", ridge, "a finite number above 0")
        self.forgetting = forgetting
        self.ridge = ridge
        self.coefficients: FloatArray = np.zeros(features)
        self.information: FloatArray = np.eye(features) * ridge

    def predict(self, features: FloatArray) -> FloatArray:
        """Return what it expects for the features, ``float64[F, E]`` to ``float64[E]``; equal columns give equal bits."""
        expected: FloatArray = np.zeros(features.shape[1:])
        for coefficient, row in zip(self.coefficients.tolist(), features, strict=True):  # BLAS's order depends on E
            expected = expected + coefficient * row
        return expected

    def observe(self, features: FloatArray, value: float) -> None:
        """Learn one observation, ``float64[F]`` and what came; one that is not all numbers is left out."""
        if not (isfinite(value) and np.isfinite(features).all()):
            return
        weight = _LEVERAGE / max(_LEVERAGE, float(features @ features))
        information = self.forgetting * self.information + weight * np.outer(features, features)
        information.flat[:: len(features) + 1] += (1.0 - self.forgetting) * self.ridge
        missed = value - float(self.coefficients @ features)
        self.information = information
        self.coefficients = self.coefficients + np.linalg.solve(information, features) * (weight * missed)


@final
class QuantileTracker:
    """Which number is not exceeded in a share `quantile` of the cases, as they come?

    A subgradient step on the pinball loss for each observation: up by ``step * quantile`` where it was exceeded, down by
    ``step * (1 - quantile)`` where not. Of T observations within a range R, whatever their order or drift, the share that
    was not exceeded is within ``(R / step + 1) / T`` of `quantile`. Sources: Koenker and Bassett, "Regression
    Quantiles" (1978), for the loss; Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift" (2021), for
    the bound.

    >>> tracker = QuantileTracker(0.9, step=0.1)
    >>> for i in range(5000):
    ...     tracker.observe(i * 7919 % 100 / 100)
    >>> bool(0.8 < tracker.value < 1.0)
    True
    """

    __slots__ = ("quantile", "step", "value")

    def __init__(self, quantile: float, *, step: float = 0.05, value: float = 0.0) -> None:
        if not 0 < quantile < 1:
            raise InvalidInputError("quantile", quantile, "above 0 and below 1")
        if not (isfinite(step) and step > 0):
            raise InvalidInputError("step", step, "a finite number above 0")
        self.quantile = quantile
        self.step = step
        self.value = value

    def observe(self, value: float) -> None:
        """Learn one value."""
        self.value += self.step * (self.quantile if value > self.value else self.quantile - 1.0)


class _Line:
    """What is expected, how far off that usually is, and by how many times as much a quantile lies above it.

    Errors are learnt from when the line is warm: those of the first guesses say nothing of later ones.
    """

    __slots__ = ("_warm_after", "off", "seen", "tracker", "usual")

    def __init__(self, features: int, forgetting: float, quantile: float | None, warm_after: int) -> None:
        self.usual = RecursiveLeastSquares(features, forgetting=forgetting)
        self.off = RecursiveLeastSquares(features, forgetting=forgetting)
        self.tracker = None if quantile is None else QuantileTracker(quantile)
        if self.tracker is not None:
            self.tracker.value = _normal_multiple(self.tracker.quantile)
        self.seen = 0
        self._warm_after = warm_after

    def predict(self, features: FloatArray) -> FloatArray:
        if self.seen < self._warm_after * (1 if self.tracker is None else 2):
            return np.full(features.shape[1], np.nan)
        expected = self.usual.predict(features)
        if self.tracker is not None:
            expected = expected + self.tracker.value * self._scale(features)
        return np.maximum(0.0, expected)

    def observe(self, features: FloatArray, value: float) -> None:
        if not (isfinite(value) and np.isfinite(features).all()):
            return
        if self.tracker is not None and self.seen >= self._warm_after:
            missed = value - float(self.usual.predict(features))
            self.tracker.observe(missed / float(self._scale(features)))
            self.off.observe(features, abs(missed))
        self.usual.observe(features, value)
        self.seen += 1

    def _scale(self, features: FloatArray) -> FloatArray:
        return np.maximum(self.off.predict(features), 1e-6)  # a microsecond: what is never off has no scale of its own


def _normal_multiple(quantile: float) -> float:
    """Return where a quantile lies if errors are normal, in mean absolute errors: what a tracker begins with."""
    return NormalDist().inv_cdf(quantile) * sqrt(pi / 2.0)


@final
class OnlineLatencyPredictor:
    """What do latencies depend on, by the requests that have ended?

    Two linear functions, learnt from each outcome by `RecursiveLeastSquares`. Time to first token: of the prompt tokens
    to compute and the pairs of tokens that attend to each other, those in flight before, the requests and the context in
    flight, the waiting queue, the KV cache and the role. Time per output token: of requests, context and prompt tokens
    in flight, and the KV cache. A scraped feature that is unknown is taken for its running mean. Never below 0.

    Parameters
    ----------
    quantile: predict what is not exceeded in that share of the cases, rather than the mean. The distance from the mean
        is a multiple of the usual error, itself a linear function of the features; the multiple is a
        `QuantileTracker`'s.
    forgetting: of the least squares; 0.998 counts about the last 500.
    warm_after: outcomes before the first prediction of a mean, and twice as many before a quantile's; until then it
        predicts nothing (NaN).

    One model for all endpoints of the producer: pools of unequal servers take one for each kind. Cost: some 60 us a
    prediction of 64 endpoints, 100 us an outcome (under the pool's lock).
    """

    def __init__(self, *, quantile: float | None = None, forgetting: float = 0.998, warm_after: int = 20) -> None:
        self.quantile = quantile
        self.forgetting = forgetting
        self.warm_after = whole_number("warm_after", warm_after)
        ttft, tpot = (len(terms(np.zeros((FEATURES, 1)))) for terms in (_ttft_terms, _tpot_terms))
        self._ttft = _Line(ttft, forgetting, quantile, self.warm_after)
        self._tpot = _Line(tpot, forgetting, quantile, self.warm_after)
        self._means: FloatArray = np.full(FEATURES, np.nan)

    def __repr__(self) -> str:
        return f"OnlineLatencyPredictor(quantile={self.quantile}, forgetting={self.forgetting}, warm_after={self.warm_after})"

    @property
    def learnt(self) -> tuple[int, int]:
        """From how many first tokens and how many times per output token has it learnt?"""
        return self._ttft.seen, self._tpot.seen

    def predict(self, features: FloatArray) -> LatencyPrediction:
        """Return both, ``float64[E]``, seconds; NaN before it is warm. Without a prompt's length no first token is foretold."""
        filled = self._filled(features)
        return LatencyPrediction(self._ttft.predict(_ttft_terms(filled)), self._tpot.predict(_tpot_terms(filled)))

    def observe(self, features: FloatArray, outcome: LatencyOutcome) -> None:
        """Learn how a request went, with the features of its endpoint when it was sent, ``float64[F]``."""
        moved = self._means + _MEMORY * (features - self._means)
        met = np.where(np.isnan(self._means), features, moved)
        self._means = np.where(np.isnan(features), self._means, met)
        column = self._filled(features[:, None])
        self._ttft.observe(_ttft_terms(column)[:, 0], outcome.ttft)
        self._tpot.observe(_tpot_terms(column)[:, 0], outcome.tpot)

    def _filled(self, features: FloatArray) -> FloatArray:
        """Return the features with means for what a server has not told; the prompt's length is not a server's."""
        filled = features.copy()
        for row in (WAITING, KV_USAGE):
            mean = self._means[row]
            filled[row] = np.where(np.isnan(features[row]), 0.0 if mean != mean else mean, features[row])
        return filled


def _ttft_terms(features: FloatArray) -> FloatArray:
    """Return what the time to first token is linear in, ``float64[9, E]``, each of about the size of 1."""
    uncached = features[UNCACHED]
    pairs = uncached * (features[INPUT] - 0.5 * uncached)
    return np.stack(
        [
            np.ones(features.shape[1]),
            uncached / 1e3,
            pairs / 1e7,
            features[QUEUED] / 1e4,
            features[REQUESTS] / 1e1,
            features[CONTEXT] / 1e5,
            features[WAITING] / 1e1,
            features[KV_USAGE],
            features[PREFILL_ROLE],
        ]
    )


def _tpot_terms(features: FloatArray) -> FloatArray:
    """Return what the time per output token is linear in, ``float64[5, E]``, each of about the size of 1."""
    return np.stack(
        [
            np.ones(features.shape[1]),
            features[REQUESTS] / 1e1,
            features[CONTEXT] / 1e5,
            features[QUEUED] / 1e4,
            features[KV_USAGE],
        ]
    )
