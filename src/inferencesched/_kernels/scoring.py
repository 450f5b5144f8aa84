"""Normalisation, the fused profile and the argmax, compiled.

Unknown is NaN: every normaliser answers NaN where its input is NaN and leaves it out of minima and maxima;
the fused kernels count an unknown score as 0, the worst, exactly as the scorers do.

A *program* is float64[K, 6], a row a scorer: (op, row, second row, weight, first parameter, second parameter). One
array rather than two: every array that is handed to a kernel costs the call some 0.1 us.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._typing import FloatArray

#: What an op of a program computes; the twin of each is the scorer named.
EXTRA, INVERSE_MINMAX, COMPLEMENT, PREFIX, TOKEN_LOAD, ACTIVE = range(6)


@kernel
def span(x: FloatArray) -> tuple[float, float]:
    """Return the least and the greatest known value, (inf, -inf) if none is; float64[E].

    In four lanes: a comparison need not wait for the one before it. Minima and maxima have no order to keep, so the
    answer is exact.
    """
    low0, low1, low2, low3 = np.inf, np.inf, np.inf, np.inf
    high0, high1, high2, high3 = -np.inf, -np.inf, -np.inf, -np.inf
    whole = x.shape[0] - x.shape[0] % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        low0, high0 = min(low0, a), max(high0, a)
        low1, high1 = min(low1, b), max(high1, b)
        low2, high2 = min(low2, c), max(high2, c)
        low3, high3 = min(low3, d), max(high3, d)
    for i in range(whole, x.shape[0]):
        a = x[i]
        low0, high0 = min(low0, a), max(high0, a)
    return min(low0, low1, low2, low3), max(high0, high1, high2, high3)


@kernel
def inverse_minmax(x: FloatArray) -> FloatArray:
    """``(max - x) / (max - min)``, 1 where all known are equal; float64[E] -> float64[E]."""
    low, high = span(x)
    out = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        if x[i] != x[i]:
            out[i] = np.nan
        elif high > low:
            out[i] = (high - x[i]) / (high - low)
        else:
            out[i] = 1.0
    return out


@kernel
def minmax(x: FloatArray) -> FloatArray:
    """``(x - min) / (max - min)``, 1 where all known are equal; float64[E] -> float64[E]."""
    low, high = span(x)
    out = np.empty(x.shape[0])
    for i in range(x.shape[0]):
        if x[i] != x[i]:
            out[i] = np.nan
        elif high > low:
            out[i] = (x[i] - low) / (high - low)
        else:
            out[i] = 1.0
    return out


@kernel
def bad_score(scores: FloatArray) -> int:
    """Return the first position that is NaN or outside [0, 1], or -1."""
    for i in range(scores.shape[0]):
        if not (scores[i] >= 0.0 and scores[i] <= 1.0):
            return i
    return -1


@kernel
def out_of_range(x: FloatArray, low: float, high: float) -> int:
    """Return the first position that is infinite or known and outside [low, high], or -1."""
    for i in range(x.shape[0]):
        if x[i] == x[i] and not (x[i] >= low and x[i] <= high and abs(x[i]) < np.inf):
            return i
    return -1


@kernel
def oldest(observed: FloatArray) -> tuple[float, float]:
    """Return the least time (-inf: somebody was never observed), and the least of those observed at all."""
    low, since = np.inf, np.inf
    for i in range(observed.shape[0]):
        x = observed[i]
        low = min(low, x)
        since = x if x < since and x > -np.inf else since
    return low, since


@kernel
def best_of(totals: FloatArray, picked: FloatArray) -> tuple[int, int]:
    """Return the best position, ties going to the least recently picked, and how many are still tied."""
    best, ties = 0, 1
    for i in range(1, totals.shape[0]):
        if totals[i] >= totals[best]:
            if totals[i] > totals[best] or picked[i] < picked[best]:
                best, ties = i, 1
            elif picked[i] == picked[best]:
                ties += 1
    return best, ties


@kernel
def nth_tied(totals: FloatArray, picked: FloatArray, best: int, nth: int) -> int:
    """Return the nth position (from 0) that is tied with `best` in total and in last pick."""
    for i in range(totals.shape[0]):
        if totals[i] == totals[best] and picked[i] == picked[best]:
            if nth == 0:
                return i
            nth -= 1
    return best


@kernel
def weighed(matrix: FloatArray, extra: FloatArray, program: FloatArray, tokens: float) -> FloatArray:
    """Score, weigh and sum in one pass a scorer.

    matrix float64[S, E]; extra float64[K, E] scores of plug-ins that are not ours; program float64[K, 6]; tokens is
    the prompt's length, 0 if unknown. Returns totals float64[E], each summed in the order of the scorers, as the
    plain path does, so that both agree to the last bit.
    """
    count = matrix.shape[1]
    totals = np.zeros(count)
    for k in range(program.shape[0]):
        op, row, second = int(program[k, 0]), int(program[k, 1]), int(program[k, 2])
        weight, first, other = program[k, 3], program[k, 4], program[k, 5]
        if op == EXTRA:
            for i in range(count):
                totals[i] += weight * extra[row, i]
        elif op == INVERSE_MINMAX:
            low, high = span(matrix[row])
            for i in range(count):
                x = matrix[row, i]
                score = 0.0
                if x == x:
                    score = (high - x) / (high - low) if high > low else 1.0
                totals[i] += weight * score
        elif op == COMPLEMENT:
            for i in range(count):
                x = matrix[row, i]
                totals[i] += weight * (1.0 - x if x == x else 0.0)
        elif op == PREFIX:  # first = length weight, other = length scale
            for i in range(count):
                x = matrix[row, i]
                score = x if x == x else 0.0
                if first > 0.0:
                    matched = matrix[second, i]
                    reach = min(1.0, matched / other) if matched == matched else 0.0
                    score = first * (reach * reach) + (1.0 - first) * score
                totals[i] += weight * score
        elif op == TOKEN_LOAD:  # first = threshold
            for i in range(count):
                x = matrix[row, i]
                matched = matrix[second, i]
                load = x + max(0.0, tokens - (matched if matched == matched else 0.0))
                totals[i] += weight * (1.0 - min(load, first) / first if x == x else 0.0)
        else:  # ACTIVE: first = idle threshold, other = best score of a busy endpoint
            most = max(1.0, span(matrix[row])[1])
            for i in range(count):
                x = matrix[row, i]
                busy = (most - x) / most * other if x == x else 0.0
                totals[i] += weight * (1.0 if x <= first else busy)
    return totals


@kernel
def decide(
    matrix: FloatArray, extra: FloatArray, program: FloatArray, tokens: float, picked_row: int, nth: int
) -> tuple[int, int, float]:
    """Weigh, and find the best: what `weighed`, `best_of` and `nth_tied` say, with no array to hand back.

    Returns the position, how many are tied for it, and its total. Where several are tied it is the nth of them
    (from 0): the caller asks with 0, and once more with its draw.
    """
    totals = weighed(matrix, extra, program, tokens)
    best, ties = best_of(totals, matrix[picked_row])
    if nth > 0:
        best = nth_tied(totals, matrix[picked_row], best, nth)
    return best, ties, totals[best]
