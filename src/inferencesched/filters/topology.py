"""Which endpoints are near enough to the one that this request works with?"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest
from inferencesched.topology import AFFINITIES, Affinity, TopologyLabels, affinities, affinity, peer_of


@dataclass(frozen=True, slots=True)
class TopologyAffinityFilter:
    """Is the endpoint on the same host, rack, zone or region as the request's peer?

    The peer is the endpoint of an earlier stage (``cycle.peer``): the decode server, while a prefill server is chosen. Kept is
    who shares `min_affinity` with it or something nearer. A preference, not a rule: without a peer, or where nobody is near
    enough, all are kept. Reads labels only (`labels` names them), which are never stale; a level without a name matches nobody.
    `peer_header` names a request header that tells where a peer of another pool is (``host=h1,rack=r1``).
    Source: llm-d router's ``topology-affinity-filter``. Errors: `UnknownNameError` for another level.

    >>> TopologyAffinityFilter("zone").min_affinity
    'zone'
    """

    min_affinity: Affinity = "host"
    labels: TopologyLabels = field(default_factory=TopologyLabels)
    peer_header: str = ""

    def __post_init__(self) -> None:
        affinity(self.min_affinity)
        object.__setattr__(self, "peer_header", self.peer_header.strip().lower())

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``, never all False."""
        peer = peer_of(request, endpoints, cycle.peer, self.labels, self.peer_header)
        keep: BoolArray = affinities(endpoints, peer, self.labels) <= AFFINITIES.index(self.min_affinity)
        return keep if keep.any() else np.ones(len(endpoints), dtype=np.bool_)
