"""The reference's own expectations of the everyday plug-ins (llm-d router's unit tests, as data)."""

import json

import numpy as np
import pytest

import inferencesched as isched
from tests.shared import SHARED

VECTORS = SHARED / "vectors" / "scheduling.json"

SCORERS = {
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
FILTERS = {
    "utilization-filter": lambda p: isched.UtilizationFilter(
        tuple((METRICS[c["metric"]], c["maxValue"]) for c in p.get("conditions", [])), p.get("fallbackOnEmpty", False)
    )
}
PICKERS = {
    "max-score-picker": isched.MaxScorePicker,
    "random-picker": isched.RandomPicker,
    "weighted-random-picker": isched.WeightedRandomPicker,
}

#: Where we differ on purpose: the case, and why.
DIFFERENCES = {
    "scheduler-profile/clamp/score above 1 clamped to 1": "a score above 1 is an error here, not clamped",
    "scheduler-profile/clamp/score below 0 clamped to 0": "a score below 0 is an error here, not clamped",
    "scheduler-profile/clamp/score well below 0 clamped to 0": "a score below 0 is an error here, not clamped",
}


def cases(*kinds, components):
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="reference vectors are not beside this checkout"))]
    found = [c for c in json.loads(VECTORS.read_text()) if c["kind"] in kinds and c["component"] in components]
    return [pytest.param(case, id=case["id"]) for case in found]


def snapshot(case):
    """The case's endpoints as ours: an absent metric is 0 there, no metrics at all is unknown."""
    pool = isched.InferencePool()
    columns = {
        signal: np.zeros(len(case["endpoints"]))
        for signal in (isched.INFLIGHT_REQUESTS, isched.INFLIGHT_TOKENS, isched.PREFIX_MATCH, isched.PREFIX_TOKENS)
    }
    tokens = 0
    for i, endpoint in enumerate(case["endpoints"]):
        pool.join(endpoint["name"])
        metrics = endpoint.get("metrics", {})
        if not endpoint.get("metrics_null"):
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
    for i, endpoint in enumerate(case["endpoints"]):
        uncached = endpoint.get("attributes", {}).get("uncached_request_tokens")
        if tokens:
            columns[isched.PREFIX_TOKENS][i] = tokens - (uncached["tokens"] if isinstance(uncached, dict) else 0)
    request = isched.InferenceRequest(
        request_id="vector", model=case.get("request", {}).get("target_model", ""), input_tokens=tokens
    )
    return request, pool.snapshot().with_columns(columns)


def cycle(seed=0):
    return isched.CycleState(0.0, np.random.default_rng(seed), 0)


@pytest.mark.parametrize("case", cases("scorer", components=SCORERS))
def test_scorer(case):
    request, endpoints = snapshot(case)
    scores = SCORERS[case["component"]](case["params"]).score(request, endpoints, cycle())
    by_name = dict(zip(endpoints.names, scores.tolist(), strict=True))
    for name, expected in case["expect"].get("scores", {}).items():
        assert by_name[name.rsplit("/", 1)[-1]] == pytest.approx(expected, abs=case["tolerance"] or 1e-12), name
    if "num_scores" in case["expect"]:
        assert len(scores) == case["expect"]["num_scores"]


@pytest.mark.parametrize("case", cases("filter", components=FILTERS))
def test_filter(case):
    request, endpoints = snapshot(case)
    keep = FILTERS[case["component"]](case["params"]).filter(request, endpoints, cycle())
    kept = [name for name, kept in zip(endpoints.names, keep, strict=True) if kept]
    expect = case["expect"]
    if "kept" in expect:
        assert kept == [name.rsplit("/", 1)[-1] for name in expect["kept"]]
    if "num_kept" in expect:
        assert len(kept) == expect["num_kept"]


@pytest.mark.parametrize("case", cases("picker", components=PICKERS))
def test_picker(case):
    count = max(1, case["params"].get("maxNumOfEndpoints", 1))
    picker = PICKERS[case["component"]](count)
    scored = case.get("scores") or {}
    pool = isched.InferencePool()
    for name in scored:
        pool.join(name)
    endpoints, totals = pool.snapshot(), np.array([float(v) for v in scored.values()])
    expect = case["expect"]
    rounds = expect.get("iterations", 1)
    state = cycle()
    firsts = dict.fromkeys(scored, 0)
    chosen = dict.fromkeys(scored, 0)
    for _ in range(rounds):
        picks = [endpoints.name(int(i)) for i in picker.pick(totals, endpoints, state)]
        firsts[picks[0]] += 1
        for name in picks:
            chosen[name] += 1
        if "num_targets" in expect:
            assert len(picks) == expect["num_targets"]
        place = 0
        for group in expect.get("target_groups", []):
            here = picks[place : place + len(group)]
            assert set(here) <= set(group)
            place += len(group)
    for name, probability in expect.get("first_target_probability", {}).items():
        assert firsts[name] / rounds == pytest.approx(probability, abs=case["tolerance"])
    for name, probability in expect.get("selection_probability", {}).items():
        assert chosen[name] / rounds == pytest.approx(probability, abs=case["tolerance"])


class Stub:
    """A plug-in that answers what the case says and counts its calls."""

    def __init__(self, spec):
        self.spec = spec
        self.calls = 0
        self.sizes = []

    def filter(self, request, endpoints, cycle):
        self.calls += 1
        self.sizes.append(len(endpoints))
        keeps = self.spec["keeps"]
        return np.array([keeps == "all" or name in keeps for name in endpoints.names], dtype=bool)

    def score(self, request, endpoints, cycle):
        self.calls += 1
        if "scores" in self.spec:
            return np.array([float(self.spec["scores"][name]) for name in endpoints.names])
        return np.full(len(endpoints), float(self.spec["constant_score"]))

    def pick(self, totals, endpoints, cycle):
        self.calls += 1
        return np.array([endpoints.names.index(self.spec["picks"])])


@pytest.mark.parametrize("case", cases("profile", components=("scheduler-profile",)))
def test_profile(case):
    params, expect = case["params"], case["expect"]
    filters = [Stub(spec) for spec in params["filters"]]
    scorers = [Stub(spec) for spec in params["scorers"]]
    picker = Stub(params["picker"])
    profile = isched.SchedulingProfile(
        picker,
        tuple(isched.WeightedScorer(s, float(s.spec.get("weight", 1.0))) for s in scorers),
        tuple(filters),
    )
    request, endpoints = snapshot(case)
    scheduler = isched.Scheduler(profile)
    call = lambda: scheduler.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0))  # noqa: E731
    if expect.get("error"):
        with pytest.raises(isched.RequestRefusedError):
            call()
        return
    result = call()
    if "targets" in expect:
        assert [t.endpoint for t in result.profiles["default"].targets] == expect["targets"]
    for name, score in expect.get("target_scores", {}).items():
        assert result.endpoint == name and result.target.score == pytest.approx(score, abs=case["tolerance"])
    for name, size in expect.get("filter_input_sizes", {}).items():
        (stub,) = [f for f in filters if f.spec["name"] == name]
        assert stub.sizes == [size]
    counts = expect.get("call_counts", {})
    for kind, stubs in (("filter", filters), ("scorer", scorers), ("picker", [picker])):
        if kind in counts:
            assert {stub.calls for stub in stubs} == {counts[kind]}


@pytest.mark.parametrize("case", cases("function", components=("scheduler-profile",)))
def test_score_range(case):
    if case["id"] in DIFFERENCES or not 0 <= case["params"]["input"] <= 1:
        profile = isched.SchedulingProfile(
            isched.MaxScorePicker(), (isched.WeightedScorer(Stub({"constant_score": case["params"]["input"]})),)
        )
        pool = isched.InferencePool()
        pool.join("a")
        request = isched.InferenceRequest(request_id="r")
        with pytest.raises(isched.ScoreError):
            isched.Scheduler(profile).schedule(request, pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
        assert case["id"] in DIFFERENCES, f"a difference that is not listed: {case['id']}"
    else:
        assert case["params"]["input"] == case["expect"]["value"]


@pytest.mark.parametrize(
    "case", cases("param-validation", components=("prefix-cache-scorer", "utilization-filter", *PICKERS))
)
def test_parameters(case):
    build = SCORERS.get(case["component"]) or FILTERS.get(case["component"])
    if build is None or "params_raw" in case:
        pytest.skip("the text of a configuration is not parsed here: it comes with the configuration loader")
    if case["expect"]["valid"]:
        built = build(case["params"])
        effective = case["expect"].get("effective", {})
        if "matchLengthWeight" in effective:
            assert built.match_length_weight == effective["matchLengthWeight"]
            assert built.match_length_scale_tokens == effective["matchLengthScaleTokens"]
    else:
        with pytest.raises((isched.InvalidInputError, KeyError)):
            build(case["params"])


@pytest.mark.parametrize(
    "case", cases("profile-handler-pick", "profile-handler-process", components=("single-profile-handler",))
)
def test_single_profile_handler(case):
    handler = isched.SingleProfileHandler()
    request = isched.InferenceRequest(request_id="vector")
    target = isched.Target("a", 0, 1, 1.0, 0)
    results = {
        name: None if result is None else isched.ProfileResult((target,)) for name, result in case["results"].items()
    }
    if case["kind"] == "profile-handler-pick":
        profiles = {name: isched.default_profile() for name in case["profiles"]}
        assert sorted(handler.pick(request, profiles, results, cycle())) == sorted(case["expect"]["profiles"])
    elif case["expect"].get("error"):
        with pytest.raises(isched.InferenceSchedError):
            handler.process_results(request, results, cycle())
    else:
        assert handler.process_results(request, results, cycle()).primary == case["expect"]["primary"]


def plugin(spec):
    """The plug-in that a case names, or a stub that answers what it says."""
    if "stub" in spec:
        return Stub(spec)
    build = SCORERS.get(spec["type"]) or FILTERS.get(spec["type"])
    params = spec.get("params") or {}
    return build(params) if build else PICKERS[spec["type"]](max(1, params.get("maxNumOfEndpoints", 1)))


def schedulers():
    """The reference's whole runs, as far as the everyday plug-ins go."""
    found = cases("scheduler", components=("scheduler",))
    return [
        c for c in found if c.values[0] is None or c.values[0]["params"]["profile_handler"]["type"].startswith("single")
    ]


@pytest.mark.parametrize("case", schedulers())
def test_scheduler(case):
    profiles = {
        name: isched.SchedulingProfile(
            plugin(spec["picker"]),
            tuple(isched.WeightedScorer(plugin(s), float(s["weight"])) for s in spec["scorers"]),
            tuple(plugin(f) for f in spec["filters"]),
        )
        for name, spec in case["params"]["profiles"].items()
    }
    scheduler = isched.Scheduler(profiles)
    request, endpoints = snapshot(case)
    expect = case["expect"]
    if expect.get("error"):
        with pytest.raises(isched.RequestRefusedError) as refusal:
            scheduler.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0))
        if expect.get("error_code") == "ResourceExhausted":
            assert refusal.value.status == 429
        return
    result = scheduler.schedule(request, endpoints, now=0.0, rng=np.random.default_rng(0))
    assert result.primary == expect["primary"]
    for name, expected in expect["profiles"].items():
        targets = result.profiles[name].targets
        assert [target.endpoint for target in targets] == expected["targets"]
        for target in targets:
            assert target.score == pytest.approx(
                expected["target_scores"][target.endpoint], abs=case["tolerance"] or 1e-12
            )
