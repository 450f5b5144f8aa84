"""Who is in the pool, under which labels, and where is each LoRA adapter?

Immutable, and shared by the snapshots in between two changes; what is indexed for a question is indexed once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from inferencesched._typing import BoolArray, FloatArray, IndexArray, IntArray
from inferencesched.labels import LabelColumn, column_of

K = TypeVar("K")


class Membership:
    """Who is in the pool? Static between joins and leaves, shared by the snapshots in between.

    A *slot* is a small stable int (the prefix index's column); a *generation* is unique to one stay:
    an endpoint that left and came back under its name has another. ``stays`` holds both as plain ints, by position.
    ``addresses`` are where requests are sent, ``host:port``: the name where nobody said.
    """

    __slots__ = (
        "_columns",
        "_labels",
        "addresses",
        "generations",
        "identities",
        "labels",
        "names",
        "positions",
        "slots",
        "stays",
    )

    def __init__(
        self,
        names: tuple[str, ...] = (),
        stays: tuple[tuple[int, int], ...] = (),
        labels: tuple[Mapping[str, str], ...] = (),
        addresses: tuple[str, ...] | None = None,
    ) -> None:
        self.names = names
        self.addresses = names if addresses is None else addresses
        self.identities = tuple(zip(names, stays, self.addresses, strict=True))
        self.stays = stays
        self.labels = labels
        self.slots: IndexArray = np.array([slot for slot, _ in stays], dtype=np.intp)
        self.generations: IntArray = np.array([generation for _, generation in stays], dtype=np.int64)
        self.slots.flags.writeable = False
        self.generations.flags.writeable = False
        self.positions = {name: position for position, name in enumerate(names)}
        self._labels: _Masks[tuple[str, str]] | None = None
        self._columns: dict[str, LabelColumn] = {}

    def label(self, key: str, value: str) -> BoolArray:
        """Return which members carry the label, ``bool[E]``, read-only."""
        if self._labels is None:
            self._labels = _Masks([labels.items() for labels in self.labels])
        return self._labels.of((key, value))

    def column(self, key: str) -> LabelColumn:
        """Return each member's value of a label. Remembered: for keys from a configuration, not from a request."""
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = column_of(self.labels, key)
        return column


class Adapters(NamedTuple):
    """Which LoRA adapters does one server run, have waiting, and how many can it hold?

    Running and waiting adapters are those of requests in flight, ``capacity`` how many of them may be. Residency is another
    thing: ``loaded`` are in the accelerator's memory with or without a request, ``offloaded`` in the host's, ``slots``
    how many the accelerator can hold; 0 where a server does not tell.
    """

    running: frozenset[str] = frozenset()
    waiting: frozenset[str] = frozenset()
    capacity: int = 0
    loaded: frozenset[str] = frozenset()
    offloaded: frozenset[str] = frozenset()
    slots: int = 0

    def frozen(self) -> "Adapters":
        """Return the same with sets that nobody changes; a caller may have given others."""
        running, waiting, capacity, loaded, offloaded, slots = self
        return Adapters(
            frozenset(running), frozenset(waiting), capacity, frozenset(loaded), frozenset(offloaded), slots
        )


class Residency:
    """Where is each LoRA adapter? Immutable, shared by the snapshots until a report differs."""

    __slots__ = ("_idle", "_in_use", "_loaded", "_nobody", "_offloaded", "_pairs", "_running", "_waiting", "adapters")

    def __init__(self, adapters: tuple[Adapters, ...] = ()) -> None:
        self.adapters = adapters
        self._running: _Masks[str] | None = None
        self._waiting: _Masks[str] | None = None
        self._loaded: _Masks[str] | None = None
        self._offloaded: _Masks[str] | None = None
        self._in_use: FloatArray | None = None
        self._idle: FloatArray | None = None
        self._pairs: dict[str, BoolArray] = {}
        self._nobody: BoolArray | None = None

    def running(self, name: str) -> BoolArray:
        """Return where the adapter runs, ``bool[E]``, read-only."""
        if self._running is None:
            self._running = _Masks([known.running for known in self.adapters])
        return self._running.of(name)

    def waiting(self, name: str) -> BoolArray:
        """Return where the adapter waits to be loaded, ``bool[E]``, read-only."""
        if self._waiting is None:
            self._waiting = _Masks([known.waiting for known in self.adapters])
        return self._waiting.of(name)

    def pair(self, name: str) -> BoolArray:
        """Return where the adapter runs and where it waits, ``bool[2, E]``, read-only."""
        pair = self._pairs.get(name)
        if pair is None:
            running, waiting = self.running(name), self.waiting(name)
            held = self._running is not None and name in self._running
            held = held or (self._waiting is not None and name in self._waiting)
            if not held and self._nobody is not None:  # no word of a client's is remembered
                return self._nobody
            pair = np.stack([running, waiting])
            pair.flags.writeable = False
            if held:
                self._pairs[name] = pair
            else:
                self._nobody = pair
        return pair

    def loaded(self, name: str) -> BoolArray:
        """Return where the adapter is in the accelerator's memory, ``bool[E]``, read-only."""
        if self._loaded is None:
            self._loaded = _Masks([known.loaded for known in self.adapters])
        return self._loaded.of(name)

    def offloaded(self, name: str) -> BoolArray:
        """Return where the adapter is in the host's memory, ``bool[E]``, read-only."""
        if self._offloaded is None:
            self._offloaded = _Masks([known.offloaded for known in self.adapters])
        return self._offloaded.of(name)

    def in_use(self) -> FloatArray:
        """Return how many adapters run or wait, each counted once, ``float64[E]``, read-only."""
        if self._in_use is None:
            self._in_use = _counts(len(known.running | known.waiting) for known in self.adapters)
        return self._in_use

    def idle(self) -> FloatArray:
        """Return how many adapters are loaded and neither run nor wait, ``float64[E]``, read-only."""
        if self._idle is None:
            self._idle = _counts(len(known.loaded - known.running - known.waiting) for known in self.adapters)
        return self._idle


def _counts(numbers: Iterable[int]) -> FloatArray:
    counts = np.array(list(numbers), dtype=np.float64)
    counts.flags.writeable = False
    return counts


class _Masks(Generic[K]):
    """Who has which key? Indexed once. Remembers only keys that somebody has: the rest are any client's words."""

    __slots__ = ("_masks", "_nobody", "_places")

    def __init__(self, keys: Sequence[Iterable[K]]) -> None:
        self._places: dict[K, list[int]] = {}
        for position, held in enumerate(keys):
            for key in held:
                self._places.setdefault(key, []).append(position)
        self._masks: dict[K, BoolArray] = {}
        self._nobody: BoolArray = np.zeros(len(keys), dtype=np.bool_)
        self._nobody.flags.writeable = False

    def __contains__(self, key: K) -> bool:
        return key in self._places

    def of(self, key: K) -> BoolArray:
        mask = self._masks.get(key)
        if mask is None:
            places = self._places.get(key)
            if places is None:
                return self._nobody
            mask = np.zeros(len(self._nobody), dtype=np.bool_)
            mask[places] = True
            mask.flags.writeable = False
            self._masks[key] = mask
        return mask
