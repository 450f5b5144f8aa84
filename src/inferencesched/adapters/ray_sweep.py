"""How are a sweep's cells run on a Ray cluster (extra ``ray``)?

A cell is a task of its own; its result is that of any other engine. A task whose worker is killed fails by name.
"""

from collections.abc import Iterator, Sequence

import ray
from ray.exceptions import RayError

from inferencesched.simulator.grids import Cell
from inferencesched.simulator.sweep import Engine, run_cell
from inferencesched.simulator.tables import CellResult


def on_ray() -> Engine:
    """Return an engine of the cluster that Ray is connected to, or of one of this machine that it starts."""

    def run(cells: Sequence[Cell]) -> Iterator[CellResult]:
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False)
        task = ray.remote(max_retries=0)(run_cell)
        waiting = {task.remote(cell): cell for cell in cells}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            cell = waiting.pop(done)
            try:
                yield ray.get(done)
            except RayError as error:
                yield CellResult(cell, {}, f"WorkerDied: {type(error).__name__}")

    return run
