"""Who has waited too long? By the time at which a ticket expires; exact, and without a sweep."""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import final

from inferencesched.flowcontrol.flows import Ticket

Entry = tuple[float, int, Ticket]


@final
class ExpiryHeap:
    """Which waiting tickets expire, and when next?

    Most tickets expire in the order in which they came: those stand in a line, which costs nothing to keep in order. Whoever
    would expire before the last in line goes to a heap. A ticket that leaves the queue otherwise is forgotten when it is
    first, or when such entries are the most of all: there are never more than twice what waits. Cost: constant for the line,
    O(log n) for the heap.
    """

    __slots__ = ("_heap", "_left", "_line")

    def __init__(self) -> None:
        self._line: deque[Entry] = deque()
        self._heap: list[Entry] = []
        self._left = 0

    def add(self, ticket: Ticket) -> None:
        """Remember a ticket, unless it never expires."""
        at = ticket.expires_at
        if at < inf:
            line = self._line
            if not line or at > line[-1][0] or (at == line[-1][0] and ticket.number > line[-1][1]):
                line.append((at, ticket.number, ticket))
            else:
                heappush(self._heap, (at, ticket.number, ticket))

    def left(self, ticket: Ticket) -> None:
        """Note that a ticket does not wait any more."""
        if ticket.expires_at < inf:
            self._left += 1
            line = self._line
            while line and (line[0][2].outcome is not None or line[0][0] != line[0][2].expires_at):
                line.popleft()
                self._left -= 1
            if 2 * self._left > len(line) + len(self._heap) + 64:
                self._forget()

    def _forget(self) -> None:
        """Keep only who waits still, once each: who was taken back, and expires at the same time as before, has two entries."""
        waiting = {
            entry[1]: entry
            for entry in (*self._line, *self._heap)
            if entry[2].outcome is None and entry[0] == entry[2].expires_at
        }
        self._arrange(waiting.values())

    def _arrange(self, entries: Iterable[Entry]) -> None:
        self._left = 0
        self._line.clear()
        self._line.extend(sorted(entries, key=lambda entry: entry[:2]))
        self._heap.clear()

    def any_due(self, now: float) -> bool:
        """Return whether it is worth asking: an entry's time has come."""
        line, heap = self._line, self._heap
        return (bool(line) and line[0][0] <= now) or (bool(heap) and heap[0][0] <= now)

    def due(self, now: float) -> Iterator[Ticket]:
        """Take out whoever's time has come, in the order of their times."""
        while self.next() <= now:
            line, heap = self._line, self._heap
            if line and (not heap or line[0][:2] < heap[0][:2]):
                yield line.popleft()[2]
            else:
                yield heappop(heap)[2]

    def next(self) -> float:
        """Return when the next ticket expires; inf for never."""
        line, heap = self._line, self._heap
        while line and (line[0][2].outcome is not None or line[0][0] != line[0][2].expires_at):
            line.popleft()
            self._left -= 1
        while heap and (heap[0][2].outcome is not None or heap[0][0] != heap[0][2].expires_at):
            heappop(heap)
            self._left -= 1
        return min(line[0][0] if line else inf, heap[0][0] if heap else inf)

    def restart(self, waiting: Iterable[Ticket]) -> None:
        """Take these in place of all: everybody's time has changed."""
        self._arrange((t.expires_at, t.number, t) for t in waiting if t.expires_at < inf)

    def __len__(self) -> int:
        return len(self._line) + len(self._heap)
