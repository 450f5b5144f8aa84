"""Normalisation and the argmax, compiled.

Unknown is NaN: every normaliser answers NaN where its input is NaN and leaves it out of minima and maxima.
"""

import numpy as np

from inferencesched._kernels._compile import frozen, kernel
from inferencesched._typing import DepthArray, FloatArray, IndexArray, IntArray


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
    low, high = span(frozen(x))
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
    low, high = span(frozen(x))
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
def held_by_stays(
    depths: DepthArray,
    slots: IndexArray,
    generations: IntArray,
    owners: IntArray,
    blocks: int,
    block_size: int,
    matched: IntArray,
    rows: FloatArray,
) -> int:
    """Fill in what each stay holds of a prompt of so many blocks; return the most, -1 where a slot is not known yet.

    ``int32[slots]`` depths, ``[E]`` slots and generations, ``int64[slots]`` owners; out: int64[E] blocks, float64[2, E] their share
    and their tokens. A slot that is another generation's holds nothing.
    """
    most, known, whole = 0, owners.shape[0], float(max(1, blocks))
    for i in range(slots.shape[0]):
        slot = slots[i]
        if slot >= known or slot >= depths.shape[0]:
            return -1
        depth = depths[slot] if owners[slot] == generations[i] else 0
        matched[i] = depth
        rows[0, i] = depth / whole
        rows[1, i] = depth * float(block_size)
        most = max(most, depth)
    return most


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
