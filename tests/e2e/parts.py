"""What the end-to-end programs are made of: real vLLM servers, the gateway as people start it, and clients that measure."""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from inferencesched.adapters.tokenizers import ChatTemplate, HuggingFaceTokenizer
from inferencesched.routing.body import parse_body

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "realserver"
#: The only tokens that make readable text of a model of random weights; without them deltas are empty.
READABLE = {"temperature": 0, "ignore_eos": True, "allowed_token_ids": list(range(67, 81))}
BLOCK, BLOCKS = 32, 1024
TEMPLATE = {"before": "<|im_start|>{role}\n", "after": "<|im_end|>\n", "end": "<|im_start|>assistant"}


def free_port():
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Program:
    """A process in a group of its own, so that killing it kills what it started too."""

    def __init__(self, command, log, **environment):
        self.command, self.log, self.environment = [str(each) for each in command], log, environment
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )
        return self

    def kill(self, how=signal.SIGKILL):
        """Kill the whole group."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            self.process.wait(30)

    def alive(self):
        """Is it still there?"""
        return self.process is not None and self.process.poll() is None


class Vllm(Program):
    """A real vLLM on this machine's processor; `events` where it publishes its KV events."""

    def __init__(self, python_home, model, folder, i, *more):
        self.port, self.events = free_port(), free_port()
        self.name, self.address = f"vllm-{i}", f"127.0.0.1:{self.port}"
        command = [SHARED / "serve", python_home, model, self.port, self.events, *more]
        quiet = str(ROOT / "tests" / "e2e" / "quiet_vllm")
        super().__init__(command, folder / f"{self.name}.log", PYTHONPATH=quiet)

    @property
    def replay(self):
        """Where what was missed of its events can be asked for: `serve` adds 100."""
        return self.events + 100

    async def ready(self, patience=400.0):
        """Wait until it answers."""
        async with httpx.AsyncClient(timeout=5) as client:
            until = time.monotonic() + patience
            while time.monotonic() < until:
                assert self.alive(), f"{self.name} has ended: {self.log}"
                with suppress(httpx.HTTPError):
                    if (await client.get(f"http://{self.address}/health")).status_code == 200:
                        return
                await asyncio.sleep(0.5)
        raise AssertionError(f"{self.name} does not answer: {self.log}")


def scheduler_file(folder, name, scorers, producers=(), **more):
    """Write a scheduler's configuration; returns its path. JSON is YAML."""
    said = {
        "apiVersion": "inferencesched/v1",
        "kind": "Scheduler",
        "producers": list(producers),
        "profiles": {"default": {"scorers": scorers, **more}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(said))
    return path


def gateway_file(folder, servers, config, tokenizer=None, events=False, **more):
    """Write a gateway's file for these servers, that hears their KV events or not; returns its path and its port."""
    port = free_port()
    endpoints = [{"name": each.name, "address": each.address, **(each.spoken if events else {})} for each in servers]
    pool = {"name": "tiny", "models": ["tiny"], "endpoints": endpoints, "config": str(config), **more.pop("pool", {})}
    said = {"listen": {"port": port}, "pools": [pool], **more}
    if tokenizer is not None:
        said["tokenizer"] = {"file": str(tokenizer), "template": TEMPLATE}
    path = folder / f"gateway-{port}.yaml"
    path.write_text(json.dumps(said))
    return path, port


@asynccontextmanager
async def gateway(folder, servers, config, **more):
    """Start ``inferencesched serve`` before these servers; yields its URL and its program."""
    path, port = gateway_file(folder, servers, config, **more)
    binary = Path(sys.executable).parent / "inferencesched"
    program = Program([binary, "serve", "--config", path], folder / f"gateway-{port}.log").start()
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(timeout=5) as client:
            for _ in range(600):
                assert program.alive(), (folder / f"gateway-{port}.log").read_text()
                with suppress(httpx.HTTPError):
                    if (await client.get(f"{url}/healthz")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
            else:
                raise AssertionError("the gateway does not answer")
        yield url, program
    finally:
        program.kill(signal.SIGTERM)


@dataclass
class Answer:
    """How was one request answered? Seconds; ``cached`` of ``prompt`` tokens by the server's own word."""

    status: int = 0
    ttft: float | None = None
    seconds: float = 0.0
    text: str = ""
    prompt: int = 0
    cached: int = 0
    request_id: str = ""
    error: str = ""
    finished: bool = False
    model: str = ""
    begun: float = 0.0
    asked: bytes = b""


@dataclass
class Turns:
    """What does one user say, turn by turn?"""

    model: str
    system: str
    turns: list[str]
    history: list[dict] = field(default_factory=list)


def words(rng, tokens):
    """Text of some so many tokens for the tiny model: its tokenizer knows letters, and little else."""
    return "".join(rng.choice("bcfghjklmnpqrstvwxz") for _ in range(tokens))


async def ask(client, url, model, messages, *, most=16, stream=True):
    """Send one chat, and say how it went; what breaks is in the answer."""
    answer, begun = Answer(model=model), time.monotonic()
    answer.begun = begun
    said = {"model": model, "messages": messages, "max_tokens": most, "stream": stream, **READABLE}
    answer.asked = json.dumps({"model": model, "messages": messages}).encode()
    if stream:
        said["stream_options"] = {"include_usage": True}
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=said) as response:
            answer.status = response.status_code
            answer.request_id = response.headers.get("x-request-id", "")
            if response.status_code != 200:
                answer.error = (await response.aread()).decode(errors="replace")[:200]
            elif not stream:
                whole = json.loads(await response.aread())
                _usage(answer, whole.get("usage"))
                answer.text, answer.finished = whole["choices"][0]["message"]["content"], True
            else:
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        answer.error = str(event["error"])
                        continue
                    _usage(answer, event.get("usage"))
                    for choice in event.get("choices") or ():
                        piece = choice.get("delta", {}).get("content")
                        if piece and answer.ttft is None:
                            answer.ttft = time.monotonic() - begun
                        answer.text += piece or ""
                        answer.finished = answer.finished or bool(choice.get("finish_reason"))
    except httpx.HTTPError as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.seconds = time.monotonic() - begun
    return answer


def _usage(answer, usage):
    if usage:
        answer.prompt = usage["prompt_tokens"]
        answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


async def reset(servers, seed=0):
    """Empty the servers' prefix caches, and have that said: vLLM publishes the event with the next request's."""
    rng = random.Random(f"reset {seed}")
    async with httpx.AsyncClient(timeout=30) as client:
        for each in servers:
            (await client.post(f"http://{each.address}/reset_prefix_cache")).raise_for_status()
        for each in servers:
            for _ in range(2):
                answer = await ask(
                    client, f"http://{each.address}", "tiny", [{"role": "user", "content": words(rng, 40)}]
                )
                assert answer.finished, answer
    await asyncio.sleep(0.5)


async def converse(urls, users, *, concurrency=6, most=16):
    """Let users talk, so many at a time, each turn after the one before; a request goes to the next of `urls`. Returns the answers."""
    answers, turn_of = [], 0
    room = asyncio.Semaphore(concurrency)

    async def one(user, client):
        nonlocal turn_of
        async with room:
            for text in user.turns:
                user.history.append({"role": "user", "content": text})
                url = urls[turn_of % len(urls)]
                turn_of += 1
                messages = [{"role": "system", "content": user.system}, *user.history]
                answer = await ask(client, url, user.model, messages, most=most)
                user.history.append({"role": "assistant", "content": answer.text})
                answers.append(answer)

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(user, client) for user in users))
    return answers


def history_heavy(seed, users=16):
    """Conversations of five turns: a system prompt of 200 tokens for all, 250 tokens a turn."""
    rng = random.Random(seed)
    system = words(rng, 200)
    return [Turns("tiny", system, [words(rng, 250) for _ in range(5)]) for _ in range(users)]


def many_prefixes(seed, prefixes=36, rounds=4):
    """Single questions behind one of 36 prefixes of 1,600 tokens: more than one server holds, less than three do."""
    rng = random.Random(seed)
    texts = [words(rng, 1600) for _ in range(prefixes)]
    order = [text for _ in range(rounds) for text in rng.sample(texts, len(texts))]
    return [Turns("tiny", text, [words(rng, 30)]) for text in order]


async def explained(url, answers):
    """Where did each answered request go, and what did the gateway believe was cached there? ``(endpoint, expected)`` each."""
    found = []
    async with httpx.AsyncClient(timeout=20) as client:
        for answer in answers:
            told = (await client.get(f"{url}/debug/explain/{answer.request_id}")).text
            endpoint = re.search(r"endpoint: (\S+) at", told)
            expected = re.search(r"prompt: (\d+) of (\d+) tokens expected", told)
            found.append((endpoint[1] if endpoint else "", int(expected[1]) if expected else None))
    return found


def ceiling(answers, tokenizer):
    """How many tokens could any router have hit, were all caches one, without end, and filled the moment a request is asked?"""
    encoder = HuggingFaceTokenizer(tokenizer, ChatTemplate(**TEMPLATE))
    seen, most = set(), 0
    for answer in sorted(answers, key=lambda each: each.begun):
        ids = tuple(encoder.encode(parse_body(answer.asked, "chat")).tolist())
        known = 0
        for end in range(BLOCK, len(ids) + 1, BLOCK):
            if hash(ids[:end]) not in seen:
                break
            known = end
        seen.update(hash(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK))
        most += min(known, (len(ids) - 1) // BLOCK * BLOCK)
    return most


def percentile(values, share):
    """The value below which that share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
