"""The page of features: 58 rows, each with a module and a test that exist."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "features.md"


def rows():
    """Return the cells of each row of the table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_there_are_58_rows_in_order():
    assert [row[0] for row in rows()] == [str(number) for number in range(1, 59)]
    assert all(len(row) == 6 and all(row[:5]) for row in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_names_a_module_and_a_test_that_exist(row):
    assert importlib.util.find_spec(row[3].strip("`")) is not None
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
    assert named
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{path} has no {name}"
        assert any(isinstance(node, (ast.Assert, ast.Call)) for node in ast.walk(functions[name]))
