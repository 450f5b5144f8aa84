"""llm-d's own expectations of prefixes and KV events (its router's unit tests, as data): one test a case.

How they are told to the library: `tests.parity`.
"""

import json

import pytest

from tests.parity import approximate, blocks, events, hashes, precise
from tests.parity.cases import check, differences
from tests.shared import SHARED

VECTORS = SHARED / "vectors" / "scheduling.json"
RUNNERS = {**hashes.RUNNERS, **approximate.RUNNERS, **events.RUNNERS, **blocks.RUNNERS, **precise.RUNNERS}
#: Component -> how many cases of it are published; all of them are run.
COUNTS = {
    "approx-prefix-cache-producer": 17,
    "approx-prefix-index": 2,
    "kv-block-extra-keys": 6,
    "kv-block-index": 15,
    "kv-block-token-processor": 21,
    "kv-event-decoder": 12,
    "kv-event-dedup-filter": 6,
    "kv-event-extra-feature-realign": 4,
    "kv-event-index": 15,
    "longest-prefix-tier-scorer": 2,
    "precise-prefix-cache-producer": 27,
    "prefix-block-hash": 9,
}


def cases():
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="reference vectors are not beside this checkout"))]
    found = [case for case in json.loads(VECTORS.read_text(encoding="utf-8")) if case["component"] in COUNTS]
    return [pytest.param(case, id=case["id"]) for case in found]


def test_no_case_is_overlooked():
    found = [param.values[0] for param in cases()]
    if found == [None]:
        pytest.skip("reference vectors are not beside this checkout")
    components = [case["component"] for case in found]
    assert {name: components.count(name) for name in COUNTS} == COUNTS
    assert {(case["component"], case["kind"]) for case in found} == RUNNERS.keys()


@pytest.mark.parametrize("case", cases())
def test_case(case):
    assert not any(difference.covers(case["id"]) for difference in differences()), "none of these is left out"
    check(case, RUNNERS[case["component"], case["kind"]])
