"""Does what is known of an endpoint hang together, and does the index say the same? For tests: it is slow."""

import numpy as np

from inferencesched._kernels import engine_rows as er
from inferencesched.prefix._holdings import NO_TAIL, Holdings, compiled
from inferencesched.prefix.index import PrefixIndex


def audit(holdings: Holdings, index: PrefixIndex, slot: int, own_size: int) -> None:
    """Recount everything from the rows alone; raises AssertionError where something differs."""
    top = int(holdings.meta[er.TOP])
    rows, words, copies = holdings.rows[:top].tolist(), holdings.words[:top].tolist(), holdings.copies[:top].tolist()
    used = [r for r in range(top) if rows[r][er.STATE] & er.USED]
    named = [r for r in used if not rows[r][er.STATE] & er.ANONYMOUS]
    assert sorted(used + _listed(rows, int(holdings.meta[er.FREE]), er.NEXT)) == list(range(top))
    assert len(named) == len(holdings)
    assert holdings.meta[er.FREED] == 0
    children: dict[int, list[int]] = {r: [] for r in (-1, *used)}
    for r in used:
        assert rows[r][er.BEFORE] in children, "a parent is known"
        children[rows[r][er.BEFORE]].append(r)
    for r in used:
        _audit_row(holdings, rows, words, copies, children, r, own_size)
    assert holdings.tails.keys() == {r for r in used if rows[r][er.STATE] & er.TAIL}
    assert sorted(entry - 1 for entry in holdings.names.tolist() if entry) == named
    find = compiled().find
    assert all(find(holdings.names, holdings.words, np.uint64(words[r][er.NAME])) == r for r in named)
    expected: dict[int, set[int]] = {}
    for r in used:
        if rows[r][er.STATE] >> er.LEVEL_SHIFT & er.LEVELS:
            expected.setdefault(words[r][er.KEY], set()).add(r)
    heads = {words[entry - 1][er.KEY]: entry - 1 for entry in holdings.own.tolist() if entry}
    assert heads.keys() == expected.keys()
    assert all(holdings.mask(key) == _mask(rows, some) for key, some in expected.items())
    for key, head in heads.items():
        assert sorted(_listed(rows, head, er.SAME, er.SAME_PREVIOUS)) == sorted(expected[key])
    held = {key for key, some in expected.items() if any(rows[r][er.STATE] >> er.LEVEL_SHIFT & er.ANY for r in some)}
    assert index.blocks(slot) == len(held), "the index holds what is held"
    for r in used:
        chain = holdings.chain(r)
        if len(chain) and not children[r]:
            depth = next((i for i, key in enumerate(chain.tolist()) if key not in held), len(chain))
            assert index.match(chain)[slot] == depth


def _audit_row(
    holdings: Holdings,
    rows: list[list[int]],
    words: list[list[int]],
    copies: list[list[int]],
    children: dict[int, list[int]],
    r: int,
    own_size: int,
) -> None:
    row, state, before = rows[r], rows[r][er.STATE], rows[r][er.BEFORE]
    assert sorted(_listed(rows, row[er.FIRST], er.NEXT, er.PREVIOUS)) == sorted(children[r])
    if state & er.ANONYMOUS:
        [child] = children[r]
        assert state & er.TIERS == rows[child][er.STATE] & er.TIERS, "the pieces of a block lie together"
        assert state & er.COMPLETE
    else:
        assert state & er.TIERS or children[r], "a block is known while it is held, or one behind it is known"
        on = {int(tier) for place, tier in enumerate(holdings.tier_of.tolist()) if copies[r][place]}
        assert state & er.TIERS == sum(on)
    tail = holdings.tails.get(r, NO_TAIL)
    assert bool(state & er.TAIL) == bool(len(tail.tokens))
    assert len(tail.tokens) < own_size
    assert before < 0 or words[r][er.SEED] == words[before][er.SEED]
    keyed = state & er.COMPLETE or (before >= 0 and rows[before][er.STATE] & er.KEYED)
    assert bool(state & er.KEYED) == bool(keyed)
    if keyed and not state & er.COMPLETE:
        assert words[r][er.KEY] == words[before][er.KEY]
    levels = 0
    if state & er.COMPLETE:
        needed, b = [state & er.TIERS], before
        while b >= 0 and rows[b][er.STATE] & er.TAIL:
            needed.append(rows[b][er.STATE] & er.TIERS)
            b = -1 if rows[b][er.STATE] & er.COMPLETE else rows[b][er.BEFORE]
        levels = int(np.bitwise_and.reduce([tiers << 1 | bool(tiers & holdings.counted) for tiers in needed]))
    assert state >> er.LEVEL_SHIFT & er.LEVELS == levels


def _listed(rows: list[list[int]], first: int, forward: int, back: int = -1) -> list[int]:
    """Return the rows of a linked list."""
    found: list[int] = []
    while first >= 0:
        assert first not in found, "a list ends"
        assert back < 0 or rows[first][back] == (found[-1] if found else -1)
        found.append(first)
        first = rows[first][forward]
    return found


def _mask(rows: list[list[int]], some: set[int]) -> int:
    levels = int(np.bitwise_or.reduce([rows[r][er.STATE] >> er.LEVEL_SHIFT & er.LEVELS for r in some]))
    return levels >> 1
