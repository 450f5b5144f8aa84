"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""

from typing import Final

from inferencesched.config.catalogue import attributes, context, gateway, handlers, headers, labels, load, session, topology
from inferencesched.config.spec import PluginSpec

#: All of them, the families one behind the other.
CATALOGUE: Final[tuple[PluginSpec, ...]] = (
    *load.SPECS,
    *labels.SPECS,
    *topology.SPECS,
    *context.SPECS,
    *headers.SPECS,
    *attributes.SPECS,
    *session.SPECS,
    *handlers.SPECS,
    *gateway.SPECS,
)
