"""Which endpoints does a key belong to?"""

from dataclasses import dataclass, field

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import CAPACITY_WEIGHT, INFLIGHT_REQUESTS, Endpoints
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Reads
from inferencesched.placement import RequestKey, check_balance, has_room, preference
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class RendezvousFilter:
    """Which few endpoints does this request's key belong to, in every gateway alike?

    Keeps the first `replicas` in the key's order (`inferencesched.placement.preference`): ``-w / ln(u)``, the greatest
    first. When an endpoint leaves, only the keys that had it move, and each to the next in its order; when one joins,
    it takes its share and no other key moves. Never keeps nobody; a request without the key keeps all.

    Parameters
    ----------
    key: by what requests are kept together.
    replicas: how many endpoints share a key: 1 is strictest; a LoRA adapter that is asked for often wants more.
    weighted: whether ``CAPACITY_WEIGHT`` (static; higher is better, unknown is 1) decides how many keys each gets.

    Put it behind the filters that say who can serve at all: the key then falls to the next who can.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> for name in ("a", "b", "c"):
    ...     pool.join(name)
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> request = InferenceRequest(request_id="r-1", session_id="s-5")
    >>> RendezvousFilter().filter(request, pool.snapshot(), cycle)
    array([ True, False, False])
    """

    key: RequestKey = field(default_factory=RequestKey)
    replicas: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        whole_number("replicas", self.replicas, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        return (Reads(CAPACITY_WEIGHT, "higher", required=False),) if self.weighted else ()

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: the key's own, all for a request without one."""
        key = self.key.of(request)
        if key is None:
            return np.ones(len(endpoints), dtype=np.bool_)
        keep = np.zeros(len(endpoints), dtype=np.bool_)
        keep[preference(key, endpoints, weighted=self.weighted)[: self.replicas]] = True
        return keep


@dataclass(frozen=True, slots=True)
class BoundedLoadFilter:
    """Which endpoint does a key belong to, while nobody carries much more than its share?

    Consistent hashing with bounded loads: keeps the first `replicas` in the key's order among those who have room, which
    is to say whose ``INFLIGHT_REQUESTS`` (local, never stale; lower is better) are below ``(1 + balance) * w / sum(w)`` of
    all in flight and this request. A hot key runs over to the next in its own order, always the same, and comes back
    when there is room. Never keeps nobody; a request without the key keeps all who have room.

    Parameters
    ----------
    key: by what requests are kept together.
    balance: how much above its share an endpoint may carry: 0.25 is a quarter. Small moves more requests away from
        their key's endpoint, great lets hot spots grow.
    replicas: how many of those with room are kept.
    weighted: whether ``CAPACITY_WEIGHT`` (static; higher is better, unknown is 1) is each one's share.

    Source: Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2016), with each key's own
    rendezvous order in place of the next on a ring, so that what one endpoint cannot take is spread over all others: the
    cascades of Chen, Coleman and Shrivastava, "Revisiting Consistent Hashing with Bounded Loads" (2021).
    """

    key: RequestKey = field(default_factory=RequestKey)
    balance: float = 0.25
    replicas: int = 1
    weighted: bool = True

    def __post_init__(self) -> None:
        check_balance(self.balance)
        whole_number("replicas", self.replicas, low=1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        load = Reads(INFLIGHT_REQUESTS, "lower")
        return (load, Reads(CAPACITY_WEIGHT, "higher", required=False)) if self.weighted else (load,)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: the first in the key's order that have room."""
        room = has_room(endpoints, self.balance, weighted=self.weighted)
        key = self.key.of(request)
        if key is None:
            return room
        order = preference(key, endpoints, weighted=self.weighted)
        keep = np.zeros(len(endpoints), dtype=np.bool_)
        keep[order[room[order]][: self.replicas]] = True
        return keep
