"""Is a plug-in of somebody else's package found, configured, checked and used like the library's own?

The package is `tests/stranger`. It is installed as pip would leave it, its modules and a ``dist-info`` folder side by side, into a
folder of this test's.
"""

import sys
import tomllib
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from inferencesched import WAITING_QUEUE_SIZE, ConfigError, InferencePool, InferenceRequest
from inferencesched.config import Registry, dump, dump_scheduler, installed_plugins, load, schema, with_installed
from inferencesched.testing import check_scorer

STRANGER = Path(__file__).parent / "stranger"
TYPE = "queue-half-life-scorer"
YAML = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-half-life-scorer
  parameters: {halfLife: 2}
- type: max-score-picker
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install the package into a folder that Python looks into, and forget it afterwards."""
    said = tomllib.loads((STRANGER / "pyproject.toml").read_text(encoding="utf-8"))
    project = said["project"]
    copytree(STRANGER / "src", tmp_path, dirs_exist_ok=True)
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [each for each in sys.modules if each.partition(".")[0] == project["name"]]:
        del sys.modules[name]


def test_it_is_found_only_when_somebody_asks(installed):
    assert TYPE not in Registry.default()
    assert "moonlight.plugins" not in sys.modules
    assert [spec.name for spec in installed_plugins()] == [TYPE]
    assert TYPE in with_installed()


def test_it_is_configured_checked_and_used(installed):
    files = pytest.importorskip("inferencesched.adapters.yaml", reason="the extra yaml")
    registry = with_installed()
    loaded = files.read_text(YAML, registry=registry)
    [weighted] = loaded.profiles["default"].scorers
    check_scorer(weighted.scorer)
    pool = InferencePool()
    for name, queue in (("a", 4.0), ("b", 1.0)):
        pool.join(name)
        pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=0.0)
    request = InferenceRequest(request_id="r")
    with loaded.scheduler().schedule_and_reserve(request, pool, now=0.0, rng=np.random.default_rng(0)) as reservation:
        assert reservation.endpoint == "b"
    assert files.read_text(files.to_text(loaded), registry=registry).document == loaded.document
    written = dump_scheduler(loaded.scheduler(), registry=registry)
    assert load(written, registry=registry).profiles == loaded.profiles
    assert TYPE in schema(registry=registry)["$defs"]["PluginEntry"]["properties"]["type"]["enum"]
    assert dump(loaded)["plugins"][0]["type"] == TYPE


def test_its_mistakes_are_told_like_ours(installed):
    raw = {
        "apiVersion": "inferencesched/v1",
        "kind": "Scheduler",
        "profiles": {"p": {"scorers": [{"type": TYPE, "parameters": {"halfLife": 0}}]}},
    }
    with pytest.raises(ConfigError) as caught:
        load(raw, registry=with_installed())
    assert caught.value.parameter == "$.profiles.p.scorers[0].parameters.halfLife"
    assert "above 0" in caught.value.allowed


def test_an_entry_point_to_something_else_is_an_error(installed):
    points = installed / "moonlight-0.3.dist-info" / "entry_points.txt"
    points.write_text("[inferencesched.plugins]\nmoon = moonlight.plugins:TYPE_OF_NOBODY\n", encoding="utf-8")
    with pytest.raises(AttributeError):
        list(installed_plugins())
    points.write_text("[inferencesched.plugins]\nmoon = moonlight.plugins:QueueHalfLife\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"moon = moonlight\.plugins:QueueHalfLife.*a PluginSpec"):
        list(installed_plugins())


def test_a_name_that_is_taken_is_an_error(installed):
    with pytest.raises(ConfigError, match=TYPE):
        with_installed(with_installed())
