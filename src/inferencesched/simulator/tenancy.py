"""Who is asking, how much of the traffic is theirs, and how urgent is it?

Traces say nothing of tenants. A mix of them is laid over a trace by lot: the same seed gives the same requests to the same
tenants, whatever else is varied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from inferencesched._typing import IntArray
from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.flowcontrol.flows import DEFAULT_FLOW

#: Of the lot that gives requests to tenants; other draws with the same seed are not the same.
_STREAM: Final = 0x7E4A47


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who sends which part of the requests, at which priority?

    Parameters
    ----------
    name: the flow that its requests wait in.
    share: of the requests, in proportion to those of the others.
    priority: of all its requests; below 0 they are sheddable. Who has several priorities is there several times.
    weight: its part of the service, in proportion to those of others of its priority; the same wherever it is named.
    slo_ttft: seconds within which its first tokens should come; None is no objective.
    """

    name: str
    share: float = 1.0
    priority: int = 0
    weight: float = 1.0
    slo_ttft: float | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 64:
            raise InvalidInputError("tenant", self.name[:64], "a name of 1 to 64 characters")
        for name, value in (("share", self.share), ("weight", self.weight)):
            if not (isfinite(value) and value > 0):
                raise InvalidInputError(f"{name} of tenant {self.name!r}", value, "a finite number above 0")
        if not isinstance(self.priority, int):
            raise InvalidInputError(f"priority of tenant {self.name!r}", self.priority, "an integer")
        if self.slo_ttft is not None and not (isfinite(self.slo_ttft) and self.slo_ttft > 0):
            raise InvalidInputError(f"slo_ttft of tenant {self.name!r}", self.slo_ttft, "seconds above 0, or None")


#: Who asks where nobody said.
ANYBODY: Final = Tenant(DEFAULT_FLOW)


def draw(mix: Sequence[Tenant], count: int, *, seed: int = 0) -> IntArray:
    """Whose is each of so many requests? Places in the mix by lot, ``int64[count]``, in proportion to the shares.

    Deterministic; the first are the same however many follow. Errors: `InvalidInputError` for no tenants, one twice at the same
    priority, or with two weights.

    >>> draw((Tenant("chat", share=3, priority=10), Tenant("batch", priority=-1)), 8, seed=5).tolist()
    [0, 0, 0, 1, 0, 1, 0, 0]
    """
    keys = [(tenant.name, tenant.priority) for tenant in mix]
    if not keys or len(set(keys)) != len(keys):
        raise InvalidInputError("tenants", keys, "at least one, each once at a priority")
    for tenant in mix:
        weights = {other.weight for other in mix if other.name == tenant.name}
        if len(weights) > 1:
            raise InvalidInputError(f"weight of tenant {tenant.name!r}", sorted(weights), "one weight")
    upto = np.cumsum([tenant.share for tenant in mix])
    lots = np.random.default_rng((whole_number("seed", seed), _STREAM)).random(count)
    drawn: IntArray = np.searchsorted(upto, lots * upto[-1], side="right").clip(max=len(keys) - 1).astype(np.int64)
    return drawn


def tenants(text: str) -> tuple[Tenant, ...]:
    """Which tenants does this text name? ``name[:share[:priority]][:key=value]``, comma-separated.

    Keys are ``share``, ``priority``, ``weight`` and ``ttft`` (seconds). Errors: `InvalidInputError`, `UnknownNameError`.

    >>> tenants("chat:3:10:ttft=0.5, batch:priority=-1")[0]
    Tenant(name='chat', share=3.0, priority=10, weight=1.0, slo_ttft=0.5)
    """
    return tuple(_tenant(part.strip()) for part in text.split(","))


_KEYS: Final = {"share": "share", "priority": "priority", "weight": "weight", "ttft": "slo_ttft"}


def _tenant(text: str) -> Tenant:
    name, *fields = text.split(":")
    given: dict[str, float] = {}
    for place, field in enumerate(fields):
        key, equals, value = field.partition("=")
        if not equals:
            if place > 1:
                raise InvalidInputError("tenants", text, "name[:share[:priority]][:key=value]")
            key, value = ("share", "priority")[place], field
        if key not in _KEYS:
            raise UnknownNameError("tenants", key, list(_KEYS))
        if _KEYS[key] in given:
            raise InvalidInputError("tenants", text, f"{key} once")
        try:
            given[_KEYS[key]] = int(value) if key == "priority" else float(value)
        except ValueError as error:
            allowed = "an integer" if key == "priority" else "a number"
            raise InvalidInputError(f"{key} of tenant {name!r}", value, allowed) from error
    priority = int(given.pop("priority", 0))
    return Tenant(name, priority=priority, **given)
