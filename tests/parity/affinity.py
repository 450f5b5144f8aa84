"""Who is chosen by what it is: labels and roles, places, context lengths, headers, and signals of any name.

Plug-ins are made by their specs, from a case's parameters as they stand. Attributes of endpoints are columns here; a peer is a
member of the pool that is no candidate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.config.catalogue import CATALOGUE
from inferencesched.config.catalogue.attributes import DEFAULT_PRODUCER, signal_of
from inferencesched.framework import PartialScorer, Reader
from inferencesched.scorers.context import context_range
from inferencesched.topology import AFFINITIES, TopologyLabels, affinities, affinity, place_of
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.snapshots import PEER, columns_of, cycle, plain, pool_of, request_of
from tests.parity.specs import build_from, param_validation

SPECS = {spec.name: spec for spec in CATALOGUE}

FILTERS = (
    "decode-filter",
    "prefill-filter",
    "encode-filter",
    "label-selector-filter",
    "by-label-selector",
    "by-label",
    "context-length-aware",
    "endpoint-attribute-filter",
    "utilization-filter",
    "topology-affinity-filter",
    "session-affinity-filter",
    "multicluster-session-affinity-filter",
)
SCORERS = (
    "context-length-aware",
    "header-label-affinity-scorer",
    "endpoint-attribute-scorer",
    "topology-affinity-scorer",
    "session-affinity-scorer",
)
POOL_ATTRIBUTES = {
    "multicluster_queue_size": "llm-d.ai/multicluster-queue-size",
    "multicluster_kv_cache_utilization": "llm-d.ai/multicluster-kv-cache-utilization",
}


def full(endpoint: Mapping[str, Any]) -> str:
    """Return an endpoint's name with its namespace, if it has one."""
    namespace = endpoint.get("namespace", "")
    return f"{namespace}/{endpoint['name']}" if namespace else str(endpoint["name"])


def scalars_of(endpoints: list[dict[str, Any]]) -> dict[isched.Signal, Any]:
    """Return the endpoints' attributes of one number as columns."""
    columns: dict[isched.Signal, Any] = {}
    for i, endpoint in enumerate(endpoints):
        known = endpoint.get("attributes") or {}
        named = {key: known["scalars"][key] for key in known.get("scalars") or {}}
        fillers = known.get("scalar_producers") or {}
        pool = {attribute: known[key] for key, attribute in POOL_ATTRIBUTES.items() if known.get(key) is not None}
        for key, value in (named | pool).items():
            signal = signal_of("attribute", key, fillers.get(key, DEFAULT_PRODUCER))
            columns.setdefault(signal, np.full(len(endpoints), np.nan))[i] = value
    return columns


def world(case: Case, plugin: object) -> tuple[isched.InferenceRequest, isched.Endpoints, isched.CycleState]:
    """Return the request, the candidates with every column that the plug-in reads, and the cycle with the peer."""
    given = [{**endpoint, "name": full(endpoint)} for endpoint in case["endpoints"]]
    if case["component"] == "utilization-filter":  # no metrics at all are 0 to it
        given = [{**endpoint, "metrics_null": False} for endpoint in given]
    pool = pool_of(given)
    peer = (case.get("request") or {}).get("peer_endpoint")
    if peer is not None:
        pool = pool_of([*given, {**peer, "name": PEER}])
    endpoints = pool.snapshot()
    endpoints = endpoints.where(np.array([name != PEER for name in endpoints.names], dtype=np.bool_))
    columns, tokens = columns_of(given)
    columns |= scalars_of(given)
    for signal, _, _ in plugin.reads if isinstance(plugin, Reader) else ():
        if signal not in columns and signal.name not in endpoints.layout.rows:
            columns[signal] = np.full(len(given), np.nan)
    return request_of(case, tokens), endpoints.with_columns(columns), cycle(peer="" if peer is None else PEER)


# --- one plug-in -------------------------------------------------------------------------------------------------


def kept_as_expected(expect: Mapping[str, Any], candidates: list[str], kept: list[str]) -> None:
    """Hold who was kept, in this order, against what a case expects."""
    if "kept" in expect:
        wanted = [plain(name) for name in expect["kept"]]
        exact = expect.get("order", "any") == "exact"
        same(wanted if exact else sorted(wanted), kept if exact else sorted(kept), "kept")
    if "num_kept" in expect:
        same(expect["num_kept"], len(kept), "kept")
    if "first" in expect:
        same(plain(expect["first"]), kept[0] if kept else None, "first")
    if "min_kept" in expect and len(kept) < expect["min_kept"]:
        raise Mismatch(f"at least {expect['min_kept']} of {candidates}", kept)


def filter_(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    request, endpoints, state = world(case, plugin)
    names = [plain(name) for name in endpoints.names]
    keep = plugin.filter(request, endpoints, state)
    kept_as_expected(case["expect"], names, [name for name, kept in zip(names, keep, strict=True) if kept])


def ordered_filter(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    request, endpoints, state = world(case, plugin)
    order = plugin.order(request, endpoints)
    same(sorted(order.tolist()), np.flatnonzero(plugin.filter(request, endpoints, state)).tolist(), "order and filter")
    kept_as_expected(case["expect"], list(endpoints.names), [endpoints.name(i) for i in order.tolist()])


def scored_as_expected(expect: Mapping[str, Any], scores: dict[str, float], silent: set[str], tolerance: float) -> None:
    """Hold scores by name, and who has none, against what a case expects."""
    for name, value in (expect.get("scores") or {}).items():
        same(float(value), scores[plain(name)], name, tolerance=tolerance)
    for name in expect.get("unscored", ()):
        same(0.0, scores[plain(name)], name)
        same(True, plain(name) in silent, f"{name} has no score")
    if "num_scores" in expect:  # to a map of scores, who is not in it has none
        same(expect["num_scores"], len(scores) - len(silent if expect.get("unscored") else ()), "scores")
    for one, sign, other in expect.get("relations", ()):
        left, right = (scores[plain(each)] if isinstance(each, str) else each for each in (one, other))
        holds = {">": left > right, "<": left < right, ">=": left >= right, "<=": left <= right, "==": left == right}
        holds["!="] = left != right
        if not holds[sign]:
            raise Mismatch(f"{one} {sign} {other}", (left, right))
    if "highest" in expect:
        same(plain(expect["highest"]), max(scores, key=lambda name: scores[name]), "highest")


def scorer(case: Case) -> None:
    plugin = build_from(SPECS[case["component"]], case)
    request, endpoints, state = world(case, plugin)
    names = [plain(name) for name in endpoints.names]
    scores = dict(zip(names, plugin.score(request, endpoints, state).tolist(), strict=True))
    silent: set[str] = set()
    if isinstance(plugin, PartialScorer):
        told = plugin.scored(request, endpoints, state)
        silent = {name for name, has in zip(names, told, strict=True) if not has}
    scored_as_expected(case["expect"], scores, silent, case["tolerance"])


def parameters(case: Case) -> None:
    param_validation(SPECS[case["component"]], case)


# --- helpers of the reference ------------------------------------------------------------------------------------


def value_or_error(case: Case, answer: Any) -> None:
    """Hold what a call returns, or that it is refused, against what a case expects."""
    expect = case["expect"]
    try:
        got = answer()
    except isched.InvalidInputError as refusal:
        if not expect.get("error"):
            raise Mismatch(expect.get("value"), str(refusal)) from refusal
        return
    if expect.get("error"):
        raise Mismatch("an error", got)
    wanted = expect.get("value")
    if isinstance(wanted, Mapping) and isinstance(got, tuple):
        got = dict(zip(("min", "max"), got, strict=True))
    same(list(wanted) if isinstance(wanted, list) else wanted, list(got) if isinstance(wanted, list) else got)


def context(case: Case) -> None:
    name = case["params"]["function"]
    if name != "parse_context_range":
        raise unknown("function", name)
    value_or_error(case, lambda: context_range(case["params"]["input"]))


def topology(case: Case) -> None:
    params = case["params"]
    if params["function"] == "parse_level":
        value_or_error(case, lambda: affinity(params["input"]))
    elif params["function"] == "compare":
        given = {PEER: params["peer"], "candidate": params["candidate"]}
        endpoints = pool_of(
            [{"name": name, "attributes": {"topology": place or {}}} for name, place in given.items()]
        ).snapshot()
        near = affinities(endpoints, place_of(endpoints, PEER, TopologyLabels()), TopologyLabels())
        value_or_error(case, lambda: (*AFFINITIES, "none")[near[1]])
    else:
        raise unknown("function", params["function"])


RUNNERS: dict[tuple[str, str], Runner] = {
    **{(name, "filter"): filter_ for name in FILTERS},
    **{(name, "scorer"): scorer for name in SCORERS},
    **{(name, "param-validation"): parameters for name in {*FILTERS, *SCORERS, "header-based-testing-filter"}},
    ("header-based-testing-filter", "filter"): ordered_filter,
    ("context-length-aware", "function"): context,
    ("topology-level", "function"): topology,
}
