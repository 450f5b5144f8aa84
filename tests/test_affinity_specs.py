"""Labels, places, lengths, headers, attributes and sessions, by their names in a configuration."""

import msgspec
import numpy as np
import pytest

import inferencesched as isched
from inferencesched.config.catalogue import attributes, context, headers, labels, session, topology
from inferencesched.config.catalogue.gateway import Held
from inferencesched.config.decode import decode, encode
from inferencesched.config.forms import dump, load
from inferencesched.config.native import dump_scheduler
from inferencesched.config.spec import Opaque
from inferencesched.signals import MULTICLUSTER_QUEUE_SIZE, SESSION_BOUND, of_producer
from inferencesched.topology import TopologyLabels
from tests.parity import run
from tests.parity.cases import Mismatch, check
from tests.shared import shared

SPECS = {
    spec.name: spec for family in (attributes, context, headers, labels, session, topology) for spec in family.SPECS
}


class Shop:
    """A workshop with these plug-ins."""

    def __init__(self, **plugins):
        self.name, self.plugins = "it", plugins

    def plugin(self, name):
        return self.plugins[name]


def built(name, parameters=None, **plugins):
    spec = SPECS[name]
    return spec.build(decode(spec.parameters, parameters or {}), Shop(**plugins))


THRESHOLD = {"type": "threshold", "threshold": {"operator": "LessThan", "value": 0.8}}
LOWER = {"type": "linear_lower_is_better"}
MADE = [
    ("decode-filter", {}, isched.DecodeFilter()),
    ("prefill-filter", {"label": "role"}, isched.PrefillFilter("role")),
    ("encode-filter", {}, isched.EncodeFilter()),
    ("by-label", {"label": "a", "validValues": ["x"], "allowsNoLabel": True}, isched.LabelFilter("a", ("x",), True)),
    (
        "label-selector-filter",
        {"matchLabels": {"a": "x"}, "matchExpressions": [{"key": "b", "operator": "In", "values": ["y"]}]},
        isched.LabelSelectorFilter({"a": "x"}, (isched.LabelRequirement("b", "In", ("y",)),)),
    ),
    ("by-label-selector", {}, isched.LabelSelectorFilter()),
    ("context-length-aware", {"enableFiltering": True}, isched.ContextLengthAware(filtering=True)),
    (
        "header-label-affinity-scorer",
        {"headerName": "X-A", "labelKey": "a"},
        isched.HeaderLabelAffinityScorer("x-a", "a"),
    ),
    ("header-based-testing-filter", {}, isched.HeaderEndpointFilter()),
    ("topology-affinity-filter", {"minAffinity": "zone"}, isched.TopologyAffinityFilter("zone")),
    ("topology-affinity-scorer", {"peerTopologyHeader": "x-p"}, isched.TopologyAffinityScorer(peer_header="x-p")),
    (
        "endpoint-attribute-filter",
        {"attribute": "heat", "producer": "dcgm", "algorithm": THRESHOLD, "onMissing": "Fail"},
        isched.EndpointAttributeFilter(isched.Signal("heat@dcgm"), "LessThan", 0.8, "Fail"),
    ),
    (
        "endpoint-attribute-filter",
        {"attribute": "llm-d.ai/multicluster-queue-size", "producer": "", "algorithm": THRESHOLD},
        isched.EndpointAttributeFilter(MULTICLUSTER_QUEUE_SIZE, "LessThan", 0.8),
    ),
    (
        "endpoint-attribute-scorer",
        {"attributeKey": "heat", "algorithm": LOWER | {"normalization": {"fixedRange": {"min": 0, "max": 2}}}},
        isched.EndpointAttributeScorer(isched.Signal("heat"), "lower", (0.0, 2.0)),
    ),
    (
        "endpoint-attribute-scorer",
        {"attributeKey": "waiting_queue_size", "algorithm": LOWER | {"normalization": {"adaptiveRange": {}}}},
        isched.EndpointAttributeScorer(isched.WAITING_QUEUE_SIZE, "lower"),
    ),
    (
        "utilization-filter",
        {"conditions": [{"metric": "kv-cache-utilization", "maxValue": 0.9}], "fallbackOnEmpty": True},
        isched.UtilizationFilter(((isched.KV_CACHE_USAGE, 0.9),), True),
    ),
    ("session-affinity-filter", {}, isched.SessionAffinityFilter()),
    (
        "session-affinity-scorer",
        {"encodedEndpointHeaderConfig": {"header": "X-T"}, "profileName": "prefill"},
        isched.SessionAffinityScorer(isched.EncodedEndpoint("x-t", "prefill")),
    ),
    (
        "multicluster-session-affinity-filter",
        {"strategy": "session_id"},
        isched.SessionAffinityFilter(isched.BoundSession()),
    ),
    ("session-id-producer", {"cookieName": "sid"}, isched.SessionSource(cookie="sid")),
]


@pytest.mark.parametrize(("name", "parameters", "plugin"), MADE, ids=[name for name, _, _ in MADE])
def test_it_is_made_and_read_back(name, parameters, plugin):
    assert built(name, parameters) == plugin
    spec = SPECS[name]
    assert spec.made is type(plugin)
    told = encode(spec.read(plugin))
    assert built(name, told) == plugin
    assert encode(spec.read(built(name, told))) == told


def test_every_name_is_there():
    assert {name for name, _, _ in MADE} | {"session-binding-producer"} == set(SPECS)
    assert {name for name, spec in SPECS.items() if spec.stability == "deprecated"} == {"by-label", "by-label-selector"}


def test_the_signal_keeps_its_range():
    low = built("endpoint-attribute-scorer", {"attributeKey": "heat", "algorithm": LOWER}).signal.low
    assert low == float("-inf")


def test_labels_of_an_extractor_that_is_named():
    extractor = Held(Opaque({"zone": "z", "rack": ""}))
    plugin = built("topology-affinity-filter", {"producerName": "places"}, places=extractor)
    assert plugin.labels == TopologyLabels(zone="z")
    assert (
        built(
            "topology-affinity-scorer",
            encode(SPECS["topology-affinity-scorer"].read(isched.TopologyAffinityScorer(labels=plugin.labels))),
        ).labels
        == plugin.labels
    )
    with pytest.raises(isched.InvalidInputError, match="producerName: got 'places'"):
        built("topology-affinity-filter", {"producerName": "places"}, places=isched.DecodeFilter())


# --- sessions: the filter and what it needs ----------------------------------------------------------------------


def needed(parameters):
    spec = SPECS["session-affinity-filter"]
    [need] = spec.needs(decode(spec.parameters, {"strategy": "session_id"} | parameters))
    return need, built(need.producer_type, need.parameters, sid=isched.SessionSource(cookie="sid"))


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, ""),
        ({"sessionIdConfig": {"sources": [{"header": "x-session-id"}], "evictionTtlSeconds": 300}}, ""),
        ({"profileName": "prefill"}, "profile=prefill"),
        ({"sessionIdConfig": {"sources": [{"attribute": "agent-identity"}]}}, "attribute=agent-identity"),
        ({"sessionIdConfig": {"evictionTtlSeconds": 60}}, "ttl=60"),
    ],
)
def test_who_asks_for_the_same_reads_the_same_column(parameters, name):
    need, producer = needed(parameters)
    plugin = built("session-affinity-filter", {"strategy": "session_id"} | parameters)
    assert need.signal == of_producer(SESSION_BOUND, name)
    assert producer.produces == (need.signal,) == tuple(read.signal for read in plugin.reads)


def test_the_producer_is_as_the_filter_says():
    said = {"evictionTtlSeconds": 60, "sources": [{"header": "X-S"}, {"attribute": "SessionID", "producer": "sid"}]}
    _, producer = needed({"profileName": "prefill", "sessionIdConfig": said})
    assert (producer.ttl, producer.sweep, producer.profile) == (60.0, 10.0, "prefill")
    assert producer.sources == (isched.SessionSource(header="x-s"), isched.SessionSource(cookie="sid"))
    spec = SPECS["session-binding-producer"]
    again = spec.build(decode(spec.parameters, encode(spec.read(producer))), Shop())
    assert (again.ttl, again.profile, again.name, again.sources) == (60.0, "prefill", producer.name, producer.sources)


def test_filters_of_a_binding_are_plug_ins_of_the_configuration():
    role = isched.DecodeFilter()
    producer = built("session-binding-producer", {"filters": ["role"]}, role=role)
    assert producer.filters == (role,) == SPECS["session-binding-producer"].parts(producer)["filters"]
    with pytest.raises(isched.InvalidInputError, match="filters: got 'odd'"):
        built("session-binding-producer", {"filters": ["odd"]}, odd=isched.MaxScorePicker())


def test_a_strategy_that_no_configuration_knows():
    class Own:
        reads = ()

    for name, make in (
        ("session-affinity-filter", isched.SessionAffinityFilter),
        ("session-affinity-scorer", isched.SessionAffinityScorer),
    ):
        with pytest.raises(isched.InvalidInputError, match="strategy: got .*Own"):
            SPECS[name].read(make(Own()))


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("by-label", {"label": "a", "validValues": "true"}, "validValues"),
        ("label-selector-filter", {"matchExpressions": [{"key": "a", "operator": "Like"}]}, "operator"),
        ("header-label-affinity-scorer", {"headerName": "", "labelKey": "a"}, "headerName: got ''"),
        ("endpoint-attribute-filter", {"algorithm": THRESHOLD}, "attribute: got ''"),
        ("endpoint-attribute-filter", {"attribute": "a/b", "algorithm": THRESHOLD}, 'attribute: "a" and producer: "b"'),
        ("endpoint-attribute-filter", {"attribute": "a"}, "algorithm.type: got ''"),
        ("endpoint-attribute-filter", {"attribute": "a", "algorithm": {"type": "threshold"}}, "algorithm.threshold"),
        (
            "endpoint-attribute-filter",
            {"attribute": "a", "algorithm": {"type": "threshold", "threshold": {"operator": "Near", "value": 1}}},
            "algorithm.threshold.operator: got 'Near'",
        ),
        (
            "endpoint-attribute-filter",
            {"attribute": "a", "algorithm": THRESHOLD, "onMissing": "Maybe"},
            "onMissing: got 'Maybe'",
        ),
        ("endpoint-attribute-scorer", {"attributeKey": "a"}, "algorithm.type: got ''"),
        (
            "endpoint-attribute-scorer",
            {
                "attributeKey": "a",
                "algorithm": LOWER | {"normalization": {"fixedRange": {"min": 0, "max": 1}, "adaptiveRange": {}}},
            },
            "algorithm.normalization: got 'both'",
        ),
        ("utilization-filter", {}, "conditions: got \\[\\]"),
        (
            "utilization-filter",
            {"conditions": [{"metric": "kv-cache-utilization", "maxValue": 1.5}]},
            r"conditions\[0\].maxValue: got 1.5",
        ),
        ("session-affinity-filter", {"strategy": "bogus"}, "strategy"),
        (
            "session-affinity-filter",
            {"sessionIdConfig": {"sources": [{"header": "a", "attribute": "b"}]}},
            r"sessionIdConfig.sources\[0\]",
        ),
        (
            "session-affinity-scorer",
            {"sessionIdConfig": {"evictionTtlSeconds": -1}},
            "sessionIdConfig.evictionTtlSeconds",
        ),
        ("session-id-producer", {}, "exactly one of headerName or cookieName"),
        ("session-id-producer", {"headerName": "a", "cookieName": "b"}, "exactly one of headerName or cookieName"),
    ],
)
def test_what_is_refused(name, parameters, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        built(name, parameters)


def test_a_limit_of_another_signal_has_no_name_in_a_configuration():
    with pytest.raises(isched.UnknownNameError, match="limits: got 'lora_active'"):
        SPECS["utilization-filter"].read(isched.UtilizationFilter(((isched.LORA_ACTIVE, 1.0),)))


# --- the reference's own expectations ----------------------------------------------------------------------------

COMPONENTS = frozenset(SPECS) | {"topology-level", "session-id-binding"}


def test_the_reference_expects_the_same():
    cases = run.loaded([shared("vectors/scheduling.json")])
    states = list(run.outcomes(cases, sorted(COMPONENTS)))
    assert [each.id for each in states if each.state != "passed"] == []
    assert len(states) > 150


def vector(component, kind, **fields):
    plain = {"id": f"{component}/made up", "params": {}, "endpoints": [], "request": {}, "tolerance": 0}
    return plain | {"component": component, "kind": kind} | fields


TWO = [{"name": "p", "namespace": "n", "labels": {"a": "x"}}, {"name": "q"}]
S = {"request_id": "r", "headers": {"x-session-id": "s"}}
MADE_UP = [
    vector("label-selector-filter", "filter", params={"matchLabels": {"a": "x"}}, endpoints=TWO, expect={"first": "p"}),
    vector(
        "endpoint-attribute-scorer",
        "scorer",
        params={"attributeKey": "h", "producer": "d", "algorithm": LOWER},
        endpoints=[{"name": "p", "attributes": {"scalars": {"h": 1}}}, {"name": "q"}],
        expect={"scores": {"p": 0.0, "q": 0.0}, "num_scores": 0, "unscored": ["q"]},
    ),
    vector(
        "endpoint-attribute-filter",
        "filter",
        params={
            "attribute": "llm-d.ai/multicluster-queue-size",
            "producer": "",
            "onMissing": "Fail",
            "algorithm": {"type": "threshold", "threshold": {"operator": "LessThan", "value": 10}},
        },
        endpoints=[{"name": "p", "attributes": {"multicluster_queue_size": 3}}, {"name": "q"}],
        expect={"kept": ["p"], "num_kept": 1},
    ),
    vector(
        "utilization-filter",
        "filter",
        params={"conditions": [{"metric": "waiting-queue", "maxValue": 1}]},
        endpoints=[{"name": "p", "metrics_null": True}],
        expect={"kept": ["p"], "min_kept": 1},
    ),
    vector(
        "context-length-aware",
        "function",
        params={"function": "parse_context_range", "input": "1-2"},
        expect={"value": {"min": 1, "max": 2}},
    ),
    vector(
        "session-affinity-filter",
        "filter",
        endpoints=TWO,
        request={"headers": {"x-session-token": "bi9w"}},
        expect={"kept": ["n/p"]},
    ),
    vector(
        "session-id-binding",
        "sequence",
        params={"strategy": "session_id", "profileName": "prefill"},
        endpoints=TWO,
        expect={},
        steps=[
            {
                "op": "pre_request",
                "request": S,
                "result": {"primary": "d", "profiles": {"prefill": {"targets": [{"name": "p", "namespace": "n"}]}}},
            },
            {"op": "choose", "request": S, "candidates": ["n/p", "q"], "expect": {"chosen": "n/p"}},
            {"op": "bound_pod", "session": "s", "expect": {"pod": "n/p"}},
        ],
    ),
    vector(
        "session-affinity-scorer",
        "response-header",
        target_endpoint={"name": "q"},
        initial_response_headers={"x": "y"},
        expect={"response_headers": {"x": "y", "x-session-token": "L3E="}},
    ),
]


@pytest.mark.parametrize("case", MADE_UP, ids=lambda case: f"{case['component']}, {case['kind']}")
def test_cases_made_up_here_run(case):
    check(case, run.RUNNERS[case["component"], case["kind"]])


WRONG = [
    vector("label-selector-filter", "filter", endpoints=TWO, expect={"kept": ["p"]}),
    vector("label-selector-filter", "filter", endpoints=TWO, expect={"num_kept": 1}),
    vector("label-selector-filter", "filter", endpoints=TWO, expect={"min_kept": 3}),
    vector("header-based-testing-filter", "filter", endpoints=TWO, expect={"kept": ["q"]}),
    vector("context-length-aware", "scorer", endpoints=TWO, expect={"relations": [["p", "<", "q"]]}),
    vector("context-length-aware", "function", params={"function": "other"}, expect={}),
    vector("topology-level", "function", params={"function": "parse_level", "input": "rack"}, expect={"error": True}),
    vector("topology-level", "function", params={"function": "parse_level", "input": "x"}, expect={"value": "host"}),
    vector("session-id-producer", "producer", params={"headerName": "a"}, expect={"session_id": "b"}),
    vector(
        "session-id-binding",
        "sequence",
        params={"strategy": "session_id"},
        expect={},
        steps=[{"op": "bound_pod", "session": "s", "expect": {"pod": "/p"}}],
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case['component']}, {case['kind']}")
def test_a_wrong_expectation_is_seen(case):
    with pytest.raises(Mismatch):
        check(case, run.RUNNERS[case["component"], case["kind"]])


def test_parameters_are_plain_data():
    for spec in SPECS.values():
        assert msgspec.json.schema(spec.parameters)


# --- a whole configuration ---------------------------------------------------------------------------------------


def test_a_whole_configuration_schedules_and_comes_back():
    """A filter and a scorer that ask for the same get one producer, whose source is the producer of sessions they name."""
    by_session = {
        "strategy": "session_id",
        "sessionIdConfig": {
            "sources": [{"attribute": "SessionID", "producer": "sid"}],
            "evictionTtlSeconds": 60,
        },
    }
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": "session-affinity-filter", "parameters": by_session},
            {"type": "session-affinity-scorer", "parameters": by_session},
            {"type": "session-id-producer", "name": "sid", "parameters": {"cookieName": "c"}},
            {"type": "topology-extractor", "name": "places", "parameters": {"zone": "z"}},
            {"type": "topology-affinity-scorer", "parameters": {"producerName": "places"}},
            {"type": "decode-filter"},
            {"type": "label-selector-filter", "parameters": {"matchLabels": {"app": "x"}}},
            {"type": "context-length-aware", "parameters": {"enableFiltering": True}},
            {"type": "random-picker"},
        ],
    }
    loaded = load(document, allow_experimental=True)
    scheduler = loaded.scheduler()
    [producer] = scheduler.producers
    assert (producer.sources, producer.ttl) == ((isched.SessionSource(cookie="c"),), 60.0)
    pool, rng = isched.InferencePool(), np.random.default_rng(0)
    for name in "abcd":
        pool.join(name, labels={"app": "x" if name != "d" else "y"})
    homes = {}
    for i in range(12):
        session = f"s-{i % 3}"
        request = isched.InferenceRequest(request_id=f"r-{i}", headers={"cookie": f"c={session}"})
        endpoint = scheduler.schedule_and_reserve(request, pool, now=float(i), rng=rng).endpoint
        assert homes.setdefault(session, endpoint) == endpoint != "d"
    again = load(dump(loaded, effective=True), allow_experimental=True)
    assert again.profiles == loaded.profiles
    told = load(dump_scheduler(scheduler))
    assert told.profiles == loaded.profiles
    assert [each.sources for each in told.producers] == [producer.sources]


def test_alpha_types_are_refused_unless_allowed():
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": "session-affinity-filter"}],
    }
    with pytest.raises(isched.ConfigError, match=r"plugins\[0\].type: got 'session-affinity-filter'"):
        load(document)
