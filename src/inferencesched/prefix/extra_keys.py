"""What besides its tokens makes a block another block?

Two prompts may have the same tokens and not the same meaning: under another adapter, another salt, or with other
pictures behind the same placeholder tokens. Engines hash *extra keys* with a block, and so do we:

* what holds for a whole prompt is its domain: model, adapter, salt, tenant (`inferencesched.prefix.hashing`);
* what lies in single blocks, above all identifiers of pictures and sounds, is hashed behind the tokens of each block
  that it touches, in order, each once: ``xxh3_64`` of its msgpack form, as two more tokens.

vLLM lists extra keys for each block: the adapter's name, then (identifier, offset) of what the block touches, then on a
prompt's first block the salt. Of those pairs the identifier counts; where the thing begins, the tokens tell already.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
import xxhash

from inferencesched._kernels._compile import entry
from inferencesched._kernels.hashing import chain_blocks
from inferencesched._typing import HashArray, TokenArray
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.prefix.hashing import SEED, domain_seed, token_array
from inferencesched.prefix.kv_records import BlockStored, ExtraKey

#: One entry a block: its extra keys, or None.
BlockKeys: TypeAlias = Sequence[Sequence[ExtraKey] | None]

Key = TypeVar("Key")


class Feature(NamedTuple):
    """Where in the prompt does a picture or a sound lie? Tokens `offset` to ``offset + length`` stand for it."""

    identifier: str
    offset: int
    length: int


class Domain(NamedTuple):
    """What of an event holds for the whole prompt, and what for single blocks?"""

    lora: str
    salt: str
    keys: tuple[tuple[ExtraKey, ...] | None, ...]


def block_extra_keys(features: Sequence[Feature], block_size: int, tokens: int) -> list[tuple[str, ...] | None] | None:
    """Which identifiers does each full block of a prompt touch? None where no block touches any.

    >>> block_extra_keys([Feature("cat.png", offset=12, length=8)], 16, 48)
    [('cat.png',), ('cat.png',), None]
    """
    size, blocks = whole_number("block_size", block_size, 1), whole_number("tokens", tokens) // block_size
    touched: list[list[str]] = [[] for _ in range(blocks)]
    for feature in features:
        first, behind = feature.offset // size, (feature.offset + feature.length - 1) // size + 1
        for keys in touched[max(first, 0) : behind] if feature.length > 0 else ():
            keys.append(feature.identifier)
    return [tuple(keys) or None for keys in touched] if any(touched) else None


def hash_blocks(
    tokens: TokenArray,
    block_size: int,
    extra_keys: BlockKeys | None = None,
    *,
    seed: int = SEED,
    model: str = "",
    lora: str = "",
    salt: str = "",
    tenant: str = "",
) -> HashArray:
    """What are the chained hashes of a prompt's full blocks, extra keys included? ``uint64[T // block_size]``.

    As `block_hashes`, and the same without `extra_keys`: an entry for each full block, such as `block_extra_keys`
    makes. A `KVEventApplier` stores what engines report under the same hashes.

    Cost: that of `block_hashes`, and about 3 us for each block with extra keys. Errors: those of `block_hashes`;
    `InvalidInputError` for too few or too many entries.

    >>> prompt = np.arange(8, dtype=np.uint32)
    >>> plain, cat = hash_blocks(prompt, 4), hash_blocks(prompt, 4, [None, ("cat.png",)])
    >>> bool(plain[0] == cat[0]), bool(plain[1] == cat[1])
    (True, False)
    """
    size, array = whole_number("block_size", block_size, 1), token_array(tokens)
    blocks = len(array) // size
    if extra_keys is not None and len(extra_keys) != blocks:
        raise InvalidInputError("extra_keys", len(extra_keys), f"an entry for each of {blocks} full blocks")
    words = [key_words(key_digests(keys)) for keys in extra_keys] if extra_keys is not None else None
    local = domain_seed(seed, model=model, lora=lora, salt=salt, tenant=tenant)
    return extend_chain(None, array, size, local, seed, words)


def domain_of(event: BlockStored) -> Domain:
    """Which adapter, salt and other extra keys does an event name?

    The adapter's name is taken out of the extra keys, where vLLM repeats it; an adapter known by number only is named
    after it. The salt is SGLang's `cache_salt`, else the last plain string on the first block of a prompt: an older
    vLLM that writes identifiers as plain strings is taken at its word only behind the first block.

    >>> keys = (("sql", ("cat.png", 3), "mine"), ("sql", ("cat.png", -13)))
    >>> domain_of(BlockStored(block_hashes=(1, 2), lora_name="sql", extra_keys=keys))
    Domain(lora='sql', salt='mine', keys=(('cat.png',), ('cat.png',)))
    """
    lora = event.lora_name or ("" if event.lora_id is None else f"lora_id {event.lora_id}")
    salt = event.cache_salt or ""
    if event.extra_keys is None or not any(event.extra_keys):
        return Domain(lora, salt, (None,) * len(event.block_hashes))
    keys = [list(block or ()) for block in event.extra_keys]
    for block in keys:
        if event.lora_name and event.lora_name in block:
            block.remove(event.lora_name)
    if event.parent_block_hash is None and not salt:
        plain = [i for i, key in enumerate(keys[0]) if isinstance(key, str) and key]
        if plain:
            salt = str(keys[0].pop(plain[-1]))
    return Domain(lora, salt, tuple(identifiers(block) for block in keys))


def identifiers(keys: Sequence[ExtraKey] | None) -> tuple[ExtraKey, ...] | None:
    """Which of these count, and how? Of (identifier, offset) the identifier does, anything else does as it is."""
    return tuple(key[0] if _is_pair(key) else key for key in keys) if keys else None  # type: ignore[index]


def realign(
    keys: Sequence[tuple[Key, ...] | None], size: int, own: int, blocks: int, skip: int = 0
) -> list[tuple[Key, ...] | None]:
    """Which extra keys has each block of `own` tokens, where blocks of `size` tokens have these?

    `skip` tokens of the first own block come before the first of them. An own block has the keys of all blocks that it
    touches, in order, each once.

    >>> realign([("a",), ("b",), None, ("b",)], size=16, own=32, blocks=2)
    [('a', 'b'), ('b',)]
    >>> realign([("a",), None], size=32, own=16, blocks=4)
    [('a',), ('a',), None, None]
    """
    found: list[tuple[Key, ...] | None] = []
    for block in range(blocks):
        first, behind = block * own - skip, (block + 1) * own - skip
        touched = keys[max(first, 0) // size : (behind - 1) // size + 1]
        found.append(tuple(dict.fromkeys(key for each in touched for key in each or ())) or None)
    return found


def key_digests(keys: Sequence[ExtraKey] | None) -> tuple[int, ...] | None:
    """Which uint64 stands for each of these keys? Each once, in order; None where there are none."""
    if not keys:
        return None
    return tuple(dict.fromkeys(xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(key)) for key in keys))


def key_words(digests: tuple[int, ...] | None) -> TokenArray | None:
    """As which tokens are digests hashed? ``uint32[2 K]``, or None where there are none."""
    return np.array(digests, dtype="<u8").view("<u4").astype(np.uint32) if digests else None


def extend_chain(
    parent: int | None,
    tokens: TokenArray,
    size: int,
    local_seed: int,
    seed: int = SEED,
    words: Sequence[TokenArray | None] | None = None,
) -> HashArray:
    """What are the chained hashes of full blocks behind `parent`, or of a prompt's first for None?

    `local_seed` is that of the domain (`domain_seed`), `words` the extra tokens of each block (`key_words`).

    >>> prompt = np.arange(8, dtype=np.uint32)
    >>> extend_chain(int(extend_chain(None, prompt[:4], 4, SEED)[0]), prompt[4:], 4, SEED).tolist()
    [9510318385840434533]
    """
    local, chain, hashed = np.uint64(local_seed), np.uint64(seed), _chain_blocks()
    if words is None or not any(word is not None for word in words):
        return hashed(tokens, size, local, chain, np.uint64(parent or 0), parent is None)
    out = np.empty(len(tokens) // size, dtype=np.uint64)
    begin, end = 0, len(out)
    while begin < end:
        word = words[begin]
        if word is None:
            behind = next((i for i in range(begin, end) if words[i] is not None), end)
            piece, step = tokens[begin * size : behind * size], size
        else:
            behind = begin + 1
            piece = np.concatenate((tokens[begin * size : behind * size], word))
            step = len(piece)
        before = np.uint64(parent or 0) if begin == 0 else out[begin - 1]
        out[begin:behind] = hashed(piece, step, local, chain, before, parent is None and begin == 0)
        begin = behind
    return out


@cache
def _chain_blocks() -> Callable[[TokenArray, int, np.uint64, np.uint64, np.uint64, bool], HashArray]:
    """Compile the kernel at the first call; read-only tokens go through the same code."""
    return entry(chain_blocks, np.empty(0, dtype=np.uint32), 1, np.uint64(0), np.uint64(0), np.uint64(0), True)


def _is_pair(key: ExtraKey) -> bool:
    return isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and type(key[1]) is int
