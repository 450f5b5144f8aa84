"""How far apart were two flows served, in the worst of all intervals in which both waited? Traces, and what drives policies along them."""

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

from hypothesis import strategies as st

from inferencesched.flowcontrol import (
    Capacity,
    Dispatch,
    FirstCome,
    Flow,
    FlowController,
    PriorityBand,
    QueueItem,
    Ticket,
    TokenCost,
)
from inferencesched.flowcontrol.flows import Band
from inferencesched.request import Usage


def named(thing: object) -> str:
    """Return what a policy is called as a test's name: without a function's address, which is another one each run."""
    return re.sub(r"<function (\S+) at 0x\w+>", r"\1", repr(thing))


class Served(NamedTuple):
    """A dispatch: whose, what it came to, and in which of its times of waiting each flow was before (-1: it did not wait)."""

    flow: int
    service: float
    waiting: tuple[int, ...]


class Load(NamedTuple):
    """What happens: flows by weight, and steps. The most a request costs, how far an estimate is off, how many are in flight."""

    weights: tuple[float, ...]
    steps: tuple[int, ...]
    most: int
    off: int = 0
    inflight: int = 0


@st.composite
def loads(draw, settled=False, flows=(2, 4), steps=120):
    """Draw flows with weights that are exact in binary, and steps that `run` reads."""
    count = draw(st.integers(*flows))
    weights = tuple(draw(st.sampled_from((0.5, 1.0, 1.0, 2.0, 4.0))) for _ in range(count))
    most = draw(st.sampled_from((1, 5, 40)))
    off, inflight = (draw(st.integers(1, 10)), draw(st.integers(1, 6))) if settled else (0, 0)
    return Load(weights, tuple(draw(st.lists(st.integers(0, 2**20), min_size=10, max_size=steps))), most, off, inflight)


class Alone:
    """A `FlowOrder` driven by hand, as a controller drives it."""

    def __init__(self, load, policy, **options):
        self.band = Band(0, Capacity(), FirstCome(), policy.start(), {}, protected=True)
        self.order = self.band.fairness
        self.flows = [Flow(f"f{i}", self.band, self.band.ordering.queue(), w) for i, w in enumerate(load.weights)]
        self.band.flows = {flow.id: flow for flow in self.flows}
        self.number = 0
        self.now = 0.0

    def submit(self, index, estimate, tokens=0):
        flow = self.flows[index]
        item = QueueItem(request_id=f"{self.number}", flow=flow.id, cost=float(estimate), input_tokens=tokens)
        ticket = Ticket(item, flow, self.number, float(estimate), self.now)
        self.number += 1
        waited = len(flow.queue) > 0
        flow.queue.push(ticket)
        if not waited:
            self.order.arrived(flow, self.now)
        elif flow.queue.head() is ticket:
            self.order.changed(flow, self.now)
        return ticket

    def dispatch(self):
        flow = self.order.pick(self.now)
        assert flow is self.order.pick(self.now), "asked again, it says something else"
        if flow is None:
            return None
        head = flow.queue.head()
        flow.queue.remove(head)
        self.order.served(flow, head.cost, self.now)
        return head

    def cancel(self, ticket):
        ticket.flow.queue.remove(ticket)
        self.order.changed(ticket.flow, self.now)

    def complete(self, ticket, correction):
        self.order.settled(ticket.flow, float(correction), self.now)


class Whole:
    """The same through a whole `FlowController`."""

    def __init__(self, load, policy, weights=True, **options):
        self.weights = {f"f{i}": w for i, w in enumerate(load.weights)}
        self.gate = Turnstile()
        band = PriorityBand(0, fairness=policy, weights=self.weights, **options)
        cost = TokenCost(prompt=1.0, output=0.0)
        self.controller = FlowController(gate=self.gate, bands=[band], cost=cost)
        self.band = self.controller._books.bands[0]
        self.number = 0
        self.now = 0.0

    @property
    def flows(self):
        made = self.band.flows
        return [made[name] for name in sorted(made)]

    def submit(self, index, estimate, tokens=0):
        self.number += 1
        item = QueueItem(request_id=f"{self.number}", flow=f"f{index}", input_tokens=tokens or estimate)
        return self.controller.submit(item, self.now)

    def dispatch(self):
        self.gate.left = 1
        gone = [event.ticket for event in self.controller.step(self.now) if isinstance(event, Dispatch)]
        assert len(gone) <= 1
        return gone[0] if gone else None

    def cancel(self, ticket):
        assert self.controller.cancel(ticket, self.now)

    def complete(self, ticket, correction):
        self.controller.completed(ticket, Usage(round(ticket.cost + correction), 0, 0), now=self.now)


class Turnstile:
    """A gate that lets `left` through."""

    def __init__(self):
        self.left = 0

    def observe(self, endpoints, now):
        pass

    def level(self, now):
        return 0.0 if self.left else 1.0

    def dispatched(self, ticket, now):
        self.left -= 1

    def finished(self, ticket, now):
        pass


def run(load, policy, driver: Callable[..., Any] = Alone, check=None, service=None, **options):
    """Drive a policy along a trace; return what was served.

    `check(driver, waiting)` is called before every dispatch, with the flows that wait; `service(ticket)` is what a dispatch came to, where
    that is not its cost.
    """
    drive = driver(load, policy, **options)
    count = len(load.weights)
    queues: list[list[Any]] = [[] for _ in range(count)]  # what waits, as we know it
    epochs = [0] * count
    actual: dict[int, int] = {}  # by the identity of a ticket
    flying: list[Any] = []
    served = []

    def gone(index, ticket):
        queues[index].remove(ticket)
        epochs[index] += not queues[index]

    def dispatch():
        if load.inflight and len(flying) >= load.inflight:
            complete(0)
        waiting = tuple(epochs[i] if queues[i] else -1 for i in range(count))
        if check is not None:
            check(drive, [i for i in range(count) if queues[i]])
        ticket = drive.dispatch()
        assert (ticket is None) == (not any(queues)), "somebody waits and nobody goes"
        if ticket is None:
            return
        index = next(i for i in range(count) if ticket in queues[i])
        gone(index, ticket)
        served.append(Served(index, actual[id(ticket)] if service is None else service(ticket), waiting))
        flying.append(ticket)

    def complete(which):
        ticket = flying.pop(which)
        if load.inflight:
            drive.complete(ticket, actual[id(ticket)] - ticket.item.input_tokens)

    for step in load.steps:
        drive.now += 0.25
        kind, rest = step % 8, step // 8
        index, rest = rest % count, rest // count
        if kind < 3:
            for number in range(1 + 3 * (kind == 0)):
                real = 1 + (rest * (number + 1)) % load.most
                estimate = max(1, real + (rest // 7 + number) % (2 * load.off + 1) - load.off)
                ticket = drive.submit(index, estimate, tokens=estimate)
                actual[id(ticket)] = real
                queues[index].append(ticket)
        elif kind < 6:
            for _ in range(1 + rest % 3):
                dispatch()
        elif kind == 6:
            if load.inflight and flying:
                complete(rest % len(flying))
        elif queues[index]:
            ticket = queues[index][rest % len(queues[index])]
            drive.cancel(ticket)
            gone(index, ticket)
    while any(queues):
        dispatch()
    return served


def worst(load, served, bound: Callable[[float, float], float]):
    """Return the greatest gap of two flows by its bound, over all intervals in which both waited all the while.

    `bound(w_f, w_g)` is the greatest difference of services divided by weights that is allowed.
    """
    greatest = 0.0
    for f, g in combinations(range(len(load.weights)), 2):
        allowed = bound(load.weights[f], load.weights[g])
        period, ahead, least, most = None, 0.0, 0.0, 0.0
        for each in served:
            now = (each.waiting[f], each.waiting[g])
            if now != period:
                period, ahead, least, most = now, 0.0, 0.0, 0.0
            if -1 in now or each.flow not in (f, g):
                continue
            ahead += each.service / load.weights[f] if each.flow == f else -each.service / load.weights[g]
            least, most = min(least, ahead), max(most, ahead)
            greatest = max(greatest, (ahead - least) / allowed, (most - ahead) / allowed)
    return greatest
