"""What engines say: `kv-event-decoder`, `kv-event-index`, `kv-event-dedup-filter`, extra keys and their realignment.

Pods are slots of an index, and their entries are the tiers of what a slot holds: which group of layers a block belongs to
is told apart inside, where copies are counted, and not in an answer.
"""

from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.prefix.extra_keys import block_extra_keys, identifiers, realign
from inferencesched.prefix.kv_records import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    Tier,
    UnknownEvent,
    tier_of,
)
from inferencesched.prefix.kv_wire import decode_event, hash_as_uint64
from inferencesched.prefix.multimodal import features_of
from tests.parity.cases import Case, Mismatch, Runner, same, unknown, within
from tests.parity.words import nothing_for_no_block_size, refusal

#: Room for pods in the indexes of these cases.
SLOTS = 16


def lists(value: Any) -> Any:
    """Return tuples as the lists of JSON."""
    return [lists(each) for each in value] if isinstance(value, list | tuple) else value


def tuples(value: Any) -> Any:
    """Return the lists of JSON as the tuples of our records."""
    return tuple(tuples(each) for each in value) if isinstance(value, list | tuple) else value


def same_keys(expected: Any, got: Any) -> None:
    """Raise `Mismatch` unless the keys of each block are the same; no list is as good as one without any keys."""
    if not expected or not got:
        expected, got = [each for each in expected or () if each], [each for each in got or () if each]
    same(expected, lists(got))


# --- one event, one hash, one topic ------------------------------------------------------------------------------


def decoder(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    name = params["function"]
    if name == "parse_topic":
        topic = isched.parse_topic(params["input"])
        within(expect["value"], {"pod": topic.endpoint, "model": topic.model})
    elif name == "sharding_key":
        same(expect["value"], isched.parse_topic(params["input"]).endpoint)
    elif name == "hash_as_uint64":
        [(kind, value)] = params["input"].items()
        value = bytes.fromhex(value) if kind == "bytes_hex" else value
        answered(expect, lambda: hash_as_uint64(value))
    elif name in ("decode_vllm_event", "decode_sglang_event", "decode_event"):
        answered(expect, lambda: told(decode_event(with_bytes(params["event"]))))
    else:
        raise unknown("function", name)


def answered(expect: dict[str, Any], call: Any) -> None:
    """Hold an answer, or a refusal, against what is expected."""
    if expect.get("error") or "error_contains" in expect:
        refusal(expect.get("error_contains"), call)
    elif isinstance(expect["value"], dict):
        within(expect["value"], call())
    else:
        same(expect["value"], call())


def with_bytes(value: Any) -> Any:
    """Return the event with ``{"bytes_hex": ...}`` as the bytes that it stands for."""
    if isinstance(value, dict):
        if set(value) == {"bytes_hex"}:
            return bytes.fromhex(value["bytes_hex"])
        return {name: with_bytes(each) for name, each in value.items()}
    return [with_bytes(each) for each in value] if isinstance(value, list) else value


def told(event: Any) -> dict[str, Any]:
    """Return our record of an event in llm-d's words, in which a type that nobody knows is an error."""
    if isinstance(event, UnknownEvent):
        raise isched.KVEventError("event.type", event.type, "a type that is known")
    record = {name: lists(getattr(event, name)) for name in event.__struct_fields__} | {"type": type(event).__name__}
    record["medium"] = record.get("medium") or ""
    record["parent_hash"] = record.get("parent_block_hash")
    record["sliding_window"] = record.get("kv_cache_spec_sliding_window")
    return record


def realignment(case: Case) -> None:
    params = case["params"]
    if params["function"] != "realign_extra_features":
        raise unknown("function", params["function"])
    features, blocks = params["features"] or [], params["num_canonical"]
    # blocks of n tokens against n blocks: together the same tokens
    same_keys(case["expect"]["value"], realign(tuples(features), blocks or 1, len(features), blocks))


def extra_keys(case: Case) -> None:
    params, value = case["params"], case["expect"].get("value")
    if params["function"] == "parse_raw_extra_keys":
        same_keys(value, [identifiers(tuples(each)) for each in params["raw"] or ()])
    elif params["function"] == "compute_block_extra_features":
        features = features_of(params["mm_hashes"], params["mm_placeholders"])
        count = params["num_tokens"]
        same_keys(
            value, nothing_for_no_block_size(lambda: block_extra_keys(features, params["block_size"], count) or [])
        )
    else:
        raise unknown("function", params["function"])


# --- sequences ---------------------------------------------------------------------------------------------------


class World:
    """Pods are slots of one index, which an applier keeps, and beside it is what was sent and not confirmed yet."""

    def __init__(self, own: int = 1, **options: Any) -> None:
        self.index = isched.PrefixIndex(SLOTS)
        self.applier = isched.KVEventApplier(self.index, block_size=own, **options)
        self.bookings = isched.PrefixIndex(SLOTS)
        self.pods: list[str] = []

    def slot(self, pod: str) -> int:
        if pod not in self.pods:
            self.pods.append(pod)
        return self.pods.index(pod)

    def say(self, pod: str, *events: Any) -> None:
        """Apply events; one that does not fit together is refused here and passed over there: nothing changes."""
        for event in events:
            try:
                self.applier.apply(self.slot(pod), EventBatch(events=(event,)))
            except isched.KVEventError:
                self.applier.check()
        self.applier.check()

    def known(self, engine_key: int) -> tuple[int | None, bool] | None:
        """Return which of our blocks is the last in this one of the engine, and whether it is held; None for unknown."""
        for slot in range(len(self.pods)):
            holdings = self.applier._holdings.get(slot)
            found = holdings.before(engine_key) if holdings is not None else None
            if found is not None:
                return found.key, bool(holdings.copies[found.row].any())
        return None

    def entries(self, hashes: Any) -> list[set[tuple[str, object]]]:
        """Return for each block who holds it where: on which tiers, and "speculative" for what was only sent there."""
        found: list[set[tuple[str, object]]] = [set() for _ in range(len(hashes))]
        for slot, pod in enumerate(self.pods):
            flags = self.applier.tiers_of(slot, hashes).tolist()
            for i, each in enumerate(found):
                each |= {(pod, tier) for tier in Tier if flags[i] & tier}
                if self.bookings.match(hashes[i : i + 1])[slot]:
                    each.add((pod, "speculative"))
        return found

    def book(self, pod: str, key: Any, *, there: bool) -> None:
        """Send a block somewhere, or give that up. Each is a prompt of its own: any of them may go."""
        if there:
            self.bookings.insert(self.slot(pod), key)
        else:
            self.bookings.remove(self.slot(pod), key)
        self.bookings.check()


def place(entry: dict[str, Any]) -> tuple[str, object]:
    """Return what an entry of llm-d's is in ours."""
    return entry["pod"], "speculative" if entry.get("speculative") else tier_of(entry.get("tier"))


def numbers(said: Any) -> tuple[int, ...]:
    if isinstance(said, dict):
        return tuple(range(said["range"][0], said["range"][1] + 1))
    return tuple(said or ())


def event_of(said: dict[str, Any]) -> Any:
    kind = said["type"]
    if kind == "AllBlocksCleared":
        return AllBlocksCleared(medium=said.get("medium"))
    fields = {name: said[name] for name in ("medium", "group_idx") if name in said}
    if kind == "BlockRemoved":
        return BlockRemoved(block_hashes=tuple(said["block_hashes"]), **fields)
    if kind != "BlockStored":
        raise unknown("type of event", kind)
    names = ("block_size", "lora_id", "lora_name", "kv_cache_spec_kind", "kv_cache_spec_sliding_window")
    fields |= {name: said[name] for name in names if name in said}
    return BlockStored(
        block_hashes=tuple(said["block_hashes"]),
        parent_block_hash=said.get("parent_hash") or None,
        token_ids=numbers(said.get("token_ids")),
        extra_keys=tuples(said["extra_keys"]) if said.get("extra_keys") else None,
        **fields,
    )


def index_of_events(case: Case) -> None:
    """Apply batches and look blocks up. An adapter's name stands for a model there, here it is one of its own."""
    own = case["params"].get("blockSizeTokens", 16)
    worlds: dict[str, World] = {}
    adapters = {
        event["lora_name"] for step in case["steps"] for event in step.get("events", ()) if event.get("lora_name")
    }
    base, asked = (
        next((step["model"] for step in case["steps"] if step.get("model", "") not in {*adapters, ""}), ""),
        None,
    )
    stored = [event for step in case["steps"] for event in step.get("events", ()) if event.get("token_ids")]
    small = any(len(numbers(each["token_ids"])) < own * len(each["block_hashes"]) for each in stored)
    for number, step in enumerate(case["steps"]):
        where = f"step {number}, {step['op']}"
        lora = step["model"] if step.get("model") in adapters else ""
        model = base if lora else step.get("model", base)
        world = worlds.setdefault(model, World(own, model=model))
        if step["op"] == "event_batch":
            world.say(step["pod"], *map(event_of, step["events"]))
        elif step["op"] == "lookup_blocks":
            asked = isched.block_hashes(np.array(numbers(step["tokens"]), dtype=np.uint32), own, model=model, lora=lora)
            found = world.entries(asked)
            if "indexed" in step["expect"]:
                same(step["expect"]["indexed"], any(found), where)
            else:
                same([set(map(place, each)) for each in step["expect"]["entries_per_block"]], found, where)
        elif step["op"] == "engine_key_maps_to_block":
            mapped(world.known(step["engine_key"]), asked.tolist(), step["expect"], where, small=small)
        else:
            raise unknown("operation", step["op"])


def mapped(
    known: tuple[int | None, bool] | None, asked: list[int], expect: dict[str, Any], where: str, *, small: bool
) -> None:
    """Hold our name for an engine's block against the place of the router's block that is expected.

    Theirs forgets a block at once, ours while none hangs behind it: a parent that comes back is the same. Of several
    blocks of the engine in one of ours (they are `small`) only the last has its name, those before have the one before.
    """
    if expect.get("error"):
        if known is not None and known[1] and known[0] is not None:  # without a name: no block of ours is complete
            raise Mismatch("an engine's block that is not held", known, where)
        return
    at = expect["block_index"]
    names: set[int | None] = set(asked if at == "any" else asked[at : at + 1])
    if small:
        names |= {None, *asked} if at == "any" else {asked[at - 1] if at else None}
    if known is None or known[0] not in names:
        raise Mismatch(f"a block of the engine with a name of {names}", known, where)


def dedup(case: Case) -> None:
    """Store, remove and clear; what is forwarded is what is not there any more: one more removal finds nothing.

    To find that out without looking inside, what has happened so far happens once more to a world of its own.
    """
    said: list[tuple[str, Any]] = []
    for number, step in enumerate(case["steps"]):
        if step["op"] == "clear":
            pods = {pod for pod, _ in said if pod == step["pod"] or pod.startswith(f"{step['pod']} rank ")}
            said += [(pod, AllBlocksCleared()) for pod in pods]
            continue
        if step["op"] not in ("store", "remove"):
            raise unknown("operation", step["op"])
        scope = step["scope"]
        pod = scope["pod"] if scope.get("dp_rank") is None else f"{scope['pod']} rank {scope['dp_rank']}"
        events = [copy(step["op"], scope, name) for name in step["hashes"]]
        said += [(pod, event) for event in events]
        if "expect" in step:
            gone = [n for n, e in zip(step["hashes"], events, strict=True) if removed_in_vain([*said, (pod, e)])]
            same(step["expect"]["forwarded"], gone, f"step {number}, {step['op']}")


def copy(operation: str, scope: dict[str, Any], name: int) -> Any:
    """Return the event that stores or removes one copy; each block is a prompt of its own."""
    fields = {"block_hashes": (name,), "medium": scope["tier"].upper(), "group_idx": scope.get("group")}
    if operation == "remove":
        return BlockRemoved(**fields)
    kind = None if scope.get("group") is None else "full_attention"
    return BlockStored(token_ids=(name,), kv_cache_spec_kind=kind, **fields)


def removed_in_vain(said: list[tuple[str, Any]]) -> bool:
    """Return whether the last of these events removes what is not there."""
    world = World()
    for pod, event in said[:-1]:
        world.say(pod, event)
    before = world.applier.stats.unknown_removal
    world.say(*said[-1])
    return world.applier.stats.unknown_removal > before


RUNNERS: dict[tuple[str, str], Runner] = {
    ("kv-event-decoder", "function"): decoder,
    ("kv-event-extra-feature-realign", "function"): realignment,
    ("kv-block-extra-keys", "function"): extra_keys,
    ("kv-event-index", "sequence"): index_of_events,
    ("kv-event-dedup-filter", "sequence"): dedup,
}
