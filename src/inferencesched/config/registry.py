"""Which types of plug-ins may a configuration name?

A `Registry` is a value: whoever loads a configuration says which one it means. There is no global one to fill, so that
importing a package changes nothing, and two gateways in one process may know different plug-ins.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, final

from inferencesched.config.catalogue import CATALOGUE
from inferencesched.config.decode import one_of
from inferencesched.config.spec import Kind, PluginSpec
from inferencesched.errors import ConfigError

#: What llm-d can switch on and off, and whether it is on where nothing is said (snapshot of August 2026).
GATES: Final[Mapping[str, bool]] = MappingProxyType({"flowControl": False, "haPopulateNonLeaderDatastore": True})


@final
class Registry(Mapping[str, PluginSpec]):
    """Which types are there, by name, and which feature gates?

    `Registry.default()` is the library's catalogue, `with_plugins` adds to it. Errors: `ConfigError` for a type that is there
    twice.

    >>> "queue-scorer" in Registry.default().names("scorer")
    True
    """

    __slots__ = ("_specs", "gates")

    def __init__(self, specs: Iterable[PluginSpec] = (), *, gates: Mapping[str, bool] = GATES) -> None:
        self._specs: dict[str, PluginSpec] = {}
        self.gates: Mapping[str, bool] = MappingProxyType(dict(gates))
        for spec in specs:
            if spec.name in self._specs:
                raise ConfigError("registry", spec.name, "a name of its own for each type: it is registered already")
            self._specs[spec.name] = spec

    @classmethod
    def default(cls) -> "Registry":
        """What does the library bring?"""
        return cls(CATALOGUE)

    def with_plugins(self, specs: Iterable[PluginSpec]) -> "Registry":
        """Return a registry that knows these too; this one stays as it is."""
        return Registry((*self._specs.values(), *specs), gates=self.gates)

    def with_gates(self, gates: Mapping[str, bool]) -> "Registry":
        """Return a registry that knows these feature gates too, with what they are where nothing is said."""
        return Registry(self._specs.values(), gates={**self.gates, **gates})

    def names(self, kind: Kind | None = None) -> tuple[str, ...]:
        """Which types are there, of all kinds or of one, in the order of their names?"""
        return tuple(sorted(name for name, spec in self._specs.items() if kind is None or kind in spec.kinds))

    def find(self, name: str, path: str) -> PluginSpec:
        """Return the entry of a type; `ConfigError` with the nearest name where there is none."""
        spec = self._specs.get(name)
        if spec is None:
            raise ConfigError(path, name, one_of(name, self._specs, "a registered type, "))
        return spec

    def made(self, plugin: Any) -> tuple[PluginSpec, ...]:
        """Which types make plug-ins of exactly this class, and can read them back? Those to use come first."""
        found = [spec for spec in self._specs.values() if spec.made is type(plugin) and spec.read is not None]
        return tuple(sorted(found, key=lambda spec: spec.stability == "deprecated"))

    def __getitem__(self, name: str) -> PluginSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __repr__(self) -> str:
        return f"Registry({len(self)} types)"
