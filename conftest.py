"""Which code blocks of Markdown pages run? Every ``python`` block: examples as doctests, programs as programs.

The blocks of one page share one namespace, from top to bottom. The line ``<!--- skip: next -->`` above a block leaves
it out; say beside it why.
"""

from doctest import ELLIPSIS

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

collect_ignore = [
    "docs/conf.py",  # Sphinx's settings: importing them writes the reference pages
    "tests/stranger",  # somebody else's package: tests/test_stranger.py installs it
    "tests/typing",  # read by the type checker, never run
]

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=ELLIPSIS), SkipParser()],
    patterns=["*.md"],
).pytest()
