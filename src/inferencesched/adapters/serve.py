"""How does one YAML file become a gateway? What ``inferencesched serve --config FILE`` runs.

::

    listen: {host: 127.0.0.1, port: 8000}
    pools:
    - name: llama
      config: scheduler.yaml           # an EndpointPickerConfig, or the library's own; without it llm-d's default
      endpoints:
      - {name: vllm-0, address: "127.0.0.1:8001"}
    scrape: {interval: 1.0, timeout: 2.0}

Every word is checked before a socket is opened; an unknown one is an error with its place.
"""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import msgspec
import numpy as np
from starlette.applications import Starlette

from inferencesched.adapters import yaml
from inferencesched.adapters.asgi import Gateway, GatewayPolicy, app
from inferencesched.adapters.vllm.scrape import Scrape, ScrapePolicy, Scraper
from inferencesched.config.document import Document
from inferencesched.config.flow_control import flow_controller
from inferencesched.config.forms import load
from inferencesched.director.aio import AsyncDirector
from inferencesched.director.director import Director
from inferencesched.director.stages import ServingPool
from inferencesched.errors import ConfigError
from inferencesched.filters.health import HealthFilter
from inferencesched.lifecycle.retry import RetryPolicy
from inferencesched.observability.sink import MetricsSink
from inferencesched.pool import InferencePool
from inferencesched.producers.outlier import OutlierPolicy, OutlierProducer
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


class ServedPool(_Strict, frozen=True):
    """Which servers belong together, and who chooses among them? ``config`` is a path, from the file's own folder."""

    name: _Name
    endpoints: Annotated[list[ServedEndpoint], msgspec.Meta(min_length=1)]
    models: list[str] = []
    config: str = ""


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
    rng = np.random.default_rng(document.seed)
    sink = MetricsSink()
    serving: dict[str, ServingPool] = {}
    for i, said in enumerate(document.pools):
        if said.name in serving:
            raise ConfigError(f"$.pools[{i}].name", said.name, "each name once")
        serving[said.name] = _serving(said, i, Path(folder), document.health)
    retry = document.retry
    director = Director(
        serving,
        retry=None if retry is None else RetryPolicy(retry.attempts, budget=retry.budget),
        sink=sink,
        max_bytes=document.patience.max_body,
    )
    shell = AsyncDirector(director, rng)
    client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))
    background: list[Callable[[], Coroutine[Any, Any, None]]] = []
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
    models = sorted({model for said in document.pools for model in said.models or [said.name]})
    return app(
        gateway,
        registry=sink.registry,
        models=models,
        background=background,
        resources=[client],
        patience=patience.drain,
    )


def _serving(said: ServedPool, i: int, folder: Path, health: Health | None) -> ServingPool:
    loaded = yaml.read(folder / said.config) if said.config else load()
    controller = flow_controller(loaded) if isinstance(loaded.document, Document) else None
    pool = InferencePool()
    for j, endpoint in enumerate(said.endpoints):
        if endpoint.name in pool.names:
            raise ConfigError(f"$.pools[{i}].endpoints[{j}].name", endpoint.name, "each name once in a pool")
        pool.join(endpoint.name, address=endpoint.address, labels=endpoint.labels)
    watched = health is None or any(isinstance(each, OutlierProducer) for each in loaded.producers)
    scheduler = loaded.scheduler() if watched or health is None else _watching(loaded.scheduler(), health)
    return ServingPool(pool, scheduler, controller, frozenset(said.models))


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
    return Scheduler(
        profiles,
        handler=scheduler.handler,
        producers=(*scheduler.producers, OutlierProducer(policy)),
        stale=scheduler.stale,
        assigner=scheduler.assigner,
        computing=scheduler.computing,
    )


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
