"""How evenly was everybody served?"""

from collections.abc import Iterable
from math import isfinite
from typing import final

from inferencesched.errors import InvalidInputError


def jain_index(values: Iterable[float]) -> float:
    """How even are these? Jain's index: 1 where all are equal, 1 / n where one has everything.

    ``(sum x)^2 / (n * sum x^2)``, whatever the unit. Meant for services divided by weights; llm-d takes it of mean waits. 1 for
    fewer than two, and where all are 0. Errors: `InvalidInputError` for a value that is negative or not finite.
    Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness" (1984).

    >>> jain_index([3.0, 3.0, 3.0]), jain_index([1.0, 0.0])
    (1.0, 0.5)
    """
    shares = [float(value) for value in values]
    for value in shares:
        if not (isfinite(value) and value >= 0):
            raise InvalidInputError("values", value, "finite numbers of at least 0")
    most = max(shares, default=0.0)
    if len(shares) < 2 or not most:
        return 1.0
    shares = [value / most for value in shares]  # so that no square overflows, or vanishes
    return sum(shares) ** 2 / (len(shares) * sum(value * value for value in shares))


@final
class WaitMeans:
    """How long does each flow wait, on average? Fed with every dispatch; what llm-d's fairness index is taken of.

    A wait of NaN is not known: it counts as a dispatch, and in no mean. Holds one entry a flow until `forget`.

    >>> waits = WaitMeans()
    >>> for wait in (0.05, 0.15):
    ...     waits.add("agent-1", wait)
    >>> waits.add("agent-2", 0.3)
    >>> waits.mean("agent-1"), round(waits.index(), 2)
    (0.1, 0.8)
    """

    __slots__ = ("_flows",)

    def __init__(self) -> None:
        self._flows: dict[str, list[float]] = {}  # dispatches, waits known, their mean

    def add(self, flow: str, wait: float) -> None:
        """Count a dispatch after so many seconds."""
        entry = self._flows.setdefault(flow, [0, 0, 0.0])
        entry[0] += 1
        if wait == wait:
            entry[1] += 1
            entry[2] += (wait - entry[2]) / entry[1]

    def mean(self, flow: str) -> float:
        """Return a flow's mean wait in seconds; 0 where none is known."""
        return self._flows[flow][2] if flow in self._flows else 0.0

    def dispatches(self, flow: str) -> int:
        """Return how many of a flow were dispatched."""
        return int(self._flows[flow][0]) if flow in self._flows else 0

    def known(self, flow: str) -> int:
        """Return how many waits its mean is of."""
        return int(self._flows[flow][1]) if flow in self._flows else 0

    def index(self) -> float:
        """Return Jain's index over the means of flows of which a wait is known."""
        return jain_index(mean for _, known, mean in self._flows.values() if known)

    def forget(self, flow: str) -> None:
        """Drop a flow."""
        self._flows.pop(flow, None)
