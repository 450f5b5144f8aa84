"""Do extra keys keep apart what must not be shared, the same way for events and for requests?"""

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.extra_keys import Feature, block_extra_keys, domain_of, hash_blocks, identifiers, realign
from inferencesched.prefix.kv_records import BlockStored
from tests import naive_events

KEYS = st.sampled_from(["a", "b", b"a", 1, True, None, 1.0, ("a", "b"), (1, 2)])
BLOCK_KEYS = st.none() | st.lists(KEYS, max_size=3).map(tuple)


def counting(n):
    return np.arange(n, dtype=np.uint32)


def event(*keys, **fields):
    return BlockStored(block_hashes=tuple(range(len(keys))), extra_keys=keys, **fields)


@given(
    blocks=st.integers(0, 4),
    size=st.sampled_from([1, 3, 16, 61]),
    names=st.fixed_dictionaries({}, optional=dict.fromkeys(("model", "lora", "salt", "tenant"), st.text(max_size=4))),
)
def test_without_extra_keys_it_is_block_hashes(blocks, size, names):
    tokens = counting(blocks * size + size // 2)
    plain = isched.block_hashes(tokens, size, **names).tolist()
    assert hash_blocks(tokens, size, **names).tolist() == plain
    assert hash_blocks(tokens, size, [None, ()][:1] * blocks, **names).tolist() == plain


@given(keys=st.lists(BLOCK_KEYS, max_size=6), size=st.sampled_from([1, 4, 16, 60, 64]))
def test_extra_keys_are_hashed_behind_the_tokens_of_their_blocks(keys, size):
    tokens = counting(len(keys) * size)
    spread = tuple((msgspec.msgpack.encode(key) for key in each or ()) for each in keys)
    chain = []
    for i, each in enumerate(spread):
        raw = tokens[i * size : (i + 1) * size].astype("<u4").tobytes()
        for packed in dict.fromkeys(each):
            raw += xxhash.xxh3_64(packed).intdigest().to_bytes(8, "little")
        local = xxhash.xxh3_64(raw, 1337).intdigest()
        both = b"".join(value.to_bytes(8, "little") for value in (*chain[-1:], local))
        chain.append(xxhash.xxh3_64(both, 1337).intdigest() if chain else local)
    assert hash_blocks(tokens, size, keys).tolist() == chain


@given(one=st.lists(KEYS, max_size=4, unique_by=repr), other=st.lists(KEYS, max_size=4, unique_by=repr))
def test_different_extra_keys_never_share(one, other):
    hashes = [hash_blocks(counting(4), 4, [tuple(keys)]).tolist() for keys in (one, other)]
    assert (hashes[0] == hashes[1]) == ([repr(key) for key in one] == [repr(key) for key in other])


def test_the_rest_of_the_chain_is_another_one_too():
    plain, cat = hash_blocks(counting(16), 4), hash_blocks(counting(16), 4, [None, ("cat",), None, None])
    assert (plain == cat).tolist() == [True, False, False, False]


def test_an_entry_a_block_is_asked_for():
    with pytest.raises(
        isched.InvalidInputError, match="extra_keys: got 1, allowed: an entry for each of 2 full blocks"
    ):
        hash_blocks(counting(9), 4, [None])
    with pytest.raises(isched.InvalidInputError, match="block_size: got 0"):
        hash_blocks(counting(9), 0)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ([], None),
        ([Feature("a", 0, 0)], None),
        ([Feature("a", 0, 1)], [("a",), None, None]),
        ([Feature("a", 15, 2)], [("a",), ("a",), None]),
        ([Feature("a", 3, 4), Feature("b", 8, 20)], [("a", "b"), ("b",), None]),
        ([Feature("a", 47, 100)], [None, None, ("a",)]),
        ([Feature("a", 48, 100)], None),
    ],
)
def test_which_blocks_a_picture_touches(features, expected):
    assert block_extra_keys(features, 16, 50) == expected


@pytest.mark.parametrize(
    ("said", "domain"),
    [
        (event(None), ("", "", (None,))),
        (event(("s",), None), ("", "s", (None, None))),
        (event(("s",), parent_block_hash=5), ("", "", (("s",),))),
        (event(("sql",), ("sql",), lora_name="sql"), ("sql", "", (None, None))),
        (event(("sql", "s"), lora_name="sql"), ("sql", "s", (None,))),
        (event(("sql", "sql"), lora_name="sql"), ("sql", "sql", (None,))),
        (event(("sql",), lora_name=""), ("", "sql", (None,))),
        (event((("cat", 3), "s", b"embedding"), (("cat", -13),)), ("", "s", (("cat", b"embedding"), ("cat",)))),
        (event((("cat", 3),)), ("", "", (("cat",),))),
        (event(("s",), cache_salt="t"), ("", "t", (("s",),))),
        (event(None, lora_id=4), ("lora_id 4", "", (None,))),
        (event(None, lora_id=4, lora_name="sql"), ("sql", "", (None,))),
        (event((7, "")), ("", "", ((7, ""),))),
    ],
)
def test_what_holds_for_the_prompt_and_what_for_its_blocks(said, domain):
    assert domain_of(said) == domain


def test_of_pairs_the_identifier_counts():
    assert identifiers((("cat", 3), ("cat", "x"), (1, 2), "s")) == ("cat", ("cat", "x"), (1, 2), "s")
    assert identifiers(None) is None and identifiers(()) is None


@given(
    keys=st.lists(st.none() | st.lists(st.sampled_from("abc"), max_size=2).map(tuple), min_size=1, max_size=8),
    size=st.integers(1, 6),
    own=st.integers(1, 6),
    data=st.data(),
)
def test_realign_token_by_token(keys, size, own, data):
    skip = data.draw(st.integers(0, own - 1))
    every = [()] * skip + [each or () for each in keys for _ in range(size)]
    blocks = len(every) // own
    expected = [tuple(dict.fromkeys(k for each in every[i * own : (i + 1) * own] for k in each)) for i in range(blocks)]
    assert realign(keys, size, own, blocks, skip) == [each or None for each in expected]


def test_the_twin_hashes_as_we_do():
    prompt = naive_events.Known(
        (), (), tuple(range(12)), ((),) * 4 + (("cat",),) * 4 + (("cat", "dog"),) * 4, "sql", "s"
    )
    ours = hash_blocks(counting(12), 4, [None, ("cat",), ("cat", "dog")], lora="sql", salt="s")
    assert ours.tolist() == naive_events.own_hashes(prompt, 4)
