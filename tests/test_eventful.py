"""What happens to a fleet: servers that fail, come and go, prompts computed apart, several gateways, LoRA, mixed accelerators.

Laws: nobody is lost without a word, the books end at zero, and what does not concern a request does not change it.
"""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.observability.autoscaling import ScalingPolicy
from inferencesched.simulator import (
    Autoscaling,
    Cluster,
    EngineConfig,
    Incident,
    Policy,
    ServerGroup,
    Traffic,
    Transfer,
    disaggregated,
    flow,
    generate,
    policy,
    simulate,
    simulate_sessions,
    timing,
    with_adapters,
)
from inferencesched.simulator.eventful import EventfulSimulation

TRAFFIC = generate(Traffic(requests=300), seed=1)
SPAN = float(TRAFFIC.arrival[-1])
ROLES = (
    ServerGroup(2, labels={"llm-d.ai/role": "prefill"}),
    ServerGroup(2, labels={"llm-d.ai/role": "decode"}),
)
APART = disaggregated("apart", "prompts are computed apart")


def run(cluster, name="least-request", traffic=TRAFFIC):
    return simulate(traffic, policy(name) if isinstance(name, str) else name, cluster)


def ended(replay, traffic=TRAFFIC):
    """Everybody has ended, was lost or refused; nothing is left in the books."""
    figures = replay.figures
    assert figures["completed"] + figures["lost"] + figures["refused"] == len(traffic)
    assert replay.ledger.inflight_requests == 0 and replay.ledger.inflight_tokens == 0
    return figures


# --- incidents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["least-request", "round-robin", "gie-default", "llm-d-precise", "clairvoyant"])
def test_what_happens_afterwards_changes_nothing(name):
    plain = simulate(TRAFFIC, policy(name), Cluster(servers=3), compiled=False)
    late = run(Cluster(servers=3, incidents=(Incident(SPAN + 1e9, 0, "fail"),)), name)
    np.testing.assert_array_equal(plain.server, late.server)
    np.testing.assert_array_equal(plain.e2e, late.e2e)
    assert (late.figures["lost"], late.figures["retried"]) == (0, 0)
    assert late.figures["servers_mean"] == pytest.approx(3)


@pytest.mark.parametrize("name", ["least-request", "gie-default", "llm-d-precise", "dynamo-kv"])
def test_a_server_that_fails_loses_only_who_had_begun_there(name):
    at = SPAN / 2
    replay = run(Cluster(servers=3, incidents=(Incident(at, 1, "fail"),)), name)
    figures = ended(replay)
    gone = np.flatnonzero(np.isnan(replay.e2e))
    assert len(gone) == figures["lost"] and (replay.server[gone] == 1).all()
    assert (TRAFFIC.arrival[gone] + replay.ttft[gone] <= at).all(), "they had their first token"
    after = TRAFFIC.arrival > at
    assert (replay.server[after] != 1).all(), "nobody is served there any more"
    assert figures["retried"] > 0 and 2 < figures["servers_mean"] < 3


def test_a_failure_is_noticed_late_and_each_request_that_is_sent_there_until_then_is_tried_again():
    tries = [
        ended(run(Cluster(servers=3, detect_ms=late, incidents=(Incident(SPAN / 2, 1, "fail"),)), "round-robin"))
        for late in (0.0, SPAN / 4)
    ]
    assert tries[0]["retried"] < tries[1]["retried"]


def test_a_server_that_comes_back_is_empty_and_is_used():
    incidents = (Incident(SPAN / 3, 1, "fail"), Incident(SPAN / 2, 1, "join"))
    replay = run(Cluster(servers=3, incidents=incidents))
    ended(replay)
    late = TRAFFIC.arrival > SPAN / 2
    assert (replay.server[late] == 1).mean() > 0.2


def test_it_may_come_back_before_anybody_noticed():
    incidents = (Incident(SPAN / 3, 1, "fail"), Incident(SPAN / 3 + 10.0, 1, "join"))
    replay = run(Cluster(servers=3, detect_ms=5_000.0, incidents=incidents), "gie-default")
    ended(replay)
    assert (replay.server[TRAFFIC.arrival > SPAN / 2] == 1).any()


def test_a_drained_server_ends_what_it_has_and_gets_nothing_more():
    replay = run(Cluster(servers=3, incidents=(Incident(SPAN / 2, 1, "drain"),)))
    assert ended(replay)["completed"] == len(TRAFFIC)
    assert (replay.server[TRAFFIC.arrival >= SPAN / 2] != 1).all()
    assert (replay.server[TRAFFIC.arrival < SPAN / 2] == 1).any()


def test_a_server_whose_first_incident_is_to_join_is_not_there_before():
    replay = run(Cluster(servers=3, incidents=(Incident(SPAN / 2, 1, "join"),)), "llm-d-precise")
    ended(replay)
    assert (replay.server[TRAFFIC.arrival < SPAN / 2] != 1).all()
    assert (replay.server[TRAFFIC.arrival > SPAN / 2] == 1).any()


def test_where_nobody_is_left_requests_are_refused_and_the_run_goes_on():
    incidents = (Incident(SPAN / 2, 0, "fail"), Incident(SPAN / 2, 1, "fail"))
    figures = ended(run(Cluster(servers=2, incidents=incidents)))
    assert figures["refused"] > 100


@settings(max_examples=max(60, settings.default.max_examples // 4))
@given(
    st.lists(
        st.builds(Incident, st.floats(0, 1.2 * SPAN), st.integers(0, 3), st.sampled_from(["fail", "join", "drain"])),
        max_size=6,
    ),
    st.sampled_from(["least-request", "llm-d-precise", "gie-default", APART]),
    st.sampled_from([0.0, 500.0, 20_000.0]),
    st.sampled_from([0.0, 30.0]),
    st.integers(1, 2),
)
def test_nobody_is_lost_without_a_word(incidents, name, detect, answer, gateways):
    groups = ROLES if name is APART else ()
    cluster = Cluster(
        servers=4,
        groups=groups,
        incidents=tuple(incidents),
        detect_ms=detect,
        answer_ms=answer,
        gateways=gateways,
        gossip_ms=10.0 if name == "least-request" else inf,
    )
    traffic = TRAFFIC.head(120)
    simulation = EventfulSimulation(traffic, policy(name) if isinstance(name, str) else name, cluster)
    for _ in range(len(traffic)):
        try:
            simulation.step()
        except isched.RequestRefusedError:
            continue
        simulation.fleet.check()
    simulation.finish()
    simulation.fleet.check()
    done = set(np.flatnonzero(~np.isnan(simulation.fleet.finish)).tolist())
    assert done.isdisjoint(simulation.lost) and done.isdisjoint(simulation.refused)
    assert len(done) + len(set(simulation.lost)) + len(set(simulation.refused)) == len(traffic)
    for desk in simulation.gateways.desks:
        assert desk.pool.ledger().inflight_requests == 0
        desk.pool.check()
    outputs = traffic.output_tokens[sorted(done)]
    assert (simulation.fleet.state.requests[sorted(done), 1] == outputs).all()


# --- autoscaling -------------------------------------------------------------------------------------------------


def test_more_servers_come_when_there_is_more_to_do_and_leave_afterwards():
    scaling = Autoscaling(target=4.0, every_ms=1_000.0, boot_ms=2_000.0, policy=ScalingPolicy(down_window=5.0))
    busy = generate(Traffic(requests=1_500), seed=1)
    cluster = Cluster(servers=8, autoscaling=scaling, timing=timing("llama-3.1-8b-a100"), speedup=4.0)
    simulation = EventfulSimulation(busy, policy("least-request"), cluster)
    for _ in range(len(busy)):
        simulation.step()
    simulation.finish()
    sizes = [size for _, size in simulation.sizes]
    assert sizes[0] == 1 and max(sizes) > 2 and sizes[-1] < max(sizes)
    assert simulation.lost == [] and not np.isnan(simulation.fleet.finish).any()
    assert 1 < simulation.figures()["servers_mean"] < max(sizes)


@given(st.integers(0, 500), st.integers(0, 20), st.integers(1, 20), st.floats(0.1, 100.0))
def test_wanted_is_what_kubernetes_says(in_flight, ready, most, target):
    scaler = Autoscaling(target=target).autoscaler(most)
    wanted = scaler.recommend(now=0.0, ready=min(ready, most), demand=in_flight)
    assert 0 <= wanted <= most
    ready = min(ready, most)
    if ready and 0.9 <= in_flight / ready / target <= 1.1:
        assert wanted == ready
    elif most >= in_flight / target >= 1:
        assert (wanted - 1) * target < in_flight <= (wanted + 1e-8) * target


# --- prompts computed apart --------------------------------------------------------------------------------------


def test_prompts_are_computed_on_prefill_servers_and_answered_by_the_others():
    replay = run(Cluster(groups=ROLES), APART)
    figures = ended(replay)
    assert set(replay.server.tolist()) == {2, 3} and figures["completed"] == len(TRAFFIC)
    slow = run(Cluster(groups=ROLES, transfer=Transfer(latency_ms=200.0)), APART)
    assert figures["moved_ms"] < 50 < 200 <= slow.figures["moved_ms"]
    assert slow.figures["ttft_mean"] > replay.figures["ttft_mean"] + 100


def test_a_decode_is_not_held_up_by_prompts_where_they_are_computed_apart():
    """What it is for: the gaps between tokens stay short. The whole fleet has as many servers in both."""
    apart = run(Cluster(groups=ROLES, speedup=3.0), APART)
    together = run(Cluster(servers=4, speedup=3.0))
    assert apart.figures["itl_p99"] < together.figures["itl_p99"]


def test_short_prompts_may_stay_where_they_are_answered():
    some = run(Cluster(groups=ROLES), disaggregated("some", "long prompts are computed apart", least_tokens=1_000))
    every = run(Cluster(groups=ROLES), APART)
    ended(some)
    assert some.figures["ttft_p50"] != every.figures["ttft_p50"]


def test_a_prefill_server_that_fails_costs_a_retry_and_nothing_else():
    figures = ended(run(Cluster(groups=ROLES, incidents=(Incident(SPAN / 2, 0, "fail"),)), APART))
    assert figures["lost"] == 0 and figures["completed"] == len(TRAFFIC)


# --- several gateways, adapters, accelerators --------------------------------------------------------------------


def test_gateways_that_hear_of_each_other_find_more_than_those_that_never_do():
    busy = generate(Traffic(requests=600), seed=1)
    hits = {}
    mine = Policy(
        "prefix-and-load",
        "prefix 3, requests in flight 2",
        lambda fleet: isched.Scheduler(
            isched.SchedulingProfile(
                isched.MaxScorePicker(),
                (
                    isched.WeightedScorer(isched.PrefixCacheScorer(), 3.0),
                    isched.WeightedScorer(isched.ActiveRequestScorer(), 2.0),
                ),
            ),
            producers=(isched.ApproximatePrefixProducer(block_size=64, capacity=16_384, seed=7),),
        ),
    )
    for count, late in ((1, inf), (3, 0.0), (3, inf)):
        replay = simulate(busy, mine, Cluster(servers=6, gateways=count, gossip_ms=late))
        assert replay.ledger.inflight_requests == 0 and replay.figures["completed"] == 600
        hits[count, late] = replay.figures["hit_first"]
    assert hits[3, 0.0] == pytest.approx(hits[1, inf], abs=0.02) and hits[3, 0.0] > hits[3, inf] + 0.03


def test_who_reads_adapters_loads_fewer_of_them():
    traffic = with_adapters(TRAFFIC, [f"a-{i}" for i in range(6)], seed=1)
    engine = EngineConfig(adapter_slots=2, adapter_ms=400.0)
    lora = Policy(
        "lora",
        "where the adapter is",
        lambda fleet: isched.Scheduler(
            isched.SchedulingProfile(
                isched.MaxScorePicker(),
                (
                    isched.WeightedScorer(isched.LoraResidencyScorer(), 2.0),
                    isched.WeightedScorer(isched.ActiveRequestScorer(), 1.0),
                ),
            )
        ),
        scrapes=True,
    )
    cluster = Cluster(servers=3, engine=engine, scrape_ms=10.0)
    ours, turns = simulate(traffic, lora, cluster), simulate(traffic, policy("round-robin"), cluster)
    assert ours.figures["adapter_loads"] < turns.figures["adapter_loads"] / 2
    assert ours.figures["ttft_p95"] < turns.figures["ttft_p95"]


def test_the_kernel_of_a_policy_knows_adapters_and_accelerators():
    traffic = with_adapters(TRAFFIC, ["x", "y", "z"], seed=1)
    groups = (ServerGroup(1), ServerGroup(2, timing("llama-3.1-8b-a100"), 9_000))
    cluster = Cluster(groups=groups, engine=EngineConfig(adapter_slots=1, adapter_ms=100.0, host_blocks=100))
    compiled, plain = (simulate(traffic, policy("least-request"), cluster, compiled=each) for each in (True, False))
    np.testing.assert_array_equal(compiled.server, plain.server)
    np.testing.assert_array_equal(compiled.e2e, plain.e2e)


def test_a_slower_accelerator_gets_less_of_who_counts_requests():
    groups = (ServerGroup(1, timing("llama-3.1-8b-h100")), ServerGroup(1, timing("llama-3.1-8b-l40s")))
    busy = generate(Traffic(requests=1_500), seed=1)
    shares = np.bincount(simulate(busy, policy("least-request"), Cluster(groups=groups)).server)
    assert Cluster(groups=groups).servers == 2 and shares[0] > 1.2 * shares[1]


# --- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: Cluster(servers=2, incidents=(Incident(0.0, 2, "fail"),)), "incidents"),
        (lambda: Cluster(gateways=0), "gateways"),
        (lambda: Cluster(gossip_ms=nan), "gossip_ms"),
        (lambda: Cluster(detect_ms=-1.0), "detect_ms"),
        (lambda: Cluster(servers=2, autoscaling=Autoscaling(1.0, first=3)), "autoscaling.first"),
        (lambda: Incident(nan, 0, "fail"), "at_ms"),
        (lambda: Incident(0.0, -1, "fail"), "server"),
        (lambda: ServerGroup(0), "servers"),
        (lambda: ServerGroup(1, kv_blocks=0), "kv_blocks"),
        (lambda: Autoscaling(0.0), "target"),
        (lambda: Autoscaling(1.0, every_ms=0.0), "every_ms"),
        (lambda: Autoscaling(1.0, policy=ScalingPolicy(tolerance=-1.0)), "tolerance"),
        (lambda: Autoscaling(1.0, first=0), "first"),
        (lambda: Autoscaling(1.0, boot_ms=inf), "boot_ms"),
        (lambda: Transfer(token_ms=inf), "token_ms"),
        (lambda: with_adapters(TRAFFIC, []), "adapters"),
        (lambda: with_adapters(TRAFFIC, ["x"], skew=-1.0), "skew"),
        (lambda: with_adapters(TRAFFIC, ["x"], base=2.0), "base"),
        (lambda: simulate(TRAFFIC, policy("marginal"), Cluster(gateways=2)), "cluster"),
        (lambda: simulate(TRAFFIC, policy("random"), Cluster(gateways=2), flow=flow("fcfs")), "cluster"),
    ],
)
def test_what_cannot_be_is_refused(make, parameter):
    with pytest.raises(InvalidInputError) as error:
        make()
    assert error.value.parameter == parameter


def test_only_what_is_known_can_happen():
    with pytest.raises(UnknownNameError, match="explode"):
        Incident(0.0, 0, "explode")


def test_sessions_know_of_no_incidents_yet():
    with pytest.raises(InvalidInputError):
        simulate_sessions(TRAFFIC, policy("random"), Cluster(gateways=2))
