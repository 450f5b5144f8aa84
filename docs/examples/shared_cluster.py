"""A chatbot and a recommender on one cluster: by model name, by priority, and with a new version for a tenth of the conversations.

    python docs/examples/shared_cluster.py

Two parts. First the way of requests: an ``HTTPRoute`` splits the chatbot's conversations 90 to 10 between the pools ``gemma`` and ``gemma-new``,
and sends the recommender's to ``deepseek``; both pools' objective has priority 10. Then twice as much traffic as the servers can take:
chatbot at priority 10, recommender at 0, a batch job at -1.
"""

import json
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

import inferencesched as isched
from inferencesched.director import Decision, Director, ServingPool
from inferencesched.routing.manifests import load_manifests
from inferencesched.routing.objectives import ModelTable
from inferencesched.routing.routes import RouteTable
from inferencesched.simulator import Cluster, EngineConfig, Queueing, Replay, Workload, flow, policy, simulate, tenants


def objective(name: str, priority: int, pool: str) -> dict:
    return {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": {"name": name, "namespace": "genai-inference"},
        "spec": {"priority": priority, "poolRef": {"name": pool}},
    }


def backend(pool: str, weight: int = 1) -> dict:
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": pool, "weight": weight}


def model_is(name: str) -> list[dict]:
    return [{"path": {"value": "/completions"}, "headers": [{"name": "X-Gateway-Model-Name", "value": name}]}]


MANIFESTS = [
    objective("chatbot", 10, "gemma"),
    objective("recommender", 10, "deepseek"),
    objective("batch", -1, "deepseek"),
    {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "models", "namespace": "genai-inference"},
        "spec": {
            "parentRefs": [{"name": "inference-gateway", "namespace": "infra"}],
            "hostnames": ["example.com"],
            "rules": [
                {"matches": model_is("chatbot"), "backendRefs": [backend("gemma", 90), backend("gemma-new", 10)]},
                {"matches": model_is("recommender"), "backendRefs": [backend("deepseek")]},
            ],
        },
    },
]


class Routed(NamedTuple):
    """Where did the requests go?"""

    pools: Counter
    moved: int
    lowest_priority: int


def serving(name: str) -> ServingPool:
    pool = isched.InferencePool()
    for i in range(3):
        pool.join(f"{name}-{i}", address=f"{name}-{i}.genai-inference:8000")
    return ServingPool(pool, isched.Scheduler(isched.default_profile()))


def routed(conversations: int = 1000, turns: int = 3) -> Routed:
    """Let conversations come, a few turns each; count the pools, and those that changed theirs."""
    read = load_manifests(MANIFESTS)
    director = Director(
        {name: serving(name) for name in ("gemma", "gemma-new", "deepseek")},
        models=ModelTable.of(read),
        routes=RouteTable(read.routes),
    )
    rng, pools, seen = np.random.default_rng(7), Counter(), defaultdict(set)
    priorities = set()
    for i in range(conversations):
        history = f"User {i}: hello."
        model = "recommender" if i % 4 == 3 else "chatbot"
        for turn in range(turns):
            body = json.dumps({"model": model, "prompt": history}).encode()
            headers = {"host": "example.com", "x-session-id": f"conversation-{i}", "x-llm-d-inference-objective": model}
            decision = director.decide(body, headers, now=float(i), rng=rng, path="/completions")
            assert isinstance(decision, Decision)
            assert decision.life is not None, decision.explain()
            pools[model, decision.pool] += 1
            seen[i].add(decision.pool)
            priorities.add(decision.request.priority)
            decision.life.complete(now=float(i))
            history += f" Turn {turn}: and then?"
    return Routed(pools, sum(len(each) > 1 for each in seen.values()), min(priorities))


SERVERS, EVERY = 8, 17.0  # the servers finish a request every 17 ms


def under(load: float, seed: int = 1, count: int = 4000) -> Replay:
    """Let so many times what the servers can take come: a tenth the chatbot's, four tenths the recommender's, the rest a batch job's."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(EVERY / load, count))
    lengths = rng.integers(300, 900, count), rng.integers(20, 200, count)
    traffic = Workload.of("shared", arrival, *lengths, [[]] * count, block_size=64)
    cluster = Cluster(servers=SERVERS, engine=EngineConfig(kv_blocks=2000, max_sequences=8))
    crowd = traffic.tagged(tenants("chatbot:1:10,recommender:4,batch:5:-1"), seed=1)
    return simulate(crowd, policy("least-request"), cluster, flow=flow("fcfs", Queueing(capacity=300, queue_depth=0.5)))


def main() -> None:
    """Print both parts."""
    found = routed()
    print("requests by model and pool")
    for (model, pool), count in sorted(found.pools.items()):
        print(f"  {model:<12} {pool:<10} {count:>5}")
    print(f"conversations that changed their pool: {found.moved}")
    for load in (1.0, 2.0):
        replay = under(load)
        print(f"{load:g} times what the servers can take")
        for name, group in replay.waiting.tenants.items():
            print(f"  {name:<12} {group.shed_rate:>4.0%} turned away, p95 of the wait {group.wait_p95 / 1e3:>5.2f} s")


if __name__ == "__main__":
    main()
