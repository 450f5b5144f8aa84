"""Does the index hold what the engines say, whatever they said before, and nothing else?"""

import functools
import json
import subprocess
import sys
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import inferencesched as isched
from inferencesched.prefix.events import KVEventApplier
from inferencesched.prefix.extra_keys import hash_blocks
from inferencesched.prefix.hashing import block_hashes
from inferencesched.prefix.kv_records import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    CacheCreated,
    EventBatch,
    Tier,
    UnknownEvent,
)
from tests import naive_events

MEDIA = {"device": "GPU", "host": "CPU", "disk": "NVME", "external": "REMOTE"}


def applier(own=4, endpoints=2, **options):
    return KVEventApplier(isched.PrefixIndex(endpoints), block_size=own, **options)


def stored(names, tokens, size=4, **fields):
    return BlockStored(block_hashes=tuple(names), token_ids=tuple(tokens), block_size=size, **fields)


def removed(*names, **fields):
    return BlockRemoved(block_hashes=names, **fields)


def apply(it, *events, slot=0):
    it.apply(slot, EventBatch(events=events))
    it.check()


def depth(it, hashes, slot=0):
    return int(it._index.match(hashes)[slot])


def tokens(n, start=0):
    return range(start, start + n)


def prompt(n, own=4, **names):
    return block_hashes(np.arange(n, dtype=np.uint32), own, **names)


def counts(it):
    return {name: count for name, count in it.stats._asdict().items() if count and name != "events"}


# --- one thing at a time -----------------------------------------------------------------------------------------


def test_what_is_stored_matches_a_prompt_that_begins_so():
    it = applier()
    apply(it, stored([91, 92, 93], tokens(12)))
    assert depth(it, prompt(20)) == 3 and depth(it, prompt(20), slot=1) == 0
    assert counts(it) == {"stored": 3} and it.known(0) == 3


def test_a_block_hangs_behind_its_parent():
    it = applier()
    apply(it, stored([91], tokens(4)), stored([92], tokens(4, 4), parent_block_hash=91))
    apply(it, stored([93], tokens(4, 8), parent_block_hash=92))
    assert depth(it, prompt(12)) == 3


def test_an_unknown_parent_is_counted_and_nothing_is_guessed():
    it = applier()
    apply(it, stored([92, 93], tokens(8, 4), parent_block_hash=91), stored([94], tokens(4, 12), parent_block_hash=93))
    assert counts(it) == {"unknown_parent": 2} and it.known(0) == 0 and it._index.blocks(0) == 0


def test_endpoints_know_nothing_of_each_others_blocks():
    it = applier()
    apply(it, stored([91], tokens(4)))
    apply(it, stored([92], tokens(4, 4), parent_block_hash=91), slot=1)
    assert counts(it) == {"stored": 1, "unknown_parent": 1}
    apply(it, removed(91), slot=1)
    assert depth(it, prompt(4)) == 1


def test_a_parent_whose_copies_are_gone_is_known_while_a_child_is_held():
    it = applier()
    apply(it, stored([91, 92], tokens(8)), removed(91))
    assert depth(it, prompt(12)) == 0 and it.known(0) == 2
    apply(it, stored([93], tokens(4, 8), parent_block_hash=91 + 1))
    apply(it, stored([91], tokens(4)))
    assert depth(it, prompt(12)) == 3
    apply(it, removed(93, 92, 91))
    assert it.known(0) == 0 and len(it._index) == 0


def test_n_copies_take_n_removals():
    it = applier()
    apply(it, *[stored([91], tokens(4))] * 3)
    assert counts(it) == {"stored": 1, "duplicates": 2}
    apply(it, removed(91), removed(91))
    assert depth(it, prompt(4)) == 1
    apply(it, removed(91))
    assert depth(it, prompt(4)) == 0
    apply(it, removed(91))
    assert counts(it) == {"stored": 1, "duplicates": 2, "removed": 3, "unknown_removal": 1}


def test_removals_from_several_places_in_one_batch():
    it = applier()
    apply(it, stored([91, 92], tokens(8)), BlockStored(block_hashes=(91, 92), medium="CPU"))
    apply(it, removed(91), removed(92, medium="CPU"), removed(92, medium="DISK"), removed(92, group_idx=1), removed(91))
    assert it.tiers_of(0, prompt(8)).tolist() == [Tier.HOST, Tier.DEVICE]
    assert counts(it) == {"stored": 4, "removed": 2, "unknown_removal": 3}


def test_all_blocks_cleared_clears_one_endpoint():
    it = applier()
    for slot in (0, 1):
        apply(it, stored([91, 92], tokens(8)), slot=slot)
    apply(it, AllBlocksCleared(), stored([91], tokens(4)))
    assert depth(it, prompt(8)) == 1 and depth(it, prompt(8), slot=1) == 2
    it.clear(1)
    it.check()
    assert depth(it, prompt(8), slot=1) == 0 and it.known(1) == 0


def test_tiers_are_kept_apart():
    it = applier()
    apply(it, stored([91, 92], tokens(8)))
    apply(it, BlockStored(block_hashes=(91, 92, 77), medium="CPU"))
    assert counts(it) == {"stored": 4, "unknown_block": 1}
    assert it.match_tiers(0, prompt(12)) == {Tier.DEVICE: 2, Tier.HOST: 2}
    apply(it, removed(91, 92))
    assert it.match_tiers(0, prompt(12)) == {Tier.HOST: 2} and depth(it, prompt(12)) == 2
    apply(it, removed(91, medium="cpu_tier1"))
    assert it.match_tiers(0, prompt(12)) == {} and it.tiers_of(0, prompt(12)).tolist() == [0, Tier.HOST, 0]
    assert depth(it, prompt(12)) == 0
    apply(it, removed(92, medium="CPU"))
    assert it.known(0) == 0


def test_a_tier_that_does_not_count_is_not_in_the_index():
    it = applier(tiers=Tier.DEVICE | Tier.HOST)
    apply(it, stored([91], tokens(4), medium="REMOTE"))
    assert depth(it, prompt(4)) == 0 and it.tiers_of(0, prompt(4)).tolist() == [Tier.EXTERNAL]
    apply(it, BlockStored(block_hashes=(91,), medium="CPU"))
    assert depth(it, prompt(4)) == 1
    apply(it, removed(91, medium="CPU"))
    assert depth(it, prompt(4)) == 0 and it.known(0) == 1


def test_one_tier_may_be_cleared():
    it = applier()
    apply(it, stored([91], tokens(4)), BlockStored(block_hashes=(91,), medium="DISK"))
    apply(it, AllBlocksCleared(medium="GPU"))
    assert it.match_tiers(0, prompt(4)) == {Tier.DISK: 1}
    apply(it, AllBlocksCleared(medium="punch cards"))
    assert counts(it) == {"stored": 2, "cleared": 1, "unknown_medium": 1}


def test_an_unknown_medium_is_counted_and_not_guessed():
    it = applier()
    apply(it, stored([91], tokens(4), medium="punch cards"), removed(91, medium="punch cards"))
    assert counts(it) == {"unknown_medium": 2} and it.known(0) == 0


@pytest.mark.parametrize(
    "kind", ["sliding_window", "mamba", "chunked_local_attention", "unknown", "new_attention", None]
)
def test_only_groups_that_attend_to_the_whole_prompt_count(kind):
    it = applier()
    both = [stored([91], tokens(4), group_idx=g, kv_cache_spec_kind=k) for g, k in ((0, "full_attention"), (1, kind))]
    apply(it, *both, removed(91, group_idx=1))
    assert depth(it, prompt(4)) == 1
    apply(it, removed(91, group_idx=0))
    assert depth(it, prompt(4)) == 0
    assert it.stats.ignored_group == (1 if kind is None else 2)
    assert it.stats.unknown_removal == (1 if kind is None else 0)


def test_a_kind_may_be_told_without_a_group():
    it = applier()
    apply(it, stored([91], tokens(4), kv_cache_spec_kind="full_attention"))
    apply(it, stored([92], tokens(4, 4), parent_block_hash=91, kv_cache_spec_kind="sliding_window"))
    assert depth(it, prompt(8)) == 1 and it.stats.ignored_group == 1


def test_the_kind_of_a_group_is_remembered():
    it = applier()
    apply(it, stored([91], tokens(4), group_idx=2, kv_cache_spec_kind="mla_attention"))
    apply(it, stored([92], tokens(4, 4), parent_block_hash=91, group_idx=2))
    assert depth(it, prompt(8)) == 2
    it.clear(0)
    apply(it, stored([91], tokens(4), group_idx=2))
    assert it.stats.ignored_group == 1


def test_a_block_is_held_while_one_of_several_whole_groups_holds_it():
    it = applier()
    for group in (0, 3):
        apply(it, stored([91], tokens(4), group_idx=group, kv_cache_spec_kind="full_attention"))
    apply(it, removed(91, group_idx=0), removed(91, group_idx=0))
    assert depth(it, prompt(4)) == 1 and it.stats.unknown_removal == 1
    apply(it, removed(91, group_idx=3))
    assert depth(it, prompt(4)) == 0


def test_shorter_windows_of_tensorrt_llm_do_not_count():
    it = applier()
    apply(it, CacheCreated(window_size=64), CacheCreated(window_size=4096))
    apply(it, stored([91], tokens(4), window_size=4096), stored([92], tokens(4), window_size=64))
    apply(it, BlockRemoved(block_hashes=(91,), window_size=64, every_medium=True))
    assert depth(it, prompt(4)) == 1 and it.known(0) == 1 and it.stats.ignored_group == 2
    apply(it, BlockRemoved(block_hashes=(91,), window_size=4096, every_medium=True))
    assert it.known(0) == 0


def test_a_longer_window_shows_that_what_came_before_was_not_the_whole_prompt():
    it = applier()
    apply(it, stored([91], tokens(4), window_size=64))
    apply(it, stored([92], tokens(4, 4), window_size=128))
    assert depth(it, prompt(4)) == 0 and it.known(0) == 1


def test_types_of_events_that_nobody_knows_are_counted():
    it = applier()
    apply(it, UnknownEvent(type="BlockMoved"))
    assert counts(it) == {"unknown_event": 1}


def test_a_hash_that_stands_for_other_tokens_now_is_not_believed():
    it = applier()
    apply(it, stored([91, 92], tokens(8)))
    apply(it, stored([91], tokens(4, 50)), stored([80, 92], tokens(8, 60)), stored([70, 70], tokens(8, 80)))
    assert it.stats.conflicts == 3
    assert depth(it, prompt(8)) == 2
    assert depth(it, hash_blocks(np.arange(60, 68, dtype=np.uint32), 4)) == 1


def test_a_hash_that_stands_for_another_unfinished_block_is_not_believed_either():
    it = applier(own=64)
    apply(it, stored([1], tokens(16), size=16))
    apply(it, stored([1], tokens(16, 50), size=16))
    apply(it, stored([1], tokens(16), size=16, lora_name="sql"))
    apply(it, stored([1], tokens(16), size=16, extra_keys=((("cat", 0),),)))
    assert counts(it) == {"stored": 1, "conflicts": 3}


# --- block sizes -------------------------------------------------------------------------------------------------


def test_an_own_block_is_held_where_all_blocks_of_the_engine_in_it_are():
    it = applier(own=64)
    apply(it, stored(range(100, 108), tokens(128), size=16))
    assert depth(it, prompt(128, 64)) == 2
    apply(it, removed(100))
    assert depth(it, prompt(128, 64)) == 0 and it._index.blocks(0) == 1, "the second is still there"
    apply(it, stored([100], tokens(16), size=16))
    assert depth(it, prompt(128, 64)) == 2
    apply(it, removed(106), BlockStored(block_hashes=(106,), medium="CPU"))
    assert depth(it, prompt(128, 64)) == 2, "one part of four has moved"
    assert it.match_tiers(0, prompt(128, 64)) == {Tier.DEVICE: 1}


def test_blocks_that_end_in_the_middle_wait_for_the_rest():
    it = applier(own=64)
    apply(it, stored([1, 2, 3], tokens(48), size=16))
    assert it._index.blocks(0) == 0 and it.known(0) == 3
    apply(it, stored([4], tokens(16, 48), size=16, parent_block_hash=3))
    apply(it, stored([5], tokens(16, 900), size=16, parent_block_hash=3))
    other = np.array([*tokens(48), *tokens(16, 900)], dtype=np.uint32)
    assert depth(it, prompt(64, 64)) == 1 and depth(it, block_hashes(other, 64)) == 1
    apply(it, removed(2))
    assert it._index.blocks(0) == 0
    apply(it, BlockStored(block_hashes=(2,), medium="CPU"))
    assert it._index.blocks(0) == 2
    assert it.match_tiers(0, prompt(64, 64)) == {}, "the parts lie on two tiers"


def test_the_own_hash_of_an_engine_s_block():
    """The last of ours that is complete in it or before it, whichever blocks are the larger; it goes with the block."""
    it = applier()
    apply(it, stored([91, 92], tokens(8)))
    assert [it.own_hash(0, name) for name in (91, 92)] == prompt(8).tolist()
    assert it.own_hash(0, 93) is None and it.own_hash(1, 91) is None
    apply(it, removed(92))
    assert it.own_hash(0, 92) is None and it.own_hash(0, 91) == prompt(4)[0]
    small, large = applier(own=64), applier(own=16)
    apply(small, stored(range(1, 6), tokens(80), size=16))
    assert [small.own_hash(0, name) for name in range(1, 6)] == [None] * 3 + [prompt(64, 64)[0]] * 2
    apply(large, stored([7, 8], tokens(128), size=64))
    assert [large.own_hash(0, name) for name in (7, 8)] == prompt(128, 16)[[3, 7]].tolist()


def test_one_block_of_the_engine_may_be_many_of_ours():
    it = applier(own=16)
    apply(it, stored([200, 201], tokens(128), size=64))
    assert depth(it, prompt(128, 16)) == 8
    apply(it, removed(200))
    assert depth(it, prompt(128, 16)) == 0 and it._index.blocks(0) == 4
    apply(it, stored([200], tokens(64), size=64))
    assert depth(it, prompt(128, 16)) == 8


def test_an_own_block_in_two_blocks_of_the_engine_is_held_by_either():
    it = applier(own=16)
    apply(it, stored([1], tokens(32), size=32), stored([2], [*tokens(16), *tokens(16, 70)], size=32))
    assert it._index.blocks(0) == 3
    apply(it, removed(1))
    assert depth(it, prompt(32, 16)) == 1 and it._index.blocks(0) == 2
    apply(it, removed(2))
    assert it._index.blocks(0) == 0


def test_sizes_may_change_along_a_prompt():
    it = applier(own=8)
    apply(it, stored([1], tokens(12), size=12), stored([2, 3], tokens(8, 12), size=4, parent_block_hash=1))
    apply(it, stored([4], tokens(5, 20), size=5, parent_block_hash=3))
    assert depth(it, prompt(25, 8)) == 3
    apply(it, removed(2))
    assert depth(it, prompt(25, 8)) == 1
    apply(it, removed(4))
    assert it._index.blocks(0) == 1


def test_memory_goes_with_what_is_held():
    """Rows are used again, tables follow their growth, and a cleared endpoint gives all back."""
    it = applier()
    empty = it._holdings
    chains = [stored(range(k * 100, k * 100 + 30), tokens(120, k * 1000)) for k in range(40)]
    for turn in range(3):
        apply(it, *chains)
        assert it.known(0) == 1200 and it._index.blocks(0) == 1200
        size = it._holdings[0].nbytes
        for k in range(40):
            apply(it, removed(*range(k * 100, k * 100 + 30, 2)))
            apply(it, removed(*range(k * 100 + 1, k * 100 + 30, 2)))
        assert it.known(0) == 0 and len(it._index) == 0
        assert turn == 0 or it._holdings[0].nbytes == size, "what was freed is used again"
    apply(it, *chains, AllBlocksCleared())
    assert it._holdings[0].nbytes < size / 10
    it.clear(0)
    assert empty == {}


def test_names_that_would_like_the_same_place_in_the_table():
    """Hashes that agree in their upper bits, as no engine's do."""
    it, names = applier(), [i << 40 for i in range(1, 200)]
    for i, name in enumerate(names):
        apply(it, stored([name], tokens(4, 10 * i)))
    for name in names[::3] + names[1::3]:
        it.apply(0, EventBatch(events=(removed(name),)))
    it.check()
    assert it.known(0) == len(names[2::3]) and it.stats.removed == len(names) - it.known(0)


def test_an_own_block_needs_no_more_than_it_touches():
    """Blocks of 3 and 4 tokens: the second own block touches the second and the third of the engine, not the first."""
    it = applier(own=4)
    apply(it, stored([1, 2, 3, 4], tokens(12), size=3), removed(1, 2))
    assert it._index.blocks(0) == 1
    apply(it, stored([2], tokens(3, 3), size=3, parent_block_hash=1))
    assert it._index.blocks(0) == 2 and it.tiers_of(0, prompt(12)).tolist() == [0, 1, 1]
    apply(it, stored([1], tokens(3), size=3))
    assert depth(it, prompt(12)) == 3


def test_what_the_index_forgot_is_told_again():
    """Nobody holds the first own block; the second is complete only now, and still hangs in its place."""
    it = applier(own=4)
    apply(it, stored([1, 2, 3], tokens(6), size=2), removed(1, 2))
    assert len(it._index) == 0 and it.known(0) == 3
    apply(it, stored([4], tokens(2, 6), size=2, parent_block_hash=3))
    assert depth(it, prompt(8)) == 0 and it._index.blocks(0) == 1
    apply(it, stored([1, 2], tokens(4), size=2))
    assert depth(it, prompt(8)) == 2


# --- domains and extra keys --------------------------------------------------------------------------------------


def test_domains_are_those_of_block_hashes():
    it = applier(model="llama", tenant="acme", seed=7)
    own = functools.partial(prompt, 8, model="llama", tenant="acme", seed=7)
    apply(it, stored([1], tokens(4)), stored([2], tokens(4), lora_name="sql", lora_id=3))
    apply(it, stored([3, 4], tokens(8), extra_keys=(("mine",), None)))
    apply(it, stored([5], tokens(4), lora_name="sql", extra_keys=(("sql", "mine"),)))
    apply(it, stored([6], tokens(4, 4), lora_name="sql", extra_keys=(("sql",),), parent_block_hash=5))
    apply(it, stored([7], tokens(4), cache_salt="theirs"), stored([8], tokens(4, 4), parent_block_hash=7))
    apply(it, stored([9], tokens(4), lora_id=3))
    names = [{}, {"lora": "sql"}, {"salt": "mine"}, {"lora": "sql", "salt": "mine"}, {"salt": "theirs"}, {"salt": "x"}]
    assert [depth(it, own(**each)) for each in names] == [1, 1, 2, 2, 2, 0]
    assert depth(it, own(lora="lora_id 3")) == 1, "an adapter without a name is not the model itself"


def test_a_session_is_not_part_of_a_block():
    it = applier()
    apply(it, stored([1], tokens(4), session_id="a"), stored([2], tokens(4, 4), session_id="b", parent_block_hash=1))
    assert depth(it, prompt(8)) == 2


def test_pictures_keep_blocks_apart_and_requests_can_say_so():
    it = applier()
    keys = (None, (("cat", 2),), (("cat", -2), ("dog", 3)))
    apply(it, stored([1, 2, 3], tokens(12), extra_keys=keys))
    numbers = np.arange(12, dtype=np.uint32)
    same = hash_blocks(numbers, 4, [None, ("cat",), ("cat", "dog")])
    assert depth(it, same) == 3
    for other in ([None, ("cat",), ("dog", "cat")], [None, ("cat",), ("cat",)], [None, ("cat",), None]):
        assert depth(it, hash_blocks(numbers, 4, other)) == 2
    assert depth(it, hash_blocks(numbers, 4)) == 1


@pytest.mark.parametrize(("size", "own"), [(2, 4), (4, 2), (4, 4), (6, 4)])
def test_extra_keys_meet_at_any_ratio(size, own):
    it = applier(own=own)
    blocks = 24 // size
    keys = [("a", 1) if i % 3 == 1 else None for i in range(blocks)]
    extra = tuple((key,) if key else None for key in keys)
    apply(it, stored(range(blocks), tokens(24), size=size, extra_keys=extra))
    touched = [
        ("a",) if any(keys[t // size] for t in range(b * own, b * own + own)) else None for b in range(24 // own)
    ]
    assert depth(it, hash_blocks(np.arange(24, dtype=np.uint32), own, touched)) == 24 // own


@pytest.mark.parametrize("split", [(1, 2, 3), (1,), (2,), (3,), ()])
def test_extra_keys_wait_with_the_tokens_that_they_belong_to(split):
    """Four blocks of the engine in one of ours, told at once or in several events."""
    it = applier(own=8)
    keys = ((("a", 0),), None, (("b", 0), ("a", -2)), (("c", 0),))
    for begin, end in pairwise((0, *split, 4)):
        told = stored(range(begin, end), tokens(2 * (end - begin), 2 * begin), size=2, extra_keys=keys[begin:end])
        apply(it, msgspec.structs.replace(told, parent_block_hash=begin - 1 if begin else None))
    assert depth(it, hash_blocks(np.arange(8, dtype=np.uint32), 8, [("a", "b", "c")])) == 1


# --- what is refused, and leaves everything as it was ------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (stored([1, 2], tokens(7)), r"events\[1\].token_ids: got '7 tokens', allowed: 2 blocks of 4 tokens"),
        (stored([1, 2], tokens(7), size=None), "allowed: 2 blocks of equally many tokens"),
        (stored([], tokens(4)), r"token_ids: got '4 tokens', allowed: 0 blocks"),
        (
            stored([1], tokens(4), extra_keys=(None, None)),
            r"events\[1\].extra_keys: got 2, allowed: an entry for each of 1",
        ),
        (stored([1], tokens(4), group_idx=256), r"events\[1\].group_idx: got 256, allowed: an integer in \[0, 256\)"),
        (removed(91, group_idx=-1), "group_idx: got -1"),
    ],
)
def test_an_event_that_does_not_fit_is_named_and_its_batch_changes_nothing(event, message):
    it = applier()
    apply(it, stored([91, 92], tokens(8)))
    with pytest.raises(isched.KVEventError, match=message):
        apply(it, removed(91), event)
    it.check()
    assert depth(it, prompt(8)) == 2 and counts(it) == {"stored": 2}


def test_tokens_that_are_none_and_slots_that_are_none_are_refused():
    it = applier()
    with pytest.raises(isched.InvalidInputError, match="tokens: got -1"):
        apply(it, stored([1], [0, 1, 2, -1]))
    with pytest.raises(isched.InvalidInputError, match=r"slot: got 2, allowed: an integer in \[0, 2\)"):
        apply(it, stored([1], tokens(4)), slot=2)
    assert it.known(0) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: applier(own=0), "block_size: got 0"),
        (lambda: applier(seed=-1), "seed: got -1"),
        (lambda: KVEventApplier(isched.PrefixIndex(1, capacity=8), block_size=4), "index: got 'capacity=8'"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(isched.InvalidInputError, match=message):
        make()


def test_an_index_that_refuses_a_block_leaves_the_endpoint_empty():
    """Somebody else wrote the hash of our second block into the index, behind another block: a collision."""
    it = applier()
    first, second = prompt(8).tolist()
    it._index.insert(1, np.array([first + 1, second], dtype=np.uint64))
    with pytest.raises(isched.InvalidInputError, match="chained hashes"):
        apply(it, stored([91, 92], tokens(8)))
    assert it.known(0) == 0 and it._index.blocks(0) == 0


#: Everything that an engine may say, in a fresh interpreter; reports what was compiled after `warmup`.
DAY = """
import json, sys
import numpy as np
import inferencesched as isched
from inferencesched._kernels._compile import KERNELS

def compiled():
    return {name: len(k.signatures) for name, k in KERNELS.items()}

isched.warmup()
before = compiled()
Stored, Removed, Batch = isched.BlockStored, isched.BlockRemoved, isched.EventBatch
numbers = tuple(range(256))
for own in (16, 64):
    it = isched.KVEventApplier(isched.PrefixIndex(2), block_size=own)
    keys = ((("cat", 1),), None, None, ("salt",), None)
    it.apply(0, Batch(events=(Stored(block_hashes=(1, 2, 3, 4, 5), token_ids=numbers[:80], block_size=16, extra_keys=keys),)))
    more = [Stored(block_hashes=(n,), parent_block_hash=5, token_ids=numbers, block_size=256) for n in range(10, 200)]
    it.apply(0, Batch(events=(*more, Stored(block_hashes=(1,), medium="DISK"), Removed(block_hashes=(1, 2, 77)))))
    it.apply(0, Batch(events=(Removed(block_hashes=(3,), every_medium=True), isched.AllBlocksCleared(medium="DISK"))))
    it.match_tiers(0, isched.hash_blocks(np.arange(64, dtype=np.uint32), own))
    it.check()
after = compiled()
json.dump({name: after[name] - before[name] for name in after if after[name] != before[name]}, sys.stdout)
"""


def test_warmup_leaves_nothing_to_compile():
    done = subprocess.run([sys.executable, "-c", DAY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


# --- against the twin --------------------------------------------------------------------------------------------

#: Tokens of the engine's blocks and of our own, small so that blocks meet: alike, many to one, one to many, neither.
RATIOS = ((4, 4), (2, 8), (8, 2), (4, 6), (6, 4))
LENGTH = 24
TREE = [(0,) * LENGTH, (0,) * 13 + (1,) * 11, (0,) * 9 + (2,) * 15, (3,) * LENGTH, (3,) * 23 + (4,)]
DOMAINS = (("", ""), ("sql", ""), ("", "salt"))
#: A picture in tokens 10 to 16 of some prompts, by the number of the prompt.
PICTURES = {1: "cat", 4: "dog"}


def engine_name(words, domain, picture, end):
    """What the engine calls a block: anything that tells prompts apart up to its end."""
    seen = (words[:end], domain, picture if end > 10 else None)
    return xxhash.xxh64_intdigest(repr(seen).encode()) % 1000 + 1000 * end


@functools.cache
def engine_chain(which, domain, size):
    """Return names, tokens, extra keys, for all blocks of a prompt."""
    words, picture = TREE[which], PICTURES.get(which)
    blocks = LENGTH // size
    names = [engine_name(words, domain, picture, (i + 1) * size) for i in range(blocks)]
    touched = [picture is not None and i * size < 16 and (i + 1) * size > 10 for i in range(blocks)]
    return names, words, [(picture,) if touch else () for touch in touched]


def wire_keys(extras, first, lora, salt):
    """Write extra keys as vLLM does: the adapter, (identifier, offset), and on a prompt's first block the salt."""
    rows = [(*([lora] if lora else []), *((key, 3) for key in keys)) for keys in extras]
    if first and salt:
        rows[0] += (salt,)
    return tuple(row or None for row in rows) if any(rows) else None


class Machine(RuleBasedStateMachine):
    """Two engines say anything, in any order; after each step the index holds what the twin holds."""

    @initialize(ratio=st.sampled_from(RATIOS), counted=st.sampled_from([15, 3]))
    def begin(self, ratio, counted):
        self.size, own = ratio
        self.counted = [tier for i, tier in enumerate(naive_events.TIERS) if counted >> i & 1]
        self.it = KVEventApplier(isched.PrefixIndex(2), block_size=own, tiers=Tier(counted))
        self.twins = [naive_events.Endpoint(own) for _ in range(2)]
        self.batch = [[], []]

    def say(self, data, slot, event):
        """Events go out in batches of one or more."""
        self.batch[slot].append(event)
        if data.draw(st.booleans(), "send"):
            self.send(slot)

    def send(self, slot):
        self.it.apply(slot, EventBatch(events=tuple(self.batch[slot])))
        self.batch[slot] = []

    @rule(data=st.data(), slot=st.integers(0, 1), which=st.integers(0, 4), domain=st.sampled_from(DOMAINS))
    def store(self, data, slot, which, domain):
        names, words, extras = engine_chain(which, domain, self.size)
        first = data.draw(st.just(0) | st.integers(0, len(names) - 1), "first")
        end = data.draw(st.integers(first + 1, len(names)), "end")
        tier = data.draw(st.sampled_from(("device", "device", *MEDIA)), "tier")
        group = data.draw(st.sampled_from((None, None, 0)), "group")
        size, (lora, salt) = self.size, domain
        parent = names[first - 1] if first else None
        some = words[first * size : end * size]
        self.twins[slot].store(names[first:end], parent, some, size, tier, group, lora, salt, extras[first:end])
        event = stored(
            names[first:end],
            some,
            size=size,
            parent_block_hash=parent,
            medium=MEDIA[tier],
            lora_name=lora or None,
            extra_keys=wire_keys(extras[first:end], first == 0, lora, salt),
            group_idx=group,
            kv_cache_spec_kind=None if group is None else "full_attention",
        )
        self.say(data, slot, event)

    def some(self, data, slot):
        names = st.sampled_from(sorted(self.twins[slot].known) or [1]) | st.sampled_from(
            engine_chain(0, DOMAINS[0], 2)[0]
        )
        return data.draw(st.lists(names, min_size=1, max_size=5), "names")

    @rule(data=st.data(), slot=st.integers(0, 1), tier=st.sampled_from(("device", "device", *MEDIA)))
    def remove(self, data, slot, tier):
        names, group = self.some(data, slot), data.draw(st.sampled_from((None, 0)), "group")
        self.twins[slot].remove(names, tier, group)
        self.say(data, slot, removed(*names, medium=MEDIA[tier], group_idx=group))

    @rule(data=st.data(), slot=st.integers(0, 1), tier=st.sampled_from(sorted(MEDIA)))
    def offload(self, data, slot, tier):
        names = self.some(data, slot)
        self.twins[slot].place(names, tier)
        self.say(data, slot, BlockStored(block_hashes=tuple(names), medium=MEDIA[tier]))

    @rule(data=st.data(), slot=st.integers(0, 1), tier=st.sampled_from((None, *MEDIA)))
    def clear(self, data, slot, tier):
        self.twins[slot].clear(tier)
        self.say(data, slot, AllBlocksCleared(medium=MEDIA.get(tier)))

    @rule(data=st.data(), slot=st.integers(0, 1))
    def refuse(self, data, slot):
        self.send(slot)
        with pytest.raises(isched.KVEventError):
            self.it.apply(slot, EventBatch(events=(AllBlocksCleared(), stored([1], tokens(5), size=4))))

    @invariant()
    def agrees(self):
        for slot in (0, 1):
            self.send(slot)
        self.it.check()
        total = sum((twin.counts for twin in self.twins), start=naive_events.Counter())
        assert counts(self.it) == +total
        for slot, twin in enumerate(self.twins):
            assert self.it.known(slot) == len(twin.known)
            held = twin.own_blocks(self.counted)
            tiers = {tier: twin.own_blocks([tier]) for tier in naive_events.TIERS}
            assert self.it._index.blocks(slot) == len(held)
            for which in range(5):
                for domain in DOMAINS:
                    names, words, extras = engine_chain(which, domain, self.size)
                    whole = naive_events.Known(
                        tuple(names),
                        (self.size,) * len(names),
                        words,
                        tuple(keys for keys in extras for _ in range(self.size)),
                        *domain,
                    )
                    chain = naive_events.own_hashes(whole, self.it.block_size)
                    expected = next((i for i, key in enumerate(chain) if key not in held), len(chain))
                    asked = np.array(chain, dtype=np.uint64)
                    assert depth(self.it, asked, slot) == expected
                    flags = self.it.tiers_of(slot, asked).tolist()
                    assert flags == [
                        sum(1 << i for i, tier in enumerate(naive_events.TIERS) if key in tiers[tier]) for key in chain
                    ]


TestMachine = Machine.TestCase
TestMachine.settings = settings(stateful_step_count=30)


@given(ratio=st.sampled_from(RATIOS), order=st.permutations(range(12)), gone=st.sets(st.integers(0, 11)))
def test_copies_come_and_go_in_any_order(ratio, order, gone):
    """A whole prompt, then blocks removed in one order and stored again in another: in the end as never removed."""
    size, own = ratio
    blocks = LENGTH // size
    it = applier(own=own, endpoints=1)
    every = range(LENGTH)
    names = [100 + i for i in range(blocks)]
    apply(it, stored(names, every, size=size))
    whole = it._index.match(prompt(LENGTH, own)).tolist()
    assert whole == [LENGTH // own]
    lost = [i for i in order if i in gone and i < blocks]
    apply(it, *(removed(names[i]) for i in lost))
    kept = [all(t // size not in lost for t in range(b * own, (b + 1) * own)) for b in range(LENGTH // own)]
    assert it._index.blocks(0) == sum(kept)
    for i in sorted(lost):
        apply(
            it,
            stored(
                [names[i]], every[i * size : (i + 1) * size], size=size, parent_block_hash=names[i - 1] if i else None
            ),
        )
    assert it._index.match(prompt(LENGTH, own)).tolist() == whole or it.stats.unknown_parent
