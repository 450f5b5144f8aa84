"""What engines said they hold, weighed: `longest-prefix-tier-scorer` and `precise-prefix-cache-producer`.

A key that a test made up is a block of tokens of its own; who holds it where, engines say in events, and what was only
sent there is booked.
"""

from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.prefix.extra_keys import Feature, identifiers
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


Said = list[tuple[str, Any]]


def sayings(prompts: list[list[int]], key_to_pods: dict[str, Any], own: int = 1) -> Said:
    """Return what pods say so that these keys, each a block of `own` tokens, are held as a case says."""
    entries = [(int(key), entry) for key, each in key_to_pods.items() for entry in each if not entry.get("speculative")]
    said: Said = []
    for prompt in prompts:
        tokens = tuple(tokens_of(prompt, own).tolist())
        for pod, tier in dict.fromkeys((entry["pod"], entry.get("tier")) for _, entry in entries):
            there = {key for key, entry in entries if (entry["pod"], entry.get("tier")) == (pod, tier)}
            rest = tuple(key for key in prompt if key not in there)
            said.append((pod, BlockStored(block_hashes=tuple(prompt), token_ids=tokens, medium=tier)))
            said.append((pod, BlockRemoved(block_hashes=rest, medium=tier)))
    return said


def booked(prompt: list[int], key_to_pods: dict[str, Any]) -> dict[str, set[int]]:
    """Return which keys of a prompt were only sent to a pod, and not confirmed."""
    found: dict[str, set[int]] = {}
    for key, entries in key_to_pods.items():
        for entry in entries:
            if entry.get("speculative") and int(key) in prompt:
                found.setdefault(entry["pod"], set()).add(int(key))
    return found


def holding(prompts: list[list[int]], key_to_pods: dict[str, Any], own: int = 1, **names: Any) -> World:
    """Return a world in which these keys are held as a case says."""
    world = World(own, **names)
    for pod, event in sayings(prompts, key_to_pods, own):
        world.say(pod, event)
    for prompt in prompts:
        hashes = isched.block_hashes(tokens_of(prompt, own), own, **names)
        for pod, keys in booked(prompt, key_to_pods).items():
            for key in keys:
                world.book(pod, hashes[prompt.index(key) :][:1], there=True)
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


def media(case: Case) -> dict[str, str]:
    """Return our word for each medium of a case; one that no engine says stands for one that the case does not use."""
    names = dict.fromkeys(
        each["tier"] for entries in case["key_to_pods"].values() for each in entries if each.get("tier")
    )
    names |= dict.fromkeys(case["params"].get("medium_weights") or {})
    used = {tier_of(name) for name in names}
    free = [word for word in ("disk", "external") if tier_of(word) not in used]
    return {name: name if tier_of(name) is not None else free.pop(0) for name in names}


def kv_match(case: Case) -> None:
    params, keys = case["params"], case["block_keys"]
    name, expect = params["function"], case["expect"]
    medium = media(case)
    held = {
        key: [{**each, "tier": medium[each["tier"]]} if each.get("tier") else each for each in entries]
        for key, entries in case["key_to_pods"].items()
    }
    world = holding([keys], held)
    hashes = isched.block_hashes(tokens_of(keys, 1), 1)
    pods = [params["pod"]] if "pod" in params else list(world.pods)
    weights = {int(tier_of(medium[tier]) or 0): weight for tier, weight in (params.get("medium_weights") or {}).items()}
    match = tier_match([flags(world, pods, hashes)], weights, unnamed=params.get("default_weight", 1.0))
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


class Fleet:
    """The producer as a configuration sets it up, the case's endpoints in a pool, and their addresses, which name pods."""

    def __init__(self, case: Case, own: int, parameters: PreciseParameters) -> None:
        self.addresses = {each["name"]: f"{each['address']}:{each['port']}" for each in case["endpoints"]}
        pool = isched.InferencePool()
        for name in self.addresses:
            pool.join(name)
        self.endpoints, self.own = pool.snapshot(), own
        self.model = (case.get("request") or {}).get("target_model", "")
        self.producer = isched.PrecisePrefixProducer(
            block_size=own,
            model=self.model,
            seed=parameters.token_processor_config.seed,
            weights=parameters.indexer_config.weights,
            speculative_ttl=parameters.ttl if parameters.speculative_indexing else None,
        )

    def position(self, pod: str) -> int | None:
        """Return which candidate a pod is: by its name, or by its address."""
        names = list(self.addresses)
        if pod in names:
            return names.index(pod)
        return list(self.addresses.values()).index(pod) if pod in self.addresses.values() else None

    def say(self, pod: str, event: Any) -> None:
        at = self.position(pod)
        if at is not None:  # nobody asks about others
            stay = self.endpoints.slots[at], self.endpoints.generations[at]
            self.producer.apply(*stay, isched.EventBatch(events=(event,)))

    def produce(self, chain: Any) -> Any:
        request = isched.InferenceRequest(request_id="vector", block_hashes=chain)
        return self.producer.produce(request, self.endpoints, isched.CycleState(0.0, np.random.default_rng(0), 0))

    def send(self, chain: Any, pod: str) -> None:
        """Decide for a pod and keep the decision."""
        at = self.position(pod)
        if at is not None:
            self.producer.commit(self.produce(chain).receipt, int(self.endpoints.slots[at]), now=0.0)

    def matched(self, chains: list[Any]) -> tuple[list[float], list[int]]:
        """Return for each endpoint what its blocks of all prompts are worth, and how many they are."""
        worth, cached = np.zeros(len(self.endpoints)), np.zeros(len(self.endpoints))
        for chain in chains:
            columns = self.produce(chain).columns
            worth += columns[isched.PREFIX_MATCH] * len(chain)
            cached += columns[isched.PREFIX_TOKENS] / self.own
        return worth.round(9).tolist(), cached.astype(int).tolist()


def producer(case: Case) -> None:
    """Publish a match for each endpoint; scripted keys stand in the place of the prompts' own blocks.

    Where the blocks lie is counted beside the producer, from the same events: it publishes what they are worth.
    """
    given = given_parameters(case)
    own = given.pop("blockSizeTokens", None)
    parameters = PreciseParameters.read(given)
    own = own or parameters.token_processor_config.tokens_per_block
    fleet, request, script = Fleet(case, own, parameters), case.get("request") or {}, case.get("scripted_index") or {}
    keys, holders = script.get("keys_per_prompt"), script.get("key_to_pods")
    if holders is None:  # a canned score of n stands for n blocks on the device
        holders = {
            str(key): [{"pod": pod} for pod, score in (script.get("scores") or {}).items() if place < int(score)]
            for prompt in keys or []
            for place, key in enumerate(prompt)
        }
    names = {"model": fleet.model, "seed": parameters.token_processor_config.seed}
    if keys is None:
        prompts = [np.array(each, dtype=np.uint32) for each in request.get("prompts") or []]
        world = World(own, **names)
    else:
        prompts = [tokens_of(each, own) for each in keys]
        world = holding(keys, holders, own, **names)
        for pod, event in sayings(keys, holders, own):
            fleet.say(pod, event)
    chains = [isched.block_hashes(each, own, **names) for each in prompts]
    for prompt, chain in zip(keys or [], chains, strict=True) if keys else ():
        for pod, sent in booked(prompt, holders).items():
            if set(prompt[: len(sent)]) != sent:
                raise unknown("booking", sorted(sent))  # a prompt is sent from its first block on
            fleet.send(chain[: len(sent)], pod)
    chains = [chain for chain in chains if len(chain)]
    worth, cached = fleet.matched(chains)
    match = tier_match([flags(world, list(fleet.addresses.values()), chain) for chain in chains])
    touched = (
        touched_blocks(features(request.get("mm_features")), own) if len(chains) == 1 else np.empty(0, dtype=np.intp)
    )
    published = {
        name: {
            "match_blocks": int(worth[i]),
            "total_blocks": sum(map(len, chains)),
            "block_size_tokens": own,
            "cached_block_count": cached[i],
            "cached_blocks_by_tier": by_tier(match, i),
            "mm": {"match_blocks": touched_within(touched, cached[i])},
        }
        for i, name in enumerate(fleet.addresses)
        if chains
    }
    expect = case["expect"]
    if not expect.get("match"):
        same({}, published)
    for name, said in (expect.get("match") or {}).items():
        within(said, published.get(name, {}), name)
    if chains:
        same(match.cached.tolist(), cached, "blocks by tier, and by the producer")
    if "lookup_called" in expect:
        same(expect["lookup_called"], bool(chains), "blocks are looked up")


def features(said: Any) -> list[Feature]:
    if said and isinstance(said[0], list):  # those of each prompt: they count where there is one
        said = said[0]
    return [Feature(each.get("hash", ""), each["offset"], each["length"]) for each in said or ()]


def pre_request(case: Case) -> None:
    """Send prompts to the primary's target, and to the one that computes them: they are expected there."""
    fleet = Fleet(case, 1, PreciseParameters.read(given_parameters(case)))
    prompts = [each for each in case["request"].get("block_keys_per_prompt") or [] if each]
    chains = [isched.block_hashes(tokens_of(each, 1), 1) for each in prompts]
    for profile in dict.fromkeys((case["primary"], "prefill")):
        for target in ((case["results"].get(profile) or {}).get("targets") or [])[:1]:
            for chain in chains:
                fleet.send(chain, target)
    bookings = fleet.producer.speculative
    added = []
    for at, address in enumerate(fleet.addresses.values()):
        for keys, chain in zip(prompts, chains, strict=True):
            depths = np.append(bookings.match(chain), np.zeros(len(fleet.endpoints), dtype=np.int32))
            if depths[fleet.endpoints.slots[at]]:
                added.append({"pod": address, "keys": keys[: depths[fleet.endpoints.slots[at]]], "speculative": True})
    same(sorted(case["expect"]["index_adds"] or [], key=repr), sorted(added, key=repr))


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
    validation(
        case,
        PreciseParameters.read,
        lambda built: {
            "blockSizeTokens": built.token_processor_config.tokens_per_block,
            "engineType": built.kv_events_config.engine,
        },
    )


RUNNERS: dict[tuple[str, str], Runner] = {
    ("longest-prefix-tier-scorer", "kv-match"): kv_match,
    ("precise-prefix-cache-producer", "kv-match"): kv_match,
    ("precise-prefix-cache-producer", "producer"): producer,
    ("precise-prefix-cache-producer", "pre-request"): pre_request,
    ("precise-prefix-cache-producer", "function"): function,
    ("precise-prefix-cache-producer", "param-validation"): parameters,
}
