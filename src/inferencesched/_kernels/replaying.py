"""Whole replays of the simplest policies, without a call to Python: the same choices, draw for draw, as their plug-ins make.

Books are the router's own: requests in flight, up to date at every arrival. Ties go to the server picked longest ago, and among those that
were never picked to one by lot, as `pickers.score.MaxScorePicker` has it.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.serving import advance, enqueue, overlaps
from inferencesched._kernels.serving_state import EVENTS, FINISH_EVENT, SERVER, State
from inferencesched._typing import FloatArray, IntArray

RANDOM, ROUND_ROBIN, LEAST_REQUEST, POWER_OF_TWO = range(4)


@kernel
def _least(flying: IntArray, picked: IntArray, rng: np.random.Generator) -> int:
    """Return who has fewest in flight, of those whoever was picked longest ago, of those one by lot."""
    count, best, ties = flying.shape[0], 0, 1
    for s in range(1, count):
        if flying[s] < flying[best] or (flying[s] == flying[best] and picked[s] < picked[best]):
            best, ties = s, 1
        elif flying[s] == flying[best] and picked[s] == picked[best]:
            ties += 1
    if ties == 1:
        return int(best)
    nth = int(rng.random() * ties)
    for s in range(best, count):
        if flying[s] == flying[best] and picked[s] == picked[best]:
            if nth == 0:
                return int(s)
            nth -= 1
    return int(best)


@kernel
def _choose(kind: int, i: int, flying: IntArray, picked: IntArray, rng: np.random.Generator) -> int:
    """Return the server of request i."""
    count = flying.shape[0]
    if kind == RANDOM:
        return int(rng.random() * count)
    if kind == ROUND_ROBIN:
        return int(i % count)
    if kind == LEAST_REQUEST:
        return _least(flying, picked, rng)
    if count == 1:
        return 0
    first = int(rng.random() * count)
    other = int(rng.random() * (count - 1))
    if other >= first:
        other += 1
    if flying[other] < flying[first] or (flying[other] == flying[first] and picked[other] < picked[first]):
        return int(other)
    return int(first)


@kernel
def replay(
    state: State, kind: int, arrival: FloatArray, begin: int, end: int, clock: float, flying: IntArray, picked: IntArray,
    rng: np.random.Generator, never: FloatArray, signals: FloatArray, overlap: IntArray
) -> int:  # fmt: skip
    """Bring requests `begin` to `end` to servers, and let those run up to the last of them; return how many blocks others had more of.

    arrival float64[N] ms; clock: up to when the servers have run; flying and picked int64[S]: requests in flight, and at which decision each
    was picked last (-1: never). What happened is not told; the columns of the state have it.
    """
    regret = 0
    events, kinds, tally = state.events, state.kinds, state.tally
    for i in range(begin, end):
        now = arrival[i]
        if now > clock:
            advance(state, now, never, signals)
            for e in range(tally[EVENTS]):
                if kinds[e] == FINISH_EVENT:
                    flying[state.requests[int(events[1, e]), SERVER]] -= 1
            tally[EVENTS] = 0
            clock = now
        s = _choose(kind, i, flying, picked, rng)
        flying[s] += 1
        picked[s] = i
        overlaps(state, i, overlap)
        regret += overlap.max() - overlap[s]
        enqueue(state, i, s, now)
    return regret
