"""Are blocks hashed as the field hashes them, bit for bit?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.prefix.hashing import HashChain, domain_seed
from tests import naive_prefix

#: Tokens a block -> the hash of the block of tokens 0, 1, 2, ..., as ai-dynamo-runtime 1.6.1 answers it
#: (`dynamo._core.compute_block_hash_for_seq`): every way that xxh3 takes, and both sides of each border.
DYNAMO = {
    1: 16451421758532862321,
    2: 10918435022357402928,
    3: 11646242937812223497,
    4: 9143094415614847814,
    5: 14562210786876287112,
    8: 12126819726423666500,
    9: 10588279368122756375,
    16: 15310707395893867146,
    17: 11423441316381344367,
    25: 6239922949530811559,
    32: 5756925433886871916,
    33: 2081791232692432502,
    48: 17528049439166767664,
    60: 13886301141173099695,
    61: 1924516252287165151,
    64: 3480597578098033343,
    128: 9509643624113304476,
    256: 13509048708924160886,
    257: 1747670400354897569,
    512: 9967019188267418660,
    1000: 6671175369561572227,
}

#: Names of the domain -> the hash of tokens 0, 1, 2, 3, from the same function.
DYNAMO_DOMAINS = (
    ({"lora": "sql-adapter"}, 14821616335382041162),
    ({"salt": "mine"}, 9755577314066337091),
    ({"lora": "sql-adapter", "salt": "mine"}, 11433495872135116141),
)

NAMES = st.text(max_size=8)
DOMAIN = st.fixed_dictionaries({}, optional=dict.fromkeys(("model", "lora", "salt", "tenant"), NAMES))


def counting(tokens):
    return np.arange(tokens, dtype=np.uint32)


@pytest.mark.parametrize("size", DYNAMO)
def test_a_block_is_hashed_as_dynamo_does(size):
    assert isched.block_hashes(counting(size), size).tolist() == [DYNAMO[size]]


@pytest.mark.parametrize(("names", "expected"), DYNAMO_DOMAINS)
def test_a_domain_is_told_apart_as_dynamo_does(names, expected):
    assert isched.block_hashes(counting(4), 4, **names).tolist() == [expected]


def test_a_chain_by_hand():
    """Blocks 0..3 and 4..7 alone are 9143094415614847814 and 12124091508212882195 to Dynamo; then both are hashed."""
    assert isched.block_hashes(counting(8), 4).tolist() == [9143094415614847814, 9510318385840434533]


@given(
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=400),
    size=st.integers(1, 130),
    seed=st.integers(0, 2**64 - 1) | st.just(1337),
    names=DOMAIN,
)
def test_the_chain_of_any_prompt(tokens, size, seed, names):
    got = isched.block_hashes(np.array(tokens, dtype=np.uint32), size, seed=seed, **names)
    assert got.dtype == np.uint64
    assert got.tolist() == naive_prefix.block_hashes(tokens, size, seed=seed, **names)


@given(size=st.integers(200, 1500), seed=st.integers(0, 2**64 - 1), start=st.integers(0, 2**31))
def test_long_blocks_go_through_many_stripes(size, seed, start):
    tokens = (np.arange(2 * size + 3, dtype=np.uint64) * 2654435761 + start).astype(np.uint32)
    assert isched.block_hashes(tokens, size, seed=seed).tolist() == naive_prefix.block_hashes(
        tokens.tolist(), size, seed=seed
    )


@pytest.mark.parametrize("size", range(1, 70))
def test_every_small_block_size(size):
    tokens = (np.arange(3 * size, dtype=np.uint64) * 2654435761).astype(np.uint32)
    assert isched.block_hashes(tokens, size).tolist() == naive_prefix.block_hashes(tokens.tolist(), size)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 83])
def test_a_block_that_is_not_full_has_no_hash(count):
    assert len(isched.block_hashes(counting(count), 16)) == count // 16


def test_a_prefix_has_the_same_first_hashes():
    long, short = isched.block_hashes(counting(100), 4), isched.block_hashes(counting(60), 4)
    assert long[:15].tolist() == short.tolist()


def test_domains_share_nothing():
    names = ({}, *({kind: name} for kind in ("model", "lora", "salt", "tenant") for name in ("a", "b")))
    chains = [isched.block_hashes(counting(64), 16, **each).tolist() for each in names]
    assert len({block for chain in chains for block in chain}) == 4 * len(names)


def test_an_empty_name_adds_nothing():
    assert domain_seed(model="", lora="", salt="", tenant="") == 1337
    assert domain_seed(2**64 - 1, salt="s") == (domain_seed(0, salt="s") - 1) % 2**64


@pytest.mark.parametrize(
    "tokens",
    [
        list(range(20)),
        np.arange(20),
        np.arange(20, dtype=np.uint64),
        np.arange(20, dtype=">u4"),
        np.arange(40, dtype=np.uint32)[::2] // np.uint32(2),
    ],
    ids=["list", "int64", "uint64", "big-endian", "strided"],
)
def test_other_integers_are_coerced(tokens):
    assert isched.block_hashes(tokens, 4).tolist() == isched.block_hashes(counting(20), 4).tolist()


def test_read_only_tokens_are_read():
    tokens = counting(20)
    tokens.setflags(write=False)
    assert isched.block_hashes(tokens, 4).tolist() == isched.block_hashes(counting(20), 4).tolist()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, -1], "tokens: got -1"),
        ([1, 2**32], "tokens: got 4294967296"),
        (np.zeros(3), "tokens: got 'float64'"),
        (np.array([True]), "tokens: got 'bool'"),
        (np.zeros((2, 2), dtype=np.uint32), "tokens: got '2 dimensions'"),
        (np.uint32(1), "tokens: got '0 dimensions'"),
    ],
)
def test_what_is_no_token_id_is_refused(tokens, message):
    with pytest.raises(isched.InvalidInputError, match=message):
        isched.block_hashes(tokens, 4)


@pytest.mark.parametrize("size", [0, -16])
def test_a_block_has_at_least_one_token(size):
    with pytest.raises(isched.InvalidInputError, match=f"block_size: got {size}, allowed: an integer of at least 1"):
        isched.block_hashes(counting(4), size)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_has_64_bits(seed):
    with pytest.raises(isched.InvalidInputError, match=f"seed: got {seed}"):
        isched.block_hashes(counting(4), 4, seed=seed)


@pytest.mark.parametrize("size", [16, 64, 80])
def test_tokens_may_begin_anywhere_in_memory(size):
    """Words of 64 bits are read from addresses that are multiples of four only."""
    tokens = counting(4 * size + 3)
    assert isched.block_hashes(tokens[1:], size).tolist() == isched.block_hashes(tokens[1:].copy(), size).tolist()


# --- a conversation ----------------------------------------------------------------------------------------------


@given(
    turns=st.lists(st.integers(0, 90), max_size=8),
    size=st.sampled_from([1, 4, 16, 33, 64]),
    seed=st.sampled_from([1337, 0, 2**64 - 1]),
    names=DOMAIN,
)
def test_a_chain_is_the_hashes_of_all_turns_together(turns, size, seed, names):
    tokens = (np.arange(sum(turns), dtype=np.uint64) * 2654435761).astype(np.uint32)
    chain, end, seen = HashChain(size, seed=seed, **names), 0, []
    for turn in turns:
        got = chain.extend(tokens[end : end + turn])
        end += turn
        seen.append((got, isched.block_hashes(tokens[:end], size, seed=seed, **names)))
        assert chain.tokens == end and chain.hashes.tolist() == got.tolist()
    for got, expected in seen:
        assert got.tolist() == expected.tolist(), "what was answered before has not changed"


def test_a_chain_outgrows_its_buffer_and_branches():
    chain = HashChain(4)
    chain.extend(counting(1000))
    other = chain.branch()
    one, two = chain.extend(counting(50)), other.extend(counting(70)[::-1])
    both = [np.concatenate([counting(1000), more]) for more in (counting(50), counting(70)[::-1])]
    assert [one.tolist(), two.tolist()] == [isched.block_hashes(each, 4).tolist() for each in both]


def test_a_chain_refuses_what_block_hashes_refuses():
    with pytest.raises(isched.InvalidInputError, match="block_size: got 0"):
        HashChain(0)
    with pytest.raises(isched.InvalidInputError, match="seed: got -1"):
        HashChain(4, seed=-1)
    chain = HashChain(4)
    with pytest.raises(isched.InvalidInputError, match="tokens: got -3"):
        chain.extend([-3])
    assert chain.tokens == 0
    with pytest.raises(ValueError, match="read-only"):
        chain.extend(counting(4))[0] = 1
