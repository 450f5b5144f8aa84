"""What came of a sweep, and how is it written down, for people and for programs? Without any optional library."""

import csv
import io
from html import escape
from math import isnan, nan
from typing import Final, NamedTuple

from inferencesched.simulator.grids import Cell, Grid
from inferencesched.simulator.policies import CEILING, FLOOR
from inferencesched.simulator.statistics import Estimate, estimate

#: A run with more than so many times its usual number in flight when arrivals end did not keep up: its means measure the trace's length. A line that
#: grows evenly ends at twice its mean.
DRAINED: Final = 1.5


class CellResult(NamedTuple):
    """What came of a cell? Its figures, or the error that ended it. ``wall_s`` is the only part that depends on the machine."""

    cell: Cell
    figures: dict[str, float]
    error: str = ""
    wall_s: float = nan

    @property
    def drained(self) -> bool:
        """Did the fleet keep up with what came? (`DRAINED`)"""
        return self.figures.get("growth", nan) <= DRAINED

    def same(self, other: "CellResult") -> bool:
        """Is it the same result, whoever computed it?"""
        return (self.cell, self.error, repr(self.figures)) == (other.cell, other.error, repr(other.figures))


class Row(NamedTuple):
    """What do a policy's seeds say of one place of the grid? ``figures`` by name; ``drained`` says whether all of them did."""

    source: str
    servers: int
    timing: str
    load: float
    policy: str
    figures: dict[str, Estimate]
    drained: bool
    errors: tuple[str, ...]


class SweepResult(NamedTuple):
    """What came of the grid? All cells in its order."""

    grid: Grid
    cells: tuple[CellResult, ...]

    def rows(self) -> list[Row]:
        """Return means over seeds, with intervals; cells that failed are left out of them and named."""
        groups: dict[tuple[str, int, str, float, str], list[CellResult]] = {}
        for each in self.cells:
            cell = each.cell
            key = (cell.source.name, cell.servers, cell.timing, cell.load, cell.policy)
            groups.setdefault(key, []).append(each)
        rows = []
        for key, group in groups.items():
            good = [each for each in group if not each.error]
            figures = {
                name: estimate([each.figures[name] for each in good]) for name in (good[0].figures if good else ())
            }
            drained = bool(good) and all(each.drained for each in good)
            rows.append(Row(*key, figures, drained, tuple(each.error for each in group if each.error)))
        return rows

    def _repr_html_(self) -> str:
        return html_table(self)


#: What a table shows: figure, heading, digits.
SHOWN: Final = (
    ("ttft_mean", "TTFT mean", 0),
    ("ttft_p90", "TTFT p90", 0),
    ("ttft_p99", "TTFT p99", 0),
    ("tpot_p50", "TPOT p50", 1),
    ("e2e_mean", "E2E mean", 0),
    ("hit_first", "hit", 3),
    ("goodput_requests", "good", 0),
)


def csv_text(result: SweepResult) -> str:
    """Return one line a cell: its place in the grid, its error, and all figures."""
    names = list(dict.fromkeys(name for each in result.cells for name in each.figures))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["source", "policy", "load", "servers", "timing", "kv_blocks", "seed", "drained", "error", *names])
    for each in result.cells:
        cell = each.cell
        place = [cell.source.name, cell.policy, cell.load, cell.servers, cell.timing, cell.kv_blocks, cell.seed]
        figures = [each.figures.get(name, "") for name in names]
        writer.writerow([*place, int(each.drained), each.error, *figures])
    return out.getvalue()


def columns_of(result: SweepResult) -> dict[str, list[object]]:
    """Return the same as columns, for whoever writes Parquet."""
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    plain = {"source", "policy", "timing", "error"}
    return {
        name: [row[name] if name in plain else (float(row[name]) if row[name] else None) for row in rows]
        for name in (rows[0] if rows else {})
    }


def notes(result: SweepResult) -> list[str]:
    """Return what has to be said under a table."""
    grid = result.grid
    said = [
        "Times in ms, means over seeds with half of the 95 % interval. hit: share of prompt tokens found cached. good: requests with TTFT <= 2 s and TPOT <= 25 ms.",
        f"Signals: scraped every {grid.scrape_ms:g} ms, answers {grid.answer_ms:g} ms late, KV events {grid.news_ms:g} ms late. {grid.seeds} seed(s).",
    ]
    missing = [name for name in (FLOOR, CEILING) if name not in grid.policies]
    if missing:
        said.append(f"Left out: {', '.join(missing)}.")
    if any(not row.drained for row in result.rows()):
        said.append(
            "* did not keep up: more than 1.5 times the usual number in flight when arrivals ended; its means measure how long the trace is."
        )
    said += [f"{row.policy} at x{row.load:g} failed: {error}" for row in result.rows() for error in row.errors]
    return said


def cell_text(row: Row, name: str, digits: int) -> str:
    """Return a figure with its interval."""
    found = row.figures.get(name)
    if found is None or isnan(found.mean):
        return "-"
    spread = "" if isnan(found.half) else f" ± {found.half:,.{digits}f}"
    return f"{found.mean:,.{digits}f}{spread}"


def html_table(result: SweepResult) -> str:
    """Return the table as HTML: a row a policy and place of the grid."""
    heads = ["traffic", "servers", "step time", "load", "policy", *(heading for _, heading, _ in SHOWN)]
    lines = ["<table><thead><tr>", *(f"<th>{escape(head)}</th>" for head in heads), "</tr></thead><tbody>"]
    for row in result.rows():
        role = {FLOOR: " (floor)", CEILING: " (ceiling)"}.get(row.policy, "")
        mark = "" if row.drained else " *"
        place = [row.source, str(row.servers), row.timing, f"{row.load:g}", f"{row.policy}{role}{mark}"]
        cells = [*place, *(cell_text(row, name, digits) for name, _, digits in SHOWN)]
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    lines.append("</tbody></table>")
    lines += [f"<p>{escape(note)}</p>" for note in notes(result)]
    return "\n".join(lines)


def markdown_table(result: SweepResult) -> str:
    """Return the table as Markdown, notes behind it."""
    heads = ["traffic", "servers", "step time", "load", "policy", *(heading for _, heading, _ in SHOWN)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in result.rows():
        mark = "" if row.drained else " *"
        place = [row.source, str(row.servers), row.timing, f"{row.load:g}", f"{row.policy}{mark}"]
        lines.append("| " + " | ".join([*place, *(cell_text(row, name, digits) for name, _, digits in SHOWN)]) + " |")
    return "\n".join([*lines, "", *notes(result)]) + "\n"
