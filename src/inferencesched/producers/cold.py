"""Who got a prompt that nobody had cached, longest ago?

Cold prompts are the ones that fill caches. Sent to whoever got one longest ago, they spread over the pool, and what is
cached lasts longest. What `inferencesched.scorers.cold` scores by.
"""

import threading
from typing import NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.endpoints import PREFIX_MATCH, Endpoints, Signal
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Produced, Reads
from inferencesched.producers.tenancy import Tenancy
from inferencesched.request import InferenceRequest
from inferencesched.signals import COLD_RANK, of_producer


class ColdReceipt(NamedTuple):
    """Was the prompt cold, and who could have got it?"""

    cold: bool
    endpoints: Endpoints


@final
class NoHitLruProducer:
    """Who got a cold prompt, in which order?

    Fills ``COLD_RANK``: 0 for the endpoint that got one longest ago, -1 for those that never got one. Ranks are those
    of the whole pool, whoever of it is a candidate now. Reads ``PREFIX_MATCH`` (cycle): a prompt is cold where no
    candidate has any of it; an unknown match is none.

    Parameters
    ----------
    lru_size: how many endpoints are remembered; beyond, the one that got a cold prompt longest ago counts as one that
        never did.
    producer: whose ``PREFIX_MATCH`` is read, where several producers fill it.

    A cold prompt counts for the primary target and for those that compute it (`Scheduler`'s ``computing``), when it is
    booked. An endpoint that left is forgotten, and who gets its slot begins anew. Safe from any thread, for one pool.
    Cost: some 15 us at 100 endpoints.
    Source: llm-d router's ``no-hit-lru-scorer``, which notes what it scored: cold by the candidates that its own profile
    kept. Here a prompt is cold where none of all candidates has any of it, whatever filters keep of them.

    >>> from inferencesched.pool import InferencePool
    >>> pool, producer = InferencePool(), NoHitLruProducer()
    >>> pool.join("a"); pool.join("b")
    >>> request, cycle = InferenceRequest(request_id="1"), CycleState(0.0, np.random.default_rng(0), 0)
    >>> found = producer.produce(request, pool.snapshot(), cycle)
    >>> producer.commit(found.receipt, 1, now=0.0)
    >>> producer.produce(request, pool.snapshot(), cycle).columns[COLD_RANK]
    array([-1.,  0.])
    """

    def __init__(self, *, lru_size: int = 1024, producer: str = "") -> None:
        self.lru_size = whole_number("lru_size", lru_size, low=1)
        self.producer = producer
        self._match = of_producer(PREFIX_MATCH, producer)
        self._tenancy = Tenancy()
        self._stamps: IntArray = np.full(1, -1, dtype=np.int64)  # by slot: when, in cold prompts; -1 is never
        self._count = 0
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (COLD_RANK,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does it read?"""
        return (Reads(self._match, required=False),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[ColdReceipt]:
        """Return the ranks, and whether the prompt is cold."""
        cold = not any_hit(endpoints, self._match)
        members = endpoints.members
        with self._lock:
            everybody = self._stamps_of(members.slots, members.generations)
            here = self._stamps_of(endpoints.slots, endpoints.generations)
        ranks: FloatArray = np.searchsorted(np.sort(everybody[everybody >= 0]), here).astype(np.float64)
        ranks[here < 0] = -1.0
        return Produced({COLD_RANK: ranks}, ColdReceipt(cold, endpoints))

    def commit(self, receipt: ColdReceipt, slot: int, *, now: float) -> None:
        """Note that a cold prompt went to `slot`; of others nothing is noted."""
        if not receipt.cold:
            return
        with self._lock:
            for gone in self._tenancy.departed(receipt.endpoints):
                self._stamps[gone] = -1
            may, _ = self._tenancy.claim(slot, receipt.endpoints)
            if not may:
                return
            if len(self._tenancy) > len(self._stamps):
                more = len(self._tenancy) - len(self._stamps)
                self._stamps = np.concatenate([self._stamps, np.full(more, -1, dtype=np.int64)])
            self._stamps[slot] = self._count
            self._count += 1
            known = np.flatnonzero(self._stamps >= 0)
            if len(known) > self.lru_size:
                self._stamps[known[np.argmin(self._stamps[known])]] = -1

    def check(self) -> None:
        """Is what is remembered consistent? For tests: `AssertionError` where it is not."""
        known = self._stamps[self._stamps >= 0]
        assert len(known) <= self.lru_size
        assert len(set(known.tolist())) == len(known)
        assert (known < self._count).all()
        owners = [self._tenancy.owner(int(slot)) for slot in np.flatnonzero(self._stamps >= 0)]
        assert -1 not in owners
        assert len(set(owners)) == len(owners)

    def _stamps_of(self, slots: IntArray, generations: IntArray) -> IntArray:
        """Return when each of these stays got a cold prompt last, int64[E]."""
        owned = self._tenancy.owns(slots, generations)
        return np.where(owned, self._stamps[np.where(owned, slots, 0)], -1)


def any_hit(endpoints: Endpoints, match: Signal) -> bool:
    """Return whether any candidate has any of the prompt; a column that the pool does not have tells of none."""
    return match.name in endpoints.layout.rows and bool((endpoints[match] > 0.0).any())
