"""How good is an endpoint for a request? One file a family."""

from inferencesched.scorers.affinity import LoraAffinityScorer, PrefixCacheScorer
from inferencesched.scorers.load import (
    ActiveRequestScorer,
    KvCacheUtilizationScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

__all__ = [
    "ActiveRequestScorer",
    "KvCacheUtilizationScorer",
    "LoraAffinityScorer",
    "PrefixCacheScorer",
    "QueueScorer",
    "RunningRequestsScorer",
    "TokenLoadScorer",
]
