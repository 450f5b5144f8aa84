"""Is one more stage worth its hop?

A decider answers for one stage of a disaggregated request: shall the prompt be computed, or its pictures be encoded, on
a server of their own? It is asked once the decode server is known (where stages run decode first), and may read
anything of it: ``cycle.candidates`` has every column, and `position_of` finds the server among them.
"""

from dataclasses import dataclass
from math import nan
from typing import Protocol, runtime_checkable

import numpy as np

from inferencesched.endpoints import PREFIX_TOKENS, Endpoints
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Reads, Target
from inferencesched.request import InferenceRequest
from inferencesched.signals import of_producer


@runtime_checkable
class DisaggregationDecider(Protocol):
    """Shall this stage run on a server of its own?

    >>> class BusyDecode:
    ...     def decide(self, request, target, cycle):
    ...         position = position_of(target, cycle.candidates)
    ...         return position is not None and cycle.candidates[KV_CACHE_USAGE][position] > 0.8
    >>> from inferencesched import KV_CACHE_USAGE
    >>> decider: DisaggregationDecider = BusyDecode()
    """

    def decide(self, request: InferenceRequest, target: Target | None, cycle: CycleState) -> bool:
        """Return True to run the stage; pure. `target` is the decode server, None where none was chosen yet."""
        ...


def position_of(target: Target | None, endpoints: Endpoints | None) -> int | None:
    """Return at which position of a snapshot a target is; None where it is not in it, or no longer the same.

    Cost: 0.3 us; linear in the candidates where some were left out.
    """
    if target is None or endpoints is None:
        return None
    member = endpoints.members.positions.get(target.endpoint)
    if member is None or endpoints.members.stays[member][1] != target.generation:
        return None
    if endpoints.positions is None:
        return member
    found = np.flatnonzero(endpoints.positions == member)
    return int(found[0]) if len(found) else None


def cached_tokens(target: Target | None, cycle: CycleState, producer: str = "") -> float:
    """Return how many of the prompt's tokens the target has cached; NaN where nobody knows.

    Whole blocks, not weighed by where they lie: a block in the host's memory need not be computed again either.
    """
    position = position_of(target, cycle.candidates)
    if position is None or cycle.candidates is None:
        return nan
    return float(cycle.candidates[of_producer(PREFIX_TOKENS, producer)][position])


@dataclass(frozen=True, slots=True)
class AlwaysDecider:
    """Shall the stage run whenever there is one? Reads nothing. Source: llm-d router's ``always-disagg-pd-decider``."""

    def decide(self, request: InferenceRequest, target: Target | None, cycle: CycleState) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True, slots=True)
class MultimodalDecider:
    """Are there pictures, videos or sounds to encode?

    Reads the request's ``media``. Source: llm-d router's ``always-disagg-multimodal-decider``.
    """

    def decide(self, request: InferenceRequest, target: Target | None, cycle: CycleState) -> bool:
        """Return whether the request has any."""
        return bool(request.media)


@dataclass(frozen=True, slots=True)
class PrefixBasedDecider:
    """Would the decode server have much of the prompt to compute by itself?

    True where ``prompt - cached >= non_cached_tokens`` and ``prompt >= prompt_tokens``, all in tokens. Never where
    `non_cached_tokens` is 0, where there is no decode server yet, or where it is not known what it has cached: an extra
    hop is not taken on a guess. Reads ``PREFIX_TOKENS`` (cycle) of the decode server, those of `producer` if named.
    The more is cached, the less often the answer is True; the longer the prompt, the more often.
    Source: llm-d router's ``prefix-based-pd-decider``.
    """

    non_cached_tokens: int = 0
    prompt_tokens: int = 0
    producer: str = ""

    def __post_init__(self) -> None:
        whole_number("non_cached_tokens", self.non_cached_tokens)
        whole_number("prompt_tokens", self.prompt_tokens)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which column?"""
        return (Reads(of_producer(PREFIX_TOKENS, self.producer)),)

    def decide(self, request: InferenceRequest, target: Target | None, cycle: CycleState) -> bool:
        """Return whether enough of the prompt is left to compute."""
        prompt = request.prompt_tokens or 0
        if not self.non_cached_tokens or prompt < self.prompt_tokens:
            return False
        return prompt - cached_tokens(target, cycle, self.producer) >= self.non_cached_tokens  # NaN: False
