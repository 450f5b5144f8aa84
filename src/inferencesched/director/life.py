"""What becomes of a request that went, and who is told when it ends?

::

    forwarded --first_token--> streaming --tokens...--> complete | cancel | fail | block
        |            `--------- retry: another endpoint, before the first byte only ----.
        `-------------------------------------------------------------------------------'

It ends exactly once, whatever comes first; then the endpoint's booking, the queue's place, limits and quotas are all given back,
whatever any of them raises.
"""

from collections.abc import Callable
from typing import Final, Protocol, final

from inferencesched.director.way import Lane, Way
from inferencesched.errors import CODES, ReservationError, whole_number
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.lifecycle.responses import ResponseReader
from inferencesched.observability.events import Ended, Event, FirstToken, OutputTokens
from inferencesched.request import Usage
from inferencesched.reservation import Reservation

_UNKNOWN: Final = Usage()
_DISPATCHED: Final = QueueOutcome.DISPATCHED
#: How it may end, and which status that is to llm-d's metrics; None ended well.
_ENDS: Final = {"completed": None, "cancelled": 503, "failed": 502, "blocked": 403, "revoked": 429, "lapsed": 500}


class Home(Protocol):
    """Who keeps the list of those that are at a server? The director."""

    _lives: "dict[str, RequestLife]"
    _emit: Callable[[Event], None]

    def _turn(self, now: float) -> None: ...
    def _changed(self, lane: Lane) -> None: ...


@final
class RequestLife:
    """Is a forwarded request still on its way, and what has come of it so far?

    Made by the director, in `Decision.life`; tell it what happens, in order. Times are seconds on the director's clock. What
    ends it (`complete`, `cancel`, `fail`, `block`) returns True the first time and False after that, and changes nothing then: a
    client that goes and an answer that ends may race. `outcome` is empty until then. Cost: `first_token` and `tokens` 1 to 2 us.

    `first_byte` says that the client has seen something: there is no other endpoint after that.
    """

    __slots__ = (
        "_director",
        "_way",
        "attempt",
        "endpoint",
        "first_byte_at",
        "first_token_at",
        "last_token_at",
        "outcome",
        "output_tokens",
        "reservation",
        "revoking",
        "size_bytes",
        "tried",
        "usage",
    )

    def __init__(self, director: Home, way: Way, reservation: Reservation) -> None:
        self._director = director
        self._way = way
        self.reservation = reservation
        self.endpoint = reservation.endpoint
        self.attempt = 1
        self.tried: tuple[str, ...] = (reservation.endpoint,)
        self.first_byte_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.output_tokens = 0
        self.size_bytes: int | None = None
        self.usage = _UNKNOWN
        self.outcome = ""
        self.revoking = False  # its place is wanted: stop it, and say `revoked`

    def __repr__(self) -> str:
        return f"RequestLife({self._way.request_id!r} on {self.endpoint!r}, {self.outcome or 'in flight'})"

    @property
    def way(self) -> Way:
        """How did it come here?"""
        return self._way

    @property
    def open(self) -> bool:
        """Is it still on its way?"""
        return not self.outcome

    def reader(self, *, streaming: bool) -> ResponseReader:
        """Return what reads its server's answer, and gives the model's name back as the client said it."""
        way = self._way
        return ResponseReader(way.body.kind, streaming=streaming, model=way.body.model, served_model=way.choice.target)

    # -- what comes ----------------------------------------------------------------------------------

    def first_byte(self, *, now: float) -> None:
        """Say that the client has been sent something of the answer: from now on it is not tried elsewhere."""
        if self.first_byte_at is None:
            self.first_byte_at = now

    def first_token(self, *, now: float) -> None:
        """Say that the first token came; again is nothing."""
        if self.outcome or self.first_token_at is not None:
            return
        self.first_token_at = self.last_token_at = now
        if self.first_byte_at is None:
            self.first_byte_at = now
        if self.reservation.settlement is None:
            self.reservation.first_token(now=now)
        way = self._way
        self._director._emit(
            FirstToken(way.request_id, way.labels, self.endpoint, way.streaming, now - way.received_at)
        )

    def tokens(self, count: int, *, now: float) -> None:
        """Say that so many more output tokens came. The first of them is the first token. Errors: `InvalidInputError` for less than 0."""
        if self.outcome or not whole_number("count", count):
            return
        before = self.last_token_at
        if before is None:
            self.first_token(now=now)
        else:
            self.last_token_at = now
            way = self._way
            self._director._emit(OutputTokens(way.request_id, way.labels, count, now - before))
        self.output_tokens += count
        if self.reservation.settlement is None:
            self.reservation.progress(count, now=now)

    # -- how it ends ---------------------------------------------------------------------------------

    def complete(self, usage: Usage | None = None, *, size_bytes: int | None = None, now: float) -> bool:
        """Say that the answer ended as it should, and what the server says it used."""
        return self._end("completed", usage, size_bytes, now)

    def cancel(self, usage: Usage | None = None, *, now: float) -> bool:
        """Say that the client went away. Where no usage is known, what was counted of the answer is charged."""
        return self._end("cancelled", usage, None, now)

    def fail(self, usage: Usage | None = None, *, now: float) -> bool:
        """Say that the server failed, and that it is not tried elsewhere (any more): see `Director.retry`."""
        return self._end("failed", usage, None, now)

    def block(self, usage: Usage | None = None, *, now: float) -> bool:
        """Say that a guard cut the answer."""
        return self._end("blocked", usage, None, now)

    def revoked(self, *, now: float) -> bool:
        """Say that the server stopped because its place was wanted for another request (`revoking`)."""
        return self._end("revoked", None, None, now)

    # -- inside --------------------------------------------------------------------------------------

    def _moved(self, reservation: Reservation) -> None:
        """Go on at another endpoint."""
        self.reservation = reservation
        self.endpoint = reservation.endpoint
        self.attempt += 1
        self.tried = (*self.tried, reservation.endpoint)

    def _end(self, outcome: str, usage: Usage | None, size_bytes: int | None, now: float) -> bool:
        self._director._turn(now)
        if self.outcome:
            return False
        self.outcome = outcome
        way, director = self._way, self._director
        self.usage = usage = _UNKNOWN if usage is None else usage
        self.size_bytes = size_bytes
        director._lives.pop(way.request_id, None)
        releases: tuple[Callable[[], object], ...] = (
            lambda: self._settle_reservation(outcome, usage, now),
            lambda: self._give_back_place(outcome, usage, now),
            lambda: self._settle_meters(usage, now),
        )
        broken: list[BaseException] = []
        for release in releases:
            try:
                release()
            except BaseException as error:  # noqa: BLE001  all are given back, then the first error is told
                broken.append(error)
        status = _ENDS[outcome]
        duration = now - way.received_at
        ttft = None if self.first_token_at is None else self.first_token_at - way.received_at
        director._emit(
            Ended(
                way.request_id,
                way.labels,
                self.endpoint,
                outcome,
                "" if status is None else CODES[status],
                way.streaming,
                usage,
                duration,
                ttft,
                size_bytes,
                now,
            )
        )
        director._changed(way.lane)
        if broken:
            raise broken[0]
        return True

    def _settle_reservation(self, outcome: str, usage: Usage, now: float) -> None:
        if self.reservation.settlement is not None:
            return  # its endpoint left, or nobody said anything for so long that it was swept
        try:
            if outcome == "completed":
                self.reservation.complete(usage, now=now)
            else:
                self.reservation.fail(outcome, now=now)
        except ReservationError:
            return  # the same, a moment ago, in another thread

    def _give_back_place(self, outcome: str, usage: Usage, now: float) -> None:
        ticket, controller = self._way.ticket, self._way.lane.serving.controller
        if ticket is None or controller is None or ticket.outcome is not _DISPATCHED:
            return
        if outcome == "revoked":
            controller.revoked(ticket, now=now)
            return
        try:
            controller.completed(ticket, usage if usage.output_tokens is not None else None, now=now)
        except BaseException:
            if ticket.outcome is _DISPATCHED:  # a cost model that fails: its place is free all the same
                controller.completed(ticket, now=now)
            raise

    def _settle_meters(self, usage: Usage, now: float) -> None:
        self._way.settle_meters(self._used(usage), now=now)

    def _used(self, usage: Usage) -> int | None:
        """Return the tokens to charge: what the server says, else prompt and what was counted; None where nothing is known."""
        prompt = usage.input_tokens if usage.input_tokens is not None else self._way.input_tokens
        output = usage.output_tokens if usage.output_tokens is not None else self.output_tokens or None
        if output is None and self.outcome != "completed":
            output = 0  # nothing came of it
        return None if prompt is None or output is None else prompt + output
