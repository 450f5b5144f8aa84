"""Which scheduling policies can be compared by name?

A policy builds an ordinary `Scheduler`, the very object a gateway uses, of the catalogue's plug-ins and those of `inferencesched.zoo`.
Only the ceilings look behind the curtain: their producer asks the simulated servers themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Any, Final

from inferencesched._kernels import replaying
from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import UnknownNameError
from inferencesched.filters import DecodeFilter, PrefillFilter, PrefixCacheAffinityFilter, SloHeadroomTierFilter
from inferencesched.framework import (
    CycleState,
    DataProducer,
    Filter,
    Picker,
    Produced,
    SchedulingProfile,
    Scorer,
    WeightedScorer,
)
from inferencesched.handlers import AlwaysDecider, DisaggProfileHandler, PrefixBasedDecider
from inferencesched.marginal import LateBinder, MarginalCost
from inferencesched.normalize import inverse_minmax
from inferencesched.pickers import MaxScorePicker, PowerOfTwoPicker, RandomPicker, RoundRobinPicker, SoftmaxPicker
from inferencesched.placement import RequestKey
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.producers import OnlineLatencyPredictor, PredictedLatencyProducer, StepTimePredictor
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler, default_profile
from inferencesched.scorers import (
    ActiveRequestScorer,
    BoundedLoadScorer,
    KvCacheUtilizationScorer,
    LatencyScorer,
    Lexicographic,
    PrefixCacheScorer,
    QueueScorer,
    RendezvousScorer,
    TokenLoadScorer,
)
from inferencesched.simulator.server import Fleet
from inferencesched.zoo import (
    ActiveBlocksProducer,
    BusiestScorer,
    CacheAwareScorer,
    CoordinatorScorer,
    DeficitPrefixScorer,
    DeficitProducer,
    DualMapScorer,
    FreenessScorer,
    HeldBlocksProducer,
    IdleServersFilter,
    KvBarrierScorer,
    KvRouterScorer,
    LMetricScorer,
    LoadGradientScorer,
    PrebleProducer,
    PrebleScorer,
    PredictedFirstTokenScorer,
    PrefillWorkScorer,
    PrefixThenLoadScorer,
    SentSinceProducer,
)

#: Below 0 where a request makes the others quicker: the mocker rounds the mean prompt of a pass down.
ROLLOUT_COST: Final = Signal("rollout_cost", "ms", freshness="cycle", low=-inf)

#: Who stands at the two ends of every table.
FLOOR: Final = "random"
CEILING: Final = "clairvoyant"

#: A seed of prefix indices, so that a run is the same bytes each time; no decision depends on which.
_SEED: Final = 7


#: So low a temperature that only ties are drawn: a 64th of a block is e^15 times less likely where costs span 1,000 blocks.
_TIES: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Policy:
    """What is this policy called, what does it do, and what does it need?

    ``build`` makes its scheduler for a fleet; ``scrapes`` says whether it reads signals scraped from the servers, ``news`` whether its
    `PrecisePrefixProducer` hears which blocks they hold. ``bind`` makes what holds requests back and sends them, of a fleet and the
    scheduler; None sends each when it comes. ``compiled`` names the kernel that makes the same choices (`simulator.compiled`); None where there is
    none. ``staged`` says that prompts may be computed on another server than the answer. ``source`` is where the rule was published.
    """

    name: str
    what: str
    build: Callable[[Fleet], Scheduler]
    scrapes: bool = False
    news: bool = False
    source: str = ""
    bind: Callable[[Fleet, Scheduler], LateBinder] | None = None
    compiled: int | None = None
    staged: bool = False


class RolloutProducer:
    """What would it cost if this request went there?

    Fills ``rollout_cost`` in ms, from a roll-out of each server's true state with true lengths and no later arrivals: the request's own
    latency plus the delay it brings the others in flight; with `first_token`, its own time to first token alone.
    """

    def __init__(self, fleet: Fleet, *, first_token: bool = False) -> None:
        self.fleet = fleet
        self.first_token = first_token

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (ROLLOUT_COST,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[None]:
        """Return the cost by endpoint; the request's id is its place in the trace."""
        now = cycle.now * 1e3
        outcome = self.fleet.rollout(int(request.request_id), now)
        cost = outcome.first_token - now if self.first_token else outcome.finish - now + outcome.delay
        return Produced({ROLLOUT_COST: cost[self.fleet.at_slot[endpoints.slots]]}, None)

    def commit(self, receipt: None, slot: int, *, now: float) -> None:
        """Nothing to learn: it looks afresh every time."""


@dataclass(frozen=True, slots=True)
class LeastCostScorer:
    """Who adds least to everybody's latency? Reads ``rollout_cost`` (cycle); lower is better."""

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        return inverse_minmax(endpoints[ROLLOUT_COST])


def _profile(
    *scorers: tuple[Scorer, float] | Scorer, filters: tuple[Filter, ...] = (), picker: Picker | None = None
) -> SchedulingProfile:
    weighted = tuple(WeightedScorer(*each) if isinstance(each, tuple) else WeightedScorer(each) for each in scorers)
    return SchedulingProfile(MaxScorePicker() if picker is None else picker, weighted, filters)


def _own(fleet: Fleet) -> ApproximatePrefixProducer:
    """What we sent where, as much as a server holds."""
    config = fleet.config
    return ApproximatePrefixProducer(block_size=config.block_size, capacity=config.kv_blocks, seed=_SEED)


def _told(fleet: Fleet, *, speculative: float | None = None) -> PrecisePrefixProducer:
    """What the servers say that they hold."""
    return PrecisePrefixProducer(block_size=fleet.config.block_size, speculative_ttl=speculative)


def _forecast(fleet: Fleet) -> PredictedLatencyProducer:
    """What the servers' own step-time model foretells from our books."""
    config = fleet.config
    predictor = StepTimePredictor(fleet.timing, max_tokens=config.max_tokens, kv_tokens=config.kv_tokens)
    return PredictedLatencyProducer(predictor, streaming=True)


Producers = Callable[[Fleet], tuple[DataProducer[Any], ...]]


def _with(profile: Callable[[Fleet], SchedulingProfile], producers: Producers) -> Callable[[Fleet], Scheduler]:
    return lambda fleet: Scheduler(profile(fleet), producers=producers(fleet))


def _blind(picker: Picker) -> Callable[[Fleet], Scheduler]:
    return lambda fleet: Scheduler(SchedulingProfile(picker))


def _plain(*scorers: tuple[Scorer, float] | Scorer, picker: Picker | None = None) -> Callable[[Fleet], Scheduler]:
    return lambda fleet: Scheduler(_profile(*scorers, picker=picker))


def _prefixed(
    *scorers: tuple[Scorer, float] | Scorer, filters: tuple[Filter, ...] = ()
) -> Callable[[Fleet], Scheduler]:
    """With an index of what we sent where."""
    return lambda fleet: Scheduler(_profile(*scorers, filters=filters), producers=(_own(fleet),))


def kv_router(name: str, what: str, *, temperature: float = 0.0, **parameters: float) -> Policy:
    """Return Dynamo's KV router with these parameters of `KvRouterScorer`, as a policy. Ties are drawn evenly, as Dynamo does.

    >>> kv_router("dynamo-kv-x4", "prefill counts four times", prefill_scale=4.0).name
    'dynamo-kv-x4'
    """

    def build(fleet: Fleet) -> Scheduler:
        size = fleet.config.block_size
        picker = SoftmaxPicker(temperature or _TIES)
        scorer = KvRouterScorer(block_size=size, **parameters)
        return Scheduler(
            _profile(scorer, picker=picker), producers=(_told(fleet), ActiveBlocksProducer(block_size=size))
        )

    return Policy(name, what, build, news=True, source="ai-dynamo 1.6.1, lib/kv-router")


def _cache_aware(fleet: Fleet) -> Scheduler:
    prefix = ApproximatePrefixProducer(block_size=fleet.config.block_size, capacity=None, seed=_SEED)
    return Scheduler(_profile(CacheAwareScorer()), producers=(prefix, HeldBlocksProducer(prefix)))


def _predicted(fleet: Fleet) -> Scheduler:
    learns = PredictedLatencyProducer(OnlineLatencyPredictor(), streaming=True)
    return Scheduler(_profile(LatencyScorer(), filters=(SloHeadroomTierFilter(),)), producers=(_own(fleet), learns))


def _ceiling(*, first_token: bool = False) -> Callable[[Fleet], Scheduler]:
    return _with(
        lambda _: _profile(LeastCostScorer()), lambda fleet: (RolloutProducer(fleet, first_token=first_token),)
    )


def marginal(name: str, what: str, cost: MarginalCost | None = None, **parameters: float) -> Policy:
    """Return late binding by marginal latency with these parameters of `LateBinder`, as a policy. Its prefixes are the servers' word."""

    def bind(fleet: Fleet, scheduler: Scheduler) -> LateBinder:
        config = fleet.config
        known: dict[str, Any] = {"max_tokens": config.max_tokens, "kv_tokens": config.kv_tokens, **parameters}
        return LateBinder(scheduler, fleet.timing, cost, **known)

    return Policy(
        name,
        what,
        lambda fleet: Scheduler(_profile(), producers=(_told(fleet, speculative=2.0),)),
        news=True,
        source="ours: docs/explanation/marginal.md",
        bind=bind,
    )


def disaggregated(name: str, what: str, *, least_tokens: int = 0) -> Policy:
    """Return a policy for servers of two roles: prompts with `least_tokens` to compute go to a prefill server first, as in llm-d.

    Decode servers by prefix 3 and requests in flight 2, prefill servers by prefix 3 and tokens in flight 2; roles are the servers' labels
    (``llm-d.ai/role``, `ServerGroup.labels`).

    >>> disaggregated("apart", "prompts are computed apart").staged
    True
    """

    def build(fleet: Fleet) -> Scheduler:
        decider = PrefixBasedDecider(least_tokens) if least_tokens else AlwaysDecider()
        profiles = {
            "decode": _profile((PrefixCacheScorer(), 3.0), (ActiveRequestScorer(), 2.0), filters=(DecodeFilter(),)),
            "prefill": _profile((PrefixCacheScorer(), 3.0), (TokenLoadScorer(), 2.0), filters=(PrefillFilter(),)),
        }
        return Scheduler(profiles, handler=DisaggProfileHandler(prefill_decider=decider), producers=(_own(fleet),))

    return Policy(name, what, build, staged=True, source="llm-d, disaggregated serving")


_PREFIX_KEY: Final = RequestKey("prefix", blocks=16)

_ALL: Final = (
    Policy("random", "a server by lot: the floor", _blind(RandomPicker()), compiled=replaying.RANDOM),
    Policy("always-busiest", "most of our requests in flight: below the floor", _plain(BusiestScorer())),
    Policy("round-robin", "a server by turn", _blind(RoundRobinPicker()), compiled=replaying.ROUND_ROBIN),
    Policy(
        "least-request",
        "fewest of our requests in flight",
        _plain(ActiveRequestScorer()),
        compiled=replaying.LEAST_REQUEST,
    ),
    Policy(
        "power-of-two",
        "the less loaded of two drawn by lot",
        _plain(ActiveRequestScorer(), picker=PowerOfTwoPicker()),
        source="Mitzenmacher 2001",
        compiled=replaying.POWER_OF_TWO,
    ),
    Policy(
        "least-kv", "most KV cache free, as scraped", _plain(KvCacheUtilizationScorer()), scrapes=True, source="AIBrix"
    ),
    Policy(
        "vllm-coordinator",
        "least 4 waiting + running, our own since the scrape included",
        _with(lambda _: _profile(CoordinatorScorer()), lambda _: (SentSinceProducer(),)),
        scrapes=True,
        source="vLLM v1, data-parallel coordinator",
    ),
    Policy(
        "session",
        "where the first 16 blocks of the prompt belong",
        _plain(RendezvousScorer(_PREFIX_KEY)),
        source="production-stack's session router, keyed by the prompt's beginning",
    ),
    Policy(
        "bounded-hash",
        "the same, but nobody carries more than 1.25 of its share",
        _plain(BoundedLoadScorer(_PREFIX_KEY)),
        source="Mirrokni, Thorup and Zadimoghaddam 2016; KubeAI",
    ),
    Policy("smg-cache-aware", "the longest prefix while loads are even", _cache_aware, source="SMG, SGLang's router"),
    Policy(
        "smg-prefix-hash",
        "where the first 256 tokens belong, below 1.25 of the mean load",
        _plain(BoundedLoadScorer(RequestKey("prefix", blocks=4))),
        source="SMG",
    ),
    Policy(
        "smg-least-load",
        "least seconds of queued tokens, and of a KV cache that fills",
        _plain(KvBarrierScorer()),
        scrapes=True,
        source="SMG",
    ),
    Policy(
        "preble",
        "the longest prefix if it is most of the prompt, else least cost",
        _with(lambda _: _profile(PrebleScorer()), lambda fleet: (_own(fleet), PrebleProducer())),
        source="Preble E2, ICLR 2025",
    ),
    Policy(
        "preble-in-flight",
        "the same, by the load in flight instead of that of the last three minutes",
        _with(lambda _: _profile(PrebleScorer()), lambda fleet: (_own(fleet), PrebleProducer(window=0.0))),
        source="Preble E2, with the load that a gateway knows at once",
    ),
    Policy(
        "mooncake",
        "first token soonest, by forecast",
        _with(lambda _: _profile(PredictedFirstTokenScorer()), lambda fleet: (_own(fleet), _forecast(fleet))),
        source="Mooncake Conductor, FAST 2025",
    ),
    Policy("lmetric", "least prefill work times requests", _prefixed(LMetricScorer()), source="LMetric, OSDI 2026"),
    Policy(
        "lpwl",
        "least prefill work left, ties to fewest requests",
        _prefixed(Lexicographic((PrefillWorkScorer(), ActiveRequestScorer()), resolution=0.0)),
        source="agentic-kvc 2026",
    ),
    kv_router("dynamo-kv", "least blocks to prefill and decode"),
    kv_router("dynamo-kv-x8", "the same, prefill counting eight times", prefill_scale=8.0),
    Policy(
        "gie-default",
        "prefix 3, queue 2, KV 2, as the reference's default",
        lambda fleet: Scheduler(default_profile(), producers=(_own(fleet),)),
        scrapes=True,
        source="Gateway API Inference Extension",
    ),
    Policy(
        "llm-d-precise",
        "prefix by KV events 2, queue 1, KV 1",
        _with(
            lambda _: _profile((PrefixCacheScorer(), 2.0), (QueueScorer(), 1.0), (KvCacheUtilizationScorer(), 1.0)),
            lambda fleet: (_told(fleet, speculative=2.0),),
        ),
        scrapes=True,
        news=True,
        source="llm-d, precise prefix profile",
    ),
    Policy(
        "llm-d-prefix-affinity",
        "where 80 % of the prompt is unless that costs 18 s; then token load",
        _prefixed(TokenLoadScorer(), ActiveRequestScorer(), filters=(PrefixCacheAffinityFilter(),)),
        source="llm-d, prefix-cache-affinity-filter",
    ),
    Policy(
        "llm-d-predicted",
        "least headroom to the objectives, by a predictor that learns",
        _predicted,
        scrapes=True,
        source="llm-d, predicted latency (our regression in place of its XGBoost service)",
    ),
    Policy(
        "aibrix-prefix",
        "the longest prefix among usual loads",
        _prefixed(PrefixThenLoadScorer()),
        source="AIBrix prefix-cache",
    ),
    Policy(
        "polyserve",
        "the most loaded that still meets 2 s and 25 ms",
        _with(lambda _: _profile(LoadGradientScorer()), lambda fleet: (_own(fleet), _forecast(fleet))),
        source="PolyServe, arXiv 2507.17769",
    ),
    Policy(
        "skylb",
        "of servers without a pending prompt, the longest prefix; else least token load",
        _prefixed((PrefixCacheScorer(), 1.0), (TokenLoadScorer(), 1.0), filters=(IdleServersFilter(),)),
        source="SkyWalker, EuroSys 2026",
    ),
    Policy("llumnix", "most free KV blocks a request", _plain(FreenessScorer()), source="Llumnix, OSDI 2024"),
    Policy(
        "dualmap",
        "the better of two that the prompt's beginning belongs to",
        _with(lambda _: _profile(DualMapScorer(_PREFIX_KEY)), lambda fleet: (_own(fleet), _forecast(fleet))),
        source="DualMap, ICLR 2026",
    ),
    Policy(
        "d2lpm",
        "the longest prefix where the client has something left",
        _with(lambda _: _profile(DeficitPrefixScorer()), lambda fleet: (_own(fleet), DeficitProducer())),
        source="D2LPM, arXiv 2501.14312",
    ),
    marginal("marginal", "held until a server is about to be free, then where everybody waits least"),
    Policy(
        "oracle-first-token",
        "fresh state, true lengths: own first token soonest, one-step roll-out",
        _ceiling(first_token=True),
    ),
    Policy("clairvoyant", "fresh state, true lengths, one-step roll-out: a strong reference, not a bound", _ceiling()),
)

#: Which are compared where nobody says: the ends of the table, what gateways do by default, the strongest rules, and ours.
USUAL: Final = (
    "random",
    "round-robin",
    "least-request",
    "power-of-two",
    "gie-default",
    "dynamo-kv",
    "lmetric",
    "preble-in-flight",
    "marginal",
    "clairvoyant",
)

POLICIES: Final[Mapping[str, Policy]] = MappingProxyType({policy.name: policy for policy in _ALL})


def policy(name: str) -> Policy:
    """Which policy has this name? `UnknownNameError` lists those there are.

    >>> policy("gie-default").what
    "prefix 3, queue 2, KV 2, as the reference's default"
    """
    found = POLICIES.get(name)
    if found is None:
        raise UnknownNameError("policy", name, list(POLICIES))
    return found
