"""In which order are plug-ins made, and what if one refuses its parameters?

Names first: every type is registered, every reference leads somewhere, none leads back. Then each is made, behind those that it
names. Whatever is refused comes out as one `ConfigError` with the path of the parameter.
"""

import re
from collections.abc import Iterable, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Protocol

import msgspec

from inferencesched.config.decode import at_references, below, decode, found, info_of, one_of, references
from inferencesched.config.document import Remark
from inferencesched.config.registry import Registry
from inferencesched.config.spec import Kind, Opaque, PluginSpec
from inferencesched.endpoints import Signal
from inferencesched.errors import ConfigError, InvalidInputError
from inferencesched.framework import DataProducer
from inferencesched.signals import of_producer


class Kept(Protocol):
    """Which plug-ins of a running scheduler are kept?"""

    def instead_of(self, spec: PluginSpec, name: str, made: DataProducer[Any]) -> DataProducer[Any]:
        """Return the one to use: `made`, or the running one that was set up in the same way."""
        ...


class Instance:
    """What is known of one plug-in of a configuration? ``plugin`` is there once it has been made."""

    __slots__ = ("made", "name", "parameters", "path", "plugin", "spec")

    def __init__(self, name: str, spec: PluginSpec, parameters: msgspec.Struct, path: str) -> None:
        self.name: Final = name
        self.spec: Final = spec
        self.parameters = parameters
        self.path: Final = path
        self.plugin: Any = None
        self.made = False

    def is_a(self, *kinds: Kind) -> bool:
        """Is it of one of these kinds?"""
        return any(kind in self.spec.kinds for kind in kinds)

    def __repr__(self) -> str:
        return f"Instance({self.name!r}, {self.spec.name!r})"


class Workbench:
    """Which plug-ins does a configuration have, by name, and what was remarked while they were made?

    ``registry`` says which types there are. Types that llm-d calls alpha are refused without `allow_experimental`. With
    `in_place` a plug-in may stand where a parameter names one, which llm-d's own form does not know.
    """

    def __init__(
        self, registry: Registry, *, allow_experimental: bool, in_place: bool = True, kept: Kept | None = None
    ) -> None:
        self.registry: Final = registry
        self.instances: dict[str, Instance] = {}
        self.remarks: list[Remark] = []
        self._experimental = allow_experimental
        self._in_places = in_place
        self._kept = kept
        self._making: list[str] = []
        self._uses: dict[str, set[str]] = {}

    def add(self, name: str, kind: str, raw: Mapping[str, Any] | None, path: str, *, listed: bool = True) -> Instance:
        """Note a plug-in: `raw` are its parameters, `path` its place; nothing is remarked of one that is not `listed`.

        Errors: `ConfigError` for a name that is taken, a type that nobody knows, an alpha type that is not allowed, and for
        parameters that the type does not have. A plug-in that stands in the place of a name, a mapping with a ``type``, is noted
        under a name made of its path.
        """
        if name in self.instances:
            allowed = f"a name of its own: the plug-in at {self.instances[name].path} has it"
            raise ConfigError(f"{path}.name", name, allowed)
        spec = self.registry.find(kind, f"{path}.type")
        if spec.stability == "alpha" and not self._experimental:
            allowed = "a type that is not alpha, or allow_experimental=True"
            raise ConfigError(f"{path}.type", kind, allowed)
        if spec.stability == "deprecated":
            words = f"is deprecated, use {spec.instead}" if spec.instead else "is deprecated"
            self.remarks.append(Remark("deprecated", f"{path}.type", kind, words, spec.instead))
        if issubclass(spec.parameters, Opaque) and listed:
            self.remarks.append(Remark("gateway", path, name, "is kept as data; the gateway acts on it"))
        parameters = f"{path}.parameters"
        given: Any = {} if raw is None else raw
        if self._in_places and not issubclass(spec.parameters, Opaque) and isinstance(given, Mapping):
            given = at_references(info_of(spec.parameters), given, parameters, self._in_place)
        instance = Instance(name, spec, decode(spec.parameters, given, parameters), path)
        self.instances[name] = instance
        return instance

    def _in_place(self, said: Any, path: str) -> Any:
        """Return the name of what a parameter refers to; a plug-in that stands there itself is noted first."""
        if not isinstance(said, Mapping) or "type" not in said:
            return said
        for key in said:
            if key not in ("name", "type", "parameters"):
                raise ConfigError(below(path, key), found(said[key]), "no such key; there are name, type, parameters")
        name, kind, raw = said.get("name", path), said["type"], said.get("parameters")
        for key, value, wanted in (("name", name, str), ("type", kind, str)):
            if not isinstance(value, wanted):
                raise ConfigError(below(path, key), found(value), "text")
        if raw is not None and not isinstance(raw, Mapping):
            raise ConfigError(f"{path}.parameters", found(raw), "a mapping")
        return self.add(name, kind, raw, path).name

    def make(self) -> None:
        """Make all that was noted and is not there yet, each behind those that it names."""
        graph: dict[str, list[str]] = {}
        for instance in self.instances.values():
            graph[instance.name] = []
            for reference in references(instance.parameters, f"{instance.path}.parameters"):
                if reference.name not in self.instances:
                    raise self._missing(reference.path, reference.name, self.instances)
                graph[instance.name].append(reference.name)
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = error.args[1]
            raise self._circle(circle) from error
        for name in order:
            self._made(self.instances[name])

    def plugin(self, name: str, path: str, *kinds: Kind) -> Instance:
        """Return the plug-in of that name; `ConfigError` where there is none, with the names of these kinds."""
        if name not in self.instances:
            known = [each.name for each in self.of_kind(*kinds)] if kinds else self.instances
            raise self._missing(path, name, known)
        return self._made(self.instances[name])

    def used_by(self, instances: Iterable[Instance]) -> set[str]:
        """Return the names of the plug-ins that these are made of, and those of what those are made of."""
        found: set[str] = set()
        waiting = [name for instance in instances for name in self._uses.get(instance.name, ())]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self._uses.get(name, ()))
        return found

    def make_again(self, parameters: Mapping[str, msgspec.Struct], held: Set[str]) -> None:
        """Make plug-ins of other parameters, and with them all that may hold one: not producers, nor what is `held` by them."""
        for name, said in parameters.items():
            self.instances[name].parameters = said
        for instance in self.instances.values():
            if not instance.is_a("producer") and instance.name not in held:
                instance.made = False
        self.make()

    def trial(self, instance: Instance) -> Any:
        """Return a plug-in that is made to be looked at and not used."""
        try:
            return instance.spec.build(instance.parameters, _Shop(self, instance))
        except ConfigError:
            raise
        except InvalidInputError as error:
            raise refused(instance, error) from error

    def wanted(self) -> set[str]:
        """Return the names of all columns that somebody reads, or would read if it were made for somebody."""
        waiting = [need for each in self.instances.values() for need in each.spec.needs(each.parameters)]
        asked: set[str] = set()
        while waiting:
            need = waiting.pop()
            spec = self.registry.get(need.producer_type)
            if need.signal.name not in asked and spec is not None and need.required:
                waiting.extend(spec.needs(decode(spec.parameters, need.parameters or {})))
            asked.add(need.signal.name)
        return asked

    def of_kind(self, *kinds: Kind) -> list[Instance]:
        """Return the plug-ins of these kinds, in the order in which they were noted."""
        return [instance for instance in self.instances.values() if instance.is_a(*kinds)]

    def taken(self, name: str, by: Instance) -> Instance:
        """Return the plug-in of that name for another one, which then holds it."""
        instance = self.plugin(name, place_of(by, name))
        self._uses.setdefault(by.name, set()).add(name)
        return instance

    def _made(self, instance: Instance) -> Instance:
        if instance.made:
            return instance
        if instance.name in self._making:
            raise self._circle([*self._making[self._making.index(instance.name) :], instance.name])
        self._making.append(instance.name)
        try:
            plugin = self.trial(instance)
        finally:
            self._making.pop()
        if self._kept is not None and instance.is_a("producer"):
            plugin = self._kept.instead_of(instance.spec, instance.name, plugin)
        instance.plugin, instance.made = plugin, True
        return instance

    @staticmethod
    def _missing(path: str, name: str, known: Iterable[str]) -> ConfigError:
        return ConfigError(path, name, one_of(name, known, "a plug-in of this configuration, "))

    def _circle(self, circle: list[str]) -> ConfigError:
        place = f"{self.instances[circle[0]].path}.parameters"
        return ConfigError(place, " -> ".join(circle), "plug-ins that do not need each other in a cycle")


class _Shop:
    """What one plug-in sees of the workbench (a `Workshop`, with `Demand`)."""

    __slots__ = ("_bench", "_instance")

    def __init__(self, bench: Workbench, instance: Instance) -> None:
        self._bench = bench
        self._instance = instance

    @property
    def name(self) -> str:
        return self._instance.name

    def plugin(self, name: str) -> object:
        return self._bench.taken(name, self._instance).plugin

    def wanted(self, signal: Signal) -> bool:
        columns = {signal.name, of_producer(signal, self._instance.name).name}
        return not columns.isdisjoint(self._bench.wanted())


def place_of(instance: Instance, value: object) -> str:
    """Return the path of the one parameter that has this value, else that of the parameters."""
    path = f"{instance.path}.parameters"
    if isinstance(instance.parameters, Opaque):
        return path
    said = msgspec.structs.fields(type(instance.parameters))
    names = [field.encode_name for field in said if getattr(instance.parameters, field.name) == value]
    return below(path, names[0]) if len(names) == 1 else path


def refused(instance: Instance, error: InvalidInputError) -> ConfigError:
    """Return the error for parameters that the plug-in itself refuses, at the parameter's own place.

    A plug-in speaks of its fields: ``queue_threshold_tokens`` is looked for as ``queueThresholdTokens``, else by its value.
    """
    path = f"{instance.path}.parameters"
    if isinstance(instance.parameters, Opaque):
        return ConfigError(path, found(error.value), f"{error.allowed} ({error.parameter})")
    fields = {field.name: field.encode_name for field in msgspec.structs.fields(type(instance.parameters))}
    by_name = {**fields, **{name: name for name in fields.values()}}
    match = re.match(r"[A-Za-z][A-Za-z0-9_]*", error.parameter)
    head = match.group() if match else ""
    if head in by_name:
        return ConfigError(f"{path}.{by_name[head]}{error.parameter[len(head) :]}", found(error.value), error.allowed)
    place = place_of(instance, error.value)
    return ConfigError(place, found(error.value), f"{error.allowed} ({error.parameter})")
