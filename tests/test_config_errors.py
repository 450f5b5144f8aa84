"""Does each mistake in a configuration give one clear error: where, what was found, what is allowed, and what was probably meant?"""

from typing import Any

import pytest

from inferencesched import ConfigError
from inferencesched.config import load

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
OWN = {"apiVersion": "inferencesched/v1", "kind": "Scheduler"}
QUEUE = {"type": "queue-scorer"}
PICKER = {"type": "max-score-picker"}


def llmd(*plugins: Any, profiles: Any = None, **more: Any) -> dict[str, Any]:
    said = {**HEAD, "plugins": list(plugins), **more}
    return said if profiles is None else {**said, "schedulingProfiles": profiles}


def profile(*refs: Any, name: str = "default") -> dict[str, Any]:
    return {"name": name, "plugins": [{"pluginRef": ref} if isinstance(ref, str) else ref for ref in refs]}


def own(**more: Any) -> dict[str, Any]:
    return {**OWN, "profiles": {"default": {"scorers": ["queue-scorer"]}}, **more}


def scored(**parameters: Any) -> dict[str, Any]:
    return llmd({"type": "token-load-scorer", "parameters": parameters})


DISAGG = {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "pd"}}}
DECIDER = {"name": "pd", "type": "prefix-based-pd-decider"}
TWO = [profile("queue-scorer", name="prefill"), profile("queue-scorer", name="decode")]

#: What was written, where the mistake is, and words of what was found or is allowed.
BROKEN: list[tuple[str, Any, str, tuple[str, ...]]] = [
    # the document
    ("not a mapping", ["plugins"], "$", ("['plugins']", "a mapping")),
    ("no kind", {"apiVersion": HEAD["apiVersion"]}, "$.kind", ("nothing", "EndpointPickerConfig", "Scheduler")),
    ("another kind", {**HEAD, "kind": "InferencePool"}, "$.kind", ("'InferencePool'", "EndpointPickerConfig")),
    ("no version", {"kind": HEAD["kind"]}, "$.apiVersion", ("nothing", "llm-d.ai/v1alpha1")),
    ("another version", {**HEAD, "apiVersion": "llm-d.ai/v9"}, "$.apiVersion", ("'llm-d.ai/v9'", "llm-d.ai/v1alpha1")),
    ("a misspelt section", {**HEAD, "plugin": []}, "$.plugin", ("no such key", "did you mean 'plugins'?")),
    ("plugins as a mapping", {**HEAD, "plugins": {"a": 1}}, "$.plugins", ("{'a': 1}", "a list of")),
    ("a plug-in that is text", llmd("queue-scorer"), "$.plugins[0]", ("'queue-scorer'", "name, type, parameters")),
    ("a number as a name", llmd({**QUEUE, "name": 7}), "$.plugins[0].name", ("got 7", "text")),
    # feature gates
    (
        "an unknown gate",
        llmd(QUEUE, featureGates=["flowControll"]),
        "$.featureGates[0]",
        ("flowControll", "flowControl"),
    ),
    (
        "a gate ajar",
        llmd(QUEUE, featureGates=["flowControl=maybe"]),
        "$.featureGates[0]",
        ("maybe", "flowControl=true"),
    ),
    ("gates as text", llmd(QUEUE, featureGates="flowControl"), "$.featureGates", ("'flowControl'", "a list of text")),
    # plug-ins
    ("no type", llmd({"name": "a"}), "$.plugins[0].type", ("nothing", "text")),
    ("an empty type", llmd({"type": ""}), "$.plugins[0].type", ("''", "not empty")),
    (
        "an unknown type",
        llmd({"type": "que-scorer"}),
        "$.plugins[0].type",
        ("registered", "did you mean 'queue-scorer'?"),
    ),
    (
        "a name twice",
        llmd(QUEUE, {**PICKER, "name": "queue-scorer"}),
        "$.plugins[1].name",
        ("queue-scorer", "$.plugins[0]"),
    ),
    ("a misspelt key", llmd({**QUEUE, "paramters": {}}), "$.plugins[0].paramters", ("did you mean 'parameters'?",)),
    ("an alpha type", llmd({"type": "session-affinity-scorer"}), "$.plugins[0].type", ("alpha", "allow_experimental")),
    ("parameters as a list", llmd({**QUEUE, "parameters": [1]}), "$.plugins[0].parameters", ("[1]", "a mapping")),
    ("parameters for nobody", llmd({**QUEUE, "parameters": {"a": 1}}), "$.plugins[0].parameters.a", ("no key at all",)),
    # parameters
    (
        "an unknown parameter",
        scored(queueTresholdTokens=9),
        "$.plugins[0].parameters.queueTresholdTokens",
        ("got 9", "did you mean 'queueThresholdTokens'?"),
    ),
    (
        "text for a number",
        scored(queueThresholdTokens="9"),
        "$.plugins[0].parameters.queueThresholdTokens",
        ("'9'", "a number"),
    ),
    (
        "true for a number",
        scored(queueThresholdTokens=True),
        "$.plugins[0].parameters.queueThresholdTokens",
        ("True", "a number"),
    ),
    (
        "half a picker",
        llmd({**PICKER, "parameters": {"maxNumOfEndpoints": 1.5}}),
        "$.plugins[0].parameters.maxNumOfEndpoints",
        ("1.5", "a whole number"),
    ),
    (
        "a weight above 1",
        llmd({"type": "prefix-cache-scorer", "parameters": {"matchLengthWeight": 1.5}}),
        "$.plugins[0].parameters.matchLengthWeight",
        ("1.5", "1"),
    ),
    (
        "a word of no list",
        llmd({"type": "latency-scorer", "parameters": {"headroomSelectionStrategy": "last"}}),
        "$.plugins[0].parameters.headroomSelectionStrategy",
        ("'last'", "least", "most"),
    ),
    (
        "two levels down",
        llmd({"type": "precise-prefix-cache-producer", "parameters": {"tokenProcessorConfig": {"blockSize": "x"}}}),
        "$.plugins[0].parameters.tokenProcessorConfig.blockSize",
        ("'x'", "a whole number"),
    ),
    (
        "in a list",
        llmd({"type": "label-selector-filter", "parameters": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
        "$.plugins[0].parameters.matchExpressions[0].operator",
        ("Near", "In", "NotIn"),
    ),
    (
        "a required parameter",
        llmd({"type": "by-label", "parameters": {"allowsNoLabel": True}}),
        "$.plugins[0].parameters.label",
        ("nothing", "text"),
    ),
    # references
    (
        "a decider that is not there",
        llmd(QUEUE, DISAGG, profiles=TWO),
        "$.plugins[1].parameters.deciders.prefill",
        ("'pd'", "one of"),
    ),
    (
        "a decider that is a scorer",
        llmd({**QUEUE, "name": "pd"}, QUEUE, DISAGG, profiles=TWO),
        "$.plugins[2].parameters.deciders.prefill",
        ("'pd'", "decider"),
    ),
    (
        "a producer that is not there",
        llmd({"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "exact"}}),
        "$.plugins[0].parameters.prefixMatchInfoProducerName",
        ("'exact'", "a producer of prefix_match"),
    ),
    (
        "a producer of something else",
        llmd(
            {"name": "x", "type": "no-hit-lru-producer"},
            {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "x"}},
        ),
        "$.plugins[1].parameters.prefixMatchInfoProducerName",
        ("'x'", "cold_rank"),
    ),
    # profiles
    (
        "no name of a profile",
        llmd(QUEUE, profiles=[{"plugins": []}]),
        "$.schedulingProfiles[0].name",
        ("nothing", "text"),
    ),
    ("an empty name", llmd(QUEUE, profiles=[profile(name="")]), "$.schedulingProfiles[0].name", ("''", "not empty")),
    (
        "a profile twice",
        llmd(QUEUE, PICKER, profiles=[profile("queue-scorer"), profile("queue-scorer")]),
        "$.schedulingProfiles[1].name",
        ("'default'", "$.schedulingProfiles[0]"),
    ),
    (
        "a reference to nobody",
        llmd(QUEUE, profiles=[profile("queue-scorrer")]),
        "$.schedulingProfiles[0].plugins[0].pluginRef",
        ("did you mean 'queue-scorer'?",),
    ),
    (
        "no reference at all",
        llmd(QUEUE, profiles=[profile({"weight": 2})]),
        "$.schedulingProfiles[0].plugins[0].pluginRef",
        ("nothing", "text"),
    ),
    (
        "a weight in words",
        llmd(QUEUE, profiles=[profile({"pluginRef": "queue-scorer", "weight": "two"})]),
        "$.schedulingProfiles[0].plugins[0].weight",
        ("'two'", "a number"),
    ),
    (
        "an infinite weight",
        llmd(QUEUE, profiles=[profile({"pluginRef": "queue-scorer", "weight": float("inf")})]),
        "$.schedulingProfiles[0].plugins[0].weight",
        ("inf", "finite"),
    ),
    (
        "two pickers",
        llmd(QUEUE, PICKER, {"type": "random-picker"}, profiles=[profile("max-score-picker", "random-picker")]),
        "$.schedulingProfiles[0].plugins[1].pluginRef",
        ("'random-picker'", "max-score-picker"),
    ),
    # handlers
    (
        "two handlers",
        llmd({"type": "single-profile-handler"}, {"name": "b", "type": "single-profile-handler"}),
        "$.plugins[1]",
        ("'b'", "one profile handler"),
    ),
    ("no handler for two", llmd(QUEUE, profiles=TWO), "$.schedulingProfiles", ("decode", "disagg-profile-handler")),
    (
        "a single handler for two",
        llmd(QUEUE, {"type": "single-profile-handler"}, profiles=TWO),
        "$.plugins[1]",
        ("single-profile-handler", "decode"),
    ),
    # what a gateway runs
    (
        "a source that is not there",
        llmd(QUEUE, dataLayer={"sources": [{"pluginRef": "metrics"}]}),
        "$.dataLayer.sources[0].pluginRef",
        ("'metrics'", "source"),
    ),
    (
        "a scorer as an extractor",
        llmd(
            QUEUE,
            {"type": "metrics-data-source"},
            dataLayer={
                "sources": [{"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "queue-scorer"}]}]
            },
        ),
        "$.dataLayer.sources[0].extractors[0].pluginRef",
        ("extractor", "queue-scorer is a scorer"),
    ),
    (
        "an extractor as text",
        llmd(QUEUE, dataLayer={"sources": [{"pluginRef": "metrics-data-source", "extractors": ["a"]}]}),
        "$.dataLayer.sources[0].extractors[0]",
        ("'a'", "pluginRef"),
    ),
    (
        "a picker as a parser",
        llmd(PICKER, requestHandler={"parsers": [{"pluginRef": "max-score-picker"}]}),
        "$.requestHandler.parsers[0].pluginRef",
        ("a parser", "is a picker"),
    ),
    (
        "an unknown detector",
        llmd(QUEUE, flowControl={"saturationDetector": {"pluginRef": "x"}}),
        "$.flowControl.saturationDetector.pluginRef",
        ("'x'", "saturation-detector"),
    ),
    (
        "an unknown policy",
        llmd(
            QUEUE,
            featureGates=["flowControl"],
            flowControl={"priorityBands": [{"priority": 1, "orderingPolicyRef": "lifo"}]},
        ),
        "$.flowControl.priorityBands[0].orderingPolicyRef",
        ("'lifo'", "ordering-policy"),
    ),
    (
        "a duration without a unit",
        llmd(QUEUE, flowControl={"defaultRequestTTL": "60"}),
        "$.flowControl.defaultRequestTTL",
        ("'60'", "60s"),
    ),
    (
        "a quantity in words",
        llmd(QUEUE, flowControl={"priorityBands": [{"priority": 1, "maxBytes": "1 GB"}]}),
        "$.flowControl.priorityBands[0].maxBytes",
        ("'1 GB'", "1Gi"),
    ),
    (
        "a plug-in in place, in llm-d's form",
        llmd(
            QUEUE,
            {**DISAGG, "parameters": {"deciders": {"prefill": {"type": "always-disagg-pd-decider"}}}},
            profiles=TWO,
        ),
        "$.plugins[1].parameters.deciders.prefill",
        ("always-disagg-pd-decider", "text"),
    ),
    # the library's own form
    ("no profile", {**OWN, "profiles": {}}, "$.profiles", ("{}", "at least one")),
    (
        "a filter as a scorer",
        own(profiles={"a b": {"scorers": ["decode-filter"]}}),
        '$.profiles["a b"].scorers[0].type',
        ("decode-filter", "a scorer"),
    ),
    (
        "a weight of a filter",
        own(profiles={"p": {"filters": [{"type": "decode-filter", "weight": 1}]}}),
        "$.profiles.p.filters[0].weight",
        ("no such key",),
    ),
    ("a misspelt policy", own(stale={"assume": "worse"}), "$.stale.assume", ("'worse'", "did you mean 'worst'?")),
    ("no patience", own(stale={"after": 0}), "$.stale.after", ("got 0", "above 0")),
    ("an unknown profile", own(computing=["prefil"]), "$.computing[0]", ("'prefil'", "default")),
    (
        "a plug-in in place",
        own(handler={"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": {"type": "always"}}}}),
        "$.handler.parameters.deciders.prefill.type",
        ("'always'", "registered"),
    ),
    (
        "no type in place",
        own(handler={"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": {"typ": "x"}}}}),
        "$.handler.parameters.deciders.prefill",
        ("{'typ': 'x'}", "text"),
    ),
]


def test_there_are_fifty_of_them():
    assert len(BROKEN) >= 50
    assert len({name for name, *_ in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize(("raw", "path", "words"), [pytest.param(*rest, id=name) for name, *rest in BROKEN])
def test_one_clear_error(raw, path, words):
    with pytest.raises(ConfigError) as caught:
        load(raw)
    error = caught.value
    assert error.parameter == path
    for word in words:
        assert word in str(error)
    assert len(str(error)) < 600
