"""Which endpoint carries what a request header names?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class HeaderLabelAffinityScorer:
    """Whose label has the value that a request header names?

    1 where they are equal, else 0; 0 for all without the header or with an empty one. Header names are compared in small letters,
    values exactly. Reads labels, which are never stale, and the request. Source: llm-d router's
    ``header-label-affinity-scorer``. Errors: `InvalidInputError` for an empty name.

    >>> HeaderLabelAffinityScorer("X-Slice", "slice")
    HeaderLabelAffinityScorer(header='x-slice', label='slice')
    """

    header: str
    label: str

    def __post_init__(self) -> None:
        if not self.header:
            raise InvalidInputError("header", self.header, "the name of a header")
        if not self.label:
            raise InvalidInputError("label", self.label, "the key of a label")
        object.__setattr__(self, "header", self.header.lower())

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``, each 0 or 1."""
        asked = request.headers.get(self.header, "")
        if not asked:
            return np.zeros(len(endpoints), dtype=np.float64)
        return endpoints.label(self.label, asked).astype(np.float64)
