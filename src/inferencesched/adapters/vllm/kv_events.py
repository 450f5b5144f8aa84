"""Which blocks does each engine hold? Its KV events, as they come over ZeroMQ.

One task an engine and rank: a SUB socket for what is new, a DEALER for what was missed. What follows from a frame is
`prefix.sequence.EventStream`'s to say; here are only the sockets.
"""

from asyncio import Task, TaskGroup
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar, final

import zmq
import zmq.asyncio

from inferencesched.errors import InvalidInputError, KVEventError
from inferencesched.prefix.kv_records import EventBatch
from inferencesched.prefix.kv_wire import decode_event_batch
from inferencesched.prefix.sequence import (
    END,
    EventStream,
    ReplayRequest,
    StreamStep,
    decode_event_frame,
    decode_replay_reply,
)

Said = TypeVar("Said")
Read = TypeVar("Read")

#: Frames that wait in a socket at most: beyond that the newest are dropped, and the sequence numbers tell.
_WATERMARK: Final = 100_000


@dataclass(frozen=True, slots=True)
class KVEventSource:
    """Where does an engine publish?

    ``endpoint`` of the PUB socket; ``replay`` of its ROUTER socket, empty without one. `bind` is for engines that connect to the
    gateway. Only frames of topics that begin with ``topic`` are asked for.
    """

    endpoint: str
    replay: str = ""
    topic: str = ""
    bind: bool = False

    def __post_init__(self) -> None:
        for name, value in (("endpoint", self.endpoint), ("replay", self.replay)):
            if (name == "endpoint" or value) and "://" not in value:
                raise InvalidInputError(name, value, "an address as tcp://HOST:PORT")


@final
class KVEventSubscriber:
    """What does one engine hold, from now on?

    Parameters
    ----------
    source: where it publishes.
    take: told of each step with its batches: `PrecisePrefixProducer.take` with the endpoint's slot and generation bound.
    on_error: told of a frame or a batch that cannot be read; its number counts as lost, and nothing is guessed.
    patience: seconds without a frame of a replay until it is given up.

    `run` goes on until it is cancelled. ::

        subscriber = KVEventSubscriber(source, lambda step: producer.take(slot, generation, step))
        task = asyncio.create_task(subscriber.run())
    """

    __slots__ = ("_context", "_group", "_on_error", "_patience", "_replays", "_take", "frames", "source", "stream")

    def __init__(
        self,
        source: KVEventSource,
        take: Callable[[StreamStep[EventBatch]], object],
        *,
        on_error: Callable[[Exception], object] | None = None,
        patience: float = 1.0,
        context: "zmq.asyncio.Context | None" = None,
    ) -> None:
        if not patience > 0:
            raise InvalidInputError("patience", patience, "seconds above 0")
        self.source = source
        self.stream: EventStream[EventBatch] = EventStream(replay=bool(source.replay))
        self.frames = 0
        self._take = take
        self._on_error = on_error
        self._patience = patience
        self._context = context
        self._group: TaskGroup | None = None
        self._replays: Task[None] | None = None

    async def run(self) -> None:
        """Take what the engine says, until cancelled; sockets are closed then. What `take` raises ends it, as an `ExceptionGroup`."""
        self._context = zmq.asyncio.Context.instance() if self._context is None else self._context
        socket = self._context.socket(zmq.SUB)
        try:
            socket.set_hwm(_WATERMARK)
            socket.subscribe(self.source.topic.encode())
            if self.source.bind:
                socket.bind(self.source.endpoint)
            else:
                socket.connect(self.source.endpoint)
            async with TaskGroup() as self._group:
                while True:
                    frame = self._told(decode_event_frame, await socket.recv_multipart())
                    batch = None if frame is None else self._told(decode_event_batch, frame.payload)
                    if frame is not None and batch is not None:
                        self.frames += 1
                        self._follow(self.stream.live(frame.sequence, batch))
        finally:
            self._group = self._replays = None
            socket.close(linger=0)

    def process_started(self, at: float) -> None:
        """Say when the engine's process started, as its metrics page tells: a restart whose first frame was missed shows there only.

        Errors: `InvalidInputError` while it does not run.
        """
        if self._group is None:
            raise InvalidInputError("at", at, "nothing before `run`, or after it")
        self._follow(self.stream.process_started(at))

    # -- inside --------------------------------------------------------------------------------------

    def _told(self, decode: Callable[[Said], Read], said: Said) -> Read | None:
        """Return what was said; None for what cannot be read: its number stays missing."""
        try:
            return decode(said)
        except KVEventError as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            return None

    def _follow(self, step: StreamStep[EventBatch]) -> None:
        assert self._group is not None  # it runs
        if step.forget and self._replays is not None:  # what it still brings is of another process, or too late
            self._replays.cancel()
            self._replays = None
        self._take(step)
        if step.request is not None and (self._replays is None or self._replays.done()):
            self._replays = self._group.create_task(self._replay(step.request), name=f"replay {self.source.replay}")

    async def _replay(self, request: ReplayRequest | None) -> None:
        assert self._context is not None  # `run` has one
        while request is not None:
            socket = self._context.socket(zmq.DEALER)  # a new one: an old one may hold frames of before
            try:
                socket.connect(self.source.replay)
                await socket.send_multipart(request.parts())
                step = await self._replayed(socket)
                self._take(step)
                request = step.request
            finally:
                socket.close(linger=0)

    async def _replayed(self, socket: "zmq.asyncio.Socket") -> StreamStep[EventBatch]:
        """Take a replay's frames; return what follows from its end, or from its silence."""
        while await socket.poll(round(self._patience * 1_000)):
            frame = self._told(decode_replay_reply, await socket.recv_multipart())
            if frame is None:
                continue
            if frame.sequence == END:
                return self.stream.replay_ended()
            batch = self._told(decode_event_batch, frame.payload)
            if batch is not None:
                self.frames += 1
                self._take(self.stream.replayed(frame.sequence, batch))
        return self.stream.give_up()
