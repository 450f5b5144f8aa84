"""Does every part of a prefix index agree with every other?

Written against the drawing in `inferencesched._kernels.prefix_memory`, in plain Python, a word at a time; for tests.
"""

from itertools import pairwise

from inferencesched._kernels.prefix_memory import (
    BITS,
    BLOCKS,
    CAPACITY,
    COLUMN_WIDTH,
    COLUMNS,
    FREE_CELLS,
    FREE_COLUMNS,
    FREE_PIECES,
    MOVE_FROM,
    MOVED,
    OLD,
    OLD_BITS,
    PIECES,
    RUNS,
    TO_TRIM,
    TOP,
    USED,
)
from inferencesched._kernels.prefix_memory import (
    MIX as MULTIPLIER,
)
from inferencesched.prefix._memory import Memory

#: Fields as positions of int32 in a record.
PARENT, START, LENGTH, LAST, HEAD, COUNT, COLUMN = range(7)
ENDING, CHILD, ENDING_CHILDREN, NEXT, PREVIOUS, LEVEL, PENDING, SOLE, SOLE_CUT = range(7, 16)
OWNER, BASE, BELOW, _, HASHES = range(5)
ENDPOINT, LO, HI, FOLLOW, OLDER, NEWER, RUN = range(7)
MIX, WORD = int(MULTIPLIER), (1 << 64) - 1


def audit(memory: Memory, endpoints: int) -> None:
    """Raise AssertionError where a count is wrong, a link leads astray, or a unit is used twice or lost."""
    book = _Book(memory)
    blocks = book.blocks()
    book.runs(blocks)
    pieces = book.pieces()
    book.endpoints(pieces, endpoints)
    book.units()


class _Book:
    """What was found so far; `used` is the purpose of every unit."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.root = memory.root.tolist()
        self.used: dict[int, str] = {0: "nobody", 1: "nobody"}
        self.run_units: set[int] = set()

    def at(self, unit: int, field: int) -> int:
        return int(self.memory.pages[unit >> 13][(unit & 8191) * 8 + field])

    def block(self, chunk: int, place: int) -> int:
        low, high = (self.at(chunk, HASHES + 2 * place + half) & 0xFFFFFFFF for half in (0, 1))
        return low | high << 32

    def take(self, unit: int, count: int, purpose: str) -> None:
        for each in range(unit, unit + count):
            assert each not in self.used, f"unit {each}: {self.used[each]} and {purpose}"
            self.used[each] = purpose

    def blocks(self) -> dict[int, int]:
        """Return the name of every block by its hash: each stands where a search finds it."""
        memory, root = self.memory, self.root
        assert (root[OLD] != 0) == (memory.old is not None)
        names: dict[int, int] = {}
        for table, old in ((memory.table, False), (memory.old, True)):
            slots: list[int] = [] if table is None else table.tolist()
            bits = len(slots).bit_length() - 1
            assert table is None or bits == root[OLD_BITS if old else BITS]
            for i, slot in enumerate(slots):
                if slot:
                    tag, name = slot >> 30, slot & ((1 << 30) - 1)
                    block = self.block(name >> 3 << 1, name & 7)
                    assert tag == (block * MIX & WORD) >> 30
                    assert block not in names, f"block {block} twice"
                    names[block] = name
                    home = tag >> (34 - bits)
                    while home != i:
                        assert slots[home], f"block {block}: an empty slot before it"
                        home = (home + 1) % len(slots)
                    if memory.old is not None:
                        home = tag >> (34 - root[OLD_BITS])
                        offset = (home - root[MOVE_FROM]) % len(memory.old)
                        assert old == (offset >= root[MOVED]), f"block {block}: in the wrong table"
        assert len(names) == root[USED]
        return names

    def runs(self, names: dict[int, int]) -> None:
        """Check the runs that the blocks belong to: chunks, parents, children."""
        at = self.at
        self.run_units = {at(name >> 3 << 1, OWNER) for name in names.values()}
        assert len(self.run_units) == self.root[RUNS]
        assert self.root[TO_TRIM] == 0
        attached: dict[int, list[int]] = {unit: [] for unit in self.run_units}
        blocks = 0
        for unit in self.run_units:
            self.take(unit, 2, "run")
            length, chunk = at(unit, LENGTH), at(unit, LAST)
            assert length > 0
            blocks += length
            base = (length - 1) // BLOCKS * BLOCKS
            while chunk:
                self.take(chunk, 2, "chunk")
                assert (at(chunk, OWNER), at(chunk, BASE)) == (unit, base)
                for place in range(min(BLOCKS, length - base)):
                    assert names[self.block(chunk, place)] == chunk >> 1 << 3 | place
                chunk, base = at(chunk, BELOW), base - BLOCKS
            assert base == -BLOCKS
            parent = at(unit, PARENT)
            assert at(unit, LEVEL) == (at(parent, LEVEL) + 1 if parent else 0)
            if parent:
                attach = at(unit, START) - at(parent, START)
                assert 0 < attach <= at(parent, LENGTH)
                attached[parent].append(attach)
            else:
                assert at(unit, START) == 0
        assert blocks == len(names)
        for unit, attaches in attached.items():
            assert at(unit, ENDING_CHILDREN) == attaches.count(at(unit, LENGTH))
            assert at(unit, ENDING) or at(unit, ENDING_CHILDREN), f"run {unit} is known for nothing at its end"
            assert at(unit, PENDING) == 0
            child, before, count = at(unit, CHILD), 0, 0
            while child:
                assert (at(child, PARENT), at(child, PREVIOUS)) == (unit, before)
                child, before, count = at(child, NEXT), child, count + 1
            assert count == len(attaches)

    def pieces(self) -> dict[int, list[int]]:
        """Check every run's pieces; return them by endpoint."""
        at = self.at
        found: dict[int, list[int]] = {}
        columns = 0
        for unit in self.run_units:
            column = at(unit, COLUMN)
            mine: list[int] = []
            if column:
                columns += 1
                width = at(column, 0)
                assert at(unit, HEAD) == 0
                self.take(column, (width // 4 + 2) & ~1, "column")
                for endpoint in range(width):
                    theirs = self.follow(at(column, 8 + width + endpoint))
                    assert all(at(piece, ENDPOINT) == endpoint for piece in theirs)
                    cut = 0
                    for piece in theirs:
                        cut = at(piece, HI) if at(piece, LO) == cut else cut
                    assert at(column, 8 + endpoint) == cut
                    mine += theirs
            else:
                mine = self.follow(at(unit, HEAD))
            for piece in mine:
                self.take(piece, 1, "piece")
                assert at(piece, RUN) == unit
                assert 0 <= at(piece, LO) < at(piece, HI) <= at(unit, LENGTH)
                found.setdefault(at(piece, ENDPOINT), []).append(piece)
            for one, other in pairwise(mine):
                assert at(one, ENDPOINT) <= at(other, ENDPOINT)
                if at(one, ENDPOINT) == at(other, ENDPOINT):
                    assert at(one, HI) < at(other, LO) + (self.root[CAPACITY] > 0)
            assert at(unit, COUNT) == len(mine)
            if len(mine) == 1 and at(mine[0], LO) == 0:
                assert (at(unit, SOLE), at(unit, SOLE_CUT)) == (at(mine[0], ENDPOINT) + 1, at(mine[0], HI))
            else:
                assert at(unit, SOLE) == 0
            assert at(unit, ENDING) == sum(at(piece, HI) == at(unit, LENGTH) for piece in mine)
        assert columns == self.root[COLUMNS]
        assert sum(map(len, found.values())) == self.root[PIECES]
        return found

    def follow(self, piece: int) -> list[int]:
        """Return a list of pieces, from its first."""
        found = []
        while piece:
            found.append(piece)
            piece = self.at(piece, FOLLOW)
        return found

    def endpoints(self, pieces: dict[int, list[int]], endpoints: int) -> None:
        """Check that every endpoint lists its own pieces, and that nothing was used later than what is before it."""
        at, capacity = self.at, self.root[CAPACITY]
        assert all(endpoint < endpoints for endpoint in pieces)
        for endpoint, (held, oldest, newest, limit) in enumerate(self.memory.ends.tolist()):
            mine: list[int] = []
            piece, before = oldest, 0
            while piece:
                assert at(piece, OLDER) == before
                mine.append(piece)
                piece, before = at(piece, NEWER), piece
            assert before == newest
            assert sorted(mine) == sorted(pieces.get(endpoint, []))
            assert held == sum(at(piece, HI) - at(piece, LO) for piece in mine)
            assert not capacity or held <= (limit or capacity)
            assert not limit or capacity
            if capacity:
                age = {(at(piece, RUN), at(piece, LO)): i for i, piece in enumerate(mine)}
                for (run, lo), i in age.items():
                    assert all(j < i for (other, low), j in age.items() if other == run and low > lo)

    def units(self) -> None:
        """Check that every unit up to the last is in use or in a list of free ones, once."""
        for word, count, purpose in ((FREE_CELLS, 2, "free cell"), (FREE_PIECES, 1, "free piece")):
            unit = self.root[word]
            while unit:
                self.take(unit, count, purpose)
                unit = self.at(unit, 0)
        column = self.root[FREE_COLUMNS]
        while column:
            self.take(column, (self.root[COLUMN_WIDTH] // 4 + 2) & ~1, "free column")
            column = self.at(column, 0)
        assert sorted(self.used) == list(range(self.root[TOP]))
