"""How do several gateways hear of each other? Their deltas, over a Redis stream.

::

    replica = Replica("gateway-a", life=int(time.time()))
    peers = replica.watch("llama", pool, prefix)                  # a producer of the scheduler
    shared = StreamReplicator(replica, redis.asyncio.Redis(...), clock=shell.now)
    await shared.run()                                            # in the background, until cancelled

Nobody waits for Redis: a decision is made of what is known here. Where Redis cannot be reached, each gateway decides alone, `state` says so,
and what was said meanwhile is kept, within bounds; when it is back, the next deltas heal what was missed. A gateway that is new reads what the
stream still holds, and so knows where the prompts of the last minutes went.
"""

from asyncio import TaskGroup, get_running_loop, sleep, timeout
from collections.abc import Callable
from typing import Any, Final, Literal, final

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from inferencesched.errors import DeltaError, InvalidInputError, duration, whole_number
from inferencesched.replication import Merged, Replica

State = Literal["starting", "connected", "alone"]
_FIELD: Final = b"d"
_START: Final = "0-0"
_BATCH: Final = 256


@final
class StreamReplicator:
    """Who carries a replica's deltas? One stream, that all gateways write and read.

    Parameters
    ----------
    replica: what is said and heard.
    client: ``redis.asyncio``'s, not decoding responses; closed by whoever made it.
    clock: the clock of the director (`AsyncDirector.now`).
    stream: its name in Redis; gateways before the same servers share it, others do not.
    interval: seconds between two deltas: how stale the others' knowledge is, beside the network.
    patience: seconds for one command; then Redis counts as gone.
    longest: seconds between two tries while it is.
    keep: messages that the stream keeps (about): the memory in Redis, and what a new gateway hears of the past.
    on_state: told when `state` changes, with a word of why.

    `state` is ``connected`` or ``alone``; ``starting`` before the first answer. Errors: `InvalidInputError`.
    """

    __slots__ = (
        "_client",
        "_clock",
        "_interval",
        "_keep",
        "_last",
        "_longest",
        "_on_state",
        "_patience",
        "_reading",
        "_running",
        "_stream",
        "_unsent",
        "_writing",
        "merged",
        "replica",
        "unreadable",
    )

    def __init__(
        self,
        replica: Replica,
        client: Redis,
        *,
        clock: Callable[[], float],
        stream: str = "inferencesched",
        interval: float = 0.02,
        patience: float = 1.0,
        longest: float = 1.0,
        keep: int = 20_000,
        on_state: Callable[[State, str], object] | None = None,
    ) -> None:
        for name, value in (("interval", interval), ("patience", patience), ("longest", longest)):
            duration(name, value)
        if not stream:
            raise InvalidInputError("stream", stream, "a name that is not empty")
        self.replica = replica
        #: How many deltas of others were merged, and how many messages were none.
        self.merged = self.unreadable = 0
        self._client: Any = client
        self._clock = clock
        self._stream = stream
        self._interval = interval
        self._patience = patience
        self._longest = longest
        self._keep = whole_number("keep", keep, 1)
        self._on_state = on_state
        self._last = _START
        self._unsent: bytes | None = None
        self._running = False
        self._reading: bool | None = None
        self._writing: bool | None = None

    @property
    def state(self) -> State:
        """Do the gateways hear each other?"""
        if self._reading and self._writing:
            return "connected"
        return "alone" if False in (self._reading, self._writing) else "starting"

    async def run(self) -> None:
        """Say and hear, until cancelled. What Redis does wrong is in `state`; nothing else is swallowed."""
        self._running = True
        async with TaskGroup() as group:
            group.create_task(self._each(self._publish, "_writing"), name="say deltas")
            group.create_task(self._each(self._follow, "_reading"), name="hear deltas")
            try:
                await get_running_loop().create_future()  # until cancelled, or until one of the two raises
            finally:
                # Being cancelled may be lost on the way: redis-py sends with `asyncio.wait_for`, which before Python 3.12
                # forgets it when the answer comes in the same turn of the loop.
                self._running = False

    # -- inside --------------------------------------------------------------------------------------

    async def _each(self, step: Callable[[], Any], way: str) -> None:
        """Go one step after another; wait longer and longer while Redis cannot be reached."""
        pause = self._interval
        while self._running:
            try:
                await step()
            except (RedisError, OSError) as error:  # TimeoutError is an OSError
                self._turn(way, False, type(error).__name__)
                self.replica.expire(now=self._clock())
                await sleep(pause)
                pause = min(self._longest, 2 * pause)
            else:
                self._turn(way, True, "")
                pause = self._interval

    def _turn(self, way: str, well: bool, word: str) -> None:
        before = self.state
        setattr(self, way, well)
        after = self.state
        if after != before and self._on_state is not None:
            self._on_state(after, word)

    async def _publish(self) -> None:
        """Say what the others do not know; keep it until Redis has it."""
        if self._unsent is None:
            self._unsent = self.replica.delta(now=self._clock())
        if self._unsent is not None:
            async with timeout(self._patience):
                await self._client.xadd(self._stream, {_FIELD: self._unsent}, maxlen=self._keep, approximate=True)
            self._unsent = None
        await sleep(self._interval)

    async def _follow(self) -> None:
        """Hear what is new; after a Redis that has lost its stream, from its start."""
        if not self._reading:
            await self._find_start()
        block = max(1, int(self._patience * 500))
        async with timeout(2 * self._patience):
            answer = await self._client.xread({self._stream: self._last}, count=_BATCH, block=block)
        now = self._clock()
        for _, messages in answer or ():
            for name, fields in messages:
                self._last = name.decode() if isinstance(name, bytes) else name
                self._hear(fields.get(_FIELD, b""), now)
        self.replica.expire(now=now)

    def _hear(self, data: bytes, now: float) -> Merged | None:
        try:
            merged = self.replica.merge(data, now=now)
        except DeltaError:
            self.unreadable += 1
            return None
        if merged.origin:
            self.merged += 1
        return merged

    async def _find_start(self) -> None:
        """Begin again where the stream is younger than what was read last: Redis came back without it."""
        async with timeout(self._patience):
            try:
                info = await self._client.xinfo_stream(self._stream)
            except ResponseError:  # there is no such stream
                self._last = _START
                return
        newest = info["last-generated-id"]
        newest = newest.decode() if isinstance(newest, bytes) else newest
        if _order(newest) < _order(self._last):
            self._last = _START


def _order(name: str) -> tuple[int, int]:
    first, _, second = name.partition("-")
    return int(first), int(second or 0)
