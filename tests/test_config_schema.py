"""Does an editor accept what `load` accepts, and underline what it does not?"""

import pytest

from inferencesched.config import Registry, load, schema
from inferencesched.errors import ConfigError
from tests.test_config import FULL
from tests.test_config_catalogue import LEAST
from tests.test_config_errors import BROKEN
from tests.test_config_native import RICH

jsonschema = pytest.importorskip("jsonschema", reason="the schema is checked with jsonschema")
REGISTRY = Registry.default()


@pytest.fixture(scope="module")
def validators():
    return {form: jsonschema.Draft202012Validator(schema(form)) for form in ("EndpointPickerConfig", "Scheduler")}


@pytest.mark.parametrize("form", ["EndpointPickerConfig", "Scheduler"])
def test_it_is_a_schema(form):
    jsonschema.Draft202012Validator.check_schema(schema(form))


@pytest.mark.parametrize("raw", [FULL, RICH], ids=["llm-d's full example", "the rich one"])
def test_it_accepts_what_loads(validators, raw):
    load(raw)
    assert list(validators[raw["kind"]].iter_errors(raw)) == []


@pytest.mark.parametrize("name", REGISTRY.names())
def test_it_accepts_each_type(validators, name):
    head = {"apiVersion": "inferencesched/v1", "kind": "Scheduler", "profiles": {"p": {}}}
    raw = {**head, "plugins": [{"type": name, "parameters": LEAST.get(name, {})}]}
    assert list(validators["Scheduler"].iter_errors(raw)) == []


#: What only `load` sees: where names lead, what a type's own checks say, durations and quantities.
BEYOND = {
    "an empty type",
    "a name twice",
    "an alpha type",
    "a weight above 1",
    "a word of no list",
    "in a list",
    "a decider that is not there",
    "a decider that is a scorer",
    "a producer that is not there",
    "a producer of something else",
    "an empty name",
    "a profile twice",
    "a reference to nobody",
    "an infinite weight",
    "two pickers",
    "two handlers",
    "no handler for two",
    "a single handler for two",
    "a source that is not there",
    "a scorer as an extractor",
    "a picker as a parser",
    "an unknown detector",
    "an unknown policy",
    "a duration without a unit",
    "a quantity in words",
    "no profile",
    "no patience",
    "an unknown profile",
}


@pytest.mark.parametrize(("name", "raw"), [pytest.param(name, raw, id=name) for name, raw, *_ in BROKEN])
def test_it_underlines_what_does_not_load(validators, name, raw):
    kind = raw.get("kind") if isinstance(raw, dict) else None
    validator = validators.get(kind, validators["EndpointPickerConfig"])
    with pytest.raises(ConfigError):
        load(raw)
    underlined = list(validator.iter_errors(raw)) != []
    assert underlined or name in BEYOND
