"""A gateway of flesh: real sockets, small model servers, faults at every place of a request's life."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import numpy as np
import pytest

import inferencesched as isched
from inferencesched.adapters.asgi import Gateway, GatewayPolicy, app
from inferencesched.director import AsyncDirector, Director, ServingPool
from inferencesched.flowcontrol import FlowController
from inferencesched.lifecycle import RetryPolicy
from inferencesched.observability import MetricsSink
from inferencesched.routing.objectives import ModelMatch, ModelRewrite, ModelTable, RewriteRule, WeightedModel
from tests.director_parts import Gate, chat, scheduler
from tests.servers import ModelServer, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(name="anyio_backend", scope="module")
def _anyio_backend():
    return "asyncio"


class House:
    """A gateway with its servers, while they run."""

    def __init__(self, url, client, pool, director, gateway, addresses):
        self.url, self.client, self.pool = url, client, pool
        self.director, self.gateway, self.addresses = director, gateway, addresses

    async def post(self, body, path="/v1/chat/completions", **headers):
        return await self.client.post(f"{self.url}{path}", content=body, headers=headers)

    async def quiet(self):
        """Wait until nobody is here, and check that nothing is left."""
        for _ in range(400):
            if not len(self.director):
                break
            await asyncio.sleep(0.005)
        assert len(self.director) == 0
        self.director.check()
        assert self.pool.ledger().inflight_requests == 0


@asynccontextmanager
async def house(*servers, policy=None, controller=None, **more):
    """Run these servers and a gateway before them; None is a server whose port nobody listens on."""
    async with AsyncExitStack() as stack:
        pool, addresses = isched.InferencePool(), []
        for i, server in enumerate(servers):
            address = "127.0.0.1:9" if server is None else await stack.enter_async_context(serving(server))
            pool.join(f"ep-{i}", address=address)
            addresses.append(address)
        sink = MetricsSink()
        director = Director(
            {"llama": ServingPool(pool, scheduler(), controller)}, retry=RetryPolicy(budget=None), sink=sink, **more
        )
        shell = AsyncDirector(director, np.random.default_rng(7))
        upstream = await stack.enter_async_context(httpx.AsyncClient(timeout=None))
        gateway = Gateway(shell, upstream, policy=policy or GatewayPolicy(first_token=0.5, between=0.5))
        whole = app(gateway, registry=sink.registry, models=["llama"], patience=1.0)
        address = await stack.enter_async_context(serving(whole))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=10.0))
        yield House(f"http://{address}", client, pool, director, gateway, addresses)


def events(text):
    """Return what a stream's events say."""
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]


async def test_an_answer_comes_whole_and_is_accounted():
    async with house(ModelServer()) as here:
        answer = await here.post(chat(), **{"x-request-id": "r-1", "x-llm-d-inference-fairness-id": "me"})
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 4
        assert answer.headers["x-request-id"] == "r-1"
        await here.quiet()
        page = (await here.client.get(f"{here.url}/metrics")).text
        assert 'llm_d_epp_request_output_tokens_sum{model_name="llama"' in page
        told = (await here.client.get(f"{here.url}/debug/explain/r-1")).text
        assert "forwarded" in told and "ep-0" in told
        assert (await here.client.get(f"{here.url}/debug/explain/r-9")).status_code == 404
        assert (await here.client.get(f"{here.url}/healthz")).text == "ok"
        assert (await here.client.get(f"{here.url}/v1/models")).json()["data"][0]["id"] == "llama"
        assert (await here.client.get(f"{here.url}/v1/chat/completions")).status_code == 405


async def test_the_server_hears_what_it_should():
    server = ModelServer()
    async with house(server) as here:
        await here.post(chat(), **{"x-llm-d-inference-objective": "chat", "x-own": "kept", "authorization": "Bearer k"})
        headers, asked = server.seen[0]
        assert headers[b"x-own"] == b"kept" and headers[b"authorization"] == b"Bearer k"
        assert b"x-llm-d-inference-objective" not in headers
        assert headers[b"x-gateway-destination-endpoint"].decode() == here.addresses[0]
        assert asked["model"] == "llama"


async def test_a_stream_comes_piece_by_piece():
    async with house(ModelServer(tokens=5, pause=0.05)) as here:
        loop = asyncio.get_running_loop()
        async with here.client.stream("POST", f"{here.url}/v1/chat/completions", content=chat(stream=True)) as answer:
            assert answer.headers["content-type"] == "text/event-stream"
            times = [loop.time() async for _ in answer.aiter_raw()]
        assert times[-1] - times[0] > 0.15  # it was not held to its end
        await here.quiet()


async def test_the_client_s_model_name_comes_back():
    rule = RewriteRule(ModelMatch(("llama",)), (WeightedModel("llama-8b", 1),))
    server = ModelServer()
    async with house(server, models=ModelTable(rewrites=(ModelRewrite("r", (rule,)),))) as here:
        answer = await here.post(chat(stream=True))
        assert server.seen[0][1]["model"] == "llama-8b"
        assert {json.loads(each)["model"] for each in events(answer.text)[:-1]} == {"llama"}


@pytest.mark.parametrize(
    ("fault", "stream"), [("status", True), ("status", False), ("silent", True), ("done", True), ("cut", True)]
)
async def test_before_the_first_token_another_server_is_tried(fault, stream):
    broken = ModelServer(fault=fault)
    async with house(broken, ModelServer(), None) as here:
        for _ in range(6):
            answer = await here.post(chat(stream=stream))
            assert answer.status_code == 200
            assert "error" not in answer.text
        await here.quiet()
        assert broken.seen, "it was tried"


@pytest.mark.parametrize("fault", ["done", "cut"])
async def test_after_the_first_token_the_stream_ends_with_an_error(fault):
    server = ModelServer(tokens=5, fault=fault, after=2)
    async with house(server, server) as here:
        answer = await here.post(chat(stream=True))
        said = events(answer.text)
        assert len(server.seen) == 1
        assert len(said) == 3 and "[DONE]" not in said
        assert json.loads(said[-1])["error"]["code"] == "upstream_failed"
        await here.quiet()


async def test_nobody_left_is_502_and_what_the_client_did_wrong_is_its_own():
    async with house(None, None) as here:
        answer = await here.post(chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        await here.quiet()
    server = ModelServer(fault="bad")
    async with house(server, server) as here:
        answer = await here.post(chat(stream=True))
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "no such thing")
        assert len(server.seen) == 1
        assert (await here.post(b"{")).status_code == 400
        assert (await here.post(chat(), path="/v1/images")).status_code == 404
        await here.quiet()


async def test_a_body_that_is_too_large():
    async with house(ModelServer(), policy=GatewayPolicy(max_body=1000)) as here:
        answer = await here.post(chat("x" * 2000))
        assert answer.status_code == 413


@pytest.mark.parametrize("seconds", [0.02, 0.15, 0.3])
async def test_a_client_that_goes_leaves_nothing_behind(seconds):
    server = ModelServer(tokens=50, pause=0.05)
    controller = FlowController(gate=Gate(room=1))
    async with house(server, controller=controller) as here:

        async def gone():
            task = asyncio.create_task(here.post(chat(stream=True)))
            await asyncio.sleep(seconds)
            task.cancel()

        await asyncio.gather(*(gone() for _ in range(8)))
        await here.quiet()
        assert controller.bands[0].requests == 0


async def test_a_slow_client_slows_its_server():
    server = ModelServer(tokens=400, size=64 << 10)  # 25 MB in all
    async with house(server, policy=GatewayPolicy(between=20.0)) as here:
        async with here.client.stream("POST", f"{here.url}/v1/chat/completions", content=chat(stream=True)) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            await asyncio.sleep(0.5)
            assert server.sent < 250, "somebody holds it all"
            async for _ in pieces:
                continue
        assert server.sent == 400
        await here.quiet()


async def test_draining_lets_nobody_in_and_those_inside_end():
    async with house(ModelServer(tokens=4, pause=0.05)) as here:
        inside = asyncio.create_task(here.post(chat(stream=True)))
        await asyncio.sleep(0.1)
        left = await here.gateway.drain(5.0)
        assert left == 0
        assert events((await inside).text)[-1] == "[DONE]"
        assert (await here.client.get(f"{here.url}/healthz")).status_code == 503
        assert (await here.post(chat())).status_code == 503


async def test_a_part_in_the_background_that_fails_is_said():
    async def fails():
        raise ZeroDivisionError

    pool = isched.InferencePool()
    pool.join("ep-0", address="127.0.0.1:9")
    shell = AsyncDirector(Director({"llama": ServingPool(pool, scheduler())}), np.random.default_rng(7))
    async with httpx.AsyncClient() as client:
        upstream = httpx.AsyncClient()
        whole = app(Gateway(shell, upstream), background=[fails], resources=[upstream], patience=0.1)
        async with serving(whole) as address:
            answer = await client.get(f"http://{address}/healthz")
            assert answer.status_code == 503
            assert "ZeroDivisionError" in answer.text
            assert not upstream.is_closed
        assert upstream.is_closed
