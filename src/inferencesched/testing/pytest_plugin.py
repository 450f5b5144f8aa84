"""How do all plug-ins of a project get checked without a test being written for each?

The half of the pytest plug-in that does the work; `pytest_inferencesched` loads it where it was asked for
(``pytest --inferencesched``). Each check of each plug-in is one test item, ``inferencesched::my-scorer::scorer:range``.

Plug-ins are found by the entry points of the group ``inferencesched.plugins`` (tuples of
`inferencesched.config.spec.PluginSpec`) and by the ini option ``inferencesched_plugins``, a list of ``module:name``, each of
which is a plug-in, what makes one (a class or a function), a `PluginSpec`, or a list, tuple or mapping of them. A
`PluginSpec` is built as a configuration would build it, with default parameters; ``inferencesched_examples``, the
``module:name`` of a mapping, gives the parameters of others: ``{"my-scorer": [{"halfLife": 2.0}, {}]}``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import pytest

from inferencesched.config.installed import installed_plugins
from inferencesched.config.registry import Registry
from inferencesched.config.spec import PluginSpec
from inferencesched.config.workbench import Workbench
from inferencesched.errors import InvalidInputError
from inferencesched.testing.checks import all_checks_of, kinds_of
from inferencesched.testing.failure import Check, CheckFailure

#: Kinds whose contract there are checks for; the others are the gateway's.
CHECKED = frozenset({"filter", "scorer", "picker", "profile-handler", "producer", "assigner", "decider"})


class Candidate(NamedTuple):
    """What is to be checked, and under which name?"""

    name: str
    make: Callable[[], Any]


class Checks:
    """What does pytest do where the checks were asked for? Adds one item for each check of each plug-in."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the items, before others select among them."""
        parent = Kit.from_parent(session, name="inferencesched", nodeid="inferencesched")
        items.extend(parent.collect())


class Kit(pytest.Collector):
    """Where do the items come from?"""

    def collect(self) -> Iterator["CheckItem | BrokenItem"]:
        """Walk the plug-ins of the project, each with its checks."""
        seen: dict[str, int] = {}
        for candidate in found_by(self.config):
            seen[candidate.name] = seen.get(candidate.name, 0) + 1
            name = candidate.name if seen[candidate.name] == 1 else f"{candidate.name}-{seen[candidate.name]}"
            try:
                checks = list(all_checks_of(candidate.make))
            except Exception as error:  # noqa: BLE001  # whatever a stranger's plug-in raises is what the item reports
                yield BrokenItem.from_parent(self, name=f"{name}::made", error=error)
                continue
            for check in checks:
                yield CheckItem.from_parent(self, name=f"{name}::{check}", check=check)


class CheckItem(pytest.Item):
    """Which check of which plug-in is this?"""

    def __init__(self, *, check: Check, **options: Any) -> None:
        super().__init__(**options)
        self.check = check

    def runtest(self) -> None:
        """Check it."""
        self.check()

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what was done, what came back and what is allowed; the way there only where something else broke."""
        if isinstance(excinfo.value, CheckFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return where it stands: nowhere in a file."""
        return self.path, None, self.nodeid


class BrokenItem(pytest.Item):
    """Which plug-in could not even be made?"""

    def __init__(self, *, error: Exception, **options: Any) -> None:
        super().__init__(**options)
        self.error = error

    def runtest(self) -> None:
        """Raise what went wrong."""
        raise self.error

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return where it stands: nowhere in a file."""
        return self.path, None, self.nodeid


def found_by(config: pytest.Config) -> Iterator[Candidate]:
    """Walk the plug-ins of the project: installed ones first, then those of the ini option, in their order."""
    where = config.getini("inferencesched_examples")
    examples: Mapping[str, Iterable[Mapping[str, Any]]] = named(where) if where else {}
    specs: dict[str, PluginSpec] = {spec.name: spec for spec in installed_plugins()}
    made: list[Candidate] = []
    for place in config.getini("inferencesched_plugins"):
        for name, thing in flattened(place.rpartition(":")[2], named(place)):
            if isinstance(thing, PluginSpec):
                specs.setdefault(thing.name, thing)
            else:
                made.append(Candidate(name, _maker(thing)))
    registry = Registry.default().with_plugins(spec for spec in specs.values() if spec.name not in Registry.default())
    for spec in specs.values():
        if CHECKED & set(spec.kinds):
            for parameters in examples.get(spec.name, ({},)):
                yield Candidate(spec.name, built(registry, spec, parameters))
    yield from made


def named(place: str) -> Any:
    """Return what ``module:name`` names; an error says what is wrong with it."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise pytest.UsageError(f"inferencesched_plugins: got {place!r}, allowed: module:name")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"inferencesched_plugins: {place}: {error}") from error


def flattened(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """Walk the plug-ins in a list, tuple or mapping; anything else is one itself."""
    if isinstance(thing, Mapping):
        for key, inner in thing.items():
            yield from flattened(str(key), inner)
    elif isinstance(thing, list | tuple) and not kinds_of(thing):
        for i, inner in enumerate(thing):
            yield from flattened(inner.name if isinstance(inner, PluginSpec) else f"{name}[{i}]", inner)
    else:
        yield name, thing


def _maker(thing: Any) -> Callable[[], Any]:
    """Return what makes it: itself, if it does; else a plug-in that is already there."""
    if isinstance(thing, type) or (callable(thing) and not kinds_of(thing)):
        return thing  # type: ignore[no-any-return]  # a class, or a function that makes one
    return lambda: thing


def built(registry: Registry, spec: PluginSpec, parameters: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what builds a plug-in as a configuration would, anew each time it is called."""

    def make() -> Any:
        bench = Workbench(registry, allow_experimental=True)
        instance = bench.add(spec.name, spec.name, parameters, "$")
        bench.make()
        if instance.plugin is None:
            raise InvalidInputError(spec.name, None, "a plug-in")
        return instance.plugin

    return make
