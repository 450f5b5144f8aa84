"""Is what engines publish read as they mean it, and everything else refused as a whole?"""

import json
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.kv_records import AllBlocksCleared, BlockRemoved, BlockStored, Tier, UnknownEvent
from inferencesched.prefix.kv_wire import decode_event, decode_event_batch, hash_as_uint64

#: Three payloads of a vLLM 0.32 engine, as captured: maps in an array.
STORED = bytes.fromhex(
    "93cb41dac0aace411fb3918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cf7638114ebcd9f640b170617265"
    "6e745f626c6f636b5f68617368c0a9746f6b656e5f696473dc0020cd0104cd0122cd011ccd011ecd011fcd0121cd0105cd0120cd011d10cd01"
    "05cd0122cd011ccd011ecd011fcd0121cd0105cd0120cd011d10cd0105cd0122cd011ccd011ecd011fcd0121cd0105cd0120cd011d10cd0105"
    "cd0122aa626c6f636b5f73697a6520a76c6f72615f696401a66d656469756da3475055a96c6f72615f6e616d65ab656e676c6973682d626f74"
    "aa65787472615f6b6579739191ab656e676c6973682d626f74a967726f75705f69647800b26b765f63616368655f737065635f6b696e64ae66"
    "756c6c5f617474656e74696f6e00"
)
REMOVED = bytes.fromhex(
    "93cb41dac0a99015a6d49184a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391cf4acccf6fa3bc1387a66d6564"
    "69756da3475055a967726f75705f6964780000"
)
CLEARED = bytes.fromhex("93cb41dac0a99134e3909181a474797065b0416c6c426c6f636b73436c656172656400")

pack = msgspec.msgpack.encode


def batch_of(*events, rank=None):
    return pack([0.5, list(events), rank])


def only(payload, **options):
    [event] = decode_event_batch(payload, **options).events
    return event


# --- what engines send -------------------------------------------------------------------------------------------


def test_a_captured_store_decodes_without_loss():
    batch = decode_event_batch(STORED)
    period = (290, 284, 286, 287, 289, 261, 288, 285, 16, 261)
    assert batch.ts == pytest.approx(1795337017.0175598, abs=0)
    assert batch.data_parallel_rank == 0
    assert batch.events == (
        BlockStored(
            block_hashes=(8518577725044815424,),
            parent_block_hash=None,
            token_ids=(260, *period, *period, *period, 290),
            block_size=32,
            lora_id=1,
            medium="GPU",
            lora_name="english-bot",
            extra_keys=(("english-bot",),),
            group_idx=0,
            kv_cache_spec_kind="full_attention",
        ),
    )


def test_captured_removal_and_clearing():
    assert only(REMOVED) == BlockRemoved(block_hashes=(5389910932450972551,), medium="GPU", group_idx=0)
    assert only(CLEARED) == AllBlocksCleared()


def test_arrays_may_end_early_or_go_on():
    short = only(batch_of(["BlockStored", [1, 2], None, [5, 6, 7, 8], 2]))
    assert short == BlockStored(block_hashes=(1, 2), token_ids=(5, 6, 7, 8), block_size=2)
    whole = ["BlockStored", [1], 9, [5, 6], 2, 3, "CPU", "sql", [["sql"]], 1, "sliding_window", 128]
    expected = BlockStored(
        block_hashes=(1,),
        parent_block_hash=9,
        token_ids=(5, 6),
        block_size=2,
        lora_id=3,
        medium="CPU",
        lora_name="sql",
        extra_keys=(("sql",),),
        group_idx=1,
        kv_cache_spec_kind="sliding_window",
        kv_cache_spec_sliding_window=128,
    )
    assert only(batch_of(whole)) == expected
    assert only(batch_of([*whole, "LOCAL", {"what": ["ever"]}, 7])) == expected
    assert only(batch_of(["BlockRemoved", [1], "GPU", 2, None, "more"])) == BlockRemoved(
        block_hashes=(1,), medium="GPU", group_idx=2
    )
    assert only(batch_of(["AllBlocksCleared"])) == only(batch_of(["AllBlocksCleared", None, 4])) == AllBlocksCleared()


def test_maps_may_lack_keys_and_have_others():
    event = {"type": "BlockStored", "block_hashes": [1], "token_ids": [5], "locality": "LOCAL", "ownership": [1, {}]}
    assert only(batch_of(event)) == BlockStored(block_hashes=(1,), token_ids=(5,))
    assert only(batch_of(event | {"cache_salt": "mine", "session_id": "s"})) == BlockStored(
        block_hashes=(1,), token_ids=(5,), cache_salt="mine", session_id="s"
    )
    assert only(batch_of({"type": "AllBlocksCleared", "medium": "GPU"})) == AllBlocksCleared(medium="GPU")


def test_a_batch_may_be_a_map_and_its_events_of_both_forms():
    events = [["BlockRemoved", [1]], {"type": "AllBlocksCleared"}]
    batch = decode_event_batch(pack({"type": "KVEventBatch", "ts": 3, "events": events, "new": 1}))
    assert batch.events == (BlockRemoved(block_hashes=(1,)), AllBlocksCleared())
    assert (batch.ts, batch.data_parallel_rank) == (3.0, None)
    assert decode_event_batch(pack([3, events])) == batch
    assert decode_event_batch(pack([3, [], 5])).data_parallel_rank == 5


def test_hashes_are_64_bits_however_they_are_written():
    digest = bytes(range(32))
    event = only(batch_of(["BlockStored", [-1, 2**64 - 1, digest, b"\x30\x39"], -(2**63), [1, 2, 3, 4], 1]))
    assert event.block_hashes == (2**64 - 1, 2**64 - 1, 0x18191A1B1C1D1E1F, 12345)
    assert event.parent_block_hash == 2**63
    assert hash_as_uint64(digest) == int.from_bytes(digest, "big") & (2**64 - 1), "vLLM's own form"


def test_sglang_says_its_salt_where_vllm_names_the_adapter():
    event = only(batch_of(["BlockStored", [-5], None, [1, 2], 2, None, "GPU", {"cache_salt": "mine"}]))
    assert (event.cache_salt, event.lora_name) == ("mine", None)
    assert only(batch_of(["BlockStored", [-5], None, [1, 2], 2, None, "GPU", {}])).cache_salt is None


@pytest.mark.parametrize("form", [lambda e: e, lambda e: dict(zip(FIELDS, e, strict=False))])
def test_of_bigrams_the_first_tokens_count(form):
    event = form(["BlockStored", [1], None, [[5, 6], [6, 7]], 2])
    assert only(batch_of(event)).token_ids == (5, 6)
    assert only(json.dumps([0.5, [event]]).encode(), encoding="json").token_ids == (5, 6)


def test_adapters_may_be_named_by_numbers_or_words():
    assert [only(batch_of(["BlockStored", [1], None, [2], 1, name])).lora_id for name in (7, "uuid", None)] == [
        7,
        "uuid",
        None,
    ]


def test_extra_keys_are_kept_as_they_come():
    keys = [None, [], ["salt", ["cat", -3], b"embedding", 7, None, 0.5]]
    event = only(batch_of(["BlockStored", [1, 2, 3], None, [4, 5, 6], 1, None, None, None, keys]))
    assert event.extra_keys == (None, (), ("salt", ("cat", -3), b"embedding", 7, None, 0.5))


def test_new_types_of_events_do_not_spoil_a_batch():
    batch = decode_event_batch(batch_of(["BlockMoved", [1], {}], {"type": "Ignored"}, ["BlockRemoved", [1]]))
    assert batch.events == (
        UnknownEvent(type="BlockMoved"),
        UnknownEvent(type="Ignored"),
        BlockRemoved(block_hashes=(1,)),
    )


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        (Tier.DEVICE, ["GPU", "gpu", "DEVICE", "", None]),
        (Tier.HOST, ["CPU", "CPU_PINNED", "CPU_TIER1", "cpu_tier1"]),
        (Tier.DISK, ["CPU_TIER2", "DISK", "NVME", "STORAGE"]),
        (Tier.EXTERNAL, ["EXTERNAL", "NETWORK", "REMOTE", "SHARED"]),
        (None, ["HBM", "GPU ", "tape"]),
    ],
)
def test_media(tier, words):
    assert {isched.tier_of(word) for word in words} == {tier}


FIELDS = ("type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")

UINT64 = st.integers(0, 2**64 - 1)
STORES = st.integers(0, 4).flatmap(
    lambda blocks: st.tuples(
        st.just("BlockStored"),
        st.lists(UINT64, min_size=blocks, max_size=blocks),
        st.none() | UINT64,
        st.lists(st.integers(0, 2**32 - 1), min_size=3 * blocks, max_size=3 * blocks),
        st.just(3),
        st.none() | st.integers(0, 9),
        st.none() | st.text(max_size=5),
        st.none() | st.text(max_size=5),
    )
)


@given(event=STORES, rank=st.none() | st.integers(0, 9))
def test_both_forms_and_both_encodings_say_the_same(event, rank):
    forms = [list(event), dict(zip(FIELDS, event, strict=True))]
    signed = [list(event), forms[1]]
    signed[0][1] = [value - 2**64 if value >= 2**63 else value for value in event[1]]
    read = {decode_event_batch(pack([1.5, [form], rank])) for form in forms + signed}
    read |= {decode_event_batch(json.dumps([1.5, [form], rank]).encode(), encoding="json") for form in forms + signed}
    [batch] = read
    assert batch.events[0].block_hashes == tuple(event[1]) and batch.events[0].token_ids == tuple(event[3])
    assert (batch.events[0].medium, batch.events[0].lora_name) == event[6:8]


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [STORED, REMOVED, CLEARED])
def test_a_payload_that_is_cut_off_anywhere_is_refused(payload):
    for end in range(len(payload)):
        with pytest.raises(isched.KVEventError):
            decode_event_batch(payload[:end])
    with pytest.raises(isched.KVEventError, match="payload: got .*trailing characters"):
        decode_event_batch(payload + b"\0")


def deep(levels):
    return (
        b"\x93\x00\x91\x99"
        + pack("BlockStored")
        + b"\x90\xc0\x90\xc0\xc0\xc0\xc0"
        + b"\x91" * levels
        + b"\xc0"
        + b"\x00"
    )


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload: got 'Input data was truncated', allowed: one whole message"),
        (b"\xc1", "payload: got"),
        (pack(7), "payload: got 'int', allowed: `object`"),
        (pack([]), "payload: got '0', allowed: `array` of at least length 2"),
        (pack([0.5]), "payload: got '1'"),
        (pack(["now", []]), r"payload\[0\]: got 'str', allowed: `float`"),
        (pack([0.5, {}]), r"payload\[1\]: got 'object', allowed: `array`"),
        (pack([0.5, [], -1]), r"payload\[2\]: got 'another value', allowed: `int` >= 0"),
        (pack({"ts": 1.0}), "payload: got 'another value', allowed: Object missing required field `events`"),
        (pack({1: 2}), r"payload \(`key` in `\$`\): got 'int', allowed: `str`"),
        (b"\x92\x00\xdd\xff\xff\xff\xff", "payload: got 'Input data was truncated'"),
        (
            b"\x92\x00\x91\x92" + pack("BlockRemoved") + b"\xdd\xff\xff\xff\xff",
            "payload: got 'Input data was truncated'",
        ),
        (
            b"\x92\x00\x91\x92" + pack("BlockRemoved") + b"\xc6\xff\xff\xff\xff",
            "payload: got 'Input data was truncated'",
        ),
        (b"\x91" * 100_000, "payload: got"),
        (b"\x92\x00" + b"\x91" * 100_000 + b"\x00", "payload: got 'maximum recursion depth exceeded"),
        (deep(100_000), "payload: got 'maximum recursion depth exceeded"),
        (deep(40), r"events\[0\].*extra_keys\[0\]\[0\]: got 'list', allowed: a string, bytes"),
        (b"\x92\x00\x91\xa3\xff\xff\xff", "payload: got .*codec can't decode"),
        (batch_of(7), r"events\[0\]: got 'int', allowed: an array that begins with its type, or a map"),
        (batch_of([]), r"events\[0\].type: got 'NoneType', allowed: a string"),
        (batch_of([3, [1]]), r"events\[0\].type: got 'int'"),
        (batch_of({"block_hashes": [1]}), r"events\[0\].type: got 'NoneType'"),
        (batch_of({"type": ["BlockRemoved"]}), r"events\[0\].type: got 'list'"),
        (batch_of(["BlockStored"]), r"events\[0\]: got '1', allowed: `array` of at least length 2"),
        (batch_of(["BlockStored", None]), r"events\[0\]\[1\]: got 'null', allowed: `array`"),
        (
            batch_of(["BlockRemoved", [1]], ["BlockRemoved", ["x"]]),
            r"events\[1\]\[1\]\[0\]: got 'str', allowed: `int \| bytes`",
        ),
        (batch_of(["BlockRemoved", [1.0]]), r"events\[0\]\[1\]\[0\]: got 'float'"),
        (batch_of(["BlockRemoved", [True]]), r"events\[0\]\[1\]\[0\]: got 'bool'"),
        (
            batch_of(["BlockRemoved", [b""]]),
            r"events\[0\].block_hashes\[0\]: got 'bytes', allowed: an integer of 64 bits",
        ),
        (batch_of(["BlockStored", [1], "x", [2], 1]), r"events\[0\]\[2\]: got 'str', allowed: `int \| bytes \| null`"),
        (
            batch_of(["BlockStored", [1], None, [2**32], 1]),
            r"events\[0\]\[3\]\[0\]: got 'another value', allowed: `int` <= 4294967295",
        ),
        (
            batch_of(["BlockStored", [1], None, [-1], 1]),
            r"events\[0\]\[3\]\[0\]: got 'another value', allowed: `int` >= 0",
        ),
        (batch_of(["BlockStored", [1], None, [[1, 2, 3]], 1]), r"events\[0\]\[3\]\[0\]: got 'array', allowed: `int`"),
        (batch_of(["BlockStored", [1], None, [[1, 2], 3], 2]), None),
        (batch_of(["BlockStored", [1], None, [1, [2, 3]], 2]), r"events\[0\]\[3\]\[1\]: got 'array', allowed: `int`"),
        (batch_of(["BlockStored", [1], None, [2], 0]), r"events\[0\]\[4\]: got 'another value', allowed: `int` >= 1"),
        (
            batch_of(["BlockStored", [1], None, [2], 2**40]),
            r"events\[0\]\[4\]: got 'another value', allowed: `int` <= 2147483647",
        ),
        (
            batch_of(["BlockStored", [1], None, [2, 3], 3]),
            r"events\[0\].token_ids: got '2 tokens', allowed: 1 blocks of 3",
        ),
        (
            batch_of(["BlockStored", [1, 2], None, [2, 3, 4], 2]),
            r"events\[0\].token_ids: got '3 tokens', allowed: 2 blocks",
        ),
        (
            batch_of(["BlockStored", [], None, [2, 3], 2]),
            r"events\[0\].token_ids: got '2 tokens', allowed: 0 blocks of 2",
        ),
        (
            batch_of(["BlockStored", [1], None, [2], 1, None, None, None, [None, None]]),
            r"events\[0\].extra_keys: got 2, allowed: an entry for each of 1 blocks",
        ),
        (
            batch_of(["BlockStored", [1], None, [2], 1, None, None, None, [[{}]]]),
            r"events\[0\].extra_keys\[0\]\[0\]: got 'dict'",
        ),
        (
            batch_of(["BlockStored", [1], None, [2], 1, None, None, {"cache_salt": 5}]),
            r"events\[0\].cache_salt: got 'int', allowed: a string",
        ),
        (
            batch_of(["BlockStored", [1], None, [2], 1, None, None, None, None, 256]),
            r"events\[0\]\[9\]: got 'another value', allowed: `int` <= 255",
        ),
        (batch_of(["BlockRemoved", [1], 5]), r"events\[0\]\[2\]: got 'int', allowed: `str \| null`"),
    ],
)
def test_what_is_wrong_is_named(payload, message):
    if message is None:
        assert only(payload).token_ids == (1, 3), "a bigram whose neighbour is none"
        return
    with pytest.raises(isched.KVEventError, match=message):
        decode_event_batch(payload)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"[0.5, [", "payload: got 'Input data was truncated'"),
        (b'"\xff"', "payload: got"),
        (b"[" * 100_000, "payload: got"),
        (b"9" * 6000, "payload: got"),
        (b'[0.5, [["BlockRemoved", [18446744073709551616]]]]', r"block_hashes\[0\]: got 18446744073709551616, allowed"),
        (b'[0.5, [["BlockRemoved", [-9223372036854775809]]]]', r"block_hashes\[0\]: got -9223372036854775809"),
        (b'[0.5, [["BlockRemoved", [' + b"9" * 90 + b"]]]]", r"block_hashes\[0\]: got 'int'"),
        (b'[0.5, [["BlockRemoved", ["AAAA"]]]]', r"events\[0\]\[1\]\[0\]: got 'str', allowed: `int \| bytes`"),
        (b'[0.5, [["BlockStored", [1], null, [2], 1, null, null, null, [[1e400]]]]]', "Number out of range"),
        (
            b'[0.5, [["BlockStored", [1], null, [2], 1, null, null, null, [[123456789012345678901]]]]]',
            r"extra_keys\[0\]\[0\]: got 'int', allowed: .* an integer of 64 bits",
        ),
    ],
)
def test_json_is_refused_likewise(payload, message):
    with pytest.raises(isched.KVEventError, match=message):
        decode_event_batch(payload, encoding="json")


def test_an_encoding_that_nobody_knows_is_refused():
    with pytest.raises(isched.InvalidInputError, match="encoding: got 'yaml', allowed: 'msgpack' or 'json'"):
        decode_event_batch(STORED, encoding="yaml")


def test_an_event_alone_is_checked_field_by_field():
    """llm-d's own examples do not fill their blocks: a single event may, a batch may not."""
    loose = decode_event(["BlockStored", [100, 101], 99, [1, 2, 3], 16])
    assert loose.token_ids == (1, 2, 3)
    with pytest.raises(isched.KVEventError, match="token_ids: got '3 tokens'"):
        isched.prefix.kv_records.tokens_per_block(loose)


def outcome(payload, encoding):
    try:
        return decode_event_batch(payload, encoding=encoding)
    except isched.KVEventError as error:
        return error


@given(
    payload=st.sampled_from([STORED, REMOVED, CLEARED]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    junk=st.binary(max_size=8),
    at=st.integers(0, 400),
)
def test_hostile_bytes_are_read_or_refused_and_nothing_else(payload, changes, junk, at):
    mutant = bytearray(payload)
    for place, value in changes:
        mutant[place % len(mutant)] = value
    mutant[at % len(mutant) : at % len(mutant)] = junk
    for raw in (bytes(mutant), junk, struct.pack(">Bd", 0xCB, 1.0) + junk):
        for encoding in ("msgpack", "json"):
            found = outcome(raw, encoding)
            assert isinstance(found, isched.EventBatch) or len(str(found)) < 600


def test_an_error_deep_in_a_payload_is_short():
    """A map in a map, five hundred times, and in the last one a timestamp that is none: msgspec names the whole way there."""
    nested = b"\x81\xa0" * 500 + b"\xc7\x01\xff\x00"
    payload = b"\x92\x00\x91\x92\xacBlockRemoved\x91" + nested
    with pytest.raises(isched.KVEventError, match=r" \.\.\. ") as caught:
        isched.decode_event_batch(payload)
    assert len(str(caught.value)) < 600
