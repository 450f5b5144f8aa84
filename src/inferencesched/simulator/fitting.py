"""Which generated traffic resembles this trace, and how much does it not?

A trace is one hour of one service. `fit_traffic` reads from it the parameters of `generator.Traffic`, which then makes as many
hours as are wanted, at any seed; `Fit.table` says where they differ. They do: the generator has one width for what people
write and for what they get, no kinds of users and no hours of the day.
"""

from dataclasses import replace
from math import exp, inf, isfinite, log
from typing import Final, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.simulator.generator import Traffic, generate
from inferencesched.simulator.transforms import jitter
from inferencesched.simulator.workload import MOST_TOKENS, Workload

#: The generator's bursts hold a tenth of the time.
_FAST: Final = 0.1
#: Tried burst lengths and factors; windows, in seconds, over which arrivals are counted.
_BURST_SECONDS: Final = tuple(2.0**k for k in range(-2, 10))
_BURSTINESS: Final = tuple(1.0 + 0.25 * k for k in range(37))
_WINDOWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_ZIPF: Final = tuple(0.02 * k for k in range(151))
#: Quantiles of a normal distribution 10 % and 90 % are this many deviations apart.
_DECILES: Final = 2 * 1.2815515655446004
#: No narrower is asked of the generator.
_LEAST_SPREAD: Final = 0.01
#: A refinement generates so many requests each time; more system prompts would make it slow.
_TRIED_REQUESTS: Final = 4000
_MOST_PROMPTS: Final = 2000
#: What a refinement changes, and by which factors, one round each.
_REFINED: Final = ("user_tokens", "spread", "system_tokens", "output_tokens", "system_prompts")
_FACTORS: Final = (2.0, 2.0, 1.4, 1.4, 1.2, 1.1)
#: What a table has, in this order.
_FIGURES: Final = (
    "requests_per_second",
    "counts_cv",
    *(f"{name}_p{point}" for name in ("input", "output") for point in (50, 90, 99)),
    "hit",
)
#: A hit that is off by 0.1 weighs as much as a length that is off by a factor e.
_HIT_WEIGHT: Final = 10.0


class Row(NamedTuple):
    """How much is a figure of the trace, and how much of what is generated? ``error`` is relative: generated / trace - 1, NaN at 0."""

    figure: str
    trace: float
    generated: float

    @property
    def error(self) -> float:
        """How far off is it, relative to the trace?"""
        return self.generated / self.trace - 1 if self.trace else float("nan")


class Fit(NamedTuple):
    """Which parameters were read off a trace, and what do they make?

    ``traffic`` goes to `generator.generate`. ``seed`` is that of ``generated``, the figures of which `table` holds against the trace's.
    """

    traffic: Traffic
    trace: dict[str, float]
    generated: dict[str, float]
    seed: int

    def table(self) -> tuple[Row, ...]:
        """What has the trace, and what has the generated traffic? One row a figure, errors as they are."""
        return tuple(Row(name, value, self.generated[name]) for name, value in self.trace.items())


def fit_traffic(workload: Workload, *, seed: int = 0) -> Fit:
    """With which `Traffic` does the generator resemble this trace?

    First, what can be read off: lengths are medians, and widths from the 10 % and 90 % quantiles, of what a turn adds. Who continues
    whom is as `parents` says. System prompts are the groups of first turns that begin with the same block, the exponent their
    likeliest, their length the median of what first turns find of others, or what first turns are longer than others where that
    fits better. Bursts are those whose counts vary most like the first turns' over windows of 1 to 64 s, arrivals spread over
    the trace's ticks. Branching is how often a turn continues another than its conversation's latest. Then lengths, width and
    number of system prompts are moved, one by one and ever less, as long as that brings the quantiles of lengths and the hit nearer.

    Deterministic. Cost: some 5 to 20 s, for some 60 times up to 4,000 generated requests. Errors: `InvalidInputError` for an empty workload.
    Source of the variance of counts: Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook",
    Performance Evaluation 18 (1993), section 2.

    >>> fit = fit_traffic(generate(Traffic(requests=400), seed=1))
    >>> fit.traffic.requests, [row.figure for row in fit.table()][:2]
    (400, ['requests_per_second', 'counts_cv'])
    """
    whole_number("seed", seed)
    if not len(workload):
        raise InvalidInputError("workload", f"{workload.name}: no requests", "at least one request")
    spread_out = jitter(workload, seed)
    parent = parents(workload)
    firsts, rest = np.flatnonzero(parent < 0), np.flatnonzero(parent >= 0)
    span = max(1.0, float(spread_out.arrival[-1] - spread_out.arrival[0]) / 1e3)
    rate = len(firsts) / span
    burstiness, burst_seconds = _bursts(spread_out.arrival[firsts] / 1e3, rate)
    groups, shared = _system_prompts(workload, firsts)
    user = np.empty(len(workload))
    user[firsts] = workload.input_tokens[firsts] - shared
    known = workload.input_tokens[parent[rest]] + workload.output_tokens[parent[rest]]
    user[rest] = workload.input_tokens[rest] - known
    # an answer that was cut before it was sent back adds less than nothing: what was sent beyond the earlier prompt counts then
    beyond = workload.input_tokens[rest] - workload.input_tokens[parent[rest]]
    user[rest] = np.where(user[rest] > 0, user[rest], beyond)
    user_median, user_width = _log_normal(user)
    output_median, output_width = _log_normal(workload.output_tokens)
    found = shared[shared > 0]
    plain = Traffic(
        requests=len(workload),
        rate=rate,
        burstiness=burstiness,
        burst_seconds=burst_seconds,
        system_prompts=min(_MOST_PROMPTS, len(groups)) if len(found) else 1,
        system_tokens=int(np.median(found)) if len(found) else 1,
        zipf=_zipf(groups),
        turns=len(workload) / len(firsts),
        branching=_branching(parent),
        user_tokens=user_median,
        output_tokens=output_median,
        spread=max(_LEAST_SPREAD, (user_width + output_width) / 2),
        think_seconds=max(1e-3, float(np.mean(workload.arrival[rest] - workload.arrival[parent[rest]])) / 1e3)
        if len(rest)
        else 1.0,
        block_size=workload.block_size,
    )
    opening = int(np.median(workload.input_tokens[firsts])) - user_median
    own = min(_MOST_PROMPTS, len(groups) if len(found) else 20 * len(firsts))
    longer = replace(plain, system_tokens=max(1, opening), system_prompts=own)
    target = figures(spread_out)
    traffic = replace(_refined((plain, longer), target, seed), requests=len(workload))
    return Fit(traffic, target, figures(generate(traffic, seed=seed)), seed)


def _refined(starts: tuple[Traffic, ...], target: dict[str, float], seed: int) -> Traffic:
    """Return the traffic that a search from the best of these starts ends at, by `_off`."""
    few = [replace(start, requests=min(start.requests, _TRIED_REQUESTS)) for start in starts]
    best, least = min(((start, _off(start, target, seed)) for start in few), key=lambda pair: pair[1])
    for factor in _FACTORS:
        for name in _REFINED:
            for by in (factor, 1 / factor):
                value = getattr(best, name) * by
                value = max(_LEAST_SPREAD, value) if name == "spread" else min(MOST_TOKENS, max(1, round(value)))
                if value == getattr(best, name) or (name == "system_prompts" and value > _MOST_PROMPTS):
                    continue
                tried = replace(best, **{name: value})
                off = _off(tried, target, seed)
                if off < least:
                    best, least = tried, off
                    break
    return best


def _off(traffic: Traffic, target: dict[str, float], seed: int) -> float:
    """How far from the target are the quantiles of lengths and the hit that this traffic makes? Squares, 0 is best."""
    made = figures(generate(traffic, seed=seed))
    lengths = (name for name in target if name.startswith(("input", "output")))
    off = sum(log(max(1.0, made[name]) / max(1.0, target[name])) ** 2 for name in lengths)
    return off + (_HIT_WEIGHT * (made["hit"] - target["hit"])) ** 2


def figures(workload: Workload) -> dict[str, float]:
    """By which figures are a trace and its likeness compared?

    ``requests_per_second``; ``counts_cv``, deviation over mean of the arrivals in each second; ``input_p50`` and so on, tokens; ``hit``, as
    `prefix_hit`. NaN for no requests.
    """
    if not len(workload):
        return dict.fromkeys(_FIGURES, float("nan"))
    since = (workload.arrival - workload.arrival[0]) / 1e3
    counts = _counts(since, 1.0)
    table = {
        "requests_per_second": len(workload) / max(1.0, float(since[-1])),
        "counts_cv": float(counts.std() / counts.mean()),
    }
    for name, column in (("input", workload.input_tokens), ("output", workload.output_tokens)):
        for point, value in zip((50, 90, 99), np.percentile(column, (50, 90, 99)), strict=True):
            table[f"{name}_p{point}"] = float(value)
    return table | {"hit": prefix_hit(workload)}


def prefix_hit(workload: Workload) -> float:
    """Which share of all prompt tokens would one cache without end have found? In full blocks; NaN for no requests.

    >>> two = Workload.of("toy", [0.0, 5.0], [130, 100], [10, 20], [[0, 1, 2], [0, 1]], block_size=64)
    >>> round(prefix_hit(two), 4)  # 64 of 230
    0.2783
    """
    total = int(workload.input_tokens.sum())
    return int(_found(workload).sum()) * workload.block_size / total if total else float("nan")


def parents(workload: Workload) -> IntArray:
    """Whom does each request continue? Its place, ``int64[N]``, -1 for nobody.

    With a precedence: the latest that it waits for. Without: the latest request whose whole prompt, to its last full block, this
    one begins with, and whose last full block was new with it or with somebody it continues; what everybody begins
    with is a system prompt and continues nobody.
    """
    parent = np.full(len(workload), -1, dtype=np.int64)
    if workload.precedence is not None:
        offsets = workload.precedence.offsets
        waits = np.flatnonzero(np.diff(offsets))
        parent[waits] = workload.precedence.places[offsets[1:][waits] - 1]
        return parent
    ends: dict[int, int] = {}  # last full block -> the latest request that ended with it, of those it identifies
    seen: set[int] = set()
    for i in range(len(workload)):
        row: list[int] = workload.full_blocks(i).tolist()
        for block in reversed(row):
            if block in ends:
                parent[i] = ends[block]
                break
        if row and (row[-1] not in seen or row[-1] in ends):
            ends[row[-1]] = i
        seen.update(row)
    return parent


def _found(workload: Workload) -> IntArray:
    """Return how many leading full blocks of each request some earlier one had, ``int64[N]``."""
    counts = np.diff(workload.offsets)
    owner = np.repeat(np.arange(len(workload)), counts)
    _, first, block = np.unique(workload.blocks, return_index=True, return_inverse=True)
    place = np.arange(len(owner)) - np.repeat(workload.offsets[:-1], counts)
    new = np.where(owner[first][block.reshape(-1)] < owner, inf, place)  # the first that is not found ends it
    ends = np.minimum(counts, workload.input_tokens // workload.block_size).astype(np.float64)
    np.minimum.at(ends, owner, new)
    return ends.astype(np.int64)


def _system_prompts(workload: Workload, firsts: IntArray) -> tuple[IntArray, IntArray]:
    """How many first turns begin alike, ``int64[G]`` the most first, and how many tokens each finds of others?"""
    heads: dict[int, int] = {}
    single = 0
    for i in firsts.tolist():
        row = workload.full_blocks(i)
        if len(row):
            heads[int(row[0])] = heads.get(int(row[0]), 0) + 1
        else:
            single += 1
    groups = np.array(sorted([*heads.values(), *[1] * single], reverse=True), dtype=np.int64)
    alone = np.zeros(len(workload), dtype=np.int64)
    alone[firsts] = _found(workload)[firsts]
    return groups, np.minimum(alone[firsts] * workload.block_size, workload.input_tokens[firsts] - 1)


def _zipf(groups: IntArray) -> float:
    """Return the likeliest exponent, of those tried, for groups of these sizes, the largest first."""
    ranks = np.log(np.arange(1, len(groups) + 1))
    likelihood = [-s * float(groups @ ranks) - int(groups.sum()) * log(float(np.exp(-s * ranks).sum())) for s in _ZIPF]
    return _ZIPF[int(np.argmax(likelihood))]


def _log_normal(values: IntArray | FloatArray) -> tuple[int, float]:
    """Return the median, at least 1, and the width of the log-normal with these 10 % and 90 % quantiles."""
    low, middle, high = np.percentile(np.maximum(values, 1), (10, 50, 90))
    return max(1, round(float(middle))), (log(high) - log(low)) / _DECILES


def _branching(parent: IntArray) -> float:
    """Return the share of continuing requests that continue another than the latest of their conversation."""
    root, latest = list(range(len(parent))), dict[int, int]()
    turns = others = 0
    for i, before in enumerate(parent.tolist()):
        if before >= 0:
            root[i] = root[before]
            turns += 1
            others += latest[root[i]] != before
        latest[root[i]] = i
    return others / turns if turns else 0.0


def _counts(since: FloatArray, window: float) -> IntArray:
    """Return the arrivals in each whole window; in the first, begun or not, where there is no other."""
    windows = max(1, int(since.max(initial=0.0) / window))
    counts: IntArray = np.bincount((since / window).astype(np.int64), minlength=windows)[:windows]
    return counts


def _bursts(arrival: FloatArray, rate: float) -> tuple[float, float]:
    """Return the burstiness and the burst seconds, of those tried, whose counts vary most like these arrivals' (s)."""
    measured = []
    for window in _WINDOWS:
        counts = _counts(arrival - arrival.min(initial=inf), window) if len(arrival) else np.zeros(1)
        if len(counts) >= 20 and counts.mean() > 0:
            measured.append((window, max(1.0, float(counts.var() / counts.mean()))))
    best, found = inf, (1.0, Traffic().burst_seconds)
    for burstiness in _BURSTINESS if measured else ():
        for seconds in _BURST_SECONDS:
            off = sum(
                (log(_dispersion(rate, burstiness, seconds, window)) - log(seen)) ** 2 for window, seen in measured
            )
            if off < best and isfinite(off):
                best, found = off, (burstiness, seconds)
    return found


def _dispersion(rate: float, burstiness: float, seconds: float, window: float) -> float:
    """Variance over mean of the arrivals in a window, in the two states of the generator (Fischer and Meier-Hellstern, section 2)."""
    slow = rate / (1 - _FAST + _FAST * burstiness)
    states = _FAST * (1 - _FAST) * (slow * (burstiness - 1)) ** 2
    change = 1 / seconds + 1 / (9 * seconds)
    excess = 2 * states * (window / change - (1 - exp(-change * window)) / change**2)
    return 1 + excess / (rate * window)
