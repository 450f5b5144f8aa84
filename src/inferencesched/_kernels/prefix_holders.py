"""Who holds what: the pieces of each run, and each endpoint's list of its own. `prefix_memory` draws them.

A piece says that an endpoint holds blocks [LO, HI) of a run. One endpoint's pieces of a run do not overlap, and where
there is no capacity they do not touch either; so a hole is simply what lies between two pieces.

Each endpoint has its pieces in a list, oldest first. With a capacity the order is that of last use, tails before heads,
and an endpoint over it gives up blocks from the end of its oldest piece. That is exactly an LRU list of single blocks:
what is inserted touches a whole chain, so nothing behind a block was used later than the block, and pieces that were
used together have the deeper one before the other in the list.

A run with more pieces than `_crowd` keeps a column, so that matching and editing need not walk a long list.
"""

from inferencesched._kernels._compile import kernel, load32, store32
from inferencesched._kernels.prefix_gate import shut, unshut
from inferencesched._kernels.prefix_memory import (
    CAPACITY,
    COLUMN,
    COLUMN_WIDTH,
    COLUMNS,
    COUNT,
    COVER,
    CROWDED,
    CUTS,
    ENDING,
    ENDING_CHILDREN,
    ENDPOINT,
    ENDS,
    EVICTED,
    FOLLOW,
    FREE_CELLS,
    FREE_COLUMNS,
    FREE_PIECES,
    HEAD,
    HELD,
    HI,
    LENGTH,
    LIMIT,
    LO,
    NEWER,
    NEWEST,
    OLDER,
    OLDEST,
    PAGE,
    PARENT,
    PENDING,
    PIECES,
    RUN,
    SOLE,
    SOLE_CUT,
    START,
    TO_TRIM,
    TOP,
    WIDTH,
    at,
    new_cell,
)
from inferencesched._typing import IntArray


@kernel
def _new_piece(root: IntArray, endpoint: int, run: int, lo: int, hi: int) -> int:
    unit = int(root[FREE_PIECES])
    if unit != 0:
        root[FREE_PIECES] = load32(at(root, unit))
    else:  # half a cell; the other half is free
        unit = new_cell(root)
        store32(at(root, unit + 1), 0)
        root[FREE_PIECES] = unit + 1
    piece = at(root, unit)
    store32(piece + ENDPOINT, endpoint)
    store32(piece + LO, lo)
    store32(piece + HI, hi)
    store32(piece + RUN, run)
    root[PIECES] += 1
    return unit


@kernel
def _crowd(root: IntArray) -> int:
    """Return how many pieces a run may have in a list: a column is worth its memory above it."""
    return 4 + (int(root[COLUMN_WIDTH]) >> 5)


# --- an endpoint's list ------------------------------------------------------------------------------------------


@kernel
def _unlink(root: IntArray, ends: int, piece: int) -> None:
    older, newer = load32(piece + OLDER), load32(piece + NEWER)
    if older != 0:
        store32(at(root, older) + NEWER, newer)
    else:
        store32(ends + OLDEST, newer)
    if newer != 0:
        store32(at(root, newer) + OLDER, older)
    else:
        store32(ends + NEWEST, older)


@kernel
def _link(root: IntArray, ends: int, unit: int, newer: int) -> None:
    """Put a piece right before `newer`, at the newest end where that is 0."""
    piece = at(root, unit)
    older = load32(at(root, newer) + OLDER) if newer != 0 else load32(ends + NEWEST)
    store32(piece + OLDER, older)
    store32(piece + NEWER, newer)
    if older != 0:
        store32(at(root, older) + NEWER, unit)
    else:
        store32(ends + OLDEST, unit)
    if newer != 0:
        store32(at(root, newer) + OLDER, unit)
    else:
        store32(ends + NEWEST, unit)


# --- a run's pieces ----------------------------------------------------------------------------------------------


@kernel
def _first(root: IntArray, run: int, endpoint: int) -> int:
    """Return the address of the link to an endpoint's first piece of a run, or to where it would be."""
    column = load32(run + COLUMN)
    if column != 0:
        heads = at(root, column)
        return heads + CUTS + ((load32(heads + WIDTH) + endpoint) << 2)
    link = run + HEAD
    unit = load32(link)
    while unit != 0:
        piece = at(root, unit)
        if load32(piece + ENDPOINT) >= endpoint:
            break
        link = piece + FOLLOW
        unit = load32(link)
    return link


@kernel
def _next(root: IntArray, link: int, endpoint: int) -> int:
    """Return the piece behind a link if it is the endpoint's, or 0."""
    unit = load32(link)
    return unit if unit != 0 and load32(at(root, unit) + ENDPOINT) == endpoint else 0


@kernel
def _insert(root: IntArray, run: int, link: int, unit: int) -> None:
    store32(at(root, unit) + FOLLOW, load32(link))
    store32(link, unit)
    store32(run + COUNT, load32(run + COUNT) + 1)


@kernel
def _delete(root: IntArray, run: int, link: int, ends: int) -> None:
    """Forget the piece behind a link."""
    unit = load32(link)
    piece = at(root, unit)
    store32(link, load32(piece + FOLLOW))
    store32(run + COUNT, load32(run + COUNT) - 1)
    _unlink(root, ends, piece)
    store32(piece, root[FREE_PIECES])
    root[FREE_PIECES] = unit
    root[PIECES] -= 1


@kernel
def _settle(root: IntArray, unit: int, endpoint: int) -> None:
    """Bring what a run keeps for matching up to date after a change of one endpoint's pieces; note what has to be done."""
    run = at(root, unit)
    column = load32(run + COLUMN)
    if column != 0:
        cuts = at(root, column) + CUTS
        width = load32(cuts - CUTS + WIDTH)
        cut = 0
        piece = load32(cuts + ((width + endpoint) << 2))
        while piece != 0:
            here = at(root, piece)
            if load32(here + LO) != cut:
                break
            cut = load32(here + HI)
            piece = load32(here + FOLLOW)
        store32(cuts + (endpoint << 2), cut)
        if load32(run + COUNT) <= _crowd(root) >> 1:
            _uncrowd(root, run)
    sole = 0
    if load32(run + COUNT) == 1:
        here = at(root, load32(run + HEAD))
        if load32(here + LO) == 0:
            sole = load32(here + ENDPOINT) + 1
            store32(run + SOLE_CUT, load32(here + HI))
    store32(run + SOLE, sole)
    if load32(run + ENDING) == 0 and load32(run + ENDING_CHILDREN) == 0 and load32(run + PENDING) == 0:
        store32(run + PENDING, root[TO_TRIM] if root[TO_TRIM] != 0 else -1)
        root[TO_TRIM] = unit


@kernel
def _uncrowd(root: IntArray, run: int) -> None:
    """Make one list of a run's column."""
    column = load32(run + COLUMN)
    here = at(root, column)
    width = load32(here + WIDTH)
    head = 0
    for endpoint in range(width - 1, -1, -1):
        first = load32(here + CUTS + ((width + endpoint) << 2))
        if first != 0:
            piece = at(root, first)
            while load32(piece + FOLLOW) != 0:
                piece = at(root, load32(piece + FOLLOW))
            store32(piece + FOLLOW, head)
            head = first
    store32(run + HEAD, head)
    store32(run + COLUMN, 0)
    root[COLUMNS] -= 1
    if width == root[COLUMN_WIDTH]:
        store32(here, root[FREE_COLUMNS])
        root[FREE_COLUMNS] = column
    else:
        _break_up(root, column, width)


@kernel
def _column_units(width: int) -> int:
    """Return how many units a column for `width` endpoints takes, an even number."""
    return (width // 4 + 2) & ~1


@kernel
def _break_up(root: IntArray, column: int, width: int) -> None:
    """Make pieces of a column from before the endpoints grew: nobody will ask for one of its width again."""
    for unit in range(column, column + _column_units(width)):
        store32(at(root, unit), root[FREE_PIECES])
        root[FREE_PIECES] = unit


@kernel
def widen(root: IntArray, width: int) -> None:
    """Make new columns for `width` endpoints."""
    shut(root)
    while root[FREE_COLUMNS] != 0:
        column = root[FREE_COLUMNS]
        root[FREE_COLUMNS] = load32(at(root, column))
        _break_up(root, column, root[COLUMN_WIDTH])
    root[COLUMN_WIDTH] = width
    unshut(root)


@kernel
def crowd(root: IntArray) -> None:
    """Give the run root[CROWDED] a column. A page has room for it: the rest of the last page is left to cells."""
    shut(root)
    run = at(root, root[CROWDED])
    root[CROWDED] = 0
    width = root[COLUMN_WIDTH]
    column = root[FREE_COLUMNS]
    if column != 0:
        root[FREE_COLUMNS] = load32(at(root, column))
    else:
        units = _column_units(width)
        while (root[TOP] & (PAGE - 1)) + units > PAGE:
            store32(at(root, root[TOP]), root[FREE_CELLS])
            root[FREE_CELLS] = root[TOP]
            root[TOP] += 2
        column = root[TOP]
        root[TOP] += units
    here = at(root, column)
    store32(here + WIDTH, width)
    for i in range(2 * width):
        store32(here + CUTS + (i << 2), 0)
    unit, before, tail, reached = load32(run + HEAD), -1, 0, False
    while unit != 0:
        piece = at(root, unit)
        after = load32(piece + FOLLOW)
        endpoint = load32(piece + ENDPOINT)
        cut = here + CUTS + (endpoint << 2)
        if endpoint != before:
            store32(cut + (width << 2), unit)
            reached = True
        else:
            store32(tail + FOLLOW, unit)
        if reached and load32(piece + LO) == load32(cut):
            store32(cut, load32(piece + HI))
        else:
            reached = False
        store32(piece + FOLLOW, 0)
        unit, before, tail = after, endpoint, piece
    store32(run + HEAD, 0)
    store32(run + COLUMN, column)
    root[COLUMNS] += 1
    unshut(root)


# --- holding -----------------------------------------------------------------------------------------------------


@kernel
def _hold(root: IntArray, unit: int, endpoint: int, a: int, c: int) -> None:
    """Let an endpoint hold [a, c) of a run, and with a capacity touch all it holds of [0, c).

    A piece that goes on behind c was used earlier there, and is cut at c where that matters.
    """
    bounded = root[CAPACITY] > 0
    run = at(root, unit)
    column = load32(run + COLUMN)
    if column != 0 and endpoint >= load32(at(root, column) + WIDTH):
        _uncrowd(root, run)
    ends = root[ENDS] + (endpoint << 4)
    length = load32(run + LENGTH)
    ending, held = load32(run + ENDING), load32(ends + HELD)
    link = _first(root, run, endpoint)
    lo, hi, merged, touched = a, c, 0, 0
    while True:
        piece = _next(root, link, endpoint)
        if piece == 0:
            break
        here = at(root, piece)
        begin, end = load32(here + LO), load32(here + HI)
        if begin > c or (begin == c and bounded):
            break
        if a == c or end < a:  # used, but not changed
            if bounded:
                if end > c:
                    store32(here + LO, c)
                    piece = _new_piece(root, endpoint, unit, begin, c)
                    _insert(root, run, link, piece)
                    here = at(root, piece)
                else:
                    _unlink(root, ends, here)
                _link(root, ends, piece, touched)
                touched = piece
            link = here + FOLLOW
            continue
        lo = min(lo, begin)
        if end > c and bounded:
            store32(here + LO, c)
            held -= c - begin
            break
        held -= end - begin
        ending -= end == length
        hi = max(hi, end)
        if merged == 0:
            merged = piece
            link = here + FOLLOW
        else:
            _delete(root, run, link, ends)
    if a < c:
        if merged == 0:
            merged = _new_piece(root, endpoint, unit, lo, hi)
            _insert(root, run, link, merged)
            _link(root, ends, merged, touched)
        else:
            here = at(root, merged)
            store32(here + LO, lo)
            store32(here + HI, hi)
            if bounded:
                _unlink(root, ends, here)
                _link(root, ends, merged, touched)
        held += hi - lo
        ending += hi == length
    store32(run + ENDING, ending)
    store32(ends + HELD, held)
    _settle(root, unit, endpoint)
    if load32(run + COLUMN) == 0 and load32(run + COUNT) > _crowd(root):
        root[CROWDED] = unit


@kernel
def _drop(root: IntArray, unit: int, endpoint: int, a: int, b: int) -> int:
    """Take [a, b) of a run from an endpoint; return how many blocks it held of it."""
    run = at(root, unit)
    column = load32(run + COLUMN)
    if column != 0 and endpoint >= load32(at(root, column) + WIDTH):
        return 0
    ends = root[ENDS] + (endpoint << 4)
    length = load32(run + LENGTH)
    gone = 0
    link = _first(root, run, endpoint)
    while True:
        piece = _next(root, link, endpoint)
        if piece == 0:
            break
        here = at(root, piece)
        begin, end = load32(here + LO), load32(here + HI)
        if begin >= b:
            break
        if end <= a:
            link = here + FOLLOW
            continue
        gone += min(end, b) - max(begin, a)
        if end == length and b >= end:
            store32(run + ENDING, load32(run + ENDING) - 1)
        if begin >= a and end <= b:
            _delete(root, run, link, ends)
            continue
        if begin < a and end > b:  # a hole: what is before it was used as long ago as what is behind it
            store32(here + LO, b)
            piece = _new_piece(root, endpoint, unit, begin, a)
            _insert(root, run, link, piece)
            _link(root, ends, piece, load32(here + NEWER))
            break
        if begin < a:
            store32(here + HI, a)
        else:
            store32(here + LO, b)
        link = here + FOLLOW
    if gone > 0:
        store32(ends + HELD, load32(ends + HELD) - gone)
        _settle(root, unit, endpoint)
    return gone


@kernel
def shed(root: IntArray, endpoint: int) -> int:
    """Let an endpoint give up its least recently used blocks down to its capacity; return how many."""
    ends = root[ENDS] + (endpoint << 4)
    keep, gone = load32(ends + LIMIT), 0
    if keep == 0:
        keep = root[CAPACITY]
    while load32(ends + HELD) > keep:
        oldest = at(root, load32(ends + OLDEST))
        hi = load32(oldest + HI)
        lo = max(load32(oldest + LO), hi - (load32(ends + HELD) - keep))
        gone += _drop(root, load32(oldest + RUN), endpoint, lo, hi)
    root[EVICTED] += gone
    return gone


@kernel
def hold(root: IntArray, endpoint: int, begin: int, leaf: int) -> None:
    """Let an endpoint hold the blocks from depth `begin` on of the chain that ends after root[COVER] blocks of a run.

    With a capacity the whole chain is used, and what is too much goes. Runs may wait for `prefix_table.trim` after
    this, and one, root[CROWDED], for `crowd`.
    """
    bounded = root[CAPACITY] > 0
    root[CROWDED] = 0
    unit, cover = leaf, root[COVER]
    while unit != 0:
        run = at(root, unit)
        start, parent = load32(run + START), load32(run + PARENT)
        a = min(max(begin - start, 0), cover)
        if a < cover or bounded:
            _hold(root, unit, endpoint, a, cover)
        if start <= begin and not bounded:
            break
        if parent != 0:
            cover = start - load32(at(root, parent) + START)
        unit = parent
    if bounded:
        shed(root, endpoint)
        unit = root[CROWDED]
        if unit != 0 and load32(at(root, unit) + COUNT) <= _crowd(root):
            root[CROWDED] = 0


@kernel
def drop(root: IntArray, endpoint: int, spans: IntArray, count: int) -> int:
    """Take the first `count` of spans, int64[B, 3] of (run, lo, hi), from an endpoint; return how many blocks it held."""
    gone = 0
    for i in range(count):
        gone += _drop(root, spans[i, 0], endpoint, spans[i, 1], spans[i, 2])
    return gone


@kernel
def clear(root: IntArray, endpoint: int) -> int:
    """Take everything from an endpoint; return how many blocks. Newest first: so each is the first of its run."""
    ends = root[ENDS] + (endpoint << 4)
    gone = 0
    while load32(ends + NEWEST) != 0:
        piece = at(root, load32(ends + NEWEST))
        gone += _drop(root, load32(piece + RUN), endpoint, load32(piece + LO), load32(piece + HI))
    return gone
