"""How are the pages built? Sphinx with MyST; `make docs`, and a warning is an error.

The reference is generated: one page for each public module of the source, in reference/modules/, and its table of
contents. The folder ignores itself in git.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from sphinx.util.typing import stringify_annotation

import inferencesched
from inferencesched import _typing

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "src" / "inferencesched"

project = "inferencesched"
author = "The inferencesched authors"
project_copyright = author
version = release = inferencesched.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

html_theme = "furo"
html_title = f"inferencesched {release}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["litellm", "ray"]  # `make venv` does not bring them
# In docstrings `name` is code, and a link where the name is known.
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True

# --- the reference pages ---------------------------------------------------------------------------------------------

#: The rooms of the reference, in reading order: heading -> modules. What is not named comes last.
ROOMS = {
    "The front door": ("inferencesched",),
    "What is known": ("errors", "request", "endpoints", "staleness", "pool", "reservation"),
    "How an endpoint is chosen": (
        "framework",
        "normalize",
        "placement",
        "filters",
        "scorers",
        "pickers",
        "handlers",
        "producers",
        "scheduler",
        "explain",
        "config",
    ),
    "Prefixes": ("prefix",),
    "When a request may go": ("flowcontrol",),
    "The whole way of a request": ("routing", "governance", "director", "observability", "replication"),
    "Trying policies": ("simulator", "cli"),
    "The rim": ("adapters", "testing"),
    "More": (),
}
#: Whose classes show what they derive from.
TREES = ("errors",)
#: Documented by its own commands' help, not by its functions.
COMMANDS = "cli"


def public_modules() -> dict[str, Path]:
    """Return every module without an underscore in its path; "inferencesched" stands for the package."""
    found = {"inferencesched": PACKAGE / "__init__.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py" and not any(part.startswith("_") for part in name.split(".")):
            found[name] = path
    return found


def room(name: str) -> str:
    """Return the heading under which a module stands."""
    named = (heading for heading, tops in ROOMS.items() if name.partition(".")[0] in tops)
    return next(named, "More")


def write_reference() -> None:
    """Write one page a module and their table of contents; touch nothing that has not changed."""
    folder = DOCS / "reference" / "modules"
    folder.mkdir(parents=True, exist_ok=True)
    modules = public_modules()
    pages = {".gitignore": "*\n", "index.md": contents(modules)}
    pages |= {f"{name}.md": page(name, path) for name, path in modules.items()}
    for stale in {path.name for path in folder.iterdir()} - pages.keys():
        (folder / stale).unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def contents(modules: dict[str, Path]) -> str:
    """Return the page that lists the modules by room, each with the question that it answers."""
    lines = ["# Modules", "", "Each module answers one question.", ""]
    for heading, tops in ROOMS.items():
        names = [name for name in modules if room(name) == heading]
        names.sort(key=lambda name: tops.index(name.partition(".")[0]) if tops else 0)
        if names:
            entries = [f"`{name}` <{name}>" for name in names]
            lines += [f"## {heading}", "", "| module | question |", "|---|---|"]
            lines += [f"| [`{name}`]({name}.md) | {question(modules[name])} |" for name in names]
            lines += ["", "```{toctree}", ":hidden:", "", *(entry.replace("`", "") for entry in entries), "```", ""]
    return "\n".join(lines)


def question(path: Path) -> str:
    """Return the first line of a module's docstring."""
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return words.partition("\n")[0].replace("|", "\\|").replace("``", "`")


def page(name: str, path: Path) -> str:
    """Return a module's page."""
    if name == "inferencesched":
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [f"- {{py:obj}}`~{origin}`" for origin in exported(tree)]
        body = ["```{eval-rst}", ".. automodule:: inferencesched", "   :no-members:", "```", "", *names]
    elif name == COMMANDS:
        body = ["The commands of the extra `cli`. Each says what it takes: `inferencesched COMMAND --help`."]
    else:
        options = ["   :show-inheritance:"] if name in TREES else []
        body = ["```{eval-rst}", f".. automodule:: inferencesched.{name}", *options, "```"]
    return "\n".join([f"# `{name}`", "", *body, ""])


def exported(tree: ast.Module) -> list[str]:
    """Return the full names of what the front door re-exports, in the order of its `__all__`."""
    origins = {
        alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [f"{defining(name, origin)}.{name}" for name in inferencesched.__all__ if (origin := origins.get(name))]


def defining(name: str, origin: str) -> str:
    """Return the module that defines an exported object, past a family's own `__init__`."""
    home = getattr(getattr(inferencesched, name), "__module__", None)
    return home if isinstance(home, str) and home.startswith("inferencesched") else origin.rpartition(".")[0]


# --- docstrings ------------------------------------------------------------------------------------------------------

CODE = re.compile(r"(``.+?``|`[^`]+`)")


def plain(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a docstring's prose mean what it says: `*`, `|` and a trailing `_` are signs, not markup.

    Literal blocks and examples are indented or start with a prompt, and stay as they are.
    """
    listed(lines)
    verbatim = False
    for i, line in enumerate(lines):
        if not line.strip():
            verbatim = False if not verbatim or not _indented_next(lines, i) else verbatim
            continue
        if line.lstrip().startswith(">>>") or (i > 1 and lines[i - 2].rstrip().endswith("::") and line[:1] == " "):
            verbatim = True
        if not verbatim:
            lines[i] = escaped(line)


def listed(lines: list[str]) -> None:
    """Make the lines below "Parameters" a list: `name: what it is`, and what is indented goes on with it."""
    for i in range(len(lines) - 1):
        if lines[i] == "Parameters" and set(lines[i + 1]) == {"-"}:
            lines[i : i + 2] = ["Parameters:", ""]
            for j in range(i + 2, len(lines)):
                if not lines[j].strip():
                    break
                lines[j] = f"  {lines[j].strip()}" if lines[j][:1] == " " else f"- {lines[j]}"
            return


def _indented_next(lines: list[str], i: int) -> bool:
    rest = [line for line in lines[i + 1 :] if line.strip()]
    return bool(rest) and rest[0][:1] == " "


def escaped(line: str) -> str:
    """Escape what reStructuredText would take for markup, outside of code and of bullets."""
    bullet = re.match(r"\s*[*-] ", line)
    start = bullet.end() if bullet else 0
    parts = CODE.split(line[start:])
    parts[::2] = [re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    return line[:start] + "".join(parts)


def skip(app: object, what: str, name: str, thing: object, unwanted: bool, options: object) -> bool | None:
    """Leave out what Python generates: a NamedTuple's fields say no more than its class does."""
    return True if type(thing).__name__ == "_tuplegetter" else None


#: How an array's type is written out -> the name that signatures in the source give it.
ARRAYS = {
    stringify_annotation(array, "smart"): name
    for name, array in reversed(vars(_typing).items())
    if name.endswith("Array")
}


def named(
    app: object, what: str, name: str, thing: object, options: object, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Write FloatArray where the source does, not what it stands for; nobody calls a Protocol."""
    if getattr(thing, "_is_protocol", False):
        return None, None
    for written, short in ARRAYS.items():
        arguments = arguments and arguments.replace(written, short)
        returned = returned and returned.replace(written, short)
    return arguments, returned


class Document(Protocol):
    """What `owned` uses of a parsed page."""

    def findall(self) -> Iterator["Node"]:
        """Walk over all its nodes."""
        ...


class Node:
    """What `owned` uses of a node."""

    document: object


def owned(app: object, document: Document) -> None:
    """Make every node belong to its page.

    MyST leaves those of an `eval-rst` with a document of their own, by which Sphinx would write all that it has read so
    far to disk once more with each page: 250 MB, and half the time.
    """
    for node in document.findall():
        node.document = document


#: The navigation of pages that are in none: (folder, how) -> HTML.
NAVIGATION: dict[tuple[str, str], str] = {}


def remembered(app: object, page: str, template: str, context: dict[str, Callable[..., str]], document: object) -> None:
    """Draw the navigation of source pages once a folder: furo walks over all entries for each of them."""
    draw, folder = context.get("toctree"), page.rpartition("/")[0]
    if document is not None or draw is None:
        return

    def drawn(**how: object) -> str:
        key = folder, repr(sorted(how.items()))
        if key not in NAVIGATION:
            NAVIGATION[key] = draw(**how)
        return NAVIGATION[key]

    context["toctree"] = drawn


class Application:
    """What `setup` uses of Sphinx's own class."""

    connect: Callable[..., int]


def setup(app: Application) -> None:
    """Write the reference, and read docstrings as prose."""
    write_reference()
    app.connect("autodoc-process-docstring", plain)
    app.connect("autodoc-process-signature", named)
    app.connect("autodoc-skip-member", skip)
    app.connect("doctree-read", owned)
    app.connect("html-page-context", remembered, priority=400)  # before furo's own
