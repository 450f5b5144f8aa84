"""Do gateways hear of each other over a real Redis, and do they go on alone when it is gone?"""

import asyncio
import shutil
import signal
import socket
from contextlib import asynccontextmanager, suppress

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import inferencesched as isched
from inferencesched.adapters.redis import StreamReplicator
from tests.test_replication import Gateway

SERVER = shutil.which("redis-server")
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(SERVER is None, reason="no redis-server here: Debian's package of that name brings it"),
]


@pytest.fixture
def anyio_backend():
    """asyncio: the replicator's."""
    return "asyncio"


class Server:
    """A Redis that keeps nothing on disk, and can be killed, stopped and started."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = None

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            SERVER, "--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1",
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(400):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.01)
        raise AssertionError("redis-server did not start")

    async def kill(self):
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def redis():
    """A real Redis on this machine."""
    server = Server()
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@asynccontextmanager
async def shared(server, *gateways, **more):
    """Carry the deltas of these gateways; yields their replicators."""
    loop = asyncio.get_running_loop()
    clients = [Redis(port=server.port, socket_connect_timeout=0.3, retry=Retry(NoBackoff(), 0)) for _ in gateways]
    carriers = [
        StreamReplicator(each.replica, client, clock=loop.time, interval=0.005, patience=0.3, longest=0.1, **more)
        for each, client in zip(gateways, clients, strict=True)
    ]
    tasks = [asyncio.create_task(each.run()) for each in carriers]
    try:
        yield carriers
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        for client in clients:
            await client.aclose()
        assert all(isinstance(each, asyncio.CancelledError) for each in done), done


async def until(true, seconds=8.0):
    """Wait until something is so."""
    for _ in range(int(seconds / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


async def test_two_gateways_come_to_know_the_same_and_a_third_hears_of_the_past():
    one, two = Gateway("one"), Gateway("two")
    async with redis() as server, shared(server, one, two) as carriers:
        await until(lambda: all(each.state == "connected" for each in carriers))
        booked = [one.ask(i, at="ep-1") for i in range(3)]
        one.replica.quotas.add([("q", 0, 5)], 1e12)
        two.ask(4, at="ep-2")
        await until(lambda: one.loads() == two.loads() == {"ep-0": 0.0, "ep-1": 3.0, "ep-2": 1.0})
        assert two.depths(1)["ep-1"] == one.depths(4)["ep-2"] == 40.0
        assert two.replica.quotas.used("q", [0]) == [5]
        for each in booked:
            each.complete(now=2.0)
        await until(lambda: two.loads()["ep-1"] == 0.0)
        late = Gateway("late")
        async with shared(server, late):
            await until(lambda: late.loads()["ep-2"] == 1.0)
            assert [late.depths(i)["ep-1"] for i in range(3)] == [40.0] * 3
            assert late.replica.quotas.used("q", [0]) == [5]
    assert sum(each.unreadable for each in carriers) == 0


async def test_redis_killed_and_back_nobody_waits_for_it_and_it_heals():
    one, two = Gateway("one", silence=1.0, heartbeat=0.1), Gateway("two", silence=1.0, heartbeat=0.1)
    said = []
    async with (
        redis() as server,
        shared(server, one, two, on_state=lambda state, word: said.append((state, word))) as carriers,
    ):
        await until(lambda: all(each.state == "connected" for each in carriers))
        one.ask(0, at="ep-0")
        await until(lambda: two.loads()["ep-0"] == 1.0)
        await server.kill()
        await until(lambda: all(each.state == "alone" for each in carriers))
        loop = asyncio.get_running_loop()
        before = loop.time()
        for i in range(20):
            one.ask(i % 3, at="ep-1")  # decided here, at once
        assert loop.time() - before < 0.2
        await until(lambda: two.loads()["ep-0"] == 0.0)  # nobody has been heard for too long: they count no more
        await server.start()
        await until(lambda: all(each.state == "connected" for each in carriers))
        await until(lambda: two.loads()["ep-1"] == 20.0 and two.loads()["ep-0"] == 1.0)
        assert two.depths(2)["ep-1"] == 40.0  # what was said meanwhile was kept
    states = [state for state, _ in said]
    assert states.count("alone") == 2 and states[-1] == "connected"
    assert {word for state, word in said if state == "alone"} <= {
        "ConnectionError",
        "TimeoutError",
        "ConnectionResetError",
    }


async def test_a_redis_that_hangs_is_a_partition_like_any_other():
    one, two = Gateway("one"), Gateway("two")
    async with redis() as server, shared(server, one, two) as carriers:
        await until(lambda: all(each.state == "connected" for each in carriers))
        server.process.send_signal(signal.SIGSTOP)
        await until(lambda: all(each.state == "alone" for each in carriers))
        one.ask(0, at="ep-2")
        assert two.loads()["ep-2"] == 0.0  # it cannot know
        server.process.send_signal(signal.SIGCONT)
        await until(lambda: two.loads()["ep-2"] == 1.0)
        await until(lambda: all(each.state == "connected" for each in carriers))
        assert two.depths(0)["ep-2"] == 40.0


async def test_a_stream_that_begins_anew_is_read_from_its_start():
    one, two = Gateway("one"), Gateway("two")
    async with redis() as server, shared(server, one, two) as carriers:
        await until(lambda: all(each.state == "connected" for each in carriers))
        for each in carriers:
            each._last = "99999999999999-0"  # as of a Redis whose clock was ahead
            each._reading = False
        one.ask(0, at="ep-2")
        await until(lambda: two.loads()["ep-2"] == 1.0)
        assert all(each._last < "99999999999999-0" for each in carriers)
        assert all(each.state == "connected" for each in carriers)


async def test_it_ends_when_it_is_cancelled_though_the_client_forgets_that():
    class Forgetful:
        """What `asyncio.wait_for` does before Python 3.12, inside redis-py, when an answer comes in the same turn."""

        async def xinfo_stream(self, stream):
            return {"last-generated-id": b"0-0"}

        async def xadd(self, *_, **__):
            pass

        async def xread(self, *_, **__):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            return []

    loop = asyncio.get_running_loop()
    carrier = StreamReplicator(Gateway("a").replica, Forgetful(), clock=loop.time, patience=3600.0)
    task = asyncio.create_task(carrier.run())
    await asyncio.sleep(0.05)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=5.0)
    assert done == {task} and task.cancelled()


async def test_what_others_write_into_the_stream_is_counted_and_passed_over():
    one, two = Gateway("one"), Gateway("two")
    async with redis() as server, shared(server, one, two) as carriers:
        await until(lambda: all(each.state == "connected" for each in carriers))
        async with Redis(port=server.port) as client:
            await client.xadd("inferencesched", {"d": b"nonsense"})
            await client.xadd("inferencesched", {"other": b"field"})
        one.ask(0, at="ep-2")
        await until(lambda: two.loads()["ep-2"] == 1.0)
        assert [each.unreadable for each in carriers] == [2, 2]


async def test_the_stream_is_bounded_and_other_streams_are_others():
    one, two, other = Gateway("one"), Gateway("two"), Gateway("other")
    async with redis() as server, shared(server, one, two, keep=50) as carriers, shared(server, other, stream="else"):
        await until(lambda: all(each.state == "connected" for each in carriers))
        for i in range(300):
            one.ask(i, at="ep-0").complete(now=1.0)
            await asyncio.sleep(0.006)
        async with Redis(port=server.port) as client:
            assert await client.xlen("inferencesched") < 300
        assert other.replica.peers(now=0.0) == {}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"interval": 0.0}, "interval"),
        ({"patience": -1.0}, "patience"),
        ({"longest": float("inf")}, "longest"),
        ({"stream": ""}, "stream"),
        ({"keep": 0}, "keep"),
    ],
)
async def test_parameters_that_cannot_be_are_named(more, word):
    with pytest.raises(isched.InvalidInputError, match=word):
        StreamReplicator(Gateway("a").replica, Redis(), clock=float, **more)
