import json
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched import _fusion, signals
from tests import naive
from tests.profiles import endpoints_of, pools, profiles

REQUEST = isched.InferenceRequest(request_id="r", input_tokens=500)


def rng(seed=0):
    return np.random.default_rng(seed)


def pool_of(count, **options):
    pool = isched.InferencePool(**options)
    for i in range(count):
        pool.join(f"ep-{i}")
    return pool


def scheduler_of(*scorers, picker=None, filters=(), **options):
    profile = isched.SchedulingProfile(
        picker or isched.MaxScorePicker(), tuple(isched.WeightedScorer(s) for s in scorers), tuple(filters)
    )
    return isched.Scheduler(profile, **options)


# -- deciding -------------------------------------------------------------------------------------


def test_the_default_profile_weighs_prefix_queue_and_kv():
    endpoints = endpoints_of(
        {
            isched.WAITING_QUEUE_SIZE: [4, 0],
            isched.KV_CACHE_USAGE: [0.5, 0.75],
            isched.PREFIX_MATCH: [1.0, 0.0],
        }
    )
    result = isched.Scheduler(isched.default_profile()).schedule(REQUEST, endpoints, now=0.0, rng=rng())
    assert result.endpoint == "ep-0"
    assert result.target.score == 3 * 1.0 + 2 * 0.0 + 2 * 0.5
    assert result.fallbacks == ()


def test_deciding_changes_nothing_and_repeats():
    pool = pool_of(5)
    scheduler = isched.Scheduler(isched.default_profile())
    endpoints = pool.snapshot()
    matrix = endpoints.matrix.copy()
    answers = {scheduler.schedule(REQUEST, endpoints, now=0.0, rng=rng(3)).endpoint for _ in range(10)}
    assert len(answers) == 1
    assert np.array_equal(endpoints.matrix, matrix, equal_nan=True)
    assert pool.snapshot() is endpoints and pool.ledger().reserved_requests == 0


def test_a_decision_is_seen_by_the_next():
    pool = pool_of(2)
    scheduler = scheduler_of(isched.ActiveRequestScorer())
    first = scheduler.schedule_and_reserve(REQUEST, pool, now=0.0, rng=rng())
    second = scheduler.schedule_and_reserve(REQUEST, pool, now=0.0, rng=rng())
    assert {first.endpoint, second.endpoint} == {"ep-0", "ep-1"}


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_equal_endpoints_get_equal_load_within_one(count):
    pool = pool_of(count)
    scheduler = isched.Scheduler(isched.default_profile())
    generator = rng(1)
    loads: Counter[str] = Counter(dict.fromkeys(pool.names, 0))
    for _ in range(10_000):
        reservation = scheduler.schedule_and_reserve(REQUEST, pool, now=0.0, rng=generator)
        loads[reservation.endpoint] += 1
        reservation.complete(now=0.0)
    assert max(loads.values()) - min(loads.values()) <= 1


def test_a_burst_does_not_herd():
    pool = pool_of(64)
    pool.observe_all({isched.WAITING_QUEUE_SIZE: np.arange(64.0) % 3}, now=0.0)
    scheduler = scheduler_of(isched.TokenLoadScorer())
    requests = [isched.InferenceRequest(request_id=str(i), input_tokens=100) for i in range(256)]
    answers = scheduler.schedule_many(requests, pool, now=0.0, rng=rng())
    assert Counter(answer.endpoint for answer in answers) == dict.fromkeys(pool.names, 4)


def test_schedule_many_is_the_fold():
    def run(many):
        pool = pool_of(6)
        pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([3.0, 1, 4, 1, 5, 9])}, now=0.0)
        producer = isched.ApproximatePrefixProducer(block_size=16)
        scheduler = isched.Scheduler(isched.default_profile(), producers=(producer,))
        tokens = rng(5).integers(0, 3, (40, 64)).astype(np.uint32)
        tokens[:, :32] = tokens[:, :1]  # a few shared prefixes
        requests = [isched.InferenceRequest(request_id=str(i), tokens=row) for i, row in enumerate(tokens)]
        generator = rng(2)
        if many:
            answers = scheduler.schedule_many(requests, pool, now=0.0, rng=generator)
        else:
            answers = [scheduler.schedule_and_reserve(r, pool, now=0.0, rng=generator) for r in requests]
        pool.check()
        producer.index.check()
        return [(a.request_id, a.endpoint, a.tokens, a.number) for a in answers], pool.snapshot().matrix

    (many, after_many), (fold, after_fold) = run(True), run(False)
    assert many == fold
    assert np.array_equal(after_many, after_fold, equal_nan=True)


@given(profiles(), st.lists(st.integers(0, 900) | st.none(), max_size=12), st.integers(0, 2**32))
def test_schedule_many_is_the_fold_whatever_the_profile(profile, lengths, seed):
    def run(many):
        pool, generator = pool_of(4), rng(seed)
        pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([3.0, 1, 4, 1])}, now=0.0)
        requests = [isched.InferenceRequest(request_id=str(i), input_tokens=n) for i, n in enumerate(lengths)]
        scheduler = isched.Scheduler(profile)
        if many:
            answers = scheduler.schedule_many(requests, pool, now=0.0, rng=generator)
        else:
            answers = [scheduler.schedule_and_reserve(r, pool, now=0.0, rng=generator) for r in requests]
        pool.check()
        drawn = generator.bit_generator.state
        return [(a.request_id, a.endpoint, a.tokens) for a in answers], pool.snapshot().matrix.tobytes(), drawn

    assert run(many=True) == run(many=False)


def test_in_schedule_many_a_refusal_takes_its_request_s_place():
    @dataclass(frozen=True)
    class OnlyShort:
        def filter(self, request, endpoints, cycle):
            return np.full(len(endpoints), request.prompt_tokens < 100)

    pool = pool_of(2)
    requests = [isched.InferenceRequest(request_id=str(n), input_tokens=n) for n in (50, 500, 60)]
    scheduler = scheduler_of(filters=[OnlyShort()])
    first, refused, third = scheduler.schedule_many(requests, pool, now=0.0, rng=rng())
    assert first.request_id == "50" and third.request_id == "60"
    assert isinstance(refused, isched.FilteredOutError) and (refused.status, refused.outcome) == (429, "filtered_out")
    assert pool.ledger().inflight_requests == 2


def test_assign_plans_what_schedule_many_would_do():
    pool = pool_of(5)
    pool.observe_all({isched.WAITING_QUEUE_SIZE: np.array([3.0, 1, 4, 1, 5])}, now=0.0)
    scheduler = scheduler_of(isched.TokenLoadScorer(2000.0), isched.QueueScorer(), isched.ActiveRequestScorer())
    requests = [isched.InferenceRequest(request_id=str(i), input_tokens=50 * i) for i in range(30)]
    before = pool.snapshot()
    plan = scheduler.assign(requests, before, now=0.0, rng=rng(9))
    assert pool.snapshot() is before
    done = scheduler.schedule_many(requests, pool, now=0.0, rng=rng(9))
    assert [p.endpoint for p in plan] == [d.endpoint for d in done]


def test_assign_uses_the_assigner():
    class AllToTheFirst:
        def assign(self, requests, endpoints, cycle):
            one = isched.Scheduler(isched.default_profile())
            only = endpoints.where(np.arange(len(endpoints)) == 0)
            return [one.schedule(r, only, now=cycle.now, rng=cycle.rng) for r in requests]

    scheduler = isched.Scheduler(isched.default_profile(), assigner=AllToTheFirst())
    plan = scheduler.assign([REQUEST, REQUEST], pool_of(3).snapshot(), now=0.0, rng=rng())
    assert [p.endpoint for p in plan] == ["ep-0", "ep-0"]


def test_reserving_a_decision_whose_endpoint_left_or_was_replaced():
    pool = pool_of(1)
    scheduler = isched.Scheduler(isched.default_profile())
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    pool.leave("ep-0")
    with pytest.raises(isched.EndpointGoneError, match="ep-0"):
        scheduler.reserve(result, pool, now=0.0)
    pool.join("ep-0")
    with pytest.raises(isched.EndpointGoneError, match="ep-0"):
        scheduler.reserve(result, pool, now=0.0)
    assert pool.ledger().reserved_requests == 0


def test_excluded_endpoints_are_not_tried():
    pool = pool_of(3)
    scheduler = isched.Scheduler(isched.default_profile())
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng(), exclude={"ep-0", "ep-2"})
    assert result.endpoint == "ep-1"
    with pytest.raises(isched.NoEndpointsError, match="'r'.*3 excluded") as refusal:
        scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng(), exclude=set(pool.names))
    assert (refusal.value.status, refusal.value.outcome) == (503, "no_endpoints")


def test_an_empty_pool_refuses():
    with pytest.raises(isched.NoEndpointsError):
        isched.Scheduler(isched.default_profile()).schedule(REQUEST, pool_of(0).snapshot(), now=0.0, rng=rng())


def test_tokens_booked_are_those_not_cached():
    endpoints = endpoints_of({isched.PREFIX_TOKENS: [128.0, math.nan]})
    scheduler = scheduler_of(isched.TokenLoadScorer(), picker=isched.MaxScorePicker(count=2))
    result = scheduler.schedule(REQUEST, endpoints, now=0.0, rng=rng())
    assert [(t.endpoint, t.tokens) for t in result.profiles["default"].targets] == [("ep-0", 372), ("ep-1", 500)]
    assert result.fallbacks == ("ep-1",)


# -- plug-ins that break their contract ---------------------------------------------------------------


@dataclass(frozen=True)
class Answering:
    answer: object

    def score(self, request, endpoints, cycle):
        return self.answer

    filter = score

    def pick(self, totals, endpoints, cycle):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([0.5, 0.5], "a list"),
        (np.array([0.5]), r"float64\[1\]"),
        (np.array([0.5, 0.5, 0.5]), r"float64\[3\]"),
        (np.array([[0.5, 0.5]]), r"float64\[1, 2\]"),
        (np.array([1, 0]), r"int64\[2\]"),
        (np.array([0.5, 0.5], dtype=np.float32), r"float32\[2\]"),
        (np.array([0.5, math.nan]), "nan for 'ep-1'"),
        (np.array([1.5, 0.5]), "1.5 for 'ep-0'"),
        (np.array([0.5, -0.1]), "-0.1 for 'ep-1'"),
        (np.array([math.inf, 0.0]), "inf for 'ep-0'"),
    ],
)
def test_a_scorer_that_breaks_its_contract(answer, words):
    pool = pool_of(2)
    scheduler = scheduler_of(isched.QueueScorer(), Answering(answer))
    before = pool.snapshot()
    with pytest.raises(isched.ScoreError, match=words) as error:
        scheduler.schedule_and_reserve(REQUEST, pool, now=0.0, rng=rng())
    assert "float64[2] in [0, 1]" in str(error.value) and "Answering" in str(error.value)
    assert pool.snapshot() is before


@pytest.mark.parametrize("answer", [[True, False], np.array([1, 0]), np.array([True]), np.array([[True, True]])])
def test_a_filter_that_breaks_its_contract(answer):
    with pytest.raises(isched.FilterError, match=r"bool\[2\]"):
        scheduler_of(filters=[Answering(answer)]).schedule(REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng())


@pytest.mark.parametrize(
    "answer", [[0], np.array([], dtype=np.intp), np.array([2]), np.array([-1]), np.array([0, 0]), np.array([0.0])]
)
def test_a_picker_that_breaks_its_contract(answer):
    with pytest.raises(isched.PickError, match="distinct positions below 2"):
        scheduler_of(picker=Answering(answer)).schedule(REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng())


def test_bad_schedulers():
    with pytest.raises(isched.InvalidInputError, match="profiles"):
        isched.Scheduler({})
    with pytest.raises(isched.InvalidInputError, match="handler"):
        isched.Scheduler({"a": isched.default_profile(), "b": isched.default_profile()})
    with pytest.raises(isched.InvalidInputError, match="weight"):
        isched.WeightedScorer(isched.QueueScorer(), math.nan)


# -- several profiles --------------------------------------------------------------------------------


class Both:
    """Runs `first`, then `second`; the second counts."""

    def pick(self, request, profiles, results, cycle):
        return {name: profiles[name] for name in ("first", "second")[len(results) : len(results) + 1]}

    def process_results(self, request, results, cycle):
        return isched.SchedulingResult(request, "second", dict(results))


def test_a_handler_runs_profiles_in_turn():
    endpoints = endpoints_of({isched.WAITING_QUEUE_SIZE: [0, 5], isched.KV_CACHE_USAGE: [0.9, 0.1]})
    profiles = {
        "first": isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(isched.QueueScorer()),)),
        "second": isched.SchedulingProfile(
            isched.MaxScorePicker(), (isched.WeightedScorer(isched.KvCacheUtilizationScorer()),)
        ),
    }
    result = isched.Scheduler(profiles, handler=Both()).schedule(REQUEST, endpoints, now=0.0, rng=rng())
    assert result.primary == "second" and result.endpoint == "ep-1"
    assert result.profiles["first"].target.endpoint == "ep-0"


def test_a_handler_that_names_a_profile_nobody_knows_or_runs_in_circles():
    class Wrong(Both):
        def pick(self, request, profiles, results, cycle):
            return {"third": profiles["first"]}

    class Circle(Both):
        def pick(self, request, profiles, results, cycle):
            return {"first": profiles["first"]}

    both = {"first": isched.default_profile(), "second": isched.default_profile()}
    for handler, words in ((Wrong(), "third"), (Circle(), "again")):
        with pytest.raises(isched.PluginError, match=words):
            isched.Scheduler(both, handler=handler).schedule(REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng())


# -- unknown and stale --------------------------------------------------------------------------------


def test_a_server_never_heard_of_does_not_look_idle():
    endpoints = endpoints_of({isched.WAITING_QUEUE_SIZE: [3, math.nan], isched.KV_CACHE_USAGE: [0.99, math.nan]})
    result = isched.Scheduler(isched.default_profile()).schedule(REQUEST, endpoints, now=0.0, rng=rng())
    assert result.endpoint == "ep-0"


def stale_pool():
    pool = pool_of(3)
    for name, queue, at in (("ep-0", 0.0, 0.0), ("ep-1", 4.0, 10.0), ("ep-2", 8.0, 10.0)):
        pool.observe(name, {isched.WAITING_QUEUE_SIZE: queue}, now=at)
    return pool


@pytest.mark.parametrize(
    ("assume", "queue", "picked"),
    [
        ("trust", [0.0, 4.0, 8.0], "ep-0"),
        ("worst", [math.nan, 4.0, 8.0], "ep-1"),
        ("mean", [6.0, 4.0, 8.0], "ep-1"),
        ("exclude", [4.0, 8.0], "ep-1"),
    ],
)
def test_each_stale_policy(assume, queue, picked):
    policy = isched.StalePolicy(after=2.0, assume=assume)
    endpoints = stale_pool().snapshot()
    assert np.array_equal(policy.apply(endpoints, 11.0)[isched.WAITING_QUEUE_SIZE], queue, equal_nan=True)
    scheduler = scheduler_of(isched.QueueScorer(), stale=policy)
    assert scheduler.schedule(REQUEST, endpoints, now=11.0, rng=rng()).endpoint == picked
    assert policy.apply(endpoints, 1.5) is endpoints


def test_nobody_fresh():
    endpoints = stale_pool().snapshot()
    with pytest.raises(isched.NoEndpointsError, match="none of 3"):
        isched.StalePolicy(assume="exclude").apply(endpoints, 99.0)
    assert np.isnan(isched.StalePolicy(assume="mean").apply(endpoints, 99.0)[isched.WAITING_QUEUE_SIZE]).all()


def test_a_stale_report_of_adapters_is_not_believed():
    pool = pool_of(2)
    pool.observe("ep-0", {}, now=0.0, adapters=isched.Adapters(frozenset({"x"}), capacity=4))
    pool.observe("ep-1", {}, now=9.0, adapters=isched.Adapters(capacity=4))
    request = isched.InferenceRequest(request_id="r", adapter="x")
    scheduler = scheduler_of(isched.LoraAffinityScorer())
    assert scheduler.schedule(request, pool.snapshot(), now=1.0, rng=rng()).endpoint == "ep-0"
    assert scheduler.schedule(request, pool.snapshot(), now=10.0, rng=rng()).endpoint == "ep-1"


@pytest.mark.parametrize(
    ("options", "words"), [({"after": 0.0}, "after"), ({"assume": "best"}, "worst, mean, exclude, trust")]
)
def test_bad_stale_policies(options, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.StalePolicy(**options)


# -- the fused path is the plain path -------------------------------------------------------------------


@given(pools(), profiles(), st.integers(0, 2000) | st.none(), st.integers(0, 2**32))
def test_fused_totals_equal_the_plain_ones_to_the_last_bit(endpoints, profile, tokens, seed):
    request = isched.InferenceRequest(request_id="r", adapter="x", input_tokens=tokens)
    cycle = isched.CycleState(0.0, rng(seed), 0)
    plain = _fusion.plain_totals(profile.scorers, _fusion.plain_scores(profile.scorers, request, endpoints, cycle))
    program = _fusion.Program(profile.scorers)
    assert program.totals(request, endpoints, cycle).tobytes() == plain.tobytes()
    best, total = program.best(request, endpoints, isched.CycleState(0.0, rng(seed), 0))
    (picked,) = isched.MaxScorePicker().pick(plain, endpoints, isched.CycleState(0.0, rng(seed), 0))
    assert best == picked and total == plain[picked]
    assert best in naive.best_of(plain.tolist(), endpoints[isched.LAST_PICKED].tolist())
    one = isched.Scheduler(profile, stale=isched.StalePolicy(assume="trust")).schedule(
        request, endpoints, now=0.0, rng=rng(seed)
    )
    again = profile.picker.pick(plain, endpoints, isched.CycleState(0.0, rng(seed), 0))
    assert one.endpoint == endpoints.name(int(again[0]))


SHARES = st.lists(st.sampled_from([0.0, 0.25, 1.0, float("nan")]), min_size=3, max_size=3)


@given(SHARES, SHARES, SHARES, SHARES, st.booleans())
def test_columns_beside_the_standard_ones_are_found_in_any_layout(first, second, third, fourth, turned):
    """Each pool has its columns elsewhere; the program follows, and says what is missing as the scorer does."""
    columns = {
        signals.MULTICLUSTER_QUEUE_SIZE: np.array(first) * 8,
        signals.MULTICLUSTER_KV_CACHE_USAGE: np.array(second),
        signals.ENCODER_MATCH: np.array(third),
        signals.SESSION_BOUND: np.array(fourth),
        signals.of_producer(isched.PREFIX_MATCH, "far"): np.array(second),
        signals.of_producer(isched.PREFIX_TOKENS, "far"): np.array(first) * 4096,
    }
    scorers = (
        isched.MultiClusterQueueScorer(),
        isched.MultiClusterKvCacheUtilizationScorer(),
        isched.EncoderCacheScorer(),
        isched.SessionAffinityScorer(isched.BoundSession()),
        isched.MultiClusterPrefixCacheScorer("far", 0.5),
        isched.EndpointAttributeScorer(signals.MULTICLUSTER_QUEUE_SIZE, "higher"),
    )
    weighted = tuple(isched.WeightedScorer(scorer, 1.0 + k / 3) for k, scorer in enumerate(scorers))
    program, cycle = _fusion.Program(weighted), isched.CycleState(0.0, rng(), 0)
    assert program.fused and not program.fixed
    pool = pool_of(3).snapshot()
    orders = [list(columns), list(reversed(columns))]
    for order in reversed(orders) if turned else orders:
        endpoints = pool.with_columns({signal: columns[signal] for signal in order})
        plain = _fusion.plain_totals(weighted, _fusion.plain_scores(weighted, REQUEST, endpoints, cycle))
        assert program.totals(REQUEST, endpoints, cycle).tobytes() == plain.tobytes()
    with pytest.raises(isched.UnknownNameError, match="multicluster_queue_size"):
        program.totals(REQUEST, pool, cycle)


def test_a_subclass_of_a_scorer_is_not_mistaken_for_it():
    class Reversed(isched.QueueScorer):
        def score(self, request, endpoints, cycle):
            return 1.0 - super().score(request, endpoints, cycle)

    endpoints = endpoints_of({isched.WAITING_QUEUE_SIZE: [0, 5]})
    assert scheduler_of(Reversed()).schedule(REQUEST, endpoints, now=0.0, rng=rng()).endpoint == "ep-1"


# -- explaining --------------------------------------------------------------------------------------


def test_explain_tells_what_schedule_does():
    pool = pool_of(4)
    pool.observe_all(
        {
            isched.WAITING_QUEUE_SIZE: np.array([0.0, 1.0, 9.0, 0.0]),
            isched.KV_CACHE_USAGE: np.array([0.9, 0.1, 0.0, 0.0]),
            isched.RUNNING_REQUESTS: np.array([1.0, 1.0, 1.0, 99.0]),
        },
        now=5.0,
    )
    limit = isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 50.0),))
    profile = isched.SchedulingProfile(
        isched.MaxScorePicker(),
        (
            isched.WeightedScorer(isched.QueueScorer(), 2.0),
            isched.WeightedScorer(isched.KvCacheUtilizationScorer(), 1.0),
        ),
        (limit,),
    )
    scheduler = isched.Scheduler(profile)
    said = isched.explain(scheduler, REQUEST, pool.snapshot(), now=6.0, rng=rng(), exclude={"ep-2"})
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=6.0, rng=rng(), exclude={"ep-2"})
    assert said.picked == (result.endpoint,) == ("ep-0",)
    assert said.dropped == {"ep-2": "exclude", "ep-3": repr(limit)}
    assert said.runner_up == "ep-1" and not said.tie
    assert said.margin == pytest.approx((2 * 1 + 0.1) - (0 + 0.9))
    # at the named weight the two totals are equal
    for label, weight in said.flips.items():
        weights = [weight if name == label else w for name, w in zip(said.scorers, said.weights, strict=True)]
        totals = np.array(weights) @ said.scores
        assert totals[0] == pytest.approx(totals[1])
    assert "dropped by exclude" in str(said) and "runner-up 'ep-1'" in str(said)
    assert said.to_dict()["candidates"][0]["age"] == 1.0
    dropped = json.loads(json.dumps(said.to_dict()))["dropped"]
    assert {each["endpoint"]: each["by"] for each in dropped} == said.dropped


@given(pools(), profiles(), st.integers(0, 2**32))
def test_explain_picks_what_schedule_picks(endpoints, profile, seed):
    scheduler = isched.Scheduler(profile, stale=isched.StalePolicy(assume="trust"))
    result = scheduler.schedule(REQUEST, endpoints, now=0.0, rng=rng(seed))
    said = isched.explain(scheduler, REQUEST, endpoints, now=0.0, rng=rng(seed))
    targets = result.profiles["default"].targets
    assert said.picked == tuple(target.endpoint for target in targets)
    for target in targets:
        assert said.totals[said.candidates.index(target.endpoint)] == target.score


def both_profiles():
    """`first` by queue, `second` by free KV behind a filter; the second's answer counts."""
    limit = isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 50.0),))
    queue, usage = (
        (isched.WeightedScorer(scorer),) for scorer in (isched.QueueScorer(), isched.KvCacheUtilizationScorer())
    )
    return {
        "first": isched.SchedulingProfile(isched.RandomPicker(), queue),
        "second": isched.SchedulingProfile(isched.RandomPicker(), usage, (limit,)),
    }


def test_explain_walks_with_the_handler():
    """The second profile's draw comes after the first's, in `explain` as in `schedule`."""
    pool = pool_of(9)
    pool.observe_all({isched.RUNNING_REQUESTS: np.zeros(9), isched.KV_CACHE_USAGE: np.arange(9) / 9}, now=0.0)
    scheduler = isched.Scheduler(both_profiles(), handler=Both())
    for seed in range(20):
        result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng(seed))
        said = isched.explain(scheduler, REQUEST, pool.snapshot(), now=0.0, rng=rng(seed))
        assert (said.profile, said.picked) == ("second", (result.endpoint,))
        first = isched.explain(scheduler, REQUEST, pool.snapshot(), now=0.0, rng=rng(seed), profile="first")
        assert first.picked == (result.profiles["first"].target.endpoint,)


def test_explain_of_a_profile_that_failed_or_did_not_run():
    pool = pool_of(2)  # nothing is known of their running requests: the filter keeps nobody
    scheduler = isched.Scheduler(both_profiles(), handler=Both())
    for asked in (None, "second"):
        with pytest.raises(isched.FilteredOutError, match="ep-0: UtilizationFilter.*; ep-1"):
            isched.explain(scheduler, REQUEST, pool.snapshot(), now=0.0, rng=rng(), profile=asked)
    with pytest.raises(isched.FilteredOutError, match="primary"):
        isched.explain(scheduler, REQUEST, pool.snapshot(), now=0.0, rng=rng(), profile="first")

    class OnlyFirst(Both):
        def pick(self, request, profiles, results, cycle):
            return {} if results else {"first": profiles["first"]}

        def process_results(self, request, results, cycle):
            return isched.SchedulingResult(request, "first", dict(results))

    lazy = isched.Scheduler(both_profiles(), handler=OnlyFirst())
    with pytest.raises(isched.UnknownNameError, match="one that ran for 'r': first"):
        isched.explain(lazy, REQUEST, pool.snapshot(), now=0.0, rng=rng(), profile="second")


def test_explain_names_scorers_by_what_was_chosen():
    scorers = (isched.PrefixCacheScorer(0.3), isched.QueueScorer(), isched.QueueScorer())
    said = isched.explain(scheduler_of(*scorers), REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng())
    assert said.scorers == ("PrefixCacheScorer(match_length_weight=0.3)", "QueueScorer() #1", "QueueScorer() #2")


def test_explain_refuses_as_schedule_does():
    pool = pool_of(1)
    limit = isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 50.0),))
    scheduler = scheduler_of(filters=[limit])
    for call in (scheduler.schedule, lambda *a, **k: isched.explain(scheduler, *a, **k)):
        with pytest.raises(isched.FilteredOutError, match="'r'"):
            call(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    with pytest.raises(isched.UnknownNameError, match="nope"):
        isched.explain(scheduler, REQUEST, pool.snapshot(), now=0.0, rng=rng(), profile="nope")


def test_a_tie_is_called_a_tie():
    said = isched.explain(
        isched.Scheduler(isched.default_profile()), REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng()
    )
    assert said.tie and said.margin == 0.0 and said.flips == {}


# -- the prefix producer --------------------------------------------------------------------------------


def test_the_prefix_producer_follows_what_was_sent():
    producer = isched.ApproximatePrefixProducer(block_size=16, capacity=8)
    scheduler = scheduler_of(isched.PrefixCacheScorer(), producers=(producer,))
    pool = pool_of(3)
    tokens = np.arange(100, dtype=np.uint32)
    one = isched.InferenceRequest(request_id="1", tokens=tokens)
    result = scheduler.schedule(one, pool.snapshot(), now=0.0, rng=rng())
    scheduler.schedule(one, pool.snapshot(), now=0.0, rng=rng())
    assert len(producer.index) == 0  # deciding changes nothing
    first = scheduler.reserve(result, pool, now=0.0)
    longer = isched.InferenceRequest(request_id="2", tokens=np.arange(130, dtype=np.uint32))
    second = scheduler.schedule_and_reserve(longer, pool, now=0.1, rng=rng())
    assert second.endpoint == first.endpoint and second.tokens == 130 - 96
    other = isched.InferenceRequest(request_id="3", tokens=np.arange(130, dtype=np.uint32), cache_salt="elsewhere")
    assert scheduler.schedule_and_reserve(other, pool, now=0.2, rng=rng()).tokens == 130
    unknown = isched.InferenceRequest(request_id="4", input_tokens=130)
    assert scheduler.schedule_and_reserve(unknown, pool, now=0.3, rng=rng()).tokens == 130
    producer.index.check()


def test_a_slot_handed_to_another_endpoint_starts_empty():
    producer = isched.ApproximatePrefixProducer(block_size=16)
    scheduler = scheduler_of(isched.PrefixCacheScorer(), producers=(producer,))
    pool = pool_of(1)
    request = isched.InferenceRequest(request_id="1", tokens=np.arange(64, dtype=np.uint32))
    assert scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng()).tokens == 64
    assert scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng()).tokens == 0
    pool.leave("ep-0")
    pool.join("new")
    assert scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng()).tokens == 64
    assert scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng()).tokens == 0


@pytest.mark.parametrize("options", [{"block_size": 0}, {"max_blocks": 0}, {"capacity": 0}])
def test_bad_producers(options):
    with pytest.raises(isched.InvalidInputError, match=next(iter(options))):
        isched.ApproximatePrefixProducer(**options)


def test_bad_requests():
    for options, words in (
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r", "input_tokens": -1}, "input_tokens"),
        ({"request_id": "r", "max_output_tokens": -1}, "max_output_tokens"),
        ({"request_id": "r", "tokens": [1, 2]}, "uint32"),
        ({"request_id": "r", "tokens": np.zeros(2)}, "uint32"),
        ({"request_id": "r", "tokens": np.zeros(2, dtype=np.uint32), "input_tokens": 3}, "len"),
        ({"request_id": "r", "block_hashes": np.zeros((1, 2), dtype=np.uint64)}, "uint64"),
    ):
        with pytest.raises(isched.InvalidInputError, match=words):
            isched.InferenceRequest(**options)
