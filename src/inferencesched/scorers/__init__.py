"""How good is an endpoint for a request? One file a family."""

from inferencesched.scorers.affinity import LoraAffinityScorer, PrefixCacheScorer
from inferencesched.scorers.hashing import BoundedLoadScorer, RendezvousScorer
from inferencesched.scorers.latency import LatencyScorer
from inferencesched.scorers.load import (
    ActiveRequestScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)
from inferencesched.scorers.lora import LoraResidencyScorer

__all__ = [
    "ActiveRequestScorer",
    "BoundedLoadScorer",
    "KvCacheUtilizationScorer",
    "LatencyScorer",
    "LoadAwareScorer",
    "LoraAffinityScorer",
    "LoraResidencyScorer",
    "PrefixCacheScorer",
    "QueueScorer",
    "RendezvousScorer",
    "RunningRequestsScorer",
    "TokenLoadScorer",
]
