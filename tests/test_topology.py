import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.testing import Scene, Server, all_checks_of
from inferencesched.topology import AFFINITIES, LABELS, Place, TopologyLabels, affinities, affinity, place_of
from tests import naive_affinity as naive

REQUEST = isched.InferenceRequest(request_id="r")
PLACES = st.fixed_dictionaries({}, optional={level: st.sampled_from(("x", "y", "")) for level in LABELS})


def cycle(peer="peer"):
    return isched.CycleState(0.0, np.random.default_rng(0), 0, peer)


def pool_of(peer, candidates, labels=LABELS):
    """The candidates, without the peer, which is a member all the same."""
    pool = isched.InferencePool()
    for name, place in (("peer", peer), *((f"ep-{i}", place) for i, place in enumerate(candidates))):
        pool.join(name, labels={labels[level]: value for level, value in place.items()})
    endpoints = pool.snapshot()
    return endpoints.where(np.array([name != "peer" for name in endpoints.names]))


@given(PLACES, st.lists(PLACES, min_size=1, max_size=5))
def test_the_nearest_level_with_the_same_name_counts(peer, candidates):
    endpoints = pool_of(peer, candidates)
    near = affinities(endpoints, place_of(endpoints, "peer", TopologyLabels()), TopologyLabels())
    assert [(*AFFINITIES, "none")[each] for each in near] == [naive.nearness(peer, each) for each in candidates]


@given(PLACES, PLACES)
def test_nearness_is_mutual(one, other):
    near = [
        affinities(endpoints, place_of(endpoints, "peer", TopologyLabels()), TopologyLabels()).tolist()
        for endpoints in (pool_of(one, [other]), pool_of(other, [one]))
    ]
    assert near[0] == near[1]


@given(PLACES, st.lists(PLACES, min_size=1, max_size=5))
def test_levels_nest_and_the_filter_never_empties(peer, candidates):
    endpoints = pool_of(peer, candidates)
    before = None
    for level in AFFINITIES:
        keep = isched.TopologyAffinityFilter(level).filter(REQUEST, endpoints, cycle())
        wanted = [naive.nearness(peer, each) in AFFINITIES[: AFFINITIES.index(level) + 1] for each in candidates]
        assert keep.tolist() == (wanted if any(wanted) else [True] * len(candidates))
        if any(wanted):  # a wider level keeps whom a narrower one kept
            assert before is None or not (before & ~keep).any()
            before = keep


@given(PLACES, st.lists(PLACES, min_size=1, max_size=5))
def test_scores_follow_the_levels(peer, candidates):
    endpoints = pool_of(peer, candidates)
    scores = isched.TopologyAffinityScorer().score(REQUEST, endpoints, cycle())
    worth = {"host": 1.0, "rack": 0.2, "zone": 0.05, "region": 0.02, "none": 0.0}
    assert scores.tolist() == [worth[naive.nearness(peer, each)] for each in candidates]


def test_without_a_peer_nobody_is_near():
    endpoints = pool_of({"zone": "x"}, [{"zone": "x"}, {}])
    for peer in ("", "somebody who left"):
        assert isched.TopologyAffinityScorer().score(REQUEST, endpoints, cycle(peer)).tolist() == [0.0, 0.0]
        assert isched.TopologyAffinityFilter("zone").filter(REQUEST, endpoints, cycle(peer)).tolist() == [True, True]


def test_an_unlabelled_endpoint_is_dropped_where_others_are_near():
    endpoints = pool_of({"hostname": "x"}, [{"hostname": "x"}, {}])
    assert isched.TopologyAffinityFilter().filter(REQUEST, endpoints, cycle()).tolist() == [True, False]


def test_labels_of_ones_own():
    own = {"hostname": "n", "rack": "r", "zone": "z", "region": "g"}
    endpoints = pool_of({"rack": "x"}, [{"rack": "x"}, {"rack": "y"}], own)
    scorer = isched.TopologyAffinityScorer(rack=0.5, labels=TopologyLabels(**own))
    assert scorer.score(REQUEST, endpoints, cycle()).tolist() == [0.5, 0.0]
    assert isched.TopologyAffinityScorer().score(REQUEST, endpoints, cycle()).tolist() == [0.0, 0.0]


def test_a_peer_of_another_pool_is_told_by_a_header():
    endpoints = pool_of({}, [{"zone": "x"}, {"zone": "y"}])
    request = isched.InferenceRequest(request_id="r", headers={"x-peer": "host=h,zone=y,odd"})
    scorer = isched.TopologyAffinityScorer(peer_header="X-Peer")
    assert scorer.score(request, endpoints, cycle("")).tolist() == [0.0, 0.05]
    assert scorer.score(REQUEST, endpoints, cycle("")).tolist() == [0.0, 0.0]
    known = pool_of({"zone": "x"}, [{"zone": "x"}, {"zone": "y"}])
    assert scorer.score(request, known, cycle()).tolist() == [0.05, 0.0]  # who is in the pool is not asked twice


@given(st.tuples(*[st.text("ab,=", max_size=3)] * 4))
def test_a_place_comes_through_a_header(names):
    told = Place.read(Place(*names).text())
    assert told == Place(*(name if not set(name) & set(",=") else "" for name in names))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: isched.TopologyAffinityFilter("datacenter"),
            "min_affinity: got 'datacenter', allowed: one of host, rack",
        ),
        (lambda: affinity("Host"), "min_affinity: got 'Host'"),
        (lambda: isched.TopologyAffinityScorer(host=1.5), "host: got 1.5, allowed: 0 to 1.0"),
        (lambda: isched.TopologyAffinityScorer(zone=0.3), "zone: got 0.3, allowed: 0 to 0.2"),
        (lambda: TopologyLabels(zone=""), "zone: got ''"),
    ],
)
def test_bad_parameters(build, words):
    with pytest.raises(isched.InvalidInputError, match=words):
        build()


SCENES = [
    Scene(
        "places",
        REQUEST,
        tuple(
            Server(f"ep-{i}", i, 10 + i, {}, {LABELS[level]: name for level, name in place.items()})
            for i, place in enumerate(
                [{"hostname": "a", "zone": "z"}, {"hostname": "b", "zone": "z"}, {"zone": "y"}, {}]
            )
        ),
        peer="ep-0",
    )
]
CHECKS = [
    check
    for plugin in (isched.TopologyAffinityFilter("zone"), isched.TopologyAffinityScorer(peer_header="x-peer"))
    for check in all_checks_of(plugin, more=SCENES)
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check):
    check()
