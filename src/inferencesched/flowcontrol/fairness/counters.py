"""Who has had least, by a number that outlives the waiting?"""

from dataclasses import dataclass
from heapq import heapreplace
from typing import final

from inferencesched.flowcontrol.fairness.order import FlowHeap
from inferencesched.flowcontrol.flows import Flow, FlowOrder


@dataclass(frozen=True, slots=True)
class VirtualTokenCounter:
    """Who has had least, counted in cost? The flow with the least counter goes, and is charged when it is dispatched.

    A flow that comes back after a pause is lifted to the least counter of those that wait (or of who left last), so that
    nobody saves up credit; what a request came to cost is settled when it completes.

    Bounds, with C the greatest charge and w the least weight: counters of flows that wait differ by C / w at most, services
    by 2 C / w over any time in which both wait; with estimates that are wrong by E at most, and K requests in flight, by
    2 (C + K E) / w. That last one is proved for flows that do not come back while requests of their own are in flight: what these
    are then given back comes on top of the lift, K E / w at most; no trace that was tried has got there. Who is charged at
    completion alone has no such bound: it grows with what is in flight.

    Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024).
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _CounterOrder()


@final
class _CounterOrder(FlowHeap):
    """``_floor`` is the least counter that somebody who comes to an empty band begins with."""

    __slots__ = ("_floor",)

    rule = "the least counter of what was served"

    def __init__(self) -> None:
        super().__init__()
        self._floor = 0.0

    def arrived(self, flow: Flow, now: float) -> None:
        least = self._least()
        if least is None:
            least = self._floor
        elif least > self._floor:
            self._floor = least
        if flow.counter < least:
            flow.counter = least
        self._put(flow, flow.counter)

    def served(self, flow: Flow, cost: float, now: float) -> None:
        flow.counter = counter = flow.counter + cost / flow.weight
        if flow.queue.head() is None:
            self._left(flow)
            return
        entries, number = self._entries, flow.entry
        if entries[0][1] == number:
            heapreplace(entries, (counter, number, flow))
        else:
            self._put(flow, counter)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        flow.counter += correction / flow.weight
        if flow.entry:
            self._again(flow, flow.counter)

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is None:
            self._left(flow)

    def _left(self, flow: Flow) -> None:
        self._drop(flow)
        if not self._active and flow.counter > self._floor:
            self._floor = flow.counter


@dataclass(frozen=True, slots=True)
class StartTimeFair:
    """Whose head would start first, were everybody served at once in proportion to the weights? Start-time fair queueing.

    A head's start tag is the finish tag of what its flow had last, or the present virtual time where that is later; the least
    start tag goes, and becomes the virtual time. Bound: ``C_f / w_f + C_g / w_g``, the tightest of these, and it holds under
    servers of varying speed, which is what a pool is.

    Source: Goyal, Vin, Cheng, "Start-time Fair Queueing" (1996).
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _StartTimeOrder()


@final
class _StartTimeOrder(FlowHeap):
    """``tag`` is the start tag of a flow's head, ``counter`` the finish tag of what it had last."""

    __slots__ = ("_time",)

    rule = "the least start tag"

    def __init__(self) -> None:
        super().__init__()
        self._time = 0.0

    def _number_of(self, flow: Flow, now: float) -> float:
        return flow.tag

    def arrived(self, flow: Flow, now: float) -> None:
        time, counter = self._time, flow.counter
        flow.tag = tag = max(counter, time)
        self._put(flow, tag)

    def served(self, flow: Flow, cost: float, now: float) -> None:
        tag = flow.tag
        if tag > self._time:
            self._time = tag
        flow.counter = flow.tag = tag = tag + cost / flow.weight
        if flow.queue.head() is None:
            self._drop(flow)
            return
        entries, number = self._entries, flow.entry
        if entries[0][1] == number:
            heapreplace(entries, (tag, number, flow))
        else:
            self._put(flow, tag)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        flow.counter += correction / flow.weight
        if flow.entry:
            flow.tag = max(self._time, flow.tag + correction / flow.weight)
            self._again(flow, flow.tag)

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is None:
            self._drop(flow)
