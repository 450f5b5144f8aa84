"""Who may take a request? One file a family."""

from inferencesched.filters.hashing import BoundedLoadFilter, RendezvousFilter
from inferencesched.filters.latency import PrefixCacheAffinityFilter, SloHeadroomTierFilter
from inferencesched.filters.load import UtilizationFilter

__all__ = [
    "BoundedLoadFilter",
    "PrefixCacheAffinityFilter",
    "RendezvousFilter",
    "SloHeadroomTierFilter",
    "UtilizationFilter",
]
