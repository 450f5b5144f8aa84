"""Whose head would go first if there were no flows at all?"""

from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify
from math import nan
from typing import Any, Final, final

from inferencesched.flowcontrol.fairness.order import FlowHeap
from inferencesched.flowcontrol.flows import Flow, FlowOrder, Ticket
from inferencesched.flowcontrol.ordering import AdaptiveQueue

#: What decides, in words.
STRICT_RULE: Final = "the first head of all"


@dataclass(frozen=True, slots=True)
class GlobalStrict:
    """Is nobody protected from anybody? The first by the band's ordering goes, whosesoever it is.

    llm-d's default, ``global-strict-fairness-policy``; ties go to who came first. Cost of a pick: O(log F); O(F) whenever
    `AdaptiveLifo` turns round.
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _StrictOrder()


@final
class _StrictOrder(FlowHeap):
    """``_adaptive`` is one queue of the band where these turn round, all at once; ``_newest`` is which way the heap is sorted.

    ``_stale`` says that somebody's head changed while they were turned the other way.
    """

    __slots__ = ("_adaptive", "_newest", "_stale")

    rule = STRICT_RULE

    def __init__(self) -> None:
        super().__init__()
        self._adaptive: AdaptiveQueue | None = None
        self._newest = False
        self._stale = False

    def arrived(self, flow: Flow, now: float) -> None:
        if self._adaptive is None and isinstance(flow.queue, AdaptiveQueue):
            self._adaptive = flow.queue
        self.changed(flow, now)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        adaptive = self._adaptive
        if adaptive is not None and (self._stale or adaptive.newest_first != self._newest):
            self._newest, self._stale = adaptive.newest_first, False
            self._entries[:] = [
                (self._key(head, self._newest), number, flow)
                for _, number, flow in self._entries
                if flow.entry == number and (head := flow.queue.head()) is not None
            ]
            heapify(self._entries)
        return FlowHeap.pick(self, now, passed)

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, the first head first; no number decides. O(F log F)."""
        newest = self._newest if self._adaptive is None else self._adaptive.newest_first
        heads = [
            (flow, head) for _, number, flow in self._entries if flow.entry == number and (head := flow.queue.head())
        ]
        heads.sort(key=lambda each: self._key(each[1], newest))
        return [(flow, nan) for flow, _ in heads]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        pass

    def changed(self, flow: Flow, now: float) -> None:
        adaptive = self._adaptive
        if adaptive is not None and adaptive.newest_first != self._newest:
            self._stale = True
        head = flow.queue.head()
        if head is None:
            self._drop(flow)
        else:
            self._again(flow, self._key(head, self._newest))

    def _key(self, head: Ticket, newest: bool) -> Any:
        """Return the head's place among all heads: of a plain queue its number, else its key and its number."""
        if head.key is not None:
            return (head.key, head.number)
        return -head.number if newest else head.number
