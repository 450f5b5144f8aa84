"""Whether and when may a request go? The priority flow controller, and what it is made of."""

from inferencesched.flowcontrol.bands import BAND_CAPACITY, PriorityBand
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.controller import FlowController
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
from inferencesched.flowcontrol.log import RecordedController, replay
from inferencesched.flowcontrol.outcomes import DROPPED_REASON_HEADER, QueueOutcome
from inferencesched.flowcontrol.policies import (
    BandPolicy,
    CostModel,
    FirstCome,
    Gate,
    OpenGate,
    Reclaimer,
    RequestAwareGate,
    StaticLimit,
    StrictBands,
    TokenCost,
    UsageLimitPolicy,
)
from inferencesched.flowcontrol.queue import FifoQueue, OrderedQueue

__all__ = [
    "BAND_CAPACITY",
    "DROPPED_REASON_HEADER",
    "Band",
    "BandPolicy",
    "Capacity",
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
    "OpenGate",
    "OrderedQueue",
    "OrderingPolicy",
    "PriorityBand",
    "QueueBudget",
    "QueueItem",
    "QueueOutcome",
    "Reclaimer",
    "RecordedController",
    "Rejection",
    "RequestAwareGate",
    "Revoke",
    "RoundRobin",
    "StartTimeFair",
    "StaticLimit",
    "StrictBands",
    "Ticket",
    "TokenCost",
    "UsageLimitPolicy",
    "VirtualTokenCounter",
    "replay",
]
