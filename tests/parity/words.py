"""How does the library say what llm-d says in other words? Parameters, refusals, and answers of nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from inferencesched.errors import InvalidInputError
from tests.parity.cases import Case, Mismatch, within

Answer = TypeVar("Answer")

#: llm-d's words in an error, and ours, where ours do not have llm-d's in them.
WORDS = {"does not match token chunk count": "an entry for each of"}


def refusal(words: str | None, call: Callable[[], object]) -> None:
    """Raise `Mismatch` unless the library refuses, in these words of llm-d's or in its own for them."""
    try:
        got = call()
    except InvalidInputError as error:
        if words and words not in str(error) and WORDS.get(words, words) not in str(error):
            raise Mismatch(f"an error with {words!r} in it", str(error)) from error
        return
    raise Mismatch("an error" + (f" with {words!r} in it" if words else ""), got)


def nothing_for_no_block_size(call: Callable[[], Sequence[Answer]]) -> Sequence[Answer]:
    """Return the answer: llm-d's helpers answer a block size below 1 with nothing, ours refuse it."""
    try:
        return call()
    except InvalidInputError as error:
        if error.parameter != "block_size":
            raise
        return []


def given_parameters(case: Case) -> Any:
    """Return the parameters as somebody wrote them: text where the text is under test, without the tests' own hooks."""
    if "params_raw" in case:
        return case["params_raw"]
    return {name: value for name, value in case["params"].items() if not name.startswith("_")}


def effective(parameters: msgspec.Struct) -> dict[str, Any]:
    """Return the parameters under their YAML names."""
    return {field.encode_name: getattr(parameters, field.name) for field in msgspec.structs.fields(type(parameters))}


def validation(
    case: Case,
    build: Callable[[Any], msgspec.Struct],
    resolved: Callable[[Any], Mapping[str, Any]] = lambda parameters: {},
) -> None:
    """Build from the case's parameters: refused or not, as it says. `resolved` is what comes out of several."""
    expect, given = case["expect"], given_parameters(case)
    if not expect["valid"]:
        refusal(expect.get("error_contains"), lambda: build(given))
        return
    try:
        built = build(given)
    except InvalidInputError as error:
        raise Mismatch("parameters that are valid", str(error)) from error
    within(expect.get("effective", {}), {**effective(built), **resolved(built)})
