"""Does what people install work, with this source tree out of sight?

Builds the sdist, and from it the wheel; reads the wheel's contents; installs it into a fresh virtual environment,
first bare and then with the extra `all`; and runs, in a folder that sees no sources: an import, the tests that read the installed package,
 the examples of every module and of the README, and the command line. Everything it makes is in
one new folder under build/, removed at the end.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "inferencesched"
#: What else is in the wheel: the pytest plug-in.
PACKAGES = (PACKAGE, "pytest_inferencesched")
TESTS = ("__init__.py", "conftest.py", "sources.py", "test_house.py", "test_layers.py")
#: Adapters whose packages the extra `all` does not bring.
HEAVY = tuple(f"--ignore-glob=/*/adapters/{name}.py" for name in ("litellm", "ray_serve", "ray_sweep"))
SUFFIXES = {".py", ".typed"}
#: What an installed user has no src for, so that an import cannot find it by accident.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}

BARE = f"""
import {PACKAGE} as package, sys
from importlib.metadata import version
assert "site-packages" in package.__file__, package.__file__
assert package.__version__ == version("{PACKAGE}"), (package.__version__, version("{PACKAGE}"))
print("   ", package.__version__, "from", package.__file__)
"""


def main() -> None:
    """Build, look inside, install, run."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="wheel-", dir=build))
    try:
        say("building the sdist, and the wheel from it")
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, quiet=True)
        (wheel,) = (folder / "dist").glob("*.whl")
        found = faults(wheel)
        if found:
            sys.exit("\n".join(found))
        say(f"{wheel.name}: contents are right; installing it bare")
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / "bin" / "python"
        pip = (python, "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check")
        run(*pip, wheel)
        # Not under this clone: pytest would find its pyproject.toml, and an import its src.
        with tempfile.TemporaryDirectory(prefix=f"{PACKAGE}-wheel-") as name:
            away = Path(name)
            run(python, "-c", BARE, cwd=away)
            say("installing the extra all; tests, examples and the command line")
            run(*pip, f"{wheel}[all]", *test_requirements())
            exercise(python, away)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say("the wheel works")


def exercise(python: Path, away: Path) -> None:
    """Run the installed package from a folder that holds only a few tests and the README."""
    (away / "tests").mkdir()
    for test in TESTS:
        shutil.copy(ROOT / "tests" / test, away / "tests" / test)
    for name in ("conftest.py", "README.md"):
        shutil.copy(ROOT / name, away / name)
    # The same settings, minus what needs plug-ins that users do not have; no `testpaths`, no `pythonpath`.
    (away / "pytest.ini").write_text(
        "[pytest]\naddopts = -q --strict-markers -p no:cacheprovider\ndoctest_optionflags = ELLIPSIS\n"
        "filterwarnings = error\nmarkers =\n    e2e: heavy\n    slow: takes seconds\n",
        encoding="utf-8",
    )
    run(python, "-m", "pytest", "README.md", "tests", cwd=away)
    run(python, "-m", "pytest", "--doctest-modules", *HEAVY, "--pyargs", PACKAGE, cwd=away)
    command = python.parent / PACKAGE
    for arguments in (("--version",), ("--help",), ("simulate", "--help"), ("compare", "--help")):
        run(command, *arguments, cwd=away, quiet=True)
    run(command, "simulate", "--policy", "round-robin", "--servers", "2", "--json", cwd=away, quiet=True)


def faults(wheel: Path) -> list[str]:
    """Return what is in the wheel and should not be, and what should be and is not."""
    with zipfile.ZipFile(wheel) as archive:
        names = {PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.match("*.dist-info/METADATA"))
        headers = message_from_string(archive.read(str(metadata)).decode())
    source = ROOT / "src"
    expected = {
        PurePosixPath(path.relative_to(source).as_posix())
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts
    }
    inside = {name for name in names if not name.parts[0].endswith(".dist-info")}
    found = [f"in the wheel, and no source file: {name}" for name in sorted(inside - expected)]
    found += [f"not in the wheel: {name}" for name in sorted(expected - inside)]
    if PurePosixPath(PACKAGE, "py.typed") not in inside:
        found.append("not in the wheel: py.typed, so type checkers would ignore every annotation")
    if not any(name.match("*.dist-info/licenses/LICENSE") for name in names):
        found.append("not in the wheel: the licence")
    if headers["Requires-Python"] != ">=3.11":
        found.append(f"Requires-Python is {headers['Requires-Python']!r}")
    return found


def test_requirements() -> list[str]:
    """Return what the exercise needs beside the package, as the extra `dev` asks for it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = ("hypothesis", "pytest>", "sybil")
    return [line for line in [*extras["bench"], *extras["dev"]] if line.startswith(wanted)]


def run(*command: object, cwd: Path | None = None, quiet: bool = False) -> None:
    """Run one program; if it fails, show all it said and stop."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\nexit status {done.returncode}: {' '.join(words)}")


def say(words: str) -> None:
    """Tell which step begins."""
    print(f"-- {words}", flush=True)


if __name__ == "__main__":
    main()
