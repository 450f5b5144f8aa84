"""The published routing rules of the field, as plug-ins like any other.

For whoever wants to compare, or to run, what another router or a paper does: each is a `Scorer` or a `DataProducer`, names its
source, and has its formula in one method. `inferencesched.simulator.policies` joins them into policies by name.
"""

from inferencesched.zoo.bookkeeping import (
    ACTIVE_BLOCKS,
    HELD_BLOCKS,
    SENT_SINCE,
    ActiveBlocksProducer,
    HeldBlocksProducer,
    SentSinceProducer,
)
from inferencesched.zoo.costs import (
    CoordinatorScorer,
    FreenessScorer,
    KvBarrierScorer,
    KvRouterScorer,
    LMetricScorer,
    PrefillWorkScorer,
    cost_of,
)
from inferencesched.zoo.deficits import DEFICIT, DeficitPrefixScorer, DeficitProducer
from inferencesched.zoo.preble import PREBLE_LOAD, PrebleProducer, PrebleScorer
from inferencesched.zoo.rules import (
    BusiestScorer,
    CacheAwareScorer,
    DualMapScorer,
    IdleServersFilter,
    LoadGradientScorer,
    PredictedFirstTokenScorer,
    PrefixThenLoadScorer,
)

__all__ = [
    "ACTIVE_BLOCKS",
    "DEFICIT",
    "HELD_BLOCKS",
    "PREBLE_LOAD",
    "SENT_SINCE",
    "ActiveBlocksProducer",
    "BusiestScorer",
    "CacheAwareScorer",
    "CoordinatorScorer",
    "DeficitPrefixScorer",
    "DeficitProducer",
    "DualMapScorer",
    "FreenessScorer",
    "HeldBlocksProducer",
    "IdleServersFilter",
    "KvBarrierScorer",
    "KvRouterScorer",
    "LMetricScorer",
    "LoadGradientScorer",
    "PrebleProducer",
    "PrebleScorer",
    "PredictedFirstTokenScorer",
    "PrefillWorkScorer",
    "PrefixThenLoadScorer",
    "SentSinceProducer",
    "cost_of",
]
