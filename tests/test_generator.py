"""Is generated traffic the same on every machine, and does it look like what was asked for?"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Traffic, Workload, generate

MANY = Traffic(requests=4000)


def columns(workload):
    return (workload.arrival, workload.input_tokens, workload.output_tokens, workload.blocks, workload.offsets)


def test_the_same_seed_gives_the_same_requests_and_another_gives_others():
    one, again, other = (generate(Traffic(requests=200), seed=seed) for seed in (7, 7, 8))
    assert [a.tobytes() for a in columns(one)] == [a.tobytes() for a in columns(again)]
    assert one.arrival.tolist() != other.arrival.tolist() and one.blocks.tolist() != other.blocks.tolist()


def test_the_same_numbers_on_every_machine():
    """Whole numbers to the last bit; times to the microsecond."""
    traffic = Traffic(
        requests=300, rate=6.0, burstiness=5.0, burst_seconds=5.0, system_prompts=60, system_tokens=2000, zipf=1.1,
        turns=4.0, branching=0.15, user_tokens=400, output_tokens=250, spread=0.9, think_seconds=12.0, block_size=64
    )  # fmt: skip
    workload = generate(traffic, seed=1)
    whole = hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in columns(workload)[1:])).hexdigest()
    times = hashlib.sha256(np.rint(workload.arrival * 1e3).astype("<i8").tobytes()).hexdigest()
    assert (whole[:16], times[:16]) == ("64f0825724526890", "80a64dc4d5b52097")


@settings(max_examples=40)
@given(
    st.builds(
        Traffic,
        requests=st.integers(1, 80),
        rate=st.floats(0.5, 50.0),
        burstiness=st.floats(1.0, 10.0),
        system_prompts=st.integers(1, 5),
        system_tokens=st.integers(1, 500),
        turns=st.floats(1.0, 6.0),
        branching=st.floats(0.0, 1.0),
        user_tokens=st.integers(1, 300),
        output_tokens=st.integers(1, 300),
        block_size=st.sampled_from([1, 16, 64]),
    ),
    st.integers(0, 2**32),
)
def test_whatever_is_asked_for_comes_and_is_sound(traffic, seed):
    workload = generate(traffic, seed=seed)
    workload.validate()
    assert len(workload) == traffic.requests and workload.block_size == traffic.block_size
    assert (workload.output_tokens >= 1).all()
    assert (np.diff(workload.offsets) == workload.input_tokens // traffic.block_size).all(), (
        "all full blocks, no others"
    )
    parents = {}
    for i in range(len(workload)):
        row = workload.full_blocks(i).tolist()
        for before, block in zip([-1, *row], row, strict=False):
            assert parents.setdefault(block, before) == before, "equal blocks follow equal prefixes"


def test_on_average_it_is_what_was_asked_for():
    """Means within a few standard errors, at fixed seeds."""
    for seed in range(3):
        workload = generate(MANY, seed=seed)
        assert np.median(workload.output_tokens) == pytest.approx(MANY.output_tokens, rel=0.1)
        assert workload.output_tokens.max() <= 20 * MANY.output_tokens
        # it stops at the asked number, so that later turns of late sessions are missing: a little below rate * turns
        rate = len(workload) / workload.arrival[-1] * 1e3
        assert 0.6 * MANY.rate * MANY.turns < rate < 1.1 * MANY.rate * MANY.turns
        firsts = workload.blocks[workload.offsets[:-1]]
        counts = np.sort(np.bincount(firsts))[::-1]
        counts = counts[counts > 0]
        assert MANY.system_prompts * 0.8 <= len(counts) <= MANY.system_prompts, "one first block a system prompt"
        assert counts[0] / counts[9] == pytest.approx(10**MANY.zipf, rel=0.5), "Zipf"


def test_bursts_bunch_arrivals():
    """Variance over mean of the arrivals in one second: 1 for Poisson, more in bursts; sessions of one turn."""

    def dispersion(burstiness):
        workload = generate(replace(MANY, turns=1.0, burstiness=burstiness), seed=2)
        counts = np.bincount((workload.arrival // 1e3).astype(int))
        return counts.var() / counts.mean()

    assert dispersion(1.0) == pytest.approx(1.0, abs=0.2)
    assert dispersion(5.0) > 2.0


def infinite_cache_hit(workload):
    seen, found = set(), 0
    for i in range(len(workload)):
        row = workload.full_blocks(i).tolist()
        found += sum(block in seen for block in row)
        seen.update(row)
    return found / len(workload.blocks)


def test_what_is_shared_grows_with_turns_and_shrinks_with_prompts():
    base = Traffic(requests=800)
    hits = {
        name: infinite_cache_hit(generate(traffic, seed=3))
        for name, traffic in {
            "base": base,
            "one turn": replace(base, turns=1.0),
            "own prompts": replace(base, turns=1.0, system_tokens=1, system_prompts=1),
        }.items()
    }
    assert hits["base"] > hits["one turn"] > hits["own prompts"] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("requests", "system_prompts", "system_tokens", "user_tokens", "output_tokens",
                                     "block_size") for value in (0, -1, 1.5, float("nan"))),
        *({name: value} for name in ("rate", "burst_seconds", "think_seconds", "spread")
          for value in (0.0, -1.0, float("nan"), float("inf"))),
        *({"burstiness": value} for value in (0.9, 10.1, float("nan"))),
        *({"turns": value} for value in (0.9, float("nan"), float("inf"))),
        *({"branching": value} for value in (-0.1, 1.1, float("nan"))),
        *({"zipf": value} for value in (float("nan"), float("inf"))),
    ],
)  # fmt: skip
def test_traffic_that_cannot_be_is_refused(change):
    with pytest.raises(InvalidInputError) as error:
        Traffic(**change)
    ((name, value),) = change.items()
    assert error.value.parameter == name and error.value.value is value
    assert str(error.value).startswith(f"{name}: got {value!r}, allowed: ")


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(InvalidInputError, match=f"^seed: got {seed}, allowed: an integer of at least 0$"):
        generate(seed=seed)


def test_the_embedded_workload_is_what_the_defaults_make():
    workload = generate()
    assert isinstance(workload, Workload) and workload.name == "embedded"
    assert [a.tobytes() for a in columns(workload)] == [a.tobytes() for a in columns(generate(Traffic(), seed=0))]
