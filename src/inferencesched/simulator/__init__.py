"""How would a policy have done on this traffic? The scheduler of a gateway, on simulated time, arrivals and servers."""

from inferencesched.simulator.admission import QueuedSimulation
from inferencesched.simulator.closed import ClosedSimulation, simulate_sessions
from inferencesched.simulator.compare import Run, compare
from inferencesched.simulator.engine import TIMINGS, ClosedForm, DynamoMocker, EngineConfig, StepTime, timing
from inferencesched.simulator.generator import Traffic, generate
from inferencesched.simulator.policies import POLICIES, Policy, kv_router, marginal, policy
from inferencesched.simulator.queueing import FLOWS, FlowControl, Queueing, configured_flow, flow
from inferencesched.simulator.replay import Replay, simulate
from inferencesched.simulator.server import Events, Fleet, Rollout
from inferencesched.simulator.simulation import Cluster, Simulation
from inferencesched.simulator.tenancy import Tenant, tenants
from inferencesched.simulator.waiting import Group, Waiting
from inferencesched.simulator.workload import Precedence, Workload, read_azure, read_mooncake, read_trace

__all__ = [
    "FLOWS",
    "POLICIES",
    "TIMINGS",
    "ClosedForm",
    "ClosedSimulation",
    "Cluster",
    "DynamoMocker",
    "EngineConfig",
    "Events",
    "Fleet",
    "FlowControl",
    "Group",
    "Policy",
    "Precedence",
    "QueuedSimulation",
    "Queueing",
    "Replay",
    "Rollout",
    "Run",
    "Simulation",
    "StepTime",
    "Tenant",
    "Traffic",
    "Waiting",
    "Workload",
    "compare",
    "configured_flow",
    "flow",
    "generate",
    "kv_router",
    "marginal",
    "policy",
    "read_azure",
    "read_mooncake",
    "read_trace",
    "simulate",
    "simulate_sessions",
    "tenants",
    "timing",
]
