"""What is left of a simulated server that fails? Nothing: neither its cache nor anybody's place."""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.serving import members_of
from inferencesched._kernels.serving_state import (
    CACHED,
    CACHED_ALL,
    CHUNK,
    COMPUTED,
    EVICTABLE,
    FIRST_TOKEN,
    FREE,
    HELD,
    HOST,
    NEXT,
    PREFILLING,
    PROMPT_ALL,
    ROOM,
    RUNNING,
    SERVER,
    TOP,
    WAITING,
    State,
)
from inferencesched._typing import IntArray


@kernel
def _clear(servers: IntArray, s: int) -> None:
    """Have a server (or its host's memory) hold nothing, and nobody wait."""
    room = servers[s, ROOM]
    servers[s] = -1
    for column in (WAITING, RUNNING, EVICTABLE, TOP):
        servers[s, column] = 0
    servers[s, FREE] = servers[s, ROOM] = room


@kernel
def crash(state: State, s: int, members: IntArray) -> int:
    """Lose all that server s holds and does; list its requests in members int64[N], running ones first; return how many.

    Who had its first token stays there for good; everybody else can be sent again, as if it never had been.
    """
    requests, servers = state.requests, state.servers
    count = members_of(state, s, members)
    for m in range(count):
        i = int(members[m])
        for column in (COMPUTED, HELD, CHUNK, PREFILLING):
            requests[i, column] = 0
        requests[i, NEXT] = -1
        if state.times[i, FIRST_TOKEN] != state.times[i, FIRST_TOKEN]:
            requests[i, SERVER] = -1
            for column in (CACHED, CACHED_ALL, PROMPT_ALL):
                requests[i, column] = 0
    host = int(state.config[HOST])
    for row in (s, s + host):
        _clear(servers, row)
        state.table[row] = 0
    state.slots[s] = 0
    state.clocks[s] = np.inf
    return count
