"""How can a request end in the queue, and what does its client see?

One closed list. *Rejected* was never queued, *evicted* was. Each outcome has an HTTP status and, where the request was
dropped, the value of the header ``x-llm-d-request-dropped-reason``; statuses and values are those of llm-d's router, with
those that it lacks beside them (deadline, displaced, revoked, lapsed). The third column is what llm-d's metrics call it, the
last whether a header ``Retry-After`` tells when it is worth another try.

| outcome | status | reason | llm-d | retry |
|---|---|---|---|---|
| dispatched | | | Dispatched | |
| completed | | | Dispatched | |
| rejected_capacity | 429 | rejected-saturated | RejectedCapacity | yes |
| rejected_no_endpoints | 503 | rejected-no-endpoints | RejectedNoEndpoints | yes |
| rejected_ttl | 429 | rejected-ttl-expired | RejectedOther | yes |
| rejected_deadline | 429 | rejected-deadline | RejectedOther | |
| rejected_cancelled | 503 | rejected-context-cancelled | RejectedOther | |
| rejected_shutdown | 503 | rejected-shutting-down | RejectedOther | |
| rejected_other | 500 | | RejectedOther | |
| evicted_ttl | 429 | rejected-ttl-expired | EvictedTTL | yes |
| evicted_no_endpoints | 503 | rejected-no-endpoints | EvictedNoEndpoints | yes |
| evicted_deadline | 429 | rejected-deadline | EvictedTTL | |
| evicted_cancelled | 503 | rejected-context-cancelled | EvictedContextCancelled | |
| evicted_displaced | 429 | evicted-priority | EvictedOther | yes |
| evicted_shutdown | 503 | rejected-shutting-down | EvictedOther | |
| evicted_other | 500 | | EvictedOther | |
| revoked | 429 | evicted | Dispatched | yes |
| lapsed | 500 | | Dispatched | |

Source: llm-d-router, `pkg/epp/flowcontrol/types/outcomes.go` and `requestcontrol/admission.go` (snapshot of August 2026).
"""

from collections.abc import Collection
from enum import Enum
from math import ceil, inf, nan
from types import MappingProxyType
from typing import Final, NamedTuple

from inferencesched.errors import (
    InvalidInputError,
    QueueEvictedError,
    QueueRefusedError,
    QueueRejectedError,
    QueueRevokedError,
)

DROPPED_REASON_HEADER: Final = "x-llm-d-request-dropped-reason"
RETRY_AFTER_HEADER: Final = "retry-after"


class QueueOutcome(Enum):
    """How did it end? The value is a low-cardinality label for metrics."""

    DISPATCHED = "dispatched"  # it went to a server; not the end yet
    COMPLETED = "completed"  # the server answered, well or not
    REJECTED_CAPACITY = "rejected_capacity"
    REJECTED_NO_ENDPOINTS = "rejected_no_endpoints"
    REJECTED_TTL = "rejected_ttl"  # its time was over before it came here
    REJECTED_DEADLINE = "rejected_deadline"  # it could not have been met
    REJECTED_CANCELLED = "rejected_cancelled"  # its client had gone before it came here
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
    def refused(self) -> bool:
        """Is the queue's refusal what its client sees, and not a server's answer?"""
        return _SEEN[self].status is not None

    @property
    def status(self) -> int | None:
        """Which HTTP status does the client see? None where the server's own answer is what it sees."""
        return _SEEN[self].status

    @property
    def code(self) -> str:
        """Which of llm-d's error codes is that? Empty for none.

        >>> QueueOutcome.EVICTED_TTL.code
        'ResourceExhausted'
        """
        return _CODES.get(_SEEN[self].status or 0, "")

    @property
    def reason(self) -> str:
        """Which value has the header that tells why it was dropped? Empty for none."""
        return _SEEN[self].reason

    @property
    def reference(self) -> str:
        """What do llm-d's metrics call it? Ours are finer: several of them may be one there."""
        return _SEEN[self].reference

    @property
    def words(self) -> str:
        """What may its client be told, in llm-d's words? Empty for what was not refused.

        >>> QueueOutcome.EVICTED_TTL.words
        'request timed out in queue'
        """
        return _WORDS.get(self.value.partition("_")[2], _WORDS["other"]) if self.refused else ""

    @property
    def retryable(self) -> bool:
        """May the same request succeed later? Not where its time is over, its client gone, or something broke."""
        return _SEEN[self].retryable

    def headers(self, retry_after: float = inf) -> dict[str, str]:
        """Return the response's headers: why it was dropped, and after how many whole seconds a retry makes sense.

        >>> QueueOutcome.REJECTED_CAPACITY.headers(2.3)
        {'x-llm-d-request-dropped-reason': 'rejected-saturated', 'retry-after': '3'}
        """
        seen = _SEEN[self]
        headers = {DROPPED_REASON_HEADER: seen.reason} if seen.reason else {}
        if seen.retryable and 0.0 <= retry_after < inf:
            headers[RETRY_AFTER_HEADER] = str(max(1, ceil(retry_after)))
        return headers


class Seen(NamedTuple):
    """What does everybody else see of an outcome?"""

    status: int | None
    reason: str
    reference: str
    retryable: bool = False


_CODES: Final = MappingProxyType({429: "ResourceExhausted", 500: "Internal", 503: "ServiceUnavailable"})
_SEEN: Final = MappingProxyType(
    {
        QueueOutcome.DISPATCHED: Seen(None, "", "Dispatched"),
        QueueOutcome.COMPLETED: Seen(None, "", "Dispatched"),
        QueueOutcome.REJECTED_CAPACITY: Seen(429, "rejected-saturated", "RejectedCapacity", True),
        QueueOutcome.REJECTED_NO_ENDPOINTS: Seen(503, "rejected-no-endpoints", "RejectedNoEndpoints", True),
        QueueOutcome.REJECTED_TTL: Seen(429, "rejected-ttl-expired", "RejectedOther", True),
        QueueOutcome.REJECTED_DEADLINE: Seen(429, "rejected-deadline", "RejectedOther"),
        QueueOutcome.REJECTED_CANCELLED: Seen(503, "rejected-context-cancelled", "RejectedOther"),
        QueueOutcome.REJECTED_SHUTDOWN: Seen(503, "rejected-shutting-down", "RejectedOther"),
        QueueOutcome.REJECTED_OTHER: Seen(500, "", "RejectedOther"),
        QueueOutcome.EVICTED_TTL: Seen(429, "rejected-ttl-expired", "EvictedTTL", True),
        QueueOutcome.EVICTED_NO_ENDPOINTS: Seen(503, "rejected-no-endpoints", "EvictedNoEndpoints", True),
        QueueOutcome.EVICTED_DEADLINE: Seen(429, "rejected-deadline", "EvictedTTL"),
        QueueOutcome.EVICTED_CANCELLED: Seen(503, "rejected-context-cancelled", "EvictedContextCancelled"),
        QueueOutcome.EVICTED_DISPLACED: Seen(429, "evicted-priority", "EvictedOther", True),
        QueueOutcome.EVICTED_SHUTDOWN: Seen(503, "rejected-shutting-down", "EvictedOther"),
        QueueOutcome.EVICTED_OTHER: Seen(500, "", "EvictedOther"),
        QueueOutcome.REVOKED: Seen(429, "evicted", "Dispatched", True),
        QueueOutcome.LAPSED: Seen(500, "", "Dispatched"),
    }
)


#: By what stands behind ``rejected_`` or ``evicted_``.
_WORDS: Final = MappingProxyType(
    {
        "capacity": "request rejected by flow control",
        "no_endpoints": "no endpoints available",
        "ttl": "request timed out in queue",
        "deadline": "deadline cannot be met",
        "cancelled": "client disconnected",
        "displaced": "request displaced by one of higher priority",
        "shutdown": "shutting down",
        "other": "internal flow control error",
    }
)


class Cause(Enum):
    """Why did a request not go? The values are llm-d's words. Where there are several, the first in this order counts."""

    SHUTDOWN = "not_running"
    NO_ENDPOINTS = "no_endpoints"
    TTL = "ttl_expired"
    DEADLINE = "deadline"
    CANCELLED = "context_cancelled"
    CAPACITY = "queue_at_capacity"
    OTHER = "other"


_INFERRED: Final = MappingProxyType(
    {
        Cause.SHUTDOWN: (QueueOutcome.REJECTED_SHUTDOWN, QueueOutcome.EVICTED_SHUTDOWN),
        Cause.NO_ENDPOINTS: (QueueOutcome.REJECTED_NO_ENDPOINTS, QueueOutcome.EVICTED_NO_ENDPOINTS),
        Cause.TTL: (QueueOutcome.REJECTED_TTL, QueueOutcome.EVICTED_TTL),
        Cause.DEADLINE: (QueueOutcome.REJECTED_DEADLINE, QueueOutcome.EVICTED_DEADLINE),
        Cause.CANCELLED: (QueueOutcome.REJECTED_CANCELLED, QueueOutcome.EVICTED_CANCELLED),
        Cause.CAPACITY: (QueueOutcome.REJECTED_CAPACITY, QueueOutcome.EVICTED_DISPLACED),
        Cause.OTHER: (QueueOutcome.REJECTED_OTHER, QueueOutcome.EVICTED_OTHER),
    }
)


def infer_outcome(causes: Cause | Collection[Cause] | None, queued: bool, *, empty: bool = False) -> QueueOutcome:
    """Return how a request ended that a gateway gave up, from why and whether it was queued.

    For shells around the controller: what the controller itself decides has its outcome already. `empty` says that the pool
    has no endpoints, which is then what a full queue or a spent budget comes from. No cause at all is ``OTHER``.

    >>> infer_outcome(Cause.TTL, queued=True), infer_outcome({Cause.TTL, Cause.SHUTDOWN}, queued=False)
    (<QueueOutcome.EVICTED_TTL: 'evicted_ttl'>, <QueueOutcome.REJECTED_SHUTDOWN: 'rejected_shutdown'>)
    """
    given = (causes,) if isinstance(causes, Cause) else () if causes is None else causes
    cause = next((each for each in Cause if each in given), Cause.OTHER)
    if empty and (cause is Cause.TTL or (cause is Cause.CAPACITY and not queued)):
        cause = Cause.NO_ENDPOINTS
    return _INFERRED[cause][queued]


def refusal(
    outcome: QueueOutcome, request_id: str, *, retry_after: float = inf, wait: float = nan, detail: str = ""
) -> QueueRefusedError:
    """Return the error that tells a caller of this outcome: `QueueRejectedError`, `QueueEvictedError` or `QueueRevokedError`.

    Errors: `InvalidInputError` for an outcome that is no refusal.

    >>> raise refusal(QueueOutcome.EVICTED_TTL, "r-1", retry_after=2.0)
    Traceback (most recent call last):
    ...
    inferencesched.errors.QueueEvictedError: request 'r-1': evicted_ttl
    """
    status = outcome.status
    if status is None:
        raise InvalidInputError("outcome", outcome.value, "one that the queue refuses with")
    kind = QueueRejectedError if outcome.rejected else QueueEvictedError if outcome.evicted else QueueRevokedError
    return kind(
        request_id,
        outcome=outcome.value,
        status=status,
        headers=outcome.headers(retry_after),
        retry_after=retry_after if outcome.retryable else inf,
        wait=wait,
        detail=detail,
    )
