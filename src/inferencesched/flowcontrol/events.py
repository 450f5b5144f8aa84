"""What does the queue tell the gateway to do?

`FlowController.step` answers with these, in the order in which they were decided. Each is said once.
"""

from typing import Final, NamedTuple

from inferencesched.errors import QueueRefusedError
from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.flowcontrol.outcomes import QueueOutcome, refusal

_OTHER: Final = QueueOutcome.EVICTED_OTHER  # of a ticket without an outcome, which no event has


class Dispatch(NamedTuple):
    """Who may go now? Choose a server, and say which: `FlowController.dispatched`."""

    ticket: Ticket


class Expire(NamedTuple):
    """Who waited too long, or cannot be served any more? ``ticket.outcome`` tells which."""

    ticket: Ticket
    retry_after: float

    def error(self) -> QueueRefusedError:
        """Return what its caller is told: a `QueueEvictedError`, or a `QueueRevokedError` where it lapsed at a server."""
        return refusal(self.ticket.outcome or _OTHER, self.ticket.request_id, retry_after=self.retry_after)


class Displace(NamedTuple):
    """Who had to make room for a request of higher priority, `by`?"""

    ticket: Ticket
    by: Ticket
    retry_after: float

    def error(self) -> QueueRefusedError:
        """Return what its caller is told: a `QueueEvictedError`."""
        return refusal(self.ticket.outcome or _OTHER, self.ticket.request_id, retry_after=self.retry_after)


class Revoke(NamedTuple):
    """Whom should a server stop working on? Answer with `FlowController.revoked` when it has, or `completed`."""

    ticket: Ticket


Event = Dispatch | Expire | Displace | Revoke


class Rejection(NamedTuple):
    """Why was a request not queued at all?

    ``retry_after`` is seconds until it is worth another try, ``wait`` what it would have had to wait as far as that can be
    told (NaN where it cannot); ``detail`` names the limit that was met.
    """

    item: QueueItem
    outcome: QueueOutcome
    retry_after: float
    wait: float
    detail: str

    def error(self) -> QueueRefusedError:
        """Return what its caller is told: a `QueueRejectedError`."""
        return refusal(
            self.outcome, self.item.request_id, retry_after=self.retry_after, wait=self.wait, detail=self.detail
        )
