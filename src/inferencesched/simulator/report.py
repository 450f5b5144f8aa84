"""How do people see a comparison? A table to read and a picture to look at.

The only module of the simulator that imports the optional `rich` and `matplotlib` (extra ``cli``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.box import SIMPLE_HEAD
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
    grid = Table(
        title=title,
        caption=_caption({replay.policy for replay in shown}),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
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
            cells.append(f"[bold]{text}[/bold]" if replay in rivals and value == best[key] else text)
        role = {FLOOR: " (floor)", CEILING: " (ceiling)"}.get(replay.policy, "")
        grid.add_row(f"{replay.policy}{role}", *cells, f"{replay.decision_us_p50:,.0f}")
    return grid


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(
        {"svg.hashsalt": "inferencesched", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(13, 4.6), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        names = list(dict.fromkeys(run.replay.policy for run in runs))
        for panel, (key, heading) in zip(axes, PANELS, strict=True):
            for i, name in enumerate(names):
                points = sorted(
                    (run.replay.figures["offered_rps"], run.replay.figures[key])
                    for run in runs
                    if run.replay.policy == name
                )
                style = {FLOOR: ":", CEILING: "--"}.get(name, "-")
                panel.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    style,
                    color=_COLOURS[i % len(_COLOURS)],
                    marker="o",
                    markersize=3.5,
                    linewidth=1.8,
                    label=name,
                )
            panel.set_yscale("log")
            for axis in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
                axis(EngFormatter(sep=""))
            panel.set_title(heading, loc="left")
            panel.set_xlabel("offered load, requests per second")
            panel.grid(visible=True, which="both", axis="y", alpha=0.25, linewidth=0.6)
        axes[0].set_ylabel("ms")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=140, metadata=metadata)
    return path
