"""Who asks, how fast they may, and how much."""

import multiprocessing
import sqlite3

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from inferencesched.adapters.sqlite import SqliteQuotas
from inferencesched.errors import (
    ForbiddenError,
    InvalidInputError,
    QuotaExceededError,
    RateLimitedError,
    UnauthenticatedError,
    UnknownNameError,
)
from inferencesched.governance import (
    Anonymous,
    ApiKeys,
    ClaimsIdentity,
    Identity,
    KeyHolder,
    Limit,
    MemoryQuotas,
    Quota,
    Quotas,
    RateLimiter,
    RateRule,
    TrustingHeaders,
)
from tests.naive_limits import NaiveBucket

ACME = Identity("acme")
FLOW, OBJECTIVE = "x-llm-d-inference-fairness-id", "x-llm-d-inference-objective"


# --- who asks ----------------------------------------------------------------------------------------------------

KEYS = ApiKeys({"sk-a": KeyHolder("acme", 10, "ada"), "sk-old": KeyHolder("old", expires_at=5.0)}, pepper=b"p")
POLICIES = {
    "anonymous": (Anonymous(max_priority=0), None),
    "keys": (KEYS, None),
    "claims": (ClaimsIdentity(priorities={"ops": 10}), {"tenant": "acme", "groups": ["ops"]}),
}


@pytest.mark.parametrize("name", POLICIES)
@given(
    said=st.dictionaries(st.sampled_from([FLOW, OBJECTIVE, "x-gateway-inference-fairness-id", "x-tenant"]), st.text())
)
def test_no_header_makes_anybody_somebody_else(name, said):
    policy, claims = POLICIES[name]
    plain = policy.identify({"x-api-key": "sk-a"}, claims, now=1.0)
    spoofed = policy.identify({**said, "x-api-key": "sk-a"}, claims, now=1.0)
    assert spoofed._replace(fairness_id="") == plain._replace(fairness_id="")
    assert spoofed.fairness_id == plain.tenant or spoofed.fairness_id.startswith(f"{plain.tenant}/")


def test_a_key_is_who_has_it():
    assert KEYS.identify({"authorization": "bearer sk-a"}, None, now=1.0) == Identity("acme", "acme", 10, "ada", True)
    for headers in ({}, {"x-api-key": "sk-b"}, {"authorization": "Basic sk-a"}, {"x-api-key": "sk-a\ud800"}):
        with pytest.raises(UnauthenticatedError):
            KEYS.identify(headers, None, now=1.0)
    assert KEYS.identify({"x-api-key": "sk-old"}, None, now=4.9).tenant == "old"
    with pytest.raises(UnauthenticatedError, match="expired"):
        KEYS.identify({"x-api-key": "sk-old"}, None, now=5.0)
    open_door = ApiKeys({"k": KeyHolder("a")}, required=False)
    assert open_door.identify({}, None, now=1.0).tenant == "anonymous"
    with pytest.raises(UnauthenticatedError):
        open_door.identify({"x-api-key": "guess"}, None, now=1.0)


def test_no_key_is_kept():
    assert "sk-a" not in repr(KEYS)
    assert all(b"sk-a" not in digest for digest in KEYS._holders)
    assert KEYS.digest("sk-a") != ApiKeys({}, pepper=b"q").digest("sk-a")


def test_claims_say_tenant_groups_and_priority():
    policy = ClaimsIdentity(
        tenant="org.id", priorities={"ops": 10, "dev": 2}, max_priority=-1, allowed=frozenset({"a"})
    )
    who = policy.identify({FLOW: "batch"}, {"org": {"id": "a"}, "groups": ["dev", "ops", 7]}, now=0.0)
    assert (who.tenant, who.fairness_id, who.max_priority) == ("a", "a/batch", 10)
    assert policy.identify({}, {"org": {"id": "a"}}, now=0.0).max_priority == -1
    with pytest.raises(ForbiddenError):
        policy.identify({}, {"org": {"id": "b"}}, now=0.0)
    for claims in (None, {}, {"org": "a"}, {"org": {"id": 7}}):
        with pytest.raises(UnauthenticatedError):
            policy.identify({}, claims, now=0.0)


def test_where_headers_are_believed_they_are():
    policy = TrustingHeaders(("x-team",))
    assert policy.identify({FLOW: "me", "x-team": "t"}, None, now=0.0).fairness_id == "me"
    assert policy.identify({"x-team": "t", "session-id": "s"}, None, now=0.0).fairness_id == "t"


def tried(meter, count, now):
    """Return the receipt, or the refusal."""
    try:
        return meter.reserve(ACME, "m", count, now=now)
    except (RateLimitedError, QuotaExceededError) as refused:
        return refused


# --- how fast ----------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "settle", "cancel"]),
        st.integers(0, 60),
        st.sampled_from([0.0, 0.25, 1.0, 3.5, 64.0]),
        st.integers(0, 9),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 8), st.integers(1, 8), st.integers(1, 50))
@settings(max_examples=300)
def test_a_limiter_is_a_bucket_that_is_filled_drop_by_drop(steps, requests, per, burst):
    limits = Limit(requests, per=float(per)), Limit(64, per=4.0, burst=float(burst))
    limiter = RateLimiter([RateRule(requests=(limits[0],), tokens=(limits[1],))])
    twins = NaiveBucket(requests, per, requests), NaiveBucket(64, 4, burst)
    now, grants = 0.0, []
    for step, count, wait, which in steps:
        now += wait
        if step == "reserve":
            fits = twins[0].fits(1, now) and twins[1].fits(count, now)
            answer = tried(limiter, count, now)
            if isinstance(answer, RateLimitedError):
                assert not fits or min(twins[0].left - 1, twins[1].left - count) < 1e-6
                if count > burst:
                    assert answer.status == 400
                    continue
                longest = float(max(twins[0].wait(1, now), twins[1].wait(count, now)))
                assert longest == pytest.approx(answer.retry_after, abs=1e-6)
                continue
            grants.append((answer, count))
            assert fits or min(twins[0].left - 1, twins[1].left - count) > -1e-6
            twins[0].take(1, now)
            twins[1].take(count, now)
        elif grants:
            grant, reserved = grants.pop(which % len(grants))
            if step == "settle":
                limiter.settle(grant, count, now=now)
                twins[1].take(count - reserved, now)
            else:
                limiter.cancel(grant, now=now)
                twins[0].take(-1, now)
                twins[1].take(-reserved, now)
        left = limiter.left(ACME, "m", now=now)
        for name, twin in zip(("requests", "tokens"), twins, strict=True):
            twin.fill(now)
            assert left[name] == pytest.approx(float(twin.left), abs=1e-6)
        limiter.check()


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 30)), min_size=1, max_size=60))
def test_in_any_time_no_more_than_capacity_and_rate_is_let_in(arrivals):
    limiter = RateLimiter([RateRule(tokens=(Limit(40, per=2.0),))])
    now, taken = 0.0, []
    for wait, count in arrivals:
        now += wait
        try:
            limiter.reserve(ACME, "m", count, now=now)
        except RateLimitedError:
            continue
        taken.append((now, count))
    for i, (begin, _) in enumerate(taken):
        for end, _ in taken[i:]:
            total = sum(count for at, count in taken if begin <= at <= end)
            assert total <= 40 + 20 * (end - begin) + 1e-6


@given(st.floats(0, 2e9), st.integers(1, 100), st.integers(1, 100))
def test_retry_after_is_exact(start, first, second):
    limiter = RateLimiter([RateRule(tokens=(Limit(100, per=50.0),))])
    limiter.reserve(ACME, "m", first, now=start)
    if first + second <= 100:
        return
    with pytest.raises(RateLimitedError) as refused:
        limiter.reserve(ACME, "m", second, now=start)
    wait = refused.value.retry_after
    assert refused.value.headers == {"retry-after": str(max(1, -int(-wait // 1)))}
    with pytest.raises(RateLimitedError):
        limiter.reserve(ACME, "m", second, now=start + wait - max(0.02, 1e-7 * start))
    limiter.reserve(ACME, "m", second, now=start + wait + 1e-9 * max(1.0, start))


def test_a_refund_is_never_more_than_was_reserved_and_a_debt_is_waited_for():
    limiter = RateLimiter([RateRule(tokens=(Limit(100, per=100.0),))])
    grant = limiter.reserve(ACME, "m", 50, now=0.0)
    limiter.settle(grant, 0, now=0.0)
    assert limiter.left(ACME, "m", now=0.0)["tokens"] == 100
    grant = limiter.reserve(ACME, "m", 50, now=0.0)
    limiter.settle(grant, 250, now=0.0)
    assert limiter.left(ACME, "m", now=0.0)["tokens"] == pytest.approx(-150)
    with pytest.raises(RateLimitedError) as refused:
        limiter.reserve(ACME, "m", 1, now=0.0)
    assert refused.value.retry_after == pytest.approx(151.0)
    grant = limiter.reserve(ACME, "m", 10, now=200.0)
    limiter.settle(grant, None, now=200.0)
    assert limiter.left(ACME, "m", now=200.0)["tokens"] == pytest.approx(40)


def test_of_several_rules_the_tenants_own_and_the_very_model_count():
    rules = [
        RateRule(requests=(Limit(1),)),
        RateRule(requests=(Limit(2),), model="llama*"),
        RateRule(requests=(Limit(3),), model="llama-8b"),
        RateRule(requests=(Limit(4),), tenant="vip"),
    ]
    limiter = RateLimiter(rules)

    def most(tenant, model):
        return limiter.left(Identity(tenant), model, now=0.0)["requests"]

    assert [most("a", model) for model in ("gpt", "llama-70b", "llama-8b")] == [1, 2, 3]
    assert most("vip", "llama-8b") == 4
    limiter.reserve(Identity("a"), "llama-70b", 0, now=0.0)
    assert (most("a", "llama-13b"), most("b", "llama-13b")) == (1, 2)
    nobody = RateLimiter([RateRule(requests=(Limit(1),), tenant="vip")])
    for _ in range(9):
        nobody.settle(nobody.reserve(ACME, "m", 10**9, now=0.0), 7, now=0.0)


def test_what_passes_one_limit_takes_nothing_of_the_others():
    rule = RateRule(requests=(Limit(5), Limit(2, per=1.0)), tokens=(Limit(100), Limit(1000, per=3600.0)))
    limiter = RateLimiter([rule])
    before = limiter.left(ACME, "m", now=0.0)
    with pytest.raises(RateLimitedError):
        limiter.reserve(ACME, "m", 101, now=0.0)
    assert limiter.left(ACME, "m", now=0.0) == before
    limiter.reserve(ACME, "m", 50, now=0.0)
    limiter.reserve(ACME, "m", 50, now=0.0)
    with pytest.raises(RateLimitedError, match="requests"):
        limiter.reserve(ACME, "m", 0, now=0.5 - 1e-3)
    limiter.reserve(ACME, "m", 0, now=0.5)


def test_names_that_clients_make_up_do_not_grow_it_without_bound():
    limiter = RateLimiter([RateRule(requests=(Limit(10),))], most=50)
    for i in range(1000):
        limiter.reserve(Identity(f"tenant-{i}"), f"model-{i}", 0, now=float(i))
        assert len(limiter) <= 50
        limiter.check()
    assert len(limiter._which) <= 200


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Limit(0), "amount"),
        (lambda: Limit(1, per=float("inf")), "per"),
        (lambda: Limit(1, burst=float("nan")), "burst"),
        (RateRule, "requests"),
        (lambda: RateRule(requests=(Limit(1),), model="a*b"), "model"),
        (lambda: RateLimiter([], most=0), "most"),
        (lambda: Quota(-1), "amount"),
        (lambda: Quota(1, period=""), "window"),
        (lambda: Quota(1, period="", window=5.0, parts=0), "parts"),
        (lambda: ApiKeys({"": KeyHolder("a")}), "holders"),
        (lambda: KeyHolder(""), "tenant"),
    ],
)
def test_settings_that_are_none(make, name):
    with pytest.raises(InvalidInputError, match=name):
        make()


def test_words_that_are_none():
    for make in (lambda: Quota(1, kind="x"), lambda: Quota(1, period="week"), lambda: Quotas([], on_error="x")):
        with pytest.raises(UnknownNameError):
            make()


# --- how much ----------------------------------------------------------------------------------------------------

DAY = 86_400.0


class Shaky(MemoryQuotas):
    """A store that fails at the n-th call."""

    __slots__ = ("at", "calls")

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def _called(self):
        self.calls += 1
        if self.calls == self.at:
            raise OSError("the store is gone")

    def used(self, name, windows):
        self._called()
        return super().used(name, windows)

    def add(self, changes, expires_at):
        self._called()
        super().add(changes, expires_at)


def stores(tmp_path):
    return {"memory": MemoryQuotas(), "sqlite": SqliteQuotas(str(tmp_path / "q.db"))}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_used_is_what_was_settled_and_what_is_reserved(tmp_path, kind):
    store = stores(tmp_path)[kind]
    quotas = Quotas([Quota(1000, period="day"), Quota(5, "requests", period="hour")], store)
    grants = [quotas.reserve(ACME, "m", 100, now=DAY) for _ in range(4)]
    assert quotas.left(ACME, "m", now=DAY) == [600, 1]
    quotas.settle(grants[0], 30, now=DAY + 1)
    quotas.settle(grants[1], 250, now=DAY + 1)
    quotas.settle(grants[2], None, now=DAY + 1)
    quotas.cancel(grants[3], now=DAY + 1)
    assert quotas.left(ACME, "m", now=DAY + 1) == [1000 - 30 - 250 - 100, 2]
    assert quotas.left(ACME, "m", now=DAY + 3600) == [1000 - 380, 5]
    assert quotas.left(ACME, "m", now=2 * DAY) == [1000, 5]
    assert quotas.left(Identity("other"), "m", now=DAY) == [1000, 5]
    assert store.sweep(DAY) == 0
    assert store.sweep(3 * DAY) == 2


@pytest.mark.parametrize("at", range(1, 5))
@pytest.mark.parametrize("policy", ["open", "closed"])
def test_a_store_that_fails_leaves_nothing_half_reserved(at, policy):
    store = Shaky(at)
    quotas = Quotas([Quota(100), Quota(10, "requests")], store, on_error=policy)
    if policy == "closed" and at < 4:
        with pytest.raises(OSError, match="gone"):
            quotas.reserve(ACME, "m", 60, now=0.0)
        assert not len(store)
    else:
        grant = quotas.reserve(ACME, "m", 60, now=0.0)
        assert bool(grant.places) == (at == 4)
        if at < 4:
            assert not len(store)
            quotas.settle(grant, 10, now=0.0)
            assert not len(store)
    assert quotas.failures == (1 if at < 4 else 0)


def test_a_debt_stays_in_its_window_and_a_month_has_its_own_length():
    quotas = Quotas([Quota(100, period="month")])
    february = 1_709_164_800.0  # 2024-02-29
    quotas.settle(quotas.reserve(ACME, "m", 100, now=february), 150, now=february)
    with pytest.raises(QuotaExceededError) as refused:
        quotas.reserve(ACME, "m", 1, now=february + 10)
    assert refused.value.retry_after == DAY - 10
    assert quotas.left(ACME, "m", now=february + DAY) == [100]
    with pytest.raises(QuotaExceededError) as never:
        quotas.reserve(ACME, "m", 101, now=february + DAY)
    assert (never.value.status, never.value.retry_after) == (400, float("inf"))


def test_an_offset_moves_midnight():
    quota = Quota(1, period="day", offset=7200)
    assert quota.current(DAY - 7200 - 1) + 1 == quota.current(DAY - 7200)
    assert quota.ends(quota.current(0.0)) == DAY - 7200


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 30)), max_size=60), st.integers(1, 12))
def test_a_rolling_quota_is_never_passed_and_strict_by_one_window_at_most(arrivals, parts):
    window = 60.0
    quotas = Quotas([Quota(50, period="", window=window, parts=parts)])
    now, taken = 1e6, []
    for wait, count in arrivals:
        now += wait
        recent = sum(each for at, each in taken if at > now - window)
        older = sum(each for at, each in taken if at > now - window - window / parts - 1e-6)
        answer = tried(quotas, count, now)
        if isinstance(answer, QuotaExceededError):
            assert older + count > 50
            assert 0 < answer.retry_after <= window + window / parts
            continue
        assert recent + count <= 50
        taken.append((now, count))


def add_many(path, count):
    with SqliteQuotas(path, timeout=30.0) as store:
        for _ in range(count):
            store.add([("acme", 1, 1), ("acme", 2, 3)], 1e9)


def test_several_processes_share_a_file_and_lose_nothing(tmp_path):
    path = str(tmp_path / "q.db")
    SqliteQuotas(path).close()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(path, 60)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with SqliteQuotas(path) as store:
        assert store.used("acme", [1, 2]) == [180, 540]


def test_a_transaction_is_all_or_nothing(tmp_path):
    with SqliteQuotas(str(tmp_path / "q.db")) as store:
        with pytest.raises(sqlite3.Error):
            store.add([("a", 1, 5), ("a", 2, None)], 1e9)
        assert store.used("a", [1, 2]) == [0, 0]
        assert store.used("a", []) == []
