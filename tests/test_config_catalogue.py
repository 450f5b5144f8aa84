"""Is every plug-in of the catalogue made by its name, read back, and written as it was?"""

from typing import Any

import msgspec
import pytest

from inferencesched.config import Opaque, Registry, dump, dump_scheduler, load
from inferencesched.config.catalogue.gateway import Held
from inferencesched.config.decode import decode, encode
from inferencesched.config.supply import supply
from inferencesched.config.workbench import Workbench
from inferencesched.handlers.single import SingleProfileHandler

REGISTRY = Registry.default()

#: What a type needs beside its defaults: parameters, and other plug-ins by name.
LEAST: dict[str, dict[str, Any]] = {
    "by-label": {"label": "a", "validValues": ["b"]},
    "endpoint-attribute-filter": {
        "attribute": "WaitingQueueSize",
        "onMissing": "Pass",
        "algorithm": {"type": "threshold", "threshold": {"operator": "LessThan", "value": 3}},
    },
    "endpoint-attribute-scorer": {"attributeKey": "x", "algorithm": {"type": "linear_lower_is_better"}},
    "header-label-affinity-scorer": {"headerName": "x-zone", "labelKey": "zone"},
    "session-id-producer": {"headerName": "x-session-id"},
    "utilization-filter": {"conditions": [{"metric": "waiting-queue", "maxValue": 5}]},
    "pd-profile-handler": {"deciderPluginName": {"type": "always-disagg-pd-decider"}},
    "all-of-filter": {
        "filters": [
            {"type": "decode-filter"},
            {"type": "not-filter", "parameters": {"filter": {"type": "encode-filter"}}},
        ]
    },
    "any-of-filter": {"filters": [{"type": "decode-filter"}]},
    "not-filter": {"filter": {"type": "decode-filter"}},
    "prefer-filter": {"filter": {"type": "decode-filter"}},
    "at-least-filter": {"scorer": {"type": "queue-scorer"}, "minimum": 0.5},
    "priority-holdback-policy": {"minCeiling": 0.5},
    "lexicographic-scorer": {"scorers": [{"type": "queue-scorer"}, {"type": "lora-affinity-scorer"}]},
}


def bench_with(name: str, parameters: dict[str, Any]) -> Workbench:
    bench = Workbench(REGISTRY, allow_experimental=True)
    bench.add("it", name, parameters, "$.it")
    bench.make()
    return bench


EVERY = [pytest.param(name, id=name) for name in REGISTRY.names()]


@pytest.mark.parametrize("name", EVERY)
def test_it_is_made_read_and_written(name):
    spec, said = REGISTRY[name], LEAST.get(name, {})
    bench = bench_with(name, said)
    plugin = bench.instances["it"].plugin
    assert plugin is not None
    supply(bench)  # whatever it needs can be made
    if issubclass(spec.parameters, Opaque):
        assert isinstance(plugin, Held) and plugin.parameters == Opaque(said)
        return
    if spec.made is not None:
        assert type(plugin) is spec.made
    if spec.made is None and spec.stability == "deprecated":
        return  # another type makes the same: that one is written
    assert spec.read is not None, "what is made must be written down again"
    read = spec.read(plugin)
    assert isinstance(read, spec.parameters)
    if spec.parts(plugin):
        return  # written with its parts in place: below
    written = encode(read)
    assert decode(spec.parameters, written) == read
    again = bench_with(name, written).instances["it"].plugin
    assert spec.read(again) == read
    if type(plugin).__eq__ is not object.__eq__:
        assert again == plugin


#: Where a plug-in of a kind stands in the library's own form.
PLACES = {
    "filter": lambda plug: {"profiles": {"p": {"filters": [plug]}}},
    "scorer": lambda plug: {"profiles": {"p": {"scorers": [plug]}}},
    "picker": lambda plug: {"profiles": {"p": {"picker": plug}}},
    "profile-handler": lambda plug: {"profiles": {"prefill": {}, "decode": {}}, "handler": plug},
    "producer": lambda plug: {"profiles": {"p": {}}, "producers": [plug]},
    "assigner": lambda plug: {"profiles": {"p": {}}, "assigner": plug},
}


@pytest.mark.parametrize("name", EVERY)
def test_a_scheduler_of_it_is_written_and_read_back(name):
    spec = REGISTRY[name]
    place = next((PLACES[kind] for kind in spec.kinds if kind in PLACES), None)
    if place is None or isinstance(bench_with(name, LEAST.get(name, {})).instances["it"].plugin, SingleProfileHandler):
        return
    plug = {"type": name, "parameters": LEAST.get(name, {})}
    loaded = load({"apiVersion": "inferencesched/v1", "kind": "Scheduler", **place(plug)})
    scheduler = loaded.scheduler()
    again = load(dump_scheduler(scheduler)).scheduler()
    written = dump_scheduler(again)
    assert dump_scheduler(load(written).scheduler()) == written
    if spec.stability != "deprecated":  # those are written as what they stand for
        assert written == dump_scheduler(scheduler)
        assert again.profiles == scheduler.profiles
        assert [type(each) for each in again.producers] == [type(each) for each in scheduler.producers]
    assert dump(load(dump(loaded))) == dump(loaded)


@pytest.mark.parametrize("name", EVERY)
def test_a_deprecated_name_says_what_to_use(name):
    spec = REGISTRY[name]
    assert (spec.stability == "deprecated") == bool(spec.instead)
    assert not spec.instead or REGISTRY[spec.instead.split()[0]].stability != "deprecated"


@pytest.mark.parametrize("name", EVERY)
def test_names_are_those_of_configurations(name):
    assert name == name.lower() and " " not in name
    fields = () if issubclass(REGISTRY[name].parameters, Opaque) else msgspec.structs.fields(REGISTRY[name].parameters)
    assert all("_" not in field.encode_name for field in fields)
    assert REGISTRY[name].parameters.__doc__
