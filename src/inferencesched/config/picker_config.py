"""How does an ``EndpointPickerConfig`` of llm-d become a scheduler, and how is it written back?

>>> loaded = load({
...     "apiVersion": "llm-d.ai/v1alpha1",
...     "kind": "EndpointPickerConfig",
...     "plugins": [{"type": "queue-scorer"}, {"type": "token-load-scorer"}],
... })
>>> loaded.scheduler().profiles["default"].scorers[0]
WeightedScorer(scorer=QueueScorer(), weight=1.0)
>>> load({**dump(loaded), "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "que-scorer"}]}]})
Traceback (most recent call last):
...
inferencesched.errors.ConfigError: $.schedulingProfiles[0].plugins[0].pluginRef: got 'que-scorer', allowed: a plug-in of this configuration, one of max-score-picker, queue-scorer, token-load-scorer, utilization-detector (did you mean 'queue-scorer'?)
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from inferencesched.config.decode import one_of
from inferencesched.config.defaults import DEFAULT, with_system_defaults
from inferencesched.config.document import (
    Document,
    Remark,
    bands,
    deprecations,
    feature_gates,
    modern,
    read_document,
    write_document,
)
from inferencesched.config.loaded import (
    Loaded,
    Member,
    Running,
    assigner_of,
    checked,
    computing_of,
    handler_of,
    profile_of,
)
from inferencesched.config.registry import Registry
from inferencesched.config.spec import Kind
from inferencesched.config.supply import supply
from inferencesched.config.workbench import Kept, Workbench
from inferencesched.errors import ConfigError
from inferencesched.scheduler import Scheduler
from inferencesched.staleness import StalePolicy


class Raw(NamedTuple):
    """What was said, before any plug-in is made? ``modern`` has what is deprecated in its new place, and every name."""

    document: Document
    modern: Document
    feature_gates: Mapping[str, bool]
    warnings: tuple[Remark, ...]


def load(
    raw: Mapping[str, Any] | None = None,
    *,
    registry: Registry | None = None,
    allow_experimental: bool = False,
    keep: Scheduler | None = None,
) -> Loaded[Document]:
    """What does this configuration mean? None is llm-d's default: queue 2, KV cache 2, prefix 3.

    `registry` says which types there are, the library's own without it. Types that llm-d calls alpha are refused unless
    `allow_experimental`. `keep` is a running scheduler: its producers go on where their configuration is the same.

    Errors: `ConfigError`, one, with the path of what is wrong, what was found, and what is allowed. Nothing has changed then.
    """
    return _loaded(
        read(raw, registry=registry),
        Registry.default() if registry is None else registry,
        allow_experimental,
        None if keep is None else Running(keep),
    )


def build(
    raw: Mapping[str, Any] | None = None, *, registry: Registry | None = None, allow_experimental: bool = False
) -> Scheduler:
    """Which scheduler is this? `load`, and then `Loaded.scheduler`: for who has no use for the remarks."""
    return load(raw, registry=registry, allow_experimental=allow_experimental).scheduler()


def dump(what: Loaded[Document] | Document, *, effective: bool = False) -> dict[str, Any]:
    """Return a configuration as a mapping that `load` reads: as it was said, or with all defaults (`effective`)."""
    if isinstance(what, Loaded):
        what = what.effective if effective else what.document
    return write_document(what)


def read(raw: Mapping[str, Any] | None = None, *, registry: Registry | None = None) -> Raw:
    """What is said, before any plug-in is made? The shape of the document, its deprecations and its feature gates."""
    known = Registry.default() if registry is None else registry
    document = DEFAULT if raw is None else read_document(raw)
    gates = feature_gates(document, known.gates)
    return Raw(document, modern(document), MappingProxyType(gates), tuple(deprecations(document)))


def instantiate(
    document: Document, registry: Registry, *, allow_experimental: bool = False, kept: Kept | None = None
) -> Workbench:
    """Make the plug-ins that a document lists, and nothing else; `ConfigError` for whatever they refuse."""
    bench = Workbench(registry, allow_experimental=allow_experimental, in_place=False, kept=kept)
    for i, entry in enumerate(document.plugins):
        bench.add(entry.name or entry.type, entry.type, entry.parameters, f"$.plugins[{i}]")
    bench.make()
    return bench


def _loaded(raw: Raw, registry: Registry, allow_experimental: bool, kept: Kept | None) -> Loaded[Document]:
    bench = instantiate(raw.modern, registry, allow_experimental=allow_experimental, kept=kept)
    effective = with_system_defaults(raw.modern, bench)
    _check_profiles(effective)
    _check_gateway(raw.modern, bench, gate=raw.feature_gates.get("flowControl", False))
    supplied = supply(bench)
    profiles = {
        entry.name: profile_of(
            bench,
            entry.name,
            (
                Member(each.plugin_ref, f"$.schedulingProfiles[{i}].plugins[{j}].pluginRef", each.weight)
                for j, each in enumerate(entry.plugins)
            ),
            f"$.schedulingProfiles[{i}]",
        )
        for i, entry in enumerate(effective.scheduling_profiles)
    }
    handler = handler_of(bench, profiles, "$.schedulingProfiles")
    remarks = (*raw.warnings, *bench.remarks)
    return checked(
        Loaded(
            document=raw.document,
            effective=effective,
            registry=registry,
            plugins=MappingProxyType({name: each.plugin for name, each in bench.instances.items()}),
            types=MappingProxyType({name: each.spec for name, each in bench.instances.items()}),
            profiles=MappingProxyType(profiles),
            handler=handler,
            producers=supplied.producers,
            assigner=assigner_of(bench),
            admitters=tuple(each.plugin for each in bench.of_kind("admitter")),
            stages=tuple(each.plugin for each in bench.of_kind("stage")),
            computing=computing_of(handler),
            stale=StalePolicy(),
            feature_gates=raw.feature_gates,
            created=supplied.created,
            warnings=tuple(each for each in remarks if each.kind in ("deprecated", "ignored")),
            notes=tuple(each for each in remarks if each.kind in ("assumed", "gateway")),
            again=lambda kept: _loaded(raw, registry, allow_experimental, kept),
        )
    )


# --- what the names in the document refer to ---------------------------------------------------------------------


def _check_profiles(document: Document) -> None:
    taken: dict[str, int] = {}
    for i, entry in enumerate(document.scheduling_profiles):
        path = f"$.schedulingProfiles[{i}].name"
        if not entry.name:
            raise ConfigError(path, entry.name, "the name of a profile, not empty")
        if entry.name in taken:
            raise ConfigError(path, entry.name, f"a name of its own: $.schedulingProfiles[{taken[entry.name]}] has it")
        taken[entry.name] = i


def _check_gateway(document: Document, bench: Workbench, *, gate: bool) -> None:
    """Check what the sections refer to that a gateway runs. llm-d reads flow control's only where its gate is open."""
    flow = document.flow_control
    if flow is not None and not gate and flow != type(flow)(saturation_detector=flow.saturation_detector):
        words = "has no effect while the feature gate flowControl is closed"
        bench.remarks.append(Remark("ignored", "$.flowControl", "flowControl", words))
    for path, name, kinds in _gateway_refs(document, gate=gate):
        if name not in bench.instances:
            known = [each.name for each in bench.of_kind(*kinds)]
            raise ConfigError(path, name, one_of(name, known, f"the name of a plug-in that is a {kinds[0]}, "))
        if not bench.instances[name].is_a(*kinds):
            known = [each.name for each in bench.of_kind(*kinds)]
            what = f"a {kinds[0]}, and {name} is a {', '.join(bench.instances[name].spec.kinds)}: "
            raise ConfigError(path, name, one_of("", known, what))


def _gateway_refs(document: Document, *, gate: bool) -> Iterator[tuple[str, str, tuple[Kind, ...]]]:
    layer, flow, handler = document.data_layer, document.flow_control, document.request_handler
    if layer is not None:
        for i, source in enumerate(layer.sources):
            path = f"$.dataLayer.sources[{i}]"
            yield f"{path}.pluginRef", source.plugin_ref, ("source",)
            for j, extractor in enumerate(source.extractors):
                yield f"{path}.extractors[{j}].pluginRef", extractor.plugin_ref, ("extractor", "producer")
        if layer.discovery is not None:
            yield "$.dataLayer.discovery.pluginRef", layer.discovery.plugin_ref, ("discovery",)
        if layer.peer_discovery is not None:
            yield "$.dataLayer.peerDiscovery.pluginRef", layer.peer_discovery.plugin_ref, ("discovery", "inert")
        if layer.cross_replica_syncer_plugin_ref:
            path = "$.dataLayer.crossReplicaSyncerPluginRef"
            yield path, layer.cross_replica_syncer_plugin_ref, ("inert",)
    for i, parser in enumerate(handler.parsers if handler is not None else ()):
        yield f"$.requestHandler.parsers[{i}].pluginRef", parser.plugin_ref, ("parser",)
    if flow is None:
        return
    detector = flow.saturation_detector
    if detector is not None and detector.plugin_ref:
        yield "$.flowControl.saturationDetector.pluginRef", detector.plugin_ref, ("saturation-detector",)
    if gate:
        if flow.usage_limit_policy_plugin_ref:
            path = "$.flowControl.usageLimitPolicyPluginRef"
            yield path, flow.usage_limit_policy_plugin_ref, ("usage-limit-policy",)
        for path, band in bands(flow):
            if band.ordering_policy_ref:
                yield f"{path}.orderingPolicyRef", band.ordering_policy_ref, ("ordering-policy",)
            if band.fairness_policy_ref:
                yield f"{path}.fairnessPolicyRef", band.fairness_policy_ref, ("fairness-policy",)
