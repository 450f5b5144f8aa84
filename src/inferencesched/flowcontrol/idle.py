"""Which flows has nobody used for a while? A list through the flows themselves, the longest idle first."""

from math import inf
from typing import final

from inferencesched.flowcontrol.flows import Flow


@final
class IdleFlows:
    """When is an idle flow forgotten? After `ttl` seconds, or when more than `most` are idle: the longest idle first.

    So a client that invents ids costs no more than that many flows. Cost: constant a call.
    """

    __slots__ = ("_count", "_first", "_last", "_most", "_ttl")

    def __init__(self, ttl: float, most: int) -> None:
        self._ttl = ttl
        self._most = most
        self._first: Flow | None = None
        self._last: Flow | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, flow: Flow, now: float) -> None:
        """Note that nothing of a flow waits or is in flight from now on."""
        flow.idle_since = now
        last = self._last
        flow.older, flow.newer = last, None
        if last is None:
            self._first = flow
        else:
            last.newer = flow
        self._last = flow
        self._count += 1
        if self._count > self._most:
            self._forget(now)

    def remove(self, flow: Flow) -> None:
        """Note that a flow is in use again."""
        older, newer = flow.older, flow.newer
        if older is None:
            self._first = newer
        else:
            older.newer = newer
        if newer is None:
            self._last = older
        else:
            newer.older = older
        flow.older = flow.newer = None
        flow.idle_since = inf
        self._count -= 1

    def next(self) -> float:
        """Return when the next flow will have been idle for long enough; inf for never."""
        return inf if self._first is None else self._first.idle_since + self._ttl

    def collect(self, now: float) -> None:
        """Forget whoever has been idle for long enough."""
        while (at := self.next()) <= now:
            self._forget(at)

    def _forget(self, at: float) -> None:
        flow = self._first
        assert flow is not None  # the caller counted
        self.remove(flow)
        band = flow.band
        if band.flows.get(flow.id) is flow:
            del band.flows[flow.id]
            if not band.flows:
                band.idle_since = at
