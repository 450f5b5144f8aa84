"""Does an explanation say what really decided, and does what would flip the choice flip it?"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.explain import schema, words
from inferencesched.explain.changes import COUNTED, PRECISION
from inferencesched.explain.record import number
from inferencesched.framework import Reads
from tests.profiles import endpoints_of, pools, profiles

REQUEST = isched.InferenceRequest(request_id="r", input_tokens=700)
TRUST = isched.StalePolicy(assume="trust")
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "explanation-schema.md"


def rng(seed=7):
    return np.random.default_rng(seed)


def scheduler_of(*scorers, filters=(), picker=None, **options):
    weighted = tuple(s if isinstance(s, isched.WeightedScorer) else isched.WeightedScorer(s) for s in scorers)
    profile = isched.SchedulingProfile(picker or isched.MaxScorePicker(), weighted, tuple(filters))
    return isched.Scheduler(profile, **{"stale": TRUST, **options})


def queues(*values, **more):
    return endpoints_of({isched.WAITING_QUEUE_SIZE: list(values), **more})


def why(scheduler, endpoints, **options):
    return isched.explain(scheduler, REQUEST, endpoints, **{"now": 0.0, "rng": rng(), **options})


# -- decide --------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(pools(), profiles(), st.integers(0, 2**32))
def test_a_decision_with_notes_is_the_same_decision(endpoints, profile, seed):
    scheduler = isched.Scheduler(profile, stale=TRUST)
    plain, noted = rng(seed), rng(seed)
    result = scheduler.schedule(REQUEST, endpoints, now=0.0, rng=plain)
    decision = isched.decide(scheduler, REQUEST, endpoints, now=0.0, rng=noted)
    assert decision == result and isinstance(decision, isched.SchedulingResult)
    # explaining draws from no generator of the caller's
    state = noted.bit_generator.state
    decision.explain(search=seed % 8 == 0)
    assert noted.bit_generator.state == state == plain.bit_generator.state


def test_a_decision_explains_what_it_was_made_of_whatever_was_learnt_since():
    producer = isched.ApproximatePrefixProducer(block_size=16, seed=1)
    pool = isched.InferencePool()
    for name in ("a", "b"):
        pool.join(name)
    scheduler = scheduler_of(isched.PrefixCacheScorer(), producers=(producer,))
    request = isched.InferenceRequest(request_id="r", tokens=np.arange(64, dtype=np.uint32))
    decision = isched.decide(scheduler, request, pool.snapshot(), now=0.0, rng=rng())
    before = decision.explain().to_dict()
    scheduler.reserve(decision, pool, now=0.0)
    later = isched.decide(scheduler, request, pool.snapshot(), now=0.0, rng=rng())
    assert later.explain().totals.max() == 1.0
    assert decision.explain().to_dict() == before and decision.explain().totals.max() == 0.0


def test_asking_why_does_not_ask_producers_again():
    """What a producer counts of its questions (an index's health) is not spoilt by the search."""
    producer = isched.ApproximatePrefixProducer(block_size=16)
    scheduler = scheduler_of(isched.PrefixCacheScorer(), isched.QueueScorer(), producers=(producer,))
    request = isched.InferenceRequest(request_id="r", tokens=np.arange(64, dtype=np.uint32))
    isched.decide(scheduler, request, queues(1, 2), now=0.0, rng=rng()).explain()
    assert producer.health().lookups == 1


def test_a_copy_without_notes_says_so():
    decision = isched.decide(scheduler_of(), REQUEST, queues(1, 2), now=0.0, rng=rng())
    with pytest.raises(isched.InvalidInputError, match="copy without notes"):
        decision._replace(version=3).explain()


def test_a_refusal_says_who_was_dropped_by_what():
    limit = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 1.0),))
    with pytest.raises(isched.FilteredOutError, match=r"ep-0: UtilizationFilter.*; ep-1: UtilizationFilter"):
        isched.decide(scheduler_of(filters=[limit]), REQUEST, queues(5, 6), now=0.0, rng=rng())


# -- who was dropped -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Short:
    reads = (Reads(isched.WAITING_QUEUE_SIZE, "lower"),)

    def filter(self, request, endpoints, cycle):
        return endpoints[isched.WAITING_QUEUE_SIZE] < 5

    def why_dropped(self, request, endpoints, cycle, position):
        return f"{endpoints[isched.WAITING_QUEUE_SIZE][position]:g} of 5 places are taken"


def test_each_stage_says_whom_it_dropped_and_why():
    pool = isched.InferencePool()
    for name in ("tried", "old", "unheard", "long", "full", "good"):
        pool.join(name)
    for name, queue, usage, at in (
        ("old", 0, 0, 1.0),
        ("long", 9, 0.1, 9.5),
        ("full", 1, 0.95, 9.5),
        ("good", 1, 0.5, 9.5),
    ):
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: queue, isched.KV_CACHE_USAGE: usage}, now=at)
    usage = isched.UtilizationFilter(((isched.KV_CACHE_USAGE, 0.9),))
    scheduler = scheduler_of(filters=[Short(), usage], stale=isched.StalePolicy(after=2.0, assume="exclude"))
    said = why(scheduler, pool.snapshot(), now=10.0, exclude={"tried"})
    told = {drop.endpoint: (drop.stage, drop.by, drop.reason) for drop in said.drops}
    assert told == {
        "tried": ("exclude", "exclude", ""),
        "old": ("staleness", "staleness", "observed 9.000 s ago, more than 2 s"),
        "unheard": ("staleness", "staleness", "never observed"),
        "long": ("filter", "Short()", "9 of 5 places are taken"),
        "full": ("filter", repr(usage), ""),
    }
    assert {drop.endpoint: dict(drop.read) for drop in said.drops if drop.read} == {
        "long": {"waiting_queue_size": 9.0},
        "full": {"kv_cache_usage": 0.95},
    }
    assert said.rule == "only candidate" and said.runner_up is None and said.changes == ()
    text = str(said)
    assert "it was the only candidate" in text and "long: dropped by Short(): 9 of 5 places are taken" in text
    assert "it read kv_cache_usage 0.95" in text


# -- which rule --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Last:
    def pick(self, totals, endpoints, cycle):
        return np.array([len(totals) - 1], dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Best:
    def pick(self, totals, endpoints, cycle):
        return np.array([np.argmax(totals)], dtype=np.intp)


@pytest.mark.parametrize(
    ("values", "picked", "picker", "rule"),
    [
        ([1, 2, 3], [-1, -1, -1], isched.MaxScorePicker(), "highest total"),
        ([1, 2, 3], [-1, -1, -1], isched.MaxScorePicker(3), "highest total"),
        ([1, 1, 3], [5, 4, -1], isched.MaxScorePicker(), "least recently picked"),
        ([1, 1, 3], [5, 4, -1], isched.MaxScorePicker(2), "least recently picked"),
        ([1, 1, 3], [-1, -1, -1], isched.MaxScorePicker(), "drawn"),
        ([1, 1, 3], [-1, -1, -1], isched.MaxScorePicker(2), "drawn"),
        ([1, 2, 3], [-1, -1, -1], isched.RandomPicker(), "drawn"),
        ([1, 2, 3], [-1, -1, -1], isched.WeightedRandomPicker(), "drawn"),
        ([1, 2, 3], [-1, -1, -1], isched.RoundRobinPicker(), "picker"),
        ([3, 2, 1], [-1, -1, -1], Last(), "picker"),
        ([1, 2, 3], [-1, -1, -1], Best(), "highest total"),
        ([1, 1, 3], [4, 5, -1], Best(), "least recently picked"),
        ([1, 1, 3], [4, 4, -1], Best(), "picker"),
        ([1], [-1], isched.MaxScorePicker(), "only candidate"),
    ],
)
def test_the_rule_that_decided(values, picked, picker, rule):
    endpoints = queues(*values).with_columns({isched.LAST_PICKED: np.array(picked, dtype=float)})
    said = why(scheduler_of(isched.QueueScorer(), picker=picker), endpoints)
    assert said.rule == rule
    assert words.RULES[rule] in str(said)


def test_a_handler_that_chooses_otherwise_is_named():
    class Second:
        def pick(self, request, profiles, results, cycle):
            return {} if results else profiles

        def process_results(self, request, results, cycle):
            found = {name: isched.ProfileResult(result.targets[1:]) for name, result in results.items()}
            return isched.SchedulingResult(request, "default", found)

    scheduler = scheduler_of(isched.QueueScorer(), picker=isched.MaxScorePicker(2), handler=Second())
    said = why(scheduler, queues(1, 2))
    assert (said.endpoint, said.rule, said.runner_up) == ("ep-1", "handler", "ep-0") and said.margin == -1.0


# -- scores and readings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnlyKnown:
    reads = (Reads(isched.KV_CACHE_USAGE, "lower"),)

    def score(self, request, endpoints, cycle):
        return isched.known(1.0 - endpoints[isched.KV_CACHE_USAGE])

    def scored(self, request, endpoints, cycle):
        return ~np.isnan(endpoints[isched.KV_CACHE_USAGE])


def test_scores_are_told_raw_weighted_and_as_a_share():
    weighted = (isched.WeightedScorer(isched.QueueScorer(), 3.0), isched.WeightedScorer(OnlyKnown(), -1.0))
    endpoints = queues(0, 4).with_columns({isched.KV_CACHE_USAGE: np.array([np.nan, 0.25])})
    said = why(scheduler_of(*weighted), endpoints)
    assert said.scores.tolist() == [[1.0, 0.0], [0.0, 0.75]]
    assert (
        said.weighted.tolist() == [[3.0, 0.0], [0.0, -0.75]] and said.weighted.sum(0).tolist() == said.totals.tolist()
    )
    assert said.normalized.tolist() == [[0.75, 0.0], [0.0, -0.1875]]
    assert said.scored.tolist() == [[True, True], [False, True]]
    assert "OnlyKnown() has no word on ep-0" in str(said)
    assert why(scheduler_of(isched.WeightedScorer(isched.QueueScorer(), 0.0)), queues(1, 2)).normalized.tolist() == [
        [0, 0]
    ]


def test_what_was_read_is_told_with_its_age():
    pool = isched.InferencePool()
    for name, at in (("a", 9.0), ("b", 4.0)):
        pool.join(name, values={isched.KV_BLOCKS: 100.0})
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: 2.0}, now=at)
    pool.join("c", values={isched.KV_BLOCKS: 50.0})

    @dataclass(frozen=True, slots=True)
    class Blocks:
        reads = (Reads(isched.KV_BLOCKS, "higher"), Reads(isched.WAITING_QUEUE_SIZE))

        def score(self, request, endpoints, cycle):
            return np.minimum(endpoints[isched.KV_BLOCKS] / 100.0, 1.0)

    scheduler = scheduler_of(isched.QueueScorer(), isched.PrefixCacheScorer(), Blocks(), stale=isched.StalePolicy())
    said = why(scheduler, pool.snapshot(), now=10.0)
    read = {reading.signal: reading for reading in said.readings}
    queue = read["waiting_queue_size"]
    assert (queue.freshness, queue.better, queue.readers) == ("scraped", "", ("QueueScorer()", "Blocks()"))
    assert queue.ages.tolist() == [1.0, 6.0, np.inf] and said.stale.tolist() == [False, True, True]
    assert np.isnan(queue.values).tolist() == [False, True, True]  # b is not believed: 6 s are more than 2
    assert read["kv_blocks"].freshness == "static" and np.isnan(read["kv_blocks"].ages).all()
    assert read["kv_blocks"].better == "higher" and read["kv_blocks"].values.tolist() == [100.0, 100.0, 50.0]
    assert read["prefix_match"].freshness == "cycle" and read["prefix_match"].ages.tolist() == [0.0, 0.0, 0.0]
    assert "6.000 s old, not believed" in str(said)
    (told,) = [each for each in said.to_dict()["signals"] if each["signal"] == "waiting_queue_size"]
    assert told["values"] == {"a": 2.0, "b": None, "c": None} and told["ages"] == {"a": 1.0, "b": 6.0, "c": None}


def test_several_profiles_and_those_that_failed():
    class All:
        def pick(self, request, profiles, results, cycle):
            return {} if results else profiles

        def process_results(self, request, results, cycle):
            return isched.SchedulingResult(request, "decode", dict(results))

    def profile(*filters):
        return isched.SchedulingProfile(
            isched.MaxScorePicker(), (isched.WeightedScorer(isched.QueueScorer()),), filters
        )

    limit = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 0.0),))
    named = {"prefill": profile(), "decode": profile(), "encode": profile(limit)}
    scheduler = isched.Scheduler(named, handler=All(), stale=TRUST)
    said = why(scheduler, queues(1, 2))
    assert said.profile == "decode" and [other.profile for other in said.others] == ["prefill"]
    assert [name for name, _ in said.failed] == ["encode"]
    text = str(said)
    assert "profile 'prefill': 'ep-0'" in text and "profile 'encode' kept nobody" in text
    told = said.to_dict()
    assert told["others"][0]["profile"] == "prefill" and told["failed"][0]["dropped"][0]["endpoint"] == "ep-0"
    with pytest.raises(isched.FilteredOutError, match="encode"):
        isched.decide(scheduler, REQUEST, queues(1, 2), now=0.0, rng=rng()).explain(profile="encode")


# -- what would flip it ------------------------------------------------------------------------------------------------


def decided_again(scheduler, endpoints, change, value, seed):
    """Whom does the real scheduler pick with one value changed?"""
    signal = endpoints.layout.signals[endpoints.layout.rows[change.signal]]
    column = endpoints[signal].copy()
    column[endpoints.names.index(change.endpoint)] = value
    try:
        return scheduler.schedule(REQUEST, endpoints.with_columns({signal: column}), now=0.0, rng=rng(seed)).endpoint
    except isched.RequestRefusedError:
        return None


@settings(max_examples=60)
@given(pools(), profiles(), st.integers(0, 2**32))
def test_the_change_flips_and_slightly_less_does_not(endpoints, profile, seed):
    scheduler = isched.Scheduler(profile, stale=TRUST)
    said = why(scheduler, endpoints, rng=rng(seed))
    for change in said.changes:
        assert decided_again(scheduler, endpoints, change, change.after, seed) == change.winner != said.endpoint
        assert decided_again(scheduler, endpoints, change, change.short_of, seed) in (said.endpoint, None)
        step = 1.0 if change.unit in COUNTED and change.before == round(change.before) else None
        column = endpoints[endpoints.layout.signals[endpoints.layout.rows[change.signal]]]
        reach = max(1.0, float(np.nanmax(np.abs(np.where(np.isfinite(column), column, np.nan)))))
        assert abs(change.after - change.short_of) <= (step or PRECISION * reach) * (1 + 1e-9)
        assert (change.after - change.before) * (change.short_of - change.before) >= 0.0
    sizes = [change.size for change in said.changes]
    assert sizes == sorted(sizes) and said.smallest == (said.changes[0] if sizes else None)


def test_the_change_by_hand():
    """KV usage 0.2 against 0.5, weight 2; queues equal: it flips where the winner's usage passes 0.5."""
    endpoints = queues(3, 3).with_columns({isched.KV_CACHE_USAGE: np.array([0.2, 0.5])})
    said = why(scheduler_of(isched.KvCacheUtilizationScorer()), endpoints)
    found = {(change.signal, change.endpoint): change for change in said.changes}
    worse, better = found["kv_cache_usage", "ep-0"], found["kv_cache_usage", "ep-1"]
    assert worse.after == pytest.approx(0.5, abs=2e-6) and worse.short_of <= 0.5 and worse.winner == "ep-1"
    assert better.after == pytest.approx(0.2, abs=2e-6) and better.declared
    assert worse.size == pytest.approx(0.3, abs=2e-6)
    assert set(found) == {("kv_cache_usage", "ep-0"), ("kv_cache_usage", "ep-1")}


def test_what_is_counted_changes_by_whole_numbers():
    endpoints = queues(2, 6).with_columns({isched.LAST_PICKED: np.array([1.0, 2.0])})
    said = why(scheduler_of(isched.QueueScorer()), endpoints)
    change = next(change for change in said.changes if change.endpoint == "ep-0")
    assert (change.before, change.short_of, change.after) == (2.0, 6.0, 7.0)


def test_a_negative_weight_turns_the_way_round():
    said = why(
        scheduler_of(isched.WeightedScorer(isched.KvCacheUtilizationScorer(), -1.0)),
        endpoints_of({isched.KV_CACHE_USAGE: [0.9, 0.5]}),
    )
    change = next(change for change in said.changes if change.endpoint == "ep-0")
    assert said.endpoint == "ep-0" and change.after == pytest.approx(0.5, abs=2e-6) and change.declared


@dataclass(frozen=True, slots=True)
class Undeclared:
    """Best at 0.5, worse to both sides: no way is better."""

    reads = (Reads(isched.KV_CACHE_USAGE),)

    def score(self, request, endpoints, cycle):
        return isched.known(1.0 - np.abs(endpoints[isched.KV_CACHE_USAGE] - 0.5))


def test_signals_of_no_declared_way_are_searched_on_both_sides():
    said = why(scheduler_of(Undeclared()), endpoints_of({isched.KV_CACHE_USAGE: [0.45, 0.2]}))
    found = {change.endpoint: change for change in said.changes}
    assert found["ep-0"].after == pytest.approx(0.2, abs=2e-6)  # 0.8 would do as well, and is farther
    assert found["ep-1"].after == pytest.approx(0.45, abs=2e-6) and not found["ep-1"].declared


def test_a_filter_can_be_what_flips_it():
    limit = isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 4.0),))
    endpoints = queues(1, 2).with_columns({isched.RUNNING_REQUESTS: np.array([2.0, 2.0])})
    said = why(scheduler_of(isched.QueueScorer(), filters=[limit]), endpoints)
    change = next(change for change in said.changes if change.signal == "running_requests")
    assert (change.endpoint, change.short_of, change.after, change.winner) == ("ep-0", 4.0, 5.0, "ep-1")


class Halves:
    """Foretells a time to first token from the queue: a producer whose column depends on a signal."""

    reads = (Reads(isched.WAITING_QUEUE_SIZE),)
    produces = (isched.PREFIX_MATCH,)

    def __init__(self):
        self.asked = 0

    def produce(self, request, endpoints, cycle):
        self.asked += 1
        return isched.Produced({isched.PREFIX_MATCH: 1.0 / (1.0 + endpoints[isched.WAITING_QUEUE_SIZE])}, None)

    def commit(self, receipt, slot, *, now):
        pass


def test_a_producer_that_reads_what_changed_is_asked_again():
    producer = Halves()
    scheduler = scheduler_of(isched.PrefixCacheScorer(), producers=(producer,))
    endpoints = queues(1, 4).with_columns({isched.LAST_PICKED: np.array([1.0, 2.0])})
    said = why(scheduler, endpoints)
    found = {(change.signal, change.endpoint): change for change in said.changes}
    queue, match = found["waiting_queue_size", "ep-0"], found["prefix_match", "ep-0"]
    assert (queue.short_of, queue.after, queue.winner) == (4.0, 5.0, "ep-1") and not queue.declared
    assert match.after == pytest.approx(0.2, abs=2e-6) and match.declared
    assert producer.asked > 1
    assert decided_again(scheduler, endpoints, queue, queue.after, 7) == "ep-1"
    assert decided_again(scheduler, endpoints, queue, queue.short_of, 7) == "ep-0"


def test_the_search_can_be_left_out():
    said = why(scheduler_of(isched.QueueScorer()), queues(1, 2), search=False)
    assert said.changes == () and said.smallest is None and said.flips


# -- as data, text, markup and HTML --------------------------------------------------------------------------------------


def everything():
    """An explanation with something in every part."""
    limit = isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 50.0),))
    endpoints = queues(0, 1, 9, 0).with_columns(
        {
            isched.KV_CACHE_USAGE: np.array([0.9, 0.1, np.nan, 0.0]),
            isched.RUNNING_REQUESTS: np.array([1.0, 1.0, 1.0, 99.0]),
        }
    )
    return why(scheduler_of(isched.QueueScorer(), OnlyKnown(), filters=[limit]), endpoints)


def schema_of():
    """The schema without its prose, which is the docstrings of `inferencesched.explain.schema`."""
    found = msgspec.json.schema(schema.ExplanationRecord)
    for part in found["$defs"].values():
        part.pop("description", None)
    return found


def valid(told):
    """Hold plain data to the schema; an unknown key is an error too, so that the schema cannot lag behind."""
    strict = schema_of()
    for part in strict["$defs"].values():
        if "properties" in part:
            part["additionalProperties"] = False
    jsonschema.validate(told, strict)


@settings(max_examples=40)
@given(pools(), profiles(), st.integers(0, 2**32))
def test_plain_data_is_as_the_schema_says(endpoints, profile, seed):
    told = why(isched.Scheduler(profile, stale=TRUST), endpoints, rng=rng(seed), search=seed % 4 == 0).to_dict()
    back = json.loads(json.dumps(told, allow_nan=False))
    assert back == told
    valid(back)
    assert msgspec.convert(back, schema.ExplanationRecord, strict=True)["version"] == schema.VERSION


def test_every_part_is_as_the_schema_says():
    told = everything().to_dict()
    assert all(told[key] for key in ("weights", "candidates", "signals", "dropped", "changes"))
    valid(told)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (lambda told: told.pop("rule"), "$"),
        (lambda told: told.update(rule="luck"), "$.rule"),
        (lambda told: told.update(margin="much"), "$.margin"),
        (lambda told: told["changes"][0].update(winner=None), "$.changes[0].winner"),
        (lambda told: told.update(more=1), "$"),
    ],
)
def test_the_schema_refuses_what_it_should(spoil, where):
    told = everything().to_dict()
    spoil(told)
    with pytest.raises(jsonschema.ValidationError) as caught:
        valid(told)
    assert caught.value.json_path == where


def test_the_page_shows_the_schema_and_an_explanation():
    if not PAGE.exists():
        pytest.skip("the documentation is not beside these tests")
    blocks = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    example, shown = (json.loads(block) for block in blocks)
    assert shown == json.loads(json.dumps(schema_of())), (
        "docs/reference/explanation-schema.md: show the schema as it is"
    )
    valid(example)


def test_infinite_and_unknown_numbers_are_none():
    assert [number(value) for value in (np.nan, np.inf, -np.inf, 1.5)] == [None, None, None, 1.5]


HOSTILE = '<script>"&[bold]\\'


def hostile():
    pool = isched.InferencePool()
    for name, queue in ((HOSTILE, 1.0), ("b", 2.0)):
        pool.join(name)
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: queue}, now=0.0)
    request = isched.InferenceRequest(request_id=HOSTILE)
    scheduler = scheduler_of(isched.QueueScorer())
    return isched.explain(scheduler, request, pool.snapshot(), now=0.0, rng=rng(), exclude={HOSTILE[::-1]})


def test_html_is_escaped_and_well_formed():
    shown = hostile()._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;&quot;&amp;" in shown
    tree = ET.fromstring(f"<div>{shown.replace('&times;', 'x')}</div>")
    assert len(tree.findall(".//tbody/tr")) == 2
    assert "would flip" in "".join(tree.itertext())


def test_rich_shows_the_very_text():
    console = pytest.importorskip("rich.console").Console(
        width=500, color_system=None, record=True, file=SimpleNamespace(write=lambda s: None, flush=lambda: None)
    )
    for said in (hostile(), everything()):
        console.print(said)
        assert console.export_text().rstrip("\n") == str(said)


def test_large_pools_are_told_in_short():
    limit = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 59.0),))
    said = why(scheduler_of(OnlyKnown(), filters=[limit]), queues(*range(100)))
    lines = str(said).splitlines()
    assert "  and 50 more" in lines and "  and 20 more dropped" in lines and len(lines) < 50
    assert len(said.to_dict()["candidates"]) == 60 and len(said.to_dict()["dropped"]) == 40
