"""Does LiteLLM's real router do what the callback says, before small servers? (`make e2e`)"""

import asyncio

import pytest

litellm = pytest.importorskip("litellm", reason="litellm is not installed: `make e2e` installs it")

from inferencesched.adapters.litellm import SchedulingCallback, metrics_url
from tests.servers import ModelServer, serving

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture(scope="module")
def anyio_backend():
    """asyncio, one loop for all: LiteLLM's logging worker belongs to the first that it sees."""
    return "asyncio"


@pytest.fixture(scope="module")
def registered():
    """One callback for all: LiteLLM keeps the first of a class in its list of loggers, whatever comes and goes later."""
    made = SchedulingCallback()
    litellm.callbacks.append(made)
    return made


@pytest.fixture
def callback(registered):
    """The callback, before a test that knows of no server."""
    registered.keep(())
    registered.balancer.forget()
    yield registered
    registered.balancer.pool.check()


def router(*addresses, **more):
    """A router of one group with a deployment a server."""
    deployments = [
        {
            "model_name": "llama",
            "litellm_params": {"model": "openai/llama", "api_base": f"http://{address}/v1", "api_key": "none"},
            "model_info": {"id": f"ep-{i}"},
        }
        for i, address in enumerate(addresses)
    ]
    return litellm.Router(model_list=deployments, **{"num_retries": 0, **more})


async def settled(callback):
    """Wait until nothing is in flight: LiteLLM tells of a stream's end in the background."""
    for _ in range(400):
        if not len(callback):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(callback)} calls are still in flight")


def chat(text):
    """One user's turn."""
    return [{"role": "user", "content": text}]


async def test_a_conversation_stays_where_its_prefix_is_and_others_spread(callback):
    servers = [ModelServer() for _ in range(3)]
    async with serving(servers[0]) as a, serving(servers[1]) as b, serving(servers[2]) as c:
        asking = router(a, b, c)
        for round_ in range(3):
            for user in range(6):
                await asking.acompletion(
                    "llama", chat(f"I am user number {user}. " + "a long story " * 40 + "x" * round_)
                )
        counts = [len(server.seen) for server in servers]
        await settled(callback)
    for server in servers:
        said = [str(body["messages"][0]["content"])[:19] for _, body in server.seen]
        assert all(said.count(who) == 3 for who in said), said  # all three turns of a user, or none
    assert sorted(counts) == [6, 6, 6]


async def test_what_is_in_flight_counts_while_it_is_there_streams_too(callback):
    servers = [ModelServer(tokens=4, pause=0.05) for _ in range(2)]
    async with serving(servers[0]) as a, serving(servers[1]) as b:
        asking = router(a, b)

        async def one(i):
            answer = await asking.acompletion("llama", chat(f"{i} is asked"), stream=bool(i % 2))
            if i % 2:
                return "".join([piece.choices[0].delta.content or "" async for piece in answer])
            return answer.choices[0].message.content

        tasks = [asyncio.create_task(one(i)) for i in range(8)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, len(callback))
            await asyncio.sleep(0.005)
        texts = await asyncio.gather(*tasks)
        await settled(callback)
    assert most == 8
    assert texts[1] == "xxxx"
    assert [len(server.seen) for server in servers] == [4, 4]


async def test_a_failing_deployment_is_retried_elsewhere_and_given_back(callback):
    servers = [ModelServer(fault="status"), ModelServer()]
    async with serving(servers[0]) as a, serving(servers[1]) as b:
        asking = router(a, b, num_retries=3, allowed_fails=0, cooldown_time=30)
        answers = [await asking.acompletion("llama", chat(f"question {i}")) for i in range(6)]
        await settled(callback)
    assert all(answer.choices[0].finish_reason == "length" for answer in answers)
    assert len(servers[1].seen) == 6


async def test_a_deployment_that_was_taken_off_is_let_go(callback):
    servers = [ModelServer() for _ in range(2)]
    async with serving(servers[0]) as a, serving(servers[1]) as b:
        await router(a, b).acompletion("llama", chat("hello"))
        await settled(callback)
    assert set(callback.balancer.pool.names) == {"ep-0", "ep-1"}
    callback.keep(["ep-1"])
    assert callback.balancer.pool.names == ("ep-1",)
    endpoints = callback.balancer.pool.snapshot()
    assert metrics_url(endpoints.identity(0)[2]) == f"http://{b}/metrics"
