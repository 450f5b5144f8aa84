"""How does the library's own form become a scheduler, and a scheduler that form?

Nothing has to be named: a profile says what it is made of in place, a plug-in that holds others says so in its parameters, and a type
without parameters is its name.

>>> loaded = load({
...     "apiVersion": "inferencesched/v1",
...     "kind": "Scheduler",
...     "profiles": {"default": {"scorers": [{"type": "queue-scorer", "weight": 2}, "token-load-scorer"]}},
...     "stale": {"after": 5},
... })
>>> loaded.scheduler().stale
StalePolicy(after=5.0, assume='worst')
>>> dump_scheduler(loaded.scheduler()) == dump(loaded)
True
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from inferencesched.config.decode import NOTHING, below, decode, encode, found, one_of
from inferencesched.config.loaded import (
    Loaded,
    Running,
    assigner_of,
    checked,
    computing_of,
    handler_of,
)
from inferencesched.config.registry import Registry
from inferencesched.config.spec import Kind, PluginSpec
from inferencesched.config.supply import supply
from inferencesched.config.workbench import Kept, Workbench
from inferencesched.errors import ConfigError, InvalidInputError
from inferencesched.framework import SchedulingProfile, WeightedScorer
from inferencesched.handlers.single import SingleProfileHandler
from inferencesched.producers.named import NamedProducer
from inferencesched.scheduler import Scheduler
from inferencesched.staleness import Assumption, StalePolicy

KIND: Final = "Scheduler"
API_VERSION: Final = "inferencesched/v1"
_PICKER: Final = "max-score-picker"
_HANDLER: Final = "single-profile-handler"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What is a table of the document? camelCase names, no others."""


class Plug(_Section, frozen=True, kw_only=True, rename="camel"):
    """Which plug-in is meant? Its type, its parameters, and a name where another one refers to it."""

    type: str
    name: str = ""
    parameters: dict[str, Any] | None = None


class WeighedPlug(Plug, frozen=True, kw_only=True, rename="camel"):
    """Which scorer, and how much does it count?"""

    weight: float = 1.0


class ProfileTable(_Section, frozen=True, kw_only=True, rename="camel"):
    """What is a profile made of? Filters and scorers in order; without a picker, ``max-score-picker``."""

    filters: tuple[str | Plug, ...] = ()
    scorers: tuple[str | WeighedPlug, ...] = ()
    picker: str | Plug = _PICKER


class StaleTable(_Section, frozen=True, kw_only=True, rename="camel"):
    """What is assumed of servers not heard of lately? See `StalePolicy`."""

    after: float = 2.0
    assume: Assumption = "worst"


class SchedulerDocument(_Section, frozen=True, kw_only=True, rename="camel"):
    """What is a configuration in the library's own form?

    ``profiles`` by name; ``handler`` chooses between them; ``producers`` are listed where their parameters matter or somebody refers
    to them by name, others are made as they are needed; ``plugins`` are further ones that parameters name. ``computing`` are the profiles beside the primary
    whose target computes the prompt, by default the handler's prefill stage.
    """

    api_version: str
    kind: str
    profiles: dict[str, ProfileTable]
    handler: str | Plug | None = None
    producers: tuple[str | Plug, ...] = ()
    assigner: str | Plug | None = None
    admitters: tuple[str | Plug, ...] = ()
    plugins: tuple[str | Plug, ...] = ()
    stale: StaleTable = StaleTable()
    computing: tuple[str, ...] | None = None


def load(
    raw: Mapping[str, Any],
    *,
    registry: Registry | None = None,
    allow_experimental: bool = True,
    keep: Scheduler | None = None,
) -> Loaded[SchedulerDocument]:
    """What does this configuration mean? `registry`, `keep` and errors are as in `picker_config.load`.

    Types that llm-d calls alpha may be used: from Python, nobody asks either.
    """
    known = Registry.default() if registry is None else registry
    return _loaded(read(raw), known, allow_experimental, None if keep is None else Running(keep))


def read(raw: object) -> SchedulerDocument:
    """Return the document of a mapping; `ConfigError` for anything that has no place in one."""
    if not isinstance(raw, Mapping):
        raise ConfigError("$", found(raw), f"a mapping: apiVersion, kind {KIND}, profiles, ...")
    for key, wanted in (("kind", KIND), ("apiVersion", API_VERSION)):
        if raw.get(key) != wanted:
            raise ConfigError(f"$.{key}", found(raw[key]) if raw.get(key) is not None else NOTHING, wanted)
    document = decode(SchedulerDocument, raw)
    if not document.profiles:
        raise ConfigError("$.profiles", {}, "at least one profile")
    return document


def dump(what: Loaded[SchedulerDocument] | SchedulerDocument, *, effective: bool = False) -> dict[str, Any]:
    """Return a configuration as a mapping that `load` reads: as it was said, or with all defaults (`effective`)."""
    if isinstance(what, Loaded):
        what = what.effective if effective else what.document
    written: dict[str, Any] = encode(_short(what))
    return written


def _short(document: SchedulerDocument) -> SchedulerDocument:
    """Return the document with plug-ins that have nothing but a type as that type."""

    def plain(plug: Any) -> Any:
        if isinstance(plug, Plug) and encode(plug) == {"type": plug.type}:
            return plug.type
        return plug

    profiles = {
        name: ProfileTable(
            filters=tuple(map(plain, table.filters)),
            scorers=tuple(map(plain, table.scorers)),
            picker=plain(table.picker),
        )
        for name, table in document.profiles.items()
    }
    return msgspec.structs.replace(
        document,
        profiles=profiles,
        handler=plain(document.handler),
        producers=tuple(map(plain, document.producers)),
        assigner=plain(document.assigner),
        admitters=tuple(map(plain, document.admitters)),
        plugins=tuple(map(plain, document.plugins)),
    )


def _loaded(
    document: SchedulerDocument, registry: Registry, allow_experimental: bool, kept: Kept | None
) -> Loaded[SchedulerDocument]:
    bench = Workbench(registry, allow_experimental=allow_experimental, kept=kept)
    for path, said, kind in _plugs(document):
        plug = Plug(type=said) if isinstance(said, str) else said
        spec = registry.find(plug.type, f"{path}.type")
        if kind is not None and kind not in spec.kinds:
            words = f"the type of a {kind}, and this is a {', '.join(spec.kinds)}: "
            raise ConfigError(f"{path}.type", plug.type, one_of("", registry.names(kind), words))
        bench.add(plug.name or path, plug.type, plug.parameters, path)
    if document.handler is None and len(document.profiles) == 1:
        bench.add("$.handler", _HANDLER, None, "$.handler")
    bench.make()
    supplied = supply(bench)
    profiles = {name: _profile(bench, table, below("$.profiles", name)) for name, table in document.profiles.items()}
    handler = handler_of(bench, profiles, "$.handler")
    for i, name in enumerate(document.computing or ()):
        if name not in profiles:
            raise ConfigError(f"$.computing[{i}]", name, one_of(name, profiles, "a profile, "))
    computing = computing_of(handler) if document.computing is None else document.computing
    try:
        stale = StalePolicy(document.stale.after, document.stale.assume)
    except InvalidInputError as error:
        raise ConfigError(f"$.stale.{error.parameter}", error.value, error.allowed) from error
    effective = msgspec.structs.replace(document, handler=document.handler or _HANDLER, computing=computing)
    return checked(
        Loaded(
            document=_short(document),
            effective=_short(effective),
            registry=registry,
            plugins=MappingProxyType({name: each.plugin for name, each in bench.instances.items()}),
            types=MappingProxyType({name: each.spec for name, each in bench.instances.items()}),
            profiles=MappingProxyType(profiles),
            handler=handler,
            producers=supplied.producers,
            assigner=assigner_of(bench),
            admitters=tuple(each.plugin for each in bench.of_kind("admitter")),
            stages=tuple(each.plugin for each in bench.of_kind("stage")),
            computing=computing,
            stale=stale,
            feature_gates=MappingProxyType({}),
            created=supplied.created,
            warnings=tuple(each for each in bench.remarks if each.kind in ("deprecated", "ignored")),
            notes=tuple(each for each in bench.remarks if each.kind in ("assumed", "gateway")),
            again=lambda kept: _loaded(document, registry, allow_experimental, kept),
        )
    )


def _plugs(document: SchedulerDocument) -> Iterator[tuple[str, str | Plug, Kind | None]]:
    """Walk the plug-ins of a document: the place, what is there, and what it has to be."""
    for name, table in document.profiles.items():
        path = below("$.profiles", name)
        yield from _listed(f"{path}.filters", table.filters, "filter")
        yield from _listed(f"{path}.scorers", table.scorers, "scorer")
        yield f"{path}.picker", table.picker, "picker"
    if document.handler is not None:
        yield "$.handler", document.handler, "profile-handler"
    yield from _listed("$.producers", document.producers, "producer")
    if document.assigner is not None:
        yield "$.assigner", document.assigner, "assigner"
    yield from _listed("$.admitters", document.admitters, "admitter")
    yield from _listed("$.plugins", document.plugins, None)


def _listed(path: str, plugs: Iterable[str | Plug], kind: Kind | None) -> Iterator[tuple[str, str | Plug, Kind | None]]:
    for i, plug in enumerate(plugs):
        yield f"{path}[{i}]", plug, kind


def _profile(bench: Workbench, table: ProfileTable, path: str) -> SchedulingProfile:
    def plugin(said: str | Plug, place: str) -> Any:
        return bench.plugin(said.name or place if isinstance(said, Plug) else place, place).plugin

    scorers = []
    for i, said in enumerate(table.scorers):
        place = f"{path}.scorers[{i}]"
        try:
            weight = said.weight if isinstance(said, WeighedPlug) else 1.0
            scorers.append(WeightedScorer(plugin(said, place), weight))
        except InvalidInputError as error:
            raise ConfigError(f"{place}.{error.parameter}", error.value, error.allowed) from error
    filters = (plugin(said, f"{path}.filters[{i}]") for i, said in enumerate(table.filters))
    return SchedulingProfile(plugin(table.picker, f"{path}.picker"), tuple(scorers), tuple(filters))


# --- from plain Python -------------------------------------------------------------------------------------------


def dump_scheduler(scheduler: Scheduler, *, registry: Registry | None = None) -> dict[str, Any]:
    """Return the configuration of a scheduler, whatever made it, as a mapping that `load` reads.

    Errors: `ConfigError` for a plug-in that no type of the registry makes, or that no parameters make as it is.
    """
    writer = _Writer(Registry.default() if registry is None else registry)
    profiles = {}
    for name, profile in scheduler.profiles.items():
        path = below("$.profiles", name)
        profiles[name] = ProfileTable(
            filters=tuple(
                writer.plug(each, f"{path}.filters[{i}]", "filter") for i, each in enumerate(profile.filters)
            ),
            scorers=tuple(writer.scorer(each, f"{path}.scorers[{i}]") for i, each in enumerate(profile.scorers)),
            picker=writer.plug(profile.picker, f"{path}.picker", "picker"),
        )
    producers = []
    for i, producer in enumerate(scheduler.producers):
        inner, name = (producer.producer, producer.name) if isinstance(producer, NamedProducer) else (producer, "")
        producers.append(writer.plug(inner, f"$.producers[{i}]", "producer", name))
    alone = len(profiles) == 1 and isinstance(scheduler.handler, SingleProfileHandler)
    usual = scheduler.computing == computing_of(scheduler.handler)
    assigner = scheduler.assigner
    document = SchedulerDocument(
        api_version=API_VERSION,
        kind=KIND,
        profiles=profiles,
        handler=None if alone else writer.plug(scheduler.handler, "$.handler", "profile-handler"),
        producers=tuple(producers),
        assigner=None if assigner is None else writer.plug(assigner, "$.assigner", "assigner"),
        stale=StaleTable(after=scheduler.stale.after, assume=scheduler.stale.assume),
        computing=None if usual else scheduler.computing,
    )
    return dump(document)


class _Writer:
    """How is a plug-in written down? By the first type that makes an equal one of what it reads."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def plug(self, plugin: object, path: str, kind: Kind | None, name: str = "") -> Plug:
        """Return what makes this plug-in."""
        words = ""
        for spec in self.registry.made(plugin):
            if spec.read is None or (kind is not None and kind not in spec.kinds):
                continue
            try:
                parameters = encode(spec.read(plugin))
            except InvalidInputError as error:
                words = f", with {error.parameter} {error.allowed}"
                continue
            for place, part in spec.parts(plugin).items():
                _put(parameters, place, self._part(part, f"{path}.parameters.{place}"))
            if self._equal(spec, parameters, plugin, path):
                return Plug(type=spec.name, name=name, parameters=parameters or None)
            words = f", as the parameters of {spec.name} make one"
        allowed = f"a plug-in that {'a registered type makes' if not words else 'its type can make'}{words}"
        raise ConfigError(path, found(plugin), allowed)

    def scorer(self, weighted: WeightedScorer, path: str) -> WeighedPlug:
        """Return what makes this scorer, with its weight."""
        plug = self.plug(weighted.scorer, path, "scorer")
        return WeighedPlug(type=plug.type, parameters=plug.parameters, weight=weighted.weight)

    def _part(self, part: object, path: str) -> Any:
        if isinstance(part, tuple):
            return [self._part(each, f"{path}[{i}]") for i, each in enumerate(part)]
        return None if part is None else encode(self.plug(part, path, None))

    def _equal(self, spec: PluginSpec, parameters: dict[str, Any], plugin: object, path: str) -> bool:
        """Does a type make an equal plug-in of these parameters? One with state: one that reads back the same."""
        bench = Workbench(self.registry, allow_experimental=True)
        bench.add(path, spec.name, parameters, path)
        bench.make()
        again = bench.instances[path].plugin
        if type(plugin).__eq__ is not object.__eq__:
            return bool(again == plugin)
        assert spec.read is not None  # `plug` asked
        return bool(spec.read(again) == spec.read(plugin))


def _put(parameters: dict[str, Any], place: str, part: Any) -> None:
    """Set a parameter at a path with dots; nothing there where there is no part."""
    *tables, key = place.split(".")
    if part is None:
        for table in tables:
            parameters = parameters.get(table, {})
        parameters.pop(key, None)
        return
    for table in tables:
        parameters = parameters.setdefault(table, {})
    parameters[key] = part
