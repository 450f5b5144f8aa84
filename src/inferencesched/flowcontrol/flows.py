"""What waits, in whose name, and where?

A `QueueItem` is what the gateway hands over: sizes and wishes of one request. A `Ticket` is its place here, from `submit` to
the end. A `Flow` is all that waits of one id at one priority; a `Band` all flows of one priority.
"""

from collections.abc import Collection, Iterator, Mapping
from math import inf, isfinite
from sys import maxsize
from typing import NamedTuple, Protocol, final

import msgspec

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.outcomes import QueueOutcome

DEFAULT_FLOW = "default-flow"
_LONGEST_ID = 1024


class FlowKey(NamedTuple):
    """Whose requests are queued together? An id at one priority: the same id at another one is another flow."""

    id: str
    priority: int = 0

    def __str__(self) -> str:
        return f"{self.id}:{self.priority}"


class QueueItem(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What does one request ask of the queue?

    Parameters
    ----------
    request_id: the gateway's own name for it.
    flow: who is asking (the fairness id); at most 1,024 characters.
    priority: of its objective; below 0 it is sheddable.
    size_bytes, input_tokens: what it takes of the capacities; tokens count prompt and expected output in `tokens`.
    output_tokens: how many are expected; 0 where nobody knows.
    cost: what its flow is charged, where the controller's own measure is not wanted; None is that measure.
    ttl: seconds it may wait; None is the pool's.
    deadline: seconds on the caller's clock by when its first token must have come; None is none.
    slo_ttft: the objective for its time to first token, seconds from `received_at`; None is none.
    received_at: when the gateway got it; None is the time of `submit`.
    objective: the name of its InferenceObjective.
    request: anything of the caller's, handed back untouched.

    Errors: `InvalidInputError` for an empty or endless id, a negative or infinite size, and numbers that are none.
    """

    request_id: str
    flow: str = DEFAULT_FLOW
    priority: int = 0
    size_bytes: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    ttl: float | None = None
    deadline: float | None = None
    slo_ttft: float | None = None
    received_at: float | None = None
    objective: str = ""
    request: object = None

    def __post_init__(self) -> None:
        if not self.flow or len(self.flow) > _LONGEST_ID:
            shown = self.flow if len(self.flow) <= 80 else f"{self.flow[:77]}..."
            raise InvalidInputError("flow", shown, f"1 to {_LONGEST_ID} characters")
        if self.size_bytes or self.input_tokens or self.output_tokens:
            whole_number("size_bytes", self.size_bytes)
            whole_number("input_tokens", self.input_tokens)
            whole_number("output_tokens", self.output_tokens)
        if self.cost is not None and not (isfinite(self.cost) and self.cost >= 0):
            raise InvalidInputError("cost", self.cost, "a finite number of at least 0, or None")
        if self.ttl is not None and not self.ttl >= 0:
            raise InvalidInputError("ttl", self.ttl, "seconds of at least 0, or None")
        for name in ("deadline", "received_at"):
            value = getattr(self, name)
            if value is not None and value != value:
                raise InvalidInputError(name, value, "seconds, or None")
        if self.slo_ttft is not None and not self.slo_ttft > 0:
            raise InvalidInputError("slo_ttft", self.slo_ttft, "seconds above 0, or None")

    @property
    def tokens(self) -> int:
        """How many tokens is it taken to need, prompt and output?"""
        return self.input_tokens + self.output_tokens


@final
class Ticket:
    """Where is one request now? Made by `FlowController.submit`; the same object to its end.

    ``number`` counts submissions, so that of two tickets the one that came first has the lower; ``cost`` is what its flow is
    charged. Times are seconds on the caller's clock, NaN where it did not happen; ``outcome`` is None while it waits.
    """

    #: Its neighbours in its flow, where that is first come, first served, and in its band, by arrival. Whoever puts it there
    #: sets them, as they set `expires_at`: a ticket is made a hundred thousand times a second.
    previous: "Ticket | None"
    next: "Ticket | None"
    older: "Ticket | None"
    newer: "Ticket | None"
    expires_at: float

    __slots__ = (
        "cost",
        "dispatched_at",
        "endpoint",
        "enqueued_at",
        "expires_at",
        "flow",
        "item",
        "key",
        "newer",
        "next",
        "number",
        "older",
        "outcome",
        "previous",
    )

    def __init__(self, item: QueueItem, flow: "Flow", number: int, cost: float, now: float) -> None:
        self.item = item
        self.flow = flow
        self.number = number
        self.cost = cost
        self.enqueued_at = now
        self.dispatched_at = _NEVER
        self.endpoint = ""
        self.outcome: QueueOutcome | None = None
        self.key: object = None  # its place in an ordered queue

    def __repr__(self) -> str:
        state = "waiting" if self.outcome is None else self.outcome.value
        return f"Ticket({self.item.request_id!r} of {self.flow.key}, {state})"

    @property
    def request_id(self) -> str:
        """Whose is it?"""
        return self.item.request_id

    @property
    def waiting(self) -> bool:
        """Is it in the queue?"""
        return self.outcome is None


_NEVER = float("nan")


class FlowQueue(Protocol):
    """What is a flow's queue? Every ticket is in it once; the head goes next."""

    def push(self, ticket: Ticket) -> None:
        """Add a ticket."""
        ...

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket that is there."""
        ...

    def head(self) -> Ticket | None:
        """Return whoever is next; None where nobody waits."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Ticket]: ...


@final
class Flow:
    """What waits of one id at one priority, and what has it had?

    ``counter`` and ``tag`` belong to the band's fairness policy; ``entry`` numbers its one valid place in the policy's heap.
    """

    __slots__ = (
        "band",
        "counter",
        "entry",
        "id",
        "idle_since",
        "inflight",
        "newer",
        "older",
        "queue",
        "size_bytes",
        "tag",
        "tokens",
        "weight",
    )

    def __init__(self, id: str, band: "Band", queue: FlowQueue, weight: float) -> None:  # noqa: A002  the field's word
        self.id = id
        self.band = band
        self.queue = queue
        self.weight = weight
        self.size_bytes = 0
        self.tokens = 0
        self.inflight = 0
        self.counter = 0.0
        self.tag = 0.0
        self.entry = 0
        self.idle_since = inf  # since when nothing waits and nothing is in flight; inf while something does
        self.older: Flow | None = None  # its neighbours among the idle flows, by since when
        self.newer: Flow | None = None

    @property
    def key(self) -> FlowKey:
        """Which flow is this?"""
        return FlowKey(self.id, self.band.priority)

    def __len__(self) -> int:
        return len(self.queue)

    def __repr__(self) -> str:
        return f"Flow({self.key}, {len(self.queue)} waiting, {self.inflight} in flight)"


class FlowOrder(Protocol):
    """Whose turn is it, in one band? A flow is known from `arrived` until nothing of it waits."""

    def arrived(self, flow: Flow, now: float) -> None:
        """A flow of which nothing waited has its first ticket."""
        ...

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        """Return the flow whose head goes next, none of those in `passed`; None where nobody else waits.

        Asked again without a change in between, it gives the same answer.
        """
        ...

    def served(self, flow: Flow, cost: float, now: float) -> None:
        """The flow's head has been taken out and dispatched for this cost; it may have nothing left."""
        ...

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        """A request of the flow came to cost so much more (or less) than it was charged."""
        ...

    def changed(self, flow: Flow, now: float) -> None:
        """The flow has lost a ticket without a dispatch, or has another head; it may have nothing left."""
        ...


class OrderingPolicy(Protocol):
    """In which order does one flow wait?"""

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        ...


@final
class Totals:
    """How much of a band was ever submitted, and where did it go? Requests, bytes, tokens, in this order."""

    __slots__ = ("dispatched", "evicted", "rejected", "submitted")

    def __init__(self) -> None:
        self.submitted = [0, 0, 0]
        self.rejected = [0, 0, 0]
        self.dispatched = [0, 0, 0]
        self.evicted = [0, 0, 0]

    @staticmethod
    def add(row: list[int], item: QueueItem) -> None:
        """Count one request."""
        row[0] += 1
        row[1] += item.size_bytes
        row[2] += item.input_tokens + item.output_tokens

    @staticmethod
    def undo(row: list[int], item: QueueItem) -> None:
        """Count one request less: it waits again."""
        row[0] -= 1
        row[1] -= item.size_bytes
        row[2] -= item.tokens


@final
class Band:
    """All flows of one priority: what they hold, and up to how much they may.

    ``oldest`` and ``newest`` are the ends of a list of what waits, by arrival.
    """

    __slots__ = (
        "capacity",
        "credit",
        "fairness",
        "flows",
        "idle_since",
        "inflight",
        "most_bytes",
        "most_requests",
        "most_tokens",
        "newest",
        "oldest",
        "ordering",
        "priority",
        "protected",
        "requests",
        "size_bytes",
        "tokens",
        "totals",
        "weights",
    )

    def __init__(
        self,
        priority: int,
        capacity: "Capacity",
        ordering: OrderingPolicy,
        fairness: FlowOrder,
        weights: Mapping[str, float],
        *,
        protected: bool,
    ) -> None:
        self.priority = priority
        self.capacity = capacity
        self.ordering = ordering
        self.fairness = fairness
        self.weights = weights
        self.protected = protected
        self.flows: dict[str, Flow] = {}
        self.requests = 0
        self.size_bytes = 0
        self.tokens = 0
        self.inflight = 0
        self.credit = 0.0  # belongs to the band policy
        self.idle_since = inf
        self.oldest: Ticket | None = None
        self.newest: Ticket | None = None
        self.totals = Totals()
        requests, size_bytes, tokens = capacity
        self.most_requests = maxsize if requests is None else requests
        self.most_bytes = maxsize if size_bytes is None else size_bytes
        self.most_tokens = maxsize if tokens is None else tokens

    def __repr__(self) -> str:
        return f"Band({self.priority}, {self.requests} waiting in {len(self.flows)} flows)"

    def newest_first(self) -> Iterator[Ticket]:
        """Walk what waits, the latest arrival first."""
        ticket = self.newest
        while ticket is not None:
            older = ticket.older
            yield ticket
            ticket = older


class Capacity(NamedTuple):
    """How much may wait? A limit of None is no limit; a sum that equals its limit fits."""

    requests: int | None = None
    size_bytes: int | None = None
    tokens: int | None = None

    def checked(self, name: str) -> "Capacity":
        """Return itself; `InvalidInputError` for a limit that is not an integer above 0, or None."""
        for field, value in zip(self._fields, self, strict=True):
            if value is not None:
                whole_number(f"{name}.{field}", value, 1)
        return self
