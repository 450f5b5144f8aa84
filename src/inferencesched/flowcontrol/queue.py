"""In which order does one flow wait?

A queue knows its head, and gives up any ticket: at once where it is first come, first served (a list whose links are in the
tickets themselves), in O(log n) where it is ordered by a key (sortedcontainers).
"""

from collections.abc import Callable, Iterator
from typing import Any, final

from sortedcontainers import SortedList

from inferencesched.flowcontrol.flows import Ticket


@final
class FifoQueue:
    """First come, first served. Cost of each call: constant; of a queue: 72 bytes."""

    __slots__ = ("_count", "_first", "_last")

    def __init__(self) -> None:
        self._first: Ticket | None = None
        self._last: Ticket | None = None
        self._count = 0

    def push(self, ticket: Ticket) -> None:
        """Add a ticket behind all others; one that came before them (it was taken back) goes where it was."""
        last = self._last
        ticket.previous, ticket.next = last, None
        if last is None:
            self._first = ticket
        elif last.number > ticket.number:
            self._insert(ticket)
            return
        else:
            last.next = ticket
        self._last = ticket
        self._count += 1

    def _insert(self, ticket: Ticket) -> None:
        """Put a ticket before the first that came after it."""
        behind = self._first
        assert behind is not None  # the caller saw a later one
        while behind.number < ticket.number:
            assert behind.next is not None  # the last came after it
            behind = behind.next
        before = behind.previous
        ticket.previous, ticket.next, behind.previous = before, behind, ticket
        if before is None:
            self._first = ticket
        else:
            before.next = ticket
        self._count += 1

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket."""
        before, behind = ticket.previous, ticket.next
        if before is None:
            self._first = behind
        else:
            before.next = behind
        if behind is None:
            self._last = before
        else:
            behind.previous = before
        ticket.previous = ticket.next = None
        self._count -= 1

    def head(self) -> Ticket | None:
        """Return the first that came."""
        return self._first

    def tail(self) -> Ticket | None:
        """Return the last that came."""
        return self._last

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Ticket]:
        ticket = self._first
        while ticket is not None:
            behind = ticket.next
            yield ticket
            ticket = behind


@final
class OrderedQueue:
    """Least key first, then first come. Cost: O(log n) a call."""

    __slots__ = ("_key", "_tickets")

    def __init__(self, key: Callable[[Ticket], Any]) -> None:
        self._key = key
        self._tickets: SortedList[tuple[Any, int, Ticket]] = SortedList()

    def push(self, ticket: Ticket) -> None:
        """Add a ticket where its key puts it; the key is read once."""
        ticket.key = self._key(ticket)
        self._tickets.add((ticket.key, ticket.number, ticket))

    def remove(self, ticket: Ticket) -> None:
        """Take out a ticket."""
        self._tickets.remove((ticket.key, ticket.number, ticket))

    def head(self) -> Ticket | None:
        """Return who has the least key."""
        return self._tickets[0][2] if self._tickets else None

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for _, _, ticket in self._tickets)
