"""Whose value of a signal is best?"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import inverse_minmax, known, minmax
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class EndpointAttributeScorer:
    """Whose value of a signal is lowest, or highest?

    Linear in any `signal`, one of the pool's own or a gateway's. With a `fixed_range` (low, high), where in it the value lies,
    and values outside count as its ends; without one, where between the least and the largest known value of the candidates, 1
    for all where those are equal. An unknown value scores 0 and is left out of the range. Reads that signal, as stale as it is;
    `better` says which way.

    With the adaptive range, scores do not change when all values are scaled and shifted; with a fixed one, an endpoint's score
    does not depend on who else is there. Source: llm-d router's ``endpoint-attribute-scorer``.
    Errors: `InvalidInputError`; `UnknownNameError` when a pool lacks the signal.

    >>> from inferencesched import KV_CACHE_USAGE
    >>> EndpointAttributeScorer(KV_CACHE_USAGE, "lower", (0.0, 1.0)).better
    'lower'
    """

    signal: Signal
    better: Literal["lower", "higher"]
    fixed_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise UnknownNameError("better", self.better, ("lower", "higher"))
        if self.fixed_range is not None:
            low, high = self.fixed_range
            if not (low < high and high - low < np.inf):
                raise InvalidInputError("fixed_range", self.fixed_range, "two finite numbers with min < max")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which column, and which way is better?"""
        return (Reads(self.signal, self.better),)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        column = endpoints[self.signal]
        if self.fixed_range is None:
            return known(minmax(column) if self.better == "higher" else inverse_minmax(column))
        low, high = self.fixed_range
        place: FloatArray = np.clip((column - low) / (high - low), 0.0, 1.0)
        return known(place if self.better == "higher" else 1.0 - place)

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: whose value is known."""
        return ~np.isnan(endpoints[self.signal])
