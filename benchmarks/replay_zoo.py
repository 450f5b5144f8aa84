"""How does every policy by name do on one trace, and how much worse is each of its choices than the best one?

    python benchmarks/replay_zoo.py [--trace FILE] [--head 700] [--servers 8] [--speed 4] [--policies NAME ...]     (or `make bench`)

Signals as stale as a gateway's: scraped every 50 ms, answers 5 ms and KV events 50 ms late. ``regret`` is what a choice cost everybody more than the best server would have, by
a one-step roll-out with true lengths: ms, the mean over all requests. Where the trace is not there, the seeded generator's traffic is taken.
"""

import argparse
from pathlib import Path

from inferencesched.simulator import POLICIES, Cluster, Traffic, generate, policy, read_trace, simulate

TRACE = Path(__file__).resolve().parents[2] / "shared" / "traces" / "mooncake_conversation.jsonl"
SHOWN = (("ttft_mean", 0), ("ttft_p90", 0), ("ttft_p99", 0), ("e2e_mean", 0), ("hit_first", 3), ("goodput_requests", 0),
         ("uneven_requests", 2), ("uneven_prefill", 2), ("regret_ms", 0))  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--head", type=int, default=700, help="the first so many requests; 0 is all")
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--speed", type=float, default=4.0)
    parser.add_argument("--policies", nargs="*", default=list(POLICIES))
    arguments = parser.parse_args()
    workload = read_trace(arguments.trace) if arguments.trace.exists() else generate(Traffic(), seed=0)
    workload = workload.head(arguments.head) if arguments.head else workload
    cluster = Cluster(servers=arguments.servers, speedup=arguments.speed, answer_ms=5.0, news_ms=50.0)
    print(
        f"{workload.name}: {len(workload):,} requests x{arguments.speed:g} on {arguments.servers} servers, dynamo-mocker; ms"
    )
    print("| policy | " + " | ".join(name for name, _ in SHOWN) + " | us a decision |")
    print("|" + "---|" * (len(SHOWN) + 2))
    for name in arguments.policies:
        replay = simulate(workload, policy(name), cluster, regret=True)
        figures = " | ".join(f"{replay.figures[key]:,.{digits}f}" for key, digits in SHOWN)
        print(f"| `{name}` | {figures} | {replay.decision_us_p50:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
