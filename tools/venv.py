"""How does a clone get its own `.venv`? `python3 tools/venv.py EXTRA STAMP...`, called by the Makefile.

Makes `.venv` beside this folder if it is missing or broken, installs the project into it, editable, with one extra,
and touches the stamps. Imports and syntax are those of any Python 3.6, so that one that is too old is told so.
"""

import fcntl
import subprocess
import sys
from pathlib import Path

NEEDED = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
#: Rivals that ask for far more than what is measured of them needs: Ray, some gigabytes.
BARE = ["py-inference-scheduler==0.1.0"]
INPUTS = [ROOT / "pyproject.toml", ROOT / "tools" / "venv.py"]


def main(extra, stamps):
    """Install one extra, unless another `make` in this folder has just done so."""
    if sys.version_info < NEEDED:
        sys.exit(
            f"inferencesched needs Python 3.{NEEDED[1]} or newer, and {sys.executable} is {sys.version.split()[0]}.\n"
            f"Name another one: make PYTHON=/path/to/python3.{NEEDED[1]}"
        )
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(fresh(ROOT / stamp) for stamp in stamps):
            install(extra, copied=moved(ROOT / stamps[0]))
            for stamp in stamps:
                (ROOT / stamp).touch()


def install(extra, copied):
    """Make `.venv` if there is no working one of this folder's own, and install into it."""
    python = VENV / "bin" / "python"
    if copied or not works(python):
        say(f"making .venv with {sys.executable} (Python {sys.version.split()[0]})")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
            sys.exit("python3 -m venv failed, see above. On Debian and Ubuntu: apt-get install python3-venv")
    say(f"installing inferencesched[{extra}] and what it needs into .venv")
    # -qq: pip's errors, and nothing else.
    pip = [str(python), "-m", "pip", "install", "-qq", "--no-input", "--disable-pip-version-check"]
    if subprocess.call([*pip, "-e", f"{ROOT}[{extra}]"], stdin=subprocess.DEVNULL):
        sys.exit(f"pip could not install inferencesched[{extra}]; its own words are above")
    if extra == "peers" and subprocess.call([*pip, "--no-deps", *BARE], stdin=subprocess.DEVNULL):
        sys.exit(f"pip could not install {' '.join(BARE)}; its own words are above")
    if extra != "peers":
        say("compiling kernels, once")
        if subprocess.call([str(VENV / "bin" / "inferencesched"), "warmup"], stdin=subprocess.DEVNULL):
            sys.exit("the kernels do not compile; their own words are above")


def works(python):
    """Is there a new enough interpreter with pip behind this path?"""
    check = f"import sys, pip; sys.exit(sys.version_info < {NEEDED})"
    try:
        return subprocess.call([str(python), "-c", check], stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def moved(stamp):
    """Does `.venv` carry another folder's stamps only? Then its programs still start that folder's interpreter."""
    kind = stamp.name.partition("-")[0]
    return not stamp.exists() and any(VENV.glob(f"{kind}-*"))


def fresh(stamp):
    """Was this stamp touched after everything it depends on?"""
    return stamp.exists() and all(stamp.stat().st_mtime >= path.stat().st_mtime for path in INPUTS)


def say(words):
    """Tell the person at the terminal; standard output stays with the target's own program."""
    print(f"-- {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
