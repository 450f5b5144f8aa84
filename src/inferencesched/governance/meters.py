"""How much of what may somebody use? The one shape of rate limits and quotas.

Reserve before the request goes, settle once it is known what it used. A reservation is settled or cancelled exactly once.
"""

from typing import NamedTuple, Protocol, TypeVar

R = TypeVar("R")


class Identity(NamedTuple):
    """Who asks, as far as is known?

    ``tenant`` pays, ``fairness_id`` names the flow in which it queues, ``max_priority`` is the highest priority that it may have
    (None: any); ``subject`` is the user or key, for audit; ``verified`` says whether credentials were checked.
    """

    tenant: str = ""
    fairness_id: str = ""
    max_priority: int | None = None
    subject: str = ""
    verified: bool = False


class Meter(Protocol[R]):
    """Does it fit? Raises a `LimitedError` before anything has changed where it does not."""

    def reserve(self, identity: Identity, model: str, tokens: int, *, now: float) -> R:
        """Take one request and so many tokens (prompt and expected output); return the receipt for `settle` or `cancel`."""
        ...

    def settle(self, receipt: R, tokens: int | None, *, now: float) -> None:
        """Say what it used; None where nobody knows, then the reservation stands. More than reserved is a debt; less is given back."""
        ...

    def cancel(self, receipt: R, *, now: float) -> None:
        """Give all of it back: no server ever had the request."""
        ...
