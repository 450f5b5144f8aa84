"""Does the gateway stay as it is for an hour, whatever clients and servers do?

    python -m tests.soak.soak_gateway [--minutes 60] [--rate 40] [--seed 7]

``inferencesched serve`` as people start it, before three small model servers, each a process of its own that is killed and started again at
random; clients come at a steady rate, stream or not, and one in five goes away at a random moment. Prints, once a minute, what is in flight and
how much memory the gateway has; at the end whether every counter is back at zero, whether the memory is flat, and which errors its log and its
clients saw that are not in the page of errors. Exits with 1 if any of that is wrong.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx

from tests.e2e.parts import Program, free_port, gateway

ROOT = Path(__file__).resolve().parents[2]
#: What a gateway may say of itself, by its page of errors: all else is a finding.
ERRORS = ROOT / "docs" / "reference" / "outcomes.md"
#: Gauges that must be 0 when nobody is there.
GAUGES = ("llm_d_epp_request_running", "llm_d_epp_flow_control_queue_size", "llm_d_epp_flow_control_queue_bytes")
SERVER = """
import asyncio, sys
import uvicorn
from tests.servers import ModelServer
uvicorn.run(ModelServer(tokens=12, pause=0.02), host="127.0.0.1", port=int(sys.argv[1]), log_level="critical")
"""


class Small(Program):
    """A small model server in a process of its own."""

    def __init__(self, folder, i):
        self.port = free_port()
        self.name, self.address = f"small-{i}", f"127.0.0.1:{self.port}"
        super().__init__([sys.executable, "-c", SERVER, self.port], folder / f"{self.name}.log", PYTHONPATH=str(ROOT))


def memory(pid):
    """The process's resident memory, MiB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


async def one(client, url, rng, counts):
    """One request, that may go away."""
    stream = rng.random() < 0.7
    text = f"conversation {rng.randrange(200)} " + "and so on " * rng.randrange(200)
    said = {"model": "tiny", "stream": stream, "messages": [{"role": "user", "content": text}]}
    patience = rng.uniform(0.001, 0.3) if rng.random() < 0.2 else None
    try:
        async with (
            asyncio.timeout(patience),
            client.stream("POST", f"{url}/v1/chat/completions", json=said) as response,
        ):
            body = (await response.aread()).decode()
    except TimeoutError:
        counts["client went"] += 1
        return
    except httpx.HTTPError as error:
        counts[f"transport {type(error).__name__}"] += 1
        return
    if response.status_code != 200:
        with suppress(ValueError, KeyError, TypeError):
            counts[f"{response.status_code} {json.loads(body)['error']['type']}"] += 1
            return
        counts[f"{response.status_code} unreadable"] += 1
    elif stream and "data: [DONE]" not in body:
        counts["stream with an error" if '"error"' in body else "stream cut without a word"] += 1
    else:
        counts["answered"] += 1


async def gauges(client, url):
    """The gauges that must be 0 in the end, summed."""
    found = Counter()
    for line in (await client.get(f"{url}/metrics")).text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in GAUGES:
            found[name] += float(line.rpartition(" ")[2])
    return found


async def restarts(servers, rng, stop):
    """Kill a server now and then, and start it again; never the last one."""
    while not stop.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), rng.uniform(5, 25))
            return
        victim = rng.choice(servers)
        victim.kill(rng.choice([signal.SIGKILL, signal.SIGTERM]))
        await asyncio.sleep(rng.uniform(0.2, 4.0))
        victim.start()
        await asyncio.sleep(1.5)


async def main(arguments):
    """Run it, and say what was found."""
    folder = Path(tempfile.mkdtemp(prefix="inferencesched-soak-"))
    rng = random.Random(arguments.seed)
    servers = [Small(folder, i).start() for i in range(3)]
    config = folder / "scheduler.yaml"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "llm-d.ai/v1alpha1",
                "kind": "EndpointPickerConfig",
                "featureGates": ["flowControl"],
                "plugins": [],
                "schedulingProfiles": [],
            }
        )
        if arguments.llmd
        else json.dumps(
            {
                "apiVersion": "inferencesched/v1",
                "kind": "Scheduler",
                "producers": ["approx-prefix-cache-producer"],
                "profiles": {"default": {"scorers": ["prefix-cache-scorer", "active-request-scorer"]}},
            }
        )
    )
    counts, sizes, stop = Counter(), [], asyncio.Event()
    more = {
        "retry": {"attempts": 3, "budget": 0.2},
        "health": {"consecutive_failures": 2, "ejection": 1.0},
        "scrape": {"interval": 1.0},
    }
    try:
        await asyncio.sleep(3)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with (
            gateway(folder, servers, config, **more) as (url, program),
            httpx.AsyncClient(timeout=60, limits=limits) as client,
        ):
            killer = asyncio.create_task(restarts(servers, rng, stop))
            tasks, sent, begun = set(), 0, time.monotonic()
            minute = 0
            while time.monotonic() - begun < 60 * arguments.minutes:
                task = asyncio.create_task(one(client, url, rng, counts))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                sent += 1
                await asyncio.sleep(max(0.0, begun + sent / arguments.rate - time.monotonic()))
                if time.monotonic() - begun >= 60 * minute:
                    sizes.append(memory(program.process.pid))
                    print(f"{minute:4d} min {sent:8d} sent {sizes[-1]:7.1f} MiB {dict(counts)}", flush=True)
                    minute += 1
            stop.set()
            await killer
            await asyncio.gather(*tasks)
            await asyncio.sleep(2)
            left = await gauges(client, url)
            sizes.append(memory(program.process.pid))
            log = (folder / f"gateway-{url.rpartition(':')[2]}.log").read_text()
    finally:
        for each in servers:
            each.kill()
    words = set(re.findall(r"`([a-z_]+)`", ERRORS.read_text()))
    told = {name.partition(" ")[2] for name in counts if re.match(r"\d{3} ", name)}
    strange = [name for name in counts if name.startswith(("stream cut", "transport"))] + sorted(told - words)
    traces = log.count("Traceback")
    settled = sizes[len(sizes) // 10 or 1 :]
    print(f"{sent} requests in {arguments.minutes} min: {dict(counts)}")
    print(
        f"left in flight: {dict(left)}; memory from a tenth on: {min(settled):.1f} to {max(settled):.1f} MiB; tracebacks in the log: {traces}"
    )
    flat = max(settled) - min(settled) < 0.1 * min(settled)
    if strange or traces or any(left.values()) or not flat:
        print(f"FINDINGS: {strange or ''} {'memory' if not flat else ''} {log[-3000:] if traces else ''}")
        return 1
    print("no finding")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--llmd", action="store_true", help="llm-d's form, with flow control")
    sys.exit(asyncio.run(main(parser.parse_args())))
