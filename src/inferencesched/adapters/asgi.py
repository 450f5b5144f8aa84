"""How does a whole gateway look? An ASGI application before OpenAI-compatible model servers: Starlette, httpx and the director.

::

    body in > decide (perhaps wait) > send to the chosen server > hold its headers until the first token > pass chunk by chunk > account

Headers are held because a dying vLLM has answered 200 before: until the first piece of an answer is here, another server may be tried.
A chunk is read from the server when the one before has been taken by the client: a slow client slows its server, and no buffer grows.
"""

from asyncio import CancelledError, Task, Timeout, create_task, current_task, get_running_loop, sleep, timeout
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf
from typing import Any, Final, final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from inferencesched.director.aio import AsyncDirector
from inferencesched.director.answers import refusal_body
from inferencesched.director.decision import Decision
from inferencesched.errors import BodyError, InvalidInputError, UpstreamError, whole_number
from inferencesched.lifecycle.responses import ResponseReader
from inferencesched.observability.exposition import CONTENT_TYPE, exposition
from inferencesched.observability.registry import Registry
from inferencesched.request import Usage

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Headers of one connection, and those that the gateway sets itself.
_HOP: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "accept-encoding"),
    )
)
#: Of an answer; what is passed on is as long as it is.
_HOP_BACK: Final = _HOP | {"date", "server", "x-request-id"}
_NOTHING_USED: Final = Usage(input_tokens=0, output_tokens=0)


@dataclass(frozen=True, slots=True)
class GatewayPolicy:
    """How patient is the gateway, and how much does it hold?

    Parameters
    ----------
    first_token: seconds until a server's first piece of an answer; then another server is tried. None waits for ever.
    between: seconds between two pieces.
    max_body: bytes of a request.
    max_held: bytes of an answer that are held before its first token, or of a whole one that does not stream; beyond that it is passed on.
    explained: how many of the last decisions ``/debug/explain`` can still explain.
    """

    first_token: float | None = 120.0
    between: float | None = 60.0
    max_body: int = 32 << 20
    max_held: int = 1 << 20
    explained: int = 256

    def __post_init__(self) -> None:
        for name in ("first_token", "between"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise InvalidInputError(name, value, "a finite number of seconds above 0, or None")
        for name in ("max_body", "max_held"):
            whole_number(name, getattr(self, name), 1)
        whole_number("explained", self.explained)


class _FailedError(Exception):
    """A server failed in a way that has a low-cardinality word."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(detail)
        self.word = word


@final
class Gateway:
    """May this request go, and where? Asked by HTTP. An ASGI application for the paths of the APIs; `app` puts it in one with its pages.

    Parameters
    ----------
    shell: who decides.
    client: to the servers; its pool limits are the gateway's.
    policy: patience and sizes.
    scheme: of the servers' URLs.

    A request whose client goes is cancelled wherever it is: in the queue, before its first token, in its stream. What a server does wrong
    before the first token is the retry policy's to judge; after it the stream ends with an ``error`` event and without ``[DONE]``.
    """

    __slots__ = ("_client", "_explained", "_policy", "_scheme", "_shell", "draining")

    def __init__(
        self,
        shell: AsyncDirector,
        client: httpx.AsyncClient,
        *,
        policy: GatewayPolicy | None = None,
        scheme: str = "http",
    ) -> None:
        self._shell = shell
        self._client = client
        self._policy = GatewayPolicy() if policy is None else policy
        self._scheme = scheme
        self._explained: OrderedDict[str, str] = OrderedDict()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise InvalidInputError("scope", scope["type"], "http")
        if scope["method"] != "POST":
            await _answer(send, 405, {"allow": "POST"}, "method_not_allowed", f"{scope['method']} is not allowed")
            return
        if self.draining:
            await _answer(send, 503, {"retry-after": "1"}, "shutting_down", "the gateway is shutting down")
            return
        try:
            body = await self._body(receive)
        except BodyError as error:
            await _answer(send, error.status, error.headers, error.outcome, str(error))
            return
        if body is None:
            return  # its client went before it had said all
        task = current_task()
        assert task is not None  # an ASGI server runs each request in one
        watch = create_task(_hang_up(receive, task))
        try:
            await self._serve(scope, body, send)
        except CancelledError:
            if not watch.done() or watch.cancelled():
                raise  # the gateway itself stops
            task.uncancel()  # the client went: there is nobody to answer
        finally:
            watch.cancel()
            with suppress(CancelledError):
                await watch

    def explain(self, request_id: str) -> str | None:
        """Return how one of the last requests was decided, None for one that is not known any more."""
        return self._explained.get(request_id)

    async def drain(self, patience: float = 30.0) -> int:
        """Let nobody in any more, wait for what is at the servers; return how many are still there when patience is over."""
        self.draining = True
        self._shell.shutdown()
        loop = get_running_loop()
        until = loop.time() + patience
        while len(self._shell.director) and loop.time() < until:
            await sleep(0.01)
        return len(self._shell.director)

    # -- inside --------------------------------------------------------------------------------------

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the body; None where the client went. Errors: `BodyError` (413) for a larger one, of which no more is read then."""
        chunks, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._policy.max_body:
                raise BodyError("body", f"{size} bytes", f"at most {self._policy.max_body} bytes", status=413)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    async def _serve(self, scope: Scope, body: bytes, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = scope.get("query_string", b"").decode("latin-1")
        path = scope["path"]
        decision = await self._shell.decide(body, headers, path=path)
        life = decision.life
        while life is not None:
            self._note(decision)
            try:
                await self._forward(decision, headers, f"{path}?{query}" if query else path, send)
                return
            except _FailedError as failed:
                decision = self._shell.retry(life, failed.word)
                life = decision.life
            except BaseException:
                life.cancel(now=self._shell.now())
                raise
        self._note(decision)
        await _answer(send, decision.status, decision.headers, decision.outcome, decision.message)

    async def _forward(self, decision: Decision, headers: Mapping[str, str], path: str, send: Send) -> None:
        """Send it to the chosen server and pass its answer on. Errors: `_FailedError` before the client has seen anything."""
        life = decision.life
        assert life is not None  # asked by the caller
        url = f"{self._scheme}://{decision.address}{path}"
        upstream = self._client.build_request("POST", url, content=decision.body, headers=_passed(headers, decision))
        async with AsyncExitStack() as stack:
            try:
                async with timeout(self._policy.first_token):
                    response = await self._client.send(upstream, stream=True)
            except (httpx.TransportError, TimeoutError) as error:
                raise _failed(error) from error
            stack.push_async_callback(response.aclose)
            if response.status_code >= 500:
                raise _FailedError("unavailable", f"status {response.status_code}")
            if response.status_code == 429:
                raise _FailedError("overloaded", "status 429")
            passing = _Passing(self._shell, decision, response, self._policy, send)
            await passing.run()

    def _note(self, decision: Decision) -> None:
        if self._policy.explained:
            self._explained[decision.request_id] = decision.explain()
            self._explained.move_to_end(decision.request_id)
            while len(self._explained) > self._policy.explained:
                self._explained.popitem(last=False)


@final
class _Passing:
    """One server's answer on its way to the client."""

    __slots__ = ("_begun", "_decision", "_life", "_policy", "_response", "_send", "_shell", "_size")

    def __init__(
        self,
        shell: AsyncDirector,
        decision: Decision,
        response: httpx.Response,
        policy: GatewayPolicy,
        send: Send,
    ) -> None:
        assert decision.life is not None  # asked by the caller
        self._shell = shell
        self._decision = decision
        self._life = decision.life
        self._response = response
        self._policy = policy
        self._send = send
        self._begun = False
        self._size = 0

    async def run(self) -> None:
        """Pass the answer on to its end. Errors: `_FailedError`, before the client has seen anything."""
        response, life, shell = self._response, self._life, self._shell
        well = response.status_code < 400  # else it is what its client did wrong, and passed on as it is
        streaming = well and response.headers.get("content-type", "").startswith("text/event-stream")
        reader = life.reader(streaming=streaming)
        try:
            async with timeout(None) as patience:  # one for all pieces: one for each would cost as much as reading it
                await self._pass(reader if well else None, patience, streaming=streaming)
        except (httpx.TransportError, TimeoutError, UpstreamError, _FailedError) as error:
            failed = error if isinstance(error, _FailedError) else _failed(error)
            if not self._begun:
                raise failed from error
            life.fail(reader.usage, now=shell.now())
            await self._cut(failed, streaming=streaming)
            return
        life.complete(reader.usage if well else _NOTHING_USED, size_bytes=self._size, now=shell.now())

    async def _pass(self, reader: ResponseReader | None, patience: Timeout, *, streaming: bool) -> None:
        """Read piece after piece, and pass each on: the next one when the client has taken this one."""
        held: list[bytes] = []
        size, policy = 0, self._policy
        chunks, now = self._response.aiter_raw(), get_running_loop().time
        while True:
            seconds = policy.between if self._begun else policy.first_token
            patience.reschedule(None if seconds is None else now() + seconds)
            chunk = await anext(chunks, b"")
            patience.reschedule(None)  # from here on it is the client who is waited for
            out = chunk if reader is None else self._read(reader, chunk)
            held.append(out)
            size += len(out)
            told = streaming and reader is not None and (reader.tokens or reader.done)
            if not chunk or size > policy.max_held or told:
                await self._out(b"".join(held), more=bool(chunk))
                held, size = [], 0
            if not chunk:
                return

    def _read(self, reader: ResponseReader, chunk: bytes) -> bytes:
        """Return what of a chunk may be passed on; an empty chunk is the end. Errors: `_FailedError` for an answer that is cut short."""
        progress = reader.feed(chunk) if chunk else reader.finish()
        if progress.error:
            raise _FailedError("reset", progress.error)
        if reader.cut_short:
            raise _FailedError("reset", "the stream ended without a finish reason")  # as when vLLM's engine has died
        if progress.tokens:
            self._life.tokens(progress.tokens, now=self._shell.now())
        return progress.out

    async def _out(self, data: bytes, *, more: bool) -> None:
        if not self._begun:
            self._begun = True
            self._life.first_byte(now=self._shell.now())
            kept = [
                (name.lower(), value)
                for name, value in self._response.headers.raw
                if name.decode("latin-1").lower() not in _HOP_BACK
            ]
            kept.append((b"x-request-id", self._decision.request_id.encode("latin-1", "replace")))
            await self._send({"type": "http.response.start", "status": self._response.status_code, "headers": kept})
        self._size += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _cut(self, failed: _FailedError, *, streaming: bool) -> None:
        """End an answer that has begun: with an error where it is a stream, by cutting it where it is not."""
        if not streaming:
            raise UpstreamError(f"request {self._decision.request_id!r}: {failed}")
        data = b"data: " + refusal_body("upstream_failed", str(failed)) + b"\n\n"
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _failed(error: Exception) -> _FailedError:
    """Return the word for what a transport raised, or for the patience with it."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return _FailedError("connect", str(error) or "no connection")
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return _FailedError("timeout", str(error) or "nothing came in time")
    return _FailedError("reset", str(error) or type(error).__name__)


def _passed(headers: Mapping[str, str], decision: Decision) -> dict[str, str]:
    """Return what the server should hear: the client's headers, but for those of the connection, and the decision's."""
    passed = {name: value for name, value in headers.items() if name not in _HOP}
    for name, value in decision.headers.items():
        if value:
            passed[name] = value
        else:
            passed.pop(name, None)
    passed["accept-encoding"] = "identity"  # what comes is read on its way
    return passed


async def _hang_up(receive: Receive, task: "Task[Any]") -> None:
    """Cancel a request's task once its client has gone."""
    while (await receive())["type"] != "http.disconnect":
        continue
    task.cancel("the client went")


async def _answer(send: Send, status: int, headers: Mapping[str, str], code: str, message: str) -> None:
    body = refusal_body(code, message)
    shown = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items() if value]
    shown += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": shown})
    await send({"type": "http.response.body", "body": body})


def app(
    gateway: Gateway,
    *,
    registry: Registry | None = None,
    models: Sequence[str] = (),
    background: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    resources: Sequence[AbstractAsyncContextManager[Any]] = (),
    patience: float = 30.0,
) -> Starlette:
    """Return the application: the gateway at the paths of its APIs, and beside it

    ``/healthz`` (200; 503 while it drains, and after a part of `background` has failed), ``/v1/models``, ``/metrics`` where there is a
    `registry`, ``/debug/explain/{id}``. `background` runs while the application does: scrapers, subscribers; what one of them raised is
    raised again when the application stops. `resources` are closed then, such as the client. Before that it drains for at most
    `patience` seconds.
    """
    tasks: list[Task[None]] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for resource in resources:
                await stack.enter_async_context(resource)
            tasks.extend(create_task(each()) for each in background)
            try:
                yield
            finally:
                await gateway.drain(patience)
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with suppress(CancelledError):
                        await task

    async def healthz(_: Request) -> Response:
        broken = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        if broken:
            return PlainTextResponse(f"a part in the background has ended: {broken[0]!r}\n", 503)
        return PlainTextResponse("draining", 503) if gateway.draining else PlainTextResponse("ok")

    async def metrics(_: Request) -> Response:
        assert registry is not None  # else there is no such page
        return Response(exposition(registry), media_type=CONTENT_TYPE)

    async def listed(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})

    async def explained(request: Request) -> Response:
        told = gateway.explain(request.path_params["id"])
        return PlainTextResponse("not known any more\n", 404) if told is None else PlainTextResponse(told + "\n")

    routes = [
        Route("/healthz", healthz),
        Route("/v1/models", listed),
        Route("/debug/explain/{id:path}", explained),
        Mount("/", app=gateway),
    ]
    if registry is not None:
        routes.insert(0, Route("/metrics", metrics))
    return Starlette(routes=routes, lifespan=lifespan)
