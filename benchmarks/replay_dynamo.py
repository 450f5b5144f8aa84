"""Do our replays agree with Dynamo's own mocker, and which is faster?

    python benchmarks/replay_dynamo.py [--rounds N] [--traces DIR] [--vectors FILE]     (or `make bench`)

First all round-robin replays recorded from Dynamo 1.6.1 (trace, servers, KV blocks, speed-up): the worst relative error
of each figure, and preemptions side by side. Then the Mooncake conversation trace on 8 servers at speed-up 1, ours and
Dynamo's in turn in this process. Ours is ``wall_s``, the replay without parsing and compiling; Dynamo's is its own
``wall_time_ms``, which leaves out loading, too. Router: round robin, the only one of Dynamo's that repeats exactly.

Needs the reference material (traces and recorded replays) in ../shared, and for the second part ai-dynamo-runtime
(extra `peers`); what is missing is said and left out.
"""

import argparse
import json
import os
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

from inferencesched.simulator import Cluster, EngineConfig, Workload, policy, read_trace, simulate

SHARED = Path(os.environ.get("INFERENCESCHED_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CLOSE = ("ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "tpot_p50", "e2e_mean", "e2e_p50", "e2e_p99")
LOOSE = ("tpot_p99",)
#: What "agrees" means: relative errors, and preemptions off by at most one.
BOUND, LOOSE_BOUND, READMISSIONS = 0.007, 0.02, 1


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of each")
    parser.add_argument("--traces", type=Path, default=SHARED / "traces")
    parser.add_argument("--vectors", type=Path, default=SHARED / "vectors" / "dynamo_replays.jsonl")
    arguments = parser.parse_args()
    if not arguments.vectors.exists():
        print(f"left out: {arguments.vectors} is not here, so there is nothing to compare with")
        return
    agrees = compare(arguments.vectors, arguments.traces)
    race(arguments.traces, arguments.rounds)
    if not agrees:
        sys.exit("a figure is outside its bound")


def compare(vectors: Path, folder: Path) -> bool:
    """Print the errors of every recorded configuration; return whether all are within the bounds."""
    rows = [json.loads(line) for line in vectors.read_text().splitlines()]
    rows = [row for row in rows if row["mode"] == "round_robin" and "no-prefix-cache" not in row["tag"]]
    distinct = {(row["trace"], row["workers"], row["blocks"], row["speed"]): row for row in rows}
    traces: dict[str, Workload] = {}
    print(
        f"{'trace':10} {'servers':>7} {'blocks':>6} {'speed':>5} | worst error of 8 figures | TPOT p99 | preempted | wall s"
    )
    worst: dict[str, float] = {}
    readmissions = 0
    for (trace, workers, blocks, speed), row in sorted(distinct.items()):
        if trace not in traces:
            traces[trace] = read_trace(folder / f"{trace}.jsonl")
        cluster = Cluster(servers=workers, engine=EngineConfig(kv_blocks=blocks), speedup=speed)
        replay = simulate(traces[trace], policy("round-robin"), cluster)
        errors = {key: abs(replay.figures[key] / row[key] - 1.0) for key in CLOSE + LOOSE}
        worst = {key: max(error, worst.get(key, 0.0)) for key, error in errors.items()}
        key = max(CLOSE, key=errors.__getitem__)
        off = int(replay.figures["readmissions"]) - row["readmissions"]
        readmissions = max(readmissions, abs(off))
        print(
            f"{trace.removeprefix('mooncake_')[:10]:10} {workers:7} {blocks:6} {speed:5g} | {errors[key]:9.3%} {key:>14} "
            f"| {errors['tpot_p99']:8.3%} | {int(replay.figures['readmissions']):4} / {row['readmissions']:<4}"
            f"| {replay.wall_s:6.2f}"
        )
    print(f"{len(distinct)} configurations; worst relative errors:")
    print("  " + ", ".join(f"{key} {error:.3%}" for key, error in worst.items()))
    close = all(worst[key] <= BOUND for key in CLOSE) and all(worst[key] <= LOOSE_BOUND for key in LOOSE)
    return close and readmissions <= READMISSIONS


def race(folder: Path, rounds: int) -> None:
    """Time the two simulators in turn on the same replay."""
    if find_spec("dynamo") is None:
        print("left out: the race with Dynamo's mocker, since ai-dynamo-runtime is not installed (extra `peers`)")
        return
    os.environ.setdefault("DYN_LOG", "error")  # read when it is imported
    from dynamo._core import run_mocker_trace_replay  # type: ignore[import-not-found, unused-ignore]

    path = folder / "mooncake_conversation.jsonl"
    workload = read_trace(path)
    ours, theirs = [], []
    for _ in range(rounds):
        replay = simulate(workload, policy("round-robin"), Cluster(servers=8))
        ours.append(replay.wall_s)
        report = run_mocker_trace_replay(
            [str(path)],
            extra_engine_args={"engine": {"num_gpu_blocks": 16_384, "block_size": 64}},
            num_workers=8,
            router_mode="round_robin",
            arrival_speedup_ratio=1.0,
            trace_block_size=512,
        )
        theirs.append(report.summary["wall_time_ms"] / 1e3)
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(f"Mooncake conversation, 8 servers, speed-up 1, {rounds} rounds in turn, wall s (min / median / max):")
    for name, times in (("inferencesched", ours), ("Dynamo's mocker", theirs)):
        print(f"  {name:16} {min(times):6.2f} {statistics.median(times):6.2f} {max(times):6.2f}")
    print(f"  Dynamo's / ours  {min(ratios):6.2f} {statistics.median(ratios):6.2f} {max(ratios):6.2f}")


if __name__ == "__main__":
    main()
