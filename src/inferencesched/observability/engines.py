"""What does a model server's page of metrics say of it?

Each engine has names of its own, and has changed them. A page on which none of them stands is an error, never a server that looks idle.

Sources of the names: the Gateway API Inference Extension's model server protocol (docs/proposals/003), llm-d-router's
``core-metrics-extractor`` (``extractor/metrics/factories.go``), and pages of vLLM 0.32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple

from inferencesched.endpoints import (
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Signal,
)
from inferencesched.errors import InvalidInputError, MetricsPageError, UnknownNameError
from inferencesched.members import Adapters
from inferencesched.observability.pages import MAX_BYTES, MetricSpec, Series, latest, parse_metric_spec, parse_page

ENGINE_LABEL: Final = "llm-d.ai/engine-type"
LEGACY_ENGINE_LABEL: Final = "inference.networking.k8s.io/engine-type"
DEFAULT_ENGINE: Final = "default"
_STARTED: Final = "process_start_time_seconds"


def _specs(*texts: str) -> tuple[MetricSpec, ...]:
    return tuple(spec for text in texts if (spec := parse_metric_spec(text)) is not None)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Under which names does an engine say what? Of several the first that is on the page counts: newer names before older ones.

    ``cache_info`` is a family whose labels `block_size_labels` and `num_blocks_labels` hold the sizes, for engines that have no
    gauges for them. ``custom`` are columns of one's own.
    """

    name: str
    queued: tuple[MetricSpec, ...] = ()
    running: tuple[MetricSpec, ...] = ()
    kv_usage: tuple[MetricSpec, ...] = ()
    lora: tuple[MetricSpec, ...] = ()
    cache_info: tuple[MetricSpec, ...] = ()
    block_size_labels: tuple[str, ...] = ("block_size",)
    num_blocks_labels: tuple[str, ...] = ("num_gpu_blocks",)
    block_size: tuple[MetricSpec, ...] = ()
    num_blocks: tuple[MetricSpec, ...] = ()
    cache_queries: tuple[MetricSpec, ...] = ()
    cache_hits: tuple[MetricSpec, ...] = ()
    custom: Mapping[Signal, MetricSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or self.name == DEFAULT_ENGINE:
            raise InvalidInputError("name", self.name, f"a name other than {DEFAULT_ENGINE!r}")

    @property
    def names(self) -> frozenset[str]:
        """Which names does it look for?"""
        specs = (
            *(*self.queued, *self.running, *self.kv_usage, *self.lora, *self.cache_info, *self.block_size),
            *(*self.num_blocks, *self.cache_queries, *self.cache_hits, *self.custom.values()),
        )
        return frozenset(spec.name for spec in specs)


VLLM: Final = EngineMetrics(
    "vllm",
    queued=_specs("vllm:num_requests_waiting"),
    running=_specs("vllm:num_requests_running"),
    kv_usage=_specs("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    lora=_specs("vllm:lora_requests_info"),
    cache_info=_specs("vllm:cache_config_info"),
    cache_queries=_specs("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    cache_hits=_specs("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
)
SGLANG: Final = EngineMetrics(
    "sglang",
    queued=_specs("sglang:num_queue_reqs"),
    running=_specs("sglang:num_running_reqs"),
    kv_usage=_specs("sglang:token_usage"),
    cache_info=_specs("sglang:cache_config_info"),
    block_size_labels=("page_size",),
    num_blocks_labels=("num_pages",),
    block_size=_specs("sglang:page_size"),
    num_blocks=_specs("sglang:num_pages"),
)
TRTLLM_SERVE: Final = EngineMetrics(
    "trtllm-serve",
    queued=_specs("trtllm_num_requests_waiting"),
    running=_specs("trtllm_num_requests_running"),
    kv_usage=_specs("trtllm_kv_cache_utilization"),
    block_size=_specs("trtllm_kv_cache_tokens_per_block"),
    num_blocks=_specs("trtllm_kv_cache_max_blocks"),
)
TRITON_TRTLLM: Final = EngineMetrics(
    "triton-tensorrt-llm",
    queued=_specs("nv_trt_llm_request_metrics{request_type=waiting}"),
    running=_specs("nv_trt_llm_request_metrics{request_type=scheduled}"),
    kv_usage=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}"),
    block_size=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}"),
    num_blocks=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}"),
)
TRITON: Final = EngineMetrics(
    "triton", queued=_specs("nv_inference_pending_request_count"), running=_specs("nv_inference_exec_count")
)
ENGINES: Final = (VLLM, SGLANG, TRTLLM_SERVE, TRITON_TRTLLM, TRITON)


class EngineReading(NamedTuple):
    """What does one page say? What it does not say is not in ``columns``, or None.

    ``missing`` names what the engine should have said. ``cache_queries`` and ``cache_hits`` are tokens, counted since ``started_at``,
    seconds since the epoch: it changes when the server starts again.
    """

    engine: str
    columns: Mapping[Signal, float]
    adapters: Adapters | None = None
    cache_queries: float | None = None
    cache_hits: float | None = None
    started_at: float | None = None
    missing: tuple[str, ...] = ()

    @property
    def hit_ratio(self) -> float | None:
        """Which share of the prompts' tokens was cached, since the server started? None where it does not say, or had none."""
        if self.cache_hits is None or not self.cache_queries:
            return None
        return self.cache_hits / self.cache_queries


@dataclass(frozen=True, slots=True)
class MetricsExtractor:
    r"""How is a page read, whichever engine it is of?

    Parameters
    ----------
    engines: those that are known, beside or in the place of `ENGINES` by their names.
    default_engine: what a server is that does not say; empty is the first whose names are on the page.
    engine_label: the label in which an endpoint says it; the older ``inference.networking.k8s.io/engine-type`` counts after it.

    >>> reading = MetricsExtractor().read("vllm:num_requests_waiting 3\nvllm:num_requests_running 4\n")
    >>> reading.engine, reading.columns[WAITING_QUEUE_SIZE]
    ('vllm', 3.0)
    >>> MetricsExtractor().read("python_info 1\n")
    Traceback (most recent call last):
    ...
    inferencesched.errors.MetricsPageError: page: got '1 lines', allowed: metrics of one of sglang, triton, triton-tensorrt-llm, trtllm-serve, vllm
    """

    engines: Sequence[EngineMetrics] = ()
    default_engine: str = ""
    engine_label: str = ENGINE_LABEL
    max_bytes: int = MAX_BYTES
    _known: Mapping[str, EngineMetrics] = field(init=False, repr=False)
    _names: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        known: dict[str, EngineMetrics] = {}
        for engine in self.engines:
            if engine.name in known:
                raise InvalidInputError("engines", engine.name, "each name once: it already exists")
            known[engine.name] = engine
        for engine in ENGINES:
            known.setdefault(engine.name, engine)
        if self.default_engine and self.default_engine not in known:
            raise UnknownNameError("default_engine", self.default_engine, sorted(known))
        object.__setattr__(self, "_known", MappingProxyType(known))
        object.__setattr__(self, "_names", frozenset({_STARTED}.union(*(each.names for each in known.values()))))

    @property
    def known(self) -> tuple[EngineMetrics, ...]:
        """Which engines are known?"""
        return tuple(self._known.values())

    def engine_of(self, labels: Mapping[str, str] | None) -> str:
        """Return the engine that an endpoint's labels name, ``default`` where they name none.

        >>> MetricsExtractor().engine_of({"inference.networking.k8s.io/engine-type": "sglang"})
        'sglang'
        """
        said = labels or {}
        return said.get(self.engine_label) or said.get(LEGACY_ENGINE_LABEL) or DEFAULT_ENGINE

    def read(self, page: bytes | str, labels: Mapping[str, str] | None = None) -> EngineReading:
        """Return what a page says of the server with these labels.

        An engine that nobody knows is read as the default one. Several series of one name are data-parallel ranks: what waits and runs is
        added up, cache use is their mean. Errors: `MetricsPageError`, where nothing known stands on it, too.
        """
        found = parse_page(page, self._names, max_bytes=self.max_bytes)
        engine = self._known.get(self.engine_of(labels)) or self._known.get(self.default_engine)
        if engine is None:
            engine = next((each for each in self._known.values() if _of(found, each.queued + each.running)), None)
        reading = None if engine is None else _reading(engine, found)
        if reading is None or not (reading.columns or reading.adapters):
            lines = page.count(b"\n" if isinstance(page, bytes) else "\n")  # type: ignore[arg-type]  # of its own kind
            known = ", ".join(sorted(self._known)) if engine is None else engine.name
            raise MetricsPageError("page", f"{lines} lines", f"metrics of one of {known}")
        return reading


def _of(found: Mapping[str, list[Series]], specs: Sequence[MetricSpec]) -> list[Series]:
    """Return the series of the first of these specs that is on the page."""
    for spec in specs:
        series = [each for each in found.get(spec.name, ()) if spec.matches(each.labels)]
        if series:
            return series
    return []


def _ranks(series: Sequence[Series]) -> list[float]:
    """Return the newest value of each rank. Series that differ in time only are one."""
    newest: dict[tuple[tuple[str, str], ...], Series] = {}
    for each in series:
        key = tuple(sorted(each.labels.items()))
        before = newest.get(key)
        if before is None or each.timestamp_ms > before.timestamp_ms:
            newest[key] = each
    return [each.value for each in newest.values()]


def _reading(engine: EngineMetrics, found: Mapping[str, list[Series]]) -> EngineReading:
    columns: dict[Signal, float] = {}
    missing: list[str] = []

    def take(signal: Signal, what: str, value: float | None, *, wanted: bool) -> None:
        if value is not None and isfinite(value) and signal.low <= value <= signal.high:
            columns[signal] = value
        elif wanted:
            missing.append(what)

    for signal, what, specs in (
        (WAITING_QUEUE_SIZE, "queued", engine.queued),
        (RUNNING_REQUESTS, "running", engine.running),
    ):
        ranks = _ranks(_of(found, specs))
        take(signal, what, sum(ranks) if ranks else None, wanted=bool(specs))
    usage = _ranks(_of(found, engine.kv_usage))
    take(KV_CACHE_USAGE, "kv_usage", sum(usage) / len(usage) if usage else None, wanted=bool(engine.kv_usage))
    info = latest(_of(found, engine.cache_info))
    for signal, what, gauges, names in (
        (KV_BLOCK_SIZE, "block_size", engine.block_size, engine.block_size_labels),
        (KV_BLOCKS, "num_blocks", engine.num_blocks, engine.num_blocks_labels),
    ):
        values = _ranks(_of(found, gauges))
        said = values[0] if values else _labelled(info, names)
        take(signal, what, said, wanted=bool(gauges or engine.cache_info))
    for signal, spec in engine.custom.items():
        newest = latest(found.get(spec.name, ()), spec.labels)
        take(signal, signal.name, None if newest is None else newest.value, wanted=True)
    queries, hits = _ranks(_of(found, engine.cache_queries)), _ranks(_of(found, engine.cache_hits))
    started = latest(found.get(_STARTED, ()))
    return EngineReading(
        engine.name,
        MappingProxyType(columns),
        lora_adapters(_of(found, engine.lora)),
        sum(queries) if queries else None,
        sum(hits) if hits else None,
        None if started is None else started.value,
        tuple(missing),
    )


def _labelled(info: Series | None, names: Sequence[str]) -> float | None:
    for name in names:
        said = "" if info is None else info.labels.get(name, "")
        if said.isascii() and said.isdigit():
            return float(said)
    return None


def lora_adapters(series: Sequence[Series]) -> Adapters | None:
    """Return which adapters a server says it has: the series with the greatest value, which is its time. None where it says nothing.

    >>> said = {"max_lora": "2", "running_lora_adapters": "a, b", "waiting_lora_adapters": ""}
    >>> sorted(lora_adapters([Series(said, 7.0)]).running)
    ['a', 'b']
    """
    known = [each for each in series if "running_lora_adapters" in each.labels or "max_lora" in each.labels]
    if not known:
        return None
    newest = max(known, key=lambda each: each.value)
    most = newest.labels.get("max_lora", "")
    return Adapters(
        running=_adapters(newest, "running_lora_adapters"),
        waiting=_adapters(newest, "waiting_lora_adapters"),
        capacity=int(most) if most.isascii() and most.isdigit() else 0,
    )


def _adapters(series: Series, label: str) -> frozenset[str]:
    return frozenset(name for each in series.labels.get(label, "").split(",") if (name := each.strip()))
