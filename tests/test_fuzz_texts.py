"""Do the fuzzers of texts run, find nothing in a short run, and see what they should?"""

import pytest

from inferencesched.errors import BodyError
from tests.fuzz import fuzz_bodies, fuzz_manifests, fuzz_metrics, texts

RUNS = {
    "bodies": (fuzz_bodies, fuzz_bodies.BODIES, ("read", "refused")),
    "manifests": (fuzz_manifests, fuzz_manifests.MANIFESTS, ("read", "refused", "no JSON")),
    "metrics": (fuzz_metrics, fuzz_metrics.pages(), ("read", "refused")),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_finds_nothing_and_reaches_all_there_is(name):
    module, seeds, words = RUNS[name]
    outcomes = texts.Run(seeds, module.look, seed=7).go(executions=2_000)
    assert sum(outcomes.values()) == 2_000
    assert all(outcomes[word] > 50 for word in words), outcomes


def test_what_is_wrong_is_found(monkeypatch):
    def cut_wrong(raw, known, name):
        return raw.replace(b"model", b"modell", 1)

    monkeypatch.setattr("inferencesched.routing.body.parse.spliced_model", cut_wrong)
    with pytest.raises((KeyError, AssertionError, BodyError)):
        texts.Run(fuzz_bodies.BODIES, fuzz_bodies.look, seed=1).go(executions=300)
