"""Which scheduling policies can be compared by name?

A policy builds an ordinary `Scheduler`, the very object a gateway uses. Only `clairvoyant` looks behind the curtain:
its producer asks the simulated servers themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Final

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import UnknownNameError
from inferencesched.framework import CycleState, Picker, Produced, SchedulingProfile, WeightedScorer
from inferencesched.normalize import inverse_minmax
from inferencesched.pickers import MaxScorePicker, PowerOfTwoPicker, RandomPicker, RoundRobinPicker
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler, default_profile
from inferencesched.scorers import ActiveRequestScorer
from inferencesched.simulator.server import Fleet

#: Below 0 where a request makes the others quicker: the mocker rounds the mean prompt of a pass down.
ROLLOUT_COST: Final = Signal("rollout_cost", "ms", freshness="cycle", low=-inf)

#: Who stands at the two ends of every table.
FLOOR: Final = "random"
CEILING: Final = "clairvoyant"


@dataclass(frozen=True, slots=True)
class Policy:
    """What is this policy called, what does it do, and what does it need?

    ``build`` makes its scheduler for a fleet; ``scrapes`` says whether it reads signals scraped from the servers.
    """

    name: str
    what: str
    build: Callable[[Fleet], Scheduler]
    scrapes: bool = False


class RolloutProducer:
    """What would it cost everybody if this request went there?

    Fills ``rollout_cost``: the request's own latency plus the delay it brings the others in flight, in ms, from a
    roll-out of each server's true state with true lengths and no later arrivals.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (ROLLOUT_COST,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[None]:
        """Return the cost by endpoint; the request's id is its place in the trace."""
        now = cycle.now * 1e3
        outcome = self.fleet.rollout(int(request.request_id), now)
        return Produced({ROLLOUT_COST: (outcome.finish - now + outcome.delay)[endpoints.slots]}, None)

    def commit(self, receipt: None, slot: int, *, now: float) -> None:
        """Nothing to learn: it looks afresh every time."""


@dataclass(frozen=True, slots=True)
class LeastCostScorer:
    """Who adds least to everybody's latency? Reads ``rollout_cost`` (cycle); lower is better."""

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return inverse_minmax(endpoints[ROLLOUT_COST])


def _load_only(picker: Picker) -> Callable[[Fleet], Scheduler]:
    return lambda fleet: Scheduler(SchedulingProfile(picker, (WeightedScorer(ActiveRequestScorer()),)))


def _blind(picker: Picker) -> Callable[[Fleet], Scheduler]:
    return lambda fleet: Scheduler(SchedulingProfile(picker))


def _gie_default(fleet: Fleet) -> Scheduler:
    config = fleet.config
    return Scheduler(
        default_profile(),
        producers=(ApproximatePrefixProducer(block_size=config.block_size, capacity=config.kv_blocks),),
    )


def _clairvoyant(fleet: Fleet) -> Scheduler:
    profile = SchedulingProfile(MaxScorePicker(), (WeightedScorer(LeastCostScorer()),))
    return Scheduler(profile, producers=(RolloutProducer(fleet),))


POLICIES: Final[Mapping[str, Policy]] = MappingProxyType(
    {
        policy.name: policy
        for policy in (
            Policy("random", "a server by lot: the floor", _blind(RandomPicker())),
            Policy("round-robin", "a server by turn", _blind(RoundRobinPicker())),
            Policy("least-request", "fewest of our requests in flight", _load_only(MaxScorePicker())),
            Policy("power-of-two", "the less loaded of two drawn by lot", _load_only(PowerOfTwoPicker())),
            Policy("gie-default", "prefix 3, queue 2, KV 2, as the reference's default", _gie_default, scrapes=True),
            Policy(
                "clairvoyant",
                "fresh state, true lengths, one-step roll-out: a strong reference, not a bound",
                _clairvoyant,
            ),
        )
    }
)


def policy(name: str) -> Policy:
    """Which policy has this name? `UnknownNameError` lists those there are.

    >>> policy("gie-default").what
    "prefix 3, queue 2, KV 2, as the reference's default"
    """
    found = POLICIES.get(name)
    if found is None:
        raise UnknownNameError("policy", name, list(POLICIES))
    return found
