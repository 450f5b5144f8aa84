"""What was known of every endpoint at one moment?

An `Endpoints` is an immutable snapshot: one ``float64[S, E]`` matrix, a row a signal, a column an endpoint.
Position ``i`` is the same endpoint in every column of one snapshot. Unknown is NaN, never 0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan
from typing import Final, Literal, final, get_args

import numpy as np

from inferencesched._kernels import scoring
from inferencesched._typing import BoolArray, FloatArray, IndexArray, IntArray
from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.labels import LabelColumn
from inferencesched.members import Membership, Residency

Freshness = Literal["scraped", "local", "static", "cycle"]


@dataclass(frozen=True, slots=True)
class Signal:
    """Which column is this, in what unit, and how stale may it be?

    Two signals of one name are the same signal. ``freshness`` says who writes it: ``scraped`` from the server
    (may be stale), ``local`` by the pool itself (never stale), ``static`` at joining, ``cycle`` by a
    DataProducer for one decision. ``low`` and ``high`` bound what may be observed.

    >>> TEMPERATURE = Signal("accelerator_temperature", unit="celsius", high=150.0)
    >>> TEMPERATURE
    Signal('accelerator_temperature')
    """

    name: str
    unit: str = field(default="", compare=False)
    default: float = field(default=nan, compare=False)
    freshness: Freshness = field(default="scraped", compare=False)
    low: float = field(default=0.0, compare=False)
    high: float = field(default=inf, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidInputError("name", self.name, "a string that is not empty")
        if not self.low <= self.high:
            raise InvalidInputError("low", self.low, f"at most high = {self.high}")
        if not (isnan(self.default) or self.low <= self.default <= self.high):
            raise InvalidInputError("default", self.default, f"{self.low} to {self.high}, or NaN for unknown")
        if self.freshness not in get_args(Freshness):
            raise UnknownNameError("freshness", self.freshness, get_args(Freshness))

    def __repr__(self) -> str:
        return f"Signal({self.name!r})"


WAITING_QUEUE_SIZE: Final = Signal("waiting_queue_size", "requests")
RUNNING_REQUESTS: Final = Signal("running_requests", "requests")
KV_CACHE_USAGE: Final = Signal("kv_cache_usage", "fraction", high=1.0)
LORA_ACTIVE: Final = Signal("lora_active", "adapters")
LORA_WAITING: Final = Signal("lora_waiting", "adapters")
LORA_CAPACITY: Final = Signal("lora_capacity", "adapters")
KV_BLOCKS: Final = Signal("kv_blocks", "blocks", freshness="static")
KV_BLOCK_SIZE: Final = Signal("kv_block_size", "tokens", freshness="static")
LORA_LOADED: Final = Signal("lora_loaded", "adapters")
LORA_SLOTS: Final = Signal("lora_slots", "adapters")
PREFILL_THROUGHPUT: Final = Signal("prefill_throughput", "tokens/s", freshness="static")
CAPACITY_WEIGHT: Final = Signal("capacity_weight", "", freshness="static")
INFLIGHT_REQUESTS: Final = Signal("inflight_requests", "requests", 0.0, "local")
INFLIGHT_TOKENS: Final = Signal("inflight_tokens", "tokens", 0.0, "local")
CONTEXT_TOKENS: Final = Signal("context_tokens", "tokens", 0.0, "local")
LAST_PICKED: Final = Signal("last_picked", "commits", -1.0, "local", low=-1.0)
OBSERVED_AT: Final = Signal("observed_at", "s", -inf, "local", low=-inf)
PREFIX_MATCH: Final = Signal("prefix_match", "fraction", nan, "cycle", high=1.0)
PREFIX_TOKENS: Final = Signal("prefix_tokens", "tokens", nan, "cycle")

#: The signals every pool has, in the order of the matrix's rows.
STANDARD_SIGNALS: Final = (
    WAITING_QUEUE_SIZE,
    RUNNING_REQUESTS,
    KV_CACHE_USAGE,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    CONTEXT_TOKENS,
    LAST_PICKED,
    OBSERVED_AT,
    PREFIX_MATCH,
    PREFIX_TOKENS,
    LORA_ACTIVE,
    LORA_WAITING,
    LORA_CAPACITY,
    KV_BLOCKS,
    KV_BLOCK_SIZE,
    LORA_LOADED,
    LORA_SLOTS,
    PREFILL_THROUGHPUT,
    CAPACITY_WEIGHT,
)


class Layout:
    """Which row of the matrix is which signal? Shared by all snapshots of a pool."""

    __slots__ = ("rows", "signals")

    def __init__(self, signals: Iterable[Signal]) -> None:
        self.signals = tuple(signals)
        self.rows = {signal.name: row for row, signal in enumerate(self.signals)}
        if len(self.rows) != len(self.signals):
            raise InvalidInputError("signals", [s.name for s in self.signals], "each name once")

    def row(self, signal: Signal) -> int:
        """Return the row of `signal`; `UnknownNameError` if the pool does not have it."""
        row = self.rows.get(signal.name)
        if row is None:
            raise UnknownNameError("signal", signal.name, list(self.rows))
        return row

    def checked(self, signal: Signal, column: object, count: int, name: Callable[[int], str]) -> FloatArray:
        """Return a column as numbers that its signal allows; `name` tells whose a bad one is."""
        try:
            numbers: FloatArray = np.ascontiguousarray(column, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(signal.name, column, f"float64[{count}]") from error
        if numbers.shape != (count,):
            raise InvalidInputError(signal.name, f"shape {numbers.shape}", f"float64[{count}]")
        row = self.rows.get(signal.name)
        declared = signal if row is None else self.signals[row]
        bad = scoring.out_of_range(numbers, declared.low, declared.high)
        if bad >= 0:
            value = f"{numbers[bad]} for {name(bad)!r}"
            raise InvalidInputError(signal.name, value, f"{declared.low} to {declared.high}, or NaN for unknown")
        return numbers

    def writable(self, signal: Signal, value: float, freshness: Freshness) -> int:
        """Return the row of a signal that may be set to this value from outside, by who is `freshness`."""
        row = self.row(signal)
        declared = self.signals[row]
        if declared.freshness not in ("static", freshness):
            allowed = "a static signal" if freshness == "static" else "a scraped or static signal"
            raise InvalidInputError(signal.name, f"a {declared.freshness} signal", allowed)
        if not (declared.low <= value <= declared.high and isfinite(value)) and not isnan(value):
            raise InvalidInputError(signal.name, value, f"{declared.low} to {declared.high}, or NaN for unknown")
        return row

    def defaults(self) -> FloatArray:
        """Return each signal's default, ``float64[S]``."""
        return np.array([signal.default for signal in self.signals], dtype=np.float64)


@final
class Endpoints:
    """What was known of every candidate when the decision began?

    Columns are ``float64[E]``, C-contiguous and read-only. Made by `InferencePool.snapshot`; `where` and
    `with_columns` return new ones. ``version`` is the pool's count of changes at the snapshot, ``sequence`` its count of reservations.

    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b", labels={"zone": "eu"})
    >>> pool.observe("a", {WAITING_QUEUE_SIZE: 3.0}, now=1.0)
    >>> endpoints = pool.snapshot()
    >>> endpoints[WAITING_QUEUE_SIZE]
    array([ 3., nan])
    >>> endpoints.where(endpoints.label("zone", "eu")).names
    ('b',)
    """

    __slots__ = ("_oldest", "_residency", "layout", "matrix", "members", "positions", "sequence", "version")

    def __init__(
        self,
        matrix: FloatArray,
        layout: Layout,
        members: Membership,
        residency: Residency,
        version: int,
        sequence: int,
        positions: IndexArray | None = None,
        oldest: tuple[float, float] | None = None,
    ) -> None:
        matrix.setflags(write=False)
        self.matrix = matrix
        self.layout = layout
        self.members = members
        self._residency = residency
        self.version = version
        self.sequence = sequence
        self.positions = positions  # places in `members`; None is all of them, in order
        self._oldest = oldest

    def __len__(self) -> int:
        count: int = self.matrix.shape[1]
        return count

    def __repr__(self) -> str:
        return f"Endpoints({len(self)} of {len(self.members.names)}, version {self.version})"

    def __getitem__(self, signal: Signal) -> FloatArray:
        """Return a signal's column, ``float64[E]``, read-only; `UnknownNameError` if the pool lacks it."""
        column: FloatArray = self.matrix[self.layout.row(signal)]
        return column

    def name(self, position: int) -> str:
        """Return the endpoint's name."""
        return self.members.names[position if self.positions is None else self.positions[position]]

    @property
    def names(self) -> tuple[str, ...]:
        """Which endpoints, in the order of the columns?"""
        if self.positions is None:
            return self.members.names
        return tuple(self.members.names[i] for i in self.positions)

    @property
    def slots(self) -> IndexArray:
        """Which small stable ints, ``intp[E]``? The prefix index's columns."""
        return self.members.slots if self.positions is None else self.members.slots[self.positions]

    @property
    def generations(self) -> IntArray:
        """Which stay of each endpoint, ``int64[E]``?"""
        return self.members.generations if self.positions is None else self.members.generations[self.positions]

    @property
    def last_picked(self) -> IntArray:
        """At which commit was each endpoint reserved last, ``int64[E]``? -1 is never."""
        return self[LAST_PICKED].astype(np.int64)

    def label(self, key: str, value: str) -> BoolArray:
        """Return which endpoints carry the label, ``bool[E]``."""
        return self._of_members(self.members.label(key, value))

    def label_column(self, key: str) -> LabelColumn:
        """Return each endpoint's value of a label, of a key that a configuration names."""
        column = self.members.column(key)
        return column if self.positions is None else LabelColumn(column.values, column.codes[self.positions])

    def hosts(self, adapter: str) -> BoolArray:
        """Return which endpoints run the LoRA adapter, ``bool[E]``."""
        return self._of_members(self._residency.running(adapter))

    def awaits(self, adapter: str) -> BoolArray:
        """Return which endpoints have the LoRA adapter waiting to be loaded, ``bool[E]``."""
        return self._of_members(self._residency.waiting(adapter))

    def loaded(self, adapter: str) -> BoolArray:
        """Return which endpoints have the LoRA adapter in the accelerator's memory, ``bool[E]``."""
        return self._of_members(self._residency.loaded(adapter))

    def offloaded(self, adapter: str) -> BoolArray:
        """Return which endpoints have the LoRA adapter in the host's memory, ``bool[E]``."""
        return self._of_members(self._residency.offloaded(adapter))

    @property
    def adapters_in_use(self) -> FloatArray:
        """How many LoRA adapters run or wait, each counted once, ``float64[E]``?"""
        counts = self._residency.in_use()
        return counts if self.positions is None else counts[self.positions]

    @property
    def adapters_idle(self) -> FloatArray:
        """How many LoRA adapters are loaded and neither run nor wait, ``float64[E]``?"""
        counts = self._residency.idle()
        return counts if self.positions is None else counts[self.positions]

    def residency(self, adapter: str) -> BoolArray:
        """Return which endpoints run the LoRA adapter, and which have it waiting, ``bool[2, E]``, C-contiguous."""
        pair = self._residency.pair(adapter)
        return pair if self.positions is None else np.ascontiguousarray(pair[:, self.positions])

    def labels(self, position: int) -> Mapping[str, str]:
        """Return an endpoint's labels."""
        return self.members.labels[position if self.positions is None else self.positions[position]]

    def address(self, position: int) -> str:
        """Return where an endpoint's requests are sent, ``host:port``; its name where nobody said."""
        return self.members.addresses[position if self.positions is None else self.positions[position]]

    def age(self, now: float) -> FloatArray:
        """Return seconds since each endpoint's last observation, ``float64[E]``; inf if there was none."""
        return now - self[OBSERVED_AT]

    @property
    def oldest(self) -> tuple[float, float]:
        """When was the stalest endpoint observed, and the stalest of those observed at all?

        Seconds; -inf first where somebody never was, inf second where nobody was.
        """
        if self._oldest is None:
            self._oldest = scoring.oldest(self.matrix[self.layout.rows[OBSERVED_AT.name]])
        return self._oldest

    def seen_since(self, since: float, leaving_out_unseen: bool) -> bool:
        """Was every endpoint observed since then, or (leaving those out) every one that was observed at all?

        False for a time that is not finite.
        """
        oldest = self._oldest
        if oldest is None:
            oldest = self.oldest
        return oldest[leaving_out_unseen] >= since and -inf < since < inf

    def identity(self, position: int) -> tuple[str, tuple[int, int], str]:
        """Return an endpoint's name, its slot and generation, and its address."""
        return self.members.identities[position if self.positions is None else self.positions[position]]

    def stay(self, position: int) -> tuple[int, int]:
        """Return an endpoint's slot and generation."""
        return self.members.stays[position if self.positions is None else self.positions[position]]

    def where(self, keep: BoolArray) -> "Endpoints":
        """Return the kept endpoints only, compressed; `self` when nothing is dropped.

        Compressed rather than masked, so that no scorer's ``max()`` can see what was filtered out. Errors:
        `InvalidInputError` for a mask of another length.
        """
        if keep.shape != (count := self.matrix.shape[1],):
            raise InvalidInputError("keep", f"shape {keep.shape}", f"bool[{count}]")
        if keep.all():
            return self
        kept: IndexArray = np.flatnonzero(keep)
        positions = kept if self.positions is None else self.positions[kept]
        return self._derived(np.ascontiguousarray(self.matrix[:, kept]), self.layout, positions, self.sequence)

    def with_columns(self, columns: Mapping[Signal, FloatArray], *, sound: bool = False) -> "Endpoints":
        """Return a snapshot in which these columns are replaced or added; values are copied.

        With `sound` nobody looks whether they are right (`Produced.sound`). Errors: `InvalidInputError` for a column that is not ``float64[E]`` (or a list of as many numbers), or
        holds a value that is infinite or out of its signal's range; NaN is unknown.
        """
        checked = (
            columns
            if sound
            else {
                signal: self.layout.checked(signal, column, len(self), self.name) for signal, column in columns.items()
            }
        )
        new = [signal for signal in columns if signal.name not in self.layout.rows]
        layout = self.layout
        if new:
            layout = Layout((*layout.signals, *new))
            matrix = np.empty((len(layout.signals), len(self)), dtype=np.float64)
            matrix[: len(self.layout.signals)] = self.matrix
        else:
            matrix = self.matrix.copy()
        for signal, column in checked.items():
            matrix[layout.rows[signal.name]] = column
        return self._derived(matrix, layout, self.positions, self.sequence)

    def booked(self, position: int, *, tokens: int, context_tokens: int) -> "Endpoints":
        """Return the snapshot as it would be after one reservation there: what joint decisions plan with."""
        matrix, rows = self.matrix.copy(), self.layout.rows
        matrix[rows[INFLIGHT_REQUESTS.name], position] += 1.0
        matrix[rows[INFLIGHT_TOKENS.name], position] += tokens
        matrix[rows[CONTEXT_TOKENS.name], position] += context_tokens
        matrix[rows[LAST_PICKED.name], position] = self.sequence
        return self._derived(matrix, self.layout, self.positions, self.sequence + 1)

    def _of_members(self, mask: BoolArray) -> BoolArray:
        return mask if self.positions is None else mask[self.positions]

    def _derived(self, matrix: FloatArray, layout: Layout, positions: IndexArray | None, sequence: int) -> "Endpoints":
        return Endpoints(matrix, layout, self.members, self._residency, self.version, sequence, positions)
