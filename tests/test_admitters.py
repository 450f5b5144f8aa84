"""Who may be turned away, and why."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import inferencesched as isched
from inferencesched.admitters import ConditionalDecode, LatencySloAdmitter, ProbabilisticAdmitter, has_cached_prefix
from inferencesched.admitters.conditional import prefers
from inferencesched.config import load
from inferencesched.errors import AdmissionDeniedError, InvalidInputError
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.signals import TPOT_HEADROOM, TTFT_HEADROOM
from tests.director_parts import Says, fleet, rng

CYCLE = isched.CycleState(0.0, rng(), 0)


def servers(*said):
    """Return endpoints of which this is known: queue, running, cache use; None for nothing."""
    pool = isched.InferencePool()
    for i, each in enumerate(said):
        pool.join(f"ep-{i}")
        if each is not None:
            signals = isched.WAITING_QUEUE_SIZE, isched.RUNNING_REQUESTS, isched.KV_CACHE_USAGE
            pool.observe(f"ep-{i}", dict(zip(signals, each, strict=True)), now=0.0)
    return pool.snapshot()


def request(priority=-1, **more):
    return isched.InferenceRequest(request_id="r", priority=priority, **more)


@given(st.lists(st.none() | st.tuples(st.integers(0, 20), st.just(1), st.floats(0, 1)), max_size=5), st.integers(-3, 3))
def test_only_the_sheddable_are_turned_away_and_the_more_the_fuller(said, priority):
    admitter, endpoints = ProbabilisticAdmitter(), servers(*said)
    loads = [1.0 if each is None else max(each[0] / 5, each[2] / 0.8) for each in said]
    level = sum(loads) / len(loads) if loads else 0.0
    assert admitter.saturation(endpoints) == pytest.approx(level)
    wanted = min(300 * level**5, 1.0) if said and priority < 0 else 0.0
    chance = rng()
    denied = sum(
        admitter.admit(request(priority), endpoints, CYCLE._replace(rng=chance)) is not None for _ in range(200)
    )
    assert abs(denied / 200 - wanted) < 0.2
    if wanted in (0.0, 1.0):
        assert denied == 200 * wanted


@pytest.mark.parametrize(
    ("headrooms", "said", "denied"),
    [
        ([(-0.1, -0.1), (-0.2, 0.1)], [(0, 1, 0.5), (0, 1, 0.5)], True),
        ([(-0.1, -0.1), (0.1, 0.1)], [(0, 1, 0.5), (0, 1, 0.5)], False),
        ([(-0.1, -0.1), (-0.1, 0.1)], [(0, 1, 0.5), (0, 0, 0.5)], False),
        ([(-0.1, -0.1), (-0.1, 0.1)], [(0, 1, 0.5), (0, 1, 0.01)], False),
        ([(np.nan, np.nan)] * 2, [(0, 1, 0.5), (0, 1, 0.5)], False),
        ([(-0.1, -0.1), (np.nan, np.nan)], [(0, 1, 0.5), None], True),
    ],
)
def test_who_could_not_be_in_time_is_turned_away(headrooms, said, denied):
    columns = {
        signal: np.array([each[i] for each in headrooms]) for i, signal in enumerate((TTFT_HEADROOM, TPOT_HEADROOM))
    }
    endpoints = servers(*said).with_columns(columns)
    admitter = LatencySloAdmitter()
    hurried = request(slo_ttft=0.1)
    assert (admitter.admit(hurried, endpoints, CYCLE) is not None) == denied
    assert admitter.admit(request(headers={"x-slo-ttft-ms": "100"}), endpoints, CYCLE) == admitter.admit(
        hurried, endpoints, CYCLE
    )
    assert admitter.admit(request(), endpoints, CYCLE) is None
    assert admitter.admit(request(0, slo_ttft=0.1), endpoints, CYCLE) is None
    assert admitter.admit(hurried, servers(*said), CYCLE) is None


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("if-available", True),
        ("wait=1, IF-AVAILABLE ;x", True),
        ("available", False),
        ("", False),
        ("if-available-x", False),
    ],
)
def test_a_preference_is_read_as_its_standard_says(said, wanted):
    assert prefers({"prefer": said}, "if-available") == wanted


def test_who_wants_only_what_is_cached_gets_nothing_else():
    producer, pool = ApproximatePrefixProducer(block_size=4, seed=7), fleet("a", "b")
    scheduler = isched.Scheduler(isched.default_profile(), producers=(producer,))
    asks = request(0, tokens=np.arange(40, dtype=np.uint32), headers={"prefer": "if-available"})
    check = ConditionalDecode()

    def decide():
        return scheduler.schedule(asks, pool.snapshot(), now=1.0, rng=rng())

    cold = decide()
    assert not has_cached_prefix(cold)
    assert check.before_request(asks, cold).status == 412
    assert check.before_request(request(0), cold) is None
    scheduler.reserve(cold, pool, now=1.0)
    assert has_cached_prefix(decide())
    assert check.before_request(asks, decide()) is None


def test_a_scheduler_asks_admitters_where_the_columns_are():
    producer, pool = ApproximatePrefixProducer(block_size=4, seed=7), fleet("a")

    class Sees:
        def admit(self, request, endpoints, cycle):
            self.columns = endpoints[isched.PREFIX_MATCH].tolist()

    sees, denies = Sees(), Says("full", 503)
    scheduler = isched.Scheduler(isched.default_profile(), producers=(producer,))
    asks = request(0, tokens=np.arange(8, dtype=np.uint32))
    scheduler.schedule(asks, pool.snapshot(), now=1.0, rng=rng(), admitters=(sees,))
    assert sees.columns == [0.0]
    with pytest.raises(AdmissionDeniedError, match="Says: full") as denied:
        scheduler.schedule(asks, pool.snapshot(), now=1.0, rng=rng(), admitters=(sees, denies, Says("never asked")))
    assert denied.value.status == 503
    plain = isched.Scheduler(isched.default_profile())
    with pytest.raises(AdmissionDeniedError):
        plain.schedule(asks, pool.snapshot(), now=1.0, rng=rng(), admitters=(denies,))


def test_a_configuration_names_them():
    loaded = load(
        {
            "apiVersion": "llm-d.ai/v1alpha1",
            "kind": "EndpointPickerConfig",
            "plugins": [
                {"type": "probabilistic-admitter", "parameters": {"queueDepthThreshold": 7}},
                {"type": "latency-slo-admitter"},
                {"type": "predicted-latency-producer"},
            ],
        }
    )
    assert loaded.admitters == (ProbabilisticAdmitter(queue_depth=7.0), LatencySloAdmitter())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProbabilisticAdmitter(power=0.0),
        lambda: ProbabilisticAdmitter(k=np.inf),
        lambda: LatencySloAdmitter(2.0),
    ],
)
def test_settings_that_are_none(make):
    with pytest.raises(InvalidInputError):
        make()
