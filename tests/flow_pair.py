"""A flow controller and its slow twin, driven by the same calls and compared after each of them."""

from collections import Counter
from math import inf, nextafter
from random import Random

from inferencesched.errors import InferenceSchedError
from inferencesched.flowcontrol import (
    Dispatch,
    Displace,
    Expire,
    FlowController,
    QueueItem,
    Rejection,
    Revoke,
    StrictBands,
    Ticket,
)
from inferencesched.flowcontrol.log import RecordedController
from inferencesched.request import Usage
from tests.flow_settings import Ageing, AwareValve, Newest, Valve, controller, pool
from tests.naive_flow import WAITS, NaiveController, sums

#: Calls about a ticket, and what is said where nothing else is.
ABOUT = {
    "cancel": {},
    "dispatched": {"endpoint": "ep-0"},
    "completed": {"usage": None},
    "revoked": {"requeue": False},
    "revoke_failed": {},
}
FLOWS = ("a", "b", "c", "d")


class Pair:
    """The two, and what was told of each request. A method here is a call to both, and then a comparison."""

    def __init__(self, setting, recorded=False):
        self.setting = setting
        self.gate = (AwareValve if setting.aware else Valve)(setting.slots)
        self.policy = StrictBands() if setting.ageing is None else Ageing(setting)
        self.reclaimer = Newest() if setting.reclaims else None
        self.core = controller(setting, self.gate, self.policy, self.reclaimer)
        self.real = RecordedController(self.core) if recorded else self.core
        self.twin = NaiveController(setting)
        self.now = 0.0
        self.tickets = []
        self.submitted = []
        self.rejected = []
        self.told = Counter()
        self.refused = self.compared = 0
        if setting.aware:
            self.block("a")
        stranger = FlowController()
        self.stranger = stranger.submit(QueueItem(request_id="stranger"), 0.0)

    # -- calls -----------------------------------------------------------------------------------------

    def both(self, call, real, twin):
        """Make the call on both; both answer, or both refuse for the same reason. What was answered, or None."""
        try:
            ours, refused = getattr(self.real, call)(*real[0], **real[1]), None
        except InferenceSchedError as error:
            ours, refused = None, type(error)
        self.ours = ours
        try:
            told = [e.ticket.number for e in ours if type(e) is Dispatch] if call == "step" and not refused else []
            theirs, of_twin = getattr(self.twin, call)(*twin, *([told] if call == "step" else [])), None
        except InferenceSchedError as error:
            theirs, of_twin = None, type(error)
        assert refused == of_twin, f"{call}: {refused} and not {of_twin}"
        self.refused += refused is not None
        said = plain(ours)
        if isinstance(ours, Rejection):
            assert theirs[-1] in ours.detail, f"{ours.detail} and not {theirs[-1]}"
            said, theirs = said[:-1], theirs[:-1]
        assert said == plain(theirs), f"{call}: {said} and not {theirs}"
        if isinstance(ours, list):
            for event in ours:
                self.told[type(event).__name__, event.ticket.number] += 1
        return ours

    def submit(self, item):
        self.submitted.append(item)
        answer = self.both("submit", ([item, self.now], {}), [item, self.now])
        if isinstance(answer, Ticket):
            assert answer.number == len(self.tickets)
            self.tickets.append(answer)
        else:
            self.rejected.append(item)
        self.compare()

    def about(self, call, ticket, **said):
        """Make a call about a ticket, which may be another controller's."""
        answer = self.about_ticket(call, ticket, **said)
        self.compare()
        return answer

    def about_ticket(self, call, ticket, **said):
        number = -1 if ticket is self.stranger else ticket.number
        said = {**ABOUT[call], **said}
        return self.both(call, ([ticket], {**said, "now": self.now}), [number, *said.values(), self.now])

    def plainly(self, call, *said):
        answer = self.both(call, ([*said, self.now], {}), [*said, self.now])
        self.compare()
        return answer

    def step(self):
        for event in self.plainly("step"):
            if type(event) is Dispatch and event.ticket.number % 3:
                self.about("dispatched", event.ticket, endpoint=f"ep-{event.ticket.number % 2}")

    def observe(self, count):
        self.both("observe", ([pool(count), self.now], {}), [count, self.now])
        self.compare()

    def turn_valve(self, shut):
        self.gate.shut = self.twin.shut = shut

    def block(self, flow):
        self.gate.blocked ^= {flow}
        self.twin.blocked ^= {flow}

    def back(self, seconds):
        """The clock goes back: both refuse, whatever the call, and stay as they were."""
        self.plainly("step")
        present, before = self.now, self.refused
        self.now -= seconds
        for call in ("step", "next_wakeup", "shutdown"):
            self.both(call, ([self.now], {}), [self.now])
        self.both("observe", ([pool(0), self.now], {}), [0, self.now])
        self.both("desire", ([(7,), self.now], {}), [(7,), self.now])
        self.both("submit", ([QueueItem(request_id="early"), self.now], {}), [QueueItem(request_id="early"), self.now])
        refused = 6
        for ticket in self.tickets[-1:]:
            for call, said in ABOUT.items():
                self.about_ticket(call, ticket, **said)
                refused += 1
        assert self.refused == before + refused
        self.now = present
        self.compare()

    def wake(self):
        """Sleep until there is something to do: an instant before there is nothing, and then there is."""
        at = self.plainly("next_wakeup")
        if at is None:
            return
        just_before = nextafter(at, -inf)
        if just_before >= self.now:
            self.now = just_before
            self.turn_valve(True)
            events = self.plainly("step")
            self.turn_valve(False)
            kinds = {type(event) for event in events}
            assert kinds <= ({Dispatch} if self.setting.legacy else {Revoke} if self.setting.reclaims else set())
            if Dispatch in kinds:  # who was to expire has gone
                return
        self.now = at
        assert self.plainly("step") or self.setting.reclaims, "woken for nothing"

    # -- what is compared --------------------------------------------------------------------------------

    def compare(self):
        """Assert that both are in the same state, that everything adds up, and that nothing is kept for nothing."""
        real, twin = self.core, self.twin
        real.check()
        assert real._now == twin.now
        self.compared += 1
        if self.compared % 2:  # it tidies up: let it be untidy every other time
            at, other = self.real.next_wakeup(self.now), twin.next_wakeup(self.now)
            assert at == other, f"wakes at {at} and not at {other}"
        bands = {band.priority: band for band in real.bands}
        assert list(bands) == [band.priority for band in twin.order()]
        for priority, band in bands.items():
            self.compare_band(band, twin.bands[priority])
        alive = {e.number: e for e in twin.entries if e.number >= 0}
        for ticket in self.tickets:
            entry = alive[ticket.number]
            state = WAITS if ticket.outcome is None else ticket.outcome.value
            assert state == entry.state, f"{ticket} and not {entry.state}"
            assert (ticket.endpoint, ticket.cost) == (entry.endpoint, entry.cost)
            assert ticket.enqueued_at == entry.enqueued_at
            ours, theirs = ticket.dispatched_at, entry.dispatched_at
            assert ours == theirs or (ours != ours and theirs != theirs)  # NaN: it did not happen
            assert state != WAITS or ticket.expires_at == twin.expires_at(entry)
        flying = [e.number for e in twin.flying()]
        assert self.gate.flying == len(flying)
        assert self.gate.places == twin.placed
        if self.reclaimer is not None:
            assert self.reclaimer.flying == flying
            assert self.reclaimer.revoking == {e.number for e in twin.flying() if e.revoking}
        assert isinstance(self.policy, StrictBands) or self.policy.paid == twin.paid
        waiting = sum(band.requests for band in bands.values())
        assert len(real._expiry) <= 2 * waiting + 64
        self.reconcile(bands)

    def compare_band(self, band, naive):
        order = [e.number for e in naive.waiting()]
        assert [t.number for t in band.newest_first()] == order[::-1]
        assert [band.requests, band.size_bytes, band.tokens] == naive.sums(WAITS)
        gone = ("dispatched", "completed", "revoked", "lapsed")
        totals = band.totals
        assert totals.submitted == naive.sums("")
        assert totals.rejected == naive.sums("rejected")
        assert totals.dispatched == naive.sums(*gone)
        assert totals.evicted == naive.sums("evicted")
        assert (band.protected, band.idle_since) == (naive.protected, naive.idle_since)
        assert set(band.flows) == set(naive.flows)
        for name, flow in band.flows.items():
            other = naive.flows[name]
            queue = [e.number for e in other.queue()]
            head = flow.queue.head()
            assert (None if head is None else head.number) == (queue[0] if queue else None)
            assert sorted(t.number for t in flow.queue) == sorted(queue)
            if self.setting.ordering != "lifo":
                assert [t.number for t in flow.queue] == queue
            assert (flow.weight, flow.inflight, flow.idle_since) == (other.weight, other.flying(), other.idle_since)

    def reconcile(self, bands):
        """Submitted = rejected + dispatched + evicted + waiting, by flow, of what the real one says; each is told once at most."""
        flows = {(item.priority, item.flow) for item in self.submitted}
        parts = {key: [] for key in flows}
        for item in self.rejected:
            parts[item.priority, item.flow].append(item)
        for ticket in self.tickets:
            if ticket.outcome is not None:
                assert not ticket.outcome.rejected
                parts[ticket.item.priority, ticket.item.flow].append(ticket.item)
        for band in bands.values():
            for flow in band.flows.values():
                if len(flow.queue):
                    parts[band.priority, flow.id] += [ticket.item for ticket in flow.queue]
        for key, ended in parts.items():
            assert sums(i for i in self.submitted if (i.priority, i.flow) == key) == sums(ended)
        assert all(count == 1 for (kind, _), count in self.told.items() if kind in ("Expire", "Displace"))

    def end(self):
        """Let nobody in, everybody out, and all servers finish: then nothing is left."""
        self.plainly("shutdown")
        assert not self.twin.waiting()
        for entry in list(self.twin.flying()):
            self.about("completed", self.tickets[entry.number])
        self.submit(QueueItem(request_id="late"))
        assert self.plainly("step") == [] == self.plainly("shutdown")
        assert self.plainly("next_wakeup") is None
        assert all(ticket.outcome is not None for ticket in self.tickets)
        self.now += self.setting.flow_ttl + self.setting.band_ttl + 1.0
        self.plainly("step")
        self.now += self.setting.band_ttl + 1.0
        self.plainly("step")
        assert not any(band.flows for band in self.core.bands)
        assert all(band.protected for band in self.core.bands)


def plain(answer):
    """Return an answer as names and numbers that can be compared; NaN as a word."""
    match answer:
        case Ticket():
            return ("ticket", answer.number)
        case Rejection():
            return plain(("rejection", answer.outcome.value, answer.retry_after, answer.wait, answer.detail))
        case Dispatch():
            return ("Dispatch", answer.ticket.number)
        case Expire():
            return ("Expire", answer.ticket.number, answer.ticket.outcome.value, answer.retry_after)
        case Displace():
            return ("Displace", answer.ticket.number, answer.by.number, answer.retry_after)
        case Revoke():
            return ("Revoke", answer.ticket.number)
        case list() | tuple():
            return type(answer)(map(plain, answer))
        case float() if answer != answer:
            return "unknown"
    return answer


# -- scripts -------------------------------------------------------------------------------------------------

CALLS = (
    *("submit",) * 20,
    *("step",) * 12,
    *("complete",) * 10,
    *("pass",) * 5,
    *("settle",) * 4,
    *("cancel", "requeue", "pool", "block") * 2,
    *("revoke", "wake", "valve", "desire", "back", "wrong", "leap", "failed"),
)


def item(number, pick, pair):
    """Return a request; `pick` chooses from a sequence."""
    flow, priority = pick(FLOWS), pick(pair.setting.priorities)
    odd = pick(range(12))
    unit = pair.setting.unit
    late = (3, 4) if pair.setting.first_token is None else range(3, 10)
    return QueueItem(
        request_id=f"r{number}",
        flow=flow,
        priority=priority,
        size_bytes=pick((0, 1, 8, 30)),
        input_tokens=pick((0, 1, 4, 16, 30)),
        output_tokens=pick((0, 0, 3)),
        cost=float(pick((0, 2, 40))) if odd == 0 else None,
        ttl=pick((0, 1, 8)) * unit if odd in (1, 2) else None,
        deadline=pair.now + pick((-1, 0, 2, 4, 9)) * unit if odd in late else None,
        slo_ttft=pick((1, 4)) * unit if odd in (5, 6) else None,
        received_at=pair.now - pick((0, 3)) * unit if odd == 6 else None,
        objective=pick(("", "fast")),
    )


def act(pair, call, pick):
    """Make one call of a script; `pick` chooses whatever there is to choose."""
    tickets = pair.tickets
    flying = [ticket for ticket in tickets if ticket.outcome is not None and ticket.outcome.value == "dispatched"]
    waiting = [ticket for ticket in tickets if ticket.outcome is None]
    match call:
        case "submit":
            pair.submit(item(len(pair.submitted), pick, pair))
        case "step":
            pair.step()
        case "pass":
            pair.now += pick((1, 1, 2, 5)) * pair.setting.unit
        case "leap":
            setting = pair.setting
            pair.now += pick((4.0, 4.0, 4.0, 17.0, setting.flow_ttl, setting.band_ttl))
        case "complete" if flying:
            pair.about("completed", pick(flying))
        case "settle" if flying:
            usage = Usage(pick((None, 0, 1, 30)), pick((None, 0, 7)), None)
            pair.about("completed", pick(flying), usage=usage)
        case "cancel" if waiting:
            pair.about("cancel", pick(waiting))
        case "requeue" if flying:
            pair.about("revoked", pick(flying), requeue=True)
        case "revoke" if flying:
            pair.about("revoked", pick(flying), requeue=False)
        case "failed" if flying and pair.reclaimer is not None:
            pair.about("revoke_failed", pick([t for t in flying if t.number in pair.reclaimer.revoking] or flying))
        case "wrong":
            pair.about(pick(tuple(ABOUT)), pick([pair.stranger, *tickets[-8:]]))
        case "wake":
            pair.wake()
        case "valve":
            pair.turn_valve(not pair.gate.shut and pick((True, False)))
        case "pool":
            pair.observe(pick((1, 1, 2) if pair.twin.empty else (0, 1, 2)))
        case "block":
            pair.block(pick(FLOWS))
        case "desire":
            pair.plainly("desire", pick(((), (1,), (3, -1), (2, 1, 0))))
        case "back":
            pair.back(pick((1, 4)) * pair.setting.unit)


def script(setting, seed, length=60, recorded=False):
    """Drive a pair along a random script, to the end."""
    random = Random(f"{setting.name} {seed}")
    pair = Pair(setting, recorded)
    for _ in range(length):
        act(pair, random.choice(CALLS), random.choice)
    pair.end()
    return pair
