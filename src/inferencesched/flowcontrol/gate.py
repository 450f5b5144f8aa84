"""May anything go, as far as is known now?

Servers are observed every now and then; requests are let go a thousand times in between. A gate that goes by the last observation
alone lets go, until the next one, whatever there is. So a `SaturationGate` keeps books: what it let go since counts as if it
had been observed, and what ends makes room at once.
"""

from typing import Final

import numpy as np

from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.credit import InFlightCredit, PoolBook, ServerBook
from inferencesched.flowcontrol.flows import Ticket
from inferencesched.flowcontrol.saturation import (
    Hysteresis,
    ProjectingDetector,
    SaturationDetector,
    UtilizationDetector,
    saturation_by_stage,
)
from inferencesched.flowcontrol.stages import Reach, RequestReach, Stages
from inferencesched.request import InferenceRequest

_PLAIN: Final = InFlightCredit()


class ObservedGate:
    """What did the servers say last? The gate of llm-d: nothing that was sent since counts.

    For a detector of one's own that says one number for all, and to compare with. Nothing observed yet is 1.0. With `stages` the
    fullest stage counts. Cost: one look of the detector's at the pool for each time that is asked about.
    """

    __slots__ = ("_at", "_detector", "_endpoints", "_level", "_stages")

    def __init__(self, detector: SaturationDetector, *, stages: Stages | None = None) -> None:
        self._detector = detector
        self._stages = stages
        self._endpoints: Endpoints | None = None
        self._at: float | None = None
        self._level = 1.0

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Remember the snapshot."""
        self._endpoints, self._at = endpoints, None

    def level(self, now: float) -> float:
        """Return what the detector says of the last snapshot, as old as it is now."""
        if self._endpoints is not None and now != self._at:
            self._at = now
            if self._stages is None:
                self._level = self._detector.saturation(self._endpoints, now)
            else:
                self._level = saturation_by_stage(self._detector, self._endpoints, now, self._stages)
        return self._level

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Note nothing."""

    def finished(self, ticket: Ticket, now: float) -> None:
        """Note nothing."""


class SaturationGate:
    """How full is the pool, by the last observation and by what was sent and came back since?

    Parameters
    ----------
    detector: how full a server is, and would be with more to do; the utilization detector unless given.
    credit: how what was sent since counts; None for not at all, as in llm-d.
    stages: how the pool divides into stages, of which the fullest counts; None for not at all.
    hysteresis: from when on it is shut, and until when.
    unknown: the level where nothing is known: nothing observed yet, no servers, or none that ever said anything. Ceilings up to 1 are
        shut then; who has ceilings above 1 wants more here.

    A request that was dispatched counts at the least loaded server of each stage, until it is told where it went
    (`FlowController.dispatched`); from then on it counts there. It counts until an observation of that server is younger, or until it
    has ended. One that ended after the observation that showed it makes room. So between observations the level rises and
    falls with every request, and ceilings below 1 hold as well as 1 does. What happened at the time of an observation is before or
    after it as it was told.

    Reads what its detector reads, and ``RUNNING_REQUESTS``, ``MAX_RUNNING``, ``KV_BLOCKS``, ``KV_BLOCK_SIZE`` where they are known. Source of the
    problem: llm-d-router, issue 2066. Cost: `level` under 1 us, a request some
    10 us from `dispatched` to `finished` at any number of servers (a mean; other aggregates look at all servers each time),
    `observe` some 3 us a server.

    >>> from inferencesched.endpoints import KV_CACHE_USAGE, RUNNING_REQUESTS, WAITING_QUEUE_SIZE
    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> from inferencesched.pool import InferencePool
    >>> pool = InferencePool()
    >>> pool.join("a")
    >>> pool.observe("a", {WAITING_QUEUE_SIZE: 0, RUNNING_REQUESTS: 30, KV_CACHE_USAGE: 0.1}, now=0.0)
    >>> controller = FlowController(gate=SaturationGate(credit=InFlightCredit(slots=32)))
    >>> tickets = [controller.submit(QueueItem(request_id=f"r-{i}"), now=0.0) for i in range(100)]
    >>> controller.step(now=0.0)
    []
    >>> controller.observe(pool.snapshot(), now=0.0)
    >>> len(controller.step(now=0.0))  # two free slots, and five may wait
    7
    >>> controller.completed(tickets[0], now=0.1)
    >>> len(controller.step(now=0.1))
    1
    """

    def __init__(
        self,
        detector: ProjectingDetector | None = None,
        *,
        credit: InFlightCredit | None = _PLAIN,
        stages: Stages | None = None,
        hysteresis: Hysteresis | None = None,
        unknown: float = 1.0,
    ) -> None:
        if not unknown >= 0:
            raise InvalidInputError("unknown", unknown, "a number of at least 0")
        self._detector: ProjectingDetector = UtilizationDetector() if detector is None else detector
        self._credit = credit
        self._stages = stages
        self._hysteresis = hysteresis
        self._unknown = unknown
        self._shut = False
        self._books = PoolBook(self._detector)
        self._named: dict[str, ServerBook] = {}
        self._counted: dict[int, list[ServerBook]] = {}  # where each request in flight counts, by its ticket's number
        self._endpoints: Endpoints | None = None

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Learn what the servers say. A server that was not heard of since keeps what was sent to it."""
        self._endpoints = endpoints
        stages = (np.ones(len(endpoints), dtype=np.bool_),) if self._stages is None else self._stages.of(endpoints)
        self._named = self._books.observe(endpoints, stages, _PLAIN if self._credit is None else self._credit, now)

    def saturation(self, now: float) -> float:
        """Return how full the pool is, before any hysteresis."""
        level = self._books.saturation(now)
        return level if level == level else self._unknown

    def level(self, now: float) -> float:
        """Return the saturation; no less than where it shuts, while it is shut."""
        return self._held(self.saturation(now))

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Count a request at the least loaded server of each stage."""
        if self._credit is None:
            return
        books = self._books
        chosen: list[ServerBook] = []
        for stage in books.stages:
            server = stage.least()
            if server is not None and server not in chosen:
                chosen.append(server)
        self._counted[ticket.number] = chosen
        for server in chosen:
            books.send(server, ticket.number, ticket.item.tokens, now)

    def placed(self, ticket: Ticket, now: float) -> None:
        """Count a request where it went; in stages of which that server is not, it still counts at the least loaded.

        A server that was not in the last observation is not known: then nothing changes.
        """
        counted, server = self._counted.get(ticket.number), self._named.get(ticket.endpoint)
        if counted is None or server is None:
            return
        elsewhere = []
        for each in counted:
            if each is server:
                continue
            if any(stage in server.stages for stage in each.stages):
                self._books.unsend(each, ticket.number)
            else:
                elsewhere.append(each)
        self._counted[ticket.number] = [*elsewhere, server]
        self._books.send(server, ticket.number, ticket.item.tokens, now)

    def finished(self, ticket: Ticket, now: float) -> None:
        """Give back what a request took."""
        for server in self._counted.pop(ticket.number, ()):
            lag = 0.0 if self._credit is None else self._credit.lag
            self._books.end(server, ticket.number, ticket.item.tokens, lag, now)

    def _held(self, level: float) -> float:
        if self._hysteresis is None:
            return level
        self._shut = self._hysteresis.shut(self._shut, level)
        return max(level, self._hysteresis.hi) if self._shut else level


class RequestSaturationGate(SaturationGate):
    """How full are the servers that this very request could go to? Whom that is, `reach` says.

    As `SaturationGate`, and a request goes when its own servers are below the ceiling, stage by stage, whatever the others are.
    So the `level` that all requests have in common is that of the least loaded server: below it nobody has room. A request of which nothing
    is known (`QueueItem.request` is no `InferenceRequest`), or that can go anywhere, asks for the whole pool. Policies that read the
    level see that of the least loaded server too; `saturation` is the pool's. Source of the wish: llm-d-router, issue 1991 and
    2173. Cost: `level` and `admits` look at all servers, 5 us at 64; a step that finds nobody looks at the head of every flow.
    """

    def __init__(
        self,
        detector: ProjectingDetector | None = None,
        *,
        reach: Reach | None = None,
        credit: InFlightCredit | None = _PLAIN,
        stages: Stages | None = None,
        hysteresis: Hysteresis | None = None,
        unknown: float = 1.0,
    ) -> None:
        super().__init__(detector, credit=credit, stages=stages, hysteresis=hysteresis, unknown=unknown)
        self._reach: Reach = RequestReach() if reach is None else reach

    def level(self, now: float) -> float:
        """Return how full the least loaded server is: no request has servers that are less full together."""
        self._books.turn(now)
        counts = self._books.counts
        known = counts[~np.isnan(counts)]
        return self._held(float(known.min()) if len(known) else self._unknown)

    def admits(self, ticket: Ticket, ceiling: float, now: float) -> bool:
        """Return whether the servers that could take it are below the ceiling, in each stage in which there are any."""
        request, endpoints = ticket.item.request, self._endpoints
        if endpoints is None or not isinstance(request, InferenceRequest):
            return self.saturation(now) < ceiling
        reach = self._reach.of(request, endpoints)
        if reach is None:
            return self.saturation(now) < ceiling
        self._books.turn(now)
        found = [stage.of(reach, self._books.counts) for stage in self._books.stages if (stage.among & reach).any()]
        if not found:
            return self.saturation(now) < ceiling
        return all((self._unknown if value != value else value) < ceiling for value in found)
