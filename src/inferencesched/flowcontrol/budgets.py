"""How long may a request wait?

The least of what the request, its flow, its objective and the pool allow counts; a pool without endpoints has a budget of
its own (it may be scaling up from zero), and whenever it becomes empty or ceases to be, everybody's budget starts anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.flows import QueueItem


@dataclass(frozen=True, slots=True)
class QueueBudget:
    """How many seconds may a request wait, at most?

    Parameters
    ----------
    ttl: while there are endpoints; None is no limit. llm-d's ``defaultRequestTTL``.
    no_endpoint_ttl: while there is none; ``"ttl"`` is as long, None no limit. llm-d's ``noEndpointRequestTTL``.
    flows, objectives: seconds by flow id and by the name of an objective, beside those.

    0 seconds is no time at all: such a request expires at the next step, whether the gate is open or not (llm-d's 0 is no
    limit: here None). A budget is spent at its last instant: of 60 s, 60.0 s later. What a request's own time, its flow's and
    its objective's allow counts for an empty pool too.
    """

    ttl: float | None = 60.0
    no_endpoint_ttl: float | str | None = "ttl"
    flows: Mapping[str, float] = field(default_factory=dict, hash=False)
    objectives: Mapping[str, float] = field(default_factory=dict, hash=False)
    _least: float = field(init=False, repr=False, compare=False)  # the pool's own, as a number
    _least_if_empty: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.ttl is not None and not self.ttl >= 0:
            raise InvalidInputError("ttl", self.ttl, "seconds of at least 0, or None")
        other = self.no_endpoint_ttl
        if isinstance(other, str):
            if other != "ttl":
                raise InvalidInputError("no_endpoint_ttl", other, "seconds of at least 0, 'ttl', or None")
        elif other is not None and not other >= 0:
            raise InvalidInputError("no_endpoint_ttl", other, "seconds of at least 0, 'ttl', or None")
        least = inf if self.ttl is None else float(self.ttl)
        object.__setattr__(self, "_least", least)
        object.__setattr__(self, "_least_if_empty", least if other == "ttl" else inf if other is None else float(other))
        for name, table in (("flows", self.flows), ("objectives", self.objectives)):
            for key, seconds in table.items():
                if not seconds >= 0:
                    raise InvalidInputError(f"{name}[{key!r}]", seconds, "seconds of at least 0")

    def seconds(self, item: QueueItem, empty: bool = False) -> float:
        """Return how long this request may wait, in a pool that is empty or is not; inf for no limit.

        >>> budget = QueueBudget(ttl=60.0, no_endpoint_ttl=600.0, flows={"batch": 30.0})
        >>> item = QueueItem(request_id="r", flow="batch", ttl=45.0)
        >>> budget.seconds(item), budget.seconds(item, empty=True)
        (30.0, 30.0)
        """
        least = self._least_if_empty if empty else self._least
        if item.ttl is not None and item.ttl < least:
            least = item.ttl
        if self.flows:
            least = min(least, self.flows.get(item.flow, inf))
        if self.objectives:
            least = min(least, self.objectives.get(item.objective, inf))
        return least
