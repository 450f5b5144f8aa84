"""What does the queue tell the gateway to do?

`FlowController.step` answers with these, in the order in which they were decided. Each is said once.
"""

from typing import NamedTuple

from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.flowcontrol.outcomes import QueueOutcome


class Dispatch(NamedTuple):
    """Who may go now? Choose a server, and say which: `FlowController.dispatched`."""

    ticket: Ticket


class Expire(NamedTuple):
    """Who waited too long, or cannot be served any more? ``ticket.outcome`` tells which."""

    ticket: Ticket
    retry_after: float


class Displace(NamedTuple):
    """Who had to make room for a request of higher priority, `by`?"""

    ticket: Ticket
    by: Ticket
    retry_after: float


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
