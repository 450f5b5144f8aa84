"""What is a priority's band like: how much may wait, in which order, and how are its flows served?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final, Self

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.fairness import FairnessPolicy, GlobalStrict
from inferencesched.flowcontrol.flows import Capacity, OrderingPolicy
from inferencesched.flowcontrol.policies import FirstCome

#: llm-d's defaults: 5,000 requests and a thousand million bytes in a band.
BAND_CAPACITY: Final = Capacity(5_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class PriorityBand:
    """How are the requests of one priority queued?

    Parameters
    ----------
    priority: the greater goes first; below 0 it is sheddable.
    capacity: how much may wait in the band.
    fairness: which flow goes next.
    ordering: in which order a flow waits.
    weights: shares of flows, by id; 1 for those not named.
    """

    priority: int
    capacity: Capacity = BAND_CAPACITY
    fairness: FairnessPolicy = field(default=GlobalStrict())
    ordering: OrderingPolicy = field(default=FirstCome())
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.priority, int):  # NaN would be another band each time
            raise InvalidInputError("priority", self.priority, "an integer")
        self.capacity.checked("capacity")
        for flow, weight in self.weights.items():
            if not (isfinite(weight) and weight > 0):
                raise InvalidInputError(f"weights[{flow!r}]", weight, "a finite number above 0")

    def at(self, priority: int) -> Self:
        """Return the same for another priority."""
        return replace(self, priority=priority)
