"""What a flow controller and its slow twin are configured with: settings, a gate, limits, a reclaimer; and the real one of a setting."""

from dataclasses import replace
from math import inf

import inferencesched as isched
from inferencesched.flowcontrol import (
    AdaptiveLifo,
    Capacity,
    DeficitRoundRobin,
    EarliestDeadline,
    FirstCome,
    FlowController,
    GlobalStrict,
    PriorityBand,
    QueueBudget,
    RoundRobin,
    SloDeadline,
    StartTimeFair,
    StrictWithAgeing,
    TokenCost,
    VirtualTokenCounter,
    WeightedShortestFirst,
)
from tests.naive_flow import Setting

_SOON = {"flow_ttl": 3.0, "band_ttl": 4.0}
_MANY = (2, 1, 0, 0, -1, -2)
_SMALL = Capacity(5, 60, 80)
SETTINGS = {
    each.name: each
    for each in (
        Setting("vtc", ttl=40.0, priorities=(0,), slots=1),
        Setting("vtc, many bands", priorities=_MANY, band_capacity=_SMALL, sheddable=Capacity(2, 40, 40), slots=3),
        Setting("vtc, all forgotten soon", **_SOON, most_idle=2, displace="any", capacity=Capacity(8, 90, 120)),
        Setting("sfq", fairness="sfq", ttl=40.0, priorities=(0,), slots=1, inflight_ttl=9.0),
        Setting("vtc, soon empty", priorities=(0,), slots=50),
        Setting("sfq, soon empty", fairness="sfq", priorities=(0,), slots=50),
        Setting("sfq, held back", fairness="sfq", capacity=Capacity(7), held_back=0.5, priorities=_MANY),
        Setting("sfq, newest first", fairness="sfq", ordering="lifo", displace="never", capacity=Capacity(tokens=90)),
        Setting("drr", fairness="drr", ttl=40.0, quantum=16.0, priorities=(0,), slots=1),
        Setting("drr, any makes room", fairness="drr", displace="any", capacity=Capacity(8), inflight_ttl=4.0),
        Setting("drr by deadline", fairness="drr", quantum=2.0, ordering="edf", flow_ttls=(("a", 3.0),), **_SOON),
        Setting("rr", fairness="rr", capacity=Capacity(size_bytes=80), most_idle=1, first_token=1.0),
        Setting("first tokens", first_token=0.5, priorities=(1, 0)),
        Setting("rr by objective", fairness="rr", ordering="slo", inflight_ttl=2.0, objective_ttls=(("fast", 2.0),)),
        Setting("strict", fairness="strict", capacity=Capacity(6), displace="any", empty_ttl=30.0, bands=(2, 0, -1)),
        Setting("strict, newest first", fairness="strict", ordering="lifo", ttl=None, empty_ttl=4.0, **_SOON),
        Setting("strict by Smith's rule", fairness="strict", ordering="smith", most_idle=0, reclaims=True),
        Setting("to the last byte", band_capacity=Capacity(9, 16, 32), capacity=Capacity(20, 31, 34), displace="any"),
        Setting("legacy", legacy=True, inflight_ttl=8.0, capacity=Capacity(6)),
        Setting(
            "ageing", ageing=2.0, band_ttl=2.0, flow_ttl=1.0, capacity=Capacity(9), reclaims=True, priorities=_MANY
        ),
        Setting("aware, vtc", aware=True, held_back=0.5, displace="any", capacity=Capacity(9)),
        Setting("aware, sfq", aware=True, fairness="sfq", priorities=(0,), slots=3),
        Setting("aware, drr", aware=True, fairness="drr", priorities=(0,), ttl=40.0, slots=1),
        Setting("aware, drr, ageing", aware=True, fairness="drr", ageing=4.0, inflight_ttl=6.0),
        Setting("aware, rr", aware=True, fairness="rr", ordering="edf", empty_ttl=None),
        Setting("aware, strict", aware=True, fairness="strict", most_idle=3, capacity=Capacity(8)),
        Setting("times that are not exact", unit=0.1, ttl=0.7, inflight_ttl=0.3, flow_ttl=0.9, band_ttl=1.1),
    )
}


class Valve:
    """So many at a time while it is open; some flows' own servers may be full."""

    def __init__(self, slots):
        self.slots = slots
        self.flying = 0
        self.shut = self.empty = False
        self.blocked = set()
        self.places = []

    def observe(self, endpoints, now):
        self.empty = not len(endpoints)

    def level(self, now):
        return 1.0 if self.shut or self.empty else self.flying / self.slots

    def dispatched(self, ticket, now):
        self.flying += 1

    def placed(self, ticket, now):
        self.places.append((ticket.number, ticket.endpoint))

    def finished(self, ticket, now):
        self.flying -= 1


class AwareValve(Valve):
    """It asks of each request."""

    def admits(self, ticket, ceiling, now):
        return ticket.item.flow not in self.blocked


class Newest:
    """Takes the newest of a lower priority back for a band that is kept waiting, and then nobody for a while."""

    def __init__(self):
        self.revoking = set()
        self.flying = []
        self.rests_until = -inf

    def reclaim(self, band, level, ceiling, inflight, now):
        lower = [t for t in inflight.values() if t.item.priority < band.priority and t.number not in self.revoking]
        if level < ceiling or now < self.rests_until or not lower:
            return []
        self.revoking.add(lower[-1].number)
        self.rests_until = now + 0.5
        return lower[-1:]

    def dispatched(self, ticket, now):
        assert ticket.number not in self.revoking
        self.flying.append(ticket.number)

    def failed(self, ticket, now):
        self.revoking.discard(ticket.number)

    def finished(self, ticket, now):
        self.failed(ticket, now)
        self.flying.remove(ticket.number)

    def next_wakeup(self, now):
        return self.rests_until if self.rests_until > now else inf


class Ageing:
    """The setting's, and what it is told."""

    def __init__(self, setting):
        self.policy = StrictWithAgeing(setting.ageing)
        self.paid = []

    def pick(self, bands, now):
        return self.policy.pick(bands, now)

    def served(self, band, cost, now):
        self.paid.append((band.priority, cost))


class HeldBack:
    """The setting's ceilings."""

    def __init__(self, setting):
        self.setting = setting

    def ceilings(self, saturation, priorities):
        return [self.setting.ceiling(priority) for priority in priorities]


def controller(setting, gate, policy, reclaimer):
    """Return the real one."""
    fairness = {
        "vtc": VirtualTokenCounter(),
        "sfq": StartTimeFair(),
        "drr": DeficitRoundRobin(setting.quantum),
        "rr": RoundRobin(),
        "strict": GlobalStrict(),
    }[setting.fairness]
    budget = QueueBudget(setting.ttl, setting.empty_ttl, dict(setting.flow_ttls), dict(setting.objective_ttls))
    ordering = {
        "fifo": FirstCome(),
        "edf": EarliestDeadline(budget),
        "slo": SloDeadline(),
        "smith": WeightedShortestFirst(4.0),
        "lifo": AdaptiveLifo(setting.backlog),
    }[setting.ordering]
    band = PriorityBand(0, setting.band_capacity, fairness, ordering, dict(setting.weights))
    return FlowController(
        bands=[band.at(priority) for priority in setting.bands],
        default=band,
        sheddable=None if setting.sheddable is None else replace(band, capacity=setting.sheddable),
        gate=gate,
        limits=HeldBack(setting),
        band_policy=policy,
        capacity=setting.capacity,
        cost=TokenCost(),
        budget=budget,
        displace=setting.displace,
        mode="legacy" if setting.legacy else "queue",
        reclaimer=reclaimer,
        flow_ttl=setting.flow_ttl,
        band_ttl=setting.band_ttl,
        most_idle=setting.most_idle,
        inflight_ttl=setting.inflight_ttl,
        first_token=setting.first_token,
    )


_POOLS = []


def pool(count):
    """Return a snapshot of so many servers."""
    if not _POOLS:
        for servers in range(3):
            made = isched.InferencePool()
            for i in range(servers):
                made.join(f"ep-{i}")
            _POOLS.append(made.snapshot())
    return _POOLS[count]
