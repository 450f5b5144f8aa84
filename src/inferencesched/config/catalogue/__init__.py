"""Which plug-ins does a configuration know by name? One file a family, each with its ``SPECS``."""

from typing import Final

from inferencesched.config.catalogue import (
    affinity,
    attributes,
    burst,
    cold,
    combinators,
    context,
    gateway,
    handlers,
    hashing,
    headers,
    labels,
    latency,
    load,
    multicluster,
    multimodal,
    outlier,
    p2p,
    pickers,
    pickers_own,
    prefix,
    saturation,
    session,
    throughput,
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
    *pickers_own.SPECS,
    *hashing.SPECS,
    *outlier.SPECS,
    *throughput.SPECS,
    *combinators.SPECS,
    *saturation.SPECS,
    *gateway.SPECS,
)
