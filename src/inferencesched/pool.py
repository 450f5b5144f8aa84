"""Who keeps the one true state of the endpoints?

`InferencePool` is the one writer: join, leave, observe, reserve, settle. Everybody else reads snapshots.
Every method is atomic under one lock, so any thread may call any of them; the pool starts none itself.
"""

import threading
from collections.abc import Iterable, Mapping
from math import inf, isfinite, isnan, nan
from typing import Final, final

import numpy as np

from inferencesched._pool_audit import audit
from inferencesched._typing import FloatArray, IntArray
from inferencesched.bookings import Bookings
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    LAST_PICKED,
    LORA_ACTIVE,
    LORA_CAPACITY,
    LORA_LOADED,
    LORA_SLOTS,
    LORA_WAITING,
    OBSERVED_AT,
    STANDARD_SIGNALS,
    Endpoints,
    Layout,
    Signal,
)
from inferencesched.errors import (
    DuplicateEndpointError,
    EndpointGoneError,
    InvalidInputError,
    UnknownNameError,
    finite_time,
    whole_number,
)
from inferencesched.members import Adapters, Membership, Residency
from inferencesched.request import InferenceRequest, Usage
from inferencesched.reservation import Ledger, Reservation, Settlement

_STANDARD: Final = Layout(STANDARD_SIGNALS)
_REQUESTS: Final = _STANDARD.row(INFLIGHT_REQUESTS)
_TOKENS: Final = _STANDARD.row(INFLIGHT_TOKENS)
_CONTEXT: Final = _STANDARD.row(CONTEXT_TOKENS)
_PICKED: Final = _STANDARD.row(LAST_PICKED)
_OBSERVED: Final = _STANDARD.row(OBSERVED_AT)
_ADAPTERS: Final = [*map(_STANDARD.row, (LORA_ACTIVE, LORA_WAITING, LORA_LOADED, LORA_CAPACITY, LORA_SLOTS))]


@final
class InferencePool:
    """Which model servers are there, what is known of them, and what have we sent them?

    Parameters
    ----------
    signals: columns of the caller's own beside `STANDARD_SIGNALS`.
    reservation_ttl: seconds without an event after which `sweep` settles a reservation as expired.

    Cost at 64 endpoints: `snapshot` 2 us after a change and 0.2 us without one, `reserve` 4 us.
    `leave` and `sweep` are linear in the reservations in flight.

    >>> pool = InferencePool()
    >>> pool.join("ep-0")
    >>> pool.join("ep-0")
    Traceback (most recent call last):
    ...
    inferencesched.errors.DuplicateEndpointError: name: got 'ep-0', allowed: a name not in the pool
    >>> from inferencesched.endpoints import KV_CACHE_USAGE
    >>> pool.observe("ep-0", {KV_CACHE_USAGE: 1.7}, now=0.0)
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: kv_cache_usage: got 1.7, allowed: 0.0 to 1.0, or NaN for unknown
    """

    def __init__(self, *, signals: tuple[Signal, ...] = (), reservation_ttl: float = inf) -> None:
        if not reservation_ttl > 0:
            raise InvalidInputError("reservation_ttl", reservation_ttl, "seconds above 0")
        self.lock = threading.RLock()
        self.reservation_ttl = reservation_ttl
        self._layout = Layout((*STANDARD_SIGNALS, *signals)) if signals else _STANDARD
        self._defaults = self._layout.defaults()
        self._matrix: FloatArray = np.empty((len(self._defaults), 0), dtype=np.float64)
        self._members = Membership()
        self._residency = Residency()
        self._version = 0
        self._generation = 0
        self._snapshot: Endpoints | None = None
        self._oldest: tuple[float, float] | None = None
        self._inflight: dict[int, Reservation] = {}
        self._unmade: dict[int, Bookings] = {}  # of which not every record is made, by the first one's number
        self._reserved_requests = 0  # also the sequence: commits so far
        self._reserved_tokens = 0
        self._settled_requests = 0
        self._settled_tokens = 0
        self._inflight_tokens = 0

    # -- membership ------------------------------------------------------------------------------

    def join(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        values: Mapping[Signal, float] | None = None,
        address: str = "",
    ) -> None:
        """Add an endpoint; it takes the lowest free slot and a new generation.

        `values` sets static signals; `address` is where its requests are sent, the name unless given. Errors: `DuplicateEndpointError`, `InvalidInputError`, `UnknownNameError`.
        """
        with self.lock:
            members = self._members
            if not name:
                raise InvalidInputError("name", name, "a string that is not empty")
            if name in members.positions:
                raise DuplicateEndpointError("name", name, "a name not in the pool")
            column = self._defaults.copy()
            for signal, value in (values or {}).items():
                column[self._layout.writable(signal, value, "static")] = value
            taken = {slot for slot, _ in members.stays}
            slot = next(i for i in range(len(taken) + 1) if i not in taken)
            self._generation += 1
            self._members = Membership(
                (*members.names, name),
                (*members.stays, (slot, self._generation)),
                (*members.labels, dict(labels or {})),
                (*members.addresses, address or name),
            )
            self._residency = Residency((*self._residency.adapters, Adapters()))
            self._matrix = np.ascontiguousarray(np.column_stack([self._matrix, column]))
            self._oldest = None
            self._changed()

    def leave(self, name: str) -> list[Settlement]:
        """Remove an endpoint; what was in flight there is settled as ``endpoint_left`` and returned."""
        with self.lock:
            position = self._position(name)
            leaving = [reservation for reservation in self._open() if reservation.position == position]
            settled = [self._close(each, "endpoint_left", "", None, each.touched_at) for each in leaving]
            members = self._members
            keep = [i for i in range(len(members.names)) if i != position]
            self._members = Membership(
                tuple(members.names[i] for i in keep),
                tuple(members.stays[i] for i in keep),
                tuple(members.labels[i] for i in keep),
                tuple(members.addresses[i] for i in keep),
            )
            self._residency = Residency(tuple(self._residency.adapters[i] for i in keep))
            self._matrix = np.ascontiguousarray(np.delete(self._matrix, position, axis=1))
            for reservation in self._inflight.values():
                if reservation.position > position:
                    reservation.position -= 1
            self._oldest = None
            self._changed()
            self._tell(leaving)
            return settled

    @property
    def names(self) -> tuple[str, ...]:
        """Which endpoints are in the pool, in the order of every column?"""
        return self._members.names

    def __len__(self) -> int:
        return len(self._members.names)

    # -- what is observed ------------------------------------------------------------------------

    def observe(
        self, name: str, values: Mapping[Signal, float], *, now: float, adapters: Adapters | None = None
    ) -> None:
        """Record what a server said of itself at `now` (seconds).

        A signal left out keeps its value; NaN says that it is unknown now. Errors: `UnknownNameError` for an
        unknown endpoint or signal; `InvalidInputError` for a value out of the signal's range, a signal that is not
        observed (local, cycle), or a `now` before the endpoint's last observation. Nothing is half recorded.
        Cost: 2 us and 0.3 us a signal.
        """
        with self.lock:
            position = self._position(name)
            self._check_time(now, float(self._matrix[_OBSERVED, position]), name)
            rows = [(self._layout.writable(signal, value, "scraped"), value) for signal, value in values.items()]
            if adapters is not None:
                whole_number("adapters.capacity", adapters.capacity)
                whole_number("adapters.slots", adapters.slots)
            matrix = self._matrix
            for row, value in rows:
                matrix[row, position] = value
            matrix[_OBSERVED, position] = now
            if adapters is not None:
                known = list(self._residency.adapters)
                if known[position] != adapters:
                    known[position] = adapters.frozen()
                    self._residency = Residency(tuple(known))
                names = (adapters.running, adapters.waiting, adapters.loaded)
                matrix[_ADAPTERS, position] = (*map(len, names), adapters.capacity, adapters.slots)
            self._oldest = None
            self._changed()

    def observe_all(self, columns: Mapping[Signal, FloatArray], *, now: float | FloatArray) -> None:
        """Record one column a signal for the whole pool, in the order of `names`; `now` may differ by endpoint (-inf: never).

        Errors: as `observe`, and `InvalidInputError` for a column of another length.
        Cost at 64 endpoints: 7 us and 2 us a column.
        """
        with self.lock:
            names = self._members.names
            count, rows = len(names), []
            for signal, values in columns.items():
                row = self._layout.writable(signal, nan, "scraped")
                rows.append((row, self._layout.checked(signal, values, count, names.__getitem__)))
            times = np.asarray(now, dtype=np.float64)
            if times.shape not in ((), (count,)):
                raise InvalidInputError("now", f"shape {times.shape}", f"a number, or float64[{count}]")
            times = np.broadcast_to(times, (count,))
            for at in np.flatnonzero(~((times >= self._matrix[_OBSERVED]) & (times < inf))).tolist():
                self._check_time(float(times[at]), float(self._matrix[_OBSERVED, at]), names[at])
            for row, column in rows:
                self._matrix[row] = column
            self._matrix[_OBSERVED] = times
            self._oldest = None
            self._changed()

    def snapshot(self) -> Endpoints:
        """What is known right now? The same object until something changes."""
        with self.lock:
            snapshot = self._snapshot
            if snapshot is None:
                snapshot = self._snapshot = Endpoints(
                    self._matrix.copy(),
                    self._layout,
                    self._members,
                    self._residency,
                    self._version,
                    self._reserved_requests,
                    oldest=self._oldest,
                )
                self._oldest = snapshot.oldest  # bookings do not change it: the next snapshots need not look again
            return snapshot

    # -- what is booked --------------------------------------------------------------------------

    @property
    def sequence(self) -> int:
        """How many reservations were made so far?"""
        return self._reserved_requests

    def reserve(
        self,
        endpoint: str,
        *,
        request_id: str,
        tokens: int = 0,
        context_tokens: int = 0,
        now: float,
        generation: int | None = None,
    ) -> Reservation:
        """Book one request on an endpoint; the next snapshot sees it.

        `tokens` are the prompt tokens to compute, given back at the first token; `context_tokens` the KV they will
        hold until the end. With `generation`, another stay of the endpoint is refused.
        Errors: `EndpointGoneError`, `UnknownNameError`, `InvalidInputError`.
        """
        with self.lock:
            members = self._members
            position = members.positions.get(endpoint)
            if generation is not None and (position is None or members.stays[position][1] != generation):
                raise EndpointGoneError(f"endpoint {endpoint!r} left the pool after the decision for {request_id!r}")
            if position is None:
                position = self._position(endpoint)
            slot, generation = members.stays[position]
            tokens = whole_number("tokens", tokens)
            context_tokens = whole_number("context_tokens", context_tokens)
            matrix = self._matrix
            reservation = Reservation(
                self,
                number=self._reserved_requests,
                request_id=request_id,
                endpoint=endpoint,
                position=position,
                slot=slot,
                generation=generation,
                tokens=tokens,
                context_tokens=context_tokens,
                picked_before=float(matrix[_PICKED, position]),
                now=finite_time(now),
            )
            matrix[_REQUESTS, position] += 1.0
            matrix[_TOKENS, position] += tokens
            matrix[_CONTEXT, position] += context_tokens
            matrix[_PICKED, position] = self._reserved_requests
            self._inflight[reservation.number] = reservation
            self._reserved_requests += 1
            self._reserved_tokens += tokens
            self._inflight_tokens += tokens
            self._changed()
            return reservation

    def book(
        self, requests: tuple[InferenceRequest, ...], table: IntArray, local: FloatArray, *, now: float
    ) -> Bookings:
        """Book what `Scheduler.schedule_many` decided in one go; the next snapshot sees it all.

        For the scheduler, which holds `lock` from its snapshot on: `table` and the local columns (rows of
        `local`, ``float64[4, E]``: requests, tokens, context, last picked) are as its kernel left them.
        """
        with self.lock:
            finite_time(now)
            count, tokens = len(requests), int(table[:, 3].sum())
            bookings = Bookings(self._make, requests, table, self._reserved_requests, now)
            self._matrix[[_REQUESTS, _TOKENS, _CONTEXT, _PICKED]] = local
            self._unmade[bookings.start] = bookings
            self._reserved_requests += count
            self._reserved_tokens += tokens
            self._inflight_tokens += tokens
            self._version += count - 1
            self._changed()
            return bookings

    def withdraw(self, reservation: Reservation) -> None:
        """Was the last booking a mistake? Takes it off the books as if it had never been made.

        For who books in several steps, of which a later one failed, with `lock` held over all; who listens is told. Only
        the pool's newest reservation, as it was made: else `InvalidInputError` (or `AlreadySettledError`), and `fail` settles it.
        """
        with self.lock:
            reservation.require_open()
            number = self._reserved_requests - 1
            self._make_all()
            untouched = isnan(reservation.first_token_at) and reservation.touched_at == reservation.reserved_at
            if self._inflight.get(number) is not reservation or reservation.output_tokens or not untouched:
                raise InvalidInputError("reservation", reservation, "the newest of this pool, with no event since")
            matrix, position = self._matrix, reservation.position
            matrix[_REQUESTS, position] -= 1.0
            matrix[_TOKENS, position] -= reservation.tokens
            matrix[_CONTEXT, position] -= reservation.context_tokens
            matrix[_PICKED, position] = reservation.picked_before
            del self._inflight[number]
            self._reserved_requests = number
            self._reserved_tokens -= reservation.tokens
            self._inflight_tokens -= reservation.tokens
            reservation.settlement = reservation.settled("withdrawn", "", None, reservation.reserved_at)
            self._changed()
            self._tell((reservation,))

    def sweep(self, now: float) -> list[Settlement]:
        """Settle as ``expired`` what had no event for `reservation_ttl` seconds; returns those."""
        finite_time(now)
        with self.lock:
            expired = [r for r in self._open() if now - r.touched_at > self.reservation_ttl]
            settled = [self._close(reservation, "expired", "ttl", None, now) for reservation in expired]
            self._tell(expired)
            return settled

    def ledger(self) -> Ledger:
        """Does reserved = settled + in flight hold? The six counts, read together."""
        with self.lock:
            return Ledger(
                self._reserved_requests,
                self._settled_requests,
                self._reserved_requests - self._settled_requests,
                self._reserved_tokens,
                self._settled_tokens,
                self._inflight_tokens,
            )

    def check(self) -> None:
        """Assert every relation between members, columns and reservations. For tests; linear in all of them."""
        with self.lock:
            ledger = self.ledger()
            audit(self._members, self._residency, self._layout, self._matrix, self._open(), ledger, self._oldest)

    # -- called by reservations --------------------------------------------------------------------

    def _first_token(self, reservation: Reservation, now: float) -> None:
        with self.lock:
            reservation.require_open()
            reservation.touched_at = max(reservation.touched_at, finite_time(now))
            if isnan(reservation.first_token_at):
                reservation.first_token_at = now
                self._give_back(reservation)
                self._changed()

    def _progress(self, reservation: Reservation, tokens: int, now: float) -> None:
        with self.lock:
            reservation.require_open()
            tokens = whole_number("tokens", tokens)
            reservation.touched_at = max(reservation.touched_at, finite_time(now))
            reservation.output_tokens += tokens
            self._matrix[_CONTEXT, reservation.position] += tokens
            self._changed()

    def _move(self, reservation: Reservation, endpoint: str, now: float) -> None:
        with self.lock:
            reservation.require_open()
            target, matrix = self._position(endpoint), self._matrix
            finite_time(now)
            owed = reservation.tokens if isnan(reservation.first_token_at) else 0
            context = reservation.context_tokens + reservation.output_tokens
            for position, sign in ((reservation.position, -1), (target, 1)):
                matrix[_REQUESTS, position] += sign
                matrix[_TOKENS, position] += sign * owed
                matrix[_CONTEXT, position] += sign * context
            reservation.touched_at = max(reservation.touched_at, now)
            reservation.endpoint = endpoint
            reservation.position = target
            reservation.slot, reservation.generation = self._members.stays[target]
            self._changed()

    def _settle(
        self, reservation: Reservation, outcome: str, reason: str, usage: Usage | None, now: float
    ) -> Settlement:
        with self.lock:
            reservation.require_open()
            settlement = self._close(reservation, outcome, reason, usage, finite_time(now))
            if reservation.listeners:
                self._tell((reservation,))
            return settlement

    def _leave(self, reservation: Reservation, outcome: str, reason: str) -> None:
        with self.lock:
            if reservation.settlement is None:
                self._close(reservation, outcome, reason, None, reservation.touched_at)
                self._tell((reservation,))

    # -- inside ------------------------------------------------------------------------------------

    def _close(
        self, reservation: Reservation, outcome: str, reason: str, usage: Usage | None, now: float
    ) -> Settlement:
        """Take an open reservation off the books."""
        if isnan(reservation.first_token_at):
            self._give_back(reservation)
        position = reservation.position
        self._matrix[_REQUESTS, position] -= 1.0
        self._matrix[_CONTEXT, position] -= reservation.context_tokens + reservation.output_tokens
        del self._inflight[reservation.number]
        self._settled_requests += 1
        reservation.settlement = settlement = reservation.settled(outcome, reason, usage, now)
        self._changed()
        return settlement

    @staticmethod
    def _tell(reservations: Iterable[Reservation]) -> None:
        """Tell who listens how these ended, all of them; what a listener raises is raised when all were told."""
        errors: list[Exception] = []
        for reservation in reservations:
            settlement = reservation.settlement
            for listen in reservation.listeners:
                assert settlement is not None  # only closed reservations come here
                try:
                    listen(settlement)
                except Exception as error:  # noqa: BLE001  raised below, when the others have been told
                    errors.append(error)
        if errors:
            raise errors[0] if len(errors) == 1 else ExceptionGroup("listeners of reservations", errors)

    def _make(self, bookings: Bookings, index: int) -> Reservation:
        """Return the record of one of many bookings, made now unless it was made before."""
        with self.lock:
            made = bookings.made[index]
            if made is None:
                made = bookings.make(index, self, self._members)
                self._inflight[made.number] = made
                if not bookings.unmade:
                    del self._unmade[bookings.start]
            return made

    def _make_all(self) -> None:
        """Make the record of every booking: positions are about to move, or all are to be looked at."""
        for bookings in list(self._unmade.values()):
            list(bookings)

    def _open(self) -> list[Reservation]:
        self._make_all()
        return [self._inflight[number] for number in sorted(self._inflight)]

    def _give_back(self, reservation: Reservation) -> None:
        """Return the booked prompt tokens: they are computed, or never will be."""
        self._matrix[_TOKENS, reservation.position] -= reservation.tokens
        self._inflight_tokens -= reservation.tokens
        self._settled_tokens += reservation.tokens

    def _changed(self) -> None:
        self._version += 1
        self._snapshot = None

    def _position(self, name: str) -> int:
        position = self._members.positions.get(name)
        if position is None:
            raise UnknownNameError("endpoint", name, list(self._members.names) or "none: the pool is empty")
        return position

    @staticmethod
    def _check_time(now: float, last: float, name: str) -> None:
        if not (isfinite(now) and now >= last):
            raise InvalidInputError("now", now, f"a finite time of at least {last}, when {name!r} was last observed")
