"""Which part of the traffic does each revision get while a new one is rolled out?

By what is ready of it: a revision's share is its part of all servers that are ready, or of those of the role of which there are most. A
revision that lacks a role that a request needs gets nothing. Source: llm-d router's ``disaggregated-set-rollout`` (alpha).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.routing.split import StickySplit

Weighing = Literal["sum", "max-role"]
Counts = Mapping[str, Mapping[str, int]]


def covered(counts: Mapping[str, int], required: Sequence[str]) -> bool:
    """Return whether a revision has somebody for each role."""
    return all(counts.get(role, 0) > 0 for role in required)


def sum_weight(counts: Mapping[str, int], required: Sequence[str]) -> int:
    """Return how many servers a revision has for these roles, 0 where it lacks one.

    >>> sum_weight({"prefill": 2, "decode": 8}, ("prefill", "decode")), sum_weight({"decode": 8}, ("prefill", "decode"))
    (10, 0)
    """
    return sum(counts.get(role, 0) for role in required) if covered(counts, required) else 0


def dominant_role(counts: Counts, required: Sequence[str]) -> str:
    """Return the role of which all revisions together have most; of equals the one that is required first. Errors: `InvalidInputError` for no role."""
    if not required:
        raise InvalidInputError("required", required, "at least one role")
    totals = {role: sum(each.get(role, 0) for each in counts.values()) for role in required}
    return max(required, key=lambda role: totals[role])


def shares(counts: Counts, required: Sequence[str], weighing: Weighing = "sum") -> dict[str, float]:
    """Return each revision's part of the traffic, in the order of their names; those that get nothing are left out.

    `counts` are servers that are ready, by revision and role. Errors: `UnknownNameError`.

    >>> shares({"v1": {"prefill": 2, "decode": 8}, "v2": {"prefill": 1, "decode": 2}}, ("prefill", "decode"), "max-role")
    {'v1': 0.8, 'v2': 0.2}
    """
    if weighing not in get_args(Weighing):
        raise UnknownNameError("weighing", weighing, get_args(Weighing))
    complete = {name: counts[name] for name in sorted(counts) if covered(counts[name], required)}
    if weighing == "sum":
        weights = {name: sum_weight(each, required) for name, each in complete.items()}
    else:
        role = dominant_role(counts, required) if counts else ""
        weights = {name: each.get(role, 0) for name, each in complete.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight} if total else {}


def pick(parts: Mapping[str, float], draw: float) -> str | None:
    """Return the revision that a draw in [0, 1) falls to, in the order of their names; None where there is none.

    >>> pick({"v1": 0.75, "v2": 0.25}, 0.9)
    'v2'
    """
    total, below, last = sum(parts.values()), 0.0, None
    for name in sorted(parts):
        if not parts[name]:
            continue
        below += parts[name]
        last = name
        if draw * total < below:
            return name
    return last


@dataclass(frozen=True, slots=True)
class Step:
    """From which time on (seconds) does the new version get which part?"""

    at: float
    part: float

    def __post_init__(self) -> None:
        if not 0 <= self.part <= 1:
            raise InvalidInputError("part", self.part, "a part of 0 to 1")
        if not -inf < self.at < inf:
            raise InvalidInputError("at", self.at, "a finite number of seconds")


@dataclass(frozen=True, slots=True)
class StagedRollout:
    """Which pool is it, while a new one takes over step by step?

    A conversation moves at most once, from the old pool to the new one, while the parts grow: `StickySplit` moves keys only towards what
    gets more. Going back a step moves back those that moved last.

    >>> rollout = StagedRollout("gemma", "gemma-new", (Step(0.0, 0.01), Step(3600.0, 0.5), Step(7200.0, 1.0)))
    >>> [rollout.pool_of("conversation-7", now, np.random.default_rng(7)) for now in (60.0, 3700.0, 7300.0)]
    ['gemma', 'gemma-new', 'gemma-new']
    """

    old: str
    new: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps or any(a.at >= b.at for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise InvalidInputError("steps", self.steps, "at least one, in the order of their times")

    def part(self, now: float) -> float:
        """Return the new pool's part at this time; 0 before the first step."""
        return next((step.part for step in reversed(self.steps) if step.at <= now), 0.0)

    def pool_of(self, key: str, now: float, rng: np.random.Generator) -> str:
        """Return the pool of a request with this key."""
        part = self.part(now)
        if part <= 0 or part >= 1:
            return self.new if part >= 1 else self.old
        return StickySplit({self.old: 1 - part, self.new: part}).pick(key, rng)
