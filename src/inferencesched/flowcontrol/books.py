"""What waits in all, and does it fit? The sums of a controller, kept with every change."""

from collections.abc import Collection, Iterator
from math import inf
from sys import maxsize
from typing import final

from sortedcontainers import SortedDict

from inferencesched.flowcontrol.bands import PriorityBand
from inferencesched.flowcontrol.flows import Band, Capacity, QueueItem, Ticket


@final
class QueueBooks:
    """Which bands are there, what do they hold, and who would make room?

    Sums are of what waits. Cost of each call: constant, but for a new band (logarithmic in the bands) and `victims` (linear in
    those that it finds).
    """

    __slots__ = (
        "bands",
        "capacity",
        "configured",
        "most_bytes",
        "most_requests",
        "most_tokens",
        "order",
        "priorities",
        "requests",
        "size_bytes",
        "tokens",
    )

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity.checked("capacity")
        requests, size_bytes, tokens = capacity
        self.most_requests = maxsize if requests is None else requests
        self.most_bytes = maxsize if size_bytes is None else size_bytes
        self.most_tokens = maxsize if tokens is None else tokens
        self.order: list[Band] = []  # the bands, the greatest priority first
        self.bands: SortedDict[int, Band] = SortedDict()  # by priority, negated: the greatest first
        self.priorities: tuple[int, ...] = ()
        self.configured: frozenset[int] = frozenset()  # priorities whose bands are never collected
        self.requests = 0
        self.size_bytes = 0
        self.tokens = 0

    def make(self, described: PriorityBand, *, protected: bool) -> Band:
        """Add an empty band; what is protected is never collected."""
        band = Band(
            described.priority,
            described.capacity.checked("capacity"),
            described.ordering,
            described.fairness.start(),
            described.weights,
            protected=protected,
        )
        self.bands[-band.priority] = band
        self._sort()
        return band

    def forget(self, band: Band) -> None:
        """Take out a band in which nothing is left."""
        del self.bands[-band.priority]
        self._sort()

    def desire(self, bands: Collection[PriorityBand], now: float) -> None:
        """Add those bands that are missing, and protect them all; no other is protected any more but what is configured."""
        wanted = {each.priority for each in bands}
        for each in bands:
            if -each.priority not in self.bands:
                self.make(each, protected=True)
        for band in self.order:
            kept = band.priority in wanted or band.priority in self.configured
            if band.protected and not kept and not band.flows:
                band.idle_since = now
            band.protected = kept

    def _sort(self) -> None:
        self.order = list(self.bands.values())
        self.priorities = tuple(each.priority for each in self.order)

    def ranked(self) -> Iterator[Band]:
        """Walk the bands, the greatest priority first."""
        return iter(self.order)

    # -- what fits --------------------------------------------------------------------------------

    def fits(self, band: Band, item: QueueItem) -> bool:
        """Return whether the request passes no limit, its band's or that of all together."""
        size_bytes, tokens = item.size_bytes, item.input_tokens + item.output_tokens
        return (
            band.requests < band.most_requests
            and self.requests < self.most_requests
            and band.size_bytes + size_bytes <= band.most_bytes
            and self.size_bytes + size_bytes <= self.most_bytes
            and band.tokens + tokens <= band.most_tokens
            and self.tokens + tokens <= self.most_tokens
        )

    def lacking(self, item: QueueItem) -> str:
        """Return which limit of all bands together the request would pass; empty for none."""
        requests, size_bytes, tokens = self.capacity
        if size_bytes is not None and self.size_bytes + item.size_bytes > size_bytes:
            return f"{self.size_bytes} of {size_bytes} bytes wait in all"
        if requests is not None and self.requests >= requests:
            return f"{self.requests} of {requests} requests wait in all"
        if tokens is not None and self.tokens + item.tokens > tokens:
            return f"{self.tokens} of {tokens} tokens wait in all"
        return ""

    @staticmethod
    def lacking_in(band: Band, item: QueueItem) -> str:
        """Return which limit of its band the request would pass; empty for none."""
        requests, size_bytes, tokens = band.capacity
        if size_bytes is not None and band.size_bytes + item.size_bytes > size_bytes:
            return f"{band.size_bytes} of {size_bytes} bytes wait at priority {band.priority}"
        if requests is not None and band.requests >= requests:
            return f"{band.requests} of {requests} requests wait at priority {band.priority}"
        if tokens is not None and band.tokens + item.tokens > tokens:
            return f"{band.tokens} of {tokens} tokens wait at priority {band.priority}"
        return ""

    def victims(self, item: QueueItem, below: int) -> list[Ticket]:
        """Return who would have to go so that the request fits: lowest band first, newest first.

        Only bands below the request's priority and below `below`. Empty where all of them together would not do.
        """
        requests, size_bytes, tokens = (inf if limit is None else limit for limit in self.capacity)
        found: list[Ticket] = []
        freed_bytes = freed_tokens = 0
        for band in reversed(self.bands.values()):
            if band.priority >= min(item.priority, below):
                return []
            for ticket in band.newest_first():
                found.append(ticket)
                freed_bytes += ticket.item.size_bytes
                freed_tokens += ticket.item.tokens
                if (
                    self.requests - len(found) < requests
                    and self.size_bytes - freed_bytes + item.size_bytes <= size_bytes
                    and self.tokens - freed_tokens + item.tokens <= tokens
                ):
                    return found
        return []

    # -- what changes -----------------------------------------------------------------------------

    def book(self, ticket: Ticket, row: list[int]) -> None:
        """Count a ticket that waits from now on, as its band's latest arrival, and in a row of its band's `Totals`."""
        item, flow = ticket.item, ticket.flow
        band, size_bytes, tokens = flow.band, item.size_bytes, item.input_tokens + item.output_tokens
        row[0] += 1
        row[1] += size_bytes
        row[2] += tokens
        flow.size_bytes += size_bytes
        flow.tokens += tokens
        band.requests += 1
        band.size_bytes += size_bytes
        band.tokens += tokens
        self.requests += 1
        self.size_bytes += size_bytes
        self.tokens += tokens
        latest = band.newest
        ticket.older, ticket.newer = latest, None
        if latest is None:
            band.oldest = ticket
        else:
            latest.newer = ticket
        band.newest = ticket

    def unbook(self, ticket: Ticket, row: list[int]) -> None:
        """Count a ticket that does not wait any more (its place is free), and in a row of its band's `Totals`."""
        item, flow = ticket.item, ticket.flow
        band, size_bytes, tokens = flow.band, item.size_bytes, item.input_tokens + item.output_tokens
        row[0] += 1
        row[1] += size_bytes
        row[2] += tokens
        flow.size_bytes -= size_bytes
        flow.tokens -= tokens
        band.requests -= 1
        band.size_bytes -= size_bytes
        band.tokens -= tokens
        self.requests -= 1
        self.size_bytes -= size_bytes
        self.tokens -= tokens
        older, newer = ticket.older, ticket.newer
        if older is None:
            band.oldest = newer
        else:
            older.newer = newer
        if newer is None:
            band.newest = older
        else:
            newer.older = older
        ticket.older = ticket.newer = None

    def check(self) -> None:
        """Assert every sum against what is there. For tests; linear in all that waits."""
        assert list(self.priorities) == sorted(self.priorities, reverse=True) == [b.priority for b in self.ranked()]
        requests = size_bytes = tokens = 0
        for band in self.ranked():
            waiting = list(band.newest_first())
            assert (band.newest is None) == (band.oldest is None) == (not waiting)
            assert {id(t) for t in waiting} == {id(t) for flow in band.flows.values() for t in flow.queue}
            assert len(waiting) == band.requests == sum(len(flow.queue) for flow in band.flows.values())
            assert all(ticket.outcome is None and ticket.flow.band is band for ticket in waiting)
            for flow in band.flows.values():
                assert flow.band is band
                assert band.flows[flow.id] is flow
                assert flow.size_bytes == sum(ticket.item.size_bytes for ticket in flow.queue)
                assert flow.tokens == sum(ticket.item.tokens for ticket in flow.queue)
            assert band.size_bytes == sum(flow.size_bytes for flow in band.flows.values())
            assert band.tokens == sum(flow.tokens for flow in band.flows.values())
            assert band.inflight == sum(flow.inflight for flow in band.flows.values())
            for used, limit in zip((band.requests, band.size_bytes, band.tokens), band.capacity, strict=True):
                assert used >= 0
                assert limit is None or used <= limit
            totals = band.totals
            for sums in zip(
                totals.submitted,
                totals.rejected,
                totals.dispatched,
                totals.evicted,
                (band.requests, band.size_bytes, band.tokens),
                strict=True,
            ):
                assert sums[0] == sum(sums[1:])
            requests, size_bytes, tokens = (
                requests + band.requests,
                size_bytes + band.size_bytes,
                tokens + band.tokens,
            )
        assert (requests, size_bytes, tokens) == (self.requests, self.size_bytes, self.tokens)
