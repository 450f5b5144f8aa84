"""Which profiles run, and whose answer counts? Handlers of one profile, addresses, deciders, headers, and the vectors."""

import json
from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.handlers.addresses import HostPort, join_address, split_address, with_port
from inferencesched.handlers.deciders import cached_tokens, position_of
from tests.parity import handlers
from tests.parity.run import outcomes
from tests.profiles import endpoints_of
from tests.shared import SHARED

VECTORS = SHARED / "vectors" / "scheduling.json"
COMPONENTS = sorted({component for component, _ in handlers.RUNNERS})
REQUEST = isched.InferenceRequest(request_id="r", input_tokens=1000)
ANY = isched.SchedulingProfile(isched.MaxScorePicker())


def rng(seed=0):
    return np.random.default_rng(seed)


def cycle(endpoints=None):
    return isched.CycleState(0.0, rng(), 0, "", endpoints)


def request(**headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return isched.InferenceRequest(request_id="r", headers=named)


def pool_of(*addresses):
    pool = isched.InferencePool()
    for i, address in enumerate(addresses):
        pool.join(f"ep-{i}", address=address)
    return pool


@pytest.mark.parametrize("component", COMPONENTS)
def test_llmds_own_expectations(component):
    if not VECTORS.exists():
        pytest.skip("reference vectors are not beside this checkout")
    came = list(outcomes(json.loads(VECTORS.read_text()), [component]))
    assert [each for each in came if each.state == "failed"] == []
    if not came:
        pytest.skip("no vector of this one is published")
    assert any(each.state == "passed" for each in came)


# --- addresses ---------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from(["10.0.0.1", "fd00::1", "::1", "ep-3", "vllm.svc.local", ""])
PORTS = st.integers(0, 65535).map(str) | st.just("")


@given(HOSTS, PORTS)
def test_an_address_comes_apart_as_it_was_put_together(host, port):
    assert split_address(join_address(host, port)) == HostPort(host, port)


@given(HOSTS, PORTS, st.integers(0, 65535))
def test_another_port_is_the_same_host(host, port, other):
    moved = with_port(join_address(host, port), other)
    assert split_address(moved) == (host, str(other))
    assert with_port(moved, other) == moved


@pytest.mark.parametrize("address", ["[fd00::1", "[fd00::1]8000"])
def test_brackets_that_do_not_match(address):
    with pytest.raises(isched.InvalidInputError, match="address: got"):
        split_address(address)


# --- by header ---------------------------------------------------------------------------------------------------


def by_header(handler, *names):
    return isched.Scheduler(dict.fromkeys(names, ANY), handler=handler)


@pytest.mark.parametrize(
    ("headers", "answers"),
    [
        ({"epp_profile": "encode"}, "encode"),
        ({"epp_profile": "  encode "}, "encode"),
        ({"epp_profile": "   "}, "decode"),
        ({}, "decode"),
    ],
)
def test_the_header_names_the_profile(headers, answers):
    scheduler = by_header(isched.HeaderProfileHandler(), "encode", "decode")
    result = scheduler.schedule(request(**headers), pool_of("a").snapshot(), now=0.0, rng=rng())
    assert result.primary == answers and set(result.profiles) == {answers}


def test_a_client_hears_which_profile_it_asked_for():
    """llm-d has the words, and its scheduler says something else before they are reached."""
    scheduler = by_header(isched.HeaderProfileHandler(), "encode", "prefill")
    endpoints = pool_of("a").snapshot()
    for calls in (scheduler.schedule, lambda *a, **k: isched.explain(scheduler, *a, **k)):
        with pytest.raises(isched.UnknownProfileError, match='"epp-profile" header value "Encode"') as error:
            calls(request(epp_profile="Encode"), endpoints, now=0.0, rng=rng())
        assert (error.value.status, error.value.outcome) == (400, "unknown_profile")
        with pytest.raises(isched.UnknownProfileError, match=r'missing "epp-profile" header, .* \'decode\''):
            calls(request(), endpoints, now=0.0, rng=rng())


def test_what_a_client_sends_does_not_fill_the_log():
    with pytest.raises(isched.UnknownProfileError) as error:
        by_header(isched.HeaderProfileHandler(), "a", "b").schedule(
            request(epp_profile="x\n" * 5000), pool_of("a").snapshot(), now=0.0, rng=rng()
        )
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_one_profile_needs_no_header():
    result = by_header(isched.HeaderProfileHandler(), "only").schedule(
        request(epp_profile="other"), pool_of("a").snapshot(), now=0.0, rng=rng()
    )
    assert result.primary == "only"


def test_a_profile_by_header_that_finds_nobody():
    nobody = isched.SchedulingProfile(
        isched.MaxScorePicker(), filters=(isched.UtilizationFilter(((isched.RUNNING_REQUESTS, 1),)),)
    )
    scheduler = isched.Scheduler({"a": nobody, "b": ANY}, handler=isched.HeaderProfileHandler())
    with pytest.raises(isched.FilteredOutError, match="failed to run scheduler profile 'a'"):
        scheduler.schedule(request(epp_profile="a"), pool_of("x").snapshot(), now=0.0, rng=rng())


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: isched.HeaderProfileHandler("EPP-Profile"), "header_name"),
        (lambda: isched.HeaderProfileHandler(" "), "header_name"),
        (lambda: isched.HeaderProfileHandler(default_profile=" "), "default_profile"),
        (lambda: isched.DataParallelProfileHandler(65536), "primary_port"),
        (lambda: isched.DataParallelProfileHandler(True), "primary_port"),
        (lambda: isched.DisaggProfileHandler(primary_port=-1), "primary_port"),
        (lambda: isched.DisaggProfileHandler(stage_order="encode-first"), "stage_order"),
        (
            lambda: isched.DisaggProfileHandler(stage_order="prefill-first", prefill_decider=isched.AlwaysDecider()),
            "prefill_decider",
        ),
        (lambda: isched.StageNames(prefill="decode"), "profiles"),
        (lambda: isched.StageNames(encode=""), "profiles.encode"),
        (lambda: isched.PrefixBasedDecider(-1), "non_cached_tokens"),
        (lambda: isched.PrefixBasedDecider(1, 0.5), "prompt_tokens"),
        (lambda: isched.TopologyPairs(rack=1.5), "rack"),
        (lambda: isched.JointDisaggHandler(transfer_weight=nan), "transfer_weight"),
        (
            lambda: isched.JointDisaggHandler(isched.DisaggProfileHandler(stage_order="prefill-first")),
            "stages.stage_order",
        ),
        (lambda: isched.SchedulingProfile((isched.MaxScorePicker(), isched.RandomPicker())), "picker"),
        (lambda: isched.SchedulingProfile(isched.MaxScorePicker(), (isched.QueueScorer(),)), r"scorers\[0\]"),
        (lambda: isched.SchedulingProfile(isched.MaxScorePicker(), (), (isched.QueueScorer(),)), r"filters\[0\]"),
    ],
)
def test_parameters_that_mean_nothing(make, parameter):
    with pytest.raises(isched.InvalidInputError, match=f"^{parameter}: got"):
        make()


# --- by rank -----------------------------------------------------------------------------------------------------


def test_ranks_behind_one_port():
    picker = isched.MaxScorePicker(count=3)
    scheduler = isched.Scheduler(
        isched.SchedulingProfile(picker), handler=isched.DataParallelProfileHandler(primary_port=9000)
    )
    pool = pool_of("10.0.0.1:8000", "[fd00::1]:8001", "10.0.0.1:8002")
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    targets = result.profiles["default"].targets
    where = {target.endpoint: target.address for target in targets}
    assert where == {"ep-0": "10.0.0.1:9000", "ep-1": "[fd00::1]:9000", "ep-2": "10.0.0.1:9000"}
    own = pool.snapshot().address(int(result.endpoint[-1]))
    assert result.headers == {"x-data-parallel-host-port": own}
    assert scheduler.reserve(result, pool, now=0.0).endpoint == result.endpoint


def test_ranks_of_two_profiles():
    scheduler = isched.Scheduler({"a": ANY, "b": ANY}, handler=isched.DataParallelProfileHandler())
    with pytest.raises(isched.PluginError, match="0 profile results, allowed: exactly one"):
        scheduler.schedule(REQUEST, pool_of("x").snapshot(), now=0.0, rng=rng())


# --- deciders ----------------------------------------------------------------------------------------------------

TOKENS = st.integers(0, 40)


def target_at(endpoints, position):
    slot, generation = endpoints.stay(position)
    return isched.Target(endpoints.name(position), slot, generation, 1.0, 0)


def decides(decider, prompt, cached):
    endpoints = endpoints_of({isched.PREFIX_TOKENS: [0.0, cached]})
    asked = isched.InferenceRequest(request_id="r", input_tokens=prompt)
    return decider.decide(asked, target_at(endpoints, 1), cycle(endpoints))


@given(TOKENS, TOKENS, TOKENS, TOKENS | st.just(nan))
def test_a_prefix_is_worth_a_hop_where_much_is_left(threshold, least, prompt, cached):
    decider = isched.PrefixBasedDecider(threshold, least)
    expected = (
        threshold > 0 and prompt >= least and prompt >= threshold and not isnan(cached) and prompt - cached >= threshold
    )
    assert decides(decider, prompt, cached) is expected


@given(TOKENS, TOKENS, TOKENS, TOKENS, TOKENS)
def test_more_cached_never_brings_a_hop_and_a_longer_prompt_never_saves_one(threshold, least, prompt, cached, more):
    decider = isched.PrefixBasedDecider(threshold, least)
    assert decides(decider, prompt, cached + more) <= decides(decider, prompt, cached)
    assert decides(decider, prompt + more, cached) >= decides(decider, prompt, cached)


def test_nothing_is_decided_on_a_guess():
    decider = isched.PrefixBasedDecider(1)
    endpoints = endpoints_of({isched.PREFIX_TOKENS: [0.0, 0.0]})
    assert decider.decide(REQUEST, target_at(endpoints, 0), cycle(endpoints))
    for target, seen in ((None, endpoints), (target_at(endpoints, 0), None)):
        assert not decider.decide(REQUEST, target, cycle(seen))
    unknown = isched.InferenceRequest(request_id="r")
    assert not decider.decide(unknown, target_at(endpoints, 0), cycle(endpoints))


def test_a_decider_may_read_one_producer_of_several():
    decider = isched.PrefixBasedDecider(500, producer="precise")
    named = decider.reads[0].signal
    scheduler = {"decode": ANY, "prefill": ANY}, isched.DisaggProfileHandler(prefill_decider=decider)
    with pytest.raises(isched.DependencyError, match=named.name):
        isched.Scheduler(scheduler[0], handler=scheduler[1])
    endpoints = endpoints_of({isched.PREFIX_TOKENS: [0.0]}).with_columns({named: np.array([900.0])})
    assert not decider.decide(REQUEST, target_at(endpoints, 0), cycle(endpoints))
    assert isched.PrefixBasedDecider(500).decide(REQUEST, target_at(endpoints, 0), cycle(endpoints))


def test_a_target_is_found_among_those_that_are_left():
    pool = pool_of("a", "b", "c")
    everybody = pool.snapshot()
    targets = [target_at(everybody, i) for i in range(3)]
    kept = everybody.where(np.array([False, True, True]))
    assert [position_of(target, everybody) for target in targets] == [0, 1, 2]
    assert [position_of(target, kept) for target in targets] == [None, 0, 1]
    pool.leave("ep-1")
    assert position_of(targets[1], pool.snapshot()) is None
    pool.join("ep-1")
    assert position_of(targets[1], pool.snapshot()) is None  # a namesake
    assert position_of(targets[2], pool.snapshot()) == pool.snapshot().names.index("ep-2")
    assert isnan(cached_tokens(targets[1], cycle(pool.snapshot())))


def test_pictures_are_what_an_encoder_is_for():
    picture = isched.InferenceRequest(request_id="r", media=(isched.MediaItem(1),))
    decider = isched.MultimodalDecider()
    assert (decider.decide(picture, None, cycle()), decider.decide(REQUEST, None, cycle())) == (True, False)
    assert isched.AlwaysDecider().decide(REQUEST, None, cycle())


# --- headers -----------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["", "a", "b:1"])
HEADERS = st.dictionaries(st.sampled_from(["x", "y", "z", "x-prefiller-host-port"]), WORDS)


@given(HEADERS, HEADERS)
def test_what_a_decision_says_of_a_header_is_what_is_sent(inbound, said):
    sent = isched.sent_headers(inbound, said)
    for name in {*inbound, *said}:
        expected = (said[name] or None) if name in said else inbound[name]
        assert sent.get(name) == expected
    assert set(sent) <= {*inbound, *said}


def test_both_headers_are_always_said():
    """Else a client could send one, and the decode server would believe it."""
    pair = isched.ProfileResult(tuple(isched.Target(f"e-{i}", i, i, 1.0, 0, f"10.0.0.{i}:80") for i in (1, 2)))
    said = isched.stage_headers({"e": pair, "p": pair}, "p", "e")
    assert said == {"x-prefiller-host-port": "10.0.0.1:80", "x-encoder-hosts-ports": "10.0.0.1:80,10.0.0.2:80"}
    for results in ({}, {"p": None, "e": isched.ProfileResult(())}):
        assert isched.stage_headers(results, "p", "e") == dict.fromkeys(said, "")
    result = isched.SchedulingResult(REQUEST, "d", {"d": pair, "p": pair})
    assert isched.DisaggHeaders("p", "e").headers(result) == said | {"x-encoder-hosts-ports": ""}


def test_a_server_without_an_address_goes_by_its_name():
    result = isched.ProfileResult((isched.Target("ep-7", 7, 7, 1.0, 0),))
    assert isched.stage_headers({"prefill": result})["x-prefiller-host-port"] == "ep-7"
