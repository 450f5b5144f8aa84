"""Whether and when may a request go? The priority flow controller, and what it is made of."""

from inferencesched.flowcontrol.aggregates import Aggregate, CapacityWeighted, Greatest, Mean, Quantile
from inferencesched.flowcontrol.bands import BAND_CAPACITY, PriorityBand
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.concurrency import AdaptiveGate, AdaptiveLimit, Aimd, Gradient2, LimitState, Vegas
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.credit import InFlightCredit
from inferencesched.flowcontrol.events import Dispatch, Displace, Event, Expire, Rejection, Revoke
from inferencesched.flowcontrol.fairness import (
    DeficitRoundRobin,
    FairnessPolicy,
    GlobalStrict,
    RoundRobin,
    StartTimeFair,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.flows import (
    Band,
    Capacity,
    Flow,
    FlowKey,
    FlowOrder,
    FlowQueue,
    OrderingPolicy,
    QueueItem,
    Ticket,
)
from inferencesched.flowcontrol.gate import ObservedGate, RequestSaturationGate, SaturationGate
from inferencesched.flowcontrol.limits import PriorityHoldback, SoftCeiling, SoftReflectiveCeiling
from inferencesched.flowcontrol.log import RecordedController, replay
from inferencesched.flowcontrol.outcomes import DROPPED_REASON_HEADER, QueueOutcome
from inferencesched.flowcontrol.policies import (
    BandPolicy,
    CostModel,
    FirstCome,
    Gate,
    OpenGate,
    PlacedGate,
    Reclaimer,
    RequestAwareGate,
    StaticLimit,
    StrictBands,
    TokenCost,
    UsageLimitPolicy,
)
from inferencesched.flowcontrol.queue import FifoQueue, OrderedQueue
from inferencesched.flowcontrol.saturation import (
    ConcurrencyDetector,
    Hysteresis,
    ProjectingDetector,
    Reading,
    SaturationDetector,
    Stale,
    UtilizationDetector,
    saturation_by_stage,
)
from inferencesched.flowcontrol.stages import Reach, RequestReach, StageParts, Stages

__all__ = [
    "BAND_CAPACITY",
    "DROPPED_REASON_HEADER",
    "AdaptiveGate",
    "AdaptiveLimit",
    "Aggregate",
    "Aimd",
    "Band",
    "BandPolicy",
    "Capacity",
    "CapacityWeighted",
    "ConcurrencyDetector",
    "CostModel",
    "DeficitRoundRobin",
    "Dispatch",
    "Displace",
    "Event",
    "Expire",
    "FairnessPolicy",
    "FifoQueue",
    "FirstCome",
    "Flow",
    "FlowController",
    "FlowKey",
    "FlowOrder",
    "FlowQueue",
    "Gate",
    "GlobalStrict",
    "Gradient2",
    "Greatest",
    "Hysteresis",
    "InFlightCredit",
    "LimitState",
    "Mean",
    "ObservedGate",
    "OpenGate",
    "OrderedQueue",
    "OrderingPolicy",
    "PlacedGate",
    "PriorityBand",
    "PriorityHoldback",
    "ProjectingDetector",
    "Quantile",
    "QueueBudget",
    "QueueItem",
    "QueueOutcome",
    "Reach",
    "Reading",
    "Reclaimer",
    "RecordedController",
    "Rejection",
    "RequestAwareGate",
    "RequestReach",
    "RequestSaturationGate",
    "Revoke",
    "RoundRobin",
    "SaturationDetector",
    "SaturationGate",
    "SoftCeiling",
    "SoftReflectiveCeiling",
    "StageParts",
    "Stages",
    "Stale",
    "StartTimeFair",
    "StaticLimit",
    "StrictBands",
    "Ticket",
    "TokenCost",
    "UsageLimitPolicy",
    "UtilizationDetector",
    "Vegas",
    "VirtualTokenCounter",
    "replay",
    "saturation_by_stage",
]
