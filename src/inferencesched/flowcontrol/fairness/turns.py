"""Whose turn is it, where flows take turns?"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from math import ceil, isfinite, nan
from typing import Final, final

from sortedcontainers import SortedDict

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.flows import Flow, FlowOrder


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Does everybody who waits get one turn, in the order of ids? llm-d's ``round-robin-fairness-policy``.

    The turn goes to the next id after the one that had it last, waiting or not; where the band has forgotten that one, or
    nothing waits at all, it begins with the first.
    """

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _RoundRobinOrder()


@final
class _RoundRobinOrder:
    __slots__ = ("_flows", "_last")

    rule = "the next id in turn"

    def __init__(self) -> None:
        self._flows: SortedDict[str, Flow] = SortedDict()
        self._last: Flow | None = None

    def arrived(self, flow: Flow, now: float) -> None:
        self._flows[flow.id] = flow

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        flows, last = self._flows, self._last
        if not flows:
            self._last = None
            return None
        first = 0 if last is None or last.id not in last.band.flows else flows.bisect_right(last.id)
        count = len(flows)
        for turn in range(first, first + count):
            flow: Flow = flows.peekitem(turn if turn < count else turn - count)[1]
            if flow not in passed:
                return flow
        return None

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, from whose turn it is; no number decides. O(F)."""
        flows, last = list(self._flows.values()), self._last
        first = 0 if last is None or last.id not in last.band.flows else self._flows.bisect_right(last.id)
        return [(flow, nan) for flow in flows[first:] + flows[:first]]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self._last = flow
        if flow.queue.head() is None:
            del self._flows[flow.id]

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        pass

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is None:
            self._flows.pop(flow.id, None)


@dataclass(frozen=True, slots=True)
class DeficitRoundRobin:
    """Who has saved enough for its head? Flows take turns, and each turn adds ``quantum`` times the weight.

    Bound: ``|W_f / w_f - W_g / w_g| <= quantum + C_f / w_f + C_g / w_g``. A flow saves while it waits, less than its head
    costs, and nothing when it has emptied: no counter outlives the waiting. So what a request came to cost is settled with
    flows that still wait, and with no others.

    Source: Shreedhar and Varghese, "Efficient Fair Queueing using Deficit Round Robin" (1995). Cost of a pick: constant where
    ``quantum`` times the weight is at least what a head costs; else up to two rounds through the flows, however much is missing.
    """

    quantum: float = 4096.0

    def __post_init__(self) -> None:
        if not (isfinite(self.quantum) and self.quantum > 0):
            raise InvalidInputError("quantum", self.quantum, "a finite number above 0")

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _DeficitOrder(self.quantum)


#: What `Flow.entry` says here: it waits and has a place among the turns, or has a place and has given up.
_WAITS: Final = 1
_GONE: Final = 2


@final
class _DeficitOrder:
    """``counter`` is a flow's deficit; the flow at the front of ``_turns`` has got this turn's quantum."""

    __slots__ = ("_gone", "_quantum", "_turns")

    rule = "who has first saved enough"

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._turns: deque[Flow] = deque()
        self._gone = 0

    def arrived(self, flow: Flow, now: float) -> None:
        if flow.entry:  # it gave up and comes back before its turn: it has kept its place, and nothing else
            self._gone -= 1
            flow.entry = _WAITS
            return
        flow.entry, flow.counter = _WAITS, 0.0
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
            if passed and flow in passed:  # a turn that was none saves nothing
                flow.counter = max(0.0, flow.counter - self._quantum * flow.weight)
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

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, whoever has first saved enough first, and what each has saved. O(F log F)."""
        places = []
        for turn, flow in enumerate(self._turns):
            head = flow.queue.head()
            if head is not None:
                rounds = max(0, ceil((head.cost - flow.counter) / (self._quantum * flow.weight)))
                places.append((max(0, rounds - 1) if turn and rounds else rounds, turn, flow))
        return [(flow, flow.counter) for _, _, flow in sorted(places, key=lambda place: place[:2])]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        flow.counter -= cost
        if flow.queue.head() is None:
            self._leave()  # it was its turn: it is at the front

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        if flow.entry == _WAITS:
            flow.counter -= correction

    def changed(self, flow: Flow, now: float) -> None:
        if flow.entry == _WAITS and flow.queue.head() is None:
            flow.entry, flow.counter = _GONE, 0.0
            self._gone += 1
            if 2 * self._gone > len(self._turns) + 64:
                self._sweep()

    def _sweep(self) -> None:
        """Let all go that have given up: who submits and cancels without end takes no more room than who waits."""
        front = self._turns[0]
        for flow in self._turns:
            if flow.entry == _GONE:
                flow.entry = 0
        self._turns = deque(flow for flow in self._turns if flow.entry)
        self._gone = 0
        if self._turns and self._turns[0] is not front:
            self._begin()

    def _leave(self) -> None:
        """Let whoever is at the front go: nothing of it waits, and nothing is saved."""
        flow = self._turns.popleft()
        if flow.entry == _GONE:
            self._gone -= 1
        flow.entry, flow.counter = 0, 0.0
        self._begin()

    def _begin(self) -> None:
        """Give whoever is at the front its quantum."""
        if self._turns:
            flow = self._turns[0]
            flow.counter += self._quantum * flow.weight

    def _skip_rounds(self, passed: Collection[Flow]) -> None:
        """Give everybody, at once, the rounds in which nobody could have gone: a pick takes three at most."""
        waiting = [
            (flow, (head.cost - flow.counter) / (self._quantum * flow.weight))
            for flow in self._turns
            if flow not in passed and (head := flow.queue.head()) is not None
        ]
        whole = int(min((rounds for _, rounds in waiting), default=0.0)) - 1
        if whole > 0:
            for flow, _ in waiting:
                flow.counter += whole * self._quantum * flow.weight
