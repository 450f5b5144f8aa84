"""Does the page of the catalogue tell of every plug-in, and is what it tells of columns and defaults so?"""

import json
import re
from pathlib import Path

import msgspec
import pytest

import inferencesched as isched
from inferencesched import signals
from inferencesched.config.catalogue import CATALOGUE
from inferencesched.config.spec import Opaque
from inferencesched.endpoints import STANDARD_SIGNALS, Signal
from inferencesched.framework import Reader
from tests.examples import EXAMPLES, exported, plugin_classes

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "catalogue.md"
ARROWS = {"lower": "↓", "higher": "↑", "": ""}
NOTHING = "-"
HEAD = ["plug-in", "what it says", "reads", "parameters and defaults", "beside llm-d"]
#: What is read by those that are given signals or other plug-ins.
GIVEN = {
    "AllOf": "what its filters read, better as for all of them",
    "AnyOf": "what its filters read, better as for all of them",
    "AtLeast": "what the scorer reads, better the same way",
    "CapacityScaledScorer": "`signal` ↓ (`inflight_requests`), `capacity_weight` ↑",
    "DisaggProfileHandler": "what its deciders read",
    "EndpointAttributeFilter": "the signal: ↓ for Less, ↑ for Greater",
    "EndpointAttributeScorer": "the signal, ↓ or ↑ as told",
    "JointDisaggHandler": "what its deciders read, labels",
    "Lexicographic": "what its scorers read",
    "NamedProducer": "what the producer reads",
    "Not": "what the filter reads, better the other way",
    "Prefer": "what the filter reads",
    "SessionBindingProducer": "what its filters read",
    "UtilizationFilter": "the signals of its conditions ↓",
}


def tables():
    """Walk the page's tables: their heads, and their rows as cells."""
    head = None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = cells
        elif set(line) - set("|- "):
            yield head, cells


def names_in(cell):
    return re.findall(r"`([^`]+)`", cell)


ROWS = {names_in(cells[0])[0]: cells for head, cells in tables() if head == HEAD}
SPECS = {}
for each in CATALOGUE:
    SPECS.setdefault(each.made.__name__ if each.made else each.name, []).append(each)
#: The flow controller's policies have a table of their own.
POLICIES = {"fairness-policy", "ordering-policy", "usage-limit-policy"}
FLOW = [spec for spec in CATALOGUE if spec.made is not None and POLICIES & set(spec.kinds)]


def reads_cell(name):
    """What the page should say a plug-in reads: as it comes, then, in parentheses, what it reads with other parameters."""
    if name in GIVEN:
        return GIVEN[name]
    plugins = [make() for make in EXAMPLES[name]]
    told = [
        {r.signal.name.partition("@")[0]: r.better for r in p.reads} if isinstance(p, Reader) else {} for p in plugins
    ]
    usual = [f"`{signal}` {ARROWS[better]}".strip() for signal, better in told[0].items()]
    others = dict.fromkeys(signal for reads in told[1:] for signal in reads if signal not in told[0])
    return ", ".join(usual + [f"(`{signal}`)" for signal in others]) or NOTHING


def defaults_cell(name):
    """What the page should say of a configuration's parameters: their names, with the defaults that a word can say."""
    specs = [spec for spec in SPECS.get(name, []) if not issubclass(spec.parameters, Opaque)]
    if not specs:
        return "in Python only" if name not in SPECS else NOTHING
    told = []
    for field in msgspec.structs.fields(specs[0].parameters):
        default = field.default
        if isinstance(default, bool | int | float | str) and default != "":
            whole = isinstance(default, float) and default.is_integer()
            told.append(f"`{field.encode_name}` {json.dumps(int(default) if whole else default).strip(chr(34))}")
        elif field.required:
            told.append(f"`{field.encode_name}` (required)")
        else:
            told.append(f"`{field.encode_name}`")
    return ", ".join(told) or NOTHING


def test_every_plug_in_is_there():
    classes = {thing.__name__ for thing in (*plugin_classes(), *exported())}
    assert classes <= ROWS.keys(), sorted(classes - ROWS.keys())
    assert EXAMPLES.keys() <= ROWS.keys()


def test_every_registered_type_is_there():
    text = PAGE.read_text(encoding="utf-8")
    assert [spec.name for spec in CATALOGUE if f"`{spec.name}`" not in text] == []


def test_every_row_is_of_something_that_exists():
    known = EXAMPLES.keys() | SPECS.keys()
    assert ROWS.keys() <= known, sorted(ROWS.keys() - known)
    for name, cells in ROWS.items():
        assert len(cells) == len(HEAD), f"{name}: a bar within a cell?"
        assert all(cells), f"{name}: an empty cell"
        types = [spec.name for spec in SPECS.get(name, [])]
        assert sorted(set(types) | {name}) == sorted(set(names_in(cells[0]))), name
        for spec in SPECS.get(name, []):  # alpha and deprecated types say so
            words = f"`{spec.name}`" + ("" if spec.stability == "beta" else f" ({spec.stability})")
            assert words in cells[0].split("<br>"), name


@pytest.mark.parametrize("name", sorted(ROWS))
def test_what_is_read_and_what_is_usual_are_as_the_page_says(name):
    _, _, reads, defaults, _ = ROWS[name]
    if name in EXAMPLES:
        assert reads == reads_cell(name)
    assert defaults == defaults_cell(name)


def test_every_policy_of_flow_control_is_there_with_its_class():
    told = {names_in(cells[0])[0]: names_in(cells[1])[0] for head, cells in tables() if head[:2] == ["type", "class"]}
    assert told == {spec.name: spec.made.__name__ for spec in FLOW}


def test_every_signal_is_there_with_its_unit_and_freshness():
    known = {s.name: s for s in (*STANDARD_SIGNALS, *vars(signals).values()) if isinstance(s, Signal)}
    told = {names_in(cells[0])[0]: cells for head, cells in tables() if head[0] == "signal"}
    assert known.keys() == told.keys()
    for name, signal in known.items():
        assert told[name][1] == (signal.unit or NOTHING) and told[name][2] == signal.freshness, name


def test_links_between_types_are_told():
    """A deprecated type's row or line names what to use instead."""
    for spec in CATALOGUE:
        if spec.stability == "deprecated":
            line = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if f"`{spec.name}`" in line)
            assert spec.instead.split()[0] in line, spec.name


def test_the_pickers_that_draw_say_how_likely():
    for name in [name for name, cells in ROWS.items() if name.endswith("Picker")]:
        assert ("P(" in ROWS[name][1]) == isinstance(EXAMPLES[name][0](), isched.StochasticPicker), name
