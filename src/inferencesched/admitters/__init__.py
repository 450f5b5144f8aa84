"""Which request may go at all, seeing the servers? Plug-ins that deny."""

from inferencesched.admitters.conditional import ConditionalDecode, has_cached_prefix
from inferencesched.admitters.latency_slo import LatencySloAdmitter
from inferencesched.admitters.probabilistic import ProbabilisticAdmitter

__all__ = ["ConditionalDecode", "LatencySloAdmitter", "ProbabilisticAdmitter", "has_cached_prefix"]
