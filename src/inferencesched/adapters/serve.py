"""How does one YAML file become a gateway? What ``inferencesched serve --config FILE`` runs.

::

    listen: {host: 127.0.0.1, port: 8000}
    pools:
    - name: llama
      config: scheduler.yaml           # an EndpointPickerConfig, or the library's own; without it llm-d's default
      endpoints:
      - {name: vllm-0, address: "127.0.0.1:8001"}
    scrape: {interval: 1.0, timeout: 2.0}

Beside that: ``tokenizer`` (a model's own, so that prefixes are counted in its blocks), ``kv_events`` of an endpoint (what its engine says of its
cache), ``adapters`` of a pool (LoRA), ``replication`` (several gateways as one, over Redis).

Every word is checked before a socket is opened; an unknown one is an error with its place.
"""

import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
import msgspec
import numpy as np
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from starlette.applications import Starlette

from inferencesched.adapters import yaml
from inferencesched.adapters.asgi import Gateway, GatewayPolicy, app
from inferencesched.adapters.pooling import StackTransport
from inferencesched.adapters.redis import State, StreamReplicator
from inferencesched.adapters.vllm.kv_events import KVEventSource, KVEventSubscriber
from inferencesched.adapters.vllm.scrape import Scrape, ScrapePolicy, Scraper
from inferencesched.config.document import Document
from inferencesched.config.flow_control import flow_controller
from inferencesched.config.forms import load
from inferencesched.director.aio import AsyncDirector
from inferencesched.director.director import Director
from inferencesched.director.stages import ServingPool
from inferencesched.errors import ConfigError
from inferencesched.filters.health import HealthFilter
from inferencesched.framework import DataProducer, SchedulingProfile
from inferencesched.lifecycle.retry import RetryPolicy
from inferencesched.observability.sink import MetricsSink
from inferencesched.pool import InferencePool
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.producers.outlier import OutlierPolicy, OutlierProducer
from inferencesched.replication import Replica
from inferencesched.routing.objectives import ModelTable
from inferencesched.routing.tokens import Tokenizer
from inferencesched.scheduler import Scheduler

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping of which every key is known."""


class Listen(_Strict, frozen=True):
    """Where does the gateway listen?"""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 8000


class ServedEndpoint(_Strict, frozen=True):
    """Which server? ``address`` is ``HOST:PORT``."""

    name: _Name
    address: Annotated[str, msgspec.Meta(pattern=r"^[^\s/]+:\d+$")]
    labels: dict[str, str] = {}
    kv_events: "Speaking | None" = None


class Speaking(_Strict, frozen=True):
    """Where does an engine publish its KV events, as `KVEventSource` has it? For a pool whose `config` has a precise prefix producer."""

    endpoint: Annotated[str, msgspec.Meta(pattern=r"^\w+://.+$")]
    replay: Annotated[str, msgspec.Meta(pattern=r"^(\w+://.+)?$")] = ""
    topic: str = ""


class ServedPool(_Strict, frozen=True):
    """Which servers belong together, and who chooses among them?

    ``config`` is a path, from the file's own folder. ``adapters`` are LoRA adapters of its first model.
    """

    name: _Name
    endpoints: Annotated[list[ServedEndpoint], msgspec.Meta(min_length=1)]
    models: list[str] = []
    adapters: list[str] = []
    config: str = ""


class Layout(_Strict, frozen=True):
    """What stands round each turn of a chat, as `ChatTemplate` has it?"""

    before: str
    after: str
    begin: str = ""
    end: str = ""


class Tokenizing(_Strict, frozen=True):
    """Whose tokenizer is it? ``file`` is a model's ``tokenizer.json``, a path; ``template`` how its chats are laid out, by name or itself."""

    file: _Name
    template: Literal["chatml", "llama3", "gemma"] | Layout = "chatml"


class Replicating(_Strict, frozen=True):
    """How do several gateways hear of each other, as `StreamReplicator` has it?

    ``origin`` is this gateway's name, of nobody else; ``redis`` a URL; ``seed`` that of the prefix index, everybody's.
    """

    origin: _Name
    redis: Annotated[str, msgspec.Meta(pattern=r"^(redis|rediss|unix)://.+$")]
    stream: _Name = "inferencesched"
    interval: float = 0.02
    silence: float = 5.0
    seed: int = 0


class Scraping(_Strict, frozen=True):
    """How often are the servers asked, as `ScrapePolicy` has it?"""

    interval: float = 1.0
    timeout: float = 2.0
    jitter: float = 0.1
    longest: float = 10.0


class Retrying(_Strict, frozen=True):
    """When is another server tried, as `RetryPolicy` has it?"""

    attempts: _Count = 3
    budget: float | None = 0.2


class Health(_Strict, frozen=True):
    """When is a server left alone, as `OutlierPolicy` has it? Seconds; it comes back with one request at a time."""

    consecutive_failures: _Count = 3
    ejection: float = 5.0
    longest: float = 60.0


class Patience(_Strict, frozen=True):
    """How patient is the gateway, as `GatewayPolicy` has it? ``drain`` is seconds until what is still there is cut when it stops."""

    first_token: float | None = 120.0
    between: float | None = 60.0
    max_body: _Count = 32 << 20
    drain: float = 30.0


class GatewayDocument(_Strict, frozen=True):
    """What does the file say?"""

    pools: Annotated[list[ServedPool], msgspec.Meta(min_length=1)]
    listen: Listen = Listen()
    seed: int = 0
    scrape: Scraping | None = Scraping()
    retry: Retrying | None = Retrying()
    health: Health | None = Health()
    patience: Patience = Patience()
    tokenizer: Tokenizing | None = None
    replication: Replicating | None = None


_LOG: Final = logging.getLogger("inferencesched.serve")
_BLANK: Final = Path()


def read_gateway(path: str | Path) -> GatewayDocument:
    """Return what a gateway's file says. Errors: `ConfigError` with the place of what is wrong; `OSError` for a file that cannot be read.

    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "gateway.yaml").write_text("pools: [{name: llama, endpoints: [{name: a, address: '10.0.0.1:8000'}]}]")
    >>> read_gateway(folder / "gateway.yaml").pools[0].endpoints[0].address
    '10.0.0.1:8000'
    """
    return yaml.read_record(Path(path).read_text(encoding="utf-8"), GatewayDocument, source=str(path))


def gateway_of(document: GatewayDocument, folder: str | Path = _BLANK) -> Starlette:
    """Return the application that a file describes; `folder` is where its paths begin. Nothing is opened yet.

    Errors: `ConfigError` (a plug-in that is not there, two pools or endpoints of one name), `OSError`, and those of the policies.
    """
    folder = Path(folder)
    rng = np.random.default_rng(document.seed)
    sink = MetricsSink()
    shared = document.replication
    replica = (
        None if shared is None else Replica(shared.origin, life=time.time_ns() // 1_000_000, silence=shared.silence)
    )
    serving: dict[str, ServingPool] = {}
    background: list[Callable[[], Coroutine[Any, Any, None]]] = []
    for i, said in enumerate(document.pools):
        if said.name in serving:
            raise ConfigError(f"$.pools[{i}].name", said.name, "each name once")
        serving[said.name] = made = _serving(
            said, i, folder, document.health, replica, 0 if shared is None else shared.seed
        )
        background += _listening(said, i, made)
    retry = document.retry
    director = Director(
        serving,
        models=_models(document),
        tokenizer=_tokenizer(document.tokenizer, folder),
        retry=None if retry is None else RetryPolicy(retry.attempts, budget=retry.budget),
        sink=sink,
        max_bytes=document.patience.max_body,
    )
    shell = AsyncDirector(director, rng)
    client = httpx.AsyncClient(transport=StackTransport(), timeout=None)
    resources: list[AbstractAsyncContextManager[Any]] = [client]
    if replica is not None and shared is not None:
        # what came of one command is told by the replicator; a client that tries again by itself would only hide it
        redis = Redis.from_url(shared.redis, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))
        resources.append(redis)
        background.append(
            StreamReplicator(
                replica,
                redis,
                clock=shell.now,
                stream=shared.stream,
                interval=shared.interval,
                on_state=_told_of_replication,
            ).run
        )
    if document.scrape is not None:
        how = document.scrape
        policy = ScrapePolicy(how.interval, how.timeout, how.jitter, how.longest)
        for name, each in serving.items():
            told = _Observing(shell, sink, name, each)
            scraper = Scraper(each.pool, client, clock=shell.now, rng=rng, policy=policy, on_scrape=told)
            background.append(scraper.run)
    patience = document.patience
    gateway = Gateway(
        shell,
        client,
        policy=GatewayPolicy(first_token=patience.first_token, between=patience.between, max_body=patience.max_body),
    )
    models = sorted({model for said in document.pools for model in [*(said.models or [said.name]), *said.adapters]})
    return app(
        gateway,
        registry=sink.registry,
        models=models,
        background=background,
        resources=resources,
        patience=patience.drain,
    )


def _told_of_replication(state: State, word: str) -> None:
    """Say in the log whether the gateways hear each other."""
    if state == "connected":
        _LOG.info("replication: connected")
    else:
        _LOG.warning("replication: alone, decisions are local (%s)", word)


def _models(document: GatewayDocument) -> ModelTable | None:
    """Return which LoRA adapter belongs to which model; None where there are none."""
    bases = {each: (said.models or [said.name])[0] for said in document.pools for each in said.adapters}
    return ModelTable(adapters=bases) if bases else None


def _tokenizer(said: Tokenizing | None, folder: Path) -> Tokenizer | None:
    """Return the model's own tokenizer. Errors: `ConfigError` for a file that is none."""
    if said is None:
        return None
    # only who asks for one needs the package
    from inferencesched.adapters.tokenizers import (  # noqa: PLC0415
        CHATML,
        GEMMA,
        LLAMA3,
        ChatTemplate,
        HuggingFaceTokenizer,
    )

    layout = said.template
    if isinstance(layout, Layout):
        template = ChatTemplate(layout.before, layout.after, layout.begin, layout.end)
    else:
        template = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA}[layout]
    path = folder / said.file
    try:
        return HuggingFaceTokenizer(path, template)
    except Exception as error:  # tokenizers raises plain ones
        raise ConfigError("$.tokenizer.file", str(path), f"a tokenizer.json ({error})") from error


def _serving(
    said: ServedPool, i: int, folder: Path, health: Health | None, replica: Replica | None, seed: int
) -> ServingPool:
    loaded = yaml.read(folder / said.config) if said.config else load()
    controller = flow_controller(loaded) if isinstance(loaded.document, Document) else None
    pool = InferencePool()
    for j, endpoint in enumerate(said.endpoints):
        if endpoint.name in pool.names:
            raise ConfigError(f"$.pools[{i}].endpoints[{j}].name", endpoint.name, "each name once in a pool")
        pool.join(endpoint.name, address=endpoint.address, labels=endpoint.labels)
    scheduler = loaded.scheduler()
    if health is not None and not any(isinstance(each, OutlierProducer) for each in scheduler.producers):
        scheduler = _watching(scheduler, health)
    if replica is not None:
        prefix = next((each for each in scheduler.producers if isinstance(each, ApproximatePrefixProducer)), None)
        if prefix is not None:
            prefix.seed = seed  # or nobody's hashes mean anything to the others
        scheduler = _with(scheduler, replica.watch(said.name, pool, prefix))
    return ServingPool(pool, scheduler, controller, frozenset(said.models))


def _listening(said: ServedPool, i: int, made: ServingPool) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Return what listens to the engines of a pool. Errors: `ConfigError` where nobody would take what they say."""
    found: list[Callable[[], Coroutine[Any, Any, None]]] = []
    endpoints = made.pool.snapshot()
    for j, endpoint in enumerate(said.endpoints):
        source = endpoint.kv_events
        if source is None:
            continue
        precise = next((each for each in made.scheduler.producers if isinstance(each, PrecisePrefixProducer)), None)
        if precise is None:
            allowed = "none, or a `config` with a precise-prefix-cache-producer"
            raise ConfigError(f"$.pools[{i}].endpoints[{j}].kv_events", source.endpoint, allowed)
        at = endpoints.names.index(endpoint.name)
        take = partial(precise.take, int(endpoints.slots[at]), int(endpoints.generations[at]))
        told_of = partial(_LOG.warning, "KV events of %s: %s", endpoint.name)
        found.append(
            KVEventSubscriber(KVEventSource(source.endpoint, source.replay, source.topic), take, on_error=told_of).run
        )
    return found


def _with(
    scheduler: Scheduler, producer: DataProducer[Any], profiles: Mapping[str, SchedulingProfile] | None = None
) -> Scheduler:
    """Return the scheduler with one more producer, and with other profiles where they are given."""
    return Scheduler(
        scheduler.profiles if profiles is None else profiles,
        handler=scheduler.handler,
        producers=(*scheduler.producers, producer),
        stale=scheduler.stale,
        assigner=scheduler.assigner,
        computing=scheduler.computing,
    )


def _watching(scheduler: Scheduler, health: Health) -> Scheduler:
    """Return the scheduler with an eye on who fails, where its configuration has none."""
    policy = OutlierPolicy(
        consecutive_failures=health.consecutive_failures,
        base_ejection_time=health.ejection,
        max_ejection_time=health.longest,
    )
    profiles = {
        name: replace(profile, filters=(HealthFilter(), *profile.filters))
        for name, profile in scheduler.profiles.items()
    }
    return _with(scheduler, OutlierProducer(policy), profiles)


class _Observing:
    """Who hears of a reading: the pool's queue, and the metrics."""

    def __init__(self, shell: AsyncDirector, sink: MetricsSink, name: str, serving: ServingPool) -> None:
        self._shell = shell
        self._sink = sink
        self._name = name
        self._serving = serving

    def __call__(self, scrape: Scrape) -> None:
        self._shell.observe(self._name)
        self._sink.observe_pool(self._name, self._serving.pool.snapshot())
