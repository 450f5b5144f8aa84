"""How can a request end in the queue, and what does its client see?

One closed list. *Rejected* was never queued, *evicted* was. Each outcome has an HTTP status and, where the request was
dropped, the value of the header ``x-llm-d-request-dropped-reason``; names and values are those of llm-d's router, with those
that it lacks beside them (displaced, deadline, revoked, lapsed).

| outcome | status | reason |
|---|---|---|
| dispatched, completed | | |
| rejected_capacity | 429 | rejected-saturated |
| rejected_no_endpoints | 503 | rejected-no-endpoints |
| rejected_deadline | 429 | rejected-deadline |
| rejected_shutdown | 503 | rejected-shutting-down |
| rejected_other | 500 | |
| evicted_ttl | 429 | rejected-ttl-expired |
| evicted_no_endpoints | 503 | rejected-no-endpoints |
| evicted_deadline | 429 | rejected-deadline |
| evicted_cancelled | 503 | rejected-context-cancelled |
| evicted_displaced | 429 | evicted-priority |
| evicted_shutdown | 503 | rejected-shutting-down |
| evicted_other | 500 | |
| revoked | 429 | evicted |
| lapsed | 500 | |
"""

from enum import Enum
from types import MappingProxyType
from typing import Final

DROPPED_REASON_HEADER: Final = "x-llm-d-request-dropped-reason"


class QueueOutcome(Enum):
    """How did it end? The value is a low-cardinality label for metrics."""

    DISPATCHED = "dispatched"  # it went to a server; not the end yet
    COMPLETED = "completed"  # the server answered, well or not
    REJECTED_CAPACITY = "rejected_capacity"
    REJECTED_NO_ENDPOINTS = "rejected_no_endpoints"
    REJECTED_DEADLINE = "rejected_deadline"  # it could not have been met
    REJECTED_SHUTDOWN = "rejected_shutdown"
    REJECTED_OTHER = "rejected_other"
    EVICTED_TTL = "evicted_ttl"
    EVICTED_NO_ENDPOINTS = "evicted_no_endpoints"
    EVICTED_DEADLINE = "evicted_deadline"
    EVICTED_CANCELLED = "evicted_cancelled"
    EVICTED_DISPLACED = "evicted_displaced"  # its place went to somebody of higher priority
    EVICTED_SHUTDOWN = "evicted_shutdown"
    EVICTED_OTHER = "evicted_other"
    REVOKED = "revoked"  # taken back while a server worked on it
    LAPSED = "lapsed"  # dispatched, and nobody ever said how it ended

    @property
    def rejected(self) -> bool:
        """Was it never queued?"""
        return self.value.startswith("rejected")

    @property
    def evicted(self) -> bool:
        """Was it queued, and left the queue without going to a server?"""
        return self.value.startswith("evicted")

    @property
    def status(self) -> int | None:
        """Which HTTP status does the client see? None where the server's own answer is what it sees."""
        return _SEEN[self][0]

    @property
    def reason(self) -> str:
        """Which value has the header that tells why it was dropped? Empty for none."""
        return _SEEN[self][1]


_SEEN: Final = MappingProxyType(
    {
        QueueOutcome.DISPATCHED: (None, ""),
        QueueOutcome.COMPLETED: (None, ""),
        QueueOutcome.REJECTED_CAPACITY: (429, "rejected-saturated"),
        QueueOutcome.REJECTED_NO_ENDPOINTS: (503, "rejected-no-endpoints"),
        QueueOutcome.REJECTED_DEADLINE: (429, "rejected-deadline"),
        QueueOutcome.REJECTED_SHUTDOWN: (503, "rejected-shutting-down"),
        QueueOutcome.REJECTED_OTHER: (500, ""),
        QueueOutcome.EVICTED_TTL: (429, "rejected-ttl-expired"),
        QueueOutcome.EVICTED_NO_ENDPOINTS: (503, "rejected-no-endpoints"),
        QueueOutcome.EVICTED_DEADLINE: (429, "rejected-deadline"),
        QueueOutcome.EVICTED_CANCELLED: (503, "rejected-context-cancelled"),
        QueueOutcome.EVICTED_DISPLACED: (429, "evicted-priority"),
        QueueOutcome.EVICTED_SHUTDOWN: (503, "rejected-shutting-down"),
        QueueOutcome.EVICTED_OTHER: (500, ""),
        QueueOutcome.REVOKED: (429, "evicted"),
        QueueOutcome.LAPSED: (500, ""),
    }
)
