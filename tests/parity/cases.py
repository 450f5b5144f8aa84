"""What is a case, how is it run, and what came of it?"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

Case = Mapping[str, Any]
Runner = Callable[[Case], None]

DIFFERENCES = Path(__file__).resolve().parents[2] / "docs" / "reference" / "differences.md"
#: Under this heading a table lists what is left out.
LEFT_OUT = "Cases that are left out"


class Mismatch(AssertionError):  # noqa: N818  what pytest shows of it is an assertion that failed
    """What was expected, and what came instead?"""

    def __init__(self, expected: object, got: object, where: str = "") -> None:
        self.expected = f"{where}: {expected!r}" if where else repr(expected)
        self.got = repr(got)
        super().__init__(f"expected {self.expected}, got {self.got}")


class NotYet(Exception):  # noqa: N818  nothing went wrong: the library is not that far
    """Which part of the library does this case need that is not there yet?"""


class Outcome(NamedTuple):
    """What came of a case? `state` is passed, failed, skipped or not yet."""

    id: str
    component: str
    state: str
    expected: str = ""
    got: str = ""


class Difference(NamedTuple):
    """Which cases are left out, and why? `pattern` is an id, in small or capital letters; ``*`` stands for anything."""

    pattern: str
    reason: str

    def covers(self, name: str) -> bool:
        words = ".*".join(map(re.escape, self.pattern.split("*")))
        return re.fullmatch(words, name, re.DOTALL | re.IGNORECASE) is not None


class Expectation(dict[str, Any]):
    """What a case expects, by name; remembers which names somebody asked for."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        super().__init__(said)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def items(self) -> Any:
        self.asked |= set(self)
        return super().items()


def check(case: Case, run: Runner) -> None:
    """Run a case; raise `Mismatch` where the library answers otherwise, and for what is expected and nobody asked for."""
    expect, steps = Expectation(case["expect"]), [dict(step) for step in case.get("steps", ())]
    for step in steps:
        if "expect" in step:
            step["expect"] = Expectation(step["expect"])
    run({**case, "expect": expect, **({"steps": steps} if steps else {})})
    for each in (expect, *(step["expect"] for step in steps if "expect" in step)):
        unasked = sorted(set(each) - each.asked)
        if unasked:
            raise unknown("expectation", ", ".join(unasked))


def same(expected: Any, got: Any, where: str = "", *, tolerance: float = 0.0) -> None:
    """Raise `Mismatch` unless both are equal: numbers within a tolerance, all else exactly."""
    if isinstance(expected, float | int) and isinstance(got, float | int) and not isinstance(expected, bool):
        if not isclose(expected, got, rel_tol=0.0, abs_tol=tolerance or 1e-12):
            raise Mismatch(expected, got, where)
    elif expected != got:
        raise Mismatch(expected, got, where)


def within(expected: Mapping[str, Any], got: Mapping[str, Any], where: str = "", *, tolerance: float = 0.0) -> None:
    """Raise `Mismatch` unless everything that is expected is there; what else is there is not asked."""
    for name, value in expected.items():
        if name not in got:
            raise Mismatch({name: value}, got, where)
        same(value, got[name], f"{where}.{name}".lstrip("."), tolerance=tolerance)


def unknown(what: str, name: object) -> Mismatch:
    """Return the error for a word of the vectors that has no translation here."""
    return Mismatch(f"something the runner knows: {what}", name)


def loaded(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Walk the cases of files: a list of cases, or one behind a `meta` that tells the kinds of components."""
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, list):
            yield from content
            continue
        kinds = {name: each.get("kind", "") for name, each in content["meta"]["components"].items()}
        for case in content["vectors"]:
            yield {"kind": f"flow control: {kinds.get(case['component'], '')}"} | case


def differences(path: Path = DIFFERENCES) -> list[Difference]:
    """Return what the page of differences leaves out: ids in the first column of its table, the reason in the last."""
    _, _, behind = path.read_text(encoding="utf-8").partition(f"\n## {LEFT_OUT}\n")
    rows = [line.strip().strip("|").split("|") for line in behind.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    return [Difference(each, row[-1].strip()) for row in rows for each in re.findall(r"`([^`]+)`", row[0])]


def outcome(case: Case, runners: Mapping[tuple[str, str], Runner], left_out: Iterable[Difference]) -> Outcome:
    """Run one case: passed, failed, skipped where the page of differences says so, or not yet."""
    name, component, kind = case["id"], case["component"], case["kind"]
    for difference in left_out:
        if difference.covers(name):
            return Outcome(name, component, "skipped", got=difference.reason)
    run = runners.get((component, kind))
    if run is None:
        return Outcome(name, component, "failed", f"a runner for {component} ({kind})", "none")
    try:
        check(case, run)
    except NotYet as missing:
        return Outcome(name, component, "not yet", got=str(missing))
    except Mismatch as mismatch:
        return Outcome(name, component, "failed", mismatch.expected, mismatch.got)
    except Exception as error:  # noqa: BLE001  whatever it is, it is this case's failure and no other's
        return Outcome(name, component, "failed", repr(case["expect"]), f"{type(error).__name__}: {error}")
    return Outcome(name, component, "passed")
