"""Snapshots of a prefix index: written down, read again, merged."""

from contextlib import suppress

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.snapshot import MAGIC, VERSION

SAME = {"seed": 1, "block_size": 16}
#: Chains of a tree: a hash names the path to it.
CHAINS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=6).map(
        lambda path: [int("1" + "".join(map(str, path[: i + 1]))) for i in range(len(path))]
    ),
    min_size=1,
    max_size=6,
)
STORES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)), max_size=8)


def hashes(chain):
    return np.array(chain, dtype=np.uint64)


def built(chains, stores, capacity=None):
    """An index of three endpoints in which each store puts one chain, from a block on, to an endpoint."""
    index = isched.PrefixIndex(3, capacity)
    for slot, which, start in stores:
        chain = chains[which % len(chains)]
        index.insert(slot, hashes(chain), start=min(start, len(chain) - 1))
    return index


def held(index):
    """Which blocks does each endpoint hold? From the index's own pieces."""
    runs, blocks, pieces = index.pieces()
    begins = np.cumsum(runs[:, 1]) - runs[:, 1]
    found = [set() for _ in range(index.endpoints)]
    for slot, run, lo, hi in pieces.tolist():
        found[slot].update(blocks[begins[run] + lo : begins[run] + hi].tolist())
    return found


@given(CHAINS, STORES, st.none() | st.integers(1, 8))
def test_what_is_restored_answers_the_same_and_writes_down_the_same(chains, stores, capacity):
    index = built(chains, stores, capacity)
    data = isched.take_snapshot(index, cursors={2: 5, 0: 9}, **SAME).to_bytes()
    snapshot = isched.IndexSnapshot.from_bytes(data)
    restored = snapshot.restore()
    restored.check()
    assert held(restored) == held(index) and len(restored) == len(index)
    for chain in chains:
        assert np.array_equal(restored.match(hashes(chain)), index.match(hashes(chain)))
    assert snapshot.cursors == {0: 9, 2: 5} and (snapshot.seed, snapshot.block_size) == (1, 16)
    assert snapshot.to_bytes() == data


@given(CHAINS, STORES, STORES)
def test_without_cursors_a_merge_is_the_union_whoever_begins(chains, ours, theirs):
    one, other = built(chains, ours), built(chains, theirs)
    union = [a | b for a, b in zip(held(one), held(other), strict=True)]
    first = isched.take_snapshot(one, **SAME)
    second = isched.take_snapshot(other, **SAME)
    for snapshot, index in ((second, one), (first, other), (first, one), (second, other)):
        assert snapshot.merge_into(index, cursors={}, **SAME) == {}
        index.check()
    assert held(one) == held(other) == union


@given(CHAINS, STORES, STORES, st.tuples(*[st.none() | st.integers(0, 3)] * 6))
def test_with_cursors_the_newer_wins_whole_and_replicas_agree(chains, ours, theirs, seen):
    one, other = built(chains, ours), built(chains, theirs)
    before = held(one), held(other)
    cursors = [{slot: at for slot, at in enumerate(seen[i : i + 3]) if at is not None} for i in (0, 3)]
    first = isched.take_snapshot(one, cursors=cursors[0], **SAME)
    second = isched.take_snapshot(other, cursors=cursors[1], **SAME)
    after = second.merge_into(one, cursors=cursors[0], **SAME)
    again = first.merge_into(other, cursors=cursors[1], **SAME)
    assert after == again
    for slot in range(3):
        mine, yours = cursors[0].get(slot), cursors[1].get(slot)
        if mine is None and yours is None:
            expected = before[0][slot] | before[1][slot]
        elif mine == yours:
            continue  # the same point of one stream: the same state, in life
        else:
            expected = before[1 if mine is None or (yours is not None and yours > mine) else 0][slot]
        assert held(one)[slot] == held(other)[slot] == expected
    assert second.merge_into(one, cursors=after, **SAME) == after


@given(CHAINS, STORES, st.sets(st.integers(0, 2)))
def test_a_delta_tells_of_its_slots_only(chains, stores, slots):
    index = built(chains, stores)
    delta = isched.take_snapshot(index, slots=tuple(sorted(slots)), **SAME)
    read = isched.IndexSnapshot.from_bytes(delta.to_bytes())
    replica = isched.PrefixIndex(3)
    read.merge_into(replica, cursors={}, **SAME)
    replica.check()
    assert held(replica) == [blocks if slot in slots else set() for slot, blocks in enumerate(held(index))]
    assert len(delta.pieces.hashes) == len(replica)


def test_slots_may_have_other_numbers_there():
    index, replica = built([[1, 2]], [(0, 0, 0), (2, 0, 0)]), isched.PrefixIndex(5)
    snapshot = isched.take_snapshot(index, cursors={0: 4, 2: 8}, **SAME)
    assert snapshot.merge_into(replica, cursors={}, mapping={0: 4, 2: 1}, **SAME) == {4: 4, 1: 8}
    assert replica.match(hashes([1, 2])).tolist() == [0, 2, 0, 0, 2]


def example():
    return isched.take_snapshot(built([[1, 2, 3], [1, 2, 4]], [(0, 0, 0), (1, 1, 1)]), **SAME)


@pytest.mark.parametrize("other", [{"seed": 2, "block_size": 16}, {"seed": 1, "block_size": 64}])
def test_hashes_of_another_seed_or_size_are_refused(other):
    replica = isched.PrefixIndex(3)
    with pytest.raises(isched.SnapshotError, match="mean nothing"):
        example().merge_into(replica, cursors={}, **other)
    assert len(replica) == 0


@pytest.mark.parametrize("mapping", [{0: 3}, {0: -1}, {0: 1, 1: 1}])
def test_a_slot_that_is_not_there_is_refused(mapping):
    replica = isched.PrefixIndex(3)
    with pytest.raises(isched.InvalidInputError, match="mapping"):
        example().merge_into(replica, cursors={}, mapping=mapping, **SAME)
    assert len(replica) == 0


def header(**changes):
    """A good snapshot's fields with some changed, written down."""
    names = ("magic", "version", "byte_order", "seed", "block_size", "endpoints", "capacity", "cursors", "slots")
    fields = dict(
        zip(
            (*names, "runs", "pieces", "hashes"),
            msgspec.msgpack.decode(example().to_bytes(), strict=False),
            strict=True,
        )
    )
    return msgspec.msgpack.encode(list((fields | changes).values()))


def test_the_example_is_good():
    assert isched.IndexSnapshot.from_bytes(header()).to_bytes() == example().to_bytes()
    assert isched.IndexSnapshot.from_bytes(header(magic=MAGIC, version=VERSION))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": "pickle"}, "magic: got 'pickle'"),
        ({"version": VERSION + 1}, "version: got 2"),
        ({"byte_order": "big"}, "byte_order: got 'big'"),
        ({"runs": b"abc"}, "runs: got '3 bytes'"),
        ({"hashes": b""}, "runs: got"),
        ({"endpoints": 1}, "pieces"),
        ({"endpoints": -1}, "endpoints"),
        ({"capacity": 0}, "endpoints"),
        ({"runs": np.array([[0, 3, 0], [2, 1, 0]], "<i4").tobytes()}, "parent"),
        ({"runs": np.array([[1, 3, -1], [2, 1, 0]], "<i4").tobytes()}, "begin"),
        ({"runs": np.array([[0, 3, -1], [4, 1, 0]], "<i4").tobytes()}, "begin"),
        ({"pieces": np.array([[0, 0, 0, 4]], "<i4").tobytes()}, "pieces"),
        ({"pieces": np.array([[0, 9, 0, 1]], "<i4").tobytes()}, "pieces"),
        ({"slots": [2]}, "slots"),
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused(changes, words):
    with pytest.raises(isched.SnapshotError, match=words):
        isched.IndexSnapshot.from_bytes(header(**changes))


@given(st.data())
def test_hostile_bytes_are_refused_or_make_a_whole_index(data):
    good = bytearray(example().to_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(good[: data.draw(st.integers(0, len(good)))])
    try:
        snapshot = isched.IndexSnapshot.from_bytes(cut)
    except isched.SnapshotError:
        return
    if snapshot.endpoints <= 1000:
        with suppress(isched.InvalidInputError):  # hashes that are not those of one tree
            snapshot.restore().check()
