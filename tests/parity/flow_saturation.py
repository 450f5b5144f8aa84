"""How full, and up to where: saturation detectors, stages, and the ceilings of bands."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

import inferencesched as isched
from inferencesched.config.catalogue import saturation
from inferencesched.config.decode import decode
from inferencesched.config.spec import PluginSpec
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    ConcurrencyDetector,
    Dispatch,
    FlowController,
    ObservedGate,
    PriorityHoldback,
    QueueItem,
    SaturationGate,
    SoftReflectiveCeiling,
    Stages,
    Stale,
    StaticLimit,
    UtilizationDetector,
)
from inferencesched.flowcontrol.stages import STAGE_LABEL
from inferencesched.producers.inflight import LoadEstimate
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.snapshots import cycle
from tests.parity.specs import NoPlugins, snake

SPECS = {spec.name: spec for spec in saturation.SPECS}
TYPES = {
    "saturation.utilization.config": "utilization-detector",
    "saturation.concurrency.config": "concurrency-detector",
    "usage_limit.static.config": "static-usage-limit-policy",
    "usage_limit.holdback.config": "priority-holdback-policy",
    "usage_limit.soft_reflective.config": "soft-reflective-ceiling-policy",
}
#: What stands for an endpoint without labels, and for none at all.
UNLABELLED = (None, "__nil_metadata__", "__no_label__", "__no_labels__", "__nil_labels__")
MISSING = ("__nil__", "__nil_endpoint__")


# --- what is configured ------------------------------------------------------------------------------------------


def config(case: Case) -> None:
    spec, said, expect = SPECS[TYPES[case["component"]]], case["inputs"].get("config"), case["expect"]
    name = case["inputs"].get("name", spec.name)
    try:
        if isinstance(said, str):
            said = msgspec.json.decode(said) if said.strip() else {}
        parameters = decode(spec.parameters, {} if said is None else said)
        built = spec.build(parameters, NoPlugins(name))
    except (InvalidInputError, msgspec.ValidationError, msgspec.DecodeError) as error:
        if expect["valid"]:
            raise Mismatch("parameters that are valid", str(error)) from error
        return
    if not expect["valid"]:
        raise Mismatch("a refusal", built)
    assert spec.read is not None
    got = {"type": spec.name, "name": name, "shape": "linear", **plain(spec, built)}
    for key, value in expect.items():
        if key not in ("valid", *got):
            raise unknown("setting", key)
        if key != "valid":
            same(value, got[key], key, tolerance=case["tolerance"])


def plain(spec: PluginSpec, built: Any) -> dict[str, Any]:
    """What was built, as settings under snake-case names, durations in seconds too."""
    assert spec.read is not None
    read = spec.read(built)
    found = {snake(field.name): getattr(read, field.name) for field in msgspec.structs.fields(type(read))}
    if isinstance(built, UtilizationDetector):
        found |= {"metrics_staleness_s": built.stale.after, "metrics_staleness_threshold_s": built.stale.after}
    if isinstance(built, StaticLimit):
        found["threshold"] = built.ceiling
    return found


# --- utilization -------------------------------------------------------------------------------------------------


def observed(case: Case) -> tuple[UtilizationDetector, isched.Endpoints]:
    """The case's detector, and its endpoints as they were observed before 0; without metrics they never were."""
    params, pool = case["params"], isched.InferencePool()
    for i, endpoint in enumerate(case["inputs"]["endpoints"]):
        pool.join(f"e{i}")
        if endpoint is None or endpoint.get("metrics", "") is None:
            continue
        said = {
            isched.WAITING_QUEUE_SIZE: endpoint.get("waiting_queue", 0),
            isched.KV_CACHE_USAGE: endpoint.get("kv_cache_usage", 0.0),
        }
        pool.observe(f"e{i}", said, now=0.0 - endpoint.get("metrics_age_s", 0.0))
    detector = UtilizationDetector(
        params.get("queue_depth_threshold", 5),
        params.get("kv_cache_util_threshold", 0.8),
        params.get("headroom", 0.0),
        Stale(params.get("metrics_staleness_s", 0.2), "saturated"),
    )
    return detector, pool.snapshot()


def saturated(expect: Mapping[str, Any], got: float, tolerance: float) -> None:
    for key, value in expect.items():
        if key == "saturation":
            same(float(value), got, tolerance=tolerance)
        elif not relation(key.removeprefix("saturation_"), got, value):
            raise Mismatch({key: value}, got)


def utilization(case: Case) -> None:
    detector, endpoints = observed(case)
    saturated(case["expect"], detector.saturation(endpoints, 0.0), case["tolerance"])
    gate = SaturationGate(detector)
    gate.observe(endpoints, 0.0)
    saturated(case["expect"], gate.level(0.0), case["tolerance"])


def stale_count(case: Case) -> None:
    detector, endpoints = observed(case)
    same(case["expect"]["stale_endpoints"], int(detector.stale_endpoints(endpoints, 0.0).sum()))


def kept(expect: Mapping[str, Any], names: Sequence[int]) -> None:
    for key, value in expect.items():
        if key == "kept":
            same(list(value), list(names), key)
        elif key == "kept_count":
            same(value, len(names), key)
        else:
            raise unknown("expectation", key)


def utilization_filter(case: Case) -> None:
    detector, endpoints = observed(case)
    keep = detector.filter(isched.InferenceRequest(request_id="vector"), endpoints, cycle())
    kept(case["expect"], np.flatnonzero(keep).tolist())


# --- concurrency -------------------------------------------------------------------------------------------------


def detector_of(params: Mapping[str, Any]) -> ConcurrencyDetector:
    return ConcurrencyDetector(
        params.get("mode", "requests"),
        params.get("max_concurrency", 100),
        params.get("max_token_concurrency", 1_000_000),
        params.get("headroom", 0.0),
    )


def in_flight(case: Case) -> tuple[isched.Endpoints, list[int]]:
    """The case's endpoints with what is in flight there, and their places; one that is nil is none."""
    said = case["inputs"]["endpoints"]
    there = [i for i, endpoint in enumerate(said) if endpoint is not None]
    pool = isched.InferencePool()
    for i in there:
        pool.join(f"e{i}")
    columns = {
        isched.INFLIGHT_REQUESTS: np.array([float(said[i].get("requests") or 0) for i in there]),
        isched.INFLIGHT_TOKENS: np.array([float(said[i].get("tokens") or 0) for i in there]),
    }
    return pool.snapshot().with_columns(columns), there


def concurrency(case: Case) -> None:
    detector, (endpoints, _) = detector_of(case["params"]), in_flight(case)
    saturated(case["expect"], detector.saturation(endpoints, 0.0), case["tolerance"])
    gate = SaturationGate(detector)
    gate.observe(endpoints, 0.0)
    saturated(case["expect"], gate.level(0.0), case["tolerance"])


def concurrency_filter(case: Case) -> None:
    detector, (endpoints, places) = detector_of(case["params"]), in_flight(case)
    keep = detector.filter(isched.InferenceRequest(request_id="vector"), endpoints, cycle())
    kept(case["expect"], [place for place, kept_ in zip(places, keep, strict=True) if kept_])


def estimate_of(params: Mapping[str, Any]) -> LoadEstimate:
    said = params.get("estimator") or {}
    most = said.get("max_estimated_output_tokens", said.get("operator_cap"))
    return LoadEstimate(True, said.get("output_ratio", 1.5), most)


def tokens(case: Case) -> None:
    estimate, pool = estimate_of(case["params"]), isched.InferencePool()
    for i, prompts in enumerate(case["inputs"]["endpoint_inflight_input_tokens"]):
        pool.join(f"e{i}")
        for n, count in enumerate(prompts):
            booked = estimate.tokens(count, input_tokens=count)
            pool.reserve(f"e{i}", request_id=f"{i}-{n}", tokens=booked, now=0.0)
    saturated(case["expect"], detector_of(case["params"]).saturation(pool.snapshot(), 0.0), case["tolerance"])


def lifecycle(case: Case) -> None:
    """One endpoint; requests start and complete there, first come, first done; when it is deleted, its books are."""
    detector, estimate, pool = detector_of(case["params"]), estimate_of(case["params"]), isched.InferencePool()
    pool.join("e")
    open_: list[isched.Reservation] = []
    reads = []
    for number, operation in enumerate(case["inputs"]["ops"]):
        word, _, count = operation.partition(":")
        if word == "read":
            reads.append(detector.saturation(pool.snapshot(), 0.0))
        elif word == "start":
            size = int(count or 0)
            booked = estimate.tokens(size, input_tokens=size)
            open_.append(pool.reserve("e", request_id=f"r{number}", tokens=booked, now=0.0))
        elif word in ("complete", "end", "finish"):
            open_.pop(0).complete(now=0.0)
        elif word == "delete_endpoint":
            pool.leave("e")
            pool.join("e")
            open_.clear()
        else:
            raise unknown("operation", operation)
    expect = case["expect"]["reads"]
    same(len(expect), len(reads), "reads")
    for i, (value, got) in enumerate(zip(expect, reads, strict=True)):
        same(float(value), got, f"read {i}", tolerance=case["tolerance"])


# --- stages ------------------------------------------------------------------------------------------------------


def pool_of_roles(roles: Sequence[str | None], label: str) -> isched.Endpoints:
    pool = isched.InferencePool()
    for i, role in enumerate(roles):
        if role not in MISSING:
            pool.join(f"e{i}", labels={} if role in UNLABELLED else {label: str(role)})
            pool.observe(f"e{i}", {}, now=0.0)
    return pool.snapshot()


def stage_partition(case: Case) -> None:
    label = case["params"].get("label", STAGE_LABEL)
    parts = Stages(label).parts(pool_of_roles(case["inputs"]["roles"], label))
    for part, value in case["expect"].items():
        if part not in parts._fields:
            raise unknown("part", part)
        same(value, int(getattr(parts, part).sum()), part)


class BySubset:
    """A detector that knows which servers it was asked about."""

    def __init__(self, said: Mapping[str, float], label: str) -> None:
        self.said = said
        self.label = label

    def saturation(self, endpoints: isched.Endpoints, now: float) -> float:
        parts = Stages(self.label).parts(endpoints)._asdict()
        for words, value in self.said.items():
            part, _, what = words.partition("_")
            if words == "otherwise":
                continue
            if words == "empty":
                hit = not len(endpoints)
            elif part in parts and what == "only":
                hit = bool(len(endpoints) and parts[part].all())
            elif part in parts and what in ("any", "included", "present"):
                hit = bool(parts[part].any())
            else:
                raise unknown("subset", words)
            if hit:
                return value
        return self.said["otherwise"]


def stage_gating(case: Case) -> None:
    label = case["params"].get("label", STAGE_LABEL)
    detector = BySubset(case["inputs"]["saturation_by_subset"], label)
    endpoints = pool_of_roles(case["inputs"]["roles"], label)
    same(
        case["expect"]["dispatched"], goes(FlowController(gate=ObservedGate(detector, stages=Stages(label))), endpoints)
    )


def goes(controller: FlowController, endpoints: isched.Endpoints, queued: int = 1) -> bool:
    """Does anything go of so many requests?"""
    controller.observe(endpoints, now=0.0)
    for i in range(queued):
        controller.submit(QueueItem(request_id=f"r{i}"), now=0.0)
    return any(isinstance(event, Dispatch) for event in controller.step(now=0.0))


# --- limits ------------------------------------------------------------------------------------------------------


def static(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    count = params.get("endpoints", 1)
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"e{i}")
    for i in range(inputs["in_flight"]):
        pool.reserve(f"e{i % count}", request_id=f"f{i}", tokens=0, now=0.0)
    controller = FlowController(
        gate=SaturationGate(ConcurrencyDetector(max_concurrency=params["max_concurrency"])),
        limits=StaticLimit(params["threshold"]),
    )
    same(case["expect"]["dispatched"], goes(controller, pool.snapshot(), inputs.get("queued", 1)))


def holdback(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    low, high, domain = params["min_ceiling"], params.get("max_ceiling", 1.0), params.get("domain", "rank")
    got = list(PriorityHoldback(low, high, domain).ceilings(inputs["saturation"], inputs["priorities"]))
    for key, value in case["expect"].items():
        if key == "equal_to_domain":
            other = PriorityHoldback(low, high, value).ceilings(inputs["saturation"], inputs["priorities"])
            equal_lists(list(other), got, key, case["tolerance"])
        else:
            ceilings_are(key, value, got, case["tolerance"])


def equal_lists(expected: Sequence[float], got: Sequence[float], where: str, tolerance: float) -> None:
    same(len(expected), len(got), where)
    for i, (one, other) in enumerate(zip(expected, got, strict=True)):
        same(float(one), float(other), f"{where}[{i}]", tolerance=tolerance)


PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}


def ceilings_are(key: str, value: Any, got: Sequence[float], tolerance: float) -> None:
    """Hold one list of ceilings against one expectation: all, one by its place, or an order."""
    pairs = list(pairwise(got))
    if key == "ceilings":
        equal_lists(value, got, key, tolerance)
        return
    if key in ("strictly_decreasing", "non_increasing"):
        holds = all(a > b for a, b in pairs) if key == "strictly_decreasing" else all(a >= b for a, b in pairs)
        same(value, holds, key)
        return
    by_place = re.fullmatch(r"(first|second|third|last|(?:index|band)_?(\d+))(?:_ceiling)?(?:_(lt|gt|le|ge|in))?", key)
    if by_place is not None:
        word, number, how = by_place.groups()
        at = got[int(number) if number is not None else PLACES[word]]
        if how is None:
            same(float(value), float(at), key, tolerance=tolerance)
        elif not relation(how, at, value):
            raise Mismatch({key: value}, list(got))
        return
    listed = re.fullmatch(r"index_(lt|gt|le|ge|in)", key)
    if listed is None:
        raise unknown("expectation", key)
    entries = list(value.items()) if isinstance(value, Mapping) else value
    for index, bound in entries if entries and isinstance(entries[0], Sequence) else [entries]:
        if not relation(listed[1], got[int(index)], bound):
            raise Mismatch({key: value}, list(got))


def relation(how: str, got: float, bound: Any) -> bool:
    if how == "in":
        low, high = bound
        return bool(low <= got <= high)
    relations = {"lt": got.__lt__, "gt": got.__gt__, "le": got.__le__, "ge": got.__ge__}
    if how not in relations:
        raise unknown("relation", how)
    return bool(relations[how](bound))


def soft_reflective(case: Case) -> None:
    policy, results = SoftReflectiveCeiling(), []
    for call in case["inputs"]["calls"]:
        times = range(call.get("repeat", call.get("times", 1)))
        results.extend(list(policy.ceilings(call["saturation"], call["priorities"])) for _ in times)
    expect, tolerance = case["expect"], case["tolerance"]
    counted = results[expect.get("after", 0) :]
    for key, value in expect.items():
        opens = re.fullmatch(r"band(\d+)_opens(?:_(lt|gt|le|ge|in))?", key)
        equal = re.fullmatch(r"band(\d+)_opens_equals_band(\d+)_opens", key)
        each = re.fullmatch(r"(.+)_each(?:_call)?", key)
        if key == "after":
            continue
        if key == "ceilings":
            same(len(value), len(results), key)
            for i, (one, other) in enumerate(zip(value, results, strict=True)):
                equal_lists(one, other, f"call {i}", tolerance)
        elif equal is not None:
            same(value, opened(counted, int(equal[1])) == opened(counted, int(equal[2])), key)
        elif opens is not None:
            count = opened(counted, int(opens[1]))
            if opens[2] is None:
                same(value, count, key)
            elif not relation(opens[2], float(count), value):
                raise Mismatch({key: value}, count)
        elif each is not None and isinstance(value, list):
            same(len(value), len(results), key)
            for one, result in zip(value, results, strict=True):
                ceilings_are(each[1], one, result, tolerance)
        elif each is not None:
            for result in results:
                ceilings_are(each[1], value, result, tolerance)
        else:
            raise unknown("expectation", key)


def opened(results: Sequence[Sequence[float]], band: int) -> int:
    return sum(result[band] > 0 for result in results)


PURE, CONFIG, SCENARIO = "flow control: pure", "flow control: config", "flow control: scenario"
RUNNERS: dict[tuple[str, str], Runner] = {
    **dict.fromkeys(((component, CONFIG) for component in TYPES), config),
    ("saturation.utilization", PURE): utilization,
    ("saturation.utilization.filter", PURE): utilization_filter,
    ("saturation.utilization.stale_count", PURE): stale_count,
    ("saturation.concurrency", PURE): concurrency,
    ("saturation.concurrency.filter", PURE): concurrency_filter,
    ("saturation.concurrency.tokens", PURE): tokens,
    ("saturation.concurrency.lifecycle", SCENARIO): lifecycle,
    ("saturation.stage_partition", PURE): stage_partition,
    ("saturation.stage_gating", SCENARIO): stage_gating,
    ("usage_limit.static", SCENARIO): static,
    ("usage_limit.holdback", PURE): holdback,
    ("usage_limit.soft_reflective", PURE): soft_reflective,
}
