"""What was sent where: `approx-prefix-index` and `approx-prefix-cache-producer`.

Hashes that the tests make up stand for prompts of one block each: to llm-d's index hashes are independent, to ours they
are chains. A request with several prompts is several requests here, sent to the same endpoint; a last block that is not
full is hashed as llm-d does it, by the library, before the request is made.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.prefix.parameters import LEAST_BLOCK_TOKENS, ApproximateParameters
from inferencesched.prefix.prompts import hash_prompts, match_prompts
from tests.parity.cases import Case, Runner, same, unknown, within
from tests.parity.words import given_parameters, validation

#: What a Go struct holds that a test fills in by itself, without the defaults of the YAML.
ZERO = {
    "autoTune": False,
    "blockSizeTokens": 0,
    "maxPrefixTokensToMatch": 0,
    "maxPrefixBlocksToMatch": 0,
    "lruCapacityPerServer": 0,
}


def plain(pod: str) -> str:
    """Return the name of an endpoint without its namespace."""
    return pod.rpartition("/")[2]


# --- the index ---------------------------------------------------------------------------------------------------


class Index:
    """A `PrefixIndex` with a capacity; an endpoint gets one of its own when it comes."""

    def __init__(self, capacity: int) -> None:
        self.index = isched.PrefixIndex(32, capacity)
        self.slots: dict[str, int] = {}
        self.here: set[str] = set()
        self.seen: set[int] = set()

    def add(self, pod: str, hashes: Iterable[int], capacity: int | None = None) -> None:
        slot = self.slots.setdefault(pod, len(self.slots))
        if pod not in self.here:
            self.index.limit(slot, capacity or None)
            self.here.add(pod)
        for each in hashes:
            self.seen.add(each)
            self.index.insert(slot, block(each))
            self.index.check()

    def remove(self, pod: str) -> None:
        if pod in self.here:
            self.index.clear(self.slots[pod])
            self.index.check()
            self.here.remove(pod)

    def holders(self, each: int) -> set[str]:
        depths = self.index.match(block(each))
        return {pod for pod, slot in self.slots.items() if depths[slot]}

    def size(self, pod: str) -> int:
        return self.index.blocks(self.slots[pod]) if pod in self.slots else 0


def block(each: int) -> Any:
    return isched.block_hashes(np.array([each % (1 << 32), each >> 32], dtype=np.uint32), 2)


def index(case: Case) -> None:
    it = Index(case["params"].get("default_capacity", 31_250))
    for number, step in enumerate(case["steps"]):
        operation, expect = step["op"], step.get("expect", {})
        where = f"step {number}, {operation}"
        if operation == "add":
            it.add(step["pod"], step["hashes"], step.get("pod_capacity"))
        elif operation == "remove_pod":
            it.remove(step["pod"])
        elif operation == "get":
            found = it.holders(step["hash"])
            if "pods" in expect:
                same(sorted(expect["pods"]), sorted(found), where)
            for pods, inside in ((expect.get("contains", ()), True), (expect.get("not_contains", ()), False)):
                for pod in pods:
                    same(inside, pod in found, f"{where}: {pod}")
        elif operation == "pod_size":
            same(expect["value"], it.size(step["pod"]), where)
        elif operation == "num_hashes":
            same(expect["value"], sum(bool(it.holders(each)) for each in it.seen), where)
            same(expect["value"], len(it.index), where)
        elif operation == "tracked_pods":
            same(sorted(expect.get("pods", expect.get("value", []))), sorted(it.here), where)
        elif operation == "dump_state":
            same_state(expect["state"], {pod: it.size(pod) for pod in it.here}, where)
        else:
            raise unknown("operation", operation)


def same_state(expected: Any, sizes: dict[str, int], where: str) -> None:
    pods = [{"pod": pod, "blocks": size} for pod, size in sizes.items()]
    pods.sort(key=lambda each: (-each["blocks"], each["pod"]))
    within(expected, {"pods": pods, "totalPods": len(pods)}, where)


# --- the producer ------------------------------------------------------------------------------------------------


class World:
    """The producer as a configuration sets it up, the case's endpoints in a pool, and what each request left behind."""

    def __init__(self, case: Case) -> None:
        given = given_parameters(case)
        capacity = given.pop("default_capacity", None)
        self.parameters = ApproximateParameters.read(given)
        self.pool, self.asked, self.receipts = isched.InferencePool(), {}, {}
        metrics = [each.get("metrics") or {} for each in case["endpoints"]] or [{}]
        least = case["params"].get("_min_block_size_override", LEAST_BLOCK_TOKENS)
        self.size = self.parameters.tokens_per_block(metrics[0].get("cache_block_size"), least=least)
        self.most = self.parameters.max_blocks(self.size)
        for endpoint, said in zip(case["endpoints"], metrics, strict=bool(case["endpoints"])):
            self.pool.join(endpoint["name"])
            if said.get("cache_num_blocks"):  # of blocks without a size theirs takes the number as it is
                size = said.get("cache_block_size") or self.size
                known = {isched.KV_BLOCKS: said["cache_num_blocks"], isched.KV_BLOCK_SIZE: size}
                self.pool.observe(endpoint["name"], known, now=0.0)
        self.producer = isched.ApproximatePrefixProducer(
            block_size=self.size,
            capacity=capacity or self.parameters.capacity(),
            automatic=self.parameters.auto_tune,
            max_blocks=self.most or None,
        )

    def requests(self, said: dict[str, Any]) -> list[isched.InferenceRequest]:
        """Return a request for each prompt."""
        model, salt = said.get("target_model", ""), said.get("cache_salt", "")
        prompts = [np.array(each, dtype=np.uint32) for each in said.get("prompts") or []]
        chains = hash_prompts(prompts, self.size, max_blocks=self.most, model=model, salt=salt)
        name = said.get("request_id") or "request"
        return [
            isched.InferenceRequest(request_id=f"{name}/{i}", model=model, cache_salt=salt, block_hashes=chain)
            for i, chain in enumerate(chains)
        ]

    def produce(self, said: dict[str, Any]) -> dict[str, dict[str, int]]:
        """Return what is published for each endpoint, and remember what belongs to the request."""
        endpoints = self.pool.snapshot()
        cycle = isched.CycleState(0.0, np.random.default_rng(0), 0)
        requests = self.requests(said)
        produced = [self.producer.produce(request, endpoints, cycle) for request in requests]
        self.asked[said["request_id"]] = [len(request.block_hashes) for request in requests]
        self.receipts[said["request_id"]] = [each.receipt for each in produced]
        matched = sum((each.columns[isched.PREFIX_TOKENS] for each in produced), np.zeros(len(endpoints))) / self.size
        depths = match_prompts(self.producer.index, [request.block_hashes for request in requests])
        room = np.append(depths, np.zeros(len(endpoints), dtype=np.int32))  # for slots that the index has not met
        same(room[endpoints.slots].tolist(), matched.astype(int).tolist(), "the prompts one by one, and together")
        total = sum(self.asked[said["request_id"]])
        return {
            endpoints.name(i): {
                "match_blocks": int(blocks),
                "cached_block_count": int(blocks),
                "total_blocks": total,
                "block_size_tokens": self.size,
            }
            for i, blocks in enumerate(matched.tolist())
        }

    def pre_request(self, step: dict[str, Any]) -> None:
        """Tell the producer where the request went: the primary's target, and the one that computes the prompt."""
        result = step["result"]
        profiles = dict.fromkeys((result["primary"], "prefill"))
        endpoints = self.pool.snapshot()
        for name in profiles:
            for target in ((result["profiles"].get(name) or {}).get("targets") or [])[:1]:
                slot = int(endpoints.slots[endpoints.names.index(target)])
                for receipt in self.receipts.get(step["request"]["request_id"], ()):
                    self.producer.commit(receipt, slot, now=0.0)

    def holders(self, said: dict[str, Any], *, whole: bool) -> set[str]:
        """Return who holds the first block of a request's prompts, or all blocks of all of them."""
        endpoints = self.pool.snapshot()
        found = []
        for request in self.requests(said):
            depths = np.append(
                self.producer.index.match(request.block_hashes), np.zeros(len(endpoints), dtype=np.int32)
            )
            least = len(request.block_hashes) if whole else 1
            found.append(
                {endpoints.name(i) for i, slot in enumerate(endpoints.slots.tolist()) if depths[slot] >= least}
            )
        return (set.intersection if whole else set.union)(*found) if found else set()


def producer(case: Case) -> None:
    if any(step["op"] == "index_add" for step in case["steps"]):
        index({**case, "steps": [{**s, "op": "add"} if s["op"] == "index_add" else s for s in case["steps"]]})
        return
    world = World(case)
    for number, step in enumerate(case["steps"]):
        operation, expect = step["op"], step.get("expect", {})
        where = f"step {number}, {operation}"
        if operation == "produce":
            produced(world, step["request"], expect, where)
        elif operation == "pre_request":
            world.pre_request(step)
        elif operation == "index_holds_all":
            same(True, plain(expect["pod"]) in world.holders(step["request"], whole=True), f"{where}: {expect['pod']}")
        elif operation == "index_pods_for":
            found = world.holders(step["request"], whole=False)
            if "empty" in expect:
                same(expect["empty"], not found, where)
            for pod in expect.get("contains", ()):
                same(True, plain(pod) in found, f"{where}: {pod}")
            if "pods" in expect:
                same(sorted(map(plain, expect["pods"])), sorted(found), where)
        else:
            raise unknown("operation", operation)


def produced(world: World, said: dict[str, Any], expect: dict[str, Any], where: str) -> None:
    """Hold what is published against what a step expects."""
    match = world.produce(said)
    blocks = world.asked[said["request_id"]]
    for name, value in expect.items():
        if name == "prompt_blocks":
            same(value, blocks, where)
        elif name == "min_prompt_blocks":
            same(True, sum(blocks) >= value, f"{where}: {sum(blocks)} blocks, at least {value}")
        elif name == "prompt_blocks_grow_vs":
            same(True, sum(blocks) > sum(world.asked[value]), f"{where}: more blocks than {value}")
        elif name == "match":
            for pod, published in value.items():
                within(published, match[plain(pod)], f"{where}: {pod}")
        elif name == "match_gt_zero":
            for pod in value:
                same(True, match[plain(pod)]["match_blocks"] > 0, f"{where}: {pod} holds some")
        elif name == "total_equals_prompt_blocks":
            for pod in value:
                same(sum(blocks), match[plain(pod)]["total_blocks"], f"{where}: {pod}")
        else:
            raise unknown("expectation", name)


def function(case: Case) -> None:
    params = given_parameters(case)
    name = params.pop("function")
    parameters = ApproximateParameters.read(params)
    metrics = [each.get("metrics") or {} for each in case["endpoints"]] or [{}]
    least = case["params"].get("_min_block_size_override", LEAST_BLOCK_TOKENS)
    size = parameters.tokens_per_block(metrics[0].get("cache_block_size"), least=least)
    if name == "effective_block_size":
        same(case["expect"]["value"], size)
    else:
        raise unknown("function", name)


def parameters(case: Case) -> None:
    """Validate; a struct that a Go test fills in by itself has neither defaults nor deprecated names."""
    if "struct constructed directly" in case.get("context", {}).get("note", ""):
        case = {**case, "params": {**ZERO, **{name: v for name, v in case["params"].items() if name != "blockSize"}}}
    validation(
        case,
        ApproximateParameters.read,
        lambda built: {"blockSizeTokens": built.stated_block_tokens, "blockSize": 0},
    )


RUNNERS: dict[tuple[str, str], Runner] = {
    ("approx-prefix-index", "sequence"): index,
    ("approx-prefix-cache-producer", "sequence"): producer,
    ("approx-prefix-cache-producer", "function"): function,
    ("approx-prefix-cache-producer", "param-validation"): parameters,
}
