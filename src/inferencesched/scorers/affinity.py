"""Which endpoint already holds what the request needs?"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    LORA_ACTIVE,
    LORA_CAPACITY,
    LORA_WAITING,
    PREFIX_MATCH,
    PREFIX_TOKENS,
    Endpoints,
)
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState
from inferencesched.normalize import known, ratio
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class PrefixCacheScorer:
    """Who has most of this prompt's prefix cached?

    ``w * min(1, tokens / scale)**2 + (1 - w) * matched / total`` with w = `match_length_weight`; by default the
    plain share. Reads ``PREFIX_MATCH`` and ``PREFIX_TOKENS`` (cycle); higher is better, unknown is no match.
    Source: llm-d router's ``prefix-cache-scorer``.
    """

    match_length_weight: float = 0.0
    match_length_scale_tokens: float = 8192.0

    def __post_init__(self) -> None:
        if not 0 <= self.match_length_weight <= 1:
            raise InvalidInputError("match_length_weight", self.match_length_weight, "0 to 1")
        if not self.match_length_scale_tokens > 0 and self.match_length_weight > 0:
            raise InvalidInputError("match_length_scale_tokens", self.match_length_scale_tokens, "a number above 0")

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        share = known(endpoints[PREFIX_MATCH])
        weight = self.match_length_weight
        if weight == 0.0:
            return share
        reach = known(ratio(endpoints[PREFIX_TOKENS], self.match_length_scale_tokens))
        return weight * (reach * reach) + (1.0 - weight) * share


@dataclass(frozen=True, slots=True)
class LoraAffinityScorer:
    """Who runs this LoRA adapter, or has room for it?

    1.0 running; else 0.8 where running plus waiting adapters are fewer than the capacity; else 0.6 where it waits
    already; else 0. Tested in this order. Reads adapter residency, ``LORA_ACTIVE``, ``LORA_WAITING`` and
    ``LORA_CAPACITY`` (scraped); higher is better, and a server that reports no LoRA scores 0. A request for the
    base model is looked up like an adapter, as the reference does.
    """

    running: float = 1.0
    room: float = 0.8
    waiting: float = 0.6
    full: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidInputError(name, value, "0 to 1")

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        name = request.adapter_name
        resident = endpoints[LORA_ACTIVE]
        has_room = resident + endpoints[LORA_WAITING] < endpoints[LORA_CAPACITY]
        # a stale report of residency is blanked with the other scraped columns: unknown is not "running"
        reported = resident == resident
        scores = np.where(has_room, self.room, np.where(endpoints.awaits(name) & reported, self.waiting, self.full))
        return np.where(endpoints.hosts(name) & reported, self.running, scores)
