"""Are the parameters that a fit reads off the ones that made the traffic, and is what it misses said?"""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Traffic, Workload, generate, read_azure, read_mooncake
from inferencesched.simulator import fitting as parts
from inferencesched.simulator.fitting import Row, figures, fit_traffic, parents, prefix_hit
from inferencesched.simulator.workload import Precedence
from tests.shared import shared

FIGURES = [
    "requests_per_second", "counts_cv", "input_p50", "input_p90", "input_p99", "output_p50", "output_p90", "output_p99", "hit"
]  # fmt: skip


@st.composite
def trees(draw, most=8):
    """Prompts over a tree of blocks of 16 tokens, the last one of each perhaps half full."""
    names, rows = {}, []
    for _ in range(draw(st.integers(1, most))):
        path, ids = (), []
        for _ in range(draw(st.integers(0, 4))):
            path = (*path, draw(st.integers(0, 1)))
            ids.append(names.setdefault(path, len(names)))
        rows.append((max(1, 16 * len(ids) - draw(st.integers(0, 15)) if ids else draw(st.integers(1, 15))), ids))
    count = len(rows)
    return Workload.of(
        "tree", range(count), [tokens for tokens, _ in rows], [1] * count, [ids for _, ids in rows], block_size=16
    )


# --- the infinite cache ------------------------------------------------------------------------------------------


@given(trees())
def test_the_hit_is_what_a_set_finds(workload):
    seen, found = set(), 0
    for i in range(len(workload)):
        row = workload.blocks[workload.offsets[i] : workload.offsets[i + 1]].tolist()
        for block in row[: workload.input_tokens[i] // 16]:
            if block not in seen:
                break
            found += 16
        seen.update(row)
    assert prefix_hit(workload) == found / workload.input_tokens.sum()


def test_the_hit_of_the_conversation_trace():
    """0.3736 by tokens, in blocks of 64 as servers have them (docs/../reference/simulation.md, section 4)."""
    workload = read_mooncake(shared("traces/mooncake_conversation.jsonl"))
    assert prefix_hit(workload.in_blocks(64)) == pytest.approx(0.3736, abs=5e-5)
    assert prefix_hit(workload) == pytest.approx(0.3734, abs=5e-5), "in its own blocks of 512, full ones only"


def test_nothing_finds_nothing():
    assert np.isnan(prefix_hit(Workload.of("none", [], [], [], [], block_size=16)))
    assert prefix_hit(Workload.of("lengths", [0, 0], [9, 9], [1, 1], [[], []], block_size=16)) == 0.0


# --- who continues whom ------------------------------------------------------------------------------------------


def slow_parents(workload):
    """Look back for the longest whole prompt that this one begins with, of those that say whose they are; the latest at a tie."""
    rows = [workload.full_blocks(i).tolist() for i in range(len(workload))]
    own = []
    for i, row in enumerate(rows):
        earlier = {block for other in rows[:i] for block in other}
        repeats = any(rows[j] and own[j] and rows[j][-1] == row[-1] for j in range(i)) if row else False
        own.append(bool(row) and (row[-1] not in earlier or repeats))
    found = []
    for i, row in enumerate(rows):
        begins = [(len(rows[j]), j) for j in range(i) if own[j] and row[: len(rows[j])] == rows[j]]
        found.append(max(begins)[1] if begins else -1)
    return found


@given(trees(most=10))
def test_continuations_are_found_by_what_prompts_begin_with(workload):
    assert parents(workload).tolist() == slow_parents(workload)


def test_continuations_by_hand():
    ids = [[0, 1], [0, 2], [0, 1, 3], [0], [0, 1, 3, 4], [0, 1, 3], []]
    workload = Workload.of("hand", range(7), [len(row) * 16 + 1 for row in ids], [1] * 7, ids, block_size=16)
    # 3 holds the system prompt alone, which is nobody's; 5 asks what 2 asked again, and 4 went on from 2
    assert parents(workload).tolist() == [-1, -1, 0, -1, 2, 2, -1]
    assert parts._branching(parents(workload)) == pytest.approx(1 / 3), "5, as 4 was the latest"
    talk = Precedence.of([[], [0], [], [0, 1], [2], [], [2]], [0.0] * 7)
    assert parents(replace(workload, precedence=talk)).tolist() == [-1, 0, -1, 1, 2, -1, 2]


# --- what is read off --------------------------------------------------------------------------------------------


def test_quantiles_make_a_log_normal():
    z = np.random.default_rng(1).standard_normal(20_000)
    median, width = parts._log_normal(np.exp(log(300) + 0.7 * z))
    assert median == pytest.approx(300, rel=0.03) and width == pytest.approx(0.7, rel=0.03)
    assert parts._log_normal(np.array([0, -5, 0])) == (1, 0.0)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.1, 2.0])
def test_the_exponent_is_found_again(exponent):
    weights = 1.0 / np.arange(1, 31) ** exponent
    counts = np.random.default_rng(3).multinomial(5000, weights / weights.sum())
    assert parts._zipf(np.sort(counts[counts > 0])[::-1]) == pytest.approx(exponent, abs=0.12)


def switched(rate, burstiness, seconds, window, *, spans=60_000):
    """Counts of a process that switches between two rates at exponential times, a tenth of the time in the fast one."""
    rng = np.random.default_rng(5)
    slow = rate / (0.9 + 0.1 * burstiness)
    length = rng.exponential(np.tile([9 * seconds, seconds], spans))
    number = rng.poisson(length * np.tile([slow, slow * burstiness], spans))
    begin = np.repeat(np.cumsum(length) - length, number)
    return parts._counts(begin + rng.random(len(begin)) * np.repeat(length, number), window)


@pytest.mark.parametrize(("burstiness", "seconds", "window"), [(5, 2, 1), (5, 1, 16), (10, 2, 8), (3, 4, 4), (1, 1, 4)])
def test_the_variance_of_bursts_is_that_of_two_rates(burstiness, seconds, window):
    """The formula against counts of the process itself, made the slow way; spread over some 60,000 bursts."""
    counts = switched(2.0, burstiness, seconds, window)
    assert parts._dispersion(2.0, burstiness, seconds, window) == pytest.approx(counts.var() / counts.mean(), rel=0.03)


def test_the_generator_bursts_nearly_so():
    """It draws the next arrival at the rate of the last one, and so notices a burst a little late."""
    traffic = Traffic(requests=20_000, rate=8.0, burstiness=5.0, burst_seconds=5.0, turns=1.0, system_tokens=1)
    counts = parts._counts(generate(traffic, seed=5).arrival / 1e3, 1.0)
    assert parts._dispersion(8.0, 5.0, 5.0, 1.0) == pytest.approx(counts.var() / counts.mean(), rel=0.15)


def test_without_bursts_counts_are_poisson():
    assert parts._dispersion(8.0, 1.0, 5.0, 4.0) == 1.0
    # a short window sees rates that stand still: 1 + window * variance of the rate / its mean
    slow = 8.0 / 1.4
    states = 0.1 * (8.0 - 5 * slow) ** 2 + 0.9 * (8.0 - slow) ** 2
    assert parts._dispersion(8.0, 5.0, 500.0, 1e-2) == pytest.approx(1 + 1e-2 * states / 8.0, rel=1e-5)


def test_arrivals_that_are_too_few_say_nothing_of_bursts():
    assert parts._bursts(np.array([]), 1.0) == parts._bursts(np.array([3.0]), 1.0) == (1.0, 5.0)
    even = np.arange(4000) / 4
    assert parts._bursts(even, 4.0)[0] == 1.0, "what is evener than Poisson is as near as the generator comes"


def test_figures_by_hand():
    three = Workload.of(
        "three", [1000.0, 1500.0, 3999.0], [100, 200, 300], [1, 2, 3], [[0, 1], [0, 1], []], block_size=64
    )
    found = figures(three)
    assert list(found) == FIGURES
    # two in the first second, none in the second; the third is not over
    assert found["requests_per_second"] == 3 / 2.999 and found["counts_cv"] == 1.0
    assert (found["input_p50"], found["output_p50"], found["hit"]) == (200.0, 2.0, 128 / 600)
    assert found["input_p90"] == pytest.approx(280.0) and found["input_p99"] == pytest.approx(298.0)
    assert list(figures(three.head(0))) == FIGURES and np.isnan(list(figures(three.head(0)).values())).all()


# --- the whole ---------------------------------------------------------------------------------------------------

MADE = Traffic(requests=1200, rate=5.0, burstiness=4.0, system_prompts=20, system_tokens=2000, turns=3.0, branching=0.0)


@pytest.fixture(scope="module")
def fit():
    return fit_traffic(generate(MADE, seed=11))


def test_a_fit_finds_what_made_it(fit):
    found = fit.traffic
    assert (found.requests, found.block_size) == (MADE.requests, MADE.block_size)
    assert found.rate == pytest.approx(MADE.rate, rel=0.35)
    assert found.turns == pytest.approx(MADE.turns, rel=0.25)
    assert found.user_tokens == pytest.approx(MADE.user_tokens, rel=0.3)
    assert found.output_tokens == pytest.approx(MADE.output_tokens, rel=0.15)
    assert found.spread == pytest.approx(MADE.spread, rel=0.15)
    assert found.think_seconds == pytest.approx(MADE.think_seconds, rel=0.25), "late turns are cut off"
    assert found.branching < 0.02


def test_what_it_makes_is_near(fit):
    rows = fit.table()
    assert [row.figure for row in rows] == FIGURES
    assert {row.figure: round(row.error, 2) for row in rows if abs(row.error) > 0.3} == {}


def test_the_table_is_what_was_measured(fit):
    again = figures(generate(fit.traffic, seed=fit.seed))
    assert {row.figure: row.generated for row in fit.table()} == again
    assert fit.trace["hit"] == prefix_hit(generate(MADE, seed=11))
    for row in fit.table():
        assert row.error == row.generated / row.trace - 1
    assert Row("x", 2.0, 3.0).error == 0.5 and np.isnan(Row("x", 0.0, 3.0).error)


def test_the_same_trace_has_the_same_fit():
    small = generate(Traffic(requests=120), seed=2)
    assert fit_traffic(small, seed=4) == fit_traffic(small, seed=4)
    assert fit_traffic(small, seed=4).generated != fit_traffic(small, seed=5).generated


def test_a_search_never_ends_farther_off_than_it_began():
    target = figures(generate(Traffic(requests=300, user_tokens=300), seed=1))
    start = Traffic(requests=300)
    found = parts._refined((start,), target, 3)
    assert parts._off(found, target, 3) < parts._off(start, target, 3)
    assert parts._off(start, figures(generate(start, seed=3)), 3) == 0.0
    assert parts._refined((start,), figures(generate(start, seed=3)), 3) == start


@settings(max_examples=25, deadline=None)
@given(trees(), st.booleans(), st.booleans())
def test_whatever_comes_has_a_fit(workload, at_once, chained):
    if at_once:
        workload = replace(workload, arrival=np.zeros(len(workload)))
    if chained:
        count = len(workload)
        own = Precedence.of([[i - 1] if i else [] for i in range(count)], [0.0] * count)
        workload = replace(workload, precedence=own)
    fit = fit_traffic(workload)
    assert fit.traffic.requests == len(workload) and len(fit.table()) == len(FIGURES)
    if chained:
        assert fit.traffic.turns == len(workload)


def test_an_empty_trace_has_none():
    with pytest.raises(InvalidInputError, match="^workload: got 'none: no requests'"):
        fit_traffic(Workload.of("none", [], [], [], [], block_size=16))
    with pytest.raises(InvalidInputError, match="^seed: "):
        fit_traffic(generate(Traffic(requests=3)), seed=-1)


def test_lengths_alone_are_fitted():
    """Azure's lengths, no sharing: what is off, and by how much, is known. Its prompts end sooner than a log-normal."""
    fit = fit_traffic(read_azure(shared("traces/azure_2023_conversation.csv")).head(3000))
    rows = {row.figure: row for row in fit.table()}
    assert fit.traffic.turns == 1.0 and rows["hit"].generated == 0.0
    assert all(abs(row.error) < 0.45 for name, row in rows.items() if name != "hit")
