"""xxh3_64 of blocks of tokens, and the chain over them, compiled.

Bit-exact with XXH3_64bits_withSeed of little-endian uint32 tokens (the algorithm and its constants: xxHash's
specification, doc/xxhash_spec.md, section "XXH3"). A block of n tokens is 4n bytes, so every length is a multiple of
four, and no read is unaligned to a token.

Everything is uint64, literals included: uint64 with int64 silently becomes float64 in numba.
"""

from typing import TypeAlias

import numpy as np

from inferencesched._kernels._compile import fold_product, frozen, kernel, swap_bytes
from inferencesched._typing import HashArray, TokenArray

P32_1, P32_2, P32_3 = np.uint64(0x9E3779B1), np.uint64(0x85EBCA77), np.uint64(0xC2B2AE3D)
P64_1, P64_2, P64_3 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
P64_4, P64_5 = np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)
MIX_1, MIX_2 = np.uint64(0x165667919E3779F9), np.uint64(0x9FB21C651E98DF25)
LOW = np.uint64(0xFFFFFFFF)
U8, U15, U16, U24, U28 = (np.uint64(n) for n in (8, 15, 16, 24, 28))
U32, U35, U37, U40, U47, U49, U56, U64 = (np.uint64(n) for n in (32, 35, 37, 40, 47, 49, 56, 64))

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
#: The 64-bit little-endian word of the secret at every byte offset: uint64[185].
SECRET = np.array([int.from_bytes(_SECRET[i : i + 8], "little") for i in range(len(_SECRET) - 7)], dtype=np.uint64)
# As scalars, so that they are constants to the compiler, which takes no element of an array for one.
S0, S8, S16, S24, S32, S40, S48, S56 = (np.uint64(SECRET[i]) for i in range(0, 64, 8))
SHORT, LOW_HALF, HIGH_HALF = S8 ^ S16, S24 ^ S32, S40 ^ S48


@kernel
def _word(tokens: TokenArray, i: int) -> np.uint64:
    """Read tokens i and i + 1 as one little-endian uint64."""
    low, high = np.uint64(tokens[i]), np.uint64(tokens[i + 1])
    return low | (high << U32)


@kernel
def _avalanche(h: np.uint64) -> np.uint64:
    h ^= h >> U37
    h *= MIX_1
    return h ^ (h >> U32)


@kernel
def _sixteen(low: np.uint64, high: np.uint64, size: np.uint64, seed: np.uint64) -> np.uint64:
    """xxh3_64 of 9 to 16 bytes, of which `low` are the first eight and `high` the last."""
    low ^= LOW_HALF + seed
    high ^= HIGH_HALF - seed
    return _avalanche(size + swap_bytes(low) + high + fold_product(low, high))


@kernel
def _upto_4(tokens: TokenArray, i: int, n: int, seed: np.uint64) -> np.uint64:
    """xxh3_64 of n = 1..4 tokens."""
    size = np.uint64(4 * n)
    if n > 2:
        return _sixteen(_word(tokens, i), _word(tokens, i + n - 2), size, seed)
    # The seed's low half is byte-swapped into its high half.
    seed ^= swap_bytes(seed & LOW)
    h: np.uint64 = np.uint64(tokens[i + n - 1]) | (np.uint64(tokens[i]) << U32)
    h ^= SHORT - seed
    h ^= ((h << U49) | (h >> U15)) ^ ((h << U24) | (h >> U40))
    h *= MIX_2
    h ^= (h >> U35) + size
    h *= MIX_2
    return h ^ (h >> U28)


@kernel
def _keys(seed: np.uint64) -> HashArray:
    """Return the words of the secret that inputs of over 16 bytes are mixed with, with the seed in: uint64[58].

    Words 0..23 as they lie, the seed added and taken away in turn; 24..39 the same of the words from byte 3 on and
    40, 41 from byte 119 on, which inputs of 33..60 tokens use. Longer ones take 0..23 for their secret and read it
    across words: 42..49 from byte 121 on, for the last stripe, 50..57 from byte 11 on, for the end.
    """
    keys = np.empty(58, dtype=np.uint64)
    for k in range(12):
        keys[2 * k] = SECRET[16 * k] + seed
        keys[2 * k + 1] = SECRET[16 * k + 8] - seed
    for k in range(8):
        keys[24 + 2 * k] = SECRET[16 * k + 3] + seed
        keys[25 + 2 * k] = SECRET[16 * k + 11] - seed
        keys[42 + k] = (keys[15 + k] >> U8) | (keys[16 + k] << U56)
        keys[50 + k] = (keys[1 + k] >> U24) | (keys[2 + k] << U40)
    keys[40], keys[41] = SECRET[119] + seed, SECRET[127] - seed
    return keys


@kernel
def _mix(tokens: TokenArray, i: int, first: np.uint64, second: np.uint64) -> np.uint64:
    """Mix the 16 bytes from token i with two words of the secret."""
    return fold_product(_word(tokens, i) ^ first, _word(tokens, i + 2) ^ second)


@kernel
def _upto_32(tokens: TokenArray, i: int, n: int, keys: HashArray) -> np.uint64:
    """xxh3_64 of n = 5..32 tokens: the ends inward, 16 bytes from each at a time."""
    h = np.uint64(4 * n) * P64_1
    for k in range((n - 1) // 8 + 1):
        h += _mix(tokens, i + 4 * k, keys[4 * k], keys[4 * k + 1])
        h += _mix(tokens, i + n - 4 - 4 * k, keys[4 * k + 2], keys[4 * k + 3])
    return _avalanche(h)


@kernel
def _upto_60(tokens: TokenArray, i: int, n: int, keys: HashArray) -> np.uint64:
    """xxh3_64 of n = 33..60 tokens."""
    h = np.uint64(4 * n) * P64_1
    for k in range(8):
        h += _mix(tokens, i + 4 * k, keys[2 * k], keys[2 * k + 1])
    h = _avalanche(h)
    for k in range(8, n // 4):
        h += _mix(tokens, i + 4 * k, keys[2 * k + 8], keys[2 * k + 9])
    return _avalanche(h + _mix(tokens, i + n - 4, keys[40], keys[41]))


Eight: TypeAlias = tuple[
    np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, np.uint64
]  # accumulators


@kernel
def _stripe(words: HashArray, i: int, x: Eight, keys: HashArray, s: int) -> Eight:
    """Fold 64 bytes into the accumulators: the product of a keyed word's halves, and its neighbour's word."""
    a, b, c, d, e, f, g, h = x
    k, m, n, o = words[i], words[i + 1], words[i + 2], words[i + 3]
    p, q, r, t = words[i + 4], words[i + 5], words[i + 6], words[i + 7]
    a, b = a + m + _halves(k ^ keys[s]), b + k + _halves(m ^ keys[s + 1])
    c, d = c + o + _halves(n ^ keys[s + 2]), d + n + _halves(o ^ keys[s + 3])
    e, f = e + q + _halves(p ^ keys[s + 4]), f + p + _halves(q ^ keys[s + 5])
    g, h = g + t + _halves(r ^ keys[s + 6]), h + r + _halves(t ^ keys[s + 7])
    return a, b, c, d, e, f, g, h


@kernel
def _halves(word: np.uint64) -> np.uint64:
    return (word & LOW) * (word >> U32)


@kernel
def _scramble(a: np.uint64, key: np.uint64) -> np.uint64:
    return (a ^ (a >> U47) ^ key) * P32_1


@kernel
def _long(words: HashArray, i: int, ends: HashArray, j: int, n: int, keys: HashArray) -> np.uint64:
    """xxh3_64 of n > 60 tokens: from words[i] on, and the last 64 bytes, which may overlap the others, from ends[j] on.

    The accumulators are scalars: those of an array would be written and read back each time.
    """
    x = P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1
    for s in range((n - 1) // 16):
        x = _stripe(words, i + 8 * s, x, keys, s & 15)
        if s & 15 == 15:  # 16 stripes of 64 bytes are one kilobyte
            a, b, c, d, e, f, g, h = x
            a, b, c, d = _scramble(a, keys[16]), _scramble(b, keys[17]), _scramble(c, keys[18]), _scramble(d, keys[19])
            e, f, g, h = _scramble(e, keys[20]), _scramble(f, keys[21]), _scramble(g, keys[22]), _scramble(h, keys[23])
            x = a, b, c, d, e, f, g, h
    a, b, c, d, e, f, g, h = _stripe(ends, j, x, keys, 42)
    total = np.uint64(4 * n) * P64_1
    total += fold_product(a ^ keys[50], b ^ keys[51]) + fold_product(c ^ keys[52], d ^ keys[53])
    total += fold_product(e ^ keys[54], f ^ keys[55]) + fold_product(g ^ keys[56], h ^ keys[57])
    return _avalanche(total)


@kernel
def _chain_long(
    tokens: TokenArray,
    size: int,
    keys: HashArray,
    chain_seed: np.uint64,
    previous: np.uint64,
    rooted: bool,
    out: HashArray,
) -> None:
    """Fill `out` as `chain_into` does, for blocks of more than 60 tokens, read as uint64."""
    count = out.shape[0]
    if size % 2 == 0:
        words = frozen(tokens[: count * size].view(np.uint64))
        for k in range(count):
            begin = k * (size // 2)
            local = _long(words, begin, words, begin + size // 2 - 8, size, keys)
            previous = local if rooted and k == 0 else _sixteen(previous, local, U16, chain_seed)
            out[k] = previous
    else:  # every second block, and every last stripe, lies across words: copy
        block, end = np.empty(size - 1, dtype=np.uint32), np.empty(16, dtype=np.uint32)
        words, ends = frozen(block.view(np.uint64)), frozen(end.view(np.uint64))
        for k in range(count):
            for i in range(size - 1):  # not slice to slice: numba would compile what it says of unequal lengths
                block[i] = tokens[k * size + i]
            for i in range(16):
                end[i] = tokens[(k + 1) * size - 16 + i]
            local = _long(words, 0, ends, 0, size, keys)
            previous = local if rooted and k == 0 else _sixteen(previous, local, U16, chain_seed)
            out[k] = previous


@kernel
def chain_into(
    tokens: TokenArray,
    size: int,
    local_seed: np.uint64,
    chain_seed: np.uint64,
    parent: np.uint64,
    rooted: bool,
    out: HashArray,
) -> None:
    """Hash blocks and chain them in one pass: uint32[T] -> uint64[T // size], into `out`.

    Each block is hashed with `local_seed`; block 0 is its own chain value where `rooted`, else it follows `parent`.
    The blocks' own hashes do not depend on each other, so the processor computes them beside the chain, which does.
    """
    count = out.shape[0]
    previous = parent
    if size == 16:  # the usual size, written out: twice as fast as the loop of `_upto_32`
        a, b, c, d = S0 + local_seed, S8 - local_seed, S16 + local_seed, S24 - local_seed
        e, f, g, h = S32 + local_seed, S40 - local_seed, S48 + local_seed, S56 - local_seed
        for k in range(count):
            i = 16 * k
            local = _mix(tokens, i, a, b) + _mix(tokens, i + 12, c, d)
            local += _mix(tokens, i + 4, e, f) + _mix(tokens, i + 8, g, h)
            local = _avalanche(U64 * P64_1 + local)
            previous = local if rooted and k == 0 else _sixteen(previous, local, U16, chain_seed)
            out[k] = previous
        return
    keys = _keys(local_seed)
    if size > 60:
        _chain_long(tokens, size, keys, chain_seed, parent, rooted, out)
        return
    for k in range(count):
        i = size * k
        if size <= 4:
            local = _upto_4(tokens, i, size, local_seed)
        elif size <= 32:
            local = _upto_32(tokens, i, size, keys)
        else:
            local = _upto_60(tokens, i, size, keys)
        previous = local if rooted and k == 0 else _sixteen(previous, local, U16, chain_seed)
        out[k] = previous


@kernel
def chain_blocks(
    tokens: TokenArray, size: int, local_seed: np.uint64, chain_seed: np.uint64, parent: np.uint64, rooted: bool
) -> HashArray:
    """Return what `chain_into` writes, as an array of its own."""
    out = np.empty(tokens.shape[0] // size, dtype=np.uint64)
    chain_into(frozen(tokens), size, local_seed, chain_seed, parent, rooted, out)
    return out
