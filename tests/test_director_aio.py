"""How requests wait for the director in an event loop: in virtual time, with upstreams that are coroutines."""

import asyncio

import hypothesis.strategies as st
from hypothesis import given, settings

from inferencesched.director import AsyncDirector, Decision
from inferencesched.flowcontrol import QueueBudget
from inferencesched.request import Usage
from tests import virtual
from tests.director_parts import Counting, chat, director, fleet, queue, rng


def shell(loop, pool=None, **more):
    return AsyncDirector(director(fleet("a", "b") if pool is None else pool, **more), rng(), clock=loop.time)


async def serve(gateway, seconds, answers, name):
    """A whole request: wait, stream, end."""
    decision = await gateway.decide(chat(name), {"x-request-id": name})
    answers[name] = decision
    if decision.forwarded:
        decision.life.first_token(now=gateway.now())
        await asyncio.sleep(seconds)
        decision.life.complete(Usage(10, 5), now=gateway.now())


def test_who_waits_goes_when_somebody_ends():
    answers = {}

    async def main(loop):
        gateway = shell(loop, controller=queue(2))
        await asyncio.gather(*(serve(gateway, 1.0, answers, f"r{i}") for i in range(7)))
        assert loop.time() == 4.0
        assert len(gateway) == len(gateway.director) == 0

    virtual.run(main)
    assert len(answers) == 7
    assert all(decision.forwarded for decision in answers.values())


def test_who_waits_too_long_is_told_at_its_time():
    answers = {}

    async def main(loop):
        gateway = shell(loop, controller=queue(1, budget=QueueBudget(ttl=2.5)))
        await asyncio.gather(serve(gateway, 10.0, answers, "long"), serve(gateway, 1.0, answers, "late"))
        assert loop.time() == 10.0

    virtual.run(main)
    assert answers["late"].outcome == "evicted_ttl"


def test_shutdown_answers_who_waits():
    answers = {}

    async def main(loop):
        gateway = shell(loop, controller=queue(1))
        tasks = [asyncio.ensure_future(serve(gateway, 1.0, answers, f"r{i}")) for i in range(3)]
        await asyncio.sleep(0.5)
        gateway.shutdown()
        await asyncio.gather(*tasks)

    virtual.run(main)
    assert sorted(decision.outcome for decision in answers.values()) == ["evicted_shutdown"] * 2 + ["forwarded"]


def test_a_pool_that_is_observed_lets_go_who_may():
    async def main(loop):
        controller = queue(0)
        gateway = shell(loop, controller=controller)
        task = asyncio.ensure_future(gateway.decide(chat(), {}))
        await asyncio.sleep(1.0)
        assert len(gateway) == 1
        controller._gate.room = 1
        gateway.observe("llama")
        decision = await task
        assert loop.time() == 1.0
        decision.life.complete(now=gateway.now())

    virtual.run(main)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 3), st.none() | st.floats(0, 4)), max_size=12), st.integers(1, 3)
)
@settings(max_examples=60, deadline=None)
def test_clients_that_go_at_any_time_leave_nothing(clients, room):
    meter, pool = Counting(), fleet("a", "b")

    async def main(loop):
        gateway = shell(loop, pool, controller=queue(room, budget=QueueBudget(ttl=2.0)), meters=(meter,))

        async def client(begin, seconds, leaves):
            await asyncio.sleep(begin)

            async def request():
                decision = await gateway.decide(chat(), {})
                assert isinstance(decision, Decision)
                if not decision.forwarded:
                    return
                try:
                    await asyncio.sleep(seconds)
                except asyncio.CancelledError:
                    decision.life.cancel(now=gateway.now())
                    raise
                decision.life.complete(now=gateway.now())

            task = asyncio.ensure_future(request())
            if leaves is not None:
                await asyncio.sleep(leaves)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        await asyncio.gather(*(client(*each) for each in clients))
        assert len(gateway) == len(gateway.director) == 0
        gateway.director.check()

    virtual.run(main)
    assert not meter.open
    assert pool.ledger().inflight_requests == 0
