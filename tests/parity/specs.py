"""How is a plug-in built from what a configuration says of it? By its `PluginSpec`; a refusal is held against llm-d's words."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from inferencesched.config.decode import decode
from inferencesched.config.spec import PluginSpec
from inferencesched.errors import InvalidInputError
from tests.parity.cases import Case, Mismatch, same

#: With these llm-d's words begin where they name no parameter.
PROSE = {"failed", "requires", "invalid", "unknown", "missing", "must", "cannot", "decode", "unmarshal", "exactly"}


class NoPlugins:
    """A workshop without other plug-ins."""

    def __init__(self, name: str, plugins: Mapping[str, object] | None = None) -> None:
        self.name = name
        self.plugins = dict(plugins or {})

    def plugin(self, name: str) -> object:
        if name not in self.plugins:
            raise InvalidInputError("plugin", name, f"one of {sorted(self.plugins)}")
        return self.plugins[name]


def parameters_of(spec: PluginSpec, case: Case) -> Any:
    """Read a case's parameters as the configuration does: strictly, from text where the text is under test."""
    raw = case.get("params_raw")
    if raw is not None:
        said = msgspec.json.decode(raw) if raw.strip() else {}
        return decode(spec.parameters, {} if said is None else said)
    given = {name: value for name, value in case["params"].items() if not name.startswith("_")}
    return decode(spec.parameters, given)


def build_from(spec: PluginSpec, case: Case, plugins: Mapping[str, object] | None = None) -> Any:
    """Build what a case configures."""
    return spec.build(parameters_of(spec, case), NoPlugins(spec.name, plugins))


def param_validation(spec: PluginSpec, case: Case, effective: Callable[[Any], Mapping[str, Any]] | None = None) -> None:
    """Build from the case's parameters: refused or not, as it says; `effective` are the settings that come of it."""
    expect = case["expect"]
    try:
        built = build_from(spec, case)
    except (InvalidInputError, msgspec.ValidationError, msgspec.DecodeError) as error:
        if expect["valid"]:
            raise Mismatch("parameters that are valid", str(error)) from error
        names_the_same(expect.get("error_contains"), str(error))
        return
    if not expect["valid"]:
        raise Mismatch("a refusal", built)
    if "effective" in expect:
        assert effective is not None or spec.read is not None
        got = effective(built) if effective is not None else settings(spec.read(built))  # type: ignore[misc]
        for name, value in expect["effective"].items():
            if name not in got:
                raise Mismatch({name: value}, got)
            same(value, got[name], name)


def settings(parameters: msgspec.Struct) -> dict[str, Any]:
    """Return parameters under their YAML names."""
    return {field.encode_name: getattr(parameters, field.name) for field in msgspec.structs.fields(type(parameters))}


def names_the_same(words: str | None, ours: str) -> None:
    """Raise `Mismatch` unless our error names the parameter that llm-d's words name, and the values in quotes.

    The first word with a capital letter inside is a parameter; ours may be in snake case. Prose is each library's own.
    """
    if not words or words in ours:
        return
    parameter = re.search(r"\b[a-z]+(?:[A-Z]+[a-z0-9]*)+\b", words)
    wanted = [parameter.group(0)] if parameter else []
    wanted += re.findall(r'"([^"]+)"', words)
    if not wanted:  # one word, or prose: a parameter where ours names it
        first = words.split()[0].strip(":,.'`").lower()
        named = first.replace("-", "").isalnum() and len(first) > 3 and first not in PROSE
        wanted = [first] if named else []
    for each in wanted:
        if each not in ours and snake(each) not in ours:
            raise Mismatch(f"an error that names {each!r} (llm-d: {words!r})", ours)


def snake(name: str) -> str:
    """Return a camelCase name in snake case, however many capitals stand together."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
