"""Normalisation, the fused profile and the argmax, compiled.

Unknown is NaN: every normaliser answers NaN where its input is NaN and leaves it out of minima and maxima;
the fused kernel counts an unknown score as 0, the worst, exactly as the scorers do.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._typing import FloatArray, IntArray

#: What an op of `fused` computes; the twin of each is the scorer named.
EXTRA, INVERSE_MINMAX, COMPLEMENT, PREFIX, TOKEN_LOAD, ACTIVE = range(6)


@kernel
def inverse_minmax(x: FloatArray) -> FloatArray:
    """``(max - x) / (max - min)``, 1 where all known are equal; float64[E] -> float64[E]."""
    low, high = np.inf, -np.inf
    for i in range(x.shape[0]):
        if x[i] < low:
            low = x[i]
        if x[i] > high:
            high = x[i]
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
    low, high = np.inf, -np.inf
    for i in range(x.shape[0]):
        if x[i] < low:
            low = x[i]
        if x[i] > high:
            high = x[i]
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
def count_stale(observed: FloatArray, before: float, never_too: bool) -> int:
    """Count endpoints last observed before `before`; those never observed (-inf) only if asked."""
    count = 0
    for i in range(observed.shape[0]):
        if observed[i] < before and (never_too or observed[i] > -np.inf):
            count += 1
    return count


@kernel
def best_of(totals: FloatArray, picked: FloatArray) -> tuple[int, int]:
    """Return the best position, ties going to the least recently picked, and how many are still tied."""
    best, ties = 0, 1
    for i in range(1, totals.shape[0]):
        if totals[i] > totals[best] or (totals[i] == totals[best] and picked[i] < picked[best]):
            best, ties = i, 1
        elif totals[i] == totals[best] and picked[i] == picked[best]:
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
def fused(
    matrix: FloatArray,
    extra: FloatArray,
    ops: IntArray,
    params: FloatArray,
    tokens: float,
    picked_row: int,
) -> tuple[FloatArray, int, int]:
    """Score, weigh, sum and find the best in one pass a scorer.

    matrix float64[S, E]; extra float64[K, E] scores of plug-ins that are not ours; ops int64[K, 3] (op, row, second
    row); params float64[K, 3] (weight, first, second parameter); tokens is the prompt's length, 0 if unknown.
    Returns totals float64[E], the best position and how many are tied with it (see `best_of`). Each endpoint's total
    is summed in the order of the scorers, as the plain path does, so that both agree to the last bit.
    """
    count = matrix.shape[1]
    totals = np.zeros(count)
    for k in range(ops.shape[0]):
        op, row, second = ops[k, 0], ops[k, 1], ops[k, 2]
        weight, first, other = params[k, 0], params[k, 1], params[k, 2]
        if op == 0:  # EXTRA
            for i in range(count):
                totals[i] += weight * extra[row, i]
        elif op == 1:  # INVERSE_MINMAX
            low, high = np.inf, -np.inf
            for i in range(count):
                x = matrix[row, i]
                if x < low:
                    low = x
                if x > high:
                    high = x
            for i in range(count):
                x = matrix[row, i]
                score = 0.0
                if x == x:
                    score = (high - x) / (high - low) if high > low else 1.0
                totals[i] += weight * score
        elif op == 2:  # COMPLEMENT
            for i in range(count):
                x = matrix[row, i]
                totals[i] += weight * (1.0 - x if x == x else 0.0)
        elif op == 3:  # PREFIX: first = length weight, other = length scale
            for i in range(count):
                x = matrix[row, i]
                score = x if x == x else 0.0
                if first > 0.0:
                    matched = matrix[second, i]
                    reach = min(1.0, matched / other) if matched == matched else 0.0
                    score = first * (reach * reach) + (1.0 - first) * score
                totals[i] += weight * score
        elif op == 4:  # TOKEN_LOAD: first = threshold
            for i in range(count):
                x = matrix[row, i]
                matched = matrix[second, i]
                load = x + max(0.0, tokens - (matched if matched == matched else 0.0))
                totals[i] += weight * (1.0 - min(load, first) / first)
        else:  # ACTIVE: first = idle threshold, other = best score of a busy endpoint
            high = 0.0
            for i in range(count):
                if matrix[row, i] > high:
                    high = matrix[row, i]
            for i in range(count):
                x = matrix[row, i]
                totals[i] += weight * (1.0 if x <= first else (high - x) / high * other)
    best, ties = 0, 1
    for i in range(1, count):
        p, q = matrix[picked_row, i], matrix[picked_row, best]
        if totals[i] > totals[best] or (totals[i] == totals[best] and p < q):
            best, ties = i, 1
        elif totals[i] == totals[best] and p == q:
            ties += 1
    return totals, best, ties
