"""Which way do imports point? The layers of the house as data, held against every import in the source.

A module imports from rows below its own, and from its own package. A module that no row names fails: a new module is
given its place here, in the change that brings it.
"""

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.sources import Import, Module, home, imports, matches, modules, own

#: From the top of the house to its cellar. "" is the package itself, the front door.
LAYERS = (
    ("cli", "cli.*"),
    ("",),
    ("_warmup",),
    ("adapters.ray_sweep",),
    ("simulator.*", "adapters.*", "testing.*"),
    ("config", "config.*", "explain.*"),
    ("director", "director.*"),
    ("marginal.*", "propensities"),
    ("screeners.*", "observability", "observability.sink", "observability.autoscaling", "replication"),
    (
        "scheduler",
        "flowcontrol.config",
        "flowcontrol.controller",
        "flowcontrol.log",
        "flowcontrol.explain",
        "flowcontrol.admission",
        "flowcontrol.aio",
        "flowcontrol.threaded",
        "routing.*",
        "governance.*",
        "observability.*",
        "lifecycle.*",
    ),
    ("admitters.*",),
    ("_folding", "_running"),
    ("_fusion", "_dependencies", "zoo.*"),
    (
        "filters.*",
        "scorers.*",
        "pickers.*",
        "handlers.*",
        "producers.*",
        "prefix.producer",
        "prefix.precise",
        "flowcontrol.*",
        "staleness",
    ),
    ("assigners.*",),
    ("sessions",),
    ("pool",),
    ("_pool_audit", "bookings"),
    ("framework", "signals", "topology", "placement", "flowcontrol.flows", "flowcontrol.outcomes"),
    ("reservation",),
    ("governance.meters", "observability.events", "routing.body", "routing.body.*", "routing.tokens"),
    ("request", "endpoints", "normalize", "prefix.*"),
    ("members",),
    ("labels",),
    ("_kernels.*",),
    ("errors", "_typing", "routing.headers"),
)

#: No import between these, in either direction; `director` joins them.
STRANGERS = (("scheduler", "flowcontrol.*"),)

#: What an installation always has beside the standard library, and who may import it.
RUNTIME = {
    "msgspec": "*",
    "numba": "_kernels.*",
    "numpy": "*",
    "sortedcontainers": "*",
    "xxhash": "*",
}

#: Where optional dependencies may be imported.
OPTIONAL = {
    "adapters.*": "the rim of the house: each adapter is there for one optional dependency",
    "cli": "the extra `cli`",
    "cli.*": "the extra `cli`",
    "simulator.report": "the table and the picture, the extra `cli`",
    "simulator.report_html": "the report of a sweep, the extra `cli`",
    "testing.*": "hypothesis strategies",
}

#: What a pure decision has no use for: module -> what it brings.
IMPURE = {
    **dict.fromkeys(("time", "sched", "signal"), "a clock"),
    **dict.fromkeys(("random", "secrets", "uuid"), "global randomness"),
    **dict.fromkeys(("threading", "_thread", "queue", "concurrent", "multiprocessing", "asyncio"), "threads"),
    **dict.fromkeys(("socket", "ssl", "select", "selectors", "http", "urllib", "subprocess"), "I/O"),
    **dict.fromkeys(("os", "shutil", "tempfile", "pathlib", "io", "gzip", "sqlite3"), "files"),
    **dict.fromkeys(("logging", "warnings"), "a side channel"),
    "importlib": "what happens to be installed",
}

#: Who may all the same, and why: module pattern, what it imports, the reason.
ALLOWED = (
    ("_kernels._compile", "pathlib", "reads the package's own sources, to key the disk cache of compiled kernels"),
    ("adapters.*", "*", "adapters bring the world in"),
    ("cli", "*", "the command line is a program"),
    ("cli.*", "*", "the command line is a program"),
    ("config.installed", "importlib", "asks which packages announce plug-ins, and only when it is called"),
    ("director.aio", "asyncio", "the shell of the director for asyncio"),
    ("director.aio", "time", "the shell brings the director its clock"),
    ("flowcontrol.aio", "asyncio", "the shell of the controller for asyncio"),
    ("flowcontrol.aio", "time", "the shell brings the controller its clock"),
    ("flowcontrol.threaded", "threading", "the shell of the controller for threads"),
    ("flowcontrol.threaded", "time", "the shell brings the controller its clock"),
    ("pool", "threading", "one lock makes choose-and-book one step"),
    ("prefix.index", "threading", "one lock: a change excludes other changes, and its gate what is read meanwhile"),
    ("prefix.precise", "threading", "one lock: the index has one writer, and no reader meanwhile"),
    ("prefix.producer", "secrets", "a secret seed for hashes unless one is given; no decision depends on it"),
    ("prefix.producer", "threading", "one lock: the index has one writer, and no reader meanwhile"),
    ("producers.burst", "threading", "one lock: plans are made by one thread and read by others"),
    ("producers.cold", "threading", "one lock: what is remembered has one writer, and no reader meanwhile"),
    ("producers.multimodal", "threading", "one lock: what is remembered has one writer, and no reader meanwhile"),
    ("simulator.readers", "pathlib", "reads traces"),
    ("simulator.report", "pathlib", "writes the picture"),
    ("simulator.report_html", "*", "writes the report of a sweep, with the machine it ran on"),
    ("simulator.grids", "pathlib", "names traces"),
    ("simulator.journal", "*", "keeps what is done on the disk"),
    ("simulator.sweep", "*", "runs cells in processes; no result depends on it"),
    ("simulator.tables", "io", "text in memory"),
    ("simulator.replay", "time", "measures how long a replay took; never decides by it"),
    ("simulator.closed", "time", "measures how long a replay took; never decides by it"),
    ("simulator.simulation", "time", "measures what a decision costs; never decides by it"),
    ("simulator.workload", "pathlib", "reads traces"),
    ("testing.*", "*", "tests are programs"),
    ("zoo.*", "threading", "one lock: what is counted has one writer, and no reader meanwhile"),
)

#: numpy.random's names that hold no global state. `default_rng` only with a seed: without one it asks the machine.
SEEDED = {"Generator", "BitGenerator", "SeedSequence", "PCG64", "PCG64DXSM", "Philox", "SFC64", "default_rng"}
CLOCKS = {"now", "utcnow", "today"}

EVERY = [pytest.param(module, id=module.name or "__init__") for module in modules().values()]


def row(name: str) -> int | None:
    """Return the row of a module: an exact name wins over the pattern of its package."""
    found = [
        (pattern == name, i) for i, patterns in enumerate(LAYERS) for pattern in patterns if matches(name, pattern)
    ]
    return max(found)[1] if found else None


def package(name: str) -> str:
    return name.partition(".")[0] if "." in name or (name in modules() and modules()[name].is_package) else ""


def upward(module: Module) -> Iterator[str]:
    """Walk the imports that do not point to a lower row."""
    here = row(module.name)
    for target, node in imports(module):
        name = own(target)
        if name is None or name == module.name:
            continue
        there = row(name)
        kin = package(name) != "" and package(name) == package(module.name)
        reexports = module.is_package and (kin or module.name == "")
        if there is None:
            yield f"{module.at(node)}: imports {target}, which no row names"
        elif here is not None and not (there > here or reexports or (kin and there == here)):
            way = "of its own row" if there == here else "above it"
            yield f"{module.at(node)}: {module.name or 'the package'} imports {name or 'the package itself'}, {way}"


@pytest.mark.parametrize("module", EVERY)
def test_every_module_has_a_row(module):
    assert row(module.name) is not None, f"{module.at(module.tree)}: give {module.name} its place in LAYERS"


@pytest.mark.parametrize("module", EVERY)
def test_imports_point_downward(module):
    assert not list(upward(module))


def test_modules_of_a_package_do_not_go_round_in_circles():
    """Inside a package any order will do, as long as there is one; re-exports in `__init__` do not count."""
    graph = {
        name: {below for target, _ in imports(module) if (below := own(target)) in modules() and below != name}
        for name, module in modules().items()
        if not module.is_package
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_strangers_stay_strangers(one, other):
    met = [
        f"{module.at(node)}: {name} imports {target}"
        for name, module in modules().items()
        for target, node in imports(module)
        for near, far in ((one, other), (other, one))
        if matches(name, near) and (below := own(target)) is not None and matches(below, far)
    ]
    assert not met


@pytest.mark.parametrize("module", EVERY)
def test_dependencies_stay_in_their_place(module):
    found = []
    for target, node in imports(module):
        top = target.partition(".")[0]
        if own(target) is not None or top in sys.stdlib_module_names:
            continue
        pattern = RUNTIME.get(top)
        optional = any(matches(module.name, place) for place in OPTIONAL)
        if not (optional if pattern is None else matches(module.name, pattern)):
            kind = f"belongs in {pattern}" if pattern else "is optional: it belongs in " + ", ".join(OPTIONAL)
            found.append(f"{module.at(node)}: {top} {kind}")
    assert not found


@pytest.mark.parametrize("module", EVERY)
def test_decisions_are_pure(module):
    """Clocks, threads, randomness, files: callers bring them."""
    found = [
        f"{module.at(node)}: {target} brings {IMPURE[top]}"
        for target, node in imports(module)
        if (top := target.partition(".")[0]) in IMPURE and not allowed(module.name, top)
    ]
    if not allowed(module.name, "random"):
        found += list(hidden(module))
    assert not found


@pytest.mark.parametrize("entry", [entry for entry in ALLOWED if entry[0] in modules()], ids=lambda entry: entry[:2])
def test_every_allowance_is_used(entry):
    name, what, _ = entry
    used = {target.partition(".")[0] for target, _ in imports(modules()[name])}
    assert what == "*" or what in used, f"{name} imports {what} no more: take the entry out of ALLOWED"


@pytest.mark.parametrize("module", EVERY)
def test_nothing_prints_and_nothing_is_probed(module):
    found = [
        f"{module.at(node)}: {name}()"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and (name := dotted(node.func)) in ("print", "hasattr")
        if not (name == "print" and module.name == "cli")
    ]
    assert not found


def allowed(name: str, what: str) -> bool:
    return any(matches(name, pattern) and thing in ("*", what) for pattern, thing, _ in ALLOWED)


def hidden(module: Module) -> Iterator[str]:
    """Walk the clocks and the global randomness that come in under a pure module's name."""
    for target, node in imports(module):
        if target == "numpy.random" and isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name not in SEEDED:
                    yield f"{module.at(node)}: numpy.random.{alias.name} is global randomness"
    for node in ast.walk(module.tree):
        name = dotted(node) if isinstance(node, ast.Attribute) else ""
        head, _, last = name.rpartition(".")
        if head in ("np.random", "numpy.random") and last not in SEEDED:
            yield f"{module.at(node)}: {name} is global randomness"
        if head.rpartition(".")[2] in ("datetime", "date") and last in CLOCKS:
            yield f"{module.at(node)}: {name} is a clock"
        if isinstance(node, ast.Call) and dotted(node.func).endswith("default_rng"):
            seed = node.args[0] if node.args else next((k.value for k in node.keywords if k.arg == "seed"), None)
            if seed is None or (isinstance(seed, ast.Constant) and seed.value is None):
                yield f"{module.at(node)}: default_rng without a seed asks the machine for randomness"


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for such a chain of names, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


# Are the rules themselves awake? A broken module of each kind, made up here.
BROKEN = (
    ("endpoints", "from inferencesched.scheduler import Scheduler", upward),
    ("endpoints", "from .scheduler import Scheduler", upward),
    ("endpoints", "def f():\n    import inferencesched.pool", upward),
    ("endpoints", "if TYPE_CHECKING:\n    from inferencesched.request import X", upward),
    ("scorers.load", "from ..pickers import MaxScorePicker", upward),
    ("pool", "from inferencesched import Endpoints", upward),
    ("pool", "from inferencesched.attic import x", upward),
    ("pool", "import numpy as np\nnp.random.seed(1)", hidden),
    ("pool", "from numpy.random import rand", hidden),
    ("pool", "import numpy as np\nnp.random.default_rng()", hidden),
    ("pool", "from datetime import datetime\ndatetime.now()", hidden),
)


@pytest.mark.parametrize(("name", "source", "rule"), BROKEN)
def test_the_rules_see(name, source, rule):
    path = home().joinpath(*name.split(".")).with_suffix(".py")
    assert len(list(rule(Module(name, path, ast.parse(source))))) == 1


def test_a_reexport_is_followed_to_where_it_is_defined():
    tree = ast.parse("from inferencesched.scorers import QueueScorer")
    assert [i.target for i in imports(Module("x", home() / "x.py", tree))] == ["inferencesched.scorers.load"]
    assert Import("numpy", tree.body[0]).target == "numpy"
