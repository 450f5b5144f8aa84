"""Does ``pytest --inferencesched`` find a project's plug-ins, and name each check as a test of its own?

Every run is a process of its own, in a project made up here, with the stranger's package installed beside it.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from shutil import copytree

import pytest

import inferencesched

SOURCE = Path(inferencesched.__file__).parents[1]
STRANGER = Path(__file__).parent / "stranger" / "src"
MINE = """
from dataclasses import dataclass
import numpy as np
import inferencesched as isched
from inferencesched.config import Parameters, PluginSpec

@dataclass(frozen=True, slots=True)
class Fine:
    def score(self, request, endpoints, cycle):
        return isched.known(1.0 - endpoints[isched.KV_CACHE_USAGE])

@dataclass(frozen=True, slots=True)
class Spoilt:
    def score(self, request, endpoints, cycle):
        return 1.0 - endpoints[isched.KV_CACHE_USAGE]

class Limit(Parameters, frozen=True, kw_only=True, rename="camel"):
    maximum: float

def producer():
    return isched.ApproximatePrefixProducer(block_size=16)

PLUGINS = (Fine(), producer)
TABLE = {"spoilt": Spoilt}
SPEC = PluginSpec(
    "my-limit", ("filter",), Limit, lambda p, w: isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, p.maximum),))
)
EXAMPLES = {"my-limit": [{"maximum": 3.0}, {"maximum": 7.0}]}
"""


@pytest.fixture
def project(tmp_path):
    """A project with plug-ins of its own, a test of its own, and an installed stranger."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n", encoding="utf-8")
    copytree(STRANGER, tmp_path, dirs_exist_ok=True, ignore=lambda folder, names: {"__pycache__"} & set(names))
    info = tmp_path / "moonlight-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moonlight\nVersion: 0.3\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[inferencesched.plugins]\nmoonlight = moonlight.plugins:SPECS\n", encoding="utf-8"
    )
    return tmp_path


def run(project, *arguments, ini=""):
    (project / "pytest.ini").write_text(f"[pytest]\naddopts = -p no:cacheprovider\n{ini}", encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(project), str(SOURCE))),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-p", "pytest_inferencesched", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_nothing_happens_unless_it_is_asked_for(project):
    """Not even the import of the library: whoever has it installed and tests something else pays nothing."""
    (project / "test_own.py").write_text(
        "import sys\ndef test_own():\n    assert 'inferencesched' not in sys.modules\n", encoding="utf-8"
    )
    code, said = run(project, "-q", ini="inferencesched_plugins = mine:PLUGINS\n")
    assert code == 0 and "1 passed" in said, said


def test_every_check_of_every_plugin_is_an_item(project):
    ini = "inferencesched_plugins = mine:PLUGINS mine:TABLE mine:SPEC\ninferencesched_examples = mine:EXAMPLES\n"
    code, said = run(project, "--inferencesched", "-q", "-rf", ini=ini)
    failed = re.findall(r"^FAILED (\S+)", said, re.MULTILINE)
    assert code == 1 and set(failed) >= {"inferencesched::spoilt::scorer:nan", "inferencesched::spoilt::scorer:unknown"}
    assert all(name.startswith("inferencesched::spoilt::") for name in failed), said
    assert "Spoilt() fails scorer:nan" in said and "allowed: a number" in said and "Traceback" not in said
    code, said = run(project, "--inferencesched", "--collect-only", "-q", ini=ini)
    items = set(re.findall(r"^inferencesched::\S+", said, re.MULTILINE))
    assert (
        code == 0
        and {
            "inferencesched::queue-half-life-scorer::scorer:range",  # the stranger's, by entry point
            "inferencesched::my-limit::filter:shape",  # built by its spec, with both examples
            "inferencesched::my-limit-2::filter:shape",
            "inferencesched::PLUGINS[0]::scorer:nan",
            "inferencesched::PLUGINS[1]::producer:slots",
            "inferencesched::spoilt::scorer:nan",
        }
        <= items
    )
    assert "test_own.py::test_own" in said


def test_items_can_be_chosen(project):
    code, said = run(project, "--inferencesched", "-q", "-k", "half-life and range")
    assert code == 0 and re.search(r"1 passed, \d+ deselected", said), said


def test_the_ini_option_asks_where_no_test_is_named(project):
    ini = "inferencesched_check = true\n"
    code, said = run(project, "--collect-only", "-q", ini=ini)
    assert code == 0 and "inferencesched::queue-half-life-scorer::" in said, said
    code, said = run(project, "--collect-only", "-q", "test_own.py", ini=ini)
    assert code == 0 and "inferencesched::" not in said and "test_own" in said, said


@pytest.mark.parametrize(
    ("ini", "words"),
    [
        ("inferencesched_plugins = mine\n", "got 'mine', allowed: module:name"),
        ("inferencesched_plugins = nowhere:PLUGINS\n", "No module named 'nowhere'"),
        ("inferencesched_plugins = mine:NOTHING\n", "NOTHING"),
    ],
)
def test_a_place_that_holds_nothing_is_an_error(project, ini, words):
    code, said = run(project, "--inferencesched", "-q", ini=ini)
    assert code == pytest.ExitCode.USAGE_ERROR and words in said, said


def test_a_plugin_that_cannot_be_made_is_a_failure_of_its_own(project):
    code, said = run(
        project, "--inferencesched", "-q", "-k", "my-limit", "-rf", ini="inferencesched_plugins = mine:SPEC\n"
    )
    assert code == 1 and "FAILED inferencesched::my-limit::made" in said and "maximum" in said, said


def test_it_is_announced():
    """The entry point that pytest looks for, in what is installed; `make` installs anew when pyproject.toml changes."""
    points = [point for point in entry_points(group="pytest11") if point.value == "pytest_inferencesched"]
    assert [point.name for point in points] == ["inferencesched"]
