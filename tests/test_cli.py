"""Does the command line say what happened, and what was wrong, in words and in JSON?"""

import json

import msgspec
import pytest

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("rich", reason="the extra `cli` is not installed")
pytest.importorskip("matplotlib", reason="the extra `cli` is not installed")

from inferencesched._kernels._compile import KERNELS
from inferencesched.cli import main
from inferencesched.simulator import FLOWS, POLICIES, TIMINGS, generate, read_trace, timing
from inferencesched.simulator.calibration import measured
from inferencesched.simulator.policies import USUAL

#: The figures of Dynamo's replay reports, in their order.
FIGURES = [
    "completed", "rps", "out_tps", "hit", "hit_first", "ttft_mean", "ttft_p50", "ttft_p90", "ttft_p95", "ttft_p99",
    "tpot_mean", "tpot_p50", "tpot_p90", "tpot_p99", "itl_mean", "itl_p50", "itl_p99", "e2e_mean", "e2e_p50",
    "e2e_p90", "e2e_p99", "readmissions", "regret_blocks", "uneven_requests", "uneven_prefill", "growth",
    "goodput_requests",
]  # fmt: skip
#: What differs from run to run.
TIMES = {"decision_us_p50", "wall_s"}
#: Two seconds of the real thing for the tests.
LINES = [
    {
        "timestamp": 240 * (i // 6),
        "input_length": 600 + 37 * i,
        "output_length": 1 + i % 30,
        "hash_ids": [i % 4, 100 + i],
    }
    for i in range(60)
]


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


@pytest.fixture
def broken(trace):
    """The toy trace with a broken line in the middle."""
    lines = trace.read_text().splitlines(keepends=True)
    lines[30] = '{"timestamp": 1200, "input_length": -4, "output_length": 1}\n'
    trace.write_text("".join(lines))
    return trace


@pytest.fixture
def run(capsys):
    """Run the program: its status, standard output and standard error."""

    def program(*arguments):
        with pytest.raises(SystemExit) as end:
            main.main([str(argument) for argument in arguments], prog_name="inferencesched")
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return program


@pytest.fixture
def record(run):
    """Run the program with --json; it has nothing to say beside it."""

    def program(*arguments):
        status, out, err = run(*arguments, "--json")
        assert (status, err) == (0, ""), err
        return json.loads(out)

    return program


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


# --- simulate ----------------------------------------------------------------------------------------------------


def test_simulate_in_json(record, trace):
    found = record("simulate", trace, "--policy", "least-request", "--servers", 3, "--seed", 7, "--speedup", 2)
    assert [key for key in found if key in FIGURES] == FIGURES
    asked = {"policy": "least-request", "trace": "toy", "workers": 3, "blocks": 16_384, "block_size": 64}
    asked |= {"timing": "dynamo-mocker", "speed": 2.0, "scrape_ms": 50.0, "seed": 7, "completed": len(LINES)}
    assert {key: found[key] for key in asked} == asked
    assert found["wall_s"] > 0 and found["decision_us_p50"] is None  # it ran in one kernel
    assert found.keys() == {*asked, *FIGURES, "offered_rps", "answer_ms", "news_ms", *TIMES}
    assert record("simulate", trace, "--policy", "lmetric", "--servers", 3)["decision_us_p50"] > 0


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_seed_gives_the_same_figures(record, trace, name):
    one, again = (record("simulate", trace, "--policy", name, "--servers", 2) for _ in range(2))
    assert without_times(one) == without_times(again)


def test_another_seed_gives_other_figures(record, trace):
    one, other = (record("simulate", trace, "--policy", "random", "--seed", seed) for seed in (0, 1))
    assert without_times(one) | {"seed": 0} != without_times(other) | {"seed": 0}


def test_the_default_policy_is_the_reference_s(record, trace):
    assert record("simulate", trace)["policy"] == "gie-default"


def test_without_a_trace_the_embedded_workload_is_replayed(record):
    found = record("simulate", "--policy", "round-robin")
    assert (found["trace"], found["completed"]) == ("embedded", len(generate()))


def test_every_option_makes_a_difference(record, trace):
    base = ("simulate", trace, "--policy", "gie-default", "--servers", 2)
    plain = record(*base)
    for option, key in (
        (("--timing", "llama-3.1-8b-h100"), "ttft_mean"),
        (("--kv-blocks", 60), "e2e_mean"),
        (("--block-size", 512), "e2e_mean"),
        (("--speedup", 8), "rps"),
        (("--servers", 1), "e2e_mean"),
        (("--scrape-ms", 0), "scrape_ms"),
    ):
        assert record(*base, *option)[key] != plain[key], option


def test_unknown_figures_are_null(record, tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(LINES[0] | {"output_length": 1}))
    found = record("simulate", path)
    assert found["tpot_mean"] is None and found["itl_p50"] is None and found["ttft_mean"] > 0


def test_simulate_prints_a_table(run, trace):
    status, out, err = run("simulate", trace, "--policy", "round-robin", "--servers", 2)
    assert status == 0
    assert "round-robin" in out and "TTFT" in out and "toy: 60 requests x1 on 2 servers" in out
    assert "Traceback" not in out + err


@pytest.fixture
def crowded(tmp_path):
    """The toy trace, all at once: more than two servers of a few blocks take."""
    path = tmp_path / "crowd.jsonl"
    path.write_text("".join(json.dumps(line | {"timestamp": i}) + "\n" for i, line in enumerate(LINES * 3)))
    return path


CROWD = ("--servers", 2, "--policy", "least-request", "--tenants", "chat:1:10,agents:2,batch:3:-1", "--capacity", 12)


def test_simulate_behind_flow_control_in_json(record, crowded):
    found = record("simulate", crowded, *CROWD, "--flow", "vtc", "--ttl", 30, "--queue-depth", 1)
    waiting = found["waiting"]
    assert found["flow"] == "vtc" and sum(waiting["outcomes"].values()) == 180 > waiting["outcomes"]["completed"]
    assert waiting["most_waiting"] == 12 and 0 < waiting["jain"] <= 1
    assert list(waiting["tenants"]) == ["chat", "agents", "batch"] and list(waiting["priorities"]) == ["10", "0", "-1"]
    batch = waiting["priorities"]["-1"]
    assert batch["shed_rate"] == pytest.approx(sum(batch["shed"].values())) and batch["shed_rate"] > 0.3
    assert waiting["priorities"]["10"]["shed_rate"] < batch["shed_rate"]
    again = record("simulate", crowded, *CROWD, "--flow", "vtc", "--ttl", 30, "--queue-depth", 1)
    assert without_times(found) == without_times(again)


def test_every_option_of_the_queue_makes_a_difference(record, crowded):
    base = ("simulate", crowded, *CROWD, "--flow", "fcfs")
    plain = record(*base)["waiting"]
    for option in (
        ("--ttl", 0.2),
        ("--capacity", 30),
        ("--band-capacity", 3),
        ("--queue-depth", 20),
        ("--tenants", "a,b"),
        ("--flow", "shortest"),
        ("--flow", "llm-d"),
    ):
        assert record(*base, *option)["waiting"] != plain, option
    assert "waiting" not in record("simulate", crowded)
    assert record("simulate", crowded, "--tenants", "a,b")["waiting"]["outcomes"] == {"completed": 180}


def test_flow_control_in_a_table(run, crowded):
    status, out, _ = run("simulate", crowded, *CROWD, "--flow", "fcfs")
    assert status == 0
    for words in ("least-request behind fcfs", "priority 10", "tenant batch", "rejected_capacity", "Jain", "wait"):
        assert words in out


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_flow_control_as_a_gateway_is_configured(record, run, crowded, tmp_path, form):
    if form == "yaml":
        pytest.importorskip("yaml", reason="the extra `yaml` is not installed")
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "featureGates": ["flowControl"],
        "flowControl": {"maxRequests": 5},
    }
    path = tmp_path / f"edge.{form}"
    path.write_text(json.dumps(document))
    found = record("simulate", crowded, *CROWD, "--flow", path)
    assert found["flow"] == "edge" and found["waiting"]["most_waiting"] == 5
    path.write_text(json.dumps(document | {"flowControl": {"maxRequests": "many"}}))
    status, _, err = run("simulate", crowded, *CROWD, "--flow", path, "--json")
    assert status == 2 and "$.flowControl.maxRequests" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--flow", "best"), f"flow: got 'best', allowed: one of {', '.join(['none', *FLOWS])}"),
        (("--flow", "fcfs", "--capacity", "-1"), "capacity: got -1, allowed: an integer of at least 1"),
        (("--flow", "fcfs", "--ttl", "-1"), "ttl: got -1.0, allowed: seconds of at least 0, or None"),
        (("--flow", "fcfs", "--queue-depth", "0"), "queue_depth_threshold: got 0.0, allowed: requests above 0"),
        (("--tenants", "a:0"), "share of tenant 'a': got 0.0, allowed: a finite number above 0"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_flow_control_that_cannot_be(run, trace, command, arguments, message):
    assert run(command, trace, *arguments, "--json") == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.json", None, "a readable file"),
        ("missing.yaml", None, "a readable file"),
        ("bad.json", b"{", "a JSON object"),
        ("bad.json", b"[1]", "a JSON object"),
        ("bad.yaml", b"\xff\xfe\xff", "a YAML file in UTF-8"),
        (
            "other.json",
            b'{"apiVersion": "inferencesched/v1", "kind": "Scheduler", "profiles": {"default": {"scorers": []}}}',
            "EndpointPickerConfig",
        ),
    ],
)
def test_a_configuration_that_is_none(run, trace, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    status, out, err = run("simulate", trace, "--flow", path, "--json")
    assert (status, out) == (2, "") and words in err and len(err.splitlines()) == 1


# --- compare -----------------------------------------------------------------------------------------------------


def test_the_table_names_floor_and_ceiling(run, trace):
    status, out, _ = run("compare", trace, "--servers", 2)
    assert status == 0
    assert all(name in out for name in USUAL) and "always-busiest" not in out
    assert "random (floor)" in out and "clairvoyant (ceiling)" in out
    assert "not a bound" in out


def test_all_is_every_policy(run, trace):
    status, out, _ = run("compare", trace, "--servers", 2, "--policies", "all")
    assert status == 0 and all(name in out for name in POLICIES)


def test_the_table_says_when_floor_or_ceiling_are_left_out(run, trace):
    _, out, _ = run("compare", trace, "--servers", 2, "--policies", "round-robin, least-request")
    assert "Left out: random, clairvoyant." in out


def test_compare_in_json_is_simulate_of_each(record, trace):
    found = record("compare", trace, "--servers", 2, "--policies", "random,gie-default", "--loads", "1,2")
    assert [(row["policy"], row["speed"]) for row in found] == [
        ("random", 1.0), ("random", 2.0), ("gie-default", 1.0), ("gie-default", 2.0)
    ]  # fmt: skip
    for row in found:
        alone = record("simulate", trace, "--servers", 2, "--policy", row["policy"], "--speedup", row["speed"])
        assert without_times(row) == without_times(alone)


def test_compare_writes_a_picture_and_the_figures(run, trace, tmp_path):
    out = tmp_path / "new" / "folder"
    status, printed, err = run(
        "compare", trace, "--servers", 2, "--policies", "random,round-robin", "--loads", "1,2", "--out", out, "--json"
    )
    assert status == 0
    assert (out / "latency-over-load.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert json.loads((out / "figures.json").read_text()) == json.loads(printed)
    assert f"picture: {out / 'latency-over-load.png'}" in err and f"figures: {out / 'figures.json'}" in err


def test_compare_behind_flow_control_draws_who_waits(run, crowded, tmp_path):
    out = tmp_path / "out"
    status, printed, err = run(
        "compare", crowded, "--servers", 2, "--policies", "random", "--flow", "none,fcfs", "--tenants", "a:1:1,b:1:-1",
        "--capacity", 9, "--loads", "1,2", "--out", out, "--json",
    )  # fmt: skip
    assert status == 0
    rows = json.loads(printed)
    assert [(row["flow"], row["speed"]) for row in rows] == [("none", 1.0), ("none", 2.0), ("fcfs", 1.0), ("fcfs", 2.0)]
    assert (out / "waiting-over-load.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert f"picture: {out / 'waiting-over-load.png'}" in err
    twice = ("--policies", "random", "--flow", "vtc,vtc")
    message = "error: flows: got ['vtc', 'vtc'], allowed: at least one flow control, each once\n"
    assert run("compare", crowded, *twice, "--json") == (2, "", message)


def test_with_a_picture_several_loads_are_replayed(run, trace, tmp_path):
    run("compare", trace, "--servers", 2, "--policies", "random", "--out", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [row["speed"] for row in figures] == [0.5, 1.0, 1.5, 2.0]


def test_a_picture_that_cannot_be_written_is_refused_before_anything_runs(run, trace, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        status, printed, err = run("compare", trace, "--out", out)
        assert (status, printed) == (2, "")
        assert err.startswith(f"error: out: got {str(out)!r}, allowed: a folder, or where one can be made (")
        assert len(err.splitlines()) == 1


# --- explain -----------------------------------------------------------------------------------------------------


def test_explain_says_why_and_what_simulate_then_does(run, record, trace):
    status, out, err = run("explain", trace, "--servers", 3, "--request", 20)
    assert (status, err) == (0, "")
    assert out.startswith("request '20', profile 'default': 'server-")
    assert all(f"  server-{i}: " in out for i in range(3)) and "PrefixCacheScorer" in out
    found = record("explain", trace, "--servers", 3, "--request", 20)
    assert found["request_id"] == "20" and f"'{found['picked'][0]}'" in out.splitlines()[0]
    assert {candidate["endpoint"] for candidate in found["candidates"]} == {"server-0", "server-1", "server-2"}


@pytest.mark.parametrize("name", POLICIES)
def test_explain_knows_every_policy(run, trace, name):
    status, out, err = run("explain", trace, "--servers", 2, "--request", 0, "--policy", name)
    assert (status, err) == (0, "") and out.startswith("request '0'")


# --- what is wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "best"), f"policy: got 'best', allowed: one of {', '.join(POLICIES)}"),
        (("--timing", "h100"), f"timing: got 'h100', allowed: one of {', '.join(TIMINGS)}"),
        (("--servers", "0"), "servers: got 0, allowed: an integer of at least 1"),
        (("--speedup", "nan"), "speedup: got nan, allowed: a finite number above 0"),
        (("--speedup", "0"), "speedup: got 0.0, allowed: a finite number above 0"),
        (("--scrape-ms", "-1"), "scrape_ms: got -1.0, allowed: a finite number of at least 0"),
        (("--seed", "-1"), "seed: got -1, allowed: an integer of at least 0"),
        (("--kv-blocks", "0"), "kv_blocks: got 0, allowed: an integer of at least 1"),
        (("--kv-blocks", "5"), "kv_blocks: got 5, allowed: at least 44: the longest request must fit"),
        (("--block-size", "48"), "block_size: got 48, allowed: a divisor of 512, the trace's block size"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "explain"])
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_error_is_one_line_that_names_parameter_value_and_what_is_allowed(
    run, trace, command, arguments, message, as_json
):
    place = ("--request", "5") if command == "explain" else ()
    status, out, err = run(command, trace, *place, *arguments, *as_json)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {message}"
    assert len(err.splitlines()) == 1 or not as_json, "but for a progress bar"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policies", "random,best"), f"policy: got 'best', allowed: one of {', '.join(POLICIES)}"),
        (
            ("--policies", "random,random"),
            "policies: got ['random', 'random'], allowed: at least one policy, each once",
        ),
        (("--loads", "1,0"), "loads: got '1,0', allowed: numbers above 0, comma-separated"),
        (("--loads", "1,nan"), "loads: got '1,nan', allowed: numbers above 0, comma-separated"),
        (("--loads", "1,,2"), "loads: got '1,,2', allowed: numbers above 0, comma-separated"),
        (("--loads", "one"), "loads: got 'one', allowed: numbers above 0, comma-separated"),
    ],
)
def test_what_compare_cannot_compare(run, trace, arguments, message):
    status, out, err = run("compare", trace, *arguments, "--json")
    assert (status, out, err) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("place", [-1, 60])
def test_only_a_request_of_the_trace_can_be_explained(run, trace, place):
    status, out, err = run("explain", trace, "--request", place)
    assert (status, out, err) == (2, "", f"error: request: got {place}, allowed: 0 to 59\n")


@pytest.mark.parametrize("command", ["simulate", "compare", "explain"])
def test_a_trace_that_is_not_there(run, tmp_path, command):
    status, out, err = run(command, tmp_path / "missing.jsonl", "--json")
    path = str(tmp_path / "missing.jsonl")
    assert (status, out, err) == (2, "", f"error: trace: got {path!r}, allowed: the path of a readable file\n")


@pytest.mark.parametrize("command", ["simulate", "compare", "explain"])
def test_a_broken_line_is_named_and_what_can_be_done(run, broken, command):
    status, out, err = run(command, broken, "--json")
    assert (status, out) == (2, "")
    first, second = err.splitlines()
    assert first == f"error: {broken}:31: input_length: got -4, allowed: an integer from 1 to 2147483647"
    assert second == "the 30 requests before it are good: --partial replays them"


def test_partial_replays_the_lines_before_it(run, broken, tmp_path):
    status, out, err = run("simulate", broken, "--partial", "--policy", "round-robin", "--json")
    allowed = "an integer from 1 to 2147483647"
    assert (status, err) == (
        0,
        f"warning: {broken}:31: input_length: got -4, allowed: {allowed}; replaying the 30 requests before it\n",
    )
    head = tmp_path / "toy_head.jsonl"
    head.write_text("".join(broken.read_text().splitlines(keepends=True)[:30]))
    assert len(read_trace(head)) == 30
    _, expected, _ = run("simulate", head, "--policy", "round-robin", "--json")
    found, expected = json.loads(out), json.loads(expected)
    assert without_times(found) == without_times(expected) | {"trace": "toy"} and found["completed"] == 30


def test_partial_cannot_replay_nothing(run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("nothing\n")
    status, out, err = run("simulate", path, "--partial", "--json")
    assert (status, out) == (2, "") and err.startswith(f"error: {path}:1: line: got 'nothing', allowed: ")
    assert len(err.splitlines()) == 1


def test_help_and_version(run):
    for arguments in (("--help",), ("-h",), ("simulate", "--help"), ("compare", "-h"), ("explain", "-h")):
        status, out, _ = run(*arguments)
        assert status == 0 and out.startswith("Usage: inferencesched")
    status, out, _ = run("--version")
    assert status == 0 and "version" in out


def test_warmup_leaves_nothing_to_compile(run):
    """Every kernel that a gateway or a replay calls has machine code afterwards."""
    assert run("warmup") == (0, "", "")
    compiled = {name.removeprefix("inferencesched._kernels.") for name, kernel in KERNELS.items() if kernel.signatures}
    assert compiled >= {
        "serving.advance",
        "serving.advance_to_event",
        "serving.copy_server",
        "prefix_events.store",
        "hashing.chain_blocks",
    }


# --- sweep -------------------------------------------------------------------------------------------------------


def swept(run, trace, out, *more):
    return run(
        "sweep", trace, "--policies", "random,lmetric", "--loads", "1,4", "--fleets", "2:dynamo-mocker:16384", "--seeds", 2,
        "--out", out, *more,
    )  # fmt: skip


def test_a_sweep_writes_all_and_goes_on_where_it_was(run, trace, tmp_path):
    status, table, _ = swept(run, trace, tmp_path / "out")
    assert status == 0 and table.count("| toy |") == 4 and "±" in table
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"journal.jsonl", "figures.csv", "table.md", "report.html"} <= names
    before = (tmp_path / "out" / "journal.jsonl").read_bytes()
    again = swept(run, trace, tmp_path / "out")
    assert again[:2] == (0, table) and (tmp_path / "out" / "journal.jsonl").read_bytes() == before
    status, _, err = swept(run, trace, tmp_path / "out", "--news-ms", 7)
    assert status == 2 and "another grid" in err


def test_a_sweep_may_keep_a_share_of_the_conversations_and_be_told_the_schema(run, trace, tmp_path):
    status, table, _ = swept(run, trace, tmp_path / "out", "--schema", "mooncake", "--thin", 0.5)
    assert status == 0 and table.count("| toy, 0.5 of it |") == 4
    _, table, _ = swept(run, trace, tmp_path / "other", "--schema", "weka")
    assert "schema" in table and "Traceback" not in table, "each cell says why it failed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fleets", "2:dynamo-mocker"), "fleets: got '2:dynamo-mocker'"),
        (("--fleets", "2:h100:100"), "timing: got 'h100'"),
        (("--policies", "best"), "policy: got 'best'"),
        (("--loads", "0"), "loads: got '0'"),
        (("--schema", "csv"), "schema: got 'csv'"),
        (("--thin", 0), "share: got 0.0"),
        (("--seeds", 0), "seeds: got 0"),
    ],
)
def test_a_bad_sweep_is_refused(run, trace, tmp_path, arguments, message):
    status, _, err = swept(run, trace, tmp_path / "out", *arguments)
    assert status == 2 and message in err and "Traceback" not in err


# --- calibrate ---------------------------------------------------------------------------------------------------


@pytest.fixture
def measurements(tmp_path):
    model = timing("llama-3.1-8b-h100")
    passes = [measured(model, n, n * n / 2, 0, 0) for n in (64, 512, 2048, 8192)]
    passes += [measured(model, b, 0, b * c, b) for b in (1, 8, 64) for c in (100, 1000, 8000)]
    path = tmp_path / "passes.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in passes))
    return path


def test_calibrate_finds_a_known_model(run, record, measurements):
    status, out, _ = run("calibrate", measurements, "--holdout", 0, "--hardware", "llama-3.1-8b-h100")
    assert status == 0 and "0.01976" in out and "excellent" in out
    assert record("calibrate", measurements, "--holdout", 0)["timing"]["k"] == pytest.approx(4.223e-5, rel=1e-4)


def test_calibrate_says_what_is_wrong(run, measurements):
    status, _, err = run("calibrate", measurements, "--hardware", "dynamo-mocker")
    assert status == 2 and "hardware: got 'dynamo-mocker'" in err
    measurements.write_bytes(b"{}\n")
    status, _, err = run("calibrate", measurements)
    assert status == 2 and "passes.jsonl:1" in err


def test_behind_flow_control_the_usual_policies_are_those_that_hold_nothing_back(record, trace):
    found = record("compare", trace, "--servers", 2, "--flow", "fcfs")
    assert [each["policy"] for each in found] == [name for name in USUAL if POLICIES[name].bind is None]
