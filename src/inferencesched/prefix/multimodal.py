"""Which blocks of a prompt hold pictures or sounds, and under which extra keys does an engine store them?

A picture stands in a prompt as a run of placeholder tokens; a `Feature` says which picture, and where. From there: the
blocks that such runs touch, how many of those an endpoint holds, and the list of extra keys that vLLM would publish for
the prompt (vllm/v1/core/kv_cache_utils.py, `generate_block_hash_extra_keys`), which `domain_of` reads back.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray, IndexArray
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.prefix.extra_keys import Feature
from inferencesched.prefix.kv_records import ExtraKey


def features_of(
    hashes: Mapping[str, Sequence[str]] | None, placeholders: Mapping[str, Sequence[Mapping[str, Any]]] | None
) -> list[Feature]:
    """Which features has a prompt, as a tokenizer's answer tells it? In the order of the prompt.

    `hashes` are identifiers by modality, `placeholders` the runs that stand for them, by modality and in the same order,
    each with ``offset`` and ``length``: ``mm_hashes`` and ``mm_placeholders`` of vLLM's render endpoint.

    Errors: `InvalidInputError` where a modality has not as many of the one as of the other.

    >>> features_of({"image": ["cat", "dog"]}, {"image": [{"offset": 40, "length": 8}, {"offset": 2, "length": 8}]})
    [Feature(identifier='dog', offset=2, length=8), Feature(identifier='cat', offset=40, length=8)]
    """
    found = []
    for modality, names in (hashes or {}).items():
        places = (placeholders or {}).get(modality, ())
        if len(names) != len(places):
            raise InvalidInputError(
                f"placeholders[{modality!r}]", len(places), f"a place for each of {len(names)} hashes"
            )
        found += [Feature(n, int(p["offset"]), int(p["length"])) for n, p in zip(names, places, strict=True)]
    return sorted(found, key=lambda feature: feature.offset)


def touched_blocks(features: Sequence[Feature], block_size: int) -> IndexArray:
    """Which blocks of a prompt do pictures or sounds touch? ``intp[K]``, ascending, each once.

    A block that is not full counts as well. A feature without tokens touches nothing.

    >>> touched_blocks([Feature("cat", offset=8, length=40), Feature("dog", offset=60, length=10)], 16)
    array([0, 1, 2, 3, 4])
    """
    size = whole_number("block_size", block_size, 1)
    runs = [
        np.arange(max(each.offset, 0) // size, (each.offset + each.length - 1) // size + 1, dtype=np.intp)
        for each in features
        if each.length > 0
    ]
    return np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.intp)


def touched_within(touched: IndexArray, depth: int) -> int:
    """How many of these blocks are among a prompt's first `depth`? `touched` as `touched_blocks` gives them.

    >>> touched_within(np.array([0, 5, 10]), 6)
    2
    """
    return int(np.searchsorted(touched, depth, side="left"))


class MediaHit(NamedTuple):
    """Does anybody hold a block of the prompt's pictures or sounds, and does anybody tell?"""

    hit: bool
    tracked: bool


def media_hit(blocks: FloatArray) -> MediaHit:
    """Was there a match of pictures or sounds, for who counts such hits?

    `blocks`, ``float64[E]``, are how many of the blocks that they touch each endpoint holds (`touched_within`), NaN where
    nobody keeps track.

    >>> media_hit(np.array([np.nan, 0.0]))
    MediaHit(hit=False, tracked=True)
    """
    return MediaHit(bool((blocks > 0).any()), bool((~np.isnan(blocks)).any()))


def vllm_extra_keys(
    features: Sequence[Feature], block_size: int, tokens: int, *, lora: str = "", salt: str = ""
) -> list[tuple[ExtraKey, ...] | None] | None:
    """Which extra keys would vLLM publish for the full blocks of this prompt? None where it has none.

    For each block: the adapter's name, then (identifier, offset) of what the block touches in the prompt's order, the
    offset counted from the block's begin and below 0 where it began before, then on the first block the salt. For
    whoever makes up an engine's events; `domain_of` takes such a list apart.

    >>> vllm_extra_keys([Feature("cat", offset=12, length=8)], 16, 48, salt="mine")
    [(('cat', 12), 'mine'), (('cat', -4),), None]
    """
    size = whole_number("block_size", block_size, 1)
    keys: list[list[ExtraKey]] = [[lora] if lora else [] for _ in range(whole_number("tokens", tokens) // size)]
    for feature in sorted(features, key=lambda each: each.offset):
        for block in touched_blocks([feature], size).tolist():
            if block < len(keys):
                keys[block].append((feature.identifier, feature.offset - block * size))
    if salt and keys:
        keys[0].append(salt)
    return [tuple(each) or None for each in keys] if any(keys) else None
