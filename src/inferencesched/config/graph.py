"""Who makes the columns that somebody reads, and in which order?

The data dependencies of plug-ins, whatever they are: who reads a column comes behind who fills it, nobody reads what comes later in a
request's way, and a column means the same to both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Final, Literal

from inferencesched.endpoints import Signal
from inferencesched.errors import DependencyError

#: The way of a request: flow control comes first, then what prepares it, then scheduling. "" is outside of it.
Layer = Literal["", "flow-control", "request-control", "scheduling"]
_WAY: Final[Mapping[str, int]] = {"": -1, "flow-control": 0, "request-control": 1, "scheduling": 2}


@dataclass(frozen=True, slots=True)
class Node:
    """What does a plug-in fill and read, and when does it run?"""

    name: str
    fills: tuple[Signal, ...] = ()
    reads: tuple[Signal, ...] = field(default=())
    layer: Layer = ""


def dependencies(nodes: Iterable[Node]) -> dict[str, tuple[str, ...]]:
    """Return for each plug-in those whose columns it reads; reading what it fills itself is no dependency.

    Errors: `DependencyError` where a reader takes a column to be in another unit than who fills it, and where a column would be read
    before it is filled: flow control runs before requests are prepared.

    >>> tokens = Signal("tokens", "tokens", freshness="cycle")
    >>> dependencies([Node("tokenizer", fills=(tokens,)), Node("scorer", reads=(tokens,))])
    {'tokenizer': (), 'scorer': ('tokenizer',)}
    """
    given = list(nodes)
    found: dict[str, tuple[str, ...]] = {}
    for node in given:
        behind = []
        for other in given:
            if other.name == node.name:
                continue
            shared = [(mine, theirs) for mine in node.reads for theirs in other.fills if mine.name == theirs.name]
            for mine, theirs in shared:
                if mine.unit != theirs.unit:
                    allowed = f"{theirs.unit!r}, in which {other.name} fills it: data of one column are of one type"
                    raise DependencyError(f"{node.name}.reads.{mine.name}", mine.unit, allowed)
                if _WAY[other.layer] > _WAY[node.layer]:
                    allowed = f"a column that is filled before {node.layer or 'it'}: {other.name} is in {other.layer}"
                    raise DependencyError(f"{node.name}.reads", mine.name, allowed)
            if shared:
                behind.append(other.name)
        found[node.name] = tuple(behind)
    return found


def in_turn(graph: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Return the plug-ins, each behind those that it depends on; `DependencyError` where they go round in a circle.

    >>> in_turn({"scorer": ["tokenizer"], "tokenizer": []})
    ('tokenizer', 'scorer')
    """
    try:
        return tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise DependencyError("producers", circle, "none that wait for each other in a cycle") from error
