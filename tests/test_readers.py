"""Is each public schema read as it is written, known by its content, and a broken file named with what was good before?"""

import json
from contextlib import suppress
from itertools import pairwise
from math import gamma

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, TraceError, UnknownNameError
from inferencesched.simulator import Workload
from inferencesched.simulator.readers import (
    SCHEMAS,
    burstgpt_failures,
    read_bailian,
    read_burstgpt,
    read_servegen,
    read_trace,
    read_weka,
    schema_of,
)
from tests.shared import shared

MOST = 2**31 - 1

MOONCAKE = (
    b'{"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [5, 900, 7]}\n'
    b'{"timestamp": 3000, "input_length": 1024, "output_length": 0, "hash_ids": [5, 900]}\n'
)
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:16:00,1155,3\n"
BURSTGPT = (
    b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    b"5,ChatGPT,472,18,490,Conversation log\n"
    b"45,GPT-4,1087,0,1087,API log\n"
    b"45.5,GPT-4,0,0,0,API log\n"
    b"118,GPT-4,417,276,693,Conversation log\n"
)
BAILIAN = (
    b'{"chat_id": 55, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "output_length": 100, "type": "text",'
    b' "turn": 1, "hash_ids": [1089, 1090]}\n'
    b'{"chat_id": 7, "parent_chat_id": 3, "timestamp": 1, "input_length": 16, "output_length": 2, "hash_ids": [9]}\n'
    b'{"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.5, "input_length": 49, "output_length": 132, "type": "text",'
    b' "turn": 2, "hash_ids": [1089, 1090, 13148]}\n'
)


def asked(t, tokens, ids, **more):
    return {"t": t, "type": "n", "model": "m", "in": tokens, "out": 10, "hash_ids": ids, "stop": ""} | more


def agent(*requests, t=0.0):
    return {"t": t, "type": "subagent", "agent_id": "a", "status": "completed", "requests": list(requests)}


def session(*requests, **more):
    return {"id": "s", "models": ["m"], "block_size": 64, "requests": list(requests)} | more


WEKA = session(
    asked(0.0, 130, [1, 2], think_time=0.0, api_time=2.0),
    agent(asked(3.0, 70, [8], think_time=1.0), asked(9.0, 140, [8, 9], think_time=2.0)),
    agent(asked(3.5, 64, [7])),
    asked(20.0, 200, [1, 2, 3], think_time=4.0),
    asked(21.0, 210, [1, 2, 3], think_time=500.0),
    hash_id_scope="local",
)


def servegen(folder, clients):
    """Write clients: number -> (rows of a trace, {begin: (lengths of prompts, lengths of answers)})."""
    folder.mkdir(exist_ok=True)
    for number, (rows, lengths) in clients.items():
        (folder / f"chunk-{number}-trace.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
        content = {str(at): {"input_tokens": str(one), "output_tokens": str(two)} for at, (one, two) in lengths.items()}
        (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(content))
    return folder


CLIENTS = {
    0: ([(0, 2.0, 1.0, "Gamma", 0.5, 1.0), (600, 0.5, 1.0, "Weibull", 0.7, 9.0), (1200, 0, 0, "", 0, 0)],
        {0: ({100: 0.5, 200: 0.5}, {7: 1.0}), 600: ({300: 1.0}, {0: 0.5, 9: 0.5})}),
    7: ([(0, 0, 0, "", 0, 0), (600, 0.25, 1.0, "Gamma", 2.0, 2.0), (1200, 1.0, 1.0, "Gamma", 1.0, 1.0)],
        {600: ({5: 1.0}, {6: 1.0})}),
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(content, name="trace.json"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def rows(workload):
    return [workload.blocks[workload.offsets[i] : workload.offsets[i + 1]].tolist() for i in range(len(workload))]


def waits(workload):
    return [workload.precedence.waits_for(i).tolist() for i in range(len(workload))]


def same(one, other):
    for column in ("arrival", "input_tokens", "output_tokens", "blocks", "offsets"):
        assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
    assert one.block_size == other.block_size
    assert (one.precedence is None) == (other.precedence is None)
    if one.precedence is not None:
        assert waits(one) == waits(other) and one.precedence.think.tolist() == other.precedence.think.tolist()


def told(error, path, line, parameter, value, allowed):
    assert (error.path, error.line, error.value) == (str(path), line, value)
    assert error.parameter == f"{path}:{line}: {parameter}" and error.allowed.startswith(allowed)
    error.workload.validate()
    assert error.lines_read == len(error.workload)


# --- BurstGPT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_burstgpt, read_trace])
def test_a_burstgpt_trace(file, reader):
    workload = reader(file(BURSTGPT))
    assert workload.arrival.tolist() == [5000.0, 118_000.0]
    assert workload.input_tokens.tolist() == [472, 417] and workload.output_tokens.tolist() == [18, 276]
    assert rows(workload) == [[], []] and workload.precedence is None


def test_failures_are_dropped_and_counted_or_kept(file):
    path = file(BURSTGPT)
    kept = read_burstgpt(path, keep_failures=True)
    assert kept.input_tokens.tolist() == [472, 1087, 417] and kept.output_tokens.tolist() == [18, 0, 276]
    assert burstgpt_failures(path) == 2
    assert burstgpt_failures(path, keep_failures=True) == 1, "there is no prompt of no tokens"


def test_columns_are_found_by_their_names(file):
    other = b"Session ID, Response tokens ,Timestamp,Request tokens\r\n\r\nx,18,5,472\r\n"
    workload = read_burstgpt(file(other))
    assert (workload.arrival.tolist(), workload.input_tokens.tolist()) == ([5000.0], [472])
    assert len(read_burstgpt(file(b""))) == len(read_burstgpt(file(BURSTGPT.splitlines()[0]))) == 0


@pytest.mark.parametrize(
    ("line", "parameter", "value", "allowed"),
    [
        (b"120,GPT-4,1,1", "line", "120,GPT-4,1,1", "6 fields"),
        (b"soon,GPT-4,1,1,2,API log", "Timestamp", "soon", "seconds"),
        (b"nan,GPT-4,1,1,2,API log", "Timestamp", pytest.approx(float("nan"), nan_ok=True), "ms of at least 118000.0"),
        (b"1e308,GPT-4,1,1,2,API log", "Timestamp", float("inf"), "ms of at least 118000.0"),
        (b"117,GPT-4,1,1,2,API log", "Timestamp", 117_000.0, "ms of at least 118000.0"),
        (b"117,GPT-4,1,0,1,API log", "Timestamp", 117_000.0, "ms of at least 118000.0"),
        (b"120,GPT-4,1.5,1,2,API log", "Request tokens", "1.5", "an integer up to"),
        (b"120,GPT-4,-1,1,2,API log", "Request tokens", -1, "an integer from 1 to"),
        (b"120,GPT-4,1,,2,API log", "Response tokens", "", "an integer up to"),
        (b"120,GPT-4,1,\xff,2,API log", "Response tokens", "\ufffd", "an integer up to"),
    ],
)
def test_a_broken_burstgpt_line(file, line, parameter, value, allowed):
    path = file(BURSTGPT + line + b"\n" + BURSTGPT)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    told(error.value, path, 6, parameter, value, allowed)
    same(error.value.workload, read_burstgpt(file(BURSTGPT, "good")))


@pytest.mark.parametrize(
    "header", [b"Timestamp,Request tokens", b"Timestamp,Timestamp,Request tokens,Response tokens", b"x"]
)
def test_a_burstgpt_header_has_what_is_needed(file, header):
    path = file(header + b"\n5,1,1\n")
    with pytest.raises(TraceError) as error:
        read_burstgpt(path)
    told(error.value, path, 1, "header", header.decode(), "columns Timestamp, Request tokens, Response tokens")


# --- Bailian -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_bailian, read_trace])
def test_a_bailian_trace(file, reader):
    workload = reader(file(BAILIAN))
    assert workload.block_size == 16 and workload.arrival.tolist() == [500.0, 1000.0, 61_500.0]
    assert workload.input_tokens.tolist() == [40, 16, 49] and workload.output_tokens.tolist() == [100, 2, 132]
    assert rows(workload) == [[1, 2], [0], [1, 2, 3]]
    assert waits(workload) == [[], [], [0]], "who came before the trace began is waited for by nobody"
    assert workload.precedence.think.tolist() == [0.0, 0.0, 61_000.0]


def test_an_answer_takes_time(file):
    path = file(BAILIAN)
    assert read_bailian(path, token_ms=20.0).precedence.think.tolist() == [0.0, 0.0, 59_000.0]
    assert read_bailian(path, token_ms=1e4).precedence.think.tolist() == [0.0, 0.0, 0.0]
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidInputError, match="^token_ms: "):
            read_bailian(path, token_ms=wrong)


def bailian(**changes):
    fields = {"chat_id": 200, "parent_chat_id": -1, "timestamp": 70.0, "input_length": 16, "output_length": 1}
    return json.dumps(fields | changes).encode()


@pytest.mark.parametrize(
    ("line", "parameter", "value", "allowed"),
    [
        (bailian(chat_id=55), "chat_id", 55, "one that no line before it has"),
        (bailian(chat_id=3), "chat_id", 3, "a line before those that continue it"),
        (bailian(chat_id=4, parent_chat_id=4), "chat_id", 4, "a line before those that continue it"),
        (bailian(timestamp=1.0), "timestamp", 1000.0, "ms of at least 61500.0"),
        (bailian(timestamp=1e308), "timestamp", float("inf"), "ms of at least 61500.0"),
        (bailian(input_length=0), "input_length", 0, "an integer from 1 to"),
        (bailian(output_length=-1), "output_length", -1, "an integer from 0 to"),
        (bailian(hash_ids=[-1]), "hash_ids", -1, "integers of at least 0"),
        (
            bailian(parent_chat_id=None),
            "line",
            bailian(parent_chat_id=None).decode()[:60],
            "a JSON object of the Bailian",
        ),
        (b'{"chat_id": 1', "line", '{"chat_id": 1', "a JSON object of the Bailian schema"),
        (b"[" * 100_000, "line", "[" * 60, "a JSON object of the Bailian schema"),
        (b'{"x": ' + b"[" * 100_000, "line", '{"x": ' + "[" * 54, "a JSON object of the Bailian schema"),
        (MOONCAKE.splitlines()[0], "line", MOONCAKE.decode()[:60], "a JSON object of the Bailian schema"),
    ],
)
def test_a_broken_bailian_line(file, line, parameter, value, allowed):
    path = file(BAILIAN + line + b"\n" + bailian())
    with pytest.raises(TraceError) as error:
        read_trace(path)
    told(error.value, path, 4, parameter, value, allowed)
    same(error.value.workload, read_bailian(file(BAILIAN, "good")))


# --- Weka --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_weka, read_trace])
def test_a_session_with_agents(file, reader):
    """By hand: 0 is the first; 1 and 3 the first agent's, 2 the other's; 4 goes on after both; 5 comes a second later."""
    workload = reader(file(WEKA))
    assert workload.block_size == 64
    assert workload.arrival.tolist() == [0.0, 3000.0, 3500.0, 9000.0, 20_000.0, 21_000.0]
    assert workload.input_tokens.tolist() == [130, 70, 64, 140, 200, 210]
    assert waits(workload) == [[], [0], [0], [1], [0, 2, 3], [4]]
    assert workload.precedence.think.tolist() == [0.0, 1000.0, 0.0, 2000.0, 4000.0, 1000.0]
    one, two, three, seven, eight, nine = (
        rows(workload)[i][k] for i, k in ((0, 0), (0, 1), (4, 2), (2, 0), (1, 0), (3, 1))
    )
    assert rows(workload) == [[one, two], [eight], [seven], [eight, nine], [one, two, three], [one, two, three]]
    assert len({one, two, three, seven, eight, nine}) == 6


def test_agents_of_agents_and_agents_in_the_background(file):
    workload = read_weka(
        file(
            session(
                agent(asked(1.0, 64, [1])),  # before anything: a root
                asked(2.0, 64, [2]),
                agent(
                    asked(3.0, 64, [3]),
                    agent(asked(4.0, 64, [4])),
                    asked(5.0, 64, [5]),
                    agent(asked(6.0, 64, [6])),  # the agent ends with its own agent
                ),
                agent(asked(3.5, 64, [7]), asked(30.0, 64, [8])),  # still at it when its parent goes on
                agent(),
                asked(10.0, 64, [9]),
                asked(40.0, 64, [10]),
            )
        )
    )
    assert workload.arrival.tolist() == [1e3, 2e3, 3e3, 3.5e3, 4e3, 5e3, 6e3, 10e3, 30e3, 40e3]
    assert waits(workload) == [[], [0], [1], [1], [2], [2, 4], [5], [1, 5, 6], [3], [7, 8]]
    assert workload.sessions().tolist() == [0] * 10


def test_ids_are_a_sessions_own_unless_they_are_everybodys(file, tmp_path):
    folder = tmp_path / "sessions"
    folder.mkdir()
    for name, scope in (("a", "local"), ("b", "local"), ("c", "global"), ("d", "global")):
        own = session(asked(0.0, 128, [0, 1]), asked(1.0, 128, [0, 1]), hash_id_scope=scope)
        (folder / f"{name}.json").write_text(json.dumps(own))
    workload = read_trace(folder)
    assert workload.name == "sessions" and workload.arrival.tolist() == [0.0] * 4 + [1000.0] * 4
    a, b, c, d, *later = rows(workload)
    assert later == [a, b, c, d] and c == d and len({*a, *b, *c}) == 6
    assert waits(workload) == [[], [], [], [], [0], [1], [2], [3]]


def test_a_session_over_many_lines(file):
    pretty = json.dumps(WEKA, indent=1).encode()
    assert schema_of(file(pretty)) == "weka"
    same(read_trace(file(pretty)), read_weka(file(WEKA, "other.json")))


@pytest.mark.parametrize(
    ("entry", "parameter", "value", "allowed"),
    [
        (asked(20.5, 64, []), "requests[5].t", 20_500.0, "ms of at least 21000.0"),
        (asked(30.0, 0, []), "requests[5].in", 0, "an integer from 1 to"),
        (asked(30.0, 64, [], out=-1), "requests[5].out", -1, "an integer from 0 to"),
        (asked(30.0, 64, [-1]), "hash_ids", -1, "integers of at least 0"),
        (asked(30.0, 64, [], think_time=-1.0), "requests[5].think_time", -1.0, "finite seconds of at least 0"),
        (asked(30.0, 64, [], think_time=1e306), "requests[5].think_time", 1e306, "finite seconds of at least 0"),
        (asked("30", 64, []), "requests[5]", json.dumps(asked("30", 64, []))[:60], "a request of the Weka schema"),
        ({"t": 30.0}, "requests[5]", '{"t": 30.0}', "a request of the Weka schema"),
        (7, "requests[5]", "7", "a request of the Weka schema"),
        (agent(asked(30.0, 0, [])), "requests[5].requests[0].in", 0, "an integer from 1 to"),
        (agent(asked(20.0, 1, [])), "requests[5].requests[0].t", 20_000.0, "ms of at least 21000.0"),
    ],
)
def test_a_broken_request_of_a_session(file, tmp_path, entry, parameter, value, allowed):
    folder = tmp_path / "sessions"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(WEKA))
    (folder / "b.json").write_text(json.dumps(WEKA | {"requests": [*WEKA["requests"], entry, asked(50.0, 64, [])]}))
    (folder / "c.json").write_text(json.dumps(WEKA))
    with pytest.raises(TraceError) as error:
        read_trace(folder)
    told(error.value, folder / "b.json", 1, parameter, value, allowed)
    (folder / "c.json").unlink()
    (folder / "b.json").write_text(json.dumps(WEKA))
    good = read_weka(folder)
    found = error.value.workload
    assert found.arrival.tolist() == good.arrival.tolist() and waits(found) == waits(good)
    assert len(found) == 12


@pytest.mark.parametrize(
    ("content", "parameter", "value", "allowed"),
    [
        (json.dumps(WEKA).encode()[:-200], "session", json.dumps(WEKA)[:60], "a JSON object of the Weka schema"),
        (b'{"requests": 7}', "session", '{"requests": 7}', "a JSON object of the Weka schema"),
        (b'{"requests": []}', "session", '{"requests": []}', "a JSON object of the Weka schema"),
        (b'{"block_size": 0, "requests": []}', "block_size", 0, "an integer from 1 to"),
        (b'{"block_size": 32, "requests": []}', "block_size", 32, "64, as in the sessions before"),
        (b'{"block_size": 64, "requests": [], "hash_id_scope": "x"}', "hash_id_scope", "x", "local or global"),
    ],
)
def test_a_broken_session(tmp_path, content, parameter, value, allowed):
    folder = tmp_path / "sessions"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(WEKA))
    (folder / "b.json").write_bytes(content)
    with pytest.raises(TraceError) as error:
        read_trace(folder)
    told(error.value, folder / "b.json", 1, parameter, value, allowed)
    same(error.value.workload, read_weka(folder / "a.json"))


def test_agents_all_the_way_down(file):
    deep = agent()
    for _ in range(40):
        deep = agent(deep)
    with pytest.raises(TraceError, match="at most 32 deep"):
        read_weka(file(session(deep)))
    with pytest.raises(TraceError):
        read_weka(file(b'{"block_size": 64, "requests": ' + b'[{"requests": ' * 50_000))


# --- ServeGen ----------------------------------------------------------------------------------------------------


def test_a_servegen_folder(tmp_path):
    folder = servegen(tmp_path / "m-large", CLIENTS)
    workload = read_trace(folder)
    workload.validate()
    assert workload.name == "m-large" and len(workload) == 1200, "2 a second for 600 s; client 7 sends nothing yet"
    assert set(workload.input_tokens.tolist()) == {100, 200} and set(workload.output_tokens.tolist()) == {7}
    assert workload.input_tokens.mean() == pytest.approx(150, abs=6)
    assert workload.arrival.max() < 600_000.0 and rows(workload) == [[]] * 1200
    gaps = np.diff(workload.arrival)
    assert gaps.std() / gaps.mean() == pytest.approx(0.5**-0.5, rel=0.12), "a gamma of shape k has a CV of 1 / sqrt(k)"


def test_a_part_of_a_servegen_folder(tmp_path):
    folder = servegen(tmp_path / "m-large", CLIENTS)
    later = read_servegen(folder, start=600.0, seconds=1200.0, seed=1)
    # client 0: 300 in its second window and none after; client 7: 150 there, and 600 in its last, which goes on
    assert len(later) == 300 + 150 + 600
    first = later.arrival < 600_000.0
    assert set(later.input_tokens[first].tolist()) == {5, 300} and set(later.input_tokens[~first].tolist()) == {5}
    assert set(later.output_tokens[later.input_tokens == 300].tolist()) == {0, 9}
    assert len(read_servegen(folder, start=300.0, seconds=600.0, seed=2)) == 600 + 150 + 75
    scaled = read_servegen(folder, start=600.0, seconds=1200.0, rate=10.0)
    assert len(scaled) == pytest.approx(12_000, abs=3)
    assert (scaled.input_tokens == 300).sum() == pytest.approx(12_000 * 300 / 1050, abs=3)


def test_clients_do_not_disturb_each_other(tmp_path):
    alone = read_servegen(servegen(tmp_path / "one", {7: CLIENTS[7]}), start=600.0, seed=3)
    among = read_servegen(servegen(tmp_path / "two", CLIENTS), start=600.0, seed=3)
    assert among.arrival[among.input_tokens == 5].tolist() == alone.arrival.tolist()
    assert read_servegen(tmp_path / "two", start=600.0, seed=4).arrival.tolist() != among.arrival.tolist()


def test_rare_clients_send_as_often_as_they_say(tmp_path):
    """Each of 600 sends 0.25 requests on average: rounded up, as ServeGen does, it would be four times as many."""
    rare = ([(0, 0.25 / 600, 1.0, "Weibull", 0.7, 1.0), (600, 0, 0, "", 0, 0)], CLIENTS[0][1])
    assert len(read_servegen(servegen(tmp_path / "rare", dict.fromkeys(range(600), rare)))) == pytest.approx(
        150, abs=40
    )


def test_weibull_gaps_have_their_shape(tmp_path):
    shape = ([(0, 10.0, 1.0, "Weibull", 0.7, 1.0)], CLIENTS[0][1])
    gaps = np.diff(read_servegen(servegen(tmp_path / "w", {0: shape})).arrival)
    cv = (gamma(1 + 2 / 0.7) / gamma(1 + 1 / 0.7) ** 2 - 1) ** 0.5
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08)


@pytest.mark.parametrize(
    ("row", "parameter", "value"),
    [
        ("600,1.0,1.0,Gamma,1.0", "line", "600,1.0,1.0,Gamma,1.0"),
        ("600,1.0,1.0,Normal,1.0,1.0", "pattern", "Normal"),
        ("x,1.0,1.0,Gamma,1.0,1.0", "start", "x"),
        ("0,1.0,1.0,Gamma,1.0,1.0", "start", "0"),
        ("600,nan,1.0,Gamma,1.0,1.0", "rate", "nan"),
        ("600,1e300,1.0,Gamma,1.0,1.0", "line", "600,1e300,1.0,Gamma,1.0,1.0"),
        ("600,1.0,1.0,Gamma,0,1.0", "shape", "0"),
        ("600,-0.5,1.0,Gamma,1,1.0", "line", "600,-0.5,1.0,Gamma,1,1.0"),
    ],
)
def test_a_broken_row_of_rates(tmp_path, row, parameter, value):
    folder = servegen(tmp_path / "bad", {1: CLIENTS[0]})
    path = folder / "chunk-1-trace.csv"
    path.write_text("0,2.0,1.0,Gamma,0.5,1.0\n" + row + "\n")
    with pytest.raises(TraceError) as error:
        read_trace(folder)
    told(error.value, path, 2, parameter, value, "")


@pytest.mark.parametrize(
    ("content", "parameter"),
    [
        (b"{", "file"),
        (b'{"0": 7}', "file"),
        (b'{"now": {}}', "start"),
        (b'{"0": {"input_tokens": "{1: 1}"}}', "0.output_tokens"),
        (b'{"0": {"input_tokens": "{1: 1}", "output_tokens": {"1": 1}}}', "0.output_tokens"),
        (b'{"0": {"input_tokens": "{1: 1", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (b'{"0": {"input_tokens": "{-1: 1}", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (b'{"0": {"input_tokens": "{1: -1}", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (b'{"0": {"input_tokens": "{1: 0}", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (b'{"0": {"input_tokens": "{1: 1e308, 2: 1e308}", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (b'{"0": {"input_tokens": "{9999999999: 1}", "output_tokens": "{1: 1}"}}', "0.input_tokens"),
        (None, "file"),
    ],
)
def test_broken_lengths(tmp_path, content, parameter):
    folder = servegen(tmp_path / "bad", {1: CLIENTS[0]})
    path = folder / "chunk-1-dataset.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        read_trace(folder)
    assert error.value.parameter == f"{path}:1: {parameter}" and error.value.lines_read == 0


def test_without_lengths_nobody_comes(tmp_path):
    """ServeGen's empty histograms are skipped: what held before holds on."""
    rates = [(0, 1.0, 1, "Gamma", 1, 1), (600, 1.0, 1, "Gamma", 1, 1)]
    folder = servegen(tmp_path / "s", {1: (rates, {0: ({}, {}), 600: ({9: 1.0}, {1: 1.0}), 900: ({}, {1: 1.0})})})
    assert len(read_servegen(folder, seconds=600.0)) == 0 and len(read_servegen(folder, seconds=1200.0)) == 600


@pytest.mark.parametrize(
    "change",
    [{"start": -1.0}, {"start": float("nan")}, {"seconds": 0.0}, {"seconds": float("inf")}, {"rate": 0.0}, {"rate": -1.0},
     {"seed": -1}, {"seed": 0.5}, {"rate": 1e9, "seconds": 1e3}],
)  # fmt: skip
def test_what_cannot_be_drawn(tmp_path, change):
    folder = servegen(tmp_path / "s", CLIENTS)
    with pytest.raises(InvalidInputError) as error:
        read_servegen(folder, **change)
    assert error.value.parameter in change


# --- whichever it is ---------------------------------------------------------------------------------------------

CONTENT = {
    "azure": AZURE,
    "bailian": BAILIAN,
    "burstgpt": BURSTGPT,
    "mooncake": MOONCAKE,
    "weka": json.dumps(WEKA).encode(),
}


@pytest.mark.parametrize("schema", sorted(CONTENT))
def test_a_schema_is_known_by_its_content(file, schema):
    path = file(CONTENT[schema], "anything.txt")
    assert schema_of(path) == schema
    same(read_trace(path), SCHEMAS[schema](path))
    same(read_trace(path, schema=schema), SCHEMAS[schema](path))
    path = file(b"\r\n \n" + CONTENT[schema], "anything.txt")
    assert schema_of(path) == schema, "behind empty lines"


@pytest.mark.parametrize(
    ("found", "said"), [(found, said) for found in sorted(CONTENT) for said in sorted(SCHEMAS) if found != said]
)
def test_another_schema_than_said_is_an_error(file, found, said):
    path = file(CONTENT[found], "anything.txt")
    with pytest.raises(TraceError) as error:
        read_trace(path, schema=said)
    told(error.value, path, 1, "schema", found, said)


def test_what_is_cut_in_its_first_line_is_known_all_the_same(file):
    for schema in ("bailian", "mooncake", "weka"):
        assert schema_of(file(CONTENT[schema].splitlines()[0][:-5])) == schema


def test_what_is_nothing_is_read_as_said(file, tmp_path):
    for content in (b"", b"\n \n"):
        path = file(content, "empty")
        assert schema_of(path) is None
        assert len(read_trace(path)) == 0
        for schema in ("bailian", "mooncake", "weka"):
            assert len(read_trace(path, schema=schema)) == 0
    for schema in ("azure", "bailian", "burstgpt", "mooncake", "weka"):
        with pytest.raises(TraceError):
            read_trace(file(b"\xff\x00 nonsense\n5"), schema=schema)
    with pytest.raises(TraceError, match="Mooncake"):
        read_trace(file(b"nonsense"))


def test_a_path_that_is_no_trace(tmp_path, file):
    for path in (tmp_path / "missing", tmp_path):
        for schema in (None, *SCHEMAS):
            with pytest.raises(InvalidInputError) as error:
                read_trace(path, schema=schema)
            assert str(error.value) == f"trace: got {str(path)!r}, allowed: the path of a readable file"
    with pytest.raises(UnknownNameError, match="^schema: got 'csv', allowed: one of azure, bailian, burstgpt"):
        read_trace(tmp_path, schema="csv")
    with pytest.raises(InvalidInputError, match="^trace: "):
        read_trace(file(b"nonsense"), schema="servegen")


# --- what a writer writes, and what a saw leaves of it --------------------------------------------------------------

LOOK = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ids = st.lists(st.integers(0, 30), max_size=4)
ticks = st.integers(0, 4000)  # quarters of a second: exact as seconds and as ms


@LOOK
@given(st.lists(st.tuples(ticks, st.integers(0, 500), st.integers(0, 500)), max_size=6), st.booleans())
def test_burstgpt_round_trip(file, lines, keep):
    lines.sort(key=lambda line: line[0])
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
        f"{t / 4},m,{i},{o},{i + o},API log\n" for t, i, o in lines
    )
    path = file(text.encode())
    workload = read_burstgpt(path, keep_failures=keep)
    kept = [(t * 250.0, i, o) for t, i, o in lines if i and (o or keep)]
    columns = (workload.arrival, workload.input_tokens, workload.output_tokens)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == kept
    assert burstgpt_failures(path, keep_failures=keep) == len(lines) - len(kept)


@st.composite
def bailian_lines(draw):
    lines, now = [], 0
    for i in range(draw(st.integers(0, 6))):
        now += draw(st.integers(0, 40))
        parent = draw(st.integers(-1, i - 1)) if i else -1
        row = {"chat_id": 100 + i, "parent_chat_id": parent if parent < 0 else 100 + parent, "timestamp": now / 4}
        row |= {
            "input_length": draw(st.integers(1, 99)),
            "output_length": draw(st.integers(0, 99)),
            "hash_ids": draw(ids),
        }
        lines.append(row | draw(st.sampled_from([{}, {"type": "text", "turn": 3, "new": {"a": [1]}}])))
    return lines


@LOOK
@given(bailian_lines())
def test_bailian_round_trip(file, lines):
    workload = read_bailian(file("".join(json.dumps(line) + "\n" for line in lines).encode()))
    assert workload.arrival.tolist() == [line["timestamp"] * 1e3 for line in lines]
    assert workload.output_tokens.tolist() == [line["output_length"] for line in lines]
    assert as_before(rows(workload), [line["hash_ids"] for line in lines])
    for i, line in enumerate(lines):
        parent = line["parent_chat_id"] - 100
        assert waits(workload)[i] == ([parent] if parent >= 0 else [])
        gap = workload.arrival[i] - workload.arrival[parent] if parent >= 0 else 0.0
        assert workload.precedence.think[i] == gap


def as_before(found, written):
    """The same ids where they were the same, whatever they are called."""
    names = {}
    pairs = [pair for one, other in zip(found, written, strict=True) for pair in zip(one, other, strict=True)]
    return all(names.setdefault(new, old) == old for new, old in pairs) and len(names) == len({old for _, old in pairs})


@st.composite
def streams(draw, begin, depth):
    """Entries of a session from a time on, and when the last of them begins."""
    entries, now = [], begin
    for _ in range(draw(st.integers(0, 3))):
        if depth and draw(st.booleans()):
            inner, _ = draw(streams(now, depth - 1))
            entries.append(agent(*inner))
        else:
            now += draw(st.integers(0, 40))
            think = draw(st.sampled_from([{}, {"think_time": draw(st.integers(0, 80)) / 4}]))
            entries.append(asked(now / 4, draw(st.integers(1, 300)), draw(ids), **think))
    return entries, now


def leaves(entries):
    for entry in entries:
        yield from leaves(entry["requests"]) if "requests" in entry else [entry]


def walked(entries, after, found):
    """The rules, on the entries themselves: appends (entry, whom it waits for) to `found`, returns whom one waits for behind."""
    previous, open_agents = list(after), []
    for entry in entries:
        if "requests" in entry:
            open_agents.extend(walked(entry["requests"], previous, found))
            continue
        ended = [one for one in open_agents if one["t"] <= entry["t"]]
        open_agents = [one for one in open_agents if one["t"] > entry["t"]]
        found.append((entry, [*previous, *ended]))
        previous = [entry]
    return [*previous, *open_agents]


@LOOK
@given(streams(0, 2), streams(0, 1))
def test_weka_round_trip(tmp_path_factory, one, other):
    folder = tmp_path_factory.mktemp("weka")
    written = [one[0], other[0]]
    for name, entries in zip("ab", written, strict=True):
        (folder / f"{name}.json").write_text(json.dumps(session(*entries)))
    workload = read_weka(folder)
    workload.validate()
    found = []
    for entries in written:
        walked(entries, [], found)
    assert [id(entry) for entry, _ in found] == [id(entry) for entries in written for entry in leaves(entries)]
    order = sorted(range(len(found)), key=lambda i: found[i][0]["t"])
    place = {id(found[i][0]): at for at, i in enumerate(order)}
    assert workload.arrival.tolist() == [found[i][0]["t"] * 1e3 for i in order]
    assert workload.input_tokens.tolist() == [found[i][0]["in"] for i in order]
    for at, i in enumerate(order):
        entry, before = found[i]
        assert waits(workload)[at] == sorted({place[id(each)] for each in before})
        gap = min((entry["t"] - each["t"] for each in before), default=0.0)
        assert workload.precedence.think[at] == min(entry.get("think_time", 0.0), gap) * 1e3
    owner = [0] * len(list(leaves(written[0]))) + [1] * len(list(leaves(written[1])))
    assert as_before(rows(workload), [[(owner[i], ident) for ident in found[i][0]["hash_ids"]] for i in order])


def sawn(data, content):
    """Cut, overwrite, double or insert somewhere."""
    at, until = sorted((data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))))
    junk = data.draw(
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from([b"", b"\n", b",", b'"', b"-1", b"0", b"1e999", b"NaN", b"null", b"[[", b"{", b"9" * 25, b'"requests":'])
        )
    )  # fmt: skip
    return data.draw(
        st.sampled_from(
            [content[:at] + junk, content[:at] + junk + content[until:], content[:until] + junk + content[at:]]
        )
    )


@LOOK
@given(st.sampled_from(sorted(CONTENT)), st.booleans(), st.data())
def test_broken_bytes_are_refused_or_read(file, schema, said, data):
    path = file(sawn(data, CONTENT[schema]))
    try:
        workload, lines = read_trace(path, schema=schema if said else None), None
    except TraceError as error:
        workload, lines = error.workload, error.lines_read
    workload.validate()
    assert lines in (None, len(workload))


@LOOK
@given(st.sampled_from(["chunk-0-trace.csv", "chunk-0-dataset.json"]), st.data())
def test_broken_clients_are_refused_or_read(tmp_path_factory, name, data):
    folder = servegen(tmp_path_factory.mktemp("servegen") / "s", {0: CLIENTS[0]})
    (folder / name).write_bytes(sawn(data, (folder / name).read_bytes()))
    with suppress(InvalidInputError):
        read_trace(folder).validate()


@LOOK
@given(st.binary(max_size=80), st.sampled_from([None, *SCHEMAS]))
def test_any_bytes_are_refused_or_read(file, content, schema):
    with suppress(InvalidInputError):
        read_trace(file(content), schema=schema).validate()


# --- what is there in life -----------------------------------------------------------------------------------------


def test_the_sessions_of_weka():
    folder = shared("traces/weka_sessions")
    workload = read_trace(folder)
    files = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert len(workload) == sum(len(each["requests"]) for each in files) == 389
    totals = [each["totals"]["combined_tokens"] for each in files]
    assert int(workload.input_tokens.sum()) == sum(total["input"] for total in totals)
    assert int(workload.output_tokens.sum()) == sum(total["output"] for total in totals)
    number = workload.sessions()
    assert number.max() + 1 == len(files) == 13
    assert sorted(np.bincount(number).tolist()) == sorted(len(each["requests"]) for each in files)
    for i in range(len(workload)):
        assert len(workload.precedence.waits_for(i)) <= 1, "none of these has a sub-agent"
    for one, other in pairwise(np.flatnonzero(number == 5)):
        assert workload.precedence.waits_for(other).tolist() == [one]


@pytest.mark.parametrize(
    ("name", "schema", "count"),
    [("mooncake_conversation.jsonl", "mooncake", 12_031), ("azure_2023_conversation.csv", "azure", 19_366)],
)
def test_the_traces_that_lie_beside(name, schema, count):
    path = shared(f"traces/{name}")
    assert schema_of(path) == schema
    workload = read_trace(path)
    assert isinstance(workload, Workload) and len(workload) == count
