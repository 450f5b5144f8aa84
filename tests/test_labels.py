import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.filters.labels import ROLE_LABEL, ROLES
from inferencesched.testing import Scene, Server, all_checks_of
from tests import naive_affinity as naive

REQUEST = isched.InferenceRequest(request_id="r")
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)

KEYS = ("app", "tier", "llm-d.ai/role")
VALUES = ("a", "b", "decode", "both", "")
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3)
POOLS = st.lists(LABELS, min_size=1, max_size=7)


def pool_of(labels):
    pool = isched.InferencePool()
    for i, each in enumerate(labels):
        pool.join(f"ep-{i}", labels=each)
    return pool.snapshot()


def kept(plugin, labels):
    return plugin.filter(REQUEST, pool_of(labels), CYCLE).tolist()


# --- the column of a label ---------------------------------------------------------------------------------------


@given(POOLS, st.sampled_from((*KEYS, "nobody")), st.data())
def test_a_label_is_a_column(labels, key, data):
    endpoints = pool_of(labels)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))), dtype=bool)
    for some in (endpoints, endpoints.where(keep)):
        values, codes = some.label_column(key)
        assert codes.dtype == np.intp
        assert [None if code < 0 else values[code] for code in codes] == [
            some.labels(i).get(key) for i in range(len(some))
        ]
        assert len(set(values)) == len(values)


def test_a_column_is_made_once_and_cannot_be_written():
    endpoints = pool_of([{"a": "x"}, {}])
    assert endpoints.label_column("a").codes is endpoints.label_column("a").codes
    with pytest.raises(ValueError, match="read-only"):
        endpoints.label_column("a").codes[0] = 1


# --- roles -------------------------------------------------------------------------------------------------------

FILTERS = {"decode": isched.DecodeFilter, "prefill": isched.PrefillFilter, "encode": isched.EncodeFilter}


@given(st.lists(st.sampled_from([*sorted(set().union(*naive.ROLES.values())), "odd", "", None]), min_size=1))
def test_roles(roles):
    labels = [{} if role is None else {"llm-d.ai/role": role} for role in roles]
    for role, make in FILTERS.items():
        assert kept(make(), labels) == [naive.plays(role, each) for each in labels]


def test_who_does_everything_takes_part_in_everything():
    assert set.intersection(*map(set, ROLES.values())) == {"encode-prefill-decode"}
    assert all(ROLES[role] == naive.ROLES[role] for role in ROLES)


def test_a_label_of_ones_own():
    assert kept(isched.PrefillFilter("role"), [{"role": "both"}, {ROLE_LABEL: "both"}]) == [True, False]


# --- one label, and selectors ------------------------------------------------------------------------------------


@given(POOLS, st.lists(st.sampled_from(VALUES), max_size=3).map(tuple), st.booleans())
def test_one_label(labels, values, missing):
    if not values and not missing:
        return
    ours = kept(isched.LabelFilter("tier", values, missing), labels)
    assert ours == [naive.labelled(each, "tier", values, missing) for each in labels]


EXPRESSIONS = st.tuples(st.sampled_from(KEYS), st.sampled_from(("Exists", "DoesNotExist")), st.just(())) | st.tuples(
    st.sampled_from(KEYS),
    st.sampled_from(("In", "NotIn")),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=3).map(tuple),
)


@given(
    POOLS,
    st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2),
    st.lists(EXPRESSIONS, max_size=3),
    st.data(),
)
def test_a_selector_is_its_requirements_one_by_one(labels, match, expressions, data):
    plugin = isched.LabelSelectorFilter(match, tuple(isched.LabelRequirement(*each) for each in expressions))
    expected = [naive.selected(each, match, expressions) for each in labels]
    assert kept(plugin, labels) == expected
    one_by_one = [all(each.met_by(some.get(each.key)) for each in plugin.requirements) for some in labels]
    assert one_by_one == expected
    shuffled = data.draw(st.permutations(plugin.match_expressions))
    assert kept(isched.LabelSelectorFilter(plugin.match_labels, tuple(shuffled)), labels) == expected


@given(POOLS, EXPRESSIONS)
def test_each_operator_has_its_opposite(labels, expression):
    key, operator, values = expression
    opposite = {"In": "NotIn", "NotIn": "In", "Exists": "DoesNotExist", "DoesNotExist": "Exists"}[operator]
    one, other = (
        kept(isched.LabelSelectorFilter((), (isched.LabelRequirement(key, each, values),)), labels)
        for each in (operator, opposite)
    )
    assert [a != b for a, b in zip(one, other, strict=True)] == [True] * len(labels)


def test_no_requirement_keeps_all_and_a_mapping_is_its_pairs():
    assert kept(isched.LabelSelectorFilter(), [{}, {"a": "b"}]) == [True, True]
    pairs = isched.LabelSelectorFilter((("b", "2"), ("a", "1")))
    assert pairs == isched.LabelSelectorFilter({"a": "1", "b": "2"})
    assert hash(pairs) == hash(isched.LabelSelectorFilter({"b": "2", "a": "1"}))


@settings(max_examples=30)
@given(POOLS, st.lists(EXPRESSIONS, min_size=1, max_size=3))
def test_one_more_requirement_never_lets_more_in(labels, expressions):
    requirements = tuple(isched.LabelRequirement(*each) for each in expressions)
    more = kept(isched.LabelSelectorFilter((), requirements), labels)
    fewer = kept(isched.LabelSelectorFilter((), requirements[:-1]), labels)
    assert all(b or not a for a, b in zip(more, fewer, strict=True))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: isched.LabelFilter(""), "label: got ''"),
        (lambda: isched.LabelFilter("a"), "values: got \\(\\), allowed: at least one, unless"),
        (lambda: isched.LabelFilter("a", "bc"), "values: got 'bc', allowed: a tuple of values"),
        (lambda: isched.DecodeFilter(""), "label: got ''"),
        (lambda: isched.LabelRequirement("a", "Like", ("b",)), "operator: got 'Like', allowed: one of In, NotIn"),
        (lambda: isched.LabelRequirement("a", "In"), "values: got \\(\\), allowed: at least one with In"),
        (lambda: isched.LabelRequirement("a", "Exists", ("b",)), "values: got \\('b',\\), allowed: none with Exists"),
        (lambda: isched.LabelRequirement("a", "In", "bc"), "values: got 'bc', allowed: a tuple"),
        (lambda: isched.LabelRequirement("a b", "Exists"), "key: got 'a b'"),
        (lambda: isched.LabelRequirement("UP/a", "Exists"), "key: got 'UP/a'"),
        (lambda: isched.LabelRequirement("x" * 64, "Exists"), "key: got 'xxx"),
        (lambda: isched.LabelRequirement("/a", "Exists"), "key: got '/a'"),
        (lambda: isched.LabelRequirement("a", "In", ("b c",)), "values: got 'b c'"),
        (lambda: isched.LabelSelectorFilter({"": "b"}), "match_labels: got ''"),
        (lambda: isched.LabelSelectorFilter({"a": "-b"}), "match_labels: got '-b'"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()


# --- the contract ------------------------------------------------------------------------------------------------

SCENES = [
    Scene(
        "labelled",
        REQUEST,
        tuple(
            Server(f"ep-{i}", i, 10 + i, {}, labels)
            for i, labels in enumerate(
                [{}, {"llm-d.ai/role": "decode"}, {"llm-d.ai/role": "prefill", "tier": "a"}, {"tier": "b"}]
            )
        ),
    )
]
CHECKS = [
    check
    for plugin in (
        isched.DecodeFilter(),
        isched.PrefillFilter(),
        isched.EncodeFilter(),
        isched.LabelFilter("tier", ("a",), True),
        isched.LabelSelectorFilter({"tier": "a"}, (isched.LabelRequirement("llm-d.ai/role", "NotIn", ("decode",)),)),
    )
    for check in all_checks_of(plugin, more=SCENES)
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check):
    check()
