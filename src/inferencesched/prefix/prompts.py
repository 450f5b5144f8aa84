"""What are the blocks of a request that has several prompts, or a last block that is not full?

An engine caches full blocks only, and `block_hashes` names only those. A guess of what was sent where may go further: to
llm-d's approximate index a prompt's rest is a block like any other, and each prompt of a request is by itself
(llm-d-router, pkg/epp/framework/plugins/requestcontrol/dataproducer/prefixhash/hashing.go). The cutting and the counts
are llm-d's; the hashes are ours, and a full block has the name that `block_hashes` gives it. Under which seed is the
caller's: an `ApproximatePrefixProducer` has a secret one of its own, and takes chains of any other as they come, as long
as it is always the same.
"""

from collections.abc import Sequence

import numpy as np

from inferencesched._typing import DepthArray, HashArray, TokenArray
from inferencesched.errors import whole_number
from inferencesched.prefix.extra_keys import extend_chain
from inferencesched.prefix.hashing import SEED, block_hashes, domain_seed, token_array
from inferencesched.prefix.index import PrefixIndex


def split_blocks(tokens: TokenArray, block_size: int) -> list[TokenArray]:
    """Which tokens does each block cover, the last one that is not full among them? Views of `tokens`.

    >>> [block.tolist() for block in split_blocks(np.arange(5, dtype=np.uint32), 2)]
    [[0, 1], [2, 3], [4]]
    """
    array, size = token_array(tokens), whole_number("block_size", block_size, 1)
    return [array[begin : begin + size] for begin in range(0, len(array), size)]


def whole_prompt_hashes(
    tokens: TokenArray,
    block_size: int,
    *,
    max_blocks: int | None = None,
    seed: int = SEED,
    model: str = "",
    lora: str = "",
    salt: str = "",
    tenant: str = "",
) -> HashArray:
    """What are the chained hashes of a prompt's blocks, with one more for a last block that is not full?

    ``uint32[T] -> uint64[B]``, B at most `max_blocks`. Full blocks have the hashes of `block_hashes`; the rest is hashed
    as a block of fewer tokens. Arguments, cost and errors as there.

    >>> tokens = np.arange(10, dtype=np.uint32)
    >>> len(whole_prompt_hashes(tokens, 4)), len(whole_prompt_hashes(tokens, 4, max_blocks=1))
    (3, 1)
    >>> whole_prompt_hashes(tokens, 4)[:2].tolist() == block_hashes(tokens, 4).tolist()
    True
    """
    array, size = token_array(tokens), whole_number("block_size", block_size, 1)
    if max_blocks is not None:
        array = array[: whole_number("max_blocks", max_blocks) * size]
    hashes = block_hashes(array, size, seed=seed, model=model, lora=lora, salt=salt, tenant=tenant)
    rest = array[len(hashes) * size :]
    if not len(rest):
        return hashes
    local = domain_seed(seed, model=model, lora=lora, salt=salt, tenant=tenant)
    parent = int(hashes[-1]) if len(hashes) else None
    return np.concatenate((hashes, extend_chain(parent, rest, len(rest), local, seed)))


def hash_prompts(
    prompts: Sequence[TokenArray],
    block_size: int,
    *,
    max_blocks: int | None = None,
    seed: int = SEED,
    model: str = "",
    lora: str = "",
    salt: str = "",
    tenant: str = "",
) -> list[HashArray]:
    """What are the chained hashes of each of a request's prompts? One array a prompt, in order, without the empty ones.

    Each prompt is a chain of its own, as `whole_prompt_hashes` makes it: the second does not follow the first, but
    stands where it would stand alone. `max_blocks` caps each.

    >>> prompts = [np.array(each, dtype=np.uint32) for each in ([1, 2, 3], [], [4, 5])]
    >>> [len(hashes) for hashes in hash_prompts(prompts, 2)]
    [2, 1]
    """
    chains = (
        whole_prompt_hashes(
            each, block_size, max_blocks=max_blocks, seed=seed, model=model, lora=lora, salt=salt, tenant=tenant
        )
        for each in prompts
    )
    return [hashes for hashes in chains if len(hashes)]


def match_prompts(index: PrefixIndex, chains: Sequence[HashArray]) -> DepthArray:
    """How many blocks of all these prompts together does each endpoint hold? ``int32[E]``.

    The sum over prompts of the blocks at the beginning of each that the endpoint holds without a gap.

    >>> index = PrefixIndex(endpoints=2)
    >>> first, second = hash_prompts([np.array([1, 2], dtype=np.uint32), np.array([3], dtype=np.uint32)], 1)
    >>> index.insert(0, first); index.insert(1, second)
    >>> match_prompts(index, [first, second])
    array([2, 1], dtype=int32)
    """
    depths: DepthArray = index.match_many(list(chains)).sum(axis=0, dtype=np.int32)
    return depths
