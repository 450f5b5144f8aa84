"""Configurations from and to YAML files, with the extra ``yaml``.

A file is read by YAML 1.2's core types, as JSON would say the same: ``on`` and ``12:30`` are text, ``1e3`` is a number. A key that stands
twice in a mapping is an error, and so is a file whose aliases unfold into more than a configuration has. Errors name file and line.

>>> loaded = read_text('''
... apiVersion: inferencesched/v1
... kind: Scheduler
... profiles:
...   default:
...     scorers: [queue-scorer, {type: token-load-scorer, weight: 0.5}]
... ''')
>>> print(to_text(loaded), end="")
apiVersion: inferencesched/v1
kind: Scheduler
profiles:
  default:
    scorers:
    - queue-scorer
    - type: token-load-scorer
      weight: 0.5
"""

import re
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from inferencesched.config import Document, Loaded, Registry, SchedulerDocument, dump, load
from inferencesched.config.decode import below
from inferencesched.errors import ConfigError, ConfigFileError
from inferencesched.scheduler import Scheduler

T = TypeVar("T", bound=msgspec.Struct)

#: More values than this in one file are no configuration: aliases of aliases unfold into millions.
_MOST: Final = 100_000
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = f"{_TAG}merge"
#: Which plain words are no text: name, form, and what they begin with.
_WORDS: Final = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list("-+0123456789."),
    ),
    ("merge", r"(?:<<)", ["<"]),
)


class _CoreLoader(yaml.SafeLoader):
    """Which plain words does a reader take for something else than text?"""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  yaml's own way: filled below


class _CarefulDumper(yaml.SafeDumper):
    """Which text is put in quotes? What this reader, or one of YAML 1.1, would take for something else."""


for _name, _form, _first in _WORDS:
    _CoreLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"{_form}$"), _first)
    _CarefulDumper.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"{_form}$"), _first)


def read(
    path: str | Path,
    *,
    registry: Registry | None = None,
    allow_experimental: bool | None = None,
    keep: Scheduler | None = None,
) -> Loaded[Document] | Loaded[SchedulerDocument]:
    """What does the configuration in this file mean? Whichever form it is in; an empty file is llm-d's default.

    The rest is as in `inferencesched.config.load`. Errors: `ConfigFileError`, a `ConfigError` with file and line; `OSError` for a file
    that cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigFileError(str(path), 1, "$", error.reason, "text in UTF-8") from error
    return read_text(text, source=str(path), registry=registry, allow_experimental=allow_experimental, keep=keep)


def read_text(
    text: str,
    *,
    source: str = "<text>",
    registry: Registry | None = None,
    allow_experimental: bool | None = None,
    keep: Scheduler | None = None,
) -> Loaded[Document] | Loaded[SchedulerDocument]:
    """What does this configuration mean? As `read`; `source` is what errors call it."""
    tree = _Tree(text, source)
    try:
        return load(tree.value, registry=registry, allow_experimental=allow_experimental, keep=keep)
    except ConfigError as error:
        raise tree.error(error.parameter, error.value, error.allowed) from error


def read_record(text: str, record: type[T], *, source: str = "<text>") -> T:
    """Return YAML as a `msgspec.Struct` of this type. Errors: `ConfigFileError` with file, line and place of what is wrong."""
    tree = _Tree(text, source)
    try:
        return msgspec.convert(tree.value, record)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `")
        raise tree.error(
            place.rstrip("`") or "$", said, f"a {record.__name__} as `{record.__module__}` has it"
        ) from error


def parse(text: str, *, source: str = "<text>") -> Any:
    """Return what YAML says, as mappings, lists, text, numbers, booleans and None.

    >>> parse("{switch: on, time: 12:30, many: 1e3, none: }")
    {'switch': 'on', 'time': '12:30', 'many': 1000.0, 'none': None}
    """
    return _Tree(text, source).value


def write(
    path: str | Path,
    what: Loaded[Document] | Loaded[SchedulerDocument] | Document | SchedulerDocument,
    *,
    effective: bool = False,
) -> None:
    """Write a configuration to a file that `read` reads: as it was said, or with all defaults (`effective`)."""
    Path(path).write_text(to_text(what, effective=effective), encoding="utf-8")


def to_text(
    what: Loaded[Document] | Loaded[SchedulerDocument] | Document | SchedulerDocument, *, effective: bool = False
) -> str:
    """Return a configuration as YAML: as it was said, or with all defaults (`effective`)."""
    return yaml.dump(dump(what, effective=effective), Dumper=_CarefulDumper, sort_keys=False, allow_unicode=True)


class _Tree:
    """What does a file say, and on which line?"""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.lines: dict[str, int] = {"$": 1}
        self._count = 0
        self._open: set[int] = set()
        try:
            node = yaml.compose(text, Loader=_CoreLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = 1 if mark is None else mark.line + 1
            raise ConfigFileError(source, line, "$", error.problem or "this", "YAML") from error
        except yaml.YAMLError as error:
            raise ConfigFileError(source, 1, "$", str(error).splitlines()[0], "YAML") from error
        self.value: Any = None if node is None else self._read(node, "$")

    def error(self, path: str, value: object, allowed: str) -> ConfigFileError:
        """Return the error for a place in the configuration, on the line that it is about."""
        inside = [
            each for each in self.lines if path.startswith(each) and path[len(each) : len(each) + 1] in ("", *".[ ")
        ]
        return ConfigFileError(self.source, self.lines[max(inside, key=len, default="$")], path, value, allowed)

    def _read(self, node: yaml.Node, path: str) -> Any:
        self._count += 1
        if self._count > _MOST:
            raise self.error(path, f"more than {_MOST} values", "fewer: aliases unfold each time that they are used")
        if isinstance(node, yaml.ScalarNode):
            return self._word(node, path)
        if id(node) in self._open:
            raise self.error(path, "an alias of what it stands in", "values that end")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            assert isinstance(node, yaml.SequenceNode)  # the third and last kind
            if node.tag != f"{_TAG}seq":
                raise self.error(path, node.tag, "a list without a tag")
            items = []
            for i, each in enumerate(node.value):
                self._mark(below(path, i), each)
                items.append(self._read(each, below(path, i)))
            return items
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[Any, Any]:
        if node.tag != f"{_TAG}map":
            raise self.error(path, node.tag, "a mapping without a tag")
        said: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(path, "a mapping or a list as a key", "text as a key")
            key = key_node.value
            place = below(path, key)
            if key_node.tag == _MERGE:
                merged = {**self._merged(value_node, place), **merged}
                continue
            if key in said:
                first = self.lines[place]
                self._mark(place, key_node)
                raise self.error(place, key, f"each key once: it stands on line {first} too")
            self._mark(place, key_node)
            said[key] = self._read(value_node, place)
        return {**merged, **said}

    def _merged(self, node: yaml.Node, path: str) -> dict[Any, Any]:
        """Return what ``<<`` brings in: a mapping, or several of which the first counts."""
        value = self._read(node, path)
        several = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in several):
            raise self.error(path, value, "a mapping, or a list of mappings")
        merged: dict[Any, Any] = {}
        for each in several:
            merged = {**each, **merged}
        return merged

    def _word(self, node: yaml.ScalarNode, path: str) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind in ("str", "merge"):
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (KeyError, ValueError) as error:
            raise self.error(path, text, f"a value of the tag {node.tag}") from error
        raise self.error(path, f"{node.tag} {text}", "text, a number, true, false or nothing")

    def _mark(self, path: str, node: yaml.Node) -> None:
        self.lines[path] = node.start_mark.line + 1
