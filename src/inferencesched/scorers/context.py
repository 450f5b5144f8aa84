"""Which endpoint is made for a prompt of this length?"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest

CONTEXT_LABEL: Final = "llm-d.ai/context-length-range"

_BOUNDS = re.compile(r"\s*\+?([0-9]{1,19})\s*-\s*\+?([0-9]{1,19})\s*")
_LARGEST = (1 << 63) - 1
_NEUTRAL = 0.5
_FLOOR = 0.3  # of who is made for the length, and the ceiling of who is not


def context_range(text: str) -> tuple[int, int]:
    """Return the bounds of a label as in ``0-2048``, both included; `InvalidInputError` for anything else.

    >>> context_range("2048-8192")
    (2048, 8192)
    """
    bounds = _bounds(text)
    if bounds is None:
        raise InvalidInputError("context range", text, "min-max, two whole numbers in order, as in 0-2048")
    return bounds


@lru_cache(maxsize=1024)
def _bounds(text: str) -> tuple[int, int] | None:
    found = _BOUNDS.fullmatch(text)
    low, high = (int(found[1]), int(found[2])) if found else (1, 0)
    return (low, high) if low <= high <= _LARGEST else None


@dataclass(frozen=True, slots=True)
class ContextLengthAware:
    """Who is made for a prompt of this length? A scorer, and with `filtering` a filter too.

    An endpoint's label names the lengths it is made for, ``min-max`` in tokens, both included. In range it scores
    ``0.3 + 0.7 * (0.7 / (1 + width / 10000) + 0.3 * (max - length) / width)``, 1 where min is max: narrower ranges and more room
    are better. Out of range it scores ``0.3 / (1 + distance / 1000)``, always below anybody in range; 0.5 without a label, and 0
    for a label that cannot be read. The filter keeps who is in range or has no label.

    Reads the prompt's length and labels, which are never stale. A prompt of unknown length is neither long nor short: whoever
    has a readable label scores 0.5 and is kept. Source: llm-d router's ``context-length-aware``, where an unknown length is 0.

    >>> ContextLengthAware(filtering=True)
    ContextLengthAware(label='llm-d.ai/context-length-range', filtering=True)
    """

    label: str = CONTEXT_LABEL
    filtering: bool = False

    def __post_init__(self) -> None:
        if not self.label:
            raise InvalidInputError("label", self.label, "the key of a label")

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: labels."""
        return ()

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``; all True unless `filtering`."""
        if not self.filtering:
            return np.ones(len(endpoints), dtype=np.bool_)
        values, codes = endpoints.label_column(self.label)
        table: BoolArray = np.array([*(_takes(value, request.prompt_tokens) for value in values), True], dtype=np.bool_)
        return table[codes]

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``. Cost: a formula for each distinct range, and one look-up of all endpoints."""
        values, codes = endpoints.label_column(self.label)
        table: FloatArray = np.array([*(_worth(value, request.prompt_tokens) for value in values), _NEUTRAL])
        return table[codes]


def _takes(text: str, length: int | None) -> bool:
    bounds = _bounds(text)
    return bounds is not None and (length is None or bounds[0] <= length <= bounds[1])


def _worth(text: str, length: int | None) -> float:
    bounds = _bounds(text)
    if bounds is None:
        return 0.0
    if length is None:
        return _NEUTRAL
    low, high = bounds
    if not low <= length <= high:
        distance = low - length if length < low else length - high
        return _FLOOR / (1.0 + distance / 1000.0)
    if low == high:
        return 1.0
    width = high - low
    return _FLOOR + (1.0 - _FLOOR) * (0.7 / (1.0 + width / 10000.0) + 0.3 * (high - length) / width)
