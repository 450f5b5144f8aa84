"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""

from typing import Final

from inferencesched.config.catalogue import gateway, handlers, load
from inferencesched.config.spec import PluginSpec

#: All of them, the families one behind the other.
CATALOGUE: Final[tuple[PluginSpec, ...]] = (
    *load.SPECS,
    *handlers.SPECS,
    *gateway.SPECS,
)
