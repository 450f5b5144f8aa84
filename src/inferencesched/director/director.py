"""May this request go, when, and to which server? All parts of the library, joined.

::

    decide: identify > read > rewrite > guard > route > measure > limit > queue .. > screen > admit > choose > check > book
                                                                          `.. Waiting; `step` goes on, or `cancel` ends it

No clock, no thread, no I/O: `now` is the caller's, chance comes from the caller's generator. Every request that was `Waiting` gets
exactly one `Decision`; every forwarded one has one `RequestLife`, that ends once.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Any, Final, final

import numpy as np

from inferencesched.director.answers import forwarded, refused
from inferencesched.director.choosing import Chooser
from inferencesched.director.decision import Decision, Waiting
from inferencesched.director.failures import Failures
from inferencesched.director.life import RequestLife
from inferencesched.director.preparing import Preparer
from inferencesched.director.stages import FailurePolicy, Identifies, Retries, ServingPool
from inferencesched.director.way import Lane, Way
from inferencesched.errors import (
    BodyError,
    InvalidInputError,
    NoEndpointsError,
    RequestRefusedError,
    ReservationError,
    UpstreamError,
    whole_number,
)
from inferencesched.flowcontrol.events import Dispatch, Rejection, Revoke
from inferencesched.flowcontrol.events import Event as QueueEvent
from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.flowcontrol.outcomes import QueueOutcome, refusal
from inferencesched.framework import SchedulingResult
from inferencesched.governance.guards import GuardChain
from inferencesched.governance.meters import Meter
from inferencesched.observability.events import Dequeued, Enqueued, Event, EventSink, Refused, Started
from inferencesched.routing.body import body_kind
from inferencesched.routing.headers import REQUEST_ID
from inferencesched.routing.objectives import ModelTable
from inferencesched.routing.routes import RouteTable
from inferencesched.routing.tokens import Tokenizer
from inferencesched.sessions import SessionSource

_DISPATCHED: Final = QueueOutcome.DISPATCHED
_MAX_BYTES: Final = 32 << 20


def _unheard(event: Event) -> None:
    """Nobody listens."""


@final
class Director:
    """May this request go, when, and to which server?

    Parameters
    ----------
    pools: what decides for each InferencePool, by its name; at least one.
    models: rewrites, objectives and LoRA adapters; without it a model's name is what the client says, and every priority 0.
    routes: which pool a request is for; without it, the one that serves its model.
    guards: who looks at prompts (answers: `RequestLife` and `GuardChain.stream`).
    identity: who asks; without it the headers are believed, as the reference does.
    meters: rate limits and quotas, in order.
    tokenizer: how long a prompt is; without it some four bytes are a token.
    sessions: where a request says whose conversation it is.
    retry: when another endpoint is tried; without it never.
    sink: who hears what happens.
    failure: what becomes of a request when a plug-in raises.
    max_bytes: of a body; larger ones are 413.
    output_ratio: output tokens expected a prompt token, for queue, limits and load.

    Not safe from several threads; `AsyncDirector` is the shell for an event loop. Cost: some 130 us for a 4 KB chat body with
    everything on but guards, of which 40 are the prefix index's and 25 the queue's (the page on performance).

    >>> import numpy as np
    >>> from inferencesched import InferencePool, Scheduler, default_profile
    >>> pool = InferencePool()
    >>> pool.join("ep-0", address="10.0.0.1:8000")
    >>> director = Director({"llama": ServingPool(pool, Scheduler(default_profile()))})
    >>> body = b'{"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}'
    >>> decision = director.decide(body, {}, now=1.0, rng=np.random.default_rng(7))
    >>> decision.outcome, decision.headers["x-gateway-destination-endpoint"]
    ('forwarded', '10.0.0.1:8000')
    >>> decision.life.complete(now=2.0), pool.ledger().inflight_requests
    (True, 0)
    >>> director.decide(b"{", {}, now=3.0, rng=np.random.default_rng(7)).status
    400
    """

    def __init__(
        self,
        pools: Mapping[str, ServingPool],
        *,
        models: ModelTable | None = None,
        routes: RouteTable | None = None,
        guards: GuardChain | None = None,
        identity: Identifies | None = None,
        meters: Sequence[Meter[Any]] = (),
        tokenizer: Tokenizer | None = None,
        sessions: Sequence[SessionSource] = (),
        retry: Retries | None = None,
        sink: EventSink | None = None,
        failure: FailurePolicy | None = None,
        max_bytes: int = _MAX_BYTES,
        output_ratio: float = 1.5,
    ) -> None:
        if not pools:
            raise InvalidInputError("pools", pools, "at least one pool by its name")
        whole_number("max_bytes", max_bytes, 1)
        if not 0.0 <= output_ratio < inf:
            raise InvalidInputError("output_ratio", output_ratio, "a finite number of at least 0")
        self._lanes = {name: Lane(name, serving) for name, serving in pools.items()}
        self._emit: Callable[[Event], None] = _unheard if sink is None else sink.emit
        self._failures = Failures(self._emit, FailurePolicy() if failure is None else failure)
        self._chooser = Chooser(self._lanes, self._emit, self._failures)
        self._retry = retry
        self._models = models
        self.guards = guards
        self._preparer = Preparer(
            self._lanes,
            emit=self._emit,
            models=models,
            routes=routes,
            guards=guards,
            identity=identity,
            meters=meters,
            tokenizer=tokenizer,
            sessions=sessions,
            failures=self._failures,
            max_bytes=max_bytes,
            output_ratio=output_ratio,
        )
        self._number = 0
        self._now = -inf
        self._ready: deque[Decision] = deque()  # decided while somebody else was being decided
        self._dirty: set[Lane] = set()  # where something ended, so that somebody else may go
        self._lives: dict[str, RequestLife] = {}
        self._waiting: dict[str, Way] = {}
        self._revoking: list[RequestLife] = []
        #: Called when `step` has something to do before `next_wakeup` said so; a shell's.
        self.on_change: Callable[[], None] | None = None

    # -- what arrives --------------------------------------------------------------------------------

    def decide(
        self,
        body: bytes,
        headers: Mapping[str, str],
        *,
        now: float,
        rng: np.random.Generator,
        path: str = "/v1/chat/completions",
        claims: Mapping[str, object] | None = None,
        subset: Collection[str] | None = None,
    ) -> Decision | Waiting:
        """Say whether a request may go, and where; or that it waits.

        `headers` have lower-case names; ``x-request-id`` names the request, and must be of nobody else who is here. `claims` are
        verified ones, of a token that the gateway checked. `subset` is whom the proxy allows (metadata of the Envoy protocol).
        What is wrong with a request is in its decision, never raised. Errors: `InvalidInputError` for a time that is none, or goes back.
        """
        self._turn(now)
        way = Way(self._name(headers), headers, len(body), subset, now)
        try:
            kind = body_kind(path)
            if kind is None:
                raise BodyError("path", path, "the path of a known API", status=404)
            self._preparer.prepare(way, body, kind, path, claims, now, rng)
            controller = way.lane.serving.controller
            if controller is None:
                return self._go(way, now, rng)
            return self._queue(way, now, rng)
        except RequestRefusedError as error:
            return self._refused(way, error, now)

    def step(self, now: float, rng: np.random.Generator) -> list[Decision]:
        """Answer who may go now, has waited too long, or had to make room. Call it when something ended or was observed, and by `next_wakeup`."""
        self._turn(now)
        self._dirty.clear()
        for lane in self._lanes.values():
            controller = lane.serving.controller
            if controller is not None:
                self._tell(controller.step(now), now, rng)
        ready, self._ready = self._ready, deque()
        return list(ready)

    def cancel(self, ticket: Ticket, now: float) -> Decision | None:
        """End a request whose client went while it waited; its place, limits and quotas are given back. Returns its decision.

        None where it has been decided before: then its `RequestLife` ends it.
        """
        self._turn(now)
        way = ticket.item.request
        if not isinstance(way, Way) or self._waiting.get(way.request_id) is not way:
            return None
        controller = way.lane.serving.controller
        assert controller is not None  # it waits there
        controller.cancel(ticket, now)
        self._changed(way.lane)
        return self._left(way, QueueOutcome.EVICTED_CANCELLED, inf, now)

    def observe(self, pool: str, now: float) -> None:
        """Tell a pool's queue what is known of its servers. Call it when they were observed. Errors: `InvalidInputError` for an unknown pool."""
        lane = self._lanes.get(pool)
        if lane is None:
            raise InvalidInputError("pool", pool, f"one of {sorted(self._lanes)}")
        if lane.serving.controller is not None:
            lane.serving.controller.observe(lane.serving.pool.snapshot(), now)
            self._changed(lane)

    def next_wakeup(self, now: float) -> float | None:
        """When has `step` something to do by itself? None for never."""
        if self._ready or self._dirty:
            return now
        times = (
            lane.serving.controller.next_wakeup(now)
            for lane in self._lanes.values()
            if lane.serving.controller is not None
        )
        return min((at for at in times if at is not None), default=None)

    def revocations(self) -> list[RequestLife]:
        """Whom should a server stop working on? Each is said once; answer with `RequestLife.revoked` when it has stopped."""
        revoking, self._revoking = self._revoking, []
        return [life for life in revoking if life.open]

    def shutdown(self, now: float) -> list[Decision]:
        """Let nobody in any more, and answer everybody who waits; what is at a server may end."""
        for lane in self._lanes.values():
            controller = lane.serving.controller
            if controller is not None:
                for event in controller.shutdown(now):
                    self._ended(event, now)
        ready, self._ready = self._ready, deque()
        return list(ready)

    def retry(self, life: RequestLife, failure: str, *, now: float, rng: np.random.Generator) -> Decision:
        """Try another endpoint after a failure, or say that it is not tried.

        Only before the first byte, and if the retry policy says so: then its booking moves, its place in the queue and its limits
        stay as they are. Else its life ends as failed, and the decision is an `UpstreamError`, 502. `failure` is a low-cardinality word.
        """
        self._turn(now)
        way, policy = life.way, self._retry
        if not life.open:
            raise InvalidInputError("life", life, "one that has not ended")
        error: RequestRefusedError = UpstreamError(f"request {way.request_id!r} on {life.endpoint!r}: {failure}")
        sent = life.first_byte_at is not None
        if (
            not sent
            and policy is not None
            and policy.may_retry(attempt=life.attempt, first_byte_sent=False, idempotent=True, failure=failure, now=now)
        ):
            try:
                result = self._chooser.choose(way, now, rng, life.tried)
                if life.reservation.settlement is None:
                    life.reservation.fail(failure, now=now)
                reservation = way.lane.serving.scheduler.reserve(result, way.lane.serving.pool, now=now)
            except NoEndpointsError as nobody:
                error.__cause__ = nobody  # all were tried: what they did is the client's answer
            except RequestRefusedError as refusal_:
                error = refusal_
            except ReservationError as gone:
                error.__cause__ = gone
            else:
                policy.spent(now, failure)
                life._moved(reservation)
                way.trail.append(("retry", f"attempt {life.attempt} after {failure}"))
                self._placed(way, life, now)
                return self._forward(way, life, result, now)
        life.fail(now=now)
        return refused(way, error)

    # -- to look at ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many requests are here, waiting or at a server?"""
        return len(self._waiting) + len(self._lives)

    @property
    def waiting(self) -> int:
        """How many wait?"""
        return len(self._waiting)

    @property
    def in_flight(self) -> tuple[RequestLife, ...]:
        """Which requests are at a server?"""
        return tuple(self._lives.values())

    @property
    def pools(self) -> Mapping[str, ServingPool]:
        """What decides for each pool?"""
        return {name: lane.serving for name, lane in self._lanes.items()}

    def check(self) -> None:
        """Raise `AssertionError` unless queue, pool and director agree on who is here."""
        for lane in self._lanes.values():
            lane.serving.pool.check()
            here = [way for way in self._waiting.values() if way.lane is lane]
            controller = lane.serving.controller
            if controller is not None:
                controller.check()
                assert len(here) == sum(band.requests for band in controller.bands), (lane.name, len(here))
            else:
                assert not here, lane.name
        for life in self._lives.values():
            assert life.open, life

    # -- inside: the queue ---------------------------------------------------------------------------

    def _queue(self, way: Way, now: float, rng: np.random.Generator) -> Decision | Waiting:
        lane, request = way.lane, way.request
        controller = lane.serving.controller
        assert controller is not None  # asked by `decide`
        item = QueueItem(
            request_id=way.request_id,
            flow=request.fairness_id,
            priority=way.priority,
            size_bytes=way.size_bytes,
            input_tokens=way.input_tokens or 0,
            output_tokens=way.output_tokens,
            deadline=request.deadline,
            slo_ttft=request.slo_ttft,
            received_at=way.received_at,
            objective=request.objective,
            request=way,
        )
        try:
            answer = controller.submit(item, now)
        except Exception as error:
            self._failures.told(way, "queue", controller, error, "closed")
            raise
        if isinstance(answer, Rejection):
            raise answer.error()
        way.ticket = answer
        self._waiting[way.request_id] = way
        self._emit(Enqueued(way.request_id, way.labels, way.size_bytes, now))
        try:
            decision = self._tell(controller.step(now), now, rng, way)
        except Exception as error:
            if self._waiting.pop(way.request_id, None) is not None:
                controller.cancel(answer, now)
            self._failures.told(way, "queue", controller, error, "closed")
            raise
        return Waiting(way.request_id, lane.name, answer) if decision is None else decision

    def _tell(
        self, events: list[QueueEvent], now: float, rng: np.random.Generator, asking: Way | None = None
    ) -> Decision | None:
        """Decide on whoever the queue lets go or out; return the decision on `asking`, if it is among them."""
        mine: Decision | None = None
        for event in events:
            if type(event) is Dispatch:
                way = event.ticket.item.request
                assert isinstance(way, Way)  # nobody else submits
                decision = self._released(way, now, rng)
            elif type(event) is Revoke:
                life = self._life_of(event.ticket)
                if life is not None:
                    life.revoking = True
                    self._revoking.append(life)
                continue
            else:
                ended = self._ended(event, now, asking)
                if ended is not None:
                    mine = ended
                continue
            if way is asking:
                mine = decision
            else:
                self._ready.append(decision)
        return mine

    def _released(self, way: Way, now: float, rng: np.random.Generator) -> Decision:
        """Go on with a request that the queue has let go."""
        ticket = way.ticket
        assert ticket is not None  # it was queued
        del self._waiting[way.request_id]
        self._emit(Dequeued(way.request_id, way.labels, way.size_bytes, "dispatched", now - ticket.enqueued_at))
        try:
            return self._go(way, now, rng)
        except RequestRefusedError as error:
            return self._refused(way, error, now)

    def _ended(self, event: QueueEvent, now: float, asking: Way | None = None) -> Decision | None:
        """Answer a request that the queue has let out, or given up at its server."""
        ticket = event.ticket
        way = ticket.item.request
        outcome = ticket.outcome
        assert isinstance(way, Way)  # nobody else submits
        assert outcome is not None  # it has ended
        if outcome is QueueOutcome.LAPSED:
            life = self._life_of(ticket)
            if life is not None:
                life._end("lapsed", None, None, now)
            return None
        if way.request_id not in self._waiting:
            return None  # it was answered when it was cancelled
        decision = self._left(way, outcome, getattr(event, "retry_after", inf), now)
        if way is asking:
            return decision
        self._ready.append(decision)
        return None

    def _left(self, way: Way, outcome: QueueOutcome, retry_after: float, now: float) -> Decision:
        ticket = way.ticket
        assert ticket is not None  # it was queued
        del self._waiting[way.request_id]
        waited = now - ticket.enqueued_at
        self._emit(Dequeued(way.request_id, way.labels, way.size_bytes, outcome.value, waited))
        way.trail.append(("queue", f"{outcome.value} after {waited:.3g} s"))
        return self._refused(way, refusal(outcome, way.request_id, retry_after=retry_after), now)

    def _life_of(self, ticket: Ticket) -> RequestLife | None:
        way = ticket.item.request
        return self._lives.get(way.request_id) if isinstance(way, Way) else None

    # -- inside: the choice --------------------------------------------------------------------------

    def _go(self, way: Way, now: float, rng: np.random.Generator) -> Decision:
        """Choose a server, book it, and say so. Errors: `RequestRefusedError`, and nothing is booked then."""
        serving = way.lane.serving
        with serving.pool.lock:
            result = self._chooser.choose(way, now, rng)
            reservation = serving.scheduler.reserve(result, serving.pool, now=now)
        if self._retry is not None:
            self._retry.asked(now)
        life = RequestLife(self, way, reservation)
        self._lives[way.request_id] = life
        if way.match is not None:
            way.match.split.commit(way.lane.name)
        if self._models is not None:
            self._models.commit(way.choice)
        self._placed(way, life, now)
        return self._forward(way, life, result, now)

    def _placed(self, way: Way, life: RequestLife, now: float) -> None:
        ticket, controller = way.ticket, way.lane.serving.controller
        if ticket is not None and controller is not None:
            controller.dispatched(ticket, life.endpoint, now)
        self._emit(Started(way.request_id, way.labels, life.endpoint, life.attempt, now))

    # -- inside: answers -----------------------------------------------------------------------------

    def _forward(self, way: Way, life: RequestLife, result: SchedulingResult, now: float) -> Decision:
        mirrors = self._chooser.mirrored(way, now) if way.match is not None and way.match.mirrors else ()
        return forwarded(way, life, result, mirrors)

    def _refused(self, way: Way, error: RequestRefusedError, now: float) -> Decision:
        """Give back all that was taken, and say why not."""
        self._failures.give_back(way, now)
        ticket = way.ticket
        if ticket is not None and ticket.outcome is _DISPATCHED:  # let go, and then there was nobody to go to
            controller = way.lane.serving.controller
            assert controller is not None  # it was queued there
            controller.revoked(ticket, now=now)
            self._changed(way.lane)
        self._emit(Refused(way.request_id, way.labels, error.outcome, error.status, error.code, now))
        return refused(way, error)

    def _name(self, headers: Mapping[str, str]) -> str:
        """Return the request's name: its header's, unless somebody of that name is here still."""
        name = headers.get(REQUEST_ID, "")
        if name and name not in self._lives and name not in self._waiting:
            return name
        self._number += 1
        return f"{name or 'request'}-{self._number}"

    def _turn(self, now: float) -> None:
        """Take note of the time. Errors: `InvalidInputError` for one that is none, or before the last one."""
        if not self._now <= now < inf:
            raise InvalidInputError("now", now, f"a finite time of at least {self._now}, the last one")
        self._now = now

    def _changed(self, lane: Lane) -> None:
        """Note that somebody who waits for this pool may go now."""
        self._dirty.add(lane)
        if self.on_change is not None:
            self.on_change()
