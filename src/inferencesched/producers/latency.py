"""Will the request's objectives be met on each endpoint? Predicted latency as columns, learnt from how requests end."""

from collections.abc import Mapping
from math import isfinite, nan
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_CACHE_USAGE,
    PREFIX_TOKENS,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Endpoints,
    Signal,
)
from inferencesched.errors import InvalidInputError, UnreadableHeaderError
from inferencesched.framework import CycleState, Produced, Reads, SchedulingResult
from inferencesched.producers.forecast import (
    PREFILL_ROLE,
    LatencyOutcome,
    LatencyPrediction,
    LatencyPredictor,
    features_of,
)
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement
from inferencesched.signals import (
    PREDICTED_TPOT,
    PREDICTED_TTFT,
    TPOT_HEADROOM,
    TTFT_HEADROOM,
    of_producer,
)

_TTFT_HEADERS: Final = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
_TPOT_HEADERS: Final = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")
_COLUMNS: Final = (PREDICTED_TTFT, PREDICTED_TPOT, TTFT_HEADROOM, TPOT_HEADROOM)


class Objectives(NamedTuple):
    """How soon should the first token come, and each one after it? Seconds; None is no objective."""

    ttft: float | None = None
    tpot: float | None = None


def objectives_of(headers: Mapping[str, str]) -> Objectives:
    """Which objectives do a request's headers name, in milliseconds?

    ``x-llm-d-slo-ttft-ms`` and ``x-llm-d-slo-tpot-ms``, else ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``; names are in lower
    case. 0 and a header that is empty are no objective. Errors: `UnreadableHeaderError` (400, and an `InvalidInputError`) for
    anything but a number of at least 0.

    >>> objectives_of({"x-llm-d-slo-ttft-ms": "250", "x-slo-tpot-ms": "30"})
    Objectives(ttft=0.25, tpot=0.03)
    """
    return Objectives(_seconds(headers, _TTFT_HEADERS), _seconds(headers, _TPOT_HEADERS))


def _seconds(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        said = headers.get(name, "").strip()
        if said:
            try:
                value = float(said)
            except ValueError as error:
                raise UnreadableHeaderError(name, said, "milliseconds, a number of at least 0") from error
            if not (isfinite(value) and value >= 0):
                raise UnreadableHeaderError(name, said, "milliseconds, a number of at least 0")
            return value / 1e3 or None
    return None


def headrooms(
    prediction: LatencyPrediction,
    objectives: Objectives,
    *,
    streaming: bool = True,
    buffer: float = 1.0,
    least_tpot: FloatArray | float = nan,
) -> LatencyPrediction:
    """How far below its objective is each prediction? The objective is met where the headroom is above 0.

    Time to first token: objective less prediction. Time per output token: the objective times `buffer` less the
    prediction; the strictest objective of those who run there already, `least_tpot` (NaN: nobody has one), counts where it
    is the stricter one. Without streaming nobody sees tokens come, and it is 0. No objective is one of 0, which nobody
    meets and by which endpoints can be ranked all the same. Source: llm-d router's ``predicted-latency-producer``.

    >>> now = LatencyPrediction(np.array([0.05, 0.15]), np.array([0.025, 0.025]))
    >>> headrooms(now, Objectives(0.1, 0.03), least_tpot=0.02).ttft.round(3)
    array([ 0.05, -0.05])
    >>> headrooms(now, Objectives(0.1, 0.03), least_tpot=0.02).tpot.round(3)
    array([-0.005, -0.005])
    """
    ttft = (objectives.ttft or 0.0) - prediction.ttft
    if not streaming:
        return LatencyPrediction(ttft, np.where(np.isnan(ttft), nan, 0.0))
    limit = np.fmin((objectives.tpot or 0.0) * buffer, np.asarray(least_tpot) * buffer)
    return LatencyPrediction(ttft, limit - prediction.tpot)


class LatencyReceipt(NamedTuple):
    """What has to be remembered of a request that is sent, to learn from it when it ends?"""

    request_id: str
    endpoints: Endpoints
    features: FloatArray
    tpot: float | None

    def features_at(self, slot: int, endpoint: str) -> FloatArray | None:
        """Return what was known of the endpoint of this slot and name, ``float64[F]``; None where it was no candidate."""
        found = np.flatnonzero(self.endpoints.slots == slot)
        if not len(found) or self.endpoints.name(int(found[0])) != endpoint:
            return None
        return self.features[:, found[0]]


@final
class PredictedLatencyProducer:
    """What latency would the request see on each endpoint, and how does that compare with its objectives?

    Fills ``PREDICTED_TTFT`` and ``PREDICTED_TPOT``, and ``TTFT_HEADROOM`` and ``TPOT_HEADROOM`` (`headrooms`), seconds;
    NaN where the predictor knows nothing. The objectives are the request's ``slo_ttft`` and ``slo_tpot``, or its headers'
    (`objectives_of`). Learns from every reservation that ends: time to first token, and time per output token of
    a completed answer of at least two tokens. It also remembers the strictest ``slo_tpot`` of those who run on each endpoint.

    Parameters
    ----------
    predictor: who foretells, and learns: `OnlineLatencyPredictor`, `StepTimePredictor`, or any `LatencyPredictor`.
    slo_buffer_factor: by which time-per-token objectives are multiplied.
    streaming: whether tokens are sent as they come. Without, headroom per token is 0, and an answer whose first token
        nobody saw has the time to its end as time to first token.
    endpoint_role_label: the label whose value "prefill" says that an endpoint only computes prompts: its headroom per token
        is 0.
    predict: False only learns; every column is unknown then.
    prefix_producer: which of several producers of ``PREFIX_TOKENS``.

    Reads what `features_of` reads. ``INFLIGHT_TOKENS`` should be the pool's own: an `InflightLoadProducer` that adds output
    to it belongs behind this one. Source: llm-d router's ``predicted-latency-producer``, whose predictor is
    a service. Errors: `UnreadableHeaderError` (400) for a header that is no number. Cost: 20 us at 64 endpoints and the predictor's.
    """

    def __init__(
        self,
        predictor: LatencyPredictor,
        *,
        slo_buffer_factor: float = 1.0,
        streaming: bool = False,
        endpoint_role_label: str = "",
        predict: bool = True,
        prefix_producer: str = "",
    ) -> None:
        if not (isfinite(slo_buffer_factor) and slo_buffer_factor > 0):
            raise InvalidInputError("slo_buffer_factor", slo_buffer_factor, "a finite number above 0")
        self.predictor = predictor
        self.slo_buffer_factor = slo_buffer_factor
        self.streaming = streaming
        self.endpoint_role_label = endpoint_role_label
        self.predict = predict
        self.prefix_producer = prefix_producer
        # stay -> objectives per token of those who run there; replaced as a whole, for readers without the lock
        self._running: dict[tuple[int, int], tuple[float, ...]] = {}
        # by receipt with such an objective, which is held so that no other has its id: the stay of each time it was booked
        self._booked: dict[int, tuple[LatencyReceipt, list[tuple[int, int]]]] = {}

    def __repr__(self) -> str:
        return f"PredictedLatencyProducer({self.predictor!r}, streaming={self.streaming})"

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return _COLUMNS

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        local = (INFLIGHT_TOKENS, INFLIGHT_REQUESTS, CONTEXT_TOKENS)
        scraped = (WAITING_QUEUE_SIZE, RUNNING_REQUESTS, KV_CACHE_USAGE)
        prefix = Reads(of_producer(PREFIX_TOKENS, self.prefix_producer), required=bool(self.prefix_producer))
        return (prefix, *(Reads(signal, required=False) for signal in (*local, *scraped)))

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[LatencyReceipt]:
        """Return the columns, and what `settled` learns from."""
        features = features_of(
            request, endpoints, prefix_producer=self.prefix_producer, role_label=self.endpoint_role_label
        )
        said = Objectives(request.slo_ttft, request.slo_tpot)
        if None in said and request.headers:
            asked = objectives_of(request.headers)
            said = Objectives(said.ttft or asked.ttft, said.tpot or asked.tpot)
        receipt = LatencyReceipt(request.request_id, endpoints, features, said.tpot)
        if not self.predict:
            nothing = np.full(len(endpoints), nan)
            return Produced(dict.fromkeys(_COLUMNS, nothing), receipt)
        prediction = self.predictor.predict(features)
        least = self._least_tpot(endpoints) if self._running else nan
        room = headrooms(prediction, said, streaming=self.streaming, buffer=self.slo_buffer_factor, least_tpot=least)
        tpot = room.tpot
        if self.streaming and self.endpoint_role_label:
            tpot = np.where((features[PREFILL_ROLE] > 0) & ~np.isnan(room.ttft), 0.0, tpot)
        return Produced(dict(zip(_COLUMNS, (prediction.ttft, prediction.tpot, room.ttft, tpot), strict=True)), receipt)

    def commit(self, receipt: LatencyReceipt, slot: int, *, now: float) -> None:
        """Nothing yet: `decided` says who answers."""

    def decided(self, receipt: LatencyReceipt, result: SchedulingResult, *, now: float) -> None:
        """Remember the objective per token where the primary profile sent the request."""
        if receipt.tpot is not None:
            stay = (result.target.slot, result.target.generation)
            self._running[stay] = (*self._running.get(stay, ()), receipt.tpot)
            self._booked.setdefault(id(receipt), (receipt, []))[1].append(stay)

    def settled(self, receipt: LatencyReceipt, settlement: Settlement, slot: int) -> None:
        """Learn how it went, and forget its objective."""
        self._release(receipt)
        features = receipt.features_at(slot, settlement.endpoint)
        if features is not None:
            self.predictor.observe(features, outcome_of(settlement, streaming=self.streaming))

    def _release(self, receipt: LatencyReceipt) -> None:
        _, stays = self._booked.get(id(receipt), (receipt, []))
        if not stays or receipt.tpot is None:
            return
        stay = stays.pop()
        if not stays:
            del self._booked[id(receipt)]
        there = self._running[stay]
        place = there.index(receipt.tpot)
        if len(there) > 1:
            self._running[stay] = there[:place] + there[place + 1 :]
        else:
            del self._running[stay]

    def _least_tpot(self, endpoints: Endpoints) -> FloatArray:
        """Return the strictest objective per token of those who run on each endpoint, ``float64[E]``; NaN for none."""
        running = self._running.copy()
        least = np.full(len(endpoints), nan)
        for i in range(len(endpoints)):
            there = running.get(endpoints.stay(i))
            if there:
                least[i] = min(there)
        return least


def outcome_of(settlement: Settlement, *, streaming: bool = True) -> LatencyOutcome:
    """How long did the first token of a request take, and each one after it? Seconds; NaN where that cannot be told.

    Without streaming, a completed answer whose first token nobody saw took until its end.
    """
    completed = settlement.outcome == "completed"
    usage = settlement.usage
    first, end = settlement.first_token_at, settlement.settled_at
    if first != first and completed and not streaming:
        return LatencyOutcome(end - settlement.reserved_at, nan)
    told = None if usage is None else usage.output_tokens
    tokens = settlement.output_tokens if told is None else told
    tpot = (end - first) / (tokens - 1) if completed and tokens >= 2 else nan
    return LatencyOutcome(first - settlement.reserved_at, tpot)
