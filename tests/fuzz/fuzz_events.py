"""Does any payload do more than be read or be refused? Real payloads, mutated, through the decoders and into an index.

    python tests/fuzz/fuzz_events.py --seconds 60 [--seed 0]

The same seed makes the same payloads. A finding is any exception but `KVEventError`, an error that changed something,
or an applier whose `check` fails; its payload is written out as hexadecimal digits.
"""

import argparse
import base64
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

import inferencesched as isched
from inferencesched.prefix.kv_records import BlockStored

SHARED = Path(os.environ.get("INFERENCESCHED_SHARED", Path(__file__).resolve().parents[3] / "shared"))
ENDPOINTS = 2
#: The index's block size, changed with each fresh applier: that of the captures, smaller, larger, and neither.
OWN = (32, 16, 64, 48, 1)
#: So many blocks an endpoint may know before a fresh applier takes over: `check` is quadratic.
MOST_KNOWN = 400
#: Bytes that mean much in msgpack: containers and their lengths, nil, bools, integers of every width, strings, bytes.
TELLING = bytes([*range(0x80, 0xA4), *range(0xC0, 0xE0), 0x00, 0x01, 0x7F, 0xE0, 0xFF])
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**32,
    2**63,
    -(2**63),
    2**64 - 1,
    0.5,
    "",
    "GPU",
    "punch cards",
    b"",
    b"\xff" * 9,
    [],
    {},
)
KEYS = (
    "block_hashes",
    "token_ids",
    "block_size",
    "parent_block_hash",
    "extra_keys",
    "group_idx",
    "medium",
    "lora_name",
)
KINDS = (None, "full_attention", "sliding_window", "mamba", "tea_leaves")

TRTLLM = b"""[{"event_id": 0, "window_size": 512, "data": {"type": "created", "num_blocks_per_cache_level": [9]}},
{"event_id": 1, "window_size": 512, "data": {"type": "stored", "parent_hash": null, "blocks": [{"block_hash": -5,
"tokens": [{"token_id": 1}, {"token_id": 2, "token_extra_id": 7}], "mm_keys": [{"hash": "0a", "start_offset": 1}],
"cache_salt": "s", "lora_id": 3, "cache_level": 0}, {"block_hash": "00ff", "tokens": [{"token_id": 4}]}]}},
{"event_id": 2, "data": {"type": "updated", "block_hash": -5, "cache_level": {"old_value": 0, "new_value": 1}}},
{"event_id": 3, "attention_dp_rank": 1, "data": {"type": "removed", "block_hashes": [-5, 255]}}]"""


def made_up() -> list[bytes]:
    """Return what no capture has: arrays, bigrams, bytes for hashes, salts, pictures, tiers, other groups."""
    a, b = list(range(64)), [[i, i + 1] for i in range(32)]
    events = [
        ["BlockStored", [1, 2], None, a, 32],
        ["BlockStored", [3], 2, a[:32], 32, 7, "CPU", None, [[["cat", 3], "salt"]]],
        ["BlockStored", [-4], None, b, 32, None, "GPU", {"cache_salt": "mine"}],
        [
            "BlockStored",
            [b"\x01" * 32],
            b"\x02" * 8,
            a[:32],
            32,
            None,
            "DISK",
            "sql",
            [["sql", b"raw", None]],
            1,
            "mamba",
            128,
        ],
        ["BlockStored", [1, 2], None, [], 32, None, "REMOTE"],
        {
            "type": "BlockStored",
            "block_hashes": [9, 10],
            "token_ids": a,
            "block_size": 32,
            "cache_salt": "x",
            "locality": 1,
        },
        ["BlockRemoved", [1, 3, -4], "CPU", 0],
        {"type": "BlockRemoved", "block_hashes": [2]},
        ["AllBlocksCleared", "CPU"],
        {"type": "AllBlocksCleared"},
        ["BlockMoved", 1],
    ]
    batches = [[0.5, [event], 0] for event in events] + [[0.5, events], {"ts": 1, "events": events[::-1], "more": 1}]
    return [msgspec.msgpack.encode(batch) for batch in batches]


def corpus() -> list[bytes]:
    """Return the payloads to begin from; with the captures where they lie beside the checkout."""
    found = made_up()
    for path in sorted((SHARED / "captures").glob("kv_*.json")):
        capture = json.loads(path.read_text(encoding="utf-8"))
        found += [base64.b64decode(f["payload_b64"]) for f in capture] if isinstance(capture, list) else []
    return [payload for payload in found if len(payload) < 3000]


class Mutator:
    """Payloads out of payloads: by bytes, and by what the bytes mean."""

    def __init__(self, rng: random.Random, seeds: list[bytes]) -> None:
        self.rng, self.seeds = rng, seeds

    def payload(self) -> bytes:
        """Return the next payload; one in eight is as it was."""
        rng = self.rng
        seed = rng.choice(self.seeds)
        way = rng.randrange(8)
        if way == 0:
            return seed
        if way < 4:
            return self.bytewise(bytearray(seed))
        batch = msgspec.msgpack.decode(seed)
        for _ in range(rng.choice((1, 1, 2, 5))):
            self.change(batch)
        packed = msgspec.msgpack.encode(batch)
        return self.bytewise(bytearray(packed)) if way == 4 else packed

    def bytewise(self, raw: bytearray) -> bytes:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 2, 4, 16))):
            at = rng.randrange(len(raw) + 1)
            way = rng.randrange(7)
            if way == 0:
                raw[at : at + 1] = bytes([rng.choice(TELLING)])
            elif way == 1:
                raw[at:at] = bytes([rng.choice(TELLING)])
            elif way == 2:
                del raw[at : at + rng.choice((1, 1, 2, 8, 64))]
            elif way == 3 and at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            elif way == 4:
                other = rng.choice(self.seeds)
                begin = rng.randrange(len(other))
                raw[at : at + rng.randrange(16)] = other[begin : begin + rng.randrange(64)]
            elif way == 5:
                raw[at:at] = rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9")) + rng.randbytes(4)
            else:
                raw[at:at] = rng.choice((b"\x91", b"\x81\xa0", b"\xc7\x01\xff")) * rng.choice((1, 8, 2000))
        return bytes(raw)

    def change(self, batch: object) -> None:
        """Change one thing in a decoded batch, in place: what still decodes goes deeper."""
        rng = self.rng
        events = batch.get("events") if isinstance(batch, dict) else batch[1] if isinstance(batch, list) else None
        if not isinstance(events, list) or not events:
            return
        at = rng.randrange(len(events))
        event, way = events[at], rng.randrange(10)
        if way == 0:
            events.insert(rng.randrange(len(events) + 1), event)
        elif way == 1:
            other = msgspec.msgpack.decode(rng.choice(self.seeds))
            events += other[1] if isinstance(other, list) else []
        elif way == 2 and isinstance(event, dict):
            event[rng.choice(KEYS)] = rng.choice(VALUES)
        elif way == 2 and isinstance(event, list) and event:
            event[rng.randrange(len(event))] = rng.choice(VALUES)
        elif way == 3 and isinstance(event, dict):
            event.pop(rng.choice(KEYS), None)
        elif way == 4 and isinstance(event, dict):
            event["kv_cache_spec_kind"], event["group_idx"] = rng.choice(KINDS), rng.choice((None, 0, 1, 255, 256))
        elif way == 5 and isinstance(event, dict):
            event["medium"] = rng.choice(("GPU", "CPU", "DISK", "REMOTE", "tape", None))
        else:
            self.change_lists(event)

    def change_lists(self, event: object) -> None:
        rng = self.rng
        fields = event.values() if isinstance(event, dict) else event if isinstance(event, list) else ()
        lists = [field for field in fields if isinstance(field, list)]
        if not lists:
            return
        chosen, way = rng.choice(lists), rng.randrange(4)
        if way == 0:
            del chosen[rng.randrange(len(chosen) + 1) :]
        elif way == 1 and chosen:
            chosen[rng.randrange(len(chosen))] = rng.choice((*VALUES, [["cat", 1]], ["a", "b"], [[[[]]]]))
        elif way == 2:
            chosen += chosen[: rng.randrange(5)]
        elif chosen:
            chosen.append(rng.choice(chosen))


class Target:
    """What must hold, whatever the payload: one call is one execution."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.outcomes = rng, Counter[str]()
        self.fresh()

    def fresh(self) -> None:
        self.applier = isched.KVEventApplier(isched.PrefixIndex(ENDPOINTS), block_size=self.rng.choice(OWN))
        self.streams = [isched.EventStream[bytes](hold=8) for _ in range(ENDPOINTS)]

    def state(self) -> tuple[object, ...]:
        applier = self.applier
        return (
            applier.stats,
            [applier.known(slot) for slot in range(ENDPOINTS)],
            [applier._index.blocks(slot) for slot in range(ENDPOINTS)],
            len(applier._index),
        )

    def __call__(self, payload: bytes) -> None:
        for encoding in ("msgpack", "json"):
            if encoding == "msgpack" or payload[:1] in (b"[", b"{"):
                found = self.read(payload, encoding)
                assert repr(found) == repr(self.read(payload, encoding)), "the same bytes say the same"
                if isinstance(found, str):
                    self.outcomes["refused"] += 1
                    assert len(found) < 2000, "an error is short"
                else:
                    self.outcomes["read"] += 1
                    self.apply(found)
        self.stream(payload)

    def read(self, payload: bytes, encoding: str) -> isched.EventBatch | str:
        try:
            return isched.decode_event_batch(payload, encoding=encoding)
        except isched.KVEventError as error:
            return str(error)

    def trtllm(self, payload: bytes) -> None:
        try:
            batches = isched.decode_trtllm_events(payload, block_size=self.rng.choice((1, 2, 3)))
        except isched.KVEventError:
            self.outcomes["refused"] += 1
        else:
            self.outcomes["read"] += 1
            for _, batch in batches:
                self.apply(batch)

    def apply(self, batch: isched.EventBatch) -> None:
        slot, before = self.rng.randrange(ENDPOINTS), self.state()
        try:
            self.applier.apply(slot, batch)
        except isched.KVEventError:
            self.outcomes["unfit"] += 1
            assert self.state() == before, "an error changes nothing"
        self.outcomes["stored blocks"] += sum(len(e.block_hashes) for e in batch.events if isinstance(e, BlockStored))
        most = max(self.applier.known(slot) for slot in range(ENDPOINTS))
        if self.rng.randrange(16) == 0 or most > MOST_KNOWN:
            self.applier.check()
            self.outcomes["checks"] += 1
        if most > MOST_KNOWN:
            self.fresh()

    def stream(self, payload: bytes) -> None:
        """Send it as a frame as well: with a number now and then, and as a message of any parts."""
        rng = self.rng
        slot = rng.randrange(ENDPOINTS)
        stream = self.streams[slot]
        number = rng.choice((stream.expected, stream.expected, stream.expected + 1, 0, rng.randrange(2**64), 2**64 - 1))
        parts = [rng.choice((b"", b"kv@a@m", b"\xff")), number.to_bytes(8, "big"), payload][: rng.choice((3, 3, 3, 2))]
        try:
            if rng.randrange(4):
                frame = isched.decode_event_frame(parts)
                step = stream.live(frame.sequence, frame.payload)
            else:
                frame = isched.decode_replay_reply([b"", *parts])
                step = stream.replayed(frame.sequence, frame.payload)
            self.outcomes[f"step {step.kind}"] += 1
            self.applier.take(slot, step)
        except isched.KVEventError:
            self.outcomes["frame refused"] += 1
        stream.check()
        if stream.expected > 2**40:  # hostile numbers: as a subscriber would, begin anew
            self.streams[slot] = isched.EventStream(hold=8)


def trtllm(rng: random.Random) -> bytes:
    """Mutate TensorRT-LLM's JSON."""
    raw = bytearray(TRTLLM)
    for _ in range(rng.choice((0, 1, 2, 8))):
        at = rng.randrange(len(raw))
        junk = (b"", b"-", b"1", b"null", b"{}", b"[", b'"', b"1e9", b"\xff", b"99999999999")
        raw[at : at + rng.randrange(3)] = rng.choice(junk)
    return bytes(raw)


class Run:
    """One run of the fuzzer: how many executions, what came of them, and the payload that is being tried."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.mutator, self.target = Mutator(self.rng, corpus()), Target(self.rng)
        self.executions, self.payload = 0, b""

    def go(self, *, seconds: float = float("inf"), executions: float = float("inf")) -> Counter[str]:
        """Run until either is over; a finding raises."""
        end = time.monotonic() + seconds
        while self.executions < executions and (self.executions % 64 or time.monotonic() < end):
            self.executions += 1
            if self.rng.randrange(16):
                self.payload = self.mutator.payload()
                self.target(self.payload)
            else:
                self.payload = trtllm(self.rng)
                self.target.trtllm(self.payload)
        self.target.applier.check()
        return self.target.outcomes


def main() -> None:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    run, begin = Run(chosen.seed), time.monotonic()
    try:
        run.go(seconds=chosen.seconds)
    except BaseException:
        sys.stdout.write(f"finding at execution {run.executions}, seed {chosen.seed}: {run.payload.hex()}\n")
        raise
    sys.stdout.write(
        f"{run.executions} executions in {time.monotonic() - begin:.0f} s, seed {chosen.seed}: no finding\n"
    )
    for name, count in sorted(run.target.outcomes.items()):
        sys.stdout.write(f"  {name}: {count}\n")


if __name__ == "__main__":
    main()
