"""llm-d's own expectations of KV events (llm-d router's unit tests, as data), where they are about what we do.

Its index is asked with keys that its tests make up, ours only with hashes of tokens: each key becomes a block of tokens
of its own.
"""

import json
from functools import partial

import numpy as np
import pytest

import inferencesched as isched
from inferencesched.prefix.extra_keys import Feature, block_extra_keys, identifiers, realign
from inferencesched.prefix.kv_records import AllBlocksCleared, BlockRemoved, BlockStored, EventBatch, Tier
from inferencesched.prefix.kv_wire import decode_event, hash_as_uint64
from tests.shared import SHARED

VECTORS = SHARED / "vectors" / "scheduling.json"

#: What a case is about, where that is not events: the case, and why it is left out.
LEFT_OUT = {
    "kv-block-index/AddWithNilEngineKeys": "bookings of a router, not events",
    "kv-block-index/SpeculativeEvictThenEmpty": "bookings of a router, not events",
}
COMPONENTS = (
    "kv-event-decoder",
    "kv-event-index",
    "kv-event-dedup-filter",
    "kv-event-extra-feature-realign",
    "kv-block-extra-keys",
    "kv-block-index",
)
TIERS = {"gpu": Tier.DEVICE, "cpu": Tier.HOST}


def cases(chosen):
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="reference vectors are not beside this checkout"))]
    found = [case for case in json.loads(VECTORS.read_text(encoding="utf-8")) if chosen(case)]
    marks = {name: pytest.mark.skip(reason=f"{name}: {why}") for name, why in LEFT_OUT.items()}
    return [pytest.param(c, id=c["id"], marks=[marks[c["id"]]] if c["id"] in marks else []) for c in found]


def of(component):
    return pytest.mark.parametrize("case", cases(lambda case: case["component"] == component))


def test_no_case_is_overlooked():
    if not VECTORS.exists():
        pytest.skip("reference vectors are not beside this checkout")
    numbers = [len([p for p in cases(lambda case, c=c: case["component"] == c) if p.values[0]]) for c in COMPONENTS]
    assert numbers == [12, 15, 6, 4, 6, 15]


# --- functions ---------------------------------------------------------------------------------------------------


def lists(value):
    return [None if each is None else list(each) for each in value] if value is not None else None


@of("kv-event-decoder")
def test_decoder(case):
    params, expect = case["params"], case["expect"]
    if params["function"] == "parse_topic":
        topic = isched.parse_topic(params["input"])
        assert {"pod": topic.endpoint, "model": topic.model} == expect["value"]
    elif params["function"] == "hash_as_uint64":
        [(kind, value)] = params["input"].items()
        value = bytes.fromhex(value) if kind == "bytes_hex" else value
        if expect.get("error"):
            with pytest.raises(isched.KVEventError):
                hash_as_uint64(value)
        else:
            assert hash_as_uint64(value) == expect["value"]
    else:
        event = decode_event(params["event"])
        ours = {
            "type": lambda: type(event).__name__,
            "block_hashes": lambda: list(event.block_hashes),
            "token_ids": lambda: list(event.token_ids),
            "parent_hash": lambda: event.parent_block_hash,
            "medium": lambda: event.medium or "",
            "sliding_window": lambda: event.kv_cache_spec_sliding_window,
            "extra_keys": lambda: lists(event.extra_keys),
        }
        plain = {
            name: partial(getattr, event, name)
            for name in ("lora_id", "lora_name", "block_size", "group_idx", "kv_cache_spec_kind")
        }
        assert {name: (ours | plain)[name]() for name in expect["value"]} == expect["value"]


@of("kv-event-extra-feature-realign")
def test_realign(case):
    features, blocks = case["params"]["features"], case["params"]["num_canonical"]
    # blocks of n tokens against n blocks: together the same tokens
    assert lists(realign(features, blocks or 1, len(features), blocks)) == case["expect"]["value"]


@of("kv-block-extra-keys")
def test_extra_keys(case):
    params = case["params"]
    if params["function"] == "parse_raw_extra_keys":
        raw = [block and [tuple(key) if isinstance(key, list) else key for key in block] for block in params["raw"]]
        assert lists(map(identifiers, raw)) == case["expect"]["value"]
    else:
        features = [
            Feature(name, place["offset"], place["length"])
            for kind, names in (params["mm_hashes"] or {}).items()
            for name, place in zip(names, params["mm_placeholders"][kind], strict=True)
        ]
        assert lists(block_extra_keys(features, params["block_size"], params["num_tokens"])) == case["expect"]["value"]


@pytest.mark.parametrize("case", cases(lambda case: case["id"].startswith("precise-prefix-cache-producer/mm_blocks/")))
def test_blocks_that_a_picture_touches(case):
    features = [Feature("x", each["offset"], each["length"]) for each in case["params"]["features"] or ()]
    keys = block_extra_keys(features, case["params"]["block_size"], 160)
    assert (keys and [i for i, each in enumerate(keys) if each]) == case["expect"]["value"]


# --- sequences ---------------------------------------------------------------------------------------------------


class World:
    """Pods are slots; a key that the test made up is a block of tokens of its own."""

    def __init__(self, own=1, **options):
        self.it = isched.KVEventApplier(isched.PrefixIndex(8), block_size=own, **options)
        self.pods, self.own, self.asked = [], own, {}

    def slot(self, pod):
        if pod not in self.pods:
            self.pods.append(pod)
        return self.pods.index(pod)

    def say(self, pod, *events):
        self.it.apply(self.slot(pod), EventBatch(events=events))
        self.it.check()

    def block(self, pod, engine_key):
        """Return the last of our blocks in this one of the engine, and how many copies of it there are; or None."""
        holdings = self.it._holdings.get(self.slot(pod))
        found = holdings.before(engine_key) if holdings is not None else None
        return found and (found.key, int(holdings.copies[found.row].sum()))

    def entries(self, hashes):
        """Return, for each block, who holds it where."""
        flags = {pod: self.it.tiers_of(slot, hashes).tolist() for slot, pod in enumerate(self.pods)}
        return [
            {(pod, name) for pod, each in flags.items() for name, tier in TIERS.items() if each[i] & tier}
            for i in range(len(hashes))
        ]


def numbers(said):
    return tuple(range(said["range"][0], said["range"][1] + 1)) if said else ()


def event_of(said):
    if said["type"] == "BlockRemoved":
        return BlockRemoved(block_hashes=tuple(said["block_hashes"]), medium=said.get("medium"))
    assert said["type"] == "BlockStored"
    return BlockStored(
        block_hashes=tuple(said["block_hashes"]),
        parent_block_hash=said["parent_hash"] or None,
        token_ids=numbers(said["token_ids"]),
        block_size=said.get("block_size"),
        medium=said.get("medium"),
        extra_keys=tuple(said["extra_keys"]) if said.get("extra_keys") else None,
        group_idx=said.get("group_idx"),
        kv_cache_spec_kind=said.get("kv_cache_spec_kind"),
    )


@of("kv-event-index")
def test_index_of_events(case):
    own = case["params"]["blockSizeTokens"]
    world, asked = World(own, model="test-model"), None
    for step in case["steps"]:
        if step["op"] == "event_batch":
            assert step["model"] == "test-model"
            world.say(step["pod"], *map(event_of, step["events"]))
        elif step["op"] == "lookup_blocks":
            asked = isched.block_hashes(np.array(numbers(step["tokens"])), own, model=step["model"])
            found = world.entries(asked)
            if "indexed" in step["expect"]:
                assert any(found) is step["expect"]["indexed"]
            else:
                wanted = [
                    {(e["pod"], e.get("tier", "gpu")) for e in each} for each in step["expect"]["entries_per_block"]
                ]
                assert found == wanted
        else:
            assert step["op"] == "engine_key_maps_to_block"
            block = next((b for pod in world.pods if (b := world.block(pod, step["engine_key"]))), None)
            if step["expect"].get("error"):
                # theirs forgets a block at once, ours while none hangs behind it: a parent that comes back is the same
                assert block is None or block[1] == 0
            else:
                place = step["expect"]["block_index"]
                assert block is not None and block[0] in (asked.tolist() if place == "any" else [int(asked[place])])


@of("kv-event-dedup-filter")
def test_copies(case):
    world = World()
    for step in case["steps"]:
        if step["op"] == "clear":
            world.say(step["pod"], AllBlocksCleared())
            continue
        scope = step["scope"]
        medium, group = scope["tier"].upper(), scope["group"]
        for name in step["hashes"]:
            if step["op"] == "store":
                kind = None if group is None else "full_attention"
                world.say(
                    scope["pod"],
                    BlockStored(
                        block_hashes=(name,), token_ids=(name,), medium=medium, group_idx=group, kv_cache_spec_kind=kind
                    ),
                )
            else:
                world.say(scope["pod"], BlockRemoved(block_hashes=(name,), medium=medium, group_idx=group))
        if step["op"] == "remove":
            held = world.it._holdings[world.slot(scope["pod"])]
            place = held.place(TIERS[scope["tier"]], group)
            found = {name: held.before(name) for name in step["hashes"]}
            gone = [name for name, block in found.items() if block is None or not held.copies[block.row, place]]
            assert gone == step["expect"]["forwarded"], "forwarded is what is not there any more"


@of("kv-block-index")
def test_index_of_blocks(case):
    """n of the engine's keys against m of theirs: blocks of m tokens against blocks of n, in one chain."""
    add = next(step for step in case["steps"] if step["op"] == "add")
    theirs = [*dict.fromkeys(key for step in case["steps"] if step["op"] == "add" for key in step["request_keys"])]
    engines = add["engine_keys"] or [key + 1 for key in add["request_keys"]]
    size, own = len(theirs), len(engines)
    tokens = np.arange(size * own, dtype=np.uint32)
    hashes = isched.block_hashes(tokens, own)
    world = World(own)
    for step in case["steps"]:
        if step["op"] == "add":
            for entry in step["entries"]:
                fields = {"block_hashes": tuple(engines), "medium": entry["tier"], "group_idx": entry.get("group")}
                if "group" in entry:
                    fields["kv_cache_spec_kind"] = "full_attention"
                world.say(entry["pod"], BlockStored(token_ids=tuple(tokens.tolist()), block_size=size, **fields))
        elif step["op"] == "evict":
            assert step["key_type"] == "engine"
            for entry in step["entries"]:
                world.say(
                    entry["pod"],
                    BlockRemoved(block_hashes=(step["key"],), medium=entry["tier"], group_idx=entry.get("group")),
                )
        elif step["op"] == "clear":
            world.say(step["pod"], AllBlocksCleared())
        elif step["op"] == "lookup":
            found = world.entries(hashes)
            wanted = {
                int(key): {(e["pod"], e["tier"]) for e in each}
                for key, each in step["expect"].get("entries", {}).items()
            }
            pods = set(step.get("pod_filter") or world.pods)
            for key in step["request_keys"]:
                assert {e for e in found[theirs.index(key)] if e[0] in pods} == wanted.get(key, set())
        else:
            assert step["op"] == "get_request_key"
            block = next((b for pod in world.pods if (b := world.block(pod, step["engine_key"]))), None)
            if step["expect"].get("error"):
                assert block is None
            else:
                # many to one: ours is known by the last of the many
                complete = block[0] == hashes[theirs.index(step["expect"]["value"])]
                assert complete or (own > size and step["engine_key"] != engines[-1])


@pytest.mark.parametrize(
    "case", cases(lambda case: case["component"] == "precise-prefix-cache-producer" and case["kind"] == "kv-match")
)
def test_matched_blocks(case):
    """Blocks in one chain; what a pod holds of it came as single blocks."""
    keys, pod = case["block_keys"], case["params"]["pod"]
    world, hashes = World(), isched.block_hashes(np.array(keys), 1)
    everything = BlockStored(block_hashes=tuple(keys), token_ids=tuple(keys))
    for name in {e["pod"] for each in case["key_to_pods"].values() for e in each} | {pod}:
        world.say(name, everything)
        for tier in TIERS:
            there = [int(key) for key, each in case["key_to_pods"].items() if {"pod": name, "tier": tier} in each]
            if there and tier != "gpu":
                world.say(name, BlockStored(block_hashes=tuple(there), medium=tier))
        on_device = [int(key) for key, each in case["key_to_pods"].items() if {"pod": name, "tier": "gpu"} in each]
        world.say(name, BlockRemoved(block_hashes=tuple(key for key in keys if key not in on_device)))
    if case["params"]["function"] == "matched_block_count":
        assert int(world.it._index.match(hashes)[world.slot(pod)]) == case["expect"]["value"]
    else:
        found = world.it.match_tiers(world.slot(pod), hashes)
        assert found == {TIERS[name]: depth for name, depth in case["expect"]["value"].items()}
