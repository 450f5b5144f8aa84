"""Which endpoint is nearest to the one that this request works with?"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest
from inferencesched.topology import TopologyLabels, affinities, peer_of


@dataclass(frozen=True, slots=True)
class TopologyAffinityScorer:
    """Who is nearest to the request's peer?

    `host`, `rack`, `zone` or `region` for the nearest of them that both share, else 0; 0 for all without a peer. The peer is the
    endpoint of an earlier stage (``cycle.peer``): a KV cache has to travel between the two. The defaults follow the bandwidth of
    each step, not its number. Reads labels only (`labels` names them), which are never stale; nearer is better.
    `peer_header` names a request header that tells where a peer of another pool is (``host=h1,rack=r1``).
    Source: llm-d router's ``topology-affinity-scorer``. Errors: `InvalidInputError` for values that are not in [0, 1] or rise
    with the distance.
    """

    host: float = 1.0
    rack: float = 0.2
    zone: float = 0.05
    region: float = 0.02
    labels: TopologyLabels = field(default_factory=TopologyLabels)
    peer_header: str = ""

    def __post_init__(self) -> None:
        nearer = 1.0
        for name, value in zip(("host", "rack", "zone", "region"), self._table[:-1], strict=True):
            if not 0.0 <= value <= nearer:
                raise InvalidInputError(name, value, f"0 to {nearer}: what is farther is not worth more")
            nearer = value
        object.__setattr__(self, "peer_header", self.peer_header.strip().lower())

    @property
    def _table(self) -> tuple[float, ...]:
        return (self.host, self.rack, self.zone, self.region, 0.0)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        peer = peer_of(request, endpoints, cycle.peer, self.labels, self.peer_header)
        table: FloatArray = np.array(self._table, dtype=np.float64)
        return table[affinities(endpoints, peer, self.labels)]
