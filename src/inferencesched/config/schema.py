"""What may stand where, for an editor?

JSON Schema (2020-12) of both forms for the types of a registry: keys, types of plug-ins, and the parameters of each type. An editor completes
and underlines with it; what the schema cannot say, that names lead somewhere, `load` says.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from inferencesched.config import document, native
from inferencesched.config.registry import Registry
from inferencesched.config.spec import Kind, Opaque, PluginSpec

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_TEMPLATE: Final = "#/$defs/{name}"


def picker_config_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return the JSON Schema of an ``EndpointPickerConfig`` with these types; the library's own without a registry."""
    known = Registry.default() if registry is None else registry
    schema, shared = _components(document.Document)
    shared.update(_parameters(known))
    entry = shared["PluginEntry"]
    entry["properties"]["type"] = {"enum": list(known.names())}
    entry["allOf"] = _by_type(known)
    shared["Document"]["properties"]["kind"] = {"const": document.KIND}
    shared["Document"]["properties"]["apiVersion"] = {"enum": [document.API_VERSION, document.OLD_API_VERSION]}
    shared["Document"]["properties"]["featureGates"]["items"] = {
        "type": "string",
        "pattern": f"^({'|'.join(known.gates)})(=(true|false))?$",
    }
    return _whole("EndpointPickerConfig", schema, shared)


def native_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return the JSON Schema of the library's own form with these types; the library's own without a registry."""
    known = Registry.default() if registry is None else registry
    schema, shared = _components(native.SchedulerDocument)
    shared.update({name: _in_place(each) for name, each in _parameters(known).items()})
    for name in ("Plug", "WeighedPlug"):
        shared[name]["properties"]["type"] = {"enum": list(known.names())}
        shared[name]["allOf"] = _by_type(known)
    profile, top = shared["ProfileTable"]["properties"], shared["SchedulerDocument"]["properties"]
    profile["filters"]["items"] = _plug(known, "filter")
    profile["scorers"]["items"] = _plug(known, "scorer", "WeighedPlug")
    profile["picker"] = _plug(known, "picker")
    top["kind"], top["apiVersion"] = {"const": native.KIND}, {"const": native.API_VERSION}
    top["handler"] = {"anyOf": [_plug(known, "profile-handler"), {"type": "null"}]}
    top["assigner"] = {"anyOf": [_plug(known, "assigner"), {"type": "null"}]}
    top["producers"]["items"] = _plug(known, "producer")
    top["admitters"]["items"] = _plug(known, "admitter")
    top["plugins"]["items"] = _plug(known, None)
    return _whole("Scheduler", schema, shared)


def _components(kind: type[msgspec.Struct]) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), shared = msgspec.json.schema_components([kind], ref_template=_TEMPLATE)
    return schema, shared


def _whole(title: str, schema: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {"$schema": _DIALECT, "title": title, **schema, "$defs": shared}
    # the structs' docstrings are for readers of the library; tuples and enums of msgspec become plain JSON
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole))
    return plain


def _parameters(registry: Registry) -> dict[str, Any]:
    """Return the definitions of all types' parameters, those of a type under ``parameters of <type>``."""
    found: dict[str, Any] = {}
    for name in registry.names():
        spec = registry[name]
        if issubclass(spec.parameters, Opaque):
            found[_name(name)] = {"type": "object"}
            continue
        # by itself: two families may call their tables the same
        (schema,), shared = msgspec.json.schema_components([spec.parameters], ref_template=f"#/$defs/{name}:{{name}}")
        found.update({f"{name}:{table}": _with_nulls(each) for table, each in shared.items()})
        found[_name(name)] = schema
    return found


def _with_nulls(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table in which a key may be left empty (YAML's ``null``), as `decode` reads it."""
    if "properties" not in table:
        return table
    required = table.get("required", [])
    return {
        **table,
        "properties": {
            name: each if name in required else {"anyOf": [each, {"type": "null"}]}
            for name, each in table["properties"].items()
        },
    }


def _name(kind: str) -> str:
    return f"parameters of {kind}"


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}


def _by_type(registry: Registry) -> list[dict[str, Any]]:
    """Return for each type what its parameters are, and that they are required where one of them is."""
    return [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"parameters": {"anyOf": [_ref(_name(name)), {"type": "null"}]}}}
            | ({"required": ["type", "parameters"]} if _asks(registry[name]) else {}),
        }
        for name in registry.names()
    ]


def _asks(spec: PluginSpec) -> bool:
    return not issubclass(spec.parameters, Opaque) and any(
        field.required for field in msgspec.structs.fields(spec.parameters)
    )


def _plug(registry: Registry, kind: Kind | None, table: str = "Plug") -> dict[str, Any]:
    """Return what stands where a plug-in of a kind is meant: a type, or a table with one."""
    names: Sequence[str] = registry.names(kind)
    return {
        "anyOf": [{"enum": list(names)}, {**_ref(table), "properties": {"type": {"enum": list(names)}}}]
        if names
        else [{"not": {}}]
    }


def _in_place(schema: Any) -> Any:
    """Return a schema in which a plug-in may stand where the parameters of llm-d's form name one."""
    if isinstance(schema, Mapping):
        if schema.get("x-plugin-ref"):
            return {"anyOf": [dict(schema), _ref("Plug")]}
        return {key: _in_place(value) for key, value in schema.items()}
    if isinstance(schema, list | tuple):
        return [_in_place(each) for each in schema]
    return schema
