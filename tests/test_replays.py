"""Do whole replays agree with NVIDIA Dynamo's mocker, on the same traces and the same servers?

Round robin, because there the mocker draws nothing: all 21 configurations that it was run on, and one without prefix
caching. Those that tell most run by default, all of them in ``make e2e``.
"""

import functools
import json

import pytest

from inferencesched.simulator import Cluster, EngineConfig, policy, read_trace, simulate
from tests.shared import SHARED, shared

VECTORS = "vectors/dynamo_replays.jsonl"

#: Relative errors that are allowed; what is not named is not compared. Largest seen: 0.47 % (p99 of E2E), TPOT p99 1.4 %.
WITHIN = dict.fromkeys(
    ("rps", "out_tps", "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p95", "ttft_p99", "tpot_mean", "tpot_p50", "tpot_p90",
     "itl_mean", "itl_p50", "itl_p99", "e2e_mean", "e2e_p50", "e2e_p90", "e2e_p99"), 0.007
) | {"tpot_p99": 0.02}  # fmt: skip

#: Light; overloaded, with many thrown out; a small cache; the other trace.
TELLING = {
    ("mooncake_conversation", 8, 16_384, 1),
    ("mooncake_conversation", 8, 16_384, 8),
    ("mooncake_conversation", 8, 6_250, 4),
    ("mooncake_synthetic", 8, 16_384, 6),
}
CONTROL = "rr no-prefix-cache"


def rows():
    """Return the distinct round-robin replays by configuration, and the control."""
    if not (SHARED / VECTORS).exists():
        return {}
    lines = map(json.loads, (SHARED / VECTORS).read_text(encoding="utf-8").splitlines())
    found = [row for row in lines if row["mode"] == "round_robin"]
    return {(row["trace"], row["workers"], row["blocks"], row["speed"], row["tag"] != CONTROL): row for row in found}


ROWS = rows()
REPLAYS = [key for key in ROWS if key[-1]]


@functools.cache
def trace(name):
    return read_trace(shared(f"traces/{name}.jsonl"))


def replayed(key):
    name, workers, blocks, speed, caching = key
    engine = EngineConfig(kv_blocks=blocks, block_size=64, prefix_caching=caching)
    cluster = Cluster(servers=workers, engine=engine, speedup=speed)
    return simulate(trace(name), policy("round-robin"), cluster).figures


def agrees(key):
    """The figures of a replay are the mocker's."""
    figures, row = replayed(key), ROWS[key]
    wrong = {
        name: (figures[name], row[name])
        for name, bound in WITHIN.items()
        if figures[name] != pytest.approx(row[name], rel=bound)
    }
    assert wrong == {}
    assert figures["completed"] == row["completed"]
    assert abs(figures["readmissions"] - row["readmissions"]) <= 1
    assert abs(figures["hit"] - row["hit"]) <= 0.002 and abs(figures["hit_first"] - row["hit_first"]) <= 0.002
    assert figures["goodput_requests"] == pytest.approx(row["goodput_requests"], rel=0.007)


def titled(keys):
    """Return the parameters; where the vectors are absent, one that says so."""
    absent = pytest.mark.skip(reason=f"reference material {VECTORS} is not beside this checkout")
    return [pytest.param(key, id="{}-{}x{}-x{}".format(*key)) for key in keys] or [pytest.param(None, marks=absent)]


def test_all_configurations_are_there():
    shared(VECTORS)
    assert len(REPLAYS) == 21 and len(ROWS) == 22
    assert {key[:-1] for key in REPLAYS} >= TELLING


@pytest.mark.slow
@pytest.mark.parametrize("key", titled(key for key in REPLAYS if key[:-1] in TELLING))
def test_a_telling_replay_agrees_with_the_mocker(key):
    agrees(key)


@pytest.mark.slow
def test_without_prefix_caching_it_agrees_too():
    """The control: nothing is found cached, and the times are the mocker's without its prefix cache."""
    shared(VECTORS)
    ((key, row),) = ((key, row) for key, row in ROWS.items() if not key[-1])
    assert row["eng"] == {"enable_prefix_caching": False} and row["hit"] == 0
    agrees(key)
    cached = ROWS[(*key[:-1], True)]
    assert row["ttft_mean"] > 1.05 * cached["ttft_mean"], "or the control would control nothing"


@pytest.mark.e2e
@pytest.mark.parametrize("key", titled(REPLAYS))
def test_every_replay_agrees_with_the_mocker(key):
    agrees(key)
