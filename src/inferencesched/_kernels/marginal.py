"""What does one request more cost everybody, by a model of a server's passes?

Times are ms. A model is a kind and coefficients as in `serving.step_time`. State of the servers, ``float64[6, S]``::

    DRAIN    until the prompts sent there are computed        REQUESTS  in flight
    CONTEXT  tokens that those attend to                      BLOCKS    tokens of KV that they hold or will hold
    QUEUED   prompt tokens sent there and not yet computed    ROOM      tokens of KV that the server has
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.serving_state import POLYNOMIAL
from inferencesched._typing import BoolArray, FloatArray, IndexArray, IntArray

DRAIN, REQUESTS, CONTEXT, BLOCKS, QUEUED, ROOM = range(6)
# weights, in the order of `MarginalCost`'s fields
OWN, STALL, OTHERS, DUPLICATE, CROWDING, BARRIER, BARRIER_AT = range(7)


@kernel
def decode_ms(kind: int, timing: FloatArray, context: float, requests: float, room: float) -> float:
    """Return how long a pass takes that only decodes."""
    if requests <= 0:
        return 0.0
    if kind == POLYNOMIAL:
        share = min(1.0, context / room)
        return float(max(timing[6], (timing[3] * share + timing[4]) * share + timing[5]))
    either = (timing[1] ** 4 + (timing[2] * requests) ** 4) ** 0.25
    return float(timing[0] + either + timing[4] * context + timing[5] * requests)


@kernel
def slope_ms(kind: int, timing: FloatArray, context: float, room: float) -> float:
    """Return by how much a pass gets longer for each token of context that it decodes."""
    if kind == POLYNOMIAL:
        share = min(1.0, context / room)
        return float(max(0.0, 2.0 * timing[3] * share + timing[4]) / room)
    return float(timing[4])


@kernel
def prefill_ms(
    kind: int,
    timing: FloatArray,
    most: float,
    tokens: float,
    before: float,
    context: float,
    requests: float,
    room: float,
) -> float:
    """Return how long the passes take that compute so many tokens behind `before` cached ones, decodes riding along."""
    took, start, left = 0.0, before, tokens
    budget = max(1.0, most - requests)
    while left > 0:
        chunk = min(left, budget)
        if kind == POLYNOMIAL:
            took += (
                (timing[0] * chunk + timing[1]) * chunk + timing[2] + decode_ms(kind, timing, context, requests, room)
            )
        else:
            either = (timing[1] ** 4 + (timing[2] * (chunk + requests)) ** 4) ** 0.25
            took += timing[0] + either + timing[3] * chunk * (start + 0.5 * chunk)
            took += timing[4] * context + timing[5] * requests
        start += chunk
        left -= chunk
    return took


@kernel
def added_ms(
    kind: int, timing: FloatArray, most: float, tokens: float, before: float, queued: float, context: float, requests: float,
    room: float
) -> float:  # fmt: skip
    """Return by how much the passes of a server get longer for so many tokens more, behind `queued` ones that are not computed yet.

    Where all fit into one pass its fixed part is paid once. What is queued is taken to have nothing cached before it.
    """
    alone = prefill_ms(kind, timing, most, tokens, before, context, requests, room)
    if queued <= 0.0 or queued + tokens + requests > most:
        return alone
    together = prefill_ms(kind, timing, most, queued + tokens, 0.0, context, requests, room)
    return min(alone, max(0.0, together - prefill_ms(kind, timing, most, queued, 0.0, context, requests, room)))


@kernel
def fixed_tokens(kind: int, timing: FloatArray) -> float:
    """Return how many prompt tokens cost as much as the fixed part of a pass."""
    return float(timing[2] / timing[1] if kind == POLYNOMIAL else (timing[0] + timing[1]) / timing[2])


@kernel
def per_token_ms(kind: int, timing: FloatArray) -> float:
    """Return what a prompt token costs at the least."""
    return float(timing[1] if kind == POLYNOMIAL else timing[2])


@kernel
def parts_at(
    kind: int, timing: FloatArray, most: float, weights: FloatArray, output: float, reuse: float, prompt: float,
    cached: float, best: float, state: FloatArray, w: int, parts: FloatArray
) -> float:  # fmt: skip
    """Fill in what a request costs at server w: own, stall, decode, duplicate, barrier, float64[5]; return how long its own passes take."""
    requests, context, room = state[REQUESTS, w], state[CONTEXT, w], state[ROOM, w]
    own = added_ms(kind, timing, most, max(1.0, prompt - cached), cached, state[QUEUED, w], context, requests, room)
    stick = weights[DUPLICATE] + weights[CROWDING] * reuse / (1.0 - min(reuse, 0.95))
    full = state[BLOCKS, w] / room
    parts[0] = weights[OWN] * (state[DRAIN, w] + own)
    parts[1] = weights[STALL] * requests * own
    parts[2] = output * slope_ms(kind, timing, context, room) * (context + weights[OTHERS] * requests * prompt)
    parts[3] = stick * (best - cached) * per_token_ms(kind, timing) * (1.0 + requests)
    parts[4] = weights[BARRIER] * max(0.0, full - weights[BARRIER_AT]) / (1.0 - weights[BARRIER_AT])
    return own


@kernel
def costs(
    kind: int, timing: FloatArray, most: float, weights: FloatArray, output: float, reuse: float, prompt: float,
    cached: FloatArray, state: FloatArray, allowed: BoolArray, out: FloatArray, passes: FloatArray
) -> int:  # fmt: skip
    """Fill in what a request costs at each server, and how long its own passes take; return the least, -1 for none."""
    best_cached, best = 0.0, -1
    for w in range(state.shape[1]):
        if allowed[w]:
            best_cached = max(best_cached, cached[w])
    parts = np.empty(5)
    for w in range(state.shape[1]):
        out[w] = np.inf
        if not allowed[w]:
            continue
        passes[w] = parts_at(
            kind, timing, most, weights, output, reuse, prompt, cached[w], best_cached, state, w, parts
        )
        out[w] = parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
        if best < 0 or out[w] < out[best]:
            best = w
    return best


@kernel
def plan(
    kind: int, timing: FloatArray, most: float, weights: FloatArray, output: float, reuse: float, prompts: FloatArray,
    cached: FloatArray, allowed: BoolArray, state: FloatArray, order: IntArray, out: IntArray
) -> None:  # fmt: skip
    """Give each request the server where it costs least, in this order, each seeing those before it; changes `state`.

    prompts float64[R]; cached float64[R, S]; allowed bool[R, S]; order and out int64[R], out -1 where nobody may.
    """
    cost, passes = np.empty(state.shape[1]), np.empty(state.shape[1])
    for at in range(order.shape[0]):
        r = order[at]
        w = costs(kind, timing, most, weights, output, reuse, prompts[r], cached[r], state, allowed[r], cost, passes)
        out[r] = w
        if w >= 0:
            book(state, w, prompts[r], cached[r, w], output, passes[w])


@kernel
def book(state: FloatArray, w: int, prompt: float, cached: float, output: float, passes: float) -> None:
    """Let a server's state have one request more."""
    state[DRAIN, w] += passes
    state[REQUESTS, w] += 1.0
    state[CONTEXT, w] += prompt
    state[BLOCKS, w] += prompt + output
    state[QUEUED, w] += max(1.0, prompt - cached)


# --- books by slot -------------------------------------------------------------------------------------------------

# rows of float64[4, slots]: ms of passes that were sent there, since when the first of them is being computed (seconds), the tokens in flight that
# we believe in, and whose stay it is
PENDING, ANCHOR, TOKENS, STAY = range(4)


@kernel
def doubtful(queued: FloatArray, slots: IndexArray, generations: IntArray, books: FloatArray, out: IntArray) -> int:
    """List slots where a prompt was computed, or an endpoint replaced, since the books were written; return how many."""
    count = 0
    for w in range(slots.shape[0]):
        slot = slots[w]
        if books[STAY, slot] != generations[w] or (books[PENDING, slot] > 0.0 and books[TOKENS, slot] != queued[w]):
            out[count] = w
            count += 1
    return count


@kernel
def observe(
    requests: FloatArray, context: FloatArray, queued: FloatArray, blocks: FloatArray, block_size: FloatArray,
    slots: IndexArray, books: FloatArray, now: float, output: float, kv_tokens: float, state: FloatArray
) -> None:  # fmt: skip
    """Fill in the state of the servers; now in seconds."""
    for w in range(slots.shape[0]):
        pending = books[PENDING, slots[w]]
        since = (now - books[ANCHOR, slots[w]]) * 1e3
        state[DRAIN, w] = max(0.0, pending - since) if pending > 0.0 else 0.0
        state[REQUESTS, w] = requests[w]
        state[CONTEXT, w] = context[w]
        state[BLOCKS, w] = context[w] + output * requests[w]
        state[QUEUED, w] = queued[w]
        room = blocks[w] * block_size[w]
        state[ROOM, w] = room if room > 0.0 else kv_tokens
