"""What is the state of simulated servers, as arrays? The names of their columns; no kernels here."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inferencesched._typing import FloatArray, IntArray

Int32Array = NDArray[np.int32]
Int8Array = NDArray[np.int8]


class State(NamedTuple):
    """All servers of a fleet and all requests of a trace. S servers of P blocks, N requests; times are ms."""

    requests: IntArray  # int64[N, 18]: what each asks for and how far it is
    times: FloatArray  # float64[N, 3]
    servers: IntArray  # int64[R, 11]: heads and counts of each server's lists, and its size; R is S, or 2 S with the hosts' memories behind
    clocks: FloatArray  # float64[S, 2 + L]: of its passes, and when each slot was last begun or ended with
    queue: IntArray  # int64[S, Q]: who runs, in the order of admission
    nodes: Int32Array  # int32[R, P, 4]: blocks with an identity; those without references are a list
    table: Int32Array  # int32[R, T, 2]: block id -> node + 1, open addressing; T a power of two of at least 2 P
    blocks: IntArray  # int64[M]: the prompts' block ids, request after request
    events: FloatArray  # float64[2, 2 N]: time and request
    kinds: Int8Array  # int8[2 N]: of those events
    gaps: FloatArray  # float64[2, G]: gaps between tokens: length, how many
    tally: IntArray  # int64[7]: entries in events and gaps, passes made, blocks evicted, entries in the log, adapters loaded, blocks fetched
    config: IntArray  # int64[7]
    timing: FloatArray  # float64[S, 10]: coefficients of each server's step time, and what else takes time
    log: IntArray  # int64[L, 3]: what servers say of their prompts' blocks: server, request or -1, blocks or id; L may be 0
    logged: FloatArray  # float64[L]: when
    order: FloatArray  # float64[N]: who waits further ahead: least first, ties in order of arrival; only where asked
    slots: IntArray  # int64[S, 2 L + A]: LoRA adapters in memory (0: none), how many run with each, and what was last said of A of them


# columns of `requests`
INPUT, OUTPUT, GENERATED, COMPUTED, HELD, CHUNK, PREFILLING, NEXT = range(8)
SERVER, CACHED, CACHED_ALL, PROMPT_ALL, PREEMPTIONS, FULL, FIRST_BLOCK, OWN_BLOCK = range(8, 16)
ADAPTER, GIVEN = range(16, 18)  # adapter 0 is none; GIVEN: tokens whose KV another server sends
# columns of `times`
FIRST_TOKEN, FINISH, LAST_TOKEN = range(3)
# columns of `servers`
WAIT_HEAD, WAIT_TAIL, WAITING, RUNNING, FREE, EVICTABLE, LRU_HEAD, LRU_TAIL, SPARE, TOP, ROOM = range(11)
# columns of `clocks`: when the present pass ends (inf: none runs), and when the next may start (inf: nothing to do)
END, READY, USED = range(3)
# columns of `nodes`
ID, REFERENCES, PREVIOUS, FOLLOWING = range(4)
# places of `tally`
EVENTS, GAPS, PASSES, EVICTED, LOGGED, LOADS, FETCHED = range(7)
# places of `config`
# SLOTS: how many adapters at once; HOST: how many rows behind its server a host's memory is, 0 if there is none
BLOCK_SIZE, MAX_SEQUENCES, MAX_TOKENS, CACHING, ORDERED, SLOTS, HOST = range(7)
# columns of `timing`: the coefficients, then which model they are of, ms to load an adapter, ms to fetch a block
KIND, ADAPTER_MS, BLOCK_MS = range(7, 10)
# bits of what was said of an adapter
LOADED_BIT, RUNNING_BIT, WAITING_BIT = 1, 2, 4
# kinds of events
TOKEN_EVENT, FINISH_EVENT = range(2)
# step-time models
POLYNOMIAL, CLOSED_FORM = range(2)
