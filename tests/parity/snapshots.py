"""The endpoints and the request of a case as ours: an absent metric is 0 there, no metrics at all is unknown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched import signals
from inferencesched.topology import LABELS
from tests.parity.cases import Case

PEER = "peer of the vector"
SECONDS = {
    signals.PREDICTED_TTFT: "ttft",
    signals.PREDICTED_TPOT: "tpot",
    signals.TTFT_HEADROOM: "ttft_headroom",
    signals.TPOT_HEADROOM: "tpot_headroom",
}


def plain(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def cycle(seed: int = 0, peer: str = "") -> isched.CycleState:
    return isched.CycleState(0.0, np.random.default_rng(seed), 0, peer)


def pool_of(endpoints: list[dict[str, Any]]) -> isched.InferencePool:
    """The case's endpoints in a pool, observed at 0."""
    pool = isched.InferencePool()
    for endpoint in endpoints:
        host, port = endpoint.get("address", ""), endpoint.get("port", "")
        host = f"[{host}]" if port and ":" in host else host
        pool.join(
            endpoint["name"],
            labels=labels_of(endpoint),
            address=f"{host}:{port}" if host and port else str(host),
        )
        if endpoint.get("metrics_null"):
            continue
        metrics = endpoint.get("metrics", {})
        observed = {
            isched.WAITING_QUEUE_SIZE: metrics.get("waiting_queue_size", 0),
            isched.RUNNING_REQUESTS: metrics.get("running_requests", 0),
            isched.KV_CACHE_USAGE: metrics.get("kv_cache_usage", 0.0),
        }
        adapters = isched.Adapters(
            frozenset(metrics.get("active_loras") or {}),
            frozenset(metrics.get("waiting_loras") or {}),
            metrics.get("max_loras", 0),
        )
        pool.observe(endpoint["name"], observed, now=0.0, adapters=adapters)
    return pool


def labels_of(endpoint: Mapping[str, Any]) -> dict[str, str]:
    """The endpoint's labels; its topology attribute as the labels that ours are read from."""
    said = dict(endpoint.get("labels") or {})
    topology = endpoint.get("attributes", {}).get("topology") or {}
    return said | {LABELS[level]: value for level, value in topology.items() if value}


def columns_of(endpoints: list[dict[str, Any]]) -> tuple[dict[isched.Signal, Any], int]:
    """What producers would have said of the endpoints, and how long the prompt is then."""
    count = len(endpoints)
    zeros = (isched.INFLIGHT_REQUESTS, isched.INFLIGHT_TOKENS, isched.PREFIX_MATCH, isched.PREFIX_TOKENS)
    columns: dict[isched.Signal, Any] = {signal: np.zeros(count) for signal in zeros}
    unknown = (*SECONDS, signals.ENCODER_MATCH)
    columns |= {signal: np.full(count, np.nan) for signal in unknown}
    tokens = 0
    for i, endpoint in enumerate(endpoints):
        known = endpoint.get("attributes", {})
        load = known.get("in_flight_load")
        if isinstance(load, dict):
            columns[isched.INFLIGHT_REQUESTS][i] = load.get("requests", 0)
            columns[isched.INFLIGHT_TOKENS][i] = load.get("tokens", 0)
        uncached = known.get("uncached_request_tokens")
        if isinstance(uncached, dict):
            tokens = max(tokens, uncached["tokens"])
        match = known.get("prefix_cache_match")
        if isinstance(match, dict) and match["total_blocks"]:
            columns[isched.PREFIX_MATCH][i] = match["match_blocks"] / match["total_blocks"]
            columns[isched.PREFIX_TOKENS][i] = match["match_blocks"] * match["block_size_tokens"]
        latency = known.get("latency_prediction")
        if isinstance(latency, dict):
            for signal, name in SECONDS.items():
                columns[signal][i] = latency.get(name, 0.0)
            if "dispatched_request_count" in latency:
                columns[isched.INFLIGHT_REQUESTS][i] = latency["dispatched_request_count"]
        encoder = known.get("encoder_cache_match")
        if isinstance(encoder, dict):
            whole = sum(item["size"] for item in encoder.get("request", ()))
            if whole > 0:
                columns[signals.ENCODER_MATCH][i] = sum(item["size"] for item in encoder.get("matched", ())) / whole
    if tokens:
        for i, endpoint in enumerate(endpoints):
            uncached = endpoint.get("attributes", {}).get("uncached_request_tokens")
            columns[isched.PREFIX_TOKENS][i] = tokens - (uncached["tokens"] if isinstance(uncached, dict) else 0)
    return columns, tokens


def request_of(case: Case, tokens: int = 0) -> isched.InferenceRequest:
    """The case's request; its length is what it says, else what the endpoints' columns imply."""
    said = case.get("request") or {}
    count = said.get("token_count")
    return isched.InferenceRequest(
        request_id=said.get("request_id") or "vector",
        model=said.get("target_model", ""),
        input_tokens=tokens if count is None else count,
        priority=said.get("priority", 0),
        headers=said.get("headers") or {},
        attributes=said.get("attributes") or {},
    )


def snapshot(case: Case) -> tuple[isched.InferenceRequest, isched.Endpoints]:
    """The request and the candidates."""
    columns, tokens = columns_of(case["endpoints"])
    return request_of(case, tokens), pool_of(case["endpoints"]).snapshot().with_columns(columns)
