"""A simulated server's KV blocks: found by content, shared, evicted least recently used first.

A block is *held* (references > 0), *cached* (in the least-recently-used list: its content is known, it may be evicted),
*anonymous* (held by one request and not full yet: counted, no node), or *free*. Blocks are known by identity, so that
two requests with the same content share one. A prompt's full blocks have the trace's ids; blocks with generated tokens
have ids of their own, which only the same request after a preemption can find again.
"""

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.serving_state import (
    COMPUTED,
    EVICTABLE,
    EVICTED,
    FIRST_BLOCK,
    FOLLOWING,
    FREE,
    FULL,
    HELD,
    ID,
    LOGGED,
    LRU_HEAD,
    LRU_TAIL,
    OWN_BLOCK,
    PREVIOUS,
    REFERENCES,
    SPARE,
    TOP,
    Int32Array,
)
from inferencesched._typing import IntArray


@kernel
def _home(ident: int, size: int) -> int:
    """Return where an id is looked for first."""
    return (((ident * 2654435761) & 0xFFFFFFFF) * size) >> 32


@kernel
def find_block(table: Int32Array, s: int, ident: int) -> int:
    """Return the node of a block id, or -1."""
    size = table.shape[1]
    at = _home(ident, size)
    while table[s, at, 1] != 0:
        if table[s, at, 0] == ident:
            return int(table[s, at, 1]) - 1
        at = (at + 1) & (size - 1)
    return -1


@kernel
def _insert(table: Int32Array, s: int, ident: int, node: int) -> None:
    """Enter a block id that is not there."""
    size = table.shape[1]
    at = _home(ident, size)
    while table[s, at, 1] != 0:
        at = (at + 1) & (size - 1)
    table[s, at, 0] = ident
    table[s, at, 1] = node + 1


@kernel
def _erase(table: Int32Array, s: int, ident: int) -> None:
    """Take out a block id that is there, shifting back what its probe sequence displaced."""
    size = table.shape[1]
    mask = size - 1
    hole = _home(ident, size)
    while table[s, hole, 0] != ident or table[s, hole, 1] == 0:
        hole = (hole + 1) & mask
    at = (hole + 1) & mask
    while table[s, at, 1] != 0:
        home = _home(int(table[s, at, 0]), size)
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[s, hole, 0] = table[s, at, 0]
            table[s, hole, 1] = table[s, at, 1]
            hole = at
        at = (at + 1) & mask
    table[s, hole, 1] = 0


@kernel
def _unlink(servers: IntArray, nodes: Int32Array, s: int, node: int) -> None:
    """Take a node out of the list of cached blocks."""
    before, after = nodes[s, node, PREVIOUS], nodes[s, node, FOLLOWING]
    if before >= 0:
        nodes[s, before, FOLLOWING] = after
    else:
        servers[s, LRU_HEAD] = after
    if after >= 0:
        nodes[s, after, PREVIOUS] = before
    else:
        servers[s, LRU_TAIL] = before
    servers[s, EVICTABLE] -= 1


@kernel
def _take_node(servers: IntArray, nodes: Int32Array, s: int) -> int:
    """Return an unused node."""
    node = int(servers[s, SPARE])
    if node >= 0:
        servers[s, SPARE] = nodes[s, node, FOLLOWING]
        return node
    node = int(servers[s, TOP])
    servers[s, TOP] += 1
    return node


@kernel
def _append(servers: IntArray, nodes: Int32Array, s: int, node: int) -> None:
    """Put a node at the end of the list of cached blocks: it is evicted last."""
    last = int(servers[s, LRU_TAIL])
    nodes[s, node, PREVIOUS] = last
    nodes[s, node, FOLLOWING] = -1
    if last >= 0:
        nodes[s, last, FOLLOWING] = node
    else:
        servers[s, LRU_HEAD] = node
    servers[s, LRU_TAIL] = node
    servers[s, EVICTABLE] += 1


@kernel
def _forget(servers: IntArray, nodes: Int32Array, table: Int32Array, s: int) -> int:
    """Take out the least recently used block; return its id."""
    node = int(servers[s, LRU_HEAD])
    ident = int(nodes[s, node, ID])
    _unlink(servers, nodes, s, node)
    _erase(table, s, ident)
    nodes[s, node, FOLLOWING] = servers[s, SPARE]
    servers[s, SPARE] = node
    return ident


@kernel
def keep(lists: IntArray, nodes: Int32Array, table: Int32Array, s: int, ident: int) -> None:
    """Have a block in a host's memory, row s, used just now; the least recently used one makes room."""
    node = find_block(table, s, ident)
    if node >= 0:
        _unlink(lists, nodes, s, node)
    else:
        if lists[s, FREE] > 0:
            lists[s, FREE] -= 1
        else:
            _forget(lists, nodes, table, s)
        node = _take_node(lists, nodes, s)
        nodes[s, node, ID] = ident
        nodes[s, node, REFERENCES] = 0
        _insert(table, s, ident, node)
    _append(lists, nodes, s, node)


@kernel
def _take_block(
    servers: IntArray, nodes: Int32Array, table: Int32Array, tally: IntArray, log: IntArray,
    host: int, s: int
) -> None:  # fmt: skip
    """Use up a free block, or else the least recently used cached one, which the host keeps if it has room for any. The caller knows that there is one."""
    if servers[s, FREE] > 0:
        servers[s, FREE] -= 1
        return
    node = int(servers[s, LRU_HEAD])  # `_forget`, written out for the same reason as in `release`
    ident = int(nodes[s, node, ID])
    _unlink(servers, nodes, s, node)
    _erase(table, s, ident)
    nodes[s, node, FOLLOWING] = servers[s, SPARE]
    servers[s, SPARE] = node
    if host > 0:
        keep(servers, nodes, table, s + host, ident)
    tally[EVICTED] += 1
    if log.shape[0] > 0:
        log[tally[LOGGED], 0] = s
        log[tally[LOGGED], 1] = -1
        log[tally[LOGGED], 2] = ident
        tally[LOGGED] += 1


@kernel
def hold(servers: IntArray, nodes: Int32Array, s: int, node: int) -> None:
    """Add a reference to a known block."""
    if nodes[s, node, REFERENCES] == 0:
        _unlink(servers, nodes, s, node)
    nodes[s, node, REFERENCES] += 1


@kernel
def _name(servers: IntArray, nodes: Int32Array, table: Int32Array, s: int, ident: int) -> None:
    """Give a block that was just taken its identity."""
    node = _take_node(servers, nodes, s)
    nodes[s, node, ID] = ident
    nodes[s, node, REFERENCES] = 1
    _insert(table, s, ident, node)


@kernel
def block_ident(requests: IntArray, blocks: IntArray, i: int, j: int) -> int:
    """Return the id of request i's block j."""
    full = requests[i, FULL]
    if j < full:
        return int(blocks[requests[i, FIRST_BLOCK] + j])
    return int(requests[i, OWN_BLOCK] + (j - full))


@kernel
def shortfall(
    requests: IntArray, servers: IntArray, nodes: Int32Array, table: Int32Array, blocks: IntArray, s: int, i: int,
    length: int, size: int
) -> bool:  # fmt: skip
    """Would holding request i up to `length` tokens take more blocks than are free or cached?"""
    room = servers[s, FREE] + servers[s, EVICTABLE]
    held = requests[i, HELD]
    more = (length + size - 1) // size - held
    if more <= room:  # even if none of them is shared
        return False
    for j in range(held, length // size):
        node = find_block(table, s, block_ident(requests, blocks, i, j))
        if node >= 0 and nodes[s, node, REFERENCES] > 0:
            more -= 1
    return bool(more > room)


@kernel
def extend(
    requests: IntArray, servers: IntArray, nodes: Int32Array, table: Int32Array, blocks: IntArray, tally: IntArray,
    log: IntArray, host: int, s: int, i: int, length: int, size: int
) -> None:  # fmt: skip
    """Let request i hold blocks for `length` tokens; it has them for COMPUTED. Full ones can be found at once.

    The log, if there is one, has an entry for each evicted block, and then one for as much of the prompt as is there.
    """
    held = int(requests[i, HELD])
    filled = int(requests[i, COMPUTED]) // size
    if filled < held and length >= held * size:  # its anonymous last block gets full
        ident = block_ident(requests, blocks, i, filled)
        node = find_block(table, s, ident)
        if node >= 0:
            hold(servers, nodes, s, node)
            servers[s, FREE] += 1
        else:
            _name(servers, nodes, table, s, ident)
    for j in range(held, (length + size - 1) // size):
        if (j + 1) * size > length:
            _take_block(servers, nodes, table, tally, log, host, s)
            continue
        ident = block_ident(requests, blocks, i, j)
        node = find_block(table, s, ident)
        if node >= 0:
            hold(servers, nodes, s, node)
        else:
            _take_block(servers, nodes, table, tally, log, host, s)
            _name(servers, nodes, table, s, ident)
    requests[i, HELD] = (length + size - 1) // size
    if log.shape[0] > 0:
        upto = min(length // size, requests[i, FULL])
        if upto > filled:
            log[tally[LOGGED], 0] = s
            log[tally[LOGGED], 1] = i
            log[tally[LOGGED], 2] = upto
            tally[LOGGED] += 1


@kernel
def release(
    requests: IntArray, servers: IntArray, nodes: Int32Array, table: Int32Array, blocks: IntArray, s: int, i: int,
    size: int
) -> None:  # fmt: skip
    """Give back request i's blocks, the last first, so that tails are evicted before what they continue."""
    filled = int(requests[i, COMPUTED]) // size
    servers[s, FREE] += requests[i, HELD] - filled
    for j in range(filled - 1, -1, -1):
        node = find_block(table, s, block_ident(requests, blocks, i, j))
        nodes[s, node, REFERENCES] -= 1
        if nodes[s, node, REFERENCES] == 0:
            last = int(servers[s, LRU_TAIL])  # `_append`, written out: a call a block is a fifth of a replay's time
            nodes[s, node, PREVIOUS] = last
            nodes[s, node, FOLLOWING] = -1
            if last >= 0:
                nodes[s, last, FOLLOWING] = node
            else:
                servers[s, LRU_HEAD] = node
            servers[s, LRU_TAIL] = node
            servers[s, EVICTABLE] += 1
    requests[i, HELD] = 0
