"""Does any manifest do more than be read or be refused?

    python tests/fuzz/fuzz_manifests.py --seconds 60 [--seed 0]

A finding is any exception but `ManifestError`, and a table or a route of what was read that raises another one.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from inferencesched.errors import ManifestError
from inferencesched.routing.manifests import load_manifests, merge
from inferencesched.routing.objectives import ModelTable
from inferencesched.routing.routes import RouteQuery, RouteTable
from tests.fuzz import texts

GROUP, OLD, GATEWAY = (
    "inference.networking.k8s.io/v1",
    "inference.networking.x-k8s.io/v1alpha2",
    "gateway.networking.k8s.io/v1",
)
META = {"name": "a", "namespace": "n", "creationTimestamp": "2026-01-02T03:04:05Z", "labels": {"x": "y"}, "uid": "1"}
REF = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "p"}
SEEDS: list[dict[str, Any]] = [
    {
        "apiVersion": GROUP,
        "kind": "InferencePool",
        "metadata": META,
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}, "failureMode": "FailOpen"},
        },
        "status": {},
    },
    {
        "apiVersion": OLD,
        "kind": "InferencePool",
        "metadata": META,
        "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}},
    },
    {
        "apiVersion": OLD,
        "kind": "InferenceObjective",
        "metadata": META,
        "spec": {"priority": -1, "poolRef": {"name": "p"}},
    },
    {
        "apiVersion": OLD,
        "kind": "InferenceModelRewrite",
        "metadata": META,
        "spec": {
            "poolRef": {"name": "p"},
            "rules": [
                {
                    "matches": [{"model": {"type": "Exact", "value": "m"}}],
                    "targets": [{"modelRewrite": "x", "weight": 1}, {"modelRewrite": "y", "weight": 9}],
                },
                {"targets": [{"modelRewrite": "z"}]},
            ],
        },
    },
    {
        "apiVersion": OLD,
        "kind": "InferenceModel",
        "metadata": META,
        "spec": {
            "modelName": "m",
            "criticality": "Sheddable",
            "poolRef": {"name": "p"},
            "targetModels": [{"name": "x", "weight": 5}],
        },
    },
    {
        "apiVersion": GATEWAY,
        "kind": "HTTPRoute",
        "metadata": META,
        "spec": {
            "parentRefs": [{"name": "gw"}],
            "hostnames": ["example.com", "*.example.org"],
            "rules": [
                {
                    "matches": [
                        {"path": {"type": "PathPrefix", "value": "/v1"}, "headers": [{"name": "X", "value": "1"}]}
                    ],
                    "backendRefs": [{**REF, "weight": 90}, {**REF, "name": "q", "weight": 10}],
                    "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": REF, "percent": 5}}],
                }
            ],
        },
    },
]
MANIFESTS = [json.dumps(each).encode() for each in [*SEEDS, {"kind": "List", "items": SEEDS}]]
RNG = np.random.default_rng(7)


def look(raw: bytes, rng: random.Random) -> str:
    """Read a manifest, and use what was read."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return "no JSON"
    try:
        read = load_manifests(document, unknown=rng.choice(("refuse", "skip")))
    except ManifestError:
        return "refused"
    table = ModelTable.of(merge(read, read), split=rng.choice(("sticky", "random", "smooth")))
    for name in ("m", "", *table.names()):
        table.commit(table.resolve(name, key="k", rng=RNG))
    routes = RouteTable(read.routes)
    for host in ("example.com", "a.example.org", ""):
        found = routes.match(RouteQuery("/v1/x", host, headers={"x": "1"}))
        if found is not None:
            assert found.split.pick("k", RNG) in {backend.pool for backend in found.backends}
    assert all(pool.selects(pool.labels) for pool in read.pools)
    return "read"


if __name__ == "__main__":
    sys.exit(texts.main(__doc__ or "", MANIFESTS, look))
