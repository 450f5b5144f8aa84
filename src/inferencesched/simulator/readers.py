"""Which requests does this file hold, in whichever of the public schemas it is?

Mooncake and Azure are read in `workload`; here are those that came after, and `read_trace`, which knows them all. Every reader
answers a broken file with a `TraceError` that names the place and carries what was good before it. Fields that no schema
names are ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.simulator.workload import (
    MOONCAKE_BLOCK,
    MOST_TOKENS,
    UNREADABLE,
    Rows,
    Workload,
    read_azure,
    read_mooncake,
)

BAILIAN_BLOCK: Final = 16
#: How deep sub-agents may start sub-agents.
_DEEPEST: Final = 32
#: No more requests are drawn from rates: what asks for more is a slip.
_MOST_DRAWN: Final = 5_000_000
#: How much of a file that is no lines of JSON is looked at to see what it is.
_HEAD: Final = 65_536


def _shown(text: bytes) -> str:
    return text.strip()[:60].decode(errors="replace")


# --- BurstGPT ----------------------------------------------------------------------------------------------------

_BURST: Final = ("Timestamp", "Request tokens", "Response tokens")


class _Burst(NamedTuple):
    workload: Workload
    failed: int


def read_burstgpt(path: str | Path, *, keep_failures: bool = False) -> Workload:
    """Which requests does a BurstGPT trace hold? CSV with at least the columns ``Timestamp,Request tokens,Response tokens``.

    Timestamps are seconds. A row without response tokens is a request that failed: it is dropped, or with `keep_failures` stays
    as a request for no output. A row without request tokens is dropped in any case, as no server has anything to do for it.
    `burstgpt_failures` counts what is dropped. No prefix is known, so none is shared. Errors: as `read_mooncake`.
    Source: github.com/HPMLL/BurstGPT, release 1.1.
    """
    return _burstgpt(path, keep_failures).workload


def burstgpt_failures(path: str | Path, *, keep_failures: bool = False) -> int:
    """How many rows of a BurstGPT trace does `read_burstgpt` drop? Arguments, cost and errors: as there."""
    return _burstgpt(path, keep_failures).failed


def _burstgpt(path: str | Path, keep_failures: bool) -> _Burst:
    rows = Rows(str(path), MOONCAKE_BLOCK)
    failed, last = 0, 0.0
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        header = [name.strip() for name in file.readline().split(",")]
        if header == [""]:
            return _Burst(rows.workload(), 0)
        if any(header.count(name) != 1 for name in _BURST):
            raise rows.error(1, "header", ",".join(header)[:60], "columns " + ", ".join(_BURST) + ", once each")
        columns = [header.index(name) for name in _BURST]
        for number, line in enumerate(file, 2):
            fields = [field.strip() for field in line.split(",")]
            if fields == [""]:
                continue
            if len(fields) != len(header):
                raise rows.error(number, "line", line.strip()[:60], f"{len(header)} fields, as the header has")
            stamp, *lengths = (fields[column] for column in columns)
            try:
                time = float(stamp) * 1e3
            except ValueError as error:
                raise rows.error(number, _BURST[0], stamp[:60], "seconds") from error
            inputs, outputs = (rows.integer(number, n, text) for n, text in zip(_BURST[1:], lengths, strict=True))
            if inputs == 0 or (outputs == 0 and not keep_failures):
                if not (isfinite(time) and time >= last):
                    raise rows.error(
                        number, _BURST[0], time, f"ms of at least {last}: a trace does not go back in time"
                    )
                failed += 1
            else:
                rows.add(number, time, inputs, outputs, [], _BURST, last=last)
            last = time
    return _Burst(rows.workload(), failed)


# --- Bailian -----------------------------------------------------------------------------------------------------


class _BailianLine(msgspec.Struct):
    chat_id: int
    timestamp: float
    input_length: int
    output_length: int
    parent_chat_id: int = -1
    hash_ids: list[int] = msgspec.field(default_factory=list)


def read_bailian(path: str | Path, *, token_ms: float = 0.0) -> Workload:
    """Which requests does a Qwen-Bailian trace hold, and which continue which? JSON lines of 16-token blocks.

    ``{"chat_id": n, "parent_chat_id": n or -1, "timestamp": s, "input_length": n, "output_length": n, "hash_ids": [..]}``. Who has
    a parent waits for it. A parent that the trace does not hold came before it began: its child is a root. The trace does not
    say when answers ended: the pause before a request is the time since its parent came, less `token_ms` for each token of the
    parent's answer, 0 at least. With the default of 0 it is the longest that it can have been. Errors: as `read_mooncake`.
    Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
    """
    if not (isfinite(token_ms) and token_ms >= 0):
        raise InvalidInputError("token_ms", token_ms, "finite ms of at least 0")
    rows = Rows(str(path), BAILIAN_BLOCK, ordered=True)
    decoder = msgspec.json.Decoder(_BailianLine)
    names = ("timestamp", "input_length", "output_length")
    place: dict[int, int] = {}
    absent: set[int] = set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = decoder.decode(line)
            except UNREADABLE as error:
                allowed = f"a JSON object of the Bailian schema ({error})"
                raise rows.error(number, "line", _shown(line), allowed) from error
            if row.chat_id in place:
                raise rows.error(number, "chat_id", row.chat_id, "one that no line before it has")
            if row.chat_id in absent or row.chat_id == row.parent_chat_id:
                raise rows.error(number, "chat_id", row.chat_id, "a line before those that continue it")
            time, waits, think = row.timestamp * 1e3, [], 0.0
            if row.parent_chat_id in place:
                waits = [place[row.parent_chat_id]]
                think = max(0.0, time - rows.arrival[waits[0]] - token_ms * rows.output_tokens[waits[0]])
            elif row.parent_chat_id != -1:
                absent.add(row.parent_chat_id)
            rows.add(number, time, row.input_length, row.output_length, row.hash_ids, names, waits=waits, think=think)
            place[row.chat_id] = len(rows.arrival) - 1
    return rows.workload()


# --- Weka --------------------------------------------------------------------------------------------------------


class _WekaSession(msgspec.Struct):
    block_size: int
    requests: list[msgspec.Raw]
    hash_id_scope: str = "local"


class _WekaAgent(msgspec.Struct):
    requests: list[msgspec.Raw] | None = None


class _WekaRequest(msgspec.Struct):
    t: float
    inputs: int = msgspec.field(name="in")
    outputs: int = msgspec.field(name="out")
    hash_ids: list[int] = msgspec.field(default_factory=list)
    think_time: float | None = None


def read_weka(path: str | Path) -> Workload:
    """Which requests do these agent sessions hold, and which wait for which? One JSON file, or a folder of them.

    ``{"block_size": n, "requests": [{"t": s, "in": n, "out": n, "hash_ids": [..], "think_time": s}, {"requests": [..]}, ..]}``. A
    session's requests come one after the other, each after the one before and ``think_time``. An entry that has its own
    ``requests`` is a sub-agent: its first waits for the request before it in its parent, and the parent's next request waits for
    all sub-agents before it; not for one whose last request began later than that, which evidently ran on in the background.
    The pause is never longer than from when the last that is waited for began: where the trace does not know when an answer
    ended, its ``think_time`` counts from an earlier one.

    ``hash_ids`` are the session's own (``"hash_id_scope": "local"``, the default) or everybody's (``"global"``). Every session begins
    at its own t, so that those of a folder begin together: `transforms.restart_sessions` spreads them. Errors: as
    `read_mooncake`, naming the file and the entry; what was good are the sessions before, and this one's requests before it.
    Source: github.com/callanjfox/kv-cache-tester, docs/trace_replay_tester.md.
    """
    folder = Path(path)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [folder]
    rows = Rows(str(path), MOONCAKE_BLOCK, ordered=True)
    reader = _WekaReader(rows)
    for i, file in enumerate(files):
        rows.path = str(file)
        reader.session(file.read_bytes(), first=i == 0)
    return rows.workload()


class _WekaReader:
    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.fresh = 0  # block ids of earlier sessions are below
        self.agents = msgspec.json.Decoder(_WekaAgent)
        self.requests = msgspec.json.Decoder(_WekaRequest)

    def session(self, content: bytes, *, first: bool) -> None:
        rows = self.rows
        if not content.strip():
            return
        try:
            session = msgspec.json.decode(content, type=_WekaSession)
        except UNREADABLE as error:
            raise rows.error(
                1, "session", _shown(content[:200]), f"a JSON object of the Weka schema ({error})"
            ) from error
        if session.hash_id_scope not in ("local", "global"):
            raise rows.error(1, "hash_id_scope", session.hash_id_scope[:60], "local or global")
        if not 1 <= session.block_size <= MOST_TOKENS:
            raise rows.error(1, "block_size", session.block_size, f"an integer from 1 to {MOST_TOKENS}")
        if first:
            rows.block_size = session.block_size
        elif session.block_size != rows.block_size:
            raise rows.error(1, "block_size", session.block_size, f"{rows.block_size}, as in the sessions before")
        before = len(rows.blocks)
        try:
            self.stream(session.requests, "requests", [], 0)
        finally:  # an error has taken its copy of the rows
            if session.hash_id_scope == "local":
                self.separate(before)

    def separate(self, before: int) -> None:
        """Give a session's own block ids names that nobody else has: negative ones, as global ids are not."""
        ids = self.rows.blocks[before:]
        for i, row in enumerate(ids, before):
            self.rows.blocks[i] = [-1 - self.fresh - ident for ident in row]
        self.fresh += 1 + max((max(row, default=0) for row in ids), default=0)

    def stream(self, entries: Sequence[msgspec.Raw], where: str, after: list[int], depth: int) -> list[int]:
        """Take requests that come one after the other; return the places that who goes on behind them waits for."""
        rows = self.rows
        previous, agents = after, list[int]()
        for i, entry in enumerate(entries):
            at = f"{where}[{i}]"
            try:
                inner = self.agents.decode(entry).requests
                request = self.requests.decode(entry) if inner is None else None
            except UNREADABLE as error:
                raise rows.error(
                    1, at, _shown(bytes(entry)[:200]), f"a request of the Weka schema ({error})"
                ) from error
            if inner is not None:
                if depth == _DEEPEST:
                    raise rows.error(1, at, f"{depth + 1} deep", f"sub-agents at most {_DEEPEST} deep")
                agents += self.stream(inner, f"{at}.requests", previous, depth + 1)
                continue
            assert request is not None
            thinks = 0.0 if request.think_time is None else request.think_time * 1e3
            if not (isfinite(thinks) and thinks >= 0):
                raise rows.error(1, f"{at}.think_time", request.think_time, "finite seconds of at least 0")
            time = request.t * 1e3
            ready = [place for place in agents if rows.arrival[place] <= time]
            agents = [place for place in agents if rows.arrival[place] > time]
            waits = sorted({*previous, *ready})
            last = max((rows.arrival[place] for place in waits), default=0.0)
            names = (f"{at}.t", f"{at}.in", f"{at}.out")
            pause = min(thinks, max(0.0, time - last)) if waits else 0.0
            rows.add(
                1, time, request.inputs, request.outputs, request.hash_ids, names, last=last, waits=waits, think=pause
            )
            previous = [len(rows.arrival) - 1]
        return previous + agents


# --- ServeGen ----------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """A client's arrivals within a part of a window: from, for how long, how many a second, and how they bunch."""

    begin: float
    seconds: float
    rate: float
    pattern: str
    shape: float
    lengths: tuple[tuple[IntArray, FloatArray], tuple[IntArray, FloatArray]]


def read_servegen(
    path: str | Path, *, start: float = 0.0, seconds: float = 600.0, rate: float | None = None, seed: int = 0
) -> Workload:
    """Which requests could the clients of a ServeGen folder have sent from second `start` on, for so many seconds?

    The folder holds no requests but, for each client, ``chunk-N-trace.csv`` (lines ``start s, rate, cv, Gamma or Weibull, shape,
    scale``; without a name nobody comes) and ``chunk-N-dataset.json`` (by start, texts ``{length: share, ..}`` as ``input_tokens`` and
    ``output_tokens``). Requests are drawn from them: of each client and window as many as its rate says, rounded by lot, with gaps
    of its shape that fill the window. `rate` is how many a second all clients send on average; None is what they sent. A window
    of a client without lengths up to then is left out, as ServeGen does. No prefix is known, so none is shared.

    Deterministic; each client draws from its own stream. Errors: `TraceError` with nothing before it, as nothing is drawn until all
    is read; `InvalidInputError`. Source: github.com/alibaba/ServeGen (arXiv 2505.09999), whose gaps are scaled alike but whose
    counts are rounded up.
    """
    whole_number("seed", seed)
    for name, value, low in (("start", start, 0.0), ("seconds", seconds, 0.0), ("rate", rate, 0.0)):
        if value is not None and not (isfinite(value) and value >= low and (value > 0 or name == "start")):
            raise InvalidInputError(name, value, "finite, at least 0" if name == "start" else "finite, above 0")
    rows = Rows(str(path), MOONCAKE_BLOCK)
    clients: dict[int, list[_Window]] = {}
    for file in Path(path).glob("chunk-*-trace.csv"):
        number = file.name.split("-")[1]
        if number.isdecimal():
            clients[int(number)] = _client(rows, file, start, start + seconds)
    expected = sum(window.rate * window.seconds for windows in clients.values() for window in windows)
    factor = 1.0 if rate is None else rate * seconds / expected if expected > 0 else 0.0
    if expected * factor > _MOST_DRAWN:
        raise InvalidInputError("seconds", f"about {expected * factor:.3g} requests", f"at most {_MOST_DRAWN}")
    found: list[tuple[FloatArray, IntArray, IntArray]] = []
    for client, windows in sorted(clients.items()):
        rng = np.random.default_rng((seed, client))
        found += [_drawn(window, factor, rng) for window in windows]
    arrival = np.concatenate([times for times, _, _ in found] or [np.empty(0)])
    order = np.argsort(arrival, kind="stable")
    none = np.empty(0, dtype=np.int64)
    inputs, outputs = (np.concatenate([each[i] for each in found] or [none])[order] for i in (1, 2))
    times = np.maximum(0.0, arrival[order] - start * 1e3)
    return Workload.of(rows.name, times, inputs, outputs, [[]] * len(times), block_size=MOONCAKE_BLOCK)


def _client(rows: Rows, file: Path, start: float, stop: float) -> list[_Window]:
    """Return a client's windows between these seconds."""
    rows.path = str(file)
    begins: list[float] = []
    kept: list[tuple[str, float, float]] = []
    with open(file, encoding="utf-8", errors="replace", newline="") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields = [field.strip() for field in line.split(",")]
            if len(fields) != 6:
                raise rows.error(number, "line", line.strip()[:60], "start, rate, cv, pattern, shape, scale")
            pattern = fields[3]
            if pattern not in ("Gamma", "Weibull", ""):
                raise rows.error(number, "pattern", pattern[:60], "Gamma, Weibull or nothing")
            begin = _number(rows, number, "start", fields[0], begins[-1] if begins else -1.0)
            rate = _number(rows, number, "rate", fields[1], -1.0) if pattern else 0.0
            shape = _number(rows, number, "shape", fields[4], 0.0) if pattern else 1.0
            if rate < 0 or begin < 0 or rate > 1e6 or not 1e-3 <= shape <= 1e3:
                allowed = "a start and a rate of at least 0, the rate up to 1e6, a shape from 0.001 to 1000"
                raise rows.error(number, "line", line.strip()[:60], allowed)
            begins.append(begin)
            kept.append((pattern, rate, shape))
    ends = [*begins[1:], begins[-1] + (begins[-1] - begins[-2] if len(begins) > 1 else inf)] if begins else []
    lengths = _histograms(rows, file.with_name(file.name.replace("-trace.csv", "-dataset.json")))
    windows = []
    for begin, end, (pattern, rate, shape) in zip(begins, ends, kept, strict=True):
        since, until = max(begin, start), min(end, stop)
        known = [at for at in lengths if at <= begin]
        if since < until and rate > 0 and known:
            windows.append(_Window(since, until - since, rate, pattern, shape, lengths[max(known)]))
    return windows


def _number(rows: Rows, line: int, name: str, text: str, above: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = inf
    if isfinite(value) and value > above:
        return value
    raise rows.error(line, name, text[:60], f"a finite number above {above:g}")


def _histograms(rows: Rows, file: Path) -> dict[float, tuple[tuple[IntArray, FloatArray], tuple[IntArray, FloatArray]]]:
    """Return the lengths of prompts and answers, and how likely each is, by the second from which they hold."""
    rows.path = str(file)
    if not file.is_file():
        raise rows.error(1, "file", file.name, "beside the trace of the same client")
    try:
        content = msgspec.json.decode(file.read_bytes(), type=dict[str, dict[str, Any]])
    except UNREADABLE as error:
        raise rows.error(1, "file", file.name, f"a JSON object of objects ({error})") from error
    found = {}
    for at, fields in content.items():
        begin = _number(rows, 1, "start", at, -1.0)
        both = [_histogram(rows, f"{at}.{name}", fields.get(name)) for name in ("input_tokens", "output_tokens")]
        if all(len(lengths) for lengths, _ in both):
            found[begin] = (both[0], both[1])
    return found


def _histogram(rows: Rows, name: str, text: object) -> tuple[IntArray, FloatArray]:
    allowed = f"a text {{length: share, ..}} of lengths up to {MOST_TOKENS} and shares of at least 0"
    if not (isinstance(text, str) and text.strip().startswith("{") and text.strip().endswith("}")):
        raise rows.error(1, name, text if text is None else str(text)[:60], allowed)
    lengths, shares = [], []
    for item in text.strip()[1:-1].split(","):
        if not item.strip():
            continue
        length, _, share = (part.strip() for part in item.partition(":"))
        if not (length.isdecimal() and len(length) <= 10 and int(length) <= MOST_TOKENS):
            raise rows.error(1, name, item[:60], allowed)
        lengths.append(int(length))
        shares.append(_number(rows, 1, name, share, -1e-300))
    total = sum(shares)
    if lengths and not 0 < total < inf:
        raise rows.error(1, name, total, "shares that sum to a finite number above 0")
    return np.array(lengths, dtype=np.int64), np.array(shares, dtype=np.float64) / (total or 1.0)


def _drawn(window: _Window, factor: float, rng: np.random.Generator) -> tuple[FloatArray, IntArray, IntArray]:
    """Draw a window's requests: ms, and tokens of prompts and answers."""
    mean = window.rate * window.seconds * factor
    count = int(mean) + int(rng.random() < mean - int(mean))
    draw = rng.gamma if window.pattern == "Gamma" else rng.weibull
    gaps = draw(window.shape, size=count + 1)
    with np.errstate(over="ignore"):
        total = float(gaps.sum())
    if not 0 < total < inf:  # a shape so extreme that gaps are 0 or infinite
        gaps, total = np.ones(count + 1), float(count + 1)
    times = (window.begin + window.seconds * np.cumsum(gaps)[:-1] / total) * 1e3
    (prompts, of_prompts), (answers, of_answers) = window.lengths
    inputs: IntArray = np.maximum(1, rng.choice(prompts, count, p=of_prompts))
    outputs: IntArray = rng.choice(answers, count, p=of_answers)
    return times, inputs, outputs


# --- whichever it is ---------------------------------------------------------------------------------------------

#: Schema -> its reader.
SCHEMAS: Final[Mapping[str, Callable[[str | Path], Workload]]] = {
    "azure": read_azure,
    "bailian": read_bailian,
    "burstgpt": read_burstgpt,
    "mooncake": read_mooncake,
    "servegen": read_servegen,
    "weka": read_weka,
}


class _Line(msgspec.Struct):
    requests: msgspec.Raw | None = None
    chat_id: msgspec.Raw | None = None
    input_length: msgspec.Raw | None = None
    timestamp: msgspec.Raw | None = None


def schema_of(path: str | Path) -> str | None:
    """In which schema is this trace, by its content? None where nothing is recognised.

    Cost: reads a line, or 64 KiB where that is none. Errors: `InvalidInputError` for a path that is not a trace.
    """
    place = Path(path)
    if place.is_dir():
        if any(place.glob("chunk-*-trace.csv")):
            return "servegen"
        if any(place.glob("*.json")):
            return "weka"
    if not place.is_file():
        raise InvalidInputError("trace", str(path), "the path of a readable file")
    with open(place, "rb") as file:
        line = b""
        while not line.strip():
            line = file.readline()
            if not line:
                return None
        head = line + file.read(_HEAD) if len(line) < _HEAD else line
    if line.startswith(b"TIMESTAMP"):
        return "azure"
    if line.startswith(b"Timestamp") and b"Request tokens" in line:
        return "burstgpt"
    try:
        found = msgspec.json.decode(line, type=_Line)
    except UNREADABLE:  # one object over several lines, or cut short: its reader says which
        signs = (b'"requests"', b'"chat_id"', b'"input_length"')
        return next(
            (name for sign, name in zip(signs, ("weka", "bailian", "mooncake"), strict=True) if sign in head), None
        )
    if found.requests is not None:
        return "weka"
    if found.chat_id is not None:
        return "bailian"
    return "mooncake" if found.input_length is not None or found.timestamp is not None else None


def read_trace(path: str | Path, *, schema: str | None = None) -> Workload:
    """What is in this file or folder, whichever of the known `SCHEMAS` it has? By its content, or as it is said to be.

    What no schema fits is read as Mooncake's, whose reader names the line. Errors: those of the readers; `TraceError` where the
    content is of another schema than said; `InvalidInputError` for a path that is not a trace; `UnknownNameError`.
    """
    if schema is not None and schema not in SCHEMAS:
        raise UnknownNameError("schema", schema, list(SCHEMAS))
    found = schema_of(path)
    if schema is not None and found is not None and found != schema:
        raise Rows(str(path), MOONCAKE_BLOCK).error(1, "schema", found, schema)
    if schema == "servegen" and found is None:
        raise InvalidInputError("trace", str(path), "a folder of chunk-N-trace.csv and chunk-N-dataset.json")
    return SCHEMAS[schema or found or "mooncake"](path)
