"""How is each plug-in of the library made? At least one way a plug-in, by the name of its class; `test_contracts` checks them all.

Each entry makes a new one: producers have state. Give every parameter that changes what is read or how it is judged.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import isclass
from pkgutil import walk_packages

import inferencesched as isched
from inferencesched import assigners, filters, handlers, pickers, prefix, producers, scorers, sessions, signals
from inferencesched.endpoints import KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE
from inferencesched.filters.labels import LabelRequirement
from inferencesched.flowcontrol import saturation
from inferencesched.placement import RequestKey
from inferencesched.prefix.precise import PrecisePrefixProducer, UnionPrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.producers.forecast import StepTimePredictor
from inferencesched.producers.inflight import InflightLoadProducer
from inferencesched.producers.latency import PredictedLatencyProducer
from inferencesched.producers.named import NamedProducer
from inferencesched.producers.regression import OnlineLatencyPredictor
from inferencesched.signals import PREDICTED_TTFT
from inferencesched.simulator.engine import timing
from inferencesched.testing import kinds_of

Make = Callable[[], object]
BUSY = filters.UtilizationFilter(((WAITING_QUEUE_SIZE, 5.0), (KV_CACHE_USAGE, 0.8)))
KEYS = (RequestKey(), RequestKey("prefix"), RequestKey("header", "x-zone"), RequestKey("tenant"))


def predicted(**options) -> Make:
    return lambda: PredictedLatencyProducer(StepTimePredictor(timing("llama-3.1-8b-h100")), **options)


def approximate(**options) -> ApproximatePrefixProducer:
    return ApproximatePrefixProducer(**{"block_size": 16, **options})


EXAMPLES: dict[str, tuple[Make, ...]] = {
    # filters
    "AllOf": (lambda: filters.AllOf((BUSY, filters.RendezvousFilter(KEYS[1], replicas=2))),),
    "AnyOf": (lambda: filters.AnyOf((BUSY, filters.Not(filters.HealthFilter()))),),
    "AtLeast": (
        lambda: filters.AtLeast(scorers.PrefixCacheScorer(), 0.8),
        lambda: filters.AtLeast(scorers.QueueScorer(), 0.5),
    ),
    "BoundedLoadFilter": (
        *(lambda key=key: filters.BoundedLoadFilter(key) for key in KEYS),
        lambda: filters.BoundedLoadFilter(KEYS[2], balance=0.1, replicas=2, weighted=False),
    ),
    "DecodeFilter": (filters.DecodeFilter,),
    "EncodeFilter": (filters.EncodeFilter,),
    "EndpointAttributeFilter": (
        lambda: filters.EndpointAttributeFilter(WAITING_QUEUE_SIZE, "LessThan", 5.0),
        lambda: filters.EndpointAttributeFilter(KV_CACHE_USAGE, "GreaterThanOrEqual", 0.5, "Fail", True),
        lambda: filters.EndpointAttributeFilter(RUNNING_REQUESTS, "NotEqual", 3.0, "Fail"),
    ),
    "HeaderEndpointFilter": (filters.HeaderEndpointFilter,),
    "HealthFilter": (filters.HealthFilter, lambda: filters.HealthFilter(1.0)),
    "LabelFilter": (
        lambda: filters.LabelFilter("zone", ("eu",)),
        lambda: filters.LabelFilter("zone", ("us", "asia"), allow_missing=True),
    ),
    "LabelSelectorFilter": (
        lambda: filters.LabelSelectorFilter({"zone": "eu"}, (LabelRequirement("llm-d.ai/role", "Exists"),)),
        filters.LabelSelectorFilter,
    ),
    "Not": (lambda: filters.Not(BUSY), lambda: filters.Not(filters.AtLeast(scorers.KvCacheUtilizationScorer(), 0.5))),
    "Prefer": (lambda: filters.Prefer(BUSY), lambda: filters.Prefer(filters.DecodeFilter())),
    "PrefillFilter": (filters.PrefillFilter,),
    "PrefixCacheAffinityFilter": (
        filters.PrefixCacheAffinityFilter,
        lambda: filters.PrefixCacheAffinityFilter(0.3, max_ttft_penalty_ms=0.0, ttft_source="latencyPredictor"),
        lambda: filters.PrefixCacheAffinityFilter(exploration_probability=0.5),
    ),
    "RendezvousFilter": (
        *(lambda key=key: filters.RendezvousFilter(key) for key in KEYS),
        lambda: filters.RendezvousFilter(KEYS[2], replicas=3, weighted=False),
    ),
    "SessionAffinityFilter": (
        filters.SessionAffinityFilter,
        lambda: filters.SessionAffinityFilter(sessions.BoundSession()),
    ),
    "SloHeadroomTierFilter": (
        filters.SloHeadroomTierFilter,
        lambda: filters.SloHeadroomTierFilter(0.5, "latency"),
    ),
    "TopologyAffinityFilter": (
        filters.TopologyAffinityFilter,
        lambda: filters.TopologyAffinityFilter("zone"),
        lambda: filters.TopologyAffinityFilter("region", peer_header="x-peer"),
    ),
    "UtilizationFilter": (
        lambda: filters.UtilizationFilter(((WAITING_QUEUE_SIZE, 5.0), (KV_CACHE_USAGE, 0.8))),
        lambda: filters.UtilizationFilter(((WAITING_QUEUE_SIZE, 5.0),), fallback_on_empty=True),
    ),
    # scorers
    "ActiveRequestScorer": (scorers.ActiveRequestScorer, lambda: scorers.ActiveRequestScorer(2.0, 0.5)),
    "BoundedLoadScorer": (
        *(lambda key=key: scorers.BoundedLoadScorer(key) for key in KEYS),
        lambda: scorers.BoundedLoadScorer(KEYS[1], balance=2.0, replicas=2, weighted=False),
    ),
    "CapacityScaledScorer": (
        scorers.CapacityScaledScorer,
        lambda: scorers.CapacityScaledScorer(WAITING_QUEUE_SIZE, step=0.0, full=8.0),
    ),
    "ContextLengthAware": (scorers.ContextLengthAware, lambda: scorers.ContextLengthAware("zone", filtering=True)),
    "EncoderCacheScorer": (scorers.EncoderCacheScorer, lambda: scorers.EncoderCacheScorer("mm-2")),
    "EndpointAttributeScorer": (
        lambda: scorers.EndpointAttributeScorer(WAITING_QUEUE_SIZE, "lower"),
        lambda: scorers.EndpointAttributeScorer(KV_CACHE_USAGE, "higher", (0.2, 0.6)),
        lambda: scorers.EndpointAttributeScorer(PREDICTED_TTFT, "lower"),
    ),
    "HeaderLabelAffinityScorer": (lambda: scorers.HeaderLabelAffinityScorer("x-zone", "zone"),),
    "KvCacheUtilizationScorer": (scorers.KvCacheUtilizationScorer,),
    "LatencyScorer": (
        scorers.LatencyScorer,
        lambda: scorers.LatencyScorer(0.3, 0.7, "most"),
        lambda: scorers.LatencyScorer(0.0, 1.0, producer="latency", prefix_producer="prefix"),
    ),
    "Lexicographic": (
        lambda: scorers.Lexicographic((scorers.PrefixCacheScorer(), scorers.QueueScorer()), 0.1),
        lambda: scorers.Lexicographic((scorers.RendezvousScorer(KEYS[2]), scorers.LoadSecondsScorer()), 0.0),
    ),
    "LoadAwareScorer": (scorers.LoadAwareScorer, lambda: scorers.LoadAwareScorer(4.0)),
    "LoadSecondsScorer": (
        scorers.LoadSecondsScorer,
        lambda: scorers.LoadSecondsScorer(5.0, seconds_per_context_token=1e-4, kv_barrier=0.15),
    ),
    "LoraAffinityScorer": (scorers.LoraAffinityScorer, lambda: scorers.LoraAffinityScorer(distinct=True)),
    "LoraResidencyScorer": (
        scorers.LoraResidencyScorer,
        lambda: scorers.LoraResidencyScorer(base_models=("llama",)),
    ),
    "MultiClusterKvCacheUtilizationScorer": (scorers.MultiClusterKvCacheUtilizationScorer,),
    "MultiClusterPrefixCacheScorer": (
        scorers.MultiClusterPrefixCacheScorer,
        lambda: scorers.MultiClusterPrefixCacheScorer(match_length_weight=0.5),
    ),
    "MultiClusterQueueScorer": (scorers.MultiClusterQueueScorer,),
    "NoHitLruScorer": (scorers.NoHitLruScorer, lambda: scorers.NoHitLruScorer("cold")),
    "PrefixCacheScorer": (scorers.PrefixCacheScorer, lambda: scorers.PrefixCacheScorer(0.4, producer="prefix")),
    "QueueScorer": (scorers.QueueScorer,),
    "RendezvousScorer": (
        *(lambda key=key: scorers.RendezvousScorer(key) for key in KEYS),
        lambda: scorers.RendezvousScorer(KEYS[2], replicas=3, weighted=False),
    ),
    "RunningRequestsScorer": (scorers.RunningRequestsScorer,),
    "SessionAffinityScorer": (
        scorers.SessionAffinityScorer,
        lambda: scorers.SessionAffinityScorer(sessions.BoundSession()),
    ),
    "TokenLoadScorer": (scorers.TokenLoadScorer, lambda: scorers.TokenLoadScorer(300.0)),
    "TopologyAffinityScorer": (
        scorers.TopologyAffinityScorer,
        lambda: scorers.TopologyAffinityScorer(peer_header="x-peer"),
    ),
    # detectors, which are filters too
    "ConcurrencyDetector": (
        saturation.ConcurrencyDetector,
        lambda: saturation.ConcurrencyDetector("tokens", max_token_concurrency=3_000),
        lambda: saturation.ConcurrencyDetector("hybrid", 4, 3_000, headroom=0.25),
    ),
    "UtilizationDetector": (
        saturation.UtilizationDetector,
        lambda: saturation.UtilizationDetector(2.0, 0.4, headroom=0.25),
        lambda: saturation.UtilizationDetector(3.0, 0.5, 0.2, saturation.Stale(0.2, "saturated")),
    ),
    # pickers
    "EpsilonGreedyPicker": (pickers.EpsilonGreedyPicker, lambda: pickers.EpsilonGreedyPicker(0.5, 3)),
    "MaxScorePicker": (pickers.MaxScorePicker, lambda: pickers.MaxScorePicker(3)),
    "PowerOfTwoPicker": (pickers.PowerOfTwoPicker, lambda: pickers.PowerOfTwoPicker(3)),
    "RandomPicker": (pickers.RandomPicker, lambda: pickers.RandomPicker(3)),
    "RoundRobinPicker": (pickers.RoundRobinPicker, lambda: pickers.RoundRobinPicker(3)),
    "SoftmaxPicker": (pickers.SoftmaxPicker, lambda: pickers.SoftmaxPicker(2.0, False, 3)),
    "WeightedRandomPicker": (pickers.WeightedRandomPicker, lambda: pickers.WeightedRandomPicker(3)),
    # handlers and deciders
    "AlwaysDecider": (handlers.AlwaysDecider,),
    "DataParallelProfileHandler": (handlers.DataParallelProfileHandler,),
    "DisaggProfileHandler": (
        handlers.DisaggProfileHandler,
        lambda: handlers.DisaggProfileHandler(
            prefill_decider=handlers.PrefixBasedDecider(100), encode_decider=handlers.MultimodalDecider()
        ),
        lambda: handlers.DisaggProfileHandler(
            encode_decider=handlers.MultimodalDecider(), stage_order="prefill-first", primary_port=8000
        ),
    ),
    "HeaderProfileHandler": (handlers.HeaderProfileHandler,),
    "JointDisaggHandler": (handlers.JointDisaggHandler,),
    "MultimodalDecider": (handlers.MultimodalDecider,),
    "PrefixBasedDecider": (handlers.PrefixBasedDecider, lambda: handlers.PrefixBasedDecider(100, 200)),
    "SingleProfileHandler": (handlers.SingleProfileHandler,),
    # assigners
    "BurstAssigner": (
        assigners.BurstAssigner,
        lambda: assigners.BurstAssigner(2, 1, "tokens", block_size=16),
    ),
    # producers
    "ApproximatePrefixProducer": (
        approximate,
        lambda: approximate(ttl=5.0, capacity=None),
        lambda: approximate(automatic=True, max_blocks=4, count_blocks=True),
    ),
    "BurstPrefixProducer": (producers.BurstPrefixProducer,),
    "EncoderCacheProducer": (producers.EncoderCacheProducer, lambda: producers.EncoderCacheProducer(entries=1)),
    "InflightLoadProducer": (InflightLoadProducer,),
    "NamedProducer": (
        lambda: NamedProducer(approximate(), "prefix", (), approximate().produces),
        lambda: NamedProducer(producers.OutlierProducer(), "health", (signals.HEALTH,), (signals.HEALTH,)),
    ),
    "NoHitLruProducer": (producers.NoHitLruProducer, lambda: producers.NoHitLruProducer(lru_size=2)),
    "OutlierProducer": (
        producers.OutlierProducer,
        lambda: producers.OutlierProducer(producers.OutlierPolicy(consecutive_failures=1, trials=2)),
    ),
    "P2PSource": (producers.P2PSource,),
    "PrecisePrefixProducer": (
        lambda: PrecisePrefixProducer(block_size=16),
        lambda: PrecisePrefixProducer(block_size=16, speculative_ttl=None, count_blocks=True),
    ),
    "PredictedLatencyProducer": (
        predicted(),
        predicted(streaming=True, endpoint_role_label="llm-d.ai/role", prefix_producer="prefix"),
        lambda: PredictedLatencyProducer(OnlineLatencyPredictor(warm_after=3)),
        lambda: PredictedLatencyProducer(OnlineLatencyPredictor(warm_after=3, quantile=0.9)),
    ),
    "SessionBindingProducer": (
        producers.SessionBindingProducer,
        lambda: producers.SessionBindingProducer(
            (sessions.SessionSource(attribute="SessionID"),), ttl=5.0, capacity=2, name="bound"
        ),
    ),
    "UnionPrefixProducer": (lambda: UnionPrefixProducer(approximate(), PrecisePrefixProducer(block_size=16)),),
}


def plugin_classes() -> Iterator[type]:
    """Walk every class of the library that has the methods of some kind of plug-in and is no Protocol and not private."""
    seen = set()
    for family in (filters, scorers, pickers, handlers, assigners, producers, prefix):
        for found in walk_packages(family.__path__, f"{family.__name__}."):
            for name, thing in vars(import_module(found.name)).items():
                own = isclass(thing) and thing.__module__.startswith("inferencesched.") and not name.startswith("_")
                if own and thing not in seen and kinds_of_class(thing):
                    seen.add(thing)
                    yield thing


def kinds_of_class(thing: type) -> bool:
    """Has this class the methods of a plug-in?"""
    own = not getattr(thing, "_is_protocol", False) and not issubclass(
        thing, tuple | isched.Scheduler | isched.Director | isched.AsyncDirector
    )
    return own and bool(kinds_of(thing))


def exported() -> Iterator[type]:
    """Walk the plug-ins among the names of the front door."""
    for name in isched.__all__:
        thing = getattr(isched, name)
        if isclass(thing) and kinds_of_class(thing):
            yield thing
