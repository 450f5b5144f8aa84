"""What happens to one dispatched request?

::

    reserve --> booked --first_token--> streaming --complete--> settled "completed"
                  |                         |------fail-------> settled "failed"
                  |-------- the same, straight to settled ----> ...
                  `-- TTL passed: "expired"   endpoint left: "endpoint_left"   taken back at once: "withdrawn"

A reservation is settled exactly once. Law: reserved = settled + in flight, in requests and in tokens, at every step.
"""

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self, final

from inferencesched.errors import AlreadySettledError, EndpointGoneError
from inferencesched.request import Usage


class Settlement(NamedTuple):
    """How did a reservation end? Times are seconds on the caller's clock; NaN did not happen.

    ``outcome`` is one of ``completed``, ``failed``, ``expired``, ``endpoint_left``, ``withdrawn``; ``reason`` the caller's word.
    """

    request_id: str
    endpoint: str
    outcome: str
    reason: str
    tokens: int
    output_tokens: int
    reserved_at: float
    first_token_at: float
    settled_at: float
    usage: Usage | None


class Ledger(NamedTuple):
    """Does everything add up? reserved = settled + in flight, in requests and in tokens."""

    reserved_requests: int
    settled_requests: int
    inflight_requests: int
    reserved_tokens: int
    settled_tokens: int
    inflight_tokens: int


class Books(Protocol):
    """Who keeps the accounts of a reservation? The pool; every call is atomic."""

    def _first_token(self, reservation: "Reservation", now: float) -> None: ...
    def _progress(self, reservation: "Reservation", tokens: int, now: float) -> None: ...
    def _move(self, reservation: "Reservation", endpoint: str, now: float) -> None: ...
    def _settle(
        self, reservation: "Reservation", outcome: str, reason: str, usage: Usage | None, now: float
    ) -> Settlement: ...
    def _leave(self, reservation: "Reservation", outcome: str, reason: str) -> None: ...


@final
class Reservation:
    """Where was the request sent, and is it still there?

    Bound to one stay of one endpoint (its generation). Made by `InferencePool.reserve` or `Scheduler.reserve`;
    every method is atomic, safe from any thread, and raises `AlreadySettledError` once settled
    (`EndpointGoneError` where it was settled because its endpoint left). Cost: about 1 us a call.

    As a context manager it fails on an exception and completes otherwise, at the time of its last event,
    unless it was settled inside.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a")
    >>> reservation = pool.reserve("a", request_id="r-1", tokens=700, now=0.0)
    >>> reservation.first_token(now=0.2)
    >>> reservation.progress(12, now=0.9)
    >>> reservation.complete(now=1.0).outcome
    'completed'
    >>> reservation.complete(now=1.1)
    Traceback (most recent call last):
    ...
    inferencesched.errors.AlreadySettledError: reservation of request 'r-1' on 'a': settled before as 'completed'
    """

    __slots__ = (
        "_books",
        "context_tokens",
        "endpoint",
        "first_token_at",
        "generation",
        "listeners",
        "number",
        "output_tokens",
        "picked_before",
        "position",
        "request_id",
        "reserved_at",
        "settlement",
        "slot",
        "tokens",
        "touched_at",
    )

    def __init__(
        self,
        books: Books,
        *,
        number: int,
        request_id: str,
        endpoint: str,
        position: int,
        slot: int,
        generation: int,
        tokens: int,
        context_tokens: int,
        picked_before: float,
        now: float,
    ) -> None:
        self._books = books
        self.number = number
        self.request_id = request_id
        self.endpoint = endpoint
        self.position = position  # the pool's column; the pool renumbers it when someone leaves
        self.slot = slot
        self.generation = generation
        self.tokens = tokens
        self.context_tokens = context_tokens
        self.output_tokens = 0
        self.picked_before = picked_before  # the endpoint's LAST_PICKED until now, should this be withdrawn
        self.reserved_at = now
        self.first_token_at = float("nan")
        self.touched_at = now
        self.settlement: Settlement | None = None
        self.listeners: tuple[Callable[[Settlement], None], ...] = ()  # told once, when it is settled

    def __repr__(self) -> str:
        state = "in flight" if self.settlement is None else self.settlement.outcome
        return f"Reservation({self.request_id!r} on {self.endpoint!r}, {state})"

    def first_token(self, *, now: float) -> None:
        """Did the first token arrive? Its prompt is computed: the booked tokens are given back."""
        self._books._first_token(self, now)

    def progress(self, tokens: int, *, now: float) -> None:
        """How many more output tokens came? Keeps the TTL alive and grows the endpoint's context."""
        self._books._progress(self, tokens, now)

    def served_by(self, endpoint: str, *, now: float) -> None:
        """Did another endpoint take it (a fallback)? The booking moves there whole.

        Producers are not told: an approximate prefix index goes on believing in the first choice.
        """
        self._books._move(self, endpoint, now)

    def complete(self, usage: Usage | None = None, *, now: float) -> Settlement:
        """Settle: the response ended as it should."""
        return self._books._settle(self, "completed", "", usage, now)

    def fail(self, reason: str = "error", *, now: float) -> Settlement:
        """Settle: it ended otherwise. `reason` is a low-cardinality word of the caller's."""
        return self._books._settle(self, "failed", reason, None, now)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome, reason = ("completed", "") if kind is None else ("failed", kind.__name__)
        self._books._leave(self, outcome, reason)

    def settled(self, outcome: str, reason: str, usage: Usage | None, now: float) -> Settlement:
        """Return the record of an ending; it is the books that make it true."""
        return Settlement(
            self.request_id,
            self.endpoint,
            outcome,
            reason,
            self.tokens,
            self.output_tokens,
            self.reserved_at,
            self.first_token_at,
            now,
            usage,
        )

    def require_open(self) -> None:
        """Raise the typed error if this reservation is settled."""
        settlement = self.settlement
        if settlement is None:
            return
        where = f"reservation of request {self.request_id!r} on {self.endpoint!r}"
        if settlement.outcome == "endpoint_left":
            raise EndpointGoneError(f"{where}: the endpoint left at {settlement.settled_at}")
        raise AlreadySettledError(f"{where}: settled before as {settlement.outcome!r}")
