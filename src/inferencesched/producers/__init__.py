"""What else must be known before scoring? One file a family; the prefix index's own producers are in `prefix`."""

from inferencesched.producers.burst import BurstPrefixProducer
from inferencesched.producers.cold import NoHitLruProducer
from inferencesched.producers.multimodal import EncoderCacheProducer
from inferencesched.producers.outlier import Ejection, OutlierPolicy, OutlierProducer
from inferencesched.producers.p2p import P2PSource, source_headers
from inferencesched.producers.session import SessionBindingProducer, SessionReceipt

__all__ = [
    "BurstPrefixProducer",
    "Ejection",
    "EncoderCacheProducer",
    "NoHitLruProducer",
    "OutlierPolicy",
    "OutlierProducer",
    "P2PSource",
    "SessionBindingProducer",
    "SessionReceipt",
    "source_headers",
]
