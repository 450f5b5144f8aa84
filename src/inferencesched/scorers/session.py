"""Which endpoint has this conversation already?"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.sessions import EncodedEndpoint, SessionStrategy


@dataclass(frozen=True, slots=True)
class SessionAffinityScorer:
    """Who is the request's session bound to?

    1 there and 0 elsewhere; 0 for all where the session is unknown, or its endpoint no candidate. How a session is known is the
    `strategy`'s: a token that names the endpoint (`EncodedEndpoint`), or a producer's memory (`BoundSession`); what each reads
    is never stale, and being bound is better. Source: llm-d router's ``session-affinity-scorer``.
    """

    strategy: SessionStrategy = field(default_factory=EncodedEndpoint)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? The strategy's."""
        return self.strategy.reads

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``, each 0 or 1."""
        return known(self.strategy.bound(request, endpoints))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: all True where the request belongs to a session that somebody is known to have."""
        return ~np.isnan(self.strategy.bound(request, endpoints))
