"""How would a policy have done on this traffic? The scheduler of a gateway, on simulated time, arrivals and servers."""

from inferencesched.simulator.compare import Run, compare
from inferencesched.simulator.engine import TIMINGS, ClosedForm, DynamoMocker, EngineConfig, StepTime, timing
from inferencesched.simulator.generator import Traffic, generate
from inferencesched.simulator.policies import POLICIES, Policy, policy
from inferencesched.simulator.server import Events, Fleet, Rollout
from inferencesched.simulator.simulation import Cluster, Replay, Simulation, simulate
from inferencesched.simulator.workload import Workload, read_azure, read_mooncake, read_trace

__all__ = [
    "POLICIES",
    "TIMINGS",
    "ClosedForm",
    "Cluster",
    "DynamoMocker",
    "EngineConfig",
    "Events",
    "Fleet",
    "Policy",
    "Replay",
    "Rollout",
    "Run",
    "Simulation",
    "StepTime",
    "Traffic",
    "Workload",
    "compare",
    "generate",
    "policy",
    "read_azure",
    "read_mooncake",
    "read_trace",
    "simulate",
    "timing",
]
