"""Cold prompts, pictures and clusters: scorers by their formulas, producers against slow twins."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import inferencesched as isched
from inferencesched.framework import PartialScorer
from inferencesched.producers.multimodal import entries_of, unique_items
from inferencesched.producers.tenancy import Tenancy
from inferencesched.signals import (
    COLD_RANK,
    ENCODER_MATCH,
    MULTICLUSTER_KV_CACHE_USAGE,
    MULTICLUSTER_QUEUE_SIZE,
    of_producer,
)
from tests import naive_caches as naive
from tests.profiles import endpoints_of

NAN = math.nan
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)
REQUEST = isched.InferenceRequest(request_id="r")
NAMES = ("a", "b", "c", "d", "e")


def scores(scorer, columns):
    return scorer.score(REQUEST, endpoints_of(columns), CYCLE).tolist()


def pool_of(*names):
    pool = isched.InferencePool()
    for name in names:
        pool.join(name)
    return pool


def slot_of(pool, name):
    endpoints = pool.snapshot()
    return int(endpoints.slots[endpoints.names.index(name)])


# --- the scorers -------------------------------------------------------------------------------------------------


def test_any_hit_is_none_of_the_cold_scorer_s_business():
    columns = {isched.PREFIX_MATCH: [0.0, 0.1, NAN], COLD_RANK: [-1, 0, 1]}
    assert scores(isched.NoHitLruScorer(), columns) == [0.5, 0.5, 0.5]


def test_never_used_first_in_the_order_of_candidates_then_the_longest_ago():
    columns = {isched.PREFIX_MATCH: [0.0, NAN, 0.0, 0.0, 0.0], COLD_RANK: [1, -1, 0, NAN, 2]}
    assert scores(isched.NoHitLruScorer(), columns) == [0.25, 1.0, 0.5, 0.75, 0.0]


def test_the_order_of_candidates_is_that_of_joining_however_they_are_sorted():
    endpoints = endpoints_of({isched.PREFIX_MATCH: [0.0] * 4, COLD_RANK: [-1, 0, -1, -1]})
    turned = isched.Endpoints(
        endpoints.matrix[:, [3, 1, 0, 2]].copy(),
        endpoints.layout,
        endpoints.members,
        endpoints._residency,
        endpoints.version,
        endpoints.sequence,
        np.array([3, 1, 0, 2]),
    )
    before, after = (isched.NoHitLruScorer().score(REQUEST, each, CYCLE) for each in (endpoints, turned))
    assert dict(zip(endpoints.names, before, strict=True)) == dict(zip(turned.names, after, strict=True))
    assert before.tolist() == pytest.approx([1.0, 0.0, 2 / 3, 1 / 3])


def test_ranks_of_the_pool_may_leave_nothing_for_a_few_candidates():
    assert scores(isched.NoHitLruScorer(), {isched.PREFIX_MATCH: [0, 0], COLD_RANK: [5, 9]}) == [0.0, 0.0]


def test_one_candidate_or_none():
    assert scores(isched.NoHitLruScorer(), {isched.PREFIX_MATCH: [0.0], COLD_RANK: [7.0]}) == [1.0]
    nobody = endpoints_of({isched.PREFIX_MATCH: [0.0], COLD_RANK: [7.0]}).where(np.array([False]))
    assert isched.NoHitLruScorer().score(REQUEST, nobody, CYCLE).tolist() == []


def test_whose_matches_and_whose_ranks():
    theirs, ranks = of_producer(isched.PREFIX_MATCH, "eu"), of_producer(COLD_RANK, "eu-cold")
    columns = {isched.PREFIX_MATCH: [1.0, 1.0], theirs: [0.0, 0.0], ranks: [0, -1]}
    assert scores(isched.NoHitLruScorer("eu", "eu-cold"), columns) == [0.0, 1.0]


RANKS = st.lists(st.integers(-1, 6), min_size=1, max_size=6)


@given(RANKS, st.data())
def test_the_cold_scorer_is_its_formula(ranks, data):
    hits = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.5, NAN]), min_size=len(ranks), max_size=len(ranks)))
    got = scores(isched.NoHitLruScorer(), {isched.PREFIX_MATCH: hits, COLD_RANK: ranks})
    assert got == pytest.approx(naive.cold_scores([hit > 0 for hit in hits], ranks), abs=1e-12)
    assert all(0.0 <= each <= 1.0 for each in got)


@given(RANKS, st.data())
def test_longer_ago_is_never_worse(ranks, data):
    i = data.draw(st.integers(0, len(ranks) - 1))
    better = [*ranks[:i], data.draw(st.integers(-1, ranks[i])), *ranks[i + 1 :]]
    none = [0.0] * len(ranks)
    before, after = (
        scores(isched.NoHitLruScorer(), {isched.PREFIX_MATCH: none, COLD_RANK: each})[i] for each in (ranks, better)
    )
    assert after >= before


def test_the_share_of_pictures_is_the_score():
    assert scores(isched.EncoderCacheScorer(), {ENCODER_MATCH: [0.25, NAN, 1.0]}) == [0.25, 0.0, 1.0]
    assert scores(isched.EncoderCacheScorer("mm"), {of_producer(ENCODER_MATCH, "mm"): [0.5]}) == [0.5]


def test_a_cluster_that_says_nothing_is_not_scored():
    scorer, columns = isched.MultiClusterQueueScorer(), {MULTICLUSTER_QUEUE_SIZE: [2, NAN, 10, 4]}
    assert scores(scorer, columns) == [1.0, 0.0, 0.0, 0.75]
    assert scorer.scored(REQUEST, endpoints_of(columns), CYCLE).tolist() == [True, False, True, True]
    assert scores(scorer, {MULTICLUSTER_QUEUE_SIZE: [4, 4]}) == [1.0, 1.0]
    assert scores(scorer, {MULTICLUSTER_QUEUE_SIZE: [NAN, NAN]}) == [0.0, 0.0]


def test_a_cluster_s_free_cache_and_prefixes():
    usage = isched.MultiClusterKvCacheUtilizationScorer()
    assert scores(usage, {MULTICLUSTER_KV_CACHE_USAGE: [0.25, NAN]}) == [0.75, 0.0]
    assert usage.scored(REQUEST, endpoints_of({MULTICLUSTER_KV_CACHE_USAGE: [0.2, NAN]}), CYCLE).tolist() == [
        True,
        False,
    ]
    name = "multicluster-approx-prefix-cache-producer"
    columns = {of_producer(isched.PREFIX_MATCH, name): [0.5, NAN], of_producer(isched.PREFIX_TOKENS, name): [50, NAN]}
    prefix = isched.MultiClusterPrefixCacheScorer()
    assert scores(prefix, columns) == [0.5, 0.0]
    assert prefix.scored(REQUEST, endpoints_of(columns), CYCLE).tolist() == [True, False]
    weighed = isched.MultiClusterPrefixCacheScorer(match_length_weight=0.5, match_length_scale_tokens=100)
    assert scores(weighed, columns) == [0.375, 0.0]


@given(st.lists(st.integers(0, 9) | st.just(NAN), min_size=1, max_size=6), st.sampled_from([0, 0.3, 1]))
def test_clusters_are_scored_as_endpoints_are(values, weight):
    """Where all tell, the scores are those of one pool's scorers."""
    known = [0.0 if value != value else float(value) for value in values]
    shares = [value / 9 for value in known]
    pairs = (
        (
            isched.MultiClusterQueueScorer(),
            MULTICLUSTER_QUEUE_SIZE,
            isched.QueueScorer(),
            isched.WAITING_QUEUE_SIZE,
            known,
        ),
        (
            isched.MultiClusterKvCacheUtilizationScorer(),
            MULTICLUSTER_KV_CACHE_USAGE,
            isched.KvCacheUtilizationScorer(),
            isched.KV_CACHE_USAGE,
            shares,
        ),
    )
    for theirs, signal, ours, plain, column in pairs:
        assert scores(theirs, {signal: column}) == scores(ours, {plain: column})
    columns = {isched.PREFIX_MATCH: shares, isched.PREFIX_TOKENS: [64 * value for value in known]}
    clusters = isched.MultiClusterPrefixCacheScorer("", weight, 300.0)
    assert scores(clusters, columns) == scores(isched.PrefixCacheScorer(weight, 300.0), columns)
    assert isinstance(clusters, PartialScorer)


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.MultiClusterPrefixCacheScorer(match_length_weight=1.1), "match_length_weight"),
        (lambda: isched.MultiClusterPrefixCacheScorer("", 0.5, 0), "match_length_scale_tokens"),
        (lambda: isched.NoHitLruProducer(lru_size=0), "lru_size"),
        (lambda: isched.EncoderCacheProducer(entries=0), "entries"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(isched.InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter


# --- what producers remember -------------------------------------------------------------------------------------


def test_a_cold_prompt_rotates_through_the_pool():
    pool = pool_of("a", "b", "c")
    profile = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.NoHitLruScorer()),))
    scheduler = isched.Scheduler(profile, producers=(isched.NoHitLruProducer(),))
    rng = np.random.default_rng(1)
    sent = []
    for i in range(7):
        request = isched.InferenceRequest(request_id=str(i))
        sent.append(scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng).endpoint)
    assert sent == list("abcabca")


def test_warm_prompts_are_not_noted():
    pool, prefixes, cold = pool_of("a", "b"), isched.ApproximatePrefixProducer(block_size=4), isched.NoHitLruProducer()
    profile = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.PrefixCacheScorer()),))
    scheduler = isched.Scheduler(profile, producers=(cold, prefixes))
    assert scheduler.producers == (prefixes, cold)  # it reads what the other fills
    rng, tokens = np.random.default_rng(1), np.arange(16, dtype=np.uint32)
    request = isched.InferenceRequest(request_id="1", tokens=tokens)
    first = scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng)
    other = "b" if first.endpoint == "a" else "a"
    warm = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=rng)
    cold.commit(warm.receipts[1], slot_of(pool, other), now=0.0)
    ranks = cold.produce(request, pool.snapshot(), CYCLE).columns[COLD_RANK]
    assert dict(zip(pool.snapshot().names, ranks.tolist(), strict=True)) == {first.endpoint: 0.0, other: -1.0}


def test_who_gets_a_slot_inherits_nothing():
    pool, cold, encoders = pool_of("a", "b"), isched.NoHitLruProducer(), isched.EncoderCacheProducer()
    request = isched.InferenceRequest(request_id="1", media=(isched.MediaItem(1),))
    for producer in (cold, encoders):
        producer.commit(producer.produce(request, pool.snapshot(), CYCLE).receipt, slot_of(pool, "a"), now=0.0)
    pool.leave("a")
    pool.join("c")
    assert slot_of(pool, "c") == 0
    endpoints = pool.snapshot()
    assert cold.produce(request, endpoints, CYCLE).columns[COLD_RANK].tolist() == [-1.0, -1.0]
    assert encoders.produce(request, endpoints, CYCLE).columns[ENCODER_MATCH].tolist() == [0.0, 0.0]
    assert encoders.holds(1, endpoints) == ()


def test_a_departed_endpoint_does_not_count_in_ranks():
    pool, cold = pool_of("a", "b", "c"), isched.NoHitLruProducer()
    for name in ("a", "b"):
        cold.commit(cold.produce(REQUEST, pool.snapshot(), CYCLE).receipt, slot_of(pool, name), now=0.0)
    pool.leave("a")
    assert cold.produce(REQUEST, pool.snapshot(), CYCLE).columns[COLD_RANK].tolist() == [0.0, -1.0]


def test_ranks_are_those_of_the_pool_and_not_of_the_candidates():
    pool, cold = pool_of("a", "b", "c"), isched.NoHitLruProducer()
    for name in ("a", "b", "c"):
        cold.commit(cold.produce(REQUEST, pool.snapshot(), CYCLE).receipt, slot_of(pool, name), now=0.0)
    few = pool.snapshot().where(np.array([False, True, True]))
    assert cold.produce(REQUEST, few, CYCLE).columns[COLD_RANK].tolist() == [1.0, 2.0]


def test_a_late_commit_for_a_slot_that_was_handed_on_is_dropped():
    pool, cold = pool_of("a"), isched.NoHitLruProducer()
    late = cold.produce(REQUEST, pool.snapshot(), CYCLE).receipt
    pool.leave("a")
    pool.join("b")
    cold.commit(cold.produce(REQUEST, pool.snapshot(), CYCLE).receipt, 0, now=0.0)
    cold.commit(late, 0, now=0.0)
    cold.check()
    assert cold.produce(REQUEST, pool.snapshot(), CYCLE).columns[COLD_RANK].tolist() == [0.0]
    assert Tenancy().claim(3, pool.snapshot()) == (False, False)  # nobody has it


def test_entries_of_a_cache_and_items_of_a_prompt():
    assert [entries_of(size) for size in (-1, 0, 1, 2, 3, 4, 2048)] == [2048, 2048, 1, 1, 1, 2, 1024]
    media = (isched.MediaItem(1, 5), isched.MediaItem(2), isched.MediaItem(1, 9))
    assert unique_items(media) == {1: 5, 2: 1}


def test_no_pictures_is_not_known_rather_than_nothing():
    pool, encoders = pool_of("a"), isched.EncoderCacheProducer()
    for media in ((), (isched.MediaItem(1, 0),)):
        request = isched.InferenceRequest(request_id="1", media=media)
        produced = encoders.produce(request, pool.snapshot(), CYCLE)
        assert np.isnan(produced.columns[ENCODER_MATCH]).all()


class Remembering(RuleBasedStateMachine):
    """Both producers against their twins: endpoints come, go and come back; receipts are kept late, or never."""

    def __init__(self):
        super().__init__()
        self.pool = isched.InferencePool()
        self.cold, self.naive_cold = isched.NoHitLruProducer(lru_size=2), naive.Cold(2)
        self.encoders, self.naive_encoders = isched.EncoderCacheProducer(entries=3), naive.Encoders(3)
        self.receipts = []
        for name in NAMES[:4]:
            self.pool.join(name)

    @rule(name=st.sampled_from(NAMES))
    def join_or_leave(self, name):
        if name in self.pool.snapshot().names:
            self.pool.leave(name)
        else:
            self.pool.join(name)

    @precondition(lambda self: len(self.pool.snapshot()))
    @rule(
        data=st.data(),
        media=st.lists(st.builds(isched.MediaItem, st.integers(1, 6), st.integers(0, 3)), max_size=4),
        hit=st.sampled_from([0.0, 0.0, NAN, 0.5]),
    )
    def ask(self, data, media, hit):
        endpoints = self.pool.snapshot()
        keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(endpoints), max_size=len(endpoints))))
        endpoints = endpoints.where(keep) if keep.any() else endpoints
        endpoints = endpoints.with_columns({isched.PREFIX_MATCH: np.full(len(endpoints), hit)})
        request = isched.InferenceRequest(request_id="r", media=tuple(media))
        cold = self.cold.produce(request, endpoints, CYCLE)
        assert cold.receipt.cold == (not hit > 0)
        assert cold.columns[COLD_RANK].tolist() == self.naive_cold.ranks(endpoints)
        encoders = self.encoders.produce(request, endpoints, CYCLE)
        shares = [None if share != share else share for share in encoders.columns[ENCODER_MATCH].tolist()]
        assert shares == pytest.approx(self.naive_encoders.shares(media, endpoints))
        self.receipts = [*self.receipts, (cold.receipt, encoders.receipt)][-4:]

    @precondition(lambda self: self.receipts)
    @rule(data=st.data())
    def book(self, data):
        cold, encoders = data.draw(st.sampled_from(self.receipts))
        slot = data.draw(st.sampled_from(cold.endpoints.slots.tolist()))
        self.cold.commit(cold, slot, now=0.0)
        self.naive_cold.commit(cold, slot)
        self.encoders.commit(encoders, slot, now=0.0)
        self.naive_encoders.commit(encoders, slot)

    @invariant()
    def consistent(self):
        self.cold.check()
        self.encoders.check()


TestRemembering = Remembering.TestCase
TestRemembering.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
