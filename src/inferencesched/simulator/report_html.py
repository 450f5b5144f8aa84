"""How is a sweep shown? One HTML file with its pictures in it, a table, and files for other programs.

The only module beside `report` that imports the optional `matplotlib` (extra ``cli``), and `pyarrow` where it is installed.
"""

import io
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape
from importlib import metadata
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from inferencesched.simulator.policies import CEILING, FLOOR
from inferencesched.simulator.tables import Row, SweepResult, columns_of, csv_text, html_table, markdown_table

#: What is drawn over load: figure, title, whether on a logarithmic scale.
PANELS: Final = (
    ("ttft_mean", "TTFT, mean, ms", True),
    ("ttft_p90", "TTFT, p90, ms", True),
    ("e2e_mean", "E2E, mean, ms", True),
    ("goodput_requests", "requests within 2 s and 25 ms", False),
)
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:110rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}td:nth-child(-n+5),th:nth-child(-n+5){text-align:left}svg{max-width:100%;height:auto}"
)


def write_report(result: SweepResult, folder: Path, *, command: str) -> list[Path]:
    """Write all that is to be had of a sweep into a folder; return the files. Parquet only where pyarrow is installed."""
    texts = {
        "figures.csv": csv_text(result),
        "table.md": markdown_table(result),
        "report.html": html(result, command=command),
    }
    written = []
    for name, text in texts.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    for i, (_, rows) in enumerate(_groups(result), 1):
        path = folder / f"over-load-{i}.png"
        with _style():
            _figure(rows).savefig(path, dpi=110, metadata={"Software": None})
        written.append(path)
    if find_spec("pyarrow") is not None:
        written.append(_parquet(result, folder / "figures.parquet"))
    return written


def _parquet(result: SweepResult, path: Path) -> Path:
    import pyarrow as pa  # noqa: PLC0415  only where it is installed
    from pyarrow import parquet  # noqa: PLC0415

    parquet.write_table(pa.table(columns_of(result)), path)
    return path


def html(result: SweepResult, *, command: str) -> str:
    """Return the whole page; the same bytes for the same result, command and machine."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("inferencesched", "numpy", "numba"))
    machine = f"{platform.machine()}, Python {platform.python_version()}, {versions}"
    pictures = "\n".join(_pictures(result))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title><style>{_STYLE}</style>\n'
        f"<h1>Sweep</h1>\n<p><code>{escape(command)}</code></p>\n<p>{escape(machine)}</p>\n{pictures}\n{html_table(result)}\n</html>\n"
    )


def _pictures(result: SweepResult) -> list[str]:
    """Return a picture for each traffic and fleet, under its heading."""
    return [f"<h2>{escape(heading)}</h2>\n{_svg(rows)}" for heading, rows in _groups(result)]


def _groups(result: SweepResult) -> list[tuple[str, list[Row]]]:
    """Return the rows of each traffic and fleet."""
    groups: dict[str, list[Row]] = {}
    for row in result.rows():
        groups.setdefault(f"{row.source}, {row.servers} servers, {row.timing}", []).append(row)
    return list(groups.items())


def _style() -> AbstractContextManager[None]:
    """Return how figures look; text stays text, so that a page is small and can be searched."""
    return mpl.rc_context(
        {"svg.hashsalt": "inferencesched", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    )


def _svg(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    with _style():
        _figure(rows).savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _figure(rows: Sequence[Row]) -> Figure:
    """Draw figures over load: a curve a policy, bands of 95 %."""
    names = list(dict.fromkeys(row.policy for row in rows))
    figure = Figure(figsize=(4.2 * len(PANELS), 4.4), layout="constrained")
    for panel, (key, title, log) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for i, name in enumerate(names):
            points = sorted((row.load, row.figures[key]) for row in rows if row.policy == name and row.figures)
            loads, means = [load for load, _ in points], [found.mean for _, found in points]
            style = {FLOOR: ":", CEILING: "--"}.get(name, "-")
            colour = _COLOURS[i % len(_COLOURS)]
            panel.plot(loads, means, style, color=colour, marker="o", markersize=3, label=name)
            if any(not isnan(found.half) for _, found in points):
                low, high = [found.low for _, found in points], [found.high for _, found in points]
                panel.fill_between(loads, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("load")
        if log:
            panel.set_yscale("log")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, len(labels)), frameon=False)
    return figure
