"""Does the package keep its own rules? Sizes, docstrings, names, and what an import may not do."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import inferencesched
from tests.sources import Module, imports, modules, own

LINES = 500

EVERY = [pytest.param(module, id=module.name or "__init__") for module in modules().values()]

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@pytest.mark.parametrize("module", EVERY)
def test_a_module_holds_one_idea(module):
    lines = module.path.read_text(encoding="utf-8").count("\n")
    assert lines <= LINES, f"{module.at(module.tree)}: {lines} lines; split it before {LINES}"


@pytest.mark.parametrize("module", EVERY)
def test_every_public_name_says_what_it_is_for(module):
    """A method that fulfils a contract is documented once, by the contract's Protocol in the package."""
    missing = [] if ast.get_docstring(module.tree) else [f"{module.at(module.tree)}: the module"]
    for name, node in public(module):
        if not ast.get_docstring(node) and not (name.partition(".")[2] in contracts() or overloaded(node)):
            missing.append(f"{module.at(node)}: {name}")
    assert not missing


def test_every_exported_name_answers_a_question():
    """`Which flow gets to dispatch next?`: a first line is what somebody wants to know. Constants have comments."""
    firsts = {name: (ast.get_docstring(node) or "-").splitlines()[0] for name, node in definitions().items()}
    assert {name: first for name, first in firsts.items() if "?" not in first} == {}


def test_all_is_sorted_and_complete():
    exported = list(inferencesched.__all__)
    assert exported == sorted(exported, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    bound = {name for name, value in vars(inferencesched).items() if not isinstance(value, ModuleType)}
    assert {name for name in bound if not name.startswith("_")} <= set(exported)
    assert all(getattr(inferencesched, name) is not None for name in exported)


def test_all_of_every_module_exists():
    """A module's `__all__` names what it defines or re-exports, once each."""
    wrong = []
    for module in modules().values():
        listed = exports(module)
        bound = set(bindings(module))
        wrong += [f"{module.at(module.tree)}: {name}" for name in listed or () if name not in bound]
        wrong += [f"{module.at(module.tree)}: {name} twice" for name in set(listed or ()) if listed.count(name) > 1]
    assert not wrong


# --- what an import may not do -----------------------------------------------------------------------------------

#: Imports the run-time dependencies, the package, then every module that needs no extra; reports what came along.
PROBE = """
import importlib, json, sys
import msgspec, numba, numpy, sortedcontainers, xxhash
def strangers():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
before = strangers()
import inferencesched
brought = sorted(name for name in strangers() - before if name != "inferencesched" and name[0] != "_")
broken = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as error:
        broken[name] = repr(error)
from inferencesched._kernels._compile import KERNELS
options = {name: {key: bool(value) for key, value in k.targetoptions.items()} for name, k in KERNELS.items()}
signatures = {name: len(k.signatures) for name, k in KERNELS.items()}
json.dump({"brought": brought, "broken": broken, "options": options, "signatures": signatures}, sys.stdout)
"""

#: Imported by no probe: these need extras.
EXTRAS = ("adapters", "cli", "simulator.report", "testing")


@pytest.fixture(scope="module")
def probe():
    """A fresh interpreter's report: in this one other tests have imported and compiled."""
    names = [f"inferencesched.{name}" for name in modules() if name and not name.startswith(EXTRAS)]
    command = [sys.executable, "-c", PROBE, json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_can_be_imported(probe):
    assert probe["broken"] == {}


def test_importing_brings_no_optional_dependency(probe):
    assert probe["brought"] == []


def test_importing_compiles_nothing(probe):
    assert probe["signatures"], "no kernel is registered in _kernels._compile.KERNELS"
    assert {name: count for name, count in probe["signatures"].items() if count} == {}


def test_every_kernel_releases_the_lock_and_keeps_nan(probe):
    """Under fastmath `x != x` is false for NaN, and a broken scorer could win every decision unseen."""
    for name, options in probe["options"].items():
        assert options.get("nogil") is True, name
        assert not options.get("fastmath"), name
        assert not options.get("forceobj"), name


def test_every_kernel_is_registered():
    """Who compiles without `_compile.kernel` escapes the tests above."""
    found = [
        module.at(node)
        for module in modules().values()
        if module.name.startswith("_kernels.") and module.name != "_kernels._compile"
        for target, node in imports(module)
        if target.partition(".")[0] == "numba"
    ]
    assert not found


# --- reading the source ------------------------------------------------------------------------------------------


def public(module: Module) -> Iterator[tuple[str, Documented]]:
    """Walk a module's public classes and functions, and the public methods of its public classes."""
    for node in module.tree.body:
        if isinstance(node, Documented) and shown(node.name, module):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Documented) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def shown(name: str, module: Module) -> bool:
    return not name.startswith("_") or name in (exports(module) or ())


def overloaded(node: Documented) -> bool:
    """Is this one of several signatures, or a property's second half, whose words stand elsewhere?"""
    names = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter", "override"})


def contracts() -> set[str]:
    """Return the names of the documented methods of every Protocol of the package."""
    return {
        inner.name
        for module in modules().values()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
        for inner in node.body
        if isinstance(inner, ast.FunctionDef) and ast.get_docstring(inner)
    }


def exports(module: Module) -> list[str] | None:
    """Return the module's `__all__`, or None if it has none."""
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def bindings(module: Module) -> Iterator[str]:
    """Walk the names that a module binds at its top level."""
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in module.tree.body)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, Documented):
            yield node.name
        elif lazy and isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def definitions() -> dict[str, Documented]:
    """Return the nodes that define the exported names, wherever they stand; constants have none."""
    found = {}
    for name in inferencesched.__all__:
        home = own(getattr(getattr(inferencesched, name), "__module__", None) or "")
        body = modules()[home].tree.body if home in modules() else []
        found |= {node.name: node for node in body if isinstance(node, Documented) and node.name == name}
    return found
