"""Which ways of having requests wait can be compared by name?

Each builds an ordinary `FlowController`, the very object a gateway uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from inferencesched.config import Document, Loaded, flow_controller
from inferencesched.errors import UnknownNameError, whole_number
from inferencesched.flowcontrol.bands import BAND_CAPACITY, PriorityBand
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.controller import Displacement, FlowController, Mode
from inferencesched.flowcontrol.credit import InFlightCredit
from inferencesched.flowcontrol.fairness import (
    DeficitRoundRobin,
    FairnessPolicy,
    GlobalStrict,
    RoundRobin,
    StartTimeFair,
    VirtualTokenCounter,
)
from inferencesched.flowcontrol.flows import Capacity, OrderingPolicy
from inferencesched.flowcontrol.gate import ObservedGate, SaturationGate
from inferencesched.flowcontrol.ordering import AdaptiveLifo, SloDeadline, WeightedShortestFirst
from inferencesched.flowcontrol.policies import FirstCome, Gate
from inferencesched.flowcontrol.saturation import Stale, UtilizationDetector
from inferencesched.simulator.server import Fleet
from inferencesched.simulator.tenancy import Tenant

#: The name of no flow control: every request goes to a server when it comes.
NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Queueing:
    """How much may wait, how long, and when are the servers full?

    Parameters
    ----------
    capacity: requests in all bands together; None is no limit. When it is full what is below priority 0 makes room.
    band_capacity: requests in each band; None is no limit. 5,000 is llm-d's.
    ttl: seconds that a request may wait; None is no limit.
    queue_depth: how many may wait at a server until it counts as full; llm-d's 5.
    kv_usage: which share of a server's KV cache may be held until it counts as full; llm-d's 0.8.
    """

    capacity: int | None = None
    band_capacity: int | None = BAND_CAPACITY.requests
    ttl: float | None = 60.0
    queue_depth: float = 5.0
    kv_usage: float = 0.8

    def __post_init__(self) -> None:
        for name, limit in (("capacity", self.capacity), ("band_capacity", self.band_capacity)):
            if limit is not None:
                whole_number(name, limit, low=1)
        self.budget()
        self.detector()

    def budget(self) -> QueueBudget:
        """How long may a request wait?"""
        return QueueBudget(ttl=self.ttl)

    def detector(self, stale: Stale | None = None) -> UtilizationDetector:
        """When are the servers full?"""
        return UtilizationDetector(self.queue_depth, self.kv_usage, stale=Stale() if stale is None else stale)


@dataclass(frozen=True, slots=True)
class FlowControl:
    """What is this way called, what does it do, and how is it built?

    ``build`` makes its controller for a fleet and the tenants that are known; it is asked afresh for each replay.
    """

    name: str
    what: str
    build: Callable[[Fleet, Sequence[Tenant]], FlowController]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is special about one of the ways that have a name? Everything else is `Queueing`.

    ``credit`` says whether what was sent since the servers were last read counts.
    """

    what: str
    fairness: FairnessPolicy = field(default=GlobalStrict())
    ordering: OrderingPolicy = field(default=FirstCome())
    mode: Mode = "queue"
    displace: Displacement = "sheddable"
    credit: bool = True

    def controller(self, queueing: Queueing, fleet: Fleet, tenants: Sequence[Tenant]) -> FlowController:
        """Return the controller, empty; flows have the weights of the tenants."""
        capacity = Capacity(queueing.band_capacity)
        weights = {tenant.name: tenant.weight for tenant in tenants}
        gate: Gate
        if self.credit:
            gate = SaturationGate(queueing.detector(), credit=InFlightCredit(slots=fleet.config.max_sequences))
        else:
            gate = ObservedGate(queueing.detector(Stale(0.2, "saturated")))
        return FlowController(
            default=PriorityBand(0, capacity, self.fairness, self.ordering, weights),
            gate=gate,
            capacity=Capacity(queueing.capacity),
            budget=queueing.budget(),
            displace=self.displace,
            mode=self.mode,
        )


#: Every way by name, but for ``none``.
FLOWS: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        "fcfs": Profile("first come, first served in each priority"),
        "round-robin": Profile("tenants take turns, a request each", RoundRobin()),
        "vtc": Profile("the tenant goes that has had least tokens", VirtualTokenCounter()),
        "sfq": Profile("the tenant goes whose request would start first, were each served alone", StartTimeFair()),
        "drr": Profile("tenants take turns, so many tokens each", DeficitRoundRobin()),
        "slo": Profile("the request goes whose first token is due first", GlobalStrict(), SloDeadline()),
        "shortest": Profile("the shortest prompt goes, but for those that wait long", ordering=WeightedShortestFirst()),
        "lifo": Profile("first come, and newest first under a backlog", ordering=AdaptiveLifo()),
        "llm-d": Profile("llm-d's defaults: as fcfs, but blind between scrapes", displace="never", credit=False),
        "legacy": Profile("llm-d's without a queue: below 0 is refused when full", mode="legacy", credit=False),
    }
)


def flow(name: str, queueing: Queueing | None = None) -> FlowControl | None:
    """Which way of waiting has this name? None for ``none``. Errors: `UnknownNameError` lists those there are.

    >>> flow("vtc").what, flow("none")
    ('the tenant goes that has had least tokens', None)
    """
    if name == NONE:
        return None
    profile = FLOWS.get(name)
    if profile is None:
        raise UnknownNameError("flow", name, [NONE, *FLOWS])
    settings = Queueing() if queueing is None else queueing
    return FlowControl(name, profile.what, lambda fleet, tenants: profile.controller(settings, fleet, tenants))


def configured_flow(name: str, load: Callable[[], Loaded[Document]]) -> FlowControl:
    """Which way of waiting does an ``EndpointPickerConfig`` describe? That of its ``flowControl`` section, as a gateway has it.

    `load` is asked anew for each replay: some plug-ins count. Errors: those of `load`, and `ConfigError`.

    >>> from inferencesched.config import load
    >>> raw = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "featureGates": ["flowControl"]}
    >>> configured_flow("mine", lambda: load(raw)).name
    'mine'
    """
    flow_controller(load())  # so that what is wrong is told at once
    return FlowControl(name, "as configured", lambda fleet, tenants: flow_controller(load()))
