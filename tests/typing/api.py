"""Read by `make types`, never run: do users' own plug-ins satisfy the contracts, and is what comes back what we say?

A line that a type checker must refuse carries an ignore: mypy reports an ignore that is not needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import inferencesched as isched

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Places = NDArray[np.intp]


# -- users' own plug-ins: no base class, no registration ---------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueHalfLife:
    """The five-line scorer of the documentation."""

    half_life: float = 8.0

    def score(self, request: isched.InferenceRequest, endpoints: isched.Endpoints, cycle: isched.CycleState) -> Floats:
        return np.exp2(-endpoints[isched.WAITING_QUEUE_SIZE] / self.half_life)


@dataclass(frozen=True, slots=True)
class InZone:
    zone: str

    def filter(self, request: isched.InferenceRequest, endpoints: isched.Endpoints, cycle: isched.CycleState) -> Bools:
        return endpoints.label("zone", self.zone)


class Last:
    def pick(self, totals: Floats, endpoints: isched.Endpoints, cycle: isched.CycleState) -> Places:
        return np.array([len(totals) - 1], dtype=np.intp)


@dataclass
class Counting:
    """A producer whose receipt is a type of its own."""

    seen: int = 0

    @property
    def produces(self) -> tuple[isched.Signal, ...]:
        return (isched.PREFIX_MATCH,)

    def produce(
        self, request: isched.InferenceRequest, endpoints: isched.Endpoints, cycle: isched.CycleState
    ) -> isched.Produced[str]:
        return isched.Produced({isched.PREFIX_MATCH: np.zeros(len(endpoints))}, request.request_id)

    def commit(self, receipt: str, slot: int, *, now: float) -> None:
        self.seen += len(receipt)


class First:
    def pick(
        self,
        request: isched.InferenceRequest,
        profiles: Mapping[str, isched.SchedulingProfile],
        results: Mapping[str, isched.ProfileResult | None],
        cycle: isched.CycleState,
    ) -> Mapping[str, isched.SchedulingProfile]:
        return {} if results else dict(list(profiles.items())[:1])

    def process_results(
        self,
        request: isched.InferenceRequest,
        results: Mapping[str, isched.ProfileResult | None],
        cycle: isched.CycleState,
    ) -> isched.SchedulingResult:
        return isched.SchedulingResult(request, next(iter(results)), results)


class OneByOne:
    def assign(
        self, requests: Sequence[isched.InferenceRequest], endpoints: isched.Endpoints, cycle: isched.CycleState
    ) -> list[isched.SchedulingResult]:
        one = isched.Scheduler(isched.default_profile())
        return [one.schedule(request, endpoints, now=cycle.now, rng=cycle.rng) for request in requests]


scorer: isched.Scorer = QueueHalfLife()
keeper: isched.Filter = InZone("eu")
picker: isched.Picker = Last()
producer: isched.DataProducer[str] = Counting()
handler: isched.ProfileHandler = First()
assigner: isched.Assigner = OneByOne()

# the library's own are held to the same
scorers: list[isched.Scorer] = [
    isched.ActiveRequestScorer(),
    isched.KvCacheUtilizationScorer(),
    isched.LoraAffinityScorer(),
    isched.PrefixCacheScorer(),
    isched.QueueScorer(),
    isched.RunningRequestsScorer(),
    isched.TokenLoadScorer(),
]
deciders: list[isched.DisaggregationDecider] = [
    isched.AlwaysDecider(),
    isched.MultimodalDecider(),
    isched.PrefixBasedDecider(non_cached_tokens=16),
]
handlers: list[isched.ProfileHandler] = [
    isched.DataParallelProfileHandler(),
    isched.DisaggProfileHandler(prefill_decider=deciders[0]),
    isched.HeaderProfileHandler(),
    isched.JointDisaggHandler(),
    isched.SingleProfileHandler(),
]
between: isched.PairScorer = isched.TopologyPairs()
pickers: list[isched.Picker] = [
    isched.MaxScorePicker(),
    isched.PowerOfTwoPicker(),
    isched.RandomPicker(),
    isched.RoundRobinPicker(),
    isched.WeightedRandomPicker(),
]
filters: list[isched.Filter] = [isched.UtilizationFilter(((isched.KV_CACHE_USAGE, 0.9),))]
producers: list[isched.DataProducer[Any]] = [isched.ApproximatePrefixProducer()]

# -- what a checker has to refuse -------------------------------------------------------------------

not_a_scorer: isched.Scorer = InZone("eu")  # type: ignore[assignment]
not_a_filter: isched.Filter = QueueHalfLife()  # type: ignore[assignment]
not_that_receipt: isched.DataProducer[int] = Counting()  # type: ignore[assignment]
isched.WeightedScorer(Last())  # type: ignore[arg-type]
isched.SchedulingProfile(QueueHalfLife())  # type: ignore[arg-type]
isched.StalePolicy(assume="best")  # type: ignore[arg-type]
QueueHalfLife().half_life = 2.0  # type: ignore[misc]  # a policy is frozen
isched.InferenceRequest("r")  # type: ignore[call-arg]  # keywords only

# -- what comes back --------------------------------------------------------------------------------

pool = isched.InferencePool(signals=(isched.Signal("mine"),), reservation_ttl=60.0)
pool.join("a", labels={"zone": "eu"}, values={isched.KV_BLOCKS: 4096})
pool.observe("a", {isched.WAITING_QUEUE_SIZE: 2}, now=0.0, adapters=isched.Adapters(frozenset({"x"}), capacity=4))
pool.observe_all({isched.KV_CACHE_USAGE: np.array([0.5])}, now=1.0)

endpoints = pool.snapshot()
assert_type(endpoints, isched.Endpoints)
assert_type(endpoints[isched.KV_CACHE_USAGE], Floats)
assert_type(endpoints.label("zone", "eu"), Bools)
assert_type(endpoints.hosts("x"), Bools)
assert_type(endpoints.age(1.0), Floats)
assert_type(endpoints.slots, Places)
assert_type(endpoints.generations, NDArray[np.int64])
assert_type(endpoints.names, tuple[str, ...])
assert_type(endpoints.name(0), str)
assert_type(endpoints.oldest, tuple[float, float])
assert_type(endpoints.where(endpoints.hosts("x")), isched.Endpoints)
assert_type(endpoints.with_columns({isched.PREFIX_MATCH: np.zeros(1)}), isched.Endpoints)

rng = np.random.default_rng(0)
profile = isched.SchedulingProfile(picker, (isched.WeightedScorer(scorer, 2.0),), (keeper,))
scheduler = isched.Scheduler(profile, producers=(producer,), handler=handler, assigner=assigner)
request = isched.InferenceRequest(request_id="r", tokens=np.arange(9, dtype=np.uint32))
assert_type(request.prompt_tokens, int | None)

result = scheduler.schedule(request, endpoints, now=1.0, rng=rng, exclude={"b"})
assert_type(result, isched.SchedulingResult)
assert_type(result.target, isched.Target)
assert_type(result.endpoint, str)
assert_type(result.fallbacks, tuple[str, ...])
assert_type(result.target.score, float)
assert_type(result.target.tokens, int)
assert_type(result.profiles["default"], isched.ProfileResult | None)
assert_type(scheduler.assign([request], endpoints, now=1.0, rng=rng), list[isched.SchedulingResult])
assert_type(isched.explain(scheduler, request, endpoints, now=1.0, rng=rng), isched.Explanation)
decision = isched.decide(scheduler, request, endpoints, now=1.0, rng=rng)
assert_type(decision, isched.ExplainedDecision)
assert_type(decision.explain(), isched.Explanation)
as_result: isched.SchedulingResult = decision

assert_type(
    scheduler.schedule_many([request], pool, now=1.0, rng=rng),
    Sequence[isched.Reservation | isched.RequestRefusedError],
)
with scheduler.schedule_and_reserve(request, pool, now=1.0, rng=rng) as reservation:
    assert_type(reservation, isched.Reservation)
    reservation.first_token(now=1.1)
    reservation.progress(3, now=1.2)
    reservation.served_by("a", now=1.3)
    assert_type(reservation.complete(isched.Usage(9, 3), now=1.4), isched.Settlement)
assert_type(scheduler.reserve(result, pool, now=1.0), isched.Reservation)
assert_type(pool.sweep(99.0), list[isched.Settlement])
assert_type(pool.leave("a"), list[isched.Settlement])
assert_type(pool.ledger(), isched.Ledger)
assert_type(pool.ledger().inflight_tokens, int)

for normalise in (isched.minmax, isched.inverse_minmax, isched.inverse, isched.known):
    assert_type(normalise(np.zeros(3)), Floats)
assert_type(isched.ratio(np.zeros(3), 2.0), Floats)

try:
    scheduler.schedule(request, endpoints, now=1.0, rng=rng)
except isched.RequestRefusedError as refusal:
    assert_type(refusal.status, int)
    assert_type(refusal.outcome, str)
except isched.InvalidInputError as error:
    assert_type(error.parameter, str)
    assert_type(error.allowed, str)
