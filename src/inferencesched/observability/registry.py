"""Where are the numbers kept, and how are they read without stopping anybody?

A series is a list of numbers that one call adds to. A reader copies one series at a time: what it sees of a histogram is one moment's, and
decisions go on meanwhile (one bytecode at a time, under the interpreter's lock).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, isnan
from typing import NamedTuple, final

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.observability.families import Family

Key = tuple[str, ...]


class Sample(NamedTuple):
    """One number of the exposition: its name, its labels in order, its value."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@final
class Value:
    """One series of a counter or a gauge: ``series.value += 1``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


@final
class Histogram:
    """One series of a histogram. Cost of `observe`: 0.3 us."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; a value that is a bucket's bound is in it."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value


@final
class Registry:
    """What is counted?

    Parameters
    ----------
    families: those that there are. A series of one is made when somebody first asks for it.

    `computed` gauges are asked when somebody reads: for what is known elsewhere already. Cost of `value` and `histogram`: 0.2 us; keep
    what they return. A read of 2,000 gauges: 2 ms.
    Errors: `UnknownNameError` for another family, `InvalidInputError` for another number of labels.

    >>> from inferencesched.observability.families import FAMILIES, family
    >>> registry = Registry(FAMILIES.values())
    >>> registry.value("request_running", "llama", "llama", "me", "0").value += 1
    >>> [sample.value for sample in registry.samples(family("request_running"))]
    [1.0]
    """

    __slots__ = ("_computed", "_families", "_series", "_short")

    def __init__(self, families: "Sequence[Family] | Mapping[str, Family] | object") -> None:
        listed = list(families.values() if isinstance(families, Mapping) else families)  # type: ignore[call-overload]
        self._families: dict[str, Family] = {family.name: family for family in listed}
        self._short = {name.partition("epp_")[2] or name: name for name in self._families}
        self._series: dict[str, dict[Key, Value | Histogram]] = {name: {} for name in self._families}
        self._computed: list[tuple[str, Callable[[], Mapping[Key, float]]]] = []

    @property
    def families(self) -> tuple[Family, ...]:
        """Which families are there?"""
        return tuple(self._families.values())

    def value(self, name: str, *labels: str) -> Value:
        """Return the series of a counter or a gauge with these labels, in the family's order."""
        series = self._of(name).get(labels)
        if series is None:
            series = self._made(name, labels, "a counter or a gauge", buckets=False)
        if not isinstance(series, Value):
            raise InvalidInputError("name", name, "a counter or a gauge")
        return series

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return the series of a histogram with these labels, in the family's order."""
        series = self._of(name).get(labels)
        if series is None:
            series = self._made(name, labels, "a histogram", buckets=True)
        if not isinstance(series, Histogram):
            raise InvalidInputError("name", name, "a histogram")
        return series

    def computed(self, name: str, read: Callable[[], Mapping[Key, float]]) -> None:
        """Let a gauge be asked when somebody reads: labels -> value, NaN for none."""
        self._of(name)
        self._computed.append((self._full(name), read))

    def remove(self, name: str, /, **labels: str) -> int:
        """Forget the series of a family that have these labels; return how many."""
        family = self._families[self._full(name)]
        places = [(self._place(family, label), value) for label, value in labels.items()]
        series = self._of(name)
        gone = [key for key in series if all(key[place] == value for place, value in places)]
        for key in gone:
            del series[key]
        return len(gone)

    def __len__(self) -> int:
        """How many series are there, the computed ones aside?"""
        return sum(map(len, self._series.values()))

    def samples(self, family: Family) -> Iterator[Sample]:
        """Walk one family's numbers, as its exposition has them: a histogram's buckets count up."""
        for key, series in list(self._series[family.name].items()):
            labels = tuple(zip(family.labels, key, strict=True))
            if isinstance(series, Value):
                yield Sample(family.name, labels, series.value)
                continue
            counts, total = series.counts[:], series.sum
            below = 0
            for bound, count in zip((*series.buckets, inf), counts, strict=True):
                below += count
                yield Sample(f"{family.name}_bucket", (*labels, ("le", shown(bound))), below)
            yield Sample(f"{family.name}_sum", labels, total)
            yield Sample(f"{family.name}_count", labels, below)
        for name, read in self._computed:
            if name == family.name:
                for key, value in read().items():
                    if not isnan(value):
                        yield Sample(name, tuple(zip(family.labels, key, strict=True)), value)

    # -- inside --------------------------------------------------------------------------------------

    def _full(self, name: str) -> str:
        full = name if name in self._families else self._short.get(name)
        if full is None:
            raise UnknownNameError("name", name, sorted(self._families))
        return full

    def _of(self, name: str) -> dict[Key, Value | Histogram]:
        series = self._series.get(name)
        return self._series[self._full(name)] if series is None else series

    def _made(self, name: str, labels: Key, allowed: str, *, buckets: bool) -> Value | Histogram:
        family = self._families[self._full(name)]
        if bool(family.buckets) != buckets:
            raise InvalidInputError("name", name, allowed)
        if len(labels) != len(family.labels):
            raise InvalidInputError("labels", labels, f"a value for each of {family.labels}")
        series = Histogram(family.buckets) if family.buckets else Value()
        self._series[family.name][labels] = series
        return series

    @staticmethod
    def _place(family: Family, label: str) -> int:
        if label not in family.labels:
            raise UnknownNameError("label", label, family.labels)
        return family.labels.index(label)


def shown(number: float) -> str:
    """Return a number as the exposition formats have it.

    >>> shown(0.005), shown(1.0), shown(inf), shown(float("nan"))
    ('0.005', '1.0', '+Inf', 'NaN')
    """
    if number == inf:
        return "+Inf"
    if number == -inf:
        return "-Inf"
    return "NaN" if isnan(number) else repr(float(number))
