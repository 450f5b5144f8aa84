"""Metrics pages over HTTP and KV events over ZeroMQ, from small servers on this machine."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio

import inferencesched as isched
from inferencesched.adapters.vllm.kv_events import KVEventSource, KVEventSubscriber
from inferencesched.adapters.vllm.scrape import ScrapePolicy, Scraper
from inferencesched.errors import InvalidInputError, KVEventError, UnknownNameError
from tests.servers import ModelServer, serving
from tests.shared import shared

pytestmark = pytest.mark.anyio


@pytest.fixture(name="anyio_backend", scope="module")
def _anyio_backend():
    return "asyncio"


@asynccontextmanager
async def scraping(*servers, policy=None):
    """Yield a scraper of these servers, its pool, and what it told."""
    pool, told = isched.InferencePool(), []
    async with httpx.AsyncClient() as client, serving(servers[0]) as address:
        pool.join("ep-0", address=address)
        loop = asyncio.get_running_loop()
        rng = np.random.default_rng(7)
        policy = policy or ScrapePolicy(interval=0.02, timeout=0.3)
        yield Scraper(pool, client, clock=loop.time, rng=rng, policy=policy, on_scrape=told.append), pool, told


async def test_what_a_server_says_is_observed():
    async with scraping(ModelServer()) as (scraper, pool, told):
        found = await scraper.scrape("ep-0")
        assert (found.failure, found.reading.engine) == ("", "vllm")
        assert pool.snapshot()[isched.WAITING_QUEUE_SIZE].tolist() == [2.0]
        assert told == [found]
        with pytest.raises(UnknownNameError):
            await scraper.scrape("nobody")


async def test_a_real_page_of_vllm():
    server = ModelServer()
    server.page = shared("captures/metrics_vllm_0.32.0_lora_busy.txt").read_text()
    async with scraping(server) as (scraper, pool, _):
        found = await scraper.scrape("ep-0")
        assert found.reading.missing == ()
        assert pool.snapshot()[isched.WAITING_QUEUE_SIZE].tolist() == [found.reading.columns[isched.WAITING_QUEUE_SIZE]]
        assert found.reading.adapters is not None


@pytest.mark.parametrize(
    ("page", "failure"),
    [
        ("python_info 1\n", "unreadable"),
        ("vllm:num_requests_waiting x\n", "unreadable"),
        ("# " + "x" * 2_000_000, "too_large"),
    ],
)
async def test_a_page_that_is_none_is_said_and_not_taken_for_zeros(page, failure):
    server = ModelServer()
    server.page = page
    async with scraping(server, policy=ScrapePolicy(max_bytes=1_000_000)) as (scraper, pool, _):
        assert (await scraper.scrape("ep-0")).failure == failure
        assert np.isnan(pool.snapshot()[isched.WAITING_QUEUE_SIZE]).all()
        assert scraper.failures == {"ep-0": 1}
        server.page = "vllm:num_requests_waiting 1\nvllm:num_requests_running 1\n"
        assert (await scraper.scrape("ep-0")).failure == ""
        assert scraper.failures == {}


async def test_a_value_that_cannot_be_is_missing():
    server = ModelServer()
    server.page = "vllm:num_requests_waiting -3\nvllm:num_requests_running 1\n"
    async with scraping(server) as (scraper, pool, _):
        assert "queued" in (await scraper.scrape("ep-0")).reading.missing
        assert np.isnan(pool.snapshot()[isched.WAITING_QUEUE_SIZE]).all()


class Garbled:
    """A server whose page is not in the encoding that it names."""

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            headers = [(b"content-encoding", b"gzip")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"vllm:num_requests_waiting 1"})


async def test_bytes_that_are_not_what_their_encoding_says():
    async with scraping(Garbled()) as (scraper, pool, _):
        assert (await scraper.scrape("ep-0")).failure == "unreadable"
        pool.join("odd", address="[::1")
        assert (await scraper.scrape("odd")).failure == "unreadable"


class Mute:
    """A server that accepts and never answers, or answers half a page."""

    def __init__(self, half):
        self.half = half

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        if self.half:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"vllm:num_req", "more_body": True})
        await asyncio.sleep(3600)


@pytest.mark.parametrize("half", [False, True])
async def test_a_server_that_does_not_answer_costs_its_patience_only(half):
    async with scraping(Mute(half)) as (scraper, _, _):
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert (await scraper.scrape("ep-0")).failure == "timeout"
        assert loop.time() - before < 2.0


async def test_it_goes_on_with_whoever_joins_and_leaves():
    async with scraping(ModelServer()) as (scraper, pool, told), serving(ModelServer()) as other:
        task = asyncio.create_task(scraper.run())
        pool.join("nobody", address="127.0.0.1:9")
        await until(lambda: {each.endpoint for each in told} == {"ep-0", "nobody"})
        assert {each.failure for each in told if each.endpoint == "nobody"} == {"connect"}
        pool.leave("nobody")
        pool.join("ep-1", address=other)
        await until(lambda: any(each.endpoint == "ep-1" for each in told) and not scraper.failures)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_pauses_grow_with_failures_and_differ():
    policy, rng = ScrapePolicy(interval=1.0, longest=8.0, jitter=0.1), np.random.default_rng(7)
    for failures, usual in ((0, 1.0), (1, 2.0), (3, 8.0), (60, 8.0)):
        pauses = [policy.pause(failures, rng) for _ in range(100)]
        assert usual * 0.9 <= min(pauses) < max(pauses) <= usual * 1.1
    for name, value in (("interval", 0), ("timeout", float("inf")), ("longest", -1), ("jitter", 1), ("max_bytes", 0)):
        with pytest.raises(InvalidInputError, match=name):
            ScrapePolicy(**{name: value})


async def until(holds, seconds=5.0):
    """Wait until something holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not holds():
        assert loop.time() < end, "it did not come"
        await asyncio.sleep(0.005)


def batch(number):
    """Return a batch of one stored block, as vLLM packs it."""
    return msgspec.msgpack.encode([0.0, [["BlockStored", [number + 1], None, list(range(16)), 16, None]]])


class Engine:
    """An engine that publishes, and answers for what was missed."""

    def __init__(self):
        self.context = zmq.asyncio.Context()
        self.pub, self.router = self.context.socket(zmq.PUB), self.context.socket(zmq.ROUTER)
        self.at = f"tcp://127.0.0.1:{self.pub.bind_to_random_port('tcp://127.0.0.1')}"
        self.replay = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        self.kept, self.number, self.asked = [], 0, []

    async def publish(self, *, lose=False, payload=None):
        payload = batch(self.number) if payload is None else payload
        parts = [b"kv@x@m", self.number.to_bytes(8, "big"), payload]
        self.kept.append(parts)
        self.number += 1
        if not lose:
            await self.pub.send_multipart(parts)

    async def answer(self):
        while True:
            who, _, start = await self.router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.asked.append(first)
            for topic, sequence, payload in self.kept[first:]:
                await self.router.send_multipart([who, b"", topic, sequence, payload])
            await self.router.send_multipart([who, b"", b"", b"\xff" * 8, b""])


@asynccontextmanager
async def subscribed(*, replay=True, on_error=None, topic="", broken=False):
    """Yield an engine, its subscriber, and the batches' numbers that were taken, with None for each time that all was forgotten."""
    engine, taken = Engine(), []

    def take(step):
        if broken:
            raise ZeroDivisionError
        taken.extend([None] * step.forget)
        taken.extend(sequence for sequence, _ in step.ready)

    source = KVEventSource(engine.at, engine.replay if replay else "", topic)
    subscriber = KVEventSubscriber(source, take, on_error=on_error, patience=0.2, context=engine.context)
    tasks = [asyncio.create_task(engine.answer())]
    if not broken:
        tasks.append(asyncio.create_task(subscriber.run()))
    await asyncio.sleep(0.2)  # until the subscription has reached the publisher
    try:
        yield engine, subscriber, taken
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        engine.context.destroy(linger=0)


async def test_what_was_missed_is_asked_for():
    async with subscribed() as (engine, subscriber, taken):
        for lose in (False, True, True, False, False):
            await engine.publish(lose=lose)
        await until(lambda: taken == [0, 1, 2, 3, 4])
        assert engine.asked[0] == 1
        subscriber.stream.check()


async def test_without_a_replay_socket_a_gap_is_a_loss():
    async with subscribed(replay=False) as (engine, _, taken):
        for lose in (False, True, False):
            await engine.publish(lose=lose)
        await until(lambda: len(taken) >= 3)
        assert taken == [0, None, 2]
        assert engine.asked == []


async def test_an_engine_that_starts_again_is_forgotten_first():
    async with subscribed() as (engine, _, taken):
        for _ in range(3):
            await engine.publish()
        await until(lambda: taken == [0, 1, 2])
        engine.number, engine.kept = 0, []
        await engine.publish()
        await until(lambda: len(taken) >= 5)
        assert taken == [0, 1, 2, None, 0]


async def test_a_frame_that_cannot_be_read_is_told_and_lost():
    errors = []
    async with subscribed(on_error=errors.append) as (engine, _, taken):
        await engine.publish()
        await engine.publish(payload=b"\xc1")
        await engine.publish()
        await until(lambda: taken == [0, None, 2])
        assert errors and all(isinstance(each, KVEventError) for each in errors)


async def test_what_a_taker_raises_is_not_swallowed():
    async with subscribed(broken=True) as (engine, subscriber, _):
        running = asyncio.create_task(subscriber.run())
        await asyncio.sleep(0.2)
        await engine.publish()
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(running, 5.0)
        assert isinstance(raised.value.exceptions[0], ZeroDivisionError)
        with pytest.raises(InvalidInputError, match="at"):
            subscriber.process_started(1.0)


async def test_the_metrics_page_tells_of_a_restart_too():
    async with subscribed() as (engine, subscriber, taken):
        await engine.publish()
        await until(lambda: taken == [0])
        subscriber.process_started(100.0)
        subscriber.process_started(200.0)
        await until(lambda: len(taken) >= 3)
        assert taken == [0, None, 0]
        assert engine.asked == [0]


async def test_another_s_topic_is_not_heard():
    async with subscribed(topic="kv@other") as (engine, subscriber, taken):
        await engine.publish()
        await asyncio.sleep(0.1)
        assert (taken, subscriber.frames) == ([], 0)


def test_sources_are_addresses():
    with pytest.raises(InvalidInputError, match="endpoint"):
        KVEventSource("127.0.0.1:5557")
    with pytest.raises(InvalidInputError, match="replay"):
        KVEventSource("tcp://127.0.0.1:5557", "x")
