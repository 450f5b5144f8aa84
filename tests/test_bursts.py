"""Bursts seen together, and from whom blocks are fetched; both by their words, and by names in a configuration."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched import config
from inferencesched.producers.p2p import SOURCE_HEADER, draw, fnv1a32
from inferencesched.signals import CACHED_BLOCKS, READABLE_BLOCKS
from tests import naive_caches as naive

NAN = math.nan
CYCLE = isched.CycleState(0.0, np.random.default_rng(0), 0)


def pool_of(running):
    """A pool of endpoints by name, with as many running requests; None is never heard of."""
    pool = isched.InferencePool()
    for name, count in running.items():
        pool.join(name, address=f"{name}:80")
        if count is not None:
            pool.observe(name, {isched.RUNNING_REQUESTS: count, isched.WAITING_QUEUE_SIZE: count}, now=0.0)
    return pool


def chain(prompt):
    return isched.block_hashes(np.array(prompt, dtype=np.uint32), 1)


def burst_of(prompts):
    return [
        isched.InferenceRequest(request_id=str(i), block_hashes=chain(prompt), input_tokens=len(prompt) * 64)
        for i, prompt in enumerate(prompts)
    ]


def places(assigner, prompts, endpoints):
    found = assigner.place(burst_of(prompts), endpoints)
    return [None if place is None else endpoints.name(place.position) for place in found]


# --- bursts ------------------------------------------------------------------------------------------------------

#: Prompts that share heads: a few words, of a few lengths.
PROMPTS = st.lists(
    st.sampled_from(
        [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 9), (1, 2, 8), (5,), (5, 6), (5, 6, 7), (7, 7, 7, 7, 7)]
    ),
    max_size=16,
)
RUNNING = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 2) | st.none(), min_size=1)
ASSIGNERS = st.builds(
    isched.BurstAssigner,
    max_per_replica=st.none() | st.integers(1, 4),
    min_colocate_blocks=st.integers(0, 3),
    balance_by=st.sampled_from(["requests", "tokens"]),
)


@settings(max_examples=300, deadline=None)
@given(PROMPTS, RUNNING, ASSIGNERS)
def test_a_burst_goes_where_its_twin_sends_it(prompts, running, assigner):
    expected = naive.burst(
        prompts,
        running,
        cap=assigner.max_per_replica,
        least=assigner.min_colocate_blocks,
        by=assigner.balance_by,
    )
    assert places(assigner, prompts, pool_of(running).snapshot()) == expected


@given(PROMPTS, RUNNING, ASSIGNERS, st.randoms(use_true_random=False))
def test_the_order_of_endpoints_does_not_matter(prompts, running, assigner, random):
    names = list(running)
    random.shuffle(names)
    there = pool_of({name: running[name] for name in names}).snapshot()
    assert places(assigner, prompts, there) == places(assigner, prompts, pool_of(running).snapshot())


@given(PROMPTS, RUNNING, ASSIGNERS)
def test_each_request_is_answered_once_and_in_order(prompts, running, assigner):
    burst, endpoints = burst_of(prompts), pool_of(running).snapshot()
    answers = assigner.assign(burst, endpoints, CYCLE)
    assert [answer.request for answer in answers] == burst
    placed = assigner.place(burst, endpoints)
    for answer, place in zip(answers, placed, strict=True):
        assert answer.target.score == (0.0 if place is None else 1.0)
        assert answer.target.address == f"{answer.endpoint}:80"
        assert place is None or endpoints.name(place.position) == answer.endpoint
        assert 0 <= answer.target.tokens <= answer.request.prompt_tokens
    # what is computed anywhere is computed once: each endpoint's distinct blocks
    computed = sum(answer.target.tokens for answer in answers)
    distinct = {(answer.endpoint, block) for answer in answers for block in answer.request.block_hashes.tolist()}
    assert computed == 64 * len(distinct)


@given(PROMPTS, RUNNING, st.integers(1, 4), st.integers(0, 3))
def test_nobody_has_more_of_one_prompt_than_allowed_while_others_have_room(prompts, running, cap, least):
    assigner = isched.BurstAssigner(max_per_replica=cap, min_colocate_blocks=least)
    found = places(assigner, prompts, pool_of(running).snapshot())
    for prompt in set(prompts):
        here = Counter(place for each, place in zip(prompts, found, strict=True) if each == prompt and place)
        if sum(here.values()) <= cap * len(running):
            assert max(here.values(), default=0) <= cap


@given(PROMPTS, RUNNING, st.integers(0, 3))
def test_no_endpoint_has_more_than_a_fair_share_and_one_unit(prompts, running, least):
    found = places(isched.BurstAssigner(min_colocate_blocks=least), prompts, pool_of(running).snapshot())
    load = Counter(place for place in found if place)
    units = Counter(prompt for prompt, place in zip(prompts, found, strict=True) if place)
    if load:
        share = -(-sum(load.values()) // len(running))
        assert max(load.values()) <= share - 1 + max(units.values())


def test_unknown_running_requests_come_last():
    endpoints = pool_of({"a": None, "b": 3, "c": 1}).snapshot()
    assert places(isched.BurstAssigner(), [(1,), (1,), (2,), (2,), (3,), (3,)], endpoints) == list("ccbbaa")


def test_tokens_are_hashed_with_their_rest_and_in_their_domain():
    assigner, tokens = isched.BurstAssigner(block_size=4, max_blocks=2), np.arange(11, dtype=np.uint32)
    requests = [isched.InferenceRequest(request_id=str(i), tokens=tokens[:count]) for i, count in enumerate((3, 9, 11))]
    assert [len(assigner.blocks(request)) for request in requests] == [1, 2, 2]
    salted = isched.InferenceRequest(request_id="s", tokens=tokens, cache_salt="mine")
    assert set(assigner.blocks(salted)) & set(assigner.blocks(requests[2])) == set()
    assert len(assigner.blocks(isched.InferenceRequest(request_id="n", input_tokens=99))) == 0


def test_nobody_to_choose_from():
    nobody, burst = isched.InferencePool().snapshot(), burst_of([(1,), (1,)])
    assert isched.BurstAssigner().place(burst, nobody) == [None, None]
    with pytest.raises(isched.NoEndpointsError):
        isched.BurstAssigner().assign(burst, nobody, CYCLE)
    assert isched.BurstAssigner().assign([], nobody, CYCLE) == []


def test_a_scheduler_assigns_bursts_and_books_them():
    pool = pool_of({"a": 0, "b": 0})
    scheduler = isched.Scheduler(isched.default_profile(), assigner=isched.BurstAssigner(max_per_replica=2))
    burst = burst_of([(1, 2, 3)] * 4)
    results = scheduler.assign(burst, pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    assert [result.endpoint for result in results] == list("aabb")
    assert [result.target.tokens for result in results] == [192, 0, 192, 0]
    for result in results:
        scheduler.reserve(result, pool, now=0.0)
    assert pool.ledger().inflight_tokens == 384


def test_producers_learn_where_an_assigner_sent_each():
    pool, prefixes = pool_of({"a": 0, "b": 0}), isched.ApproximatePrefixProducer(block_size=64)
    assigner = isched.BurstAssigner(max_per_replica=2)
    scheduler = isched.Scheduler(isched.default_profile(), producers=(prefixes,), assigner=assigner)
    tokens = np.arange(192, dtype=np.uint32)
    burst = [isched.InferenceRequest(request_id=str(i), tokens=tokens) for i in range(2)]
    before = pool.snapshot()
    results = scheduler.assign(burst, before, now=0.0, rng=np.random.default_rng(0))
    assert (
        pool.snapshot() is before and not prefixes.produce(burst[0], before, CYCLE).columns[isched.PREFIX_MATCH].any()
    )
    for result in results:
        scheduler.reserve(result, pool, now=0.0)
    assert prefixes.produce(burst[0], pool.snapshot(), CYCLE).columns[isched.PREFIX_MATCH].tolist() == [1.0, 0.0]


def test_an_assigner_sees_whom_the_policy_on_stale_servers_leaves():
    pool = isched.InferencePool()
    for name in "ab":
        pool.join(name)
    pool.observe("b", {isched.RUNNING_REQUESTS: 9}, now=10.0)
    stale = isched.StalePolicy(2.0, "exclude")
    scheduler = isched.Scheduler(isched.default_profile(), assigner=isched.BurstAssigner(), stale=stale)
    burst, rng = burst_of([(1, 2)] * 2), np.random.default_rng(0)
    assert [each.endpoint for each in scheduler.assign(burst, pool.snapshot(), now=10.0, rng=rng)] == ["b", "b"]
    with pytest.raises(isched.NoEndpointsError, match="observed in the last 2.0 s"):
        scheduler.assign(burst, pool.snapshot(), now=20.0, rng=rng)
    assert scheduler.assign([], pool.snapshot(), now=20.0, rng=rng) == []


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.BurstAssigner(max_per_replica=0), "max_per_replica"),
        (lambda: isched.BurstAssigner(min_colocate_blocks=-1), "min_colocate_blocks"),
        (lambda: isched.BurstAssigner(balance_by="watts"), "balance_by"),
        (lambda: isched.BurstAssigner(block_size=0), "block_size"),
        (lambda: isched.BurstAssigner(max_blocks=0), "max_blocks"),
        (lambda: isched.BurstPrefixProducer(window=0), "window"),
        (lambda: isched.BurstPrefixProducer(window=10.1), "window"),
        (lambda: isched.BurstPrefixProducer(max_batch_size=0), "max_batch_size"),
        (lambda: isched.P2PSource(min_cached_token_delta=0), "min_cached_token_delta"),
        (lambda: isched.P2PSource(prefill_profile_name=""), "prefill_profile_name"),
    ],
)
def test_parameters_are_checked(make, parameter):
    with pytest.raises(isched.InvalidInputError) as caught:
        make()
    assert caught.value.parameter == parameter


def test_a_plan_is_weighed_with_what_else_is_known():
    pool = pool_of({"a": 0, "b": 9})
    profile = isched.SchedulingProfile(
        isched.MaxScorePicker(),
        (isched.WeightedScorer(isched.PrefixCacheScorer(), 1.0), isched.WeightedScorer(isched.QueueScorer(), 2.0)),
    )
    producer = isched.BurstPrefixProducer(isched.BurstAssigner(max_per_replica=1))
    scheduler, burst = isched.Scheduler(profile, producers=(producer,)), burst_of([(1, 2), (1, 2), (9,)])
    assert producer.plan(burst, pool.snapshot()) == 2
    results = [scheduler.schedule(each, pool.snapshot(), now=0.0, rng=np.random.default_rng(0)) for each in burst]
    assert [result.endpoint for result in results] == ["a", "a", "a"]  # the queue counts for more
    assert [result.target.score for result in results] == [3.0, 2.0, 2.0]
    scheduler.reserve(results[0], pool, now=0.0)
    again = scheduler.schedule(burst[0], pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    assert again.target.score == 2.0  # the plan is used up


def test_plans_are_bounded_and_belong_to_a_stay():
    pool, producer = pool_of({"a": 0}), isched.BurstPrefixProducer(max_batch_size=2)
    with pytest.raises(isched.InvalidInputError, match="requests"):
        producer.plan(burst_of([(1,)] * 3), pool.snapshot())
    for i in range(5):
        pair = [isched.InferenceRequest(request_id=f"{i}/{j}", block_hashes=chain((1, 2))) for j in range(2)]
        assert producer.plan(pair, pool.snapshot()) == 2
        producer.check()
    kept = [producer.produce(isched.InferenceRequest(request_id=f"{i}/0"), pool.snapshot(), CYCLE) for i in range(5)]
    assert [float(each.columns[isched.PREFIX_MATCH][0]) for each in kept] == [0, 0, 0, 1, 1]
    pool.leave("a")
    pool.join("b")
    new = producer.produce(isched.InferenceRequest(request_id="4/0"), pool.snapshot(), CYCLE)
    assert new.columns[isched.PREFIX_MATCH].tolist() == [0.0]
    assert producer.plan([pair[0]], pool.snapshot()) == 0  # alone, and its old plan is gone
    producer.check()


# --- sources of blocks -------------------------------------------------------------------------------------------


def columns(cached, readable=None, size=16):
    given = {CACHED_BLOCKS: np.array(cached, dtype=float), isched.PREFIX_TOKENS: np.array(cached, dtype=float) * size}
    return given if readable is None else {**given, READABLE_BLOCKS: np.array(readable, dtype=float)}


def drawn(queues, name="r", policy=None, **counts):
    endpoints = pool_of(dict(zip("abcdef", queues, strict=False))).snapshot().with_columns(columns(**counts))
    request = isched.InferenceRequest(request_id=name)
    return (policy or isched.P2PSource()).produce(request, endpoints, CYCLE).receipt


def test_the_hash_is_fnv():
    assert [fnv1a32(text) for text in ("", "hello", "chongo was here!\n")] == [0x811C9DC5, 0x4F9F2CAB, 0xD49930D5]


def test_within_a_block_of_the_most():
    far = {drawn([20, 0], f"r{i}", cached=[5, 3]).source.endpoint for i in range(50)}
    near = {drawn([20, 0], f"r{i}", cached=[4, 3]).source.endpoint for i in range(200)}
    assert (far, near) == ({"a"}, {"a", "b"})
    assert drawn([0, 0], cached=[0, 0]).source is None
    assert drawn([0, 0], cached=[NAN, NAN]).source is None


def test_where_tiers_are_told_only_what_can_be_read_counts():
    assert drawn([0, 0], cached=[10, 3], readable=[0, 3]).source[:1] == ("b",)
    assert drawn([0, 0], cached=[10, 3], readable=[0, 0]).source is None
    assert drawn([0, 0], cached=[10, 3], readable=[NAN, 0]).source.tokens == 160
    assert drawn([0, 0], cached=[10, 3], readable=[4, 0]).source.tokens == 64


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 4), st.integers(0, 9) | st.none()), min_size=1),
    st.text(max_size=12),
)
def test_a_source_is_drawn_at_the_hash_of_the_request(known, name):
    blocks, queues = ({name: each[i] for name, each in known.items()} for i in (0, 1))
    endpoints = pool_of(queues).snapshot()
    position = draw(name, np.array([float(blocks[each]) for each in endpoints.names]), endpoints)
    shares, at = naive.source_shares(blocks, queues), fnv1a32(name) / 2**32
    if not shares:
        assert position == -1
        return
    ends = np.cumsum(list(shares.values()))
    chosen = list(shares)[min(int(np.searchsorted(ends, at, side="right")), len(shares) - 1)]
    close = np.abs(ends - at).min() < 1e-9  # on an edge, rounding decides
    assert close or endpoints.name(position) == chosen


def test_shares_are_those_of_the_queues():
    drawing = np.random.default_rng(5)
    names = [drawing.bytes(16).hex() for _ in range(2000)]
    endpoints = pool_of({"a": 0, "b": 1, "c": 3, "d": 40}).snapshot()
    counts = Counter(endpoints.name(draw(name, np.array([3.0, 3.0, 3.0, 1.0]), endpoints)) for name in names)
    expected = naive.source_shares({"a": 3, "b": 3, "c": 3, "d": 1}, {"a": 0, "b": 1, "c": 3, "d": 40})
    assert {name: count / len(names) for name, count in counts.items()} == pytest.approx(expected, abs=0.05)


def result_of(receipt, primary, **targets):
    profiles = {}
    for profile, name in targets.items():
        i = receipt.endpoints.names.index(name)
        slot, generation = receipt.endpoints.stay(i)
        profiles[profile] = isched.ProfileResult((isched.Target(name, slot, generation, 1.0, 0, f"{name}:80"),))
    request = isched.InferenceRequest(request_id="r")
    return isched.SchedulingResult(request, primary, profiles, receipts=(None, receipt))


def test_the_header_names_a_source_that_has_more_than_who_computes():
    receipt = drawn([0, 0, 0], cached=[6, 4, 0])
    assert receipt.source.endpoint == "a"
    for policy, target, header in (
        (isched.P2PSource(), "a", ""),  # itself
        (isched.P2PSource(), "b", "a:80"),
        (isched.P2PSource(32), "b", "a:80"),
        (isched.P2PSource(33), "b", ""),
        (isched.P2PSource(96), "c", "a:80"),
    ):
        result = result_of(receipt._replace(policy=policy), "decode", decode=target)
        assert isched.source_headers(result) == {SOURCE_HEADER: header}


def test_who_computes_is_the_prefill_s_target_where_it_ran():
    receipt = drawn([0, 0], cached=[6, 0])
    assert isched.source_headers(result_of(receipt, "decode", decode="a", prefill="b")) == {SOURCE_HEADER: "a:80"}
    assert isched.source_headers(result_of(receipt, "decode", decode="b", prefill="a")) == {SOURCE_HEADER: ""}
    failed = result_of(receipt, "decode", decode="b")
    failed = failed._replace(profiles={**failed.profiles, "prefill": None})
    assert isched.source_headers(failed) == {SOURCE_HEADER: "a:80"}
    named = receipt._replace(policy=isched.P2PSource(prefill_profile_name="P"))
    assert isched.source_headers(result_of(named, "decode", decode="b", prefill="a")) == {SOURCE_HEADER: "a:80"}
    assert isched.source_headers(result_of(receipt, "decode", decode="b")._replace(receipts=())) == {}


def test_prefix_producers_count_blocks_where_somebody_asks():
    pool, tokens = pool_of({"a": 0, "b": 0}), np.arange(64, dtype=np.uint32)
    request, endpoints = isched.InferenceRequest(request_id="1", tokens=tokens), pool.snapshot()
    ours = isched.ApproximatePrefixProducer(block_size=16, count_blocks=True)
    ours.commit(ours.produce(request, endpoints, CYCLE).receipt, 1, now=0.0)
    found = ours.produce(request, endpoints, CYCLE).columns
    assert set(found) == set(ours.produces)
    assert found[CACHED_BLOCKS].tolist() == [0.0, 4.0]
    unknown = isched.InferenceRequest(request_id="2", input_tokens=64)
    assert np.isnan(ours.produce(unknown, endpoints, CYCLE).columns[CACHED_BLOCKS]).all()
    engines = isched.PrecisePrefixProducer(block_size=16, count_blocks=True)
    for slot, medium in ((0, None), (0, "cpu"), (1, None)):
        count = 2 if medium else 3
        stored = isched.BlockStored(
            block_hashes=tuple(range(1, count + 1)), token_ids=tuple(range(16 * count)), block_size=16, medium=medium
        )
        engines.apply(slot, int(endpoints.generations[slot]), isched.EventBatch(events=(stored,)))
    engines.commit(engines.produce(request, endpoints, CYCLE).receipt, 1, now=0.0)
    found = engines.produce(request, endpoints, CYCLE).columns
    assert set(found) == set(engines.produces)
    assert found[CACHED_BLOCKS].tolist() == [3.0, 4.0]  # booked blocks are on their way
    assert found[READABLE_BLOCKS].tolist() == [2.0, 0.0]


# --- in a configuration ------------------------------------------------------------------------------------------


def loaded(*plugins):
    document = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": list(plugins)}
    found = config.load(document, allow_experimental=True)
    written = config.dump(found)
    assert config.dump(config.load(written, allow_experimental=True)) == written
    again = config.dump_scheduler(found.scheduler())
    assert config.dump_scheduler(config.load(again, allow_experimental=True).scheduler()) == again
    return found


def test_what_cold_and_multimodal_scorers_need_is_made():
    found = loaded({"type": "no-hit-lru-scorer", "parameters": {"lruSize": 7}}, {"type": "mm-embeddings-cache-scorer"})
    cold, encoders = found.producers
    assert (cold.lru_size, encoders.entries) == (7, 2048)
    default = loaded({"type": "no-hit-lru-scorer", "parameters": {"lruSize": 0}})
    assert default.producers[0].lru_size == 1024


def test_a_source_makes_the_prefix_producer_it_reads_count():
    [prefixes, source] = sorted(loaded({"type": "p2p-source-producer"}).producers, key=lambda each: not each.produces)
    assert prefixes.count_blocks and source == isched.P2PSource()
    assert not loaded({"type": "prefix-cache-scorer"}).producers[0].count_blocks
    engines = {
        "type": "precise-prefix-cache-producer",
        "name": "engines",
        "parameters": {"kvEventsConfig": {"zmqEndpoint": "tcp://gateway:5557"}, "speculativeIndexing": True},
    }
    source = {"type": "p2p-source-producer", "parameters": {"prefixMatchInfoProducerName": "engines"}}
    found = loaded(engines, source, {"type": "queue-scorer"})
    assert found.plugins["engines"].count_blocks
    assert found.plugins["engines"].settings.kv_events_config.zmq_endpoint == "tcp://gateway:5557"
    assert found.plugins["engines"].speculative_ttl == 2.0
    assert found.plugins["p2p-source-producer"].producer == "engines"


def test_the_prefix_producers_are_set_up_as_llm_d_says():
    given = {"autoTune": False, "blockSizeTokens": 128, "maxPrefixTokensToMatch": 1280, "lruCapacityPerServer": 77}
    found = loaded({"type": "approx-prefix-cache-producer", "parameters": given}, {"type": "prefix-cache-scorer"})
    it = found.plugins["approx-prefix-cache-producer"]
    assert (it.block_size, it.max_blocks, it.index.capacity, it.automatic) == (128, 10, 77, False)
    default = loaded({"type": "prefix-cache-scorer"}).producers[0]
    assert (default.block_size, default.max_blocks, default.index.capacity) == (64, 2048, 31_250)
    with pytest.raises(isched.ConfigError, match="maxPrefixTokensToMatch"):
        loaded({"type": "approx-prefix-cache-producer", "parameters": {"maxPrefixTokensToMatch": 63}})


def test_what_llm_d_cannot_say_is_not_written():
    profile = isched.default_profile()
    for producer in (
        isched.ApproximatePrefixProducer(capacity=None),
        isched.ApproximatePrefixProducer(ttl=5.0),
        isched.ApproximatePrefixProducer(block_size=16),
        isched.PrecisePrefixProducer(seed=5),
        isched.PrecisePrefixProducer(model="llama"),
    ):
        with pytest.raises(isched.ConfigError):
            config.dump_scheduler(isched.Scheduler(profile, producers=(producer,)))
    plain = isched.PrecisePrefixProducer(block_size=32, speculative_ttl=0.5)
    written = config.dump_scheduler(isched.Scheduler(profile, producers=(plain,)))
    [made] = config.load(written).scheduler().producers
    assert (made.block_size, made.speculative_ttl, made.weights) == (32, 0.5, plain.weights)


def test_bursts_and_clusters_by_name():
    burst = {"windowDurationMs": 250, "maxPerReplica": 3, "maxPrefixTokensToMatch": 640, "balanceBy": "tokens"}
    found = loaded(
        {"type": "burst-prefix-cache-producer", "parameters": burst},
        {
            "type": "prefix-cache-scorer",
            "parameters": {"prefixMatchInfoProducerName": "burst-prefix-cache-producer", "matchLengthWeight": 0.5},
        },
        {"type": "multicluster-queue-scorer"},
        {"type": "multicluster-kv-cache-utilization-scorer"},
        {"type": "multicluster-prefix-cache-scorer"},
        {"type": "burst-assigner", "parameters": {"minColocateBlocks": 2}},
    )
    producer = found.plugins["burst-prefix-cache-producer"]
    assert (producer.window, producer.max_batch_size) == (0.25, 1000)
    assert producer.assigner == isched.BurstAssigner(max_per_replica=3, max_blocks=10, balance_by="tokens")
    assert found.assigner == isched.BurstAssigner(min_colocate_blocks=2)
    filled = {signal.name for each in found.producers for signal in each.produces}
    assert "prefix_match@multicluster-approx-prefix-cache-producer" in filled


@pytest.mark.parametrize(
    ("kind", "parameter", "value"),
    [
        ("burst-prefix-cache-producer", "windowDurationMs", 0),
        ("burst-prefix-cache-producer", "windowDurationMs", 10_001),
        ("burst-prefix-cache-producer", "maxPerReplica", 0),
        ("burst-prefix-cache-producer", "maxPerReplica", -2),
        ("burst-prefix-cache-producer", "blockSizeTokens", 0),
        ("burst-prefix-cache-producer", "minColocateBlocks", -1),
        ("burst-prefix-cache-producer", "maxPrefixTokensToMatch", 63),
        ("burst-prefix-cache-producer", "maxBatchSize", 0),
        ("burst-prefix-cache-producer", "balanceBy", "watts"),
        ("burst-prefix-cache-producer", "window", 100),
        ("p2p-source-producer", "minCachedTokenDelta", 0),
        ("no-hit-lru-scorer", "lruSize", "many"),
        ("mm-embeddings-cache-producer", "cacheSizeInMB", 4),
        ("multicluster-queue-scorer", "threshold", 4),
    ],
)
def test_a_wrong_parameter_is_named_with_its_path(kind, parameter, value):
    with pytest.raises(isched.ConfigError) as caught:
        loaded({"type": kind, "parameters": {parameter: value}})
    assert caught.value.parameter == f"$.plugins[0].parameters.{parameter}"
