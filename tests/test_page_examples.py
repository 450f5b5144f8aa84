"""The two examples of the field's overview page: they run, print what is written beside them, and mean what they say."""

import contextlib
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

from inferencesched.flowcontrol import QueueOutcome

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "examples"


def example(name):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="cluster", scope="module")
def _cluster():
    return example("shared_cluster")


@pytest.fixture(name="lora", scope="module")
def _lora():
    return example("lora_share")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shared_cluster", "lora_share"])
def test_an_example_prints_what_is_written_beside_it(name):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        example(name).main()
    assert said.getvalue() == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_a_tenth_of_the_conversations_is_the_new_versions_and_none_changes(cluster):
    found = cluster.routed(conversations=1000, turns=2)
    asked = found.pools["chatbot", "gemma"] + found.pools["chatbot", "gemma-new"]
    part, sigma = found.pools["chatbot", "gemma-new"] / asked, (0.9 * 0.1 / (asked / 2)) ** 0.5
    assert abs(part - 0.1) < 4 * sigma
    assert found.pools["recommender", "deepseek"] == 500
    assert (found.moved, found.lowest_priority) == (0, 10)


@pytest.mark.slow
def test_under_twice_the_load_nobody_at_0_or_above_is_refused_while_one_below_is_held(cluster):
    waits = {}
    for seed in (1, 2, 3):
        replay = cluster.under(2.0, seed, count=3000)
        groups = replay.waiting.priorities
        assert groups[10].shed_rate == groups[0].shed_rate == 0.0
        assert groups[-1].shed_rate > 0.5
        assert groups[10].wait_p95 <= groups[0].wait_p95
        refused = [outcome for outcome in replay.waiting.outcome if outcome.refused]
        assert set(refused) <= {
            QueueOutcome.EVICTED_DISPLACED,
            QueueOutcome.REJECTED_CAPACITY,
            QueueOutcome.EVICTED_TTL,
        }
        waits[seed] = groups[10].wait_p95, cluster.under(1.0, seed, count=3000).waiting.priorities[10].wait_p95
    over, full = np.mean(list(waits.values()), axis=0)
    assert over <= 1.2 * full


def test_adapters_that_share_servers_need_fewer(lora):
    requests = lora.traffic(minutes=8.0)
    alone = sum(lora.needed([each for each in requests if each.adapter == adapter])[0] for adapter in lora.ADAPTERS)
    shared, outcome = lora.needed(requests)
    assert shared < alone
    assert outcome.most_loaded <= lora.SLOTS
    assert outcome.hits > 0.8


def test_requests_prefer_servers_where_their_adapter_is(lora):
    requests = lora.traffic(minutes=5.0)
    assert lora.served(requests, 4).hits > 0.9
