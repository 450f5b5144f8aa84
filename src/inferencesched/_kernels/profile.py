"""A whole profile in one call: every scorer, the weighted sum, the best of it, and what follows from picking it.

A *program* is float64[K, COLUMNS], a row a scorer: (op, row, second row, third row, weight, four parameters). Unknown is NaN and
counts as 0, the worst, exactly as the scorers do; sums are made in the order of the scorers. So every answer here is
that of the plain path to the last bit.
"""

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._kernels._compile import ON_STACK, carray, kernel, stack_pointer
from inferencesched._typing import BoolArray, DepthArray, FloatArray, IndexArray, IntArray

#: What an op of a program computes; the twin of each is the scorer named.
EXTRA, INVERSE_MINMAX, COMPLEMENT, PREFIX, TOKEN_LOAD, ACTIVE, LORA, COLUMN, MINMAX, LOAD_AWARE, PLACE, SECONDS = range(
    12
)
COLUMNS = 9


@kernel
def weigh(
    matrix: FloatArray,
    extra: FloatArray,
    masks: BoolArray,
    adapter: int,
    program: FloatArray,
    tokens: float,
    totals: FloatArray,
) -> None:
    """Score, weigh and sum in one pass a scorer.

    matrix float64[S, E]; extra float64[K, E] scores of plug-ins without a twin; masks bool[2 A, E], where each of A
    LoRA adapters runs and, A rows further, where it waits; `adapter` the request's; program float64[K, COLUMNS]; tokens is
    the prompt's length, 0 if unknown. Writes totals float64[E].
    """
    count = matrix.shape[1]
    totals[:] = 0.0
    for k in range(program.shape[0]):
        op, row, second = int(program[k, 0]), int(program[k, 1]), int(program[k, 2])
        weight, first, other = program[k, 4], program[k, 5], program[k, 6]
        x = matrix[row]
        if op == EXTRA:
            y = extra[int(first)]
            for i in range(count):
                totals[i] += weight * y[i]
        elif op == INVERSE_MINMAX:
            low, high = scoring.span(x)
            if high > low:
                width = high - low
                for i in range(count):
                    score = (high - x[i]) / width
                    totals[i] += weight * (score if x[i] == x[i] else 0.0)
            else:
                for i in range(count):
                    totals[i] += weight * (1.0 if x[i] == x[i] else 0.0)
        elif op == COMPLEMENT:
            for i in range(count):
                totals[i] += weight * (1.0 - x[i] if x[i] == x[i] else 0.0)
        elif op == MINMAX:
            low, high = scoring.span(x)
            if high > low:
                width = high - low
                for i in range(count):
                    score = (x[i] - low) / width
                    totals[i] += weight * (score if x[i] == x[i] else 0.0)
            else:
                for i in range(count):
                    totals[i] += weight * (1.0 if x[i] == x[i] else 0.0)
        elif op == LOAD_AWARE:  # first = threshold
            for i in range(count):
                score = 0.5 * (1.0 - min(x[i], first) / first)
                totals[i] += weight * (score if x[i] == x[i] else 0.0)
        elif op == PLACE:  # first = where the range begins, other = its width; 1 at its end, or at its beginning
            turned = program[k, 7] > 0.0
            for i in range(count):
                place = min(1.0, max(0.0, (x[i] - first) / other))
                score = 1.0 - place if turned else place
                totals[i] += weight * (score if x[i] == x[i] else 0.0)
        elif op == SECONDS:  # first = horizon
            y, z = matrix[second], matrix[int(program[k, 3])]
            for i in range(count):
                load = x[i] + max(0.0, tokens - (y[i] if y[i] == y[i] else 0.0))
                seconds = load / z[i] if z[i] != 0.0 else np.inf
                known = load == load and z[i] == z[i]
                totals[i] += weight * (1.0 - min(seconds, first) / first if known else 0.0)
        elif op == COLUMN:
            for i in range(count):
                totals[i] += weight * (x[i] if x[i] == x[i] else 0.0)
        elif op == PREFIX:  # first = length weight, other = length scale
            y = matrix[second]
            if first > 0.0:
                for i in range(count):
                    share = x[i] if x[i] == x[i] else 0.0
                    reach = min(1.0, y[i] / other) if y[i] == y[i] else 0.0
                    totals[i] += weight * (first * (reach * reach) + (1.0 - first) * share)
            else:
                for i in range(count):
                    totals[i] += weight * (x[i] if x[i] == x[i] else 0.0)
        elif op == TOKEN_LOAD:  # first = threshold
            y = matrix[second]
            for i in range(count):
                load = x[i] + max(0.0, tokens - (y[i] if y[i] == y[i] else 0.0))
                totals[i] += weight * (1.0 - min(load, first) / first if x[i] == x[i] else 0.0)
        elif op == ACTIVE:  # first = idle threshold, other = best score of a busy endpoint
            most = max(1.0, scoring.span(x)[1])
            for i in range(count):
                busy = (most - x[i]) / most * other if x[i] == x[i] else 0.0
                totals[i] += weight * (1.0 if x[i] <= first else busy)
        else:  # LORA: scores of an adapter that runs, finds room, waits, finds none
            y, z = matrix[second], matrix[int(program[k, 3])]
            runs, waits = masks[adapter], masks[masks.shape[0] // 2 + adapter]
            for i in range(count):
                reported = x[i] == x[i]
                score = program[k, 8]
                if x[i] + y[i] < z[i]:
                    score = other
                elif waits[i] and reported:
                    score = program[k, 7]
                if runs[i] and reported:
                    score = first
                totals[i] += weight * score


@kernel
def weighed(
    matrix: FloatArray, extra: FloatArray, masks: BoolArray, adapter: int, program: FloatArray, tokens: float
) -> FloatArray:
    """Return what `weigh` writes, float64[E]."""
    totals = np.empty(matrix.shape[1])
    weigh(matrix, extra, masks, adapter, program, tokens, totals)
    return totals


@kernel
def best_of(totals: FloatArray, picked: FloatArray, nth: int) -> tuple[int, int]:
    """Return the nth (from 0; the first for less) of the best positions, ties going to the least recently picked, and how many are tied still.

    What `scoring.best_of` and `scoring.nth_tied` say, in loops that do not wait for one another.
    """
    highest = scoring.span(totals)[1]
    least = np.inf
    for i in range(totals.shape[0]):
        if totals[i] == highest and picked[i] < least:
            least = picked[i]
    best, ties = -1, 0
    for i in range(totals.shape[0]):
        if totals[i] == highest and picked[i] == least:
            if ties <= max(nth, 0):
                best = i
            ties += 1
    return best, ties


@kernel
def owed(matrix: FloatArray, tokens_row: int, best: int, tokens: int) -> int:
    """Return how many of a prompt's tokens the endpoint has yet to compute: all that its prefix cache does not hold."""
    matched = matrix[tokens_row, best]
    return max(0, tokens - int(matched)) if matched == matched else tokens


@kernel
def decide(
    matrix: FloatArray,
    extra: FloatArray,
    masks: BoolArray,
    program: FloatArray,
    tokens: int,
    picked_row: int,
    tokens_row: int,
    nth: int,
) -> tuple[int, int, float, int]:
    """Weigh, and find the best: what `weighed` and `best_of` say, with no array to hand back.

    Returns the position, how many are tied for it, its total, and the tokens it would have to compute. Where several are
    tied it is the nth of them (from 0): the caller asks with 0, and once more with its draw. (-1, 0, 0, 0) for nobody.
    """
    count = matrix.shape[1]
    if count == 0:
        return -1, 0, 0.0, 0
    # on the stack where they fit: a decision allocates nothing
    totals = carray(stack_pointer(0), count) if count <= ON_STACK else np.empty(count)
    weigh(matrix, extra, masks, 0, program, float(tokens), totals)
    best, ties = best_of(totals, matrix[picked_row], nth)
    return best, ties, totals[best], owed(matrix, tokens_row, best, tokens)


@kernel
def fold_one(
    matrix: FloatArray,
    rows: IntArray,
    masks: BoolArray,
    program: FloatArray,
    requests: IntArray,
    depths: DepthArray,
    slots: IndexArray,
    owned: BoolArray,
    blocks: int,
    block_size: int,
    sequence: int,
    k: int,
    nth: int,
) -> tuple[int, int, bool]:
    """Decide and book request `k` as `fold` does, with what a prefix index says of its prompt.

    depths int32[slots] blocks that each slot holds of the prompt's `blocks` (-1: unknown), of `block_size` tokens; an endpoint
    has its slot's where `owned`. The columns of the match (``rows[5]``) and its tokens are written first. Returns the
    position, how many are tied for it (then nothing is booked unless `nth` is their draw), and whether anybody holds any.
    """
    hit = False
    for i in range(matrix.shape[1]):
        if blocks < 0:
            matrix[rows[5], i] = np.nan
            matrix[rows[4], i] = np.nan
        else:
            held = float(depths[slots[i]]) if owned[i] else 0.0
            hit |= held > 0.0
            matrix[rows[5], i] = held / max(1, blocks)
            matrix[rows[4], i] = held * block_size
    best, ties = book_best(matrix, rows, masks, program, requests, sequence, k, nth)
    return best, ties, hit


@kernel
def book_best(
    matrix: FloatArray,
    rows: IntArray,
    masks: BoolArray,
    program: FloatArray,
    requests: IntArray,
    sequence: int,
    k: int,
    nth: int,
) -> tuple[int, int]:
    """Decide request `k` and book it (there are no plug-ins without a twin, so any array stands for theirs), unless its choice is tied and `nth` is no draw; return the position, and how many tie."""
    count = matrix.shape[1]
    totals = carray(stack_pointer(0), count) if count <= ON_STACK else np.empty(count)
    weigh(matrix, matrix, masks, requests[k, 1], program, float(requests[k, 0]), totals)
    best, ties = best_of(totals, matrix[rows[3]], nth)
    if ties > 1 and nth < 0:
        return best, ties
    computed = owed(matrix, rows[4], best, requests[k, 0])
    requests[k, 2], requests[k, 3], requests[k, 4] = best, computed, int(matrix[rows[3], best])
    matrix[rows[0], best] += 1.0
    matrix[rows[1], best] += computed
    matrix[rows[2], best] += requests[k, 0]
    matrix[rows[3], best] = sequence + k
    return best, 1


@kernel
def fold(
    matrix: FloatArray,
    rows: IntArray,
    masks: BoolArray,
    program: FloatArray,
    requests: IntArray,
    sequence: int,
    start: int,
    nth: int,
) -> tuple[int, int]:
    """Decide and book request after request, each seeing those before it.

    matrix float64[S, E] is what scorers see, and written to; `rows` are those of requests, tokens, context, last picked,
    prefix tokens (and prefix match). requests int64[N, 5] holds prompt tokens and adapter, and gets position, tokens owed, and when the
    endpoint was picked before. Begins at `start`, its tie broken by `nth`; stops at a request whose choice is tied and has
    to be drawn. Returns where it stopped (N at the end) and among how many.
    """
    for k in range(start, requests.shape[0]):
        _, ties = book_best(matrix, rows, masks, program, requests, sequence, k, nth)
        if ties > 1:
            return k, ties
        nth = -1
    return requests.shape[0], 0
