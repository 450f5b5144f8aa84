"""Does the page of policies have every policy, as it says of itself, and every rule of the zoo?"""

from pathlib import Path

from inferencesched import zoo
from inferencesched.simulator import POLICIES

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "zoo.md").read_text(encoding="utf-8")


def test_every_policy_is_there_as_it_says_of_itself():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for each in POLICIES.values():
        assert f"| `{each.name}` | {each.what} | {each.source or '-'} |" in rows
    assert sum(row.count(" | ") == 2 for row in rows) == len(POLICIES)


def test_every_rule_is_there():
    scorers = {name for name in zoo.__all__ if name.endswith("Scorer")}
    plain = {"BusiestScorer", "PredictedFirstTokenScorer"}  # their policies say all there is to say
    assert {name for name in scorers if f"`{name}`" not in PAGE} == plain
