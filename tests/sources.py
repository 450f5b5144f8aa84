"""Every module of the package as a syntax tree: what the tests of the house read.

Nothing is imported: a module that cannot be imported can still be read.
"""

import ast
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

PACKAGE = "inferencesched"


class Module(NamedTuple):
    """One source file: its dotted name below the package ("" is the package itself), its path, its tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def at(self, node: ast.AST) -> str:
        """Return file:line, as editors open it."""
        return f"{self.path.relative_to(home().parent)}:{getattr(node, 'lineno', 1)}"


class Import(NamedTuple):
    """One imported name: the module that holds it, and the node that asks for it."""

    target: str
    node: ast.AST


@cache
def home() -> Path:
    """Return the package's folder: this checkout's src, or site-packages where the wheel is tested."""
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@cache
def modules() -> dict[str, Module]:
    """Return every module by name, in the order of the names."""
    found = {}
    for path in sorted(home().rglob("*.py")):
        parts = path.relative_to(home()).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imports(module: Module) -> Iterator[Import]:
    """Walk every import of a module, wherever it stands; targets are absolute dotted names.

    ``from p import x`` means the module p.x where there is one, the module that defines x where the package p only
    re-exports it, and p otherwise.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            yield from (Import(_origin(base, alias.name), node) for alias in node.names)


def own(target: str) -> str | None:
    """Return the name below our package, or None for somebody else's module."""
    if target == PACKAGE:
        return ""
    return target.removeprefix(f"{PACKAGE}.") if target.startswith(f"{PACKAGE}.") else None


def matches(name: str, pattern: str) -> bool:
    """Is this module meant? ``filters`` and ``filters.*`` are the package and all below it; the rest is exact."""
    stem = pattern.removesuffix(".*")
    return name == stem or (pattern != stem and name.startswith(f"{stem}.")) or fnmatchcase(name, pattern)


def _base(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *(module.name.split(".") if module.name else [])]
    parts = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _origin(base: str, name: str, seen: frozenset[str] = frozenset()) -> str:
    below = own(base)
    if below is None:
        return base
    joined = f"{below}.{name}".lstrip(".")
    if joined in modules():
        return f"{PACKAGE}.{joined}"
    package = modules().get(below)
    if package is None or not package.is_package or not below or base in seen:
        return base  # the root's re-exports count as the root: nothing below imports from the front door
    for node in package.tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _origin(_base(package, node), alias.name, seen | {base})
    return base
