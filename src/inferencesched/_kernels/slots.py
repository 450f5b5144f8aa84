"""A simulated server's memory for LoRA adapters: so many at once, the least recently used that nobody runs with makes room.

As in vLLM: a request whose adapter finds no slot waits, and those behind it may go; loading holds up the whole pass.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.serving_state import (
    ADAPTER,
    ADAPTER_MS,
    LOADED_BIT,
    LOADS,
    NEXT,
    RUNNING,
    RUNNING_BIT,
    SLOTS,
    USED,
    WAIT_HEAD,
    WAITING_BIT,
    State,
)


@kernel
def slot_for(state: State, s: int, adapter: int) -> int:
    """Return where the adapter is or can be loaded: its slot, else an empty one, else the idle one used longest ago; -1 is nowhere."""
    slots, many = state.slots, int(state.config[SLOTS])
    if adapter == 0:
        return 0
    best, oldest = -1, np.inf
    for k in range(many):
        if slots[s, k] == adapter:
            return k
        age = -np.inf if slots[s, k] == 0 else state.clocks[s, USED + k]
        if slots[s, many + k] == 0 and age < oldest:
            best, oldest = k, age
    return best


@kernel
def begin_with(state: State, s: int, slot: int, adapter: int, now: float) -> float:
    """Run one request more with the adapter in this slot; return how long loading it takes, ms."""
    slots = state.slots
    if adapter == 0:
        return 0.0
    took = 0.0
    if slots[s, slot] != adapter:
        slots[s, slot] = adapter
        state.tally[LOADS] += 1
        took = float(state.timing[s, ADAPTER_MS])
    slots[s, state.config[SLOTS] + slot] += 1
    state.clocks[s, USED + slot] = now
    return took


@kernel
def end_with(state: State, s: int, adapter: int, now: float) -> None:
    """Run one request less with the adapter; it stays where it is."""
    slots, many = state.slots, int(state.config[SLOTS])
    for k in range(many):
        if adapter > 0 and slots[s, k] == adapter:
            slots[s, many + k] -= 1
            state.clocks[s, USED + k] = now


@kernel
def look(state: State, s: int) -> None:
    """Note what a server says of its adapters."""
    requests, slots, many = state.requests, state.slots, int(state.config[SLOTS])
    said = 2 * many
    slots[s, said:] = 0
    for k in range(many):
        if slots[s, k] > 0:
            slots[s, said + slots[s, k]] = LOADED_BIT
    for r in range(state.servers[s, RUNNING]):
        slots[s, said + requests[state.queue[s, r], ADAPTER]] |= RUNNING_BIT
    i = int(state.servers[s, WAIT_HEAD])
    while i >= 0:
        slots[s, said + requests[i, ADAPTER]] |= WAITING_BIT
        i = int(requests[i, NEXT])
