"""Who may go, and what the director answers."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

import inferencesched as isched
from inferencesched import errors, signals
from inferencesched.admitters import ConditionalDecode, LatencySloAdmitter, ProbabilisticAdmitter, has_cached_prefix
from inferencesched.director import Decision, Director, Waiting
from inferencesched.errors import (
    AdmissionDeniedError,
    PreconditionFailedError,
    status_of,
)
from inferencesched.filters.latency import SloHeadroomTierFilter
from inferencesched.flowcontrol import (
    Capacity,
    Cause,
    FlowController,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    infer_outcome,
)
from inferencesched.framework import ProfileResult, SchedulingResult, Target
from inferencesched.producers.inflight import estimated_output_tokens
from inferencesched.producers.latency import LatencyPrediction, Objectives, headrooms
from tests.parity.cases import Case, Runner, same, unknown
from tests.parity.load import Chance
from tests.parity.snapshots import columns_of, cycle, pool_of
from tests.parity.specs import build_from, param_validation
from tests.parity.way_parts import BODY, CONFIG, PURE, SCENARIO, SPECS, Gate, Screens, decided, serving

# --- who may go --------------------------------------------------------------------------------------------------


def legacy(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    controller = FlowController(gate=Gate(inputs["saturation"]), mode="legacy")
    answer = controller.submit(QueueItem(request_id="r", priority=inputs["priority"]), 1.0)
    admitted = isinstance(answer, isched.flowcontrol.Ticket)
    same(expect["admitted"], admitted, "admitted")
    if not admitted:
        error = answer.error()
        same(expect["code"], error.code, "code")
        assert expect["message_contains"] in str(error)


CAUSES = {
    "ttl_expired": Cause.TTL,
    "context_cancelled": Cause.CANCELLED,
    "not_running": Cause.SHUTDOWN,
    "no_endpoints": Cause.NO_ENDPOINTS,
}
PLAIN = {
    "Dispatched": QueueOutcome.DISPATCHED,
    "RejectedCapacity": QueueOutcome.REJECTED_CAPACITY,
    "RejectedNoEndpoints": QueueOutcome.REJECTED_NO_ENDPOINTS,
    "EvictedNoEndpoints": QueueOutcome.EVICTED_NO_ENDPOINTS,
    "EvictedContextCancelled": QueueOutcome.EVICTED_CANCELLED,
}


def ours(outcome: str, error: str | None, *, empty: bool) -> QueueOutcome:
    """Return what llm-d's outcome and the causes in its error are here."""
    causes = [CAUSES[word] for word in (error or "").partition(":")[0].split("+") if word in CAUSES]
    if outcome in PLAIN:
        return PLAIN[outcome]
    if outcome == "EvictedTTL":
        return infer_outcome(causes or Cause.TTL, queued=True, empty=empty)
    if outcome in ("RejectedOther", "EvictedOther"):
        return infer_outcome(causes or Cause.OTHER, queued=outcome == "EvictedOther", empty=empty)
    raise unknown("outcome", outcome)


def seen(expect: Mapping[str, Any], outcome: QueueOutcome) -> None:
    same(expect["code"], outcome.code or None, "code")
    same(expect["dropped_reason"], outcome.reason or None, "dropped_reason")


def flow_admission(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    outcome = ours(inputs["outcome"], inputs["error"], empty=not inputs["endpoints"] and "TTL" in inputs["outcome"])
    same(expect["admitted"], not outcome.refused, "admitted")
    seen(expect, outcome)
    if expect["message_contains"]:
        detail = (inputs["error"] or "").partition("other:")[2]
        assert expect["message_contains"] in f"{outcome.words}: {detail}", (expect["message_contains"], outcome.words)


def mapping(case: Case) -> None:
    inputs = case["inputs"]
    seen(case["expect"], ours(inputs["outcome"], inputs["error"], empty=inputs["pool_empty_at_ttl"]))


def adapter(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    item = QueueItem(
        request_id=inputs["request_id"],
        flow=inputs["fairness_id"],
        priority=inputs["priority"],
        size_bytes=inputs["byte_size"],
    )
    ticket = FlowController().submit(item, 1.0)
    assert isinstance(ticket, isched.flowcontrol.Ticket)
    same(expect["flow_key"], ticket.flow.key._asdict(), "flow_key")
    same(expect["id"], item.request_id, "id")
    same(expect["byte_size"], item.size_bytes, "byte_size")
    same(expect["initial_effective_ttl_s"], item.ttl or 0, "initial_effective_ttl_s")


def end_to_end(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    ttl = params.get("request_ttl_s")
    controller = FlowController(
        gate=Gate(inputs["saturation"]),
        default=PriorityBand(0, capacity=Capacity(params.get("band_max_requests", 100))),
        budget=QueueBudget(ttl=ttl if ttl is not None else 60.0, no_endpoint_ttl=ttl if ttl is not None else 60.0),
    )
    made = Director({"p": serving(inputs["endpoints"], controller=controller)})
    made.observe("p", 0.0)
    rng = np.random.default_rng(7)
    answer: Decision | Waiting | None = None
    for _ in range(inputs.get("fill_queue", 0) + 1):
        answer = made.decide(BODY, {}, now=1.0, rng=rng, path="/v1/completions")
    if isinstance(answer, Waiting):
        if inputs.get("cancel_while_queued"):
            decision = made.cancel(answer.ticket, 1.5)
        else:
            [decision] = made.step(100.0, rng)
    else:
        decision = answer
    assert decision is not None
    if "admitted" in expect:
        same(expect["admitted"], decision.forwarded, "admitted")
        return
    assert decision.error is not None
    same(expect["code"], decision.error.code, "code")
    same(expect["dropped_reason"], decision.headers.get("x-llm-d-request-dropped-reason"), "dropped_reason")


def endpoints_of(said: list[Any]) -> isched.Endpoints:
    """The endpoints of an admitter's case: no metrics is a server that never said anything."""
    pool = isched.InferencePool()
    ttft, tpot = np.full(len(said), np.nan), np.full(len(said), np.nan)
    for i, each in enumerate(said):
        pool.join(f"ep-{i}")
        if each is None:
            continue
        pool.observe(
            f"ep-{i}",
            {
                isched.WAITING_QUEUE_SIZE: each.get("waiting_queue", 0),
                isched.RUNNING_REQUESTS: each.get("running", 0),
                isched.KV_CACHE_USAGE: each.get("kv_cache_usage", 0.0),
            },
            now=0.0,
        )
        prediction = each.get("prediction")
        if prediction:
            ttft[i], tpot[i] = prediction["ttft_headroom_ms"] / 1e3, prediction["tpot_headroom_ms"] / 1e3
            assert (ttft[i] > 0) == prediction["ttft_valid"]
    columns = {signals.TTFT_HEADROOM: ttft, signals.TPOT_HEADROOM: tpot}
    return pool.snapshot().with_columns(columns if not np.isnan(ttft).all() else {})


def probabilistic(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    admitter = ProbabilisticAdmitter(
        params["queue_depth_threshold"], params["kv_cache_util_threshold"], params["power"], params["k"]
    )
    if inputs["priority"] is None:
        return same(case["expect"]["admitted"], True)
    request = isched.InferenceRequest(request_id="r", priority=inputs["priority"])
    state = cycle()._replace(rng=Chance(inputs["rand"]))  # type: ignore[arg-type]
    denial = admitter.admit(request, endpoints_of(inputs["endpoints"]), state)
    return same(case["expect"]["admitted"], denial is None)


def latency_slo(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    if inputs["priority"] is None:  # no request at all: there is none to deny here
        return same(case["expect"]["admitted"], True)
    request = isched.InferenceRequest(request_id="r", priority=inputs["priority"], headers=inputs["headers"] or {})
    admitter = LatencySloAdmitter(params["cold_kv_threshold"])
    denial = admitter.admit(request, endpoints_of(inputs["endpoints"]), cycle())
    return same(case["expect"]["admitted"], denial is None)


def admitter_config(case: Case) -> None:
    said = {**case, "params": case["inputs"]["config"]}
    param_validation(SPECS["probabilistic-admitter"], said)


def scheduling_admitter(case: Case) -> None:
    params = {name: value for name, value in case["params"].items() if not name.startswith("_")}
    admitter = build_from(SPECS[case["component"]], {**case, "params": params})
    endpoints = case["endpoints"]
    request = isched.InferenceRequest(
        request_id="r", priority=case["request"].get("priority", 0), headers=case["request"].get("headers") or {}
    )
    snapshot = pool_of(endpoints).snapshot() if endpoints else isched.InferencePool().snapshot()
    columns, _ = columns_of(endpoints)
    wanted = (signals.TTFT_HEADROOM, signals.TPOT_HEADROOM)
    snapshot = snapshot.with_columns({signal: columns[signal] for signal in wanted})
    state = cycle()
    if case["params"].get("_rand") is not None:
        state = state._replace(rng=Chance(case["params"]["_rand"]))  # type: ignore[arg-type]
    denial = admitter.admit(request, snapshot, state)
    same(case["expect"]["admit"], denial is None, "admit")
    if "error_code" in case["expect"]:
        assert denial is not None
        same(case["expect"]["error_code"], errors.CODES[denial.status], "error_code")


def scheduling_admitter_params(case: Case) -> None:
    param_validation(SPECS[case["component"]], case)


def validate(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    least = inputs["pod_min_tpot_slo_ms"]
    room = headrooms(
        LatencyPrediction(np.array([inputs["predicted_ttft_ms"] / 1e3]), np.array([inputs["predicted_tpot_ms"] / 1e3])),
        Objectives(inputs["ttft_slo_ms"] / 1e3, inputs["tpot_slo_ms"] / 1e3),
        streaming=params["streaming"],
        least_tpot=least / 1e3 if least else np.nan,
    )
    ttft_ok = bool(room.ttft[0] > 0)
    tpot_ok = bool(room.tpot[0] > 0) or not params["streaming"]
    same(expect["ttft_ok"], ttft_ok, "ttft_ok")
    same(expect["tpot_ok"], tpot_ok, "tpot_ok")
    same(expect["valid"], ttft_ok and tpot_ok, "valid")
    if "headroom" in expect:
        same(expect["headroom"], float(room.tpot[0]) * 1e3, "headroom", tolerance=1e-9)


def headroom_tier(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    pool = isched.InferencePool()
    for each in inputs["endpoints"]:
        pool.join(each["name"])
    columns = {
        signal: np.array([each[name] / 1e3 if each["has_prediction"] else np.nan for each in inputs["endpoints"]])
        for signal, name in ((signals.TTFT_HEADROOM, "ttft_headroom"), (signals.TPOT_HEADROOM, "tpot_headroom"))
    }
    endpoints = pool.snapshot().with_columns(columns)
    keep = SloHeadroomTierFilter(case["params"]["epsilon_explore_neg"]).filter(
        isched.InferenceRequest(request_id="r"), endpoints, cycle()
    )
    kept = [name for name, kept in zip(endpoints.names, keep, strict=True) if kept]
    if "kept_count" in expect:
        same(expect["kept_count"], len(kept))
    if "kept" in expect:
        same(sorted(expect["kept"]), sorted(kept))


def estimated_output(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    got = estimated_output_tokens(
        inputs["input_tokens"],
        params["output_ratio"],
        client_cap=inputs["client_cap"],
        operator_cap=params["operator_cap"],
    )
    same(case["expect"]["tokens"], got)


def estimated_total(case: Case) -> None:
    tokens = case["inputs"]["input_tokens"] or 0
    same(case["expect"]["tokens"], tokens + estimated_output_tokens(tokens, case["params"]["output_ratio"]))


# --- the director ------------------------------------------------------------------------------------------------


class Fails:
    """A plug-in that raises what the case says."""

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, 0

    def _fail(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        if self.word in ("untyped", "") or " " in self.word:
            raise RuntimeError(self.word)
        if self.word == "PreconditionFailed":
            raise PreconditionFailedError("no")
        raise AdmissionDeniedError("it", self.word, status=status_of(self.word) if self.word != "typed" else 429)

    before_request = admit = _fail


class Fine:
    def __init__(self) -> None:
        self.asked = 0

    def before_request(self, request: Any, result: Any) -> None:
        self.asked += 1


def director_errors(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    body, pool = BODY, serving()
    if "body" in inputs:
        said = {name: "m" if value == "<configured>" else value for name, value in inputs["body"].items()}
        chat = "messages" in said
        answer = Director({"p": pool}).decide(
            json.dumps(said).encode(),
            {},
            now=1.0,
            rng=np.random.default_rng(7),
            path="/v1/chat/completions" if chat else "/v1/completions",
        )
        assert isinstance(answer, Decision)
        assert answer.error is not None
        return same(expect["code"], answer.error.code, "code")
    stage = inputs["stage"]
    if stage == "screener":
        pool = serving(screeners=(Screens([]),))
    elif stage == "locate":
        pool = serving(0)
    elif stage in ("pre_request", "admitter", "admit"):
        plugins = tuple(map(Fails, inputs.get("errors", [inputs.get("error", "untyped")])))
        pool = serving(**{"pre_request" if stage == "pre_request" else "admitters": plugins})
    elif stage == "scheduler":
        broken = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(Broken()),))  # type: ignore[arg-type]
        pool = serving(scheduler=isched.Scheduler(broken))
    else:
        raise unknown("stage", stage)
    decision = decided(Director({"p": pool}), body)
    assert decision.error is not None
    same(expect["code"], decision.error.code, "code")
    if "dropped_reason" in expect:
        reason = decision.headers.get("x-llm-d-request-dropped-reason")
        same(expect["dropped_reason"], reason, "dropped_reason")
    return None


class Broken:
    def score(self, *_: Any) -> Any:
        raise RuntimeError("boom")


def pre_request(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    plugins = {each["name"]: Fails(each["error"]) if "error" in each else Fine() for each in inputs["plugins"]}
    decision = decided(Director({"p": serving(pre_request=tuple(plugins.values()))}))
    same(expect["invoked"], [name for name, plugin in plugins.items() if plugin.asked], "invoked")
    same(bool(expect["errors"]), not decision.forwarded, "errors")


def result_of(matched: int | None, total: int) -> SchedulingResult:
    request = isched.InferenceRequest(request_id="r", input_tokens=max(1, total))
    target = Target("ep", 0, 0, 1.0, max(1, total) - (matched or 0))
    return SchedulingResult(request, "decode", {"decode": ProfileResult((target,))})


def conditional(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    result = result_of(inputs["matched_blocks"], inputs["total_blocks"])
    request = isched.InferenceRequest(request_id="r", headers={"prefer": inputs["prefer"]})
    denial = ConditionalDecode().before_request(request, result)
    same(expect["code"], None if denial is None else errors.CODES[denial.status], "code")


def cached_prefix(case: Case) -> None:
    said = case["params"]["result"]
    profiles: dict[str, ProfileResult | None] = {}
    prompt = 1
    for name, profile in said["profiles"].items():
        if profile is None:
            profiles[name] = None
            continue
        targets = []
        for each in profile["targets"]:
            match = (each.get("attributes") or {}).get("prefix_cache_match")
            known = match if isinstance(match, dict) else {}
            size = known.get("block_size_tokens", 1)
            prompt = max(1, known.get("total_blocks", 0) * size)
            targets.append(Target(each["name"], 0, 0, 1.0, prompt - known.get("match_blocks", 0) * size))
        profiles[name] = ProfileResult(tuple(targets))
    request = isched.InferenceRequest(request_id="r", input_tokens=prompt)
    same(case["expect"]["value"], has_cached_prefix(SchedulingResult(request, said["primary"], profiles)))


RUNNERS: dict[tuple[str, str], Runner] = {
    ("admission.legacy", PURE): legacy,
    ("admission.flow_control", PURE): flow_admission,
    ("admission.outcome_mapping", PURE): mapping,
    ("admission.request_adapter", PURE): adapter,
    ("admission.end_to_end", SCENARIO): end_to_end,
    ("admitter.probabilistic", PURE): probabilistic,
    ("admitter.probabilistic.config", CONFIG): admitter_config,
    ("admitter.latency_slo", PURE): latency_slo,
    ("latency_prediction.validate", PURE): validate,
    ("filter.slo_headroom_tier", PURE): headroom_tier,
    ("token_estimator.output", PURE): estimated_output,
    ("token_estimator.total", PURE): estimated_total,
    ("director.errors", SCENARIO): director_errors,
    ("director.pre_request", SCENARIO): pre_request,
    ("director.conditional_decode", SCENARIO): conditional,
    ("probabilistic-admitter", "admitter"): scheduling_admitter,
    ("probabilistic-admitter", "param-validation"): scheduling_admitter_params,
    ("latency-slo-admitter", "admitter"): scheduling_admitter,
    ("latency-slo-admitter", "param-validation"): scheduling_admitter_params,
    ("conditional-decode-gate", "function"): cached_prefix,
}
