"""Do the tests pass with the oldest versions that pyproject.toml allows?

Installs exactly the lower bounds of the run-time dependencies and of the extra `all` into build/oldest, with
today's test tools beside them, and runs the tests and the examples there. Best asked of the oldest Python we support.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "jsonschema", "sybil")
#: What the oldest of ours was released beside: a newer pyparsing warns of what that matplotlib does at import.
BESIDE = ("pyparsing<3.3",)


def main() -> None:
    """Install and test."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *sorted(set(lines_of(project["optional-dependencies"], "all")))]
    bounds = [line.replace(">=", "==") for line in wanted]
    print("-- installing", *bounds, flush=True)
    folder = ROOT / "build" / "oldest"
    run(sys.executable, "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check", *bounds, *TOOLS, *BESIDE)
    run(python, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check", "--no-deps", "-e", ROOT)
    run(
        python,
        "-m",
        "pytest",
        "-n",
        "auto",
        "--dist",
        "worksteal",
        "--doctest-modules",
        ROOT / "README.md",
        ROOT / "src",
        ROOT / "tests",
    )


def lines_of(extras: dict[str, list[str]], name: str) -> Iterator[str]:
    """Walk what an extra asks for, with what it takes from other extras of ours."""
    for line in extras[name]:
        own, _, names = line.rstrip("]").partition("[")
        if own == "inferencesched":
            for each in names.split(","):
                yield from lines_of(extras, each)
        else:
            yield line


def run(*command: object) -> None:
    """Run one program, or stop with its exit status."""
    status = subprocess.run([str(word) for word in command], cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
