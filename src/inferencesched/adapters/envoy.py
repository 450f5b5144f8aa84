"""Which endpoint does Envoy send this request to? An endpoint picker: Envoy's external processing, answered by the director.

::

    Envoy > headers, body > decide (perhaps wait) > destination, as a header and as metadata > Envoy forwards
    Envoy > the server's headers and body, chunk by chunk > accounted, and passed on > Envoy answers its client

The Endpoint Picker Protocol 1.0 of the Gateway API Inference Extension (docs/proposals/004): a subset hint is kept to; the destination is
said twice, with ordered fallbacks; 503 where nobody is ready, 429 where it is shed; the endpoint that Envoy says has served is the one that
is accounted. Bodies come in ``FULL_DUPLEX_STREAMED`` mode, both ways; a configuration that sends them otherwise is refused, aloud.
Health is gRPC's own, for ``liveness``, ``readiness`` and the service's name.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, Final, final

import grpc
import xxhash
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferencesched.director.aio import AsyncDirector
from inferencesched.director.answers import refusal_body
from inferencesched.director.decision import Decision
from inferencesched.errors import BodyError, UpstreamError, whole_number
from inferencesched.lifecycle.responses import ResponseReader
from inferencesched.request import Usage
from inferencesched.routing.candidates import within
from inferencesched.routing.headers import DESTINATION, DESTINATION_SERVED, SUBSET

#: What the health service answers for.
SERVICES: Final = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
#: Envoy takes a streamed body in pieces of at most so many bytes.
PIECE: Final = 62 << 10
_DUPLEX: Final = ProcessingMode.FULL_DUPLEX_STREAMED
_HINTS: Final = "envoy.lb.subset_hint"
_LB: Final = "envoy.lb"
_NOTHING_USED: Final = Usage(input_tokens=0, output_tokens=0)
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500


@final
class EndpointPicker(external_processor_pb2_grpc.ExternalProcessorServicer):  # type: ignore[misc, unused-ignore]
    """Which endpoint does Envoy send this request to? A servicer of ``envoy.service.ext_proc.v3.ExternalProcessor``.

    Parameters
    ----------
    shell: who decides.
    max_body: bytes of a request; more is 413, and no more is read.

    A request without a body (``GET /v1/models``) goes to any endpoint of the one pool, unaccounted. One whose client goes is cancelled
    wherever it is. Retries are Envoy's: to the fallbacks, in their order.
    """

    def __init__(self, shell: AsyncDirector, *, max_body: int = 32 << 20) -> None:
        self._shell = shell
        self._max_body = whole_number("max_body", max_body, 1)
        self.draining = False

    async def Process(  # noqa: N802  the protocol's name
        self, request_iterator: AsyncIterable[ProcessingRequest], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> AsyncIterator[ProcessingResponse]:
        """Answer one HTTP request's stream of messages."""
        asked = _Exchange(self._shell, self._max_body, draining=self.draining)
        try:
            async for message in request_iterator:
                wrong = _wrong_mode(message)
                if wrong:
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, wrong)
                async for answer in asked.take(message):
                    yield answer
                if asked.over:
                    return
        finally:
            asked.close()


class _Exchange:
    """One HTTP request, and its answer."""

    def __init__(self, shell: AsyncDirector, max_body: int, *, draining: bool) -> None:
        self._shell = shell
        self._max_body = max_body
        self._draining = draining
        self._headers: dict[str, str] = {}
        self._subset: list[str] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._decision: Decision | None = None
        self._reader: ResponseReader | None = None
        self._status = 0
        self._sent = 0
        self._broken = ""  # why the answer is none
        self.over = False

    async def take(self, message: ProcessingRequest) -> AsyncIterator[ProcessingResponse]:
        """Answer one message; nothing where more must be read first."""
        kind = message.WhichOneof("request")
        hint = _listed(message.metadata_context.filter_metadata, _HINTS, SUBSET)
        if hint is not None:
            self._subset = hint
        if kind == "request_headers":
            self._headers = _headers(message.request_headers.headers)
            if self._draining:
                yield self._refuse(503, {"retry-after": "1"}, "shutting_down", "the endpoint picker is shutting down")
            elif message.request_headers.end_of_stream:
                yield self._bodiless()
        elif kind == "request_body":
            async for answer in self._body(message.request_body.body, message.request_body.end_of_stream):
                yield answer
        elif kind == "request_trailers":
            yield ProcessingResponse(request_trailers=TrailersResponse())
        elif kind == "response_headers":
            self._answered(message)
            yield self._response_headers(end=message.response_headers.end_of_stream)
        elif kind == "response_body":
            yield self._response_body(message.response_body.body, message.response_body.end_of_stream)
        elif kind == "response_trailers":
            self._end()
            yield ProcessingResponse(response_trailers=TrailersResponse())

    def close(self) -> None:
        """End what has not ended: the stream broke off, so its client has gone."""
        life = None if self._decision is None else self._decision.life
        if life is not None and life.open:
            life.cancel(now=self._shell.now())

    # -- the request ---------------------------------------------------------------------------------

    async def _body(self, chunk: bytes, end: bool) -> AsyncIterator[ProcessingResponse]:
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self._max_body:
            error = BodyError("body", f"{self._size} bytes", f"at most {self._max_body} bytes", status=413)
            yield self._refuse(error.status, error.headers, error.outcome, str(error))
            return
        if not end:
            return
        body, self._chunks = b"".join(self._chunks), []
        path = self._headers.get(":path", "").partition("?")[0]
        headers = {name: value for name, value in self._headers.items() if name[:1] != ":"}
        headers["host"] = self._headers.get(":authority", headers.get("host", ""))
        self._decision = decision = await self._shell.decide(body, headers, path=path, subset=self._subset)
        if decision.life is None:
            yield self._refuse(decision.status, decision.headers, decision.outcome, decision.message)
            return
        said = {**decision.headers, "content-length": str(len(decision.body))}
        yield _destined(decision.headers[DESTINATION], _mutation(said))
        for at in range(0, max(1, len(decision.body)), PIECE):
            piece = decision.body[at : at + PIECE]
            yield ProcessingResponse(request_body=_streamed(piece, end=at + PIECE >= len(decision.body)))

    def _bodiless(self) -> ProcessingResponse:
        pools = list(self._shell.director.pools.values())
        endpoints = pools[0].pool.snapshot()
        if self._subset is not None:
            endpoints = endpoints.where(within(endpoints, self._subset))
        if not len(endpoints):
            return self._refuse(503, {}, "no_endpoints", "no endpoint is ready")
        at = xxhash.xxh3_64_intdigest(self._headers.get("x-request-id", "").encode()) % len(endpoints)
        address = endpoints.address(at)
        return _destined(address, _mutation({DESTINATION: address}))

    def _refuse(self, status: int, headers: Mapping[str, str], word: str, message: str) -> ProcessingResponse:
        self.over = True
        mutation = _mutation({**headers, "content-type": "application/json"})
        return ProcessingResponse(
            immediate_response=ImmediateResponse(
                status=HttpStatus(code=status), headers=mutation, body=refusal_body(word, message), details=word
            )
        )

    # -- the answer ----------------------------------------------------------------------------------

    def _answered(self, message: ProcessingRequest) -> None:
        """Take note of how a server answers, and of who it was."""
        headers = _headers(message.response_headers.headers)
        status = headers.get(":status", "")
        self._status = int(status) if status.isdigit() else 0
        decision = self._decision
        if decision is None or decision.life is None:
            return
        served = _said(message.metadata_context.filter_metadata, _LB, DESTINATION_SERVED)
        if served and served != decision.address:
            self._moved(decision, served)
        if self._status < _CLIENT_ERROR:
            streaming = headers.get("content-type", "").startswith("text/event-stream")
            self._reader = decision.life.reader(streaming=streaming)

    def _moved(self, decision: Decision, served: str) -> None:
        """Book it where Envoy says that it went: to a fallback."""
        life = decision.life
        assert life is not None  # asked by the caller
        endpoints = self._shell.director.pools[decision.pool].pool.snapshot()
        for i, name in enumerate(endpoints.names):
            if endpoints.address(i) == served and life.reservation.settlement is None:
                life.reservation.served_by(name, now=self._shell.now())
                life.endpoint = name

    def _response_headers(self, *, end: bool) -> ProcessingResponse:
        mutation = HeaderMutation()
        decision = self._decision
        if decision is not None and decision.life is not None:
            mutation = _mutation({"x-request-id": decision.request_id})
            way = decision.life.way
            if way.body.model != way.choice.target:
                mutation.remove_headers.append("content-length")  # the model's name is given back, longer or shorter
        if end:
            self._end()
        return ProcessingResponse(response_headers=HeadersResponse(response=CommonResponse(header_mutation=mutation)))

    def _response_body(self, chunk: bytes, end: bool) -> ProcessingResponse:
        life, reader, out = None if self._decision is None else self._decision.life, self._reader, chunk
        if life is not None and reader is not None and life.open:
            try:
                parts = [*([reader.feed(chunk)] if chunk else []), *([reader.finish()] if end else [])]
            except UpstreamError as error:  # it is passed on as it came, whatever it says
                self._broken = str(error)
            else:
                out = b"".join(part.out for part in parts)
                tokens = sum(part.tokens for part in parts)
                if tokens:
                    life.tokens(tokens, now=self._shell.now())
                self._broken = self._broken or next((part.error for part in parts if part.error), "")
        self._sent += len(out)
        if end:
            self._end()
        return ProcessingResponse(response_body=_streamed(out, end=end))

    def _end(self) -> None:
        """End the request as its answer has."""
        life = None if self._decision is None else self._decision.life
        if life is None or not life.open:
            return
        now, reader = self._shell.now(), self._reader
        if self._status >= _SERVER_ERROR or not self._status:
            life.fail(now=now)
        elif reader is not None and (self._broken or reader.cut_short):
            life.fail(reader.usage, now=now)
        elif reader is None:
            life.complete(_NOTHING_USED, size_bytes=self._sent, now=now)  # its client did something wrong
        else:
            life.complete(reader.usage, size_bytes=self._sent, now=now)


def picker_server(picker: EndpointPicker, address: str = "127.0.0.1:0") -> "tuple[grpc.aio.Server, int]":
    """Return a gRPC server with the picker and its health, and the port it listens at; start it with ``await server.start()``.

    Errors: ``RuntimeError`` of grpc's for an address that cannot be had.
    """
    server = grpc.aio.server()
    external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(picker, server)
    # grpc's own synchronous one: `serving` can be said before the loop runs
    watched = health.HealthServicer()
    for name in SERVICES:
        watched.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(watched, server)
    return server, server.add_insecure_port(address)


def _wrong_mode(message: ProcessingRequest) -> str:
    """Return what is wrong with how Envoy was told to send bodies; empty for nothing."""
    if not message.HasField("protocol_config"):
        return ""
    config = message.protocol_config
    for name in ("request_body_mode", "response_body_mode"):
        mode = getattr(config, name)
        if mode not in (_DUPLEX, ProcessingMode.NONE) or (mode != _DUPLEX and name == "request_body_mode"):
            said = ProcessingMode.BodySendMode.Name(mode)
            return f"processing_mode.{name}: got {said}, allowed: FULL_DUPLEX_STREAMED"
    return ""


def _headers(said: Any) -> dict[str, str]:
    """Return Envoy's headers by their lower-case names; of two of a name, both behind a comma."""
    found: dict[str, str] = {}
    for each in said.headers:
        name, value = each.key.lower(), (each.raw_value or each.value.encode()).decode("latin-1")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _said(metadata: Any, space: str, name: str) -> str:
    fields = metadata[space].fields if space in metadata else {}
    return fields[name].string_value if name in fields else ""


def _listed(metadata: Any, space: str, name: str) -> list[str] | None:
    """Return a list of the metadata, None where it is not there; a hint that is there and empty allows nobody."""
    fields = metadata[space].fields if space in metadata else {}
    if name not in fields:
        return None
    value = fields[name]
    if value.WhichOneof("kind") == "list_value":
        return [each.string_value for each in value.list_value.values]
    return [each.strip() for each in value.string_value.split(",") if each.strip()]


def _mutation(headers: Mapping[str, str]) -> HeaderMutation:
    """Return the setting of headers; an empty value says "remove"."""
    mutation = HeaderMutation(remove_headers=[name for name, value in headers.items() if not value])
    for name, value in headers.items():
        if value:
            mutation.set_headers.append(
                HeaderValueOption(
                    header=HeaderValue(key=name, raw_value=value.encode("latin-1", "replace")),
                    append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
                )
            )
    return mutation


def _destined(destination: str, mutation: HeaderMutation) -> ProcessingResponse:
    """Return the answer to a request's headers: where it goes, said as a header and as metadata."""
    metadata = Struct()
    metadata.update({_LB: {DESTINATION: destination}})
    return ProcessingResponse(
        request_headers=HeadersResponse(response=CommonResponse(header_mutation=mutation, clear_route_cache=True)),
        dynamic_metadata=metadata,
    )


def _streamed(piece: bytes, *, end: bool) -> BodyResponse:
    streamed = StreamedBodyResponse(body=piece, end_of_stream=end)
    return BodyResponse(response=CommonResponse(body_mutation=BodyMutation(streamed_response=streamed)))
