"""Which flow goes next, which of its requests, and what a queue keeps: fairness, ordering, queues."""

from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from typing import Any

import msgspec

from inferencesched.config.catalogue import fairness as catalogue
from inferencesched.config.decode import decode
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol import (
    Capacity,
    Dispatch,
    EarliestDeadline,
    FirstCome,
    Flow,
    FlowController,
    LeastAttainedService,
    OrderedQueue,
    PriorityBand,
    QueueBudget,
    QueueItem,
    RoundRobin,
    Ticket,
    WaitMeans,
    jain_index,
)
from inferencesched.flowcontrol.books import QueueBooks
from inferencesched.flowcontrol.fairness.attained import scaled
from inferencesched.flowcontrol.flows import Band
from inferencesched.flowcontrol.idle import IdleFlows
from inferencesched.producers.latency import objectives_of
from inferencesched.request import Usage
from tests.flow_traces import Turnstile
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.specs import NoPlugins

SPECS = {spec.name: spec for spec in catalogue.SPECS}
NOW = 100_000.0


# --- bands and flows, as a controller has them ---------------------------------------------------------------------


class Bench:
    """A band whose flows a case fills by hand."""

    def __init__(self, fairness: Any, ordering: Any = None) -> None:
        self.band = Band(0, Capacity(), ordering or FirstCome(), fairness.start(), {}, protected=True)
        self.number = 0

    def flow(self, name: str, ordering: Any = None) -> Flow:
        if name not in self.band.flows:
            self.band.flows[name] = Flow(name, self.band, (ordering or self.band.ordering).queue(), 1.0)
        return self.band.flows[name]

    def add(self, flow: Flow, enqueued_at: float = NOW, **said: Any) -> Ticket:
        item = QueueItem(request_id=f"r{self.number}", flow=flow.id, **said)
        ticket = Ticket(item, flow, self.number, 1.0, enqueued_at)
        self.number += 1
        first = not len(flow.queue)
        flow.queue.push(ticket)
        if first:
            self.band.fairness.arrived(flow, NOW)
        elif flow.queue.head() is ticket:
            self.band.fairness.changed(flow, NOW)
        return ticket

    def fill(self, lengths: Sequence[tuple[str, int]]) -> None:
        """Let the band have these flows and no others, with so many requests each."""
        wanted: dict[str, int] = dict(lengths)
        for name in [*self.band.flows, *wanted]:
            flow = self.flow(name)
            while len(flow.queue) > wanted.get(name, 0):
                flow.queue.remove(flow.queue.head())  # type: ignore[arg-type]
                self.band.fairness.changed(flow, NOW)
            while len(flow.queue) < wanted.get(name, 0):
                self.add(flow)
            if name not in wanted:
                del self.band.flows[name]

    def pick(self) -> str | None:
        flow = self.band.fairness.pick(NOW)
        return None if flow is None else flow.id

    def serve(self) -> str | None:
        """Pick, and take the head out."""
        flow = self.band.fairness.pick(NOW)
        head = None if flow is None else flow.queue.head()
        if flow is None or head is None:
            return None
        flow.queue.remove(head)
        self.band.fairness.served(flow, head.cost, NOW)
        return flow.id


def policy_named(name: str, kind: str) -> Any:
    spec = SPECS.get(name)
    if spec is None or kind not in spec.kinds:
        raise unknown(kind, name)
    return spec.build(decode(spec.parameters, {}), NoPlugins(name))


# --- fairness ------------------------------------------------------------------------------------------------------


def conformance(case: Case) -> None:
    bench = Bench(policy_named(case["inputs"]["policy"], "fairness-policy"))
    bench.fill(case["inputs"]["queues"] or ())
    same(case["expect"].get("error"), None, "error")
    same(case["expect"]["flow"], bench.pick(), "flow")


def round_robin(case: Case) -> None:
    bench = Bench(RoundRobin())
    sequence = []
    for step in case["inputs"]["steps"]:
        bench.fill(step["pick_with"] or ())
        sequence.append(bench.serve())
    same(case["expect"]["sequence"], sequence, "sequence")


class Place:
    """A key of one ordering: compared with another ordering's it is a `TypeError`, as keys of two kinds are."""

    def __init__(self, ordering: str, at: float) -> None:
        self.ordering = ordering
        self.at = at

    def __lt__(self, other: "Place") -> bool:
        if self.ordering != other.ordering:
            return NotImplemented
        return self.at < other.at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Place) and (self.ordering, self.at) == (other.ordering, other.at)

    __hash__ = None  # type: ignore[assignment]


class By:
    """An ordering by the time of enqueueing, or by size, either way round: what its name says."""

    def __init__(self, name: str) -> None:
        self.name = name

    def queue(self) -> OrderedQueue:
        turned = -1.0 if "desc" in self.name else 1.0
        if "size" in self.name:
            return OrderedQueue(lambda ticket: Place(self.name, turned * ticket.item.size_bytes))
        return OrderedQueue(lambda ticket: Place(self.name, turned * ticket.enqueued_at))


def global_strict(case: Case) -> None:
    """Here a band has one ordering. Two in one band, or none, is an error of Python's, and nobody is picked."""
    queues, expect = case["inputs"]["queues"] or (), case["expect"]
    bench = Bench(policy_named("global-strict-fairness-policy", "fairness-policy"))
    try:
        for each in sorted(queues, key=lambda each: each.get("head_enqueue_s") or 0.0):
            name = each.get("ordering", "enqueue_time_ns_asc")
            flow = Flow(each["flow"], bench.band, (None if name is None else By(name)).queue(), 1.0)  # type: ignore[union-attr]
            bench.band.flows[flow.id] = flow
            for later in range(each["len"]):
                at = (each.get("head_enqueue_s") or 0.0) + later
                bench.add(flow, at, size_bytes=each.get("head_bytes", 0))
        got, error = bench.pick(), None
    except TypeError:
        got, error = None, "incompatible_ordering"
    except AttributeError:
        got, error = None, "programming_error"
    same(expect.get("error"), error, "error")
    same(expect.get("flow"), got, "flow")


def las(case: Case) -> None:
    params, expect = case["params"], case["expect"]
    usual = LeastAttainedService()
    policy = LeastAttainedService(
        params.get("weight_service", usual.service),
        params.get("weight_head_wait", usual.head_wait),
        params.get("half_life_s", usual.half_life),
    )
    bench = Bench(policy)
    for each in case["inputs"]["flows"] or ():
        flow = bench.flow(each["id"])
        if each.get("service"):
            bench.band.fairness.settled(flow, each["service"], NOW - each.get("service_age_s", 0.0))
        for _ in range(each.get("len", 1)):
            bench.add(flow, NOW - each.get("head_wait_ms", 0.0) / 1e3)
    same(expect["flow"], bench.pick(), "flow")
    if "state_created" in expect:
        same(expect["state_created"], any(flow.counter or flow.tag for flow in bench.band.flows.values()), "state")


def las_service(case: Case) -> None:
    policy = LeastAttainedService(half_life=case["params"].get("half_life_s", 60.0))
    bench, now = Bench(policy), 0.0
    flow = bench.flow("program")
    bench.band.fairness.settled(flow, case["inputs"].get("initial", 0.0), now)
    read: float | None = None
    for op in case["inputs"]["ops"]:
        now = max(now, op.get("at_s", now))
        if op["op"] == "complete":
            prompt, completion = op.get("prompt_tokens", 0), op.get("completion_tokens", 0)
            flow = completed(policy, flow, prompt, completion, now)
        elif op["op"] == "read":
            read = policy.attained(flow, now)
        elif op["op"] == "evict":
            IdleFlows(1.0, most=0).add(flow, now)
            flow = bench.flow("program")
        else:
            raise unknown("operation", op["op"])
    same(case["expect"]["service"], read, "service", tolerance=case["tolerance"])


def completed(policy: LeastAttainedService, before: Flow, prompt: int, completion: int, now: float) -> Flow:
    """Send one request through a controller, whose flow has had so much service before; return that flow."""
    controller = FlowController(bands=[PriorityBand(0, fairness=policy)])
    ticket = controller.submit(QueueItem(request_id="r", flow="program", input_tokens=prompt), now)
    assert isinstance(ticket, Ticket)
    flow = ticket.flow
    flow.counter, flow.tag = before.counter, before.tag
    flow.band.fairness.settled(flow, 0.0, now)
    controller.step(now)
    controller.completed(ticket, Usage(prompt, completion, 0), now=now)
    return flow


def evict_idle(case: Case) -> None:
    """The controller forgets flows: `flow_ttl`."""
    said = case["inputs"]
    controller = FlowController(flow_ttl=said["ttl_s"])
    tickets = [controller.submit(QueueItem(request_id=f"{i}"), 0.0) for i in range(1 + said["in_flight"])]
    controller.step(0.0)
    band = tickets[0].flow.band  # type: ignore[union-attr]
    controller.completed(tickets[0], now=0.0)  # type: ignore[arg-type]
    controller.step(said.get("last_completion_age_s", said.get("age_s", 0.0)))
    same(case["expect"]["kept"], bool(band.flows), "kept")


def range_normalize(case: Case) -> None:
    said = case["inputs"]
    got = scaled(said["value"], said["min"], said["max"])
    same(case["expect"]["normalized"], got, "normalized", tolerance=case["tolerance"])


def waits(case: Case) -> None:
    said = [nan if wait is None else wait / 1e3 for wait in case["inputs"]["waits_ms"]]
    gate, means = Turnstile(), WaitMeans()
    controller = FlowController(gate=gate)
    ages = {f"{i}": 0.0 if wait != wait else wait for i, wait in enumerate(said)}
    for name in sorted(ages, key=lambda name: -ages[name]):
        controller.submit(QueueItem(request_id=name), NOW - ages[name])
    gate.left = len(said)
    flow: Flow | None = None
    for event in controller.step(NOW):
        assert isinstance(event, Dispatch)
        ticket, flow = event.ticket, event.ticket.flow
        known = said[int(ticket.request_id)] == said[int(ticket.request_id)]
        means.add(flow.id, ticket.dispatched_at - ticket.enqueued_at if known else nan)
    name = "default-flow"
    got = {
        "mean_wait_ms": means.mean(name) * 1e3,
        "wait_count": means.known(name),
        "dispatched": means.dispatches(name),
        "in_flight": 0 if flow is None else flow.inflight,
    }
    for key, value in case["expect"].items():
        if key not in got:
            raise unknown("expectation", key)
        same(value, got[key], key, tolerance=case["tolerance"] if key == "mean_wait_ms" else 0.0)


def jain(case: Case) -> None:
    got = jain_index(wait / 1e3 for wait in case["inputs"]["mean_waits_ms"])
    expect = case["expect"]
    if "index" in expect:
        same(expect["index"], got, "index", tolerance=case["tolerance"])
    for word, holds in (("gt", float.__gt__), ("lt", float.__lt__), ("gte", float.__ge__), ("lte", float.__le__)):
        if f"index_{word}" in expect and not holds(got, float(expect[f"index_{word}"])):
            raise Mismatch(f"index {word} {expect[f'index_{word}']}", got)
    if "index_in" in expect:
        least, most = expect["index_in"]
        if not least <= got <= most:
            raise Mismatch(f"an index in {expect['index_in']}", got)


#: What settings are called: by llm-d, by the vectors, and here.
SETTINGS = (
    ("lasWeightService", "weight_service", "las_weight_service"),
    ("lasWeightHeadWait", "weight_head_wait", "las_weight_head_wait"),
    ("lasHalfLifeSeconds", "half_life_s", "las_half_life_seconds"),
    ("evictionTtlSeconds", "eviction_ttl_s", "eviction_ttl_seconds"),
)


def las_config(case: Case) -> None:
    spec, expect = SPECS["program-aware-fairness"], case["expect"]
    said = case["inputs"].get("config")
    try:
        if isinstance(said, str):
            said = msgspec.json.decode(said) if said.strip() else {}
        parameters = decode(spec.parameters, {} if said is None else said)
        built = spec.build(parameters, NoPlugins(case["inputs"].get("name", spec.name)))
    except (InvalidInputError, msgspec.ValidationError, msgspec.DecodeError) as error:
        if expect["valid"]:
            raise Mismatch("parameters that are valid", str(error)) from error
        return
    if not expect["valid"]:
        raise Mismatch("a refusal", built)
    assert spec.read is not None
    read = spec.read(built)
    got = {"name": case["inputs"].get("name", spec.name), "type": spec.name, "strategy": read.strategy}
    for names in SETTINGS:
        got |= dict.fromkeys(names, getattr(read, names[-1]))
    sweep = parameters.eviction_sweep_seconds
    got |= dict.fromkeys(("evictionSweepSeconds", "eviction_sweep_s", "eviction_sweep_seconds"), sweep)
    for key, value in expect.items():
        if key == "valid":
            continue
        if key not in got:
            raise unknown("setting", key)
        same(value, got[key], key, tolerance=case["tolerance"])


# --- ordering ------------------------------------------------------------------------------------------------------


def item_of(said: Mapping[str, Any] | None) -> tuple[QueueItem, float] | None:
    """Return a request of the vectors and when it was queued; None for none."""
    if said is None:
        return None
    received = said.get("received_s")
    ttl = said.get("ttl_s")
    item = QueueItem(
        request_id="r",
        ttl=ttl if ttl is not None and ttl > 0 else None,
        slo_ttft=_slo(said.get("headers") or {}),
        received_at=received,
    )
    return item, said.get("enqueue_s", received if received is not None else 0.0)


def _slo(headers: Mapping[str, str]) -> float | None:
    """Read the objective as a gateway does: what is no number, below 0, or more nanoseconds than an int64 holds is none.

    Here an objective is above 0; 0 becomes what is less than any difference of times.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    said = (lower.get("x-llm-d-slo-ttft-ms") or lower.get("x-slo-ttft-ms") or "").strip()
    if said.lstrip("+").isdigit() and int(said) == 0:
        return 1e-12
    try:
        found = objectives_of(lower).ttft
    except InvalidInputError:
        return None
    return found if found is not None and found * 1e9 < 2**63 else None


def goes_first(ordering: Any, a: tuple[QueueItem, float] | None, b: tuple[QueueItem, float] | None) -> bool:
    """Does a go before b in a queue, whichever of them came first? What is not there goes before nothing."""
    if a is None or b is None:
        return a is not None
    orders = ((a, b), (b, a)) if a[1] == b[1] else (sorted((a, b), key=lambda each: each[1]),)
    heads = set()
    for order in orders:
        bench = Bench(policy_named("round-robin-fairness-policy", "fairness-policy"), ordering)
        flow = bench.flow("f")
        tickets = {}
        for item, at in order:
            ticket = Ticket(item, flow, bench.number, 1.0, at)
            tickets[id(ticket)] = item
            bench.number += 1
            flow.queue.push(ticket)
        head = flow.queue.head()
        assert head is not None
        heads.add(head.item is a[0])
    return heads == {True}


def ordering_of(name: str) -> Any:
    if name == "edf-ordering-policy":
        return EarliestDeadline(QueueBudget(ttl=None))
    return policy_named(name, "ordering-policy")


def less(name: str) -> Runner:
    def run(case: Case) -> None:
        said = case["inputs"]
        same(case["expect"]["less"], goes_first(ordering_of(name), item_of(said["a"]), item_of(said["b"])), "less")

    return run


def ordering_conformance(case: Case) -> None:
    said = case["inputs"]
    a, b = (None if said[which] in ("nil", None) else item_of({}) for which in "ab")
    same(case["expect"]["less"], goes_first(ordering_of(said["policy"]), a, b), "less")


def deadline(at: Callable[[QueueItem, float], float]) -> Runner:
    def run(case: Case) -> None:
        said, expect = case["inputs"]["item"], case["expect"]
        found = item_of(said)
        due = inf if found is None else at(*found)
        same(expect.get("deadline_s"), None if due == inf else due, "deadline_s", tolerance=case["tolerance"])
        if "far_future" in expect:
            same(expect["far_future"], due == inf, "far_future")

    return run


def slo_deadline(item: QueueItem, enqueued_at: float) -> float:
    bench = Bench(RoundRobin())
    ticket = Ticket(item, bench.flow("f"), 0, 1.0, enqueued_at)
    return float(policy_named("slo-deadline-ordering-policy", "ordering-policy").key(ticket)[0])


# --- queues --------------------------------------------------------------------------------------------------------


class Shelf:
    """A flow's queue, and the books that count its bytes."""

    def __init__(self, ordering: str) -> None:
        self.books = QueueBooks(Capacity())
        self.band = self.books.make(PriorityBand(0, Capacity(), ordering=By(ordering)), protected=True)
        self.flow = Flow("f", self.band, self.band.ordering.queue(), 1.0)
        self.tickets: dict[str, Ticket] = {}

    def add(self, said: Mapping[str, Any]) -> Ticket:
        item = QueueItem(request_id=said["id"], size_bytes=said["bytes"])
        ticket = Ticket(item, self.flow, len(self.tickets), 1.0, said.get("enqueue_s", 0.0))
        self.tickets[said["id"]] = ticket
        self.flow.queue.push(ticket)
        self.books.book(ticket, ticket.flow.band.totals.submitted)
        return ticket

    def remove(self, handle: Any) -> str | None:
        """Take a ticket out; return the error where it is not there, and then nothing has changed."""
        try:
            self.flow.queue.remove(handle)
        except (ValueError, TypeError, AttributeError):
            return "invalid_handle"
        self.books.unbook(handle, handle.flow.band.totals.evicted)
        return None

    def cleanup(self, wanted: Callable[[Ticket], bool]) -> int:
        found = [ticket for ticket in self.flow.queue if wanted(ticket)]
        assert all(self.remove(ticket) is None for ticket in found)
        return len(found)


PREDICATES: dict[str, Callable[[Ticket], bool]] = {
    "odd_bytes": lambda ticket: ticket.item.size_bytes % 2 == 1,
    "even_bytes": lambda ticket: ticket.item.size_bytes % 2 == 0,
    **dict.fromkeys(("never", "none"), lambda ticket: False),
    **dict.fromkeys(("always", "all", "any"), lambda ticket: True),
}


def queue(case: Case) -> None:
    said, expect = case["inputs"], case["expect"]
    shelf = Shelf(case["params"].get("ordering", "enqueue_time_asc"))
    got: dict[str, Any] = {}
    for each in (*said.get("items", ()), *said.get("queue", ())):
        shelf.add(each)
    got["bytes_after_add"] = shelf.band.size_bytes
    if "mutate_bytes" in said:
        for name, size in said["mutate_bytes"].items():  # a request that is queued cannot be changed
            try:
                shelf.tickets[name].item.size_bytes = size  # type: ignore[misc]
            except AttributeError:
                continue
    if "handle" in said:
        before = (len(shelf.flow.queue), shelf.band.size_bytes)
        got["error"] = shelf.remove(handle(said["handle"], shelf))
        got["len_unchanged"] = before[0] == len(shelf.flow.queue)
        got["bytes_unchanged"] = before[1] == shelf.band.size_bytes
    if "predicate" in said:
        if said["predicate"] not in PREDICATES:
            raise unknown("predicate", said["predicate"])
        got["removed_count"] = shelf.cleanup(PREDICATES[said["predicate"]])
    ops = [*said.get("ops", ())]
    if "op" in said:
        name, _, which = said["op"].partition(":")
        ops.append({"op": name, "id": which})
    after_adds: list[int] = []
    for op in ops:
        if op["op"] == "add":
            shelf.add(op)
            after_adds.append(shelf.band.size_bytes)
        elif op["op"] in ("drain_by_peek_remove", "drain"):
            got["order"] = drained(shelf)
        elif op["op"] in ("remove", "cleanup"):
            name = op["id"]
            wanted = shelf.tickets[name]
            if op["op"] == "cleanup":
                got["removed_count"] = shelf.cleanup(lambda ticket, wanted=wanted: ticket is wanted)  # type: ignore[misc]
            elif shelf.remove(wanted) is None:
                got["removed"] = name
        else:
            raise unknown("operation", op["op"])
    got |= {"len": len(shelf.flow.queue), "bytes": shelf.band.size_bytes, "bytes_after_adds": after_adds}
    got |= {"len_after": got["len"], "bytes_after": got["bytes"], "final_len": got["len"], "final_bytes": got["bytes"]}
    if "second_remove_error" in expect:
        got["second_remove_error"] = shelf.remove(shelf.tickets[got["removed"]])
    for key, value in expect.items():
        if key not in got:
            raise unknown("expectation", key)
        same(value, got[key], key)


def drained(shelf: Shelf) -> list[str]:
    order = []
    while (head := shelf.flow.queue.head()) is not None:
        order.append(head.request_id)
        assert shelf.remove(head) is None
    return order


def handle(kind: str | None, shelf: Shelf) -> Any:
    """Return something that is in no queue of the shelf's."""
    if kind in (None, "nil"):
        return None
    if kind == "foreign type":
        return "a word"
    if kind == "invalidated":
        ticket = shelf.add({"id": "gone", "bytes": 1})
        assert shelf.remove(ticket) is None
        return ticket
    other = Shelf("enqueue_time_asc")
    for _ in range(len(shelf.tickets) + 1):
        ticket = other.add({"id": f"{len(other.tickets)}", "bytes": 1})
    return ticket


PURE, SCENARIO, CONFIG = (f"flow control: {kind}" for kind in ("pure", "scenario", "config"))
RUNNERS: dict[tuple[str, str], Runner] = {
    ("fairness.conformance", PURE): conformance,
    ("fairness.round_robin", SCENARIO): round_robin,
    ("fairness.global_strict", PURE): global_strict,
    ("fairness.las", PURE): las,
    ("fairness.las.service", PURE): las_service,
    ("fairness.las.evict_idle", SCENARIO): evict_idle,
    ("fairness.las.range_normalize", PURE): range_normalize,
    ("fairness.las.wait", SCENARIO): waits,
    ("fairness.las.config", CONFIG): las_config,
    ("fairness.jain", PURE): jain,
    ("ordering.fcfs", PURE): less("fcfs-ordering-policy"),
    ("ordering.edf", PURE): less("edf-ordering-policy"),
    ("ordering.slo_deadline", PURE): less("slo-deadline-ordering-policy"),
    ("ordering.conformance", PURE): ordering_conformance,
    ("ordering.edf.deadline", PURE): deadline(
        lambda item, at: EarliestDeadline(QueueBudget(ttl=None)).deadline(item, at)
    ),
    ("ordering.slo_deadline.deadline", PURE): deadline(slo_deadline),
    ("queue", SCENARIO): queue,
}
