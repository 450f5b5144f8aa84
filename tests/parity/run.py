"""Does the library answer as llm-d's router does? ``python tests/parity/run.py FILE... [--components a,b]``.

Prints one line for each case that fails, then the cases of components that the library does not have yet, then
``N passed, N failed, N skipped``. Exits with 1 where a case fails, with 2 where a file cannot be read. Skipped is what
``docs/reference/differences.md`` lists, and nothing else.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.parity import (
    affinity,
    approximate,
    blocks,
    caches,
    configs,
    events,
    flow_config,
    flow_controller,
    flow_eviction,
    flow_fairness,
    flow_lifecycle,
    flow_saturation,
    handlers,
    hashes,
    load,
    plugins,
    precise,
    sessions,
    way_admission,
    way_pages,
    way_routes,
)
from tests.parity.cases import Case, Outcome, Runner, differences, loaded, outcome
from tests.parity.known import NOT_YET

RUNNERS: dict[tuple[str, str], Runner] = {
    **hashes.RUNNERS,
    **approximate.RUNNERS,
    **events.RUNNERS,
    **blocks.RUNNERS,
    **precise.RUNNERS,
    **plugins.RUNNERS,
    **affinity.RUNNERS,
    **caches.RUNNERS,
    **sessions.RUNNERS,
    **handlers.RUNNERS,
    **configs.RUNNERS,
    **load.RUNNERS,
    **flow_config.RUNNERS,
    **flow_controller.RUNNERS,
    **flow_eviction.RUNNERS,
    **flow_fairness.RUNNERS,
    **flow_lifecycle.RUNNERS,
    **flow_saturation.RUNNERS,
    **way_routes.RUNNERS,
    **way_admission.RUNNERS,
    **way_pages.RUNNERS,
}


def outcomes(cases: Iterable[Case], components: Sequence[str] | None = None) -> Iterator[Outcome]:
    """Walk what comes of each case of these components, of all without any named."""
    left_out = differences()
    for case in cases:
        component, kind = case["component"], case["kind"]
        if components is not None and component not in components:
            continue
        if (component, kind) not in RUNNERS and (component in NOT_YET or kind.startswith("flow control")):
            yield Outcome(case["id"], component, "not yet")
        else:
            yield outcome(case, RUNNERS, left_out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the files and say what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--components", help="only these, with commas between them")
    options = parser.parse_args(arguments)
    said = options.components
    components = None if said is None else [each.strip() for each in said.split(",") if each.strip()]
    try:
        cases = list(loaded(options.files))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"cannot be read: {error}\n")
        return 2
    counts: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for each in outcomes(cases, components):
        counts[each.state] += 1
        missing[each.component] += each.state == "not yet"
        if each.state == "failed":
            say(f"failed: {one_line(each.id)}: expected {one_line(each.expected)}, got {one_line(each.got)}")
    if counts["not yet"]:
        say(f"not yet: {counts['not yet']} cases of {sum(map(bool, missing.values()))} components")
    say(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def one_line(text: str) -> str:
    """Return a text without line breaks, and not longer than anybody reads."""
    text = " ".join(text.split())
    return text if len(text) <= 400 else f"{text[:400]}..."


if __name__ == "__main__":
    sys.exit(main())
