"""What do hashing and the prefix index cost? `pytest benchmarks/bench_prefix.py --benchmark-only` (or ``make bench``).

A field of conversations: each begins with one of 32 system prompts of 128 blocks, goes on for 16 to 128 blocks more
and is held by one endpoint. 8 endpoints is a small pool, 64 a usual one, 512 beyond what one gateway has. Prompts of
2,048 blocks are 32,768 tokens at 16 a block. Rivals, in the same run: the xxhash package and a dict of bit masks.
`peers/ours.py` is the adapter for a harness that replays recorded traces through other routers' indexes.
"""

import struct
import time
from itertools import cycle

import numpy as np
import pytest
import xxhash

import inferencesched as isched

ENDPOINTS = (8, 64, 512)
TOKENS = (np.arange(32_768, dtype=np.uint64) * 7919 % 128_000).astype(np.uint32)


def field(endpoints, conversations=4000):
    """Return an index, the same as a dict of bit masks, and prompts: of what is held, and with a new end."""
    rng = np.random.default_rng(7)
    fresh = lambda n: rng.integers(2**64, size=n, dtype=np.uint64)  # noqa: E731 a word for what is said twelve times
    index, masks, prompts = isched.PrefixIndex(endpoints), {}, []
    systems = [fresh(128) for _ in range(32)]
    for i in range(conversations):
        chain = np.concatenate([systems[rng.integers(32)], fresh(rng.integers(16, 128))])
        slot = int(rng.integers(endpoints))
        index.insert(slot, chain)
        for block in chain.tolist():
            masks[block] = masks.get(block, 0) | 1 << slot
        if i % 8 == 0:
            prompts.append(chain if i % 16 else np.concatenate([chain, fresh(24)]))
    return index, masks, prompts


def look_up(masks, chain):
    """Endpoint -> depth, by the dict of masks."""
    holding, depths = -1, {}
    for depth, block in enumerate(chain, 1):
        still = masks.get(block, 0) & holding
        gone = (holding & ~still) if depth > 1 else 0
        while gone:
            lowest = gone & -gone
            depths[lowest.bit_length() - 1] = depth - 1
            gone ^= lowest
        holding = still
        if not holding:
            return depths
    while holding:
        lowest = holding & -holding
        depths[lowest.bit_length() - 1] = len(chain)
        holding ^= lowest
    return depths


@pytest.mark.parametrize("endpoints", ENDPOINTS)
@pytest.mark.benchmark(group="match one prompt of some 200 blocks")
def bench_match(benchmark, endpoints):
    index, masks, prompts = field(endpoints)
    out = np.zeros(endpoints, dtype=np.int32)
    for chain in prompts:
        index.match(chain, out)
        assert {i: int(out[i]) for i in np.flatnonzero(out)} == look_up(masks, chain.tolist())
    turn = cycle(prompts)
    benchmark(lambda: index.match(next(turn), out))


@pytest.mark.parametrize("endpoints", ENDPOINTS)
@pytest.mark.benchmark(group="match one prompt of some 200 blocks")
def bench_dict_of_masks(benchmark, endpoints):
    _, masks, prompts = field(endpoints)
    turn = cycle([chain.tolist() for chain in prompts])
    benchmark(lambda: look_up(masks, next(turn)))


@pytest.mark.parametrize("endpoints", ENDPOINTS)
@pytest.mark.benchmark(group="match 64 prompts at once")
def bench_match_many(benchmark, endpoints):
    index, _, prompts = field(endpoints)
    out = np.zeros((64, endpoints), dtype=np.int32)
    index.match_many(prompts[:64], out)
    benchmark(index.match_many, prompts[:64], out)


@pytest.mark.parametrize("endpoints", ENDPOINTS)
@pytest.mark.benchmark(group="match 64 prompts at once")
def bench_match_many_packed(benchmark, endpoints):
    """The prompts behind each other in one array."""
    index, _, prompts = field(endpoints)
    chains, ends = np.concatenate(prompts[:64]), np.cumsum([len(chain) for chain in prompts[:64]])
    out = np.zeros((64, endpoints), dtype=np.int32)
    benchmark(index.match_many, chains, out, ends=ends)
    assert np.array_equal(out[7], index.match(prompts[7]))


@pytest.mark.benchmark(group="store and remove 64 blocks")
def bench_store_and_remove(benchmark):
    index, _, prompts = field(64)
    rng = np.random.default_rng(1)
    turn = cycle([np.concatenate([chain, rng.integers(2**64, size=64, dtype=np.uint64)]) for chain in prompts])
    index.reserve(10_000)

    def event():
        chain = next(turn)
        index.insert(3, chain, start=len(chain) - 64)
        index.remove(3, chain[:-65:-1].copy())

    event()
    benchmark(event)


@pytest.mark.benchmark(group="grow to 4 million blocks, in events of 64")
def bench_growth(benchmark):
    """The whole growth, once; in `extra_info` what single events took of the processor and how much they moved."""
    blocks = np.random.default_rng(2).integers(2**64, size=(62_500, 64), dtype=np.uint64)
    spent, moved = np.empty(len(blocks)), np.zeros(len(blocks) + 1, dtype=np.int64)
    index = isched.PrefixIndex(64)
    index.insert(0, blocks[0])

    def grow():
        for i in range(1, len(blocks)):
            start = time.thread_time_ns()
            index.insert(i % 64, blocks[i])
            spent[i] = time.thread_time_ns() - start
            moved[i] = index.stats.segments_moved

    benchmark.pedantic(grow, rounds=1)
    benchmark.extra_info |= {
        "us of CPU an event: p50, p99, p99.9, most": (np.percentile(spent[1:], [50, 99, 99.9, 100]) / 1e3).tolist(),
        "segments moved an event, most": int(np.diff(moved[:-1]).max()),
        "bytes a block": index.nbytes / len(index),
    }
    assert len(index) == 4_000_000


@pytest.mark.parametrize("size", [16, 64, 512])
@pytest.mark.benchmark(group="hash 32,768 tokens")
def bench_block_hashes(benchmark, size):
    isched.block_hashes(TOKENS, size)
    answer = benchmark(isched.block_hashes, TOKENS, size)
    assert answer.tolist() == by_hand(TOKENS.tobytes(), size)


@pytest.mark.parametrize("size", [16, 64, 512])
@pytest.mark.benchmark(group="hash 32,768 tokens")
def bench_xxhash_a_block_at_a_time(benchmark, size):
    benchmark(by_hand, TOKENS.tobytes(), size)


@pytest.mark.benchmark(group="hash 32,768 tokens")
def bench_one_xxh3_of_it_all(benchmark):
    """The floor: no blocks, no chain."""
    benchmark(xxhash.xxh3_64_intdigest, TOKENS.tobytes(), 1337)


@pytest.mark.benchmark(group="a conversation of 32,768 tokens goes on by 256")
def bench_extend(benchmark):
    begun = isched.HashChain(16)
    begun.extend(TOKENS)
    benchmark.pedantic(lambda chain: chain.extend(TOKENS[:256]), setup=lambda: ((begun.branch(),), {}), rounds=2000)


@pytest.mark.benchmark(group="from 32,768 tokens to the depths of 64 endpoints")
def bench_one_xxh3_beside_it(benchmark):
    benchmark(xxhash.xxh3_64_intdigest, TOKENS.tobytes(), 1337)


@pytest.mark.parametrize("known", [2048, 100])
@pytest.mark.benchmark(group="from 32,768 tokens to the depths of 64 endpoints")
def bench_match_tokens(benchmark, known):
    """In one call; of a prompt that is held, and of one that leaves what is held early, of which the rest is not hashed."""
    index, out = isched.PrefixIndex(64), np.zeros(64, dtype=np.int32)
    index.insert(5, isched.block_hashes(TOKENS, 16)[:known])
    index.match_tokens(TOKENS, 16, out)
    benchmark(index.match_tokens, TOKENS, 16, out)
    assert out[5] == known


@pytest.mark.benchmark(group="from 32,768 tokens to the depths of 64 endpoints")
def bench_tokens_to_depths_in_two_calls(benchmark):
    index, out = isched.PrefixIndex(64), np.zeros(64, dtype=np.int32)
    index.insert(5, isched.block_hashes(TOKENS, 16))
    index.match(isched.block_hashes(TOKENS, 16), out)
    benchmark(lambda: index.match(isched.block_hashes(TOKENS, 16), out))
    assert out[5] == 2048


def by_hand(raw, size):
    """The chain by the xxhash package."""
    chain, step = [], 4 * size
    for i in range(0, len(raw) - step + 1, step):
        local = xxhash.xxh3_64_intdigest(raw[i : i + step], 1337)
        chain.append(xxhash.xxh3_64_intdigest(struct.pack("<QQ", chain[-1], local), 1337) if chain else local)
    return chain
