"""What does the flow controller cost, how does it grow, and how much memory does it take?

``python benchmarks/replay_flow.py``. Three bands of 1,000 flows each, virtual token counters, budgets on, no log; one
thread; the thread's own processor time, so that other work on the machine counts as little as can be. Beside it, in the
same run and on the same items, a bare ``heapq`` push and pop: the least that a priority queue in Python costs.

*One by one* is a gateway in steady state: 3,000 requests wait, one comes, one goes, one completes. *All at once* is a
backlog: everything comes, then everything goes, then everything completes. Growth is of one axis at a time, then of both.
"""

import argparse
import gc
import heapq
import random
import statistics
import time
import tracemalloc

from inferencesched.flowcontrol import Capacity, FlowController, PriorityBand, QueueItem, VirtualTokenCounter
from inferencesched.request import Usage

BANDS = (10, 0, -1)
USAGE = Usage(900, 240, 0)


class Valve:
    """A gate that lets as many go as it is told, and then no more."""

    def __init__(self):
        self.left = 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return 0.0 if self.left else 1.0

    def dispatched(self, ticket, now):
        self.left -= 1

    def finished(self, ticket, now):
        pass


def items(count, flows, seed=1):
    rng = random.Random(seed)
    return [
        QueueItem(
            request_id="bench",
            flow=f"flow-{rng.randrange(flows)}",
            priority=BANDS[rng.randrange(3)],
            size_bytes=4000,
            input_tokens=rng.randrange(2000),
            output_tokens=rng.randrange(500),
        )
        for _ in range(count)
    ]


def controller():
    valve = Valve()
    bands = [PriorityBand(p, capacity=Capacity(), fairness=VirtualTokenCounter()) for p in BANDS]
    return FlowController(bands=bands, gate=valve), valve


def one_by_one(waiting, coming):
    """Microseconds a request, from `submit` to `completed`, while so many wait."""
    flow, valve = controller()
    now = 0.0
    for item in waiting:
        flow.submit(item, now)
    begin = time.thread_time()
    for item in coming:
        now += 1e-5
        flow.submit(item, now)
        valve.left = 1
        (event,) = flow.step(now)
        flow.completed(event.ticket, USAGE, now=now)
    return (time.thread_time() - begin) / len(coming) * 1e6


def all_at_once(everything):
    """Microseconds a request: all come, all go, all complete."""
    flow, valve = controller()
    now = 0.0
    begin = time.thread_time()
    for item in everything:
        now += 1e-5
        flow.submit(item, now)
    valve.left = len(everything)
    for event in flow.step(now):
        flow.completed(event.ticket, USAGE, now=now)
    return (time.thread_time() - begin) / len(everything) * 1e6


def heap_one_by_one(waiting, coming):
    heap = [(item.tokens, i, item) for i, item in enumerate(waiting)]
    heapq.heapify(heap)
    begin = time.thread_time()
    for i, item in enumerate(coming, len(waiting)):
        heapq.heappush(heap, (item.tokens, i, item))
        heapq.heappop(heap)
    return (time.thread_time() - begin) / len(coming) * 1e6


def heap_all_at_once(everything):
    heap = []
    begin = time.thread_time()
    for i, item in enumerate(everything):
        heapq.heappush(heap, (item.tokens, i, item))
    while heap:
        heapq.heappop(heap)
    return (time.thread_time() - begin) / len(everything) * 1e6


def spread(call, *arguments, rounds):
    """Least and median of several rounds, without what is left of the round before."""
    took = []
    for _ in range(rounds):
        gc.collect()
        took.append(call(*arguments))
    return min(took), statistics.median(took)


def told(name, ours, rival):
    say(
        f"| {name} | {ours[0]:.2f} / {ours[1]:.2f} | {1e6 / ours[1]:,.0f} | {rival[0]:.2f} / {rival[1]:.2f} "
        f"| {ours[0] / rival[0]:.1f} / {ours[1] / rival[1]:.1f} |"
    )


def memory():
    """Bytes a queued item and a live flow; the caller's items are there before."""
    flow, _ = controller()
    queued = [
        QueueItem(request_id="bench", flow="one", size_bytes=1000 + i, input_tokens=500 + i, output_tokens=300)
        for i in range(50_000)
    ]
    named = [QueueItem(request_id="bench", flow=f"flow-{i}") for i in range(50_000)]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tickets = [flow.submit(item, float(i)) for i, item in enumerate(queued)]
    between = tracemalloc.get_traced_memory()[0]
    tickets += [flow.submit(item, 60_000.0) for item in named]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    list_slot = 8
    item = (between - before) / len(queued) - list_slot
    return item, (after - between) / len(named) - list_slot - item


def say(line):
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--deep", type=int, default=1_000_000, help="the greatest depth")
    options = parser.parse_args()
    rounds = options.rounds
    everyday = items(60_000, 1000)
    say("| us a request, least / median | ours | a second | heapq | ratio |")
    say("|---|---|---|---|---|")
    told(
        "one by one, 3,000 wait",
        spread(one_by_one, everyday[:3000], everyday[3000:], rounds=rounds),
        spread(heap_one_by_one, everyday[:3000], everyday[3000:], rounds=rounds),
    )
    told(
        "all at once, 60,000",
        spread(all_at_once, everyday, rounds=rounds),
        spread(heap_all_at_once, everyday, rounds=rounds),
    )
    say("\n| growth of one by one, us, least | ours | against the first | heapq | against the first |")
    say("|---|---|---|---|---|")
    first = rival_first = 0.0
    for name, flows, depth in (
        ("1,000 flows, 1,000 wait", 333, 1000),
        ("100,000 flows, 1,000 wait", 33_333, 1000),
        (f"1,000 flows, {options.deep:,} wait", 333, options.deep),
        (f"100,000 flows, {options.deep:,} wait", 33_333, options.deep),
    ):
        crowd = items(depth + 20_000, flows, seed=2)
        gc.collect()
        gc.freeze()  # the crowd is the caller's: what it costs the collector to look through it is not ours
        ours = min(one_by_one(crowd[:depth], crowd[depth:]) for _ in range(3))
        rival = min(heap_one_by_one(crowd[:depth], crowd[depth:]) for _ in range(3))
        gc.unfreeze()
        first, rival_first = first or ours, rival_first or rival
        say(f"| {name} | {ours:.2f} | x{ours / first:.2f} | {rival:.2f} | x{rival / rival_first:.2f} |")
    item, flow = memory()
    say(
        f"\nmemory: {item:.0f} bytes a queued item, {flow:.0f} a live flow (its table and its place in a heap included)"
    )


if __name__ == "__main__":
    main()
