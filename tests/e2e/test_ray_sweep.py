"""Does a sweep on a real Ray cluster give what it gives here, and does a killed worker fail its own cell only?"""

import os
import signal

import pytest

ray = pytest.importorskip("ray", reason="ray is not installed: `make e2e` installs it")

from inferencesched.adapters import ray_sweep
from inferencesched.simulator import Grid, Source, sweep
from inferencesched.simulator.sweep import run_cell
from tests.e2e.local_ray import cluster  # noqa: F401  a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("cluster")]

GRID = Grid((Source(head=60),), ("random", "lmetric", "marginal"), (1.0, 3.0), ((2, "dynamo-mocker", 16_384),), seeds=2)


def killed(cell):
    """Run a cell, unless it is the unlucky one: then die."""
    if cell.seed == 1 and cell.policy == "lmetric":
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(cell)


def test_results_are_those_of_the_local_engine(tmp_path):
    here = sweep(GRID)
    there = sweep(GRID, engine=ray_sweep.on_ray(), journal=tmp_path / "journal.jsonl")
    assert all(one.same(other) for one, other in zip(here.cells, there.cells, strict=True))
    assert not any(each.error for each in there.cells)


def test_a_killed_worker_fails_its_own_cell_only(monkeypatch):
    monkeypatch.setattr(ray_sweep, "run_cell", killed)
    result = sweep(GRID, engine=ray_sweep.on_ray())
    failed = [each for each in result.cells if each.error]
    assert {(each.cell.policy, each.cell.seed) for each in failed} == {("lmetric", 1)} and len(failed) == 2
    assert all(each.error.startswith("WorkerDied") for each in failed)
    assert all(each.figures["completed"] == 60 for each in result.cells if not each.error)
