"""The reference's own expectations of the everyday plug-ins (llm-d router's unit tests, as data): one test a case.

How they are told to the library: `tests.parity.plugins`.
"""

import json

import pytest

import inferencesched as isched
from tests.parity import run as everybody
from tests.parity.cases import check, differences
from tests.parity.plugins import RUNNERS
from tests.shared import SHARED

VECTORS = SHARED / "vectors" / "scheduling.json"


def cases():
    if not VECTORS.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="reference vectors are not beside this checkout"))]
    found = [c for c in json.loads(VECTORS.read_text()) if (c["component"], c["kind"]) in RUNNERS]
    return [pytest.param(case, id=case["id"]) for case in found]


@pytest.mark.parametrize("case", cases())
def test_case(case):
    run = everybody.RUNNERS[case["component"], case["kind"]]
    if any(difference.covers(case["id"]) for difference in differences()):
        assert case["component"] == "scheduler-profile", "no other of these is left out"
        with pytest.raises(isched.ScoreError):
            check(case, run)
        return
    check(case, run)
