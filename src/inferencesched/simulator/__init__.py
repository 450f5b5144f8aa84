"""How would a policy have done on this traffic? The scheduler of a gateway, on simulated time, arrivals and servers."""

from inferencesched.simulator.admission import QueuedSimulation
from inferencesched.simulator.capacity import Capacity, attainment, capacity
from inferencesched.simulator.closed import ClosedSimulation, simulate_sessions
from inferencesched.simulator.compare import Run, compare
from inferencesched.simulator.engine import TIMINGS, ClosedForm, DynamoMocker, EngineConfig, StepTime, timing
from inferencesched.simulator.fitting import Fit, fit_traffic, prefix_hit
from inferencesched.simulator.generator import Traffic, generate
from inferencesched.simulator.grids import Cell, Grid, Source
from inferencesched.simulator.incidents import Autoscaling, Incident, ServerGroup, Transfer
from inferencesched.simulator.journal import Journal, JournalError
from inferencesched.simulator.policies import POLICIES, Policy, disaggregated, kv_router, marginal, policy
from inferencesched.simulator.queueing import FLOWS, FlowControl, Queueing, configured_flow, flow
from inferencesched.simulator.readers import (
    SCHEMAS,
    read_bailian,
    read_burstgpt,
    read_servegen,
    read_trace,
    read_weka,
    schema_of,
)
from inferencesched.simulator.replay import Replay, simulate
from inferencesched.simulator.server import Events, Fleet, Rollout
from inferencesched.simulator.simulation import Cluster, Simulation
from inferencesched.simulator.sweep import sweep
from inferencesched.simulator.tables import CellResult, SweepResult
from inferencesched.simulator.tenancy import Tenant, tenants
from inferencesched.simulator.transforms import jitter, mix, repeat, restart_sessions, tag, thin, with_adapters
from inferencesched.simulator.waiting import Group, Waiting
from inferencesched.simulator.workload import Precedence, Workload, read_azure, read_mooncake

__all__ = [
    "FLOWS",
    "POLICIES",
    "SCHEMAS",
    "TIMINGS",
    "Autoscaling",
    "Capacity",
    "Cell",
    "CellResult",
    "ClosedForm",
    "ClosedSimulation",
    "Cluster",
    "DynamoMocker",
    "EngineConfig",
    "Events",
    "Fit",
    "Fleet",
    "FlowControl",
    "Grid",
    "Group",
    "Incident",
    "Journal",
    "JournalError",
    "Policy",
    "Precedence",
    "QueuedSimulation",
    "Queueing",
    "Replay",
    "Rollout",
    "Run",
    "ServerGroup",
    "Simulation",
    "Source",
    "StepTime",
    "SweepResult",
    "Tenant",
    "Traffic",
    "Transfer",
    "Waiting",
    "Workload",
    "attainment",
    "capacity",
    "compare",
    "configured_flow",
    "disaggregated",
    "fit_traffic",
    "flow",
    "generate",
    "jitter",
    "kv_router",
    "marginal",
    "mix",
    "policy",
    "prefix_hit",
    "read_azure",
    "read_bailian",
    "read_burstgpt",
    "read_mooncake",
    "read_servegen",
    "read_trace",
    "read_weka",
    "repeat",
    "restart_sessions",
    "schema_of",
    "simulate",
    "simulate_sessions",
    "sweep",
    "tag",
    "tenants",
    "thin",
    "timing",
    "with_adapters",
]
