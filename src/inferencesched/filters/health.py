"""Who is not ejected?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest
from inferencesched.signals import HEALTH


@dataclass(frozen=True, slots=True)
class HealthFilter:
    """Who is healthy enough to be sent a request?

    Keeps those whose ``HEALTH`` (cycle, of `inferencesched.producers.outlier.OutlierProducer`; higher is better) is at least
    `minimum`, and those of whom nothing is known. By default that is who is healthy and who is on trial with room for
    one more request; a minimum of 1 keeps no trials, so that nobody who was ejected comes back. Where nobody is left, all
    are kept: an answer that may fail is better than none, and if everybody fails the fault is elsewhere.
    """

    minimum: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= 1:
            raise InvalidInputError("minimum", self.minimum, "above 0, at most 1")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(HEALTH, "higher"),)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: healthy enough, all where nobody is."""
        keep: BoolArray = ~(endpoints[HEALTH] < self.minimum)
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return its health."""
        health = float(endpoints[HEALTH][position])
        return f"health {health:g}, less than {self.minimum:g}"
