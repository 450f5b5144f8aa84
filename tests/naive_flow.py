"""The slow twin of `FlowController`: lists and dicts, everything computed anew by every call, nothing clever.

A request is an `Entry`, kept for ever; what waits, flies or has ended is whoever says so of itself. Answers and events are tuples
of names and numbers. Where several flows have the same least counter, the twin lets the other one choose: `told` are
the numbers that the other dispatched, in order.
"""

from dataclasses import dataclass, field
from math import ceil, inf, nan
from typing import NamedTuple

from inferencesched.errors import InvalidInputError, TicketError
from inferencesched.flowcontrol import Capacity, QueueItem
from tests.naive_turns import FAIRNESS

WAITS, FLIES = "waiting", "dispatched"


class Setting(NamedTuple):
    """What is configured, as plain values."""

    name: str
    fairness: str = "vtc"
    quantum: float = 8.0
    ordering: str = "fifo"
    backlog: int = 3
    bands: tuple[int, ...] = (0,)
    priorities: tuple[int, ...] = (1, 0, 0, 0, -1)
    weights: tuple[tuple[str, float], ...] = (("b", 2.0), ("c", 0.5))
    band_capacity: Capacity = Capacity(12, 160, 240)
    sheddable: Capacity | None = None
    capacity: Capacity = Capacity()
    slots: int = 2
    held_back: float = 0.0
    ttl: float | None = 12.0
    empty_ttl: float | str | None = "ttl"
    flow_ttls: tuple[tuple[str, float], ...] = ()
    objective_ttls: tuple[tuple[str, float], ...] = ()
    displace: str = "sheddable"
    legacy: bool = False
    flow_ttl: float = 300.0
    band_ttl: float = 600.0
    most_idle: int = 1000
    inflight_ttl: float = inf
    first_token: float | None = None
    ageing: float | None = None
    aware: bool = False
    reclaims: bool = False
    unit: float = 0.25

    def room(self, priority: int) -> Capacity:
        """How much may wait in a band? Below 0 it may be less, where the band is not configured."""
        less = self.sheddable is not None and priority < 0 and priority not in self.bands
        return self.sheddable if less else self.band_capacity

    def ceiling(self, priority: int) -> float:
        """Up to which level does a band go? Below 0 something is held back."""
        return 1.0 if priority >= 0 else 1.0 - self.held_back


@dataclass(eq=False)
class NaiveFlow:
    """An id at one priority, while it is remembered."""

    id: str
    band: "NaiveBand"
    weight: float
    counter: float = 0.0
    tag: float = 0.0
    idle_since: float = inf
    rested: int = 0

    def queue(self) -> list["Entry"]:
        """Return what waits of it, the head first."""
        return sorted(
            (e for e in self.band.twin.entries if e.flow is self and e.state == WAITS), key=self.band.twin.key
        )

    def flying(self) -> int:
        """How many are at the servers?"""
        return sum(e.flow is self and e.state == FLIES for e in self.band.twin.entries)


@dataclass(eq=False)
class NaiveBand:
    """All flows of a priority, from when it was made until it is forgotten."""

    priority: int
    twin: "NaiveController"
    protected: bool
    flows: dict[str, NaiveFlow] = field(default_factory=dict)
    idle_since: float = inf

    def __post_init__(self) -> None:
        self.fairness = FAIRNESS[self.twin.setting.fairness](self)

    def waiting(self) -> list["Entry"]:
        """Return what waits, in the order in which it began to."""
        return sorted((e for e in self.twin.entries if e.band is self and e.state == WAITS), key=lambda e: e.place)

    def waiting_flows(self) -> list[NaiveFlow]:
        """Return the flows of which something waits."""
        return [flow for flow in self.flows.values() if flow.queue()]

    def sums(self, *states: str) -> list[int]:
        """Return requests, bytes and tokens of all that ever came here and is now in a state that begins like that."""
        return sums(e.item for e in self.twin.entries if e.band is self and e.state.startswith(states))


@dataclass(eq=False)
class Entry:
    """One request, for ever."""

    item: QueueItem
    band: NaiveBand
    state: str
    flow: NaiveFlow | None = None
    number: int = -1
    cost: float = 0.0
    enqueued_at: float = nan
    dispatched_at: float = nan
    place: int = 0
    went: int = 0
    endpoint: str = ""
    revoking: bool = False


def sums(items) -> list[int]:
    """Return requests, bytes, tokens."""
    items = list(items)
    return [len(items), sum(i.size_bytes for i in items), sum(i.input_tokens + i.output_tokens for i in items)]


class NaiveController:
    """The same calls as `FlowController`, of numbers instead of tickets."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.entries: list[Entry] = []
        self.bands: dict[int, NaiveBand] = {}
        self.configured = {0, *setting.bands}
        for priority in self.configured:
            self.bands[priority] = NaiveBand(priority, self, protected=True)
        self.now = -inf
        self.numbers = self.places = self.wents = self.rests = 0
        self.empty, self.flipped = False, -inf
        self.closed = self.shut = False
        self.blocked: set[str] = set()
        self.collected = self.rests_until = -inf
        self.untold: list[tuple] = []
        self.drains: list[tuple[int, float]] = []
        self.paid: list[tuple[int, float]] = []
        self.placed: list[tuple[int, str]] = []

    # -- what is so now ------------------------------------------------------------------------------

    def turn(self, now):
        if not (self.now <= now < inf):
            raise InvalidInputError("now", now, "not back")
        self.now = now

    def waiting(self):
        return [e for e in self.entries if e.state == WAITS]

    def flying(self):
        return sorted((e for e in self.entries if e.state == FLIES), key=lambda e: e.went)

    def level(self):
        return 1.0 if self.shut or self.empty else len(self.flying()) / self.setting.slots

    def order(self):
        return [self.bands[priority] for priority in sorted(self.bands, reverse=True)]

    def key(self, entry):
        item, setting = entry.item, self.setting
        if setting.ordering == "edf":
            due = entry.enqueued_at + self.allowed(item, empty=False)
            return round(due if item.deadline is None else min(due, item.deadline), 6), entry.number
        if setting.ordering == "slo":
            received = entry.enqueued_at if item.received_at is None else item.received_at
            return (inf if item.slo_ttft is None else round(received + item.slo_ttft, 6)), received, entry.number
        if setting.ordering == "smith":
            return entry.cost + 4.0 * entry.enqueued_at, entry.number
        if setting.ordering == "lifo" and len(entry.band.waiting()) > setting.backlog:
            return (-entry.number,)
        return (entry.number,)

    def allowed(self, item, empty):
        """How many seconds may it wait?"""
        setting = self.setting
        of_pool = setting.empty_ttl if empty and setting.empty_ttl != "ttl" else setting.ttl
        others = (
            item.ttl,
            of_pool,
            dict(setting.flow_ttls).get(item.flow),
            dict(setting.objective_ttls).get(item.objective),
        )
        return min((float(each) for each in others if each is not None), default=inf)

    def expires_at(self, entry):
        at = max(entry.enqueued_at, self.flipped) + self.allowed(entry.item, self.empty)
        return at if entry.item.deadline is None else min(at, entry.item.deadline)

    def wait(self, ahead, now):
        """How long until so many have gone, at the pace of late: the fold of all drains, each second counting half as much ten on."""
        last, events, seconds = nan, 0.0, 0.0
        for count, at in self.drains:
            gap = at - last
            if gap == gap:
                if gap > 0.0:
                    keep = (0.5 ** (1.0 / 10.0)) ** gap
                    events, seconds = events * keep, seconds * keep + gap
                events += count
            last = at
        if not (seconds > 0.0 and events > 0.0):
            return nan
        return ahead * (seconds + max(0.0, now - last)) / events

    def retry_after(self, ahead, now):
        wait = self.wait(ahead, now)
        return float(max(1, ceil(min(wait, 3600.0)))) if wait == wait else 1.0

    def full(self, entries, capacity, item):
        """Which of these limits would it pass?"""
        requests, size_bytes, tokens = sums([*(e.item for e in entries), item])
        names = zip(("bytes", "requests", "tokens"), (size_bytes, requests, tokens), strict=True)
        limits = capacity.size_bytes, capacity.requests, capacity.tokens
        return [name for (name, used), limit in zip(names, limits, strict=True) if limit is not None and used > limit]

    # -- calls ---------------------------------------------------------------------------------------

    def submit(self, item, now):
        self.turn(now)
        setting = self.setting
        if self.closed:
            return "rejection", "rejected_shutdown", inf, nan, "it is shutting down"
        if item.priority not in self.bands:
            self.bands[item.priority] = NaiveBand(item.priority, self, protected=False, idle_since=now)
        band = self.bands[item.priority]
        if setting.legacy and item.priority < 0 and self.level() >= 1.0:
            return self.reject(band, item, "rejected_capacity", 1.0, "the pool is full")
        if item.deadline is not None:
            ahead = 1 + sum(e.item.priority >= item.priority for e in self.waiting())
            wait = self.wait(ahead, now)
            soonest = now + (0.0 if wait != wait else wait) + (setting.first_token or 0.0)
            if item.deadline <= now or (setting.first_token is not None and soonest > item.deadline):
                return self.reject(band, item, "rejected_deadline", inf, "its deadline cannot be met")
        lacking = [
            f"{name} wait at priority {item.priority}"
            for name in self.full(band.waiting(), setting.room(item.priority), item)
        ]
        lacking += [f"{name} wait in all" for name in self.full(self.waiting(), setting.capacity, item)]
        victims = self.victims(item) if lacking and lacking[0].endswith("in all") else []
        if lacking and not victims:
            outcome = "rejected_no_endpoints" if self.empty else "rejected_capacity"
            return self.reject(band, item, outcome, self.retry_after(len(band.waiting()) + 1, now), lacking[0])
        cost = item.input_tokens + 2.0 * item.output_tokens or 1.0
        cost = cost if item.cost is None else item.cost
        flow = band.flows.get(item.flow) or NaiveFlow(item.flow, band, dict(setting.weights).get(item.flow, 1.0))
        entry = Entry(item, band, "new", flow, self.numbers, cost, now)
        self.numbers += 1
        self.entries.append(entry)
        for victim in victims:
            self.untold.append(("Displace", victim.number, entry.number, self.retry_after(len(self.waiting()), now)))
            self.leave(victim, "evicted_displaced")
        self.begin_to_wait(entry)
        return "ticket", entry.number

    def victims(self, item):
        """Take the lowest and newest away until it fits."""
        below = {"sheddable": min(0, item.priority), "any": item.priority, "never": -inf}[self.setting.displace]
        candidates = sorted(self.waiting(), key=lambda e: (e.item.priority, -e.place))
        candidates = [e for e in candidates if e.item.priority < below]
        for count in range(1, len(candidates) + 1):
            rest = [e for e in self.waiting() if e not in candidates[:count]]
            if not self.full(rest, self.setting.capacity, item):
                return candidates[:count]
        return []

    def reject(self, band, item, outcome, retry_after, detail):
        self.entries.append(Entry(item, band, outcome))
        return "rejection", outcome, retry_after, self.wait(len(band.waiting()) + 1, self.now), detail

    def cancel(self, number, now):
        self.turn(now)
        entry = self.named(number)
        if entry.state != WAITS:
            return False
        self.leave(entry, "evicted_cancelled")
        return True

    def step(self, now, told=()):
        self.turn(now)
        events, self.untold = self.untold, []
        due = [e for e in self.waiting() if self.expires_at(e) <= now]
        for entry in sorted(due, key=lambda e: (self.expires_at(e), e.number)):
            late = entry.item.deadline is not None and entry.item.deadline <= now
            outcome = "evicted_deadline" if late else "evicted_no_endpoints" if self.empty else "evicted_ttl"
            events.append(("Expire", entry.number, outcome, self.retry_after(len(self.waiting()), now)))
            self.leave(entry, outcome)
        for entry in self.flying():
            if entry.dispatched_at + self.setting.inflight_ttl <= now:
                events.append(("Expire", entry.number, "lapsed", inf))
                self.finish(entry, "lapsed")
        if self.waiting() and not self.closed:
            events += self.drain(now, list(told))
        if now - self.collected >= 1.0:
            self.collect(now)
        return events

    def drain(self, now, told):
        gone, exhausted, passed = [], [], {}
        while True:
            going = [b for b in self.order() if b.waiting() and b not in exhausted and self.level() < self.ceiling(b)]
            if not going:
                break
            band = max(going, key=lambda b: self.effective(b, now))
            flow = self.admitted(band, passed.setdefault(band, []), told[len(gone) : len(gone) + 1])
            if flow is None:
                exhausted.append(band)
                continue
            entry = flow.queue()[0]
            entry.state, entry.dispatched_at, entry.went = FLIES, now, self.wents
            self.wents += 1
            band.fairness.served(flow, entry.cost)
            gone.append(("Dispatch", entry.number))
            self.paid.append((band.priority, entry.cost))
        if gone:
            self.drains.append((len(gone), now))
        return gone + [revoke for band in self.order() for revoke in self.reclaim(band)]

    def ceiling(self, band):
        return inf if self.setting.legacy else self.setting.ceiling(band.priority)

    def effective(self, band, now):
        """What its oldest request's wait makes of a priority."""
        seconds, priority = self.setting.ageing, band.priority
        if seconds is None:
            return priority
        raised = priority + min(10, int((now - band.waiting()[0].enqueued_at) / seconds))
        return min(raised, 0) if priority < 0 else raised

    def admitted(self, band, passed, told):
        while candidates := band.fairness.candidates(passed):
            wished = [flow for flow in candidates if told and self.named(told[0]) in flow.queue()]
            flow = (wished or candidates)[0]
            if not self.setting.aware or flow.id not in self.blocked:
                return flow
            passed.append(flow)
        return None

    def reclaim(self, band):
        """Take back the newest of a lower priority for a band that is kept waiting, and then nobody for a while."""
        if not self.setting.reclaims or not band.waiting() or self.level() < self.ceiling(band):
            return []
        lower = [e for e in self.flying() if e.item.priority < band.priority and not e.revoking]
        if not lower or self.now < self.rests_until:
            return []
        lower[-1].revoking = True
        self.rests_until = self.now + 0.5
        return [("Revoke", lower[-1].number)]

    def next_wakeup(self, now):
        self.turn(now)
        times = [now] if self.untold else []
        times += [self.expires_at(e) for e in self.waiting()]
        times += [e.dispatched_at + self.setting.inflight_ttl for e in self.flying()]
        if self.waiting() and self.rests_until > now:
            times.append(self.rests_until)
        at = min(times, default=inf)
        return None if at == inf else max(at, now)

    def shutdown(self, now):
        self.turn(now)
        self.closed = True
        events, self.untold = self.untold, []
        for band in self.order():
            for entry in band.waiting():
                events.append(("Expire", entry.number, "evicted_shutdown", inf))
                self.leave(entry, "evicted_shutdown")
        return events

    def observe(self, endpoints, now):
        self.turn(now)
        if self.empty != (endpoints == 0):
            self.empty, self.flipped = endpoints == 0, now

    def dispatched(self, number, endpoint, now):
        self.turn(now)
        self.in_flight(number).endpoint = endpoint
        self.placed.append((number, endpoint))

    def completed(self, number, usage, now):
        self.turn(now)
        entry = self.in_flight(number)
        if usage is not None and entry.item.cost is None:
            tokens = zip((entry.item.input_tokens, entry.item.output_tokens), usage[:2], strict=True)
            prompt, output = (expected if counted is None else counted for expected, counted in tokens)
            actual = prompt + 2.0 * output or 1.0
            if actual != entry.cost:
                entry.band.fairness.settled(entry.flow, actual - entry.cost)
        self.finish(entry, "completed")

    def revoked(self, number, requeue, now):
        self.turn(now)
        entry = self.in_flight(number)
        entry.band.fairness.settled(entry.flow, -entry.cost)
        full = self.full(entry.band.waiting(), self.setting.room(entry.item.priority), entry.item)
        full += self.full(self.waiting(), self.setting.capacity, entry.item)
        if not requeue or self.closed or full:
            self.finish(entry, "revoked")
            return False
        entry.enqueued_at += now - entry.dispatched_at
        entry.dispatched_at, entry.endpoint, entry.revoking = nan, "", False
        self.begin_to_wait(entry)
        return True

    def revoke_failed(self, number, now):
        self.turn(now)
        self.in_flight(number).revoking = False

    def desire(self, priorities, now):
        self.turn(now)
        for priority in priorities:
            self.bands.setdefault(priority, NaiveBand(priority, self, protected=True))
        for band in self.order():
            kept = band.priority in {*priorities, *self.configured}
            if band.protected and not kept and not band.flows:
                band.idle_since = now
            band.protected = kept

    # -- what changes --------------------------------------------------------------------------------

    def named(self, number):
        found = [e for e in self.entries if e.number == number >= 0]
        if not found:
            raise TicketError("another's")
        return found[0]

    def in_flight(self, number):
        entry = self.named(number)
        if entry.state != FLIES:
            raise TicketError("not in flight")
        return entry

    def begin_to_wait(self, entry):
        flow = entry.flow
        waited = bool(flow.queue())
        entry.state, entry.place = WAITS, self.places
        self.places += 1
        entry.band.flows[flow.id] = flow
        flow.idle_since = entry.band.idle_since = inf
        if waited:
            entry.band.fairness.changed(flow)
        else:
            entry.band.fairness.arrived(flow)

    def leave(self, entry, outcome):
        entry.state = outcome
        entry.band.fairness.changed(entry.flow)
        self.rest(entry.flow)

    def finish(self, entry, outcome):
        entry.state = outcome
        self.rest(entry.flow)

    def rest(self, flow):
        if flow.queue() or flow.flying() or flow.idle_since < inf:
            return
        flow.idle_since, flow.rested = self.now, self.rests
        self.rests += 1
        idle = self.idle()
        if len(idle) > self.setting.most_idle:
            self.forget(idle[0], self.now)
        if not flow.band.waiting() and not any(f.flying() for f in flow.band.flows.values()):
            flow.band.idle_since = self.now

    def idle(self):
        flows = [flow for band in self.bands.values() for flow in band.flows.values() if flow.idle_since < inf]
        return sorted(flows, key=lambda flow: flow.rested)

    def forget(self, flow, at):
        del flow.band.flows[flow.id]
        if not flow.band.flows:
            flow.band.idle_since = at

    def collect(self, now):
        self.collected = now
        for flow in self.idle():
            if flow.idle_since + self.setting.flow_ttl <= now:
                self.forget(flow, flow.idle_since + self.setting.flow_ttl)
        for band in self.order():
            if not band.protected and not band.flows and now - band.idle_since >= self.setting.band_ttl:
                del self.bands[band.priority]
