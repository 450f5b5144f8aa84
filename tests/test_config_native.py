"""Does the library's own form say what a scheduler is, and a scheduler what its form is? And what is kept when it changes?"""

from dataclasses import dataclass

import numpy as np
import pytest

from inferencesched import (
    PREFIX_MATCH,
    WAITING_QUEUE_SIZE,
    ApproximatePrefixProducer,
    ConfigError,
    InferencePool,
    InferenceRequest,
    KvCacheUtilizationScorer,
    MaxScorePicker,
    PrecisePrefixProducer,
    PrefixCacheScorer,
    QueueScorer,
    Scheduler,
    SchedulingProfile,
    StalePolicy,
    WeightedScorer,
    default_profile,
)
from inferencesched.config import dump, dump_scheduler, load
from inferencesched.filters.labels import DecodeFilter, PrefillFilter
from inferencesched.handlers.deciders import PrefixBasedDecider
from inferencesched.handlers.disaggregated import DisaggProfileHandler
from inferencesched.producers.named import NamedProducer, named_producer
from inferencesched.signals import of_producer

HEAD = {"apiVersion": "inferencesched/v1", "kind": "Scheduler"}
RICH = {
    **HEAD,
    "profiles": {
        "prefill": {"filters": ["prefill-filter"], "scorers": [{"type": "prefix-cache-scorer", "weight": 3}]},
        "decode": {
            "filters": ["decode-filter"],
            "scorers": [
                "queue-scorer",
                {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "exact"}},
            ],
            "picker": {"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 2}},
        },
    },
    "handler": {
        "type": "disagg-profile-handler",
        "parameters": {"deciders": {"prefill": {"type": "prefix-based-pd-decider", "parameters": {"promptTokens": 9}}}},
    },
    "producers": [
        {"type": "approx-prefix-cache-producer", "parameters": {"blockSizeTokens": 128}},
        {"type": "precise-prefix-cache-producer", "name": "exact"},
    ],
    "stale": {"after": 5.0, "assume": "mean"},
    "computing": ["prefill"],
}


def request(n=256):
    return InferenceRequest(request_id="r", tokens=np.arange(n, dtype=np.uint32))


def test_all_of_it():
    loaded = load(RICH)
    scheduler = loaded.scheduler()
    assert scheduler.profiles["prefill"] == SchedulingProfile(
        MaxScorePicker(), (WeightedScorer(PrefixCacheScorer(), 3.0),), (PrefillFilter(),)
    )
    assert scheduler.profiles["decode"].picker == MaxScorePicker(2)
    assert scheduler.handler == DisaggProfileHandler(prefill_decider=PrefixBasedDecider(prompt_tokens=9))
    assert scheduler.stale == StalePolicy(5.0, "mean")
    assert scheduler.computing == ("prefill",)
    sent, exact = scheduler.producers
    assert isinstance(sent, ApproximatePrefixProducer) and sent.block_size == 128
    assert isinstance(exact, NamedProducer) and exact.produces == (of_producer(PREFIX_MATCH, "exact"),)


def test_it_comes_back_as_it_was():
    assert dump(load(RICH)) == RICH
    effective = dump(load(RICH), effective=True)
    assert load(effective).effective == load(RICH).effective


def test_a_scheduler_of_plain_python_is_written():
    exact = PrecisePrefixProducer()
    scheduler = Scheduler(
        {
            "prefill": SchedulingProfile(MaxScorePicker(), filters=(PrefillFilter(),)),
            "decode": SchedulingProfile(
                MaxScorePicker(), (WeightedScorer(PrefixCacheScorer(producer="exact"), 2.0),), (DecodeFilter(),)
            ),
        },
        handler=DisaggProfileHandler(),
        producers=(named_producer(exact, "exact"),),
        stale=StalePolicy(assume="trust"),
        computing=(),
    )
    written = dump_scheduler(scheduler)
    again = load(written).scheduler()
    assert (again.handler, again.stale, again.computing) == (scheduler.handler, scheduler.stale, ())
    # the only producer fills the plain columns: who named it reads those
    assert again.profiles["decode"].scorers == (WeightedScorer(PrefixCacheScorer(), 2.0),)
    assert again.producers[0].produces == exact.produces
    assert load(dump_scheduler(again)).profiles == again.profiles


def test_both_forms_of_a_configuration_make_the_same_scheduler():
    llmd = load().scheduler()
    ours = load(dump_scheduler(llmd)).scheduler()
    assert ours.profiles == llmd.profiles
    assert [type(each) for each in ours.producers] == [type(each) for each in llmd.producers]


@dataclass(frozen=True, slots=True)
class Unheard:
    """A scorer that no registry knows."""

    def score(self, request, endpoints, cycle):
        return np.ones(len(endpoints))


def test_a_plug_in_that_nobody_registered_cannot_be_written():
    scheduler = Scheduler(SchedulingProfile(MaxScorePicker(), (WeightedScorer(Unheard()),)))
    with pytest.raises(ConfigError) as caught:
        dump_scheduler(scheduler)
    assert caught.value.parameter == "$.profiles.default.scorers[0]"
    assert "Unheard()" in str(caught.value)


def test_nor_can_one_that_its_type_has_no_words_for():
    scheduler = Scheduler(default_profile(), producers=(ApproximatePrefixProducer(ttl=4.0),))
    with pytest.raises(ConfigError, match=r"\$\.producers\[0\].*ttl"):
        dump_scheduler(scheduler)


# --- another configuration for a running gateway -----------------------------------------------------------------

APPROXIMATE = {"type": "approx-prefix-cache-producer", "parameters": {"blockSizeTokens": 64}}


def caching(*scorers, producer=APPROXIMATE):
    return {**HEAD, "profiles": {"default": {"scorers": list(scorers)}}, "producers": [producer]}


def warm():
    """A scheduler that knows where a prompt went, and the pool."""
    pool = InferencePool()
    for name in ("a", "b"):
        pool.join(name)
        pool.observe(name, {WAITING_QUEUE_SIZE: 0}, now=0.0)
    scheduler = load(caching("prefix-cache-scorer")).scheduler()
    rng = np.random.default_rng(2)
    for _ in range(3):
        scheduler.schedule_and_reserve(request(), pool, now=0.0, rng=rng)
    return scheduler, pool


def matched(scheduler, pool):
    result = scheduler.schedule(request(), pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    return request().prompt_tokens - result.target.tokens


def test_what_a_producer_knows_is_kept_where_its_configuration_is():
    old, pool = warm()
    new = old.with_config(load(caching("prefix-cache-scorer", {"type": "queue-scorer", "weight": 0.1})))
    assert new is not old
    assert new.producers == old.producers
    assert len(new.profiles["default"].scorers) == 2
    assert matched(new, pool) == 256


def test_what_a_producer_knows_goes_with_its_configuration():
    old, pool = warm()
    other = {**APPROXIMATE, "parameters": {"blockSizeTokens": 128}}
    new = old.with_config(load(caching("prefix-cache-scorer", producer=other)))
    assert (matched(new, pool), matched(old, pool)) == (0, 256)


def test_a_producer_is_kept_at_load_too_and_is_the_one_by_its_name():
    old, pool = warm()
    loaded = load(caching("prefix-cache-scorer"), keep=old)
    assert loaded.plugins["$.producers[0]"] is old.producers[0]
    assert loaded.carrying(old).producers == old.producers
    assert matched(loaded.scheduler(), pool) == 256


def test_a_producer_under_another_name_is_the_same_one():
    old, pool = warm()
    named = {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "sent"}}
    new = old.with_config(load(caching(named, producer={**APPROXIMATE, "name": "sent"})))
    assert new.producers == old.producers
    assert matched(new, pool) == 256


def test_of_two_alike_each_is_kept_once_and_by_its_name():
    def two(first, second):
        plug = {"type": "precise-prefix-cache-producer"}
        scorers = [
            {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": name}}
            for name in (first, second)
        ]
        return {
            **HEAD,
            "profiles": {"p": {"scorers": scorers}},
            "producers": [{**plug, "name": n} for n in (first, second)],
        }

    old = load(two("eu", "us"))
    for order in (("eu", "us"), ("us", "eu")):
        new = load(two(*order), keep=old.scheduler())
        assert all(new.plugins[name] is old.plugins[name] for name in order)
    assert old.plugins["eu"] is not old.plugins["us"]


def test_a_broken_configuration_changes_nothing():
    old, pool = warm()
    with pytest.raises(ConfigError):
        load(caching("prefix-cache-scorrer"), keep=old)
    assert matched(old, pool) == 256


def test_from_plain_python_too():
    """Whatever made the running scheduler: what counts is how its producers are set up."""
    producer = ApproximatePrefixProducer(capacity=31_250, automatic=True, max_blocks=2048)
    old = Scheduler(
        SchedulingProfile(
            MaxScorePicker(), (WeightedScorer(QueueScorer()), WeightedScorer(KvCacheUtilizationScorer()))
        ),
        producers=(producer,),
    )
    assert old.with_config(load()).producers == (producer,)
