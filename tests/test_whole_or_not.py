"""A decision is booked whole or not at all: whatever fails, pool and books are as they were."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched

REQUEST = isched.InferenceRequest(request_id="r", input_tokens=500)
SCORERS = (isched.QueueScorer(),)
MARK = isched.Signal("mark", freshness="cycle", high=1.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def pool_of(count):
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}")
    return pool


def state(pool):
    """All that a booking may change: the columns, the books, the sequence."""
    return pool.snapshot().matrix.tobytes(), pool.ledger(), pool.sequence


def scheduler_of(*producers, scorers=SCORERS, **options):
    weighted = tuple(isched.WeightedScorer(scorer) for scorer in scorers)
    return isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), weighted), producers=producers, **options)


class BrokenError(Exception):
    """What a plug-in of somebody else's may raise."""


@dataclass
class Learner:
    """A producer that remembers what it was told, and breaks down over one request."""

    breaks_at: str = ""
    columns: dict = field(default_factory=dict)
    learnt: list = field(default_factory=list)
    produces: tuple = (MARK, isched.PREFIX_MATCH)

    def produce(self, request, endpoints, cycle):
        return isched.Produced(self.columns, request.request_id)

    def commit(self, receipt, slot, *, now):
        if receipt == self.breaks_at:
            raise BrokenError(receipt)
        self.learnt.append((receipt, slot))


def test_a_commit_that_fails_leaves_no_booking():
    pool, learner = pool_of(3), Learner(breaks_at="r")
    scheduler = scheduler_of(learner)
    pool.reserve("ep-1", request_id="before", tokens=7, now=0.0)
    before = state(pool)
    with pytest.raises(BrokenError):
        scheduler.schedule_and_reserve(REQUEST, pool, now=0.0, rng=rng())
    assert state(pool) == before and learner.learnt == []
    pool.check()
    other = isched.InferenceRequest(request_id="other", input_tokens=1)
    assert scheduler.schedule_and_reserve(other, pool, now=0.0, rng=rng()).number == 1


def test_a_booking_that_fails_teaches_nobody():
    pool, learner = pool_of(1), Learner()
    scheduler = scheduler_of(learner)
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    pool.leave("ep-0")
    with pytest.raises(isched.EndpointGoneError):
        scheduler.reserve(result, pool, now=0.0)
    pool.join("ep-0")
    again = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    with pytest.raises(isched.InvalidInputError, match="now: got nan"):
        scheduler.reserve(again, pool, now=float("nan"))
    assert learner.learnt == [] and pool.ledger().reserved_requests == 0


def test_a_result_of_another_scheduler_is_refused_before_it_is_booked():
    pool, learner = pool_of(2), Learner()
    bare = scheduler_of().schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    before = state(pool)
    with pytest.raises(isched.InvalidInputError, match=r"result.receipts: got 0, allowed: one for each of 1 producers"):
        scheduler_of(learner).reserve(bare, pool, now=0.0)
    assert state(pool) == before


def test_a_fold_that_breaks_off_books_nothing():
    pool, learner = pool_of(3), Learner(breaks_at="2")
    pool.reserve("ep-1", request_id="before", tokens=7, now=0.0)
    before = state(pool)
    requests = [isched.InferenceRequest(request_id=str(i), input_tokens=100) for i in range(4)]
    with pytest.raises(BrokenError):
        scheduler_of(learner).schedule_many(requests, pool, now=0.0, rng=rng())
    assert state(pool) == before
    pool.check()


def test_a_scorer_that_breaks_off_a_fold_books_nothing():
    class Moody:
        def score(self, request, endpoints, cycle):
            return np.full(len(endpoints), 0.5 if request.request_id != "2" else 1.5)

    pool = pool_of(3)
    before = state(pool)
    requests = [isched.InferenceRequest(request_id=str(i), input_tokens=100) for i in range(4)]
    with pytest.raises(isched.ScoreError, match="1.5 for 'ep-0'"):
        scheduler_of(scorers=[Moody()]).schedule_many(requests, pool, now=0.0, rng=rng())
    assert state(pool) == before


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 900)), max_size=8), st.integers(0, 8))
def test_withdrawing_is_as_if_it_had_never_been_booked(bookings, keep):
    """Book some, then some more, and withdraw those backwards."""
    pool = pool_of(3)

    def book(number, slot, tokens):
        return pool.reserve(f"ep-{slot}", request_id=str(number), tokens=tokens, context_tokens=tokens + 1, now=0.0)

    for number, (slot, tokens) in enumerate(bookings[:keep]):
        book(number, slot, tokens)
    before = state(pool)
    more = [book(number, slot, tokens) for number, (slot, tokens) in enumerate(bookings[keep:])]
    for reservation in reversed(more):
        pool.withdraw(reservation)
        pool.check()
        assert reservation.settlement.outcome == "withdrawn"
        with pytest.raises(isched.AlreadySettledError, match="withdrawn"):
            reservation.complete(now=1.0)
    assert state(pool) == before


def test_only_the_newest_untouched_booking_can_be_withdrawn():
    pool, other = pool_of(2), pool_of(1)
    old, new = (pool.reserve("ep-0", request_id=name, tokens=5, now=0.0) for name in ("old", "new"))
    stranger = other.reserve("ep-0", request_id="x", now=0.0)
    for reservation in (old, stranger):
        before = state(pool)
        with pytest.raises(isched.InvalidInputError, match="the newest of this pool"):
            pool.withdraw(reservation)
        assert state(pool) == before
    new.first_token(now=1.0)
    with pytest.raises(isched.InvalidInputError, match="with no event since"):
        pool.withdraw(new)
    new.complete(now=2.0)
    with pytest.raises(isched.AlreadySettledError):
        pool.withdraw(new)
    pool.check()


# -- producers that break their contract ------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({MARK: np.zeros(3)}, r"mark: shape \(3,\), allowed: float64\[2\]"),
        ({MARK: np.array([0.0, 1.5])}, "mark: 1.5 for 'ep-1', allowed: 0.0 to 1.0, or NaN"),
        ({MARK: np.array([np.inf, 0.0])}, "mark: inf for 'ep-0'"),
        ({isched.PREFIX_MATCH: np.array([-0.5, 0.0])}, "prefix_match: -0.5 for 'ep-0'"),
        ({MARK: ["a", "b"]}, "mark"),
        ({isched.KV_CACHE_USAGE: np.zeros(2)}, r"\['kv_cache_usage'\], allowed: \['mark', 'prefix_match'\]"),
    ],
)
def test_a_producer_that_breaks_its_contract(columns, words):
    pool, learner = pool_of(2), Learner(columns=columns)
    before = state(pool)
    with pytest.raises(isched.ProduceError, match=words) as error:
        scheduler_of(learner).schedule_and_reserve(REQUEST, pool, now=0.0, rng=rng())
    assert "Learner" in str(error.value) and state(pool) == before and learner.learnt == []


def test_a_producer_may_say_unknown_and_later_plug_ins_read_it():
    class Marked:
        def score(self, request, endpoints, cycle):
            return isched.known(endpoints[MARK])

    learner = Learner(columns={MARK: np.array([np.nan, 0.25, 0.75])})
    result = scheduler_of(learner, scorers=[Marked()]).schedule(REQUEST, pool_of(3).snapshot(), now=0.0, rng=rng())
    assert (result.endpoint, result.target.score) == ("ep-2", 0.75)


def test_a_scorer_of_a_signal_nobody_produces():
    class Marked:
        def score(self, request, endpoints, cycle):
            return endpoints[MARK]

    with pytest.raises(isched.UnknownNameError, match="signal: got 'mark', allowed: one of waiting_queue_size"):
        scheduler_of(scorers=[Marked()]).schedule(REQUEST, pool_of(3).snapshot(), now=0.0, rng=rng())


# -- the scheduler's own input ----------------------------------------------------------------------


@pytest.mark.parametrize("now", [float("nan"), float("inf"), float("-inf")])
def test_a_time_that_is_none(now):
    with pytest.raises(isched.InvalidInputError, match="now: got .*, allowed: a finite number of seconds"):
        scheduler_of().schedule(REQUEST, pool_of(2).snapshot(), now=now, rng=rng())


def test_one_name_is_not_a_collection_of_names():
    with pytest.raises(isched.InvalidInputError, match="exclude: got 'ep-1'"):
        scheduler_of().schedule(REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng(), exclude="ep-1")


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_an_assigner_that_does_not_answer_each(answers):
    class Lazy:
        def assign(self, requests, endpoints, cycle):
            one = scheduler_of()
            return [one.schedule(requests[0], endpoints, now=cycle.now, rng=cycle.rng) for _ in range(answers)]

    requests = [isched.InferenceRequest(request_id=str(i)) for i in range(2)]
    with pytest.raises(isched.PluginError, match=f"{answers} results, allowed: one for each of 2, in order"):
        scheduler_of(assigner=Lazy()).assign(requests, pool_of(2).snapshot(), now=0.0, rng=rng())


def test_a_handler_that_runs_nothing_or_names_what_did_not_run():
    class Idle:
        def pick(self, request, profiles, results, cycle):
            return {} if results or not self.runs else {"first": profiles["first"]}

        def process_results(self, request, results, cycle):
            return isched.SchedulingResult(request, "second", dict(results))

    two = {"first": isched.default_profile(), "second": isched.default_profile()}
    handler = Idle()
    for handler.runs, words in ((False, "no profile"), (True, "'second' as primary")):
        with pytest.raises(isched.PluginError, match=words):
            isched.Scheduler(two, handler=handler).schedule(REQUEST, pool_of(2).snapshot(), now=0.0, rng=rng())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input_tokens": float("nan")}, "input_tokens: got nan"),
        ({"input_tokens": 1.5}, "input_tokens: got 1.5"),
        ({"max_output_tokens": float("inf")}, "max_output_tokens: got inf"),
        ({"deadline": float("nan")}, "deadline: got nan"),
    ],
)
def test_lengths_are_whole_numbers(options, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        isched.InferenceRequest(request_id="r", **options)
    numpys = isched.InferenceRequest(request_id="r", input_tokens=np.int64(7))
    assert numpys.prompt_tokens == 7
