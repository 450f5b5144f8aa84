"""Do the controller, its life, its evictions and its configuration answer as llm-d's router does?"""

from collections import Counter
from copy import deepcopy

import pytest

from tests.parity import flow_config, flow_controller, flow_eviction, flow_lifecycle, run
from tests.parity.cases import loaded, outcome
from tests.shared import shared
from tests.test_parity import at, changed, leaves

FAMILIES = (flow_config, flow_controller, flow_eviction, flow_lifecycle)
RUNNERS = {key: runner for family in FAMILIES for key, runner in family.RUNNERS.items()}
COMPONENTS = tuple(sorted({component for component, _ in RUNNERS}))


def test_nearly_all_of_them_match():
    counts = Counter(each.state for each in run.outcomes(loaded([shared("vectors/flowcontrol.json")]), COMPONENTS))
    assert set(counts) <= {"passed", "failed", "skipped"}, "every component and kind of these has a runner"
    asked = counts["passed"] + counts["failed"]
    assert asked >= 130
    assert counts["passed"] >= 0.97 * asked
    assert counts["skipped"] <= 0.03 * (asked + counts["skipped"])


def test_every_expectation_matters():
    """Whatever part of an expectation is changed, its case fails: all but those that say nothing then."""
    unseen = set()
    for each in loaded([shared("vectors/flowcontrol.json")]):
        if each["component"] not in COMPONENTS or outcome(each, RUNNERS, ()).state != "passed":
            continue
        for path in leaves(each["expect"]):
            other = deepcopy(each)
            at(other["expect"], path[:-1])[path[-1]] = changed(at(each["expect"], path))
            if outcome(other, RUNNERS, ()).state != "failed":
                unseen.add((each["id"], *path))
    assert unseen == {
        ("ttl.queue_wait_budget/EmptyPool_ZeroBudgetWaitsIndefinitely", "outcome_if_expired"),  # it never does
        ("integration/graceful_shutdown_drains", "outcomes_in", 1),  # other outcomes that would have been good, too
        ("integration/graceful_shutdown_drains", "outcomes_in", 2),
    }


def case(component, kind, inputs, expect, **params):
    name = f"{component}/made up"
    said = {"id": name, "component": component, "kind": f"flow control: {kind}", "tolerance": 0}
    return said | {"params": params, "inputs": inputs, "expect": expect}


PACE = {"max_revocations_per_decision": 2, "confirmation_grace_s": 0.1, "confirmation_timeout_s": 5.0}
#: What the vectors' description allows, and no published case has.
MADE_UP = [
    case(
        "eviction.reclaim_gate",
        "scenario",
        {
            "in_flight": 4,
            "evictable": 4,
            "steps": [
                ["reclaim", 2.0, 1.0],
                ["confirm", "req-0"],
                ["gate"],
                ["confirm", "req-1"],
                ["gate"],
                ["reclaim", 2.0, 1.0],
                ["advance", 0.1],
                ["gate"],
                ["reclaim", 2.0, 1.0],
            ],
        },
        {"gate": [False, False, True], "evict_calls": [2, 1]},
        **PACE,
    ),
    case(
        "eviction.reclaim_sizing",
        "pure",
        {"in_flight": 4, "evictable": 4, "saturation": 0.9, "ceiling": 1.0, "demand_priority": 0},
        {"evict_calls": []},
        **PACE,
    ),
    case(
        "eviction.queue",
        "scenario",
        {"track": [{"id": "a", "priority": 0}, {"id": "a", "priority": -1}], "untrack": [], "pop_n": 5},
        {"in_flight": 1, "evictable": 1, "pop_order": ["a"], "in_flight_after_pop": 0},
        filter="all",
    ),
    case(
        "eviction.evictor",
        "scenario",
        {
            "in_flight": [{"id": "old", "priority": -1, "dispatch_s": -3}, {"id": "new", "priority": -1}],
            "evict_n": 1,
            "demand_priority": 0,
        },
        {"evicted": ["new"], "in_flight_after": 1},
        filter={"accept_priority_lt": 0},
    ),
    case(
        "eviction.min_required",
        "pure",
        {"preload": 20, "hp_count": 100, "capacity": 20, "ceiling": 1.0},
        {"min_evictions": 20, "admittable": 20},
    ),
    case(
        "ttl.queue_wait_budget",
        "pure",
        {"enqueue_s": 0.0, "now_s": 0.39, "pool_empty": False, "regime_since_s": 0.3},
        {"outcome_if_expired": "EvictedTTL", "expired": False},
        item_ttl_s=0.1,
        no_endpoint_ttl_s=2.0,
    ),
    case(
        "ttl.queue_wait_budget",
        "pure",
        {"enqueue_s": 0.0, "now_s": 0.3, "pool_empty": True, "regime_since_s": 0.2},
        {"outcome_if_expired": "EvictedNoEndpoints", "expired": True},
        item_ttl_s=9.0,
        no_endpoint_ttl_s=0.1,
    ),
    case(
        "flow_item.infer_outcome",
        "pure",
        {"cause": "ttl_expired", "queued": True},
        {"outcome": "EvictedTTL", "error_is": ["evicted", "ttl_expired"]},
    ),
    case(
        "flow_item.first_finalize_wins",
        "pure",
        {"calls": ["cause:context_cancelled", "cause:ttl_expired", "outcome:Dispatched"], "queued": True},
        {"outcome": "EvictedContextCancelled"},
    ),
    case("controller.outcome", "scenario", {"processor": "busy_then_accepts"}, {"outcome": "Dispatched"}),
    case(
        "controller.outcome",
        "scenario",
        {"context": "cancelled", "processor": "busy_then_blocks"},
        {"outcome": "RejectedOther", "error_is": ["rejected", "context_cancelled"]},
    ),
    case(
        "controller.outcome",
        "scenario",
        {"controller": "stops_while_waiting", "queued": True},
        {"outcome": "EvictedOther", "error_is": ["not_running", "evicted"]},
    ),
    case(
        "registry.gc.flow",
        "scenario",
        {"steps": [["open_close"], ["advance", "flow_gc"], ["gc"]]},
        {"exists": False},
    ),
    case(
        "registry.gc.band",
        "scenario",
        {
            "steps": [
                ["open_close", 7],
                ["advance", "2*band_gc"],
                ["gc"],
                ["check_band", 7],
                ["open", 7],
                ["advance", "2*band_gc"],
                ["gc"],
                ["check_band", 7],
                ["check_band", 0],
            ]
        },
        {"exists": [False, True, True]},
    ),
    case(
        "registry.lease",
        "scenario",
        {"steps": [["pin"], ["pin"], ["unpin", 1], ["unpin", 5]]},
        {"active_after": [True, True, True, False], "idle_since_after": [None, None, None, 5]},
    ),
    case(
        "registry.config",
        "config",
        {"options": {"flow_gc_timeout_s": 600, "priority_band_gc_timeout_s": 599}},
        {"valid": False},
    ),
    case("registry.config", "config", {"options": {"bands": [None]}}, {"valid": False}),
    case(
        "registry.config",
        "config",
        {
            "options": {
                "bands": [
                    {"priority": 2, "ordering": "edf-ordering-policy", "fairness": "round-robin-fairness-policy"}
                ],
                "default_negative_band": {"max_requests": 5},
            }
        },
        {
            "valid": True,
            "config": {
                "band": {
                    "2": {"ordering": "edf-ordering-policy", "fairness": "round-robin-fairness-policy"},
                    "-1": {"max_requests": 5, "max_bytes": 1_000_000_000},
                },
                "default_negative_band": {"max_requests": 5},
            },
        },
    ),
    case("registry.config", "config", {"options": {"bands": [{"priority": 2, "ordering": "lifo"}]}}, {"valid": False}),
    case("controller.config", "config", {"options": {"default_request_ttl_s": -1}}, {"valid": False}),
    case("controller.config.api", "config", {"api": {"noEndpointRequestTTL_s": -1}}, {"valid": False}),
    case(
        "integration",
        "scenario",
        {"fill": 2, "then": 1, "item_bytes": 1},
        {"overflow_outcome": "RejectedCapacity"},
        band_max_requests=2,
    ),
    case(
        "integration",
        "scenario",
        {"fill": 2, "then": 1, "item_bytes": 10},
        {"overflow_outcome": "RejectedCapacity", "bytes_before": 20},
        max_bytes=25,
    ),
]


@pytest.mark.parametrize("each", MADE_UP, ids=lambda each: each["component"])
def test_cases_that_nobody_published(each):
    assert outcome(each, run.RUNNERS, ()) == (each["id"], each["component"], "passed", "", "")
