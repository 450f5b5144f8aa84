"""What does a plug-in have to offer?

Protocols of one or two methods; no base class, no registration. A plug-in is a frozen value: its parameters. State
lives in a `DataProducer` only, read in ``produce`` and written in ``commit``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IndexArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.request import InferenceRequest

R = TypeVar("R")


class CycleState(NamedTuple):
    """What may a decision depend on beside the request and the snapshot?

    ``now`` is seconds, ``rng`` the only source of chance, ``sequence`` the commits so far.
    """

    now: float
    rng: np.random.Generator
    sequence: int


class Filter(Protocol):
    """Who may take this request?"""

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``, True to keep."""
        ...


class Scorer(Protocol):
    """How good is each candidate for this request?"""

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]`` in [0, 1]; 1 is best, NaN is refused."""
        ...


class Picker(Protocol):
    """Given the totals, who gets it?"""

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[k]``, best first: the head is the target, the rest are fallbacks."""
        ...


class Produced(NamedTuple, Generic[R]):
    """What did a producer find out? Columns ``float64[E]`` for this cycle, and a receipt for `commit`."""

    columns: Mapping[Signal, FloatArray]
    receipt: R


class DataProducer(Protocol[R]):
    """What else must be known before scoring? The only plug-in with state."""

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        ...

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[R]:
        """Return columns ``float64[E]``, each one of `produces`, and a receipt; changes nothing."""
        ...

    def commit(self, receipt: R, slot: int, *, now: float) -> None:
        """Learn where the request went; called by `Scheduler.reserve` under the pool's lock.

        What can fail belongs in `produce`. Should this raise all the same, it must have learnt nothing: the booking
        is withdrawn, and the error reaches the caller.
        """
        ...


@dataclass(frozen=True, slots=True)
class WeightedScorer:
    """How much does a scorer count?

    The weighted sum is not divided by the sum of weights; a negative weight turns a preference round.
    """

    scorer: Scorer
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise InvalidInputError("weight", self.weight, "a finite number")


@dataclass(frozen=True, slots=True)
class SchedulingProfile:
    """Which filters, then which weighted scorers, then which picker?

    Filters run in order, each on what the one before kept; scorers' weighted scores are summed in order.
    """

    picker: Picker
    scorers: tuple[WeightedScorer, ...] = field(default=())
    filters: tuple[Filter, ...] = field(default=())


class Target(NamedTuple):
    """Who was picked? ``tokens`` is the prompt it would have to compute, ``score`` its total."""

    endpoint: str
    slot: int
    generation: int
    score: float
    tokens: int


class ProfileResult(NamedTuple):
    """Whom did one profile pick, best first?"""

    targets: tuple[Target, ...]

    @property
    def target(self) -> Target:
        """Who gets it? The rest of ``targets`` are fallbacks."""
        return self.targets[0]


class SchedulingResult(NamedTuple):
    """Where should this request go? Nothing has changed yet: see `Scheduler.reserve`.

    ``profiles`` maps each profile that ran to what it picked, None where it failed; ``version`` is the snapshot's.
    """

    request: InferenceRequest
    primary: str
    profiles: Mapping[str, ProfileResult | None]
    version: int = -1
    receipts: tuple[object, ...] = ()

    @property
    def target(self) -> Target:
        """Who gets it?"""
        result = self.profiles[self.primary]
        assert result is not None  # a handler never names a failed profile as primary
        return result.targets[0]

    @property
    def endpoint(self) -> str:
        """Whose name is that?"""
        return self.target.endpoint

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Whom to try next, best first, should the target refuse before the first byte?"""
        result = self.profiles[self.primary]
        return () if result is None else tuple(target.endpoint for target in result.targets[1:])


class ProfileHandler(Protocol):
    """Which profiles run for this request, and which one's answer counts?"""

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return the profiles to run now; called again with their results until it returns none."""
        ...

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return the result whose ``primary`` names a profile that did not fail."""
        ...


class Assigner(Protocol):
    """Who gets which of several requests, seen together?

    The contract of `Scheduler.assign`: pure, and it may weigh all requests at once.
    """

    def assign(
        self, requests: Sequence[InferenceRequest], endpoints: Endpoints, cycle: CycleState
    ) -> Sequence[SchedulingResult]:
        """Return one result a request, in the order of `requests`."""
        ...
