"""Whose value of a signal meets a threshold?"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.framework import CycleState, Reads
from inferencesched.request import InferenceRequest

Comparison = Literal["LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"]

_COMPARES: Final[Mapping[str, Callable[[Any, Any], BoolArray]]] = MappingProxyType(
    {
        "LessThan": operator.lt,
        "LessThanOrEqual": operator.le,
        "GreaterThan": operator.gt,
        "GreaterThanOrEqual": operator.ge,
        "Equal": operator.eq,
        "NotEqual": operator.ne,
    }
)


@dataclass(frozen=True, slots=True)
class EndpointAttributeFilter:
    """Does the endpoint's value of a signal compare with a threshold as it should?

    Any `signal`, one of the pool's own or a gateway's: ``value of the endpoint, comparison, value``. `on_missing` says what becomes
    of an endpoint whose value is unknown (``Pass`` or ``Fail``); with `fallback_on_empty` all are kept when nobody passes. Reads
    that signal, as stale as it is; lower is better for LessThan, higher for GreaterThan.
    Source: llm-d router's ``endpoint-attribute-filter``. Errors: `InvalidInputError`; `UnknownNameError` when a pool lacks the
    signal.

    >>> from inferencesched import WAITING_QUEUE_SIZE
    >>> EndpointAttributeFilter(WAITING_QUEUE_SIZE, "LessThan", 10.0).on_missing
    'Pass'
    """

    signal: Signal
    comparison: Comparison
    value: float
    on_missing: Literal["Pass", "Fail"] = "Pass"
    fallback_on_empty: bool = False

    def __post_init__(self) -> None:
        if self.comparison not in _COMPARES:
            raise UnknownNameError("comparison", self.comparison, get_args(Comparison))
        if self.value != self.value:
            raise InvalidInputError("value", self.value, "a number")
        if self.on_missing not in ("Pass", "Fail"):
            raise UnknownNameError("on_missing", self.on_missing, ("Pass", "Fail"))

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which column, and which way is better?"""
        if self.comparison.startswith("Less"):
            return (Reads(self.signal, "lower"),)
        return (Reads(self.signal, "higher" if self.comparison.startswith("Greater") else ""),)

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``."""
        column = endpoints[self.signal]
        missing = np.isnan(column)
        keep: BoolArray = np.where(missing, self.on_missing == "Pass", _COMPARES[self.comparison](column, self.value))
        if self.fallback_on_empty and not keep.any():
            keep[:] = True
        return keep

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return its value."""
        value = float(endpoints[self.signal][position])
        said = "unknown" if value != value else f"{value:g}"
        return f"{self.signal.name} is {said}, asked for {self.comparison} {self.value:g}"
