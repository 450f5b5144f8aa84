"""How near are two endpoints? Their labels tell: same host, rack, zone or region."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

Level = Literal["hostname", "rack", "zone", "region"]

#: Which label holds each level, nearest first: the well-known ones of Kubernetes.
LABELS: Final[Mapping[Level, str]] = MappingProxyType(
    {
        "hostname": "kubernetes.io/hostname",
        "rack": "topology.kubernetes.io/rack",
        "zone": "topology.kubernetes.io/zone",
        "region": "topology.kubernetes.io/region",
    }
)
