"""Are several prompts, and a prompt's rest, hashed and matched as they should be?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.hashing import domain_seed
from inferencesched.prefix.prompts import hash_prompts, match_prompts, split_blocks, whole_prompt_hashes
from tests import naive_prompts

TOKENS = st.lists(st.integers(0, 7), max_size=20).map(lambda ids: np.array(ids, dtype=np.uint32))
NAMES = st.fixed_dictionaries({}, optional=dict.fromkeys(("model", "lora", "salt", "tenant"), st.text(max_size=3)))


def test_blocks_cover_all_tokens_and_copy_none():
    tokens = np.arange(10, dtype=np.uint32)
    blocks = split_blocks(tokens, 4)
    assert [block.tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(np.shares_memory(block, tokens) for block in blocks)
    assert split_blocks(np.empty(0, dtype=np.uint32), 4) == []


@given(tokens=TOKENS, size=st.integers(1, 6), most=st.none() | st.integers(0, 6), names=NAMES)
def test_the_rest_is_a_block_too(tokens, size, most, names):
    local = domain_seed(**names)
    naive = naive_prompts.whole_prompt_hashes(tokens.tolist(), size, most, local_seed=local)
    hashes = whole_prompt_hashes(tokens, size, max_blocks=most, **names)
    assert hashes.dtype == np.uint64 and hashes.tolist() == naive
    full = isched.block_hashes(tokens, size, **names)[:most]
    assert hashes[: len(full)].tolist() == full.tolist()
    assert len(hashes) == min(-(-len(tokens) // size), len(tokens) if most is None else most)


def test_a_rest_is_not_the_block_that_it_becomes():
    short, full = (whole_prompt_hashes(np.arange(n, dtype=np.uint32), 4) for n in (6, 8))
    assert short[0] == full[0] and short[1] != full[1]


@given(prompts=st.lists(TOKENS, max_size=4), size=st.integers(1, 4), names=NAMES)
def test_each_prompt_is_by_itself(prompts, size, names):
    alone = [whole_prompt_hashes(each, size, **names).tolist() for each in prompts]
    assert [hashes.tolist() for hashes in hash_prompts(prompts, size, **names)] == [each for each in alone if each]


@given(
    prompts=st.lists(TOKENS, max_size=4),
    sent=st.lists(st.tuples(st.integers(0, 2), TOKENS), max_size=8),
    size=st.integers(1, 3),
)
def test_matches_add_up(prompts, sent, size):
    index, kept = isched.PrefixIndex(3), []
    for slot, tokens in sent:
        for hashes in hash_prompts([tokens], size):
            index.insert(slot, hashes)
            kept.append((slot, hashes.tolist()))
    chains = hash_prompts(prompts, size)
    naive = [
        sum(
            max(
                (i + 1 for i in range(len(chain)) for s, held in kept if s == slot and held[: i + 1] == chain[: i + 1]),
                default=0,
            )
            for chain in (each.tolist() for each in chains)
        )
        for slot in range(3)
    ]
    depths = match_prompts(index, chains)
    assert depths.dtype == np.int32 and depths.tolist() == naive


@pytest.mark.parametrize("call", [lambda: split_blocks(np.arange(3), 0), lambda: whole_prompt_hashes(np.arange(3), 0)])
def test_a_block_has_at_least_a_token(call):
    with pytest.raises(isched.InvalidInputError, match="block_size: got 0, allowed: an integer of at least 1"):
        call()


def test_a_cap_is_not_negative():
    with pytest.raises(isched.InvalidInputError, match="max_blocks: got -1"):
        whole_prompt_hashes(np.arange(3), 1, max_blocks=-1)
