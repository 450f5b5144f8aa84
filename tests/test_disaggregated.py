"""Do the stages of a request find the servers that the rules say, one after the other or two at once?"""

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.handlers.disaggregated import StageOrder
from inferencesched.topology import LABELS
from tests import naive_handlers

STAGES = ("decode", "prefill", "encode")
SERVERS = tuple(f"ep-{i}" for i in range(4))
REQUEST = isched.InferenceRequest(request_id="r", input_tokens=1000)
ROLE = "llm-d.ai/role"


def rng(seed=0):
    return np.random.default_rng(seed)


def pool_of(count=4, labels=lambda i: {}):
    pool = isched.InferencePool()
    for i in range(count):
        pool.join(f"ep-{i}", address=f"10.0.0.{i}:8000", labels=labels(i))
    return pool


class Keeps:
    """Keeps these endpoints."""

    def __init__(self, names):
        self.names = names

    def filter(self, request, endpoints, cycle):
        return np.array([name in self.names for name in endpoints.names], dtype=np.bool_)


class Notes:
    """Picks in a given order, and notes who asked with which peer."""

    def __init__(self, stage, names, log):
        self.stage, self.names, self.log = stage, names, log

    def pick(self, totals, endpoints, cycle):
        assert cycle.candidates is None  # a profile sees its own candidates only
        self.log.append((self.stage, cycle.peer))
        return np.array([endpoints.names.index(name) for name in self.names])


class Chooses:
    """A filter that keeps nobody, and says that it was asked."""

    def __init__(self, stage, log):
        self.stage, self.log = stage, log

    def filter(self, request, endpoints, cycle):
        self.log.append((self.stage, cycle.peer))
        return np.zeros(len(endpoints), dtype=np.bool_)


def profile_of(stage, names, log):
    if not names:
        return isched.SchedulingProfile(isched.MaxScorePicker(), filters=(Chooses(stage, log),))
    return isched.SchedulingProfile(Notes(stage, names, log), filters=(Keeps(names),))


class Says:
    """Wants the stage for these decode servers; None stands for no decode server."""

    def __init__(self, wanted):
        self.wanted, self.calls = wanted, 0

    def __repr__(self):
        return f"Says({self.wanted})"

    def decide(self, request, target, cycle):
        assert len(cycle.candidates) == len(SERVERS)
        self.calls += 1
        return (None if target is None else target.endpoint) in self.wanted


PICKS = st.lists(st.sampled_from(SERVERS), max_size=3, unique=True).map(tuple)
ANSWERS = st.none() | st.sets(st.sampled_from((None, *SERVERS)))


@st.composite
def scenarios(draw):
    order = draw(st.sampled_from(get_args(StageOrder)))
    configured = draw(st.permutations(["decode", *draw(st.sets(st.sampled_from(["prefill", "encode"])))]))
    outcomes = {stage: draw(PICKS) for stage in STAGES}
    prefill = None if order == "prefill-first" else draw(ANSWERS)
    return order, configured, outcomes, prefill, draw(ANSWERS)


def run(order, configured, outcomes, prefill, encode, names=None):
    """What the library does of a scenario: who ran with which peer, and the result or the refusal."""
    names = names or isched.StageNames()
    called = {"decode": names.decode, "prefill": names.prefill, "encode": names.encode}
    log = []
    deciders = [None if wanted is None else Says(wanted) for wanted in (prefill, encode)]
    handler = isched.DisaggProfileHandler(names, *deciders, stage_order=order)
    profiles = {called[stage]: profile_of(stage, outcomes[stage], log) for stage in configured}
    scheduler = isched.Scheduler(profiles, handler=handler)
    try:
        result = scheduler.schedule(REQUEST, pool_of().snapshot(), now=0.0, rng=rng())
    except isched.FilteredOutError as refusal:
        result = refusal
    assert all(decider.calls <= 1 for decider in deciders if decider is not None)
    return log, result, handler


@given(scenarios())
def test_the_stages_run_as_the_rules_say(scenario):
    order, configured, outcomes, prefill, encode = scenario
    log, result, handler = run(*scenario)
    ran, peers, found = naive_handlers.walk(
        order,
        configured,
        outcomes,
        None if prefill is None else prefill.__contains__,
        None if encode is None else encode.__contains__,
    )
    assert log == [(stage, peers[stage]) for stage in ran]
    if found is None:
        assert isinstance(result, isched.FilteredOutError) and "decode" in str(result)
        return
    got = {name: tuple(target.endpoint for target in picked.targets) for name, picked in result.profiles.items()}
    assert (got, result.primary) == (found, "decode")
    assert handler.label(result) == "-".join(
        stage for stage in ("encode", "prefill", "decode") if stage in found
    ).replace("decode", "decode" if len(found) > 1 else "decode-only")
    where = {stage: ",".join(f"10.0.0.{name[-1]}:8000" for name in names) for stage, names in found.items()}
    assert result.headers == {
        "x-prefiller-host-port": where.get("prefill", "").partition(",")[0],
        "x-encoder-hosts-ports": where.get("encode", ""),
    }


@given(scenarios(), st.randoms(use_true_random=False))
def test_neither_order_nor_names_of_the_profiles_matter(scenario, random):
    order, configured, outcomes, prefill, encode = scenario
    turned = list(configured)
    random.shuffle(turned)
    log, result, _ = run(*scenario)
    again, other, _ = run(order, turned, outcomes, prefill, encode, isched.StageNames("a", "b", "c"))
    assert log == again
    if isinstance(result, isched.FilteredOutError):
        assert isinstance(other, isched.FilteredOutError)
        return
    renamed = {"decode": "a", "prefill": "b", "encode": "c"}
    assert {renamed[name]: picked for name, picked in result.profiles.items()} == dict(other.profiles)
    assert other.headers == result.headers and other.primary == "a"


@given(scenarios())
def test_a_stage_that_fails_never_costs_the_decode_server(scenario):
    order, configured, outcomes, prefill, encode = scenario
    _, whole, _ = run(*scenario)
    _, alone, _ = run(order, configured, {**outcomes, "prefill": (), "encode": ()}, prefill, encode)
    if outcomes["decode"]:
        assert alone.profiles["decode"] == whole.profiles["decode"] and set(alone.profiles) == {"decode"}
    else:
        assert isinstance(alone, isched.FilteredOutError)


@given(scenarios(), st.booleans())
def test_both_orders_agree_where_their_deciders_do(scenario, encode):
    """Prefill-first always runs prefill; so does decode-first, with a decider that always wants it."""
    _, configured, outcomes, _, _ = scenario
    both = set(SERVERS) | {None}
    wanted = both if encode else set()
    _, one, handler = run("decode-first", configured, outcomes, both, wanted)
    _, other, _ = run("prefill-first", configured, outcomes, None, wanted)
    if outcomes["decode"]:
        assert (handler.label(one), one.headers, one.profiles) == (handler.label(other), other.headers, other.profiles)


def test_decode_without_a_profile_is_a_mistake_of_the_configuration():
    scheduler = isched.Scheduler({"decoding": isched.default_profile()}, handler=isched.DisaggProfileHandler())
    with pytest.raises(isched.PluginError, match="one of a profile named 'decode'"):
        scheduler.schedule(REQUEST, pool_of().snapshot(), now=0.0, rng=rng())


def test_decode_behind_one_port():
    """The ports of the other stages are their own."""
    handler = isched.DisaggProfileHandler(prefill_decider=isched.AlwaysDecider(), primary_port=9000)
    profiles = {"decode": profile_of("d", ("ep-1", "ep-2"), []), "prefill": profile_of("p", ("ep-3",), [])}
    result = isched.Scheduler(profiles, handler=handler).schedule(REQUEST, pool_of().snapshot(), now=0.0, rng=rng())
    assert [target.address for target in result.profiles["decode"].targets] == ["10.0.0.1:9000", "10.0.0.2:9000"]
    assert result.headers["x-data-parallel-host-port"] == "10.0.0.1:8000"
    assert result.headers["x-prefiller-host-port"] == "10.0.0.3:8000"


def test_the_decider_sees_what_producers_found():
    """The second time, the decode server has the prompt, and no prefill server is asked."""
    producer = isched.ApproximatePrefixProducer(block_size=16)
    handler = isched.DisaggProfileHandler(prefill_decider=isched.PrefixBasedDecider(non_cached_tokens=64))
    profiles = {"decode": profile_of("d", ("ep-1",), []), "prefill": profile_of("p", ("ep-3",), [])}
    scheduler = isched.Scheduler(profiles, handler=handler, producers=(producer,))
    pool, labels = pool_of(), []
    for i in range(2):
        request = isched.InferenceRequest(request_id=str(i), tokens=np.arange(160, dtype=np.uint32))
        result = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=rng())
        labels.append(handler.label(result))
        for booked in scheduler.reserve_stages(result, pool, now=0.0).values():
            booked.complete(now=1.0)
    assert labels == ["prefill-decode", "decode-only"]


def test_both_servers_are_booked_and_each_is_given_back_by_itself():
    handler = isched.DisaggProfileHandler(prefill_decider=isched.AlwaysDecider())
    profiles = {"decode": profile_of("d", ("ep-1",), []), "prefill": profile_of("p", ("ep-3",), [])}
    scheduler, pool = isched.Scheduler(profiles, handler=handler), pool_of()
    result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
    booked = scheduler.reserve_stages(result, pool, now=0.0)
    assert pool.snapshot()[isched.INFLIGHT_REQUESTS].tolist() == [0, 1, 0, 1]
    booked["prefill"].complete(now=0.5)
    booked["decode"].first_token(now=0.5)
    after = pool.snapshot()
    assert after[isched.INFLIGHT_REQUESTS].tolist() == [0, 1, 0, 0] and not after[isched.INFLIGHT_TOKENS].any()
    booked["decode"].complete(now=1.0)
    ledger = pool.ledger()
    assert (ledger.reserved_requests, ledger.settled_requests, ledger.inflight_requests) == (2, 2, 0)


# --- pairs -------------------------------------------------------------------------------------------------------

VALUES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0, -1.0]) | st.floats(-5, 5)
SHARES = st.sampled_from([0.0, 0.02, 0.2, 1.0]) | st.floats(0, 1)
WEIGHTS = st.sampled_from([0.0, 1.0, 2.5, -1.0, 10.0])


class Table:
    """What is each pair worth? By positions."""

    def __init__(self, table):
        self.table = table

    def pairs(self, request, endpoints, prefill, decode, cycle):
        return self.table[np.ix_(prefill, decode)]


@st.composite
def pairings(draw):
    count = draw(st.integers(1, 6))
    names = [f"ep-{i}" for i in range(count)]
    prefill, decode = (
        [(name, draw(VALUES)) for name in draw(st.lists(st.sampled_from(names), min_size=1, unique=True))]
        for _ in range(2)
    )
    table = np.array(draw(st.lists(SHARES, min_size=count**2, max_size=count**2))).reshape(count, count)
    weights = tuple(draw(WEIGHTS) for _ in range(3))
    wanted = draw(st.just(set(names)) | st.sets(st.sampled_from(names)))
    return names, prefill, decode, table, weights, wanted


def results_of(names, **ranked):
    endpoints = pool_of(len(names)).snapshot()

    def targets(ranks):
        places = [names.index(name) for name, _ in ranks]
        return tuple(
            isched.Target(name, *endpoints.stay(i), score, 0) for i, (name, score) in zip(places, ranks, strict=True)
        )

    results = {stage: isched.ProfileResult(targets(ranks)) for stage, ranks in ranked.items()}
    return results, isched.CycleState(0.0, rng(), 0, "", endpoints)


class Wants:
    def __init__(self, names):
        self.names = names

    def decide(self, request, target, cycle):
        return target.endpoint in self.names


@given(pairings())
def test_the_pair_is_the_best_of_all(pairing):
    names, prefill, decode, table, weights, wanted = pairing
    results, cycle = results_of(names, decode=decode, prefill=prefill)
    handler = isched.JointDisaggHandler(
        isched.DisaggProfileHandler(prefill_decider=Wants(wanted)), Table(table), *weights
    )
    result = handler.process_results(REQUEST, results, cycle)
    place = {name: i for i, name in enumerate(names)}
    found = naive_handlers.best_pair(
        prefill, decode, wanted.__contains__, lambda p, d: float(table[place[p], place[d]]), weights
    )
    if found is None:
        assert result.profiles == {"decode": results["decode"]} and handler.label(result) == "decode-only"
        return
    first, second = found
    assert result.profiles["prefill"].target.endpoint == prefill[first][0]
    assert result.endpoint == decode[second][0] in wanted
    for stage in ("prefill", "decode"):  # the others follow in their order
        chosen, before = result.profiles[stage].targets, results[stage].targets
        assert chosen[1:] == tuple(target for target in before if target != chosen[0])
        assert Counter(chosen) == Counter(before)


PLACES = st.fixed_dictionaries(
    {}, optional={LABELS["hostname"]: st.sampled_from("hi"), LABELS["rack"]: st.sampled_from(["r", "s", ""])}
)
FARTHER = st.fixed_dictionaries(
    {}, optional={LABELS["zone"]: st.sampled_from("yz"), LABELS["region"]: st.sampled_from(["e", "w", ""])}
)


@given(st.lists(st.builds(lambda near, far: {**near, **far}, PLACES, FARTHER), min_size=2, max_size=5), st.data())
def test_the_nearest_level_that_both_share_counts(places, data):
    pool = pool_of(len(places), places.__getitem__)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places))))
    endpoints = pool.snapshot().where(keep) if keep.any() else pool.snapshot()
    labels = [endpoints.labels(i) for i in range(len(endpoints))]
    rows, columns = (np.array(data.draw(st.permutations(range(len(labels))))) for _ in range(2))
    labelled = isched.TopologyLabels(*data.draw(st.permutations(list(LABELS.values()))))
    topology = isched.TopologyPairs(0.9, 0.2, 0.05, 0.02, labelled)
    worth = list(zip(labelled.keys, topology.worth.values(), strict=True))
    scores = topology.pairs(REQUEST, endpoints, rows, columns[1:], isched.CycleState(0.0, rng(), 0))
    assert scores.shape == (len(rows), len(columns) - 1)
    assert scores.tolist() == [
        [naive_handlers.nearness(labels[i], labels[j], worth) for j in columns[1:]] for i in rows
    ]


def racks(i):
    """Two racks; servers 0 to 2 compute prompts, 3 to 5 answer."""
    return {LABELS["rack"]: f"rack-{i % 2}", ROLE: "prefill" if i < 3 else "decode"}


def one_by_one_and_jointly(queues):
    """Both choices on one pool: with a topology-blind prefill profile, and with pairs."""
    pool = pool_of(6, racks)
    for i, queue in enumerate(queues):
        pool.observe(f"ep-{i}", {isched.WAITING_QUEUE_SIZE: queue}, now=0.0)
    scorers = (isched.WeightedScorer(isched.QueueScorer()),)

    def profiles(count):
        return {
            "prefill": isched.SchedulingProfile(isched.MaxScorePicker(count), scorers, (Keeps(SERVERS[:3]),)),
            "decode": isched.SchedulingProfile(
                isched.MaxScorePicker(count), scorers, (Keeps(("ep-3", "ep-4", "ep-5")),)
            ),
        }

    stages = isched.DisaggProfileHandler(prefill_decider=isched.AlwaysDecider())
    plain = isched.Scheduler(profiles(1), handler=stages)
    joint = isched.Scheduler(
        profiles(6), handler=isched.JointDisaggHandler(stages, isched.TopologyPairs(rack=1.0), transfer_weight=0.5)
    )
    found = []
    for scheduler in (plain, joint):
        result = scheduler.schedule(REQUEST, pool.snapshot(), now=0.0, rng=rng())
        found.append((result.profiles["prefill"].target.endpoint, result.endpoint))
    return found


def test_a_pair_in_one_rack_beats_two_favourites_in_two():
    # the emptiest prefill server is in rack 0, the emptiest decode server in rack 1; ep-4, in rack 0 too, is nearly as empty
    assert one_by_one_and_jointly([0, 10, 10, 1, 2, 10]) == [("ep-0", "ep-3"), ("ep-0", "ep-4")]


@given(st.lists(st.integers(0, 5), min_size=6, max_size=6))
def test_jointly_is_never_worse_than_one_by_one(queues):
    def value(pair):
        prefill, decode = (int(name[-1]) for name in pair)
        shares = [(max(group) - q) / (max(group) - min(group)) if max(group) > min(group) else 1.0
                  for group, q in ((queues[:3], queues[prefill]), (queues[3:], queues[decode]))]  # fmt: skip
        return sum(shares) + 0.5 * (prefill % 2 == decode % 2)

    one_by_one, jointly = one_by_one_and_jointly(queues)
    assert value(jointly) >= value(one_by_one) - 1e-12


def test_a_server_is_no_partner_of_its_own():
    results, cycle = results_of(["ep-0"], decode=[("ep-0", 1.0)], prefill=[("ep-0", 1.0)])
    result = isched.JointDisaggHandler().process_results(REQUEST, results, cycle)
    assert set(result.profiles) == {"decode"} and result.headers["x-prefiller-host-port"] == ""


def test_what_is_between_two_servers_counts_once():
    """No profile of a joint choice has a peer: the pair's score says it all."""
    log = []
    profiles = {stage: profile_of(stage, (name,), log) for stage, name in (("decode", "ep-1"), ("prefill", "ep-2"))}
    scheduler = isched.Scheduler(profiles, handler=isched.JointDisaggHandler())
    result = scheduler.schedule(REQUEST, pool_of().snapshot(), now=0.0, rng=rng())
    assert log == [("decode", ""), ("prefill", "")] and set(result.profiles) == {"decode", "prefill"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda p, d: np.zeros((d, p)), r"float64\[1, 2\], allowed: float64\[2, 1\]"),
        (lambda p, d: np.zeros((p, d), dtype=np.float32), "float32"),
        (lambda p, d: [[0.0] * d] * p, "list"),
        (lambda p, d: np.full((p, d), np.nan), "nan"),
        (lambda p, d: np.full((p, d), 1.5), r"1\.5, allowed: numbers from 0 to 1"),
    ],
)
def test_a_transfer_that_is_no_score(answer, words):
    class Broken:
        def pairs(self, request, endpoints, prefill, decode, cycle):
            return answer(len(prefill), len(decode))

    results, cycle = results_of(
        ["ep-0", "ep-1", "ep-2"], decode=[("ep-0", 1.0)], prefill=[("ep-1", 1.0), ("ep-2", 1.0)]
    )
    with pytest.raises(isched.ScoreError, match=words):
        isched.JointDisaggHandler(transfer=Broken()).process_results(REQUEST, results, cycle)
    with pytest.raises(isched.InvalidInputError, match=r"cycle\.candidates"):
        isched.JointDisaggHandler().process_results(REQUEST, results, cycle._replace(candidates=None))
    with pytest.raises(isched.PluginError, match="a pair with 'ep-1'"):
        isched.JointDisaggHandler().process_results(REQUEST, results, cycle._replace(candidates=pool_of(1).snapshot()))
