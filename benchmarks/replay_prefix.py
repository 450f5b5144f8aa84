"""Is the prefix index exact, how fast is it beside Dynamo's, and what does it cost as it grows?

    python benchmarks/replay_prefix.py [--reps N] [--seeds N] [--millions N]     (or `make bench`)

First recorded operations with their answers, replayed: every workload of the reference material, and N other seeds of the two
that others get wrong (holes in what is held; one document behind several prompts). Then the timed replay, a process a
peer, workload and repetition, medians side by side, and what a (block, endpoint) pair takes at the best and at the worst
moment between two doublings. Last, growth: the processor's time for an event of 64 blocks up to 4 million, and a match as
the index grows to N million blocks.

Needs the reference material's bench folder in ../shared, and for the race ai-dynamo-runtime (extra `peers`); what is
missing is said and left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import inferencesched as isched

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("INFERENCESCHED_SHARED", HERE.parents[1] / "shared"))
HARNESS = SHARED / "bench"
TIMED = ("W1-8", "W1-64", "W1-512", "W2", "W3")
#: What the ratio of medians, Dynamo's binding to ours, shall at least be.
GOALS = {"W1-8": 8, "W1-64": 18, "W1-512": 55, "W2": 100, "W3": 11}


def main() -> None:
    """Replay, race, grow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=3, help="processes a peer and workload")
    parser.add_argument("--seeds", type=int, default=50, help="other seeds of holes and collide")
    parser.add_argument("--millions", type=int, default=64, help="blocks to grow to")
    arguments = parser.parse_args()
    wrong = 0
    if HARNESS.exists():
        os.environ.setdefault("ISCHED_BENCH_CACHE", str(Path(tempfile.gettempdir()) / "inferencesched-workloads"))
        sys.path.insert(0, str(HARNESS))
        wrong = exact(arguments.seeds)
        race(arguments.reps)
        sizes()
    else:
        print(f"left out: recorded operations and the race with Dynamo, since {HARNESS} is not here")
    grow()
    scale(arguments.millions)
    if wrong:
        sys.exit(f"{wrong} wrong answers")


def harness(*arguments: str) -> str:
    """Run the reference material's harness with our adapter."""
    command = [sys.executable, str(HARNESS / "bench_index.py"), *arguments, "--extra", str(HERE / "peers" / "ours.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HARNESS).stdout


def exact(seeds: int) -> int:
    """Print and return how many answers are wrong."""
    named = ("small", "collide", "holes", *TIMED)
    rows = [
        line.split() for line in harness("--verify", "--peers", "Ours", "--workloads", ",".join(named)).splitlines()
    ]
    found = {
        row[0]: (int(row[row.index("checked") + 1]), int(row[row.index("answer") + 1]))
        for row in rows
        if "checked" in row
    }
    wrong = sum(bad for _, bad in found.values())
    print(f"{wrong} of {sum(n for n, _ in found.values()):,} answers wrong in {', '.join(found)}")
    import index_workloads as workloads

    for name, generate in (("holes", workloads.gen_holes), ("collide", workloads.gen_collide)):
        asked = bad = 0
        for seed in range(1000, 1000 + seeds):
            recorded, _ = generate(seed=seed)
            chains = np.concatenate(recorded.chain)
            index = isched.PrefixIndex(recorded.W)
            for kind, slot, begin, count, start, answer in recorded.ops:
                chain = chains[begin : begin + count]
                if kind == workloads.QUERY:
                    asked += 1
                    bad += index.match(chain).tolist() != list(recorded.expected[answer])
                elif kind == workloads.STORE:
                    index.insert(slot, chain, start=start)
                else:
                    index.remove(slot, chain)
            index.check()
        print(f"{bad} of {asked:,} answers wrong in {seeds} other seeds of {name}")
        wrong += bad
    return wrong


def race(reps: int) -> None:
    """Print the timed replays of Dynamo's index and ours side by side."""
    if find_spec("dynamo") is None:
        print("left out: the race with Dynamo's index, since ai-dynamo-runtime is not installed (extra `peers`)")
        return
    output = harness("--reps", str(reps), "--peers", "DynamoRadix,Ours", "--workloads", ",".join(TIMED))
    found = json.loads(output.strip().splitlines()[-1])
    for row in found:
        if "error" in row:
            sys.exit(f"{row['label']} failed in {row['workload']}: {row['error']}")
    rows = {(row["workload"], row["key"]): row for row in found}
    print(f"match p50 / p99 us, events M blocks/s, bytes a (block, endpoint); medians of {reps} processes")
    print(f"{'':8} {'Dynamo':>15} {'ours':>13} {'ratio':>7} {'goal':>5} | {'events':>12} {'ratio':>6} | {'bytes':>9}")
    for workload in TIMED:
        theirs, ours = rows[workload, "DynamoRadix"], rows[workload, "Ours"]
        print(
            f"{workload:8} {theirs['q_med_us']:7.1f} /{theirs['q_p99_us']:6.1f} {ours['q_med_us']:5.2f} /{ours['q_p99_us']:6.2f} "
            f"{theirs['q_med_us'] / ours['q_med_us']:7.1f} {GOALS[workload]:5} | "
            f"{theirs['ev_blocks_s'] / 1e6:4.1f} / {ours['ev_blocks_s'] / 1e6:5.1f} "
            f"{ours['ev_blocks_s'] / theirs['ev_blocks_s']:6.1f} | "
            f"{theirs['bytes_per_pair']:3.0f} / {ours['bytes_per_pair']:3.0f}"
        )


def sizes() -> None:
    """Print what a (block, endpoint) pair takes: at the end of a workload, and between two doublings of the table.

    Memory is what the index has asked for. A table grows when it is three quarters full: right before, a pair takes the
    least; right after, with the old table and the new one beside each other, the most. Since where a workload ends
    between two doublings is an accident, all three are told.
    """
    import index_workloads as workloads

    print("bytes a (block, endpoint) pair, as asked for, from a quarter of the most held on: at the end; least, most")
    for name in ("W1-64", "W2", "W3"):
        recorded = workloads.load(name)
        chain, rows = recorded["chain"], recorded["ops"].tolist()
        index, seen = isched.PrefixIndex(recorded["meta"]["W"]), []
        for kind, slot, begin, count, start, _ in rows:
            if kind == workloads.STORE:
                index.insert(slot, chain[begin : begin + count], start=start)
            elif kind == workloads.REMOVE:
                index.remove(slot, chain[begin : begin + count])
            else:
                continue
            stats = index.stats
            seen.append((stats.held, stats.nbytes, stats.slots))
        most = max(held for held, _, _ in seen)
        pairs = [(nbytes / held, held, slots) for held, nbytes, slots in seen if held >= most / 4]
        least, worst = min(pairs), max(pairs)
        print(
            f"  {name:6} {pairs[-1][0]:5.1f} ({pairs[-1][1]:,} pairs); {least[0]:5.1f} ({least[1]:,}), "
            f"{worst[0]:5.1f} ({worst[1]:,}, in {worst[2]:,} slots)"
        )


def grow(millions: int = 4) -> None:
    """Print what an event of 64 blocks costs while the index grows from nothing."""
    rng = np.random.default_rng(3)
    index = isched.PrefixIndex(64)
    index.insert(0, np.arange(1, 65, dtype=np.uint64))  # looks its kernels up
    events = millions * 1_000_000 // 64
    spent, most = np.empty(events), 0
    for i in range(events):
        chain = rng.integers(2**64, size=64, dtype=np.uint64)
        moved = index.stats.segments_moved if i % 64 == 0 else None
        began = time.thread_time_ns()
        index.insert(i % 64, chain)
        spent[i] = time.thread_time_ns() - began
        if moved is not None:
            most = max(most, index.stats.segments_moved - moved)
    p50, p999 = np.percentile(spent, (50, 99.9)) / 1e3
    print(
        f"growth to {millions} million blocks, events of 64: CPU p50 {p50:.1f} us, p99.9 {p999:.0f} us, most {spent.max() / 1e3:.0f} us; "
        f"segments moved an event at most {most} (every 64th counted); {index.nbytes / len(index):.1f} bytes a block"
    )


def scale(millions: int, length: int = 4096) -> None:
    """Print a match of 4,096 blocks as the index grows: of a prompt that is there, and of one that leaves its path."""
    rng = np.random.default_rng(5)
    index, out = isched.PrefixIndex(64), np.empty(64, dtype=np.int32)
    kept: list[np.ndarray] = []
    print(
        f"a match of {length} blocks, each prompt asked for once, us: p50 / p99 of one held, p50 / p99 of one that diverges"
    )
    size, stored = 1, 0
    while size <= millions:
        while stored < size * 1_000_000:
            chain = rng.integers(2**64, size=length, dtype=np.uint64)
            index.insert(stored // length % 64, chain)
            stored += length
            if len(kept) < 400 or rng.random() < 0.02:
                kept.insert(int(rng.integers(len(kept) + 1)), chain)
                del kept[400:]
        figures = []
        for diverges in (False, True):
            spent = []
            for chain in kept:
                asked = chain.copy()
                if diverges:
                    asked[int(rng.integers(length)) :] = rng.integers(2**64, dtype=np.uint64)
                began = time.perf_counter_ns()
                index.match(asked, out)
                spent.append(time.perf_counter_ns() - began)
            figures += [float(x) / 1e3 for x in np.percentile(spent, (50, 99))]
        words = "{:6.2f} / {:6.2f}   {:6.2f} / {:6.2f}".format(*figures)
        print(
            f"  {size:3} million blocks, {index.nbytes / 2**20:7,.0f} MiB, {index.nbytes / len(index):4.1f} bytes a block: {words}"
        )
        size *= 4


if __name__ == "__main__":
    main()
