"""Who waited how long, and who was turned away? By tenant and by priority.

Waits and times are ms; percentiles interpolate linearly.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.flowcontrol.fairness import jain_index
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.simulator.server import Fleet
from inferencesched.simulator.tenancy import ANYBODY
from inferencesched.simulator.workload import Workload


class Group(NamedTuple):
    """How did the requests of one tenant, or one priority, fare?

    ``submitted`` came, ``completed`` were answered, ``shed`` were refused or dropped: that part by outcome. ``wait`` in front of the
    scheduler, of those that were let go; ``ttft`` from arrival to first token, of those that completed. ``served_tokens`` are
    prompt and output tokens of those that completed. NaN where there is nothing to measure.
    """

    submitted: int
    completed: int
    shed_rate: float
    shed: Mapping[str, float]
    wait_p50: float
    wait_p95: float
    ttft_mean: float
    ttft_p50: float
    ttft_p95: float
    served_tokens: int


class Waiting(NamedTuple):
    """What came of the queue?

    ``outcomes`` counts how all requests ended. ``tenants`` and ``priorities`` by name and by number, the greatest first. ``jain`` is
    Jain's index over the tenants' served tokens by weight: 1 is even. It tells of demand, too: who asks for less gets less.
    ``jain_contended`` is up to the queue alone: by priority, of those requests only that went while every tenant of the priority had
    something waiting, and of the priorities the least even one; NaN where that was never so. By request: ``outcome`` in trace order, and ``wait`` float64[N] ms, NaN where it was not let go.
    """

    outcomes: Mapping[str, int]
    most_waiting: int
    jain: float
    jain_contended: float
    tenants: Mapping[str, Group]
    priorities: Mapping[int, Group]
    outcome: tuple[QueueOutcome, ...]
    wait: FloatArray

    def to_dict(self) -> dict[str, object]:
        """Return the figures for JSON, but for those by request; unknown numbers are None."""
        return {
            "outcomes": dict(self.outcomes),
            "most_waiting": self.most_waiting,
            "jain": _known(self.jain),
            "jain_contended": _known(self.jain_contended),
            "tenants": {name: _plain(group) for name, group in self.tenants.items()},
            "priorities": {str(priority): _plain(group) for priority, group in self.priorities.items()},
        }


def waited(
    workload: Workload,
    fleet: Fleet,
    outcomes: Sequence[QueueOutcome | None] | None = None,
    wait: FloatArray | None = None,
    contended: BoolArray | None = None,
    *,
    most_waiting: int = 0,
) -> Waiting:
    """What are the figures of this drained fleet? Without outcomes nobody waited, and everybody was served."""
    count = len(workload)
    ended = tuple(each or QueueOutcome.DISPATCHED for each in outcomes or [QueueOutcome.COMPLETED] * count)
    wait = np.zeros(count) if wait is None else wait
    tenants = workload.tenants if workload.tenant is not None else (ANYBODY,)
    whose = np.zeros(count, dtype=np.int64) if workload.tenant is None else workload.tenant
    names = list(dict.fromkeys(tenant.name for tenant in tenants))
    name = np.array([names.index(tenant.name) for tenant in tenants])[whose]
    priority = np.array([tenant.priority for tenant in tenants])[whose]
    completed = np.array([each is QueueOutcome.COMPLETED for each in ended], dtype=np.bool_)
    tokens = np.where(completed, workload.input_tokens + workload.output_tokens, 0)
    weights = {tenant.name: tenant.weight for tenant in tenants}

    def group(members: BoolArray) -> Group:
        kinds = Counter(each for each, member in zip(ended, members.tolist(), strict=True) if member)
        submitted, done = int(members.sum()), members & completed
        ttft = fleet.first_token[done] - workload.arrival[done]
        shed = {each.value: kinds[each] / submitted for each in QueueOutcome if each.refused and kinds[each]}
        wait_p50, wait_p95 = _percentiles(wait[members])
        ttft_p50, ttft_p95 = _percentiles(ttft)
        return Group(
            submitted,
            int(done.sum()),
            sum(kinds[each] for each in kinds if each.refused) / submitted if submitted else float("nan"),
            shed,
            wait_p50,
            wait_p95,
            float(ttft.mean()) if len(ttft) else float("nan"),
            ttft_p50,
            ttft_p95,
            int(tokens[members].sum()),
        )

    def index(served: BoolArray, at: int | None = None) -> float:
        if not served.any():
            return float("nan")
        among = {tenant.name for tenant in tenants if at is None or tenant.priority == at}
        shares = [(float(tokens[served & (name == i)].sum()), each) for i, each in enumerate(names) if each in among]
        return jain_index(had / weights[each] for had, each in shares)

    levels = sorted({tenant.priority for tenant in tenants}, reverse=True)
    indices = [index(contended & (priority == each), each) for each in levels] if contended is not None else []
    return Waiting(
        {each.value: found for each, found in Counter(ended).items()},
        most_waiting,
        index(np.ones(count, dtype=np.bool_)),
        min((each for each in indices if each == each), default=float("nan")),
        {each: group(name == i) for i, each in enumerate(names)},
        {each: group(priority == each) for each in levels},
        ended,
        wait,
    )


def _percentiles(values: FloatArray) -> tuple[float, float]:
    """Return median and 95th percentile of what is known; NaN where nothing is."""
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    middle, high = np.percentile(values, (50, 95))
    return float(middle), float(high)


def _known(value: float) -> float | None:
    return value if value == value else None


def _plain(group: Group) -> dict[str, object]:
    fields = group._asdict() | {"shed": dict(group.shed)}
    return {key: _known(value) if isinstance(value, float) else value for key, value in fields.items()}
