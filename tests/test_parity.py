"""Does the runner of the reference's vectors say what happened, and does the library match nearly all of them?"""

import json
import re
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest

from tests.parity import run
from tests.parity.cases import DIFFERENCES, Difference, Mismatch, NotYet, differences, loaded, outcome, same, within
from tests.shared import shared

#: What this part of the library stands for.
COMPONENTS = (
    "approx-prefix-cache-producer",
    "approx-prefix-index",
    "prefix-block-hash",
    "kv-block-index",
    "kv-event-index",
    "kv-event-decoder",
    "kv-event-dedup-filter",
    "kv-event-extra-feature-realign",
    "kv-block-extra-keys",
    "longest-prefix-tier-scorer",
    "precise-prefix-cache-producer",
)


def case(name="c/one", component="prefix-block-hash", kind="function", **fields):
    params = {"function": "split_blocks_approx", "token_ids": [1, 2], "block_size": 1}
    plain = {"endpoints": [], "request": {}, "tolerance": 0, "expect": {"value": [[1], [2]]}}
    return {"id": name, "component": component, "kind": kind, "params": params} | plain | fields


#: Cases of the same kinds, made up here.
PRECISE, ONE = "precise-prefix-cache-producer", [{"name": "p", "address": "1", "port": "2"}]
MADE_UP = [
    case(
        "a medium that no engine says",
        "longest-prefix-tier-scorer",
        "kv-match",
        params={"function": "longest_prefix_score", "medium_weights": {"gpu": 1.0, "cpu": 0.5}},
        block_keys=[1, 2],
        key_to_pods={
            "1": [{"pod": "a", "tier": "tape"}],
            "2": [{"pod": "a", "tier": "cpu"}, {"pod": "a", "speculative": True}],
        },
        expect={"scores_present_only": {"a": 2.0}},
    ),
    case(
        "sent, not confirmed",
        PRECISE,
        "kv-match",
        params={"function": "matched_block_count_by_tier", "pod": "a"},
        block_keys=[1, 2, 3],
        key_to_pods={
            "1": [{"pod": "a", "speculative": True}, {"pod": "a", "tier": "gpu"}],
            "2": [{"pod": "a", "tier": "gpu"}],
        },
        expect={"value": {"gpu": 2, "speculative": 1}},
    ),
    case(
        "canned scores of two prompts",
        PRECISE,
        "producer",
        params={"blockSizeTokens": 16},
        endpoints=ONE,
        request={"request_id": "r"},
        scripted_index={"keys_per_prompt": [[5, 6], [7]], "scores": {"1:2": 2.0}},
        expect={"match": {"p": {"match_blocks": 3, "total_blocks": 3}}},
    ),
    case(
        "a picture in slower memory",
        PRECISE,
        "producer",
        params={"blockSizeTokens": 16},
        endpoints=ONE,
        request={"request_id": "r", "mm_features": [{"hash": "h", "offset": 16, "length": 4}]},
        scripted_index={
            "keys_per_prompt": [[5, 6, 7]],
            "key_to_pods": {key: [{"pod": "1:2", "tier": "cpu"}] for key in "56"},
        },
        expect={"match": {"p": {"match_blocks": 1, "cached_block_count": 2, "mm": {"match_blocks": 1}}}},
    ),
    case(
        "nothing is booked without speculation",
        PRECISE,
        "pre-request",
        params={"speculativeIndexing": False},
        endpoints=ONE,
        request={"request_id": "r", "block_keys_per_prompt": [[1, 2], [3]]},
        results={"d": {"targets": ["p"]}},
        primary="d",
        expect={"index_adds": []},
    ),
    case(
        "prompts are booked one by one",
        PRECISE,
        "pre-request",
        params={"speculativeIndexing": True},
        endpoints=ONE,
        request={"request_id": "r", "block_keys_per_prompt": [[1, 2], [3]]},
        results={"d": {"targets": ["p"]}},
        primary="d",
        expect={"index_adds": [{"pod": "1:2", "keys": keys, "speculative": True} for keys in ([1, 2], [3])]},
    ),
    case(
        "a salt needs a full block",
        PRECISE,
        params={
            "function": "block0_extra_features",
            "num_tokens": 8,
            "block_size": 16,
            "mm_features": [],
            "cache_salt": "s",
        },
        expect={"value": None},
    ),
    case(
        "an event that nobody knows",
        "kv-event-decoder",
        params={"function": "decode_vllm_event", "event": ["BlockMoved", [1]]},
        expect={"error": True},
    ),
    case(
        "long hashes",
        "kv-event-decoder",
        params={
            "function": "decode_vllm_event",
            "event": ["BlockRemoved", [{"bytes_hex": "ff" * 8 + "00" * 7 + "05"}], "CPU", 1],
        },
        expect={"value": {"type": "BlockRemoved", "block_hashes": [5], "medium": "CPU", "group_idx": 1}},
    ),
    case(
        "ranks are caches of their own",
        "kv-event-dedup-filter",
        "sequence",
        steps=[
            *({"op": "store", "scope": {"pod": "a", "tier": "gpu", "dp_rank": rank}, "hashes": [1]} for rank in (0, 1)),
            {
                "op": "remove",
                "scope": {"pod": "a", "tier": "gpu", "dp_rank": 1},
                "hashes": [1],
                "expect": {"forwarded": [1]},
            },
        ],
        expect={},
    ),
    case(
        "a confirmed entry beside one that is not",
        "kv-block-index",
        "sequence",
        steps=[
            {"op": "add", "engine_keys": None, "request_keys": [7], "entries": [{"pod": "a", "speculative": True}]},
            {"op": "add", "engine_keys": [70], "request_keys": [7], "entries": [{"pod": "a", "tier": "gpu"}]},
            {"op": "add", "engine_keys": [70], "request_keys": [7], "entries": [{"pod": "a", "tier": "gpu"}]},
            {"op": "evict", "key": 7, "key_type": "request", "entries": [{"pod": "a", "speculative": True}]},
            {
                "op": "lookup",
                "request_keys": [7],
                "expect": {"entries": {"7": [{"pod": "a", "tier": "gpu"}]}, "num_keys": 1},
            },
            {"op": "evict", "key": 70, "key_type": "engine", "entries": [{"pod": "a", "tier": "gpu"}]},
            {"op": "lookup", "request_keys": [7], "expect": {"entries": {"7": []}, "num_keys": 0}},
            {"op": "get_request_key", "engine_key": 70, "expect": {"error": True}},
        ],
        expect={},
    ),
    case(
        "adapters are domains",
        "kv-event-index",
        "sequence",
        params={"blockSizeTokens": 2},
        steps=[
            {
                "op": "event_batch",
                "pod": "a",
                "model": "m",
                "events": [
                    {"type": "BlockStored", "block_hashes": [1], "token_ids": {"range": [1, 2]}, "lora_name": "sql"},
                    {"type": "BlockStored", "block_hashes": [2], "token_ids": {"range": [3, 4]}, "parent_hash": 1},
                ],
            },
            *(
                {
                    "op": "lookup_blocks",
                    "model": model,
                    "tokens": {"range": [1, 4]},
                    "expect": {"entries_per_block": found},
                }
                for model, found in (("sql", [[{"pod": "a"}]] * 2), ("m", [[], []]))
            ),
            {"op": "event_batch", "pod": "a", "model": "m", "events": [{"type": "AllBlocksCleared"}]},
            {"op": "lookup_blocks", "model": "sql", "tokens": {"range": [1, 4]}, "expect": {"indexed": False}},
        ],
        expect={},
    ),
    case(
        "a token cap below a block",
        "approx-prefix-cache-producer",
        "sequence",
        params={"maxPrefixTokensToMatch": 3},
        endpoints=[{"name": "p", "namespace": "n", "metrics": {"cache_block_size": 128, "cache_num_blocks": 4}}],
        steps=[
            {
                "op": "produce",
                "request": {"request_id": "r", "target_model": "m", "prompts": [[1] * 256]},
                "expect": {"prompt_blocks": [], "match": {"n/p": {"total_blocks": 0, "block_size_tokens": 128}}},
            }
        ],
        expect={},
    ),
    case(
        "relations of hashes",
        kind="block-hash",
        params={"scheme": "approx"},
        hash_calls=[
            {"id": "a", "prompts": [[1, 2, 3]], "block_size": 2, "model": "m", "cache_salt": "x"},
            {"id": "b", "prompts": [[1, 2, 3]], "block_size": 2, "model": "m"},
        ],
        expect={
            "same_length": [["a", "b"]],
            "disjoint": [["a", "b"]],
            "nonzero": ["a[0][0]", "b"],
            "not_equal": [["a", "b"]],
            "all_distinct": ["a[0][1]", "b[0][1]"],
        },
    ),
]


def written(tmp_path, *cases):
    path = tmp_path / "vectors.json"
    path.write_text(json.dumps(cases))
    return str(path)


# --- the vectors -------------------------------------------------------------------------------------------------


def test_nearly_all_of_them_match():
    counts = Counter(each.state for each in run.outcomes(loaded([shared("vectors/scheduling.json")]), COMPONENTS))
    assert set(counts) <= {"passed", "failed", "skipped"}, "every component and kind of these has a runner"
    asked = counts["passed"] + counts["failed"]
    assert counts["passed"] >= 0.97 * asked
    assert counts["skipped"] <= 0.03 * (asked + counts["skipped"])
    assert asked >= 100


def test_every_case_is_told_of():
    cases = list(loaded([shared("vectors/scheduling.json"), shared("vectors/flowcontrol.json")]))
    told = list(run.outcomes(cases))
    assert [each.id for each in told] == [case["id"] for case in cases]
    assert {each.state for each in told} <= {"passed", "failed", "skipped", "not yet"}


def test_ids_that_are_written_out_exist():
    ids = {case["id"] for case in loaded([shared("vectors/scheduling.json"), shared("vectors/flowcontrol.json")])}
    assert [each.pattern for each in differences() if "*" not in each.pattern and each.pattern not in ids] == []


def leaves(value, path=()):
    """Walk the paths to what has no parts."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in parts:
        yield from leaves(each, (*path, name))
    if not parts or not value:
        yield path


def changed(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [12345] if isinstance(value, list) else {"x": 1}


@pytest.mark.slow
def test_every_expectation_matters():
    """Whatever part of an expectation is changed, its case fails: all but those that then say less."""
    unseen = set()
    for each in loaded([shared("vectors/scheduling.json")]):
        if each["component"] not in COMPONENTS:
            continue
        roots = [("steps", i, "expect") for i, step in enumerate(each.get("steps", ())) if "expect" in step]
        for root in roots or [("expect",)]:
            for path in leaves(at(each, root), root):
                other = deepcopy(each)
                at(other, path[:-1])[path[-1]] = changed(at(each, path))
                if outcome(other, run.RUNNERS, ()).state != "failed":
                    unseen.add(path[3])
    assert unseen == {"order", "not_contains", "min_prompt_blocks"}


def at(value, path):
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("each", MADE_UP, ids=lambda each: each["id"])
def test_cases_that_nobody_published(each):
    """What the vectors' description allows, and no published case has."""
    assert outcome(each, run.RUNNERS, ()) == (each["id"], each["component"], "passed", "", "")


# --- the runner --------------------------------------------------------------------------------------------------


def test_the_last_line_counts(tmp_path, capsys):
    wrong = case("c/two", expect={"value": [[1, 2]]})
    assert run.main([written(tmp_path, case(), wrong)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["failed: c/two: expected [[1, 2]], got [[1], [2]]", "1 passed, 1 failed, 0 skipped"]
    assert run.main([written(tmp_path, case())]) == 0


def test_what_is_not_known_fails_unless_it_is_left_out(tmp_path, capsys):
    path = written(tmp_path, case(), case("c/two", "prefix-block-abacus"), case("c/three", kind="abacus"))
    assert run.main([path]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "failed: c/two: expected a runner for prefix-block-abacus (function), got none",
        "failed: c/three: expected a runner for prefix-block-hash (abacus), got none",
        "1 passed, 2 failed, 0 skipped",
    ]
    assert run.main([path, "--components", "kv-event-index,kv-event-decoder"]) == 0
    assert capsys.readouterr().out == "0 passed, 0 failed, 0 skipped\n"


def test_what_the_library_does_not_have_yet_is_counted_by_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "NOT_YET", frozenset(("tea-scorer", "rice-scorer")))
    several = [case("c/two", "tea-scorer"), case("c/three", "rice-scorer"), case("c/four", "tea-scorer")]
    assert run.main([written(tmp_path, case(), *several)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["not yet: 3 cases of 2 components", "1 passed, 0 failed, 0 skipped"]


def test_an_error_is_a_failure_of_its_case_only():
    def broken(case):
        raise ZeroDivisionError("by none")

    told = outcome(case(), {("prefix-block-hash", "function"): broken}, ())
    assert (told.state, told.got) == ("failed", "ZeroDivisionError: by none")


def test_what_is_expected_and_nobody_asks_for_is_a_failure():
    told = outcome(case(expect={"value": [[1], [2]], "colour": "red"}), run.RUNNERS, ())
    assert (told.state, told.expected, told.got) == ("failed", "'something the runner knows: expectation'", "'colour'")


def test_a_part_that_is_missing_is_not_a_failure():
    def early(case):
        raise NotYet("tea")

    assert outcome(case(), {("prefix-block-hash", "function"): early}, ()).state == "not yet"


def test_only_what_the_page_lists_is_skipped():
    def never(case):
        pytest.fail("a case that is left out was run")

    told = outcome(case("c/a [1]"), {("prefix-block-hash", "function"): never}, [Difference("c/a *", "so it is")])
    assert (told.state, told.got) == ("skipped", "so it is")
    assert Difference("c/*size*", "").covers("c/PodCacheSize")
    assert not Difference("c/a", "").covers("c/ab") and not Difference("c.a", "").covers("c/a")


def test_the_page_is_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n| `not/here` | x |\n\n## Cases that are left out\n\n| cases | why |\n|---|---|\n"
        "| `a/*` `b/one` | because |\n\n## Others\n\n| `c/one` | x |\n"
    )
    assert differences(page) == [Difference("a/*", "because"), Difference("b/one", "because")]
    assert differences() and all(each.reason for each in differences())
    assert re.search(r"^differences$", (DIFFERENCES.parent / "index.md").read_text(), re.MULTILINE)


def test_it_runs_as_a_program_from_anywhere(tmp_path):
    program = Path(run.__file__).resolve()
    done = subprocess.run(
        [sys.executable, str(program), written(tmp_path, case())],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1 passed, 0 failed, 0 skipped\n"), done.stderr
    done = subprocess.run(
        [sys.executable, str(program), "nowhere.json"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2 and b"nowhere.json" in done.stderr


def test_equal_is_equal():
    same(1.0, 1.0 + 1e-13)
    same(0.5, 0.6, tolerance=0.2)
    within({"a": 1}, {"a": 1, "b": 2})
    for call in (
        lambda: same(True, 1.5),
        lambda: same(1, 2),
        lambda: same([1], [1, 2]),
        lambda: within({"a": 1}, {}),
        lambda: within({"a": 1}, {"a": 2}),
    ):
        with pytest.raises(Mismatch, match="expected"):
            call()


@pytest.mark.parametrize(("name", "least", "skipped"), [("scheduling", 780, 1), ("flowcontrol", 491, 5)])
def test_of_all_that_is_published_nothing_fails(name, least, skipped):
    """The whole file: what has a runner passes, but for what the page of differences lists."""
    found = list(run.outcomes(loaded([shared(f"vectors/{name}.json")])))
    assert not [each for each in found if each.state == "failed"]
    counts = Counter(each.state for each in found)
    assert counts["passed"] >= least
    assert counts["skipped"] <= skipped
