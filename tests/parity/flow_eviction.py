"""Who is taken back from the servers: victims, their order, how many at once, and how soon again."""

from collections.abc import Mapping
from typing import Any

from inferencesched.flowcontrol import (
    EveryVictim,
    FlowController,
    NewestFirst,
    PacedReclaimer,
    QueueItem,
    Revoke,
    SheddableVictims,
    Ticket,
    min_required,
    revocations,
    victim_key,
)
from inferencesched.flowcontrol.eviction import Evictables, VictimFilter
from tests.parity.cases import Case, Runner, same, unknown

FILTERS = {"all": EveryVictim(), "sheddable": SheddableVictims()}


class Named:
    """Lets those through whose names are said, whatever their priority."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def accepts(self, ticket: Ticket) -> bool:
        return ticket.request_id in self.names


class Level:
    """A gate whose level somebody else says."""

    def __init__(self) -> None:
        self.at = 0.0

    def observe(self, endpoints: object, now: float) -> None:
        pass

    def level(self, now: float) -> float:
        return self.at

    def dispatched(self, ticket: Ticket, now: float) -> None:
        pass

    def finished(self, ticket: Ticket, now: float) -> None:
        pass


class Ceiling:
    """One ceiling for all, 0 among them."""

    def __init__(self, ceiling: float) -> None:
        self.ceiling = ceiling

    def ceilings(self, saturation: float, priorities: tuple[int, ...]) -> list[float]:
        return [self.ceiling] * len(priorities)


def victim_filter(said: Any) -> VictimFilter:
    if isinstance(said, Mapping):
        if set(said) != {"accept_priority_lt"}:
            raise unknown("filter", said)
        return SheddableVictims(said["accept_priority_lt"])
    if said not in FILTERS:
        raise unknown("filter", said)
    return FILTERS[said]


def tickets_of(said: list[dict[str, Any]]) -> list[Ticket]:
    """Return tickets of requests in flight, each dispatched when it says."""
    controller = FlowController()
    made = []
    for each in said:
        ticket = controller.submit(QueueItem(request_id=each["id"], priority=each["priority"]), now=0.0)
        assert isinstance(ticket, Ticket)
        controller.step(now=0.0)
        ticket.dispatched_at = float(each.get("dispatch_s") or 0.0)
        made.append(ticket)
    return made


def ordering(case: Case) -> None:
    a, b = (
        victim_key(case["inputs"][each]["priority"], case["inputs"][each].get("dispatch_s") or 0.0) for each in "ab"
    )
    same(case["expect"]["less"], a < b, "less")


def sheddable(case: Case) -> None:
    (ticket,) = tickets_of([{"id": "r", "priority": case["inputs"]["priority"]}])
    same(case["expect"]["accept"], SheddableVictims().accepts(ticket), "accept")


def queue(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    if params.get("ordering", "priority-then-newest") != "priority-then-newest":
        raise unknown("ordering", params["ordering"])
    held = Evictables(victim_filter(params["filter"]), NewestFirst())
    by_name: dict[str, Ticket] = {}
    for name, ticket in zip([each["id"] for each in inputs["track"]], tickets_of(inputs["track"]), strict=True):
        if name in by_name:
            held.untrack(by_name[name])
        by_name[name] = ticket
        held.track(ticket)
    (stranger,) = tickets_of([{"id": "stranger", "priority": -1}])
    stranger.number = -1
    for name in inputs.get("untrack") or ():
        held.untrack(by_name.get(name, stranger))
    got: dict[str, Any] = {"in_flight": held.inflight, "evictable": len(held)}
    if inputs.get("pop_n") is not None:
        got["pop_order"] = [ticket.request_id for ticket in held.take(inputs["pop_n"])]
        got |= {"in_flight_after_pop": held.inflight, "evictable_after_pop": len(held)}
    for name, value in expect.items():
        if name not in got:
            raise unknown("expectation", name)
        same(value, got[name], name)


def demand(priority: int, reclaimer: PacedReclaimer, gate: Level, ceiling: float = 1.0) -> FlowController:
    """Return a controller in which somebody of this priority will wait when its gate is shut."""
    return FlowController(gate=gate, limits=Ceiling(ceiling), reclaimer=reclaimer)


def fly(controller: FlowController, gate: Level, said: list[dict[str, Any]]) -> dict[str, Ticket]:
    """Let these go, one by one, the last of them at 0; of those of one time the last said is the newest."""
    gate.at = -1.0
    made = {}
    last = max((each.get("dispatch_s") or 0.0 for each in said), default=0.0)
    for each in sorted(said, key=lambda each: each.get("dispatch_s") or 0.0):
        item, at = QueueItem(request_id=each["id"], priority=each["priority"]), (each.get("dispatch_s") or 0.0) - last
        made[each["id"]] = controller.submit(item, now=at)
        controller.step(now=at)
    return made


def evictor(case: Case) -> None:
    """Somebody of the demand's priority waits; the gate is shut by as much as makes `evict_n` victims."""
    inputs, expect = case["inputs"], case["expect"]
    count, gate = inputs["evict_n"], Level()
    reclaimer = PacedReclaimer(most=max(count, 1), victims=victim_filter(case["params"]["filter"]))
    controller = demand(inputs["demand_priority"], reclaimer, gate)
    flying = fly(controller, gate, inputs["in_flight"])
    before = {"in_flight_before": len(flying), "evictable_before": reclaimer.evictable}
    gate.at = 1e9
    controller.submit(QueueItem(request_id="demand", priority=inputs["demand_priority"]), now=0.0)
    revoked = [event.ticket for event in controller.step(now=0.0) if isinstance(event, Revoke)] if count else []
    evicted = [ticket.request_id for ticket in revoked]
    if inputs.get("actuator_fails"):
        for ticket in revoked:
            controller.revoke_failed(ticket, now=0.0)
        evicted = []
    got: dict[str, Any] = {
        **before,
        "evicted": evicted,
        "evictable_after": reclaimer.evictable,
        "in_flight_after": len(flying) - len(evicted),
    }
    if "complete" in inputs:
        got["notifications"] = complete(controller, reclaimer, flying, evicted, inputs["complete"])
    for name, value in expect.items():
        if name not in got:
            raise unknown("expectation", name)
        same(value, got[name], name)


def complete(
    controller: FlowController,
    reclaimer: PacedReclaimer,
    flying: Mapping[str, Ticket],
    evicted: list[str],
    said: list[str],
) -> dict[str, int]:
    """End requests, some of them twice; count how often a revocation was taken for confirmed by that."""
    others = [name for name in flying if name not in evicted]
    told: dict[str, int] = {}
    for each in said:
        name = evicted[0] if each == "<evicted>" else others[0] if each == "<other>" else each
        before, ticket = reclaimer.confirmed, flying[name]
        if ticket.outcome is not None and ticket.outcome.value == "dispatched":
            controller.completed(ticket, now=0.0)
        else:
            reclaimer.finished(ticket, 0.0)
        if reclaimer.confirmed > before:
            told[each] = told.get(each, 0) + reclaimer.confirmed - before
    return told


def paced(case: Case) -> dict[str, Any]:
    params = case["params"]
    return {
        "most": params["max_revocations_per_decision"],
        "grace": params["confirmation_grace_s"],
        "timeout": params["confirmation_timeout_s"],
    }


def flight(inputs: Mapping[str, Any], priority: int) -> tuple[Named, list[dict[str, Any]]]:
    """Return those in flight, of whom the first of the case is the newest, and who of them may be revoked."""
    names = [f"req-{i}" for i in range(inputs["in_flight"])]
    said = [{"id": name, "priority": priority} for name in reversed(names)]
    return Named(set(names[: inputs["evictable"]])), said


def sizing(case: Case) -> None:
    inputs = case["inputs"]
    got = revocations(
        inputs["saturation"],
        inputs["ceiling"],
        inputs["in_flight"],
        inputs["evictable"],
        pending=inputs.get("pending", 0.0),
        most=case["params"]["max_revocations_per_decision"],
    )
    same(case["expect"]["evict_calls"], [got] if got else [], "revocations")
    if inputs["ceiling"] > 0 and not inputs.get("pending"):
        named, said = flight(inputs, inputs["demand_priority"] - 1)
        calls = cycles(case, named, said, inputs["demand_priority"], inputs["saturation"], inputs["ceiling"], 1, 1)[1]
        same(case["expect"]["evict_calls"], calls, "evict_calls")


def cycles(
    case: Case,
    named: Named,
    said: list[dict[str, Any]],
    priority: int,
    saturation: float,
    ceiling: float,
    queued: int,
    count: int,
) -> tuple[bool, list[int]]:
    """Turn the controller so many times; return whether anybody went, and how many were revoked each time."""
    gate = Level()
    controller = demand(priority, PacedReclaimer(**paced(case), victims=named), gate, ceiling)
    fly(controller, gate, said)
    gate.at = saturation
    for i in range(queued):
        controller.submit(QueueItem(request_id=f"demand-{i}", priority=priority), now=0.0)
    went, calls = False, []
    for _ in range(count):
        events = controller.step(now=0.0)
        revoked = [event for event in events if isinstance(event, Revoke)]
        went |= len(revoked) < len(events)
        calls += [len(revoked)] if revoked else []
    return went, calls


def trigger(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    named, said = flight(inputs, inputs["victim_priority"])
    went, calls = cycles(
        case,
        named,
        said,
        inputs["band_priority"],
        inputs["saturation"],
        inputs.get("ceiling", 1.0),
        inputs["queued"],
        inputs["cycles"],
    )
    same(expect["evict_calls"], calls, "evict_calls")
    if "dispatched" in expect:
        same(expect["dispatched"], went, "dispatched")


def gating(case: Case) -> None:
    """Each step is a turn of the controller, or an answer of a server; the demand is of priority 0 and waits throughout."""
    inputs, expect = case["inputs"], case["expect"]
    gate, (named, said) = Level(), flight(inputs, -1)
    reclaimer = PacedReclaimer(**paced(case), victims=named)
    limits = Ceiling(1.0)
    controller = FlowController(gate=gate, limits=limits, reclaimer=reclaimer)
    flying = fly(controller, gate, said)
    gate.at, now = 1e9, 0.0
    limits.ceiling = 0.0  # nobody is revoked before the case says so
    controller.submit(QueueItem(request_id="demand", ttl=1e9), now=0.0)
    (stranger,) = tickets_of([{"id": "stranger", "priority": -1}])
    stranger.number = -1
    gates, calls = [], []
    for name, *rest in inputs["steps"]:
        match name:
            case "reclaim":
                gate.at, limits.ceiling = rest
                revoked = [event for event in controller.step(now) if isinstance(event, Revoke)]
                calls += [len(revoked)] if revoked else []
                gate.at, limits.ceiling = 1e9, 0.0
            case "gate":
                gates.append(reclaimer.ready(now))
            case "advance":
                now += rest[0]
            case "confirm":
                ticket = flying.get(rest[0], stranger)
                if ticket.number in range(len(flying)) and ticket.outcome.value == "dispatched":
                    controller.completed(ticket, now=now)
                else:
                    reclaimer.finished(ticket, now)
            case _:
                raise unknown("step", name)
    if "gate" in expect:
        same(expect["gate"], gates, "gate")
    same(expect["evict_calls"], calls, "evict_calls")


def fewest(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    got = min_required(inputs["preload"], inputs["hp_count"], inputs["capacity"], inputs["ceiling"])
    same(expect["min_evictions"], got.evictions, "min_evictions")
    same(expect["admittable"], got.admitted, "admittable")


RUNNERS: dict[tuple[str, str], Runner] = {
    ("eviction.ordering", "flow control: pure"): ordering,
    ("eviction.filter.sheddable", "flow control: pure"): sheddable,
    ("eviction.queue", "flow control: scenario"): queue,
    ("eviction.evictor", "flow control: scenario"): evictor,
    ("eviction.reclaim_sizing", "flow control: pure"): sizing,
    ("eviction.reclaim_gate", "flow control: scenario"): gating,
    ("eviction.reclaim_trigger", "flow control: scenario"): trigger,
    ("eviction.min_required", "flow control: pure"): fewest,
}
