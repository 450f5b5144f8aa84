"""The flow controller over time: budgets, flows and bands that come and go, and whole walks."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import inferencesched as isched
from inferencesched.errors import EndpointGoneError, InvalidInputError
from inferencesched.flowcontrol import (
    Capacity,
    ConcurrencyDetector,
    Dispatch,
    FlowController,
    PriorityBand,
    QueueBudget,
    QueueItem,
    QueueOutcome,
    Ticket,
)
from tests.parity.cases import Case, Runner, same, unknown, within
from tests.parity.flow_config import template
from tests.parity.flow_controller import ended, limit, pool, refused, ticks
from tests.parity.flow_eviction import Level

LATER = 1e15


# --- budgets -----------------------------------------------------------------------------------------------------


def budget(ttl: float | None, empty: float | None) -> QueueBudget:
    return QueueBudget(ttl=limit(ttl), no_endpoint_ttl=limit(empty))


def waits(settings: QueueBudget) -> FlowController:
    """Return a controller whose gate is shut."""
    gate = Level()
    gate.at = 1.0
    return FlowController(gate=gate, budget=settings)


def wait_budget(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    controller = waits(budget(params["item_ttl_s"], params["no_endpoint_ttl_s"]))
    empty, since, enqueue = inputs["pool_empty"], inputs["regime_since_s"], ticks(inputs["enqueue_s"])
    start = ticks(-3600.0)
    controller.observe(pool(int(empty) if since is not None else int(not empty)), now=start)
    flip = None if since is None else ticks(since)
    if flip is not None and flip <= enqueue:
        controller.observe(pool(int(not empty)), now=flip)
    ticket = controller.submit(QueueItem(request_id="r"), now=enqueue)
    assert isinstance(ticket, Ticket)
    if flip is not None and flip > enqueue:
        controller.observe(pool(int(not empty)), now=flip)
    controller.step(now=ticks(inputs["now_s"]))
    expired = ticket.outcome is not None
    same(expect["expired"], expired, "expired")
    controller.step(now=LATER)
    wanted = expect["outcome_if_expired"]
    if ticket.outcome is not None:
        same(wanted, ticket.outcome.reference, "outcome_if_expired")


def timeline(case: Case) -> None:
    """A request waits from 0 on; the pool is empty or not, and somebody asks."""
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    controller = waits(budget(inputs["item_ttl_s"], params.get("no_endpoint_ttl_s", 60.0)))
    ticket, outcomes, lengths = None, [], []
    for at in inputs["timeline"]:
        now = ticks(at["at_s"])
        if "pool_empty" in at:
            controller.observe(pool(int(not at["pool_empty"])), now=now)
        if ticket is None:
            ticket = controller.submit(QueueItem(request_id="r"), now=now)
        if at.get("sweep"):
            controller.step(now=now)
            outcomes.append(ticket.outcome)
            lengths.append(sum(band.requests for band in controller.bands))
    wanted = expect["outcome_after_each_sweep"]
    same(wanted, [None if each is None else each.reference for each in outcomes], "outcome_after_each_sweep")
    for i, (length, got) in enumerate(zip(expect["len_after_each_sweep"], lengths, strict=True)):
        if length is not None:
            same(length, got, f"len_after_each_sweep[{i}]")
    if "error_is" in expect:
        ended({"outcome": wanted[-1], "error_is": expect["error_is"]}, outcomes[-1])


def regime(case: Case) -> None:
    """Since when a pool is empty, or not, is told by when somebody expires who has always waited."""
    cycles, full, empty = case["inputs"]["cycles"], 1e6, 2e6
    controller = waits(budget(full, empty))
    start = ticks(min(each["at_s"] for each in cycles) - 1.0)
    ticket = controller.submit(QueueItem(request_id="r"), now=start)
    assert isinstance(ticket, Ticket)
    got = []
    for each in cycles:
        controller.observe(pool(int(not each["pool_empty"])), now=ticks(each["at_s"]))
        is_empty = ticket.expires_at > ticks(1.5 * full)
        since = ticket.expires_at - ticks(empty if is_empty else full)
        got.append({"empty": is_empty, "since_s": None if since == start else since / 1e6})
    for i, (wanted, answer) in enumerate(zip(case["expect"]["regime"], got, strict=True)):
        within(wanted, answer, f"regime[{i}]", tolerance=1e-9)


# --- flows and bands ---------------------------------------------------------------------------------------------


def provisioning(case: Case) -> None:
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    negative = params.get("default_negative_band")
    controller = FlowController(
        bands=[template(each) for each in params.get("bands", ())],
        default=template(params.get("default_band") or {}),
        sheddable=None if negative is None else template(negative),
    )
    controller.desire(inputs.get("desired", ()), now=0.0)
    try:
        item = QueueItem(request_id="r", flow=inputs.get("flow_id", "f"), priority=inputs.get("flow_priority", 0))
        ticket = controller.submit(item, now=0.0)
    except InvalidInputError as error:
        same(expect.get("error"), "flow_id_empty" if error.parameter == "flow" else error.parameter, "error")
        return
    assert isinstance(ticket, Ticket)
    band = ticket.flow.band
    got = {
        "error": None,
        "band_max_bytes": band.capacity.size_bytes,
        "band_max_requests": band.capacity.requests,
        "band_priority": band.priority,
    }
    for name, value in expect.items():
        if name not in got:
            raise unknown("expectation", name)
        same(value, got[name], name)


def stats(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    names = list(dict.fromkeys(each["priority"] for each in inputs["items"]))
    priority = {
        name: name if isinstance(name, int) else {"high": 10, "low": 0}.get(name, -i) for i, name in enumerate(names)
    }
    gate = Level()
    gate.at = 1.0
    controller = FlowController(gate=gate)
    for i, each in enumerate(inputs["items"]):
        item = QueueItem(request_id=f"{i}", priority=priority[each["priority"]], size_bytes=each["bytes"])
        controller.submit(item, now=0.0)
    bands = {band.priority: band for band in controller.bands}
    same(expect["total_len"], sum(band.requests for band in bands.values()), "total_len")
    same(expect["total_bytes"], sum(band.size_bytes for band in bands.values()), "total_bytes")
    for name, value in expect["band"].items():
        band = bands[priority.get(name, int(name) if str(name).lstrip("-").isdigit() else 0)]
        same(value, {"len": band.requests, "bytes": band.size_bytes}, f"band {name}")


class Walk:
    """Opens, closes and collects flows as a case says; an open flow is one of which a request waits."""

    FLOW_GC, BAND_GC = 300.0, 600.0

    def __init__(self, bands: tuple[int, ...] = ()) -> None:
        gate = Level()
        gate.at = 1.0
        self.now = ticks(1e5)
        self.controller = FlowController(
            gate=gate,
            bands=[PriorityBand(each) for each in bands],
            budget=QueueBudget(ttl=None),
            flow_ttl=ticks(self.FLOW_GC),
            band_ttl=ticks(self.BAND_GC),
        )
        self.open: list[Ticket] = []
        self.seen: list[bool] = []

    def seconds(self, said: Any) -> float:
        """Read ``2*flow_gc``, ``band_gc+1s``, ``-2*flow_gc``, or plain seconds."""
        if isinstance(said, int | float):
            return float(said)
        total = 0.0
        for sign, factor, what in re.findall(
            r"([+-]?)(?:(\d+(?:\.\d+)?)\*)?(flow_gc|band_gc|\d+(?:\.\d+)?(?=s))s?", said
        ):
            value = {"flow_gc": self.FLOW_GC, "band_gc": self.BAND_GC}.get(what)
            value = float(what) if value is None else value
            total += (-1.0 if sign == "-" else 1.0) * float(factor or 1) * value
        return total

    def pin(self, priority: int = 0) -> None:
        ticket = self.controller.submit(QueueItem(request_id="r", flow="f", priority=priority), now=self.now)
        assert isinstance(ticket, Ticket)
        self.open.append(ticket)

    def unpin(self) -> None:
        self.controller.cancel(self.open.pop(), now=self.now)

    def flow(self, priority: int = 0) -> Any:
        return next((band.flows.get("f") for band in self.controller.bands if band.priority == priority), None)

    def has_band(self, priority: int) -> bool:
        return any(band.priority == priority for band in self.controller.bands)

    def step(self, name: str, *rest: Any) -> None:
        match name:
            case "open" | "pin":
                self.pin(*rest)
            case "close":
                self.unpin()
            case "unpin":
                self.now = max(self.now, self.start + ticks(rest[0])) if rest else self.now
                self.unpin()
            case "open_close":
                self.pin(*rest)
                self.unpin()
            case "advance":
                self.now += ticks(self.seconds(rest[0]))
            case "gc":
                self.controller.step(now=self.now)
            case "force_idle_since":
                self.flow().idle_since = self.now + ticks(self.seconds(rest[0]))
            case "desire":
                self.controller.desire(rest[0] if rest and isinstance(rest[0], list) else rest, now=self.now)
            case "check_band":
                self.seen.append(self.has_band(rest[0]))
            case "check" | "check_flow":
                self.seen.append(self.flow() is not None)
            case _:
                raise unknown("step", name)

    start = ticks(1e5)


def flow_gc(case: Case) -> None:
    walk = Walk()
    for name, *rest in case["inputs"]["steps"]:
        walk.step(name, *rest)
    wanted = case["expect"]["exists"]
    same(wanted, walk.seen if isinstance(wanted, list) else walk.flow() is not None, "exists")


def band_gc(case: Case) -> None:
    walk = Walk(tuple(case["params"].get("bands", ())))
    for name, *rest in case["inputs"]["steps"]:
        walk.step(name, *rest)
    same(case["expect"]["exists"], walk.seen, "exists")


def lease(case: Case) -> None:
    if "resources" in case["inputs"]:
        return collect(case)
    walk, active, since = Walk(), [], []
    for name, *rest in case["inputs"]["steps"]:
        walk.step(name, *rest)
        idle = walk.flow().idle_since
        active.append(idle == float("inf"))
        since.append(None if active[-1] else (idle - walk.start) / 1e6)
    same(case["expect"]["active_after"], active, "active_after")
    same(case["expect"]["idle_since_after"], since, "idle_since_after")
    return None


def collect(case: Case) -> None:
    """What has been idle for long enough goes; a flow that nobody has seen idle before is idle from now on."""
    inputs, expect, timeout = case["inputs"], case["expect"], case["params"]["timeout_s"]
    gate = Level()
    gate.at = 1.0
    controller = FlowController(
        gate=gate, flow_ttl=ticks(timeout), band_ttl=ticks(timeout), budget=QueueBudget(ttl=None)
    )
    now = ticks(inputs["now_s"])
    since = {
        name: now if each.get("idle_since_s") is None else ticks(each["idle_since_s"])
        for name, each in inputs["resources"].items()
    }
    tickets = {
        name: controller.submit(QueueItem(request_id=name, flow=name), now=min([now, *since.values()]))
        for name in inputs["resources"]
    }
    for name in sorted(since, key=since.__getitem__):
        if not inputs["resources"][name]["leases"]:
            controller.cancel(tickets[name], now=since[name])
    controller.step(now=now)
    left = next(band.flows for band in controller.bands)
    same(expect["deleted"], [name for name in inputs["resources"] if name not in left], "deleted")
    for name, value in expect.get("idle_since_set", {}).items():
        same(ticks(value), left[name].idle_since, f"idle since of {name}")


# --- whole walks -------------------------------------------------------------------------------------------------


def integration(case: Case) -> None:
    """Who is queued, what opens, and what comes of them: one reading for all that a case may say."""
    params, inputs, expect = case["params"], case["inputs"], case["expect"]
    if "ops" in inputs:
        return reregistration(case)
    gate = Level()
    gate.at = 1.0
    described = {
        "max_bytes": params.get("band_max_bytes"),
        "max_requests": params.get("band_max_requests"),
        "fairness": params.get("fairness"),
        "ordering": params.get("ordering"),
    }
    bands = [template(described, priority) for priority in {0: 0, **dict.fromkeys(params.get("bands", ()))}]
    ttl = params.get("default_request_ttl_s", inputs.get("ttl_s", 60.0))
    controller = FlowController(
        gate=gate,
        bands=bands,
        capacity=Capacity(params.get("max_requests") or None, params.get("max_bytes") or None),
        budget=budget(ttl, params.get("no_endpoint_request_ttl_s", ttl)),
    )
    controller.observe(pool(inputs.get("endpoints", 1)), now=0.0)
    tickets = arrivals(controller, inputs)
    got = {"bytes_before": sum(band.size_bytes for band in controller.bands)}
    if "callers_give_up_after_s" in inputs:
        for ticket in tickets:
            controller.cancel(ticket, now=ticks(inputs["callers_give_up_after_s"]))
    for i in range(inputs.get("then", 0)):
        item = QueueItem(request_id=f"then-{i}", size_bytes=inputs.get("item_bytes", 0))
        tickets.append(controller.submit(item, now=ticks(1.0)))
        got["overflow_outcome"] = told(refused(tickets[-1]))
    events = turn(controller, gate, inputs, tickets)
    order = [event.ticket.request_id for event in events if isinstance(event, Dispatch)]
    outcomes = [refused(ticket) for ticket in tickets]
    got |= {
        "order": order,
        "total": len(order),
        "evicted_or_rejected": sum(each is not None and (each.evicted or each.rejected) for each in outcomes),
        "every_chunk_of_3_has_all_flows": chunks(events, inputs, 3),
    }
    for name, value in expect.items():
        if name == "outcome":
            ended(expect, outcomes[-1])
        elif name == "outcomes_in":
            others = sorted({str(told(each)) for each in outcomes} - set(value))
            same([], others, "outcomes that were not expected")
        elif name in got:
            same(value, got[name], name)
        elif name not in ("error_is", "note"):
            raise unknown("expectation", name)
    return None


def told(outcome: QueueOutcome | None) -> str | None:
    return None if outcome is None else outcome.reference


def arrivals(controller: FlowController, inputs: Mapping[str, Any]) -> list[Any]:
    """Submit whoever is there from the beginning; one request where nobody is named."""
    queued, size = inputs.get("queued"), inputs.get("item_bytes", 0)
    items: list[QueueItem] = []
    if isinstance(queued, list):
        items = [
            QueueItem(
                request_id=each["id"],
                flow=each.get("flow", "f"),
                priority=each.get("priority", 0),
                size_bytes=each.get("bytes", size),
            )
            for each in queued
        ]
    elif "flows" in inputs:
        items = [
            QueueItem(request_id=f"{flow}-{i}", flow=flow, size_bytes=size)
            for flow in inputs["flows"]
            for i in range(inputs["requests_per_flow"])
        ]
    else:
        count = queued if queued is not None else inputs.get("fill", 1)
        items = [QueueItem(request_id=f"r-{i}", flow="f", size_bytes=size) for i in range(count)]
    return [controller.submit(item, now=0.0) for item in items]


def turn(controller: FlowController, gate: Level, inputs: Mapping[str, Any], tickets: list[Any]) -> list[Any]:
    """Let happen what a case says, up to when nothing can happen any more."""
    events: list[Any] = []
    for at, count in inputs.get("endpoints_timeline", ()):
        events += controller.step(now=ticks(at))
        controller.observe(pool(count), now=ticks(at))
    if inputs.get("shutdown"):
        return [*events, *controller.shutdown(now=ticks(2.0))]
    if inputs.get("cancel"):
        controller.cancel(tickets[-1], now=ticks(2.0))
    opens = inputs.get("unblock_at_s", 2.0 if "dispatch_slots" in inputs else None)
    if opens is not None:
        gate.at = 0.0
        events += controller.step(now=ticks(opens))
    elif not inputs.get("saturated") and "ttl_s" not in inputs and "then" not in inputs:
        gate.at = inputs.get("saturation", 0.0)
        events += controller.step(now=ticks(2.0))
    return [*events, *controller.step(now=LATER)]


def chunks(events: list[Any], inputs: Mapping[str, Any], size: int) -> bool:
    flows = [event.ticket.flow.id for event in events if isinstance(event, Dispatch)]
    wanted = set(inputs.get("flows", ()))
    return all(set(flows[i : i + size]) == wanted for i in range(0, len(flows), size))


def reregistration(case: Case) -> None:
    """An endpoint leaves and its namesake comes: what was in flight at the first is not at the second."""
    detector = ConcurrencyDetector(max_concurrency=case["params"]["max_concurrency"])
    members, reads, flying = isched.InferencePool(), [], None
    members.join("e")
    for operation in case["inputs"]["ops"]:
        match operation:
            case "start":
                flying = members.reserve("e", request_id="r", now=0.0)
            case "delete_endpoint":
                members.leave("e")
            case "add_endpoint":
                members.join("e")
            case "read":
                reads.append(detector.saturation(members.snapshot(), 0.0))
            case "complete_old":
                assert flying is not None
                with suppress(EndpointGoneError):
                    flying.complete(now=0.0)
            case _:
                raise unknown("operation", operation)
    same(case["expect"]["reads"], reads, "reads")


PURE, SCENARIO = "flow control: pure", "flow control: scenario"
RUNNERS: dict[tuple[str, str], Runner] = {
    ("ttl.queue_wait_budget", PURE): wait_budget,
    ("ttl.sweep", SCENARIO): timeline,
    ("ttl.regime", SCENARIO): regime,
    ("registry.provisioning", SCENARIO): provisioning,
    ("registry.stats", SCENARIO): stats,
    ("registry.gc.flow", SCENARIO): flow_gc,
    ("registry.gc.band", SCENARIO): band_gc,
    ("registry.lease", SCENARIO): lease,
    ("integration", SCENARIO): integration,
}
