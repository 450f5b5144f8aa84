"""llm-d's index of blocks, `kv-block-index`: which of an engine's names stands for which of the router's, and who holds it.

Theirs is asked with keys that tests make up, ours with hashes of tokens. So n of an engine's keys for m of the router's
are blocks of m tokens against blocks of n: together the same tokens, in one chain. Keys that were never together are
prompts of their own.
"""

from math import lcm
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.prefix.kv_records import AllBlocksCleared, BlockRemoved, BlockStored
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.events import World, place


class Prompt:
    """Keys of the router's that belong together: their tokens, our hashes, and the engine's names of them."""

    def __init__(self, number: int, keys: list[int], engines: list[int], own: int) -> None:
        self.keys, self.engines = keys, engines
        self.size = own * len(keys) // len(engines)
        self.tokens = np.arange(own * len(keys), dtype=np.uint32) + (number << 20)
        self.hashes = isched.block_hashes(self.tokens, own)

    def hash(self, key: int) -> Any:
        at = self.keys.index(key)
        return self.hashes[at : at + 1]

    def names(self, key: int) -> list[int]:
        """Return the engine's names of what one of the router's keys stands for."""
        n, m, at = len(self.engines), len(self.keys), self.keys.index(key)
        return self.engines[at * n // m : max(at * n // m + 1, (at + 1) * n // m)]


def prompts(case: Case) -> list[Prompt]:
    """Return the prompts that a case's keys are made of."""
    together: dict[int, tuple[int, ...]] = {}
    engines: dict[tuple[int, ...], list[int]] = {}
    for step in case["steps"]:
        keys = tuple(step["request_keys"]) if step["op"] == "add" else ()
        if not set(keys) & set(together):
            together |= dict.fromkeys(keys, keys)
        if keys and step.get("engine_keys"):
            engines.setdefault(keys, step["engine_keys"])
    named = {
        keys: engines.get(keys) or [-1 - key for key in keys] for keys in together.values()
    }  # else names of nobody
    own = lcm(*map(len, named.values())) if named else 1
    return [Prompt(i, list(keys), [e % (1 << 64) for e in each], own) for i, (keys, each) in enumerate(named.items())]


class Blocks:
    """The prompts of a case, and which of the engine's blocks were said to be where: an entry of theirs is one of a set."""

    def __init__(self, case: Case) -> None:
        there = prompts(case)
        self.by_key = {key: prompt for prompt in there for key in prompt.keys}
        self.world = World(len(there[0].tokens) // len(there[0].keys) if there else 1)
        self.told: set[tuple[str, str | None, int | None, int]] = set()

    def hash(self, key: int) -> Any:
        return self.by_key[key].hash(key)

    def add(self, step: dict[str, Any], entry: dict[str, Any]) -> None:
        keys, pod, tier, group = step["request_keys"], entry["pod"], entry.get("tier"), entry.get("group")
        if entry.get("speculative"):
            for key in keys:
                self.world.book(pod, self.hash(key), there=True)
            return
        prompt = self.by_key[keys[0]]
        wanted = list(dict.fromkeys(name for key in keys for name in prompt.names(key)))
        if step.get("engine_keys") and wanted != step["engine_keys"]:
            raise unknown("second name of a key", step["engine_keys"])
        new = {name for name in wanted if (pod, tier, group, name) not in self.told}
        if not new:
            return
        self.told |= {(pod, tier, group, name) for name in new}
        # an engine stores a block behind those before it: they are told too, and given up again
        names = prompt.engines[: max(map(prompt.engines.index, new)) + 1]
        stored = BlockStored(
            block_hashes=tuple(names),
            token_ids=tuple(prompt.tokens[: len(names) * prompt.size].tolist()),
            block_size=prompt.size,
            medium=tier,
            group_idx=group,
            kv_cache_spec_kind=None if group is None else "full_attention",
        )
        surplus = tuple(name for name in names if name not in new)
        self.world.say(pod, stored, BlockRemoved(block_hashes=surplus, medium=tier, group_idx=group))

    def evict(self, step: dict[str, Any], entry: dict[str, Any]) -> None:
        key, pod, tier, group = step["key"], entry["pod"], entry.get("tier"), entry.get("group")
        if entry.get("speculative"):
            if key in self.by_key:
                self.world.book(pod, self.hash(key), there=False)
            return
        prompt = self.by_key.get(key)
        names = [key] if step["key_type"] == "engine" else prompt.names(key) if prompt else []
        self.told -= {(pod, tier, group, name) for name in names}
        self.world.say(pod, BlockRemoved(block_hashes=tuple(names), medium=tier, group_idx=group))

    def clear(self, pod: str) -> None:
        self.told = {each for each in self.told if each[0] != pod}
        self.world.say(pod, AllBlocksCleared())
        self.world.bookings.clear(self.world.slot(pod))


def index_of_blocks(case: Case) -> None:
    it = Blocks(case)
    for number, step in enumerate(case["steps"]):
        operation, where = step["op"], f"step {number}, {step['op']}"
        if operation == "add":
            for entry in step["entries"]:
                it.add(step, entry)
        elif operation == "evict":
            for entry in step["entries"]:
                it.evict(step, entry)
        elif operation == "clear":
            it.clear(step["pod"])
        elif operation == "lookup":
            keys = step["request_keys"]
            looked_up(
                step, {key: it.world.entries(it.hash(key))[0] if key in it.by_key else set() for key in keys}, where
            )
        elif operation == "get_request_key":
            request_key(it, step, where)
        else:
            raise unknown("operation", operation)


def looked_up(step: dict[str, Any], found: dict[int, set[tuple[str, object]]], where: str) -> None:
    """Hold what a lookup finds, of the pods that it asks for, against what is expected."""
    expect, pods = step["expect"], set(step.get("pod_filter") or ())
    if pods:
        found = {key: {each for each in entries if each[0] in pods} for key, entries in found.items()}
    wanted = {int(key): set(map(place, entries)) for key, entries in expect.get("entries", {}).items()}
    if expect.get("order", "any") != "any" and any(len(entries) > 1 for entries in wanted.values()):
        raise unknown("order of entries", expect["order"])
    for key, entries in wanted.items():
        same(entries, found[key], f"{where}: {key}")
    if "num_keys" in expect:
        same(expect["num_keys"], sum(map(bool, found.values())), f"{where}: keys that somebody holds")


def request_key(it: Blocks, step: dict[str, Any], where: str) -> None:
    """Hold our name for one of the engine's blocks against the router's key that is expected."""
    known = it.world.known(step["engine_key"])
    if step["expect"].get("error"):
        # theirs forgets a block at once, ours while none hangs behind it: a parent that comes back is the same
        if known is not None and known[1]:
            raise Mismatch("an engine's block that is not held", known, where)
        return
    key = step["expect"]["value"]
    prompt = it.by_key[key]
    if known is None:
        raise Mismatch(key, None, where)
    # many to one: our block is complete at the last of the engine's, those before it still have the name before that
    at = prompt.keys.index(key)
    if step["engine_key"] != prompt.names(key)[-1]:
        at -= 1
    if known[0] != (int(prompt.hashes[at]) if at >= 0 else None):
        raise Mismatch(key, known, where)


RUNNERS: dict[tuple[str, str], Runner] = {("kv-block-index", "sequence"): index_of_blocks}
