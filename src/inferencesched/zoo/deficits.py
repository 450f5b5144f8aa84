"""Whose turn is it on which server, if every client gets its share and prefixes stay where they are? D2LPM's global part."""

import threading
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Produced, Reads
from inferencesched.normalize import known, minmax
from inferencesched.request import InferenceRequest
from inferencesched.zoo.costs import uncached

#: How many tokens a client may still send to a server before it has to spread.
DEFICIT: Final = Signal("deficit", "tokens", freshness="cycle", low=-float("inf"))


class DeficitReceipt(NamedTuple):
    """Whose request is it, and what would it take of each server?"""

    client: str
    endpoints: Endpoints
    missed: FloatArray
    refilled: FloatArray


@final
class DeficitProducer:
    """How much may this client still send to each server?

    A counter for each client and server, filled up by `quantum` tokens on all servers at once when none is above 0, and charged with
    the prompt tokens that a server has to compute. A client is a request's ``fairness_id``. Fills ``DEFICIT``, after filling up.
    Source: Cao et al., "Locality-aware Fair Scheduling in LLM Serving" (arXiv 2501.14312), D2LPM: the router's counters.
    Safe from any thread.
    """

    def __init__(self, *, quantum: float = 16_384.0) -> None:
        if not quantum > 0:
            raise InvalidInputError("quantum", quantum, "a number above 0")
        self.quantum: Final = quantum
        self._left: dict[str, dict[tuple[int, int], float]] = {}
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (DEFICIT,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(PREFIX_TOKENS, "higher", required=False),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[DeficitReceipt]:
        """Return the column; nothing is filled up or charged before `commit`."""
        stays = list(zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True))
        with self._lock:
            left = self._left.get(request.fairness_id, {})
            column = np.array([left.get(stay, self.quantum) for stay in stays])
        if column.max() <= 0:
            column += self.quantum * (np.floor(-column.max() / self.quantum) + 1.0)
        return Produced(
            {DEFICIT: column}, DeficitReceipt(request.fairness_id, endpoints, uncached(request, endpoints), column)
        )

    def commit(self, receipt: DeficitReceipt, slot: int, *, now: float) -> None:
        """Charge the client on the server it went to."""
        endpoints = receipt.endpoints
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        with self._lock:
            left = self._left.setdefault(receipt.client, {})
            left.update(zip(stays, receipt.refilled.tolist(), strict=True))
            position = endpoints.slots.tolist().index(slot)
            left[endpoints.stay(position)] -= float(receipt.missed[position])


@dataclass(frozen=True, slots=True)
class DeficitPrefixScorer:
    """Who has most of the prompt, of those on which the client has something left? Of several, where it has most left.

    Source: as `DeficitProducer`.
    """

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(PREFIX_TOKENS), Reads(DEFICIT))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        cached, left = known(endpoints[PREFIX_TOKENS]), endpoints[DEFICIT]
        may = left > 0
        if not may.any():
            may = np.ones(len(endpoints), dtype=np.bool_)
        best = may & (cached == cached[may].max())
        return np.where(best, 0.5 + 0.5 * known(minmax(np.where(best, left, np.nan))), 0.0)
