"""The everyday plug-ins: scorers, filters, pickers."""

from collections.abc import Callable
from typing import Any

import numpy as np

import inferencesched as isched
from tests.parity.cases import Case, Mismatch, NotYet, Runner, same
from tests.parity.snapshots import cycle, plain, snapshot
from tests.parity.words import refusal

SCORERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "queue-scorer": lambda p: isched.QueueScorer(),
    "running-requests-size-scorer": lambda p: isched.RunningRequestsScorer(),
    "kv-cache-utilization-scorer": lambda p: isched.KvCacheUtilizationScorer(),
    "lora-affinity-scorer": lambda p: isched.LoraAffinityScorer(),
    "prefix-cache-scorer": lambda p: isched.PrefixCacheScorer(
        p.get("matchLengthWeight", 0.0), p.get("matchLengthScaleTokens", 8192)
    ),
    "token-load-scorer": lambda p: isched.TokenLoadScorer(
        p["queueThresholdTokens"] if p.get("queueThresholdTokens", 0) > 0 else 4194304
    ),
    "active-request-scorer": lambda p: isched.ActiveRequestScorer(
        p.get("idleThreshold", 0), p.get("maxBusyScore", 1.0)
    ),
}
METRICS = {
    "active-requests": isched.INFLIGHT_REQUESTS,
    "running-requests": isched.RUNNING_REQUESTS,
    "waiting-queue": isched.WAITING_QUEUE_SIZE,
    "kv-cache-utilization": isched.KV_CACHE_USAGE,
}
FILTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "utilization-filter": lambda p: isched.UtilizationFilter(
        tuple((METRICS[c["metric"]], c["maxValue"]) for c in p.get("conditions", [])), p.get("fallbackOnEmpty", False)
    )
}
PICKERS: dict[str, Callable[[int], Any]] = {
    "max-score-picker": isched.MaxScorePicker,
    "random-picker": isched.RandomPicker,
    "weighted-random-picker": isched.WeightedRandomPicker,
}


class Stub:
    """A plug-in that answers what the case says and counts its calls."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.calls = 0
        self.sizes: list[int] = []

    def __repr__(self) -> str:
        return str(self.spec.get("name", self.spec))

    def filter(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        self.calls += 1
        self.sizes.append(len(endpoints))
        keeps = self.spec["keeps"]
        return np.array([keeps == "all" or name in keeps for name in endpoints.names], dtype=bool)

    def score(self, request: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        self.calls += 1
        if "scores" in self.spec:
            return np.array([float(self.spec["scores"][name]) for name in endpoints.names])
        return np.full(len(endpoints), float(self.spec["constant_score"]))

    def pick(self, totals: Any, endpoints: isched.Endpoints, cycle: Any) -> Any:
        self.calls += 1
        self.sizes.append(len(totals))
        return np.array([endpoints.names.index(self.spec["picks"])])


def plugin(spec: dict[str, Any]) -> Any:
    """The plug-in that a case names, or a stub that answers what it says."""
    if "stub" in spec:
        return Stub(spec)
    params, kind = spec.get("params") or {}, spec["type"]
    if kind in PICKERS:
        return PICKERS[kind](max(1, params.get("maxNumOfEndpoints", 1)))
    build = SCORERS.get(kind) or FILTERS.get(kind)
    if build is None:
        raise NotYet(kind)
    return build(params)


# --- one plug-in -------------------------------------------------------------------------------------------------


def scorer(case: Case) -> None:
    expect = case["expect"]
    request, endpoints = snapshot(case)
    scores = SCORERS[case["component"]](case["params"]).score(request, endpoints, cycle())
    by_name = dict(zip(endpoints.names, scores.tolist(), strict=True))
    for name, expected in expect.get("scores", {}).items():
        same(expected, by_name[plain(name)], name, tolerance=case["tolerance"])
    if "num_scores" in expect:
        same(expect["num_scores"], len(scores), "scores")
    for one, sign, other in expect.get("relations", ()):
        left, right = (by_name[plain(each)] if isinstance(each, str) else each for each in (one, other))
        holds = {">": left > right, "<": left < right, ">=": left >= right, "<=": left <= right, "==": left == right}
        if not holds[sign]:
            raise Mismatch(f"{one} {sign} {other}", (left, right))
    if "highest" in expect:
        same(plain(expect["highest"]), max(by_name, key=lambda name: by_name[name]), "highest")


def filter_(case: Case) -> None:
    expect = case["expect"]
    request, endpoints = snapshot(case)
    keep = FILTERS[case["component"]](case["params"]).filter(request, endpoints, cycle())
    kept = [name for name, kept in zip(endpoints.names, keep, strict=True) if kept]
    if "kept" in expect:
        # candidates keep their order here, whatever the order asked for
        ours = [name for name in endpoints.names if name in set(map(plain, expect["kept"]))]
        same(ours if expect.get("order", "any") == "any" else list(map(plain, expect["kept"])), kept)
        same(len(expect["kept"]), len(kept), "kept")
    if "num_kept" in expect:
        same(expect["num_kept"], len(kept), "kept")
    if "first" in expect:
        same(plain(expect["first"]), kept[0] if kept else None, "first")
    if "min_kept" in expect and len(kept) < expect["min_kept"]:
        raise Mismatch(f"at least {expect['min_kept']}", kept)


def picker(case: Case) -> None:
    pick = PICKERS[case["component"]](max(1, case["params"].get("maxNumOfEndpoints", 1)))
    scored, expect = case.get("scores") or {}, case["expect"]
    pool = isched.InferencePool()
    for name in scored:
        pool.join(name)
    endpoints, totals = pool.snapshot(), np.array([float(v) for v in scored.values()])
    rounds = expect.get("iterations", 1)
    state = cycle()
    firsts, chosen = dict.fromkeys(scored, 0), dict.fromkeys(scored, 0)
    for _ in range(rounds):
        picks = [endpoints.name(int(i)) for i in pick.pick(totals, endpoints, state)]
        firsts[picks[0]] += 1
        for name in picks:
            chosen[name] += 1
        if "num_targets" in expect:
            same(expect["num_targets"], len(picks), "targets")
        at = 0
        for group in expect.get("target_groups", []):
            if not set(picks[at : at + len(group)]) <= set(group):
                raise Mismatch(expect["target_groups"], picks)
            at += len(group)
    for counts, wanted in ((firsts, "first_target_probability"), (chosen, "selection_probability")):
        for name, probability in expect.get(wanted, {}).items():
            same(float(probability), counts[name] / rounds, f"{wanted} of {name}", tolerance=case["tolerance"])


def parameters(case: Case) -> None:
    if "params_raw" in case:
        raise NotYet("the text of a configuration is read by the configuration loader")
    build, expect = SCORERS.get(case["component"]) or FILTERS[case["component"]], case["expect"]
    if not expect["valid"]:
        refusal(expect.get("error_contains"), lambda: named(build, case["params"]))
        return
    built = build(case["params"])
    ours = {"matchLengthWeight": "match_length_weight", "matchLengthScaleTokens": "match_length_scale_tokens"}
    for name, value in expect.get("effective", {}).items():
        same(value, getattr(built, ours[name]), name)


def named(build: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> Any:
    """Build the plug-in; a name that the tables above do not have is refused, as a configuration loader would."""
    try:
        return build(params)
    except KeyError as error:
        raise isched.InvalidInputError(str(error.args[0]), params, "a name and a value that are known") from error


# --- what a scheduler says of them ---------------------------------------------------------------------------


def refused(call: Callable[[], object]) -> isched.RequestRefusedError:
    """Return the refusal; raise `Mismatch` where there is none."""
    try:
        got = call()
    except isched.RequestRefusedError as refusal:
        return refusal
    raise Mismatch("a refusal", got)


def score_range(case: Case) -> None:
    """A score in [0, 1] counts as it is. One outside is an error: see the differences."""
    value = case["params"]["input"]
    stub = isched.WeightedScorer(Stub({"constant_score": value}))
    pool = isched.InferencePool()
    pool.join("a")
    scheduler = isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), (stub,)))
    request = isched.InferenceRequest(request_id="r")
    result = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    same(case["expect"]["value"], result.target.score)


RUNNERS: dict[tuple[str, str], Runner] = {
    **dict.fromkeys(((name, "scorer") for name in SCORERS), scorer),
    **dict.fromkeys(((name, "filter") for name in FILTERS), filter_),
    **dict.fromkeys(((name, "picker") for name in PICKERS), picker),
    **dict.fromkeys(((name, "param-validation") for name in ("prefix-cache-scorer", "utilization-filter")), parameters),
}
