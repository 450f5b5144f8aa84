"""Do the fuzzers run, find nothing in a short run, and see what they should?"""

import pytest

import inferencesched as isched
from tests.fuzz import fuzz_events


def test_a_short_run_finds_nothing_and_reaches_all_there_is():
    run = fuzz_events.Run(seed=7)
    outcomes = run.go(executions=3_000)
    assert run.executions == 3_000
    assert all(outcomes[name] > 50 for name in ("read", "refused", "checks", "step next", "step gap", "step restart"))
    assert outcomes["stored blocks"] > 1_000


def test_the_same_seed_makes_the_same_run():
    first, second = (fuzz_events.Run(seed=3) for _ in range(2))
    assert first.go(executions=300) == second.go(executions=300) and first.payload == second.payload


def test_what_is_wrong_is_found(monkeypatch):
    def broken(payload, *, encoding="msgpack"):
        raise MemoryError

    monkeypatch.setattr(isched, "decode_event_batch", broken)
    with pytest.raises(MemoryError):
        fuzz_events.Run(seed=1).go(executions=100)
