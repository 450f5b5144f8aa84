"""Which plug-ins have other packages installed?

The one place of the package that asks what is installed, and only when it is called: a package announces its plug-ins by an
entry point of the group ``inferencesched.plugins`` that names a `PluginSpec` or a tuple of them ::

    [project.entry-points."inferencesched.plugins"]
    my-plugins = "my_package.plugins:SPECS"
"""

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Final

from inferencesched.config.decode import found
from inferencesched.config.registry import Registry
from inferencesched.config.spec import PluginSpec
from inferencesched.errors import ConfigError

GROUP: Final = "inferencesched.plugins"


def installed_plugins(*, group: str = GROUP) -> Iterator[PluginSpec]:
    """Which plug-ins have other packages announced? Imports them, in the order of the entry points' names.

    Errors: `ConfigError` for an entry point that names something else; whatever the import of a broken package raises.
    """
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        said: Any = point.load()
        for spec in said if isinstance(said, list | tuple) else (said,):
            if not isinstance(spec, PluginSpec):
                raise ConfigError(
                    f"entry point {point.name} = {point.value}", found(spec), "a PluginSpec, or a tuple of them"
                )
            yield spec


def with_installed(registry: Registry | None = None, *, group: str = GROUP) -> Registry:
    """Return the registry, or the library's own, with what other packages have announced.

    Errors: those of `installed_plugins`; `ConfigError` for a type that is there already.

    >>> len(with_installed(Registry.default(), group="nobody.announces.here")) == len(Registry.default())
    True
    """
    return (Registry.default() if registry is None else registry).with_plugins(installed_plugins(group=group))
