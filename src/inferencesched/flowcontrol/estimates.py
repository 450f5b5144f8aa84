"""How long will a request wait, and when is it worth another try?

Little's law, turned by hand: whoever has n requests before it waits n times the mean gap between dispatches.
"""

from math import ceil, nan
from typing import final


@final
class DispatchRate:
    """How many requests go a second, of late? An average that forgets: the weight of a gap halves every `half_life` seconds.

    Unknown (NaN) until two requests have gone. Source: an exponentially weighted rate over irregular events; both sums decay
    alike, so that their ratio is exact for a steady stream.
    """

    __slots__ = ("_at", "_decay", "_events", "_seconds")

    def __init__(self, half_life: float = 10.0) -> None:
        self._decay = 0.5 ** (1.0 / half_life)
        self._at = nan
        self._events = 0.0
        self._seconds = 0.0

    def dispatched(self, count: int, now: float) -> None:
        """Note that so many went now."""
        gap = now - self._at
        if gap == gap:
            if gap > 0.0:
                keep = self._decay**gap
                self._events *= keep
                self._seconds = self._seconds * keep + gap
            self._events += count
        self._at = now

    def wait(self, ahead: int, now: float) -> float:
        """Return the seconds until so many have gone; NaN where no rate is known."""
        if not self._seconds > 0.0 or not self._events > 0.0:
            return nan
        idle = max(0.0, now - self._at)
        return ahead * (self._seconds + idle) / self._events

    def retry_after(self, ahead: int, now: float, otherwise: float = 1.0) -> float:
        """Return whole seconds for the header ``Retry-After``, at least 1."""
        wait = self.wait(ahead, now)
        return float(max(1, ceil(min(wait, 3600.0)))) if wait == wait else otherwise
