"""Who has waited too long? A heap by the time at which a ticket expires; exact, and without a sweep."""

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import final

from inferencesched.flowcontrol.flows import Ticket


@final
class ExpiryHeap:
    """Which waiting tickets expire, and when next?

    A ticket that leaves the queue otherwise is forgotten when its time comes, or when such entries are the most of the
    heap: it never holds more than twice what waits. Cost: O(log n) a ticket.
    """

    __slots__ = ("_entries", "_left")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Ticket]] = []
        self._left = 0

    def add(self, ticket: Ticket) -> None:
        """Remember a ticket, unless it never expires."""
        if ticket.expires_at < inf:
            heappush(self._entries, (ticket.expires_at, ticket.number, ticket))

    def left(self, ticket: Ticket) -> None:
        """Note that a ticket does not wait any more."""
        if ticket.expires_at < inf:
            self._left += 1
            entries = self._entries
            if 2 * self._left > len(entries) + 64:
                self._left = 0
                # one each: who was taken back, and expires at the same time as before, has two
                waiting = {e[1]: e for e in entries if e[2].outcome is None and e[0] == e[2].expires_at}
                entries[:] = waiting.values()
                heapify(entries)

    def any_due(self, now: float) -> bool:
        """Return whether it is worth asking: an entry's time has come."""
        return bool(self._entries) and self._entries[0][0] <= now

    def due(self, now: float) -> Iterator[Ticket]:
        """Take out whoever's time has come, in the order of their times."""
        entries = self._entries
        while entries and entries[0][0] <= now:
            at, _, ticket = heappop(entries)
            if ticket.outcome is None and at == ticket.expires_at:
                yield ticket
            elif self._left:
                self._left -= 1

    def next(self) -> float:
        """Return when the next ticket expires; inf for never."""
        entries = self._entries
        while entries:
            at, _, ticket = entries[0]
            if ticket.outcome is None and at == ticket.expires_at:
                return at
            heappop(entries)
            self._left = max(0, self._left - 1)
        return inf

    def restart(self, waiting: Iterable[Ticket]) -> None:
        """Take these in place of all: everybody's time has changed."""
        self._left = 0
        self._entries = [(t.expires_at, t.number, t) for t in waiting if t.expires_at < inf]
        heapify(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
