"""How does one profile decide: filters, then scores, then the picker?"""

from typing import Any, Final

import numpy as np

from inferencesched._fusion import PREFIX_TOKENS_ROW, Program
from inferencesched.endpoints import Endpoints
from inferencesched.errors import FilterError, PickError
from inferencesched.framework import CycleState, Filter, Picker, ProfileResult, SchedulingProfile, Target
from inferencesched.pickers.score import MaxScorePicker
from inferencesched.request import InferenceRequest

#: What `Target(...)` does, without what Python spends on matching arguments to names: twice as fast.
record: Final[Any] = tuple.__new__


def kept_by(plugin: Filter, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Endpoints:
    """Return what one filter keeps; `FilterError` if it does not answer ``bool[E]``."""
    keep = plugin.filter(request, endpoints, cycle)
    if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_ or keep.shape != (len(endpoints),):
        what = f"{keep.dtype}{list(keep.shape)}" if isinstance(keep, np.ndarray) else f"a {type(keep).__name__}"
        raise FilterError(plugin, what, f"bool[{len(endpoints)}]")
    return endpoints.where(keep)


class ProfileRunner:
    """How does one profile decide? Filters, then the fused scores, then the picker.

    ``compiled`` says that all of it is one call of one kernel.
    """

    __slots__ = ("_max_score", "compiled", "profile", "program")

    def __init__(self, profile: SchedulingProfile) -> None:
        self.profile = profile
        self.program = Program(profile.scorers)
        self._max_score = type(profile.picker) is MaxScorePicker and profile.picker.count == 1
        self.compiled = self._max_score and not profile.filters and self.program.fused

    def run(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> ProfileResult | None:
        """Return the targets, best first; None where the filters kept nobody."""
        for plugin in self.profile.filters:
            endpoints = kept_by(plugin, request, endpoints, cycle)
            if not len(endpoints):
                return None
        if self._max_score:
            program = self.program
            best, ties, total, tokens = program.decide(request, endpoints, cycle, 0)
            if ties > 1:
                best, _, total, tokens = program.decide(request, endpoints, cycle, int(cycle.rng.random() * ties))
            return ProfileResult((_target(endpoints, best, total, tokens),))
        totals = self.program.totals(request, endpoints, cycle)
        picks = self.profile.picker.pick(totals, endpoints, cycle)
        check_picks(self.profile.picker, picks, len(endpoints))
        return ProfileResult(tuple(target_at(request, endpoints, i, float(totals[i])) for i in picks.tolist()))


def target_at(request: InferenceRequest, endpoints: Endpoints, position: int, score: float) -> Target:
    """Return the picked position as a record that outlives the snapshot."""
    tokens = request.prompt_tokens or 0
    if tokens:
        matched = endpoints.matrix.item(PREFIX_TOKENS_ROW, position)
        if matched == matched:  # unknown is NaN: then all of it must be computed
            tokens = max(0, tokens - int(matched))
    return _target(endpoints, position, score, tokens)


def _target(endpoints: Endpoints, position: int, score: float, tokens: int) -> Target:
    name, (slot, generation), address = endpoints.identity(position)
    return record(Target, (name, slot, generation, score, tokens, address))  # type: ignore[no-any-return]


def check_picks(picker: Picker, picks: object, count: int) -> None:
    """Raise `PickError` unless these are distinct positions of ``count`` candidates, at least one."""
    allowed = f"distinct positions below {count}, at least one, as an integer array"
    if not isinstance(picks, np.ndarray) or picks.ndim != 1 or picks.dtype.kind != "i" or not len(picks):
        raise PickError(picker, repr(picks), allowed)
    positions = picks.tolist()  # a list: picks are few, and numpy's verbs would cost more than the decision
    if min(positions) < 0 or max(positions) >= count or len(set(positions)) != len(positions):
        raise PickError(picker, repr(positions), allowed)
