"""Why does a request wait, or how did it end?

`explain` looks at the controller as it is and changes nothing: neither what is decided nor when. Who does not ask pays for one
assignment a step. The plain data of `FlowExplanation.to_dict` is described by `TicketRecord`, version 1; keys are added
without a new version, a key that goes or changes its meaning makes one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import islice
from math import ceil, isfinite, nan
from typing import Final, Literal, TypedDict

from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.fairness.order import RankedOrder
from inferencesched.flowcontrol.fairness.strict import STRICT_RULE
from inferencesched.flowcontrol.flows import Band, Flow, Ticket
from inferencesched.flowcontrol.log import RecordedController
from inferencesched.flowcontrol.ordering import AdaptiveQueue
from inferencesched.flowcontrol.outcomes import QueueOutcome
from inferencesched.flowcontrol.policies import StrictBands

#: What ``version`` says.
VERSION: Final = 1
#: So many of those ahead are named; the counts are of all.
NAMED: Final = 10

#: Where it is: in the queue, at a server, or neither any more.
State = Literal["waits", "in flight", "ended"]
#: Why it waits: the controller has not stepped since it came; the pool is as full as its band may fill it; or its own servers are.
Reason = Literal["no step since", "pool full", "own servers full"]


class BandRecord(TypedDict):
    """Which band is it in, and may that go?

    ``rank`` 1 is the greatest priority of ``bands``; ``above`` is how many wait in greater ones. ``level`` and ``ceiling`` are those of the last step,
    None before the first, where it is no finite number, or for a band that was not there: it may go while the level is below.
    """

    priority: int
    rank: int
    bands: int
    waiting: int
    above: int
    policy: str
    level: float | None
    ceiling: float | None
    open: bool | None


class TurnRecord(TypedDict):
    """Who else of the band's flows goes before it? ``number`` is what the rule compares, None where it compares none."""

    flow: str
    number: float | None
    waiting: int


class FlowRecord(TypedDict):
    """When is it its flow's turn?

    ``place`` 1 goes next, of ``flows`` that wait, by ``rule``; None where the policy does not tell. ``ahead`` names the first of those before it.
    """

    id: str
    weight: float
    waiting: int
    in_flight: int
    rule: str
    place: int | None
    flows: int
    number: float | None
    ahead: list[TurnRecord]


class PlaceRecord(TypedDict):
    """When is its turn in its flow? ``place`` 1 is the head; ``ahead`` are the ids of the first before it."""

    place: int
    waiting: int
    ahead: list[str]


class BudgetRecord(TypedDict):
    """How long may it still wait? Seconds; None for any length of time. ``deadline`` says that its own deadline comes first."""

    expires_at: float | None
    left: float | None
    deadline: bool


class EstimateRecord(TypedDict):
    """How long will it wait, as far as can be told?

    ``before`` is how many will probably go before it, were nobody to come or go, and flows served evenly by weight; ``wait`` is seconds at
    the rate of late. None where that is not known: no rate yet, or a band policy that is not strict.
    """

    before: int | None
    wait: float | None


class TicketRecord(TypedDict):
    """What is known of one ticket?

    Times are seconds on the controller's clock. ``waited`` is how long it has waited, or did until it went; None where it left the queue otherwise.
    ``band``, ``turn``, ``place``, ``budget`` and ``estimate`` are None unless it waits.
    """

    version: int
    request_id: str
    flow: str
    priority: int
    state: State
    reason: Reason | None
    outcome: str | None
    status: int | None
    dropped_reason: str
    enqueued_at: float
    dispatched_at: float | None
    endpoint: str
    waited: float | None
    cost: float
    band: BandRecord | None
    turn: FlowRecord | None
    place: PlaceRecord | None
    budget: BudgetRecord | None
    estimate: EstimateRecord | None


@dataclass(frozen=True, slots=True)
class FlowExplanation:
    """Why does a request wait, or how did it end? Made by `explain`; text as ``str``, a block of text in a notebook, plain data."""

    record: TicketRecord

    def to_dict(self) -> TicketRecord:
        """Return plain data, ready for JSON: `TicketRecord`."""
        return self.record

    def __str__(self) -> str:
        return "\n".join(_lines(self.record))

    def _repr_html_(self) -> str:
        """Return the text for a notebook; every word in it is escaped."""
        return f"<pre>{escape(str(self))}</pre>"


def explain(controller: FlowController | RecordedController, ticket: Ticket, now: float) -> FlowExplanation:
    """Return why a ticket of this controller waits, or how it ended, as far as the controller knows at this time.

    Reads the level and the ceilings of the last step, and asks no gate and no limit: they may count how often they are asked.
    Cost: linear in what waits in its flow, and O(F log F) in the flows of its band; where the first head of all goes, linear in the band.

    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> from inferencesched.flowcontrol.gate import SaturationGate
    >>> controller = FlowController(gate=SaturationGate())  # it knows of no servers yet
    >>> tickets = [controller.submit(QueueItem(request_id=f"r-{i}", flow="ab"[i % 2]), now=10.0) for i in range(4)]
    >>> controller.step(now=10.0)
    []
    >>> print(explain(controller, tickets[2], now=11.5))
    request r-2 of a:0 waits, for 1.5 s: the pool is as full as its band may fill it
      band 0, rank 1 of 1, 4 wait: level 1 of the pool, ceiling 1, shut
      flow a, place 1 of 2, by the first head of all
      place 2 of 2 in its flow, after r-0
      it may wait for 58.5 s more
      2 are before it
    """
    plain = controller.controller if isinstance(controller, RecordedController) else controller
    outcome, item, gone = ticket.outcome, ticket.item, ticket.dispatched_at
    record = TicketRecord(
        version=VERSION,
        request_id=ticket.request_id,
        flow=item.flow,
        priority=item.priority,
        state="waits" if outcome is None else "in flight" if outcome is QueueOutcome.DISPATCHED else "ended",
        reason=None,
        outcome=None if outcome is None else outcome.value,
        status=None if outcome is None else outcome.status,
        dropped_reason="" if outcome is None else outcome.reason,
        enqueued_at=ticket.enqueued_at,
        dispatched_at=_known(gone),
        endpoint=ticket.endpoint,
        waited=now - ticket.enqueued_at if outcome is None else _known(gone - ticket.enqueued_at),
        cost=ticket.cost,
        band=None,
        turn=None,
        place=None,
        budget=None,
        estimate=None,
    )
    if outcome is None:
        _explain_waiting(record, plain, ticket, now)
    return FlowExplanation(record)


def _explain_waiting(record: TicketRecord, controller: FlowController, ticket: Ticket, now: float) -> None:
    flow, band = ticket.flow, ticket.flow.band
    queue = _in_order(flow)
    place = queue.index(ticket)
    turns = _turns(band, now)
    deadline = ticket.item.deadline
    told_band = _band(controller, band)
    at = ticket.expires_at
    before = _before(controller, ticket, place, turns)
    wait = nan if before is None else controller._rate.wait(before + 1, now)
    record["band"] = told_band
    record["turn"] = _turn(band, flow, turns)
    record["place"] = PlaceRecord(
        place=place + 1, waiting=len(queue), ahead=[each.request_id for each in queue[: min(place, NAMED)]]
    )
    record["budget"] = BudgetRecord(
        expires_at=_known(at), left=_known(at - now), deadline=deadline is not None and at == deadline
    )
    record["estimate"] = EstimateRecord(before=before, wait=_known(wait))
    record["reason"] = _reason(controller, ticket, told_band)


def _known(number: float) -> float | None:
    return number if isfinite(number) else None


def _in_order(flow: Flow) -> list[Ticket]:
    """Return a flow's tickets as they would go now: the head, and the others behind it."""
    queue, head = list(flow.queue), flow.queue.head()
    if isinstance(flow.queue, AdaptiveQueue) and flow.queue.newest_first:
        queue.reverse()
    elif head is not None and queue[0] is not head:
        queue.remove(head)
        queue.insert(0, head)
    return queue


def _turns(band: Band, now: float) -> list[tuple[Flow, float]]:
    order = band.fairness
    return order.ranking(now) if isinstance(order, RankedOrder) else []


def _band(controller: FlowController, band: Band) -> BandRecord:
    order = controller._books.order
    rank = order.index(band)
    _, level, ceilings, priorities = controller._dispatcher.seen
    ceiling = ceilings[priorities.index(band.priority)] if band.priority in priorities else nan
    known = level == level and ceiling == ceiling
    return BandRecord(
        priority=band.priority,
        rank=rank + 1,
        bands=len(order),
        waiting=band.requests,
        above=sum(each.requests for each in islice(order, rank)),
        policy=type(controller._dispatcher.policy).__name__,
        level=_known(level),
        ceiling=_known(ceiling),
        open=level < ceiling if known else None,
    )


def _turn(band: Band, flow: Flow, turns: list[tuple[Flow, float]]) -> FlowRecord:
    order = band.fairness
    place = next((i for i, (each, _) in enumerate(turns) if each is flow), None)
    return FlowRecord(
        id=flow.id,
        weight=flow.weight,
        waiting=len(flow.queue),
        in_flight=flow.inflight,
        rule=order.rule if isinstance(order, RankedOrder) else "",
        place=None if place is None else place + 1,
        flows=len(turns) if turns else sum(1 for each in band.flows.values() if len(each.queue)),
        number=None if place is None else _known(turns[place][1]),
        ahead=[
            TurnRecord(flow=each.id, number=_known(number), waiting=len(each.queue))
            for each, number in islice(turns, min(place or 0, NAMED))
        ],
    )


def _before(controller: FlowController, ticket: Ticket, place: int, turns: list[tuple[Flow, float]]) -> int | None:
    """Return how many will probably go before a ticket."""
    flow, band = ticket.flow, ticket.flow.band
    order = band.fairness
    if not isinstance(controller._dispatcher.policy, StrictBands) or not turns or not isinstance(order, RankedOrder):
        return None
    bands = controller._books.order
    count = place + sum(above.requests for above in islice(bands, bands.index(band)))
    if order.rule == STRICT_RULE:
        mine, newest = _key(ticket), isinstance(flow.queue, AdaptiveQueue) and flow.queue.newest_first
        others = (each for each in band.newest_first() if each.flow is not flow)
        return count + sum((_key(each) > mine) if newest else (_key(each) < mine) for each in others)
    before = True
    for each, _ in turns:
        if each is flow:
            before = False
        else:
            share = each.weight / flow.weight
            count += min(len(each.queue), ceil((place + 1) * share) if before else int(place * share))
    return count


def _key(ticket: Ticket) -> tuple[object, ...]:
    return (ticket.number,) if ticket.key is None else (ticket.key, ticket.number)


def _reason(controller: FlowController, ticket: Ticket, band: BandRecord) -> Reason:
    if band["open"] is None:
        return "no step since"
    if not band["open"]:
        return "pool full"
    at = controller._dispatcher.seen[0]
    return "own servers full" if controller._dispatcher.aware and ticket.enqueued_at <= at else "no step since"


# -- in words ----------------------------------------------------------------------------------------

_WHY: Final[dict[Reason, str]] = {
    "no step since": "the controller has not stepped since it came",
    "pool full": "the pool is as full as its band may fill it",
    "own servers full": "the servers that it could go to are full",
}


def _lines(told: TicketRecord) -> Iterator[str]:
    """Walk the lines of the text."""
    who = f"request {told['request_id']} of {told['flow']}:{told['priority']}"
    waited = "" if told["waited"] is None else f" {told['waited']:.6g} s"
    if told["state"] == "waits":
        yield f"{who} waits, for{waited}: {_WHY[told['reason'] or 'no step since']}"
        yield from _waiting_lines(told)
    elif told["state"] == "in flight":
        where = told["endpoint"] or "a server that is not named yet"
        yield f"{who} is at {where}, after a wait of{waited}"
    else:
        yield f"{who} has ended as {told['outcome']}" + (f", after a wait of{waited}" if waited else "")
        if told["status"] is not None:
            dropped = f", {told['dropped_reason']}" if told["dropped_reason"] else ""
            yield f"  its client sees {told['status']}{dropped}"


def _waiting_lines(told: TicketRecord) -> Iterator[str]:
    band, turn, place, budget, estimate = told["band"], told["turn"], told["place"], told["budget"], told["estimate"]
    if band is not None:
        words = f"  band {band['priority']}, rank {band['rank']} of {band['bands']}, {band['waiting']} wait"
        if band["above"]:
            words += f", {band['above']} above it"
        if band["open"] is not None:
            level, ceiling = _said(band["level"]), _said(band["ceiling"])
            words += f": level {level} of the pool, ceiling {ceiling}, {'open' if band['open'] else 'shut'}"
        yield words
    if turn is not None:
        words = f"  flow {turn['id']}"
        if turn["place"] is not None:
            words += f", place {turn['place']} of {turn['flows']}, by {turn['rule']}"
            words += "" if turn["number"] is None else f" ({turn['number']:.6g})"
        if turn["ahead"]:
            words += ", after " + ", ".join(
                each["flow"] if each["number"] is None else f"{each['flow']} ({each['number']:.6g})"
                for each in turn["ahead"]
            )
        yield words
    if place is not None:
        ahead = ", after " + ", ".join(place["ahead"]) if place["ahead"] else ""
        more = place["place"] - 1 - len(place["ahead"])
        yield f"  place {place['place']} of {place['waiting']} in its flow{ahead}" + (
            f" and {more} more" if more else ""
        )
    if budget is not None and budget["left"] is not None:
        yield f"  it may wait for {budget['left']:.6g} s more" + (", until its deadline" if budget["deadline"] else "")
    if estimate is not None and estimate["before"] is not None:
        wait = "" if estimate["wait"] is None else f": some {estimate['wait']:.3g} s at the rate of late"
        yield f"  {estimate['before']} are before it{wait}"


def _said(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.6g}"
