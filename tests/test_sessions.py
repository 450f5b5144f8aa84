from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.producers.named import named_producer
from inferencesched.producers.session import SessionReceipt
from inferencesched.sessions import SESSION_HEADER, TOKEN_HEADER
from inferencesched.signals import SESSION_BOUND, of_producer
from inferencesched.testing import Scene, Server, all_checks_of
from tests import naive_affinity as naive

NAMES = ("a", "ns/b", "c")
NOBODY = isched.InferenceRequest(request_id="r")


def cycle(now=0.0, seed=0):
    return isched.CycleState(now, np.random.default_rng(seed), 0)


def pool_of(names=NAMES):
    pool = isched.InferencePool()
    for name in names:
        pool.join(name)
    return pool


def request(session="", token="", **fields):
    headers = {SESSION_HEADER: session} if session else {}
    return isched.InferenceRequest(request_id="r", headers=headers | ({TOKEN_HEADER: token} if token else {}), **fields)


def result(picked, *, primary="default", **others):
    profiles = {primary: picked, **others}
    return isched.SchedulingResult(
        NOBODY,
        primary,
        {
            name: None if target is None else isched.ProfileResult((isched.Target(target, 0, 0, 1.0, 0),))
            for name, target in profiles.items()
        },
    )


# --- where a session is named ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "fields", "session"),
    [
        (isched.SessionSource(header=" X-Session-ID "), {"headers": {"x-session-id": "  s-1 "}}, "s-1"),
        (isched.SessionSource(header="x-session-id"), {"headers": {"x-session-id": "   "}}, ""),
        (isched.SessionSource(header="x-session-id"), {}, ""),
        (isched.SessionSource(cookie="sid"), {"headers": {"cookie": "a=1; sid= s-2 ;b=2"}}, "s-2"),
        (isched.SessionSource(cookie="sid"), {"headers": {"cookie": "xsid=1; sid2=2; sid"}}, ""),
        (isched.SessionSource(cookie="sid"), {"headers": {"cookie": "sid=one=two"}}, "one=two"),
        (isched.SessionSource(cookie="sid"), {"headers": {"cookie": ""}}, ""),
        (isched.SessionSource(attribute="agent"), {"attributes": {"agent": " x "}}, "x"),
        (isched.SessionSource(attribute="agent"), {"attributes": {"agent": 42}}, ""),
        (isched.SessionSource(attribute="agent"), {"session_id": "x"}, ""),
        (isched.SessionSource(attribute="SessionID"), {"session_id": " x "}, "x"),
        (isched.SessionSource(attribute="SessionID"), {"attributes": {"SessionID": "y"}}, "y"),
    ],
)
def test_sources(source, fields, session):
    asked = isched.InferenceRequest(request_id="r", **fields)
    assert source.session(asked) == session
    assert source.identified(asked).session_id == (session or asked.session_id)


def test_the_first_source_that_says_anything_counts():
    sources = (isched.SessionSource(header="one"), isched.SessionSource(attribute="two"))
    asked = isched.InferenceRequest(request_id="r", headers={"one": "1"}, attributes={"two": "2"})
    assert isched.session_of(asked, sources) == "1"
    assert isched.session_of(asked, sources[::-1]) == "2"
    assert isched.session_of(NOBODY, sources) == ""


# --- tokens ------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1).filter(lambda name: "/" not in name) | st.sampled_from(("ns/pod", "a/b/c")))
def test_a_token_names_its_endpoint(name):
    assert isched.endpoint_of_token(isched.session_token(name)) == name


@given(st.text(max_size=20))
def test_a_client_may_say_anything(token):
    found = isched.endpoint_of_token(token)
    assert found == "" or isched.endpoint_of_token(isched.session_token(found)) == found


@pytest.mark.parametrize("token", ["", "garbage-token", "cG9kLWI=", "L3BvZC1i=", "L3BvZC", "é", "/w=="])
def test_what_is_no_token(token):
    assert isched.endpoint_of_token(token) == ""


def test_the_response_names_who_served_or_whom_a_profile_picked():
    plain, prefill = isched.EncodedEndpoint(), isched.EncodedEndpoint("X-Prefill", "prefill")
    assert plain.response_headers(None, "ns/b") == {"x-session-token": isched.session_token("ns/b")}
    assert plain.response_headers(result("a"), "") == {}
    both = result("a", prefill="ns/b")
    assert prefill.response_headers(both, "a") == {"x-prefill": isched.session_token("ns/b")}
    for nothing in (None, result("a"), result("a", prefill=None)):
        assert prefill.response_headers(nothing, "a") == {}
    assert isched.BoundSession().response_headers(both, "a") == {}


# --- the filter and the scorer -----------------------------------------------------------------------------------

TOKENS = st.sampled_from((*map(isched.session_token, NAMES), "garbage-token", isched.session_token("gone"), ""))


@given(TOKENS, st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_session_narrows_to_its_endpoint_and_never_to_nobody(token, keep):
    endpoints = pool_of().snapshot().where(np.array(keep))
    asked, endpoint = request(token=token), isched.endpoint_of_token(token)
    kept = isched.SessionAffinityFilter().filter(asked, endpoints, cycle())
    scores = isched.SessionAffinityScorer().score(asked, endpoints, cycle())
    here = [name == endpoint for name in endpoints.names]
    assert kept.tolist() == (here if any(here) else [True] * len(endpoints))
    assert kept.any() or not len(endpoints)
    assert scores.tolist() == [float(each) for each in here]
    silent = ~isched.SessionAffinityScorer().scored(asked, endpoints, cycle())
    assert silent.tolist() == [endpoint == ""] * len(endpoints)


def test_a_bound_session_is_read_from_its_producers_column():
    strategy = isched.BoundSession("prefill")
    column = {of_producer(SESSION_BOUND, "prefill"): np.array([0.0, 1.0, 0.0])}
    endpoints = pool_of().snapshot().with_columns(column)
    assert isched.SessionAffinityFilter(strategy).filter(NOBODY, endpoints, cycle()).tolist() == [False, True, False]
    assert isched.SessionAffinityScorer(strategy).score(NOBODY, endpoints, cycle()).tolist() == [0.0, 1.0, 0.0]
    with pytest.raises(isched.DependencyError, match="session_bound@prefill"):
        isched.Scheduler(
            isched.SchedulingProfile(isched.MaxScorePicker(), filters=(isched.SessionAffinityFilter(strategy),)),
            producers=(isched.SessionBindingProducer(),),
        )


# --- what binds --------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(("s", "t", "")),
        st.sets(st.sampled_from(NAMES), min_size=1),
        st.sampled_from(NAMES),
        st.sampled_from((0.0, 1.0, 2.0, 5.0, 5.5)),
    ),
    max_size=12,
)


@given(STEPS, st.sampled_from((0.5, 5.0, 100.0)))
def test_bindings_are_those_of_the_list(steps, sweep):
    """First bind wins, an outvoted one holds, an absent one moves, an unused one is forgotten; sweeping decides nothing."""
    ours, theirs, now = isched.SessionBindingProducer(ttl=5.0, sweep=sweep), naive.Sessions(5.0), 0.0
    endpoints = pool_of().snapshot()
    for session, seen, picked, passed in steps:
        now += passed
        candidates = endpoints.where(np.array([name in seen for name in endpoints.names]))
        bound = theirs.bound(session, now) if session else ""
        produced = ours.produce(request(session), candidates, cycle(now))
        column = produced.columns[SESSION_BOUND]
        if bound:
            assert column.tolist() == [float(name == bound) for name in candidates.names]
        else:
            assert np.isnan(column).all()
        ours.decided(produced.receipt, result(picked), now=now)
        if session:
            theirs.kept(session, seen, picked, now, bound)
        for each in ("s", "t"):
            assert ours.bound(each, now=now) == theirs.bound(each, now)
    assert len(ours) <= 2


def test_a_decision_that_nobody_looked_for_moves_nothing():
    producer = isched.SessionBindingProducer()
    producer.decided(SessionReceipt("s"), result("a"), now=0.0)
    producer.decided(SessionReceipt("s"), result("c"), now=1.0)
    assert producer.bound("s", now=1.0) == "a"


def test_it_lives_as_long_as_it_is_used():
    producer = isched.SessionBindingProducer(ttl=10.0)
    for now in (0.0, 10.0, 20.0):
        producer.decided(SessionReceipt("s"), result("a"), now=now)
    producer.decided(SessionReceipt("s"), result("c"), now=29.0)  # outvoted: not used
    assert producer.bound("s", now=30.0) == "a" and producer.bound("s", now=30.1) == ""


def test_expired_bindings_are_swept_and_the_longest_unused_makes_room():
    producer = isched.SessionBindingProducer(ttl=5.0, sweep=2.0, capacity=2)
    for i, session in enumerate("stu"):
        producer.decided(SessionReceipt(session), result("a"), now=float(i))
    assert [producer.bound(each, now=2.0) for each in "stu"] == ["", "a", "a"]
    producer.decided(SessionReceipt("t"), result("a"), now=3.0)
    producer.decided(SessionReceipt("v"), result("a"), now=3.0)
    assert [producer.bound(each, now=3.0) for each in "stuv"] == ["", "a", "", "a"]
    producer.decided(SessionReceipt("w"), result("a"), now=50.0)
    assert len(producer) == 1


def test_a_name_of_a_megabyte_is_remembered_by_its_hash():
    producer, pool, name = isched.SessionBindingProducer(), pool_of(), "s" * 1_000_000
    endpoints = pool.snapshot()
    produced = producer.produce(request(name), endpoints, cycle(1.0))
    assert len(produced.receipt.session) < 100
    producer.decided(produced.receipt, result(NAMES[1]), now=1.0)
    assert producer.bound(name, now=2.0) == NAMES[1]
    assert producer.bound(name[:-1], now=2.0) == ""
    again = producer.produce(request(name), endpoints, cycle(2.0))
    (column,) = again.columns.values()
    assert column.tolist() == [float(name == NAMES[1]) for name in endpoints.names]


def test_another_profiles_target_is_bound_where_it_ran():
    producer = isched.SessionBindingProducer(profile="prefill")
    producer.decided(SessionReceipt("s"), result("a", primary="decode"), now=0.0)
    producer.decided(SessionReceipt("s"), result("a", primary="decode", prefill=None), now=0.0)
    assert producer.bound("s", now=0.0) == ""
    producer.decided(SessionReceipt("s"), result("a", primary="decode", prefill="c"), now=0.0)
    assert producer.bound("s", now=0.0) == "c"


def test_whom_a_filter_drops_is_absent_where_that_filter_is_asked():
    pool = isched.InferencePool()
    for name, role in (("a", "prefill"), ("b", "decode")):
        pool.join(name, labels={"llm-d.ai/role": role})
    for filters, absent in (((), False), ((isched.DecodeFilter(),), True)):
        producer = isched.SessionBindingProducer(filters=filters)
        producer.decided(SessionReceipt("s"), result("a"), now=0.0)
        assert producer.produce(request("s"), pool.snapshot(), cycle()).receipt == ("s", absent)
    load = isched.UtilizationFilter(((isched.WAITING_QUEUE_SIZE, 1.0),))
    assert isched.SessionBindingProducer(filters=(load,)).reads == load.reads


# --- in a scheduler ----------------------------------------------------------------------------------------------


class Prefers:
    """A scorer that likes one endpoint, and says so by its name."""

    def __init__(self, name):
        self.name = name

    def score(self, request, endpoints, cycle):
        return np.array([float(each == self.name) for each in endpoints.names])


def scheduler_of(name, plugin, producer):
    scorers = (isched.WeightedScorer(Prefers(name), 2.0),)
    filters = ()
    if isinstance(plugin, isched.SessionAffinityScorer):
        scorers = (*scorers, isched.WeightedScorer(plugin))
    else:
        filters = (plugin,)
    return isched.Scheduler(isched.SchedulingProfile(isched.MaxScorePicker(), scorers, filters), producers=(producer,))


def test_a_filter_holds_a_session_where_it_was_and_a_scorer_may_be_outvoted():
    for plugin, held in ((isched.SessionAffinityFilter, True), (isched.SessionAffinityScorer, False)):
        pool, producer = pool_of(), isched.SessionBindingProducer()
        rng = np.random.default_rng(0)
        first = scheduler_of("a", plugin(isched.BoundSession()), producer)
        then = scheduler_of("c", plugin(isched.BoundSession()), producer)
        assert first.schedule_and_reserve(request("s"), pool, now=0.0, rng=rng).endpoint == "a"
        assert then.schedule_and_reserve(request("s"), pool, now=1.0, rng=rng).endpoint == ("a" if held else "c")
        assert producer.bound("s", now=1.0) == "a"
        pool.leave("a")
        assert then.schedule_and_reserve(request("s"), pool, now=2.0, rng=rng).endpoint == "c"
        assert producer.bound("s", now=2.0) == "c"


def test_deciding_alone_binds_nothing():
    pool, producer = pool_of(), isched.SessionBindingProducer()
    scheduler = scheduler_of("a", isched.SessionAffinityFilter(isched.BoundSession()), producer)
    decided = scheduler.schedule(request("s"), pool.snapshot(), now=0.0, rng=np.random.default_rng(0))
    assert len(producer) == 0
    scheduler.reserve(decided, pool, now=0.0)
    assert producer.bound("s", now=0.0) == "a"


def test_a_producer_by_another_name_hears_of_decisions():
    pool, producer = pool_of(), isched.SessionBindingProducer()
    scheduler = scheduler_of(
        "a", isched.SessionAffinityFilter(isched.BoundSession("mine")), named_producer(producer, "mine", plain=())
    )
    scheduler.schedule_and_reserve(request("s"), pool, now=0.0, rng=np.random.default_rng(0))
    assert producer.bound("s", now=0.0) == "a"


class Refuses:
    """A producer that learns nothing from a decision, loudly."""

    produces = ()

    def produce(self, request, endpoints, cycle):
        return isched.Produced({}, None)

    def commit(self, receipt, slot, *, now):
        pass

    def decided(self, receipt, result, *, now):
        raise RuntimeError("no")


def test_a_listener_that_raises_withdraws_the_booking():
    pool = pool_of()
    scheduler = isched.Scheduler(isched.default_profile(), producers=(Refuses(),))
    with pytest.raises(RuntimeError, match="no"):
        scheduler.schedule_and_reserve(request("s"), pool, now=0.0, rng=np.random.default_rng(0))
    assert pool.ledger().inflight_requests == 0


@settings(max_examples=20)
@given(st.lists(st.sampled_from("stuv"), max_size=20), st.integers(0, 5))
def test_without_departures_a_session_stays(sessions, seed):
    pool, rng = pool_of(), np.random.default_rng(seed)
    profile = isched.SchedulingProfile(
        isched.RandomPicker(), filters=(isched.SessionAffinityFilter(isched.BoundSession()),)
    )
    scheduler = isched.Scheduler(profile, producers=(isched.SessionBindingProducer(),))
    homes = {}
    for i, session in enumerate(sessions):
        endpoint = scheduler.schedule_and_reserve(request(session), pool, now=float(i), rng=rng).endpoint
        assert homes.setdefault(session, endpoint) == endpoint


# --- what is refused, and the contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (isched.SessionSource, "source: got {}, allowed: exactly one of header, cookie and attribute"),
        (lambda: isched.SessionSource(header="a", attribute="b"), "exactly one"),
        (lambda: isched.SessionSource(header="  "), "exactly one"),
        (lambda: isched.SessionBindingProducer(()), "sources: got \\(\\)"),
        (lambda: isched.SessionBindingProducer(ttl=0.0), "ttl: got 0.0, allowed: seconds above 0"),
        (lambda: isched.SessionBindingProducer(ttl=float("nan")), "ttl: got nan"),
        (lambda: isched.SessionBindingProducer(sweep=-1.0), "sweep: got -1.0"),
        (lambda: isched.SessionBindingProducer(capacity=0), "capacity: got 0"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()


def test_a_decision_at_no_time_is_refused():
    producer = isched.SessionBindingProducer()
    with pytest.raises(isched.InvalidInputError, match="now: got nan"):
        producer.decided(SessionReceipt("s"), result("a"), now=float("nan"))
    assert len(producer) == 0


SCENES = [
    Scene(
        "a session",
        isched.InferenceRequest(
            request_id="r",
            headers=MappingProxyType({SESSION_HEADER: "s", TOKEN_HEADER: isched.session_token("ep-1")}),
        ),
        tuple(Server(f"ep-{i}", i, 10 + i, {}) for i in range(3)),
    )
]
#: They read a column, which scenes are given where it is declared.
BOUND = (
    isched.SessionAffinityFilter(isched.BoundSession()),
    isched.SessionAffinityScorer(isched.BoundSession("other")),
)
CHECKS = [
    check
    for plugin in (
        isched.SessionAffinityFilter(),
        isched.SessionAffinityScorer(),
        *BOUND,
        isched.SessionBindingProducer,
    )
    for check in all_checks_of(plugin, more=() if plugin in BOUND else SCENES)
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check):
    check()
