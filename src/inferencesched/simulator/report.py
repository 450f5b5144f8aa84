"""How do people see a comparison? A table to read and a picture to look at.

The only module of the simulator that imports the optional `rich` and `matplotlib` (extra ``cli``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from inferencesched.simulator.compare import Run
from inferencesched.simulator.policies import CEILING, FLOOR

#: Which figures the table shows: key, heading, digits, and whether less is better.
COLUMNS: Final = (
    ("ttft_mean", "TTFT\nmean", 0, True),
    ("ttft_p50", "TTFT\np50", 0, True),
    ("ttft_p99", "TTFT\np99", 0, True),
    ("tpot_p50", "TPOT\np50", 1, True),
    ("e2e_mean", "E2E\nmean", 0, True),
    ("e2e_p99", "E2E\np99", 0, True),
    ("hit", "hit\nrate", 3, False),
    ("goodput_requests", "good", 0, False),
)

#: Curves of the picture: key and title.
PANELS: Final = (
    ("ttft_mean", "Time to first token, mean"),
    ("ttft_p99", "Time to first token, p99"),
    ("e2e_mean", "End to end, mean"),
)

# Okabe and Ito's palette: told apart by colour-blind readers, too
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def table(runs: Sequence[Run], *, title: str, load: float = 1.0) -> Table:
    """Which policy did how well at one load? The best of each column, floor and ceiling aside, is bold."""
    shown = [run.replay for run in runs if run.load == load]
    grid = _grid(title, _caption({replay.policy for replay in shown}))
    grid.add_column("policy", no_wrap=True)
    for _, heading, _, _ in COLUMNS:
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("us a\ndecision", justify="right", no_wrap=True)
    best = {}
    rivals = [replay for replay in shown if replay.policy not in (FLOOR, CEILING)]
    for key, _, digits, less in COLUMNS:
        values = [round(replay.figures[key], digits) for replay in rivals]
        if values:
            best[key] = min(values) if less else max(values)
    for replay in shown:
        cells = []
        for key, _, digits, _ in COLUMNS:
            value = round(replay.figures[key], digits)
            text = f"{value:,.{digits}f}"
            cells.append(
                f"[bold]{text}[/bold]" if replay.policy not in (FLOOR, CEILING) and value == best[key] else text
            )
        role = {FLOOR: " (floor)", CEILING: " (ceiling)"}.get(replay.policy, "")
        grid.add_row(
            f"{replay.label}{role}", *cells, "-" if isnan(replay.decision_us_p50) else f"{replay.decision_us_p50:,.0f}"
        )
    return grid


#: Which figures of a tenant or a priority the second table shows: attribute, heading, digits, and by what they are multiplied.
GROUP_COLUMNS: Final = (
    ("submitted", "came", 0, 1.0),
    ("completed", "served", 0, 1.0),
    ("shed_rate", "shed\n%", 1, 100.0),
    ("wait_p50", "wait\np50", 0, 1.0),
    ("wait_p95", "wait\np95", 0, 1.0),
    ("ttft_p50", "TTFT\np50", 0, 1.0),
    ("ttft_p95", "TTFT\np95", 0, 1.0),
    ("served_tokens", "tokens\nserved", 0, 1.0),
)


def waiting_table(runs: Sequence[Run], *, load: float = 1.0) -> Table | None:
    """Who waited, and who was turned away, by tenant and priority, at one load? None where nobody asked."""
    shown = [(run.replay, run.replay.waiting) for run in runs if run.load == load and run.replay.waiting is not None]
    if not shown:
        return None
    notes = [
        "Wait in front of the scheduler; TTFT from arrival. Jain's index over tenants' served tokens by weight:",
        "1 is even. Contended: of those only that went while every tenant of their priority had something waiting.",
    ]
    for replay, waiting in shown:
        contended = "" if isnan(waiting.jain_contended) else f", contended {waiting.jain_contended:.3f}"
        notes.append(f"{replay.label}: Jain {waiting.jain:.3f}{contended}; at most {waiting.most_waiting:,} waited.")
    grid = _grid("By tenant and priority", escape("\n".join(notes)))
    grid.add_column("", no_wrap=True)
    for _, heading, _, _ in GROUP_COLUMNS:
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("shed as", no_wrap=True)
    for replay, waiting in shown:
        grid.add_row(f"[bold]{escape(replay.label)}[/bold]")
        groups = [(f"tenant {name}", group) for name, group in waiting.tenants.items()]
        groups += [(f"priority {priority}", group) for priority, group in waiting.priorities.items()]
        for name, group in groups:
            values = [(getattr(group, key) * times, digits) for key, _, digits, times in GROUP_COLUMNS]
            kinds = [f"{outcome} {rate * 100:.1f}%" for outcome, rate in group.shed.items()]
            cells = ("-" if isnan(value) else f"{value:,.{digits}f}" for value, digits in values)
            grid.add_row(f"  {escape(name)}", *cells, "\n".join(kinds))
    return grid


def _grid(title: str, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _caption(policies: set[str]) -> str:
    notes = [
        "Times in ms. hit: share of prompt tokens found cached. good: requests with TTFT <= 2 s and TPOT <= 25 ms."
    ]
    if CEILING in policies:
        notes.append(f"{CEILING}: fresh state, true lengths, one-step roll-out; a strong reference, not a bound.")
    missing = [name for name in (FLOOR, CEILING) if name not in policies]
    if missing:
        notes.append(f"Left out: {', '.join(missing)}.")
    notes.append("One seed; simulated servers; no network, tokenizer or gateway overhead.")
    return "\n".join(notes)


def picture(runs: Sequence[Run], path: str | Path, *, title: str) -> Path:
    """What happens to latency as load grows? Writes a PNG or SVG (by suffix) and returns its path.

    One panel a metric, one curve a policy, offered load in requests per second; deterministic bytes for SVG.
    """
    path = Path(path)
    with _figure(path, len(PANELS), title) as panels:
        names = list(dict.fromkeys(run.replay.label for run in runs))
        for panel, (key, heading) in zip(panels, PANELS, strict=True):
            for i, name in enumerate(names):
                chosen = [run.replay for run in runs if run.replay.label == name]
                points = sorted((replay.figures["offered_rps"], replay.figures[key]) for replay in chosen)
                style = {FLOOR: ":", CEILING: "--"}.get(chosen[0].policy, "-")
                _curve(panel, points, style, i, name)
            panel.set_yscale("log")
            for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                axis(EngFormatter(sep=""))
            panel.set_title(heading, loc="left")
        panels[0].set_ylabel("ms")
    return path


def waiting_picture(runs: Sequence[Run], path: str | Path, *, title: str) -> Path:
    """Who is turned away, and who waits, as load grows? Writes a PNG or SVG (by suffix) and returns its path.

    One curve a priority and a way of waiting: colours tell the ways, lines the priorities. As `picture` otherwise.
    """
    path = Path(path)
    known = [(run.replay, run.replay.waiting) for run in runs if run.replay.waiting is not None]
    names = list(dict.fromkeys(replay.label for replay, _ in known))
    priorities = sorted({priority for _, waiting in known for priority in waiting.priorities}, reverse=True)
    with _figure(path, 2, title) as panels:
        for panel, key, heading, unit in (
            (panels[0], "shed_rate", "Turned away", "share of requests"),
            (panels[1], "ttft_p95", "Time to first token, p95", "ms"),
        ):
            for i, name in enumerate(names):
                for j, priority in enumerate(priorities):
                    points = sorted(
                        (replay.figures["offered_rps"], float(getattr(waiting.priorities[priority], key)))
                        for replay, waiting in known
                        if replay.label == name
                    )
                    _curve(panel, points, ("-", "--", ":", "-.")[j % 4], i, f"{name}, priority {priority}")
            panel.set_title(heading, loc="left")
            panel.set_ylabel(unit)
        panels[1].set_yscale("log")
    return path


def _curve(panel: Axes, points: Sequence[tuple[float, float]], style: str, colour: int, label: str) -> None:
    panel.plot(
        [x for x, _ in points],
        [y for _, y in points],
        style,
        color=_COLOURS[colour % len(_COLOURS)],
        marker="o",
        markersize=3.5,
        linewidth=1.8,
        label=label,
    )


@contextmanager
def _figure(path: Path, count: int, title: str) -> Iterator[Sequence[Axes]]:
    """Lend the panels of a figure, and write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(
        {"svg.hashsalt": "inferencesched", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        panels = list(figure.subplots(1, count))
        yield panels
        for panel in panels:
            panel.set_xlabel("offered load, requests per second")
            panel.grid(visible=True, which="both", axis="y", alpha=0.25, linewidth=0.6)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        handles, labels = panels[0].get_legend_handles_labels()
        # as many beside each other as there is room for: a letter is about a 150th of the width
        columns = max(1, min(len(labels), 150 // (max(map(len, labels), default=0) + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=140, metadata=metadata)
