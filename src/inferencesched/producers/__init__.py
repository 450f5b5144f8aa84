"""What else must be known before scoring? One file a family; the prefix index's own producers are in `prefix`."""

from inferencesched.producers.burst import BurstPrefixProducer
from inferencesched.producers.cold import NoHitLruProducer
from inferencesched.producers.forecast import (
    LatencyOutcome,
    LatencyPrediction,
    LatencyPredictor,
    StepTimePredictor,
    TimingModel,
    features_of,
)
from inferencesched.producers.inflight import (
    InflightLoadProducer,
    LoadEstimate,
    estimated_output_tokens,
    uncached_tokens,
)
from inferencesched.producers.latency import Objectives, PredictedLatencyProducer, headrooms, objectives_of
from inferencesched.producers.multimodal import EncoderCacheProducer
from inferencesched.producers.outlier import Ejection, OutlierPolicy, OutlierProducer
from inferencesched.producers.p2p import P2PSource, source_headers
from inferencesched.producers.regression import OnlineLatencyPredictor, QuantileTracker, RecursiveLeastSquares
from inferencesched.producers.session import SessionBindingProducer, SessionReceipt

__all__ = [
    "BurstPrefixProducer",
    "Ejection",
    "EncoderCacheProducer",
    "InflightLoadProducer",
    "LatencyOutcome",
    "LatencyPrediction",
    "LatencyPredictor",
    "LoadEstimate",
    "NoHitLruProducer",
    "Objectives",
    "OnlineLatencyPredictor",
    "OutlierPolicy",
    "OutlierProducer",
    "P2PSource",
    "PredictedLatencyProducer",
    "QuantileTracker",
    "RecursiveLeastSquares",
    "SessionBindingProducer",
    "SessionReceipt",
    "StepTimePredictor",
    "TimingModel",
    "estimated_output_tokens",
    "features_of",
    "headrooms",
    "objectives_of",
    "source_headers",
    "uncached_tokens",
]
