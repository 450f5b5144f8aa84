"""The shells decide what the controller decides by hand, whatever comes, goes, is taken back or raises; and nothing leaks."""

import asyncio
import random
import threading
import time

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from inferencesched.errors import (
    PluginError,
    QueueEvictedError,
    QueueRejectedError,
    QueueRevokedError,
    TicketError,
)
from inferencesched.flowcontrol import (
    Capacity,
    FlowController,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    StartTimeFair,
    TokenCost,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.aio import AsyncFlowController
from inferencesched.flowcontrol.log import RecordedController, replay
from inferencesched.flowcontrol.threaded import ThreadedFlowController
from inferencesched.request import Usage
from tests.flow_shells import (
    ByHand,
    FromThreads,
    InALoop,
    Slots,
    TakesBack,
    TieError,
    decisions,
    recorded,
    servers,
    stories,
)
from tests.virtual import VirtualThreads, run


def item(name="r", **said):
    return QueueItem(request_id=name, **said)


def nothing_left(controller, shell=None):
    """Assert that nothing waits, nothing is in flight, and all room is free."""
    plain = controller.controller if isinstance(controller, RecordedController) else controller
    plain.check()
    bands = plain._books.order
    assert [(b.requests, b.inflight, b.tokens) for b in bands] == [(0, 0, 0)] * len(bands)
    assert plain._inflight == {}
    if isinstance(plain._gate, Slots):
        assert plain._gate.taken == 0
    if shell is not None:
        assert len(shell) == 0
        assert shell._desk.flying == {}


# --- one story, told three times -------------------------------------------------------------------------------------


def same(hand, other):
    """The end of a test lets everybody out who waits: so many calls more."""
    first, second = decisions(hand.controller.log()), decisions(other.controller.log())
    assert second[: len(first)] == first
    assert len(second) - len(first) == hand.ended.count("waits")
    assert other.ended == hand.ended
    nothing_left(other.controller)


@given(stories())
def test_by_hand_in_a_loop_and_from_threads(story):
    try:
        hand = ByHand(story).run()
    except TieError:
        assume(False)
        raise
    for end in set(hand.ended):
        event(end)
    same(hand, InALoop(story).run())
    same(hand, FromThreads(story).run())
    log = hand.controller.log()
    assert replay(log, lambda: recorded(story).controller) == log


# --- nothing leaks, whenever a client goes ---------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 25)), min_size=4, max_size=16),
    st.booleans(),
)
def test_a_client_may_go_at_any_turn_of_the_loop(clients, reclaims):
    """Several things at one time, in one turn: what is cancelled is at the gate, waits, is just let go, or is served."""
    controller = FlowController(
        gate=Slots(2), capacity=Capacity(9), reclaimer=TakesBack() if reclaims else None, budget=QueueBudget(ttl=1.5)
    )

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)
        ended = []

        async def request(number, at, hold):
            await asyncio.sleep(at)
            try:
                async with shell.admit(item(f"r{number}", priority=number % 3 - 1, input_tokens=number)):
                    for _ in range(hold):
                        await asyncio.sleep(1.0 if hold % 2 else 0)
                ended.append("completed")
            except (QueueRejectedError, QueueEvictedError, QueueRevokedError) as error:
                ended.append(error.outcome)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

        tasks = [loop.create_task(request(i, at, hold)) for i, (at, hold, _) in enumerate(clients)]
        for now in range(1, 26):
            for task, (_, _, turn) in zip(tasks, clients, strict=True):
                if turn == now:
                    task.cancel()
            await asyncio.sleep(0 if now % 3 else 0.5)
        await asyncio.gather(*tasks, return_exceptions=True)
        nothing_left(controller, shell)
        return ended

    for end in set(run(main)):
        event(end)


def test_a_cancellation_that_meets_its_dispatch_is_as_if_it_had_not_been_dispatched():
    gate = Slots(1)
    controller = RecordedController(FlowController(gate=gate, default=PriorityBand(0, fairness=VirtualTokenCounter())))

    async def main(loop):
        shell, served = AsyncFlowController(controller, clock=loop.time), []

        async def request(name, flow):
            async with shell.admit(item(name, flow=flow, input_tokens=50)):
                served.append(name)
                await asyncio.sleep(1.0)

        tasks = [loop.create_task(request(name, name)) for name in ("one", "two", "three")]
        await asyncio.sleep(0.5)
        loop.call_at(1.0, lambda: loop.call_soon(tasks[1].cancel))  # "one" ends at 1.0, and "two" is let go then
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == ["one", "three"] and loop.time() == 2.0
        nothing_left(controller, shell)
        flows = controller.controller._books.order[0].flows
        return {name: flow.counter for name, flow in flows.items()}

    counters = run(main)
    assert counters["two"] < counters["three"]  # it was not charged


# --- an event loop ---------------------------------------------------------------------------------------------------


def test_what_goes_at_once_waits_for_nothing():
    """Without an await that yields, an admission is one call after another: no future, no turn of the loop."""
    shell = AsyncFlowController(FlowController())

    async def whole():
        async with shell.admit(item()) as admission:
            admission.dispatched("ep-0")
        return admission

    coroutine = whole()

    async def main(loop):
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        return done.value.value

    admission = run(main)
    assert admission.ticket.endpoint == "ep-0" and admission.ticket.outcome is QueueOutcome.COMPLETED
    assert repr(admission) == "AsyncAdmission(Ticket('r' of default-flow:0, completed))"


def test_what_its_client_is_told():
    controller = FlowController(
        gate=Slots(0), default=PriorityBand(0, capacity=Capacity(1)), budget=QueueBudget(ttl=5.0)
    )

    async def main(loop):
        shell, told = AsyncFlowController(controller, clock=loop.time), []

        async def request(name):
            try:
                async with shell.admit(item(name)):
                    raise AssertionError("it may not go")
            except (QueueRejectedError, QueueEvictedError) as error:
                told.append((loop.time(), error.request_id, error.outcome, error.status, dict(error.headers)))

        first = loop.create_task(request("first"))
        await asyncio.sleep(1.0)
        await request("second")
        await first
        last = loop.create_task(request("last"))
        await asyncio.sleep(1.0)
        shell.shutdown()
        await last
        await request("late")
        nothing_left(controller, shell)
        return told

    reason = "x-llm-d-request-dropped-reason"
    assert run(main) == [
        (1.0, "second", "rejected_capacity", 429, {reason: "rejected-saturated", "retry-after": "1"}),
        (5.0, "first", "evicted_ttl", 429, {reason: "rejected-ttl-expired", "retry-after": "1"}),
        (6.0, "last", "evicted_shutdown", 503, {reason: "rejected-shutting-down"}),
        (6.0, "late", "rejected_shutdown", 503, {reason: "rejected-shutting-down"}),
    ]


def test_whatever_is_raised_in_the_block_completes_it():
    controller = FlowController(gate=Slots(1))

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)
        admission = shell.admit(item())

        async def block():
            async with admission:
                admission.usage = Usage(3, 4)
                raise KeyError("body")

        with pytest.raises(KeyError):
            await block()
        assert admission.ticket.outcome is QueueOutcome.COMPLETED
        with pytest.raises(TicketError, match="ask for it anew"):
            await admission.__aenter__()
        nothing_left(controller, shell)

    run(main)


def full_of(priority, shell, loop, ended, body=None):
    async def request(name):
        try:
            async with shell.admit(item(name, priority=priority)) as admission:
                if body is None:
                    await asyncio.sleep(10.0)
                else:
                    await body(admission)
            ended.append((name, loop.time(), "completed"))
        except QueueRevokedError as error:
            ended.append((name, loop.time(), error.outcome, error.status, type(error.__cause__).__name__))

    return request


@pytest.mark.parametrize("requeue", [False, True])
def test_what_is_taken_back_is_cancelled(requeue):
    controller = FlowController(gate=Slots(1), reclaimer=TakesBack())

    async def main(loop):
        shell, ended = AsyncFlowController(controller, clock=loop.time), []
        begun = []

        async def body(admission):
            begun.append(loop.time())
            await asyncio.sleep(10.0)
            return "served"

        async def batch():
            if requeue:
                ended.append(await shell.serve(item("batch", priority=-1), body))
            else:
                await full_of(-1, shell, loop, ended)("batch")

        task = loop.create_task(batch())
        await asyncio.sleep(1.0)
        async with shell.admit(item("chat", priority=1)) as chat:
            assert loop.time() == 1.0
            await asyncio.sleep(2.0)
        await task
        assert not task.cancelling() and not chat.revoked
        nothing_left(controller, shell)
        return ended, begun, loop.time()

    ended, begun, end = run(main)
    if requeue:
        assert (ended, begun, end) == (["served"], [0.0, 3.0], 13.0)
    else:
        assert ended == [("batch", 1.0, "revoked", 429, "CancelledError")]


@pytest.mark.parametrize(("streams", "requeues", "times"), [(True, 3, 1), (False, 0, 1), (False, 2, 3)])
def test_how_often_what_is_taken_back_is_served(streams, requeues, times):
    controller = FlowController(gate=Slots(1), reclaimer=TakesBack())

    async def main(loop):
        shell, begun = AsyncFlowController(controller, clock=loop.time), []

        async def body(admission):
            begun.append(loop.time())
            admission.streamed = streams
            await asyncio.sleep(10.0)

        task = loop.create_task(shell.serve(item("batch", priority=-1), body, requeues=requeues))
        for _ in range(3):
            await asyncio.sleep(1.0)
            async with shell.admit(item("chat", priority=1)):
                await asyncio.sleep(1.0)
        with pytest.raises(QueueRevokedError):
            await task
        nothing_left(controller, shell)
        return len(begun)

    assert run(main) == times


def test_a_block_that_ends_well_has_ended_well():
    """Whoever is taken back while it turns the crank itself, or does not mind being cancelled, has completed; its task goes on."""
    controller = FlowController(gate=Slots(2), reclaimer=TakesBack())

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)

        async def unmoved():
            async with shell.admit(item("unmoved", priority=-1)) as admission:
                try:
                    await asyncio.sleep(10.0)
                except asyncio.CancelledError:
                    assert admission.revoked
            await asyncio.sleep(1.0)
            return admission.ticket.outcome

        async def alone():
            async with shell.admit(item("alone", priority=-1)) as admission:
                await asyncio.sleep(1.0)
                task = loop.create_task(chat("second"))
                shell.observe(servers(1))  # less room, and this request is the newest
                await task_begins(task)
            await asyncio.sleep(1.0)
            return admission.ticket.outcome

        async def task_begins(task):
            while not shell._desk.waiting and not task.done():
                await asyncio.sleep(0)

        async def chat(name):
            async with shell.admit(item(name, priority=1)):
                await asyncio.sleep(1.0)

        first = loop.create_task(unmoved())
        second = loop.create_task(alone())
        await asyncio.sleep(2.0)
        await asyncio.gather(chat("third"), chat("fourth"))
        ends = await asyncio.gather(first, second, return_exceptions=True)
        nothing_left(controller, shell)
        return ends, first.cancelling(), second.cancelling()

    ends, *cancelling = run(main)
    assert cancelling == [0, 0]
    assert ends[0] is QueueOutcome.COMPLETED
    assert isinstance(ends[1], QueueRevokedError)


def test_a_request_that_takes_itself_back_has_not_been_cancelled_when_its_block_ends():
    """The cancellation has not come yet when the block ends without an await: it does not come later either."""

    class Once(TakesBack):
        def reclaim(self, band, level, ceiling, inflight, now):
            return [t for t in inflight.values() if t.item.priority < 0][:1] if not self.asked else []

        def dispatched(self, ticket, now):
            pass

    controller = FlowController(gate=Slots(1), reclaimer=Once())

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)
        async with shell.admit(item("batch", priority=-1)) as batch:
            chat = shell.admit(item("chat", priority=1))
            coming = chat.__aenter__()
            future = coming.send(None)  # it waits, and this very task is told to stop
            assert batch.revoked and future is not None
        assert batch.ticket.outcome is QueueOutcome.COMPLETED
        await asyncio.sleep(1.0)
        with pytest.raises(StopIteration):
            coming.send(None)
        await chat.__aexit__(None, None, None)
        nothing_left(controller, shell)
        return asyncio.current_task().cancelling()

    assert run(main) == 0


def test_a_client_that_goes_while_its_request_is_taken_back_is_cancelled():
    """And what it asked for does not wait again."""
    controller = FlowController(gate=Slots(1), reclaimer=TakesBack())

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)

        async def body(admission):
            await asyncio.sleep(10.0)

        async def chat():
            async with shell.admit(item("chat", priority=1)):
                await asyncio.sleep(1.0)

        batch = loop.create_task(shell.serve(item("batch", priority=-1), body))
        await asyncio.sleep(1.0)
        other = loop.create_task(chat())
        await asyncio.sleep(0)  # the chat has come, and the batch does not know yet that it should stop
        batch.cancel()
        await other
        with pytest.raises(asyncio.CancelledError):
            await batch
        nothing_left(controller, shell)

    run(main)


class Breaks:
    """A gate that raises while it is broken."""

    def __init__(self):
        self.broken = False
        self.room = 1

    def observe(self, endpoints, now):
        self.room = len(endpoints)

    def level(self, now):
        if self.broken:
            raise PluginError(self, "nothing", "a number")
        return 0.0 if self.room > 0 else 1.0

    def dispatched(self, ticket, now):
        self.room -= 1

    def finished(self, ticket, now):
        self.room += 1


def test_a_policy_that_raises_costs_nobody_a_place():
    gate = Breaks()
    controller = FlowController(gate=gate)

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)

        async def request(name):
            async with shell.admit(item(name)) as admission:
                await asyncio.sleep(1.0)
            return admission.ticket.outcome

        waits = loop.create_task(request("first")), loop.create_task(request("second"))
        await asyncio.sleep(0.5)
        gate.broken = True
        with pytest.raises(PluginError):
            await request("third")
        gate.broken = False
        assert await asyncio.gather(*waits) == [QueueOutcome.COMPLETED] * 2
        assert loop.time() == 2.0
        nothing_left(controller, shell)
        assert gate.room == 1

    run(main)


def test_a_timer_in_which_a_policy_raises_tells_the_loop_and_tries_again():
    gate = Breaks()
    controller = FlowController(gate=gate, budget=QueueBudget(ttl=3.0))

    async def main(loop):
        shell, wrong = AsyncFlowController(controller, clock=loop.time), []
        loop.set_exception_handler(lambda _, context: wrong.append((loop.time(), type(context["exception"]))))
        gate.room = 0

        async def request(name, ttl):
            with pytest.raises(QueueEvictedError):
                async with shell.admit(item(name, ttl=ttl)):
                    pass

        tasks = [loop.create_task(request("first", 1.0)), loop.create_task(request("second", None))]
        await asyncio.sleep(0.5)
        gate.broken = True
        loop.call_at(2.5, lambda: setattr(gate, "broken", False))
        await asyncio.gather(*tasks)
        nothing_left(controller, shell)
        return wrong, loop.time()

    assert run(main) == ([(1.0, PluginError), (2.0, PluginError)], 3.0)


def test_a_usage_that_is_none_leaves_nothing_in_flight():
    class Cost(TokenCost):
        def actual(self, item, usage):
            return float("nan")

    controller = FlowController(gate=Slots(1), cost=Cost())

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)
        with pytest.raises(ValueError, match="cost.actual"):
            async with shell.admit(item()) as admission:
                admission.usage = Usage(1, 1)
        nothing_left(controller, shell)

    run(main)


def test_what_has_lapsed_may_still_end():
    controller = FlowController(gate=Slots(1), inflight_ttl=5.0)

    async def main(loop):
        shell = AsyncFlowController(controller, clock=loop.time)

        async def forgets():
            async with shell.admit(item("long")) as admission:
                await asyncio.sleep(20.0)
            return admission.ticket.outcome

        task = loop.create_task(forgets())
        await asyncio.sleep(1.0)
        async with shell.admit(item("next")):
            assert loop.time() == 5.0
        assert await task is QueueOutcome.LAPSED
        nothing_left(controller, shell)

    run(main)


def test_a_clock_that_goes_back_stands_still():
    times = iter([5.0, 3.0, 3.0, 4.0, 6.0, 7.0, 8.0])

    async def main(loop):
        shell = AsyncFlowController(FlowController(), clock=lambda: next(times))
        async with shell.admit(item()) as admission:
            pass
        assert shell.now() == 5.0
        return admission.ticket

    assert run(main).enqueued_at == 5.0


def test_the_real_clock_and_another_loop():
    shell = AsyncFlowController(FlowController(gate=Slots(0)))

    async def main():
        with pytest.raises(QueueEvictedError):
            async with shell.admit(item(ttl=0.01)):
                pass

    asyncio.run(main())
    asyncio.run(main())
    nothing_left(shell.controller, shell)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_many_threads_and_nothing_is_lost():
    gate = Slots(3)
    controller = FlowController(
        gate=gate, default=PriorityBand(0, fairness=StartTimeFair(), capacity=Capacity(30)), reclaimer=TakesBack()
    )
    shell = ThreadedFlowController(controller)
    ended, lock, highest = [], threading.Lock(), []

    def client(number):
        rng = random.Random(number)
        for turn in range(12):
            admission = shell.admit(
                item(
                    f"{number}-{turn}",
                    flow=f"f{number % 3}",
                    priority=rng.choice((-1, 0, 1)),
                    ttl=rng.choice((None, 0.002, 0.02)),
                )
            )
            canceller = threading.Timer(0.003, admission.cancel) if turn % 4 == 0 else None
            if canceller is not None:
                canceller.start()
            try:
                with admission:
                    highest.append(gate.taken)
                    for _ in range(3):
                        time.sleep(0.0003)
                        admission.check()
                end = "completed"
            except (QueueRejectedError, QueueEvictedError, QueueRevokedError) as error:
                end = error.outcome
            if canceller is not None:
                canceller.join()
            with lock:
                ended.append(end)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive(), "a thread waits for nothing"
    nothing_left(controller, shell)
    assert len(ended) == 120 and ended.count("completed") > 0
    assert max(highest) <= 3


def test_whoever_keeps_the_time_hands_it_over():
    """The first that waits keeps the time; when it goes, another does; and it is woken where something is due before."""
    threads = VirtualThreads()
    controller = FlowController(gate=Slots(0), budget=QueueBudget(ttl=100.0))
    shell = ThreadedFlowController(controller, clock=threads.time, event=threads.event)
    ended = []

    def request(name, ttl):
        with pytest.raises(QueueEvictedError) as told, shell.admit(item(name, ttl=ttl)):
            pass
        ended.append((threads.time(), name, told.value.outcome))

    first = shell.admit(item("first", ttl=50.0))

    def goes():
        with pytest.raises(QueueEvictedError), first:
            pass
        ended.append((threads.time(), "first", "gone"))

    threads.spawn(0.0, goes)
    threads.spawn(1.0, lambda: request("second", 30.0))
    threads.spawn(2.0, lambda: request("third", 5.0))
    threads.spawn(4.0, first.cancel)
    threads.run()
    assert ended == [(4.0, "first", "gone"), (7.0, "third", "evicted_ttl"), (31.0, "second", "evicted_ttl")]
    nothing_left(controller, shell)


def test_a_thread_serves_again_what_was_taken_back():
    threads = VirtualThreads()
    controller = FlowController(gate=Slots(1), reclaimer=TakesBack())
    shell = ThreadedFlowController(controller, clock=threads.time, event=threads.event)
    begun, ended = [], []

    def body(admission):
        begun.append(threads.time())
        stop = threads.event()
        admission.on_revoke(stop.set)
        if stop.wait(10.0):
            raise ConnectionError("closed")
        return threads.time()

    def chat():
        with shell.admit(item("chat", priority=1)):
            threads.sleep(threads.time() + 2.0)

    threads.spawn(0.0, lambda: ended.append(shell.serve(item("batch", priority=-1), body)))
    threads.spawn(1.0, chat)
    threads.run()
    assert (begun, ended) == ([0.0, 3.0], [13.0])
    nothing_left(controller, shell)


def test_what_a_thread_is_told():
    gate = Breaks()
    controller = FlowController(gate=gate, default=PriorityBand(0, capacity=Capacity(2)))
    shell = ThreadedFlowController(controller)
    admission = shell.admit(item())

    def block():
        with admission:
            admission.usage = Usage(1, 2)
            admission.check()
            raise KeyError("body")

    with pytest.raises(KeyError):
        block()
    assert admission.ticket.outcome is QueueOutcome.COMPLETED
    assert not admission.cancel()
    assert not shell.admit(item("never asked")).cancel()
    gate.broken = True
    with pytest.raises(PluginError), shell.admit(item()):
        pass
    gate.broken = False
    shell.observe(servers(0))
    with pytest.raises(QueueEvictedError, match="evicted_no_endpoints"), shell.admit(item(ttl=0.001)):
        pass
    shell.shutdown()
    with pytest.raises(QueueRejectedError, match="rejected_shutdown"), shell.admit(item()):
        pass
    nothing_left(controller, shell)
    assert shell.now() > 0
