"""How do policies compare over loads, fleets, step times and seeds? A grid of replays, resumed where it was broken off.

A cell is one replay; its result does not depend on who ran it, when, or beside what. What fails fails by name, and the rest goes on.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from inferencesched.errors import InferenceSchedError, whole_number
from inferencesched.simulator.closed import simulate_sessions
from inferencesched.simulator.grids import Cell, Grid
from inferencesched.simulator.journal import Journal
from inferencesched.simulator.policies import policy
from inferencesched.simulator.replay import simulate
from inferencesched.simulator.tables import CellResult, SweepResult


def run_cell(cell: Cell) -> CellResult:
    """Replay one cell. What the policy or its inputs raise is the cell's error, by name."""
    try:
        workload = cell.source.load(cell.seed)
        replay = (simulate_sessions if cell.closed else simulate)(workload, policy(cell.policy), cell.cluster())
    except Exception as error:  # noqa: BLE001  whatever a plug-in raises ends its own cell and no other
        kind = type(error).__name__
        return CellResult(cell, {}, f"{kind}: {error}" if isinstance(error, InferenceSchedError) else f"{kind} {error}")
    return CellResult(cell, {key: float(value) for key, value in replay.figures.items()}, "", replay.wall_s)


#: Runs cells and hands over each result as it comes, in any order.
Engine = Callable[[Sequence[Cell]], Iterator[CellResult]]


def in_process(cells: Sequence[Cell]) -> Iterator[CellResult]:
    """Run cells one after another, here."""
    for cell in cells:
        yield run_cell(cell)


def in_processes(jobs: int) -> Engine:
    """Return an engine of so many processes. A process that is killed fails the cell it had, and no other.

    Results are those of `in_process`: a cell is all that a process is told.
    """
    whole_number("jobs", jobs, low=1)

    def run(cells: Sequence[Cell]) -> Iterator[CellResult]:
        left = dict.fromkeys(cells)
        try:
            with _pool(jobs) as pool:
                for future in as_completed([pool.submit(run_cell, cell) for cell in cells]):
                    result = future.result()
                    del left[result.cell]
                    yield result
        except BrokenProcessPool:
            yield from _one_by_one(list(left))

    return run


def _one_by_one(cells: Sequence[Cell]) -> Iterator[CellResult]:
    """Run what a broken pool left, so that whose process dies is known."""
    at = 0
    while at < len(cells):
        with _pool(1) as pool:
            while at < len(cells):
                cell = cells[at]
                at += 1
                try:
                    yield pool.submit(run_cell, cell).result()
                except BrokenProcessPool:
                    yield CellResult(cell, {}, "WorkerDied: its process was killed")
                    break


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def sweep(
    grid: Grid,
    *,
    engine: Engine = in_process,
    journal: Path | None = None,
    progress: Callable[[int, int, CellResult], None] | None = None,
) -> SweepResult:
    """How does every cell of the grid go?

    With a `journal` what is in it is not run again. `progress` is told (done, in all, the last result). The result does not depend on the engine, the
    number of jobs, or how often it was broken off. Errors: `JournalError`; what goes wrong in a cell is its result.

    >>> from inferencesched.simulator import Source
    >>> grid = Grid((Source(head=30),), ("random", "round-robin"), (1.0,), ((2, "dynamo-mocker", 16384),))
    >>> [(row.policy, row.figures["completed"].mean) for row in sweep(grid).rows()]
    [('random', 30.0), ('round-robin', 30.0)]
    """
    cells = grid.cells()
    book = None if journal is None else Journal(journal, grid)
    done = {} if book is None else dict(book.done)
    try:
        for result in engine([cell for cell in cells if cell not in done]):
            if book is not None:
                book.add(result)
            done[result.cell] = result
            if progress is not None:
                progress(len(done), len(cells), result)
    finally:
        if book is not None:
            book.close()
    return SweepResult(grid, tuple(done[cell] for cell in cells))
