"""How is an explanation read by people: as text, on a terminal with colours, in a notebook?

All three are made of the plain data (`inferencesched.explain.schema`), so that one that was kept as JSON can be read as well.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Final

from inferencesched.explain.schema import (
    CandidateRecord,
    ChangeRecord,
    DropRecord,
    ExplanationRecord,
    ProfileRecord,
    Rule,
    SignalRecord,
)

RULES: Final[dict[Rule, str]] = {
    "only candidate": "it was the only candidate",
    "highest total": "decided by the highest total",
    "least recently picked": "decided between equal totals by who was picked least recently",
    "drawn": "decided by a draw",
    "picker": "decided by the picker's own rule, not by totals",
    "handler": "decided by the handler, otherwise than by the profile alone",
}
#: What rich takes for a tag, with the backslashes before it.
_TAG: Final = re.compile(r"(\\*)(\[[a-z#/@][^[]*?\])")
#: So many candidates, dropped endpoints and changes are told; the plain data holds all.
CANDIDATES: Final = 10
DROPS: Final = 20
CHANGES: Final = 3


def text(told: ExplanationRecord) -> str:
    """Return the explanation as lines of plain text."""
    return "\n".join(line for line, _ in _lines(told))


def markup(told: ExplanationRecord) -> Iterator[str]:
    """Yield the lines with rich's markup: the winner bold, what was dropped dim, what would flip it in colour."""
    for line, style in _lines(told):
        plain = _TAG.sub(_untagged, line)
        if style:
            ends = plain[len(plain.rstrip("\\")) :]  # a backslash before the closing tag would take it for text
            yield f"[{style}]{plain}{ends}[/{style}]"
        else:
            yield plain


def _untagged(found: re.Match[str]) -> str:
    """Return what rich shows as the word itself, where it would take it for a tag."""
    return f"{found[1]}{found[1]}\\{found[2]}"


def html(told: ExplanationRecord) -> str:
    """Return the explanation as a table for a notebook; every word in it is escaped."""
    parts = [f"<p><b>request {_said(told['request_id'])}</b>: {_said(told['endpoint'])}</p>"]
    for profile in (told, *told["others"]):
        parts += [_table(profile), "<ul>"]
        rest = [line.strip() for line, style in _profile_lines(profile) if style]
        parts += [f"<li>{escape(line)}</li>" for line in rest]
        parts.append("</ul>")
    parts += [f"<p>{escape(line)}</p>" for line, _ in _failed_lines(told)]
    return "".join(parts)


def _said(word: str) -> str:
    return f"<code>{escape(word)}</code>"


def _table(profile: ProfileRecord) -> str:
    head = [f"profile {_said(profile['profile'])}", "total", "age"]
    head += [f"{weight['weight']:g} &times; {_said(weight['scorer'])}" for weight in profile["weights"]]
    rows = []
    for candidate in _ranked(profile)[:CANDIDATES]:
        name = _said(candidate["endpoint"])
        cells = [f"<b>{name}</b>" if candidate["endpoint"] == profile["endpoint"] else name]
        cells += [_number(candidate["total"]), escape(_age(candidate))]
        cells += [
            f"{_number(score['score'])}{'' if score['scored'] else ' (no word)'}" for score in candidate["scores"]
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    header = "<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    return f"<table><thead>{header}</thead><tbody>{''.join(rows)}</tbody></table>"


def _lines(told: ExplanationRecord) -> Iterator[tuple[str, str]]:
    yield f"request {told['request_id']!r}, profile {told['profile']!r}: {told['endpoint']!r}", "bold"
    yield from _profile_lines(told)
    for other in told["others"]:
        yield f"profile {other['profile']!r}: {other['endpoint']!r}", "bold"
        yield from _profile_lines(other)
    yield from _failed_lines(told)


def _failed_lines(told: ExplanationRecord) -> Iterator[tuple[str, str]]:
    for failed in told["failed"]:
        yield f"profile {failed['profile']!r} kept nobody", "bold"
        yield from _drops(failed["dropped"])


def _profile_lines(profile: ProfileRecord) -> Iterator[tuple[str, str]]:
    """Walk what is said of one profile, each line with the style it has where there are colours."""
    if profile["runner_up"] is None:
        yield RULES["only candidate"], "italic"
    else:
        tie = ", a tie" if profile["tie"] else ""
        margin = _number(profile["margin"])
        yield f"{RULES[profile['rule']]}; runner-up {profile['runner_up']!r}, margin {margin}{tie}", "italic"
    ranked = _ranked(profile)
    yield from ((_candidate(candidate, profile), "") for candidate in ranked[:CANDIDATES])
    if len(ranked) > CANDIDATES:
        yield f"  and {len(ranked) - CANDIDATES} more", ""
    for k, weight in enumerate(profile["weights"]):
        silent = [each["endpoint"] for each in profile["candidates"] if not each["scores"][k]["scored"]]
        if silent:
            yield f"  {weight['scorer']} has no word on {_some(silent)}", "dim"
    yield from ((_reading(signal, profile), "dim") for signal in profile["signals"])
    yield from _drops(profile["dropped"])
    for weight in profile["weights"]:
        if weight["flips_at"] is not None:
            yield f"it would flip if {weight['scorer']} weighed {weight['flips_at']:.6g}", "cyan"
    yield from ((_change(change), "cyan") for change in profile["changes"][:CHANGES])


def _ranked(profile: ProfileRecord) -> list[CandidateRecord]:
    """Return the candidates, the best total first; equal ones as they stood."""
    return sorted(profile["candidates"], key=lambda each: -(each["total"] or 0.0))


def _candidate(candidate: CandidateRecord, profile: ProfileRecord) -> str:
    parts = [
        f"{weight['weight']:g}*{score['score'] or 0.0:.3f} {score['scorer']}"
        for weight, score in zip(profile["weights"], candidate["scores"], strict=True)
    ]
    total = _number(candidate["total"])
    return f"  {candidate['endpoint']}: {total} = {' + '.join(parts) or 'no scorers'} ({_age(candidate)})"


def _age(candidate: CandidateRecord) -> str:
    age = "never observed" if candidate["age"] is None else f"{candidate['age']:.3f} s old"
    return f"{age}, not believed" if candidate["stale"] and candidate["age"] is not None else age


def _reading(signal: SignalRecord, profile: ProfileRecord) -> str:
    """Return what a signal said of the two that matter."""
    names = [name for name in (profile["endpoint"], profile["runner_up"]) if name in signal["values"]]
    values = ", ".join(f"{name} {_number(signal['values'][name])}" for name in names if name is not None)
    unit = _unit(signal["unit"])
    return f"  {signal['signal']}{unit} ({signal['freshness']}, read by {', '.join(signal['readers'])}): {values}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - CANDIDATES} more" if len(names) > CANDIDATES else ""
    return ", ".join(names[:CANDIDATES]) + more


def _drops(drops: list[DropRecord]) -> Iterator[tuple[str, str]]:
    yield from ((_drop(drop), "dim") for drop in drops[:DROPS])
    if len(drops) > DROPS:
        yield f"  and {len(drops) - DROPS} more dropped", "dim"


def _drop(drop: DropRecord) -> str:
    read = ", ".join(f"{name} {_number(value)}" for name, value in drop["read"].items())
    because = drop["reason"] or (f"it read {read}" if read else "")
    return f"  {drop['endpoint']}: dropped by {drop['by']}{': ' if because else ''}{because}"


def _change(change: ChangeRecord) -> str:
    unit = _unit(change["unit"])
    return (
        f"it would flip to {change['winner']!r} if {change['signal']} of {change['endpoint']!r} were "
        f"{change['after']:.6g}{unit} (it is {change['before']:.6g})"
    )


def _unit(unit: str) -> str:
    """Return the unit behind a number; a share has none that anybody would say."""
    return "" if unit in ("", "fraction", "flag") else f" {unit}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"
