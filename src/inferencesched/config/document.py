"""What may stand in an ``EndpointPickerConfig``?

The document of llm-d's router under its own names (apix/config/v1alpha1, snapshot of August 2026): its shape, what is deprecated in it,
and how it is written back. What the names in it refer to is checked where they are resolved.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from inferencesched.config.decode import NOTHING, below, decode, encode, found, nearest, one_of
from inferencesched.errors import ConfigError
from inferencesched.prefix.parameters import go_duration

KIND: Final = "EndpointPickerConfig"
API_VERSION: Final = "llm-d.ai/v1alpha1"
OLD_API_VERSION: Final = "inference.networking.x-k8s.io/v1alpha1"
_QUANTITY: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")
_YES: Final = ("1", "t", "true")
_NO: Final = ("0", "f", "false")


@dataclass(frozen=True, slots=True)
class Remark:
    """What should whoever wrote a configuration know, although it was read?

    ``kind`` is ``deprecated`` (use `instead`), ``ignored`` (it has no effect), ``assumed`` (what was taken where nothing is said), or
    ``gateway`` (kept as data: whoever runs the gateway acts on it). ``path`` is the place, ``about`` what stands there.
    """

    kind: Literal["deprecated", "ignored", "assumed", "gateway"]
    path: str
    about: str
    words: str
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.about}: {self.words}"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What is a table of the document? camelCase names, no others."""


class PluginEntry(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in is made, under which name, with which parameters?"""

    name: str = ""
    type: str
    parameters: dict[str, Any] | None = None


class ProfilePlugin(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in does a profile use, and how much does it count if it is a scorer?"""

    plugin_ref: str
    weight: float | None = None


class ProfileEntry(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-ins make up a profile? Their kinds say what for."""

    name: str
    plugins: tuple[ProfilePlugin, ...] = ()


class Ref(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in is meant?"""

    plugin_ref: str


class OptionalRef(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in is meant, if another than the usual one?"""

    plugin_ref: str = ""


class Source(_Section, frozen=True, kw_only=True, rename="camel"):
    """Where does data come from, and who reads it?"""

    plugin_ref: str
    extractors: tuple[Ref, ...] = ()


class DataLayer(_Section, frozen=True, kw_only=True, rename="camel"):
    """What does the gateway learn of its servers, and from where?"""

    inject_defaults: bool | None = None
    sources: tuple[Source, ...] = ()
    discovery: Ref | None = None
    peer_discovery: Ref | None = None
    cross_replica_syncer_plugin_ref: str = ""
    cross_replica_sync_interval: str | None = None


class Band(_Section, frozen=True, kw_only=True, rename="camel"):
    """What holds for one priority?"""

    priority: int = 0
    max_bytes: int | float | str | None = None
    max_requests: int | float | str | None = None
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""


class FlowControl(_Section, frozen=True, kw_only=True, rename="camel"):
    """How do requests wait? Read, checked, and kept for whoever builds the flow controller."""

    max_bytes: int | float | str | None = None
    max_requests: int | float | str | None = None
    default_request_ttl: str | None = msgspec.field(default=None, name="defaultRequestTTL")
    no_endpoint_request_ttl: str | None = msgspec.field(default=None, name="noEndpointRequestTTL")
    default_priority_band: Band | None = None
    default_negative_priority_band: Band | None = None
    priority_bands: tuple[Band, ...] = ()
    usage_limit_policy_plugin_ref: str = ""
    saturation_detector: OptionalRef | None = None
    enable_eviction: bool = False


class RequestHandler(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which parsers read a request, in order?"""

    parsers: tuple[Ref, ...] = ()


class Document(_Section, frozen=True, kw_only=True, rename="camel"):
    """What is an ``EndpointPickerConfig``? `read_document` makes one of a mapping, `write_document` a mapping of one."""

    api_version: str
    kind: str
    feature_gates: tuple[str, ...] = ()
    plugins: tuple[PluginEntry, ...] = ()
    scheduling_profiles: tuple[ProfileEntry, ...] = ()
    data_layer: DataLayer | None = None
    flow_control: FlowControl | None = None
    request_handler: RequestHandler | None = None
    saturation_detector: OptionalRef | None = None
    parser: Ref | None = None


def read_document(raw: object) -> Document:
    """Return the document of a mapping; `ConfigError` for anything that has no place in one."""
    if not isinstance(raw, Mapping):
        raise ConfigError("$", found(raw), f"a mapping: apiVersion, kind {KIND}, plugins, schedulingProfiles, ...")
    kind, version = raw.get("kind"), raw.get("apiVersion")
    if kind != KIND:
        raise ConfigError("$.kind", NOTHING if kind is None else found(kind), KIND)
    if version not in (API_VERSION, OLD_API_VERSION):
        allowed = f"{API_VERSION}, or the deprecated {OLD_API_VERSION}"
        raise ConfigError("$.apiVersion", NOTHING if version is None else found(version), allowed)
    document = decode(Document, raw)
    for path, value in _quantities(document):
        if isinstance(value, str) and not _QUANTITY.fullmatch(value):
            raise ConfigError(path, value, "a quantity such as 100, '1k', '500M' or '1Gi'")
    for path, duration in _durations(document):
        if go_duration(duration) is None:
            raise ConfigError(path, duration, "a duration such as '60s', '1m30s' or '500ms'")
    for i, entry in enumerate(document.plugins):
        if not entry.type:
            raise ConfigError(f"$.plugins[{i}].type", entry.type, "the type of a plug-in, not empty")
    return document


def write_document(document: Document) -> dict[str, Any]:
    """Return the document as a mapping: what was said, under the names of llm-d, without defaults."""
    written: dict[str, Any] = encode(document)
    return written


def deprecations(document: Document) -> Iterator[Remark]:
    """Walk what a document says in a way that will go."""
    if document.api_version == OLD_API_VERSION:
        yield _old("$.apiVersion", document.api_version, API_VERSION)
    if document.saturation_detector is not None:
        yield _old("$.saturationDetector", "saturationDetector", "flowControl.saturationDetector")
    if document.parser is not None:
        yield _old("$.parser", "parser", "requestHandler.parsers")


def _old(path: str, about: str, instead: str) -> Remark:
    return Remark("deprecated", path, about, f"is deprecated, use {instead}", instead)


def modern(document: Document) -> Document:
    """Return the document with what is deprecated in its new place; where both are said, the new place counts."""
    flow, handler = document.flow_control, document.request_handler
    if document.saturation_detector is not None and (flow is None or flow.saturation_detector is None):
        flow = msgspec.structs.replace(flow or FlowControl(), saturation_detector=document.saturation_detector)
    if document.parser is not None and (handler is None or not handler.parsers):
        handler = RequestHandler(parsers=(document.parser,))
    plugins = tuple(
        entry if entry.name else msgspec.structs.replace(entry, name=entry.type) for entry in document.plugins
    )
    return msgspec.structs.replace(
        document,
        api_version=API_VERSION,
        plugins=plugins,
        flow_control=flow,
        request_handler=handler,
        saturation_detector=None,
        parser=None,
    )


def feature_gates(document: Document, known: Mapping[str, bool]) -> dict[str, bool]:
    """Return which gates are open: what is said, else their defaults. A bare name opens its gate.

    Errors: `ConfigError` for a gate that nobody knows, and for a value that is neither true nor false.
    """
    gates = dict(known)
    for i, said in enumerate(document.feature_gates):
        name, equals, value = (part.strip() for part in said.partition("="))
        path = below("$.featureGates", i)
        if name not in known:
            meant = nearest(name, known)
            raise ConfigError(path, said, one_of(meant[0] if meant else name, known, "a feature gate, "))
        if equals and value.lower() not in (*_YES, *_NO):
            raise ConfigError(path, said, f"{name}, {name}=true or {name}=false")
        gates[name] = not equals or value.lower() in _YES
    return gates


def _quantities(document: Document) -> Iterator[tuple[str, object]]:
    flow = document.flow_control
    if flow is not None:
        yield "$.flowControl.maxBytes", flow.max_bytes
        yield "$.flowControl.maxRequests", flow.max_requests
        for path, band in bands(flow):
            yield f"{path}.maxBytes", band.max_bytes
            yield f"{path}.maxRequests", band.max_requests


def bands(flow: FlowControl) -> Iterator[tuple[str, Band]]:
    """Walk the priority bands of flow control, with their paths."""
    if flow.default_priority_band is not None:
        yield "$.flowControl.defaultPriorityBand", flow.default_priority_band
    if flow.default_negative_priority_band is not None:
        yield "$.flowControl.defaultNegativePriorityBand", flow.default_negative_priority_band
    for i, band in enumerate(flow.priority_bands):
        yield f"$.flowControl.priorityBands[{i}]", band


def _durations(document: Document) -> Iterator[tuple[str, str]]:
    flow, data = document.flow_control, document.data_layer
    said = {
        "$.flowControl.defaultRequestTTL": None if flow is None else flow.default_request_ttl,
        "$.flowControl.noEndpointRequestTTL": None if flow is None else flow.no_endpoint_request_ttl,
        "$.dataLayer.crossReplicaSyncInterval": None if data is None else data.cross_replica_sync_interval,
    }
    for path, duration in said.items():
        if duration is not None:
            yield path, duration
