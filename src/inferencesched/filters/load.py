"""Which endpoints are not overloaded?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class UtilizationFilter:
    """Is the endpoint below every limit?

    All values must be at or below their maximum. Unknown is not below a limit, so an endpoint with an unknown value is
    dropped. With `fallback_on_empty`, all are kept when none passes. Reads the signals of its limits, as stale as those
    are; lower is better. Source: llm-d router's ``utilization-filter``, where unknown is 0.

    >>> from inferencesched.endpoints import WAITING_QUEUE_SIZE
    >>> UtilizationFilter(((WAITING_QUEUE_SIZE, 5.0),))
    UtilizationFilter(limits=((Signal('waiting_queue_size'), 5.0),), fallback_on_empty=False)
    """

    limits: tuple[tuple[Signal, float], ...]
    fallback_on_empty: bool = False

    def __post_init__(self) -> None:
        if not self.limits:
            raise InvalidInputError("limits", self.limits, "at least one (signal, maximum)")
        for signal, maximum in self.limits:
            if not signal.low <= maximum <= signal.high:
                raise InvalidInputError(f"limits[{signal.name}]", maximum, f"{signal.low} to {signal.high}")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return tuple(Reads(signal, "lower") for signal, _ in self.limits)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: known and at most the maximum, in every limit."""
        keep = np.ones(len(endpoints), dtype=np.bool_)
        for signal, maximum in self.limits:
            keep &= endpoints[signal] <= maximum
        if self.fallback_on_empty and not keep.any():
            keep[:] = True
        return keep
