"""Where did a burst's joint plan put this request?

`inferencesched.assigners.BurstAssigner` decides by itself; this tells scorers of its plan instead, beside what else they weigh.
"""

import threading
from collections.abc import Sequence
from typing import Final, final

import numpy as np

from inferencesched.assigners.burst import BurstAssigner
from inferencesched.endpoints import PREFIX_MATCH, PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.request import InferenceRequest


@final
class BurstPrefixProducer:
    """Which endpoint should hold this request's prompt once its burst has been sent?

    The caller gathers requests for a while, calls `plan` with them and the snapshot, and then schedules each. Fills
    ``PREFIX_MATCH``: 1 where the plan put the request, 0 elsewhere, and 0 everywhere for a request that is in no plan or
    shares nothing; and there ``PREFIX_TOKENS``: what of the prompt the requests planned before it bring there, in tokens.
    Beside a producer of what is cached by now it needs a name of its own (`named_producer`), for the scorer that reads it.

    Parameters
    ----------
    assigner: how a burst is put together.
    window: how long the caller should gather, seconds, above 0 and at most 10; nothing here waits.
    max_batch_size: how many requests one plan may have.

    A plan is remembered until the request is booked, those of the last ``2 * max_batch_size`` requests at most. Safe from
    any thread. Cost: `produce` some 3 us.
    Source: llm-d router's ``burst-prefix-cache-producer``, which holds requests back itself.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> burst = [InferenceRequest(request_id=str(i), tokens=np.arange(8, dtype=np.uint32)) for i in range(3)]
    >>> producer = BurstPrefixProducer(BurstAssigner(max_per_replica=2))
    >>> producer.plan(burst, pool.snapshot())
    3
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> [producer.produce(each, pool.snapshot(), cycle).columns[PREFIX_MATCH].tolist() for each in burst]
    [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self, assigner: BurstAssigner | None = None, *, window: float = 0.1, max_batch_size: int = 1000
    ) -> None:
        if not 0.0 < window <= 10.0:
            raise InvalidInputError("window", window, "seconds above 0, at most 10")
        self.assigner: Final = BurstAssigner() if assigner is None else assigner
        self.window: Final = window
        self.max_batch_size: Final = whole_number("max_batch_size", max_batch_size, low=1)
        self._plans: dict[str, tuple[int, int]] = {}  # by request: the stay of its endpoint, and tokens
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (PREFIX_MATCH, PREFIX_TOKENS)

    def plan(self, requests: Sequence[InferenceRequest], endpoints: Endpoints) -> int:
        """Plan a burst together; return how many of its requests have an endpoint now.

        A request that is planned again loses its old plan. Errors: `InvalidInputError` for more requests than
        `max_batch_size`; then nothing is planned.
        """
        if len(requests) > self.max_batch_size:
            raise InvalidInputError("requests", len(requests), f"at most max_batch_size = {self.max_batch_size}")
        places = self.assigner.place(requests, endpoints)
        found = 0
        with self._lock:
            for request, place in zip(requests, places, strict=True):
                self._plans.pop(request.request_id, None)
                if place is not None:
                    tokens = place.shared * self.assigner.block_size
                    self._plans[request.request_id] = (endpoints.stay(place.position)[1], tokens)
                    found += 1
            while len(self._plans) > 2 * self.max_batch_size:
                del self._plans[next(iter(self._plans))]
        return found

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[str]:
        """Return both columns; the receipt is the request's id."""
        with self._lock:
            generation, tokens = self._plans.get(request.request_id, (-1, 0))
        match = (endpoints.generations == generation).astype(np.float64)
        return Produced({PREFIX_MATCH: match, PREFIX_TOKENS: match * tokens}, request.request_id)

    def commit(self, receipt: str, slot: int, *, now: float) -> None:
        """Forget the plan: the request is on its way."""
        with self._lock:
            self._plans.pop(receipt, None)

    def check(self) -> None:
        """Is what is remembered bounded? For tests: `AssertionError` where it is not."""
        assert len(self._plans) <= 2 * self.max_batch_size
        assert all(generation > 0 for generation, _ in self._plans.values())
