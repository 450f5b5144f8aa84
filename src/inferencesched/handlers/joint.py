"""Which prefill server and which decode server go best together?

Chosen one after the other, the second server suits the first and not the reverse: the best decode server may stand in another zone
than every free prefill server. Here both profiles rank their candidates, and the pair is chosen by what both say and what
handing the KV cache from one to the other is worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

import numpy as np

from inferencesched._typing import FloatArray, IndexArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError, PluginError, ScoreError
from inferencesched.framework import CycleState, ProfileResult, Reads, SchedulingProfile, SchedulingResult, Target
from inferencesched.handlers.deciders import AlwaysDecider, position_of
from inferencesched.handlers.disaggregated import DisaggProfileHandler
from inferencesched.handlers.stages import StageLabel
from inferencesched.request import InferenceRequest
from inferencesched.topology import AFFINITIES, Affinity, TopologyLabels


class PairScorer(Protocol):
    """How good is each prefill server for each decode server?"""

    def pairs(
        self,
        request: InferenceRequest,
        endpoints: Endpoints,
        prefill: IndexArray,
        decode: IndexArray,
        cycle: CycleState,
    ) -> FloatArray:
        """Return ``float64[P, D]`` in [0, 1], 1 is best, for these positions of `endpoints`; pure."""
        ...


@dataclass(frozen=True, slots=True)
class TopologyPairs:
    """How near is the prefill server to the decode server?

    What the nearest level that both share is worth: the host, the rack, the zone, the region; 0 where they share none.
    Reads the labels that `labels` names (static); a server without one, or with an empty one, shares that level with nobody.
    Higher is nearer. Cost: 15 us, and 0.5 ns a pair and level. Source of the defaults: llm-d router's ``topology-affinity-scorer``.
    """

    host: float = 1.0
    rack: float = 0.2
    zone: float = 0.05
    region: float = 0.02
    labels: TopologyLabels = field(default_factory=TopologyLabels)

    def __post_init__(self) -> None:
        for level, worth in self.worth.items():
            if not 0.0 <= worth <= 1.0:
                raise InvalidInputError(level, worth, "a number from 0 to 1")

    @property
    def worth(self) -> Mapping[Affinity, float]:
        """What is each level worth, the nearest first?"""
        return dict(zip(AFFINITIES, (self.host, self.rack, self.zone, self.region), strict=True))

    def pairs(
        self,
        request: InferenceRequest,
        endpoints: Endpoints,
        prefill: IndexArray,
        decode: IndexArray,
        cycle: CycleState,
    ) -> FloatArray:
        """Return ``float64[P, D]``."""
        scores: FloatArray = np.zeros((len(prefill), len(decode)))
        levels = list(zip(self.labels.keys, self.worth.values(), strict=True))
        for label, worth in reversed(levels):  # the farthest first: a nearer one is written over it
            values, codes = endpoints.label_column(label)
            named = np.array([*map(bool, values), False])[codes]  # -1, without the label, is the last entry
            ours, theirs = codes[prefill], codes[decode]
            if named[decode].any():
                scores[(ours[:, None] == theirs) & named[decode]] = worth
        return scores


@dataclass(frozen=True, slots=True)
class JointDisaggHandler:
    """Which pair of a prefill and a decode server is best for this request?

    The greatest ``decode_weight * D + prefill_weight * P + transfer_weight * T`` over all pairs of two different servers:
    D and P the totals of their profiles, T what `transfer` says of the pair. Exact, over the targets that both profiles'
    pickers return: give them a ``count`` of the servers that are to be considered, of all for an exact maximum over all. Equal
    pairs go to the server that decode's picker ranked higher, then to prefill's: so their ties stay fair.
    Only those decode servers count for which the prefill decider says yes, and where it says no for the best of them, decode
    stays alone with that one; so there is a prefill server if and only if the decider wants one for the decode server that was
    chosen. The other targets follow as fallbacks, in their profiles' order.

    Parameters
    ----------
    stages: names, deciders and headers, with their meaning in `DisaggProfileHandler`; decode-first.
    transfer: what handing the KV cache over is worth.
    prefill_weight, decode_weight, transfer_weight: finite. Totals are sums of weighted scores, not shares: a profile
        whose weights sum to 7 speaks seven times as loud as `transfer` at weight 1.

    `explain` tells of each profile by itself: the pair's servers need not be the first of either.
    No stage has a ``cycle.peer``: what is between two servers belongs in `transfer`, where it counts once.
    Cost: 60 us, a decider's call for each decode target, and 20 ns for each pair that the profiles' totals leave open: those
    are not looked at that the best transfer could not save. At 256 servers of each kind 0.15 to 1.3 ms. Errors: those of `DisaggProfileHandler`; `ScoreError` for a
    `transfer` that returns something else.
    """

    stages: DisaggProfileHandler = field(default_factory=lambda: DisaggProfileHandler(prefill_decider=AlwaysDecider()))
    transfer: PairScorer = field(default_factory=TopologyPairs)
    prefill_weight: float = 1.0
    decode_weight: float = 1.0
    transfer_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.stages.stage_order != "decode-first":
            raise InvalidInputError("stages.stage_order", self.stages.stage_order, "decode-first")
        weights = {
            "prefill_weight": self.prefill_weight,
            "decode_weight": self.decode_weight,
            "transfer_weight": self.transfer_weight,
        }
        for name, weight in weights.items():
            if not isfinite(weight):
                raise InvalidInputError(name, weight, "a finite number")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Those of its deciders."""
        return self.stages.reads

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return the profile of the next stage."""
        return self.stages.pick(request, profiles, results, cycle)

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return the best pair at the head of both profiles' targets, and the headers for it."""
        names = self.stages.profiles
        decode, prefill = results.get(names.decode), results.get(names.prefill)
        if decode is None or prefill is None or not decode.targets or not prefill.targets:
            return self.stages.process_results(request, results, cycle)
        chosen = self._best(request, prefill.targets, decode.targets, cycle)
        if chosen is None:
            return self.stages.process_results(request, {**results, names.prefill: None}, cycle)
        first, second = chosen
        pair = {names.prefill: _headed(prefill, first), names.decode: _headed(decode, second)}
        return self.stages.process_results(request, {**results, **pair}, cycle)

    def label(self, result: SchedulingResult) -> StageLabel:
        """Return which stages of a decision have a server of their own: a label for metrics and records."""
        return self.stages.label(result)

    def _best(
        self, request: InferenceRequest, prefill: tuple[Target, ...], decode: tuple[Target, ...], cycle: CycleState
    ) -> tuple[int, int] | None:
        """Return the places of the best pair; None where no two different servers are left."""
        decider = self.stages.prefill_decider
        wanted = [
            i for i, target in enumerate(decode) if decider is not None and decider.decide(request, target, cycle)
        ]
        ours = np.array([self.prefill_weight * target.score for target in prefill])
        theirs = np.array([self.decode_weight * decode[i].score for i in wanted])
        slots = np.array([target.slot for target in prefill])
        others = np.array([decode[i].slot for i in wanted])
        kept = _open(ours, theirs, slots, others, self.transfer_weight)
        if kept is None:
            return None
        rows, columns = kept
        transfer = self._transfer(
            request, [prefill[i] for i in rows.tolist()], [decode[wanted[i]] for i in columns.tolist()], cycle
        )
        values = theirs[columns][:, None] + ours[rows] + self.transfer_weight * transfer.T
        values[others[columns][:, None] == slots[rows]] = -np.inf
        column, row = divmod(int(values.argmax()), len(rows))  # the first of equals: decode's rank, then prefill's
        return int(rows[row]), wanted[int(columns[column])]

    def _transfer(
        self, request: InferenceRequest, prefill: list[Target], decode: list[Target], cycle: CycleState
    ) -> FloatArray:
        """Return what `transfer` says of these pairs, checked."""
        endpoints = cycle.candidates
        if endpoints is None:
            raise InvalidInputError("cycle.candidates", None, "the candidates: `Scheduler.schedule` passes them")
        places = [_places(targets, endpoints, self) for targets in (prefill, decode)]
        scores = self.transfer.pairs(request, endpoints, places[0], places[1], cycle)
        shape = (len(prefill), len(decode))
        if not isinstance(scores, np.ndarray) or scores.shape != shape or scores.dtype != np.float64:
            what = f"{scores.dtype}{list(scores.shape)}" if isinstance(scores, np.ndarray) else type(scores).__name__
            raise ScoreError(self.transfer, what, f"float64{list(shape)}")
        if not ((scores >= 0.0) & (scores <= 1.0)).all():
            bad = scores[~((scores >= 0.0) & (scores <= 1.0))][0]
            raise ScoreError(self.transfer, repr(float(bad)), "numbers from 0 to 1")
        return scores


def _headed(picked: ProfileResult, place: int) -> ProfileResult:
    """Return the targets with the one at `place` in front."""
    targets = picked.targets
    return ProfileResult((targets[place], *targets[:place], *targets[place + 1 :]))


def _places(targets: list[Target], endpoints: Endpoints, handler: object) -> IndexArray:
    """Return the targets' positions."""
    places = [position_of(target, endpoints) for target in targets]
    if None in places:
        missing = targets[places.index(None)].endpoint
        raise PluginError(handler, f"a pair with {missing!r}", "endpoints of the snapshot")
    return np.array(places, dtype=np.intp)


def _open(
    ours: FloatArray, theirs: FloatArray, slots: IndexArray, others: IndexArray, weight: float
) -> tuple[IndexArray, IndexArray] | None:
    """Return which rows and columns may hold the best pair, in order; None where there is no pair of two servers.

    The best pair without a transfer bounds the best from below; whoever, with the best partner and the best transfer, stays
    under that is out. Rounding never turns an order round, so no best pair is lost.
    """
    if not len(theirs):
        return None
    least, most = min(weight, 0.0), max(weight, 0.0)
    rows, columns = np.argsort(-ours, kind="stable")[:2], np.argsort(-theirs, kind="stable")[:2]
    sums = theirs[columns][:, None] + ours[rows] + least
    sums[others[columns][:, None] == slots[rows]] = -np.inf
    bound = sums.max()
    if bound == -np.inf:
        return None
    kept_rows: IndexArray = np.flatnonzero(theirs.max() + ours + most >= bound)
    kept_columns: IndexArray = np.flatnonzero(theirs + ours.max() + most >= bound)
    return kept_rows, kept_columns
