"""The command that replays a grid: policies, loads, fleets and seeds."""

import sys
from pathlib import Path
from typing import Any

import click

from inferencesched.cli.parts import errors, guarded, make_folder, numbers, policies_named, progress_bar
from inferencesched.errors import InvalidInputError
from inferencesched.simulator import timing as timing_named
from inferencesched.simulator.grids import Grid, Source
from inferencesched.simulator.policies import USUAL
from inferencesched.simulator.report_html import write_report
from inferencesched.simulator.sweep import Engine, in_process, in_processes
from inferencesched.simulator.sweep import sweep as run_sweep
from inferencesched.simulator.tables import CellResult, markdown_table


@click.command()
@click.argument("traces", nargs=-1, type=click.Path(exists=True, dir_okay=True))
@click.option("--policies", default=",".join(USUAL), show_default=True, help="names, comma-separated, or all")
@click.option("--loads", default="1", show_default=True, help="arrivals so many times as fast, comma-separated")
@click.option(
    "--fleets", default="8:dynamo-mocker:16384", show_default=True, help="servers:step-time:KV-blocks, comma-separated"
)
@click.option("--seeds", default=1, show_default=True, help="so many of each, from 0")
@click.option("--spread", is_flag=True, help="spread arrivals within the trace's own ticks, by seed")
@click.option("--closed", is_flag=True, help="closed loop: each request waits for the answers before it")
@click.option("--head", default=0, show_default=True, help="the first so many requests of each trace; 0 is all")
@click.option("--schema", default="", help="how the traces are written, where their lines do not say")
@click.option("--thin", default=1.0, show_default=True, help="so much of the conversations, drawn by seed")
@click.option("--scrape-ms", default=50.0, show_default=True, help="age of scraped signals; 0 is fresh")
@click.option("--answer-ms", default=5.0, show_default=True, help="so late is a token or an end heard of")
@click.option("--news-ms", default=50.0, show_default=True, help="so late is a KV event heard of")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True, help="who runs the cells"
)
@click.option("--jobs", default=1, show_default=True, help="processes of the local engine")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder: journal, table, CSV, report")
@guarded
def sweep(traces: tuple[str, ...], out: Path, **options: Any) -> None:
    """Replay a grid of policies, loads, fleets and seeds; broken off, the same command goes on where it was.

    Writes journal.jsonl, figures.csv, table.md, report.html (and figures.parquet where pyarrow is installed) to --out.
    """
    grid = Grid(
        tuple(
            Source(path, options["spread"], options["head"], options["schema"], options["thin"])
            for path in traces or ("",)
        ),
        tuple(each.name for each in policies_named(options["policies"])),
        tuple(numbers("loads", options["loads"])),
        tuple(_fleet(text) for text in options["fleets"].split(",")),
        options["seeds"],
        options["scrape_ms"],
        options["answer_ms"],
        options["news_ms"],
        options["closed"],
    )
    make_folder("out", out)
    engine = in_process if options["jobs"] == 1 else in_processes(options["jobs"])
    if options["engine"] == "ray":
        engine = _ray_engine()
    with progress_bar(show=True) as bar:
        task = bar.add_task("sweeping", total=len(grid.cells()))

        def progress(done: int, total: int, last: CellResult) -> None:
            bar.update(task, completed=done, description=f"{last.cell.policy} x{last.cell.load:g} ({done} of {total})")

        result = run_sweep(grid, engine=engine, journal=out / "journal.jsonl", progress=progress)
    command = " ".join(["inferencesched", *sys.argv[1:]])
    for path in write_report(result, out, command=command):
        errors.print(f"written: {path}", markup=False, soft_wrap=True)
    click.echo(markdown_table(result), nl=False)


def _fleet(text: str) -> tuple[int, str, int]:
    """Return servers, step time and KV blocks."""
    parts = text.strip().split(":")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[2].isdecimal()):
        raise InvalidInputError("fleets", text, "servers:step-time:KV-blocks, as 8:llama-3.1-8b-h100:6250")
    return int(parts[0]), timing_named(parts[1]).name, int(parts[2])


def _ray_engine() -> Engine:
    """Return the engine that runs cells on a Ray cluster (extra ``ray``)."""
    try:
        from inferencesched.adapters.ray_sweep import on_ray  # noqa: PLC0415  of another extra
    except ModuleNotFoundError as error:
        raise InvalidInputError("engine", "ray", "local, or the extra `ray` installed") from error
    return on_ray()
