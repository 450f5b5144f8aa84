"""What do filters make together?

Filters of filters. Each asks all of its filters about the same candidates, in their order; a profile's own filters
instead see what the ones before them kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import FilterError, InvalidInputError, ScoreError
from inferencesched.framework import CycleState, Explains, Filter, Reads, Scorer, reads_together, without_promise
from inferencesched.request import InferenceRequest

_TURNED: dict[str, Literal["lower", "higher", ""]] = {"lower": "higher", "higher": "lower", "": ""}


@dataclass(frozen=True, slots=True)
class Prefer:
    """Who does the filter keep, and everybody where it keeps nobody?

    For what is wanted but not at any price: ``Prefer(UtilizationFilter(...))`` avoids the busy while there are others. Reads
    what the filter reads. Which way is better is not promised, even where the filter does: what it says of the others
    may decide whether they all are kept.
    """

    wanted: Filter

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return without_promise(reads_together((self.wanted,)))

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: kept, or all."""
        keep = _kept(self.wanted, request, endpoints, cycle)
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return the filter's own words, where it has any."""
        if isinstance(self.wanted, Explains):
            return self.wanted.why_dropped(request, endpoints, cycle, position)
        return f"others pass {self.wanted!r}"


@dataclass(frozen=True, slots=True)
class AllOf:
    """Who passes every one of the filters?

    Reads what they read, together; better is what is better for all of them that read it.
    """

    filters: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _some(self.filters)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return reads_together(self.filters)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: kept by all."""
        keep = np.ones(len(endpoints), dtype=np.bool_)
        for plugin in self.filters:
            keep &= _kept(plugin, request, endpoints, cycle)
        return keep


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Who passes at least one of the filters?

    Reads what they read, together; better is what is better for all of them that read it.
    """

    filters: tuple[Filter, ...]

    def __post_init__(self) -> None:
        _some(self.filters)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return reads_together(self.filters)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: kept by any."""
        keep = np.zeros(len(endpoints), dtype=np.bool_)
        for plugin in self.filters:
            keep |= _kept(plugin, request, endpoints, cycle)
        return keep


@dataclass(frozen=True, slots=True)
class Not:
    """Who does not pass the filter?

    Reads what the filter reads; what is better for the filter is worse here. One that never keeps nobody may keep
    everybody, of whom nobody is left then.
    """

    refused: Filter

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return tuple(read._replace(better=_TURNED[read.better]) for read in reads_together((self.refused,)))

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: not kept."""
        return ~_kept(self.refused, request, endpoints, cycle)


@dataclass(frozen=True, slots=True)
class AtLeast:
    """Whose score is at least so much?

    Any scorer as a filter: ``Prefer(AtLeast(PrefixCacheScorer(), 0.8))`` sticks to who has most of the prompt. Reads what the
    scorer reads; better for the score is better here.
    """

    scorer: Scorer
    minimum: float

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= 1:
            raise InvalidInputError("minimum", self.minimum, "0 to 1")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return reads_together((self.scorer,))

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: the score is at least the minimum."""
        scores = self.scorer.score(request, endpoints, cycle)
        if not isinstance(scores, np.ndarray) or scores.shape != (len(endpoints),) or scores.dtype != np.float64:
            raise ScoreError(self.scorer, _what(scores), f"float64[{len(endpoints)}]")
        keep: BoolArray = scores >= self.minimum
        return keep


def _some(filters: Sequence[Filter]) -> None:
    if not filters:
        raise InvalidInputError("filters", filters, "at least one filter")


def _kept(plugin: Filter, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
    """Return what one filter keeps; `FilterError` names it if it does not answer ``bool[E]``."""
    keep = plugin.filter(request, endpoints, cycle)
    if not isinstance(keep, np.ndarray) or keep.dtype != np.bool_ or keep.shape != (len(endpoints),):
        raise FilterError(plugin, _what(keep), f"bool[{len(endpoints)}]")
    return keep


def _what(answer: object) -> str:
    return f"{answer.dtype}{list(answer.shape)}" if isinstance(answer, np.ndarray) else f"a {type(answer).__name__}"
