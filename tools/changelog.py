"""Are the changelog fragments well formed, and what do they say together?

python tools/changelog.py check                     exit status 1 and one line for each fault
python tools/changelog.py release VERSION DATE      fold changelog.d/ into CHANGELOG.md
"""

import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRAGMENTS = ROOT / "changelog.d"
CHANGELOG = ROOT / "CHANGELOG.md"
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")  # the order of Keep a Changelog
NAME = re.compile(rf"[a-z0-9]+(-[a-z0-9]+)*\.({'|'.join(KINDS)})\.md")
ACTION = "Action required:"
WAITING = "Changes since the last release wait as fragments in [changelog.d](changelog.d/README.md)"


def faults(folder: Path = FRAGMENTS) -> list[str]:
    """Return what is wrong with the fragments, one line for each fault."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name == "README.md":
            continue
        if not NAME.fullmatch(path.name):
            found.append(f"{path.name}: the name is not <words>.<kind>.md with a kind of {', '.join(KINDS)}")
            continue
        paragraphs = _paragraphs(path)
        if not paragraphs:
            found.append(f"{path.name}: empty")
            continue
        if paragraphs[0][0] in "#-*":
            found.append(f"{path.name}: starts with a heading or a bullet; write a sentence")
        found += [f"{path.name}: a paragraph does not end in a full stop" for p in paragraphs if not p.endswith(".")]
        acts = [i for i, p in enumerate(paragraphs) if p.startswith(ACTION)]
        if acts and acts != [len(paragraphs) - 1]:
            found.append(f"{path.name}: '{ACTION}' opens the last paragraph, and only that")
        if not acts and any("action required" in p.lower() for p in paragraphs):
            found.append(f"{path.name}: write '{ACTION}' exactly so, at the start of the last paragraph")
        if not acts and path.name.endswith(".removed.md"):
            found.append(f"{path.name}: something was removed; say under '{ACTION}' what to use instead")
    if WAITING not in CHANGELOG.read_text(encoding="utf-8"):
        found.append(f"CHANGELOG.md: the paragraph '{WAITING}...' is gone; releases are put below it")
    return found


def section(version: str, day: str, folder: Path = FRAGMENTS) -> str:
    """Return the fragments as one release's section."""
    lines = [f"## {version} ({day})"]
    for kind in KINDS:
        paths = sorted(folder.glob(f"*.{kind}.md"))
        if paths:
            lines += ["", f"### {kind.capitalize()}", ""]
            lines += ["- " + "\n\n  ".join(_paragraphs(path)) for path in paths]
    return "\n".join(lines) + "\n"


def release(version: str, day: str) -> None:
    """Write the fragments into CHANGELOG.md below its introduction, and delete them."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", version):
        sys.exit(f"{version!r} is not a version like 0.2.0")
    date.fromisoformat(day)
    text = CHANGELOG.read_text(encoding="utf-8")
    intro, _, older = text.partition("\n## ")
    intro = re.sub(rf"{re.escape(WAITING)}[^\n]*", f"{WAITING}.", intro)
    older = f"\n## {older}" if older else ""
    CHANGELOG.write_text(f"{intro.rstrip()}\n\n{section(version, day)}{older}", encoding="utf-8")
    for path in FRAGMENTS.glob("*.*.md"):
        path.unlink()


def _paragraphs(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()]


def main(arguments: list[str]) -> None:
    """Run one of the two commands."""
    if arguments not in (["check"], ["release", *arguments[1:3]]) or len(arguments) not in (1, 3):
        sys.exit(__doc__)
    found = faults()
    if found:
        sys.exit("\n".join(found))
    if arguments[0] == "release":
        release(arguments[1], arguments[2])
    else:
        print(f"changelog.d: {sum(1 for _ in FRAGMENTS.glob('*.*.md'))} well-formed fragments")


if __name__ == "__main__":
    main(sys.argv[1:])
