"""Does a sweep give the same results however it is run, broken off and resumed, and does what fails fail alone?"""

import csv
import errno
import io
import os
import signal
import sys
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan

import numpy as np
import pytest

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.flowcontrol.fairness import jain_index
from inferencesched.simulator import (
    Cluster,
    Policy,
    Traffic,
    generate,
    policies,
    policy,
    simulate,
    tables,
)
from inferencesched.simulator.capacity import attainment, capacity
from inferencesched.simulator.grids import Cell, Grid, Source
from inferencesched.simulator.journal import Journal, JournalError
from inferencesched.simulator.statistics import Estimate, estimate, geometric, paired, t95
from inferencesched.simulator.sweep import in_processes, run_cell, sweep
from inferencesched.simulator.tables import CellResult

SMALL = Grid((Source(head=40),), ("random", "lmetric"), (1.0, 3.0), ((2, "dynamo-mocker", 16_384),), seeds=2)


def same(one, other):
    return len(one.cells) == len(other.cells) and all(a.same(b) for a, b in zip(one.cells, other.cells, strict=True))


@pytest.fixture(scope="module")
def whole():
    return sweep(SMALL)


@pytest.fixture
def broken(monkeypatch):
    """A policy by name that raises when it is built, and one that kills its process."""

    def raises(fleet):
        raise ZeroDivisionError("no such luck")

    known = dict(policies.POLICIES) | {"<b>unlucky</b>": Policy("<b>unlucky</b>", "raises", raises)}
    monkeypatch.setattr(policies, "POLICIES", known)
    return replace(SMALL, policies=("random", "<b>unlucky</b>"))


# --- cells ---------------------------------------------------------------------------------------------------------


def test_cells_are_the_product_in_the_order_of_the_fields():
    cells = SMALL.cells()
    assert [(each.policy, each.load, each.seed) for each in cells] == [
        (name, load, seed) for name in ("random", "lmetric") for load in (1.0, 3.0) for seed in (0, 1)
    ]
    assert len(set(cells)) == 8


def test_a_cell_is_a_replay(whole):
    cell = SMALL.cells()[3]
    replayed = simulate(cell.source.load(1), policy("random"), cell.cluster())
    assert whole.cells[3].cell == cell and repr(whole.cells[3].figures) == repr(
        {key: float(value) for key, value in replayed.figures.items()}
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"policies": ()}, InvalidInputError),
        ({"policies": ("random", "random")}, InvalidInputError),
        ({"policies": ("best",)}, UnknownNameError),
        ({"loads": (0.0,)}, InvalidInputError),
        ({"loads": (nan,)}, InvalidInputError),
        ({"fleets": ((0, "dynamo-mocker", 9),)}, InvalidInputError),
        ({"fleets": ((1, "h100", 9),)}, UnknownNameError),
        ({"seeds": 0}, InvalidInputError),
        ({"news_ms": -1.0}, InvalidInputError),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_runs(change, error):
    with pytest.raises(error):
        replace(SMALL, **change)


def test_a_policy_that_raises_fails_its_cells_by_name_and_the_rest_goes_on(broken):
    result = sweep(broken)
    assert [each.error for each in result.cells[:4]] == [""] * 4
    assert {each.error for each in result.cells[4:]} == {"ZeroDivisionError no such luck"}
    rows = {(row.policy, row.load): row for row in result.rows()}
    assert rows["random", 1.0].figures["completed"].mean == 40
    assert len(rows["<b>unlucky</b>", 1.0].errors) == 2 and not rows["<b>unlucky</b>", 1.0].drained
    assert any("<b>unlucky</b> at x1 failed: ZeroDivisionError" in note for note in tables.notes(result))


def test_a_trace_that_is_not_there_fails_its_cells(tmp_path):
    result = sweep(replace(SMALL, sources=(Source(str(tmp_path / "none.jsonl")), Source(head=40)), seeds=1))
    assert all("InvalidInputError" in each.error for each in result.cells[:4])
    assert not any(each.error for each in result.cells[4:])


# --- engines -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_give_the_same_results(whole):
    told = []
    result = sweep(SMALL, engine=in_processes(2), progress=lambda done, total, last: told.append((done, total)))
    assert same(result, whole) and told == [(i + 1, 8) for i in range(8)]


def killed(cell):
    """Run a cell, unless it is the unlucky one: then die."""
    if cell.seed == 1 and cell.load == 3.0:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_cell(cell)


@pytest.mark.slow
def test_a_killed_process_fails_its_own_cell_only(whole, monkeypatch):
    monkeypatch.setattr(sys.modules["inferencesched.simulator.sweep"], "run_cell", killed)  # the function has its name
    result = sweep(SMALL, engine=in_processes(2))
    for ours, theirs in zip(result.cells, whole.cells, strict=True):
        if ours.cell.seed == 1 and ours.cell.load == 3.0:
            assert ours.error == "WorkerDied: its process was killed" and not ours.figures
        else:
            assert ours.same(theirs)


# --- the journal -----------------------------------------------------------------------------------------------------


def test_what_is_in_the_journal_is_not_run_again(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    assert same(sweep(SMALL, journal=path), whole)
    ran = []

    def engine(cells):
        ran.extend(cells)
        return map(run_cell, cells)

    assert same(sweep(SMALL, journal=path, engine=engine), whole) and ran == []


def test_a_journal_cut_off_anywhere_is_gone_on_with(tmp_path, whole):
    path = tmp_path / "journal.jsonl"
    sweep(SMALL, journal=path)
    text = path.read_bytes()
    last = text[:-1].rindex(b"\n") + 1
    for end in {*range(last, len(text), 97), last, last + 1, len(text) - 1, 3, 0}:
        path.write_bytes(text[:end])
        book = Journal(path, SMALL)
        book.close()
        assert len(book.done) == (7 if end >= last else 0)
        assert all(each.same(whole.cells[SMALL.cells().index(cell)]) for cell, each in book.done.items())
    path.write_bytes(text[: last + 40])
    assert same(sweep(SMALL, journal=path), whole)
    assert sorted(path.read_bytes().split(b"\n")) == sorted(text.split(b"\n")) or path.read_bytes().count(b"\n") == 9


def test_an_interrupted_sweep_keeps_what_was_done(tmp_path, whole):
    path = tmp_path / "journal.jsonl"

    def stops(cells):
        yield run_cell(cells[0])
        yield run_cell(cells[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(SMALL, journal=path, engine=stops)
    assert path.read_bytes().count(b"\n") == 3
    assert same(sweep(SMALL, journal=path), whole)


@pytest.mark.parametrize("text", [b"no journal\n", b"[]\n", b'{"grid": "other"}\n'])
def test_another_journal_is_refused(tmp_path, text):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(text)
    with pytest.raises(JournalError):
        sweep(SMALL, journal=path)
    assert path.read_bytes() == text


def test_the_journal_of_another_grid_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    sweep(replace(SMALL, seeds=1), journal=path)
    with pytest.raises(JournalError, match="another grid"):
        sweep(SMALL, journal=path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"{}", b""]))
    with pytest.raises(JournalError, match="not a journal"):
        Journal(path, replace(SMALL, seeds=1))


def test_a_full_disk_says_how_many_cells_are_safe(tmp_path, monkeypatch):
    path, count = tmp_path / "journal.jsonl", 0

    def full(fd):
        nonlocal count
        count += 1
        if count > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="No space left on device; 2 cells are safe"):
        sweep(SMALL, journal=path)


# --- what is shown ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)


def test_a_table_has_every_row_and_nothing_of_a_name_becomes_markup(broken):
    result = sweep(broken)
    page = Page()
    page.feed(result._repr_html_())
    assert page.tags.count("tr") == 1 + len(result.rows()) and "b" not in page.tags
    text = result._repr_html_()
    assert "random (floor)" in text and "Left out: clairvoyant." in text


def test_csv_has_a_line_a_cell(whole):
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(whole))))
    assert [row["policy"] for row in rows] == [each.cell.policy for each in whole.cells]
    assert float(rows[0]["ttft_mean"]) == whole.cells[0].figures["ttft_mean"]
    columns = tables.columns_of(whole)
    assert columns["load"][2] == 3.0 and columns["policy"][-1] == "lmetric" and len(columns["ttft_p90"]) == 8


def test_the_report_is_one_page_with_its_pictures(whole, tmp_path):
    pytest.importorskip("matplotlib")
    from inferencesched.simulator.report_html import html, write_report  # noqa: PLC0415

    text = html(whole, command="inferencesched sweep <x>")
    assert text == html(whole, command="inferencesched sweep <x>")
    page = Page()
    page.feed(text)
    assert page.tags.count("svg") == 1 and "sweep &lt;x&gt;" in text
    names = {path.name for path in write_report(whole, tmp_path, command="x")}
    assert {"figures.csv", "table.md", "report.html", "over-load-1.png"} <= names


def test_who_did_not_keep_up_is_marked():
    overload = sweep(Grid((Source(head=300),), ("random",), (0.2, 60.0), ((1, "dynamo-mocker", 16_384),)))
    light, heavy = overload.rows()
    assert light.drained and not heavy.drained
    assert "random *" in tables.markdown_table(overload) and "did not keep up" in tables.markdown_table(overload)


# --- statistics --------------------------------------------------------------------------------------------------------


def test_an_interval_is_students():
    # mean 5, deviations -2 0 2, s = 2, s / sqrt 3 = 1.1547, t(2) = 4.303
    found = estimate([3.0, 5.0, 7.0])
    assert (found.mean, found.values) == (5.0, 3) and found.half == pytest.approx(4.9687, abs=1e-3)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)
    assert np.isnan(estimate([4.0]).half) and np.isnan(estimate([]).mean) and np.isnan(estimate([1.0, nan]).mean)
    assert estimate([2.0, 2.0]) == Estimate(2.0, 0.0, 2)


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (30, 2.042), (31, 2.0395), (40, 2.0211), (120, 1.9799)])
def test_t_is_that_of_the_tables(freedom, expected):
    assert t95(freedom) == pytest.approx(expected, abs=6e-4)
    with pytest.raises(InvalidInputError):
        t95(0)


def test_pairs_are_compared_seed_by_seed():
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InvalidInputError):
        paired([1.0], [1.0, 2.0])


def test_jain_and_ratios():
    assert (
        jain_index([1, 1, 1, 1]) == 1.0
        and jain_index([4, 0, 0, 0]) == 0.25
        and jain_index([1, 3]) == pytest.approx(16 / 20)
    )
    assert geometric([1.0, 4.0]) == pytest.approx(2.0)
    for bad in ([], [0.0], [-1.0], [inf], [nan]):
        with pytest.raises(InvalidInputError):
            geometric(bad)


# --- capacity ------------------------------------------------------------------------------------------------------------

BUSY = generate(Traffic(requests=200, rate=12.0), seed=2)


def test_capacity_lies_between_a_load_that_holds_and_one_that_does_not():
    cluster = Cluster(servers=2)
    found = capacity(BUSY, policy("least-request"), cluster, low=0.1, high=8.0, tolerance=0.1)
    tried = dict(found.points)
    assert tried[found.held] >= 0.9 > tried[found.failed]
    assert found.held < found.failed <= found.held * 1.1 + 1e-9
    at = simulate(BUSY, policy("least-request"), replace(cluster, speedup=found.held))
    assert attainment(at, BUSY, ttft_ms=2000.0, tpot_ms=25.0) == tried[found.held]
    assert at.figures["goodput_requests"] / len(BUSY) == pytest.approx(tried[found.held])


@pytest.mark.parametrize(
    ("bounds", "parameter"),
    [
        ({"low": 20.0, "high": 30.0}, "low"),
        ({"low": 0.05, "high": 0.1}, "high"),
        ({"low": 2.0, "high": 1.0}, "low, high"),
        ({"low": 0.1, "high": 9.0, "share": 0.0}, "share"),
        ({"low": 0.1, "high": 9.0, "tolerance": 1.0}, "tolerance"),
    ],
)
def test_bounds_that_bracket_nothing_are_named(bounds, parameter):
    with pytest.raises(InvalidInputError, match=f"^{parameter}: got"):
        capacity(BUSY, policy("random"), Cluster(servers=2), **bounds)


def test_a_result_says_what_it_is_and_time_is_not_part_of_it():
    cell = Cell(Source(), "random", 1.0, 1, "dynamo-mocker", 9, 0)
    assert CellResult(cell, {"a": nan}, "", 1.0).same(CellResult(cell, {"a": nan}, "", 2.0))
    assert not CellResult(cell, {"a": 1.0}).same(CellResult(cell, {"a": 2.0}))
    assert (Source("x/trace.jsonl", spread=True).name, Source().name) == ("trace, spread", "embedded")
    some = Source(head=40, share=0.5)
    assert some.name == "embedded, 0.5 of it" and 0 < len(some.load(1)) < 40
    assert len(some.load(1)) == len(some.load(1)) and some.load(1).arrival.tolist() != some.load(2).arrival.tolist()
