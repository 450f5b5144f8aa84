"""What a director answers, stage by stage."""

import json

import numpy as np
import pytest

import inferencesched as isched
from inferencesched.director import Decision, Director, FailurePolicy, ServingPool, Waiting
from inferencesched.errors import InvalidInputError, PreconditionFailedError, UnknownNameError
from inferencesched.flowcontrol import QueueBudget
from inferencesched.governance.meters import Identity
from inferencesched.lifecycle import RetryPolicy
from inferencesched.observability.events import (
    Dequeued,
    Ended,
    Enqueued,
    FirstToken,
    OutputTokens,
    PluginFailed,
    Received,
    Refused,
    Rewritten,
    Scheduled,
    Started,
)
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.request import Usage
from inferencesched.routing.manifests import load_manifests, route_from_manifest
from inferencesched.routing.objectives import InferenceObjective, ModelTable
from inferencesched.routing.routes import RouteTable
from tests.director_parts import Broken, Counting, Keeps, Log, Says, chat, director, fleet, queue, rng, scheduler

PATH = "/v1/chat/completions"


def decide(made, body=None, headers=None, now=1.0, **more):
    return made.decide(chat() if body is None else body, headers or {}, now=now, rng=rng(), **more)


def forwarded(made, *args, **more):
    decision = decide(made, *args, **more)
    assert isinstance(decision, Decision), decision
    assert decision.forwarded, decision.explain()
    return decision


def refused(made, *args, **more):
    decision = decide(made, *args, **more)
    assert isinstance(decision, Decision), decision
    assert not decision.forwarded, decision.explain()
    return decision


# --- what goes ---------------------------------------------------------------------------------------------------


def test_what_goes_has_a_place_a_body_and_a_life():
    pool = fleet("a")
    made = director(pool)
    decision = forwarded(made, headers={"x-request-id": "r-1"})
    assert (decision.request_id, decision.status, decision.pool) == ("r-1", 200, "llama")
    assert (decision.endpoint, decision.address) == ("a", "a:8000")
    assert decision.headers["x-gateway-destination-endpoint"] == "a:8000"
    assert decision.headers["x-gateway-model-name"] == "llama"
    assert decision.headers["x-request-id"] == "r-1"
    assert decision.body == chat()
    assert pool.ledger().inflight_requests == 1
    assert decision.life.complete(Usage(10, 3), now=2.0)
    assert pool.ledger().inflight_requests == 0
    assert "r-1" in decision.explain()


def test_fallbacks_stand_behind_the_target():
    profile = isched.SchedulingProfile(picker=isched.MaxScorePicker(count=3))
    made = director(fleet("a", "b", "c"), scheduler=isched.Scheduler(profile))
    decision = forwarded(made)
    wanted = ",".join((decision.address, *decision.fallbacks))
    assert decision.headers["x-gateway-destination-endpoint"] == wanted
    assert sorted((decision.address, *decision.fallbacks)) == ["a:8000", "b:8000", "c:8000"]


def test_what_a_client_says_to_the_gateway_is_not_said_to_the_server():
    decision = forwarded(director(), headers={"x-llm-d-inference-fairness-id": "me"})
    assert decision.headers["x-llm-d-inference-fairness-id"] == ""
    assert decision.request.fairness_id == "me"
    assert "x-llm-d-inference-objective" not in decision.headers


def test_same_seed_same_bytes():
    first, second = (forwarded(director(fleet(*"abcdefgh")), headers={"x-request-id": "r"}) for _ in range(2))
    assert (first.endpoint, first.headers, first.body) == (second.endpoint, second.headers, second.body)


def test_a_prefix_that_was_sent_to_a_server_is_sought_there():
    producer = ApproximatePrefixProducer(block_size=16, seed=7)
    log = Log()
    made = director(fleet(*"abcd"), scheduler=scheduler(producer), sink=log)
    text = "The quick brown fox. " * 60
    first = forwarded(made, chat(text), headers={"x-request-id": "one"})
    log.events.clear()
    for i in range(5):
        again = forwarded(made, chat(text, temperature=i), headers={"x-request-id": f"again-{i}"})
        assert again.endpoint == first.endpoint
        again.life.complete(now=1.0)
    assert all(event.cached_tokens > 0.9 * event.prompt_tokens for event in log.of(Scheduled))


# --- models, objectives, routes ----------------------------------------------------------------------------------


def rewriting():
    return ModelTable.of(
        load_manifests(
            [
                {
                    "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
                    "kind": "InferenceModelRewrite",
                    "metadata": {"name": "canary"},
                    "spec": {
                        "poolRef": {"name": "llama"},
                        "rules": [
                            {
                                "matches": [{"model": {"type": "Exact", "value": "llama"}}],
                                "targets": [{"modelRewrite": "llama-8b", "weight": 1}],
                            }
                        ],
                    },
                }
            ]
        )
    )


def test_a_rewritten_name_is_spliced_in_and_told():
    log = Log()
    decision = forwarded(director(models=rewriting(), sink=log))
    assert json.loads(decision.body)["model"] == "llama-8b"
    assert decision.request.model == "llama-8b"
    assert [(event.rewrite, event.model, event.target) for event in log.of(Rewritten)] == [
        ("canary", "llama", "llama-8b")
    ]


@pytest.mark.parametrize(("name", "priority"), [("urgent", 10), ("batch", -1), ("nobody", 0), ("", 0)])
def test_an_objective_says_the_priority_and_an_unknown_one_is_0(name, priority):
    models = ModelTable(
        objectives=(InferenceObjective("urgent", priority=10), InferenceObjective("batch", priority=-1))
    )
    decision = forwarded(director(models=models), headers={"x-llm-d-inference-objective": name})
    assert decision.request.priority == priority


def test_nobody_promotes_themselves():
    class Knows:
        def identify(self, headers, claims, *, now):
            return Identity("acme", "acme", max_priority=0)

    models = ModelTable(
        objectives=(InferenceObjective("urgent", priority=10), InferenceObjective("batch", priority=-1))
    )
    made = director(models=models, identity=Knows())
    asked = {"x-llm-d-inference-objective": "urgent", "x-llm-d-inference-fairness-id": "somebody-else"}
    decision = forwarded(made, headers=asked)
    assert (decision.request.priority, decision.request.fairness_id, decision.request.tenant) == (0, "acme", "acme")
    assert forwarded(made, headers={"x-llm-d-inference-objective": "batch"}).request.priority == -1


def route(backends, **more):
    return route_from_manifest(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": "main"},
            "spec": {"rules": [{"backendRefs": backends, **more}]},
        }
    )


def backend(name, **more):
    return {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name, **more}


def two_pools(routes, **more):
    pools = {name: ServingPool(fleet(f"{name}-0"), scheduler()) for name in ("gemma", "gemma-new")}
    return Director(pools, routes=routes, **more)


def test_a_route_says_the_pool():
    made = two_pools(RouteTable([route([backend("gemma-new")])]))
    assert forwarded(made, chat(model="gemma")).pool == "gemma-new"


def test_no_route_is_404_and_a_pool_that_is_not_there_503():
    nothing = route([backend("gemma")], matches=[{"path": {"type": "Exact", "value": "/other"}}])
    decision = refused(two_pools(RouteTable([nothing])))
    assert (decision.status, decision.outcome) == (404, "unrouted")
    decision = refused(two_pools(RouteTable([route([backend("absent")])])))
    assert (decision.status, decision.outcome) == (503, "no_endpoints")


def test_mirrors_never_touch_the_primary():
    def outcome(filters):
        made = two_pools(RouteTable([route([backend("gemma")], filters=filters)]))
        decisions = [forwarded(made, headers={"x-request-id": f"r-{i}"}) for i in range(20)]
        ledger = made.pools["gemma-new"].pool.ledger()
        assert ledger.inflight_requests == 0
        return [(each.endpoint, each.headers, each.body) for each in decisions], [each.mirrors for each in decisions]

    mirror = [{"type": "RequestMirror", "requestMirror": {"backendRef": backend("gemma-new"), "percent": 50}}]
    plain, without = outcome([])
    same, copies = outcome(mirror)
    assert plain == same
    assert not any(without)
    assert 0 < sum(map(len, copies)) < 20
    assert {each.endpoint for mirrors in copies for each in mirrors} == {"gemma-new-0"}


def test_without_routes_the_pool_is_the_one_that_serves_the_model():
    pools = {
        "small": ServingPool(fleet("s"), scheduler(), models=frozenset({"gemma"})),
        "large": ServingPool(fleet("l"), scheduler(), models=frozenset({"llama"})),
    }
    made = Director(pools)
    assert forwarded(made, chat(model="gemma")).pool == "small"
    assert forwarded(made, chat(model="llama")).pool == "large"
    assert refused(made, chat(model="gpt")).status == 404


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "path", "status"),
    [
        (b"{", PATH, 400),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', PATH, 400),
        (b'{"model": "llama"}', PATH, 400),
        (b'{"model": "llama", "messages": []}', PATH, 400),
        (b"[" * 10_000, PATH, 400),
        (b"\xff\xfe", PATH, 400),
        (chat(), "/v1/images", 404),
        (chat("x" * 2000), PATH, 413),
    ],
)
def test_a_bad_body_is_refused_before_anything_is_taken(body, path, status):
    meter, log, pool = Counting(), Log(), fleet("a")
    made = director(pool, meters=(meter,), sink=log, max_bytes=1000 if status == 413 else 1 << 20)
    decision = refused(made, body, path=path)
    assert (decision.status, decision.outcome) == (status, "bad_body")
    assert (meter.number, len(made), pool.sequence) == (0, 0, 0)
    assert [type(event) for event in log.events] == [Refused]


def test_over_a_limit_is_429_with_retry_after_and_gives_back_what_other_meters_gave():
    first, second = Counting(), Counting(most=0)
    decision = refused(director(meters=(first, second)))
    assert (decision.status, decision.outcome, decision.headers["retry-after"]) == (429, "rate_limited", "3")
    assert not first.open
    assert first.cancelled


def test_an_empty_pool_is_503_and_nothing_stays_taken():
    meter = Counting()
    made = director(fleet(), meters=(meter,), controller=queue(1))
    decision = refused(made)
    assert (decision.status, decision.outcome) == (503, "no_endpoints")
    assert not meter.open
    made.check()
    assert sum(band.inflight for band in made.pools["llama"].controller.bands) == 0


def test_a_subset_and_screeners_narrow_and_all_see_the_same():
    first, second = Keeps("a", "b"), Keeps("b", "c")
    made = director(fleet("a", "b", "c"), screeners=(first, second))
    assert forwarded(made).endpoint == "b"
    assert first.saw == second.saw == ("a", "b", "c")
    decision = refused(made, subset=["a:8000"])
    assert (decision.status, decision.outcome) == (503, "no_endpoints")
    assert forwarded(director(fleet("a", "b", "c")), subset=["c:8000"]).endpoint == "c"


def test_an_admitter_denies_in_its_own_name_and_with_its_own_status():
    decision = refused(director(admitters=(Says(), Says("too busy", 503))))
    assert (decision.status, decision.outcome) == (503, "admission_denied")
    assert "Says: too busy" in decision.message


def test_every_check_is_asked_and_the_first_denial_counts():
    plugins = Says(), Says("not cached", 412), Says("late", 429)
    pool = fleet("a")
    decision = refused(director(pool, pre_request=plugins))
    assert (decision.status, decision.outcome) == (412, PreconditionFailedError.outcome)
    assert [each.asked for each in plugins] == [1, 1, 1]
    assert pool.sequence == 0


# --- plug-ins that fail ------------------------------------------------------------------------------------------

STAGES = {
    "identity": lambda: {"identity": Broken()},
    "tokenizer": lambda: {"tokenizer": Broken()},
    "meter": lambda: {"meters": (Broken(),)},
    "screener": lambda: {"screeners": (Broken(),)},
    "admitter": lambda: {"admitters": (Broken(),)},
    "pre_request": lambda: {"pre_request": (Broken(),)},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("policy", ["open", "closed"])
def test_a_plugin_that_raises_has_a_stated_policy(stage, policy):
    log, meter, pool = Log(), Counting(), fleet("a")
    parts = STAGES[stage]()
    parts["meters"] = (meter, *parts.get("meters", ()))
    made = director(pool, sink=log, failure=FailurePolicy(**{stage: policy}), **parts)
    decision = decide(made)
    [event] = log.of(PluginFailed)
    assert (event.stage, event.plugin, event.error) == (stage, "Broken", "RuntimeError")
    assert event.refused == (policy == "closed")
    if policy == "closed":
        assert (decision.status, decision.outcome) == (500, "stage_failed")
        assert not meter.open
        assert pool.sequence == 0
        assert "boom" not in decision.message
    else:
        assert decision.forwarded
        assert any(what.endswith("passed over") for _, what in decision.trail)
        decision.life.complete(now=2.0)
        assert not meter.open


def test_a_failure_policy_knows_two_words():
    with pytest.raises(UnknownNameError, match="meter"):
        FailurePolicy(meter="maybe")


def test_a_scheduler_plugin_that_raises_is_500():
    class Bad:
        def score(self, request, endpoints, cycle):
            raise RuntimeError("boom")

    profile = isched.SchedulingProfile(isched.MaxScorePicker(), (isched.WeightedScorer(Bad()),))
    pool = fleet("a")
    decision = refused(director(pool, scheduler=isched.Scheduler(profile), controller=queue()))
    assert (decision.status, decision.outcome) == (500, "stage_failed")
    assert pool.sequence == 0


# --- who waits ---------------------------------------------------------------------------------------------------


def test_who_waits_is_answered_once_by_step():
    made = director(fleet("a"), controller=queue(1))
    first = forwarded(made)
    second = decide(made)
    assert isinstance(second, Waiting)
    assert made.step(1.5, rng()) == []
    first.life.complete(now=2.0)
    assert made.next_wakeup(2.0) == 2.0
    [answer] = made.step(2.0, rng())
    assert answer.forwarded
    assert answer.request_id == second.request_id
    assert made.step(2.0, rng()) == []
    assert made.cancel(second.ticket, 2.0) is None


def test_who_waits_too_long_is_answered_and_gets_back_what_was_taken():
    meter = Counting()
    made = director(controller=queue(0, budget=QueueBudget(ttl=5.0)), meters=(meter,))
    waiting = decide(made, now=1.0)
    assert made.next_wakeup(1.0) == 6.0
    [answer] = made.step(6.0, rng())
    assert (answer.request_id, answer.status, answer.outcome) == (waiting.request_id, 429, "evicted_ttl")
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
    assert not meter.open


def test_a_client_that_goes_while_it_waits_leaves_nothing():
    meter = Counting()
    made = director(controller=queue(0), meters=(meter,))
    waiting = decide(made)
    answer = made.cancel(waiting.ticket, 2.0)
    assert (answer.status, answer.outcome) == (503, "evicted_cancelled")
    assert not meter.open
    assert len(made) == 0
    assert made.step(3.0, rng()) == []


def test_shutdown_answers_everybody():
    made = director(controller=queue(1))
    decision = forwarded(made)
    waiting = {decide(made).request_id for _ in range(3)}
    answers = made.shutdown(2.0)
    assert {each.request_id for each in answers} == waiting
    assert {each.outcome for each in answers} == {"evicted_shutdown"}
    assert refused(made, now=2.0).outcome == "rejected_shutdown"
    assert decision.life.complete(now=3.0)
    assert len(made) == 0


# --- how it ends -------------------------------------------------------------------------------------------------


def test_the_story_of_a_request_in_events():
    log = Log()
    made = director(fleet("a"), controller=queue(1), sink=log)
    body = chat(stream=True)
    life = forwarded(made, body, {"x-request-id": "r"}, now=1.0).life
    life.tokens(1, now=1.5)
    life.tokens(2, now=1.75)
    life.complete(Usage(10, 3, 4), size_bytes=900, now=2.0)
    told = [type(event) for event in log.events]
    assert told == [Received, Enqueued, Dequeued, Scheduled, Started, FirstToken, OutputTokens, Ended]
    assert {event.request_id for event in log.events} == {"r"}
    [first], [more], [end] = log.of(FirstToken), log.of(OutputTokens), log.of(Ended)
    assert (first.ttft, first.streaming, more.tokens, more.gap) == (0.5, True, 2, 0.25)
    assert (end.outcome, end.code, end.duration, end.ttft, end.usage) == ("completed", "", 1.0, 0.5, Usage(10, 3, 4))
    assert end.size_bytes == 900


@pytest.mark.parametrize(
    ("usage", "counted", "how", "charged"),
    [
        (Usage(10, 3), 0, "complete", 13),
        (None, 0, "complete", None),
        (None, 5, "complete", "prompt+5"),
        (None, 0, "cancel", "prompt+0"),
        (None, 2, "cancel", "prompt+2"),
        (Usage(10, 7), 2, "fail", 17),
    ],
)
def test_what_is_charged_is_what_the_server_says_else_what_was_counted(usage, counted, how, charged):
    meter = Counting()
    decision = forwarded(director(meters=(meter,)))
    decision.life.tokens(counted, now=1.5)
    getattr(decision.life, how)(usage, now=2.0)
    [(reserved, settled)] = meter.settled
    prompt = decision.request.input_tokens
    assert reserved > prompt
    wanted = prompt + int(charged.removeprefix("prompt+")) if isinstance(charged, str) else charged
    assert settled == wanted


def test_it_ends_once_whoever_comes_first():
    meter = Counting()
    made = director(meters=(meter,), controller=queue())
    life = forwarded(made).life
    assert life.cancel(now=2.0)
    assert not life.complete(Usage(1, 1), now=2.0)
    assert not life.fail(now=3.0)
    life.tokens(3, now=3.0)
    assert (life.outcome, life.output_tokens, len(meter.settled)) == ("cancelled", 0, 1)


def test_a_meter_that_fails_at_the_end_is_told_after_everything_was_given_back():
    class Stuck(Counting):
        def settle(self, receipt, tokens, *, now):
            raise RuntimeError("store is gone")

    pool, meter = fleet("a"), Counting()
    made = director(pool, meters=(Stuck(), meter), controller=queue())
    life = forwarded(made).life
    with pytest.raises(RuntimeError, match="store is gone"):
        life.complete(now=2.0)
    assert not meter.open
    assert pool.ledger().inflight_requests == 0
    assert len(made) == 0
    assert forwarded(made, now=3.0).endpoint == "a"


# --- another endpoint --------------------------------------------------------------------------------------------


def test_another_endpoint_before_the_first_byte_and_never_after_it():
    pool = fleet("a", "b")
    made = director(pool, retry=RetryPolicy(attempts=3), controller=queue(1))
    first = forwarded(made)
    second = made.retry(first.life, "connect", now=2.0, rng=rng())
    assert {first.endpoint, second.endpoint} == {"a", "b"}
    assert second.life is first.life
    assert second.life.attempt == 2
    assert pool.ledger().inflight_requests == 1
    second.life.first_token(now=3.0)
    third = made.retry(second.life, "reset", now=4.0, rng=rng())
    assert (third.status, third.outcome) == (502, "upstream_failed")
    assert (pool.ledger().inflight_requests, len(made), second.life.outcome) == (0, 0, "failed")
    with pytest.raises(InvalidInputError, match="not ended"):
        made.retry(second.life, "reset", now=5.0, rng=rng())


def test_without_a_retry_policy_a_failure_is_the_end():
    made = director(fleet("a", "b"))
    decision = forwarded(made)
    assert made.retry(decision.life, "connect", now=2.0, rng=rng()).status == 502
    assert len(made) == 0


def test_a_retry_that_finds_nobody_ends_it():
    made = director(fleet("a"), retry=RetryPolicy(attempts=3))
    decision = forwarded(made)
    answer = made.retry(decision.life, "connect", now=2.0, rng=rng())
    assert not answer.forwarded
    assert decision.life.outcome == "failed"
    assert len(made) == 0


# --- what is wrong with the director itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "name"),
    [({"max_bytes": 0}, "max_bytes"), ({"output_ratio": -1.0}, "output_ratio"), ({"output_ratio": np.nan}, "output")],
)
def test_settings_that_are_none(more, name):
    with pytest.raises(InvalidInputError, match=name):
        director(**more)


def test_a_director_needs_a_pool_and_a_time():
    with pytest.raises(InvalidInputError, match="pools"):
        Director({})
    with pytest.raises(InvalidInputError, match="now"):
        decide(director(), now=float("nan"))
    with pytest.raises(InvalidInputError, match="pool"):
        director().observe("nobody", 1.0)
    with pytest.raises(InvalidInputError, match="screeners"):
        ServingPool(fleet("a"), scheduler(), screeners=(Says(),))
