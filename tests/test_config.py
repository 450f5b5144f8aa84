"""Does llm-d's configuration mean here what it means there, and come back as it was?"""

import numpy as np
import pytest

from inferencesched import (
    PREFIX_MATCH,
    PREFIX_TOKENS,
    WAITING_QUEUE_SIZE,
    ApproximatePrefixProducer,
    ConfigError,
    DependencyError,
    InferencePool,
    InferenceRequest,
    InvalidInputError,
    PrecisePrefixProducer,
    PrefixCacheScorer,
    Signal,
)
from inferencesched.config import (
    Need,
    Nothing,
    Parameters,
    PluginSpec,
    Registry,
    build,
    dependencies,
    dump,
    in_turn,
    load,
)
from inferencesched.config import Node as GraphNode
from inferencesched.config.document import OLD_API_VERSION
from inferencesched.config.picker_config import read
from inferencesched.signals import CACHED_BLOCKS, of_producer

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
PRECISE = "precise-prefix-cache-producer"
APPROXIMATE = "approx-prefix-cache-producer"

#: The reference's full example: one prefill server, several decode servers, the precise index.
FULL = {
    **HEAD,
    "plugins": [
        {"type": "token-producer", "parameters": {"modelName": "org/model", "vllm": {"url": "http://localhost:8000"}}},
        {"type": PRECISE, "parameters": {"tokenProcessorConfig": {"blockSizeTokens": 64}, "speculativeIndexing": True}},
        {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": PRECISE}},
        {"type": "queue-scorer"},
        {"type": "kv-cache-utilization-scorer"},
        {"type": "prefill-filter"},
        {"type": "decode-filter"},
        {"type": "max-score-picker"},
        {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": 16}},
        {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "prefix-based-pd-decider"}}},
        {"type": "metrics-data-source"},
        {"type": "core-metrics-extractor"},
        {"type": "endpoint-notification-source"},
    ],
    "dataLayer": {
        "sources": [
            {"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "core-metrics-extractor"}]},
            {"pluginRef": "endpoint-notification-source", "extractors": [{"pluginRef": PRECISE}]},
        ]
    },
    "schedulingProfiles": [
        {
            "name": "prefill",
            "plugins": [
                {"pluginRef": "prefill-filter"},
                {"pluginRef": "prefix-cache-scorer", "weight": 2},
                {"pluginRef": "queue-scorer", "weight": 1},
                {"pluginRef": "max-score-picker"},
            ],
        },
        {
            "name": "decode",
            "plugins": [
                {"pluginRef": "decode-filter"},
                {"pluginRef": "prefix-cache-scorer", "weight": 2},
                {"pluginRef": "kv-cache-utilization-scorer"},
                {"pluginRef": "queue-scorer"},
                {"pluginRef": "max-score-picker"},
            ],
        },
    ],
}


def said(*plugins, **more):
    return {**HEAD, "plugins": [{"type": each} if isinstance(each, str) else each for each in plugins], **more}


def pool(*roles):
    it = InferencePool()
    for i, role in enumerate(roles):
        it.join(f"ep-{i}", labels={"llm-d.ai/role": role} if role else {}, address=f"10.0.0.{i}:8000")
        it.observe(f"ep-{i}", {WAITING_QUEUE_SIZE: i}, now=0.0)
    return it


def decided(scheduler, it, tokens=256):
    request = InferenceRequest(request_id="r", model="m", tokens=np.arange(tokens, dtype=np.uint32))
    return scheduler.schedule(request, it.snapshot(), now=0.0, rng=np.random.default_rng(1))


# --- the reference's two -----------------------------------------------------------------------------------------


def test_the_default_configuration_is_that_of_the_reference():
    loaded = load()
    [profile] = loaded.profiles.values()
    assert [(type(each.scorer).__name__, each.weight) for each in profile.scorers] == [
        ("QueueScorer", 2.0),
        ("KvCacheUtilizationScorer", 2.0),
        ("PrefixCacheScorer", 3.0),
    ]
    assert loaded.created == (APPROXIMATE,)
    assert decided(loaded.scheduler(), pool("", "")).endpoint == "ep-0"


def test_the_full_example_schedules():
    loaded = load(FULL)
    result = decided(loaded.scheduler(), pool("decode", "prefill", "decode"))
    assert result.primary == "decode"
    assert {name: picked.target.endpoint for name, picked in result.profiles.items()} == {
        "decode": "ep-0",
        "prefill": "ep-1",
    }
    assert loaded.computing == ("prefill",)
    assert "token-producer" in {each.about for each in loaded.notes}
    assert loaded.warnings == ()


@pytest.mark.parametrize("raw", [None, FULL], ids=["default", "full"])
@pytest.mark.parametrize("effective", [False, True])
def test_what_is_dumped_loads_to_the_same(raw, effective):
    loaded = load(raw)
    again = load(dump(loaded, effective=effective))
    assert again.effective == loaded.effective
    assert dump(again, effective=effective) == dump(loaded, effective=effective)
    assert again.profiles == loaded.profiles
    assert again.handler == loaded.handler


def test_a_dump_is_what_was_said():
    assert dump(load(FULL)) == FULL


# --- defaults ----------------------------------------------------------------------------------------------------


def test_without_profiles_all_parts_make_up_one():
    [(name, profile)] = load(said("queue-scorer", "decode-filter", "random-picker")).profiles.items()
    assert name == "default"
    assert (len(profile.filters), len(profile.scorers)) == (1, 1)
    assert type(profile.picker).__name__ == "RandomPicker"


def test_of_several_pickers_the_first_serves_profiles_without_one_and_it_is_said():
    raw = said("queue-scorer", "random-picker", "max-score-picker")
    raw["schedulingProfiles"] = [{"name": "p", "plugins": [{"pluginRef": "queue-scorer"}]}]
    loaded = load(raw)
    assert type(loaded.profiles["p"].picker).__name__ == "RandomPicker"
    assert [each.about for each in loaded.notes if "first of 2 pickers" in each.words] == ["random-picker"]


def test_a_plug_in_that_is_two_things_is_both():
    raw = said({"type": "context-length-aware", "parameters": {"enableFiltering": True}})
    [profile] = load(raw).profiles.values()
    assert (len(profile.filters), len(profile.scorers)) == (1, 1)


def test_what_has_no_effect_is_said():
    raw = said("queue-scorer", "decode-filter", "always-disagg-pd-decider", flowControl={"maxRequests": 5})
    refs = ["queue-scorer", "always-disagg-pd-decider"]
    plugins = [{"pluginRef": "decode-filter", "weight": 2}, *({"pluginRef": ref} for ref in refs)]
    raw["schedulingProfiles"] = [{"name": "p", "plugins": plugins}]
    assert {each.about for each in load(raw).warnings} == {"flowControl", "decode-filter", "always-disagg-pd-decider"}


def test_a_handler_without_the_profile_that_it_answers_from():
    raw = {**FULL, "schedulingProfiles": FULL["schedulingProfiles"][:1]}
    [warning] = load(raw).warnings
    assert warning.about == "disagg-profile-handler" and "'decode'" in warning.words


def test_other_names_of_stages_are_told_to_the_producers():
    raw = {**FULL, "plugins": [{**each} for each in FULL["plugins"]]}
    raw["plugins"][9] = {"type": "disagg-profile-handler", "parameters": {"profiles": {"prefill": "p", "decode": "d"}}}
    raw["schedulingProfiles"] = [{**each, "name": each["name"][0]} for each in FULL["schedulingProfiles"]]
    assert load(raw).computing == ("p",)


# --- what is deprecated ------------------------------------------------------------------------------------------


def test_what_is_deprecated_is_read_and_said():
    raw = said(
        "queue-scorer",
        {"type": "utilization-detector", "name": "detector"},
        "openai-parser",
        {"type": "by-label-selector", "parameters": {"matchLabels": {"a": "b"}}},
        saturationDetector={"pluginRef": "detector"},
        parser={"pluginRef": "openai-parser"},
    )
    raw["apiVersion"] = OLD_API_VERSION
    loaded = load(raw)
    assert {each.path: each.instead for each in loaded.warnings} == {
        "$.apiVersion": "llm-d.ai/v1alpha1",
        "$.saturationDetector": "flowControl.saturationDetector",
        "$.parser": "requestHandler.parsers",
        "$.plugins[3].type": "label-selector-filter",
    }
    assert loaded.effective.flow_control.saturation_detector.plugin_ref == "detector"
    assert [each.plugin_ref for each in loaded.effective.request_handler.parsers] == ["openai-parser"]
    assert loaded.effective.api_version == "llm-d.ai/v1alpha1"
    assert dump(loaded) == raw


def test_where_both_are_said_the_new_place_counts():
    raw = said(
        {"type": "utilization-detector", "name": "old"},
        {"type": "utilization-detector", "name": "new"},
        saturationDetector={"pluginRef": "old"},
        flowControl={"saturationDetector": {"pluginRef": "new"}},
    )
    assert load(raw).effective.flow_control.saturation_detector.plugin_ref == "new"


@pytest.mark.parametrize(
    ("said_", "open_"), [("flowControl", True), ("flowControl=T", True), ("flowControl = 0", False)]
)
def test_gates(said_, open_):
    assert read(said(featureGates=[said_])).feature_gates["flowControl"] is open_


def test_alpha_types_have_to_be_allowed():
    raw = said({"type": "session-affinity-scorer", "parameters": {"strategy": "session_id"}})
    with pytest.raises(ConfigError, match="alpha"):
        load(raw)
    assert len(build(raw, allow_experimental=True).producers) == 1


# --- producers ---------------------------------------------------------------------------------------------------


def test_who_names_the_producer_of_the_plain_columns_reads_those():
    """They are what kernels know; the document keeps the name."""
    loaded = load(FULL)
    assert loaded.producers == (loaded.plugins[PRECISE],)
    scorers = [each.scorer for each in loaded.profiles["decode"].scorers]
    assert scorers[0] == PrefixCacheScorer()
    assert dump(loaded)["plugins"][2]["parameters"] == {"prefixMatchInfoProducerName": PRECISE}


def test_a_decider_inside_a_handler_reads_them_too():
    raw = {**FULL, "plugins": [{**each} for each in FULL["plugins"]]}
    raw["plugins"][8] = {
        "type": "prefix-based-pd-decider",
        "parameters": {"nonCachedTokens": 16, "prefixMatchInfoProducerName": PRECISE},
    }
    loaded = load(raw)
    assert loaded.handler == load(FULL).handler
    assert loaded.handler.prefill_decider is loaded.plugins["prefix-based-pd-decider"]


def test_of_two_producers_the_usual_one_fills_the_plain_columns():
    raw = said(
        PRECISE,
        {"type": APPROXIMATE, "name": "sent"},
        {"type": "prefix-cache-scorer", "name": "exact", "parameters": {"prefixMatchInfoProducerName": PRECISE}},
        {"type": "prefix-cache-scorer", "name": "guess"},
    )
    loaded = load(raw)
    exact, sent = loaded.producers
    assert set(exact.produces) == {of_producer(PREFIX_MATCH, PRECISE)}  # a ratio is all that this scorer reads
    assert {PREFIX_MATCH, PREFIX_TOKENS} <= set(sent.produces)
    assert isinstance(loaded.plugins["sent"], ApproximatePrefixProducer)
    assert decided(loaded.scheduler(), pool("", "")).endpoint in ("ep-0", "ep-1")


def test_a_scorer_reads_the_producer_that_it_names():
    """The approximate index knows where the prompt went, the precise one, which nobody told, does not."""
    raw = said(
        APPROXIMATE,
        PRECISE,
        {"type": "prefix-cache-scorer", "name": "exact", "parameters": {"prefixMatchInfoProducerName": PRECISE}},
        {"type": "prefix-cache-scorer", "name": "guess", "parameters": {"prefixMatchInfoProducerName": APPROXIMATE}},
        {"type": "prefix-cache-scorer", "name": "usual"},
    )
    scheduler, it = load(raw).scheduler(), pool("", "")
    scheduler.reserve(decided(scheduler, it), it, now=0.0)
    result = decided(scheduler, it)
    assert (result.target.score, result.target.tokens) == (2.0, 0)


def test_a_producer_that_nobody_reads_beside_another_is_left_out_and_it_is_said():
    loaded = load(said(APPROXIMATE, PRECISE, "prefix-cache-scorer"))
    assert [type(each) for each in loaded.producers] == [ApproximatePrefixProducer]
    assert [each.about for each in loaded.warnings] == [PRECISE]


def test_the_only_producer_serves_whoever_names_none():
    loaded = load(said(PRECISE, "prefix-cache-scorer"))
    assert [type(each) for each in loaded.producers] == [PrecisePrefixProducer]
    assert loaded.created == ()


def test_producers_are_made_for_whom_producers_need():
    loaded = load(said("p2p-source-producer", "queue-scorer"), allow_experimental=True)
    assert loaded.created == (APPROXIMATE,)
    assert CACHED_BLOCKS in loaded.plugins[APPROXIMATE].produces


def test_two_that_need_the_same_producer_in_different_ways_have_to_say_so():
    first, second = ({"type": "no-hit-lru-scorer", "name": str(i), "parameters": {"lruSize": i}} for i in (4, 5))
    with pytest.raises(ConfigError, match=r"\$\.plugins\[1\]\.parameters: got \{'lruSize': 5\}.*no-hit-lru-producer"):
        load(said(first, second))
    assert load(said(first, {**first, "name": "6"})).created[0] == "no-hit-lru-producer"


# --- registries --------------------------------------------------------------------------------------------------


def test_a_type_is_registered_once():
    spec = Registry.default()["queue-scorer"]
    with pytest.raises(ConfigError, match="queue-scorer"):
        Registry.default().with_plugins([spec])


def test_registries_do_not_change():
    ours = Registry.default()
    more = ours.with_plugins([PluginSpec("mine", ("inert",), Nothing, lambda p, w: None)]).with_gates({"mine": True})
    assert "mine" in more and "mine" not in ours
    assert more.gates["mine"] and "mine" not in ours.gates


def test_a_registry_of_ones_own_needs_nothing_else():
    """The types of defaults have to be there all the same: the picker and the handler."""
    ours = Registry.default()
    few = Registry([ours["queue-scorer"], ours["max-score-picker"], ours["single-profile-handler"]])
    assert len(build(said("queue-scorer"), registry=few).profiles["default"].scorers) == 1


@pytest.mark.parametrize("kind", ["nobody", "single-profile-handler"])
def test_a_need_that_cannot_be_met_is_an_error_at_whoever_has_it(kind):
    column = Signal("moon_phase", freshness="cycle")
    scorer = PluginSpec(
        "lunar-scorer", ("scorer",), Nothing, lambda p, w: object(), needs=lambda p: (Need(column, kind),)
    )
    with pytest.raises(ConfigError, match=r"\$\.plugins\[0\]: got 'lunar-scorer'.*moon_phase"):
        load(said("lunar-scorer"), registry=Registry.default().with_plugins([scorer]))


class HalfLife(Parameters, frozen=True, kw_only=True, rename="camel"):
    half_life: float = 0.0


def test_a_plug_in_s_own_refusal_has_the_path_of_the_parameter():
    def refuse(parameters, workshop):
        raise InvalidInputError("half_life", parameters.half_life, "above 0")

    mine = PluginSpec("half-life", ("scorer",), HalfLife, refuse)
    with pytest.raises(ConfigError) as caught:
        load(
            said({"type": "half-life", "parameters": {"halfLife": -1}}),
            registry=Registry.default().with_plugins([mine]),
        )
    assert (caught.value.parameter, caught.value.value) == ("$.plugins[0].parameters.halfLife", -1.0)


# --- who depends on whom -----------------------------------------------------------------------------------------

TOKENS = Signal("tokens", "tokens", freshness="cycle")


def test_flow_control_runs_before_requests_are_prepared():
    producer = GraphNode("producer", fills=(TOKENS,), layer="request-control")
    with pytest.raises(DependencyError, match="flow-control"):
        dependencies([producer, GraphNode("policy", reads=(TOKENS,), layer="flow-control")])
    assert dependencies([producer, GraphNode("scorer", reads=(TOKENS,), layer="scheduling")])["scorer"] == ("producer",)


def test_a_column_is_of_one_unit():
    other = Signal("tokens", "blocks", freshness="cycle")
    with pytest.raises(DependencyError, match="blocks"):
        dependencies([GraphNode("a", fills=(TOKENS,)), GraphNode("b", reads=(other,))])


def test_nobody_waits_for_himself_in_a_circle():
    with pytest.raises(DependencyError, match="cycle"):
        in_turn({"a": ["b"], "b": ["c"], "c": ["a"]})
