"""Which arrays does the index read where they lie, which does it copy, and which does it refuse? And tokens to depths in one call."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched._kernels._compile import kernel, lent
from tests import naive_prefix

CHAIN = np.array([101, 102, 103, 104, 105], dtype=np.uint64)
NAMES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("model", "lora", "salt", "tenant"), st.sampled_from(["", "a", "bc"]))
)


class Subclass(np.ndarray):
    """An array by another name."""


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, dtype=np.uint8)
    raw[1:] = array.view(np.uint8)
    return raw[1:].view(array.dtype)


def frozen(array):
    array = array.copy()
    array.setflags(write=False)
    return array


#: The same numbers, laid out or named in another way.
SAME = {
    "backwards": lambda a: a[::-1].copy()[::-1],
    "every second": lambda a: np.repeat(a, 2)[::2],
    "misaligned": misaligned,
    "read-only": frozen,
    "of a subclass": lambda a: a.view(Subclass),
    "of the other 64-bit type": lambda a: a.astype(np.ulonglong),
    "a column": lambda a: np.stack([a, a], axis=1)[:, 1],
}
#: Other numbers to a kernel that does not look.
WRONG = {
    "big-endian": lambda a: a.astype(">u8"),
    "signed": lambda a: a.astype(np.int64),
    "short": lambda a: a.astype(np.uint32),
    "floating": lambda a: a.astype(float),
    "square": lambda a: a.reshape(1, -1),
    "one number": lambda a: a[0],
    "no dimensions": lambda a: np.array(5, dtype=np.uint64),
    "a list": lambda a: a.tolist(),
    "nothing": lambda a: None,
}


@pytest.fixture
def index():
    index = isched.PrefixIndex(2)
    index.insert(1, CHAIN)
    return index


@pytest.mark.parametrize("layout", SAME)
def test_the_same_numbers_have_the_same_answer(index, layout):
    chain = SAME[layout](CHAIN)
    assert index.match(chain).tolist() == [0, 5]
    assert index.match_many([CHAIN, chain]).tolist() == [[0, 5], [0, 5]]
    assert index.match_many(chain, ends=np.array([2, 5])).tolist() == [[0, 2], [0, 0]]
    index.insert(0, chain, start=1)
    index.insert_after(0, 105, SAME[layout](CHAIN + np.uint64(100)))
    assert index.blocks(0) == 9 and index.remove(0, chain[2:]) == 3
    index.check()


@pytest.mark.parametrize("layout", WRONG)
def test_what_is_no_array_of_hashes_is_refused(index, layout):
    chain = WRONG[layout](CHAIN)
    for call in (
        lambda: index.match(chain),
        lambda: index.match_many([CHAIN, chain]),
        lambda: index.match_many(chain, ends=np.array([2, 5])),
        lambda: index.insert(0, chain),
        lambda: index.insert_after(0, 105, chain),
        lambda: index.remove(1, chain),
    ):
        with pytest.raises(isched.InvalidInputError, match="hashes: got .* allowed: a uint64 array of one dimension"):
            call()
    assert index.match(CHAIN).tolist() == [0, 5]


@pytest.mark.parametrize(
    "out",
    [
        np.zeros(2, dtype=np.int64),
        np.zeros(2, dtype=">i4"),
        np.zeros(3, dtype=np.int32),
        np.zeros((2, 1), dtype=np.int32),
        np.zeros(4, dtype=np.int32)[::2],
        misaligned(np.zeros(2, dtype=np.int32)),
        frozen(np.zeros(2, dtype=np.int32)),
        [0, 0],
    ],
)
def test_an_out_that_cannot_be_filled_is_refused(index, out):
    for call in (
        lambda: index.match(CHAIN, out),
        lambda: index.match_tokens(np.arange(4, dtype=np.uint32), 2, out),
        lambda: index.match_many([CHAIN], out),
    ):
        with pytest.raises(isched.InvalidInputError, match="out: got .* allowed: a contiguous, writable int32 array"):
            call()
    assert np.asarray(out).sum() == 0


def test_an_out_of_a_subclass_is_filled(index):
    out = np.zeros(2, dtype=np.int32).view(Subclass)
    assert index.match(CHAIN, out) is out and out.tolist() == [0, 5]
    rows = np.zeros((1, 2), dtype=np.int32).view(Subclass)
    assert index.match_many([CHAIN[:3]], rows) is rows and rows.tolist() == [[0, 3]]


def test_rows_of_a_square_are_prompts(index):
    assert index.match_many(np.stack([CHAIN, CHAIN[::-1]])).tolist() == [[0, 5], [0, 0]]


@kernel
def _add_up(a, b):
    """Write what each array begins with behind it."""
    b[1, 1] = a[0] + b[0, 2]
    return a.shape[0] * 100 + b.shape[0] * 10 + b.shape[1]


def test_a_lent_array_is_looked_at_and_not_held():
    a, b = frozen(np.array([7, 8], dtype=np.int64)), np.arange(12, dtype=np.int64).reshape(3, 4)
    call = lent(_add_up, a, b)
    assert call(a, b) == 234 and b[1, 1] == 9
    for wrong in (a.astype(np.int32), a[::-1], a.reshape(1, 2), a.astype(">i8"), misaligned(a)):
        with pytest.raises(TypeError, match="not a contiguous int64 array"):
            call(wrong, b)
    with pytest.raises(TypeError, match="not a contiguous int64 array"):
        call(a, frozen(b))
    with pytest.raises(TypeError, match="not a contiguous int64 array"):
        call(a, b.T)
    assert call(np.zeros(1, dtype=np.int64), b) == 134


# --- tokens to depths --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(0, 3000),
    size=st.sampled_from([1, 2, 3, 16, 70]),
    shares=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    turn=st.floats(0, 1),
    seed=st.sampled_from([1337, 0, 2**64 - 1]),
    names=NAMES,
)
def test_tokens_to_depths_is_two_steps_in_one(length, size, shares, turn, seed, names):
    """Whatever is held, and wherever the prompt leaves it: before, at, or behind the end of a piece that is hashed."""
    tokens = (np.arange(length, dtype=np.uint64) * 2654435761).astype(np.uint32)
    index = isched.PrefixIndex(3)
    chain = naive_prefix.block_hashes(tokens.tolist(), size, seed=seed, **names)
    for slot, share in enumerate(shares):
        index.insert(slot, np.array(chain[: round(share * len(chain))], dtype=np.uint64))
    asked = tokens.copy()
    asked[round(turn * length) :] += np.uint32(1)
    for prompt in (tokens, asked):
        expected = index.match(isched.block_hashes(prompt, size, seed=seed, **names))
        out = np.full(3, 77, dtype=np.int32)
        assert index.match_tokens(prompt, size, out, seed=seed, **names) is out
        assert out.tolist() == expected.tolist()
    held = [round(share * len(chain)) for share in shares]
    assert index.match_tokens(tokens, size, seed=seed, **names).tolist() == held


@pytest.mark.parametrize("count", [255, 256, 257, 1023, 1024, 1025, 4096, 4097])
@pytest.mark.parametrize("missing", [0, 1])
def test_where_one_piece_ends_and_the_next_begins(count, missing):
    tokens = np.arange(count, dtype=np.uint32)
    index = isched.PrefixIndex(1)
    index.insert(0, isched.block_hashes(tokens, 1)[: count - missing])
    assert index.match_tokens(tokens, 1).tolist() == [count - missing]


def test_tokens_to_depths_takes_and_refuses_what_its_two_steps_do():
    index = isched.PrefixIndex(1)
    index.insert(0, isched.block_hashes(np.arange(64, dtype=np.uint32), 16))
    assert index.match_tokens(list(range(70)), 16).tolist() == [4]
    assert index.match_tokens(frozen(np.arange(70, dtype=np.uint32)), 16).tolist() == [4]
    assert index.match_tokens(np.arange(128, dtype=np.int64)[:70], 16).tolist() == [4]
    assert index.match_tokens(np.repeat(np.arange(70, dtype=np.uint32), 2)[::2], 16).tolist() == [4]
    assert index.match_tokens([], 16).tolist() == [0]
    for call, words in (
        (lambda: index.match_tokens([1], 0), "block_size: got 0"),
        (lambda: index.match_tokens([-1], 1), "tokens: got -1"),
        (lambda: index.match_tokens([1], 1, seed=-1), "seed: got -1"),
        (lambda: index.match_tokens([[1]], 1), "tokens: got .*2 dimensions"),
    ):
        with pytest.raises(isched.InvalidInputError, match=words):
            call()
