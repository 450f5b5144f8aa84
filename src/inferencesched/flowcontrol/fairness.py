"""Which flow of a band goes next?

A `FairnessPolicy` is parameters; ``start`` returns the state of one band, a `FlowOrder`. It hears when a flow begins to wait
(`arrived`), what a dispatch is charged (`served`), what a completion corrects (`settled`), and when another ticket has become
its head (`changed`); it answers `pick`. W is what a flow was served, w its weight, C the greatest charge C / w, over any
time in which both flows have something waiting:

| policy | bound of W_f / w_f - W_g / w_g | cost of a pick |
|---|---|---|
| `GlobalStrict` | none: the first by the band's ordering, whosoever it is | O(log F) |
| `RoundRobin` | none in cost; one request in requests | O(log F) |
| `VirtualTokenCounter` | 2 C, counters within C; with settlement 2 (C + K E) | O(log F) |
| `StartTimeFair` | C_f / w_f + C_g / w_g | O(log F) |
| `DeficitRoundRobin` | Q + C_f / w_f + C_g / w_g | O(1) where Q w is at least C |

Sources: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024); Goyal, Vin, Cheng, "Start-time Fair
Queueing" (1996); Shreedhar and Varghese, "Efficient Fair Queueing using Deficit Round Robin" (1995).
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import isfinite
from typing import Any, Protocol, final

from sortedcontainers import SortedDict

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.flows import Flow, FlowOrder


class FairnessPolicy(Protocol):
    """How are the flows of a band served?"""

    def start(self) -> FlowOrder:
        """Return the state of one band, in which nothing waits."""
        ...


class _Heap:
    """Flows by a number, least first. An entry is valid while its flow carries the entry's number; others are dropped when met."""

    __slots__ = ("_entries", "_number", "active")

    def __init__(self) -> None:
        self._entries: list[tuple[Any, int, Flow]] = []
        self._number = 0
        self.active = 0

    def put(self, flow: Flow, key: Any) -> None:
        """Give the flow one place, at this key; an earlier one is void."""
        if not flow.entry:
            self.active += 1
        self._number = number = self._number + 1
        flow.entry = number
        entries = self._entries
        heappush(entries, (key, number, flow))
        if len(entries) > 2 * self.active + 64:
            entries[:] = [entry for entry in entries if entry[2].entry == entry[1]]
            heapify(entries)

    def again(self, flow: Flow, key: Any) -> None:
        """Give the flow another key; cheap for the one at the top."""
        entries = self._entries
        if entries and entries[0][1] == flow.entry:
            self._number = number = self._number + 1
            flow.entry = number
            heapreplace(entries, (key, number, flow))
        else:
            self.put(flow, key)

    def drop(self, flow: Flow) -> None:
        """Take its place from the flow, if it has one."""
        if flow.entry:
            self.active -= 1
            flow.entry = 0

    def top(self, passed: Collection[Flow] = ()) -> tuple[Any, int, Flow] | None:
        """Return the least valid entry whose flow is not in `passed`."""
        entries, aside, found = self._entries, [], None
        while entries and found is None:
            entry = entries[0]
            if entry[2].entry != entry[1]:
                heappop(entries)
            elif passed and entry[2] in passed:
                aside.append(heappop(entries))
            else:
                found = entry
        for entry in aside:
            heappush(entries, entry)
        return found


@dataclass(frozen=True, slots=True)
class GlobalStrict:
    """Is nobody protected from anybody? The first by the band's ordering goes, whosesoever it is.

    llm-d's default, ``global-strict-fairness-policy``; ties go to who came first.
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _StrictOrder()


@final
class _StrictOrder:
    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap = _Heap()

    def arrived(self, flow: Flow, now: float) -> None:
        self.changed(flow, now)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        top = self._heap.top(passed)
        return None if top is None else top[2]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        pass

    def changed(self, flow: Flow, now: float) -> None:
        head = flow.queue.head()
        if head is None:
            self._heap.drop(flow)
        else:
            key = head.number if head.key is None else head.key
            self._heap.again(flow, (key, head.number))


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Does everybody who waits get one turn, in the order of ids? llm-d's ``round-robin-fairness-policy``."""

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _RoundRobinOrder()


@final
class _RoundRobinOrder:
    __slots__ = ("_flows", "_last")

    def __init__(self) -> None:
        self._flows: SortedDict[str, Flow] = SortedDict()
        self._last: str | None = None

    def arrived(self, flow: Flow, now: float) -> None:
        self._flows[flow.id] = flow

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        flows = self._flows
        if not flows:
            self._last = None
            return None
        first = 0 if self._last is None else flows.bisect_right(self._last)
        for turn in range(len(flows)):
            flow: Flow = flows.peekitem((first + turn) % len(flows))[1]
            if flow not in passed:
                return flow
        return None

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self._last = flow.id
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        pass

    def changed(self, flow: Flow, now: float) -> None:
        if not len(flow.queue):
            self._flows.pop(flow.id, None)


@dataclass(frozen=True, slots=True)
class VirtualTokenCounter:
    """Who has had least, counted in cost? The flow with the least counter goes, and is charged when it is dispatched.

    A flow that comes back after a pause is lifted to the least counter of those that wait (or of who left last), so that
    nobody saves up credit; what a request came to cost is settled when it completes.
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _CounterOrder()


@final
class _CounterOrder:
    __slots__ = ("_floor", "_heap")

    def __init__(self) -> None:
        self._heap = _Heap()
        self._floor = 0.0  # the least counter when somebody waited last

    def arrived(self, flow: Flow, now: float) -> None:
        top = self._heap.top()
        if top is not None:
            self._floor = max(self._floor, top[0])
            flow.counter = max(flow.counter, top[0])
        else:
            flow.counter = max(flow.counter, self._floor)
        self._heap.put(flow, flow.counter)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        top = self._heap.top(passed)
        return None if top is None else top[2]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        flow.counter += cost / flow.weight
        if len(flow.queue):
            self._heap.again(flow, flow.counter)
        else:
            self._left(flow)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        flow.counter += correction / flow.weight
        if flow.entry:
            self._heap.again(flow, flow.counter)

    def changed(self, flow: Flow, now: float) -> None:
        if not len(flow.queue):
            self._left(flow)

    def _left(self, flow: Flow) -> None:
        self._heap.drop(flow)
        if not self._heap.active:
            self._floor = max(self._floor, flow.counter)


@dataclass(frozen=True, slots=True)
class StartTimeFair:
    """Whose head would start first, were everybody served at once in proportion to the weights? Start-time fair queueing.

    The tightest bound of these, and it holds under servers of varying speed.
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _StartTimeOrder()


@final
class _StartTimeOrder:
    """``tag`` is the start tag of a flow's head, ``counter`` the finish tag of what it had last."""

    __slots__ = ("_heap", "_time")

    def __init__(self) -> None:
        self._heap = _Heap()
        self._time = 0.0

    def arrived(self, flow: Flow, now: float) -> None:
        flow.tag = max(self._time, flow.counter)
        self._heap.put(flow, flow.tag)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        top = self._heap.top(passed)
        return None if top is None else top[2]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self._time = max(self._time, flow.tag)
        flow.counter = flow.tag + cost / flow.weight
        if len(flow.queue):
            flow.tag = flow.counter
            self._heap.again(flow, flow.tag)
        else:
            self._heap.drop(flow)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        flow.counter += correction / flow.weight
        if flow.entry:
            flow.tag = max(self._time, flow.tag + correction / flow.weight)
            self._heap.again(flow, flow.tag)

    def changed(self, flow: Flow, now: float) -> None:
        if not len(flow.queue):
            self._heap.drop(flow)


@dataclass(frozen=True, slots=True)
class DeficitRoundRobin:
    """Who has saved enough for its head? Flows take turns, and each turn adds ``quantum`` times the weight.

    Keeps no counters beyond a flow's own, and none of a flow that nothing waits of.
    """

    quantum: float = 4096.0

    def __post_init__(self) -> None:
        if not (isfinite(self.quantum) and self.quantum > 0):
            raise InvalidInputError("quantum", self.quantum, "a finite number above 0")

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _DeficitOrder(self.quantum)


@final
class _DeficitOrder:
    """``counter`` is a flow's deficit; the flow at the front of ``_turns`` has got this turn's quantum."""

    __slots__ = ("_quantum", "_turns")

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._turns: deque[Flow] = deque()

    def arrived(self, flow: Flow, now: float) -> None:
        flow.counter = 0.0
        if flow.entry:  # it gave up and came back before its turn: it has kept its place, and nothing saved
            return
        flow.entry = 1
        self._turns.append(flow)
        if len(self._turns) == 1:
            self._begin()

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        turns, turned, refused = self._turns, 0, 0
        while turns and refused < len(turns):
            flow = turns[0]
            head = flow.queue.head()
            if head is None:
                self._leave()
                continue
            if flow in passed:
                flow.counter = max(
                    0.0, flow.counter - self._quantum * flow.weight
                )  # a turn that was none saves nothing
                refused += 1
            elif head.cost <= flow.counter:
                return flow
            else:
                refused = 0
            turns.rotate(-1)
            turned += 1
            if turned >= len(turns):
                self._skip_rounds(passed)
                turned = 0
            self._begin()
        return None

    def served(self, flow: Flow, cost: float, now: float) -> None:
        flow.counter -= cost
        if not len(flow.queue):
            self._leave()  # it was its turn: it is at the front

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        if flow.entry:
            flow.counter -= correction

    def changed(self, flow: Flow, now: float) -> None:
        pass

    def _leave(self) -> None:
        """Let whoever is at the front go: nothing of it waits, and nothing is saved."""
        flow = self._turns.popleft()
        flow.entry, flow.counter = 0, 0.0
        self._begin()

    def _begin(self) -> None:
        """Give whoever is at the front its quantum."""
        if self._turns:
            flow = self._turns[0]
            flow.counter += self._quantum * flow.weight

    def _skip_rounds(self, passed: Collection[Flow]) -> None:
        """Give everybody, at once, the rounds in which nobody could have gone: a pick takes three at most."""
        waiting = [flow for flow in self._turns if flow not in passed and flow.queue.head() is not None]
        rounds = min(
            (
                (head.cost - flow.counter) / (self._quantum * flow.weight)
                for flow in waiting
                if (head := flow.queue.head())
            ),
            default=0.0,
        )
        whole = max(0, int(rounds) - 1)
        for flow in waiting:
            flow.counter += whole * self._quantum * flow.weight
