"""What does a plug-in have to offer?

Protocols of one or two methods; no base class, no registration. A plug-in is a frozen value: its parameters. State
lives in a `DataProducer` only, read in ``produce`` and written in ``commit``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IndexArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)
S = TypeVar("S")
_NOTHING: Mapping[str, str] = MappingProxyType({})


class CycleState(NamedTuple):
    """What may a decision depend on beside the request and the snapshot?

    ``now`` is seconds, ``rng`` the only source of chance, ``sequence`` the commits so far. ``peer`` names the endpoint
    that an earlier stage of the same request was given to (the decode server, while a prefill server is chosen); empty
    where there is none. ``candidates`` is what a `ProfileHandler` may look at: everybody, with the producers' columns,
    before any profile's filters. Filters, scorers and pickers never have it: they see their own profile's only.
    """

    now: float
    rng: np.random.Generator
    sequence: int
    peer: str = ""
    candidates: Endpoints | None = None


class Reads(NamedTuple):
    """Which column does a plug-in read, and which way is better?

    ``better`` is what the plug-in promises: improving one endpoint's value never makes that endpoint fare worse. Empty
    promises nothing. A column that is not ``required`` may be missing from the pool's layout.
    """

    signal: Signal
    better: Literal["lower", "higher", ""] = ""
    required: bool = True


@runtime_checkable
class Reader(Protocol):
    """What does a plug-in depend on? Optional: who says so is checked when a `Scheduler` is made."""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns, and which way is better?"""
        ...


def reads_together(plugins: Iterable[object]) -> tuple[Reads, ...]:
    """What do these plug-ins read, together, each column once? In the order in which they name them.

    Better is what all that read a column call better; nothing is promised where two differ, or where anybody among the
    plug-ins does not say what it reads. Required is what any of them requires.
    """
    together: dict[str, Reads] = {}
    silent = False
    for plugin in plugins:
        silent |= not isinstance(plugin, Reader)
        for read in plugin.reads if isinstance(plugin, Reader) else ():
            before = together.get(read.signal.name, read)
            better = read.better if read.better == before.better else ""
            together[read.signal.name] = Reads(before.signal, better, before.required or read.required)
    return without_promise(together.values()) if silent else tuple(together.values())


def without_promise(reads: Iterable[Reads]) -> tuple[Reads, ...]:
    """Return the same columns, with no word on which way is better."""
    return tuple(read._replace(better="") for read in reads)


@runtime_checkable
class Filter(Protocol):
    """Who may take this request?"""

    def filter(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``, True to keep."""
        ...


@runtime_checkable
class Explains(Protocol):
    """Why did a filter drop an endpoint? Optional, beside `Filter`; asked by `explain` only, and about dropped ones only."""

    def why_dropped(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState, position: int) -> str:
        """Return a few words on one endpoint of the snapshot that `Filter.filter` saw."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """How good is each candidate for this request?"""

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]`` in [0, 1]; 1 is best, NaN is refused."""
        ...


@runtime_checkable
class PartialScorer(Protocol):
    """Whom does a scorer have a word on? Optional: without it, everybody. Who has none scores 0."""

    def scored(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``: False where the score of 0 stands for "not known"."""
        ...


@runtime_checkable
class Picker(Protocol):
    """Given the totals, who gets it?"""

    def pick(self, totals: FloatArray, endpoints: Endpoints, cycle: CycleState) -> IndexArray:
        """Return ``intp[k]``, best first: the head is the target, the rest are fallbacks."""
        ...


@runtime_checkable
class StochasticPicker(Protocol):
    """With which probability is each candidate the target? Optional, beside `Picker`: for pickers that draw.

    What a log of decisions has to hold for a policy to be judged by another one's traffic (off-policy evaluation).
    """

    def propensities(self, totals: FloatArray, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``, the probability that `pick` puts each candidate first; they sum to 1."""
        ...


class Produced(NamedTuple, Generic[R]):
    """What did a producer find out? Columns ``float64[E]`` for this cycle, and a receipt for `commit`.

    ``sound`` promises contiguous ``float64[E]`` within their signals' ranges: then nobody looks again.
    """

    columns: Mapping[Signal, FloatArray]
    receipt: R
    sound: bool = False


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


@runtime_checkable
class OutcomeListener(Protocol[R_contra]):
    """Which producer learns from how a request ended? Optional, beside `DataProducer`."""

    def settled(self, receipt: R_contra, settlement: Settlement, slot: int) -> None:
        """Learn how it ended, on the endpoint of `slot`; called once, under the pool's lock, after the books are closed."""
        ...


@runtime_checkable
class DecisionListener(Protocol[R_contra]):
    """Which producer has to know whom each profile picked? Optional, beside `DataProducer`."""

    def decided(self, receipt: R_contra, result: "SchedulingResult", *, now: float) -> None:
        """Learn the decision that was kept; called once, after `DataProducer.commit`, under the pool's lock.

        Should this raise, it must have learnt nothing: the booking is withdrawn.
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
    Errors: `InvalidInputError` for a plug-in that has no business in its place.
    """

    picker: Picker
    scorers: tuple[WeightedScorer, ...] = field(default=())
    filters: tuple[Filter, ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.picker, Picker):
            raise InvalidInputError("picker", self.picker, "one picker")
        for i, each in enumerate(self.scorers):
            if not isinstance(each, WeightedScorer):
                raise InvalidInputError(f"scorers[{i}]", each, "a WeightedScorer: a scorer without a weight has no say")
        for i, plugin in enumerate(self.filters):
            if not isinstance(plugin, Filter):
                raise InvalidInputError(f"filters[{i}]", plugin, "a filter")


class Target(NamedTuple):
    """Who was picked? ``tokens`` is the prompt it would have to compute, ``score`` its total.

    ``address`` is where to send the request, ``host:port``.
    """

    endpoint: str
    slot: int
    generation: int
    score: float
    tokens: int
    address: str = ""


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
    ``headers`` are what the handler wants set on the request to the server, in lower case; an empty value says "remove".
    """

    request: InferenceRequest
    primary: str
    profiles: Mapping[str, ProfileResult | None]
    version: int = -1
    receipts: tuple[object, ...] = ()
    headers: Mapping[str, str] = _NOTHING

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
        """Return the result whose ``primary`` names a profile that did not fail.

        Called without results too, where `pick` named no profile at all: then raise the `RequestRefusedError` that the
        client should see.
        """
        ...


@runtime_checkable
class StagedHandler(Protocol):
    """Which endpoint do the profiles that run next work with? Optional, beside `ProfileHandler`."""

    def peer(
        self, profiles: Mapping[str, SchedulingProfile], results: Mapping[str, ProfileResult | None]
    ) -> Target | None:
        """Return the peer of the profiles that `ProfileHandler.pick` has just named, None for none."""
        ...


class Denial(NamedTuple):
    """Why does a plug-in deny a request? ``reason`` is for people, ``status`` the HTTP status."""

    reason: str
    status: int = 429


@runtime_checkable
class Screener(Protocol):
    """Whom may this request go to at all, before anything is known of load? All see everybody; what all keep is left."""

    def screen(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return ``bool[E]``, True to keep."""
        ...


@runtime_checkable
class Admitter(Protocol):
    """May this request go, seeing the servers and what the producers found out? After the queue, before scheduling."""

    def admit(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Denial | None:
        """Return why not, or None; changes nothing but the generator."""
        ...


@runtime_checkable
class PreRequest(Protocol):
    """Does anything speak against a decision once it is known? All run; the first denial in order counts."""

    def before_request(self, request: InferenceRequest, result: SchedulingResult) -> Denial | None:
        """Return why not, or None; changes nothing."""
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


class Configuration(Protocol[S]):
    """What may take the place of a running scheduler? `inferencesched.config.load` returns one."""

    def carrying(self, old: S) -> "Configuration[S]":
        """Return the same with the producers of a running scheduler, where they are set up in the same way."""
        ...

    def scheduler(self) -> S:
        """Return the scheduler."""
        ...
