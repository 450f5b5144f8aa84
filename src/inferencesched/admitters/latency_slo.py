"""Which sheddable requests are turned away because nobody would be in time?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import KV_CACHE_USAGE, RUNNING_REQUESTS, Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Denial, Reads
from inferencesched.producers.latency import objectives_of
from inferencesched.request import InferenceRequest
from inferencesched.signals import TPOT_HEADROOM, TTFT_HEADROOM, of_producer


@dataclass(frozen=True, slots=True)
class LatencySloAdmitter:
    """Which sheddable requests are turned away because nobody would be in time?

    Only those below priority 0 that name an objective (`objectives_of` their headers, or ``slo_ttft`` and ``slo_tpot``), and only if
    predictions are there, none is within its objectives, no endpoint is idle (nothing runs) and none is cold (less than `cold_kv` of its
    cache in use). What is unknown turns nobody away. `producer` names whose predictions count. Source: llm-d router's
    ``latency-slo-admitter``.
    """

    cold_kv: float = 0.02
    producer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.cold_kv <= 1:
            raise InvalidInputError("cold_kv", self.cold_kv, "a fraction of 0 to 1")

    @property
    def _columns(self) -> tuple[Signal, Signal]:
        return of_producer(TTFT_HEADROOM, self.producer), of_producer(TPOT_HEADROOM, self.producer)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does it go by?"""
        ttft, tpot = self._columns
        return (
            Reads(ttft, required=False),
            Reads(tpot, required=False),
            Reads(RUNNING_REQUESTS),
            Reads(KV_CACHE_USAGE),
        )

    def admit(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Denial | None:
        """Return why not, or None."""
        if request.priority >= 0 or not len(endpoints):
            return None
        named = objectives_of(request.headers)
        if not (named.ttft or named.tpot or request.slo_ttft or request.slo_tpot):
            return None
        names = {signal.name for signal in endpoints.layout.signals}
        ttft, tpot = self._columns
        if ttft.name not in names or tpot.name not in names:
            return None
        room, pace = endpoints[ttft], endpoints[tpot]
        predicted: BoolArray = ~(np.isnan(room) | np.isnan(pace))
        if not predicted.any() or (predicted & (room > 0) & (pace >= 0)).any():
            return None
        if (endpoints[RUNNING_REQUESTS] == 0).any() or (endpoints[KV_CACHE_USAGE] < self.cold_kv).any():
            return None
        return Denial("sheddable, and no server would meet its objectives")
