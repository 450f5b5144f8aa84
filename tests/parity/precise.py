"""What engines said they hold, weighed: `longest-prefix-tier-scorer` and `precise-prefix-cache-producer`.

A key that a test made up is a block of tokens of its own; who holds it where, engines say in events, and what was only
sent there is booked.
"""

from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.prefix.extra_keys import Feature, hash_blocks, identifiers
from inferencesched.prefix.kv_records import BlockRemoved, BlockStored, Tier, tier_of
from inferencesched.prefix.multimodal import touched_blocks, touched_within, vllm_extra_keys
from inferencesched.prefix.parameters import PreciseParameters
from inferencesched.prefix.tiers import SPECULATIVE, TierMatch, tier_match
from tests.parity.cases import Case, Runner, same, unknown, within
from tests.parity.events import World, lists
from tests.parity.words import given_parameters, nothing_for_no_block_size, validation

#: llm-d's names of what we have flags for.
NAMES: dict[int, str] = {
    Tier.DEVICE: "gpu",
    Tier.HOST: "cpu",
    Tier.DISK: "disk",
    Tier.EXTERNAL: "external",
    SPECULATIVE: "speculative",
}


def holding(prompts: list[list[int]], key_to_pods: dict[str, Any], own: int = 1, model: str = "") -> World:
    """Return a world in which these keys, each a block of `own` tokens, are held as a case says."""
    world = World(own, model=model)
    entries = [(int(key), entry) for key, each in key_to_pods.items() for entry in each]
    for prompt in prompts:
        tokens = tokens_of(prompt, own)
        hashes = isched.block_hashes(tokens, own, model=model)
        whole = {"block_hashes": tuple(prompt), "token_ids": tuple(tokens.tolist())}
        for pod, tier in dict.fromkeys((e["pod"], e.get("tier")) for _, e in entries if not e.get("speculative")):
            there = {key for key, e in entries if (e["pod"], e.get("tier")) == (pod, tier) and not e.get("speculative")}
            rest = tuple(key for key in prompt if key not in there)
            world.say(pod, BlockStored(medium=tier, **whole), BlockRemoved(block_hashes=rest, medium=tier))
        for key, entry in entries:
            if entry.get("speculative") and key in prompt:
                world.book(entry["pod"], hashes[prompt.index(key) :][:1], there=True)
    return world


def tokens_of(keys: list[int], own: int) -> Any:
    return np.repeat(np.array(keys, dtype=np.uint32), own)


def flags(world: World, pods: list[str], hashes: Any) -> Any:
    """Return where each of the pods holds each block."""
    found = np.zeros((len(pods), len(hashes)), dtype=np.uint64)
    for at, slot in enumerate([world.slot(pod) for pod in pods]):
        booked = [world.bookings.match(hashes[i : i + 1])[slot] > 0 for i in range(len(hashes))]
        found[at] = world.applier.tiers_of(slot, hashes) | np.uint64(SPECULATIVE) * np.array(booked, dtype=np.uint64)
    return found


def kv_match(case: Case) -> None:
    params, keys = case["params"], case["block_keys"]
    name, expect = params["function"], case["expect"]
    world = holding([keys], case["key_to_pods"])
    hashes = isched.block_hashes(tokens_of(keys, 1), 1)
    pods = [params["pod"]] if "pod" in params else list(world.pods)
    weights = {int(tier_of(tier) or 0): weight for tier, weight in params.get("medium_weights", {}).items()}
    match = tier_match([flags(world, pods, hashes)], weights)
    if name == "matched_block_count":
        same(expect["value"], int(match.cached[0]))
        if not world.bookings.stats.blocks:
            same(expect["value"], int(world.index.match(hashes)[world.slot(pods[0])]), "by the index")
    elif name == "matched_block_count_by_tier":
        same(expect["value"], by_tier(match, 0))
    elif name == "longest_prefix_score":
        scores = dict(zip(pods, match.weighted.tolist(), strict=True))
        wanted = expect["scores_present_only"] if "scores_present_only" in expect else expect["value"]
        for pod, score in wanted.items():
            same(score, scores.get(pod, 0.0), pod, tolerance=case["tolerance"])
    else:
        raise unknown("function", name)


def by_tier(match: TierMatch, endpoint: int) -> dict[str, int]:
    return {NAMES[flag]: count for flag, count in match.tiers(endpoint).items()}


# --- the producer ------------------------------------------------------------------------------------------------


def producer(case: Case) -> None:
    """Publish a match for each endpoint; scripted keys stand in the place of the prompts' own blocks."""
    given = given_parameters(case)
    own = given.pop("blockSizeTokens", None)
    parameters = PreciseParameters.read(given)
    own = own or parameters.token_processor_config.tokens_per_block
    request, script = case.get("request") or {}, case.get("scripted_index")
    if script is None:
        world, prompts = World(own, model=request.get("target_model", "")), request.get("prompts") or []
        chains = [hash_blocks(np.array(each, dtype=np.uint32), own, model=request["target_model"]) for each in prompts]
    else:
        keys = script["keys_per_prompt"]
        world = holding(keys, script.get("key_to_pods", {}), own)
        chains = [isched.block_hashes(tokens_of(each, own), own) for each in keys]
    addresses = {each["name"]: f"{each['address']}:{each['port']}" for each in case["endpoints"]}
    chains = [chain for chain in chains if len(chain)]
    match = tier_match(
        [flags(world, list(addresses.values()), chain) for chain in chains], parameters.indexer_config.weights
    )
    touched = (
        touched_blocks(features(request.get("mm_features")), own) if len(chains) == 1 else np.empty(0, dtype=np.intp)
    )
    published = {
        name: {
            "match_blocks": int(match.weighted[i]),
            "total_blocks": match.total,
            "block_size_tokens": own,
            "cached_block_count": int(match.cached[i]),
            "cached_blocks_by_tier": by_tier(match, i),
            "mm": {"match_blocks": touched_within(touched, int(match.cached[i]))},
        }
        for i, name in enumerate(addresses)
        if match.total
    }
    expect = case["expect"]
    if not expect.get("match"):
        same({}, published)
    for name, said in (expect.get("match") or {}).items():
        within(said, published.get(name, {}), name)
    if "lookup_called" in expect:
        same(expect["lookup_called"], bool(match.total), "blocks are looked up")


def features(said: Any) -> list[Feature]:
    return [Feature(each.get("hash", ""), each["offset"], each["length"]) for each in said or ()]


def pre_request(case: Case) -> None:
    """Book what was sent: at the primary's target, and at the one that computes the prompt."""
    parameters = PreciseParameters.read(given_parameters(case))
    prompts = case["request"].get("block_keys_per_prompt") or []
    pool = isched.InferencePool()
    addresses = {each["name"]: f"{each['address']}:{each['port']}" for each in case["endpoints"]}
    for name in addresses:
        pool.join(name)
    endpoints, bookings = pool.snapshot(), isched.ApproximatePrefixProducer(block_size=1, capacity=None)
    chains = {tuple(keys): isched.block_hashes(tokens_of(keys, 1), 1) for keys in prompts if keys}
    for keys, chain in chains.items():
        request = isched.InferenceRequest(
            request_id=f"{case['request'].get('request_id', 'r')}/{keys}", block_hashes=chain
        )
        receipt = bookings.produce(request, endpoints, isched.CycleState(0.0, np.random.default_rng(0), 0)).receipt
        for profile in dict.fromkeys((case["primary"], "prefill")) if parameters.speculative_indexing else ():
            for target in ((case["results"].get(profile) or {}).get("targets") or [])[:1]:
                bookings.commit(receipt, int(endpoints.slots[endpoints.names.index(target)]), now=0.0)
    added = [
        {"pod": address, "keys": list(keys), "speculative": True}
        for keys, chain in chains.items()
        for i, address in enumerate(addresses.values())
        if np.append(bookings.index.match(chain), np.zeros(len(endpoints)))[endpoints.slots[i]] == len(chain)
    ]
    wanted = case["expect"]["index_adds"] or []
    same(sorted(wanted, key=repr), sorted(added, key=repr))


def function(case: Case) -> None:
    params, value = case["params"], case["expect"].get("value")
    name = params["function"]
    if name == "multimodal_block_indices":
        touched = nothing_for_no_block_size(lambda: touched_blocks(features(params["features"]), params["block_size"]))
        same(value or [], list(map(int, touched)))
    elif name == "count_mm_matched_blocks":
        same(value, touched_within(np.array(params["mm_block_indices"] or [], dtype=np.intp), params["match_len"]))
    elif name == "block0_extra_features":
        keys = vllm_extra_keys(
            features(params["mm_features"]), params["block_size"], params["num_tokens"], salt=params["cache_salt"]
        )
        same(value, keys and lists([identifiers(each) for each in keys]))
    else:
        raise unknown("function", name)


def parameters(case: Case) -> None:
    validation(case, PreciseParameters.read)


RUNNERS: dict[tuple[str, str], Runner] = {
    ("longest-prefix-tier-scorer", "kv-match"): kv_match,
    ("precise-prefix-cache-producer", "kv-match"): kv_match,
    ("precise-prefix-cache-producer", "producer"): producer,
    ("precise-prefix-cache-producer", "pre-request"): pre_request,
    ("precise-prefix-cache-producer", "function"): function,
    ("precise-prefix-cache-producer", "param-validation"): parameters,
}
