"""The slow, obvious twins of `prefix.prompts`, `prefix.multimodal` and `prefix.tiers`: sets and loops."""

import xxhash

from inferencesched.prefix.kv_records import Tier
from inferencesched.prefix.tiers import SPECULATIVE

FLAGS = (Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.EXTERNAL, SPECULATIVE)


def whole_prompt_hashes(tokens, size, most=None, seed=1337, local_seed=1337):
    """Cut, hash each piece, chain: a rest is a piece like any other."""
    pieces = [tokens[i : i + size] for i in range(0, len(tokens), size)][:most]
    chain = []
    for piece in pieces:
        local = xxhash.xxh3_64_intdigest(b"".join(int(t).to_bytes(4, "little") for t in piece), local_seed)
        if chain:
            local = xxhash.xxh3_64_intdigest(chain[-1].to_bytes(8, "little") + local.to_bytes(8, "little"), seed)
        chain.append(local)
    return chain


def touched_blocks(features, size):
    """Ask every token of every feature in which block it lies."""
    return sorted({token // size for f in features for token in range(f.offset, f.offset + f.length)})


def vllm_extra_keys(features, size, tokens, lora, salt):
    """Ask every block which features have a token in it."""
    found = []
    for block in range(tokens // size):
        keys = [lora] if lora else []
        keys += [
            (f.identifier, f.offset - block * size)
            for f in sorted(features, key=lambda each: each.offset)
            if any(token // size == block for token in range(f.offset, f.offset + f.length))
        ]
        if salt and block == 0:
            keys.append(salt)
        found.append(tuple(keys) or None)
    return found if any(found) else None


def prefix(row, wanted):
    """Walk the blocks until one is not there."""
    depth = 0
    for flags in row:
        if not flags & wanted:
            break
        depth += 1
    return depth


def weighted(row, weights, unnamed):
    """Walk the blocks until one is nowhere, and add the best of the places where each is."""
    total = 0.0
    for flags in row:
        places = [flag for flag in FLAGS if flags & flag]
        if not places:
            break
        total += max(weights.get(flag, unnamed) for flag in places)
    return total
