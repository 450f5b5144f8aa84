"""Which endpoint has this conversation already?"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest
from inferencesched.sessions import EncodedEndpoint, SessionStrategy


@dataclass(frozen=True, slots=True)
class SessionAffinityFilter:
    """Is this the endpoint that the request's session is bound to?

    Only that one is kept, if it is a candidate; else all are: it never empties the set. How a session is known is the
    `strategy`'s: a token that names the endpoint (`EncodedEndpoint`), or a producer's memory (`BoundSession`); what each reads
    is never stale. Use `SessionAffinityScorer` where load should be able to outvote a session.
    Source: llm-d router's ``session-affinity-filter`` and ``multicluster-session-affinity-filter``.

    >>> from inferencesched import CycleState, InferencePool, InferenceRequest
    >>> from inferencesched.sessions import session_token
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> request = InferenceRequest(request_id="r", headers={"x-session-token": session_token("b")})
    >>> SessionAffinityFilter().filter(request, pool.snapshot(), CycleState(0.0, np.random.default_rng(0), 0))
    array([False,  True])
    """

    strategy: SessionStrategy = field(default_factory=EncodedEndpoint)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? The strategy's."""
        return self.strategy.reads

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``, never all False."""
        keep: BoolArray = self.strategy.bound(request, endpoints) == 1.0
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)
