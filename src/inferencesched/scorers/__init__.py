"""How good is an endpoint for a request? One file a family."""

from inferencesched.scorers.affinity import LoraAffinityScorer, PrefixCacheScorer
from inferencesched.scorers.attributes import EndpointAttributeScorer
from inferencesched.scorers.cold import NoHitLruScorer
from inferencesched.scorers.combinators import Lexicographic
from inferencesched.scorers.context import ContextLengthAware
from inferencesched.scorers.hashing import BoundedLoadScorer, RendezvousScorer
from inferencesched.scorers.headers import HeaderLabelAffinityScorer
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
from inferencesched.scorers.multicluster import (
    MultiClusterKvCacheUtilizationScorer,
    MultiClusterPrefixCacheScorer,
    MultiClusterQueueScorer,
)
from inferencesched.scorers.multimodal import EncoderCacheScorer
from inferencesched.scorers.seconds import CapacityScaledScorer, LoadSecondsScorer
from inferencesched.scorers.session import SessionAffinityScorer
from inferencesched.scorers.topology import TopologyAffinityScorer

__all__ = [
    "ActiveRequestScorer",
    "BoundedLoadScorer",
    "CapacityScaledScorer",
    "ContextLengthAware",
    "EncoderCacheScorer",
    "EndpointAttributeScorer",
    "HeaderLabelAffinityScorer",
    "KvCacheUtilizationScorer",
    "LatencyScorer",
    "Lexicographic",
    "LoadAwareScorer",
    "LoadSecondsScorer",
    "LoraAffinityScorer",
    "LoraResidencyScorer",
    "MultiClusterKvCacheUtilizationScorer",
    "MultiClusterPrefixCacheScorer",
    "MultiClusterQueueScorer",
    "NoHitLruScorer",
    "PrefixCacheScorer",
    "QueueScorer",
    "RendezvousScorer",
    "RunningRequestsScorer",
    "SessionAffinityScorer",
    "TokenLoadScorer",
    "TopologyAffinityScorer",
]
