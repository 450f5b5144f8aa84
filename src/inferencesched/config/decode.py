"""How is a mapping read strictly, and where exactly is the mistake?

`msgspec` decides what is valid. Where it refuses, this walks the same types over the same value and says which path, what was
found there, what is allowed, and which name was probably meant.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from inferencesched.config.spec import Opaque
from inferencesched.errors import ConfigError, InvalidInputError

T = TypeVar("T", bound=msgspec.Struct)
#: From here on a list of names is too long to read.
_MANY = 16
_LONG = 100
#: A shorter word is a part of too many names.
_SHORT = 3
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Excerpt(str):
    """What was found, as far as a person reads it?"""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


#: What was found where something is missing.
NOTHING = Excerpt("nothing")


def below(path: str, key: object) -> str:
    """Return the path of an entry: ``$.plugins[2].name``.

    >>> below("$.plugins", 2), below("$", "name"), below("$.profiles", "a b")
    ('$.plugins[2]', '$.name', '$.profiles["a b"]')
    """
    if isinstance(key, int) and not isinstance(key, bool):
        return f"{path}[{key}]"
    text = str(key)
    return f"{path}.{text}" if _PLAIN.fullmatch(text) else f'{path}["{text}"]'


def found(value: object) -> object:
    """Return a value as an error shows it: itself, or the beginning of it where it is long."""
    text = repr(value)
    return Excerpt(f"{text[:_LONG]}...") if len(text) > _LONG else value


def nearest(name: object, known: Iterable[str], count: int = 1) -> list[str]:
    """Return the names that were probably meant, the most likely first, none where nothing comes near.

    Spelled alike; else those that it is a part of, the shortest first.

    >>> nearest("que-scorer", ["queue-scorer", "max-score-picker"]), nearest("picker", ["queue-scorer", "max-score-picker"])
    (['queue-scorer'], ['max-score-picker'])
    """
    word, names = str(name), list(known)
    alike = get_close_matches(word, names, count, 0.6)
    if alike or len(word) < _SHORT:
        return alike
    return sorted((each for each in names if word.lower() in each.lower()), key=lambda each: (len(each), each))[:count]


def one_of(name: object, known: Iterable[str], what: str = "") -> str:
    """Return what is allowed in the place of a name: all of them, or how many and the nearest; and the nearest.

    >>> one_of("best", ["max-score-picker", "random-picker"])
    'one of max-score-picker, random-picker'
    >>> one_of("randon-picker", ["max-score-picker", "random-picker"], "a picker: ")
    "a picker: one of max-score-picker, random-picker (did you mean 'random-picker'?)"
    """
    names = sorted(known)
    if not names:
        return f"{what}none is there"
    meant = nearest(name, names)
    tail = f" (did you mean {meant[0]!r}?)" if meant else ""
    if len(names) <= _MANY:
        return f"{what}one of {', '.join(names)}{tail}"
    near = nearest(name, names, 5)
    examples = f"{', '.join(near)} and {len(names) - len(near)} more" if near else f"{len(names)} names"
    return f"{what}one of {examples}{tail}"


def decode(kind: type[T], raw: object, path: str = "$") -> T:
    """Return the mapping as a value of its type; `ConfigError` at the first place where it is not one.

    A key without a value (YAML's ``null``) is as good as absent where the type has no use for it, and a whole number may be
    written as ``5.0``: as in llm-d.
    """
    if issubclass(kind, Opaque):
        if not isinstance(raw, Mapping):
            raise ConfigError(path, found(raw), "a mapping")
        return kind(dict(raw))
    info = info_of(kind)
    said = tidy(info, raw)
    try:
        return msgspec.convert(said, kind)
    except msgspec.ValidationError as error:
        explain(info, said, path)
        raise beyond_types(error, path) from error


def encode(value: Any) -> Any:
    """Return a decoded value as plain data under its own names, without what is the default anyway."""
    if isinstance(value, Opaque):
        return dict(value.values)
    if isinstance(value, msgspec.Struct):
        return {
            field.encode_name: encode(getattr(value, field.name))
            for field in msgspec.structs.fields(type(value))
            if field.required or getattr(value, field.name) != default_of(field)
        }
    if isinstance(value, Mapping):
        return {key: encode(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [encode(each) for each in value]
    return msgspec.to_builtins(value)


def default_of(field: msgspec.structs.FieldInfo) -> object:
    """Return what a field is when nothing is said."""
    factory = field.default_factory
    return field.default if factory is msgspec.NODEFAULT else factory()


@cache
def info_of(kind: type) -> inspect.Type:
    """Return what msgspec knows of a type."""
    return inspect.type_info(kind)


# --- before decoding ---------------------------------------------------------------------------------------------


def tidy(info: inspect.Type, raw: object) -> object:
    """Return the value with plain containers, without empty keys, and with whole numbers as such."""
    info = bare(info)
    if isinstance(raw, Mapping):
        if isinstance(info, inspect.UnionType):
            info = next((bare(each) for each in info.types if isinstance(bare(each), inspect.StructType)), info)
        if isinstance(info, inspect.StructType):
            fields = {field.encode_name: field.type for field in info.fields}
            return {
                key: tidy(fields.get(key, inspect.AnyType()), value)
                for key, value in raw.items()
                if value is not None or key not in fields or takes_none(fields[key])
            }
        inner = info.value_type if isinstance(info, inspect.DictType) else inspect.AnyType()
        return {key: tidy(inner, value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        kinds = [bare(each) for each in info.types] if isinstance(info, inspect.UnionType) else [info]
        items = next((kind.item_type for kind in kinds if isinstance(kind, _LISTS)), inspect.AnyType())
        return [tidy(items, value) for value in raw]
    if isinstance(raw, float) and raw.is_integer():
        kinds = [bare(each) for each in info.types] if isinstance(info, inspect.UnionType) else [info]
        whole = any(isinstance(kind, inspect.IntType) for kind in kinds)
        return int(raw) if whole and not any(isinstance(kind, inspect.FloatType) for kind in kinds) else raw
    return raw


_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


def bare(info: inspect.Type) -> inspect.Type:
    """Return a type without its remarks."""
    return info.type if isinstance(info, inspect.Metadata) else info


def takes_none(info: inspect.Type) -> bool:
    """Is nothing a value of this type?"""
    info = bare(info)
    if isinstance(info, inspect.UnionType):
        return any(takes_none(each) for each in info.types)
    return isinstance(info, inspect.NoneType | inspect.AnyType)


# --- references to other plug-ins --------------------------------------------------------------------------------


def at_references(info: inspect.Type, raw: Any, path: str, visit: Callable[[Any, str], Any]) -> Any:
    """Return the value with each reference to a plug-in replaced by what `visit(reference, path)` returns.

    References are found by their type, `PluginRef`, at any depth: in lists, in optional places, in nested tables.
    """
    if isinstance(info, inspect.Metadata):
        if (info.extra or {}).get("plugin_ref"):
            return raw if raw is None or raw == "" else visit(raw, path)
        return at_references(info.type, raw, path, visit)
    if isinstance(info, inspect.UnionType):
        for each in info.types:
            raw = at_references(each, raw, path, visit)
        return raw
    if isinstance(info, inspect.StructType) and isinstance(raw, Mapping):
        fields = {field.encode_name: field.type for field in info.fields}
        return {
            key: at_references(fields[key], value, below(path, key), visit) if key in fields else value
            for key, value in raw.items()
        }
    if isinstance(info, inspect.DictType) and isinstance(raw, Mapping):
        return {key: at_references(info.value_type, value, below(path, key), visit) for key, value in raw.items()}
    if isinstance(info, _LISTS) and isinstance(raw, list | tuple):
        return [at_references(info.item_type, value, below(path, i), visit) for i, value in enumerate(raw)]
    return raw


class Reference(NamedTuple):
    """Where does a parameter name another plug-in, and which?"""

    path: str
    name: str


def references(parameters: msgspec.Struct, path: str) -> Iterator[Reference]:
    """Walk the plug-ins that parameters name, defaults included."""
    if isinstance(parameters, Opaque):
        return
    seen: list[Reference] = []

    def visit(name: Any, where: str) -> Any:
        seen.append(Reference(where, str(name)))
        return name

    at_references(info_of(type(parameters)), msgspec.to_builtins(parameters), path, visit)
    yield from seen


# --- what is wrong -----------------------------------------------------------------------------------------------


def explain(info: inspect.Type, raw: Any, path: str) -> None:
    """Raise `ConfigError` at the first place where the value is not of the type; return where it is."""
    info = bare(info)
    if isinstance(info, inspect.AnyType):
        return
    if isinstance(info, inspect.UnionType):
        _union(info, raw, path)
    elif isinstance(info, inspect.StructType):
        _struct(info, raw, path)
    elif isinstance(info, inspect.DictType):
        if not isinstance(raw, Mapping):
            raise ConfigError(path, found(raw), described(info))
        for key, value in raw.items():
            explain(info.key_type, key, below(path, key))
            explain(info.value_type, value, below(path, key))
        _sized(info, raw, path)
    elif isinstance(info, _LISTS):
        if not isinstance(raw, list | tuple):
            raise ConfigError(path, found(raw), described(info))
        for i, value in enumerate(raw):
            explain(info.item_type, value, below(path, i))
        _sized(info, raw, path)
    elif not _fits(info, raw):
        known = [each for each in info.values if isinstance(each, str)] if isinstance(info, inspect.LiteralType) else ()
        raise ConfigError(path, found(raw), one_of(raw, known) if known else described(info))


def _struct(info: inspect.StructType, raw: Any, path: str) -> None:
    if not isinstance(raw, Mapping):
        raise ConfigError(path, found(raw), described(info))
    fields = {field.encode_name: field for field in info.fields}
    for key, value in raw.items():
        if key not in fields and info.forbid_unknown_fields:
            raise unknown_key(path, key, value, fields)
    for name, field in fields.items():
        if name in raw:
            explain(field.type, raw[name], below(path, name))
        elif field.required:
            raise ConfigError(below(path, name), NOTHING, described(field.type))


def unknown_key(path: str, key: object, value: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a key that is not there."""
    names = list(known)
    meant = nearest(key, names)
    tail = f" (did you mean {meant[0]!r}?)" if meant else ""
    there = f"no such key; there are {', '.join(names)}" if names else "no key at all here"
    return ConfigError(below(path, key), found(value), f"{there}{tail}")


def _union(info: inspect.UnionType, raw: Any, path: str) -> None:
    kinds = [bare(each) for each in info.types]
    inner: list[inspect.Type]
    if isinstance(raw, Mapping):
        inner = [kind for kind in kinds if isinstance(kind, inspect.StructType | inspect.DictType)]
    elif isinstance(raw, list | tuple):
        inner = [kind for kind in kinds if isinstance(kind, _LISTS)]
    else:
        inner = [kind for kind in kinds if isinstance(kind, inspect.LiteralType)] if isinstance(raw, str) else []
        if any(_fits(kind, raw) for kind in kinds):
            return
    if len(inner) == 1:
        explain(inner[0], raw, path)
    elif not inner:
        raise ConfigError(path, found(raw), described(info))


def _fits(info: inspect.Type, raw: Any) -> bool:
    """Is a value that is no container of this type?"""
    if isinstance(info, (inspect.StructType, inspect.DictType, *_LISTS)):
        return False
    if isinstance(info, inspect.BoolType):
        return isinstance(raw, bool)
    if isinstance(info, inspect.NoneType):
        return raw is None
    if isinstance(info, inspect.LiteralType):
        return raw in info.values
    if isinstance(info, inspect.EnumType):
        return raw in [each.value for each in info.cls]
    if isinstance(info, inspect.StrType):
        if not isinstance(raw, str) or (info.pattern is not None and not re.search(info.pattern, raw)):
            return False
        return (info.min_length or 0) <= len(raw) and (info.max_length is None or len(raw) <= info.max_length)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        number = int if isinstance(info, inspect.IntType) else (int, float)
        if isinstance(raw, bool) or not isinstance(raw, number):
            return False
        return (
            (info.gt is None or raw > info.gt)
            and (info.ge is None or raw >= info.ge)
            and (info.lt is None or raw < info.lt)
            and (info.le is None or raw <= info.le)
            and (info.multiple_of is None or raw % info.multiple_of == 0)
        )
    return True  # a kind that is not told apart here: msgspec's own words will have to do


def _sized(info: Any, raw: Sequence[Any] | Mapping[Any, Any], path: str) -> None:
    if len(raw) < (info.min_length or 0) or (info.max_length is not None and len(raw) > info.max_length):
        raise ConfigError(path, found(raw), described(info))


def described(info: inspect.Type) -> str:
    """Return what is allowed, in words."""
    info = bare(info)
    if isinstance(info, inspect.UnionType):
        words = [described(each) for each in info.types if not isinstance(bare(each), inspect.NoneType)]
        return " or ".join(words) + (" or nothing" if takes_none(info) else "")
    if isinstance(info, inspect.StructType):
        return f"a mapping with the keys {', '.join(field.encode_name for field in info.fields) or '(none)'}"
    if isinstance(info, inspect.LiteralType):
        return "one of " + ", ".join(map(str, info.values))
    if isinstance(info, inspect.EnumType):
        return "one of " + ", ".join(str(each.value) for each in info.cls)
    if isinstance(info, inspect.IntType | inspect.FloatType):
        bounds = [("above", info.gt), ("of at least", info.ge), ("below", info.lt), ("of at most", info.le)]
        limits = " and ".join(f"{words} {bound}" for words, bound in bounds if bound is not None)
        return f"{'a whole number' if isinstance(info, inspect.IntType) else 'a number'} {limits}".strip()
    if isinstance(info, inspect.StrType):
        shape = f" of the form {info.pattern}" if info.pattern else ""
        return f"text{shape}" if not info.min_length else f"text{shape}, not empty"
    if isinstance(info, _LISTS):
        least = f"at least {info.min_length} of " if info.min_length else ""
        return f"a list of {least}{described(info.item_type)}"
    if isinstance(info, inspect.DictType):
        return f"a mapping to {described(info.value_type)}"
    names = {inspect.BoolType: "true or false", inspect.NoneType: "nothing", inspect.AnyType: "anything"}
    return names.get(type(info), f"a value of another kind ({type(info).__name__.removesuffix('Type').lower()})")


def beyond_types(error: msgspec.ValidationError, path: str) -> ConfigError:
    """Return the error for what a type's own checks refuse: their parameter at the place where they ran."""
    words, _, place = str(error).partition(" - at ")
    where = path + place.strip("`").removeprefix("$")
    cause = error.__cause__
    if isinstance(cause, InvalidInputError):
        return ConfigError(f"{where}.{cause.parameter}", found(cause.value), cause.allowed)
    return ConfigError(where, Excerpt("a value that does not fit"), words)
