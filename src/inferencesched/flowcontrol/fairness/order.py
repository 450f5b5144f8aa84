"""What is a fairness policy, and what do several of them keep their flows in?"""

from collections.abc import Collection
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any, Protocol, runtime_checkable

from inferencesched.flowcontrol.flows import Flow, FlowOrder


class FairnessPolicy(Protocol):
    """How are the flows of a band served?"""

    def start(self) -> FlowOrder:
        """Return the state of one band, in which nothing waits."""
        ...


@runtime_checkable
class RankedOrder(Protocol):
    """After whom is it a flow's turn? Optional, beside `FlowOrder`: for explanations. ``rule`` is what decides, in words."""

    @property
    def rule(self) -> str:
        """By what is it decided who goes next?"""
        ...

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, whoever goes next first, were nobody charged meanwhile; and the number that decides, or NaN.

        Changes nothing: `pick` answers afterwards what it would have answered.
        """
        ...


class FlowHeap:
    """Which flow has the least key? What orders by a number are made of: they inherit `pick`.

    A flow has one valid entry at most: the one that carries its number, ``flow.entry``; others are dropped when they are met,
    or all at once when they are more than the valid ones. So changing a key costs O(log F), and the key of the first flow,
    which is what a dispatch changes, one sift.
    """

    __slots__ = ("_active", "_entries", "_number")

    rule = "the least key"

    def __init__(self) -> None:
        self._entries: list[tuple[Any, int, Flow]] = []
        self._number = 0
        self._active = 0

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        """Return the flow with the least key; of several, whose entry is the oldest."""
        entries = self._entries
        while entries:
            entry = entries[0]
            flow = entry[2]
            if flow.entry != entry[1]:
                heappop(entries)
            elif passed and flow in passed:
                return self._pick_beyond(passed)
            else:
                return flow
        return None

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, whoever goes next first, and the number that decides. O(F log F)."""
        entries = sorted(entry for entry in self._entries if entry[2].entry == entry[1])
        return [(flow, self._number_of(flow, now)) for _, _, flow in entries]

    def _number_of(self, flow: Flow, now: float) -> float:
        """Return the number by which a flow is compared with others, as people read it."""
        return flow.counter

    def _pick_beyond(self, passed: Collection[Flow]) -> Flow | None:
        """Return the first that is not in `passed`, which the first of all is."""
        entries, aside = self._entries, []
        found = None
        while entries and found is None:
            entry = entries[0]
            flow = entry[2]
            if flow.entry != entry[1]:
                heappop(entries)
            elif flow in passed:
                aside.append(heappop(entries))
            else:
                found = flow
        for entry in aside:
            heappush(entries, entry)
        return found

    def _put(self, flow: Flow, key: Any) -> None:
        """Give the flow its place at this key; an earlier one is void."""
        if not flow.entry:
            self._active += 1
        self._number = number = self._number + 1
        flow.entry = number
        entries = self._entries
        heappush(entries, (key, number, flow))
        if len(entries) > 2 * self._active + 64:
            entries[:] = [entry for entry in entries if entry[2].entry == entry[1]]
            heapify(entries)

    def _again(self, flow: Flow, key: Any) -> None:
        """Give the flow another key."""
        entries, number = self._entries, flow.entry
        if number and entries[0][1] == number:
            heapreplace(entries, (key, number, flow))
        else:
            self._put(flow, key)

    def _drop(self, flow: Flow) -> None:
        """Take its place from the flow, if it has one."""
        if flow.entry:
            self._active -= 1
            flow.entry = 0

    def _least(self) -> Any:
        """Return the least key; None where there is no flow."""
        entries = self._entries
        while entries:
            entry = entries[0]
            if entry[2].entry == entry[1]:
                return entry[0]
            heappop(entries)
        return None
