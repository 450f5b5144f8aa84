"""What do all commands have in common? Where they write, what they say of errors, what they make of texts."""

import sys
from collections.abc import Callable
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from inferencesched.errors import InferenceSchedError, InvalidInputError, TraceError
from inferencesched.simulator import POLICIES, Policy
from inferencesched.simulator import policy as policy_named

errors: Final = Console(stderr=True, highlight=False)


def screen() -> Console:
    """Return where tables go: as wide as the terminal, or as the table where there is none."""
    screen = Console(highlight=False)
    return screen if screen.is_terminal else Console(highlight=False, width=110)


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command say what was wrong, and no traceback."""

    @wraps(command)
    def guarded(**arguments: Any) -> None:
        try:
            command(**arguments)
        except InferenceSchedError as error:
            fail(error)

    return guarded


def policies_named(names: str) -> list[Policy]:
    """Return the policies of these names, in order; ``all`` is every one."""
    if names.strip() == "all":
        return list(POLICIES.values())
    return [policy_named(name.strip()) for name in names.split(",")]


def fail(error: InferenceSchedError) -> NoReturn:
    """Say what was wrong, on standard error, and leave with status 2."""
    errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
    if isinstance(error, TraceError) and error.lines_read:
        hint = f"the {error.lines_read} requests before it are good: --partial replays them"
        errors.print(hint, markup=False, soft_wrap=True)
    sys.exit(2)


def make_folder(name: str, path: Path) -> None:
    """Make a folder, unless it is there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(name, str(path), f"a folder, or where one can be made ({error.strerror})") from error


def numbers(name: str, text: str) -> list[float]:
    """Return numbers above 0, comma-separated."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(isfinite(number) and number > 0 for number in found):
        raise InvalidInputError(name, text, "numbers above 0, comma-separated")
    return found


def progress_bar(*, show: bool) -> Progress:
    """Return a bar on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
        console=errors,
        disable=not show,
    )


def print_json(value: object) -> None:
    """Print one JSON value on standard output."""
    click.echo(msgspec.json.encode(value).decode())
