"""Which code blocks of Markdown pages run? Every ``python`` block: examples as doctests, programs as programs.

The blocks of one page share one namespace, from top to bottom. The line ``<!--- skip: next -->`` above a block leaves
it out; say beside it why.
"""

from doctest import ELLIPSIS
from importlib.util import find_spec

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

collect_ignore = [
    "docs/conf.py",  # Sphinx's settings: importing them writes the reference pages
    "tests/stranger",  # somebody else's package: tests/test_stranger.py installs it
    "tests/typing",  # read by the type checker, never run
]

#: Adapters whose package `make venv` does not bring; `make e2e` does.
HEAVY = {"litellm": "litellm", "ray_serve": "ray", "ray_sweep": "ray"}
collect_ignore += [
    f"src/inferencesched/adapters/{name}.py" for name, package in HEAVY.items() if find_spec(package) is None
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS), SkipParser()],
    patterns=["*.md"],
).pytest()
