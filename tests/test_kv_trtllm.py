"""Is what TensorRT-LLM says read as it means it?"""

import json

import numpy as np
import pytest

import inferencesched as isched
from inferencesched.prefix.kv_records import BlockRemoved, BlockStored, CacheCreated, UnknownEvent
from inferencesched.prefix.kv_trtllm import decode_trtllm_events


def event(number, data, **fields):
    return {"event_id": number, "data": data, **fields}


def block(name, tokens, **fields):
    listed = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens]
    return {"type": "stored_block", "block_hash": name, "tokens": listed, "cache_level": 0, "priority": 35, **fields}


def read(*events, size=4):
    return decode_trtllm_events(json.dumps(events).encode(), block_size=size)


def stored(*blocks, parent=None):
    return {"type": "stored", "parent_hash": parent, "blocks": list(blocks)}


def test_every_type_of_event():
    batches = read(
        event(0, {"type": "created", "num_blocks_per_cache_level": [100, 20]}, window_size=512),
        event(1, stored(block(-2, range(4)), block(7, range(4, 8))), window_size=512, attention_dp_rank=3),
        event(2, {"type": "removed", "block_hashes": [7]}, window_size=512),
        event(
            3, {"type": "updated", "block_hash": -2, "cache_level": {"old_value": 0, "new_value": 1}, "priority": None}
        ),
        event(4, {"type": "updated", "block_hash": -2, "cache_level": None}),
        event(5, {"type": "defragmented"}),
    )
    assert [sequence for sequence, _ in batches] == [0, 1, 2, 3, 4, 5]
    assert [batch.data_parallel_rank for _, batch in batches] == [None, 3, None, None, None, None]
    assert [batch.events for _, batch in batches] == [
        (CacheCreated(window_size=512),),
        (
            BlockStored(
                block_hashes=(2**64 - 2, 7), token_ids=tuple(range(8)), block_size=4, medium="GPU", window_size=512
            ),
        ),
        (BlockRemoved(block_hashes=(7,), window_size=512, every_medium=True),),
        (
            BlockStored(block_hashes=(2**64 - 2,), medium="CPU"),
            BlockRemoved(block_hashes=(2**64 - 2,), medium="GPU"),
        ),
        (),
        (UnknownEvent(type="defragmented"),),
    ]


def test_an_event_alone_is_a_list_of_one():
    assert decode_trtllm_events(
        json.dumps(event(9, {"type": "removed", "block_hashes": []})).encode(), block_size=4
    ) == read(event(9, {"type": "removed", "block_hashes": []}))


def test_the_unfinished_end_of_a_prompt_is_left_out():
    [(_, batch)] = read(event(0, stored(block(1, range(4)), block(2, range(3)), parent=9)))
    assert batch.events[0].block_hashes == (1,) and batch.events[0].parent_block_hash == 9
    [(_, batch)] = read(event(0, stored(block(2, range(3)))))
    assert batch.events == ()


def test_blocks_on_two_levels_are_two_stores():
    [(_, batch)] = read(event(0, stored(block(1, range(4)), block(2, range(4), cache_level=1), block(3, range(4)))))
    assert [(e.block_hashes, e.parent_block_hash, e.medium) for e in batch.events] == [
        ((1,), None, "GPU"),
        ((2,), 1, "CPU"),
        ((3,), 2, "GPU"),
    ]


def test_pictures_salts_and_adapters():
    keys = [{"type": "mm_key", "hash": "0a0b", "start_offset": 2}]
    tokens = [{"token_id": 5, "token_extra_id": extra} for extra in (0, 8, 9, 0)]
    [(_, batch)] = read(
        event(
            0,
            stored(
                block(1, range(4), mm_keys=keys, cache_salt="mine", lora_id=3),
                block(2, range(4)) | {"tokens": tokens},
                block("00ff" * 16, range(4)),
            ),
        )
    )
    assert batch.events[0].extra_keys == ((("0a0b", 2),), ((0, 8, 9, 0),), None)
    assert (batch.events[0].cache_salt, batch.events[0].lora_id) == ("mine", 3)
    assert batch.events[0].block_hashes == (1, 2, 0x00FF00FF00FF00FF)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"[", "payload: got"),
        (b"[" * 100_000, "payload: got"),
        (b"7", r"payload\[0\]: got 'int', allowed: `object`"),
        (b'[{"data": {}}]', "allowed: Object missing required field `event_id`"),
        (b'[{"event_id": -1, "data": {}}]', r"payload\[0\].event_id: got 'another value', allowed: `int` >= 0"),
        (b'[{"event_id": 1, "data": {}}]', "payload: got .*Object missing required field `type`"),
        (b'[{"event_id": 1, "data": {"type": "stored"}}]', "missing required field `blocks`"),
        (
            json.dumps([event(0, stored(block(1, range(5))))]).encode(),
            "tokens: got '5 tokens', allowed: at most block_size = 4",
        ),
        (json.dumps([event(0, stored(block(1, [-1])))]).encode(), "token_id: got 'another value', allowed: `int` >= 0"),
        (json.dumps([event(0, stored(block("xyz", range(4))))]).encode(), "block_hash: got 'xyz', allowed"),
        (json.dumps([event(0, stored(block("", range(4))))]).encode(), "block_hash: got ''"),
        (json.dumps([event(0, stored(block(2**64, range(4))))]).encode(), "block_hash: got 18446744073709551616"),
        (
            json.dumps([event(0, stored(block(1, range(4), cache_level=2)))]).encode(),
            "cache_level: got 'another value'",
        ),
    ],
)
def test_what_is_wrong_is_named(payload, message):
    with pytest.raises(isched.KVEventError, match=message):
        decode_trtllm_events(payload, block_size=4)


def test_a_block_size_of_0_is_refused():
    with pytest.raises(isched.InvalidInputError, match="block_size: got 0"):
        decode_trtllm_events(b"[]", block_size=0)


def test_a_stream_of_them_fills_the_index():
    """Event ids are sequence numbers: a gap shows, and a fresh cache is an empty one."""
    index = isched.PrefixIndex(1)
    applier, stream = isched.KVEventApplier(index, block_size=4), isched.EventStream(replay=False)

    def hear(*events):
        for sequence, batch in read(*events):
            applier.take(0, stream.live(sequence, batch))
            applier.check()
        return index.match(prompt).tolist(), applier.match_tiers(0, prompt)

    prompt = isched.block_hashes(np.arange(8, dtype=np.uint32), 4)
    fresh = event(0, {"type": "created", "num_blocks_per_cache_level": [9, 9]}, window_size=512)
    both = stored(block(1, range(4)), block(2, range(4, 8)))
    assert hear(fresh, event(1, both, window_size=512)) == ([2], {isched.Tier.DEVICE: 2})
    moved = {"type": "updated", "block_hash": 2, "cache_level": {"old_value": 0, "new_value": 1}}
    assert hear(event(2, moved, window_size=512)) == ([2], {isched.Tier.DEVICE: 1})
    assert hear(event(3, both, window_size=64)) == ([2], {isched.Tier.DEVICE: 1})
    assert hear(event(4, {"type": "removed", "block_hashes": [2]}, window_size=512)) == ([1], {isched.Tier.DEVICE: 1})
    assert hear(event(7, {"type": "removed", "block_hashes": [5]}, window_size=512)) == ([0], {})
    assert applier.stats.lost_frames == 2
    assert hear(fresh, event(1, both, window_size=512)) == ([2], {isched.Tier.DEVICE: 2})
    assert applier.stats.restarts == 1
