"""What arrives, when, how long is it, and what does it share with what came before?

A `Workload` is columns, one row a request, in the order of arrival. Times are ms from the start of the trace. ``arrival`` is when
requests came in life; a `Precedence` says which of them waited for answers, so that a closed loop can have them wait again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from math import isfinite
from pathlib import Path

import msgspec
import numpy as np

from inferencesched._typing import FloatArray, HashArray, IntArray
from inferencesched.errors import InvalidInputError, TraceError, whole_number
from inferencesched.simulator.tenancy import Tenant, draw

MOONCAKE_BLOCK = 512
#: No request is longer, so that no sum of lengths overflows.
MOST_TOKENS = 2**31 - 1
#: What a decoder of JSON raises: nonsense, another type, no UTF-8, and what is nested too deep.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True, eq=False)
class Precedence:
    """Who waits for whose answer, and how long do they think then?

    Request i waits for ``places[offsets[i]:offsets[i + 1]]``: ascending, each smaller than i, none for a root. ``places``
    int64[K], ``offsets`` int64[N + 1]. ``think`` float64[N]: ms of pause after the last of those ended, 0 for roots.

    >>> talk = Precedence.of([[], [0], [], [1]], [0.0, 500.0, 0.0, 20.0])
    >>> talk.waits_for(3).tolist(), talk.sessions().tolist()
    ([1], [0, 0, 1, 0])
    """

    places: IntArray
    offsets: IntArray
    think: FloatArray

    @classmethod
    def of(cls, waits: Iterable[Iterable[int]], think: Iterable[float]) -> "Precedence":
        """Build from rows: for each request the places it waits for, in any order. Errors: as `validate`."""
        rows = [sorted(set(row)) for row in waits]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        places = np.array([place for row in rows for place in row], dtype=np.int64)
        precedence = cls(places, offsets, np.array(list(think), dtype=np.float64))
        precedence.validate(len(rows))
        return precedence

    def __len__(self) -> int:
        return len(self.think)

    def validate(self, count: int) -> None:
        """Raise `InvalidInputError` for columns that contradict each other, or are not of `count` requests."""
        think, offsets, places = self.think, self.offsets, self.places
        if len(think) != count or not (np.isfinite(think).all() and (think >= 0).all()):
            got = f"length {len(think)}, from {think.min(initial=np.inf)}"
            raise InvalidInputError("precedence.think", got, f"{count} finite ms of at least 0")
        if len(offsets) != count + 1 or offsets[0] != 0 or offsets[-1] != len(places) or (np.diff(offsets) < 0).any():
            allowed = f"{count + 1} offsets into places, from 0, not decreasing"
            raise InvalidInputError("precedence.offsets", len(offsets), allowed)
        waiting = np.repeat(np.arange(count), np.diff(offsets))
        same = np.diff(waiting) == 0
        if not ((places >= 0).all() and (places < waiting).all() and (np.diff(places)[same] > 0).all()):
            got = "a place that is not before its request, or not after the place before it"
            raise InvalidInputError("precedence.places", got, "places before each request's own, ascending")
        if think[np.diff(offsets) == 0].any():
            raise InvalidInputError("precedence.think", "a pause before a request that waits for nobody", "0 for roots")

    def waits_for(self, request: int) -> IntArray:
        """Return the places of the requests that this one waits for."""
        return self.places[self.offsets[request] : self.offsets[request + 1]]

    def head(self, count: int) -> "Precedence":
        """Return the precedence of the first `count` requests; nobody waits for a later one."""
        offsets = self.offsets[: count + 1]
        return Precedence(self.places[: offsets[-1]], offsets, self.think[:count])

    def taken(self, order: IntArray) -> "Precedence":
        """Return the precedence of the requests at these places, in this order.

        `InvalidInputError` where one would have to wait for what is left out, or comes later.
        """
        order = np.asarray(order, dtype=np.int64)
        now = np.full(len(self), -1, dtype=np.int64)
        now[order] = np.arange(len(order))
        offsets, index = gathered(self.offsets, order)
        waiting = np.repeat(np.arange(len(order)), np.diff(offsets))
        places = now[self.places[index]]
        if not ((places >= 0) & (places < waiting)).all():
            got = "a request without, or before, one that it waits for"
            raise InvalidInputError("order", got, "whole conversations, in their order")
        return Precedence(places[np.lexsort((places, waiting))], offsets, self.think[order])

    def sessions(self) -> IntArray:
        """Return which conversation each request belongs to, ``int64[N]``, numbered from 0 in the order of first requests.

        Who waits for somebody is of the same conversation. Cost: some 1 µs a request.
        """
        lead = list(range(len(self)))  # union-find; the smallest place leads
        starts, places = self.offsets.tolist(), self.places.tolist()

        def leader(i: int) -> int:
            while lead[i] != i:
                lead[i] = i = lead[lead[i]]
            return i

        for i in range(len(self)):
            for place in places[starts[i] : starts[i + 1]]:
                one, other = leader(i), leader(place)
                lead[max(one, other)] = min(one, other)
        leaders = np.array([leader(i) for i in range(len(self))], dtype=np.int64)
        numbers: IntArray = np.unique(leaders, return_inverse=True)[1].astype(np.int64).reshape(-1)
        return numbers


def gathered(offsets: IntArray, order: IntArray) -> tuple[IntArray, IntArray]:
    """Where are these rows of a ragged column? Their new offsets, ``int64[R + 1]``, and the place of every item of theirs.

    >>> offsets, index = gathered(np.array([0, 2, 2, 5]), np.array([2, 0]))
    >>> offsets.tolist(), index.tolist()
    ([0, 3, 5], [2, 3, 4, 0, 1])
    """
    lengths = np.diff(offsets)[order]
    fresh = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(lengths, out=fresh[1:])
    index: IntArray = np.arange(fresh[-1]) + np.repeat(offsets[:-1][order] - fresh[:-1], lengths)
    return fresh, index


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Which requests, as columns?

    ``arrival`` float64[N] ms, not decreasing; ``input_tokens`` and ``output_tokens`` int64[N];
    ``blocks[offsets[i]:offsets[i + 1]]`` are request i's block ids (int64, small, not negative): equal ids mean an
    equal block after an equal prefix. Each id stands for ``block_size`` tokens; a last one may be partly filled.
    ``tenant`` int64[N] says whose each request is, a place in ``tenants``; None where nobody says.
    ``adapter`` int64[N] says which LoRA adapter each request needs, a place in ``adapters``, -1 for the base model; None where nobody says.
    ``precedence`` says which requests wait for which answers, for a closed loop; None where nobody says. An open loop goes
    by ``arrival`` alone.

    >>> two = Workload.of("toy", [0.0, 5.0], [130, 128], [10, 20], [[0, 1, 2], [0, 1]], block_size=64)
    >>> len(two), two.block_size
    (2, 64)
    >>> two.full_blocks(0)
    array([0, 1])
    """

    name: str
    arrival: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    blocks: IntArray
    offsets: IntArray
    block_size: int
    tenants: tuple[Tenant, ...] = ()
    tenant: IntArray | None = None
    precedence: Precedence | None = None
    adapters: tuple[str, ...] = ()
    adapter: IntArray | None = None

    @classmethod
    def of(
        cls,
        name: str,
        arrival: Iterable[float],
        input_tokens: Iterable[int],
        output_tokens: Iterable[int],
        blocks: Iterable[Iterable[int]],
        *,
        block_size: int,
        precedence: Precedence | None = None,
    ) -> "Workload":
        """Build from rows; ids may be any integers and are renumbered from 0."""
        rows = [list(row) for row in blocks]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        number = {ident: i for i, ident in enumerate(sorted({ident for row in rows for ident in row}))}
        dense = np.fromiter((number[ident] for row in rows for ident in row), dtype=np.int64, count=int(offsets[-1]))
        workload = cls(
            name,
            np.array(list(arrival), dtype=np.float64),
            _lengths("input_tokens", input_tokens),
            _lengths("output_tokens", output_tokens),
            dense,
            offsets,
            block_size,
            precedence=precedence,
        )
        workload.validate()
        return workload

    def __len__(self) -> int:
        return len(self.arrival)

    def validate(self) -> None:
        """Raise `InvalidInputError` for columns that contradict each other."""
        count = len(self.arrival)
        whole_number("block_size", self.block_size, low=1)
        for name, low in (("input_tokens", 1), ("output_tokens", 0)):
            column = getattr(self, name)
            if len(column) != count or (count and not low <= column.min() <= column.max() <= MOST_TOKENS):
                got = f"length {len(column)}, {column.min(initial=MOST_TOKENS)} to {column.max(initial=0)}"
                raise InvalidInputError(name, got, f"{count} integers from {low} to {MOST_TOKENS}")
        offsets = self.offsets
        if (
            len(offsets) != count + 1
            or offsets[0] != 0
            or offsets[-1] != len(self.blocks)
            or (np.diff(offsets) < 0).any()
        ):
            raise InvalidInputError("offsets", len(offsets), f"{count + 1} offsets into blocks, from 0, not decreasing")
        if not (np.isfinite(self.arrival).all() and (np.diff(self.arrival, prepend=0.0) >= 0).all()):
            got = "a time before the one before it, below 0, or not finite"
            raise InvalidInputError("arrival", got, "ms of at least 0 that do not decrease")
        if self.tenant is not None and not (
            len(self.tenant) == count and (self.tenant >= 0).all() and (self.tenant < len(self.tenants)).all()
        ):
            got = f"length {len(self.tenant)}, up to {self.tenant.max(initial=0)}"
            raise InvalidInputError("tenant", got, f"{count} places among {len(self.tenants)} tenants")
        if self.adapter is not None and not (
            len(self.adapter) == count and (self.adapter >= -1).all() and (self.adapter < len(self.adapters)).all()
        ):
            got = f"length {len(self.adapter)}, up to {self.adapter.max(initial=-1)}"
            raise InvalidInputError("adapter", got, f"{count} places among {len(self.adapters)} adapters, or -1")
        if self.precedence is not None:
            self.precedence.validate(count)

    def sessions(self) -> IntArray:
        """Return which conversation each request belongs to, ``int64[N]``: each its own where no precedence is known."""
        return np.arange(len(self)) if self.precedence is None else self.precedence.sessions()

    def full_blocks(self, request: int) -> IntArray:
        """Return the ids of the blocks that the prompt fills, ``int64[input_tokens // block_size]`` at most."""
        start, stop = int(self.offsets[request]), int(self.offsets[request + 1])
        return self.blocks[start : min(stop, start + int(self.input_tokens[request]) // self.block_size)]

    def at_speed(self, speedup: float) -> "Workload":
        """Return the same requests, arriving `speedup` times as fast; who thinks between two of them does not think faster."""
        if not (isfinite(speedup) and speedup > 0):
            raise InvalidInputError("speedup", speedup, "a finite number above 0")
        return replace(self, arrival=self.arrival / speedup)

    def tagged(self, tenants: Sequence[Tenant], *, seed: int = 0) -> "Workload":
        """Return the same requests, each given to a tenant by lot, in proportion to their shares. Errors: as `tenancy.draw`."""
        return replace(self, tenants=tuple(tenants), tenant=draw(tenants, len(self), seed=seed))

    def in_blocks(self, block_size: int) -> "Workload":
        """Return the same requests with blocks of `block_size` tokens, full ones only; it must divide the present size.

        A block of 512 tokens becomes 8 of 64, each known by its parent and its place, so that sharing is kept.
        """
        if block_size < 1 or self.block_size % block_size:
            raise InvalidInputError("block_size", block_size, f"a divisor of {self.block_size}, the trace's block size")
        parts = self.block_size // block_size
        derived = (self.blocks[:, None] * parts + np.arange(parts)).reshape(-1)
        counts = np.minimum(self.input_tokens // block_size, np.diff(self.offsets) * parts)
        place = np.arange(len(derived)) - np.repeat(self.offsets[:-1] * parts, np.diff(self.offsets) * parts)
        keep = place < np.repeat(counts, np.diff(self.offsets) * parts)
        offsets = np.zeros(len(self) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return replace(self, blocks=derived[keep], offsets=offsets, block_size=block_size)

    def block_hashes(self) -> HashArray:
        """Return a 64-bit hash a block id, ``uint64[M]``: what a gateway would know instead of ids (splitmix64)."""
        x = self.blocks.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    def head(self, count: int) -> "Workload":
        """Return the first `count` requests."""
        stop = int(self.offsets[min(count, len(self))])
        return replace(
            self,
            arrival=self.arrival[:count],
            input_tokens=self.input_tokens[:count],
            output_tokens=self.output_tokens[:count],
            blocks=self.blocks[:stop],
            offsets=self.offsets[: count + 1],
            tenant=None if self.tenant is None else self.tenant[:count],
            adapter=None if self.adapter is None else self.adapter[:count],
            precedence=None if self.precedence is None else self.precedence.head(count),
        )


def _lengths(name: str, values: Iterable[int]) -> IntArray:
    """Return token counts as a column; what does not even fit into it is refused here."""
    try:
        return np.array(list(values), dtype=np.int64)
    except OverflowError as error:
        raise InvalidInputError(name, "a number beyond 64 bits", f"integers up to {MOST_TOKENS}") from error


class _MooncakeLine(msgspec.Struct):
    """One line of a Mooncake trace."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = msgspec.field(default_factory=list)


class Rows:
    """Which lines of a trace were good so far? Turns a bad one into a `TraceError` that still carries them.

    Rows may come in any order of time where each says what it waits for; `workload` sorts them by it.
    """

    def __init__(self, path: str, block_size: int, *, ordered: bool = False) -> None:
        """`ordered`: rows say what they wait for."""
        self.path = path
        self.name = Path(path).stem
        self.block_size = block_size
        self.ordered = ordered
        self.arrival: list[float] = []
        self.input_tokens: list[int] = []
        self.output_tokens: list[int] = []
        self.blocks: list[list[int]] = []
        self.waits: list[list[int]] = []
        self.think: list[float] = []

    def add(
        self,
        line: int,
        time: float,
        inputs: int,
        outputs: int,
        blocks: list[int],
        names: tuple[str, str, str],
        *,
        last: float | None = None,
        waits: Sequence[int] = (),
        think: float = 0.0,
    ) -> None:
        """Take a row, or raise the `TraceError` of one that cannot be. `last`: no earlier than this, by default the row before."""
        if last is None:
            last = self.arrival[-1] if self.arrival else 0.0
        if not (isfinite(time) and time >= last):
            raise self.error(line, names[0], time, f"ms of at least {last}: a trace does not go back in time")
        if not 1 <= inputs <= MOST_TOKENS:
            raise self.error(line, names[1], inputs, f"an integer from 1 to {MOST_TOKENS}")
        if not 0 <= outputs <= MOST_TOKENS:
            raise self.error(line, names[2], outputs, f"an integer from 0 to {MOST_TOKENS}")
        if blocks and min(blocks) < 0:
            raise self.error(line, "hash_ids", min(blocks), "integers of at least 0")
        self.arrival.append(time)
        self.input_tokens.append(inputs)
        self.output_tokens.append(outputs)
        self.blocks.append(blocks)
        self.waits.append(list(waits))
        self.think.append(think)

    def integer(self, line: int, name: str, text: str) -> int:
        """Return the number of tokens that a field of a CSV line names, or raise the `TraceError` of one that names none."""
        if not text.removeprefix("-").isdecimal() or len(text) > len(str(MOST_TOKENS)):
            raise self.error(line, name, text[:60], f"an integer up to {MOST_TOKENS}")
        return int(text)

    def workload(self) -> Workload:
        """Return the rows, in the order of arrival."""
        order = sorted(range(len(self.arrival)), key=self.arrival.__getitem__)
        now = {place: i for i, place in enumerate(order)}
        precedence = None
        if self.ordered:
            waits = [[now[place] for place in self.waits[i]] for i in order]
            precedence = Precedence.of(waits, [self.think[i] for i in order])
        return Workload.of(
            self.name,
            [self.arrival[i] for i in order],
            [self.input_tokens[i] for i in order],
            [self.output_tokens[i] for i in order],
            [self.blocks[i] for i in order],
            block_size=self.block_size,
            precedence=precedence,
        )

    def error(self, line: int, parameter: str, value: object, allowed: str) -> TraceError:
        """Return the error to raise, with everything before it."""
        error = TraceError(self.path, line, parameter, value, allowed, lines_read=len(self.arrival))
        error.workload = self.workload()
        return error


def read_mooncake(path: str | Path) -> Workload:
    """Which requests does a Mooncake trace hold? JSON lines of 512-token blocks.

    ``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [..]}``. A broken line raises `TraceError`
    with its place; the error's ``workload`` is everything before it. Cost: 0.1 s for 12,000 requests.
    Source: github.com/kvcache-ai/Mooncake, FAST'25 release.
    """
    rows = Rows(str(path), MOONCAKE_BLOCK)
    decoder = msgspec.json.Decoder(_MooncakeLine)
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = decoder.decode(line)
            except UNREADABLE as error:
                shown = line.strip()[:60].decode(errors="replace")
                raise rows.error(number, "line", shown, f"a JSON object of the Mooncake schema ({error})") from error
            names = ("timestamp", "input_length", "output_length")
            rows.add(number, row.timestamp, row.input_length, row.output_length, row.hash_ids, names)
    return rows.workload()


_AZURE_TIME = "a time as 2023-11-16 18:15:46.680590, without a zone"


def read_azure(path: str | Path) -> Workload:
    """Which requests does an Azure LLM 2023 trace hold? CSV of ``TIMESTAMP,ContextTokens,GeneratedTokens``.

    No prefix is known, so none is shared. Errors and cost: as `read_mooncake`.
    Source: github.com/Azure/AzurePublicDataset.
    """
    rows = Rows(str(path), MOONCAKE_BLOCK)
    names = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    origin: tuple[datetime, float] | None = None  # whole seconds and their fraction, which has seven digits
    # what is no UTF-8 becomes a sign that no field allows
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        for number, line in enumerate(file, 1):
            fields = [field.strip() for field in line.split(",")]
            if number == 1:
                if tuple(fields) != names:
                    raise rows.error(1, "header", line.strip(), ",".join(names))
                continue
            if fields == [""]:
                continue
            if len(fields) != len(names):
                raise rows.error(number, "line", line.strip()[:60], f"{len(names)} fields: {','.join(names)}")
            stamp, *lengths = fields
            whole, _, fraction = stamp.partition(".")
            try:
                seconds = datetime.fromisoformat(whole)
            except ValueError as error:
                raise rows.error(number, names[0], stamp, _AZURE_TIME) from error
            if seconds.tzinfo is not None or not (fraction or "0").isdecimal():
                raise rows.error(number, names[0], stamp, _AZURE_TIME)
            part = float(f"0.{fraction or 0}")
            values = [rows.integer(number, name, text) for name, text in zip(names[1:], lengths, strict=True)]
            origin = (seconds, part) if origin is None else origin
            time = ((seconds - origin[0]).total_seconds() + (part - origin[1])) * 1e3
            rows.add(number, time, values[0], values[1], [], names)
    return rows.workload()
