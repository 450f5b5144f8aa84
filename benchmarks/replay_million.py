"""How long does a replay of a million requests take, and how does that grow with requests and servers?

    python benchmarks/replay_million.py [--requests 1000000] [--servers 64] [--policy least-request]     (or `make bench`)

Seeded traffic of conversations: prompts of some 1,500 tokens behind 500 shared beginnings, answers of some 150, at 0.7 of what the servers can take. Time is the replay's alone
(`wall_s`), memory the process's peak. Then halves of it, and the same traffic a server for fewer and more servers: time a request should not grow with requests, and with
servers by a logarithm at most. Each size in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys

import numpy as np

from inferencesched.simulator import Cluster, EngineConfig, Workload, policy, simulate

BLOCK = 64
#: Requests a second that one server takes of this traffic, with the step time of an H100 and an 8B model; about 0.7 of its most.
RATE = 6.0


def traffic(requests: int, servers: int, seed: int = 0) -> Workload:
    """Conversations at a steady rate, as columns: no loop over requests."""
    rng = np.random.default_rng(seed)
    inputs = np.clip(rng.lognormal(np.log(1300), 0.6, requests), 128, 20_000).astype(np.int64)
    outputs = np.clip(rng.lognormal(np.log(120), 0.7, requests), 1, 2_000).astype(np.int64)
    counts = inputs // BLOCK
    offsets = np.zeros(requests + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    shared = np.minimum(counts, 8)  # 512 tokens of one of 500 beginnings
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    beginning = np.repeat(rng.integers(500, size=requests), counts)
    own = 4000 + np.arange(offsets[-1])
    blocks = np.where(place < np.repeat(shared, counts), beginning * 8 + place, own)
    arrival = np.cumsum(rng.exponential(1e3 / (RATE * servers), requests))
    return Workload("made", arrival, inputs, outputs, blocks, offsets, BLOCK)


def measured(requests: int, servers: int, name: str) -> dict[str, float]:
    """Replay it here; return seconds, passes and the process's memory in GiB."""
    from inferencesched.simulator.engine import timing

    cluster = Cluster(servers=servers, engine=EngineConfig(kv_blocks=6_250), timing=timing("llama-3.1-8b-h100"))
    replay = simulate(traffic(requests, servers), policy(name), cluster)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "wall_s": replay.wall_s,
        "peak_gib": peak,
        "tokens": replay.figures["out_tps"],
        "p90": replay.figures["ttft_p90"],
    }


def row(requests: int, servers: int, name: str) -> None:
    """Measure in a process of its own, and print a line."""
    command = [
        sys.executable,
        __file__,
        "--one",
        "--requests",
        str(requests),
        "--servers",
        str(servers),
        "--policy",
        name,
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    each = found["wall_s"] / requests * 1e6
    print(
        f"{name:14} {requests:9,} {servers:7} {found['wall_s']:8.1f} {each:11.1f} {found['peak_gib']:9.2f} {found['p90']:9.0f}",
        flush=True,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--servers", type=int, default=64)
    parser.add_argument("--policy", default="least-request")
    parser.add_argument("--one", action="store_true", help="print one measurement as JSON, in this process")
    arguments = parser.parse_args()
    count, servers, name = arguments.requests, arguments.servers, arguments.policy
    if arguments.one:
        print(json.dumps(measured(count, servers, name)))
        return
    print(
        f"{'policy':14} {'requests':>9} {'servers':>7} {'wall, s':>8} {'us/request':>11} {'peak GiB':>9} {'TTFT p90':>9}"
    )
    for part in (8, 4, 2, 1):
        row(count // part, servers, name)
    for servers in (8, 16, 32, 128, 256, 512):
        row(count // 8, servers, name)


if __name__ == "__main__":
    main()
