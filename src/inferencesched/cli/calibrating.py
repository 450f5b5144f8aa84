"""The command that fits a step-time model to what was measured."""

from pathlib import Path

import click
import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from inferencesched.cli.parts import guarded, print_json, screen
from inferencesched.errors import InvalidInputError
from inferencesched.simulator import timing as timing_named
from inferencesched.simulator.calibration import calibrate as fit
from inferencesched.simulator.calibration import read_passes
from inferencesched.simulator.engine import ClosedForm, Hardware


@click.command()
@click.argument("measurements", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--requests", is_flag=True, help="lines are requests that a server had alone, not passes")
@click.option("--hardware", help="step-time model whose hardware's roofline must hold, as llama-3.1-8b-h100")
@click.option("--max-tokens", default=8192, show_default=True, help="prompt tokens of one pass, with --requests")
@click.option("--holdout", default=0.2, show_default=True, help="share of passes that are only judged")
@click.option("--seed", default=0, show_default=True, help="of the lot that holds out")
@click.option("--name", default="calibrated", show_default=True, help="of the model")
@click.option("--json", "as_json", is_flag=True, help="one JSON object on standard output")
@guarded
def calibrate(
    measurements: Path,
    requests: bool,
    hardware: str | None,
    max_tokens: int,
    holdout: float,
    seed: int,
    name: str,
    as_json: bool,
) -> None:
    """Fit a server's step time to measured passes or requests, and say how good the fit is.

    MEASUREMENTS is JSON lines: {"tokens", "pairs", "context", "decodes", "ms"} a pass, or with --requests {"input_tokens", "cached_tokens", "output_tokens",
    "ttft_ms", "itl_ms"} a request.
    """
    with measurements.open("rb") as file:
        passes = read_passes(file, name=str(measurements), requests=requests, max_tokens=max_tokens)
    found = fit(
        passes, name=name, hardware=None if hardware is None else _hardware(hardware), holdout=holdout, seed=seed
    )
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    table = Table(title=f"{name}: {measurements.name}", box=SIMPLE_HEAD, title_justify="left", show_header=False)
    for key, value in found.rows():
        table.add_row(key, value)
    screen().print(table)


def _hardware(name: str) -> Hardware:
    """Return the hardware of a model by name."""
    model = timing_named(name)
    if not isinstance(model, ClosedForm) or model.hardware is None:
        raise InvalidInputError("hardware", name, "a step-time model of known hardware")
    return model.hardware
