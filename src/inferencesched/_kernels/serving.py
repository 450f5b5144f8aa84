"""A simulated server's engine, iteration by iteration: continuous batching, chunked prefill, preemption.

The rules are those of vLLM's first-generation scheduler as Dynamo's mocker has them; replays agree with the mocker's.
"""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.kvcache import block_ident, extend, find_block, hold, keep, release, shortfall
from inferencesched._kernels.serving_state import (
    ADAPTER,
    BLOCK_MS,
    BLOCK_SIZE,
    CACHED,
    CACHED_ALL,
    CACHING,
    CHUNK,
    COMPUTED,
    END,
    EVENTS,
    EVICTABLE,
    FETCHED,
    FINISH,
    FINISH_EVENT,
    FIRST_TOKEN,
    FREE,
    GAPS,
    GENERATED,
    GIVEN,
    HELD,
    HOST,
    INPUT,
    KIND,
    LAST_TOKEN,
    LOGGED,
    MAX_SEQUENCES,
    MAX_TOKENS,
    NEXT,
    ORDERED,
    OUTPUT,
    PASSES,
    POLYNOMIAL,
    PREEMPTIONS,
    PREFILLING,
    PROMPT_ALL,
    READY,
    REFERENCES,
    ROOM,
    RUNNING,
    SERVER,
    SLOTS,
    TOKEN_EVENT,
    TOP,
    WAIT_HEAD,
    WAIT_TAIL,
    WAITING,
    State,
)
from inferencesched._kernels.slots import begin_with, end_with, look, slot_for
from inferencesched._typing import FloatArray, IntArray


@kernel
def step_time(
    timing: FloatArray, capacity: int, prefills: int, ends: int, starts: int, tokens: int, pairs: float, context: int,
    decodes: int
) -> float:  # fmt: skip
    """Return how long a pass takes, ms.

    prefills: chunks, which end and start at positions that sum to `ends` and `starts`; tokens: all new ones; pairs:
    query-key pairs of the chunks; context: tokens that the decodes attend to; capacity: the server's KV tokens.
    """
    if timing[KIND] == POLYNOMIAL:  # prefill a2, a1, a0, decode d2, d1, d0, least decode time
        took = 0.0
        if prefills > 0:
            # whole-number means, as the mocker takes them: without the truncation replays differ
            new = float(prefills * (ends // prefills - starts // prefills))
            took += (timing[0] * new + timing[1]) * new + timing[2]
        if decodes > 0:
            share = min(1.0, context / capacity)
            took += max(timing[6], (timing[3] * share + timing[4]) * share + timing[5])
        return took
    # CLOSED_FORM: c0, w, b, a, k, r
    weights, compute = timing[1], timing[2] * tokens
    either = (weights**4 + compute**4) ** 0.25
    return float(timing[0] + either + timing[3] * pairs + timing[4] * context + timing[5] * decodes)


@kernel
def _begin(state: State, now: float, s: int) -> None:
    """Schedule one pass of server s at `now`, and say when it ends."""
    requests, servers, clocks, queue, nodes = state.requests, state.servers, state.clocks, state.queue, state.nodes
    table, blocks, tally, config, timing = state.table, state.blocks, state.tally, state.config, state.timing[s]
    lora, host = config[SLOTS] > 0, int(config[HOST])
    log, before = state.log, state.tally[LOGGED]
    size, budget = int(config[BLOCK_SIZE]), int(config[MAX_TOKENS])
    prefills, ends, starts, tokens, context, decodes = 0, 0, 0, 0, 0, 0
    pairs, beside = 0.0, 0.0  # beside the pass itself: ms of loading and fetching
    preempted = False
    r = 0
    while r < servers[s, RUNNING]:
        i = int(queue[s, r])
        known, computed = int(requests[i, INPUT] + requests[i, GENERATED]), int(requests[i, COMPUTED])
        chunk = min(known - computed, budget)
        requests[i, CHUNK] = 0
        r += 1
        if chunk == 0:
            continue
        gone = False
        while not gone and shortfall(requests, servers, nodes, table, blocks, s, i, computed + chunk, size):
            # last in, first out; its generated tokens stay, to be computed again as prompt
            servers[s, RUNNING] -= 1
            victim = int(queue[s, servers[s, RUNNING]])
            release(requests, servers, nodes, table, blocks, s, victim, size)
            if lora:
                end_with(state, s, int(requests[victim, ADAPTER]), now)
            requests[victim, COMPUTED] = 0
            requests[victim, CHUNK] = 0
            requests[victim, PREEMPTIONS] += 1
            requests[victim, NEXT] = servers[s, WAIT_HEAD]
            servers[s, WAIT_HEAD] = victim
            if servers[s, WAIT_TAIL] < 0:
                servers[s, WAIT_TAIL] = victim
            servers[s, WAITING] += 1
            preempted = True
            gone = victim == i
        if gone:
            break
        extend(requests, servers, nodes, table, blocks, tally, log, host, s, i, computed + chunk, size)
        requests[i, CHUNK] = chunk
        budget -= chunk
        tokens += chunk
        if requests[i, PREFILLING]:
            prefills += 1
            ends += computed + chunk
            starts += computed
            pairs += chunk * (computed + chunk / 2.0)
        else:
            decodes += 1
            context += known
    before_it, i = -1, int(servers[s, WAIT_HEAD])  # who waits directly before i
    while not preempted and budget > 0 and servers[s, RUNNING] < config[MAX_SEQUENCES] and i >= 0:
        after = int(requests[i, NEXT])
        slot = slot_for(state, s, int(requests[i, ADAPTER])) if lora else 0
        if slot < 0:  # no memory for its adapter: those behind it may go
            before_it, i = i, after
            continue
        known = int(requests[i, INPUT] + requests[i, GENERATED])
        hits, revived = 0, 0
        if config[CACHING]:
            # at least one token is computed, whatever is cached
            for j in range((known - 1) // size):
                node = find_block(table, s, block_ident(requests, blocks, i, j))
                if node < 0:
                    break
                hits += 1
                revived += nodes[s, node, REFERENCES] == 0
        if (known + size - 1) // size - hits > servers[s, FREE] + servers[s, EVICTABLE] - revived:
            break  # nobody overtakes the head of the line
        if before_it < 0:
            servers[s, WAIT_HEAD] = after
        else:
            requests[before_it, NEXT] = after
        if after < 0:
            servers[s, WAIT_TAIL] = before_it
        servers[s, WAITING] -= 1
        if lora:
            beside += begin_with(state, s, slot, int(requests[i, ADAPTER]), now)
        for j in range(hits):
            hold(servers, nodes, s, find_block(table, s, block_ident(requests, blocks, i, j)))
        cached = hits * size
        if host > 0:  # what continues it there is fetched
            for j in range(hits, (known - 1) // size):
                ident = block_ident(requests, blocks, i, j)
                there = find_block(table, s, ident) >= 0
                if find_block(table, s + host, ident) >= 0:
                    keep(servers, nodes, table, s + host, ident)
                elif not there:
                    break
                cached += size
                if not there:
                    beside += timing[BLOCK_MS]
                    tally[FETCHED] += 1
        if requests[i, GIVEN] > 0:  # the prompt was counted where it was computed
            cached = max(cached, min(int(requests[i, GIVEN]), known - 1))
        else:
            if requests[i, PROMPT_ALL] == 0:
                requests[i, CACHED] = cached
            requests[i, CACHED_ALL] += cached
            requests[i, PROMPT_ALL] += known
        chunk = min(known - cached, budget)
        requests[i, COMPUTED] = cached
        requests[i, HELD] = hits
        extend(requests, servers, nodes, table, blocks, tally, log, host, s, i, cached + chunk, size)
        requests[i, CHUNK] = chunk
        requests[i, PREFILLING] = 1
        queue[s, servers[s, RUNNING]] = i
        servers[s, RUNNING] += 1
        budget -= chunk
        tokens += chunk
        prefills += 1
        ends += cached + chunk
        starts += cached
        pairs += chunk * (cached + chunk / 2.0)
        i = after
    took = step_time(timing, servers[s, ROOM] * size, prefills, ends, starts, tokens, pairs, context, decodes)
    clocks[s, END] = now + (took + beside)
    tally[PASSES] += 1
    if log.shape[0] > 0:
        state.logged[before : tally[LOGGED]] = now


@kernel
def _end(state: State, s: int) -> None:
    """End the pass of server s: everybody whose known tokens are computed gets one more."""
    requests, times, servers, clocks, queue = state.requests, state.times, state.servers, state.clocks, state.queue
    nodes, table, blocks, events, kinds = state.nodes, state.table, state.blocks, state.events, state.kinds
    gaps, tally, config = state.gaps, state.tally, state.config
    now = clocks[s, END]
    kept = 0
    gap, alike = -1.0, 0
    for r in range(servers[s, RUNNING]):
        i = int(queue[s, r])
        requests[i, COMPUTED] += requests[i, CHUNK]
        finished = False
        if requests[i, CHUNK] > 0 and requests[i, COMPUTED] == requests[i, INPUT] + requests[i, GENERATED]:
            requests[i, GENERATED] += 1
            requests[i, PREFILLING] = 0
            if times[i, FIRST_TOKEN] != times[i, FIRST_TOKEN]:
                times[i, FIRST_TOKEN] = now
                events[0, tally[EVENTS]] = now
                events[1, tally[EVENTS]] = i
                kinds[tally[EVENTS]] = TOKEN_EVENT
                tally[EVENTS] += 1
            else:
                since = now - times[i, LAST_TOKEN]
                if since != gap:
                    if alike > 0:
                        gaps[0, tally[GAPS]] = gap
                        gaps[1, tally[GAPS]] = alike
                        tally[GAPS] += 1
                    gap, alike = since, 0
                alike += 1
            times[i, LAST_TOKEN] = now
            finished = requests[i, GENERATED] >= requests[i, OUTPUT]
        requests[i, CHUNK] = 0
        if finished:
            times[i, FINISH] = now
            events[0, tally[EVENTS]] = now
            events[1, tally[EVENTS]] = i
            kinds[tally[EVENTS]] = FINISH_EVENT
            tally[EVENTS] += 1
            release(requests, servers, nodes, table, blocks, s, i, int(config[BLOCK_SIZE]))
            if config[SLOTS] > 0:
                end_with(state, s, int(requests[i, ADAPTER]), now)
        else:
            queue[s, kept] = i
            kept += 1
    if alike > 0:
        gaps[0, tally[GAPS]] = gap
        gaps[1, tally[GAPS]] = alike
        tally[GAPS] += 1
    servers[s, RUNNING] = kept
    clocks[s, READY] = now if kept > 0 or servers[s, WAITING] > 0 else np.inf
    clocks[s, END] = np.inf


@kernel
def _decode_on(state: State, s: int, limit: float) -> None:
    """Make the next passes of server s at once, as long as they only decode: nobody waits, ends, or is thrown out.

    Equal to `_begin` and `_end`, bit for bit: the same sums in the same order. Passes between two blocks that get
    full or are begun need no look at any request.
    """
    requests, times, servers, clocks, queue = state.requests, state.times, state.servers, state.clocks, state.queue
    nodes, table, blocks, gaps, tally = state.nodes, state.table, state.blocks, state.gaps, state.tally
    config, timing, log = state.config, state.timing[s], state.log
    now, running, size = clocks[s, READY], servers[s, RUNNING], int(config[BLOCK_SIZE])
    if servers[s, WAITING] > 0 or running > config[MAX_TOKENS]:
        return
    context, capacity = 0, servers[s, ROOM] * size
    for r in range(running):
        i = queue[s, r]
        if requests[i, PREFILLING] or times[i, LAST_TOKEN] != now:
            return
        context += requests[i, INPUT] + requests[i, GENERATED]
    going = True
    while going:
        passes, begun = 1 << 62, 0
        for r in range(running):
            i = queue[s, r]
            room = requests[i, HELD] * size - requests[i, COMPUTED]
            begun += room == 0
            passes = min(passes, requests[i, OUTPUT] - requests[i, GENERATED] - 1, max(1, room - 1))
        if passes == 0 or begun > servers[s, FREE] + servers[s, EVICTABLE]:
            break  # somebody's last token, or a preemption
        if log.shape[0] > 0 and tally[LOGGED] + 2 * running > log.shape[0]:
            break  # what was said has to be heard first
        made, before, began = 0, tally[LOGGED], now
        while made < passes:
            end = now + step_time(timing, capacity, 0, 0, 0, running, 0.0, context, running)
            if not now < limit or end > limit:
                going = False
                break
            gaps[0, tally[GAPS]] = end - now
            gaps[1, tally[GAPS]] = running
            tally[GAPS] += 1
            tally[PASSES] += 1
            context += running
            now = end
            made += 1
        if made > 0:
            for r in range(running):
                i = queue[s, r]
                computed = int(requests[i, COMPUTED])
                if requests[i, HELD] * size - computed <= 1:
                    extend(
                        requests, servers, nodes, table, blocks, tally, log, int(config[HOST]), s, i, computed + 1, size
                    )
                requests[i, GENERATED] += made
                requests[i, COMPUTED] += made
            if log.shape[0] > 0:
                state.logged[before : tally[LOGGED]] = began
    if now > clocks[s, READY]:
        clocks[s, READY] = now
        for r in range(running):
            times[queue[s, r], LAST_TOKEN] = now


@kernel
def _deaf(state: State) -> bool:
    """Has the log no room for what one more pass may say?"""
    room = state.log.shape[0]
    if room == 0:
        return False
    most = state.config[MAX_TOKENS] // state.config[BLOCK_SIZE] + 3 * state.queue.shape[1] + 1
    return bool(state.tally[LOGGED] + most > room)


@kernel
def advance(state: State, until: float, samples: FloatArray, signals: FloatArray) -> bool:
    """Run every server up to `until`: passes that start before it, and what ends by then; return whether that was all.

    A pass never starts at `until` itself, so that all that arrives then is waiting when it does. samples float64[S]: when
    each server's signals are read on the way (NaN: not; those that were are NaN afterwards); signals float64[3, S]: waiting,
    running, share of blocks held. It stops where the log is full: called again, it goes on to the same end.
    """
    servers, clocks = state.servers, state.clocks
    for s in range(clocks.shape[0]):
        stop = samples[s]
        sampling = stop == stop
        while True:
            limit = stop if sampling else until
            while True:
                if clocks[s, END] < np.inf:
                    if clocks[s, END] > limit:
                        break
                    _end(state, s)
                elif clocks[s, READY] < limit:
                    if _deaf(state):
                        return False
                    _decode_on(state, s, limit)
                    if _deaf(state):
                        return False
                    if not clocks[s, READY] < limit:
                        break
                    _begin(state, clocks[s, READY], s)
                else:
                    break
            if not sampling:
                break
            sampling = False
            samples[s] = np.nan
            signals[0, s] = servers[s, WAITING]
            signals[1, s] = servers[s, RUNNING]
            signals[2, s] = 1.0 - (servers[s, FREE] + servers[s, EVICTABLE]) / servers[s, ROOM]
            if state.config[SLOTS] > 0:
                look(state, s)
    return True


@kernel
def advance_to_event(state: State, until: float) -> float:
    """Run every server up to the first event, or to `until` where there is none before; return up to when.

    All events of that time are there, and no pass starts at it: what is sent then is waiting when one does. `advance` goes on
    from here, to the same end as without the stop. Where the log is full it stops, too: at the pass that has to wait for that.
    """
    clocks, before = state.clocks, state.tally[EVENTS]
    while True:
        first = np.inf
        for s in range(clocks.shape[0]):
            if clocks[s, END] == np.inf and clocks[s, READY] < until:
                if _deaf(state):
                    return float(clocks[s, READY])
                _begin(state, clocks[s, READY], s)
            first = min(first, clocks[s, END])
        if first > until:
            return until
        if first == np.inf:  # nothing is left to do
            return np.inf
        for s in range(clocks.shape[0]):
            if clocks[s, END] == first:
                _end(state, s)
        if state.tally[EVENTS] > before:
            return first


@kernel
def overlaps(state: State, i: int, out: IntArray) -> None:
    """Count how many leading blocks of request i's prompt each server could reuse; out int64[S]."""
    requests, table, blocks, config = state.requests, state.table, state.blocks, state.config
    size = int(config[BLOCK_SIZE])
    reusable = (requests[i, INPUT] - 1) // size
    for s in range(state.clocks.shape[0]):
        out[s] = 0
        while out[s] < reusable and find_block(table, s, block_ident(requests, blocks, i, int(out[s]))) >= 0:
            out[s] += 1


@kernel
def enqueue(state: State, i: int, s: int, now: float) -> None:
    """Put request i into server s's line, at its end or where its order says; an idle server may start a pass at `now`.

    Who was thrown out stands at the head whatever its order is, and nobody is put before it who comes later by that order.
    """
    requests, servers, clocks = state.requests, state.servers, state.clocks
    requests[i, SERVER] = s
    requests[i, NEXT] = -1
    last = int(servers[s, WAIT_TAIL])
    if last >= 0 and state.config[ORDERED] and state.order[i] < state.order[last]:
        before, after = -1, int(servers[s, WAIT_HEAD])
        while state.order[after] <= state.order[i]:
            before, after = after, int(requests[after, NEXT])
        requests[i, NEXT] = after
        if before >= 0:
            requests[before, NEXT] = i
        else:
            servers[s, WAIT_HEAD] = i
    else:
        if last >= 0:
            requests[last, NEXT] = i
        else:
            servers[s, WAIT_HEAD] = i
        servers[s, WAIT_TAIL] = i
    servers[s, WAITING] += 1
    if clocks[s, END] == np.inf and clocks[s, READY] == np.inf:
        clocks[s, READY] = now


@kernel
def members_of(state: State, s: int, members: IntArray) -> int:
    """List the requests of server s in members int64[N], running ones first; return how many."""
    count = 0
    for r in range(state.servers[s, RUNNING]):
        members[count] = state.queue[s, r]
        count += 1
    i = int(state.servers[s, WAIT_HEAD])
    while i >= 0:
        members[count] = i
        count += 1
        i = int(state.requests[i, NEXT])
    return count


@kernel
def copy_server(state: State, s: int, to: State, members: IntArray) -> int:
    """Copy server s and its requests to server 0 of another state; list them in members int64[N], return how many."""
    requests, servers = state.requests, state.servers
    to.servers[0] = servers[s]
    to.clocks[0] = state.clocks[s]
    to.timing[0] = state.timing[s]
    to.slots[0] = state.slots[s]
    host = int(state.config[HOST])
    if host > 0:
        to.servers[1] = servers[s + host]
        to.nodes[1] = state.nodes[s + host]
        to.table[1] = state.table[s + host]
    # loops, not slices: a third of the time
    for node in range(servers[s, TOP]):
        for column in range(4):
            to.nodes[0, node, column] = state.nodes[s, node, column]
    for at in range(state.table.shape[1]):
        to.table[0, at, 0] = state.table[s, at, 0]
        to.table[0, at, 1] = state.table[s, at, 1]
    count = members_of(state, s, members)
    for r in range(servers[s, RUNNING]):
        to.queue[0, r] = members[r]
    for m in range(count):
        to.requests[members[m]] = requests[members[m]]
        to.times[members[m]] = state.times[members[m]]
    return count
