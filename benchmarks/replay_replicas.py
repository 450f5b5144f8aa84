"""What does it cost that several gateways know of each other a little late?

    python benchmarks/replay_replicas.py [--trace FILE] [--gateways 2 4] [--servers 8] [--speed 1.5] [--seeds 3]

Replays a trace with its requests dealt to several gateways by lot. Each has a pool, an index and a scheduler of its own, and decides alone; what
it did reaches the others after `delay` ms (beside the 20 ms between two deltas), by `Replica` (`Cluster.gateways`, `gossip_ms`). The floor is gateways that never hear of each
other, the ceiling one gateway for all. Policy: prefix 3, requests in flight 2; nothing is scraped, so that the peers' word is all there is.
"""

import argparse
from math import inf
from pathlib import Path

import numpy as np

import inferencesched as isched
from inferencesched.simulator import Cluster, Policy, Traffic, generate, jitter, read_trace, simulate

TRACE = Path(__file__).resolve().parents[2] / "shared" / "traces" / "mooncake_conversation.jsonl"
SHOWN = ("ttft_mean", "ttft_p90", "e2e_mean", "hit_first", "goodput_requests", "uneven_requests")


def build(fleet):
    """The policy of each gateway; its index's seed is everybody's."""
    config = fleet.config
    scorers = (
        isched.WeightedScorer(isched.PrefixCacheScorer(), 3.0),
        isched.WeightedScorer(isched.ActiveRequestScorer(), 2.0),
    )
    prefix = isched.ApproximatePrefixProducer(block_size=config.block_size, capacity=config.kv_blocks, seed=7)
    return isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), scorers), producers=(prefix,))


POLICY = Policy("prefix-and-load", "prefix 3, in flight 2", build)


def figures(workload, cluster):
    """The figures of one replay."""
    return simulate(workload, POLICY, cluster).figures


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--gateways", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--delays", type=float, nargs="*", default=[0.0, 100.0, 1000.0, 5000.0])
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--speed", type=float, default=1.5)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    workload = read_trace(arguments.trace) if arguments.trace.exists() else generate(Traffic(), seed=0)
    workload = jitter(workload)
    cases = [(1, 0.0), *((n, delay) for n in arguments.gateways for delay in (*arguments.delays, inf))]
    print(
        f"{workload.name}: {len(workload):,} requests x{arguments.speed:g}, {arguments.servers} servers, mean of {arguments.seeds} seeds"
    )
    print(f"{'gateways':>8} {'delay, ms':>10} " + " ".join(f"{name:>12}" for name in SHOWN))
    for gateways, delay in cases:
        runs = [
            figures(
                workload,
                Cluster(arguments.servers, speedup=arguments.speed, seed=seed, gateways=gateways, gossip_ms=delay),
            )
            for seed in range(arguments.seeds)
        ]
        means = [np.mean([run[name] for run in runs]) for name in SHOWN]
        print(f"{gateways:8d} {delay:10g} " + " ".join(f"{mean:12.4g}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
