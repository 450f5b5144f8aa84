"""Is what a trace says read as it is, and is a broken line named without costing the lines before it?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError, TraceError
from inferencesched.simulator import Workload, read_azure, read_mooncake, read_trace
from tests.shared import shared

MOST = 2**31 - 1

MOONCAKE = (
    b'{"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [5, 900, 7]}\n'
    b'{"timestamp": 3000, "input_length": 1024, "output_length": 0, "hash_ids": [5, 900]}\n'
)
AZURE = (
    b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
    b"2023-11-16 18:15:46.6805900,374,44\n"
    b"2023-11-16 18:15:46.6805901,1,0\n"
    b"2023-11-16 18:16:00,1155,3\n"
)


@pytest.fixture
def file(tmp_path):
    def write(content, name="trace.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


# --- what is good ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [read_mooncake, read_trace])
def test_a_mooncake_trace(file, reader):
    workload = reader(file(MOONCAKE))
    assert (workload.name, workload.block_size, len(workload)) == ("trace", 512, 2)
    assert workload.arrival.tolist() == [0.0, 3000.0] and workload.arrival.dtype == np.float64
    assert workload.input_tokens.tolist() == [1100, 1024] and workload.output_tokens.tolist() == [7, 0]
    assert workload.blocks.tolist() == [0, 2, 1, 0, 2], "renumbered from 0, equal where they were equal"
    assert workload.offsets.tolist() == [0, 3, 5]
    assert workload.full_blocks(0).tolist() == workload.full_blocks(1).tolist() == [0, 2]


@pytest.mark.parametrize("reader", [read_azure, read_trace])
def test_an_azure_trace(file, reader):
    workload = reader(file(AZURE, "azure.csv"))
    assert (workload.name, len(workload)) == ("azure", 3)
    assert workload.arrival == pytest.approx([0.0, 0.0001, 13_319.41], abs=1e-9)
    assert workload.input_tokens.tolist() == [374, 1, 1155] and workload.output_tokens.tolist() == [44, 0, 3]
    assert workload.blocks.tolist() == [] and workload.offsets.tolist() == [0, 0, 0, 0]


def test_line_ends_of_windows_spaces_and_empty_lines_are_no_error(file):
    spaced = AZURE.replace(b",", b" , ").replace(b"\n", b"\r\n\r\n")
    assert read_trace(file(spaced)).input_tokens.tolist() == [374, 1, 1155]
    assert len(read_trace(file(MOONCAKE.replace(b"\n", b"\r\n\r\n")))) == 2
    assert len(read_trace(file(MOONCAKE.rstrip()))) == 2, "no end of line at the end"


def test_blocks_may_be_left_out_and_other_fields_may_be_there(file):
    line = b'{"timestamp": 0.5, "type": "text", "input_length": 3, "output_length": 1}'
    workload = read_trace(file(line))
    assert workload.arrival.tolist() == [0.5] and workload.offsets.tolist() == [0, 0]


@pytest.mark.parametrize("content", [b"", b"\n \n", AZURE.splitlines()[0]])
def test_a_trace_of_nothing_has_no_requests(file, content):
    assert len(read_trace(file(content))) == 0


# --- what is broken ----------------------------------------------------------------------------------------------

SCHEMA = "a JSON object of the Mooncake schema ("


def mooncake(**changes):
    fields = {"timestamp": "3000", "input_length": "10", "output_length": "2"} | changes
    return ("{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}").encode()


@pytest.mark.parametrize(
    ("line", "parameter", "value", "allowed"),
    [
        (b"no JSON", "line", "no JSON", SCHEMA),
        (b'{"timestamp": 3000', "line", '{"timestamp": 3000', SCHEMA),
        (mooncake() + b" and", "line", f"{mooncake().decode()} "[:60], SCHEMA),
        (b"[3000, 10, 2]", "line", "[3000, 10, 2]", SCHEMA),
        (b"\xff\xfe", "line", "\ufffd\ufffd", SCHEMA),
        (b'{"timestamp": 3000}', "line", '{"timestamp": 3000}', f"{SCHEMA}Object missing required field"),
        (mooncake(timestamp='"now"'), "line", mooncake(timestamp='"now"').decode()[:60], f"{SCHEMA}Expected `float`"),
        (mooncake(timestamp="NaN"), "line", mooncake(timestamp="NaN").decode()[:60], SCHEMA),
        (mooncake(timestamp="1e999"), "line", mooncake(timestamp="1e999").decode()[:60], SCHEMA),
        (mooncake(timestamp="2999.9"), "timestamp", 2999.9, "ms of at least 3000.0: a trace does not go back in time"),
        (mooncake(timestamp="-1"), "timestamp", -1.0, "ms of at least 3000.0: a trace does not go back in time"),
        (mooncake(input_length="1.5"), "line", mooncake(input_length="1.5").decode()[:60], f"{SCHEMA}Expected `int`"),
        (mooncake(input_length="true"), "line", mooncake(input_length="true").decode()[:60], f"{SCHEMA}Expected `int`"),
        (mooncake(input_length="0"), "input_length", 0, f"an integer from 1 to {MOST}"),
        (mooncake(input_length="-5"), "input_length", -5, f"an integer from 1 to {MOST}"),
        (mooncake(input_length=MOST + 1), "input_length", MOST + 1, f"an integer from 1 to {MOST}"),
        (mooncake(input_length=10**30), "input_length", 10**30, f"an integer from 1 to {MOST}"),
        (mooncake(output_length="-1"), "output_length", -1, f"an integer from 0 to {MOST}"),
        (mooncake(output_length=2**63), "output_length", 2**63, f"an integer from 0 to {MOST}"),
        (mooncake(hash_ids="[1, -2]"), "hash_ids", -2, "integers of at least 0"),
        (mooncake(hash_ids='["a"]'), "line", mooncake(hash_ids='["a"]').decode()[:60], f"{SCHEMA}Expected `int`"),
    ],
)
def test_a_broken_mooncake_line_is_named_and_costs_nothing_before_it(file, line, parameter, value, allowed):
    path = file(MOONCAKE + line + b"\n" + MOONCAKE)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    told(error.value, path, 3, parameter, value, allowed)
    assert error.value.lines_read == 2
    same(error.value.workload, read_trace(file(MOONCAKE)))


@pytest.mark.parametrize(
    ("line", "parameter", "value", "allowed"),
    [
        (
            b"2023-11-16 18:17:00,5",
            "line",
            "2023-11-16 18:17:00,5",
            "3 fields: TIMESTAMP,ContextTokens,GeneratedTokens",
        ),
        (b"2023-11-16 18:17:00,5,6,7", "line", "2023-11-16 18:17:00,5,6,7", "3 fields: "),
        (b"later,5,6", "TIMESTAMP", "later", "a time as 2023-11-16 18:15:46.680590"),
        (b"nan,5,6", "TIMESTAMP", "nan", "a time as 2023-11-16 18:15:46.680590"),
        (b",5,6", "TIMESTAMP", "", "a time as 2023-11-16 18:15:46.680590"),
        (b"2023-13-16 18:17:00,5,6", "TIMESTAMP", "2023-13-16 18:17:00", "a time as "),
        (b"2023-11-16 18:17:00+01:00,5,6", "TIMESTAMP", "2023-11-16 18:17:00+01:00", "a time as "),
        (b"2023-11-16 18:17:00.5e3,5,6", "TIMESTAMP", "2023-11-16 18:17:00.5e3", "a time as "),
        (b"2023-11-16 18:17:\xff\xff,5,6", "TIMESTAMP", "2023-11-16 18:17:\ufffd\ufffd", "a time as "),
        (b"2023-11-16 18:15:46.68,5,6", "TIMESTAMP", pytest.approx(-0.59, abs=1e-6), "ms of at least 13319.41"),
        (b"2023-11-16 18:17:00,five,6", "ContextTokens", "five", "an integer up to "),
        (b"2023-11-16 18:17:00,1.5,6", "ContextTokens", "1.5", "an integer up to "),
        (b"2023-11-16 18:17:00,nan,6", "ContextTokens", "nan", "an integer up to "),
        (b"2023-11-16 18:17:00,--5,6", "ContextTokens", "--5", "an integer up to "),
        (b"2023-11-16 18:17:00," + b"9" * 5000 + b",6", "ContextTokens", "9" * 60, "an integer up to "),
        (b"2023-11-16 18:17:00,2147483648,6", "ContextTokens", MOST + 1, f"an integer from 1 to {MOST}"),
        (b"2023-11-16 18:17:00,0,6", "ContextTokens", 0, f"an integer from 1 to {MOST}"),
        (b"2023-11-16 18:17:00,-5,6", "ContextTokens", -5, f"an integer from 1 to {MOST}"),
        (b"2023-11-16 18:17:00,5,-1", "GeneratedTokens", -1, f"an integer from 0 to {MOST}"),
        (b"2023-11-16 18:17:00,5,", "GeneratedTokens", "", "an integer up to "),
    ],
)
def test_a_broken_azure_line_is_named_and_costs_nothing_before_it(file, line, parameter, value, allowed):
    path = file(AZURE + line + b"\n" + AZURE, "azure.csv")
    with pytest.raises(TraceError) as error:
        read_trace(path)
    told(error.value, path, 5, parameter, value, allowed)
    assert error.value.lines_read == 3
    same(error.value.workload, read_trace(file(AZURE, "azure.csv")))


@pytest.mark.parametrize("header", ["TIMESTAMP,ContextTokens", "TIMESTAMP;ContextTokens;GeneratedTokens", "TIMESTAMP"])
def test_a_header_of_another_schema_is_refused(file, header):
    path = file(header.encode() + b"\n2023-11-16 18:15:46,374,44\n")
    with pytest.raises(TraceError) as error:
        read_trace(path)
    told(error.value, path, 1, "header", header, "TIMESTAMP,ContextTokens,GeneratedTokens")
    assert error.value.lines_read == len(error.value.workload) == 0


def test_a_file_that_is_not_there_is_refused_with_its_name(tmp_path):
    for path in (tmp_path / "missing.jsonl", tmp_path):
        with pytest.raises(InvalidInputError) as error:
            read_trace(path)
        assert str(error.value) == f"trace: got {str(path)!r}, allowed: the path of a readable file"


def told(error, path, line, parameter, value, allowed):
    """The message names file and line, the parameter, the value and what was allowed."""
    assert (error.path, error.line) == (str(path), line)
    assert error.parameter == f"{path}:{line}: {parameter}" and error.value == value
    assert error.allowed.startswith(allowed)
    assert str(error) == f"{path}:{line}: {parameter}: got {error.value!r}, allowed: {error.allowed}"


def same(one, other):
    for column in ("arrival", "input_tokens", "output_tokens", "blocks", "offsets"):
        assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
    assert one.block_size == other.block_size


# --- columns -----------------------------------------------------------------------------------------------------

TOY = Workload.of("toy", [0.0, 5.0, 5.0], [130, 128, 1], [10, 20, 0], [[0, 1, 2], [0, 1], []], block_size=64)


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"arrival": [0.0, 5.0, 4.0]}, "arrival"),
        ({"arrival": [-1.0, 5.0, 5.0]}, "arrival"),
        ({"arrival": [float("nan")] * 3}, "arrival"),
        ({"arrival": [0.0, 1.0, float("inf")]}, "arrival"),
        ({"arrival": [0.0, float("inf"), float("inf")]}, "arrival"),
        ({"arrival": [0.0]}, "input_tokens"),
        ({"input_tokens": [130, 128]}, "input_tokens"),
        ({"input_tokens": [130, 128, 0]}, "input_tokens"),
        ({"input_tokens": [130, 128, 2**31]}, "input_tokens"),
        ({"input_tokens": [130, 128, 2**64]}, "input_tokens"),
        ({"output_tokens": [1, 2, -1]}, "output_tokens"),
        ({"output_tokens": [1, 2, 2**63]}, "output_tokens"),
        ({"blocks": [[], []]}, "offsets"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 1.5}, "block_size"),
        ({"block_size": float("nan")}, "block_size"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(change, parameter):
    columns = {
        "arrival": [0.0, 5.0, 5.0],
        "input_tokens": [130, 128, 1],
        "output_tokens": [10, 20, 0],
        "blocks": [[0, 1, 2], [0, 1], []],
        "block_size": 64,
    }
    assert len(Workload.of("toy", **columns)) == 3
    with pytest.raises(InvalidInputError) as error:
        Workload.of("toy", **(columns | change))
    assert error.value.parameter == parameter


@pytest.mark.parametrize("offsets", [[0, 3, 5], [1, 3, 5, 5], [0, 5, 3, 5], [0, 3, 5, 6]])
def test_offsets_must_lead_into_the_blocks(offsets):
    bad = Workload(
        "bad", TOY.arrival, TOY.input_tokens, TOY.output_tokens, TOY.blocks, np.array(offsets), TOY.block_size
    )
    with pytest.raises(InvalidInputError, match="^offsets: "):
        bad.validate()


def test_any_integers_are_ids():
    """A 64-bit hash does not fit into the column; its place among the others does."""
    names = [[2**64 - 1, -(10**30)], [2**64 - 1, 0]]
    workload = Workload.of("names", [0, 0], [128, 128], [1, 1], names, block_size=64)
    assert workload.blocks.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("speedup", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_is_a_finite_number_above_0(speedup):
    with pytest.raises(InvalidInputError, match=f"^speedup: got {speedup}, allowed: a finite number above 0$"):
        TOY.at_speed(speedup)


def test_faster_means_earlier_and_nothing_else():
    fast = TOY.at_speed(4.0)
    assert fast.arrival.tolist() == [0.0, 1.25, 1.25]
    assert fast.input_tokens is TOY.input_tokens and fast.blocks is TOY.blocks


def test_the_head_is_the_first_requests():
    assert [len(TOY.head(count)) for count in (0, 1, 2, 3, 9)] == [0, 1, 2, 3, 3]
    head = TOY.head(1)
    head.validate()
    assert head.blocks.tolist() == [0, 1, 2] and head.offsets.tolist() == [0, 3]


# --- smaller blocks ----------------------------------------------------------------------------------------------


def test_a_block_of_64_becomes_four_of_16():
    small = TOY.in_blocks(16)
    small.validate()
    assert small.block_size == 16 and small.offsets.tolist() == [0, 8, 16, 16]
    assert small.blocks.tolist() == [*range(8), *range(8)], "130 tokens fill 8, and two tokens of the next"
    assert TOY.in_blocks(64).blocks.tolist() == [0, 1, 0, 1], "full ones only"
    assert TOY.in_blocks(1).offsets.tolist() == [0, 130, 258, 258]


@pytest.mark.parametrize("block_size", [0, -64, 48, 128, float("nan")])
def test_block_sizes_that_do_not_divide_are_refused(block_size):
    with pytest.raises(InvalidInputError) as error:
        TOY.in_blocks(block_size)
    assert str(error.value) == f"block_size: got {block_size}, allowed: a divisor of 64, the trace's block size"


@st.composite
def shared_prompts(draw):
    """Prompts over a tree of blocks of 12 tokens."""
    names, rows = {}, []
    for _ in range(draw(st.integers(1, 6))):
        inputs = draw(st.integers(1, 80))
        path, ids = (), []
        for _ in range(draw(st.integers(0, -(-inputs // 12)))):
            path = (*path, draw(st.integers(0, 1)))
            ids.append(names.setdefault(path, len(names)))
        rows.append((inputs, ids))
    return Workload.of(
        "tree", [0.0] * len(rows), [i for i, _ in rows], [1] * len(rows), [ids for _, ids in rows], block_size=12
    )


@given(shared_prompts(), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_smaller_blocks_keep_what_is_shared(workload, size):
    """Two prompts share as many tokens in small blocks as in large ones: all full small blocks of the shared large ones."""
    small = workload.in_blocks(size)
    small.validate()
    rows = [workload.blocks[workload.offsets[i] : workload.offsets[i + 1]].tolist() for i in range(len(workload))]
    inputs = workload.input_tokens.tolist()
    for i in range(len(workload)):
        assert len(small.full_blocks(i)) == small.offsets[i + 1] - small.offsets[i]
        assert len(small.full_blocks(i)) == min(inputs[i] // size, len(rows[i]) * (12 // size))
        for j in range(len(workload)):
            tokens = min(common(rows[i], rows[j]) * 12, inputs[i], inputs[j])
            assert common(small.full_blocks(i).tolist(), small.full_blocks(j).tolist()) == tokens // size


def common(one, other):
    """How many leading elements are equal?"""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def test_hashes_tell_blocks_apart_and_are_the_same_every_time():
    workload = Workload.of("many", [0.0], [64 * 5000], [1], [range(5000)], block_size=64)
    hashes = workload.block_hashes()
    assert hashes.dtype == np.uint64 and len(set(hashes.tolist())) == 5000
    assert TOY.block_hashes().tolist() == [*TOY.block_hashes().tolist()[:3], *TOY.block_hashes().tolist()[:2]]
    assert hashes[0] == np.uint64(0xE220A8397B1DCDAF), "splitmix64's first output from seed 0"


# --- the public traces -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conversation():
    return read_trace(shared("traces/mooncake_conversation.jsonl"))


def infinite_cache_hit(workload):
    """Share of prompt tokens, and of blocks, that a cache without an end would find."""
    seen, tokens, blocks = set(), 0, 0
    for i in range(len(workload)):
        row = workload.blocks[workload.offsets[i] : workload.offsets[i + 1]].tolist()
        found = 0
        while found < len(row) and row[found] in seen:
            found += 1
        tokens += min(found * workload.block_size, int(workload.input_tokens[i]))
        blocks += found
        seen.update(row)
    return tokens / int(workload.input_tokens.sum()), blocks / len(workload.blocks)


def test_the_conversation_trace_is_the_published_one(conversation):
    assert (conversation.name, conversation.block_size) == ("mooncake_conversation", 512)
    assert len(conversation) == 12_031
    assert len(set(conversation.arrival.tolist())) == 1_180 and conversation.arrival[0] == 0.0
    assert int(conversation.input_tokens.sum()) == 144_793_823
    assert int(conversation.output_tokens.sum()) == 4_122_048
    assert (len(conversation.blocks), len(set(conversation.blocks.tolist()))) == (288_500, 182_790)
    firsts = conversation.blocks[conversation.offsets[:-1]]
    assert set(firsts.tolist()) == {0}, "block 0 is everybody's first"
    assert infinite_cache_hit(conversation) == (pytest.approx(0.3736, abs=5e-5), pytest.approx(0.3664, abs=5e-5))


def test_in_small_blocks_the_conversation_trace_shares_the_same(conversation):
    small = conversation.in_blocks(64)
    small.validate()
    assert (small.offsets[1:] - small.offsets[:-1]).tolist() == (conversation.input_tokens // 64).tolist()
    assert infinite_cache_hit(small)[0] == pytest.approx(0.3736, abs=1e-3)


def test_the_synthetic_trace_is_the_published_one():
    synthetic = read_trace(shared("traces/mooncake_synthetic.jsonl"))
    assert len(synthetic) == 3_993
    assert infinite_cache_hit(synthetic)[0] == pytest.approx(0.6512, abs=5e-5)
    assert synthetic.input_tokens.mean() == pytest.approx(15_325, abs=1)
    assert synthetic.output_tokens.mean() == pytest.approx(149, abs=1)


def test_the_azure_trace_is_the_published_one():
    azure = read_trace(shared("traces/azure_2023_conversation.csv"))
    assert (len(azure), len(azure.blocks)) == (19_366, 0)
    assert azure.input_tokens.mean() == pytest.approx(1_155, abs=1)
    assert azure.output_tokens.mean() == pytest.approx(211, abs=1)
    assert azure.arrival[-1] / 60e3 == pytest.approx(58, abs=1)
