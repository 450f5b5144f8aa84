"""Signals: what is counted, how it is read, what a server's page says, how many servers would be right."""

import json
import re
from math import inf, isnan, nan

import hypothesis.strategies as st
import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import inferencesched as isched
from inferencesched.adapters.prometheus import RegistryCollector
from inferencesched.errors import InvalidInputError, MetricsPageError, UnknownNameError
from inferencesched.flowcontrol import Capacity, FlowController, PriorityBand, QueueItem
from inferencesched.observability import (
    FAMILIES,
    Autoscaler,
    BoundedLabel,
    EngineMetrics,
    Family,
    MetricsExtractor,
    MetricsSink,
    Registry,
    ScalingPolicy,
    Sinks,
    dashboard,
    desired_replicas,
    exposition,
    external_metrics,
    family,
    parse_metric_spec,
    parse_page,
    recommended,
)
from inferencesched.observability.events import (
    Dequeued,
    Ended,
    Enqueued,
    FirstToken,
    Labels,
    OutputTokens,
    Received,
    Refused,
    Rewritten,
    Scheduled,
    Started,
)
from inferencesched.observability.families import LEFT_OUT, PREFIX
from inferencesched.request import Usage
from tests.director_parts import Gate
from tests.naive_metrics import NaiveRegistry
from tests.shared import shared

LABELS = Labels("llama", "llama-8b", "acme", 1, "pool", "acme")
KEY = ("llama", "llama-8b", "acme", "1")


# --- families ----------------------------------------------------------------------------------------------------

REFERENCE = {
    "request_total": ("counter", "model_name target_model_name fairness_id priority", None),
    "request_error_total": ("counter", "model_name target_model_name fairness_id priority error_code", None),
    "request_ttft_seconds": (
        "histogram",
        "model_name target_model_name fairness_id priority streaming",
        (0.005, 120, 24),
    ),
    "request_duration_seconds": ("histogram", "model_name target_model_name fairness_id priority", (0.005, 3600, 35)),
    "request_size_bytes": ("histogram", "model_name target_model_name fairness_id priority", (64, 2**30, 25)),
    "response_size_bytes": ("histogram", "model_name target_model_name fairness_id priority", (1, 65536, 15)),
    "request_input_tokens": ("histogram", "model_name target_model_name fairness_id priority", (1, 1048576, 19)),
    "request_output_tokens": ("histogram", "model_name target_model_name fairness_id priority", (1, 8192, 12)),
    "request_streaming_tpot_seconds": (
        "histogram",
        "model_name target_model_name fairness_id priority",
        (0.0005, 2, 19),
    ),
    "request_streaming_itl_seconds": ("histogram", "model_name target_model_name fairness_id priority", (0.001, 2, 15)),
    "request_ntpot_seconds": ("histogram", "model_name target_model_name fairness_id priority", (0.001, 10, 13)),
    "flow_control_request_queue_duration_seconds": (
        "histogram",
        "fairness_id priority outcome inference_pool model_name target_model_name",
        (0.0001, 60, 16),
    ),
    "flow_control_queue_size": ("gauge", "fairness_id priority inference_pool model_name target_model_name", None),
    "flow_control_pool_saturation": ("gauge", "inference_pool stage", None),
    "scheduler_attempts_total": ("counter", "status target_model_name endpoint_name namespace port", None),
    "model_rewrite_decisions_total": ("counter", "model_rewrite_name model_name target_model", None),
    "average_queue_size": ("gauge", "name", None),
    "per_endpoint_queue_size": ("gauge", "name model_server_endpoint", None),
}


@pytest.mark.parametrize("name", REFERENCE)
def test_a_family_has_the_references_name_labels_and_buckets(name):
    kind, labels, buckets = REFERENCE[name]
    found = family(name)
    assert (found.kind, found.labels) == (kind, tuple(labels.split()))
    assert (found.buckets[0], found.buckets[-1], len(found.buckets)) == buckets if buckets else not found.buckets


def test_every_family_of_the_references_table_is_here_or_left_out_with_a_reason():
    text = shared("reference/flow-control.md").read_text(encoding="utf-8")
    table = text[text.index("| Name | Type | Labels | Buckets |") :].partition("\n\n")[0]
    names = set()
    for row in table.splitlines()[2:]:
        cell = row.split("|")[1].replace("**", "").replace("{code}", "").split("(")[0]
        for part in re.split(r"[,;/]\s+| / ", cell.replace(" and ", ", ")):
            name = part.strip().strip("`")
            choice = re.fullmatch(r"(\w*)\{([\w,]+)\}(\w*)", name)
            names.update(f"{choice[1]}{each}{choice[3]}" for each in choice[2].split(",")) if choice else names.add(
                name
            )
    known = {name.removeprefix(PREFIX) for name in FAMILIES} | set(LEFT_OUT)
    missing = {name for name in names if re.fullmatch(r"[a-z_]{6,}", name) and name not in known}
    shortened = {name for name in missing if any(each.endswith(name) for each in known)}
    assert not missing - shortened


def test_a_family_that_is_none():
    for make in (
        lambda: Family("x", "gauge", "", (), (1.0,)),
        lambda: Family("x", "histogram", ""),
        lambda: Family("x", "histogram", "", (), (2.0, 1.0)),
    ):
        with pytest.raises(InvalidInputError):
            make()


# --- registry ----------------------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["request_total", "request_running", "request_ttft_seconds", "request_input_tokens"]),
        st.sampled_from(["a", 'b"\\\n', "é"]),
        st.floats(0, 2000),
    ),
    max_size=40,
)


@given(OPERATIONS)
def test_what_is_read_is_what_was_counted(operations):
    registry, twin = Registry(FAMILIES), NaiveRegistry()
    for name, flow, value in operations:
        labels = ("m", "t", flow, "0", *(("true",) if name == "request_ttft_seconds" else ()))
        if family(name).kind == "histogram":
            registry.histogram(name, *labels).observe(value)
            twin.observe(name, labels, value)
        else:
            registry.value(name, *labels).value += value
            twin.add(name, labels, value)
    seen = {}
    for parsed in text_string_to_metric_families(exposition(registry)):
        for sample in parsed.samples:
            seen[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    for (name, labels), value in twin.numbers.items():
        key = tuple(sorted(zip(family(name).labels, labels, strict=True)))
        assert seen[PREFIX + name, key] == pytest.approx(value)
    for (name, labels), values in twin.observed.items():
        said = dict(zip(family(name).labels, labels, strict=True))
        for bound in (*family(name).buckets, inf):
            le = "+Inf" if bound == inf else repr(float(bound))
            key = tuple(sorted({**said, "le": le}.items()))
            assert seen[f"{PREFIX}{name}_bucket", key] == twin.bucket(name, labels, bound)
        assert seen[f"{PREFIX}{name}_count", tuple(sorted(said.items()))] == len(values)
        assert seen[f"{PREFIX}{name}_sum", tuple(sorted(said.items()))] == pytest.approx(sum(values))
    shown = CollectorRegistry()
    shown.register(RegistryCollector(registry))
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for parsed in text_string_to_metric_families(generate_latest(shown).decode())
        for sample in parsed.samples
    }
    assert theirs == seen


def test_a_registry_knows_its_families_and_their_labels():
    registry = Registry(FAMILIES)
    with pytest.raises(UnknownNameError):
        registry.value("tea_total")
    with pytest.raises(InvalidInputError, match="labels"):
        registry.value("request_total", "a")
    with pytest.raises(InvalidInputError, match="histogram"):
        registry.histogram("request_total", *KEY)
    with pytest.raises(InvalidInputError, match="counter"):
        registry.value("request_duration_seconds", *KEY)
    with pytest.raises(UnknownNameError):
        registry.remove("request_total", colour="red")
    registry.value("request_total", *KEY)
    assert (registry.remove("request_total", priority="1"), len(registry)) == (1, 0)


def test_a_computed_gauge_is_asked_when_somebody_reads():
    registry, asked = Registry(FAMILIES), []

    def read():
        asked.append(1)
        return {("a",): 3.0, ("b",): nan}

    registry.computed("ready_endpoints", read)
    assert not asked
    assert exposition(registry).splitlines()[-1] == 'llm_d_epp_ready_endpoints{name="a"} 3.0'


def test_labels_that_clients_choose_are_bounded():
    sink = MetricsSink(most_flows=3, most_models=2, pinned_models=["llama"])
    for i in range(100):
        sink.emit(Received(f"r{i}", Labels(f"m{i}", "llama", f"f{i}", 0, "p"), 10, 1.0))
    total = [sample.labels for sample in sink.registry.samples(family("request_total"))]
    assert {dict(labels)["fairness_id"] for labels in total} == {"f0", "f1", "f2", "other"}
    assert {dict(labels)["model_name"] for labels in total} == {"m0", "m1", "other"}
    assert {dict(labels)["target_model_name"] for labels in total} == {"llama"}
    assert len(BoundedLabel(2)) == 0


# --- sink --------------------------------------------------------------------------------------------------------


def value(sink, name, *labels):
    return sink.registry.value(name, *labels).value


def count(sink, name, *labels):
    return sum(sink.registry.histogram(name, *labels).counts)


def test_the_numbers_of_one_request():
    sink, others = MetricsSink(), []

    class Other:
        def emit(self, event):
            others.append(event)

    both = Sinks(sink, Other())
    both.emit(Received("r", LABELS, 512, 1.0))
    both.emit(Rewritten("r", "canary", "llama", "llama-8b"))
    both.emit(Enqueued("r", LABELS, 512, 1.0))
    queue = ("acme", "1", "pool", "llama", "llama-8b")
    assert value(sink, "flow_control_queue_size", *queue) == 1
    assert value(sink, "flow_control_queue_bytes", *queue) == 512
    both.emit(Dequeued("r", LABELS, 512, "dispatched", 0.25))
    both.emit(Scheduled("r", LABELS, "success", "ep-0", "10.0.0.1:8000", 0.0001, 20, 16))
    both.emit(Started("r", LABELS, "ep-0", 1, 1.25))
    assert value(sink, "request_running", *KEY) == 1
    both.emit(FirstToken("r", LABELS, "ep-0", True, 0.5))
    both.emit(OutputTokens("r", LABELS, 1, 0.02))
    both.emit(Ended("r", LABELS, "ep-0", "completed", "", True, Usage(20, 5, 16), 2.5, 0.5, 900, 3.5))
    assert len(others) == 9
    assert value(sink, "request_total", *KEY) == 1
    assert value(sink, "request_running", *KEY) == value(sink, "flow_control_queue_size", *queue) == 0
    assert value(sink, "flow_control_queue_bytes", *queue) == 0
    assert value(sink, "model_rewrite_decisions_total", "canary", "llama", "llama-8b") == 1
    assert value(sink, "scheduler_attempts_total", "success", "llama-8b", "ep-0", "", "8000") == 1
    assert value(sink, "flow_control_requests_total", "Dispatched", "1", "pool") == 1
    for name in ("request_duration_seconds", "request_input_tokens", "request_cached_tokens", "request_output_tokens"):
        assert count(sink, name, *KEY) == 1
    assert sink.registry.histogram("request_streaming_tpot_seconds", *KEY).sum == pytest.approx(0.5)
    assert sink.registry.histogram("request_ntpot_seconds", *KEY).sum == pytest.approx(0.5)
    assert sink.registry.histogram("request_processing_duration_seconds").sum == pytest.approx(0.25)
    assert not list(sink.registry.samples(family("request_error_total")))


def test_errors_have_the_references_codes():
    sink = MetricsSink()
    sink.emit(Received("r", LABELS, 1, 1.0))
    sink.emit(Refused("r", LABELS, "rate_limited", 429, "ResourceExhausted", 1.0))
    sink.emit(Ended("s", LABELS, "ep-0", "failed", "ServiceUnavailable", False, Usage(), 1.0, None, None, 2.0))
    assert value(sink, "request_error_total", *KEY, "ResourceExhausted") == 1
    assert value(sink, "request_error_total", *KEY, "ServiceUnavailable") == 1
    assert not sink._received


def test_a_pool_that_says_nothing_has_no_mean():
    sink, pool = MetricsSink(), isched.InferencePool()
    pool.join("a")
    pool.join("b")
    pool.observe("a", {isched.WAITING_QUEUE_SIZE: 3.0}, now=1.0)
    sink.observe_pool("p", pool.snapshot())
    text = exposition(sink.registry)
    assert 'llm_d_epp_average_queue_size{name="p"} 3.0' in text
    assert 'llm_d_epp_ready_endpoints{name="p"} 2.0' in text
    assert 'per_endpoint_queue_size{name="p",model_server_endpoint="a"} 3.0' in text
    assert "kv_cache" not in text
    assert 'endpoint="b"' not in text


def test_a_queue_without_a_cap_has_no_share():
    sink = MetricsSink()
    controller = FlowController(gate=Gate(0), default=PriorityBand(0, capacity=Capacity(4, 100)))
    controller.submit(QueueItem(request_id="r", size_bytes=50), 1.0)
    sink.observe_queue("p", controller, {"decode": 0.5, "prefill": nan})
    text = exposition(sink.registry)
    assert 'capacity_utilization_requests{priority="0",inference_pool="p"} 0.25' in text
    assert 'capacity_utilization_bytes{priority="0",inference_pool="p"} 0.5' in text
    assert "global" not in text
    assert 'pool_saturation{inference_pool="p",stage="decode"} 0.5' in text
    assert "prefill" not in text


def test_the_dashboard_shows_only_what_there_is():
    board = dashboard()
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    names = {name for query in queries for name in re.findall(rf"{PREFIX}\w+", query)}
    assert names
    for name in names:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert name in FAMILIES or FAMILIES[base].kind == "histogram", name
    labels = {label for query in queries for label in re.findall(r"by \(([\w, ]+)\)", query)}
    known = {label for each in FAMILIES.values() for label in each.labels} | {"le"}
    assert {each.strip() for label in labels for each in label.split(",")} <= known
    assert json.loads(json.dumps(board)) == board
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


# --- pages -------------------------------------------------------------------------------------------------------


def test_a_real_page_gives_the_right_queue_cache_and_adapters():
    page = shared("captures/metrics_vllm_0.32.0_lora_busy.txt").read_bytes()
    reading = MetricsExtractor().read(page)
    assert (reading.engine, reading.missing) == ("vllm", ())
    assert reading.columns == {
        isched.WAITING_QUEUE_SIZE: 0.0,
        isched.RUNNING_REQUESTS: 4.0,
        isched.KV_CACHE_USAGE: 0.0004272526131074983,
        isched.KV_BLOCK_SIZE: 32.0,
        isched.KV_BLOCKS: reading.columns[isched.KV_BLOCKS],
    }
    assert f'num_gpu_blocks="{int(reading.columns[isched.KV_BLOCKS])}"'.encode() in page
    assert reading.adapters == isched.Adapters(frozenset({"english-bot"}), frozenset({"english-bot"}), 2)
    assert (reading.cache_queries, reading.cache_hits) == (3108.0, 448.0)
    assert reading.hit_ratio == pytest.approx(448 / 3108)
    assert reading.started_at == 1.79533433602e09
    pool = isched.InferencePool()
    pool.join("a")
    pool.observe("a", reading.columns, now=0.0, adapters=reading.adapters)
    assert pool.snapshot()[isched.RUNNING_REQUESTS].tolist() == [4.0]
    theirs = {
        sample.name: sample.value
        for parsed in text_string_to_metric_families(page.decode())
        for sample in parsed.samples
        if sample.name == "vllm:num_requests_running"
    }
    assert theirs == {"vllm:num_requests_running": 4.0}


@pytest.mark.parametrize(
    "page", ["", "python_info 1\n", "# vllm:num_requests_waiting 3\n", "xvllm:num_requests_waiting 3\n"]
)
def test_a_page_with_nothing_known_is_an_error_and_not_a_server_that_looks_idle(page):
    with pytest.raises(MetricsPageError, match="vllm"):
        MetricsExtractor().read(page)


def test_ranks_are_added_up_and_what_is_missing_is_said():
    page = 'vllm:num_requests_waiting{engine="0"} 2\nvllm:num_requests_waiting{engine="1"} 3\nvllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.4\n'
    reading = MetricsExtractor().read(page)
    assert reading.columns[isched.WAITING_QUEUE_SIZE] == 5
    assert reading.columns[isched.KV_CACHE_USAGE] == pytest.approx(0.3)
    assert isched.RUNNING_REQUESTS not in reading.columns
    assert set(reading.missing) == {"running", "block_size", "num_blocks"}
    assert (reading.adapters, reading.cache_hits, reading.hit_ratio, reading.started_at) == (None, None, None, None)


def test_older_names_and_other_engines():
    extractor = MetricsExtractor()
    assert (
        extractor.read("vllm:num_requests_waiting 1\nvllm:gpu_cache_usage_perc 0.5\n").columns[isched.KV_CACHE_USAGE]
        == 0.5
    )
    pages = {
        "sglang": "sglang:num_queue_reqs 1\nsglang:num_running_reqs 2\nsglang:token_usage 0.5\nsglang:page_size 64\nsglang:num_pages 9\n",
        "trtllm-serve": "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.5\ntrtllm_kv_cache_tokens_per_block 64\ntrtllm_kv_cache_max_blocks 9\n",
        "triton-tensorrt-llm": 'nv_trt_llm_request_metrics{request_type="waiting"} 1\nnv_trt_llm_request_metrics{request_type="scheduled"} 2\n'
        + "".join(
            f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="{kind}"}} {said}\n'
            for kind, said in (("fraction", 0.5), ("tokens_per", 64), ("max", 9))
        ),
    }
    for engine, page in pages.items():
        reading = extractor.read(page)
        assert (reading.engine, reading.missing) == (engine, ())
        assert [
            reading.columns[signal]
            for signal in (isched.WAITING_QUEUE_SIZE, isched.RUNNING_REQUESTS, isched.KV_BLOCK_SIZE)
        ] == [1, 2, 64]
    own = EngineMetrics(
        "own", queued=(parse_metric_spec("q{tier=gold}"),), custom={isched.Signal("heat"): parse_metric_spec("heat")}
    )
    reading = MetricsExtractor([own]).read(
        'q{tier="gold"} 7\nq{tier="tin"} 1\nheat 0.5\n', {"llm-d.ai/engine-type": "own"}
    )
    assert {signal.name: said for signal, said in reading.columns.items()} == {"waiting_queue_size": 7.0, "heat": 0.5}


def test_the_accelerators_utilisation_is_a_signal_like_any_other():
    utilisation = isched.Signal("accelerator_utilization", "fraction", high=1.0)
    engine = EngineMetrics(
        "dcgm",
        queued=(parse_metric_spec("vllm:num_requests_waiting"),),
        custom={utilisation: parse_metric_spec("DCGM_FI_PROF_GR_ENGINE_ACTIVE")},
    )
    extractor = MetricsExtractor([engine], default_engine="dcgm")
    pool = isched.InferencePool(signals=(utilisation,))
    for name, busy in (("a", 0.9), ("b", 0.2), ("c", 0.5)):
        pool.join(name)
        pool.observe(
            name,
            extractor.read(f"vllm:num_requests_waiting 0\nDCGM_FI_PROF_GR_ENGINE_ACTIVE {busy}\n").columns,
            now=1.0,
        )
    scorer = isched.EndpointAttributeScorer(utilisation, better="lower")
    scores = scorer.score(isched.InferenceRequest(request_id="r"), pool.snapshot(), isched.CycleState(1.0, None, 0))
    assert scores.argsort().tolist() == [0, 2, 1]


@given(st.text(alphabet='ab{}"\\,= \n#', max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        found = parse_page(text, {"a", "b"})
    except MetricsPageError:
        return
    assert all(not isnan(series.value) or series.value != series.value for each in found.values() for series in each)


@pytest.mark.parametrize("line", ['a{x="1} 2', "a{x=1} 2", "a", "a b", "a 1 2 3", 'a{x="1"', "a 1_000", 'a{x="1"} 1 x'])
def test_a_wanted_line_that_cannot_be_read_is_an_error(line):
    with pytest.raises(MetricsPageError):
        parse_page(line + "\n", {"a"})
    assert parse_page(line + "\n", {"c"}) == {}


def test_a_page_has_a_size():
    with pytest.raises(MetricsPageError, match="at most"):
        parse_page("a 1\n" * 100, {"a"}, max_bytes=100)
    with pytest.raises(MetricsPageError, match="UTF-8"):
        parse_page(b"\xff", {"a"})
    series = parse_page('a{x="1\\n\\"2\\\\",y=""} 2 # {t="1"} 3\na{} NaN 5\n', {"a"})["a"]
    assert series[0].labels == {"x": '1\n"2\\', "y": ""}
    assert isnan(series[1].value)
    assert series[1].timestamp_ms == 5


# --- how many servers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("current", "metric", "target", "desired"),
    [
        (1, 200, 100, 2),  # Kubernetes: a metric of 200m with a target of 100m doubles the replicas
        (4, 200, 100, 2),  # Kubernetes: 50m with a target of 100m halves them
        (3, 310, 100, 3),  # within the tolerance of a tenth
        (3, 331, 100, 4),
        (3, 269, 100, 3),
        (3, 0, 100, 0),
        (0, 0, 100, 0),
        (0, 250, 100, 3),
        (5, 1e9, 100, 10_000_000),
    ],
)
def test_the_formula(current, metric, target, desired):
    assert desired_replicas(current, metric, target) == desired


@given(st.integers(0, 50), st.floats(0, 1e5), st.floats(0, 1e5), st.floats(1, 1e3))
def test_more_demand_never_wants_fewer(current, less, more, target):
    less, more = sorted((less, more))
    assert desired_replicas(current, less, target) <= desired_replicas(current, more, target)


@given(st.integers(1, 50), st.floats(-0.099, 0.099), st.floats(1, 1e3))
def test_inside_the_tolerance_nothing_changes(current, off, target):
    assert desired_replicas(current, current * target * (1 + off), target) == current


@given(st.integers(1, 50), st.data(), st.floats(0, 1e5), st.floats(1, 1e3))
def test_servers_that_say_nothing_are_taken_not_to_overdo_it(current, data, metric, target):
    ready = data.draw(st.integers(0, current))
    wanted = desired_replicas(current, metric, target, ready=ready)
    if not ready:
        assert wanted == current
    elif metric > ready * target:
        assert current <= wanted <= max(current, desired_replicas(current, metric / ready * current, target))
    else:
        assert wanted <= current


def test_it_goes_up_at_once_and_down_when_it_has_been_so_for_a_while():
    scaler = Autoscaler("p", target=100.0, policy=ScalingPolicy(most=8, down_window=300.0))
    assert scaler.recommend(now=0.0, ready=2, demand=500.0) == 5
    assert scaler.recommend(now=60.0, ready=5, demand=100.0) == 5
    assert scaler.recommend(now=200.0, ready=5, demand=300.0) == 5
    assert scaler.recommend(now=301.0, ready=5, demand=100.0) == 3
    assert scaler.recommend(now=600.0, ready=3, demand=100.0) == 1
    assert scaler.recommend(now=601.0, ready=1, demand=1e9) == 8
    slow = Autoscaler("p", target=100.0, policy=ScalingPolicy(up_window=60.0))
    assert slow.recommend(now=0.0, ready=2, demand=150.0) == 2
    assert slow.recommend(now=30.0, ready=2, demand=900.0) == 2
    assert slow.recommend(now=90.0, ready=2, demand=900.0) == 9


def test_from_zero_when_somebody_waits_and_back():
    scaler = Autoscaler("p", target=1000.0, policy=ScalingPolicy(least=0, down_window=60.0))
    pool, gate = isched.InferencePool(), Gate(0)
    controller = FlowController(gate=gate)

    def signal(now):
        return scaler.signal(pool.snapshot(), controller, now=now)

    assert signal(0.0).recommended_replicas == 0
    ticket = controller.submit(QueueItem(request_id="r", input_tokens=10), 1.0)
    here = signal(5.0)
    assert (here.recommended_replicas, here.backlog_requests, here.backlog_tokens, here.oldest_wait_s) == (
        1,
        1,
        10,
        4.0,
    )
    pool.join("a")
    gate.room = 1
    controller.step(6.0)
    assert signal(6.0).recommended_replicas == 1
    controller.completed(ticket, now=7.0)
    assert [signal(float(now)).recommended_replicas for now in (8, 50, 200)] == [1, 1, 0]


def test_demand_is_what_came_what_waits_and_what_is_computed():
    scaler = Autoscaler("p", target=100.0, window=10.0, slo_ttft=1.0)
    pool, controller = isched.InferencePool(), FlowController(gate=Gate(0))
    pool.join("a")
    pool.reserve("a", request_id="x", tokens=300, now=0.0)
    controller.submit(QueueItem(request_id="w", input_tokens=200), 0.0)
    mine = Labels("m", "m", "f", 0, "p")
    scaler.emit(Ended("e", mine, "a", "completed", "", True, Usage(400, 100), 3.0, 2.0, None, 1.0))
    scaler.emit(
        Ended("o", mine._replace(pool="other"), "a", "completed", "", True, Usage(9999, 1), 1.0, 2.0, None, 1.0)
    )
    scaler.emit(Refused("s", mine, "evicted_ttl", 429, "ResourceExhausted", 1.0))
    here = scaler.signal(pool.snapshot(), controller, now=2.0, saturation={"decode": 0.9})
    assert here.demand_tokens_per_s == (500 + 200 + 300) / 10
    assert (here.inflight_requests, here.inflight_tokens, here.shed_rate, here.slo_violation_rate) == (1, 300, 0.5, 0.5)
    assert here.saturation_by_stage == {"decode": 0.9}
    later = scaler.signal(pool.snapshot(), controller, now=20.0)
    assert isnan(later.shed_rate)
    assert later.demand_tokens_per_s == 50
    items = external_metrics(here, ["demand_tokens_per_s", "backlog_requests"])["items"]
    assert [(item["metricName"], item["value"]) for item in items] == [
        ("demand_tokens_per_s", "100000m"),
        ("backlog_requests", "1"),
    ]


def test_of_several_metrics_the_greatest_counts():
    assert recommended([2, 5, 3]) == 5
    with pytest.raises(InvalidInputError):
        recommended([])


@pytest.mark.parametrize(
    "make",
    [
        lambda: desired_replicas(-1, 1.0, 1.0),
        lambda: desired_replicas(1, nan, 1.0),
        lambda: desired_replicas(1, 1.0, 0.0),
        lambda: desired_replicas(1, 1.0, 1.0, ready=2),
        lambda: ScalingPolicy(least=-1),
        lambda: ScalingPolicy(most=0),
        lambda: ScalingPolicy(up_window=nan),
        lambda: Autoscaler("p", target=0.0),
        lambda: Autoscaler("p", target=1.0, window=inf),
        lambda: MetricsExtractor([EngineMetrics("a"), EngineMetrics("a")]),
        lambda: EngineMetrics("default"),
        lambda: MetricsExtractor(default_engine="tea"),
    ],
)
def test_settings_that_are_none(make):
    with pytest.raises(InvalidInputError):
        make()
