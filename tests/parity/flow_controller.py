"""The flow controller: what fits, what happens to whom, when it expires, what is forgotten, and how it is set up.

Times of a case are exact decimals; they are counted in whole microseconds, which floats hold exactly.
"""

from collections.abc import Mapping
from typing import Any

from inferencesched.endpoints import Endpoints
from inferencesched.errors import PluginError
from inferencesched.flowcontrol import (
    Capacity,
    Cause,
    Dispatch,
    FlowController,
    GlobalStrict,
    PriorityBand,
    QueueItem,
    QueueOutcome,
    Rejection,
    Ticket,
    infer_outcome,
)
from inferencesched.flowcontrol.books import QueueBooks
from inferencesched.flowcontrol.config import band_capacity
from inferencesched.pool import InferencePool
from tests.parity.cases import Case, Mismatch, Runner, same, unknown
from tests.parity.flow_eviction import Level

FOREVER = 1e15
#: Which of llm-d's sentinels an outcome stands for, beside `rejected` and `evicted`.
SENTINELS = {
    QueueOutcome.REJECTED_CAPACITY: {"queue_at_capacity"},
    QueueOutcome.REJECTED_NO_ENDPOINTS: {"no_endpoints", "queue_at_capacity"},
    QueueOutcome.REJECTED_TTL: {"ttl_expired"},
    QueueOutcome.REJECTED_DEADLINE: {"ttl_expired"},
    QueueOutcome.REJECTED_CANCELLED: {"context_cancelled"},
    QueueOutcome.REJECTED_SHUTDOWN: {"not_running"},
    QueueOutcome.EVICTED_TTL: {"ttl_expired"},
    QueueOutcome.EVICTED_NO_ENDPOINTS: {"ttl_expired", "no_endpoints"},
    QueueOutcome.EVICTED_DEADLINE: {"ttl_expired"},
    QueueOutcome.EVICTED_CANCELLED: {"context_cancelled"},
    QueueOutcome.EVICTED_SHUTDOWN: {"not_running"},
}


def ticks(seconds: float) -> float:
    return float(round(seconds * 1e6))


def limit(seconds: float | None) -> float | None:
    """Return a budget; 0 and less is none."""
    return ticks(seconds) if seconds is not None and seconds > 0 else None


def pool(count: int) -> Endpoints:
    made = InferencePool()
    for i in range(count):
        made.join(f"endpoint-{i}")
    return made.snapshot()


def refused(said: Ticket | Rejection) -> QueueOutcome | None:
    return said.outcome


def ended(expect: Mapping[str, Any], outcome: QueueOutcome | None) -> None:
    """Hold an outcome against what is expected of it, and of the error that goes with it."""
    wanted = expect.get("outcome")
    name = None if outcome is None else outcome.reference
    same(wanted, name, "outcome")
    if "error_is" in expect:
        assert outcome is not None
        kinds = {"rejected"} if outcome.rejected else {"evicted"} if outcome.evicted else set()
        missing = set(expect["error_is"]) - kinds - SENTINELS.get(outcome, set())
        if missing:
            raise Mismatch(expect["error_is"], f"{outcome.value}, which is not {sorted(missing)}", "error_is")


# --- what fits ---------------------------------------------------------------------------------------------------


def has_capacity(case: Case) -> None:
    inputs = case["inputs"]
    total, said = inputs["global"], inputs["band"]
    books = QueueBooks(Capacity(total["capacity_requests"] or None, total["capacity_bytes"] or None))
    capacity = (
        Capacity() if said is None else Capacity(said["capacity_requests"] or None, said["capacity_bytes"] or None)
    )
    band = books.make(PriorityBand(0, capacity), protected=True)
    books.requests, books.size_bytes = total["len"], total["bytes"]
    if said is not None:
        band.requests, band.size_bytes = said["len"], said["bytes"]
    item = QueueItem(request_id="r", size_bytes=inputs["item_bytes"])
    fits = books.fits(band, item)
    same(fits, not (books.lacking(item) or books.lacking_in(band, item)), "what is said of it")
    same(case["expect"]["has_capacity"], fits, "has_capacity")


# --- how a request ends ------------------------------------------------------------------------------------------


class Broken:
    """Stands for a collaborator that fails: an ordering, a fairness policy, or the order of flows that it makes."""

    def __init__(self) -> None:
        self.asked = 0

    def queue(self) -> Any:
        self.asked += 1
        raise RuntimeError("out of order")

    def start(self) -> "Broken":
        return self

    def arrived(self, *said: object) -> None:
        self.asked += 1

    changed = served = settled = arrived

    def pick(self, *said: object) -> None:
        """Name nobody, whoever waits."""


def refused_by_fault(item: QueueItem) -> tuple[QueueOutcome, int]:
    """Submit where an ordering raises: nothing is queued, and the gateway infers the rest. Returns how often it was asked, too."""
    broken = Broken()
    controller = FlowController(bands=[PriorityBand(0, ordering=broken)])
    try:
        controller.submit(item, now=0.0)
    except RuntimeError:
        same(0, sum(band.requests for band in controller.bands), "waiting")
        controller.check()
        return infer_outcome(Cause.OTHER, queued=False), broken.asked
    raise Mismatch("a policy's error", "none")


def enqueue(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    item = QueueItem(request_id="r", size_bytes=inputs.get("item_bytes", 0))
    if "fault" in inputs:
        return ended(expect, refused_by_fault(item)[0])
    gate = Level()
    capacity = band_capacity(inputs.get("band_capacity_bytes", 0))
    controller = FlowController(gate=gate, bands=[PriorityBand(0, capacity)])
    if "already_finalized" in inputs:
        return ended(expect, finalized(case, controller, item))
    gate.at = 1.0
    controller.observe(pool(0 if inputs.get("pool_empty") else 1), now=0.0)
    said = controller.submit(item, now=0.0)
    if "queued" in expect:
        same(expect["queued"], isinstance(said, Ticket), "queued")
    return ended(expect, refused(said))


def finalized(case: Case, controller: FlowController, item: QueueItem) -> QueueOutcome | None:
    """End a request, and try to end it again."""
    said, ticket = case["inputs"]["already_finalized"], controller.submit(item, now=0.0)
    assert isinstance(ticket, Ticket)
    if said == "Dispatched":
        controller.step(now=0.0)
    elif said == "EvictedContextCancelled":
        controller.cancel(ticket, now=0.0)
    elif said in ("EvictedOther", "RejectedOther"):
        controller.shutdown(now=0.0)
    else:
        raise unknown("outcome", said)
    before = ticket.outcome
    same(False, controller.cancel(ticket, now=0.0), "a second end")
    same([], controller.step(now=FOREVER), "what comes later")
    same(before, ticket.outcome, "the outcome after that")
    same(case["expect"].get("queued", False), any(band.requests for band in controller.bands), "queued")
    return ticket.outcome


def submit(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    if inputs.get("state") != "stopped":
        raise unknown("state", inputs)
    controller = FlowController()
    controller.shutdown(now=0.0)
    said = controller.submit(QueueItem(request_id="r"), now=0.0)
    same(expect["finalized"], isinstance(said, Ticket), "finalized")
    outcome = refused(said)
    if outcome is None or expect["error"] not in SENTINELS[outcome]:
        raise Mismatch(expect["error"], said, "error")


def shutdown(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    gate = Level()
    controller = FlowController(gate=gate)
    gate.at = 1.0
    tickets = [controller.submit(QueueItem(request_id=f"r-{i}"), now=0.0) for i in range(inputs["queued"])]
    same(len(tickets), len(controller.shutdown(now=0.0)), "told")
    for ticket in tickets:
        ended(expect, ticket.outcome)


def sweep(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    gate = Level()
    controller = FlowController(gate=gate)
    gate.at = 1.0
    tickets = [controller.submit(QueueItem(request_id=f"r-{i}"), now=0.0) for i in range(inputs["queued"])]
    if inputs["finalize"] == "context_cancelled":
        for ticket in tickets:
            controller.cancel(ticket, now=0.0)
    elif inputs["finalize"] == "ttl_expired":
        controller.step(now=60.0)
    elif inputs["finalize"] is not None:
        raise unknown("finalize", inputs["finalize"])
    controller.step(now=60.0 if inputs["finalize"] else 1.0)
    same(expect["len_after"], sum(band.requests for band in controller.bands), "len_after")
    for ticket in tickets:
        ended(expect, ticket.outcome)


def dispatch_cycle(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    if inputs.get("fault") not in (None, "band_accessor"):
        raise unknown("fault", inputs["fault"])
    said = inputs["bands"]
    bands = [
        PriorityBand(each["priority"], fairness=Broken() if "fairness" in each else GlobalStrict()) for each in said
    ]
    gate = Level()
    controller = FlowController(gate=gate, bands=bands)
    gate.at = inputs.get("saturation", 0.0)
    for each in said:
        for i in range(each["queued"]):
            controller.submit(QueueItem(request_id=f"{i}", priority=each["priority"]), now=0.0)
    went: list[int] = []
    for _ in range(inputs.get("cycles", 1)):
        try:
            went += [event.ticket.item.priority for event in controller.step(now=0.0)]
        except PluginError:
            continue
    if "dispatched" in expect:
        same(expect["dispatched"], bool(went), "dispatched")
    for name in ("dispatch_priorities", "dispatched_priority"):
        if name in expect:
            same(expect[name], went if isinstance(expect[name], list) else went[0], name)


def infer(case: Case) -> None:
    cause = case["inputs"]["cause"]
    ended(case["expect"], infer_outcome(None if cause is None else Cause(cause), case["inputs"]["queued"]))


def first_wins(case: Case) -> None:
    """The first call is made; nothing that comes later changes what came of it."""
    inputs = case["inputs"]
    gate = Level()
    controller = FlowController(gate=gate)
    kind, _, said = inputs["calls"][0].partition(":")
    if not inputs["queued"] and kind == "cause":
        ended(case["expect"], infer_outcome(Cause(said), queued=False))
        return
    gate.at = 1.0
    ticket = controller.submit(QueueItem(request_id="r"), now=0.0)
    assert isinstance(ticket, Ticket)
    end(controller, gate, ticket, said, 60.0)
    before = ticket.outcome
    for i, call in enumerate(inputs["calls"][1:]):
        end(controller, gate, ticket, call.partition(":")[2], 120.0 + i)
        same(before, ticket.outcome, f"the outcome after {call}")
    ended(case["expect"], ticket.outcome)


def end(controller: FlowController, gate: Level, ticket: Ticket, how: str, now: float) -> None:
    """End a request in this way, at a time when its budget of 60 s is spent."""
    match how:
        case "Dispatched":
            gate.at = 0.0
            controller.step(now=now if ticket.outcome is not None else 0.0)
        case "ttl_expired" | "EvictedTTL":
            controller.step(now=now)
        case "context_cancelled" | "EvictedContextCancelled":
            controller.cancel(ticket, now=now)
        case "not_running" | "other" | "EvictedOther" | "RejectedOther" | "RejectedCapacity":
            controller.shutdown(now=now)
        case _:
            raise unknown("end", how)


# --- a request on its way ----------------------------------------------------------------------------------------


def outcome(case: Case) -> None:
    """A request comes, with what goes wrong around it. There is no channel between it and the controller that could be busy."""
    inputs, expect = case["inputs"], case["expect"]
    processor, context = inputs.get("processor", "accepts"), inputs.get("context")
    stops = processor in ("not_running", "busy_then_not_running") or inputs.get("controller") == "stopped"
    item = QueueItem(request_id="r", deadline=-1.0 if context == "deadline_in_past" else None)
    if "registry" in inputs:
        got, attempts = refused_by_fault(item)
        if "connection_attempts" in expect:
            same(expect["connection_attempts"], attempts, "connection_attempts")
        return ended(expect, got)
    gate = Level()
    controller = FlowController(gate=gate)
    if stops:
        controller.shutdown(now=0.0)
    if context == "cancelled" and not inputs.get("queued") and not stops:
        return ended(expect, infer_outcome(Cause.CANCELLED, queued=False))
    if inputs.get("controller") == "stops_while_waiting" and not inputs["queued"]:
        controller.shutdown(now=0.0)
    later = None if context in (None, "deadline_in_past") else str(context)
    gate.at = 1.0 if later or inputs.get("queued") else 0.0
    said = controller.submit(item, now=0.0)
    if isinstance(said, Ticket):
        if inputs.get("controller") in ("stops_while_waiting", "stops"):
            controller.shutdown(now=0.0)
        elif later is None:
            controller.step(now=0.0)
        elif later.startswith("cancel"):
            controller.cancel(said, now=0.0)
        elif later.startswith(("deadline", "ttl", "expire")):
            controller.step(now=60.0)
        else:
            raise unknown("context", context)
    return ended(expect, refused(said))


def fallback(case: Case) -> None:
    """A priority that nobody announced; llm-d's answer is another, see the page of differences."""
    inputs, expect = case["inputs"], case["expect"]
    key = inputs["flow_key"]
    controller = FlowController(bands=[PriorityBand(each) for each in inputs["provisioned_bands"]])
    ticket = controller.submit(QueueItem(request_id="r", flow=key["id"], priority=key["priority"]), now=0.0)
    controller.step(now=0.0)
    assert isinstance(ticket, Ticket)
    same(expect["outcome"], None if ticket.outcome is None else ticket.outcome.reference, "outcome")
    same(expect["enqueued_key"], {"id": ticket.flow.id, "priority": ticket.flow.band.priority}, "enqueued_key")


def legacy(case: Case) -> None:
    inputs, expect = case["inputs"], case["expect"]
    gate = Level()
    controller = FlowController(gate=gate, mode="legacy")
    controller.observe(pool(inputs["endpoints"]), now=0.0)
    gate.at = inputs["saturation"]
    said = controller.submit(QueueItem(request_id="r", priority=inputs["priority"]), now=0.0)
    admitted = bool([event for event in controller.step(now=0.0) if isinstance(event, Dispatch)])
    same(expect["admitted"], admitted, "admitted")
    if not admitted:
        assert isinstance(said, Rejection)
        same(expect["code"], said.outcome.code, "code")
        if expect["message_contains"] not in said.detail:
            raise Mismatch(expect["message_contains"], said.detail, "message")


RUNNERS: dict[tuple[str, str], Runner] = {
    ("capacity.has_capacity", "flow control: pure"): has_capacity,
    ("processor.enqueue", "flow control: scenario"): enqueue,
    ("processor.dispatch_cycle", "flow control: scenario"): dispatch_cycle,
    ("processor.submit", "flow control: scenario"): submit,
    ("processor.shutdown", "flow control: scenario"): shutdown,
    ("processor.sweep", "flow control: scenario"): sweep,
    ("flow_item.first_finalize_wins", "flow control: pure"): first_wins,
    ("flow_item.infer_outcome", "flow control: pure"): infer,
    ("controller.outcome", "flow control: scenario"): outcome,
    ("controller.fallback", "flow control: scenario"): fallback,
    ("admission.legacy", "flow control: pure"): legacy,
}
