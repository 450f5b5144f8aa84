"""Is a mapping refused exactly where msgspec refuses it, with the right place? And who fills which columns under which name?"""

import enum
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inferencesched import ConfigError, InferencePool, InferenceRequest, InvalidInputError, Produced, Signal
from inferencesched.config import Opaque, Parameters, PluginRef
from inferencesched.config.decode import (
    at_references,
    below,
    decode,
    described,
    encode,
    explain,
    info_of,
    references,
    tidy,
)
from inferencesched.framework import CycleState, OutcomeListener
from inferencesched.producers.named import named_producer


class Mode(enum.Enum):
    """Two ways."""

    FAST = "fast"
    SLOW = "slow"


class Inner(Parameters, frozen=True, kw_only=True, rename="camel"):
    """A table in a table."""

    must_have: int
    share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.5
    part: PluginRef = ""


class Outer(Parameters, frozen=True, kw_only=True, rename="camel"):
    """One field of each kind."""

    count: Annotated[int, msgspec.Meta(ge=1, multiple_of=2)] = 2
    ratio: Annotated[float, msgspec.Meta(gt=0.0, lt=9.0)] = 1.0
    name: Annotated[str, msgspec.Meta(min_length=1, pattern="^[a-z]+$")] = "a"
    short: Annotated[str, msgspec.Meta(max_length=3)] = ""
    on: bool = False
    way: Literal["up", "down", 3] = "up"
    mode: Mode = Mode.FAST
    maybe: float | None = 4.0
    either: int | str = 0
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    words: Annotated[tuple[str, ...], msgspec.Meta(max_length=2)] = ()
    table: dict[str, int] = msgspec.field(default_factory=dict)
    parts: tuple[PluginRef, ...] = ()
    one_of_these: PluginRef | None = None
    anything: Any = None


NAMES = [field.encode_name for field in msgspec.structs.fields(Outer)]
SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 3, -2, 4.0, 2.5, 0.5, 10.0, "", "a", "up", "fast", "abcd", "A"])
INNER = st.dictionaries(st.sampled_from(["mustHave", "share", "part", "else"]), SCALARS, max_size=4)
VALUES = SCALARS | INNER | st.lists(SCALARS | INNER, max_size=3) | st.dictionaries(st.sampled_from("ab"), SCALARS)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from([*NAMES, "unknownName"]), VALUES, max_size=3))
@example({"several": [{"mustHave": 1}, {"mustHave": "x"}]})
@example({"table": {"a": 1, "b": "x"}})
@example({"mode": "medium"})
@example({"inner": None, "maybe": None})
def test_it_refuses_what_msgspec_refuses(raw):
    said = tidy(info_of(Outer), raw)
    try:
        expected = msgspec.convert(said, Outer)
    except msgspec.ValidationError as error:
        with pytest.raises(ConfigError) as caught:
            decode(Outer, raw, "$.it")
        assert caught.value.parameter.startswith("$.it")
        assert caught.value.allowed
        if len(raw) == 1:  # of several mistakes each may name another
            # the place is that of msgspec's own words, as far as those go: keys of tables are dots to it
            place = str(error).partition(" - at `$")[2].strip("`").partition("[...]")[0]
            assert caught.value.parameter.startswith(f"$.it{place}")
        with pytest.raises(ConfigError):
            explain(info_of(Outer), said, "$.it")
        return
    explain(info_of(Outer), said, "$.it")  # nothing to complain of
    assert decode(Outer, raw) == expected
    assert decode(Outer, encode(expected)) == expected


#: A value, where it is wrong, and what is allowed.
PLACES = [
    ({"count": 3}, "$.count", "a whole number of at least 1"),
    ({"ratio": 9}, "$.ratio", "a number above 0.0 and below 9.0"),
    ({"name": ""}, "$.name", "text of the form ^[a-z]+$, not empty"),
    ({"on": 1}, "$.on", "true or false"),
    ({"way": "upp"}, "$.way", "did you mean 'up'?"),
    ({"mode": "quick"}, "$.mode", "one of fast, slow"),
    ({"maybe": "x"}, "$.maybe", "a number or nothing"),
    ({"either": 1.5}, "$.either", "a whole number or text"),
    ({"inner": {"mustHav": 1}}, "$.inner.mustHav", "did you mean 'mustHave'?"),
    ({"inner": {}}, "$.inner.mustHave", "a whole number"),
    ({"inner": 7}, "$.inner", "a mapping with the keys mustHave, share, part or nothing"),
    ({"several": [{"mustHave": 1, "share": 2}]}, "$.several[0].share", "a number of at least 0.0 and of at most 1.0"),
    ({"words": ["a", "b", "c"]}, "$.words", "a list of text"),
    ({"table": {"a.b": "x"}}, '$.table["a.b"]', "a whole number"),
    ({"table": []}, "$.table", "a mapping to a whole number"),
]


@pytest.mark.parametrize(("raw", "path", "allowed"), PLACES)
def test_it_says_where_and_what(raw, path, allowed):
    with pytest.raises(ConfigError) as caught:
        decode(Outer, raw)
    assert caught.value.parameter == path
    assert allowed in caught.value.allowed


class Checked(Parameters, frozen=True, kw_only=True, rename="camel"):
    """A table with checks of its own."""

    low: int = 0
    high: int = 1

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise InvalidInputError("low", self.low, f"at most {self.high}")
        if self.low < 0:
            raise ValueError("below the ground")


class Holder(Parameters, frozen=True, kw_only=True, rename="camel"):
    """Which holds such a table."""

    checked: tuple[Checked, ...] = ()


@pytest.mark.parametrize(
    ("low", "path", "allowed"), [(5, "$.checked[1].low", "at most 1"), (-1, "$.checked[1]", "below the ground")]
)
def test_a_type_s_own_checks_have_their_place_too(low, path, allowed):
    with pytest.raises(ConfigError) as caught:
        decode(Holder, {"checked": [{}, {"low": low}]})
    assert caught.value.parameter == path and allowed in caught.value.allowed


def test_what_is_kept_as_it_is():
    raw = {"a": [1, {"b": None}]}
    assert encode(decode(Opaque, raw)) == raw
    with pytest.raises(ConfigError, match=r"\$\.p: got \[1\], allowed: a mapping"):
        decode(Opaque, [1], "$.p")


def test_long_values_are_shown_in_part():
    with pytest.raises(ConfigError) as caught:
        decode(Outer, {"count": {"x": "y" * 1000}})
    assert len(str(caught.value)) < 200


def test_an_index_and_a_name_look_different():
    assert (below("$", 0), below("$", "0"), below("$", True)) == ("$[0]", '$["0"]', "$.True")


def test_everything_can_be_described():
    assert "anything" in described(info_of(Any))


def test_references_are_found_by_their_type_at_any_depth():
    it = decode(
        Outer,
        {"inner": {"mustHave": 1, "part": "a"}, "parts": ["b", ""], "oneOfThese": "c", "name": "x"},
    )
    assert {(each.path, each.name) for each in references(it, "$")} == {
        ("$.inner.part", "a"),
        ("$.parts[0]", "b"),
        ("$.oneOfThese", "c"),
    }
    assert at_references(info_of(Outer), {"parts": ["b"], "count": 2}, "$", lambda said, path: path) == {
        "parts": ["$.parts[0]"],
        "count": 2,
    }


# --- producers under several names -------------------------------------------------------------------------------

HEAT, NOISE, WIND = (Signal(name, freshness="cycle") for name in ("heat", "noise", "wind"))


class Weather:
    """A producer of two columns that notes what it is told."""

    produces = (HEAT, NOISE)
    reads = ()

    def __init__(self, more=()):
        self.told = []
        self.more = more

    def produce(self, request, endpoints, cycle):
        columns = {signal: np.full(len(endpoints), i + 1.0) for i, signal in enumerate((*self.produces, *self.more))}
        return Produced(columns, "receipt")

    def commit(self, receipt, slot, *, now):
        self.told.append((receipt, slot, now))


class Listening(Weather):
    """One that hears how requests end."""

    def settled(self, receipt, settlement, slot):
        self.told.append((receipt, settlement, slot))


def produced(producer):
    pool = InferencePool()
    pool.join("a")
    cycle = CycleState(0.0, np.random.default_rng(0), 0)
    return producer.produce(InferenceRequest(request_id="r"), pool.snapshot(), cycle)


def test_columns_go_by_their_names():
    named = named_producer(Weather(), "eu", plain=(HEAT,), named=(HEAT,))
    assert [signal.name for signal in named.produces] == ["heat", "heat@eu"]
    columns = produced(named).columns
    assert columns[HEAT] is columns[Signal("heat@eu")]
    assert set(columns) == set(named.produces)


def test_what_was_not_declared_goes_through_for_others_to_refuse():
    assert WIND in produced(named_producer(Weather(more=(WIND,)), "eu")).columns


def test_the_producer_is_told():
    weather, listening = Weather(), Listening()
    named_producer(weather, "eu").commit("receipt", 3, now=1.0)
    assert weather.told == [("receipt", 3, 1.0)]
    named = named_producer(listening, "eu")
    assert isinstance(named, OutcomeListener) and not isinstance(named_producer(weather, "eu"), OutcomeListener)
    named.settled("receipt", "how", 3)
    assert listening.told == [("receipt", "how", 3)]


def test_a_producer_has_to_have_a_name():
    with pytest.raises(InvalidInputError, match="name"):
        named_producer(Weather(), "")
