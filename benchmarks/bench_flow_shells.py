"""How many requests does an event loop let in a second? `pytest benchmarks/bench_flow_shells.py --benchmark-only` (or ``make bench``).

One round is 10,000 requests of 30 flows in 3 bands, under `VirtualTokenCounter`, each with a time that it may wait, and a body that yields to
the loop once, as one that forwards a request does: 1,000 tasks, ten requests each. At once: there is always room, and no
request waits. Queued: there is room for 100 at a time, and nearly all wait for their turn.

Beside them: the same tasks with nothing around their bodies, the same with an `asyncio.Semaphore` of as much room, and the same
requests from one thread through the shell for threads.
"""

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

import pytest

from inferencesched.flowcontrol import FlowController, PriorityBand, QueueBudget, QueueItem, VirtualTokenCounter
from inferencesched.flowcontrol.aio import AsyncFlowController
from inferencesched.flowcontrol.threaded import ThreadedFlowController

TASKS = 1_000
EACH = 10
REQUESTS = TASKS * EACH
ITEMS = [
    QueueItem(request_id=f"r{i}", flow=f"tenant-{i % 30}", priority=i % 3 - 1, input_tokens=i % 700, ttl=60.0)
    for i in range(REQUESTS)
]


class Room:
    """A gate of so many requests at a time."""

    def __init__(self, room):
        self.room = room
        self.taken = 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return self.taken / self.room

    def dispatched(self, ticket, now):
        self.taken += 1

    def finished(self, ticket, now):
        self.taken -= 1


def controller(room):
    return FlowController(
        default=PriorityBand(0, fairness=VirtualTokenCounter()), gate=Room(room), budget=QueueBudget(ttl=120.0)
    )


async def clients(admit):
    async def client(number):
        for item in ITEMS[number * EACH : (number + 1) * EACH]:
            async with admit(item):
                await asyncio.sleep(0)

    await asyncio.gather(*(client(number) for number in range(TASKS)))


def admitting(room):
    return AsyncFlowController(controller(room)).admit


def semaphore(room):
    sem = asyncio.Semaphore(room)
    return lambda item: sem


def nothing(room):
    empty: AbstractAsyncContextManager[None] = nullcontext()
    return lambda item: empty


@pytest.mark.parametrize("room", [10**9, 100], ids=["at once", "queued"])
@pytest.mark.parametrize("made", [nothing, semaphore, admitting], ids=["nothing", "semaphore", "admit"])
def bench_admitted_requests(benchmark, made, room):
    async def main():
        await clients(made(room))

    benchmark.pedantic(lambda: asyncio.run(main()), rounds=7, warmup_rounds=1)
    benchmark.extra_info["requests_per_second"] = REQUESTS / benchmark.stats.stats.min


def bench_threaded_at_once(benchmark):
    shell = ThreadedFlowController(controller(10**9))

    def main():
        for item in ITEMS:
            with shell.admit(item):
                pass

    benchmark.pedantic(main, rounds=7, warmup_rounds=1)
    benchmark.extra_info["requests_per_second"] = REQUESTS / benchmark.stats.stats.min
