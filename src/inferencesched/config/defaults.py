"""What does an ``EndpointPickerConfig`` mean where it says nothing?

llm-d's defaults (pkg/epp/config/loader, snapshot of August 2026), each a function from a document to a fuller one. Where llm-d takes what comes
first in an unordered map, the first in the document is taken here.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from inferencesched.config.document import (
    API_VERSION,
    KIND,
    DataLayer,
    Document,
    FlowControl,
    OptionalRef,
    PluginEntry,
    ProfileEntry,
    ProfilePlugin,
    Ref,
    Remark,
    RequestHandler,
    Source,
)
from inferencesched.config.workbench import Workbench

METRICS_SOURCE: Final = "metrics-data-source"
METRICS_EXTRACTOR: Final = "core-metrics-extractor"
SATURATION_DETECTOR: Final = "utilization-detector"
POLICIES: Final = ("fcfs-ordering-policy", "global-strict-fairness-policy", "static-usage-limit-policy")
PARSERS: Final = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
HANDLER: Final = "single-profile-handler"
PICKER: Final = "max-score-picker"

_METRICS: Final = Source(plugin_ref=METRICS_SOURCE, extractors=(Ref(plugin_ref=METRICS_EXTRACTOR),))
_WEIGHTS: Final = {"queue-scorer": 2.0, "kv-cache-utilization-scorer": 2.0, "prefix-cache-scorer": 3.0}

#: What is meant where there is no configuration at all.
DEFAULT: Final = Document(
    api_version=API_VERSION,
    kind=KIND,
    plugins=tuple(PluginEntry(type=name) for name in (*_WEIGHTS, METRICS_SOURCE, METRICS_EXTRACTOR)),
    scheduling_profiles=(
        ProfileEntry(
            name="default",
            plugins=tuple(ProfilePlugin(plugin_ref=name, weight=weight) for name, weight in _WEIGHTS.items()),
        ),
    ),
    data_layer=DataLayer(sources=(_METRICS,)),
)


def with_system_defaults(document: Document, bench: Workbench) -> Document:
    """Return the document with what llm-d would add to it; the plug-ins of that are noted and made."""
    document = _with_scheduling(document, bench)
    flow = document.flow_control or FlowControl()
    known = bench.registry  # one of somebody's own may do without what a gateway runs
    for name in POLICIES:
        document = _with_plugin(document, bench, name) if name in known else document
    detector = flow.saturation_detector.plugin_ref if flow.saturation_detector is not None else ""
    if SATURATION_DETECTOR in known and (not detector or detector == SATURATION_DETECTOR):
        document = _with_plugin(document, bench, SATURATION_DETECTOR)
        flow = msgspec.structs.replace(flow, saturation_detector=OptionalRef(plugin_ref=SATURATION_DETECTOR))
    parsers = document.request_handler.parsers if document.request_handler is not None else ()
    if not parsers:
        names = [name for name in PARSERS if name in known]
        for name in names:
            document = _with_plugin(document, bench, name)
        parsers = tuple(Ref(plugin_ref=name) for name in names)
    document = msgspec.structs.replace(document, flow_control=flow, request_handler=RequestHandler(parsers=parsers))
    types = {entry.name or entry.type: entry.type for entry in document.plugins}
    fuller = with_data_layer(document, types) if METRICS_SOURCE in known and METRICS_EXTRACTOR in known else document
    if fuller.data_layer is not document.data_layer:
        for name in (METRICS_SOURCE, METRICS_EXTRACTOR):
            fuller = _with_plugin(fuller, bench, name)
    return fuller


def with_data_layer(document: Document, types: Mapping[str, str]) -> Document:
    """Return the document with the source of metrics among the others, unless there is one, or none is wanted.

    `types` are the types of the plug-ins by name.
    """
    layer = document.data_layer or DataLayer()
    present = any(types.get(each.plugin_ref, each.plugin_ref) == METRICS_SOURCE for each in layer.sources)
    if layer.inject_defaults is False or present:
        return document
    return msgspec.structs.replace(
        document, data_layer=msgspec.structs.replace(layer, sources=(*layer.sources, _METRICS))
    )


def _with_plugin(document: Document, bench: Workbench, kind: str) -> Document:
    """Return the document with a plug-in of this type among the others, unless that name is there."""
    if kind in bench.instances:
        return document
    bench.add(kind, kind, None, f"$ (default {kind})", listed=False)
    bench.make()
    entry = PluginEntry(name=kind, type=kind)
    return msgspec.structs.replace(document, plugins=(*document.plugins, entry))


def _with_scheduling(document: Document, bench: Workbench) -> Document:
    profiles = document.scheduling_profiles
    if not profiles:
        parts = bench.of_kind("filter", "scorer", "picker")
        profiles = (ProfileEntry(name="default", plugins=tuple(ProfilePlugin(plugin_ref=each.name) for each in parts)),)
    if len(profiles) == 1 and not bench.of_kind("profile-handler"):
        document = _with_plugin(document, bench, HANDLER)
    if not bench.of_kind("picker"):
        document = _with_plugin(document, bench, PICKER)
    pickers = bench.of_kind("picker")
    if len(pickers) > 1 and any(not _picks(entry, bench) for entry in profiles):
        words = f"is the first of {len(pickers)} pickers: profiles without one use it"
        bench.remarks.append(Remark("assumed", pickers[0].path, pickers[0].name, words))
    return msgspec.structs.replace(
        document, scheduling_profiles=tuple(_complete(entry, bench, pickers[0].name) for entry in profiles)
    )


def _picks(entry: ProfileEntry, bench: Workbench) -> bool:
    return any(
        each.plugin_ref in bench.instances and bench.instances[each.plugin_ref].is_a("picker") for each in entry.plugins
    )


def _complete(entry: ProfileEntry, bench: Workbench, picker: str) -> ProfileEntry:
    """Return the profile with a weight for each scorer, and with a picker."""
    plugins = tuple(
        msgspec.structs.replace(each, weight=1.0)
        if each.weight is None
        and each.plugin_ref in bench.instances
        and bench.instances[each.plugin_ref].is_a("scorer")
        else each
        for each in entry.plugins
    )
    if not _picks(entry, bench):
        plugins = (*plugins, ProfilePlugin(plugin_ref=picker))
    return msgspec.structs.replace(entry, plugins=plugins)
