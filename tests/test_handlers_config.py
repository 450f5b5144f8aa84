"""Are handlers and deciders what a configuration says of them, and is that read back?"""

import numpy as np
import pytest

import inferencesched as isched
from inferencesched.config.catalogue.handlers import SPECS, nested
from tests.parity.specs import build_from
from tests.parity.specs import settings as said_of

BY_NAME = {spec.name: spec for spec in SPECS}
DECIDERS = {"always": isched.AlwaysDecider(), "often": isched.PrefixBasedDecider(8), "no decider": isched.QueueScorer()}


def configured(kind, **params):
    return build_from(BY_NAME[kind], {"params": params}, DECIDERS)


def test_both_spellings_say_the_same():
    flat = {"decodeProfile": "d", "prefillDeciderPluginName": "often", "encodeDeciderPluginName": "always"}
    deep = {"profiles": {"decode": "d"}, "deciders": {"prefill": "often", "encode": "always"}}
    older = {**flat, "deciderPluginName": flat["prefillDeciderPluginName"]}
    expected = isched.DisaggProfileHandler(isched.StageNames("d"), DECIDERS["often"], DECIDERS["always"])
    assert [configured("disagg-profile-handler", **each) for each in (flat, deep, older)] == [expected] * 3
    assert configured("pd-profile-handler", decodeProfile="d", deciderPluginName="often", primaryPort=9) == (
        isched.DisaggProfileHandler(isched.StageNames("d"), DECIDERS["often"], primary_port=9)
    )


@pytest.mark.parametrize(
    ("kind", "params", "parameter"),
    [
        ("disagg-profile-handler", {"decodeProfile": "a", "profiles": {}}, "decodeProfile"),
        ("disagg-profile-handler", {"deciderPluginName": "often", "deciders": {}}, "deciderPluginName"),
        (
            "disagg-profile-handler",
            {"deciderPluginName": "often", "prefillDeciderPluginName": "always"},
            "deciderPluginName",
        ),
        ("disagg-profile-handler", {"stageOrder": "encode-first"}, "stageOrder"),
        (
            "disagg-profile-handler",
            {"stageOrder": "prefill-first", "deciders": {"prefill": "often"}},
            r"deciders\.prefill",
        ),
        ("disagg-profile-handler", {"deciders": {"encode": "no decider"}}, r"deciders\.encode"),
        ("disagg-profile-handler", {"profiles": {"decode": "a", "encode": "a"}}, "profiles"),
        ("pd-profile-handler", {"deciderPluginName": ""}, "deciderPluginName"),
        ("joint-disagg-profile-handler", {"deciders": {"prefill": "no decider"}}, r"deciders\.prefill"),
    ],
)
def test_configurations_that_mean_nothing(kind, params, parameter):
    with pytest.raises(isched.InvalidInputError, match=f"^{parameter}: got"):
        configured(kind, **params)


@pytest.mark.parametrize("said", ["prefill-first", "PrefillFirst", "PREFILL-FIRST", "prefillfirst"])
def test_an_order_of_stages_by_any_of_its_names(said):
    assert configured("disagg-profile-handler", stageOrder=said).stage_order == "prefill-first"


STAGED = {"profiles": {"encode": "e"}, "deciders": {"prefill": "often", "encode": "always"}}


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("single-profile-handler", {}),
        ("header-profile-handler", {"headerName": " X-Profile", "defaultProfile": "p"}),
        ("data-parallel-profile-handler", {"primaryPort": 0}),
        ("disagg-profile-handler", {**STAGED, "stageOrder": "DecodeFirst", "primaryPort": 9}),
        ("disagg-profile-handler", {"stageOrder": "prefill-first", "profiles": {"decode": "d"}}),
        ("pd-profile-handler", {"deciderPluginName": "often", "primaryPort": 8000, "prefixPluginName": "ignored"}),
        ("joint-disagg-profile-handler", {}),
        (
            "joint-disagg-profile-handler",
            {
                **STAGED,
                "primaryPort": 9,
                "transferWeight": 2.0,
                "transferScores": {"rack": 0.5},
                "labels": {"rack": "r"},
            },
        ),
        ("disagg-headers-handler", {"prefillProfile": "p", "encodeProfile": ""}),
        ("prefill-header-handler", {"prefillProfile": "p"}),
        ("always-disagg-pd-decider", {}),
        ("always-disagg-multimodal-decider", {}),
        ("prefix-based-pd-decider", {"nonCachedTokens": 8, "promptTokens": 9, "prefixMatchInfoProducerName": "x"}),
    ],
)
def test_what_is_read_back_builds_the_same(kind, params):
    """The names of plug-ins that it holds are the dump's to fill in: `parts` says which go where."""
    spec = BY_NAME[kind]
    made = configured(kind, **params)
    assert spec.made in (None, type(made))
    written = said_of(spec.read(made))
    for path, part in spec.parts(made).items():
        name = next((name for name, decider in DECIDERS.items() if decider == part), None)
        table, _, key = path.rpartition(".")
        if table:
            written[table] = {**(written.get(table) if isinstance(written.get(table), dict) else {}), key: name}
        else:
            written[key] = name
    plain = {key: said_of(value) if hasattr(value, "__struct_fields__") else value for key, value in written.items()}
    assert configured(kind, **{key: value for key, value in plain.items() if value is not None}) == made


class Flat:
    """A transfer that has no name in a configuration."""

    def pairs(self, request, endpoints, prefill, decode, cycle):
        return np.zeros((len(prefill), len(decode)))


def test_what_a_configuration_cannot_say():
    for kind, plugin, parameter in (
        ("pd-profile-handler", isched.DisaggProfileHandler(), "handler"),
        ("joint-disagg-profile-handler", isched.JointDisaggHandler(transfer=Flat()), "transfer"),
    ):
        with pytest.raises(isched.InvalidInputError, match=f"^{parameter}: got"):
            BY_NAME[kind].read(plugin)


def test_only_the_flat_spelling_is_told_from_the_nested_one():
    said = nested(BY_NAME["disagg-profile-handler"].parameters())
    assert [said_of(each) for each in said] == [
        {"decode": "decode", "prefill": "prefill", "encode": "encode"},
        {"prefill": None, "encode": None},
    ]
