"""Are coefficients found again that are known, is the error said what it is, and is what cannot be told said to be so?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, TraceError
from inferencesched.simulator.calibration import (
    Pass,
    RequestRecord,
    calibrate,
    measured,
    nnls,
    passes_of_requests,
    pearson,
    read_passes,
)
from inferencesched.simulator.engine import LLAMA_8B_H100, TIMINGS, ClosedForm, step_ms, timing

SETS = [each for each in TIMINGS.values() if isinstance(each, ClosedForm)]
NAMES = ("c0", "w", "b", "a", "k", "r")


def grid(model, noise=0.0, seed=0):
    """The points that the twelve sets were fitted to, as this one would have them."""
    passes = [
        measured(model, n, n * (p + n / 2), 0, 0)
        for n in (1, 16, 128, 512, 2048, 4096, 16384)
        for p in (0, 1024, 16384, 65536)
    ]
    passes += [measured(model, b, 0, b * c, b) for b in (1, 2, 8, 32, 128, 256) for c in (64, 1024, 8192, 32768)]
    passes += [
        measured(model, n + b, n * n / 2, b * c, b) for n in (256, 2048, 8192) for b in (8, 64) for c in (512, 8192)
    ]
    factor = np.exp(noise * np.random.default_rng(seed).standard_normal(len(passes)))
    return [
        Pass(p.tokens, p.pairs, p.context, p.decodes, p.ms * f) for p, f in zip(passes, factor.tolist(), strict=True)
    ]


@pytest.mark.parametrize("model", SETS, ids=lambda model: model.name)
def test_each_of_the_known_sets_is_found_again(model):
    found = calibrate(grid(model), holdout=0.0)
    for name in NAMES:
        assert getattr(found.timing, name) == pytest.approx(getattr(model, name), rel=1e-5, abs=1e-9)
    assert found.fitted.worst < 1e-6 and found.fitted.r == pytest.approx(1.0)
    assert found.fitted.grade == "excellent"


def test_a_pass_is_what_the_simulated_server_takes():
    model = timing("qwen3-8b-h100")
    assert measured(model, 2048 + 3, 2048 * (100 + 1024), 6000, 3).ms == pytest.approx(
        step_ms(model, prefill=((100, 2048),), decode=(1000, 2000, 3000))
    )


def test_noise_is_seen_in_the_held_out_part():
    model = timing("llama-3.1-8b-h100")
    for seed in range(3):
        found = calibrate(grid(model, 0.05, seed), seed=seed)
        assert 0.02 < found.held_out.mape < 0.07 and found.held_out.count == 12  # E|noise| is 0.04
        assert found.timing.b == pytest.approx(model.b, rel=0.1) and found.timing.k == pytest.approx(model.k, rel=0.15)


@given(st.permutations(range(64)))
def test_the_order_of_passes_does_not_matter(order):
    passes = grid(timing("llama-3.1-8b-a100"), 0.03)
    shuffled = [passes[i] for i in order]
    assert calibrate(shuffled).timing == calibrate(passes).timing


def test_slower_by_a_factor_is_slower_in_every_coefficient():
    passes = grid(timing("llama-3.1-8b-h200"))
    slow = calibrate([Pass(p.tokens, p.pairs, p.context, p.decodes, 3 * p.ms) for p in passes], holdout=0.0).timing
    fast = calibrate(passes, holdout=0.0).timing
    for name in NAMES:
        assert getattr(slow, name) == pytest.approx(3 * getattr(fast, name), rel=1e-5, abs=1e-9)


def test_nothing_beats_the_roofline():
    quick = [Pass(p.tokens, p.pairs, p.context, p.decodes, p.ms / 4) for p in grid(timing("llama-3.1-8b-h100"))]
    with pytest.raises(InvalidInputError, match="roofline"):
        calibrate(quick, hardware=LLAMA_8B_H100)
    assert calibrate(quick).timing.k > 0
    assert calibrate(grid(timing("llama-3.1-8b-h100")), hardware=LLAMA_8B_H100).timing.hardware is LLAMA_8B_H100


def test_what_was_seen_is_said_and_what_cannot_be_told_apart():
    model = timing("llama-3.1-8b-h100")
    alone = [measured(model, 1, 0, c, 1) for c in range(1000, 9000, 500)]
    found = calibrate(alone, holdout=0.0)
    assert found.ranges == {"tokens": (1, 1), "pairs": (0, 0), "context": (1000, 8500), "decodes": (1, 1)}
    assert found.covers(1, 0, 5000, 1) and not found.covers(1, 0, 9000, 1) and not found.covers(2, 0, 5000, 1)
    assert any("a was never seen" in text for text in found.warnings)
    assert found.timing.k == pytest.approx(model.k, rel=1e-6)  # what can be told is right
    told = dict(found.rows())
    assert told["k"] == "4.223e-05" and "warning" in told
    assert any("told apart" in text for text in found.warnings)
    assert not any("told apart" in text for text in calibrate(grid(model)).warnings)


def test_a_clients_measurements_are_passes():
    model = timing("llama-3.1-8b-h100")
    records = []
    for n in (100, 800, 3000, 8000):
        for cached in (0, 2048):
            first = measured(model, n, n * (cached + n / 2), 0, 0).ms
            gap = measured(model, 1, 0, cached + n + 50, 1).ms
            records.append(RequestRecord(cached + n, cached, 100, first, gap))
    records.append(RequestRecord(20_000, 0, 1, 700.0, 0.0))  # several passes, no gap: says nothing
    passes = passes_of_requests(records)
    assert len(passes) == 16
    found = calibrate(passes, holdout=0.0)
    for name in ("b", "a", "k"):
        assert getattr(found.timing, name) == pytest.approx(getattr(model, name), rel=0.02)


@pytest.mark.parametrize(
    "record",
    [
        RequestRecord(10, 10, 2, 1.0, 1.0),
        RequestRecord(10, -1, 2, 1.0, 1.0),
        RequestRecord(10, 0, 0, 1.0, 1.0),
        RequestRecord(10, 0, 2, 0.0, 1.0),
        RequestRecord(10, 0, 2, 1.0, float("nan")),
    ],
)
def test_a_record_that_cannot_be_is_refused(record):
    with pytest.raises(InvalidInputError, match="records"):
        passes_of_requests([record])


def test_files_are_read_line_by_line():
    lines = [b'{"tokens": 5, "pairs": 12.5, "ms": 3.5}', b"", b'{"tokens": 1, "context": 9, "decodes": 1, "ms": 2}']
    assert read_passes(lines) == [Pass(5, 12.5, 0, 0, 3.5), Pass(1, 0, 9, 1, 2)]
    asked = b'{"input_tokens": 10, "cached_tokens": 0, "output_tokens": 1, "ttft_ms": 4, "itl_ms": 0}'
    assert read_passes([asked], requests=True) == [Pass(10, 50, 0, 0, 4)]
    for bad, requests in (
        (b"{", False),
        (b'{"ms": 3}', False),
        (b'{"input_tokens": 1, "cached_tokens": 1, "output_tokens": 1, "ttft_ms": 1, "itl_ms": 1}', True),
    ):
        with pytest.raises(TraceError) as error:
            read_passes([asked if requests else lines[0], bad], requests=requests)
        assert error.value.line == 2


@pytest.mark.parametrize(
    ("passes", "parameter"),
    [
        ([Pass(1, ms=1.0)] * 11, "passes"),
        ([Pass(1, ms=1.0)] * 11 + [Pass(1, ms=0.0)], r"passes\[11\]"),
        ([Pass(1, ms=1.0)] * 11 + [Pass(0, ms=1.0)], r"passes\[11\]"),
        ([Pass(1, ms=1.0)] * 11 + [Pass(1, pairs=-1.0, ms=1.0)], r"passes\[11\]"),
        ([Pass(1, ms=1.0)] * 11 + [Pass(1)], r"passes\[11\]"),
    ],
)
def test_passes_that_cannot_be_are_refused(passes, parameter):
    with pytest.raises(InvalidInputError, match=f"^{parameter}: got"):
        calibrate(passes)


def test_all_cannot_be_held_out():
    with pytest.raises(InvalidInputError, match="holdout"):
        calibrate(grid(SETS[0]), holdout=1.0)


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_non_negative_least_squares_are_optimal(seed, count):
    """The conditions of Karush, Kuhn and Tucker: nothing above 0 has a slope, nothing at 0 wants to grow."""
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(12, count)), rng.normal(size=12)
    x = nnls(matrix, target)
    slope = matrix.T @ (target - matrix @ x)
    assert (x >= 0).all() and (slope <= 1e-7).all() and (np.abs(slope[x > 0]) <= 1e-7).all()


def test_pearson_by_hand():
    # deviations -1 0 1 and -1 -1 2: 3 / sqrt(2 * 6)
    assert pearson(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 4.0])) == pytest.approx(3 / np.sqrt(12))
    assert np.isnan(pearson(np.ones(3), np.arange(3.0)))
