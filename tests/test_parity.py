"""Does the runner of the reference's vectors say what happened, and does the library match nearly all of them?"""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.parity import run
from tests.parity.cases import DIFFERENCES, Difference, Mismatch, NotYet, differences, loaded, outcome, same, within
from tests.shared import shared

#: What this part of the library stands for.
COMPONENTS = (
    "approx-prefix-cache-producer",
    "approx-prefix-index",
    "prefix-block-hash",
    "kv-block-index",
    "kv-event-index",
    "kv-event-decoder",
    "kv-event-dedup-filter",
    "kv-event-extra-feature-realign",
    "kv-block-extra-keys",
    "longest-prefix-tier-scorer",
    "precise-prefix-cache-producer",
)


def case(name="c/one", component="prefix-block-hash", kind="function", **fields):
    params = {"function": "split_blocks_approx", "token_ids": [1, 2], "block_size": 1}
    return {
        "id": name,
        "component": component,
        "kind": kind,
        "params": params,
        "expect": {"value": [[1], [2]]},
    } | fields


def written(tmp_path, *cases):
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(cases))
    return str(path)


# --- the vectors -------------------------------------------------------------------------------------------------


def test_nearly_all_of_them_match():
    counts = Counter(each.state for each in run.outcomes(loaded([shared("vectors/scheduling.json")]), COMPONENTS))
    assert set(counts) <= {"passed", "failed", "skipped"}, "every component and kind of these has a runner"
    asked = counts["passed"] + counts["failed"]
    assert counts["passed"] >= 0.97 * asked
    assert counts["skipped"] <= 0.03 * (asked + counts["skipped"])
    assert asked >= 100


def test_every_case_is_told_of():
    cases = list(loaded([shared("vectors/scheduling.json"), shared("vectors/flowcontrol.json")]))
    told = list(run.outcomes(cases))
    assert [each.id for each in told] == [case["id"] for case in cases]
    assert {each.state for each in told} <= {"passed", "failed", "skipped", "not yet"}


def test_ids_that_are_written_out_exist():
    ids = {case["id"] for case in loaded([shared("vectors/scheduling.json")])}
    assert [each.pattern for each in differences() if "*" not in each.pattern and each.pattern not in ids] == []


# --- the runner --------------------------------------------------------------------------------------------------


def test_the_last_line_counts(tmp_path, capsys):
    wrong = case("c/two", expect={"value": [[1, 2]]})
    assert run.main([written(tmp_path, case(), wrong)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["failed: c/two: expected [[1, 2]], got [[1], [2]]", "1 passed, 1 failed, 0 skipped"]
    assert run.main([written(tmp_path, case())]) == 0


def test_what_is_not_known_fails_unless_it_is_left_out(tmp_path, capsys):
    path = written(tmp_path, case(), case("c/two", "prefix-block-abacus"), case("c/three", kind="abacus"))
    assert run.main([path]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "failed: c/two: expected a runner for prefix-block-abacus (function), got none",
        "failed: c/three: expected a runner for prefix-block-hash (abacus), got none",
        "1 passed, 2 failed, 0 skipped",
    ]
    assert run.main([path, "--components", "kv-event-index,kv-event-decoder"]) == 0
    assert capsys.readouterr().out == "0 passed, 0 failed, 0 skipped\n"


def test_what_the_library_does_not_have_yet_is_counted_by_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "NOT_YET", frozenset(("tea-scorer", "rice-scorer")))
    several = [case("c/two", "tea-scorer"), case("c/three", "rice-scorer"), case("c/four", "tea-scorer")]
    assert run.main([written(tmp_path, case(), *several)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["not yet: 3 cases of 2 components", "1 passed, 0 failed, 0 skipped"]


def test_an_error_is_a_failure_of_its_case_only():
    def broken(case):
        raise ZeroDivisionError("by none")

    told = outcome(case(), {("prefix-block-hash", "function"): broken}, ())
    assert (told.state, told.got) == ("failed", "ZeroDivisionError: by none")


def test_a_part_that_is_missing_is_not_a_failure():
    def early(case):
        raise NotYet("tea")

    assert outcome(case(), {("prefix-block-hash", "function"): early}, ()).state == "not yet"


def test_only_what_the_page_lists_is_skipped():
    def never(case):
        pytest.fail("a case that is left out was run")

    told = outcome(case("c/a [1]"), {("prefix-block-hash", "function"): never}, [Difference("c/a *", "so it is")])
    assert (told.state, told.got) == ("skipped", "so it is")
    assert not Difference("c/a", "").covers("c/ab") and not Difference("c.a", "").covers("c/a")


def test_the_page_is_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n| `not/here` | x |\n\n## Cases that are left out\n\n| cases | why |\n|---|---|\n"
        "| `a/*` `b/one` | because |\n\n## Others\n\n| `c/one` | x |\n"
    )
    assert differences(page) == [Difference("a/*", "because"), Difference("b/one", "because")]
    assert differences() and all(each.reason for each in differences())
    assert re.search(r"^differences$", (DIFFERENCES.parent / "index.md").read_text(), re.MULTILINE)


def test_it_runs_as_a_program_from_anywhere(tmp_path):
    program = Path(run.__file__).resolve()
    done = subprocess.run(
        [sys.executable, str(program), written(tmp_path, case())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1 passed, 0 failed, 0 skipped\n"), done.stderr
    done = subprocess.run(
        [sys.executable, str(program), "nowhere.json"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2 and b"nowhere.json" in done.stderr


def test_equal_is_equal():
    same(1.0, 1.0 + 1e-13)
    same(0.5, 0.6, tolerance=0.2)
    within({"a": 1}, {"a": 1, "b": 2})
    for call in (
        lambda: same(True, 1.5),
        lambda: same(1, 2),
        lambda: same([1], [1, 2]),
        lambda: within({"a": 1}, {}),
        lambda: within({"a": 1}, {"a": 2}),
    ):
        with pytest.raises(Mismatch, match="expected"):
            call()
