"""Which band goes next, where the greatest priority does not always go first?

`StrictBands` (in `policies`) always takes the greatest priority: a lower band may starve. These two bound how long, or how far.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum, isfinite
from typing import final

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.flows import Band


@dataclass(frozen=True, slots=True)
class StrictWithAgeing:
    """Does waiting raise a band's priority? By 1 for every ``seconds`` that its oldest request has waited, by ``most`` at most.

    The greatest effective priority goes first; ties go to the greater priority. A band below 0 never gets above 0 by waiting, so that
    what is sheddable never goes before what is not, unless ``lift_sheddable`` says so.

    So a band waits for another, with d more priority and requests that go at once, ``(d + 1) * seconds`` at most: while d is less
    than ``most``, and neither is below 0. The age is that of the band's oldest arrival, whichever flow's turn it is.

    Cost of a pick: the number of bands.
    """

    seconds: float = 10.0
    most: int = 10
    lift_sheddable: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.seconds) and self.seconds > 0):
            raise InvalidInputError("seconds", self.seconds, "a finite number above 0")
        whole_number("most", self.most, 0)

    def effective(self, band: Band, now: float) -> int:
        """Return a band's priority, with what its oldest request's wait adds."""
        oldest, priority = band.oldest, band.priority
        if oldest is None:
            return priority
        raised = priority + min(self.most, int((now - oldest.enqueued_at) / self.seconds))
        return min(raised, 0) if priority < 0 and not self.lift_sheddable else raised

    def pick(self, bands: Sequence[Band], now: float) -> Band:
        """Return the band with the greatest effective priority, the first of several."""
        best = bands[0]
        greatest = self.effective(best, now)
        for band in bands[1:]:
            effective = self.effective(band, now)
            if effective > greatest:
                best, greatest = band, effective
        return best

    def served(self, band: Band, cost: float, now: float) -> None:
        """Note nothing."""


@final
class WeightedShares:
    """Does every band get at least its share of what is dispatched, and the greatest priority the rest?

    Parameters
    ----------
    shares: the part of all dispatched cost that a band gets at least, by priority; together 1 at most. A band that is not named has none.
    quantum: how far a band may fall behind before it goes first; at least what one request may cost, else the bound does not hold.

    Bound: a band with share s that could go all the while gets at least ``s * W - (quantum + L)`` of the cost W that is dispatched
    meanwhile, L the greatest cost of a request. Why: time is counted in dispatched cost. A band is due while it has had less than its share
    since it began to wait, counting only what it got for being due; of those that are due the one goes whose deadline, a quantum
    further on, comes first. A band asks for no more than s * x in any x, and all together for no more than x: so earliest deadline first meets every
    deadline but for the one request that cannot be interrupted. What is not asked for goes to the greatest priority.

    A band that had nothing to send, or could not, saves nothing. It keeps its state itself: one object for one controller.
    Cost of a pick: the number of bands.

    >>> from inferencesched.flowcontrol import FlowController
    >>> controller = FlowController(band_policy=WeightedShares({10: 0.6, 0: 0.3, -1: 0.1}))
    """

    __slots__ = ("_dispatched", "_due", "_number", "_paid", "_quantum", "_seen", "_shares")

    def __init__(self, shares: Mapping[int, float], quantum: float = 16_384.0) -> None:
        for priority, share in shares.items():
            if not 0 <= share <= 1:
                raise InvalidInputError(f"shares[{priority}]", share, "a number from 0 to 1")
        total = fsum(shares.values())
        if total > 1 + 1e-9:
            raise InvalidInputError("shares", total, "shares that are 1 at most together")
        if not (isfinite(quantum) and quantum > 0):
            raise InvalidInputError("quantum", quantum, "a finite number above 0")
        self._shares = {priority: share for priority, share in shares.items() if share > 0}
        self._quantum = quantum
        self._dispatched = 0.0  # the time: what was dispatched in all
        self._number = 0  # dispatches
        self._seen: dict[int, int] = {}  # before which dispatch a band could go last
        self._paid: dict[int, float] = {}  # up to which time a band has had its share
        self._due: Band | None = None  # who goes because it is due

    def __repr__(self) -> str:
        return f"WeightedShares({self._shares}, quantum={self._quantum})"

    def pick(self, bands: Sequence[Band], now: float) -> Band:
        """Return who is due, the earliest deadline first; the greatest priority where nobody is."""
        due, earliest, time, number = None, 0.0, self._dispatched, self._number
        for band in bands:
            priority = band.priority
            share = self._shares.get(priority)
            if share is None:
                continue
            paid = self._paid.get(priority, 0.0)
            if paid < time and self._seen.get(priority, -2) < number - 1:  # it begins to wait
                self._paid[priority] = paid = time
            self._seen[priority] = number
            deadline = paid + self._quantum / share
            if paid <= time and (due is None or deadline < earliest):
                due, earliest = band, deadline
        self._due = due
        return bands[0] if due is None else due

    def served(self, band: Band, cost: float, now: float) -> None:
        """Count what was dispatched, and to a band that was due what it got."""
        self._dispatched += cost
        self._number += 1
        if band is self._due:
            priority = band.priority
            self._paid[priority] = self._paid.get(priority, 0.0) + cost / self._shares[priority]
        self._due = None
