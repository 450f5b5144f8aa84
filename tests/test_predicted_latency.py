"""Latencies foretold: what is learnt is what was there, what is modelled is what the simulated server does."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import inferencesched as isched
from inferencesched.producers.forecast import (
    CONTEXT,
    FEATURES,
    INPUT,
    KV_USAGE,
    QUEUED,
    REQUESTS,
    UNCACHED,
    WAITING,
    LatencyOutcome,
    LatencyPrediction,
    StepTimePredictor,
)
from inferencesched.producers.latency import outcome_of
from inferencesched.producers.regression import OnlineLatencyPredictor, QuantileTracker, RecursiveLeastSquares
from inferencesched.signals import PREDICTED_TPOT, PREDICTED_TTFT, TPOT_HEADROOM, TTFT_HEADROOM
from inferencesched.simulator import Cluster, EngineConfig, Traffic, generate
from inferencesched.simulator.engine import step_ms, timing
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.server import Fleet
from inferencesched.simulator.simulation import Simulation

NAN = math.nan

# --- least squares -----------------------------------------------------------------------------------------------

NUMBERS = st.floats(-3, 3)


@settings(max_examples=60)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=25), st.sampled_from([1e-3, 1.0]))
def test_without_forgetting_it_is_ridge_regression(rows, ridge):
    line = RecursiveLeastSquares(2, forgetting=1.0, ridge=ridge)
    for first, second, value in rows:
        line.observe(np.array([first, second]), value)
    x, y = np.array([row[:2] for row in rows]), np.array([row[2] for row in rows])
    expected = np.linalg.solve(ridge * np.eye(2) + x.T @ x, x.T @ y)
    assert line.coefficients == pytest.approx(expected, abs=1e-6)


def test_known_coefficients_are_recovered_and_their_drift_is_followed():
    rng = np.random.default_rng(5)
    line = RecursiveLeastSquares(4, forgetting=0.99)
    for truth in (np.array([1.0, 2.0, -0.5, 3.0]), np.array([0.5, 4.0, 1.5, -1.0])):
        for _ in range(1500):
            x = np.append(1.0, rng.random(3))
            line.observe(x, float(truth @ x + 0.05 * rng.standard_normal()))
        assert line.coefficients == pytest.approx(truth, abs=0.06)


def test_what_stands_still_neither_blows_up_nor_stops_the_rest_from_being_forgotten():
    """Plain forgetting lets the covariance of a feature that is always 0 or constant grow by 1 / 0.99 each time."""
    rng = np.random.default_rng(6)
    line = RecursiveLeastSquares(3, forgetting=0.99)
    for slope in (1.0, 5.0):
        for _ in range(5000):
            x = rng.random()
            line.observe(np.array([x, 0.0, 0.0]), slope * x)
        assert line.coefficients == pytest.approx([slope, 0.0, 0.0], abs=1e-6)
    eigenvalues = np.linalg.eigvalsh(line.information)
    assert 0.99 * line.ridge <= eigenvalues.min() and eigenvalues.max() < 1.1 / 0.01
    line.observe(np.array([0.5, 1.0, 0.0]), 100.0)  # one odd observation, in a direction never seen
    assert line.coefficients[0] == pytest.approx(5.0, abs=0.1)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e9, 1e9)), max_size=60))
def test_it_stays_finite(rows):
    line = RecursiveLeastSquares(3, forgetting=0.95)
    for x, value in rows:
        line.observe(np.array([1.0, x, x]), value)  # the last two never differ
    assert np.isfinite(line.coefficients).all()
    assert np.isfinite(line.information).all()


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_what_is_no_number_teaches_nothing(bad):
    line = RecursiveLeastSquares(2)
    line.observe(np.array([1.0, 2.0]), 3.0)
    before = line.coefficients.tolist()
    line.observe(np.array([1.0, bad]), 1.0)
    line.observe(np.array([1.0, 1.0]), bad)
    assert line.coefficients.tolist() == before


# --- quantiles ---------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]), st.sampled_from([0.1, 2.0])
)
def test_coverage_is_within_the_bound_whatever_comes(values, quantile, step):
    tracker = QuantileTracker(quantile, step=step)
    covered = 0
    for value in values:
        covered += value <= tracker.value
        tracker.observe(value)
    assert abs(covered / len(values) - quantile) <= (10 / step + 1) / len(values) + 1e-9


def learnt(predictor, rng, count, truth, noise):
    """Let it see `count` outcomes of a known law; return what it would have said of the second half, and what came."""
    said = []
    for number in range(count):
        features = np.zeros(FEATURES)
        features[INPUT] = features[UNCACHED] = rng.integers(50, 4000)
        features[QUEUED], features[REQUESTS] = rng.integers(0, 30_000), rng.integers(0, 40)
        features[CONTEXT], features[KV_USAGE] = rng.integers(0, 200_000), rng.random()
        features[WAITING] = rng.integers(0, 10)
        ttft = truth(features) * (1.0 + noise * rng.standard_exponential())
        tpot = 0.01 + 1e-3 * features[REQUESTS] + 1e-7 * features[CONTEXT]
        if number >= count // 2:
            foretold = predictor.predict(features[:, None])
            said.append((foretold.ttft[0], ttft, foretold.tpot[0], tpot))
        predictor.observe(features, LatencyOutcome(ttft, tpot))
    return np.array(said)


def law(features):
    """Seconds: 20 ms, 40 us a token, 60 ns a pair of ten thousand, 35 us a token before it, 1 ms a request."""
    pairs = features[UNCACHED] * (features[INPUT] - 0.5 * features[UNCACHED])
    return 0.02 + 4e-5 * features[UNCACHED] + 6e-10 * pairs + 3.5e-5 * features[QUEUED] + 1e-3 * features[REQUESTS]


def test_a_known_law_is_foretold():
    said = learnt(OnlineLatencyPredictor(), np.random.default_rng(7), 600, law, 0.0)
    assert np.abs(said[:, 0] / said[:, 1] - 1.0).max() < 0.01
    assert np.abs(said[:, 2] / said[:, 3] - 1.0).max() < 0.01


@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_a_quantile_is_not_exceeded_as_often_as_it_says(quantile):
    said = learnt(OnlineLatencyPredictor(quantile=quantile), np.random.default_rng(8), 2500, law, 0.3)
    assert abs((said[:, 1] <= said[:, 0]).mean() - quantile) < 0.02


def test_a_server_that_slows_down_is_noticed():
    predictor, rng = OnlineLatencyPredictor(forgetting=0.99), np.random.default_rng(9)
    learnt(predictor, rng, 800, law, 0.05)
    said = learnt(predictor, rng, 1200, lambda features: 2.0 * law(features), 0.05)
    assert (said[:, 0] / said[:, 1]).mean() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize(("quantile", "first"), [(None, 20), (0.9, 40)])
def test_before_it_is_warm_it_says_nothing(quantile, first):
    predictor, rng = OnlineLatencyPredictor(quantile=quantile), np.random.default_rng(1)
    for count in range(first):
        assert predictor.learnt == (count, count)
        assert np.isnan(predictor.predict(np.zeros((FEATURES, 2))).ttft).all()
        learnt(predictor, rng, 1, law, 0.1)
    assert np.isfinite(predictor.predict(np.zeros((FEATURES, 2)))).all()


def test_what_a_server_does_not_tell_is_taken_for_its_mean():
    predictor = OnlineLatencyPredictor()
    learnt(predictor, np.random.default_rng(2), 400, law, 0.1)
    features = np.full((FEATURES, 3), 100.0)
    features[[WAITING, KV_USAGE], 1] = NAN
    features[INPUT:QUEUED, 2] = NAN
    foretold = predictor.predict(features)
    assert np.isfinite(foretold.ttft[:2]).all() and np.isnan(foretold.ttft[2])
    assert predictor.predict(features[:, 1:2]).ttft[0] == foretold.ttft[1]  # a matter of its own column
    with pytest.raises(isched.InvalidInputError, match="quantile: got 1.0"):
        OnlineLatencyPredictor(quantile=1.0)
    with pytest.raises(isched.InvalidInputError, match="forgetting: got 0.0"):
        OnlineLatencyPredictor(forgetting=0.0)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_predictions_are_never_below_zero(seed):
    rng = np.random.default_rng(seed)
    predictor = OnlineLatencyPredictor(warm_after=5)
    learnt(predictor, rng, 40, lambda features: 1e-3 * rng.random(), 0.5)
    assert (predictor.predict(rng.random((FEATURES, 20)) * 1e4).ttft >= 0).all()


# --- step times --------------------------------------------------------------------------------------------------

TIMINGS = ["llama-3.1-8b-h100", "dynamo-mocker"]


def served(name, prompts, config, outputs=4):
    """When does each of these prompts, sent to one simulated server at once, get its first token? ms."""
    count = len(prompts)
    fleet = Fleet(
        servers=1,
        config=config,
        timing=timing(name),
        input_tokens=np.array(prompts),
        output_tokens=np.full(count, outputs),
        blocks=np.arange(sum(-(-p // config.block_size) for p in prompts), dtype=np.int64) + 1,
        offsets=np.cumsum([0, *(-(-p // config.block_size) for p in prompts)]),
    )
    for i in range(count):
        fleet.enqueue(i, 0, 0.0)
    fleet.advance(math.inf)
    return fleet.first_token.tolist()


def queue(prompts):
    """The features of each of these prompts behind those before it, none of which has its first token."""
    features = np.zeros((FEATURES, len(prompts)))
    features[INPUT] = features[UNCACHED] = prompts
    features[QUEUED] = features[CONTEXT] = np.cumsum([0, *prompts[:-1]])
    features[REQUESTS] = np.arange(len(prompts))
    return features


@pytest.mark.parametrize("name", TIMINGS)
@pytest.mark.parametrize("tokens", [1, 100, 8192, 8193, 20_000])
def test_on_an_idle_server_the_forecast_is_exact(name, tokens):
    config = EngineConfig()
    predictor = StepTimePredictor(timing(name), config.max_tokens, config.kv_tokens)
    assert predictor.predict(queue([tokens])).ttft * 1e3 == pytest.approx(served(name, [tokens], config), rel=1e-9)


@pytest.mark.parametrize("name", TIMINGS)
@settings(max_examples=15, deadline=None)
@given(prompts=st.lists(st.integers(1, 3000), min_size=2, max_size=12))
def test_behind_others_the_forecast_is_within_one_full_step(name, prompts):
    """Who shares the last step is not known; a prompt in it may be begun before the queue is empty."""
    config = EngineConfig(max_tokens=2048)
    predictor = StepTimePredictor(timing(name), config.max_tokens, config.kv_tokens)
    real = np.array(served(name, prompts, config, outputs=1))
    full = step_ms(timing(name), prefill=((max(prompts), config.max_tokens),), config=config)
    assert (np.abs(predictor.predict(queue(prompts)).ttft * 1e3 - real) <= full).all()


@pytest.mark.parametrize("name", TIMINGS)
def test_a_step_takes_what_the_simulator_says(name):
    config = EngineConfig()
    predictor = StepTimePredictor(timing(name), config.max_tokens, config.kv_tokens)
    for decoding in (0, 1, 7):
        features = np.zeros((FEATURES, 1))
        features[REQUESTS], features[CONTEXT], features[INPUT] = decoding, 500 * decoding, 500
        tpot = predictor.predict(features).tpot[0] * 1e3
        assert tpot == pytest.approx(step_ms(timing(name), decode=(500,) * (decoding + 1), config=config), rel=1e-9)


@settings(max_examples=40)
@given(st.integers(0, 10), st.integers(0, 2**32 - 1))
def test_more_work_is_never_foretold_to_be_done_sooner(row, seed):
    """More of the prompt to compute, or more before it: later, on either model."""
    rng = np.random.default_rng(seed)
    features = np.zeros((FEATURES, 1))
    features[INPUT] = features[UNCACHED] = rng.integers(1, 5000)
    features[QUEUED] = rng.integers(0, 20_000)
    features[CONTEXT] = features[QUEUED] + rng.integers(0, 50_000)
    features[REQUESTS] = rng.integers(1, 30)
    more = features.copy()
    if row % 2:
        more[INPUT] += 100
        more[UNCACHED] += 100
    else:
        more[REQUESTS] += 1
        more[[QUEUED, CONTEXT]] += 3000
    predictor = StepTimePredictor(timing("llama-3.1-8b-h100"), 2048)
    assert predictor.predict(more).ttft[0] >= predictor.predict(features).ttft[0] * 0.999


# --- the producer ------------------------------------------------------------------------------------------------


class Fixed:
    """Foretells what it was told to, and keeps what it sees."""

    def __init__(self, ttft, tpot):
        self.prediction = LatencyPrediction(np.array(ttft), np.array(tpot))
        self.seen = []

    def predict(self, features):
        count = features.shape[1]
        return LatencyPrediction(self.prediction.ttft[:count], self.prediction.tpot[:count])

    def observe(self, features, outcome):
        self.seen.append((features, outcome))


def world(producer, labels=({}, {})):
    pool = isched.InferencePool()
    for name, each in zip("ab", labels, strict=True):
        pool.join(name, labels=each)
    return pool, isched.Scheduler(isched.default_profile(), producers=(producer,)), np.random.default_rng(0)


def columns(producer, pool, **request):
    asked = isched.InferenceRequest(request_id="look", input_tokens=100, **request)
    return producer.produce(asked, pool.snapshot(), isched.CycleState(0.0, np.random.default_rng(0), 0)).columns


def test_headroom_is_objective_less_prediction():
    producer = isched.PredictedLatencyProducer(Fixed([0.1, 0.3], [0.02, 0.04]), streaming=True, slo_buffer_factor=0.9)
    pool, _, _ = world(producer)
    said = columns(producer, pool, slo_ttft=0.2, slo_tpot=0.03)
    assert said[PREDICTED_TTFT].tolist() == [0.1, 0.3] and said[PREDICTED_TPOT].tolist() == [0.02, 0.04]
    assert said[TTFT_HEADROOM] == pytest.approx([0.1, -0.1])
    assert said[TPOT_HEADROOM] == pytest.approx([0.007, -0.013])
    by_header = columns(producer, pool, headers={"x-llm-d-slo-ttft-ms": "200", "x-slo-tpot-ms": "30"})
    assert by_header[TTFT_HEADROOM] == pytest.approx([0.1, -0.1])
    assert by_header[TPOT_HEADROOM] == pytest.approx([0.007, -0.013])
    assert columns(producer, pool)[TTFT_HEADROOM].tolist() == [-0.1, -0.3]  # no objective: missed, and still an order


def test_time_per_token_counts_only_where_tokens_are_seen():
    roles = ({"role": "prefill"}, {"role": "decode"})
    producer = isched.PredictedLatencyProducer(
        Fixed([0.1, 0.3], [0.02, NAN]), streaming=True, endpoint_role_label="role"
    )
    said = columns(producer, world(producer, roles)[0], slo_tpot=0.01)[TPOT_HEADROOM]
    assert said[0] == 0.0 and math.isnan(said[1])
    plain = isched.PredictedLatencyProducer(Fixed([0.1, NAN], [0.02, NAN]))
    said = columns(plain, world(plain)[0], slo_tpot=0.01)[TPOT_HEADROOM]
    assert said[0] == 0.0 and math.isnan(said[1])
    mute = isched.PredictedLatencyProducer(Fixed([0.1, 0.1], [0.02, 0.02]), predict=False)
    assert all(np.isnan(column).all() for column in columns(mute, world(mute)[0]).values())


def test_the_strictest_of_those_who_run_there_counts_until_they_end():
    producer = isched.PredictedLatencyProducer(Fixed([0.1, 0.1], [0.02, 0.02]), streaming=True)
    pool, scheduler, rng = world(producer)
    running = [
        scheduler.schedule_and_reserve(
            isched.InferenceRequest(request_id=str(i % 2), input_tokens=1, slo_tpot=objective),
            pool,
            now=0.0,
            rng=rng,
            exclude=("b",),
        )
        for i, objective in enumerate((0.03, 0.025, 0.05))
    ]
    assert columns(producer, pool, slo_tpot=0.04)[TPOT_HEADROOM] == pytest.approx([0.005, 0.02])
    assert columns(producer, pool, slo_tpot=0.01)[TPOT_HEADROOM] == pytest.approx([-0.01, -0.01])
    running[1].complete(now=1.0)
    assert columns(producer, pool, slo_tpot=0.04)[TPOT_HEADROOM] == pytest.approx([0.01, 0.02])
    running[0].fail(now=1.0)
    running[2].complete(now=1.0)
    assert columns(producer, pool, slo_tpot=0.04)[TPOT_HEADROOM] == pytest.approx([0.02, 0.02])


def test_it_learns_from_the_endpoint_that_answered():
    predictor = Fixed([0.1, 0.1], [0.02, 0.02])
    producer = isched.PredictedLatencyProducer(predictor, streaming=True)
    pool, scheduler, rng = world(producer)
    pool.observe("a", {isched.WAITING_QUEUE_SIZE: 3.0}, now=0.0)
    pool.observe("b", {isched.WAITING_QUEUE_SIZE: 8.0}, now=0.0)
    request = isched.InferenceRequest(request_id="r", input_tokens=100)
    booked = scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng)
    assert booked.endpoint == "a"
    booked.first_token(now=0.5)
    booked.complete(isched.Usage(100, 11, 0), now=1.5)
    moved = scheduler.schedule_and_reserve(request, pool, now=2.0, rng=rng)
    moved.served_by("b", now=2.1)
    moved.first_token(now=2.3)
    moved.fail(now=2.4)
    (features, outcome), (elsewhere, early) = predictor.seen
    assert features[[INPUT, UNCACHED, WAITING]].tolist() == [100, 100, 3]
    assert outcome == pytest.approx((0.5, 0.1))
    assert elsewhere[WAITING] == 8.0 and early[0] == pytest.approx(0.3) and math.isnan(early[1])


def test_outcomes():
    whole = isched.Settlement("r", "a", "completed", "", 10, 5, 1.0, 1.5, 2.5, isched.Usage(10, 11, 0))
    assert outcome_of(whole) == (0.5, 0.1)
    assert outcome_of(whole._replace(usage=None)) == (0.5, 0.25)  # by what the gateway counted
    assert math.isnan(outcome_of(whole._replace(usage=isched.Usage(10, 1, 0))).tpot)
    assert math.isnan(outcome_of(whole._replace(outcome="failed")).tpot)
    unseen = whole._replace(first_token_at=NAN)
    assert all(map(math.isnan, outcome_of(unseen)))
    assert outcome_of(unseen, streaming=False)[0] == 1.5
    assert all(map(math.isnan, outcome_of(unseen._replace(outcome="expired"), streaming=False)))


@pytest.mark.parametrize("said", ["soon", "nan", "-1", "inf"])
def test_a_header_that_is_no_time_is_refused(said):
    with pytest.raises(isched.InvalidInputError, match="x-llm-d-slo-ttft-ms: got"):
        isched.objectives_of({"x-llm-d-slo-ttft-ms": said})


def test_such_a_header_refuses_its_own_request_only():
    producer = isched.PredictedLatencyProducer(Fixed([0.1, 0.1], [0.02, 0.02]))
    pool, scheduler, rng = world(producer)
    asked = ({}, {"x-slo-tpot-ms": "soon"}, {})
    requests = [isched.InferenceRequest(request_id=str(i), headers=headers) for i, headers in enumerate(asked)]
    first, refused, third = scheduler.schedule_many(requests, pool, now=0.0, rng=rng)
    assert (first.request_id, third.request_id) == ("0", "2")
    assert isinstance(refused, isched.UnreadableHeaderError)
    assert (refused.status, refused.outcome, refused.parameter) == (400, "unreadable_header", "x-slo-tpot-ms")


@pytest.mark.parametrize("objective", ["slo_ttft", "slo_tpot"])
@pytest.mark.parametrize("value", [0.0, -1.0, NAN, math.inf])
def test_an_objective_is_a_finite_time(objective, value):
    with pytest.raises(isched.InvalidInputError, match=f"{objective}: got {value}, allowed: a finite"):
        isched.InferenceRequest(request_id="r", **{objective: value})


class Interrupted(float):
    """An objective, and what another thread does while it is compared."""

    meanwhile = ()

    def __lt__(self, other):
        todo, type(self).meanwhile = self.meanwhile, ()
        for each in todo:
            each()
        return float(self) < float(other)


def test_who_is_sent_away_while_others_are_looked_at_does_not_disturb_them():
    producer = isched.PredictedLatencyProducer(Fixed([0.1, 0.1], [0.02, 0.02]), streaming=True)
    pool, scheduler, rng = world(producer)

    def book(number, objective):
        request = isched.InferenceRequest(request_id=str(number), input_tokens=1, slo_tpot=objective)
        return scheduler.schedule_and_reserve(request, pool, now=0.0, rng=rng, exclude=("b",))

    running = [book(number, Interrupted(0.05)) for number in range(3)]
    Interrupted.meanwhile = (lambda: book(4, 0.03), lambda: running[1].complete(now=1.0))
    assert columns(producer, pool, slo_tpot=0.06)[TPOT_HEADROOM] == pytest.approx([0.03, 0.04])
    assert Interrupted.meanwhile == ()
    assert columns(producer, pool, slo_tpot=0.06)[TPOT_HEADROOM] == pytest.approx([0.01, 0.04])


def test_headers():
    assert isched.objectives_of({}) == (None, None)
    assert isched.objectives_of({"x-llm-d-slo-ttft-ms": "0", "x-slo-tpot-ms": " "}) == (None, None)
    both = {"x-llm-d-slo-ttft-ms": "100", "x-slo-ttft-ms": "900"}
    assert isched.objectives_of(both).ttft == 0.1
    with pytest.raises(isched.InvalidInputError, match="slo_buffer_factor: got 0.0"):
        isched.PredictedLatencyProducer(Fixed([0.1], [0.1]), slo_buffer_factor=0.0)


# --- in the simulator --------------------------------------------------------------------------------------------


class Watched:
    """A predictor that notes what it would have said before it learns what came."""

    def __init__(self, predictor):
        self.predictor = predictor
        self.rows = []

    def predict(self, features):
        return self.predictor.predict(features)

    def observe(self, features, outcome):
        said = self.predictor.predict(features[:, None])
        self.rows.append((said.ttft[0], outcome.ttft))
        self.predictor.observe(features, outcome)


@pytest.mark.parametrize("kind", ["step time", "mean", "quantile"])
def test_in_the_simulator_what_is_foretold_comes(kind, record_property):
    """Four servers under llm-d's default policy, signals 50 ms old; a correlation of 0.9 and more is what was seen."""
    watched = []

    def build(fleet):
        config = fleet.config
        predictor = {
            "step time": lambda: StepTimePredictor(timing("llama-3.1-8b-h100"), config.max_tokens, config.kv_tokens),
            "mean": OnlineLatencyPredictor,
            "quantile": lambda: OnlineLatencyPredictor(quantile=0.9),
        }[kind]()
        watched.append(Watched(predictor))
        prefixes = isched.ApproximatePrefixProducer(block_size=config.block_size, capacity=config.kv_blocks)
        producer = isched.PredictedLatencyProducer(watched[0], streaming=True)
        return isched.Scheduler(isched.default_profile(), producers=(producer, prefixes))

    cluster = replace(Cluster(servers=4), timing=timing("llama-3.1-8b-h100"))
    simulation = Simulation(
        generate(Traffic(requests=600, rate=10), seed=1), Policy("watched", "", build, True), cluster
    )
    for _ in range(len(simulation.workload)):
        simulation.step()
    simulation.finish()
    rows = np.array(watched[0].rows)
    said, came = rows[np.isfinite(rows).all(axis=1)].T
    assert len(came) > 500
    correlation = float(np.corrcoef(said, came)[0, 1])
    record_property("correlation of predicted and realised time to first token", correlation)
    assert correlation > 0.8
    if kind == "quantile":
        assert 0.84 < (came <= said).mean() < 0.96
    else:
        assert abs((said - came).mean()) < 0.15 * came.mean()
