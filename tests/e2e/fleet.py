"""What does the gateway do before three real vLLM servers? Prints a table; `make e2e` runs it.

    python -m tests.e2e.fleet --vllm VENV [--aiperf VENV] [--out FOLDER] [--only ROW ...] [--servers ADDRESS,EVENTS ...]

Rows: ``hits`` (prefixes: history-heavy conversations, 36 prefixes), ``lora`` (six adapters), ``kill`` (a server dies, its API process and its
engine), ``replicas`` (two gateways and Redis), ``aiperf`` (a load generator that is not ours). Each beside a rival or a bound, in the same run.
Round robin is the floor: clients that go to the servers in turn, without a gateway.
"""

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.e2e.parts import (
    BLOCK,
    SHARED,
    Program,
    Turns,
    Vllm,
    ask,
    ceiling,
    converse,
    explained,
    free_port,
    gateway,
    history_heavy,
    many_prefixes,
    percentile,
    reset,
    scheduler_file,
    words,
)

#: Of the traffic; each is run against both, and summed.
SEEDS = (7, 8, 9)
#: Requests at a time, some five a server. No multiple of the servers: clients in step would meet the same server again by round robin.
CONCURRENCY = 16
#: Sticky until saturated: where the prefix is, unless that costs more than so many milliseconds; the others in turn, least recently picked first.
STICKY = [
    {
        "type": "prefix-cache-affinity-filter",
        "parameters": {"affinityThreshold": 0.5, "maxTTFTPenaltyMs": 3000, "peakPrefillThroughput": 8000},
    }
]
PRECISE = [
    {
        "type": "precise-prefix-cache-producer",
        "parameters": {"tokenProcessorConfig": {"blockSizeTokens": BLOCK}, "speculativeIndexing": True},
    }
]
APPROXIMATE = [{"type": "approx-prefix-cache-producer", "parameters": {"blockSizeTokens": BLOCK}}]


class Known:
    """A server that runs already: ``HOST:PORT,EVENTS``."""

    def __init__(self, said, i):
        self.address, _, events = said.partition(",")
        self.name, self.events = f"vllm-{i}", int(events)
        self.replay = self.events + 100


@asynccontextmanager
async def fleet(arguments, folder, *more):
    """Three real servers; yields them."""
    if arguments.servers:
        servers = [Known(each, i) for i, each in enumerate(arguments.servers)]
    else:
        servers = [Vllm(arguments.vllm, folder / "tiny", folder, i, *more).start() for i in range(3)]
    try:
        for each in servers:
            if isinstance(each, Vllm):
                await each.ready()
            each.spoken = {
                "kv_events": {"endpoint": f"tcp://127.0.0.1:{each.events}", "replay": f"tcp://127.0.0.1:{each.replay}"}
            }
        yield servers
    finally:
        for each in servers:
            if isinstance(each, Vllm):
                each.kill()


def urls_of(servers):
    """Where clients without a gateway go."""
    return [f"http://{each.address}" for each in servers]


async def hits(servers, folder, tokenizer):
    """Real prefix hits, by the servers' own word."""
    rows = []
    config = scheduler_file(folder, "precise", [], PRECISE, filters=STICKY)
    wanted = {"history-heavy, 5 turns": (history_heavy, 1.6), "36 prefixes of 1,600 tokens": (many_prefixes, 2.5)}
    for number, (name, (make, goal)) in enumerate(wanted.items()):
        floor, ours, went, most, bound = [], [], [], 0, 0
        async with gateway(folder, servers, config, tokenizer=tokenizer, events=True) as (url, _):
            await asyncio.sleep(1.5)
            for seed in SEEDS:
                await reset(servers, f"{number} {seed} floor")
                answers = await converse(urls_of(servers), make(seed), concurrency=CONCURRENCY)
                floor, bound = floor + answers, bound + ceiling(answers, tokenizer)
                await reset(servers, f"{number} {seed} ours")
                answers = await converse([url], make(seed), concurrency=CONCURRENCY)
                ours, went = ours + answers, went + await explained(url, answers)
                most += ceiling(answers, tokenizer)
        assert all(each.finished for each in floor + ours), [each.error for each in floor + ours if each.error]
        shares = Counter(endpoint for endpoint, _ in went)
        told, expected = sum(each.cached for each in ours), sum(each or 0 for _, each in went)
        mean = len(ours) / len(servers)
        prompt = sum(each.prompt for each in ours)
        rows += [
            (f"cached tokens, {name}: against round robin's", told / sum(each.cached for each in floor), f">= {goal}"),
            (
                "  of all that any router could have hit, round robin and ours",
                f"{sum(e.cached for e in floor) / bound:.1%}, {told / most:.1%}",
                "",
            ),
            (
                "  of the prompts' tokens, round robin and ours",
                f"{sum(e.cached for e in floor) / prompt:.1%}, {told / prompt:.1%}",
                "",
            ),
            ("  busiest server against the mean", max(shares.values()) / mean, "<= 1.25"),
            ("  the index's expected hits against the servers'", expected / told, "1 +- 0.01"),
            (
                "  p95 TTFT, round robin and ours, s",
                f"{percentile([e.ttft for e in floor], 0.95):.2f}, {percentile([e.ttft for e in ours], 0.95):.2f}",
                "",
            ),
        ]
    return rows


ADAPTERS = ("english-bot", "spanish-bot", "french-bot", "german-bot", "italian-bot", "polish-bot")


def adapters_traffic(seed, rounds=40):
    """One-turn questions to six adapters in random order, each with its own system prompt of 200 tokens."""
    rng = random.Random(seed)
    systems = {name: words(rng, 200) for name in ADAPTERS}
    order = [name for _ in range(rounds) for name in rng.sample(ADAPTERS, len(ADAPTERS))]
    return [Turns(name, systems[name], [words(rng, 60)]) for name in order]


async def lora(servers, folder, tokenizer):
    """Six adapters over three servers with two slots each."""
    async with httpx.AsyncClient(timeout=60) as client:
        for each in servers:
            for name in ADAPTERS[2:]:
                said = {"lora_name": name, "lora_path": str(folder / "tiny" / name)}
                answer = await client.post(f"http://{each.address}/v1/load_lora_adapter", json=said)
                assert answer.status_code in (200, 400), answer.text  # 400: it is there already
    traffic = [adapters_traffic(7), adapters_traffic(7)]
    await reset(servers, 20)
    floor = await converse(urls_of(servers), traffic[0], concurrency=CONCURRENCY)
    await reset(servers, 21)
    config = scheduler_file(folder, "lora", [], APPROXIMATE, filters=STICKY)
    more = {"pool": {"adapters": list(ADAPTERS)}}
    async with gateway(folder, servers, config, tokenizer=tokenizer, **more) as (url, _):
        await asyncio.sleep(1.5)
        ours = await converse([url], traffic[1], concurrency=CONCURRENCY)
        went = [endpoint for endpoint, _ in await explained(url, ours)]
    assert all(each.finished for each in floor + ours), [each.error for each in floor + ours if each.error]
    order = sorted(zip((each.begun for each in ours), (each.model for each in ours), went, strict=True))
    loaded = {each.name: OrderedDict() for each in servers}
    warm, landed, places = len(order) // 6, 0, {}
    for i, (_, adapter, server) in enumerate(order):
        slots = loaded[server]
        if i >= warm:
            landed += adapter in slots
            places.setdefault(adapter, set()).add(server)
        slots[adapter] = None
        slots.move_to_end(adapter)
        while len(slots) > 2:
            slots.popitem(last=False)
    before, after = (percentile([e.ttft for e in each], 0.95) for each in (floor, ours))
    return [
        ("LoRA: requests that land where the adapter is loaded, once warm", landed / (len(order) - warm), ">= 0.9"),
        ("  servers that an adapter is loaded on, at most", max(map(len, places.values())), "<= 2"),
        ("  p95 TTFT against round robin's", after / before, "<= 0.5"),
        ("  p95 TTFT, round robin and ours, s", f"{before:.2f}, {after:.2f}", ""),
    ]


async def until_stopped(url, stop, answers, seed, most=24):
    """One client that asks again and again."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(timeout=60) as client:
        while not stop.is_set():
            answers.append(await ask(client, url, "tiny", [{"role": "user", "content": words(rng, 120)}], most=most))


def engine_of(server):
    """The process of a server's engine: a child of its API process."""
    parent = server.process.pid
    for pid in subprocess.run(["pgrep", "-g", str(parent)], capture_output=True, text=True, check=False).stdout.split():
        command = Path(f"/proc/{pid}/comm").read_text().strip() if Path(f"/proc/{pid}/comm").exists() else ""
        if "Engine" in command:
            return int(pid)
    raise AssertionError("no engine process found")


async def inflight(url):
    """What the gateway says is running, in sum."""
    async with httpx.AsyncClient(timeout=10) as client:
        text = (await client.get(f"{url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("llm_d_epp_request_running{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def kill(servers, folder, tokenizer):
    """kill -9 of a server under load: of its whole group, and of its engine alone."""
    rows = []
    config = scheduler_file(folder, "kill", [], APPROXIMATE, filters=STICKY)
    more = {"retry": {"attempts": 4, "budget": None}, "health": {"consecutive_failures": 1, "ejection": 30.0}}
    victims = [("its API process and all", servers[0], "api"), ("its engine", servers[1], "engine")]
    for name, victim, how in victims:
        async with gateway(folder, servers, config, tokenizer=tokenizer, **more) as (url, _):
            await asyncio.sleep(1.5)
            stop, answers = asyncio.Event(), []
            clients = [asyncio.create_task(until_stopped(url, stop, answers, i)) for i in range(12)]
            await asyncio.sleep(6)
            if how == "api":
                victim.kill()
            else:
                subprocess.run(["kill", "-9", str(engine_of(victim))], check=True)
            died = time.monotonic()
            await asyncio.sleep(8)
            stop.set()
            await asyncio.gather(*clients)
            went = await explained(url, answers[-250:])
            late = [
                endpoint
                for (endpoint, _), answer in zip(went, answers[-250:], strict=True)
                if answer.begun > died + 1.0 and endpoint == victim.name
            ]
            lost = [each for each in answers if not each.finished and each.ttft is None]
            cut = [each for each in answers if not each.finished and each.ttft is not None]
            rows += [
                (f"kill -9 of {name}: requests lost before their first byte, of {len(answers)}", len(lost), "0"),
                (
                    "  streams cut that had begun; each ended with an error",
                    f"{len(cut)}, {sum(bool(e.error) for e in cut)}",
                    "",
                ),
                ("  new requests sent there after 1 s", len(late), "0"),
                ("  in flight afterwards, by the gateway's metrics", await inflight(url), "0"),
            ]
            if lost:
                rows.append(("  (what they were told)", "; ".join(sorted({each.error[:80] for each in lost})), ""))
        if isinstance(victim, Vllm):
            victim.kill()
            victim.start()
            await victim.ready()
    return rows


async def replicas(servers, folder, tokenizer):
    """Two gateways that hear of each other over Redis, against one."""
    binary = shutil.which("redis-server")
    if binary is None:
        return [("two gateways with Redis", "no redis-server here", "")]
    port = free_port()
    redis = Program([binary, "--port", port, "--save", "", "--appendonly", "no"], folder / "redis.log").start()
    config = scheduler_file(folder, "approximate", [], APPROXIMATE, filters=STICKY)
    try:
        await reset(servers, 30)
        async with gateway(folder, servers, config, tokenizer=tokenizer) as (url, _):
            await asyncio.sleep(1.5)
            one = await converse([url], history_heavy(300), concurrency=CONCURRENCY)
        await reset(servers, 31)
        shared = {"redis": f"redis://127.0.0.1:{port}/0", "seed": 7}
        first = {"replication": {"origin": "a", **shared}}
        second = {"replication": {"origin": "b", **shared}}
        async with (
            gateway(folder, servers, config, tokenizer=tokenizer, **first) as (a, _),
            gateway(folder, servers, config, tokenizer=tokenizer, **second) as (b, _),
        ):
            await asyncio.sleep(1.5)
            two = await converse([a, b], history_heavy(300), concurrency=CONCURRENCY)
            went = [e for e, _ in await explained(a, two) if e] + [e for e, _ in await explained(b, two) if e]
            stop, answers = asyncio.Event(), []
            clients = [asyncio.create_task(until_stopped((a, b)[i % 2], stop, answers, i)) for i in range(6)]
            await asyncio.sleep(2)
            redis.kill()
            await asyncio.sleep(10)
            redis.start()
            await asyncio.sleep(2)
            stop.set()
            await asyncio.gather(*clients)
    finally:
        redis.kill()
    busiest = max(Counter(went).values()) / (len(went) / len(servers))
    failed = [each for each in answers if not each.finished]
    return [
        (
            "two gateways with Redis against one: cached tokens",
            sum(e.cached for e in two) / sum(e.cached for e in one),
            ">= 0.97",
        ),
        ("  busiest server against the mean", busiest, "<= 1.2"),
        (f"  Redis killed for 10 s: requests that failed, of {len(answers)}", len(failed), "0"),
    ]


async def aiperf(servers, folder, tokenizer, home):
    """The load generator that is not ours; round robin is the same gateway with no scorer (aiperf's own keeps a user's turns together)."""
    config = scheduler_file(folder, "aiperf", [], PRECISE, filters=STICKY)
    extra = json.dumps({"ignore_eos": True, "temperature": 0, "allowed_token_ids": list(range(67, 81))})

    def command(urls, out):
        return [
            Path(home) / "bin" / "aiperf", "profile", "--model", "tiny", *(part for url in urls for part in ("--url", url)),
            "--endpoint-type", "chat", "--streaming", "--tokenizer", tokenizer.parent, "--prompt-corpus", "random", "--random-seed", "7",
            "--num-sessions", "24", "--session-turns-mean", "4", "--session-turns-stddev", "1", "--concurrency", "6", "--isl", "200",
            "--isl-stddev", "40", "--osl", "16", "--osl-stddev", "0", "--num-prefix-prompts", "8", "--prefix-prompt-length", "300",
            "--use-server-token-count", "--no-gpu-telemetry", "--ui", "none", "--extra-inputs", extra, "--output-artifact-dir", out,
        ]  # fmt: skip

    async def profile(urls, name):
        out = folder / f"aiperf-{name}"
        program = Program(command(urls, out), folder / f"aiperf-{name}.log").start()
        while program.alive():
            await asyncio.sleep(0.5)
        return json.loads(next(out.rglob("profile_export_aiperf.json")).read_text())

    def cached(said):
        return said["total_usage_prompt_cache_read_tokens"]["avg"]

    turn = scheduler_file(folder, "in-turn", [])  # no scorer: a tie, and then the least recently picked
    await reset(servers, 40)
    async with gateway(folder, servers, turn, tokenizer=tokenizer) as (url, _):
        floor = await profile([url], "floor")
    await reset(servers, 41)
    async with gateway(folder, servers, config, tokenizer=tokenizer, events=True) as (url, _):
        await asyncio.sleep(1.5)
        ours = await profile([url], "ours")
    return [
        ("aiperf: cached tokens against round robin's", cached(ours) / cached(floor), ""),
        ("  requests, ours", ours["request_count"]["avg"], ""),
        (
            "  p95 TTFT, round robin and ours, ms",
            f"{floor['time_to_first_token']['p95']:.0f}, {ours['time_to_first_token']['p95']:.0f}",
            "",
        ),
    ]


ROWS = ("hits", "lora", "replicas", "aiperf", "kill")


def shown(rows):
    """The rows as a table of Markdown."""
    lines = ["| what | measured | asked |", "|---|---|---|"]
    for what, value, asked in rows:
        said = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        lines.append(f"| {what} | {said} | {asked} |")
    return "\n".join(lines)


async def main(arguments):
    """Run the rows that were asked for, and print them."""
    folder = Path(arguments.out or tempfile.mkdtemp(prefix="inferencesched-e2e-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tiny").exists():
        subprocess.run([Path(arguments.vllm) / "bin" / "python", SHARED / "make_model.py", folder / "tiny"], check=True)
    tokenizer = folder / "tiny" / "model" / "tokenizer.json"
    rows = []
    async with fleet(arguments, folder) as servers:
        for name in arguments.only or ROWS:
            if name == "aiperf":
                if not arguments.aiperf:
                    rows.append(("aiperf", "not asked for: --aiperf VENV", ""))
                    continue
                rows += await aiperf(servers, folder, tokenizer, arguments.aiperf)
            else:
                rows += await {"hits": hits, "lora": lora, "kill": kill, "replicas": replicas}[name](
                    servers, folder, tokenizer
                )
            print(shown(rows), f"\n-- {name}: done", file=sys.stderr)
    print(shown(rows))
    (folder / "fleet.md").write_text(shown(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--aiperf")
    parser.add_argument("--out")
    parser.add_argument("--only", nargs="*", choices=ROWS)
    parser.add_argument("--servers", nargs="*")
    asyncio.run(main(parser.parse_args()))
