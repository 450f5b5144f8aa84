"""What is there to be said of one decision?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import NamedTuple

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import Freshness
from inferencesched.explain import words
from inferencesched.explain.schema import (
    VERSION,
    CandidateRecord,
    ChangeRecord,
    DropRecord,
    ExplanationRecord,
    ProfileRecord,
    Rule,
    SignalRecord,
    StageName,
    WeightRecord,
)


class Drop(NamedTuple):
    """Who was dropped, at which stage, by what, and why?

    ``by`` is the filter's repr, else the stage; ``reason`` is in a few words, empty where there are none; ``read`` holds what
    the filter read of the endpoint, by signal.
    """

    endpoint: str
    stage: StageName
    by: str
    reason: str = ""
    read: tuple[tuple[str, float], ...] = ()

    def to_dict(self) -> DropRecord:
        """Return plain data."""
        read = {name: number(value) for name, value in self.read}
        return {"endpoint": self.endpoint, "stage": self.stage, "by": self.by, "reason": self.reason, "read": read}


class Reading(NamedTuple):
    """What did a column say, to whom, and how old was that?

    ``values`` and ``ages``, ``float64[E]``, are in the order of the candidates, as the plug-ins saw them: after the policy for servers not
    heard of. Ages are seconds; NaN where there is none, inf where the server was never heard of.
    """

    signal: str
    unit: str
    freshness: Freshness
    better: str
    readers: tuple[str, ...]
    values: FloatArray
    ages: FloatArray

    def to_dict(self, names: tuple[str, ...]) -> SignalRecord:
        """Return plain data."""
        return {
            "signal": self.signal,
            "unit": self.unit,
            "freshness": self.freshness,
            "better": self.better,
            "readers": list(self.readers),
            "values": by_name(names, self.values),
            "ages": by_name(names, self.ages),
        }


class Change(NamedTuple):
    """Which other value of one signal of one endpoint would have flipped the choice?

    At ``after`` the winner is ``winner``; at ``short_of``, one step of the resolution nearer to ``before``, it is still the same: a step
    is 1 for what is counted in whole numbers, else a millionth of the signal's reach. ``size`` is the change as a
    share of that reach: the signal's range, or where that has no end the largest value known of any candidate, at least 1.
    ``declared`` says that every plug-in that reads the signal declares which way is better. Where one does not, values on both sides
    were tried in growing distance, and a flip between two of them may be nearer.
    """

    endpoint: str
    signal: str
    unit: str
    before: float
    after: float
    short_of: float
    size: float
    winner: str
    declared: bool

    def to_dict(self) -> ChangeRecord:
        """Return plain data."""
        return {
            "endpoint": self.endpoint,
            "signal": self.signal,
            "unit": self.unit,
            "before": self.before,
            "after": self.after,
            "short_of": self.short_of,
            "size": self.size,
            "winner": self.winner,
            "declared": self.declared,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What decided, for one profile of one request?

    ``picked`` is the answer, best first; ``rule`` says what let it win, ``margin`` by how much its total exceeds that of
    ``runner_up`` (below 0 where the best total did not win), ``tie`` whether the two totals are equal.

    Arrays are in the order of ``candidates``: ``scores`` float64[K, E] raw, in [0, 1]; ``scored`` bool[K, E], False where a
    scorer has no word; ``totals`` float64[E] weighted sums; ``age`` float64[E] seconds since the last observation (inf:
    never); ``stale`` bool[E] whose scraped signals the policy did not believe. ``scorers`` are their reprs, short of the
    parameters left as they come.

    ``drops`` says who was dropped where and why, ``readings`` what every column said that was read. ``flips`` maps a scorer to
    the weight at which the runner-up would have drawn level (scorers that cannot do it alone are left out); ``changes`` are the
    values of single signals that would have flipped the choice, the smallest change first. ``others`` are the other profiles that
    ran, ``failed`` those that kept nobody, with whom they dropped.
    """

    request_id: str
    profile: str
    now: float
    picked: tuple[str, ...]
    rule: Rule
    candidates: tuple[str, ...]
    scorers: tuple[str, ...]
    weights: tuple[float, ...]
    scores: FloatArray
    scored: BoolArray
    totals: FloatArray
    age: FloatArray
    stale: BoolArray
    drops: tuple[Drop, ...]
    readings: tuple[Reading, ...]
    runner_up: str | None
    margin: float
    tie: bool
    flips: dict[str, float]
    changes: tuple[Change, ...] = ()
    others: tuple["Explanation", ...] = ()
    failed: tuple[tuple[str, tuple[Drop, ...]], ...] = ()

    @property
    def endpoint(self) -> str:
        """Who got it?"""
        return self.picked[0]

    @property
    def dropped(self) -> dict[str, str]:
        """What dropped whom: ``exclude``, ``staleness`` or a filter's repr, by endpoint?"""
        return {drop.endpoint: drop.by for drop in self.drops}

    @property
    def weighted(self) -> FloatArray:
        """What does each score add to its candidate's total, ``float64[K, E]``?"""
        return np.array(self.weights, dtype=np.float64)[:, np.newaxis] * self.scores

    @property
    def normalized(self) -> FloatArray:
        """What share of the best possible total is that, ``float64[K, E]``? The best is the sum of the weights' sizes."""
        whole = sum(map(abs, self.weights))
        return self.weighted / whole if whole else np.zeros_like(self.scores)

    @property
    def smallest(self) -> Change | None:
        """Which is the smallest change of one signal that would have flipped it? None where none was found."""
        return self.changes[0] if self.changes else None

    def to_dict(self) -> ExplanationRecord:
        """Return plain lists, dicts, strings and numbers, ready for JSON; unknown is None. See `inferencesched.explain.schema`."""
        return {
            "version": VERSION,
            "request_id": self.request_id,
            "now": self.now,
            **self._profile_dict(),
            "others": [other._profile_dict() for other in self.others],
            "failed": [{"profile": name, "dropped": [drop.to_dict() for drop in drops]} for name, drops in self.failed],
        }

    def _profile_dict(self) -> ProfileRecord:
        return {
            "profile": self.profile,
            "endpoint": self.endpoint,
            "picked": list(self.picked),
            "rule": self.rule,
            "runner_up": self.runner_up,
            "margin": number(self.margin),
            "tie": self.tie,
            "weights": [self._weight_dict(k) for k in range(len(self.scorers))],
            "candidates": [self._candidate_dict(i) for i in range(len(self.candidates))],
            "signals": [reading.to_dict(self.candidates) for reading in self.readings],
            "dropped": [drop.to_dict() for drop in self.drops],
            "changes": [change.to_dict() for change in self.changes],
        }

    def _weight_dict(self, k: int) -> WeightRecord:
        scorer = self.scorers[k]
        return {"scorer": scorer, "weight": self.weights[k], "flips_at": self.flips.get(scorer)}

    def _candidate_dict(self, i: int) -> CandidateRecord:
        weighted, normalized = self.weighted, self.normalized
        return {
            "endpoint": self.candidates[i],
            "total": number(self.totals[i]),
            "age": number(self.age[i]),
            "stale": bool(self.stale[i]),
            "scores": [
                {
                    "scorer": scorer,
                    "score": number(self.scores[k, i]),
                    "weighted": number(weighted[k, i]),
                    "normalized": number(normalized[k, i]),
                    "scored": bool(self.scored[k, i]),
                }
                for k, scorer in enumerate(self.scorers)
            ],
        }

    def __str__(self) -> str:
        return words.text(self.to_dict())

    def _repr_html_(self) -> str:
        return words.html(self.to_dict())

    def __rich_console__(self, console: object, options: object) -> Iterator[str]:
        """Yield lines in the markup of `rich`, which nothing here imports."""
        yield from words.markup(self.to_dict())

    def beside(
        self, others: tuple["Explanation", ...], failed: tuple[tuple[str, tuple[Drop, ...]], ...]
    ) -> "Explanation":
        """Return the same with what was said of the other profiles."""
        return replace(self, others=others, failed=failed)


def number(value: float) -> float | None:
    """Return the number as JSON can say it; None for what is unknown or has no end."""
    return float(value) if isfinite(value) else None


def by_name(names: tuple[str, ...], column: FloatArray) -> dict[str, float | None]:
    """Return a column by endpoint."""
    return {name: number(value) for name, value in zip(names, column.tolist(), strict=True)}
