"""Names of blocks: `prefix-block-hash` (the rest of a prompt is a block too) and `kv-block-token-processor`."""

import re
from itertools import combinations
from typing import Any

import numpy as np

from inferencesched.prefix.extra_keys import extend_chain, hash_blocks
from inferencesched.prefix.hashing import domain_seed
from inferencesched.prefix.parameters import TokenProcessorParameters
from inferencesched.prefix.prompts import hash_prompts, split_blocks
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.words import nothing_for_no_block_size, refusal, validation

Hashes = list[list[int]]


def tokens(ids: list[int] | None) -> Any:
    return np.array(ids or [], dtype=np.uint32)


def hashed(call: dict[str, Any], scheme: str) -> Hashes:
    """Return the hashes of each prompt of a call."""
    model, salt, size = call.get("model", ""), call.get("cache_salt", ""), call["block_size"]
    prompts = [tokens(each) for each in call.get("prompts") or []]
    named = {"hashSeed": call.get("hash_seed", ""), "hashAlgorithm": call.get("hash_algorithm", "")}
    parameters = TokenProcessorParameters.read(named)
    if scheme == "approx":
        most = call.get("max_blocks")
        chains = hash_prompts(prompts, size, max_blocks=most, model=model, salt=salt, seed=parameters.seed)
    elif call.get("parent"):
        local = domain_seed(parameters.seed, model=model, salt=salt)
        chains = [extend_chain(int(call["parent"]), each, size, local, parameters.seed) for each in prompts]
    else:
        keys = call.get("extra_features")
        chains = [hash_blocks(each, size, keys, model=model, salt=salt, seed=parameters.seed) for each in prompts]
    return [chain.tolist() for chain in chains]


def block_hash(case: Case) -> None:
    """Hash every call, then hold the counts and the relations against the hashes."""
    expect, calls = case["expect"], {}
    for call in case["hash_calls"]:
        if "error_contains" in expect:
            refusal(expect["error_contains"], lambda call=call: hashed(call, case["params"]["scheme"]))
            return
        calls[call["id"]] = nothing_for_no_block_size(lambda call=call: hashed(call, case["params"]["scheme"]))

    def at(reference: str) -> Any:
        name, *places = re.findall(r"[^\[\]]+", reference)
        found: Any = calls[name]
        for place in places:
            found = found[int(place)]
        return found

    def flat(reference: str) -> list[int]:
        found = at(reference)
        return (
            [found]
            if isinstance(found, int)
            else [h for each in found for h in ([each] if isinstance(each, int) else each)]
        )

    for relation, said in expect.items():
        if relation == "total_blocks":
            same(said, {name: len(flat(name)) for name in said}, relation)
        elif relation == "blocks_per_prompt":
            same(said, {name: [len(each) for each in calls[name]] for name in said}, relation)
        elif relation == "nonzero":
            for name in said:
                if not flat(name) or 0 in flat(name):
                    raise Mismatch(f"{name} other than 0", flat(name))
        elif relation == "all_distinct":
            found = [at(name) for name in said]
            if any(one == other for one, other in combinations(found, 2)):
                raise Mismatch(f"{said} all different", found)
        elif relation in ("equal", "not_equal", "same_length", "disjoint"):
            for one, other in said:
                holds = {
                    "equal": lambda one=one, other=other: at(one) == at(other),
                    "not_equal": lambda one=one, other=other: at(one) != at(other),
                    "same_length": lambda one=one, other=other: len(flat(one)) == len(flat(other)),
                    "disjoint": lambda one=one, other=other: not set(flat(one)) & set(flat(other)),
                }[relation]
                if not holds():
                    raise Mismatch(f"{one} and {other} {relation}", (at(one), at(other)))
        else:
            raise unknown("relation", relation)


def function(case: Case) -> None:
    params = case["params"]
    if params["function"] != "split_blocks_approx":
        raise unknown("function", params["function"])
    blocks = nothing_for_no_block_size(lambda: split_blocks(tokens(params["token_ids"]), params["block_size"]))
    same(case["expect"]["value"], [block.tolist() for block in blocks])


def token_processor(case: Case) -> None:
    validation(
        case,
        TokenProcessorParameters.read,
        lambda built: {"blockSizeTokens": built.tokens_per_block, "blockSize": built.tokens_per_block},
    )


RUNNERS: dict[tuple[str, str], Runner] = {
    ("prefix-block-hash", "block-hash"): block_hash,
    ("prefix-block-hash", "function"): function,
    ("kv-block-token-processor", "block-hash"): block_hash,
    ("kv-block-token-processor", "param-validation"): token_processor,
}
