"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""

from typing import Final

from inferencesched.config.catalogue import (
    affinity,
    attributes,
    context,
    gateway,
    handlers,
    headers,
    labels,
    latency,
    load,
    pickers,
    session,
    topology,
)
from inferencesched.config.spec import PluginSpec

#: All of them, the families one behind the other.
CATALOGUE: Final[tuple[PluginSpec, ...]] = (
    *load.SPECS,
    *affinity.SPECS,
    *latency.SPECS,
    *pickers.SPECS,
    *labels.SPECS,
    *topology.SPECS,
    *context.SPECS,
    *headers.SPECS,
    *attributes.SPECS,
    *session.SPECS,
    *handlers.SPECS,
    *gateway.SPECS,
)
