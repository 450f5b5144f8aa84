"""Do pictures and sounds touch the blocks that they should, under the keys that an engine would publish?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.extra_keys import Feature, block_extra_keys, domain_of, hash_blocks
from inferencesched.prefix.kv_records import BlockStored, EventBatch
from inferencesched.prefix.multimodal import features_of, touched_blocks, touched_within, vllm_extra_keys
from tests import naive_prompts

FEATURES = st.lists(
    st.builds(Feature, st.sampled_from(["cat", "dog", "owl"]), st.integers(0, 40), st.integers(0, 20)),
    max_size=4,
    unique_by=lambda feature: feature.offset,
)
SIZES = st.integers(1, 9)


def test_features_come_in_the_order_of_the_prompt():
    places = {"image": [{"offset": 9, "length": 2}], "audio": [{"offset": 1, "length": 3}]}
    assert features_of({"image": ["a"], "audio": ["b"]}, places) == [Feature("b", 1, 3), Feature("a", 9, 2)]
    assert features_of(None, None) == []


def test_every_feature_has_a_place():
    with pytest.raises(
        isched.InvalidInputError, match=r"placeholders\['image'\]: got 0, allowed: a place for each of 1"
    ):
        features_of({"image": ["a"]}, {})


@given(features=FEATURES, size=SIZES)
def test_blocks_that_are_touched(features, size):
    touched = touched_blocks(features, size)
    assert touched.dtype == np.intp and touched.tolist() == naive_prompts.touched_blocks(features, size)
    for depth in range(60 // size + 3):
        assert touched_within(touched, depth) == sum(block < depth for block in touched.tolist())


def test_no_block_size_is_an_error():
    for call in (lambda: touched_blocks([], 0), lambda: vllm_extra_keys([], 0, 9)):
        with pytest.raises(isched.InvalidInputError, match="block_size: got 0"):
            call()


@given(
    features=FEATURES,
    size=SIZES,
    tokens=st.integers(0, 60),
    lora=st.sampled_from(["", "sql"]),
    salt=st.sampled_from(["", "mine"]),
)
def test_what_an_engine_lists_is_read_back(features, size, tokens, lora, salt):
    """The keys of an event name the same domain and the same pictures as the request's own."""
    keys = vllm_extra_keys(features, size, tokens, lora=lora, salt=salt)
    assert keys == naive_prompts.vllm_extra_keys(features, size, tokens, lora, salt)
    names = tuple(range(tokens // size))
    read = domain_of(BlockStored(block_hashes=names, extra_keys=None if keys is None else tuple(keys), lora_name=lora))
    ours = block_extra_keys(sorted(features, key=lambda each: each.offset), size, tokens) or [None] * len(names)
    assert read.lora == lora and read.salt == (salt if names else "")
    assert list(read.keys) == ours


def test_an_engine_that_lists_them_is_matched_by_the_request():
    features, prompt = [Feature("cat", 3, 6), Feature("dog", 10, 2)], np.arange(16, dtype=np.uint32)
    index = isched.PrefixIndex(1)
    applier = isched.KVEventApplier(index, block_size=4)
    keys = vllm_extra_keys(features, 4, 16, salt="mine")
    stored = BlockStored(block_hashes=(1, 2, 3, 4), token_ids=tuple(prompt.tolist()), extra_keys=tuple(keys))
    applier.apply(0, EventBatch(events=(stored,)))
    mine = hash_blocks(prompt, 4, block_extra_keys(features, 4, 16), salt="mine")
    other = hash_blocks(prompt, 4, block_extra_keys(features[:1], 4, 16), salt="mine")
    assert index.match(mine).tolist() == [4] and index.match(other).tolist() == [2]
    touched = touched_blocks(features, 4)
    assert touched.tolist() == [0, 1, 2] and touched_within(touched, 2) == 2
