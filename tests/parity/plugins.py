"""The everyday plug-ins: scorers, filters, pickers, the profile they make up, and the scheduler round it."""

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


# --- a profile, a handler, a scheduler ---------------------------------------------------------------------------


def profile(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    filters = [Stub(spec) for spec in params["filters"]]
    scorers = [Stub(spec) for spec in params["scorers"]]
    pick = Stub(params["picker"])
    weighted = tuple(isched.WeightedScorer(s, float(s.spec.get("weight", 1.0))) for s in scorers)
    scheduler = isched.Scheduler(isched.SchedulingProfile(pick, weighted, tuple(filters)))
    request, endpoints = snapshot(case)
    if expect.get("error"):
        refused(lambda: scheduler.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0)))
        return
    result = scheduler.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0))
    if "targets" in expect:
        picked = result.profiles["default"]
        same(expect["targets"], [target.endpoint for target in picked.targets] if picked else None, "targets")
    for name, score in expect.get("target_scores", {}).items():
        same(name, result.endpoint, "target")
        same(score, result.target.score, name, tolerance=case["tolerance"])
    for name, size in expect.get("filter_input_sizes", {}).items():
        [stub] = [each for each in filters if each.spec["name"] == name]
        same([size], stub.sizes, name)
    counts = expect.get("call_counts", {})
    for kind, stubs in (("filter", filters), ("scorer", scorers), ("picker", [pick])):
        if kind in counts:
            same({counts[kind]}, {stub.calls for stub in stubs}, kind)
    if "num_scored" in expect:
        same([expect["num_scored"]], pick.sizes, "candidates that were scored")
    if "scorer_aggregates" in expect:
        why = isched.explain(scheduler, request, endpoints, now=0.0, rng=np.random.default_rng(0))
        for name, wanted in expect["scorer_aggregates"].items():
            row = [str(each) for each in scorers].index(name)
            scores = why.scores[row]
            got = {
                "max": scores.max(),
                "avg": scores.mean(),
                "endpoints_scored": len(scores),
                "weight": why.weights[row],
            }
            for what, value in wanted.items():
                same(float(value), float(got[what]), f"{name}: {what}", tolerance=case["tolerance"])


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


def handler(case: Case) -> None:
    it, expect = isched.SingleProfileHandler(), case["expect"]
    request = isched.InferenceRequest(request_id="vector")
    target = isched.Target("a", 0, 1, 1.0, 0)
    results = {
        name: None if result is None else isched.ProfileResult((target,)) for name, result in case["results"].items()
    }
    if case["kind"] == "profile-handler-pick":
        profiles = {name: isched.default_profile() for name in case["profiles"]}
        same(sorted(expect["profiles"]), sorted(it.pick(request, profiles, results, cycle())))
        return
    try:
        primary = it.process_results(request, results, cycle()).primary
    except isched.InferenceSchedError as error:
        if not expect.get("error"):
            raise Mismatch(expect, str(error)) from error
        return
    if expect.get("error"):
        raise Mismatch("an error", primary)
    same(expect["primary"], primary)


def scheduler(case: Case) -> None:
    """The reference's whole runs, as far as the plug-ins go that are here."""
    params, expect = case["params"], case["expect"]
    if params["profile_handler"]["type"] != "single-profile-handler":
        raise NotYet(params["profile_handler"]["type"])
    profiles = {
        name: isched.SchedulingProfile(
            plugin(spec["picker"]),
            tuple(isched.WeightedScorer(plugin(s), float(s["weight"])) for s in spec["scorers"]),
            tuple(plugin(f) for f in spec["filters"]),
        )
        for name, spec in params["profiles"].items()
    }
    it = isched.Scheduler(profiles)
    request, endpoints = snapshot(case)
    if expect.get("error"):
        refusal = refused(lambda: it.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0)))
        if expect.get("error_code") == "ResourceExhausted":
            same(429, refusal.status, "status")
        _ = expect.get("error_headers")  # headers are the gateway's: an error has an outcome for a label, and a status
        return
    result = it.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0))
    same(expect["primary"], result.primary, "primary")
    if expect.get("exact_profiles"):
        same(set(expect["profiles"]), set(result.profiles), "profiles")
    for name, expected in expect["profiles"].items():
        picked = result.profiles[name]
        targets = picked.targets if picked else ()
        same(expected["targets"], [target.endpoint for target in targets], name)
        for target in targets:
            if "target_scores" in expected:
                score = expected["target_scores"][target.endpoint]
                same(score, target.score, target.endpoint, tolerance=case["tolerance"])


RUNNERS: dict[tuple[str, str], Runner] = {
    **dict.fromkeys(((name, "scorer") for name in SCORERS), scorer),
    **dict.fromkeys(((name, "filter") for name in FILTERS), filter_),
    **dict.fromkeys(((name, "picker") for name in PICKERS), picker),
    **dict.fromkeys(((name, "param-validation") for name in ("prefix-cache-scorer", "utilization-filter")), parameters),
    ("scheduler-profile", "profile"): profile,
    ("scheduler-profile", "function"): score_range,
    ("single-profile-handler", "profile-handler-pick"): handler,
    ("single-profile-handler", "profile-handler-process"): handler,
    ("scheduler", "scheduler"): scheduler,
}
