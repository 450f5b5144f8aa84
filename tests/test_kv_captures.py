"""What does a real engine say? Captures of vLLM 0.32, beside this checkout."""

import base64
import json
from collections import Counter

import msgspec
import numpy as np
import pytest

import inferencesched as isched
from inferencesched.prefix.kv_records import BlockStored
from tests.shared import shared

#: File -> frames, first and last sequence, events by type, blocks by type.
CONTENTS = {
    "kv_stored": (17, 0, 16, {"BlockStored": 17}, {"BlockStored": 18}),
    "kv_cleared": (
        6,
        55,
        79,
        {"BlockStored": 4, "BlockRemoved": 1, "AllBlocksCleared": 2},
        {"BlockStored": 24, "BlockRemoved": 1},
    ),
    "kv_events_vllm_0.32.0": (30, 27, 56, {"BlockStored": 50}, {"BlockStored": 82}),
    "kv_restart": (8, 305, 3, {"BlockStored": 9, "AllBlocksCleared": 1}, {"BlockStored": 115}),
    "kv_duplicates": (20, 103, 122, {"BlockStored": 26, "BlockRemoved": 71}, {"BlockStored": 278, "BlockRemoved": 71}),
    "kv_removed": (35, 0, 34, {"BlockStored": 37, "BlockRemoved": 310}, {"BlockStored": 562, "BlockRemoved": 310}),
}
#: The engine's block size.
SIZE = 32


def read(name):
    return json.loads(shared(f"captures/{name}.json").read_text(encoding="utf-8"))


def frames(name):
    parts = [
        [f["topic"].encode(), base64.b64decode(f["seq_b64"]), base64.b64decode(f["payload_b64"])] for f in read(name)
    ]
    return [isched.decode_event_frame(each) for each in parts]


def replies():
    return [
        isched.decode_replay_reply([base64.b64decode(part) for part in reply])
        for reply in read("kv_replay_from_2")["replies"]
    ]


def follow(name, own=SIZE, stream=None, **options):
    """Apply a whole capture; a gap at its beginning is a loss."""
    it = isched.KVEventApplier(isched.PrefixIndex(1), block_size=own, **options)
    stream = stream or isched.EventStream(replay=False)
    for frame in frames(name):
        it.take(0, stream.live(frame.sequence, frame.payload))
        it.check()
    return it


def counts(it):
    return {name: count for name, count in it.stats._asdict().items() if count}


def stores(name):
    """All stores of a capture, as (prompt tokens up to the end, event): parents within the capture are followed."""
    prompts = {}
    for frame in frames(name):
        for event in isched.decode_event_batch(frame.payload).events:
            if isinstance(event, BlockStored) and (
                event.parent_block_hash is None or event.parent_block_hash in prompts
            ):
                tokens = prompts.get(event.parent_block_hash, ())
                for i, block in enumerate(event.block_hashes):
                    tokens += event.token_ids[i * SIZE : (i + 1) * SIZE]
                    prompts[block] = tokens
                yield np.array(tokens, dtype=np.uint32), event


@pytest.mark.parametrize("name", CONTENTS)
def test_every_event_of_every_frame_is_accounted_for(name):
    number, first, last, events, blocks = CONTENTS[name]
    found = frames(name)
    assert (len(found), found[0].sequence, found[-1].sequence) == (number, first, last)
    read_events, read_blocks = Counter(), Counter()
    for frame in found:
        for event in isched.decode_event_batch(frame.payload).events:
            read_events[type(event).__name__] += 1
            read_blocks[type(event).__name__] += len(getattr(event, "block_hashes", ()))
    assert read_events == events and +read_blocks == blocks


@pytest.mark.parametrize("name", CONTENTS)
def test_nothing_is_lost_on_the_way(name):
    """Every key of every map, and every value, is there again in the record."""
    for frame in frames(name):
        raw = msgspec.msgpack.decode(frame.payload, strict=True)
        batch = isched.decode_event_batch(frame.payload)
        assert [batch.ts, len(batch.events), batch.data_parallel_rank] == [raw[0], len(raw[1]), raw[2]]
        for fields, event in zip(raw[1], batch.events, strict=True):
            assert fields.pop("type") == type(event).__name__
            again = {key: msgspec.to_builtins(getattr(event, key)) for key in fields}
            assert json.loads(json.dumps(again)) == fields
            rest = {key for key in event.__struct_fields__ if getattr(event, key) not in (None, (), False)}
            assert rest <= set(fields), "and nothing else"


def test_the_topic_names_endpoint_and_model():
    assert {isched.parse_topic(frame.topic) for frame in frames("kv_stored")} == {("127.0.0.1:8302", "tiny")}


def test_a_capture_that_begins_late_begins_with_a_gap():
    stream, found = isched.EventStream(), frames("kv_events_vllm_0.32.0")
    steps = [stream.live(frame.sequence, frame.payload) for frame in found]
    assert (steps[0].kind, steps[0].request) == ("gap", isched.ReplayRequest(0))
    assert {step.kind for step in steps[1:]} == {"held"} and stream.held == 30
    assert stream.replay_ended().request == isched.ReplayRequest(0)
    step = stream.replay_ended()
    assert (step.kind, step.lost, len(step.ready), step.forget) == ("lost", 27, 30, True)
    it = isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE)
    it.take(0, step)
    it.check()
    assert counts(it) == {"events": 50, "stored": 82, "lost_frames": 27}


@pytest.mark.parametrize("name", ["kv_stored", "kv_events_vllm_0.32.0"])
@pytest.mark.parametrize("own", [16, 32, 64])
def test_prompts_match_as_far_as_they_were_stored(name, own):
    """Nothing was removed in these: each prompt is held up to its last full block, in its domain and no other."""
    it = follow(name, own)
    for tokens, event in stores(name):
        salted = [("tenant-a" in (keys or ())) for keys in event.extra_keys or ()]
        lora, depth = event.lora_name or "", len(tokens) // own
        domains = [(lora, "tenant-a"), (lora, "")]
        matched = [
            int(it._index.match(isched.block_hashes(tokens, own, lora=lora, salt=salt))[0]) for _, salt in domains
        ]
        if event.parent_block_hash is None:
            assert matched[0 if any(salted) else 1] == depth
        assert depth in matched
        stranger = isched.block_hashes(tokens, own, lora=lora, salt="tenant-b")
        assert int(it._index.match(stranger)[0]) == 0


def test_adapters_salts_and_sessions_of_a_fresh_server():
    it = follow("kv_stored", stream=isched.EventStream())
    assert counts(it) == {"events": 17, "stored": 16, "duplicates": 2}
    tokens, _ = next(pair for pair in stores("kv_stored") if len(pair[0]) == 3 * SIZE)
    depths = {
        (lora, salt): int(it._index.match(isched.block_hashes(tokens, SIZE, lora=lora, salt=salt))[0])
        for lora in ("", "english-bot", "spanish-bot")
        for salt in ("", "tenant-a", "tenant-b")
    }
    held = [("", ""), ("", "tenant-a"), ("english-bot", ""), ("english-bot", "tenant-a")]
    assert depths == {domain: 3 if domain in held else 0 for domain in depths}
    session, _ = max(
        (pair for pair in stores("kv_stored") if pair[1].session_id == "sess-1"), key=lambda pair: len(pair[0])
    )
    assert it._index.match(isched.block_hashes(session, SIZE)).tolist() == [5], "the session is no part of it"


def test_clearings_alone_and_before_a_store_of_their_batch():
    it = isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE)
    held = []
    for frame in frames("kv_cleared"):
        it.apply(0, isched.decode_event_batch(frame.payload))
        it.check()
        held.append(it._index.blocks(0))
    assert held == [0, 0, 1, 1, 21, 22]
    assert counts(it) == {"events": 7, "stored": 23, "cleared": 2, "unknown_parent": 1, "unknown_removal": 1}


def test_removals_before_the_store_of_their_batch():
    """256 blocks in all: never are more held, and what is removed is known."""
    it, most = isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE), 0
    for frame in frames("kv_removed"):
        it.apply(0, isched.decode_event_batch(frame.payload))
        most = max(most, it.known(0))
    it.check()
    assert most <= 256
    assert counts(it) == {"events": 347, "stored": 562, "removed": 310}
    assert it._index.blocks(0) == it.known(0) == 562 - 310


def test_copies_are_counted():
    """One hash is stored four times and removed four times: it is there until the last."""
    it, name = isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE), 6054566085698458144
    tokens = next(t for t, event in stores("kv_duplicates") if name in event.block_hashes)
    own = isched.block_hashes(tokens, SIZE)
    seen = []
    for frame in frames("kv_duplicates"):
        for event in isched.decode_event_batch(frame.payload).events:
            it.apply(0, isched.EventBatch(events=(event,)))
            if name in getattr(event, "block_hashes", ()):
                seen.append((type(event).__name__, bool(it.tiers_of(0, own)[-1])))
    it.check()
    assert seen == [("BlockStored", True)] * 4 + [("BlockRemoved", True)] * 3 + [("BlockRemoved", False)]
    assert it.stats.duplicates == 6


def test_a_killed_engine_begins_again_at_0():
    """Sequence 308, then 0, on one topic: what was held is gone, and the stream goes on."""
    stream, found = isched.EventStream(replay=False), frames("kv_restart")
    it = isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE)
    kinds, known = [], []
    for frame in found:
        step = stream.live(frame.sequence, frame.payload)
        it.take(0, step)
        it.check()
        kinds.append(step.kind)
        known.append(it.known(0))
    assert [frame.sequence for frame in found] == [305, 306, 307, 308, 0, 1, 2, 3]
    assert kinds == ["lost", "next", "next", "next", "restart", "next", "next", "next"]
    assert known == [2, 2, 5, 6, 2, 3, 44, 107]
    assert (it.stats.restarts, it.stats.lost_frames, it.stats.cleared) == (1, 305, 1)


def test_a_replay_fills_the_gap_as_if_nothing_had_been_lost():
    """Frames 2 to 15 of the stream of `kv_stored` are lost on the way and come by the replay socket."""
    capture, live = read("kv_replay_from_2"), frames("kv_stored")
    stream, it = isched.EventStream(), isched.KVEventApplier(isched.PrefixIndex(1), block_size=SIZE)
    for frame in (live[0], live[1], live[16]):
        step = stream.live(frame.sequence, frame.payload)
        it.take(0, step)
    assert step.kind == "gap"
    assert list(step.request.parts()) == [base64.b64decode(part) for part in capture["request"]]
    answers = replies()
    assert [reply.sequence for reply in answers] == [*range(2, 17), -1] and answers[-1].payload == b""
    for reply in answers:
        step = stream.replayed(reply.sequence, reply.payload)
        it.take(0, step)
        stream.check(), it.check()
    assert step.kind == "end" and stream.expected == 17
    assert counts(it) == counts(follow("kv_stored", stream=isched.EventStream())) | {"gaps": 1}


def test_a_replay_that_loses_frames_is_asked_again():
    stream, live, answers = isched.EventStream(), frames("kv_stored"), replies()
    ready = [stream.live(frame.sequence, frame.payload).ready for frame in (live[0], live[1], live[16])]
    for reply in answers:
        if reply.sequence not in (5, 6, 11):
            step = stream.replayed(reply.sequence, reply.payload)
            ready.append(step.ready)
    assert (step.kind, step.request) == ("gap", isched.ReplayRequest(5))
    ready += [stream.replayed(reply.sequence, reply.payload).ready for reply in answers[3:]]
    assert [sequence for each in ready for sequence, _ in each] == list(range(17))
    assert [payload for each in ready for _, payload in each] == [frame.payload for frame in live]
