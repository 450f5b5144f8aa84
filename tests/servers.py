"""Small model servers that speak HTTP on this machine: what a gateway meets, with faults on demand."""

import asyncio
import json
from contextlib import asynccontextmanager, nullcontext

import uvicorn


class _Server(uvicorn.Server):
    """One that leaves the process's signals alone."""

    def capture_signals(self):
        return nullcontext()


@asynccontextmanager
async def serving(app, **more):
    """Serve an ASGI application on a free port of this machine; yields its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=1, **more)
    server = _Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "it did not start"
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


class ModelServer:
    """An OpenAI-compatible server of so many tokens an answer.

    `fault`: ``status`` (500 at once), ``silent`` (200 and headers, and nothing more), ``done`` (ends a stream with ``[DONE]`` and no finish
    reason after `after` tokens), ``cut`` (closes the connection after `after` tokens), ``bad`` (400).
    """

    def __init__(self, tokens=4, pause=0.0, fault="", after=0, size=0):
        self.tokens, self.pause, self.fault, self.after, self.size = tokens, pause, fault, after, size
        self.seen, self.sent, self.page = [], 0, "vllm:num_requests_waiting 2\nvllm:num_requests_running 1\n"

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while (kind := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{kind}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/metrics":
            await self.whole(send, 200, self.page.encode(), b"text/plain")
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = json.loads(body)
        self.seen.append((dict(scope["headers"]), asked))
        if self.fault == "status":
            await self.whole(send, 500, b'{"error": {"message": "broken"}}')
        elif self.fault == "bad":
            await self.whole(send, 400, b'{"error": {"message": "no such thing"}}')
        elif asked.get("stream"):
            await self.stream(send, asked)
        else:
            await self.document(send, asked)

    async def document(self, send, asked):
        await asyncio.sleep(self.pause * self.tokens)
        choice = {
            "index": 0,
            "finish_reason": "length",
            "message": {"role": "assistant", "content": "x " * self.tokens},
        }
        usage = {"prompt_tokens": 7, "completion_tokens": self.tokens}
        said = {"model": asked["model"], "choices": [choice], "usage": usage}
        await self.whole(send, 200, json.dumps(said).encode())

    async def stream(self, send, asked):
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        if self.fault == "silent":
            await asyncio.sleep(3600)
        for i in range(self.tokens):
            if self.fault in ("done", "cut") and i == self.after:
                break
            await asyncio.sleep(self.pause)
            last = i == self.tokens - 1
            text = "x" * max(1, self.size)
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": "length" if last else None}
            await self.event(send, {"model": asked["model"], "choices": [choice]})
            self.sent += 1
        if self.fault == "cut":
            raise ConnectionError("cut")  # the server closes the connection
        if self.fault != "done":
            await self.event(
                send,
                {
                    "model": asked["model"],
                    "choices": [],
                    "usage": {"prompt_tokens": 7, "completion_tokens": self.tokens},
                },
            )
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    @staticmethod
    async def event(send, said):
        await send(
            {"type": "http.response.body", "body": b"data: " + json.dumps(said).encode() + b"\n\n", "more_body": True}
        )

    @staticmethod
    async def whole(send, status, body, kind=b"application/json"):
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
