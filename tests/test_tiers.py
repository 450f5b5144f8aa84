"""Is a prefix that lies in several places worth what it should be?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import inferencesched as isched
from inferencesched.prefix.kv_records import BlockStored, EventBatch, Tier
from inferencesched.prefix.tiers import FLAGS, SPECULATIVE, WEIGHTS, tier_match
from tests import naive_prompts

WEIGHT = st.sampled_from([0.0, 0.25, 0.8, 1.0, 2.0])


def flags(*rows):
    return np.array(rows, dtype=np.uint64)


def test_the_best_place_of_a_block_counts():
    match = tier_match([flags([1, 1, 3, 0, 1], [2, 2, 0, 0, 0], [0, 1, 1, 1, 1])])
    assert match.total == 5
    assert match.cached.tolist() == [3, 2, 0]
    assert match.weighted.tolist() == pytest.approx([3.0, 1.6, 0.0])
    assert [match.tiers(i) for i in range(3)] == [{Tier.DEVICE: 3}, {Tier.HOST: 2}, {}]


def test_what_was_only_sent_counts_in_full_and_by_itself():
    match = tier_match([flags([SPECULATIVE | Tier.HOST, SPECULATIVE, 0])])
    assert match.weighted.tolist() == [2.0] and match.tiers(0) == {Tier.HOST: 1, SPECULATIVE: 2}


def test_one_block_in_slower_memory_is_not_nothing():
    assert tier_match([flags([Tier.HOST])]).weighted.tolist() == [WEIGHTS[Tier.HOST]]


@given(st.data(), st.integers(1, 4), st.dictionaries(st.sampled_from(FLAGS), WEIGHT), WEIGHT)
def test_against_a_walk(data, endpoints, weights, unnamed):
    lengths = data.draw(st.lists(st.integers(0, 6), max_size=3))
    prompts = [data.draw(arrays(np.uint64, (endpoints, n), elements=st.integers(0, 31))) for n in lengths]
    match = tier_match(prompts, weights, unnamed=unnamed)
    assert match.total == sum(lengths)
    for i in range(endpoints if prompts else 0):
        rows = [[int(each) for each in prompt[i]] for prompt in prompts]
        assert match.cached[i] == sum(naive_prompts.prefix(row, 31) for row in rows)
        assert match.by_tier[:, i].tolist() == [sum(naive_prompts.prefix(row, int(f)) for row in rows) for f in FLAGS]
        assert match.weighted[i] == pytest.approx(sum(naive_prompts.weighted(row, weights, unnamed) for row in rows))


def test_no_prompt_matches_nobody():
    match = tier_match([])
    assert match.total == 0 and match.cached.shape == (0,) and match.by_tier.shape == (5, 0)


def test_with_what_an_engine_said():
    index = isched.PrefixIndex(1)
    applier = isched.KVEventApplier(index, block_size=2)
    prompt = np.arange(6, dtype=np.uint32)
    applier.apply(0, EventBatch(events=(BlockStored(block_hashes=(1, 2, 3), token_ids=tuple(prompt.tolist())),)))
    applier.apply(0, EventBatch(events=(BlockStored(block_hashes=(1,), medium="CPU"),)))
    hashes = isched.block_hashes(prompt, 2)
    match = tier_match([applier.tiers_of(0, hashes)[None, :]])
    assert match.cached.tolist() == index.match(hashes).tolist() == [3]
    assert match.tiers(0) == applier.match_tiers(0, hashes) == {Tier.DEVICE: 3, Tier.HOST: 1}


@pytest.mark.parametrize(
    ("prompts", "weights", "unnamed", "words"),
    [
        ([flags([1]), flags([1], [1])], {}, 1.0, r"flags\[1\]: got 'uint64 of shape \(2, 1\)'"),
        ([np.ones((1, 1))], {}, 1.0, r"flags\[0\]: got 'float64 of shape"),
        ([flags([32])], {}, 1.0, r"flags\[0\]: got 32"),
        ([], {Tier.HOST: -0.5}, 1.0, "weights: got -0.5"),
        ([], {Tier.HOST: float("nan")}, 1.0, "weights: got nan"),
        ([], {3: 1.0}, 1.0, "weights: got 3"),
        ([], {}, float("inf"), "unnamed: got inf"),
    ],
)
def test_what_does_not_fit_is_refused(prompts, weights, unnamed, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        tier_match(prompts, weights, unnamed=unnamed)
