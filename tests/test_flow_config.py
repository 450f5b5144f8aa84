"""What a configuration says of flow control is what the controller does; what is wrong is named with its path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.config import flow_controller, flow_settings, load
from inferencesched.config.decode import decode
from inferencesched.config.document import FlowControl
from inferencesched.config.flow_control import quantity
from inferencesched.errors import ConfigError, InvalidInputError
from inferencesched.flowcontrol import (
    Capacity,
    ConcurrencyDetector,
    EarliestDeadline,
    FirstCome,
    FlowSettings,
    GlobalStrict,
    PriorityBand,
    PriorityHoldback,
    QueueItem,
    QueueOutcome,
    RoundRobin,
    Stale,
    Ticket,
    UtilizationDetector,
)
from inferencesched.flowcontrol.config import band_capacity
from inferencesched.pool import InferencePool

PLUGINS = {
    "turns": RoundRobin(),
    "edf": EarliestDeadline(),
    "hold": PriorityHoldback(0.5),
    "busy": ConcurrencyDetector(),
    "full": UtilizationDetector(stale=Stale(0.2)),
}


def read(**said):
    return flow_settings(decode(FlowControl, said, "$.flowControl"), PLUGINS)


def test_nothing_said_is_llmds_defaults():
    assert flow_settings(None, {}) == read() == FlowSettings()
    settings = FlowSettings()
    assert settings.band(7) == PriorityBand(7, Capacity(5_000, 1_000_000_000), GlobalStrict(), FirstCome())
    assert settings.capacity == Capacity()
    assert (settings.budget.ttl, settings.budget.no_endpoint_ttl) == (60.0, 60.0)


def test_everything_said():
    settings = read(
        maxBytes="1Gi",
        maxRequests="2k",
        defaultRequestTTL="1m30s",
        noEndpointRequestTTL="0s",
        defaultPriorityBand={"maxRequests": 10},
        defaultNegativePriorityBand={"maxBytes": "500M", "fairnessPolicyRef": "turns"},
        priorityBands=[{"priority": 3, "orderingPolicyRef": "edf", "maxRequests": 0}],
        usageLimitPolicyPluginRef="hold",
        saturationDetector={"pluginRef": "busy"},
        enableEviction=True,
    )
    assert settings.capacity == Capacity(2_000, 2**30)
    assert (settings.budget.ttl, settings.budget.no_endpoint_ttl) == (90.0, None)
    assert settings.band(3) == PriorityBand(3, Capacity(5_000, 10**9), ordering=EarliestDeadline())
    assert settings.band(4).capacity == Capacity(10, 10**9)
    assert settings.band(-1) == PriorityBand(-1, Capacity(5_000, 500 * 10**6), RoundRobin())
    assert settings.limits == PriorityHoldback(0.5)
    assert settings.enable_eviction and settings.confirmation_grace == 0.01
    controller = settings.controller()
    assert [band.priority for band in controller.bands] == [3, 0]
    ticket = controller.submit(QueueItem(request_id="r", priority=-9), now=0.0)
    assert ticket.flow.band.capacity == Capacity(5_000, 500 * 10**6) and ticket.expires_at == 90.0


@pytest.mark.parametrize(
    ("said", "ttl", "empty"),
    [
        ({}, 60.0, 60.0),
        ({"defaultRequestTTL": "10s"}, 10.0, 10.0),
        ({"defaultRequestTTL": "0"}, None, None),
        ({"noEndpointRequestTTL": "5m"}, 60.0, 300.0),
        ({"defaultRequestTTL": "10s", "noEndpointRequestTTL": "0s"}, 10.0, None),
    ],
)
def test_one_budget_follows_the_other(said, ttl, empty):
    budget = read(**said).budget
    assert (budget.ttl, budget.no_endpoint_ttl) == (ttl, empty)


def test_how_long_an_eviction_takes_to_show():
    assert read(saturationDetector={"pluginRef": "full"}).confirmation_grace == pytest.approx(0.5)
    assert FlowSettings().confirmation_grace == 0.5


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"maxBytes": "1 GB"}, "$.flowControl.maxBytes"),
        ({"maxBytes": -1}, "$.flowControl.maxBytes"),
        ({"maxRequests": "-1k"}, "$.flowControl.maxRequests"),
        ({"defaultRequestTTL": "ten"}, "$.flowControl.defaultRequestTTL"),
        ({"defaultRequestTTL": "-1s"}, "$.flowControl.defaultRequestTTL"),
        ({"noEndpointRequestTTL": "-1s"}, "$.flowControl.noEndpointRequestTTL"),
        ({"priorityBands": [{"priority": 1}, {"priority": 1}]}, "$.flowControl.priorityBands[1].priority"),
        ({"priorityBands": [{"priority": "high"}]}, "$.flowControl.priorityBands[0].priority"),
        ({"priorityBands": [None]}, "$.flowControl.priorityBands[0]"),
        ({"priorityBands": [{"maxBytes": "many"}]}, "$.flowControl.priorityBands[0].maxBytes"),
        ({"priorityBands": [{"fairnessPolicyRef": "nobody"}]}, "$.flowControl.priorityBands[0].fairnessPolicyRef"),
        ({"defaultPriorityBand": {"orderingPolicyRef": "x"}}, "$.flowControl.defaultPriorityBand.orderingPolicyRef"),
        ({"usageLimitPolicyPluginRef": "x"}, "$.flowControl.usageLimitPolicyPluginRef"),
        ({"saturationDetector": {"pluginRef": "x"}}, "$.flowControl.saturationDetector.pluginRef"),
        ({"enableEvictions": True}, "$.flowControl.enableEvictions"),
        ({"enableEviction": "yes"}, "$.flowControl.enableEviction"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(said, path):
    with pytest.raises(ConfigError) as caught:
        read(**said)
    assert caught.value.parameter == path


@pytest.mark.parametrize(
    ("said", "parameter"),
    [
        ({"ttl": -1.0}, "defaultRequestTTL"),
        ({"no_endpoint_ttl": float("nan")}, "noEndpointRequestTTL"),
        ({"flow_gc_timeout": 0.0}, "flowGCTimeout"),
        ({"band_gc_timeout": 299.0}, "priorityBandGCTimeout"),
        ({"expiry_cleanup_interval": 0.0}, "expiryCleanupInterval"),
        ({"enqueue_channel_buffer_size": -1}, "enqueueChannelBufferSize"),
        ({"max_bytes": -1}, "maxBytes"),
        ({"max_revocations": 0}, "most"),
        ({"confirmation_grace": -0.1}, "grace"),
        ({"confirmation_timeout": 0.0}, "timeout"),
        ({"bands": (PriorityBand(1), PriorityBand(1))}, "priorityBands"),
    ],
)
def test_settings_are_checked(said, parameter):
    with pytest.raises(InvalidInputError) as caught:
        FlowSettings(**said)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("said", "number"),
    [(0, 0), (7, 7), (1.5, 2), ("100m", 1), ("1.5Ki", 1536), ("1e3", 1000), ("12E", 12 * 10**18), ("+3", 3), (None, 0)],
)
def test_quantities(said, number):
    assert quantity("$", said) == number


@given(st.integers(0, 10**12), st.sampled_from(["", "k", "M", "G", "Ki", "Mi", "Gi", "Ti"]))
def test_a_quantity_is_its_number_times_its_unit(number, suffix):
    base = 1024 if suffix.endswith("i") else 1000
    assert quantity("$", f"{number}{suffix}") == number * base ** " kMGT".upper().index((suffix or " ")[0].upper())


def test_a_band_is_never_unlimited():
    assert band_capacity(0, 0) == Capacity(5_000, 10**9)
    with pytest.raises(InvalidInputError, match="maxBytes"):
        band_capacity(-1)


# --- from a whole configuration ----------------------------------------------------------------------------------


def configured(*gates, plugins=(), **flow):
    raw = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": list(gates),
        "plugins": [{"type": "queue-scorer"}, *plugins],
        "flowControl": flow,
    }
    return load(raw)


def test_a_configuration_becomes_a_controller():
    loaded = configured(
        "flowControl",
        plugins=[
            {"type": "round-robin-fairness-policy"},
            {"type": "concurrency-detector", "parameters": {"maxConcurrency": 2}},
        ],
        priorityBands=[{"priority": 5, "fairnessPolicyRef": "round-robin-fairness-policy", "maxRequests": 3}],
        saturationDetector={"pluginRef": "concurrency-detector"},
        maxRequests=4,
    )
    controller, pool = flow_controller(loaded), InferencePool()
    pool.join("e")
    controller.observe(pool.snapshot(), now=0.0)
    tickets = [controller.submit(QueueItem(request_id=f"{i}", priority=5, flow=f"{i}"), now=0.0) for i in range(4)]
    assert tickets[3].outcome is QueueOutcome.REJECTED_CAPACITY and "at priority 5" in tickets[3].detail
    assert [event.ticket for event in controller.step(now=0.0)] == tickets[:2]  # two is what the endpoint takes
    controller.completed(tickets[0], now=1.0)
    assert [event.ticket for event in controller.step(now=1.0)] == tickets[2:3]
    controller.check()


def test_behind_a_closed_gate_is_no_queue():
    controller = flow_controller(configured(maxRequests=1))
    low = controller.submit(QueueItem(request_id="low", priority=-1), now=0.0)
    assert low.outcome is QueueOutcome.REJECTED_CAPACITY  # nothing is known of any server: full
    for i in range(3):
        assert isinstance(controller.submit(QueueItem(request_id=f"{i}"), now=0.0), Ticket)
        assert len(controller.step(now=0.0)) == 1


def test_the_controller_evicts_where_it_is_told_to():
    on, off = (flow_controller(configured("flowControl", enableEviction=said)) for said in (True, False))
    assert on._reclaimer is not None and off._reclaimer is None
