"""`english-bot` and `spanish-bot` on `llm-base`, and four more: how many servers do LoRA adapters need that share them?

    python docs/examples/lora_share.py

Six adapters of one base model. Each is asked for in bursts, not all at the same time. Dedicated, each adapter has servers of its own;
shared, any server may run any of them, two at a time, and loading one takes half a second. How many servers does it take until 95 of 100
requests are answered within the objective? The gateway's scheduler prefers servers where the adapter is loaded
(`LoraAffinityScorer`), then those with room for it.
"""

from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

import inferencesched as isched

ADAPTERS = ("english-bot", "spanish-bot", "french-bot", "german-bot", "polish-bot", "dutch-bot")
SLOTS, RUNS, LOADING, SERVICE = 2, 4, 0.5, 1.0
OBJECTIVE = 3.0


class Request(NamedTuple):
    """When does it come, for which adapter, and how long does it take?"""

    at: float
    adapter: str
    seconds: float


def traffic(seed: int = 7, minutes: float = 20.0) -> list[Request]:
    """Return what comes: an adapter asks 2 times a second while it is busy, a third of the time, and hardly ever else."""
    rng, found = np.random.default_rng(seed), []
    for number, adapter in enumerate(ADAPTERS):
        now = 0.0
        while now < 60 * minutes:
            busy = int(now // 60 + number) % 3 == 0
            now += rng.exponential(0.5 if busy else 20.0)
            found.append(Request(now, adapter, rng.exponential(SERVICE)))
    return sorted(found)


class Served(NamedTuple):
    """How did it go? ``hits`` is the part that came where its adapter was loaded, ``most_loaded`` the most adapters at one server."""

    late: float
    hits: float
    most_loaded: int


def served(requests: list[Request], servers: int) -> Served:
    """Serve requests on so many servers that load adapters as they are asked for, the one that was idle longest makes room."""
    pool = isched.InferencePool()
    names = [f"server-{i}" for i in range(servers)]
    for name in names:
        pool.join(name)
    scorers = (
        isched.WeightedScorer(isched.LoraAffinityScorer(), 1.0),
        isched.WeightedScorer(isched.ActiveRequestScorer(), 1.5),
    )
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), scorers))
    rng = np.random.default_rng(1)
    loaded: dict[str, dict[str, float]] = {name: {} for name in names}  # adapter -> when it was used last
    busy: dict[str, dict[str, int]] = {name: {} for name in names}
    running = dict.fromkeys(names, 0)
    queues: dict[str, list] = {name: [] for name in names}
    events: list = [(request.at, i, "comes", request) for i, request in enumerate(requests)]
    count, late, hits, most = len(events), 0, 0, 0

    def tell(name: str, now: float) -> None:
        waiting = frozenset(request.adapter for request, _ in queues[name]) - set(loaded[name])
        adapters = isched.Adapters(frozenset(loaded[name]), waiting, SLOTS)
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: float(len(queues[name]))}, now=now, adapters=adapters)

    def start(name: str, now: float) -> None:
        nonlocal count, late, most
        while queues[name] and running[name] < RUNS:
            request, booking = queues[name][0]
            delay = 0.0
            if request.adapter not in loaded[name]:
                if len(loaded[name]) >= SLOTS:
                    idle = [each for each in loaded[name] if not busy[name].get(each)]
                    if not idle:
                        return
                    del loaded[name][min(idle, key=loaded[name].__getitem__)]
                delay = LOADING
            queues[name].pop(0)
            loaded[name][request.adapter] = now
            most = max(most, len(loaded[name]))
            busy[name][request.adapter] = busy[name].get(request.adapter, 0) + 1
            running[name] += 1
            late += now + delay - request.at > OBJECTIVE
            count += 1
            heappush(events, (now + delay + request.seconds, count, "ends", (name, request, booking)))

    for name in names:
        tell(name, 0.0)
    heap = events
    heap.sort()
    while heap:
        now, _, what, said = heappop(heap)
        if what == "comes":
            request = isched.InferenceRequest(request_id=f"r-{said.at}", model=said.adapter, input_tokens=100)
            booking = scheduler.schedule_and_reserve(request, pool, now=now, rng=rng)
            name = booking.endpoint
            hits += said.adapter in loaded[name]
            queues[name].append((said, booking))
        else:
            name, request, booking = said
            booking.complete(now=now)
            busy[name][request.adapter] -= 1
            running[name] -= 1
        start(name, now)
        tell(name, now)
    return Served(late / len(requests), hits / len(requests), most)


def needed(requests: list[Request], late: float = 0.05) -> tuple[int, Served]:
    """Return the fewest servers with which no more than this part is late."""
    for servers in range(1, 20):
        outcome = served(requests, servers)
        if outcome.late <= late:
            return servers, outcome
    raise AssertionError("twenty are not enough")


def main() -> None:
    """Print how many servers it takes, dedicated and shared."""
    requests = traffic()
    alone = {adapter: needed([each for each in requests if each.adapter == adapter])[0] for adapter in ADAPTERS}
    print("dedicated:", ", ".join(f"{adapter} {count}" for adapter, count in alone.items()))
    shared, outcome = needed(requests)
    print(f"dedicated {sum(alone.values())} servers, shared {shared}: {sum(alone.values()) - shared} saved")
    print(f"shared: {outcome.late:.1%} late, {outcome.hits:.0%} came where their adapter was loaded")
    print(f"most adapters at one server: {outcome.most_loaded} of {SLOTS}")


if __name__ == "__main__":
    main()
