"""Are the plug-ins that llm-d lacks configured as its own are? Read, built, written, and refused."""

from typing import Any

import pytest

import inferencesched as isched
from inferencesched import ConfigError
from inferencesched.config import dump
from inferencesched.config import load as load_strictly
from inferencesched.config.native import dump_scheduler
from inferencesched.config.registry import Registry

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
SESSION, PREFIX = isched.RequestKey(), isched.RequestKey("prefix", blocks=4)

#: Type, parameters, and what they make.
FILTERS: list[tuple[str, dict[str, Any], object]] = [
    ("rendezvous-filter", {}, isched.RendezvousFilter()),
    (
        "rendezvous-filter",
        {"key": "header", "headerName": "X-User", "replicas": 2, "weighted": False},
        isched.RendezvousFilter(isched.RequestKey("header", "x-user"), 2, False),
    ),
    ("bounded-load-filter", {"key": "prefix", "prefixBlocks": 4}, isched.BoundedLoadFilter(PREFIX)),
    ("bounded-load-filter", {"balance": 0.5, "replicas": 3}, isched.BoundedLoadFilter(SESSION, 0.5, 3)),
    ("health-filter", {"minimum": 1.0}, isched.HealthFilter(1.0)),
]
SCORERS: list[tuple[str, dict[str, Any], object]] = [
    ("rendezvous-scorer", {"key": "adapter", "replicas": 3}, isched.RendezvousScorer(isched.RequestKey("adapter"), 3)),
    ("bounded-load-scorer", {"balance": 1.0}, isched.BoundedLoadScorer(SESSION, 1.0)),
    ("load-seconds-scorer", {}, isched.LoadSecondsScorer()),
    (
        "load-seconds-scorer",
        {"horizon": 2.5, "secondsPerContextToken": 4e-8, "kvBarrier": 0.15},
        isched.LoadSecondsScorer(2.5, 4e-8, 0.15),
    ),
    ("capacity-scaled-scorer", {}, isched.CapacityScaledScorer()),
    (
        "capacity-scaled-scorer",
        {"signal": "inflight_tokens", "step": 500.0, "full": 9000.0},
        isched.CapacityScaledScorer(isched.INFLIGHT_TOKENS, 500.0, 9000.0),
    ),
]
PICKERS: list[tuple[str, dict[str, Any], object]] = [
    ("round-robin-picker", {"maxNumOfEndpoints": 2}, isched.RoundRobinPicker(2)),
    ("power-of-two-picker", {"choices": 3}, isched.PowerOfTwoPicker(3)),
    ("epsilon-greedy-picker", {"epsilon": 0.2}, isched.EpsilonGreedyPicker(0.2)),
    (
        "softmax-picker",
        {"temperature": 0.5, "normalized": False, "maxNumOfEndpoints": 3},
        isched.SoftmaxPicker(0.5, False, 3),
    ),
]


def llmd(*plugins: dict[str, Any]) -> dict[str, Any]:
    """A configuration of one profile with these plug-ins, all of them in it but those that have a name."""
    entries = [{"name": f"p{i}", **plugin} for i, plugin in enumerate(plugins)]
    refs = [{"pluginRef": f"p{i}"} for i, plugin in enumerate(plugins) if "name" not in plugin]
    return {**HEAD, "plugins": entries, "schedulingProfiles": [{"name": "default", "plugins": refs}]}


def load(said: dict[str, Any]) -> Any:
    """`utilization-filter` is alpha."""
    return load_strictly(said, allow_experimental=True)


def profile(said: dict[str, Any]) -> isched.SchedulingProfile:
    (made,) = load(said).scheduler().profiles.values()
    return made


def within(made: isched.SchedulingProfile) -> list[object]:
    return [*made.filters, *(weighted.scorer for weighted in made.scorers), made.picker]


@pytest.mark.parametrize(("kind", "parameters", "plugin"), FILTERS + SCORERS + PICKERS)
def test_each_is_made_and_written_as_it_was(kind, parameters, plugin):
    said = llmd({"type": kind, "parameters": parameters})
    made = load(said)
    assert plugin in within(profile(said))
    assert load(dump(made)).scheduler().profiles == made.scheduler().profiles
    written = dump_scheduler(made.scheduler())
    assert load(written).scheduler().profiles == made.scheduler().profiles


def test_health_brings_its_producer_along():
    scheduler = load(llmd({"type": "health-filter"})).scheduler()
    (producer,) = scheduler.producers
    assert isinstance(producer, isched.OutlierProducer) and producer.policy == isched.OutlierPolicy()


def test_a_policy_is_made_and_written_as_it_was():
    parameters = {"consecutiveFailures": 3, "failureShare": 0.5, "trials": 2, "forgiven": ["gone"], "maxEjected": 0.2}
    said = llmd({"type": "health-filter"}, {"type": "outlier-producer", "name": "sick", "parameters": parameters})
    for again in (load(said), load(dump(load(said))), load(dump_scheduler(load(said).scheduler()))):
        (producer,) = again.scheduler().producers
        inner = producer if isinstance(producer, isched.OutlierProducer) else producer.producer
        assert inner.policy == isched.OutlierPolicy(
            consecutive_failures=3, failure_share=0.5, trials=2, forgiven=("gone",), max_ejected=0.2
        )


BUSY = {"name": "busy", "type": "utilization-filter"} | {
    "parameters": {"conditions": [{"metric": "waiting-queue", "maxValue": 5}]}
}
HASHED = {"name": "hashed", "type": "rendezvous-filter"}
UTILIZATION = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 5.0),))


@pytest.mark.parametrize(
    ("entries", "plugin"),
    [
        ([BUSY, {"type": "prefer-filter", "parameters": {"filter": "busy"}}], isched.Prefer(UTILIZATION)),
        ([BUSY, {"type": "not-filter", "parameters": {"filter": "busy"}}], isched.Not(UTILIZATION)),
        (
            [BUSY, HASHED, {"type": "all-of-filter", "parameters": {"filters": ["busy", "hashed"]}}],
            isched.AllOf((UTILIZATION, isched.RendezvousFilter())),
        ),
        (
            [
                BUSY,
                HASHED,
                {"name": "either", "type": "any-of-filter", "parameters": {"filters": ["hashed", "busy"]}},
                {"type": "prefer-filter", "parameters": {"filter": "either"}},
            ],
            isched.Prefer(isched.AnyOf((isched.RendezvousFilter(), UTILIZATION))),
        ),
        (
            [
                {"name": "prefix", "type": "prefix-cache-scorer"},
                {"type": "at-least-filter", "parameters": {"scorer": "prefix", "minimum": 0.8}},
            ],
            isched.AtLeast(isched.PrefixCacheScorer(), 0.8),
        ),
        (
            [
                {"name": "prefix", "type": "prefix-cache-scorer"},
                {"name": "queue", "type": "queue-scorer"},
                {"type": "lexicographic-scorer", "parameters": {"scorers": ["prefix", "queue"], "resolution": 0.1}},
            ],
            isched.Lexicographic((isched.PrefixCacheScorer(), isched.QueueScorer()), 0.1),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_combinations_name_what_they_are_made_of(entries, plugin):
    made = load(llmd(*entries))
    assert plugin in within(profile(llmd(*entries)))
    assert load(dump(made)).scheduler().profiles == made.scheduler().profiles
    written = dump_scheduler(made.scheduler())
    assert load(written).scheduler().profiles == made.scheduler().profiles


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (llmd({"type": "rendezvous-filter", "parameters": {"key": "cookie"}}), ("key", "cookie", "session")),
        (llmd({"type": "rendezvous-filter", "parameters": {"key": "header"}}), ("header", "a name")),
        (llmd({"type": "rendezvous-filter", "parameters": {"replicas": 0}}), ("replicas", "0", "at least 1")),
        (llmd({"type": "bounded-load-filter", "parameters": {"balance": 0}}), ("balance", "above 0")),
        (llmd({"type": "softmax-picker", "parameters": {"temperature": -1}}), ("temperature", "at least 0")),
        (llmd({"type": "epsilon-greedy-picker", "parameters": {"epsilon": 2}}), ("epsilon", "0 to 1")),
        (llmd({"type": "outlier-producer", "parameters": {"maxEjected": 2}}), ("maxEjected", "at most 1")),
        (llmd({"type": "capacity-scaled-scorer", "parameters": {"signal": "queue"}}), ("signal", "waiting_queue_size")),
        (llmd({"type": "prefer-filter", "parameters": {"filter": "nobody"}}), ("filter", "nobody")),
        (llmd({"type": "prefer-filter"}), ("filter",)),
        (llmd({"type": "all-of-filter", "parameters": {"filters": []}}), ("filters",)),
        (
            llmd({"name": "queue", "type": "queue-scorer"}, {"type": "not-filter", "parameters": {"filter": "queue"}}),
            ("queue", "filter"),
        ),
        (
            llmd(BUSY, {"type": "lexicographic-scorer", "parameters": {"scorers": ["busy"]}}),
            ("busy", "scorer"),
        ),
        (
            llmd(
                {"name": "a", "type": "not-filter", "parameters": {"filter": "b"}},
                {"name": "b", "type": "not-filter", "parameters": {"filter": "a"}},
            ),
            ("a", "b"),
        ),
    ],
)
def test_mistakes_are_told(said, words):
    with pytest.raises(ConfigError) as error:
        load(said)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_all_of_ours_are_registered():
    mine = {kind for kind, _, _ in FILTERS + SCORERS + PICKERS} | {
        "outlier-producer",
        "prefer-filter",
        "not-filter",
        "all-of-filter",
        "any-of-filter",
        "at-least-filter",
        "lexicographic-scorer",
    }
    registry = Registry.default()
    assert mine <= set(registry) and all(registry[name].origin == "own" for name in mine)
