"""Whole configurations (`endpoint-picker-config`), and who depends on whose data (`data-dependency-graph`).

llm-d's tests register plug-ins of their own; they are made here again. A configuration is loaded as far as the case's phase goes.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

import inferencesched as isched
from inferencesched.config import picker_config
from inferencesched.config.defaults import with_data_layer
from inferencesched.config.document import API_VERSION, KIND, Document, read_document
from inferencesched.config.graph import Node, dependencies, in_turn
from inferencesched.config.registry import Registry
from inferencesched.config.spec import Need, Nothing, Opaque, Parameters, PluginRef, PluginSpec
from inferencesched.config.supply import supply
from inferencesched.config.workbench import Workbench
from tests.parity.cases import Case, Mismatch, Runner, same, unknown, within


class Anything:
    """A plug-in of llm-d's tests, as much of one as a configuration needs."""

    def __init__(self, parameters: object = None) -> None:
        self.parameters = parameters

    def filter(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        return np.ones(len(endpoints), dtype=np.bool_)

    def score(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        return np.zeros(len(endpoints))

    def pick(self, totals: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        return np.arange(1)


class BlockSize(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``blockSize``, a whole number."""

    block_size: int = 0


class Dependencies(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Two plug-ins, the second perhaps."""

    dependency: PluginRef = ""
    pointed_to: PluginRef | None = None


class Inner(Parameters, frozen=True, kw_only=True, rename="camel"):
    """One plug-in, a table further down."""

    dependency: PluginRef = ""


class Nested(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Plug-ins in tables and lists."""

    nested: Inner = Inner()
    nested_ptr: Inner | None = None
    pointed_to: PluginRef | None = None
    extras: tuple[PluginRef, ...] = ()


def stand_in(name: str, *kinds: Any, parameters: type[msgspec.Struct] = Opaque, **more: Any) -> PluginSpec:
    return PluginSpec(name, kinds or ("inert",), parameters, lambda p, workshop: Anything(p), Anything, **more)


SPECS = (
    stand_in("test-plugin"),
    stand_in("test-scorer", "scorer", parameters=BlockSize),
    stand_in("test-picker", "picker"),
    stand_in("test-profile-handler", "profile-handler"),
    stand_in("test-source", "inert", "source"),
    stand_in("test-extractor", "inert", "extractor"),
    stand_in("test-order-filter", "filter"),
    stand_in("test-alpha-plugin", stability="alpha"),
    stand_in("test-with-dependencies", parameters=Dependencies),
    stand_in("test-with-nested-dependencies", parameters=Nested),
)
GATES = {"test-feature-gate": True}


def registry() -> Registry:
    """Return the library's types with those of llm-d's tests."""
    return Registry.default().with_plugins(SPECS).with_gates(GATES)


def names_the_same(words: str | None, ours: str) -> None:
    """Raise `Mismatch` unless our error names what llm-d's words name: what is in quotes, and keys. Prose is each one's own."""
    for quoted, key in re.findall(r"""['"]([^'"]+)['"]|\b([a-z]+[A-Z]\w*)\b""", words or ""):
        if (quoted or key) not in ours:
            raise Mismatch(f"an error that names {quoted or key!r} (llm-d: {words!r})", ours)


# --- whole configurations ----------------------------------------------------------------------------------------


def config(case: Case) -> None:
    expect, phase = case["expect"], case["params"]["phase"]
    try:
        got = loaded(case["config"], phase, allow_experimental=case["params"].get("allow_experimental", False))
    except isched.ConfigError as error:
        if expect["valid"]:
            raise Mismatch("a configuration that is valid", str(error)) from error
        names_the_same(expect.get("error_contains"), str(error))
        return
    if not expect["valid"]:
        raise Mismatch("a refusal", got)
    if "deprecated_warning" in expect:
        same(expect["deprecated_warning"], any(each.kind == "deprecated" for each in got["warnings"]), "deprecated")
    if "feature_gates" in expect:
        within(expect["feature_gates"], got["gates"], "feature_gates")
    for name, value in expect.get("effective", {}).items():
        effective(name, value, got["document"])


def loaded(raw: Any, phase: str, *, allow_experimental: bool) -> dict[str, Any]:
    """Load as far as the phase goes: the document, the gates, the warnings."""
    types = registry()
    if phase in ("ensure_data_layer", "validate_stability"):  # these start from llm-d's structures, without a head
        raw = {"apiVersion": API_VERSION, "kind": KIND, **raw}
    if phase == "ensure_data_layer":
        return {"document": with_data_layer(read_document(raw), {}), "gates": {}, "warnings": ()}
    if phase in ("instantiate_and_configure", "validate_stability"):
        it = picker_config.load(raw, registry=types, allow_experimental=allow_experimental)
        return {"document": it.effective, "gates": it.feature_gates, "warnings": it.warnings}
    said = picker_config.read(raw, registry=types)
    if phase == "instantiate_plugins":
        picker_config.instantiate(said.modern, types, allow_experimental=allow_experimental)
    elif phase != "load_raw":
        raise unknown("phase", phase)
    return {"document": said.modern, "gates": said.feature_gates, "warnings": said.warnings}


def effective(name: str, expected: Any, document: Document) -> None:
    """Hold one thing that is expected of a document against it."""
    plugins = {entry.name: entry.type for entry in document.plugins}
    profiles = {entry.name: entry.plugins for entry in document.scheduling_profiles}
    layer, flow, handler = document.data_layer, document.flow_control, document.request_handler
    sources = layer.sources if layer is not None else ()
    if name == "plugins":
        same(expected, [list(each) for each in plugins.items()], name)
    elif name == "profiles":
        same(expected, {key: [[each.plugin_ref, each.weight] for each in value] for key, value in profiles.items()})
    elif name == "profile_plugins_in_order":
        for key, refs in expected.items():
            same(refs, [each.plugin_ref for each in profiles[key]], key)
    elif name == "profile_plugin_count":
        for key, count in expected.items():
            same(count, len(profiles[key]), key)
    elif name == "weights":
        for key, weights in expected.items():
            within(weights, {each.plugin_ref: each.weight for each in profiles[key]}, key)
    elif name == "parsers":
        same(expected, [each.plugin_ref for each in handler.parsers] if handler is not None else [], name)
    elif name == "data_sources":
        got = [
            {"pluginRef": each.plugin_ref, "extractors": [e.plugin_ref for e in each.extractors]} for each in sources
        ]
        same(expected, got, name)
    elif name == "data_source_refs":
        same(expected, [each.plugin_ref for each in sources], name)
    elif name == "data_source_refs_any_order":
        same(sorted(expected), sorted(each.plugin_ref for each in sources), name)
    elif name == "has_plugins":
        same(set(), set(expected) - set(plugins), name)
    elif name == "absent_plugins":
        same(set(), set(expected) & set(plugins), name)
    elif name == "has_plugin_types":
        same(set(), set(expected) - set(plugins.values()), name)
    elif name == "absent_plugin_types":
        same(set(), set(expected) & set(plugins.values()), name)
    elif name == "has_saturation_detector":
        detector = flow.saturation_detector if flow is not None else None
        same(expected, detector is not None and bool(detector.plugin_ref), name)
    elif name == "saturation_detector":
        detector = flow.saturation_detector if flow is not None else None
        same(expected, detector.plugin_ref if detector is not None else None, name)
    elif name == "has_flow_control":
        same(expected, flow is not None, name)
    else:
        raise unknown("effective", name)


# --- who depends on whose data -----------------------------------------------------------------------------------


def signal(key: str, kind: str = "") -> isched.Signal:
    return isched.Signal(key, kind, freshness="cycle")


LAYERS: dict[str, Any] = {name: name for name in ("flow-control", "request-control", "scheduling")}


def dag(case: Case) -> None:
    expect = case["expect"]
    try:
        nodes = [
            Node(
                f"{each['name']}/{each.get('type', 'mock')}",
                tuple(signal(key, each.get("produced_types", {}).get(key, "")) for key in each.get("produces") or ()),
                tuple(signal(key, each.get("consumed_types", {}).get(key, "")) for key in each.get("consumes") or ()),
                LAYERS.get(each.get("layer", "").replace("_", "-"), ""),
            )
            for each in case["plugins"]
        ]
        graph = dependencies(nodes)
        order = in_turn(graph)
    except isched.DependencyError as error:
        if not ("error_contains" in expect or expect.get("error") or expect.get("valid") is False):
            raise Mismatch("dependencies that can be met", str(error)) from error
        names_the_same(expect.get("error_contains"), str(error))
        return
    if "error_contains" in expect or expect.get("error") or expect.get("valid", True) is False:
        raise Mismatch("a refusal", order)
    if "dag" in expect:
        same({k: sorted(v) for k, v in expect["dag"].items()}, {k: sorted(v) for k, v in graph.items()}, "dag")
    if "topological_order_valid" in expect:
        place = {name: i for i, name in enumerate(order)}
        met = all(place[below] < place[name] for name, behind in graph.items() for below in behind)
        same(expect["topological_order_valid"], met and len(order) == len(nodes), "order")


class Filling:
    """A producer that fills columns of these names."""

    def __init__(self, keys: Any) -> None:
        self.produces = tuple(map(signal, keys))


def auto_create(case: Case) -> None:
    expect, usual = case["expect"], case["default_producers"]
    specs = [node(each, usual) for each in case["plugins"]]
    specs += [factory(name, made) for name, made in case["factories"].items()]
    bench = Workbench(Registry(specs), allow_experimental=True)
    try:
        for i, each in enumerate(case["plugins"]):
            bench.add(each["name"], each["name"], None, f"$.plugins[{i}]")
        bench.make()
        created = supply(bench).created
    except isched.InvalidInputError as error:
        if not (expect.get("error") or "error_contains" in expect):
            raise Mismatch(expect, str(error)) from error
        names_the_same(expect.get("error_contains"), str(error))
        return
    if expect.get("error") or "error_contains" in expect:
        raise Mismatch("a refusal", created)
    same(sorted(expect["created"]), sorted(created), "created")


def node(said: Mapping[str, Any], usual: Mapping[str, str]) -> PluginSpec:
    """Return a type for a plug-in of the case."""
    needs = tuple(Need(signal(key), usual.get(key, "")) for key in said.get("consumes") or ())
    keys = said.get("produces") or ()
    kinds = ("producer",) if keys else ("inert",)
    return PluginSpec(said["name"], kinds, Nothing, lambda p, w: Filling(keys), needs=lambda p: needs)  # type: ignore[arg-type]


def factory(name: str, made: Any) -> PluginSpec:
    """Return a type that makes a producer, or fails, or makes something else."""
    if made == "fails":
        return PluginSpec(name, ("producer",), Nothing, failing)
    if isinstance(made, str):
        return PluginSpec(name, ("inert",), Nothing, lambda p, w: Anything())
    return PluginSpec(name, ("producer",), Nothing, lambda p, w: Filling(made))


def failing(parameters: Any, workshop: Any) -> object:
    raise isched.InvalidInputError("parameters", parameters, "nothing: this one always fails")


RUNNERS: dict[tuple[str, str], Runner] = {
    ("endpoint-picker-config", "config"): config,
    ("data-dependency-graph", "dag"): dag,
    ("data-dependency-graph", "dag-auto-create"): auto_create,
}
