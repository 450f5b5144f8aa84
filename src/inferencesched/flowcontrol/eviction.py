"""Whom to take back from the servers, how many at once, and how soon again?

What llm-d's router calls in-flight eviction: while a band is kept waiting because the pool is full, requests of strictly lower
priority that servers work on already are revoked. Who: what is sheddable, the lowest priority first, of one priority the newest
dispatch, which has lost least. How many: each is taken to free its share of the saturation. How soon: stop and wait. Nobody
else is revoked until all those revoked have ended (or have not within `timeout`), and their absence has had `grace` seconds to
show in what the servers say of themselves.

Whoever is revoked sees 429 and ``evicted``, unless the gateway queues it again (`FlowController.revoked`).

Source: llm-d-router, `pkg/epp/flowcontrol/{eviction,controller}` (snapshot of August 2026).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Final, NamedTuple, Protocol, final

from sortedcontainers import SortedDict, SortedList

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.flows import Band, Ticket

#: A quotient that is a whole number but for what floats lose does not cost another victim.
_SLACK: Final = 1e-9


def revocations(
    saturation: float, ceiling: float, inflight: int, evictable: int, *, pending: float = 0.0, most: int = 2
) -> int:
    """How many requests are revoked at once, so that a band whose ceiling the saturation has reached may go?

    Each of those in flight is taken to stand for an equal share of the saturation; `pending` is what revocations under way
    will free. At least one where the saturation is the ceiling exactly, and nothing is under way: below it is where a band goes.
    Never more than `most` or than there are. More saturation never gives fewer.

    >>> revocations(2.0, 1.0, inflight=4, evictable=4), revocations(1.0, 1.0, inflight=10, evictable=10)
    (2, 1)
    >>> revocations(2.0, 1.0, inflight=4, evictable=4, pending=1.0)
    0
    """
    possible = min(most, evictable)
    if not inflight or possible <= 0 or not saturation > 0:
        return 0
    net = saturation - ceiling - pending
    if not net >= 0 or (net == 0 and pending > 0):
        return 0
    wanted = net * inflight / saturation
    return max(1, ceil(wanted - _SLACK)) if wanted < possible else possible


class Fewest(NamedTuple):
    """How few must be evicted, and how many of those that wait go then?"""

    evictions: int
    admitted: int


def min_required(preload: int, arrivals: int, capacity: int, ceiling: float) -> Fewest:
    """How few of `preload` requests must be evicted so that as many arrivals as possible go, where nobody ends by himself?

    A pool of `capacity` requests, of which a request goes while the share in use is below `ceiling`: the bound that a pacing
    is measured against. Nothing is evicted where nobody may go anyway.

    >>> min_required(preload=20, arrivals=1, capacity=20, ceiling=0.9)
    Fewest(evictions=3, admitted=1)
    """
    for name, value in (("preload", preload), ("arrivals", arrivals), ("capacity", capacity)):
        whole_number(name, value)
    if not 0.0 <= ceiling < inf:
        raise InvalidInputError("ceiling", ceiling, "a finite number of at least 0")
    below = ceil(ceiling * capacity) - 1  # so many may be there when the next one goes
    admitted = min(arrivals, below + 1)
    if admitted <= 0:
        return Fewest(0, 0)
    return Fewest(min(max(preload + admitted - 1 - below, 0), preload), admitted)


def victim_key(priority: int, dispatched_at: float) -> tuple[int, float]:
    """Return the place of a request among victims, the least first: the lowest priority, then the newest dispatch.

    >>> victim_key(-2, 10.0) < victim_key(-2, 5.0) < victim_key(0, 20.0)
    True
    """
    return priority, -dispatched_at


class VictimFilter(Protocol):
    """Who may be revoked at all?"""

    def accepts(self, ticket: Ticket) -> bool:
        """Return whether this request may; asked once, when it is dispatched."""
        ...


class VictimOrder(Protocol):
    """Who is revoked first, of those of one priority? Whichever it is, a lower priority comes before a higher one."""

    def key(self, ticket: Ticket) -> float:
        """Return a number, not NaN: the least is first. Read once, when it is dispatched."""
        ...


@dataclass(frozen=True, slots=True)
class SheddableVictims:
    """Is it sheddable? llm-d's ``sheddable-eviction-filter``: a priority below 0, or below what is said."""

    below: int = 0

    def accepts(self, ticket: Ticket) -> bool:
        """Return whether its priority is below."""
        return ticket.item.priority < self.below


@dataclass(frozen=True, slots=True)
class EveryVictim:
    """May everybody be revoked, for somebody of strictly higher priority?"""

    def accepts(self, ticket: Ticket) -> bool:
        """Return yes."""
        return True


@dataclass(frozen=True, slots=True)
class NewestFirst:
    """Who has lost least? The newest dispatch. llm-d's ``priority-then-time-eviction-order-policy``, of one priority."""

    def key(self, ticket: Ticket) -> float:
        """Return the time of its dispatch, negated."""
        return -ticket.dispatched_at


class Evictables:
    """Who of those in flight may be revoked, and who is first?

    Cost: O(log n) for each of those that may be; constant for others.
    """

    __slots__ = ("_filter", "_groups", "_order", "_places", "_size")

    def __init__(self, victims: VictimFilter, order: VictimOrder) -> None:
        self._filter = victims
        self._order = order
        self._groups: SortedDict[int, SortedList[tuple[float, int, Ticket]]] = SortedDict()  # by priority
        self._places: dict[int, tuple[float, int, Ticket] | None] = {}  # of all in flight; None may not be revoked
        self._size = 0

    def track(self, ticket: Ticket) -> None:
        """Note that a request was dispatched; one that is there already is put in anew."""
        self.untrack(ticket)
        if not self._filter.accepts(ticket):
            self._places[ticket.number] = None
            return
        key = self._order.key(ticket)
        if key != key:
            raise InvalidInputError("victim key", key, "a number, not NaN")
        place = (key, -ticket.number, ticket)  # of two dispatched at once, the later arrival has lost less
        group = self._groups.get(ticket.item.priority)
        if group is None:
            group = self._groups[ticket.item.priority] = SortedList()
        group.add(place)
        self._places[ticket.number] = place
        self._size += 1

    def untrack(self, ticket: Ticket) -> bool:
        """Note that a request is not in flight any more. False where it was not there."""
        if ticket.number not in self._places:
            return False
        place = self._places.pop(ticket.number)
        if place is not None:
            group = self._groups[ticket.item.priority]
            group.remove(place)
            if not group:
                del self._groups[ticket.item.priority]
            self._size -= 1
        return True

    def lowest(self) -> int | None:
        """Return the priority of whoever is first; None where nobody may be revoked."""
        return self._groups.peekitem(0)[0] if self._groups else None

    def take(self, count: int, below: float = inf) -> list[Ticket]:
        """Take out those who are first, all of a priority below `below`."""
        taken: list[Ticket] = []
        while len(taken) < count and self._groups:
            priority, group = self._groups.peekitem(0)
            if priority >= below:
                break
            taken.append(group[0][2])
            self.untrack(taken[-1])
        return taken

    @property
    def inflight(self) -> int:
        """How many are there, whether they may be revoked or not? Those taken out are not."""
        return len(self._places)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Ticket]:
        return (ticket for group in self._groups.values() for _, _, ticket in group)


class _Issued(NamedTuple):
    """What was revoked when, and how much saturation was that to free?"""

    at: float
    debit: float


@final
class PacedReclaimer:
    """Whom to take back from the servers for a band that is kept waiting, without overdoing it? llm-d's ``enableEviction``.

    Parameters
    ----------
    most: how many are revoked at once, at most. llm-d's ``MaxRevocationsPerDecision``.
    grace: seconds that the absence of one who has ended needs to show in the saturation: the time between two observations and
        how old they may be. llm-d's ``EvictionConfirmationGrace``. With a gate that counts what is in flight, as `CreditGate`
        does, 10 ms is enough.
    timeout: seconds after which one who was revoked and has not ended is not waited for any more; nobody revokes him again.
        llm-d's ``EvictionConfirmationTimeout``.
    victims: who may be revoked.
    order: who is first, of one priority.

    One object serves one controller: it knows who is in flight. ``issued``, ``confirmed``, ``timed_out`` and ``failures`` count
    revocations; each one issued becomes one of the others, or is waited for. Times are those of the calls: exact, however
    seldom somebody asks. Cost: O(log n) a dispatch of somebody who may be revoked, O(1) of others.

    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> controller = FlowController(reclaimer=PacedReclaimer(), mode="queue")
    >>> batch = controller.submit(QueueItem(request_id="batch", priority=-1), now=0.0)
    >>> controller.step(now=0.0)
    [Dispatch(ticket=Ticket('batch' of default-flow:-1, dispatched))]
    """

    __slots__ = (
        "_cooling",
        "_evictables",
        "_outstanding",
        "confirmed",
        "failures",
        "grace",
        "issued",
        "most",
        "timed_out",
        "timeout",
    )

    def __init__(
        self,
        *,
        most: int = 2,
        grace: float = 0.5,
        timeout: float = 10.0,
        victims: VictimFilter | None = None,
        order: VictimOrder | None = None,
    ) -> None:
        self.most = whole_number("most", most, 1)
        if not (isfinite(grace) and grace >= 0):
            raise InvalidInputError("grace", grace, "finite seconds of at least 0")
        if not (isfinite(timeout) and timeout > 0):
            raise InvalidInputError("timeout", timeout, "finite seconds above 0")
        self.grace = grace
        self.timeout = timeout
        self._evictables = Evictables(
            SheddableVictims() if victims is None else victims, NewestFirst() if order is None else order
        )
        self._outstanding: dict[int, _Issued] = {}  # by number, in the order in which they were revoked
        self._cooling: list[tuple[float, float]] = []  # until when, and how much saturation
        self.issued = self.confirmed = self.timed_out = self.failures = 0

    # -- what the controller tells -----------------------------------------------------------------

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Note that a request went to a server."""
        self._evictables.track(ticket)

    def finished(self, ticket: Ticket, now: float) -> None:
        """Note that a request has ended; whether it was revoked or came to its end before that makes no difference."""
        if self._evictables.untrack(ticket) or ticket.number not in self._outstanding:
            return
        self._settle(now)
        issued = self._outstanding.pop(ticket.number, None)
        if issued is not None:
            self.confirmed += 1
            self._cooling.append((now + self.grace, issued.debit))

    def failed(self, ticket: Ticket, now: float) -> None:
        """Note that a server would not stop: nothing was freed, and the request may be revoked another time."""
        self._settle(now)
        if self._outstanding.pop(ticket.number, None) is not None:
            self.failures += 1
            self._evictables.track(ticket)

    # -- what the controller asks ------------------------------------------------------------------

    def reclaim(
        self, band: Band, level: float, ceiling: float, inflight: Mapping[int, Ticket], now: float
    ) -> Sequence[Ticket]:
        """Return who is revoked now so that this band may go: nobody unless something waits in it and its ceiling is reached.

        A ceiling of 0 is out of reach whoever is revoked. Victims are of strictly lower priority.
        """
        self._settle(now)
        if not (band.requests and 0.0 < ceiling <= level) or self._outstanding or self._cooling:
            return ()
        lowest = self._evictables.lowest()
        if lowest is None or lowest >= band.priority:
            return ()
        there = self._evictables.inflight
        count = revocations(level, ceiling, there, len(self._evictables), most=self.most)
        taken = self._evictables.take(count, band.priority)
        for ticket in taken:
            self._outstanding[ticket.number] = _Issued(now, level / there)
        self.issued += len(taken)
        return taken

    def next_wakeup(self, now: float) -> float:
        """Return when the next ones may be revoked if nobody ends before; inf where there is nothing to wait for."""
        ends = [until for until, _ in self._cooling]
        ends += [issued.at + self.timeout + self.grace for issued in self._outstanding.values()]
        return max(ends, default=inf)

    def ready(self, now: float) -> bool:
        """Return whether somebody may be revoked now: nobody is waited for, and nothing has yet to show."""
        self._settle(now)
        return not self._outstanding and not self._cooling

    def pending(self, now: float) -> float:
        """Return how much saturation is still to be freed, or to show."""
        self._settle(now)
        return sum(issued.debit for issued in self._outstanding.values()) + sum(debit for _, debit in self._cooling)

    @property
    def evictable(self) -> int:
        """How many may be revoked, of those in flight?"""
        return len(self._evictables)

    def _settle(self, now: float) -> None:
        """Give up whoever has had his time; forget what has shown."""
        if self._outstanding:
            late = [number for number, issued in self._outstanding.items() if now >= issued.at + self.timeout]
            for number in late:
                issued = self._outstanding.pop(number)
                self.timed_out += 1
                self._cooling.append((issued.at + self.timeout + self.grace, issued.debit))
        if self._cooling:
            self._cooling = [each for each in self._cooling if each[0] > now]
