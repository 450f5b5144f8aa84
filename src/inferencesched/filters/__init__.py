"""Who may take a request? One file a family."""

from inferencesched.filters.attributes import EndpointAttributeFilter
from inferencesched.filters.combinators import AllOf, AnyOf, AtLeast, Not, Prefer
from inferencesched.filters.hashing import BoundedLoadFilter, RendezvousFilter
from inferencesched.filters.headers import HeaderEndpointFilter
from inferencesched.filters.health import HealthFilter
from inferencesched.filters.labels import (
    DecodeFilter,
    EncodeFilter,
    LabelFilter,
    LabelRequirement,
    LabelSelectorFilter,
    PrefillFilter,
)
from inferencesched.filters.latency import PrefixCacheAffinityFilter, SloHeadroomTierFilter
from inferencesched.filters.load import UtilizationFilter
from inferencesched.filters.session import SessionAffinityFilter
from inferencesched.filters.topology import TopologyAffinityFilter

__all__ = [
    "AllOf",
    "AnyOf",
    "AtLeast",
    "BoundedLoadFilter",
    "DecodeFilter",
    "EncodeFilter",
    "EndpointAttributeFilter",
    "HeaderEndpointFilter",
    "HealthFilter",
    "LabelFilter",
    "LabelRequirement",
    "LabelSelectorFilter",
    "Not",
    "Prefer",
    "PrefillFilter",
    "PrefixCacheAffinityFilter",
    "RendezvousFilter",
    "SessionAffinityFilter",
    "SloHeadroomTierFilter",
    "TopologyAffinityFilter",
    "UtilizationFilter",
]
