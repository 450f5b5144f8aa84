"""What was sent to each server since it was heard of last?

The books of a `SaturationGate`: a `ServerBook` for each server, which knows its last reading and what has come and gone since, and a
`StageBook` for each stage, which knows how full its servers are together. Whatever changes is carried through at once: O(1) for a
mean, O(log E) for who is least loaded.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf, isfinite, nan
from typing import final

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    KV_CACHE_USAGE,
    RUNNING_REQUESTS,
    WAITING_QUEUE_SIZE,
    Endpoints,
)
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.aggregates import Aggregate
from inferencesched.flowcontrol.saturation import ProjectingDetector, Reading
from inferencesched.signals import MAX_RUNNING


@dataclass(frozen=True, slots=True)
class InFlightCredit:
    """How is what was sent since the last word counted?

    `slots` is how many requests a server runs at once, where its ``MAX_RUNNING`` (static) does not say. None learns it: the most that it
    was seen running, once it was seen with a queue, and twice that until then, so that it takes a few observations to find out how
    much an idle server can do, and the first queues may be longer than meant. `lag` is how many seconds it takes until a server's
    numbers show a request that was sent, or one that has ended: what is closer to an observation than that counts as load.
    """

    slots: float | None = None
    lag: float = 0.0

    def __post_init__(self) -> None:
        if self.slots is not None and not 0 < self.slots < inf:
            raise InvalidInputError("slots", self.slots, "requests above 0, or None")
        if not (isfinite(self.lag) and self.lag >= 0):
            raise InvalidInputError("lag", self.lag, "seconds of at least 0")

    def readings(self, endpoints: Endpoints) -> list[Reading]:
        """Return what the columns say of each server."""
        slots = endpoints[MAX_RUNNING] if MAX_RUNNING.name in endpoints.layout.rows else np.full(len(endpoints), nan)
        if self.slots is not None:
            slots = np.where(np.isnan(slots), self.slots, slots)
        columns = (
            endpoints[WAITING_QUEUE_SIZE],
            endpoints[RUNNING_REQUESTS],
            endpoints[KV_CACHE_USAGE],
            endpoints[INFLIGHT_REQUESTS],
            endpoints[INFLIGHT_TOKENS],
            slots,
            endpoints[KV_BLOCKS] * endpoints[KV_BLOCK_SIZE],
        )
        return [Reading(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@final
class ServerBook:
    """How full is one server, by its last word and what has come and gone since?

    ``load`` is by the detector's formula; ``counts`` is what counts of it, which is less where the last word is old. ``requests`` and
    ``tokens`` are what came since, less what went.
    """

    __slots__ = (
        "changes",
        "counts",
        "done",
        "faded",
        "fixed",
        "load",
        "most_running",
        "place",
        "present_then",
        "queued",
        "reading",
        "requests",
        "seen_at",
        "sent",
        "stages",
        "tokens",
        "told_at",
    )

    def __init__(self) -> None:
        self.place = -1
        self.stages: tuple[StageBook, ...] = ()
        self.reading = Reading()
        self.present_then = 0.0
        self.most_running = nan
        self.queued = False  # was it ever seen with a queue?
        self.told_at = -inf  # when its reading was true; inf is always
        self.seen_at = -inf  # up to when what happened shows in its reading
        self.sent: dict[int, tuple[float, int]] = {}  # by the ticket's number: when, and its tokens
        self.done: list[tuple[float, int]] = []
        self.requests = 0
        self.tokens = 0
        self.load = nan
        self.faded = 1.0
        self.fixed = nan
        self.counts = nan
        self.changes = 0

    @property
    def present(self) -> float:
        """How many requests are there now, as far as is known?"""
        return self.present_then + self.requests

    def read(self, reading: Reading, told_at: float, now: float, lag: float) -> None:
        """Take in what an observation says; what it shows already does not count any more."""
        running = reading.running
        if not running <= self.most_running:
            self.most_running = running if running == running else self.most_running
        self.queued |= reading.waiting > 0
        if reading.slots != reading.slots:
            reading = reading._replace(slots=self.most_running if self.queued else 2 * self.most_running)
        self.reading = reading
        self.present_then = reading.present
        local, self.told_at = told_at == inf, told_at
        if local or told_at > self.seen_at:
            self.seen_at = now if local else told_at
            lag = 0.0 if local else lag
            shown = []
            for number, (at, _) in self.sent.items():
                if at + lag > self.seen_at:
                    break
                shown.append(number)
            for number in shown:
                del self.sent[number]
            self.done = [each for each in self.done if each[0] - lag > self.seen_at]
            self.requests = len(self.sent) - len(self.done)
            self.tokens = sum(tokens for _, tokens in self.sent.values()) - sum(tokens for _, tokens in self.done)

    def judge(self, toward: float) -> None:
        """Find out anew what counts of its load."""
        if self.fixed == self.fixed:
            self.counts = self.fixed
        elif self.faded == 1.0:
            self.counts = self.load
        else:
            self.counts = toward + (self.load - toward) * self.faded


@final
class StageBook:
    """How full are the servers of one stage together, and who of them is least loaded?"""

    __slots__ = (
        "_aggregate",
        "_counted",
        "_heap",
        "_linear",
        "_mass",
        "_most",
        "_servers",
        "_stale",
        "_sum",
        "_value",
        "_weights",
        "among",
        "counted",
        "weights",
    )

    def __init__(self, among: BoolArray, aggregate: Aggregate, weights: FloatArray, servers: list[ServerBook]) -> None:
        self.among = among  # who is of this stage
        self.counted: BoolArray = among  # of whom enough is known
        self.weights = weights
        self._counted: list[bool] = []  # the same as plain lists, for one at a time
        self._weights: list[float] = weights.tolist()
        self._servers = servers
        self._aggregate = aggregate
        self._linear = aggregate.linear
        self._sum = 0.0
        self._mass = 0.0
        self._value = nan
        self._stale = True
        self._heap: list[tuple[float, float, int, int]] = []
        self._most = 4 * len(weights) + 64

    def settle(self, counted: BoolArray, counts: FloatArray) -> None:
        """Start anew with these servers, of those that are of this stage."""
        self.counted = counted & self.among
        self._counted = self.counted.tolist()
        if self._linear:
            self._sum = float((counts[self.counted] * self.weights[self.counted]).sum())
            self._mass = float(self.weights[self.counted].sum())
        self._stale = True
        self._fill()

    def changed(self, server: ServerBook, change: float) -> None:
        """Note that a server counts so much more now."""
        place = server.place
        if self._counted[place]:
            if self._linear:
                self._sum += self._weights[place] * change
            self._stale = True
            heappush(self._heap, (server.counts, server.present_then + server.requests, place, server.changes))
            if len(self._heap) > self._most:
                self._fill()

    def saturation(self, counts: FloatArray) -> float:
        """Return how full they are together; NaN where nothing is known of any."""
        if self._stale:
            self._stale = False
            if self._linear:
                # rounded, since a long sum of fifths is not quite what it should be, and 1.0 is a limit
                self._value = round(self._sum / self._mass, 12) if self._mass else nan
            else:
                self._value = self.of(self.counted, counts)
        return self._value

    def of(self, servers: BoolArray, counts: FloatArray) -> float:
        """Return how full those are together that count, of these servers; NaN for none."""
        found = servers & self.counted
        return self._aggregate.of(counts[found], self.weights[found]) if found.any() else nan

    def least(self) -> ServerBook | None:
        """Return who is least loaded of those of whom enough is known; None where there is nobody."""
        heap, servers = self._heap, self._servers
        while heap:
            _, _, place, changes = heap[0]
            if servers[place].changes == changes:
                return servers[place]
            heappop(heap)
        return None

    def _fill(self) -> None:
        servers = self._servers
        places = np.flatnonzero(self.counted).tolist()
        self._heap = [(servers[i].counts, servers[i].present, i, servers[i].changes) for i in places]
        heapify(self._heap)


@final
class PoolBook:
    """How full is each server, and each stage, as of the last observation and what has come and gone since?"""

    __slots__ = (
        "_detector",
        "_fading",
        "_judged_at",
        "_known",
        "_told_until",
        "_toward",
        "counts",
        "servers",
        "stages",
    )

    def __init__(self, detector: ProjectingDetector) -> None:
        self._detector = detector
        self._known: dict[int, ServerBook] = {}  # by generation
        self._told_until = inf  # until when nobody's last word becomes too old
        self._fading = False
        self._judged_at = nan
        self._toward = detector.stale.toward
        self.servers: list[ServerBook] = []
        self.stages: tuple[StageBook, ...] = ()
        self.counts: FloatArray = np.zeros(0)

    def observe(
        self, endpoints: Endpoints, stages: tuple[BoolArray, ...], credit: InFlightCredit, now: float
    ) -> dict[str, ServerBook]:
        """Take in a snapshot; return the servers by name. Cost: linear in the endpoints."""
        detector = self._detector
        weights = detector.aggregate.weights(endpoints)
        before, self._known, self.servers = self._known, {}, []
        self.stages = tuple(StageBook(among, detector.aggregate, weights, self.servers) for among in stages)
        loads, told = detector.loads(endpoints).tolist(), detector.told_at(endpoints).tolist()
        generations = endpoints.generations.tolist()
        member = [among.tolist() for among in stages]
        for place, reading in enumerate(credit.readings(endpoints)):
            server = before.pop(generations[place], None) or ServerBook()
            server.place = place
            server.stages = tuple(stage for stage, of in zip(self.stages, member, strict=True) if of[place])
            server.read(reading, told[place], now, credit.lag)
            plain = not server.requests and not server.tokens
            server.load = loads[place] if plain else self._projected(server)
            self._known[generations[place]] = server
            self.servers.append(server)
        for gone in before.values():
            gone.place, gone.stages = -1, ()
        self._judge(now)
        return dict(zip(endpoints.names, self.servers, strict=True))

    def saturation(self, now: float) -> float:
        """Return how full the fullest stage is; NaN where nothing is known of any.

        A stage that somebody does, and of which nothing is known, is full: what goes through it must not be let go for the others.
        """
        self.turn(now)
        fullest = nan
        for stage in self.stages:
            value = stage.saturation(self.counts)
            if value != value and stage.among.any():
                value = 1.0
            if not value <= fullest and value == value:
                fullest = value
        return fullest

    def turn(self, now: float) -> None:
        """Let words grow old."""
        if now > self._told_until or (self._fading and now != self._judged_at):
            self._judge(now)

    def send(self, server: ServerBook, number: int, tokens: int, now: float) -> None:
        """Count a request at a server; one that is counted there already is from now on."""
        known = server.sent.pop(number, None)
        server.sent[number] = (now, tokens)
        if known is None:
            self._count(server, 1, tokens)

    def unsend(self, server: ServerBook, number: int) -> None:
        """Take a request back that went somewhere else."""
        known = server.sent.pop(number, None)
        if known is not None:
            self._count(server, -1, -known[1])

    def end(self, server: ServerBook, number: int, tokens: int, lag: float, now: float) -> None:
        """Count a request as gone; nothing, where its server's last word may show that already."""
        if number in server.sent:
            self.unsend(server, number)
        elif server.place >= 0 and now - lag >= server.seen_at:
            server.done.append((now, tokens))
            self._count(server, -1, -tokens)

    def _count(self, server: ServerBook, requests: int, tokens: int) -> None:
        server.requests += requests
        server.tokens += tokens
        place = server.place
        if place < 0:
            return
        before = server.counts
        server.load = self._detector.projected(server.reading, server.requests, server.tokens)
        server.judge(self._toward)
        server.changes += 1
        self.counts[place] = counts = server.counts
        for stage in server.stages:
            stage.changed(server, counts - before)

    def _projected(self, server: ServerBook) -> float:
        return self._detector.projected(server.reading, server.requests, server.tokens)

    def _judge(self, now: float) -> None:
        """Find out anew what each server's last word is worth."""
        stale = self._detector.stale
        fresh: BoolArray = np.ones(len(self.servers), dtype=np.bool_)
        self._told_until, self._judged_at = inf, now
        for server in self.servers:
            known = server.load == server.load
            if now - server.told_at <= stale.after:
                self._told_until = min(self._told_until, server.told_at + stale.after)
                server.faded, server.fixed = 1.0, nan
            else:
                fresh[server.place] = False
                server.faded, server.fixed = stale.fading(now - server.told_at), nan
            if stale.assume == "saturated" and not (known and fresh[server.place]):
                server.faded, server.fixed = 1.0, 1.0
            server.judge(stale.toward)
            server.changes += 1
        self.counts = np.array([server.counts for server in self.servers])
        known_now = ~np.isnan(self.counts)
        self._fading = stale.assume != "saturated" and not fresh.all()
        for stage in self.stages:
            counted = known_now & stage.among
            if stale.assume == "ignore" and (counted & fresh).any():
                counted &= fresh
            stage.settle(counted, self.counts)
