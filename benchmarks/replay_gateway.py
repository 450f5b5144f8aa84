"""What does the gateway cost a request, beside a proxy of Starlette and httpx that decides nothing?

    python benchmarks/replay_gateway.py [--seconds 6] [--rounds 4] [--rate 40] [--concurrency 64]

Both are processes of their own under uvicorn, before one local server that streams 32 chunks an answer; the client is this process, with bare
sockets, so that it is none of what is measured. A third has the gateway's connections and decides nothing. Two loads: a fixed rate below saturation (what does a request wait longer?), and a closed loop
of so many clients (how many requests a second are left?). The two take turns, round after round; the floor is the server without a proxy.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHUNKS = 32
BODY = json.dumps(
    {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "and so on " * 40}]}
).encode()

SERVER = """
import asyncio, json, sys
event = lambda more: b"data: " + json.dumps({"id": "1", "model": "tiny", "choices": [{"index": 0, **more}]}).encode() + b"\\n\\n"
events = [event({"delta": {"content": "word "}, "finish_reason": None}) for _ in range(31)]
events += [event({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\\n\\n"]
chunks = [b"%x\\r\\n%b\\r\\n" % (len(each), each) for each in events] + [b"0\\r\\n\\r\\n"]
head = b"HTTP/1.1 200 OK\\r\\ncontent-type: text/event-stream\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n"
async def serve(reader, writer):
    try:
        while True:
            asked = await reader.readuntil(b"\\r\\n\\r\\n")
            length = [line for line in asked.lower().split(b"\\r\\n") if line.startswith(b"content-length:")]
            if length:
                await reader.readexactly(int(length[0].split(b":")[1]))
            if asked.startswith(b"GET"):
                page = b"vllm:num_requests_waiting 0\\nvllm:num_requests_running 1\\nvllm:kv_cache_usage_perc 0.1\\n"
                writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%b" % (len(page), page))
                continue
            writer.write(head)
            for chunk in chunks:
                writer.write(chunk)
                await asyncio.sleep(0)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""

BARE = """
import sys
import httpx, uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
upstream = sys.argv[2]
if len(sys.argv) > 3:
    from inferencesched.adapters.pooling import StackTransport
    client = httpx.AsyncClient(timeout=None, transport=StackTransport())
else:
    client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))
async def chat(request):
    headers = {"content-type": "application/json"}
    asked = client.build_request("POST", upstream + request.url.path, content=await request.body(), headers=headers)
    answer = await client.send(asked, stream=True)
    kept = {"content-type": answer.headers["content-type"]}
    return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))
app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/healthz", lambda r: PlainTextResponse("ok"))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
"""


def free_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Client:
    """One connection that asks, and reads an answer to its end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(BODY), BODY)
        )

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self) -> float:
        """Return the seconds from the first byte sent to the last one read."""
        begun = time.perf_counter()
        self.writer.write(self.request)
        answer = await self.reader.readuntil(b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        assert b"[DONE]" in answer
        return time.perf_counter() - begun


async def steady(port: int, rate: float, seconds: float) -> list[float]:
    """Ask at a fixed rate; return how long each took."""
    free: list[Client] = []
    took: list[float] = []

    async def one() -> None:
        client = free.pop() if free else await Client(port).__aenter__()
        took.append(await client.ask())
        free.append(client)

    begun, tasks = time.perf_counter(), []
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + i / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for client in free:
        client.writer.close()
    return took


async def closed(port: int, concurrency: int, seconds: float) -> float:
    """Let so many clients ask one after another; return the requests a second."""
    count, until = 0, time.perf_counter() + seconds

    async def one() -> None:
        nonlocal count
        async with Client(port) as client:
            while time.perf_counter() < until:
                await client.ask()
                count += 1

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(concurrency)))
    return count / (time.perf_counter() - begun)


async def main(arguments: argparse.Namespace) -> None:
    """Start the three, measure in turns, print the table."""
    folder = Path(tempfile.mkdtemp(prefix="inferencesched-bench-"))
    ports = {name: free_port() for name in ("server", "bare", "stack", "gateway")}
    config = folder / "gateway.yaml"
    endpoints = [{"name": f"ep-{i}", "address": f"127.0.0.1:{ports['server']}"} for i in range(3)]
    said = {"listen": {"port": ports["gateway"]}, "pools": [{"name": "tiny", "endpoints": endpoints}]}
    config.write_text(json.dumps(said))
    serve = Path(sys.executable).parent / "inferencesched"
    commands = [
        [sys.executable, "-c", SERVER, str(ports["server"])],
        [sys.executable, "-c", BARE, str(ports["bare"]), f"http://127.0.0.1:{ports['server']}"],
        [sys.executable, "-c", BARE, str(ports["stack"]), f"http://127.0.0.1:{ports['server']}", "stack"],
        [str(serve), "serve", "--config", str(config)],
    ]
    with open(folder / "log", "wb") as log:
        processes = [subprocess.Popen(each, stdout=log, stderr=log, start_new_session=True) for each in commands]
    try:
        for name, port in ports.items():
            for _ in range(400):
                try:
                    async with Client(port) as client:
                        for _ in range(50):
                            await client.ask()
                    break
                except OSError:
                    await asyncio.sleep(0.05)
            else:
                sys.exit(f"the {name} does not answer: {(folder / 'log').read_text()}")
        took: dict[str, list[float]] = {name: [] for name in ports}
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for _ in range(arguments.rounds):
            for name, port in ports.items():
                took[name] += await steady(port, arguments.rate, arguments.seconds)
            for name, port in ports.items():
                rates[name].append(await closed(port, arguments.concurrency, arguments.seconds))
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    print(f"an answer of {CHUNKS} chunks; {arguments.rate:g} requests a second, then {arguments.concurrency} at a time")
    print(f"{'':22}{'p50, ms':>10}{'p99, ms':>10}{'closed loop, 1/s':>18}")
    for name, words in (
        ("server", "the server alone"),
        ("bare", "Starlette + httpx"),
        ("stack", "  with our transport"),
        ("gateway", "inferencesched serve"),
    ):
        each = sorted(took[name])
        p50, p99 = statistics.median(each) * 1e3, each[int(0.99 * len(each))] * 1e3
        print(f"{words:22}{p50:10.2f}{p99:10.2f}{statistics.median(rates[name]):18.0f}")
    more = (statistics.median(took["gateway"]) - statistics.median(took["bare"])) * 1e3
    ratios = [ours / theirs for ours, theirs in zip(rates["gateway"], rates["bare"], strict=True)]
    print(f"the gateway's overhead over the bare proxy: {more:.2f} ms p50 (asked: under 1)")
    print(
        f"its throughput against the bare proxy's: {statistics.median(ratios):.3f} (asked: at least 0.85); by round {[round(r, 2) for r in ratios]}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--concurrency", type=int, default=64)
    asyncio.run(main(parser.parse_args()))
