"""Whom does a header allow?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.framework import CycleState
from inferencesched.request import InferenceRequest
from inferencesched.routing.candidates import within
from inferencesched.routing.headers import SUBSET


@dataclass(frozen=True, slots=True)
class SubsetScreener:
    """Whom does a request header allow? Addresses between commas, as a trusted proxy sets it; without the header everybody.

    For proxies that cannot send metadata; `Director.decide(subset=...)` is for those that can.
    """

    header: str = SUBSET

    def screen(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return who is named, ``bool[E]``."""
        said = request.headers.get(self.header)
        if said is None:
            return np.ones(len(endpoints), dtype=np.bool_)
        return within(endpoints, [name.strip() for name in said.split(",") if name.strip()])
