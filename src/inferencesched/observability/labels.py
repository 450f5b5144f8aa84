"""How many values may a label have?

Whatever clients can choose, model names and fairness ids, would make a time series each. A `BoundedLabel` keeps the first so many, and
those that the operator names; all others are one. Source: llm-d-router, ``pkg/epp/metrics/cardinality.go``.
"""

from collections.abc import Iterable
from typing import Final, final

from inferencesched.errors import whole_number

OVERFLOW: Final = "other"
MOST_VALUES: Final = 1000


@final
class BoundedLabel:
    """Which value does a label have? The value itself, or ``other`` once there are `most` different ones. Cost: 0.1 us.

    >>> label = BoundedLabel(2, pinned=("configured",))
    >>> [label.bound(value) for value in ("a", "b", "c", "a", "configured", "")]
    ['a', 'b', 'other', 'a', 'configured', '']
    """

    __slots__ = ("_known", "_pinned", "most")

    def __init__(self, most: int = MOST_VALUES, *, pinned: Iterable[str] = ()) -> None:
        self.most = whole_number("most", most)
        self._known: set[str] = set()
        self._pinned = set(pinned)

    def pin(self, value: str) -> None:
        """Keep this value whatever comes: one that the operator configured. It does not count."""
        self._pinned.add(value)
        self._known.discard(value)

    def bound(self, value: str) -> str:
        """Return the value, or ``other``; an empty one is empty."""
        if value in self._known or value in self._pinned or not value:
            return value
        if len(self._known) >= self.most:
            return OVERFLOW
        self._known.add(value)
        return value

    def forget(self, value: str) -> None:
        """Make room: this value's series are gone."""
        self._known.discard(value)

    def __len__(self) -> int:
        """How many values are known, the pinned ones aside?"""
        return len(self._known)
