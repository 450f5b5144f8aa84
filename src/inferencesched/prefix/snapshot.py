"""How does a prefix index survive a restart, and how do two replicas of a gateway agree?

A snapshot is plain data: runs of block hashes, and for each endpoint the pieces that it holds, least recently used
first. It carries the hashes' seed and block size, without which hashes mean nothing, and for each endpoint a *cursor*: how
far in its stream of events it was. Written little-endian and checked when it is read.

Merging another replica's snapshot: of an endpoint with cursors, what is newer wins whole; without, both are kept.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, final

import msgspec
import numpy as np

from inferencesched._kernels.prefix_export import chain_of
from inferencesched._typing import DepthArray, HashArray, IntArray
from inferencesched.errors import InvalidInputError, SnapshotError
from inferencesched.prefix.index import PrefixIndex

MAGIC: Final = "inferencesched.PrefixIndex"
VERSION: Final = 1


class _Header(msgspec.Struct, array_like=True, frozen=True):
    """What is in a snapshot, besides its arrays."""

    magic: str
    version: int
    byte_order: str
    seed: int
    block_size: int
    endpoints: int
    capacity: int | None
    cursors: dict[int, int]
    slots: list[int] | None
    runs: bytes
    pieces: bytes
    hashes: bytes


class Pieces(NamedTuple):
    """Who holds what, as arrays?

    ``runs`` int32[R, 3] are start, length and parent (a row before, or -1) of each run of blocks; ``hashes`` uint64[N] are
    their blocks' in that order; ``held`` int32[P, 4] are endpoint, run, and blocks [lo, hi) of it, for each endpoint the
    least recently used first.
    """

    runs: DepthArray
    hashes: HashArray
    held: DepthArray


@final
class IndexSnapshot:
    """What did a prefix index hold?

    `slots` are those it tells of, None for all: with fewer it is a delta. Made by `take_snapshot` or `from_bytes`.

    >>> index = PrefixIndex(endpoints=2)
    >>> chain = np.array([11, 12, 13], dtype=np.uint64)
    >>> index.insert(1, chain)
    >>> data = take_snapshot(index, seed=1337, block_size=16, cursors={1: 41}).to_bytes()
    >>> snapshot = IndexSnapshot.from_bytes(data)
    >>> snapshot.restore().match(chain), snapshot.cursors
    (array([0, 3], dtype=int32), {1: 41})
    >>> replica = PrefixIndex(endpoints=2)
    >>> snapshot.merge_into(replica, seed=1337, block_size=16, cursors={1: 40})
    {1: 41}
    >>> replica.match(chain)
    array([0, 3], dtype=int32)
    """

    __slots__ = ("block_size", "capacity", "cursors", "endpoints", "pieces", "seed", "slots")

    def __init__(
        self,
        pieces: Pieces,
        *,
        seed: int,
        block_size: int,
        endpoints: int,
        capacity: int | None,
        cursors: Mapping[int, int],
        slots: tuple[int, ...] | None,
    ) -> None:
        self.pieces = pieces
        self.seed = seed
        self.block_size = block_size
        self.endpoints = endpoints
        self.capacity = capacity
        self.cursors = dict(cursors)
        self.slots = slots

    def to_bytes(self) -> bytes:
        """Write it down: equal snapshots give equal bytes. About 8 bytes a block and 16 a piece."""
        runs, hashes, held = self.pieces
        header = _Header(
            MAGIC,
            VERSION,
            "little",
            self.seed,
            self.block_size,
            self.endpoints,
            self.capacity,
            dict(sorted(self.cursors.items())),
            None if self.slots is None else list(self.slots),
            runs.astype("<i4").tobytes(),
            held.astype("<i4").tobytes(),
            hashes.astype("<u8").tobytes(),
        )
        return msgspec.msgpack.encode(header)

    @classmethod
    def from_bytes(cls, data: bytes) -> "IndexSnapshot":
        """Read it. Errors: `SnapshotError` for anything but a whole snapshot of this version and byte order."""
        try:
            header = msgspec.msgpack.decode(data, type=_Header)
        except (msgspec.DecodeError, ValueError) as error:
            raise SnapshotError("data", f"{len(data)} bytes", f"a snapshot of a prefix index ({error})") from error
        for name, value, wanted in (
            ("magic", header.magic, MAGIC),
            ("version", header.version, VERSION),
            ("byte_order", header.byte_order, "little"),
        ):
            if value != wanted:
                raise SnapshotError(name, value, repr(wanted))
        for name, raw, size in (("runs", header.runs, 12), ("pieces", header.pieces, 16), ("hashes", header.hashes, 8)):
            if len(raw) % size:
                raise SnapshotError(name, f"{len(raw)} bytes", f"a multiple of {size}")
        pieces = Pieces(
            np.frombuffer(header.runs, dtype="<i4").reshape(-1, 3).astype(np.int32),
            np.frombuffer(header.hashes, dtype="<u8").astype(np.uint64),
            np.frombuffer(header.pieces, dtype="<i4").reshape(-1, 4).astype(np.int32),
        )
        slots = None if header.slots is None else tuple(header.slots)
        _check(pieces, header.endpoints, header.capacity, slots)
        return cls(
            pieces,
            seed=header.seed,
            block_size=header.block_size,
            endpoints=header.endpoints,
            capacity=header.capacity,
            cursors=header.cursors,
            slots=slots,
        )

    def restore(self) -> PrefixIndex:
        """Return an index that answers as the old one did, and ages as it would have. Cost: one insertion a piece."""
        index = PrefixIndex(self.endpoints, self.capacity)
        self._replay(index, {slot: slot for slot in range(self.endpoints)})
        return index

    def merge_into(
        self,
        index: PrefixIndex,
        *,
        seed: int,
        block_size: int,
        cursors: Mapping[int, int],
        mapping: Mapping[int, int] | None = None,
    ) -> dict[int, int]:
        """What do we know after a look at a replica's index? Returns our cursors after it; those given are not changed.

        An endpoint with a cursor is taken over whole if ours is smaller or missing, and left alone otherwise; one
        without a cursor on both sides gets what it has here in addition. `mapping` leads from the replica's slots to
        ours (None: they are the same); others are passed over. Merging twice, or in another order, changes nothing more.

        Errors: `SnapshotError` for another seed or block size, `InvalidInputError` for a slot that `index` does not
        have; nothing has changed then.
        """
        for name, ours, theirs in (("seed", seed, self.seed), ("block_size", block_size, self.block_size)):
            if ours != theirs:
                raise SnapshotError(name, theirs, f"{ours}, as here: hashes of another {name} mean nothing")
        told = range(self.endpoints) if self.slots is None else self.slots
        ways = {slot: slot for slot in told} if mapping is None else {s: mapping[s] for s in told if s in mapping}
        for slot in ways.values():
            if not 0 <= slot < index.endpoints:
                raise InvalidInputError("mapping", slot, f"slots in [0, {index.endpoints})")
        if len(set(ways.values())) != len(ways):
            raise InvalidInputError("mapping", dict(mapping or {}), "each slot once")
        after, taken = dict(cursors), {}
        for theirs, ours in ways.items():
            cursor = self.cursors.get(theirs)
            if cursor is None and ours in after:
                continue  # ours follows the engine's events, theirs does not
            if cursor is not None:
                if ours in after and after[ours] >= cursor:
                    continue
                after[ours] = cursor
                index.clear(ours)
            taken[theirs] = ours
        self._replay(index, taken)
        return after

    def _replay(self, index: PrefixIndex, ways: Mapping[int, int]) -> None:
        """Insert the pieces of these slots, least recently used first."""
        runs, hashes, held = self.pieces
        rows = np.zeros((len(runs), 4), dtype=np.int32)
        rows[:, 1:] = runs
        begins: IntArray = np.cumsum(runs[:, 1], dtype=np.int64) - runs[:, 1]
        for slot, run, lo, hi in held.tolist():
            if slot in ways:
                chain = chain_of(rows, begins, hashes, run, hi)
                index.insert(ways[slot], chain, start=int(runs[run, 0]) + lo)


def take_snapshot(
    index: PrefixIndex,
    *,
    seed: int,
    block_size: int,
    cursors: Mapping[int, int] | None = None,
    slots: tuple[int, ...] | None = None,
) -> IndexSnapshot:
    """What does this index hold, of all endpoints or of some (a delta)?

    `seed` and `block_size` are those of its hashes; `cursors` say how far in its events each endpoint is.
    Cost: some 20 ns a block; the index is not changed.
    """
    runs, hashes, held = index.pieces()
    if slots is not None:
        held = held[np.isin(held[:, 0], slots)]
        runs, hashes, held = _needed(runs, hashes, held)
    return IndexSnapshot(
        Pieces(runs, hashes, held),
        seed=seed,
        block_size=block_size,
        endpoints=index.endpoints,
        capacity=index.capacity,
        cursors=cursors or {},
        slots=slots,
    )


def _needed(runs: DepthArray, hashes: HashArray, held: DepthArray) -> Pieces:
    """Return the same without the runs that nobody listed holds, or holds something behind."""
    needed = np.zeros(len(runs), dtype=np.bool_)
    needed[held[:, 1]] = True
    for run in range(len(runs) - 1, -1, -1):
        if needed[run] and runs[run, 2] >= 0:
            needed[runs[run, 2]] = True
    numbers = np.cumsum(needed, dtype=np.int32) - np.int32(1)
    kept, pieces = runs[needed], held.copy()
    kept[:, 2] = np.where(kept[:, 2] >= 0, numbers[kept[:, 2]], -1)
    pieces[:, 1] = numbers[held[:, 1]]
    return Pieces(kept, hashes[np.repeat(needed, runs[:, 1])], pieces)


def _check(pieces: Pieces, endpoints: int, capacity: int | None, slots: tuple[int, ...] | None) -> None:
    """Raise `SnapshotError` for arrays that contradict each other: they may come from anywhere."""
    runs, hashes, held = pieces
    starts, lengths, parents = runs.T.astype(np.int64)
    numbers = np.arange(len(runs))
    if endpoints < 0 or (capacity is not None and capacity < 1):
        raise SnapshotError("endpoints", (endpoints, capacity), "at least 0, and a capacity of at least 1 or None")
    if (lengths < 1).any() or int(lengths.sum()) != len(hashes):
        raise SnapshotError("runs", f"{int(lengths.sum())} blocks", f"{len(hashes)}, one a hash")
    if ((parents < -1) | (parents >= numbers)).any():
        raise SnapshotError("runs", "a parent that is not before its child", "rows before, or -1")
    above = np.where(parents >= 0, parents, 0)
    attach = starts - starts[above] if len(runs) else starts
    fits = np.where(parents >= 0, (attach > 0) & (attach <= lengths[above] if len(runs) else True), starts == 0)
    if not fits.all():
        raise SnapshotError("runs", "a run that does not begin on its parent", "starts on a block of the parent")
    slot, run, lo, hi = held.T.astype(np.int64)
    wrong = (slot < 0) | (slot >= endpoints) | (run < 0) | (run >= len(runs))
    if not wrong.any():
        wrong = (lo < 0) | (lo >= hi) | (hi > lengths[run] if len(held) else False)
    if wrong.any():
        raise SnapshotError("pieces", "a piece outside of its run or of the endpoints", "blocks that are there")
    if slots is not None and not set(slot.tolist()) <= set(slots):
        raise SnapshotError("slots", list(slots), "those that the pieces are of")
