"""Does the index answer what a set of hashes an endpoint answers, whatever was stored, lost and stored again?"""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import inferencesched as isched
from tests import naive_prefix

CHAIN = np.array([101, 102, 103, 104, 105], dtype=np.uint64)
OTHER = np.array([101, 102, 203, 204], dtype=np.uint64)


def hashes(*values):
    return np.array(values, dtype=np.uint64)


def depths(index, chain=CHAIN):
    index.check()
    return index.match(chain).tolist()


def test_an_empty_index_holds_nothing():
    index = isched.PrefixIndex(3)
    assert depths(index) == [0, 0, 0] and len(index) == 0
    assert depths(isched.PrefixIndex(0)) == []


def test_the_answer_is_how_many_of_the_first_blocks():
    index = isched.PrefixIndex(3)
    index.insert(0, CHAIN)
    index.insert(2, CHAIN[:2])
    assert depths(index) == [5, 0, 2]
    assert depths(index, OTHER) == [2, 0, 2]
    assert depths(index, CHAIN[:1]) == [1, 0, 1]
    assert depths(index, CHAIN[:0]) == [0, 0, 0]
    assert depths(index, CHAIN[1:]) == [0, 0, 0], "a chain starts at its first block"
    assert (len(index), index.blocks(0), index.blocks(1), index.blocks(2)) == (5, 5, 0, 2)


def test_hash_zero_is_a_hash():
    index = isched.PrefixIndex(1)
    index.insert(0, hashes(0, 1, 2))
    assert depths(index, hashes(0, 1, 9)) == [2]
    assert index.remove(0, hashes(0)) == 1
    assert depths(index, hashes(0, 1, 9)) == [0]


def test_a_chain_that_branches():
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN)
    index.insert(1, OTHER)
    assert depths(index) == [5, 2]
    assert depths(index, OTHER) == [2, 4]
    assert len(index) == 7


def test_inserting_twice_changes_nothing():
    index = isched.PrefixIndex(1)
    index.insert(0, CHAIN)
    index.insert(0, CHAIN)
    index.insert(0, CHAIN[:3])
    assert depths(index) == [5] and index.blocks(0) == 5


def test_what_is_behind_a_hole_does_not_count_until_it_is_back():
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN)
    index.insert(1, CHAIN)
    assert index.remove(0, CHAIN[1:3]) == 2
    assert depths(index) == [1, 5] and index.blocks(0) == 3
    index.insert_after(0, 101, CHAIN[1:2])
    assert depths(index) == [2, 5]
    index.insert_after(0, 102, CHAIN[2:3])
    assert depths(index) == [5, 5]


def test_a_block_that_nobody_holds_stays_known_while_one_behind_it_is_held():
    index = isched.PrefixIndex(1)
    index.insert(0, CHAIN)
    index.remove(0, CHAIN[:4])
    assert depths(index) == [0] and len(index) == 5
    index.remove(0, CHAIN[4:])
    assert depths(index) == [0] and len(index) == 0


def test_blocks_before_start_are_known_and_not_held():
    index = isched.PrefixIndex(1)
    index.insert(0, CHAIN, start=3)
    assert depths(index) == [0] and index.blocks(0) == 2 and len(index) == 5
    index.insert(0, CHAIN[:3])
    assert depths(index) == [5]
    index.insert(0, OTHER, start=4)
    assert len(index) == 5, "nothing held, nothing new known"


def test_a_suffix_hangs_behind_its_parent():
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN[:2])
    index.insert_after(0, 102, CHAIN[2:])
    index.insert_after(1, 102, OTHER[2:])
    assert depths(index) == [5, 0]
    index.insert(1, CHAIN[:2])
    assert depths(index, OTHER) == [2, 4]


def test_an_unknown_parent_is_an_error_and_changes_nothing():
    index = isched.PrefixIndex(1)
    index.insert(0, CHAIN[:2])
    with pytest.raises(isched.UnknownParentError, match="parent: got 999"):
        index.insert_after(0, 999, CHAIN[2:])
    with pytest.raises(isched.UnknownParentError):
        index.insert_after(0, 103, hashes())
    assert depths(index) == [2] and len(index) == 2


def test_removing_what_is_not_there_is_counted_and_no_error():
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN[:2])
    assert index.remove(1, CHAIN) == 0
    assert index.remove(0, hashes(102, 102, 103, 7)) == 1
    assert depths(index) == [1, 0]


def test_clear_empties_one_endpoint():
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN)
    index.insert(1, OTHER)
    index.clear(0)
    assert depths(index) == [0, 2] and index.blocks(0) == 0 and len(index) == 4
    index.clear(0)
    index.insert(0, CHAIN)
    assert depths(index) == [5, 2]


def test_grow_keeps_what_is_held():
    index = isched.PrefixIndex(1)
    index.insert(0, CHAIN)
    index.grow(70)
    index.insert(69, CHAIN[:3])
    assert index.endpoints == 70
    assert depths(index) == [5, *[0] * 68, 3]
    with pytest.raises(isched.InvalidInputError, match="endpoints: got 69, allowed: an integer of at least 70"):
        index.grow(69)


def test_out_is_filled_and_returned():
    index = isched.PrefixIndex(2)
    index.insert(1, CHAIN)
    out = np.full(2, 7, dtype=np.int32)
    assert index.match(CHAIN, out) is out
    assert out.tolist() == [0, 5]
    assert index.match(CHAIN[:0], out).tolist() == [0, 0]


def test_read_only_hashes_are_read():
    chain = CHAIN.copy()
    chain.setflags(write=False)
    index = isched.PrefixIndex(1)
    index.insert(0, chain)
    assert index.match(chain[:3]).tolist() == [3]
    index.insert_after(0, 105, hashes(106))
    assert index.match(np.repeat(chain, 2)[::2]).tolist() == [5]
    assert index.remove(0, chain) == 5


def test_over_capacity_the_least_recent_goes_first_and_tails_before_heads():
    index = isched.PrefixIndex(1, capacity=7)
    index.insert(0, CHAIN)
    index.insert(0, hashes(1, 2, 3))
    assert depths(index) == [4] and depths(index, hashes(1, 2, 3)) == [3]
    index.insert(0, CHAIN[:2])
    index.insert(0, hashes(9, 8))
    assert depths(index) == [2], "what was not touched again went first"
    assert depths(index, hashes(1, 2, 3)) == [3]
    index.insert(0, hashes(7, 6))
    assert depths(index, hashes(1, 2, 3)) == [1]
    assert index.blocks(0) == 7


def test_a_chain_longer_than_the_capacity_keeps_its_head():
    index = isched.PrefixIndex(2, capacity=3)
    index.insert(1, hashes(1, 2))
    index.insert(0, CHAIN)
    assert depths(index) == [3, 0] and len(index) == 5 and index.blocks(0) == 3
    index.insert(1, CHAIN)
    assert depths(index) == [3, 3] and len(index) == 3, "nothing stale is left"


def test_a_suffix_refreshes_what_is_before_it():
    index = isched.PrefixIndex(1, capacity=6)
    index.insert(0, CHAIN[:3])
    index.insert(0, hashes(1, 2))
    index.insert_after(0, 103, CHAIN[3:])
    assert depths(index) == [5] and depths(index, hashes(1, 2)) == [1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.insert(2, CHAIN), r"slot: got 2, allowed: an integer in \[0, 2\)"),
        (lambda i: i.insert(-1, CHAIN), "slot: got -1"),
        (lambda i: i.remove(2, CHAIN), "slot: got 2"),
        (lambda i: i.clear(2), "slot: got 2"),
        (lambda i: i.blocks(2), "slot: got 2"),
        (lambda i: i.insert_after(2, 101, CHAIN[1:]), "slot: got 2"),
        (lambda i: i.insert(0, CHAIN.astype(np.int64)), "hashes: got 'int64 of shape"),
        (lambda i: i.insert(0, CHAIN.tolist()), "hashes: got 'list', allowed: a uint64 array of one dimension"),
        (lambda i: i.match(CHAIN.reshape(1, -1)), "hashes: got 'uint64 of shape"),
        (lambda i: i.remove(0, CHAIN.astype(float)), "hashes: got 'float64 of shape"),
        (lambda i: i.insert(0, CHAIN, start=6), r"start: got 6, allowed: an integer in \[0, len\(hashes\) = 5\]"),
        (lambda i: i.insert(0, CHAIN, start=-1), "start: got -1"),
        (lambda i: i.match(CHAIN, np.zeros(3, dtype=np.int32)), r"out: got 'int32 of shape \(3,\)'"),
        (lambda i: i.match(CHAIN, np.zeros(2)), "out: got 'float64 of shape"),
        (lambda i: i.match(CHAIN, [0, 0]), "out: got 'list'"),
        (lambda i: i.insert(0, hashes(7, 101)), "hashes: got 101, allowed: chained hashes"),
        (lambda i: i.insert(0, hashes(7, 8, 7)), "hashes: got .*, allowed: chained hashes"),
        (lambda i: i.insert_after(0, 102, hashes(101)), "hashes: got 101, allowed: chained hashes"),
        (lambda i: isched.PrefixIndex(-1), "endpoints: got -1"),
        (lambda i: isched.PrefixIndex(1, 0), "capacity: got 0, allowed: an integer of at least 1, or None"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_has_changed(call, message):
    index = isched.PrefixIndex(2)
    index.insert(0, CHAIN[:3])
    with pytest.raises(isched.InvalidInputError, match=message):
        call(index)
    assert depths(index) == [3, 0] and len(index) == 3


# --- properties --------------------------------------------------------------------------------------------------


def tree(widths, seed=0):
    """Chains of a random tree of blocks: every path from a root is a chain whose hashes fit together."""
    rng = np.random.default_rng(seed)
    chains, fresh = [[]], iter(rng.permutation(1000).tolist())
    for length, branch, cut in widths:
        base = chains[branch % len(chains)]
        chains.append(base[: cut % (len(base) + 1)] + [next(fresh) for _ in range(length)])
    return chains


TREES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 50), st.integers(0, 40)), min_size=1, max_size=8).map(
    tree
)


@given(chains=TREES, data=st.data())
def test_inserting_and_matching_any_tree(chains, data):
    index, twin = isched.PrefixIndex(4), naive_prefix.PrefixIndex(4)
    for _ in range(data.draw(st.integers(1, 10))):
        slot, chain = data.draw(st.integers(0, 3)), data.draw(st.sampled_from(chains))
        chain = chain[: data.draw(st.integers(0, len(chain)))]
        index.insert(slot, hashes(*chain))
        twin.insert(slot, chain)
    index.check()
    for chain in chains:
        assert index.match(hashes(*chain)).tolist() == twin.match(chain)


class IndexMachine(RuleBasedStateMachine):
    """Anything an engine or a router may do, in any order, against the twin; `check` after each step."""

    @initialize(chains=TREES, capacity=st.none() | st.integers(1, 30), endpoints=st.integers(1, 3))
    def begin(self, chains, capacity, endpoints):
        self.chains = chains
        self.blocks = sorted({block for chain in chains for block in chain})
        self.index = isched.PrefixIndex(endpoints, capacity)
        self.twin = naive_prefix.PrefixIndex(endpoints, capacity)

    def slot(self, data):
        return data.draw(st.integers(0, len(self.twin.held) - 1), "slot")

    def chain(self, data):
        chain = data.draw(st.sampled_from(self.chains), "chain")
        return chain[: data.draw(st.integers(0, len(chain)), "length")]

    @rule(data=st.data())
    def insert(self, data):
        slot, chain = self.slot(data), self.chain(data)
        start = data.draw(st.just(0) | st.integers(0, len(chain)), "start")
        self.index.insert(slot, hashes(*chain), start=start)
        self.twin.insert(slot, chain, start)

    @rule(data=st.data())
    def insert_after(self, data):
        slot, chain = self.slot(data), self.chain(data)
        if not chain:
            return
        cut = data.draw(st.integers(1, len(chain)), "cut")
        if chain[cut - 1] in self.twin.known():
            self.index.insert_after(slot, chain[cut - 1], hashes(*chain[cut:]))
            self.twin.insert_after(slot, chain[cut - 1], chain[cut:])
        else:
            with pytest.raises(isched.UnknownParentError):
                self.index.insert_after(slot, chain[cut - 1], hashes(*chain[cut:]))

    @rule(data=st.data())
    def remove_some(self, data):
        slot = self.slot(data)
        gone = data.draw(st.lists(st.sampled_from(self.blocks), max_size=6), "gone")
        assert self.index.remove(slot, hashes(*gone)) == self.twin.remove(slot, gone)

    @rule(data=st.data())
    def remove_a_piece_tail_first(self, data):
        slot, chain = self.slot(data), self.chain(data)
        gone = chain[data.draw(st.integers(0, len(chain)), "from") :][::-1]
        assert self.index.remove(slot, hashes(*gone)) == self.twin.remove(slot, gone)

    @rule(data=st.data())
    def clear(self, data):
        slot = self.slot(data)
        self.index.clear(slot)
        self.twin.clear(slot)

    @rule(data=st.data(), capacity=st.none() | st.integers(1, 40))
    def limit(self, data, capacity):
        slot = self.slot(data)
        if self.twin.capacity is None:
            with pytest.raises(isched.InvalidInputError, match="capacity"):
                self.index.limit(slot, capacity)
        else:
            assert self.index.limit(slot, capacity) == self.twin.limit(slot, capacity)

    @rule()
    def restart(self):
        """What was written down and read again goes on as the old index would have, its ages included."""
        snapshot = isched.take_snapshot(self.index, seed=1, block_size=16)
        self.index = isched.IndexSnapshot.from_bytes(snapshot.to_bytes()).restore()
        self.twin.limits.clear()
        for slot in range(len(self.twin.held)):
            self.twin.shed(slot)

    @rule(data=st.data())
    def a_replica_joins(self, data):
        """A replica that saw one endpoint's events up to a later one: all of it is taken over."""
        slot, chain = self.slot(data), self.chain(data)
        replica = isched.PrefixIndex(1)
        if chain:
            replica.insert(0, hashes(*chain))
        snapshot = isched.take_snapshot(replica, seed=1, block_size=16, cursors={0: 7})
        cursors = snapshot.merge_into(self.index, seed=1, block_size=16, cursors={slot: 6}, mapping={0: slot})
        assert cursors == {slot: 7}
        self.twin.clear(slot)
        self.twin.insert(slot, chain)

    @precondition(lambda self: len(self.twin.held) < 20)
    @rule(more=st.sampled_from([1, 2, 15]))
    def grow(self, more):
        self.index.grow(len(self.twin.held) + more)
        self.twin.grow(len(self.twin.held) + more)

    @invariant()
    def agrees(self):
        self.index.check()
        assert len(self.index) == len(self.twin.known())
        assert [self.index.blocks(i) for i in range(self.index.endpoints)] == [len(h) for h in self.twin.held]
        for chain in self.chains:
            assert self.index.match(hashes(*chain)).tolist() == self.twin.match(chain)


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(stateful_step_count=25)  # `check` reads every word of the memory


# --- at size -----------------------------------------------------------------------------------------------------


class Field:
    """An index and its twin under the same storm of events: shared prompts, branches, holes, restarts, growth."""

    def __init__(self, seed, endpoints, capacity=None, prompts=6, length=60):
        self.rng = np.random.default_rng(seed)
        self.index = isched.PrefixIndex(endpoints, capacity)
        self.twin = naive_prefix.PrefixIndex(endpoints, capacity)
        self.fresh = iter(np.random.default_rng(seed + 1).permutation(2**16).tolist())
        self.chains = [[next(self.fresh) for _ in range(length)] for _ in range(prompts)]

    def chain(self):
        """One of the chains, or one that branches off it or goes on behind it."""
        base = self.chains[self.rng.integers(len(self.chains))]
        if self.rng.random() < 0.5:
            cut = len(base) if self.rng.random() < 0.5 else int(self.rng.integers(len(base) + 1))
            base = base[:cut] + [next(self.fresh) for _ in range(self.rng.integers(1, 30))]
            self.chains.append(base)
            if len(self.chains) > 40:
                self.chains.pop(int(self.rng.integers(len(self.chains))))
        return base[: self.rng.integers(len(base) + 1)] if self.rng.random() < 0.2 else base

    def step(self):
        kind, slot, chain = self.rng.random(), int(self.rng.integers(len(self.twin.held))), self.chain()
        if kind < 0.5:
            self.index.insert(slot, hashes(*chain))
            self.twin.insert(slot, chain)
        elif kind < 0.6:
            depth = self.twin.match(chain)[slot]
            self.index.insert(slot, hashes(*chain), start=depth)
            self.twin.insert(slot, chain, depth)
        elif kind < 0.85:
            held = list(self.twin.held[slot])
            if self.rng.random() < 0.5:  # the end of a chain, tail first
                gone = chain[: int(self.rng.integers(len(chain) + 1)) : -1]
            else:  # anything
                gone = [held[i] for i in self.rng.integers(len(held), size=4)] if held else []
            assert self.index.remove(slot, hashes(*gone)) == self.twin.remove(slot, gone)
        elif kind < 0.88:
            self.index.clear(slot)
            self.twin.clear(slot)
        else:
            assert self.index.match(hashes(*chain)).tolist() == self.twin.match(chain)

    def agree(self):
        self.index.check()
        assert len(self.index) == len(self.twin.known())
        assert [self.index.blocks(i) for i in range(len(self.twin.held))] == [len(h) for h in self.twin.held]
        queries = [hashes(*chain) for chain in self.chains]
        assert self.index.match_many(queries).tolist() == [self.twin.match(chain) for chain in self.chains]


@pytest.mark.parametrize(
    ("endpoints", "capacity"),
    [(2, None), (40, None), (3, 200), (40, 70), (1, 9)],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
def test_a_storm_of_events(seed, endpoints, capacity):
    """Many endpoints crowd the shared runs, thousands of blocks make the table grow, holes and branches abound."""
    field = Field(seed, endpoints, capacity)
    for i in range(600):
        field.step()
        if i % 40 == 39:
            field.agree()
    stats = field.index.stats
    if capacity is None:
        assert stats.segments_moved > 0
    if endpoints == 40:
        assert stats.columns > 0
    assert (stats.evicted > 0) == (capacity is not None)


def test_growing_endpoints_under_crowded_runs():
    field = Field(7, 30, prompts=2)
    for endpoints in (30, 33, 64, 65, 130, 300):
        field.index.grow(endpoints)
        field.twin.grow(endpoints)
        for _ in range(3 * endpoints):
            field.step()
        field.agree()
    assert field.index.stats.columns > 0


def test_growth_moves_a_bounded_piece_at_a_time():
    """Events of 64 blocks: no event moves more than 8 segments, and the answers stay right in between."""
    index = isched.PrefixIndex(2)
    rng = np.random.default_rng(5)
    chain, moved, halfway = np.empty(0, dtype=np.uint64), 0, 0
    for i in range(700):
        more = rng.integers(2**64, size=64, dtype=np.uint64)
        if i % 50 == 0:
            chain = more
            index.insert(0, chain)
        else:
            index.insert_after(0, int(chain[-1]), more)
            chain = np.concatenate([chain, more])
        stats = index.stats
        assert stats.segments_moved - moved <= 8
        halfway += stats.segments_moved - moved > 0
        moved = stats.segments_moved
        assert index.match(chain).tolist() == [len(chain), 0]
    index.check()
    assert len(index) == 700 * 64 and stats.slots == 65_536 and moved == 63 and halfway > 40


def test_removing_while_the_table_grows():
    """Blocks go from the old table and from the new one."""
    rng = np.random.default_rng(6)
    index, chains = isched.PrefixIndex(1), []
    for i in range(900):
        chains.append(rng.integers(2**64, size=64, dtype=np.uint64))
        index.insert(0, chains[-1])
        if i % 3 == 2:
            gone = chains.pop(int(rng.integers(len(chains))))
            assert index.remove(0, gone[::-1].copy() if i % 2 else gone) == 64
        if i % 100 == 99:
            index.check()
    assert index.match_many(chains).tolist() == [[64]] * len(chains)
    index.clear(0)
    index.check()
    assert len(index) == 0 and index.stats.runs == 0


def test_room_that_was_reserved_needs_no_growth():
    index = isched.PrefixIndex(1)
    index.reserve(50_000)
    slots, moved = index.stats.slots, index.stats.segments_moved
    rng = np.random.default_rng(8)
    for _ in range(500):
        index.insert(0, rng.integers(2**64, size=100, dtype=np.uint64))
    assert (index.stats.slots, index.stats.segments_moved) == (slots, moved)
    with pytest.raises(isched.InvalidInputError, match="blocks: got -1"):
        index.reserve(-1)


def test_hashes_that_agree_in_all_bits_a_slot_has():
    """Two hashes whose product has the same first 34 bits: told apart in full, known or not, removed or not."""
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    top = 0x2ABCDEF01 << 30
    same = [(top + i) * inverse % 2**64 for i in range(1, 40)]
    index, twin = isched.PrefixIndex(2), naive_prefix.PrefixIndex(2)
    for slot, chain in ((0, same[:10]), (1, same[10:20]), (0, [*same[10:14], *same[20:24]])):
        index.insert(slot, hashes(*chain))
        twin.insert(slot, chain)
    for chain in (same[:10], same[:5] + same[25:], same[10:20], same[30:], [*same[10:14], *same[20:28]], same[15:20]):
        assert index.match(hashes(*chain)).tolist() == (twin.match(chain) if chain != same[15:20] else [0, 0])
    for chain in (same[5:10], same[12:14]):
        assert index.remove(0, hashes(*chain)) == twin.remove(0, chain)
        index.check()
    assert index.match(hashes(*same[:10])).tolist() == [5, 0]


def test_matching_many_is_matching_each():
    index = isched.PrefixIndex(3)
    index.insert(0, CHAIN)
    index.insert(2, OTHER)
    queries = [CHAIN, OTHER[:3], CHAIN[:0], hashes(9)]
    assert index.match_many(queries).tolist() == [index.match(each).tolist() for each in queries]
    out = np.full((4, 3), 9, dtype=np.int32)
    assert index.match_many(queries, out) is out and out.tolist() == index.match_many(queries).tolist()
    assert index.match_many([]).shape == (0, 3)
    packed, ends = np.concatenate(queries), np.cumsum([len(each) for each in queries])
    assert index.match_many(packed, ends=ends).tolist() == index.match_many(queries).tolist()
    assert index.match_many(packed, out, ends=ends) is out
    assert index.match_many(packed[:0], ends=ends[:0]).shape == (0, 3)
    with pytest.raises(isched.InvalidInputError, match=r"out: got 'int32 of shape \(4, 3\)'.*shape \(1, 3\)"):
        index.match_many(queries[:1], out)
    assert index.match_many([np.repeat(CHAIN, 2)[::2]]).tolist() == [[5, 0, 2]]


@pytest.mark.parametrize(
    "queries",
    [
        [CHAIN, CHAIN.astype(np.int64)],
        [CHAIN.astype(np.uint32)],
        [CHAIN.tolist()],
        [CHAIN.reshape(1, -1)],
        [CHAIN.reshape(1, -1), CHAIN.reshape(1, -1)],
        [CHAIN, np.uint64(3)],
    ],
)
def test_matching_many_refuses_what_matching_refuses(queries):
    with pytest.raises(isched.InvalidInputError, match=r"hashes: got .* allowed: a uint64 array of one dimension"):
        isched.PrefixIndex(2).match_many(queries)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_index_is_not_copied(copied):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copied(isched.PrefixIndex(1))


def test_stats_count_what_has_happened():
    index = isched.PrefixIndex(2, capacity=4)
    index.insert(0, CHAIN)
    index.insert(1, CHAIN[:2])
    index.remove(1, hashes(102, 7))
    stats = index.stats
    assert (stats.blocks, stats.held, stats.evicted, stats.absent) == (4, 5, 1, 1)
    assert (stats.runs, stats.pieces, stats.columns, stats.slots, stats.segments_moved) == (1, 2, 0, 1024, 0)
    assert stats.nbytes == index.nbytes > 8 * 1024


def test_a_block_is_taken_from_the_middle_of_a_long_run_by_many():
    """Every endpoint of a crowded run loses another block; each gets its own back."""
    index, twin = isched.PrefixIndex(60), naive_prefix.PrefixIndex(60)
    chain = list(range(1000, 1100))
    for slot in range(60):
        index.insert(slot, hashes(*chain))
        twin.insert(slot, chain)
    assert index.stats.columns == 1
    for slot in range(60):
        assert index.remove(slot, hashes(chain[slot])) == twin.remove(slot, [chain[slot]]) == 1
        index.check()
        assert index.match(hashes(*chain)).tolist() == twin.match(chain)
    for slot in range(60):
        index.insert(slot, hashes(*chain[: slot + 1]), start=slot)
    assert index.match(hashes(*chain)).tolist() == [100] * 60
    for slot in range(60):
        index.clear(slot)
        index.check()
    assert index.stats.columns == 0 and len(index) == 0


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([2, 5], "int64 array"),
        (np.array([2, 5], dtype=np.int32), "int64 array"),
        (np.array([[5]]), "int64 array"),
        (np.array([0, 2, 9, 5])[::2], "int64 array"),
        (np.array([2, 4]), "the last 5"),
        (np.array([6]), "the last 5"),
        (np.array([4, 2, 5]), "do not fall"),
        (np.array([-1, 5]), "do not fall"),
        (np.array([], dtype=np.int64), "the last 5"),
    ],
)
def test_ends_that_lead_out_of_the_array_are_refused(ends, words):
    with pytest.raises(isched.InvalidInputError, match=f"ends: .*{words}"):
        isched.PrefixIndex(2).match_many(np.arange(5, dtype=np.uint64), ends=ends)
