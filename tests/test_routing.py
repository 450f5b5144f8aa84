"""Models, objectives, routes, splits, rollouts: who asks for what, and where it is."""

import json
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import yaml
from hypothesis import given, settings

import inferencesched as isched
from inferencesched.errors import InvalidInputError, ManifestError, UnknownNameError, UnroutedError
from inferencesched.routing.candidates import host_of, within
from inferencesched.routing.manifests import from_gie_manifest, load_manifests, merge, route_from_manifest
from inferencesched.routing.objectives import (
    InferenceObjective,
    ModelMatch,
    ModelRewrite,
    ModelTable,
    PoolManifest,
    RewriteRule,
    WeightedModel,
)
from inferencesched.routing.rollout import StagedRollout, Step, pick, shares
from inferencesched.routing.routes import Backend, HTTPRoute, RequestMatch, RouteQuery, RouteRule, RouteTable
from inferencesched.routing.split import RandomSplit, SmoothSplit, StickySplit
from inferencesched.screeners import RolloutScreener, SubsetScreener
from tests.fuzz.fuzz_manifests import SEEDS

WEIGHTS = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1000), min_size=1)


def rng(seed=7):
    return np.random.default_rng(seed)


# --- splits ------------------------------------------------------------------------------------------------------


@given(WEIGHTS, st.integers(1, 200))
def test_a_smooth_split_is_within_one_request_of_its_shares_at_any_time(weights, count):
    split, total = SmoothSplit(weights), sum(weights.values())
    for number in range(1, count + 1):
        picked = split.pick("", rng())
        assert split.pick("", rng()) == picked, "picking changes nothing"
        split.commit(picked)
        for name, weight in weights.items():
            assert abs(split.counts[name] - number * weight / total) < 1 + 1e-9


@given(WEIGHTS, st.sampled_from("abcdef"), st.floats(1.01, 50))
@settings(max_examples=40)
def test_raising_a_weight_moves_keys_only_to_that_target(weights, name, factor):
    if name not in weights:
        return
    before, after = StickySplit(weights), StickySplit({**weights, name: weights[name] * factor})
    for i in range(200):
        was, now = before.pick(f"key-{i}", rng()), after.pick(f"key-{i}", rng())
        assert now in (was, name)


@given(WEIGHTS, st.sampled_from("abcdef"))
@settings(max_examples=40)
def test_taking_a_target_out_moves_its_own_keys_only(weights, name):
    if name not in weights or len(weights) < 2:
        return
    before, after = StickySplit(weights), StickySplit({each: w for each, w in weights.items() if each != name})
    for i in range(200):
        was = before.pick(f"key-{i}", rng())
        assert was == name or after.pick(f"key-{i}", rng()) == was


@pytest.mark.parametrize("make", [StickySplit, RandomSplit])
def test_shares_are_within_binomial_bounds(make):
    split, chance, count = make({"a": 90, "b": 10, "never": 0}), rng(), 20_000
    seen = Counter(split.pick(f"conversation-{i}", chance) for i in range(count))
    sigma = (count * 0.9 * 0.1) ** 0.5
    assert abs(seen["a"] - 0.9 * count) < 5 * sigma
    assert "never" not in seen


def test_a_conversation_keeps_its_version_and_no_key_is_drawn_by_chance():
    split = StickySplit({"gemma": 9, "gemma-new": 1})
    for key in ("a", "b\ud800", "c" * 1000):
        assert len({split.pick(key, rng(seed)) for seed in range(20)}) == 1
    assert len({split.pick("", rng(seed)) for seed in range(60)}) == 2
    assert StickySplit({"a": 1, "b": 1}, seed=1).pick("k", rng()) == StickySplit({"b": 1, "a": 1}, seed=1).pick(
        "k", rng()
    )


@pytest.mark.parametrize("weights", [{}, {"a": 0, "b": 0}, {"a": -1}, {"a": float("nan")}, {"a": float("inf")}])
@pytest.mark.parametrize("make", [StickySplit, RandomSplit, SmoothSplit])
def test_weights_that_are_none(make, weights):
    with pytest.raises(InvalidInputError, match="weights"):
        make(weights)
    with pytest.raises(UnknownNameError):
        SmoothSplit({"a": 1}).commit("b")


# --- models and objectives -----------------------------------------------------------------------------------------


def rewrite(name, *rules, created=0.0):
    return ModelRewrite(
        name,
        tuple(
            RewriteRule(ModelMatch(tuple(models)), tuple(WeightedModel(*each) for each in targets))
            for models, targets in rules
        ),
        created=created,
    )


def test_exact_before_generic_then_the_oldest_then_the_name_then_the_first():
    table = ModelTable(
        rewrites=[
            rewrite("new", (["m"], [("newer",)]), ([], [("any",)]), created=5.0),
            rewrite("b", (["m"], [("second",)]), created=1.0),
            rewrite("a", (["m"], [("first",)]), (["m"], [("never",)]), created=1.0),
        ]
    )
    assert table.resolve("m", rng=rng())[:3] == ("m", "first", "a")
    assert table.resolve("x", rng=rng())[:3] == ("x", "any", "new")
    assert table.resolve("", rng=rng()).target == "any"


def test_adapters_know_their_base_and_unknown_names_are_refused_where_all_are_known():
    table = ModelTable(adapters={"english-bot": "llm-base"}, known=["llm-base"])
    assert table.resolve("english-bot", rng=rng()) == ("english-bot", "english-bot", "", "llm-base", "english-bot")
    assert table.resolve("llm-base", rng=rng()).adapter == ""
    with pytest.raises(UnroutedError):
        table.resolve("french-bot", rng=rng())
    with pytest.raises(UnknownNameError):
        ModelTable(split="by mood")


@pytest.mark.parametrize("split", ["sticky", "random", "smooth"])
def test_each_way_to_split_has_its_shares(split):
    table = ModelTable(rewrites=[rewrite("r", (["m"], [("a", 3), ("b", 1)]))], split=split)
    chance, seen = rng(), Counter()
    for i in range(4000):
        choice = table.resolve("m", key=f"k{i}", rng=chance)
        table.commit(choice)
        seen[choice.target] += 1
    assert abs(seen["a"] - 3000) < (1 if split == "smooth" else 200)
    assert table.divides("m")
    assert not table.divides("other")


# --- manifests ---------------------------------------------------------------------------------------------------


def test_everything_is_read():
    read = load_manifests(SEEDS)
    assert [pool.name for pool in read.pools] == ["a", "a"]
    assert (read.pools[0].fail_open, read.pools[0].ports, read.pools[0].picker_port) == (True, (8000,), 9002)
    assert [objective.priority for objective in read.objectives] == [-1, -1]
    assert read.rewrites[0].rules[0].weights() == {"x": 1, "y": 9}
    assert read.rewrites[0].created == 1767323045.0
    assert read.routes[0].rules[0].mirrors[0].fraction == 0.05
    assert read.routes[0].parents == ("n/gw",)
    assert load_manifests({"kind": "List", "items": SEEDS}) == read
    assert load_manifests(list(yaml.safe_load_all(yaml.safe_dump_all(SEEDS)))) == read


def test_a_selector_selects_who_has_all_of_its_labels():
    pool = PoolManifest("p", labels={"app": "vllm", "zone": "a"})
    assert pool.selects({"app": "vllm", "zone": "a", "x": "y"})
    assert not pool.selects({"app": "vllm"})
    assert not pool.selects({"app": "vllm", "zone": "b"})


@pytest.mark.parametrize(("said", "priority"), [("Critical", 1), ("Standard", 0), ("Sheddable", -1), (None, 0)])
def test_an_older_model_is_an_objective_and_a_rewrite(said, priority):
    spec = {"modelName": "m", "poolRef": {"name": "p"}, "targetModels": [{"name": "x", "weight": 1}]}
    if said:
        spec["criticality"] = said
    read = from_gie_manifest(
        {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceModel",
            "metadata": {"name": "o"},
            "spec": spec,
        }
    )
    assert read.objectives == (InferenceObjective("o", priority, "p", model="m"),)
    table = ModelTable.of(read)
    assert table.resolve("m", rng=rng()).target == "x"
    assert table.objective_of_model("m").priority == priority
    assert table.objective("o").priority == priority


def test_a_priority_that_nobody_named_is_0():
    read = load_manifests(
        {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceObjective",
            "metadata": {"name": "o"},
            "spec": {"poolRef": {"name": "p"}},
        }
    )
    assert read.objectives[0].priority == 0


def changed(index, path, value):
    document = json.loads(json.dumps(SEEDS[index]))
    here = document
    for part in path[:-1]:
        here = here[part]
    if value is None:
        del here[path[-1]]
    else:
        here[path[-1]] = value
    return document


BAD = [
    (0, ("kind",), "Pod", "kind"),
    (0, ("metadata", "name"), None, r"metadata.name"),
    (0, ("metadata", "creationTimestamp"), "yesterday", "creationTimestamp"),
    (0, ("spec", "targetPorts", 0, "number"), 0, "targetPorts"),
    (0, ("spec", "targetPorts"), [], "targetPorts"),
    (0, ("spec", "selector"), {}, "selector"),
    (0, ("spec", "colour"), "red", "colour"),
    (0, ("spec", "endpointPickerRef", "failureMode"), "FailSometimes", "failureMode"),
    (2, ("spec", "priority"), "high", "priority"),
    (2, ("spec", "poolRef"), None, "poolRef"),
    (2, ("spec", "poolRef", "kind"), "Service", "kind"),
    (3, ("spec", "rules", 0, "targets", 0, "weight"), None, "a weight for every target"),
    (3, ("spec", "rules", 0, "targets", 0, "weight"), -1, "weight"),
    (3, ("spec", "rules", 0, "targets"), [{"modelRewrite": "x", "weight": 0}], "sum above 0"),
    (3, ("spec", "rules", 0, "targets"), [], "target"),
    (3, ("spec", "rules"), [], "rules"),
    (4, ("spec", "criticality"), "Vital", "criticality"),
    (5, ("spec", "rules", 0, "backendRefs", 0, "kind"), "Service", "backendRefs"),
    (5, ("spec", "rules", 0, "backendRefs"), [], "backendRefs"),
    (5, ("spec", "rules", 0, "backendRefs", 0, "weight"), -1, "backends"),
    (5, ("spec", "rules", 0, "matches", 0, "path", "type"), "RegularExpression", "path"),
    (5, ("spec", "rules", 0, "matches", 0, "path", "value"), "v1", "path"),
    (5, ("spec", "rules", 0, "filters", 0, "requestMirror", "percent"), 101, "requestMirror"),
    (5, ("spec", "rules", 0, "filters", 0, "type"), "URLRewrite", "type"),
    (5, ("spec", "hostnames"), ["a.*.b"], "hostnames"),
]


@pytest.mark.parametrize(("index", "path", "value", "words"), BAD)
def test_a_mistake_is_named_with_its_place(index, path, value, words):
    with pytest.raises(ManifestError, match=words):
        load_manifests(changed(index, path, value))


def test_what_is_no_manifest_and_what_may_be_passed_over():
    for nothing in (7, [7], "x", {"kind": "List"}):
        with pytest.raises(ManifestError):
            load_manifests(nothing)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    assert load_manifests([pod, *SEEDS], unknown="skip") == load_manifests(SEEDS)


def test_the_platform_has_the_last_word_on_pools_the_workload_on_objectives():
    platform, workload = (
        load_manifests(SEEDS[:1] + SEEDS[2:3]),
        load_manifests([changed(2, ("spec", "priority"), 7), SEEDS[1]]),
    )
    both = merge(platform, workload)
    assert [pool.ports for pool in both.pools] == [platform.pools[0].ports]
    assert [objective.priority for objective in both.objectives] == [7]
    assert merge(both, workload) == both


# --- routes ------------------------------------------------------------------------------------------------------


def rule(pool, *matches, **more):
    return RouteRule((Backend(pool),), matches or (RequestMatch(),), **more)


def test_the_most_specific_rule_takes_a_request():
    table = RouteTable(
        [
            HTTPRoute("any", (rule("any"),), created=1.0),
            HTTPRoute("wild", (rule("wild"),), ("*.example.com",)),
            HTTPRoute(
                "host",
                (
                    rule("prefix", RequestMatch("/v1")),
                    rule("longer", RequestMatch("/v1/chat")),
                    rule("exact", RequestMatch("/v1/chat/completions", exact=True)),
                    rule("header", RequestMatch("/v1", headers=(("x-gateway-model-name", "gemma"),))),
                    rule("query", RequestMatch("/v1", query=(("a", "b"),))),
                    rule("method", RequestMatch("/v2", method="GET")),
                ),
                ("example.com",),
            ),
            HTTPRoute("newer", (rule("newer", RequestMatch("/v1")),), ("example.com",), created=9.0),
        ]
    )

    def pool(path, host="example.com", **more):
        found = table.match(RouteQuery(path, host, **more))
        return None if found is None else found.backends[0].pool

    assert pool("/v1/chat/completions") == "exact"
    assert pool("/v1/chat/completions", "Example.com:8080") == "exact"
    assert pool("/v1/chat") == "longer"
    assert pool("/v1/other") == "prefix"
    assert pool("/v10") == "any"
    assert pool("/v1/x", headers={"x-gateway-model-name": "gemma"}) == "header"
    assert pool("/v1/x", query={"a": "b"}) == "query"
    assert pool("/v2") == "any"
    assert pool("/v2", method="GET") == "method"
    assert pool("/", "a.b.example.com") == "wild"
    assert pool("/", "example.org") == "any"
    assert RouteTable([]).match(RouteQuery("/")) is None


def test_a_route_of_a_manifest_splits_as_it_says():
    route = route_from_manifest(SEEDS[5])
    table = RouteTable([route], split="smooth")
    seen = Counter()
    for _ in range(100):
        found = table.match(RouteQuery("/v1/x", "example.com", headers={"x": "1"}))
        seen[found.split.pick("", rng())] += 1
        found.split.commit(found.split.pick("", rng()))
    assert seen == {"p": 90, "q": 10}
    with pytest.raises(ManifestError, match="HTTPRoute"):
        route_from_manifest(SEEDS[0])
    with pytest.raises(UnknownNameError):
        RouteTable([], split="by mood")


# --- candidates and rollouts -------------------------------------------------------------------------------------


def pool(*servers):
    made = isched.InferencePool()
    for i, (revision, role) in enumerate(servers):
        labels = {RolloutScreener().label: revision, RolloutScreener().role_label: role}
        made.join(f"ep-{i}", labels=labels, address=f"10.0.0.{i}:8000")
    return made.snapshot()


CYCLE = isched.CycleState(0.0, rng(), 0)


def test_a_header_narrows_to_those_that_it_names():
    endpoints = pool(("v1", "decode"), ("v1", "decode"), ("v2", "decode"))

    def kept(said):
        headers = {} if said is None else {"x-gateway-destination-endpoint-subset": said}
        request = isched.InferenceRequest(request_id="r", headers=headers)
        return SubsetScreener().screen(request, endpoints, CYCLE).tolist()

    assert kept(None) == [True] * 3
    assert kept("10.0.0.1:8000, ep-2") == [False, True, True]
    assert kept("") == [False] * 3
    assert within(endpoints, [None, "10.0.0.0"]).tolist() == [True, False, False]
    assert host_of("fe80::1") == "fe80::1"


COUNTS = st.dictionaries(
    st.sampled_from(["v1", "v2", "v3"]),
    st.dictionaries(st.sampled_from(["prefill", "decode"]), st.integers(0, 5)),
    max_size=3,
)


@given(COUNTS, st.sampled_from(["sum", "max-role"]), st.floats(0, 1, exclude_max=True))
def test_shares_are_of_complete_revisions_and_sum_to_1(counts, weighing, draw):
    parts = shares(counts, ("prefill", "decode"), weighing)
    assert not parts or sum(parts.values()) == pytest.approx(1.0)
    for name in parts:
        assert all(counts[name].get(role, 0) > 0 for role in ("prefill", "decode"))
    chosen = pick(parts, draw)
    assert (chosen is None) == (not parts)
    assert chosen is None or chosen in parts


def test_a_request_stays_with_its_revision():
    endpoints = pool(*[("v1", "decode"), ("v1", "prefill")] * 3, ("v2", "decode"), ("v2", "prefill"), ("v3", "decode"))
    screener = RolloutScreener()

    def revisions(chance=None, **more):
        request = isched.InferenceRequest(request_id="r", **more)
        keep = screener.screen(request, endpoints, CYCLE._replace(rng=chance or rng()))
        return {endpoints.labels(i)[screener.label] for i in np.flatnonzero(keep)}

    assert revisions(headers={"x-disagg-revision": "v2"}) == {"v2"}
    assert revisions(headers={"x-disagg-revision": "v3"}) == set()
    assert len({frozenset(revisions(rng(seed), session_id="s")) for seed in range(9)}) == 1
    seen = Counter(next(iter(revisions(rng(seed)))) for seed in range(400))
    assert abs(seen["v1"] - 300) < 60
    assert screener.response_headers(endpoints.labels(6)) == {"x-disagg-revision": "v2"}
    assert screener.response_headers({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5), st.integers(0, 60))
def test_while_its_part_grows_a_conversation_moves_once(parts, key):
    steps = tuple(Step(float(i), part) for i, part in enumerate(sorted(parts)))
    rollout = StagedRollout("old", "new", steps)
    pools = [rollout.pool_of(f"k{key}", now, rng()) for now in [-1.0, *(step.at for step in steps)]]
    assert pools == sorted(pools, reverse=True)
    assert pools[0] == "old"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Step(0.0, 1.5),
        lambda: Step(float("nan"), 0.5),
        lambda: StagedRollout("a", "b", ()),
        lambda: StagedRollout("a", "b", (Step(1.0, 0.1), Step(1.0, 0.2))),
        lambda: RolloutScreener("by mood"),
        lambda: shares({}, ("a",), "by mood"),
        lambda: RouteRule(()),
        lambda: RewriteRule(ModelMatch(), ()),
        lambda: InferenceObjective(""),
    ],
)
def test_settings_that_are_none(make):
    with pytest.raises(InvalidInputError):
        make()
