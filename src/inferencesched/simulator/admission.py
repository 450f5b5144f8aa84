"""What if requests wait in front of the scheduler, as in a gateway with flow control?

Every arrival is submitted to a `FlowController`; who is let go is given to the scheduler. The controller steps whenever a gateway's
would: at arrivals, when a server has a first token or is done with a request, when servers are read, and when its own time has
come. A request that is let go because another has ended is at its server before that server's next pass.
"""

from math import inf, nan, nextafter
from typing import Final

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.events import Dispatch, Event, Rejection, Revoke
from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.request import InferenceRequest, Usage
from inferencesched.simulator.policies import Policy
from inferencesched.simulator.queueing import FlowControl
from inferencesched.simulator.server import FINISHED
from inferencesched.simulator.simulation import Cluster, Course
from inferencesched.simulator.tenancy import ANYBODY
from inferencesched.simulator.workload import Workload

#: How long somebody still waits at the end, ms, where no server has anything to do and nothing ends the wait.
_PATIENCE: Final = 10_000.0


class QueuedSimulation(Course):
    """What happens, arrival by arrival, with flow control in front? See `simulate`.

    Stepwise: `step` brings the next arrival, and before it all that happens until then; `finish` lets everything end. Servers cannot be
    made to stop: a request that is to be taken back goes on, and nobody confirms that it was. What can never go, since
    servers are idle and the gate is shut all the same, is let out at the end as in a shutdown.

    ``outcomes`` is how each request ended, by place in the trace, None while it has not; ``wait`` float64[N] ms from arrival to
    dispatch, NaN where that was not; ``contended`` bool[N] who went while every tenant of its priority had something waiting; ``most_waiting``
    how many waited at once.
    """

    def __init__(self, workload: Workload, policy: Policy, cluster: Cluster, flow: FlowControl) -> None:
        super().__init__(workload, policy, cluster)
        count = len(workload)
        self.controller: FlowController = flow.build(self.fleet, self.workload.tenants)
        self.arrived = 0
        self.outcomes: list[QueueOutcome | None] = [None] * count
        self.wait: FloatArray = np.full(count, nan)
        self.contended: BoolArray = np.zeros(count, dtype=np.bool_)
        self.most_waiting = 0
        self.refused_revocations = 0
        self._tickets: list[Ticket | None] = [None] * count
        #: How many of each tenant wait, by priority.
        self._waiting: dict[int, dict[str, int]] = {}
        for tenant in self.workload.tenants or (ANYBODY,):
            self._waiting.setdefault(tenant.priority, {})[tenant.name] = 0
        self._held = 0  # how many wait, all together
        self._flying = 0
        self._served = 0  # how many the servers have, whatever the controller thinks of them
        self._quiet_since = 0.0  # when somebody last went to a server, or was done there, ms

    @property
    def waiting(self) -> int:
        """How many wait now?"""
        return self._held

    @property
    def in_flight(self) -> int:
        """How many are at the servers now?"""
        return self._flying

    def item(self, place: int) -> QueueItem:
        """Return what the queue is told of the request at this place of the trace: no output length."""
        tenant = ANYBODY if self._tenant is None else self.workload.tenants[self._tenant[place]]
        return QueueItem(
            request_id=str(place),
            flow=tenant.name,
            priority=tenant.priority,
            input_tokens=self._inputs[place],
            slo_ttft=tenant.slo_ttft,
            request=self.request(place),
        )

    def step(self) -> Ticket | Rejection:
        """Bring the next arrival, and let happen what happens before it."""
        place = self.arrived
        now = self._arrival[place]
        self._pass(now)
        if now > self._clock or not self.cluster.scrape_ms:
            self._turn(now)
        self.arrived += 1
        answer = self.controller.submit(self.item(place), now / 1e3)
        if isinstance(answer, Rejection):
            self.outcomes[place] = answer.outcome
        else:
            self._tickets[place] = answer
            self._waiting[answer.item.priority][answer.item.flow] += 1
            self._held += 1
        self._act(self.controller.step(now / 1e3), now)
        self.most_waiting = max(self.most_waiting, self._held)
        return answer

    def finish(self) -> None:
        """Let everybody go who waits, or run out of time; then let every server finish what it has."""
        self._pass(inf)
        super().finish()

    # -- time --------------------------------------------------------------------------------------

    def _pass(self, until: float) -> None:
        """Let time pass, while somebody waits, from one thing that may let somebody go to the next."""
        while self._held and self._clock < until:
            wake = self._wake()
            if self._unheard:  # who is not heard of yet has ended all the same
                wake = min(wake, self._unheard[0][0])
            at = self.fleet.advance_to_event(min(until, wake, self._next_tick()))
            if (
                until == inf
                and not self._served
                and (at == inf or (wake == inf and at - max(self._quiet_since, self._arrival[-1]) > _PATIENCE))
            ):
                self._act(self.controller.shutdown(self._clock / 1e3), self._clock)
                return
            self._turn(at)

    def _turn(self, now: float) -> None:
        """Let the servers run up to `now`, tell everybody what they did and said, and let the controller step."""
        self._look(now)
        if self._held:
            self._act(self.controller.step(now / 1e3), now)

    def _look(self, now: float) -> None:
        ticks = self._ticks(now)
        self._hear(now, ticks)
        self._clock = now
        if self._observe(ticks):
            self.controller.observe(self.pool.snapshot(), now / 1e3)

    def _next_tick(self) -> float:
        """Return when a server is read next; inf where signals are always fresh."""
        interval = self.cluster.scrape_ms
        if not interval:
            return inf
        ticks = np.floor((self._clock - self._phase) / interval) * interval + self._phase
        # one of now that rounding hid is read at the next stop, whichever that is
        return float(min(tick for k in (0, 1, 2) for tick in (ticks + k * interval).tolist() if tick > self._clock))

    def _wake(self) -> float:
        """Return when the controller's own time comes, after now: the first ms that is no less in seconds."""
        at = self.controller.next_wakeup(self._clock / 1e3)
        if at is None:
            return inf
        wake = max(at * 1e3, nextafter(self._clock, inf))
        while wake / 1e3 < at:
            wake = nextafter(wake, inf)
        return wake

    # -- what is said ------------------------------------------------------------------------------

    def _answered(self, now: float, kind: int, place: int) -> None:
        """Tell a reservation and the controller what a server did."""
        super()._answered(now, kind, place)
        if kind != FINISHED:
            return
        self._served -= 1
        self._quiet_since = now
        ticket = self._tickets[place]
        assert ticket is not None
        if ticket.outcome is QueueOutcome.DISPATCHED:
            usage = Usage(self._inputs[place], self._outputs[place], int(self.fleet.cached_tokens[place]))
            self.controller.completed(ticket, usage, now=now / 1e3)
            self.outcomes[place] = ticket.outcome
            self._flying -= 1

    def _act(self, events: list[Event], now: float) -> None:
        """Do what the controller says."""
        for i, event in enumerate(events):
            ticket = event.ticket
            place, flow = int(ticket.request_id), ticket.item.flow
            waiting = self._waiting[ticket.item.priority]
            if isinstance(event, Dispatch):
                self.contended[place] = len(waiting) > 1 and all(waiting.values())
                waiting[flow] -= 1
                self._held -= 1
                self._flying += 1
                self._served += 1
                self._quiet_since = now
                self.wait[place] = now - self._arrival[place]
                if i and not self.cluster.scrape_ms:
                    self._look(now)  # what is always fresh shows whom this very moment brought
                request = ticket.item.request
                assert isinstance(request, InferenceRequest)
                self.controller.dispatched(ticket, self.send(request, place, now).endpoint, now / 1e3)
            elif isinstance(event, Revoke):
                self.refused_revocations += 1
            else:
                self.outcomes[place] = ticket.outcome
                if ticket.outcome is QueueOutcome.LAPSED:
                    self._flying -= 1
                else:
                    waiting[flow] -= 1
                    self._held -= 1
