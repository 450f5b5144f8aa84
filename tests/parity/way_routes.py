"""Names, headers, models, candidates, rollouts and identities."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched.director import Director, ServingPool
from inferencesched.errors import (
    AdmissionDeniedError,
    code_of,
    reference_text,
    status_of,
)
from inferencesched.flowcontrol import (
    Capacity,
    FlowController,
    PriorityBand,
    QueueItem,
    QueueOutcome,
)
from inferencesched.governance import agent_session, fairness_id
from inferencesched.observability import BoundedLabel, MetricsSink
from inferencesched.observability.events import Dequeued, Labels
from inferencesched.routing.candidates import within
from inferencesched.routing.headers import aliases, header
from inferencesched.routing.objectives import ModelMatch, ModelRewrite, ModelTable, RewriteRule, WeightedModel
from inferencesched.routing.rollout import covered, dominant_role, pick, shares, sum_weight
from inferencesched.screeners import RolloutScreener
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.snapshots import cycle
from tests.parity.way_parts import PURE, SCENARIO, Gate, Screens, decided

# --- errors, headers, labels -------------------------------------------------------------------------------------


def http_mapping(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    same(expect["http_status"], status_of(inputs["code"]), "http_status")
    if "body_contains" in expect:
        assert expect["body_contains"] in reference_text(inputs["code"], inputs["message"])
    found = [outcome for outcome in QueueOutcome if outcome.reason == inputs.get("dropped_reason")]
    same(expect["headers"], found[0].headers() if inputs.get("dropped_reason") else {}, "headers")


def error_string(case: Case) -> None:
    same(case["expect"]["string"], reference_text(case["inputs"]["code"], case["inputs"]["message"]))


def canonical(case: Case) -> None:
    code = case["inputs"]["error_code"]
    error = ValueError() if code is None else AdmissionDeniedError("it", "no", status=status_of(code))
    same(case["expect"]["canonical"], code_of(error))


def header_aliases(case: Case) -> None:
    same(case["expect"]["names"], list(aliases(case["inputs"]["header"])))


def header_lookup(case: Case) -> None:
    inputs = case["inputs"]
    same(case["expect"]["value"], header(inputs["headers"], inputs["key"].lower()))


def bounded_label(case: Case) -> None:
    inputs, expect, params = case["inputs"], case["expect"], case["params"]
    if "delete" in inputs:
        sink = MetricsSink()
        for flow, priority, outcome in inputs["series"]:
            said = QueueOutcome.DISPATCHED if outcome == "Dispatched" else QueueOutcome.REJECTED_CAPACITY
            labels = Labels("m", "m", flow, int(priority), "pool")
            sink.emit(Dequeued("r", labels, 1, said.value, 0.1))
        family = next(each for each in sink.registry.families if each.name.endswith("request_queue_duration_seconds"))

        def count() -> int:
            return len({sample.labels for sample in sink.registry.samples(family) if sample.name.endswith("_count")})

        same(expect["series_before"], count(), "series_before")
        sink.forget_flow(inputs["delete"][0], int(inputs["delete"][1]))
        same(expect["series_after"], count(), "series_after")
        return
    label = BoundedLabel(params["cap"])
    if "distinct_values" in inputs:
        values = {label.bound(f"value-{i}") for i in range(inputs["distinct_values"])}
        same(expect["series"], len(values), "series")
        return
    results = []
    for operation, value in inputs["ops"]:
        if operation == "pin":
            label.pin(value)
        else:
            results.append(label.bound(value))
    same(expect["results"], results, "results")


def capacity_utilization(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    shut = Gate(1.0)
    controller = FlowController(
        gate=shut,
        default=PriorityBand(0, capacity=Capacity(params.get("band_max_requests"))),
        capacity=Capacity(params.get("max_requests"), params.get("max_bytes")),
    )
    for i in range(inputs["queued"]):
        controller.submit(QueueItem(request_id=f"r{i}", size_bytes=inputs["item_bytes"]), 1.0)
    sink = MetricsSink()
    sink.observe_queue("pool", controller)

    def value(name: str) -> float | None:
        family = next(each for each in sink.registry.families if each.name.endswith(name))
        return next((sample.value for sample in sink.registry.samples(family)), None)

    names = {
        "band_requests_ratio": "flow_control_capacity_utilization_requests",
        "band_bytes_ratio": "flow_control_capacity_utilization_bytes",
        "global_requests_ratio": "global_capacity_utilization_requests",
        "global_bytes_ratio": "global_capacity_utilization_bytes",
        "global_requests_series": "global_capacity_utilization_requests",
        "global_bytes_series": "global_capacity_utilization_bytes",
    }
    for name, wanted in expect.items():
        if name not in names:
            raise unknown("metric", name)
        same(wanted, value(names[name]), name)


# --- models, candidates, rollouts --------------------------------------------------------------------------------


def rewrite_of(said: Mapping[str, Any]) -> ModelRewrite:
    rules = tuple(
        RewriteRule(
            ModelMatch(tuple(rule["models"])),
            tuple(
                WeightedModel(target, None)
                if isinstance(target, str)
                else WeightedModel(target["model"], target["weight"])
                for target in rule["targets"]
            ),
        )
        for rule in said["rules"]
    )
    return ModelRewrite(said.get("name", ""), rules, created=said.get("created_s", said.get("created_unix", 0)))


def split_match(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    stored = {each["name"]: each for each in inputs["rewrites"]}
    operation = inputs["op"] or {}
    if "delete" in operation:
        stored.pop(operation["delete"], None)
    if "set" in operation:
        stored[operation["set"]["name"]] = operation["set"]
    table = ModelTable(rewrites=[rewrite_of(each) for each in stored.values()], split="random")
    choice = table.resolve(inputs["model"], rng=np.random.default_rng(7))
    same(expect["matched_rewrite"], choice.rewrite or None, "matched_rewrite")
    same(expect["matched_target"], choice.target if choice.rewrite else None, "matched_target")
    same(expect["stored"], sorted(each.name for each in table.rewrites), "stored")


def split_select(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    rule = {"models": ["m"], "targets": inputs["targets"]}
    table = ModelTable(rewrites=[rewrite_of({"name": "r", "rules": [rule]})], split="random")
    rng = np.random.default_rng(7)
    seen = Counter(table.resolve("m", rng=rng).target for _ in range(inputs["runs"]))
    for model, share in expect["shares"].items():
        same(share, seen[model] / inputs["runs"], model, tolerance=0.2 * share)
    assert not any(seen[model] for model in expect["never"])


def split_apply(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    table = ModelTable(rewrites=[rewrite_of(each) for each in inputs["rewrites"]], split="random")
    choice = table.resolve(inputs["incoming_model"] or "", rng=np.random.default_rng(7))
    target = choice.target if choice.rewrite or not inputs["initial_target"] else inputs["initial_target"]
    assert target in expect["target_in"], Mismatch(expect["target_in"], target)


def configured_names(case: Case) -> None:
    table = ModelTable(rewrites=[rewrite_of({"name": "r", "rules": case["inputs"]["rules"]})])
    same(case["expect"]["names"], list(table.names()))


def candidates(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    pool = isched.InferencePool()
    for address in inputs["pool"]:
        pool.join(address, address=address)
    endpoints = pool.snapshot()
    if inputs["subset_present"] and not params["disable_subset_filter"]:
        endpoints = endpoints.where(within(endpoints, inputs["subset"]))
    same(sorted(expect["kept"]), sorted(endpoints.names), "kept")


def screeners(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    screens = tuple(Screens(kept) for kept in inputs["screener_outputs"])
    pool = isched.InferencePool()
    for name in inputs["candidates"]:
        pool.join(name)
    made = Director({"p": ServingPool(pool, isched.Scheduler(isched.default_profile()), screeners=screens)})
    decision = decided(made)
    same(expect["second_screener_saw"], list(screens[1].saw), "second_screener_saw")
    assert expect["kept"] == ([] if not decision.forwarded else [decision.endpoint])


def rollout_shares(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    required = params["required_roles"]
    if "steps" in inputs:
        parts = [shares(counts, required, params["mode"]).get("v1", 0.0) for counts in inputs["steps"]]
        for wanted, got in zip(expect["share_v1"], parts, strict=True):
            same(wanted, got, "share_v1")
        return
    got = shares(inputs["counts"], required, params["mode"])
    for name, share in expect["shares"].items():
        same(share, got.get(name, 0.0), name)
    assert not set(got) - set(expect["shares"])


def rollout_sum(case: Case) -> None:
    counts, required = case["inputs"]["counts"], case["params"]["required_roles"]
    same(case["expect"]["weight"], sum_weight(counts, required), "weight")
    same(case["expect"]["covered"], covered(counts, required), "covered")


def rollout_role(case: Case) -> None:
    same(case["expect"]["role"], dominant_role(case["inputs"]["counts"], case["params"]["required_roles"]))


def rollout_pick(case: Case) -> None:
    same(case["expect"]["revision"], pick(case["inputs"]["shares"], case["inputs"]["draw"]))


def rollout_screen(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    screener = RolloutScreener(params["mode"], tuple(params.get("required_roles", ("prefill", "decode"))))
    pool = isched.InferencePool()
    counts = inputs.get("counts")
    if counts is None:
        counts = {revision: {"decode": 1} for _, revision in inputs["candidates"]}
    for revision, roles in counts.items():
        for role, count in roles.items():
            for i in range(count):
                pool.join(f"{revision}-{role}-{i}", labels={screener.label: revision, screener.role_label: role})
    endpoints = pool.snapshot()
    request = isched.InferenceRequest(request_id="r", headers=inputs["headers"])
    keep = screener.screen(request, endpoints, cycle())
    revisions = {endpoints.labels(i)[screener.label] for i in np.flatnonzero(keep)}
    if "kept" in expect:
        same(sorted(expect["kept"]), sorted(name for name, revision in inputs["candidates"] if revision in revisions))
    if "kept_in" in expect:
        kept = sorted(name for name, revision in inputs["candidates"] if revision in revisions)
        assert kept in [sorted(each) for each in expect["kept_in"]]


# --- who asks ----------------------------------------------------------------------------------------------------


def identity(case: Case) -> None:
    additional = case["params"].get("additional_session_headers", ())
    same(case["expect"]["identity"], agent_session(case["inputs"]["headers"], additional))


def flow_of(case: Case) -> None:
    inputs = case["inputs"]
    said = {"x-llm-d-inference-fairness-id": inputs["fairness_header"], "session-id": inputs["agent_identity"]}
    same(case["expect"]["fairness_id"], fairness_id({name: value for name, value in said.items() if value}))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("error.http_mapping", PURE): http_mapping,
    ("error.string", PURE): error_string,
    ("error.canonical_code", PURE): canonical,
    ("headers.aliases", PURE): header_aliases,
    ("headers.lookup", PURE): header_lookup,
    ("metrics.bounded_label", PURE): bounded_label,
    ("metrics.bounded_label", SCENARIO): bounded_label,
    ("metrics.capacity_utilization", PURE): capacity_utilization,
    ("metrics.capacity_utilization", SCENARIO): capacity_utilization,
    ("traffic_split.match", PURE): split_match,
    ("traffic_split.select", PURE): split_select,
    ("traffic_split.apply", PURE): split_apply,
    ("traffic_split.configured_names", PURE): configured_names,
    ("candidates.subset", PURE): candidates,
    ("screeners", PURE): screeners,
    ("screeners", SCENARIO): screeners,
    ("rollout.shares", PURE): rollout_shares,
    ("rollout.sum_weight", PURE): rollout_sum,
    ("rollout.dominant_role", PURE): rollout_role,
    ("rollout.pick", PURE): rollout_pick,
    ("rollout.screen", PURE): rollout_screen,
    ("rollout.screen", SCENARIO): rollout_screen,
    ("agent_identity", PURE): identity,
    ("director.fairness_id", PURE): flow_of,
}
