"""Did every frame of a stream of events arrive, and in order?

An engine numbers its frames, ``[topic, sequence, payload]``, from 0; sequence is 8 bytes, big-endian. A subscriber may
come late, lose frames, or outlive the engine. What was lost can be asked for at a second socket, the replay socket, of
what the engine still has; it answers with frames and an end, sequence -1, and may lose frames itself.

`EventStream` is the state machine of one such stream, without a socket and without a clock. `expected` is the next
frame to apply; frames beyond it are *held* until what is before them has come or is known to be lost::

    what comes                             then                                                         kind
    live, as expected                      ready, with all that is held right behind it                 next
    live, beyond                           held; the first of them asks for a replay from `expected`    gap, then held
    live, before `expected`                dropped: it was applied                                      duplicate
    live, 0 after a later one              the engine began again: forget, then apply                   restart
    replayed, as expected                  ready, with all that is held right behind it                 next
    replayed, beyond or before             held, or dropped                                             held, duplicate
    replayed, nothing was asked for        dropped                                                      duplicate
    replay ends, nothing missing           all is well                                                  end
    replay ends, brought some, not all     asks again from `expected`                                   gap
    replay ends, brought none twice        they are lost: forget, apply what is held                    lost
    more held than allowed, or `give_up`   the same                                                     lost
    start time of the process as before    nothing                                                      same
    another start time                     forget, ask for a replay from 0                              restart

As vLLM 0.32 behaves (vllm/distributed/kv_events.py, `ZmqEventPublisher`), SGLang likewise.
"""

from collections.abc import Sequence
from typing import Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, final

from inferencesched.errors import InvalidInputError, KVEventError, finite_time, whole_number

#: The sequence number that ends a replay.
END: Final = -1
_MOST: Final = 1 << 63

Payload = TypeVar("Payload")
StepKind: TypeAlias = Literal["next", "gap", "held", "duplicate", "restart", "end", "lost", "same"]


class WireFrame(NamedTuple):
    """What is in the parts of one message? A replay's end has `sequence` END and no payload."""

    topic: str
    sequence: int
    payload: bytes


class Topic(NamedTuple):
    """Whose events are these?"""

    endpoint: str
    model: str


class ReplayRequest(NamedTuple):
    r"""Which frames are missing? All from `start` on, as the replay socket answers.

    >>> ReplayRequest(2).parts()
    (b'', b'\x00\x00\x00\x00\x00\x00\x00\x02')
    """

    start: int

    def parts(self) -> tuple[bytes, bytes]:
        """What does a DEALER socket send? A REQ socket would get one frame only."""
        return b"", self.start.to_bytes(8, "big")


class StreamStep(NamedTuple, Generic[Payload]):
    """What follows from a frame?

    If `forget`, what was known of the endpoint is not true any more. Then `ready`, (sequence, payload) in order, are to
    be applied. `request`, if any, is to be sent to the replay socket. `lost` frames will not come any more.
    """

    kind: StepKind
    ready: tuple[tuple[int, Payload], ...] = ()
    request: ReplayRequest | None = None
    forget: bool = False
    lost: int = 0


@final
class EventStream(Generic[Payload]):
    """Which frames may be applied now? The stream of one endpoint, and of one rank where an engine has several.

    `replay` says whether there is a replay socket: without one a gap is a loss at once. Not more than `hold` frames are
    held; if there would be, the missing ones count as lost. Payloads are not looked at.

    Cost: a dict look-up a frame. Not safe from several threads at once.

    >>> stream = EventStream()
    >>> stream.live(0, "a")
    StreamStep(kind='next', ready=((0, 'a'),), request=None, forget=False, lost=0)
    >>> stream.live(2, "c")
    StreamStep(kind='gap', ready=(), request=ReplayRequest(start=1), forget=False, lost=0)
    >>> stream.replayed(1, "b").ready
    ((1, 'b'), (2, 'c'))
    >>> stream.replay_ended().kind
    'end'
    """

    __slots__ = (
        "_behind",
        "_empty",
        "_held",
        "_hold",
        "_last_live",
        "_process",
        "_replay",
        "_replaying",
        "_told",
        "expected",
    )

    def __init__(self, *, replay: bool = True, hold: int = 16_384) -> None:
        self.expected = 0
        self._replay = replay
        self._hold = whole_number("hold", hold, 1)
        self._held: dict[int, Payload] = {}
        self._replaying = False
        self._empty = 0  # replays in a row that brought nothing
        self._process: float | None = None
        self._told = False  # frame 0 has told of a restart that the process's start time has not yet
        self._last_live = -1
        self._behind = 0

    @property
    def replaying(self) -> bool:
        """Is the answer to a request awaited? If it never comes, `give_up`."""
        return self._replaying

    @property
    def held(self) -> int:
        """How many frames wait for what is before them?"""
        return len(self._held)

    @property
    def behind(self) -> int:
        """How many live frames since the last restart had a number that was applied before?

        Many of them, and nothing else: the engine started again and its frame 0 was missed. See `process_started`.
        """
        return self._behind

    def live(self, sequence: int, payload: Payload) -> StreamStep[Payload]:
        """What follows from a frame that the engine published?"""
        restart = _sequence(sequence) == 0 and self._last_live > 0
        if restart:
            self._begin()
            self._told = True
        self._last_live = max(self._last_live, sequence)
        if sequence == self.expected:
            kind: StepKind = "restart" if restart else "next"
            return StreamStep(kind, self._ready(payload), forget=restart)
        if sequence < self.expected:
            self._behind += 1
            return StreamStep("duplicate")
        self._held.setdefault(sequence, payload)
        if not self._replay or len(self._held) > self._hold:
            return self.give_up()
        return StreamStep("held") if self._replaying else self._ask()

    def replayed(self, sequence: int, payload: Payload) -> StreamStep[Payload]:
        """What follows from a frame that the replay socket sent? Its end, sequence END, is `replay_ended`.

        What the socket still holds after a restart is of the old process: throw it away before the next request.
        """
        if sequence == END:
            return self.replay_ended()
        if _sequence(sequence) < self.expected or not self._replaying:
            return StreamStep("duplicate")
        if sequence == self.expected:
            self._empty = 0
            return StreamStep("next", self._ready(payload))
        self._held.setdefault(sequence, payload)
        return self.give_up() if len(self._held) > self._hold else StreamStep("held")

    def replay_ended(self) -> StreamStep[Payload]:
        """Was that all? Where frames are still missing, ask again; where two replays in a row brought none, give up."""
        if not self._replaying or not self._held:
            self._replaying, self._empty = False, 0
            return StreamStep("end")
        self._empty += 1
        return self.give_up() if self._empty > 1 else self._ask()

    def give_up(self) -> StreamStep[Payload]:
        """What now, as missing frames will not come? Forget, and go on with the first frame held, if any."""
        self._replaying, self._empty = False, 0
        if not self._held:
            return StreamStep("end")
        first = min(self._held)
        lost, self.expected = first - self.expected, first
        step = StreamStep("lost", self._ready(self._held.pop(first)), forget=True, lost=lost)
        return step._replace(request=self._ask().request) if self._held else step

    def process_started(self, at: float) -> StreamStep[Payload]:
        """Is it still the same process? `at` is its start time in seconds, as ``process_start_time_seconds`` tells.

        A new time is a restart, unless frame 0 has told of it already. A restarted engine whose frame 0 was missed
        looks as if it sent duplicates: only this call tells them apart.
        """
        known, self._process = self._process, finite_time(at)
        told, self._told = self._told and not self._behind, False
        if known is None or known == at or told:
            return StreamStep("same")
        self._begin()
        step: StreamStep[Payload] = self._ask() if self._replay else StreamStep("restart")
        return step._replace(kind="restart", forget=True)

    def check(self) -> None:
        """Does the state hang together? Raises AssertionError where not; for tests."""
        assert self.expected >= 0
        assert len(self._held) <= self._hold
        assert all(sequence > self.expected for sequence in self._held), "what is held lies beyond"
        assert self._replay or not (self._held or self._replaying), "nothing waits for a replay that cannot be"
        assert self._replaying or not self._held, "what is held waits for a replay"

    def _ready(self, payload: Payload) -> tuple[tuple[int, Payload], ...]:
        """Return this frame, the expected one, and all that is held right behind it."""
        ready = [(self.expected, payload)]
        self.expected += 1
        while self.expected in self._held:
            ready.append((self.expected, self._held.pop(self.expected)))
            self.expected += 1
        return tuple(ready)

    def _ask(self) -> StreamStep[Payload]:
        self._replaying = True
        return StreamStep("gap", request=ReplayRequest(self.expected))

    def _begin(self) -> None:
        self.expected, self._replaying, self._empty = 0, False, 0
        self._last_live, self._behind = -1, 0
        self._held.clear()


def decode_event_frame(parts: Sequence[bytes]) -> WireFrame:
    r"""What did the engine publish? `parts` are topic, sequence and payload.

    Errors: `KVEventError` for another number of parts, and for a sequence that is not 8 bytes or below 0.

    >>> decode_event_frame([b"kv@10.0.0.7:8000@tiny", bytes(7) + b"\x1b", b"..."])
    WireFrame(topic='kv@10.0.0.7:8000@tiny', sequence=27, payload=b'...')
    """
    if len(parts) != 3:
        raise KVEventError("frame", f"{len(parts)} parts", "topic, sequence and payload")
    sequence = _number(parts[1])
    if sequence < 0:
        raise KVEventError("sequence", sequence, "an integer of at least 0")
    return WireFrame(_text(parts[0]), sequence, bytes(parts[2]))


def decode_replay_reply(parts: Sequence[bytes]) -> WireFrame:
    r"""What did the replay socket answer? `parts` are an empty one, the topic, sequence and payload.

    SGLang and older vLLM leave out the topic. The end has `sequence` END.

    >>> decode_replay_reply([b"", b"", b"\xff" * 8, b""]).sequence
    -1
    """
    if len(parts) not in (3, 4) or parts[0]:
        raise KVEventError("reply", f"{len(parts)} parts", "an empty part, topic (or none), sequence and payload")
    sequence = _number(parts[-2])
    if sequence < END:
        raise KVEventError("sequence", sequence, "an integer of at least 0, or -1 at the end")
    return WireFrame(_text(parts[1]) if len(parts) == 4 else "", sequence, bytes(parts[-1]))


def parse_topic(topic: str) -> Topic:
    """Whose events are these, and of which model? Topics are ``kv@endpoint@model``; others name an endpoint only.

    >>> parse_topic("kv@10.0.0.7:8000@meta/llama")
    Topic(endpoint='10.0.0.7:8000', model='meta/llama')
    >>> parse_topic("fallback")
    Topic(endpoint='fallback', model='')
    """
    words = topic.split("@", 2)
    return Topic(words[1], words[2]) if len(words) == 3 else Topic(topic, "")


def _number(part: bytes) -> int:
    if len(part) != 8:
        raise KVEventError("sequence", f"{len(part)} bytes", "8 bytes, big-endian")
    return int.from_bytes(part, "big", signed=True)


def _text(part: bytes) -> str:
    try:
        return bytes(part).decode()
    except UnicodeDecodeError as error:
        raise KVEventError("topic", bytes(part[:64]), "UTF-8") from error


def _sequence(value: int) -> int:
    if not 0 <= value < _MOST:
        raise InvalidInputError("sequence", value, "an integer in [0, 2^63)")
    return value
