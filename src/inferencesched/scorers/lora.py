"""Where are a LoRA adapter's weights, and where would loading them cost least?

Residency is not activity: an adapter that was loaded and has no request any more still serves the next one at once.
"""

from dataclasses import dataclass

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import LORA_LOADED, LORA_SLOTS, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class LoraResidencyScorer:
    """Who has this LoRA adapter loaded, or could load it without throwing out one that works?

    =============  =====  ==================================================================
    `gpu`          1.0    its weights are in the accelerator's memory
    `cpu`          0.7    they are in the host's memory only
    `free_slot`    0.6    they are not there, and fewer adapters are loaded than there are slots
    `evictable`    0.3    all slots are taken, one of them by an adapter that neither runs nor waits
    `saturated`    0.0    all slots are taken by adapters with requests
    =============  =====  ==================================================================

    The first that holds. A request for the base model needs no slot and scores the share of free ones,
    ``max(0, slots - loaded) / slots``: it leaves the servers full of adapters to those. It is one without an adapter
    whose model is empty or among `base_models`.

    Reads ``Adapters.loaded``, ``.offloaded``, ``.running`` and ``.waiting``, ``LORA_LOADED`` (lower is better) and
    ``LORA_SLOTS`` (higher), all scraped. A server that does not tell its slots scores 0 (`scored` is False there).
    Source: llm-d router, pull request 2792; the vLLM metrics are ``lora_adapter_loaded``,
    ``num_gpu_loaded_lora_adapters`` and ``max_gpu_lora_adapters``.

    >>> from inferencesched import Adapters, InferencePool
    >>> pool = InferencePool()
    >>> for name, adapters in {
    ...     "has it": Adapters(loaded=frozenset({"sql"}), slots=1),
    ...     "has room": Adapters(slots=1),
    ...     "busy": Adapters(running=frozenset({"law"}), loaded=frozenset({"law"}), slots=1),
    ... }.items():
    ...     pool.join(name)
    ...     pool.observe(name, {}, now=0.0, adapters=adapters)
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> LoraResidencyScorer().score(InferenceRequest(request_id="r", adapter="sql"), pool.snapshot(), cycle)
    array([1. , 0.6, 0. ])
    """

    gpu: float = 1.0
    cpu: float = 0.7
    free_slot: float = 0.6
    evictable: float = 0.3
    saturated: float = 0.0
    base_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limit = 1.0
        for name, value in self._tiers().items():
            if not 0 <= value <= limit:
                raise InvalidInputError(name, value, f"0 to {limit}, the tier before it")
            limit = value
        given: object = self.base_models
        if not isinstance(given, tuple):  # a single name would do for every part of itself
            raise InvalidInputError("base_models", given, "a tuple of names")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, beside the names of the adapters?"""
        return (Reads(LORA_LOADED, "lower"), Reads(LORA_SLOTS, "higher"))

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: True where the server tells how many adapters it holds and can hold."""
        loaded = endpoints[LORA_LOADED]
        told: BoolArray = (endpoints[LORA_SLOTS] > 0) & (loaded == loaded)
        return told

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        slots, loaded = endpoints[LORA_SLOTS], endpoints[LORA_LOADED]
        told = self.scored(request, endpoints, cycle)
        if self.is_base(request):
            free = np.maximum(0.0, slots - loaded) / np.where(told, slots, 1.0)
            return np.where(told, free, 0.0)
        name = request.adapter_name
        tiers = np.where(endpoints.adapters_idle > 0, self.evictable, self.saturated)
        tiers = np.where(loaded < slots, self.free_slot, tiers)
        tiers = np.where(endpoints.offloaded(name), self.cpu, tiers)
        tiers = np.where(endpoints.loaded(name), self.gpu, tiers)
        return np.where(told, tiers, 0.0)

    def is_base(self, request: InferenceRequest) -> bool:
        """Return whether the request needs no adapter."""
        return not request.adapter and (not request.model or request.model in self.base_models)

    def _tiers(self) -> dict[str, float]:
        return {
            "gpu": self.gpu,
            "cpu": self.cpu,
            "free_slot": self.free_slot,
            "evictable": self.evictable,
            "saturated": self.saturated,
        }
