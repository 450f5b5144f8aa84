"""In which order does one flow wait, beside first come, first served?

An `OrderingPolicy` is parameters; ``queue`` returns the empty queue of one flow. Where the order is a number, it is read once, when
a ticket comes, and the least goes first; ties go to who came first. So the order is strict and total: no two tickets are equal.
Deadlines that differ by less than a microsecond are the same: sums of seconds are no more exact than that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import inf, isfinite
from typing import final

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.budgets import QueueBudget
from inferencesched.flowcontrol.flows import Band, FlowQueue, QueueItem, Ticket
from inferencesched.flowcontrol.queue import FifoQueue, OrderedQueue


@dataclass(frozen=True, slots=True)
class EarliestDeadline:
    """Whose time in the queue ends first? llm-d's ``edf-ordering-policy``.

    The deadline is when it was queued, and what the `budget` allows it from then on in a pool with endpoints, or `QueueItem.deadline` where
    that is sooner; without either it goes behind all that have one. Give it the controller's own budget. Where all have the
    same budget it is first come, first served. Optimal while all deadlines can be met; when they cannot, every request may
    be late by a little: let the controller refuse what cannot be met (``first_token``).

    >>> from inferencesched.flowcontrol import QueueItem
    >>> policy = EarliestDeadline(QueueBudget(ttl=60.0))
    >>> policy.deadline(QueueItem(request_id="r", ttl=5.0), enqueued_at=100.0)
    105.0
    """

    budget: QueueBudget = field(default=QueueBudget())

    def deadline(self, item: QueueItem, enqueued_at: float) -> float:
        """Return when a request's time ends that was queued at this time; inf for never."""
        at = enqueued_at + self.budget.seconds(item)
        return at if item.deadline is None else min(at, item.deadline)

    def key(self, ticket: Ticket) -> float:
        """Return a ticket's deadline, to the microsecond."""
        return round(self.deadline(ticket.item, ticket.enqueued_at), 6)

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return OrderedQueue(self.key)


@dataclass(frozen=True, slots=True)
class SloDeadline:
    """Whose first token is due first? llm-d's ``slo-deadline-ordering-policy``.

    Due is `QueueItem.slo_ttft` seconds after `received_at` (when it was queued, where that is not said); without an objective it goes behind
    all that have one. Ties go to who was received first.
    """

    def key(self, ticket: Ticket) -> tuple[float, float]:
        """Return when a ticket's first token is due, to the microsecond, and when it was received."""
        item = ticket.item
        received = ticket.enqueued_at if item.received_at is None else item.received_at
        return (inf if item.slo_ttft is None else round(received + item.slo_ttft, 6)), received

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return OrderedQueue(self.key)


@dataclass(frozen=True, slots=True)
class WeightedShortestFirst:
    """Who costs least for what it is worth? Smith's rule on the predicted cost, with ageing.

    The least ``cost / weight`` goes first, which makes the weighted sum of the waiting times least (Smith, 1956). ``ageing`` is
    how much of it a second of waiting makes up for: at time t a ticket that came at e stands at ``cost / weight - ageing * (t - e)``.
    Of two tickets the first stands before the second exactly where ``c / w + ageing * e`` is less, for t adds the same to both:
    the key does not depend on t, so it is read once, and the order of two tickets never turns.

    So nobody starves: no ticket is passed by one that came more than ``cost / weight / ageing`` seconds after it.

    Parameters
    ----------
    ageing: units of cost a second; 0 is Smith's rule alone, under which long requests may starve.
    weights: what requests of an objective are worth, by its name; 1 for those not named.
    """

    ageing: float = 100.0
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not (isfinite(self.ageing) and self.ageing >= 0):
            raise InvalidInputError("ageing", self.ageing, "a finite number of at least 0")
        for objective, weight in self.weights.items():
            if not (isfinite(weight) and weight > 0):
                raise InvalidInputError(f"weights[{objective!r}]", weight, "a finite number above 0")

    def key(self, ticket: Ticket) -> float:
        """Return a ticket's cost by its worth, and its age in the same unit."""
        weight = self.weights.get(ticket.item.objective, 1.0) if self.weights else 1.0
        return ticket.cost / weight + self.ageing * ticket.enqueued_at

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return OrderedQueue(self.key)


@dataclass(frozen=True, slots=True)
class AdaptiveLifo:
    """Who still has a client that waits for it? First come first, and newest first while more than ``backlog`` wait in the band.

    Under a backlog the oldest are those that will be late, or have been given up, whatever is done: the newest are served in
    time, and the others wait for the queue to shrink, or for the end of their time. Cost of each call: constant.

    Source: Maurer, "Fail at Scale" (ACM Queue, 2015).
    """

    backlog: int = 100

    def __post_init__(self) -> None:
        whole_number("backlog", self.backlog, 0)

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return AdaptiveQueue(self.backlog)


@final
class AdaptiveQueue:
    """Is it long? Then newest first. All queues of a band turn round together."""

    __slots__ = ("_backlog", "_band", "_tickets")

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._tickets = FifoQueue()
        self._band: Band | None = None

    @property
    def newest_first(self) -> bool:
        """Do more wait in the band than its backlog may be?"""
        return self._band is not None and self._band.requests > self._backlog

    def push(self, ticket: Ticket) -> None:
        """Add a ticket."""
        self._band = ticket.flow.band
        self._tickets.push(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket."""
        self._tickets.remove(ticket)

    def head(self) -> Ticket | None:
        """Return the first that came, or the last."""
        return self._tickets.tail() if self.newest_first else self._tickets.head()

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)


@dataclass(frozen=True, slots=True)
class LongestPrefix:
    """Which of a flow's requests finds most of its prompt cached? What `DeficitLongestPrefix` is between flows, inside one.

    Parameters
    ----------
    uncached: how many of a ticket's prompt tokens are not cached; NaN where nobody knows. Asked when a ticket comes, and of
        the first `look` again when the head has gone: as fresh as the index was then.
    look: how many tickets, of those that came first, are compared.
    patience: how often the ticket that came first may be passed before it goes.

    Cost of each call: constant, but for `look` calls of `uncached` after a head has gone.
    """

    uncached: Callable[[Ticket], float]
    look: int = 16
    patience: int = 16

    def __post_init__(self) -> None:
        whole_number("look", self.look, 1)
        whole_number("patience", self.patience, 0)

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return _PrefixQueue(self)


@final
class _PrefixQueue:
    """``_best`` is the head, None where it is not known; ``_most`` what it has cached; ``_passed`` how often the first was passed."""

    __slots__ = ("_best", "_most", "_passed", "_policy", "_tickets")

    def __init__(self, policy: LongestPrefix) -> None:
        self._policy = policy
        self._tickets = FifoQueue()
        self._best: Ticket | None = None
        self._most = 0.0
        self._passed = 0

    def push(self, ticket: Ticket) -> None:
        self._tickets.push(ticket)
        if self._tickets.tail() is not ticket:
            self._best = None  # it was taken back
        elif self._best is not None and len(self._tickets) <= self._policy.look and self._may_pass():
            cached = self._cached(ticket)
            if cached > self._most:
                self._best, self._most = ticket, cached

    def remove(self, ticket: Ticket) -> None:
        first = self._tickets.head()
        if ticket is first:
            self._passed = 0
        elif ticket is self._best:
            self._passed += 1
        if ticket is self._best or ticket is first:
            self._best = None
        self._tickets.remove(ticket)

    def head(self) -> Ticket | None:
        if self._best is None:
            self._best = self._tickets.head()
            if self._best is not None and self._may_pass():
                self._most = -inf
                for ticket in islice(self._tickets, self._policy.look):
                    cached = self._cached(ticket)
                    if cached > self._most:
                        self._best, self._most = ticket, cached
        return self._best

    def _may_pass(self) -> bool:
        return self._passed < self._policy.patience

    def _cached(self, ticket: Ticket) -> float:
        uncached = self._policy.uncached(ticket)
        return ticket.item.input_tokens - uncached if uncached == uncached else 0.0

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._tickets)
