"""What does a gateway know of one request?

An `InferenceRequest` is a frozen record. It carries lengths and hashes, never the prompt's text:
the scheduler needs the first two and must not leak the third.
"""

from collections.abc import Mapping
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from inferencesched._typing import HashArray, TokenArray
from inferencesched.errors import InvalidInputError

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_ATTRIBUTES: Mapping[str, object] = MappingProxyType({})


class MediaItem(NamedTuple):
    """Which picture, video or sound does a prompt hold?

    ``hash`` names its content, ``size`` is its weight in an encoder's cache (items, tokens or bytes: one unit all through).
    """

    hash: int
    size: int = 1
    modality: str = "image"


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What is being asked, by whom, and how long is it?

    Parameters
    ----------
    request_id: the gateway's own name for the request; it appears in errors and records.
    model: the target model, after any rewrite. A LoRA adapter's name where the client asked for one.
    adapter: the LoRA adapter; empty means "`model` names it, if any", as the reference reads it.
    tokens: the prompt's token ids, ``uint32[T]``, if the gateway tokenizes.
    input_tokens: the prompt's length in tokens; None is unknown, and taken from `tokens` if they are given.
    block_hashes: the prompt's chained block hashes, ``uint64[B]`` (`inferencesched.prefix.hashing.block_hashes`).
    max_output_tokens: the client's cap; None is unknown.
    priority: the objective's priority; below 0 is sheddable.
    fairness_id, objective, tenant, cache_salt: who is asking, for flow control, quotas and hash domains.
    deadline: seconds on the caller's clock; None is no deadline.
    headers: lower-case names.
    attributes: what the gateway found out of the request beside all this, by name.
    session_id: whose conversation this is; empty is none.
    slo_ttft, slo_tpot: the objectives for time to first token and time per output token, seconds; None is no objective.
    media: the prompt's pictures, videos and sounds.

    Errors: `InvalidInputError` for an empty id, a negative length or arrays of another shape or dtype.
    Cost: 0.5 us.

    >>> request = InferenceRequest(request_id="r-1", model="llama", input_tokens=700)
    >>> request.prompt_tokens
    700
    >>> InferenceRequest(request_id="r-2", input_tokens=-1)
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: input_tokens: got -1, allowed: an integer of at least 0, or None
    """

    request_id: str
    model: str = ""
    adapter: str = ""
    tokens: TokenArray | None = None
    input_tokens: int | None = None
    block_hashes: HashArray | None = None
    max_output_tokens: int | None = None
    priority: int = 0
    fairness_id: str = ""
    objective: str = ""
    tenant: str = ""
    cache_salt: str = ""
    deadline: float | None = None
    headers: Mapping[str, str] = _NO_HEADERS
    attributes: Mapping[str, object] = _NO_ATTRIBUTES
    session_id: str = ""
    slo_ttft: float | None = None
    slo_tpot: float | None = None
    media: tuple[MediaItem, ...] = ()

    def __post_init__(self) -> None:
        if not self.request_id:
            raise InvalidInputError("request_id", self.request_id, "a string that is not empty")
        _check_length("input_tokens", self.input_tokens)
        _check_length("max_output_tokens", self.max_output_tokens)
        if self.deadline is not None and self.deadline != self.deadline:
            raise InvalidInputError("deadline", self.deadline, "seconds, or None")
        if self.slo_ttft is not None and not 0 < self.slo_ttft < inf:
            raise InvalidInputError("slo_ttft", self.slo_ttft, "a finite number of seconds above 0, or None")
        if self.slo_tpot is not None and not 0 < self.slo_tpot < inf:
            raise InvalidInputError("slo_tpot", self.slo_tpot, "a finite number of seconds above 0, or None")
        if self.tokens is not None:
            _check_array("tokens", self.tokens, np.uint32)
            if self.input_tokens is not None and self.input_tokens != len(self.tokens):
                raise InvalidInputError("input_tokens", self.input_tokens, f"len(tokens) = {len(self.tokens)}, or None")
        if self.block_hashes is not None:
            _check_array("block_hashes", self.block_hashes, np.uint64)

    @property
    def prompt_tokens(self) -> int | None:
        """How long is the prompt, in tokens? None where nobody said."""
        if self.input_tokens is not None:
            return self.input_tokens
        return None if self.tokens is None else len(self.tokens)

    @property
    def adapter_name(self) -> str:
        """Which name does LoRA residency look up?"""
        return self.adapter or self.model


def _check_length(name: str, length: int | None) -> None:
    """Refuse anything but None and a whole number of at least 0; NaN would poison every sum it enters."""
    if not (length is None or (isinstance(length, (int, np.integer)) and length >= 0)):
        raise InvalidInputError(name, length, "an integer of at least 0, or None")


def _check_array(name: str, array: Any, dtype: type[np.generic]) -> None:
    """Refuse anything but a 1-D array of `dtype`."""
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        raise InvalidInputError(name, type(array).__name__, f"a 1-D numpy array of {np.dtype(dtype)}")


class Usage(NamedTuple):
    """What did the model server say it had used? Tokens; None is unknown."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
