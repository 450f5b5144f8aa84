"""One story of requests, told three times: to the controller by hand, in an event loop, and from threads.

Times are multiples of 1/64, so that sums are exact; a story in which two things happen at one time is no story (`TieError`), since
nothing says which of them is first.
"""

import asyncio
from collections import deque
from heapq import heappop, heappush
from typing import NamedTuple

import msgspec
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import QueueRefusedError
from inferencesched.flowcontrol import (
    Capacity,
    Dispatch,
    FlowController,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    Revoke,
    Ticket,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.aio import AsyncFlowController
from inferencesched.flowcontrol.log import RecordedController, calls
from inferencesched.flowcontrol.threaded import ThreadedFlowController
from inferencesched.request import Usage
from tests.virtual import VirtualThreads, run


class Told(NamedTuple):
    """One request: when it comes, what it is, how long a server takes, when its client goes (None: never)."""

    at: float
    item: QueueItem
    hold: float
    cancel: float | None
    usage: Usage | None


class Story(NamedTuple):
    """Requests, and when the pool is seen with how many servers."""

    requests: tuple[Told, ...]
    seen: tuple[tuple[float, int], ...]
    reclaims: bool
    shutdown: float | None


class TieError(Exception):
    """Two things happen at one time."""


@st.composite
def stories(draw):
    count = draw(st.integers(3, 14))
    times = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count, unique=True))
    requests = []
    for i, at in enumerate(times):
        item = QueueItem(
            request_id=f"r{i}",
            flow=draw(st.sampled_from("abc")),
            priority=draw(st.sampled_from((-1, -1, 0, 5))),
            input_tokens=draw(st.integers(0, 20)),
            ttl=draw(st.sampled_from((None, 3.25, 20.25))),
        )
        hold = draw(st.integers(0, 30)) + (i + 1) / 64
        gone = draw(st.one_of(st.none(), st.none(), st.integers(0, 40)))
        usage = draw(st.sampled_from((None, Usage(30, 1), Usage(1, 9))))
        requests.append(Told(float(at), item, hold, None if gone is None else at + gone + 0.5 + i / 1024, usage))
    seen = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=4, unique_by=lambda each: each[0]))
    shut = draw(st.sampled_from((None, None, 40.75)))
    return Story(tuple(requests), tuple((at + 0.125, n) for at, n in seen), draw(st.booleans()), shut)


class Slots:
    """A gate of so many requests at a time."""

    def __init__(self, slots=2):
        self.slots = slots
        self.taken = 0

    def observe(self, endpoints, now):
        self.slots = len(endpoints)

    def level(self, now):
        return self.taken / self.slots if self.slots else 1.0

    def dispatched(self, ticket, now):
        self.taken += 1

    def finished(self, ticket, now):
        self.taken -= 1


class TakesBack:
    """Takes back the newest that is sheddable, for whoever is above it; nobody twice, and nobody that has just begun."""

    def __init__(self):
        self.asked = set()

    def reclaim(self, band, level, ceiling, inflight, now):
        able = [
            t
            for t in inflight.values()
            if t.item.priority < min(band.priority, 0) and t.dispatched_at < now and t.number not in self.asked
        ]
        self.asked |= {t.number for t in able[-1:]}
        return able[-1:]

    def dispatched(self, ticket, now):
        pass

    def finished(self, ticket, now):
        self.asked.discard(ticket.number)

    def next_wakeup(self, now):
        return float("inf")


def recorded(story):
    fair = PriorityBand(0, capacity=Capacity(6), fairness=VirtualTokenCounter())
    return RecordedController(
        FlowController(
            default=fair,
            gate=Slots(),
            capacity=Capacity(8),
            budget=QueueBudget(ttl=15.25, no_endpoint_ttl=30.25),
            reclaimer=TakesBack() if story.reclaims else None,
        )
    )


def servers(count):
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}")
    return pool.snapshot()


def decisions(log):
    """Everything that was said and answered, without the questions after the time, and the steps in which nothing was."""
    return [
        msgspec.msgpack.encode(call)
        for call in calls(log)
        if call.name != "next_wakeup" and not (call.name == "step" and call.answer == [])
    ]


# --- by hand --------------------------------------------------------------------------------------------------------


class ByHand:
    """The controller, called as the shells are meant to call it."""

    def __init__(self, story):
        self.controller = recorded(story)
        self.now = 0.0
        self.due = []
        self.waiting = {}
        self.flying = {}
        self.ready = deque()
        self.told = {}
        self.ended = [""] * len(story.requests)
        for i, told in enumerate(story.requests):
            heappush(self.due, (told.at, "arrive", i))
            if told.cancel is not None:
                heappush(self.due, (told.cancel, "cancel", i))
        for at, many in story.seen:
            heappush(self.due, (at, "see", many))
        if story.shutdown is not None:
            heappush(self.due, (story.shutdown, "shut", 0))
        self.story = story

    def run(self):
        while self.due or self.waiting:
            wakeup = self.controller.next_wakeup(self.now) if self.waiting else None
            if wakeup is None and not self.due:
                break
            if wakeup is not None and (not self.due or wakeup <= self.due[0][0]):
                if self.due and wakeup == self.due[0][0]:
                    raise TieError
                self.now = wakeup
                self.step()
            else:
                at, kind, which = heappop(self.due)
                if self.due and self.due[0][0] == at:
                    raise TieError
                self.now = at
                getattr(self, kind)(which)
            while self.ready:
                call, ticket = self.ready.popleft()
                call(ticket)
        for number in self.waiting:
            self.ended[self.told[number]] = "waits"
        return self

    def step(self, own=None):
        if self.waiting:
            self.tell(self.controller.step(self.now), own)

    def tell(self, events, own=None):
        for event in events:
            ticket = event.ticket
            if isinstance(event, Dispatch):
                del self.waiting[ticket.number]
                self.flying[ticket.number] = ticket
                if ticket is not own:
                    self.ready.append((self.begin, ticket))
            elif isinstance(event, Revoke):
                self.ready.append((self.stop, ticket))
            else:
                del self.waiting[ticket.number]
                self.ended[self.told[ticket.number]] = ticket.outcome.value

    def arrive(self, which):
        ticket = self.controller.submit(self.story.requests[which].item, self.now)
        if not isinstance(ticket, Ticket):
            self.ended[which] = ticket.outcome.value
            return
        self.told[ticket.number] = which
        self.waiting[ticket.number] = ticket
        self.step(ticket)
        if ticket.outcome is QueueOutcome.DISPATCHED:
            self.begin(ticket)

    def begin(self, ticket):
        self.controller.dispatched(ticket, "ep", self.now)
        self.step()
        heappush(self.due, (self.now + self.story.requests[self.told[ticket.number]].hold, "complete", ticket.number))

    def stop(self, ticket):
        del self.flying[ticket.number]
        self.forget(ticket.number)
        self.controller.revoked(ticket, now=self.now)
        self.ended[self.told[ticket.number]] = ticket.outcome.value
        self.step()

    def forget(self, number):
        self.due = sorted(entry for entry in self.due if entry[1:] != ("complete", number))

    def complete(self, number, cancelled=False):
        ticket, told = self.flying.pop(number), self.story.requests[self.told[number]]
        self.controller.completed(ticket, None if cancelled else told.usage, now=self.now)
        self.ended[self.told[number]] = "cancelled" if cancelled else "completed"
        self.step()

    def cancel(self, which):
        number = next((n for n, w in self.told.items() if w == which), None)
        if number in self.waiting:
            self.controller.cancel(self.waiting.pop(number), self.now)
            self.ended[which] = "cancelled"
            self.step()
        elif number in self.flying:
            self.forget(number)
            self.complete(number, cancelled=True)

    def see(self, many):
        self.controller.observe(servers(many), self.now)
        self.step()

    def shut(self, _):
        self.tell(self.controller.shutdown(self.now))


# --- in an event loop, and from threads -----------------------------------------------------------------------------


class InALoop:
    """The same in an event loop: a task for each request."""

    def __init__(self, story):
        self.controller = recorded(story)
        self.story = story
        self.ended = [""] * len(story.requests)

    def run(self):
        run(self.main)
        return self

    async def main(self, loop):
        shell = AsyncFlowController(self.controller, clock=loop.time)

        async def request(which, told):
            try:
                async with shell.admit(told.item) as admission:
                    admission.dispatched("ep")
                    await asyncio.sleep(told.hold)
                    admission.usage = told.usage
                self.ended[which] = "completed"
            except QueueRefusedError as error:
                self.ended[which] = error.outcome
            except asyncio.CancelledError:
                self.ended[which] = "cancelled"

        tasks = []

        def begin(which, told):
            tasks.append(loop.create_task(request(which, told)))
            if told.cancel is not None:
                loop.call_at(told.cancel, tasks[-1].cancel)

        for which, told in enumerate(self.story.requests):
            loop.call_at(told.at, begin, which, told)
        for at, many in self.story.seen:
            loop.call_at(at, shell.observe, servers(many))
        if self.story.shutdown is not None:
            loop.call_at(self.story.shutdown, shell.shutdown)
        await asyncio.sleep(1_000.0)
        for which, task in enumerate(tasks):
            if not task.done():
                self.ended[which] = "waits"
                task.cancel()
        await asyncio.gather(*tasks)
        assert not len(shell) and not shell._desk.flying


class GoneError(Exception):
    """The client of a request in flight has gone."""


class FromThreads:
    """The same from threads: one for each request."""

    def __init__(self, story):
        self.controller = recorded(story)
        self.story = story
        self.ended = [""] * len(story.requests)

    def run(self):
        threads = VirtualThreads()
        shell = ThreadedFlowController(self.controller, clock=threads.time, event=threads.event)

        def request(which, told, admission, stop):
            try:
                with admission:
                    admission.on_revoke(stop.set)
                    admission.dispatched("ep")
                    if stop.wait(told.hold):
                        raise GoneError
                    admission.usage = told.usage
                self.ended[which] = "completed"
            except QueueRefusedError as error:
                gone = error.outcome == "evicted_cancelled"
                self.ended[which] = "cancelled" if gone else error.outcome
            except GoneError:
                self.ended[which] = "cancelled"

        def client_goes(admission, stop):
            if not admission.cancel():
                stop.set()

        waiting = []
        for which, told in enumerate(self.story.requests):
            admission, stop = shell.admit(told.item), threads.event()
            waiting.append((which, admission))
            threads.spawn(told.at, lambda a=(which, told, admission, stop): request(*a))
            if told.cancel is not None:
                threads.spawn(told.cancel, lambda a=(admission, stop): client_goes(*a))
        for at, many in self.story.seen:
            threads.spawn(at, lambda many=many: shell.observe(servers(many)))
        if self.story.shutdown is not None:
            threads.spawn(self.story.shutdown, shell.shutdown)

        def the_end():
            for which, admission in waiting:
                if admission.cancel():
                    self.ended[which] = "waits"

        threads.spawn(1_000.0, the_end)
        threads.run()
        assert not len(shell) and not shell._desk.flying
        return self
