"""xxh3_64 of blocks of tokens, and the chain over them, compiled.

Bit-exact with XXH3_64bits_withSeed of little-endian uint32 tokens (the algorithm and its constants: xxHash's
specification, doc/xxhash_spec.md, section "XXH3"). A block of n tokens is 4n bytes, so every length is a multiple of
four, and 64-bit words are read as two tokens: no read is ever unaligned to a token.

Everything is uint64, literals included: uint64 with int64 silently becomes float64 in numba.
"""

import numpy as np

from inferencesched._kernels._compile import fold_product, kernel, swap_bytes
from inferencesched._typing import HashArray, TokenArray

P32_1, P32_2, P32_3 = np.uint64(0x9E3779B1), np.uint64(0x85EBCA77), np.uint64(0xC2B2AE3D)
P64_1, P64_2, P64_3 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
P64_4, P64_5 = np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)
MIX_1, MIX_2 = np.uint64(0x165667919E3779F9), np.uint64(0x9FB21C651E98DF25)
LOW = np.uint64(0xFFFFFFFF)
U8, U15, U16, U24, U28 = (np.uint64(n) for n in (8, 15, 16, 24, 28))
U32, U35, U37, U40, U47, U49, U56 = (np.uint64(n) for n in (32, 35, 37, 40, 47, 49, 56))

_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
#: The 64-bit little-endian word of the secret at every byte offset: uint64[185].
SECRET = np.array([int.from_bytes(_SECRET[i : i + 8], "little") for i in range(len(_SECRET) - 7)], dtype=np.uint64)


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
def _mix(tokens: TokenArray, i: int, secret: int, seed: np.uint64) -> np.uint64:
    """Mix the 16 bytes from token i with the secret's bytes from `secret`."""
    return fold_product(_word(tokens, i) ^ (SECRET[secret] + seed), _word(tokens, i + 2) ^ (SECRET[secret + 8] - seed))


@kernel
def _pair(first: np.uint64, second: np.uint64, seed: np.uint64) -> np.uint64:
    """xxh3_64 of two uint64: one step of the chain."""
    low = first ^ ((SECRET[24] ^ SECRET[32]) + seed)
    high = second ^ ((SECRET[40] ^ SECRET[48]) - seed)
    return _avalanche(U16 + swap_bytes(low) + high + fold_product(low, high))


@kernel
def _upto_16(tokens: TokenArray, i: int, n: int, seed: np.uint64) -> np.uint64:
    """xxh3_64 of n = 1..4 tokens."""
    size = np.uint64(4 * n)
    if n > 2:
        low = _word(tokens, i) ^ ((SECRET[24] ^ SECRET[32]) + seed)
        high = _word(tokens, i + n - 2) ^ ((SECRET[40] ^ SECRET[48]) - seed)
        return _avalanche(size + swap_bytes(low) + high + fold_product(low, high))
    # The seed's low half is byte-swapped into its high half.
    seed ^= swap_bytes(seed & LOW)
    h: np.uint64 = np.uint64(tokens[i + n - 1]) | (np.uint64(tokens[i]) << U32)
    h ^= (SECRET[8] ^ SECRET[16]) - seed
    h ^= ((h << U49) | (h >> U15)) ^ ((h << U24) | (h >> U40))
    h *= MIX_2
    h ^= (h >> U35) + size
    h *= MIX_2
    return h ^ (h >> U28)


@kernel
def _upto_128(tokens: TokenArray, i: int, n: int, seed: np.uint64) -> np.uint64:
    """xxh3_64 of n = 5..32 tokens: the ends inward, 16 bytes from each at a time."""
    end = i + n
    h = np.uint64(4 * n) * P64_1 + _mix(tokens, i, 0, seed) + _mix(tokens, end - 4, 16, seed)
    if n > 8:
        h += _mix(tokens, i + 4, 32, seed) + _mix(tokens, end - 8, 48, seed)
        if n > 16:
            h += _mix(tokens, i + 8, 64, seed) + _mix(tokens, end - 12, 80, seed)
            if n > 24:
                h += _mix(tokens, i + 12, 96, seed) + _mix(tokens, end - 16, 112, seed)
    return _avalanche(h)


@kernel
def _upto_240(tokens: TokenArray, i: int, n: int, seed: np.uint64) -> np.uint64:
    """xxh3_64 of n = 33..60 tokens."""
    h = np.uint64(4 * n) * P64_1
    for k in range(8):
        h += _mix(tokens, i + 4 * k, 16 * k, seed)
    h = _avalanche(h)
    for k in range(8, n // 4):
        h += _mix(tokens, i + 4 * k, 16 * (k - 8) + 3, seed)
    return _avalanche(h + _mix(tokens, i + n - 4, 119, seed))


@kernel
def _derive(seed: np.uint64) -> HashArray:
    """Return the secret of a seed as inputs of over 240 bytes use it: uint64[40].

    Words 0..23 as they lie in memory; then the words that are read across those: 24..31 from byte 121 on, for the last
    stripe, and 32..39 from byte 11 on, for the end.
    """
    plain = np.empty(24, dtype=np.uint64)
    for k in range(12):
        plain[2 * k] = SECRET[16 * k] + seed
        plain[2 * k + 1] = SECRET[16 * k + 8] - seed
    out = np.empty(40, dtype=np.uint64)
    out[:24] = plain
    for k in range(8):
        out[24 + k] = (plain[15 + k] >> U8) | (plain[16 + k] << U56)
        out[32 + k] = (plain[1 + k] >> U24) | (plain[2 + k] << U40)
    return out


@kernel
def _stripe(tokens: TokenArray, i: int, acc: HashArray, secret: HashArray, s: int) -> None:
    """Fold the 64 bytes from token i into the eight accumulators."""
    for k in range(8):
        data = _word(tokens, i + 2 * k)
        key = data ^ secret[s + k]
        acc[k ^ 1] += data
        acc[k] += (key & LOW) * (key >> U32)


@kernel
def _long(tokens: TokenArray, i: int, n: int, secret: HashArray, acc: HashArray) -> np.uint64:
    """xxh3_64 of n > 60 tokens; `secret` is `_derive`'s, `acc` uint64[8] is workspace."""
    acc[0], acc[1], acc[2], acc[3] = P32_3, P64_1, P64_2, P64_3
    acc[4], acc[5], acc[6], acc[7] = P64_4, P32_2, P64_5, P32_1
    stripes = (n - 1) // 16  # whole stripes before the last one, which ends where the input ends
    for s in range(stripes):
        _stripe(tokens, i + 16 * s, acc, secret, s & 15)
        if s & 15 == 15:  # 16 stripes of 64 bytes are one kilobyte: scramble
            for k in range(8):
                a = acc[k]
                acc[k] = (a ^ (a >> U47) ^ secret[16 + k]) * P32_1
    _stripe(tokens, i + n - 16, acc, secret, 24)
    h = np.uint64(4 * n) * P64_1
    for k in range(4):
        h += fold_product(acc[2 * k] ^ secret[32 + 2 * k], acc[2 * k + 1] ^ secret[33 + 2 * k])
    return _avalanche(h)


@kernel
def chain_blocks(
    tokens: TokenArray, size: int, local_seed: np.uint64, chain_seed: np.uint64, parent: np.uint64, rooted: bool
) -> HashArray:
    """Hash blocks and chain them in one pass: uint32[T] -> uint64[T // size].

    Each block is hashed with `local_seed`; block 0 is its own chain value where `rooted`, else it follows `parent`.
    The blocks' own hashes do not depend on each other, so the processor computes them beside the chain, which does.
    """
    count = tokens.shape[0] // size
    out = np.empty(count, dtype=np.uint64)
    previous = parent
    if size == 16:  # the usual size: constant, so that the loop has no branches
        for b in range(count):
            local = _upto_128(tokens, b * 16, 16, local_seed)
            previous = local if rooted and b == 0 else _pair(previous, local, chain_seed)
            out[b] = previous
    elif size <= 60:
        for b in range(count):
            if size <= 4:
                local = _upto_16(tokens, b * size, size, local_seed)
            elif size <= 32:
                local = _upto_128(tokens, b * size, size, local_seed)
            else:
                local = _upto_240(tokens, b * size, size, local_seed)
            previous = local if rooted and b == 0 else _pair(previous, local, chain_seed)
            out[b] = previous
    else:
        secret, acc = _derive(local_seed), np.empty(8, dtype=np.uint64)
        for b in range(count):
            local = _long(tokens, b * size, size, secret, acc)
            previous = local if rooted and b == 0 else _pair(previous, local, chain_seed)
            out[b] = previous
    return out
