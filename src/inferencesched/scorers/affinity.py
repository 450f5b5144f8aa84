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
from inferencesched.framework import CycleState, Reads
from inferencesched.normalize import known, ratio
from inferencesched.request import InferenceRequest
from inferencesched.signals import of_producer


@dataclass(frozen=True, slots=True)
class PrefixCacheScorer:
    """Who has most of this prompt's prefix cached?

    ``w * min(1, tokens / scale)**2 + (1 - w) * matched / total`` with w = `match_length_weight`; by default the
    plain share. Reads ``PREFIX_MATCH`` and ``PREFIX_TOKENS`` (cycle); higher is better, unknown is no match. `producer`
    names one of several producers of both (`of_producer`). Source: llm-d router's ``prefix-cache-scorer``.
    """

    match_length_weight: float = 0.0
    match_length_scale_tokens: float = 8192.0
    producer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.match_length_weight <= 1:
            raise InvalidInputError("match_length_weight", self.match_length_weight, "0 to 1")
        if not self.match_length_scale_tokens > 0 and self.match_length_weight > 0:
            raise InvalidInputError("match_length_scale_tokens", self.match_length_scale_tokens, "a number above 0")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? The tokens only where their weight is above 0."""
        share, tokens = of_producer(PREFIX_MATCH, self.producer), of_producer(PREFIX_TOKENS, self.producer)
        length = (Reads(tokens, "higher"),) if self.match_length_weight else ()
        return (Reads(share, "higher"), *length)

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        share = known(endpoints[of_producer(PREFIX_MATCH, self.producer)])
        weight = self.match_length_weight
        if weight == 0.0:
            return share
        reach = known(ratio(endpoints[of_producer(PREFIX_TOKENS, self.producer)], self.match_length_scale_tokens))
        return weight * (reach * reach) + (1.0 - weight) * share


@dataclass(frozen=True, slots=True)
class LoraAffinityScorer:
    """Who runs this LoRA adapter, or has room for it?

    1.0 running; else 0.8 where running plus waiting adapters are fewer than the capacity; else 0.6 where it waits
    already; else 0. Tested in this order. Reads adapter residency, ``LORA_ACTIVE``, ``LORA_WAITING`` (lower is better)
    and ``LORA_CAPACITY`` (higher), all scraped; a server that reports no LoRA scores 0. A request for the base model is
    looked up like an adapter, as the reference does.

    vLLM lists an adapter that runs and waits in both places, so that by default one that does counts twice; with
    `distinct` it counts once (llm-d router, pull request 2625). What is loaded without a request is another matter:
    `LoraResidencyScorer`.
    """

    running: float = 1.0
    room: float = 0.8
    waiting: float = 0.6
    full: float = 0.0
    distinct: bool = False

    def __post_init__(self) -> None:
        tiers = {"running": self.running, "room": self.room, "waiting": self.waiting, "full": self.full}
        for name, value in tiers.items():
            if not 0 <= value <= 1:
                raise InvalidInputError(name, value, "0 to 1")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Room is better where its tier is the higher one."""
        falls = self.room >= max(self.waiting, self.full)
        return (
            Reads(LORA_ACTIVE, "lower" if falls and not self.distinct else ""),
            Reads(LORA_WAITING, "lower" if falls and not self.distinct else ""),
            Reads(LORA_CAPACITY, "higher" if falls else ""),
        )

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        name = request.adapter_name
        resident = endpoints[LORA_ACTIVE]
        taken = endpoints.adapters_in_use if self.distinct else resident + endpoints[LORA_WAITING]
        has_room = taken < endpoints[LORA_CAPACITY]
        # a stale report of residency is blanked with the other scraped columns: unknown is not "running"
        reported = resident == resident
        scores = np.where(has_room, self.room, np.where(endpoints.awaits(name) & reported, self.waiting, self.full))
        return np.where(endpoints.hosts(name) & reported, self.running, scores)
