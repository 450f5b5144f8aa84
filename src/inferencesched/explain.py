"""Why this endpoint?

`explain` walks the same stages as `Scheduler.schedule`, the plain way, and writes down what it sees: who was dropped
and by what, every scorer's word on every candidate, the runner-up, the margin, and what would have flipped it.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, is_dataclass
from math import inf

import numpy as np

from inferencesched._fusion import plain_scores, plain_totals
from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import FilteredOutError, UnknownNameError
from inferencesched.framework import CycleState, ProfileResult, SchedulingProfile
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler, check_picks, kept_by, target_at


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What decided, for one profile of one request?

    Arrays are in the order of ``candidates``: ``scores`` float64[K, E] raw, in [0, 1]; ``totals`` float64[E] weighted
    sums; ``age`` float64[E] seconds since the last observation (inf: never). ``scorers`` are their reprs, short of
    the parameters left as they come. ``dropped`` maps a name to what dropped it: ``exclude``, ``staleness`` or a filter. ``flips`` maps a scorer to the weight at which the runner-up would have won (scorers that cannot
    do it alone are left out). ``tie`` says whether the totals alone did not decide.
    """

    request_id: str
    profile: str
    picked: tuple[str, ...]
    candidates: tuple[str, ...]
    scorers: tuple[str, ...]
    weights: tuple[float, ...]
    scores: FloatArray
    totals: FloatArray
    age: FloatArray
    dropped: dict[str, str]
    runner_up: str | None
    margin: float
    tie: bool
    flips: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """Return plain lists, dicts, strings and numbers, ready for JSON; unknown is None."""
        return {
            "request_id": self.request_id,
            "profile": self.profile,
            "picked": list(self.picked),
            "runner_up": self.runner_up,
            "margin": self.margin,
            "tie": self.tie,
            "candidates": [
                {
                    "endpoint": name,
                    "total": float(self.totals[i]),
                    "age": None if self.age[i] == inf else float(self.age[i]),
                    "scores": {scorer: float(self.scores[k, i]) for k, scorer in enumerate(self.scorers)},
                }
                for i, name in enumerate(self.candidates)
            ],
            "weights": dict(zip(self.scorers, self.weights, strict=True)),
            "dropped": dict(self.dropped),
            "flips": dict(self.flips),
        }

    def __str__(self) -> str:
        lines = [f"request {self.request_id!r}, profile {self.profile!r}: {self.picked[0]!r}"]
        if self.runner_up is None:
            lines.append("it was the only candidate")
        else:
            lines.append(f"runner-up {self.runner_up!r}, margin {self.margin:.6g}" + (", a tie" if self.tie else ""))
        for i in np.argsort(-self.totals, kind="stable"):
            parts = [
                f"{weight:g}*{score:.3f} {scorer}"
                for scorer, weight, score in zip(self.scorers, self.weights, self.scores[:, i], strict=True)
            ]
            age = "never observed" if self.age[i] == inf else f"{self.age[i]:.3f} s old"
            lines.append(f"  {self.candidates[i]}: {self.totals[i]:.6g} = {' + '.join(parts) or 'no scorers'} ({age})")
        lines += [f"  {name}: dropped by {cause}" for name, cause in self.dropped.items()]
        lines += [f"it would flip if {scorer} weighed {weight:.6g}" for scorer, weight in self.flips.items()]
        return "\n".join(lines)


def explain(
    scheduler: Scheduler,
    request: InferenceRequest,
    endpoints: Endpoints,
    *,
    now: float,
    rng: np.random.Generator,
    exclude: Collection[str] = (),
    profile: str | None = None,
) -> Explanation:
    """Why does `Scheduler.schedule` answer as it does, with these very arguments?

    Give it a generator in the state that `schedule` had; it draws from it as `schedule` does. `profile` names one
    of several (default: the one whose answer counted). Errors: those of `schedule`, and `UnknownNameError` for a
    profile that did not run. Cost: some 70 us and 0.3 us a candidate; decisions that nobody asks about cost nothing.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, WAITING_QUEUE_SIZE, default_profile
    >>> pool = InferencePool()
    >>> for name, queue in (("ep-0", 4.0), ("ep-1", 0.0)):
    ...     pool.join(name)
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=10.0)
    >>> request = InferenceRequest(request_id="r-1", input_tokens=700)
    >>> print(explain(Scheduler(default_profile()), request, pool.snapshot(), now=10.5, rng=np.random.default_rng(7)))
    request 'r-1', profile 'default': 'ep-1'
    runner-up 'ep-0', margin 2
      ep-1: 2 = 3*0.000 PrefixCacheScorer() + 2*1.000 QueueScorer() + 2*0.000 KvCacheUtilizationScorer() (0.500 s old)
      ep-0: 0 = 3*0.000 PrefixCacheScorer() + 2*0.000 QueueScorer() + 2*0.000 KvCacheUtilizationScorer() (0.500 s old)
    it would flip if QueueScorer() weighed 0
    """
    if profile is not None and profile not in scheduler.profiles:
        raise UnknownNameError("profile", profile, list(scheduler.profiles))
    gone = {endpoint: "exclude" for endpoint in endpoints.names if endpoint in exclude}
    before = endpoints.names
    age = dict(zip(before, endpoints.age(now).tolist(), strict=True))
    endpoints = scheduler.candidates(request, endpoints, now, exclude)
    left = {*endpoints.names, *gone}
    gone |= {endpoint: "staleness" for endpoint in before if endpoint not in left}
    cycle = CycleState(now, rng, endpoints.sequence)
    endpoints, _ = scheduler.produce(request, endpoints, cycle)
    told: dict[str, Explanation] = {}
    drained: dict[str, dict[str, str]] = {}

    def run(name: str, cycle: CycleState) -> ProfileResult | None:
        chosen, kept, dropped = scheduler.profiles[name], endpoints, dict(gone)
        for plugin in chosen.filters:
            before = kept.names
            kept = kept_by(plugin, request, kept, cycle)
            left = set(kept.names)
            dropped |= {endpoint: repr(plugin) for endpoint in before if endpoint not in left}
            if not len(kept):
                drained[name] = dropped
                return None
        scores = plain_scores(chosen.scorers, request, kept, cycle)
        totals = plain_totals(chosen.scorers, scores)
        picks = chosen.picker.pick(totals, kept, cycle)
        check_picks(chosen.picker, picks, len(kept))
        ages = np.array([age[endpoint] for endpoint in kept.names])
        told[name] = _told(request.request_id, name, chosen, kept.names, scores, totals, picks.tolist(), ages, dropped)
        return ProfileResult(tuple(target_at(request, kept, i, float(totals[i])) for i in picks.tolist()))

    try:
        primary = scheduler.run_profiles(request, endpoints, cycle, run).primary
    except FilteredOutError as refusal:
        wanted = next(iter(drained), None) if profile is None else profile
        if wanted not in drained:
            raise
        raise scheduler.refusal(request, wanted, _causes(drained[wanted])) from refusal
    wanted = primary if profile is None else profile
    if wanted in drained:
        raise scheduler.refusal(request, wanted, _causes(drained[wanted]))
    if wanted not in told:
        raise UnknownNameError("profile", wanted, f"one that ran for {request.request_id!r}: {', '.join(told)}")
    return told[wanted]


def _told(
    request_id: str,
    name: str,
    chosen: SchedulingProfile,
    candidates: tuple[str, ...],
    scores: FloatArray,
    totals: FloatArray,
    picks: list[int],
    age: FloatArray,
    dropped: dict[str, str],
) -> Explanation:
    """Return what one profile's numbers say."""
    winner, runner = picks[0], _runner_up(totals, picks[0])
    labels = _labels([_label(weighted.scorer) for weighted in chosen.scorers])
    weights = tuple(weighted.weight for weighted in chosen.scorers)
    margin = 0.0 if runner is None else float(totals[winner] - totals[runner])
    flips: dict[str, float] = {}
    if runner is not None:
        for label, weight, row in zip(labels, weights, scores, strict=True):
            lead = float(row[winner] - row[runner])
            if lead != 0.0:
                flips[label] = weight - margin / lead
    return Explanation(
        request_id,
        name,
        tuple(candidates[i] for i in picks),
        candidates,
        labels,
        weights,
        scores,
        totals,
        age,
        dropped,
        None if runner is None else candidates[runner],
        margin,
        runner is not None and bool(totals[winner] == totals[runner]),
        flips,
    )


def _causes(dropped: dict[str, str]) -> str:
    return "; ".join(f"{endpoint}: {cause}" for endpoint, cause in dropped.items())


def _runner_up(totals: FloatArray, winner: int) -> int | None:
    """Return the best position beside the winner."""
    if len(totals) == 1:
        return None
    others = totals.copy()
    others[winner] = -inf
    return int(np.argmax(others))


def _label(plugin: object) -> str:
    """Return the plug-in's repr, without the parameters that were left as they come."""
    if not is_dataclass(plugin):
        return repr(plugin)
    told = {f.name: repr(getattr(plugin, f.name)) for f in fields(plugin) if f.repr}
    chosen = [f"{f.name}={told[f.name]}" for f in fields(plugin) if f.name in told and told[f.name] != repr(f.default)]
    return f"{type(plugin).__name__}({', '.join(chosen)})"


def _labels(names: list[str]) -> tuple[str, ...]:
    """Return the names, numbered where one occurs twice."""
    return tuple(
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}" for i, name in enumerate(names)
    )
