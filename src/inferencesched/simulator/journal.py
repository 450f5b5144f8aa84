"""Which cells of a sweep are done, whatever happened to the machine?"""

import os
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

import msgspec

from inferencesched.errors import InferenceSchedError
from inferencesched.simulator.grids import Cell, Grid
from inferencesched.simulator.tables import CellResult


class JournalError(InferenceSchedError):
    """The journal is another grid's, or could not be written; what is said is how many cells are safe."""


class Journal:
    """Which cells are done, whatever happened to the machine? A file of JSON lines, each flushed to the disk before the next begins.

    The first line names the grid. A last line that was cut short is dropped, and its cell runs again. Errors: `JournalError` for a file of another
    grid or one that is no journal, and where the disk is full: with the number of cells that are safe.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path, self.done = path, dict[Cell, CellResult]()
        cells = set(grid.cells())
        text = path.read_bytes() if path.exists() else b""
        whole, _, _ = text.rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        if lines:
            head = self._line(lines[0])
            if head.get("grid") != grid.digest():
                raise JournalError(f"{path}: the journal of another grid ({head.get('grid')}, not {grid.digest()})")
            for line in lines[1:]:
                result = _decoded(self._line(line))
                if result.cell not in cells:
                    raise JournalError(f"{path}: has a cell that the grid does not have")
                self.done[result.cell] = result
        kept = len(whole) + 1 if lines else 0
        try:
            self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}; 0 cells are safe") from error
        self._file.truncate(kept)
        self._file.seek(kept)
        if not lines:
            self._write({"grid": grid.digest()})

    def add(self, result: CellResult) -> None:
        """Put a result down."""
        self._write(_encoded(result))
        self.done[result.cell] = result

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(msgspec.json.encode(record) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise JournalError(f"{self.path}: {error.strerror}; {len(self.done)} cells are safe") from error

    def _line(self, line: bytes) -> dict[str, Any]:
        try:
            record = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise JournalError(f"{self.path}: not a journal ({error})") from error
        return record


def _encoded(result: CellResult) -> dict[str, Any]:
    figures = {key: value if isfinite(value) else None for key, value in result.figures.items()}
    wall = result.wall_s if isfinite(result.wall_s) else None
    return {"cell": asdict(result.cell), "figures": figures, "error": result.error, "wall_s": wall}


def _decoded(record: dict[str, Any]) -> CellResult:
    try:
        cell = msgspec.convert(record["cell"], Cell, strict=False)
        figures = {key: nan if value is None else float(value) for key, value in record["figures"].items()}
        return CellResult(cell, figures, record["error"], nan if record["wall_s"] is None else record["wall_s"])
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise JournalError(f"not a journal's line: {error}") from error
