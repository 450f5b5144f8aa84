"""How does a gateway keep its connections to many servers, without each request paying for all of them?

httpx's own pool looks at every connection for every request, and for each idle one at every other: quadratic. A burst that leaves two hundred
connections behind can then cost more time a request than there is between two, and the gateway never comes back from it (seen in the soak
of this gateway: 106 % of a core for 60 requests a second). Here each server has a stack: the connection that was used last is used next.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, final

import httpcore
import httpx

from inferencesched.errors import duration, whole_number

#: So many requests between two looks at all that is idle.
_SWEEP: Final = 512
#: What httpcore raises, and what httpx calls it.
_ERRORS: Final[dict[type[Exception], type[httpx.TransportError]]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}


@final
class StackTransport(httpx.AsyncBaseTransport):
    """Over which connection does a request go? The one to its server that was used last, else a new one. For ``httpx.AsyncClient(transport=)``.

    Parameters
    ----------
    keep: idle connections a server, at most.
    idle: seconds after which an idle one is closed; less than the servers' own (uvicorn, and so vLLM, closes after 5).

    No limit on connections in use: the queue before the servers is flow control's. HTTP/1.1. Cost: constant, whatever is open.
    Errors: httpx's, as from its own transport; `InvalidInputError`.
    """

    def __init__(self, *, keep: int = 64, idle: float = 4.0) -> None:
        self._keep = whole_number("keep", keep)
        self._idle = duration("idle", idle)
        self._stacks: dict[tuple[bytes, bytes, int], deque[httpcore.AsyncHTTPConnection]] = {}
        self._asked = 0
        self._open = 0

    @property
    def open(self) -> int:
        """How many connections are in use?"""
        return self._open

    @property
    def kept(self) -> int:
        """How many connections are idle?"""
        return sum(map(len, self._stacks.values()))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; its connection comes back when its answer is closed."""
        self._asked += 1
        if self._asked % _SWEEP == 0:
            await self._sweep()
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = httpcore.Origin(url.raw_scheme, url.raw_host, port)
        key = (origin.scheme, origin.host, origin.port)
        assert isinstance(request.stream, httpx.AsyncByteStream)  # an asynchronous client's
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        connection = await self._take(key)
        if connection is None:
            connection = httpcore.AsyncHTTPConnection(origin, keepalive_expiry=self._idle)
        self._open += 1
        try:
            with _translated():
                answer = await connection.handle_async_request(asked)
        except BaseException:
            self._open -= 1
            await connection.aclose()
            raise
        stream = _Stream(self, key, connection, answer)
        return httpx.Response(answer.status, headers=answer.headers, stream=stream, extensions=answer.extensions)

    async def aclose(self) -> None:
        """Close what is idle; what is in use is closed when its answer is."""
        self._keep = 0
        for stack in self._stacks.values():
            while stack:
                await stack.pop().aclose()

    # -- inside --------------------------------------------------------------------------------------

    async def _take(self, key: tuple[bytes, bytes, int]) -> httpcore.AsyncHTTPConnection | None:
        """Return the idle connection that was used last, None where none is good any more."""
        stack = self._stacks.get(key)
        while stack:
            connection = stack.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await connection.aclose()
        return None

    async def _give(self, key: tuple[bytes, bytes, int], connection: httpcore.AsyncHTTPConnection) -> None:
        """Take a connection back whose answer is closed; one that broke off, or is one too many, is closed."""
        self._open -= 1
        if not connection.is_idle() or connection.is_closed() or not self._keep:
            await connection.aclose()
            return
        stack = self._stacks.setdefault(key, deque())
        stack.append(connection)
        if len(stack) > self._keep or stack[0].has_expired():
            await stack.popleft().aclose()

    async def _sweep(self) -> None:
        """Close what has been idle for too long, or was closed by its server."""
        for key, stack in list(self._stacks.items()):
            old = [each for each in stack if each.has_expired()]
            for each in old:
                stack.remove(each)
            if not stack:
                del self._stacks[key]
            for each in old:
                await each.aclose()


class _Stream(httpx.AsyncByteStream):
    """An answer's bytes, and its connection until it is closed."""

    def __init__(
        self,
        transport: StackTransport,
        key: tuple[bytes, bytes, int],
        connection: httpcore.AsyncHTTPConnection,
        answer: httpcore.Response,
    ) -> None:
        self._transport = transport
        self._key = key
        self._connection: httpcore.AsyncHTTPConnection | None = connection
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated():
            async for part in self._answer.aiter_stream():
                yield part

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await self._answer.aclose()
            finally:
                await self._transport._give(self._key, connection)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise httpx's errors for httpcore's."""
    try:
        yield
    except tuple(_ERRORS) as error:
        raise _ERRORS[type(error)](str(error)) from error
