"""Which coefficients does a server's step time have, and how far can they be trusted?

`calibrate` fits `ClosedForm` to measured passes; `passes_of_requests` makes passes of what a client can measure of a live server. Relative errors are what is
made small: a pass of 5 ms counts as much as one of 500.

For a given ratio of compute to weights the form is linear in its other coefficients: these are fitted exactly (non-negative least squares), and only the ratio is
searched for, so that there is no starting point to be lucky with. Source of the idea: Golub and Pereyra, "The Differentiation of Pseudo-Inverses and Nonlinear
Least Squares" (1973), variable projection; Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Final, Literal

import msgspec
import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError, TraceError, whole_number
from inferencesched.simulator.engine import ClosedForm, Hardware
from inferencesched.simulator.lines import decoded

#: The ratios b / w that are looked at first, and how fine the search goes.
_RATIOS: Final = np.concatenate([[0.0], np.logspace(-7, 2, 181)])
_GOLDEN: Final = 0.6180339887498949
#: So badly can the fit's matrix be conditioned before two coefficients cannot be told apart.
_CONDITION: Final = 1e4
_COLUMNS: Final = ("tokens", "pairs", "context", "decodes")
Grade = Literal["excellent", "good", "fair", "poor"]


class Pass(msgspec.Struct, frozen=True):
    """What did one pass compute, and how long did it take? As `ClosedForm` counts: new tokens, query-key pairs of prefill, context of decodes, decodes; ms."""

    tokens: float
    pairs: float = 0.0
    context: float = 0.0
    decodes: float = 0.0
    ms: float = nan


class RequestRecord(msgspec.Struct, frozen=True):
    """What did a client measure of one request that a server had alone? ``itl_ms`` is the mean gap between two tokens."""

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_ms: float
    itl_ms: float


@dataclass(frozen=True, slots=True)
class Quality:
    """How far off is a fit? Shares of the measured times: mean (MAPE), 95th percentile and greatest; ``r`` is Pearson's; ``count`` passes."""

    mape: float
    p95: float
    worst: float
    r: float
    count: int

    @property
    def grade(self) -> Grade:
        """In a word: up to 5 % is excellent, 10 good, 20 fair. The steps are those of BLIS's ``calibrate`` report."""
        return (
            "excellent"
            if self.mape <= 0.05
            else "good"
            if self.mape <= 0.10
            else "fair"
            if self.mape <= 0.20
            else "poor"
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, how well, to what, and what is to be said against it?

    ``fitted`` is the quality on the passes that were fitted to, ``held_out`` on those that were not. ``ranges`` are (least, most) of what was seen, by
    column; outside of them nothing is known.
    """

    timing: ClosedForm
    fitted: Quality
    held_out: Quality
    ranges: dict[str, tuple[float, float]]
    warnings: tuple[str, ...]

    def covers(self, tokens: float, pairs: float = 0.0, context: float = 0.0, decodes: float = 0.0) -> bool:
        """Does such a pass lie within what was seen?"""
        values = (tokens, pairs, context, decodes)
        return all(low <= value <= high for value, (low, high) in zip(values, self.ranges.values(), strict=True))

    def rows(self) -> list[tuple[str, str]]:
        """Return what a table shows."""
        found = [(name, f"{getattr(self.timing, name):.4g}") for name in ("c0", "w", "b", "a", "k", "r")]
        for title, quality in (("fitted", self.fitted), ("held out", self.held_out)):
            found.append(
                (
                    title,
                    f"{quality.grade}: MAPE {quality.mape:.1%}, p95 {quality.p95:.1%}, worst {quality.worst:.1%}, r {quality.r:.4f}, {quality.count} passes",
                )
            )
        found += [(f"{name} seen", f"{low:,.0f} to {high:,.0f}") for name, (low, high) in self.ranges.items()]
        return found + [("warning", text) for text in self.warnings]


def calibrate(
    passes: Iterable[Pass],
    *,
    name: str = "calibrated",
    hardware: Hardware | None = None,
    holdout: float = 0.2,
    seed: int = 0,
) -> Calibration:
    """Which coefficients do these passes have?

    A share of `holdout` is kept aside by lot and only judged. The order of the passes does not matter. Cost: some 60 ms for 300 passes. Errors:
    `InvalidInputError` for fewer than 12 passes, one that cannot be, and a fit that would beat the `hardware`'s roofline: then what was measured was not that.

    >>> from inferencesched.simulator.engine import timing
    >>> h100 = timing("llama-3.1-8b-h100")
    >>> seen = [measured(h100, n, n * n / 2, 0, 0) for n in (64, 512, 2048, 8192)]
    >>> seen += [measured(h100, b, 0, b * c, b) for b in (1, 8, 64) for c in (100, 1000, 8000)]
    >>> fit = calibrate(seen, holdout=0.0)
    >>> round(fit.timing.b, 5), fit.fitted.grade, fit.covers(4000, 8e6)
    (0.01976, 'excellent', True)
    """
    if not 0 <= holdout < 1:
        raise InvalidInputError("holdout", holdout, "at least 0, below 1")
    table = _table(list(passes))
    order = np.lexsort(table.T[::-1])
    table = table[order]
    aside = np.zeros(len(table), dtype=np.bool_)
    aside[np.random.default_rng(whole_number("seed", seed)).permutation(len(table))[: int(holdout * len(table))]] = True
    ratio, coefficients = _fitted(table[~aside])
    c0, w, a, k, r = coefficients.tolist()
    timing = ClosedForm(name, c0, w, ratio * w, a, k, r, hardware)
    ranges = {column: (float(table[:, i].min()), float(table[:, i].max())) for i, column in enumerate(_COLUMNS)}
    return Calibration(
        timing,
        _quality(timing, table[~aside]),
        _quality(timing, table[aside]),
        ranges,
        _doubts(timing, table[~aside], ratio),
    )


def measured(timing: ClosedForm, tokens: float, pairs: float, context: float, decodes: float) -> Pass:
    """Return the pass that such a server would have: for tests, and for who wants to know what can be told apart."""
    table = np.array([[tokens, pairs, context, decodes, 1.0]])
    return Pass(tokens, pairs, context, decodes, float(_foretold(timing, table)[0]))


def passes_of_requests(records: Iterable[RequestRecord], *, max_tokens: int = 8192) -> list[Pass]:
    """Which passes do a client's measurements of a lone request tell of?

    A prompt that fits into one pass (uncached tokens up to `max_tokens`) is one with its TTFT; an answer of two tokens or more is one decode in the middle of it,
    with the mean gap. Both have what is between client and server in them: it cannot be told from c0 by this. One request at a time tells nothing of r beside c0
    either. Errors: `InvalidInputError` for a record that cannot be.
    """
    whole_number("max_tokens", max_tokens, low=1)
    passes = []
    for i, each in enumerate(records):
        new = each.input_tokens - each.cached_tokens
        if not (0 <= each.cached_tokens < each.input_tokens and each.output_tokens >= 1):
            raise InvalidInputError(
                f"records[{i}]", each, "0 <= cached_tokens < input_tokens, and output_tokens of at least 1"
            )
        if not (isfinite(each.ttft_ms) and each.ttft_ms > 0):
            raise InvalidInputError(f"records[{i}].ttft_ms", each.ttft_ms, "a finite number above 0")
        if new <= max_tokens:
            passes.append(Pass(float(new), new * (each.cached_tokens + new / 2), 0.0, 0.0, each.ttft_ms))
        if each.output_tokens >= 2:
            if not (isfinite(each.itl_ms) and each.itl_ms > 0):
                raise InvalidInputError(f"records[{i}].itl_ms", each.itl_ms, "a finite number above 0")
            passes.append(Pass(1.0, 0.0, each.input_tokens + each.output_tokens / 2, 1.0, each.itl_ms))
    return passes


def read_passes(
    lines: Iterable[bytes], *, name: str = "passes", requests: bool = False, max_tokens: int = 8192
) -> list[Pass]:
    """Read JSON lines of `Pass`, or with `requests` of `RequestRecord`. Errors: `TraceError` with the line."""
    if not requests:
        return [each for _, each in decoded(lines, Pass, name=name)]
    found: list[Pass] = []
    for number, each in decoded(lines, RequestRecord, name=name):
        try:
            found += passes_of_requests([each], max_tokens=max_tokens)
        except InvalidInputError as error:
            raise TraceError(name, number, "record", each, str(error), lines_read=number - 1) from error
    return found


def _table(passes: list[Pass]) -> FloatArray:
    """Return the passes as ``float64[N, 5]``: tokens, pairs, context, decodes, ms."""
    if len(passes) < 12:
        raise InvalidInputError("passes", len(passes), "at least 12: two for each coefficient")
    table = np.array(
        [(each.tokens, each.pairs, each.context, each.decodes, each.ms) for each in passes], dtype=np.float64
    )
    good = np.isfinite(table).all(axis=1) & (table >= 0).all(axis=1) & (table[:, 4] > 0) & (table[:, 0] > 0)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        raise InvalidInputError(f"passes[{i}]", passes[i], "finite numbers of at least 0, with tokens and ms above 0")
    return table


def _features(table: FloatArray, ratio: float) -> FloatArray:
    """Return what the linear coefficients multiply, ``float64[N, 5]``: c0, w, a, k, r."""
    tokens, pairs, context, decodes = table[:, :4].T
    either = np.sqrt(np.sqrt(1.0 + (ratio * tokens) ** 4))
    return np.stack([np.ones(len(table)), either, pairs, context, decodes], axis=1)


def _foretold(timing: ClosedForm, table: FloatArray) -> FloatArray:
    tokens, pairs, context, decodes = table[:, :4].T
    either = np.sqrt(np.sqrt(timing.w**4 + (timing.b * tokens) ** 4))
    told: FloatArray = timing.c0 + either + timing.a * pairs + timing.k * context + timing.r * decodes
    return told


def _solved(table: FloatArray, ratio: float) -> tuple[float, FloatArray]:
    """Return the least sum of squared relative errors at this ratio, and the coefficients."""
    matrix = _features(table, ratio) / table[:, 4:]
    scale = np.abs(matrix).max(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    found = nnls(matrix / scale, np.ones(len(table)))
    error = float(((matrix / scale @ found - 1.0) ** 2).sum())
    return error, found / scale


def _fitted(table: FloatArray) -> tuple[float, FloatArray]:
    """Return the ratio b / w with the least error, and the other coefficients."""
    errors = [_solved(table, float(ratio))[0] for ratio in _RATIOS]
    best = int(np.argmin(errors))
    low, high = float(_RATIOS[max(0, best - 1)]), float(_RATIOS[min(len(_RATIOS) - 1, best + 1)])
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    one, other = _solved(table, left)[0], _solved(table, right)[0]
    for _ in range(80):
        if one <= other:
            high, right, other = right, left, one
            left = high - _GOLDEN * (high - low)
            one = _solved(table, left)[0]
        else:
            low, left, one = left, right, other
            right = low + _GOLDEN * (high - low)
            other = _solved(table, right)[0]
    ratio = (low + high) / 2
    if errors[best] < _solved(table, ratio)[0]:
        ratio = float(_RATIOS[best])
    return ratio, _solved(table, ratio)[1]


def nnls(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """Which x of at least 0 makes ``|matrix x - target|`` least? Exact, by active sets.

    Source: Lawson and Hanson (1974), algorithm NNLS.

    >>> nnls(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0]))
    array([2., 0.])
    """
    count = matrix.shape[1]
    passive = np.zeros(count, dtype=np.bool_)
    x = np.zeros(count)
    slope = matrix.T @ (target - matrix @ x)
    tolerance = 1e-10 * max(1.0, float(np.abs(matrix.T @ target).max(initial=0.0)))
    for _ in range(10 * count + 10):
        if passive.all() or float(slope[~passive].max()) <= tolerance:
            break
        passive[int(np.argmax(np.where(passive, -np.inf, slope)))] = True
        while True:
            trial = np.zeros(count)
            trial[passive] = np.linalg.lstsq(matrix[:, passive], target, rcond=None)[0]
            if float(trial[passive].min()) > 0:
                break
            back = passive & (trial <= 0)
            step = float((x[back] / (x[back] - trial[back])).min(initial=1.0))
            x = x + step * (trial - x)
            passive &= x > 1e-300
            x = np.where(passive, x, 0.0)
            if not passive.any():
                return x
        x = trial
        slope = matrix.T @ (target - matrix @ x)
    return x


def pearson(x: FloatArray, y: FloatArray) -> float:
    """How nearly is one a straight line of the other, -1 to 1? NaN where either does not vary."""
    dx, dy = x - x.mean(), y - y.mean()
    both = float(np.sqrt((dx**2).sum() * (dy**2).sum()))
    return float((dx * dy).sum()) / both if both else nan


def _quality(timing: ClosedForm, table: FloatArray) -> Quality:
    if not len(table):
        return Quality(nan, nan, nan, nan, 0)
    told = _foretold(timing, table)
    off = np.abs(told / table[:, 4] - 1.0)
    return Quality(
        float(off.mean()), float(np.percentile(off, 95)), float(off.max()), pearson(told, table[:, 4]), len(table)
    )


def _doubts(timing: ClosedForm, table: FloatArray, ratio: float) -> tuple[str, ...]:
    """Return what is to be said against the coefficients."""
    said = [
        f"{name} came out as 0: nothing that was seen depends on it"
        for name in ("c0", "w", "b", "a", "k", "r")
        if getattr(timing, name) == 0
    ]
    matrix = _features(table, ratio) / table[:, 4:]
    size = np.sqrt((matrix**2).sum(axis=0))
    seen = size > 0
    said += [
        f"{name} was never seen"
        for name, there in zip(("c0", "w", "a", "k", "r"), seen.tolist(), strict=True)
        if not there
    ]
    values = np.linalg.svd(matrix[:, seen] / size[seen], compute_uv=False)
    if float(values[-1]) * _CONDITION < float(values[0]):
        said.append("two coefficients cannot be told apart: vary prompts, contexts and batches more")
    return tuple(said)
