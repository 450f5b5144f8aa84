"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""

from typing import Final

from inferencesched.config.catalogue import (
    affinity,
    attributes,
    burst,
    cold,
    context,
    gateway,
    handlers,
    headers,
    labels,
    latency,
    load,
    multicluster,
    multimodal,
    p2p,
    pickers,
    prefix,
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
    *prefix.SPECS,
    *cold.SPECS,
    *multimodal.SPECS,
    *multicluster.SPECS,
    *p2p.SPECS,
    *burst.SPECS,
    *gateway.SPECS,
)
