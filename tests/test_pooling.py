"""Are connections used again, and is each closed that is not?"""

import asyncio

import httpx
import pytest

import inferencesched as isched
from inferencesched.adapters.pooling import StackTransport
from tests.servers import ModelServer, serving

pytestmark = pytest.mark.anyio
SAID = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def anyio_backend():
    """asyncio: uvicorn's."""
    return "asyncio"


class Counting:
    """An application that says over how many connections it was asked."""

    def __init__(self, app):
        self.app, self.clients = app, set()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.clients.add(scope["client"])
        await self.app(scope, receive, send)


async def test_one_after_another_goes_over_one_connection_and_many_at_once_over_many():
    app = Counting(ModelServer())
    transport = StackTransport(keep=3)
    async with serving(app) as address, httpx.AsyncClient(transport=transport) as client:
        url = f"http://{address}/v1/chat/completions"
        for i in range(6):
            answer = await client.post(url, json={**SAID, "stream": bool(i % 2)})
            assert answer.status_code == 200
        assert (len(app.clients), transport.kept, transport.open) == (1, 1, 0)
        await asyncio.gather(*(client.post(url, json=SAID) for _ in range(8)))
        assert len(app.clients) == 8
        assert (transport.kept, transport.open) == (3, 0)
    assert transport.kept == 0


async def test_each_server_has_its_own():
    transport = StackTransport()
    async with (
        serving(ModelServer()) as a,
        serving(ModelServer()) as b,
        httpx.AsyncClient(transport=transport) as client,
    ):
        for address in (a, b, a, b):
            await client.post(f"http://{address}/v1/chat/completions", json=SAID)
        assert transport.kept == 2


@pytest.mark.parametrize("fault", ["cut", "silent"])
async def test_what_breaks_off_or_is_left_is_closed_and_never_used_again(fault):
    app = Counting(ModelServer(fault=fault, tokens=50, after=2))
    transport = StackTransport()
    async with serving(app) as address, httpx.AsyncClient(transport=transport, timeout=None) as client:
        url = f"http://{address}/v1/chat/completions"
        if fault == "cut":
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(url, json={**SAID, "stream": True})
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.post(url, json={**SAID, "stream": True})
        assert (transport.kept, transport.open) == (0, 0)
        app.app.fault = ""
        assert (await client.post(url, json=SAID)).status_code == 200
        assert len(app.clients) == 2


async def test_a_server_that_closes_and_one_that_is_gone():
    transport = StackTransport()
    async with httpx.AsyncClient(transport=transport) as client:
        async with serving(ModelServer()) as address:
            url = f"http://{address}/v1/chat/completions"
            await client.post(url, json=SAID)
            assert transport.kept == 1
        with pytest.raises(httpx.ConnectError):
            await client.post(url, json=SAID)
        assert (transport.kept, transport.open) == (0, 0)


async def test_what_is_idle_for_long_is_closed():
    app = Counting(ModelServer())
    transport = StackTransport(idle=0.05)
    async with (
        serving(app) as address,
        serving(ModelServer()) as other,
        httpx.AsyncClient(transport=transport) as client,
    ):
        await client.post(f"http://{address}/v1/chat/completions", json=SAID)
        await asyncio.sleep(0.1)
        await client.post(f"http://{address}/v1/chat/completions", json=SAID)
        assert len(app.clients) == 2
        await asyncio.sleep(0.1)
        transport._asked = 511
        await client.post(f"http://{other}/v1/chat/completions", json=SAID)
        assert transport.kept == 1


async def test_timeouts_are_httpxs():
    transport = StackTransport()
    async with (
        serving(ModelServer(fault="silent")) as address,
        httpx.AsyncClient(transport=transport, timeout=0.1) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"http://{address}/v1/chat/completions", json={**SAID, "stream": True})
    assert transport.open == 0


@pytest.mark.parametrize(
    ("more", "word"), [({"keep": -1}, "keep"), ({"idle": 0.0}, "idle"), ({"idle": float("inf")}, "idle")]
)
async def test_parameters_that_cannot_be_are_named(more, word):
    with pytest.raises(isched.InvalidInputError, match=word):
        StackTransport(**more)
