"""Which profiles run, and whose answer counts?"""

from inferencesched.handlers.data_parallel import DataParallelProfileHandler
from inferencesched.handlers.deciders import (
    AlwaysDecider,
    DisaggregationDecider,
    MultimodalDecider,
    PrefixBasedDecider,
)
from inferencesched.handlers.disaggregated import DisaggProfileHandler
from inferencesched.handlers.header import HeaderProfileHandler
from inferencesched.handlers.joint import JointDisaggHandler, PairScorer, TopologyPairs
from inferencesched.handlers.single import SingleProfileHandler
from inferencesched.handlers.stages import DisaggHeaders, StageNames, sent_headers, stage_headers

__all__ = [
    "AlwaysDecider",
    "DataParallelProfileHandler",
    "DisaggHeaders",
    "DisaggProfileHandler",
    "DisaggregationDecider",
    "HeaderProfileHandler",
    "JointDisaggHandler",
    "MultimodalDecider",
    "PairScorer",
    "PrefixBasedDecider",
    "SingleProfileHandler",
    "StageNames",
    "TopologyPairs",
    "sent_headers",
    "stage_headers",
]
