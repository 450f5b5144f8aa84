"""Which servers fail, and should be left alone for a while?

::

    healthy --5 failures in a row, or a rate far from the others'--> ejected for base * times, at most max
       ^                                                                 |  time is up
       |                                                                 v
       `-- as many requests that go well ------------------------- on trial: a few at a time
                                                                         |  one fails
                                                                         `--> ejected, for longer

A server that answers every request with an error at once has the shortest queue of all, and would be sent everything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum, inf, isfinite, isnan, nan, sqrt
from typing import NamedTuple, final

import numpy as np

from inferencesched.endpoints import INFLIGHT_REQUESTS, Endpoints, Signal
from inferencesched.errors import InvalidInputError, duration, whole_number
from inferencesched.framework import CycleState, Produced, Reads
from inferencesched.members import Membership
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement
from inferencesched.signals import HEALTH

#: A rate this near to a limit is at it: sums of floats are not exact.
_NEAR = 1e-9


@dataclass(frozen=True, slots=True)
class OutlierPolicy:
    """When is a server left alone, and for how long?

    Parameters
    ----------
    consecutive_failures: so many in a row eject at once; 0 never. Only what was sent after a failure, and went well, ends a row: a
        server that refuses connections may still end the streams that it has.
    interval: seconds between two looks at the rates.
    stdev_factor: a success rate of less than the mean minus so many standard deviations ejects; 0 never.
    stdev_minimum_hosts, stdev_request_volume: the mean is taken of servers with so many ended requests in the interval, and only of
        so many servers or more.
    failure_share: a share of failures of at least this much ejects; None never.
    failure_minimum_hosts, failure_request_volume: the same two for that.
    base_ejection_time, max_ejection_time: an ejection lasts the first of these times the server's number of ejections,
        at most the second (or the first, if that is more). The number falls by one with each interval without one.
    max_ejected: the share of the pool that may be ejected or on trial; one is allowed of any two or more.
    trials: how many requests a server on trial may have in flight.
    trial_successes: how many must go well before it is healthy.
    forgiven: reasons of failures that are not the server's fault (`Reservation.fail`; a context manager's reason is the
        exception's name; `RequestLife` says ``cancelled``, ``blocked``, ``revoked``, and ``failed``, which is not forgiven).

    The numbers are those of Envoy's outlier detection, but for `max_ejected`, there a tenth: pools of model servers are small;
    and for the trials, which Envoy has not: it trusts a server again at once when its time is up.
    """

    consecutive_failures: int = 5
    interval: float = 10.0
    stdev_factor: float = 1.9
    stdev_minimum_hosts: int = 5
    stdev_request_volume: int = 100
    failure_share: float | None = None
    failure_minimum_hosts: int = 5
    failure_request_volume: int = 50
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejected: float = 0.5
    trials: int = 1
    trial_successes: int = 2
    forgiven: tuple[str, ...] = ("client-disconnect", "evicted", "CancelledError", "cancelled", "blocked", "revoked")

    def __post_init__(self) -> None:
        whole_number("consecutive_failures", self.consecutive_failures)
        for name, count in (
            ("stdev_minimum_hosts", self.stdev_minimum_hosts),
            ("stdev_request_volume", self.stdev_request_volume),
            ("failure_minimum_hosts", self.failure_minimum_hosts),
            ("failure_request_volume", self.failure_request_volume),
            ("trials", self.trials),
            ("trial_successes", self.trial_successes),
        ):
            whole_number(name, count, low=1)
        for name, seconds in (
            ("interval", self.interval),
            ("base_ejection_time", self.base_ejection_time),
            ("max_ejection_time", self.max_ejection_time),
        ):
            duration(name, seconds)
        if not (isfinite(self.stdev_factor) and self.stdev_factor >= 0):
            raise InvalidInputError("stdev_factor", self.stdev_factor, "a finite number of at least 0")
        if self.failure_share is not None and not 0 < self.failure_share <= 1:
            raise InvalidInputError("failure_share", self.failure_share, "above 0, at most 1, or None")
        if not 0 < self.max_ejected <= 1:
            raise InvalidInputError("max_ejected", self.max_ejected, "above 0, at most 1")

    def ejection_time(self, times: int) -> float:
        """For how many seconds is a server left alone the so manieth time?"""
        return min(self.base_ejection_time * times, max(self.base_ejection_time, self.max_ejection_time))

    def most(self, members: int) -> int:
        """How many servers of a pool may be ejected or on trial?"""
        return max(1, int(self.max_ejected * members + _NEAR)) if members > 1 else 0


class OutlierReceipt(NamedTuple):
    """Of which members was the decision made, and as of when?"""

    members: Membership
    version: int


class Ejection(NamedTuple):
    """Which server is ejected or on trial: since how many ejections, until when, and how much went well since?"""

    endpoint: str
    times: int
    until: float
    successes: int


class _Stay(NamedTuple):
    """What is remembered of one stay of a server; never changed, only replaced."""

    failures: int = 0  # in a row
    failed_at: float = -inf  # the last of them
    succeeded: int = 0  # in this interval
    ended: int = 0  # in this interval
    times: int = 0  # ejections, less one for each interval without
    until: float = nan  # the end of its ejection, from when it is on trial; NaN for who is healthy
    trials: int = 0  # that went well


@final
class OutlierProducer:
    """Who is healthy, by how our own requests ended?

    Fills ``HEALTH``: 1 healthy, 0 ejected, and after an ejection 0.5 while fewer than `OutlierPolicy.trials` requests are
    in flight there, else 0: so a server on trial never has more than those, those of before its ejection included.
    `inferencesched.filters.health.HealthFilter` acts on it; without a filter it is a number to look at.

    Reads ``INFLIGHT_REQUESTS`` (local, never stale; lower is better). Learns from the endings of requests as they are
    settled: ``completed`` is a success; ``failed`` (unless forgiven) and ``expired`` are failures; that an endpoint left says
    nothing. What was sent before an ejection was over decides nothing about the trial. Rates are looked at when something
    happens after an interval is over. Who is heard of is the primary profile's target.

    State: a few numbers for each endpoint of the pool. An endpoint that left is forgotten, and one that comes back is
    healthy. It is written under the pool's lock and read without one, from any thread; the endpoints are those of one
    pool. Cost: `produce` 2 us while nobody is ejected, some 8 us at 64 endpoints else.

    Source: Envoy's outlier detection (``envoy.config.cluster.v3.OutlierDetection``); half-open probing: Nygard, "Release
    It!" (2007).

    >>> from inferencesched.pool import InferencePool
    >>> pool, producer = InferencePool(), OutlierProducer(OutlierPolicy(consecutive_failures=1))
    >>> pool.join("a"); pool.join("b")
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> found = producer.produce(InferenceRequest(request_id="1"), pool.snapshot(), cycle)
    >>> ending = pool.reserve("b", request_id="1", now=0.0).fail(now=1.0)
    >>> producer.settled(found.receipt, ending, 1)
    >>> for now in (2.0, 31.0):
    ...     cycle = cycle._replace(now=now)
    ...     producer.produce(InferenceRequest(request_id="2"), pool.snapshot(), cycle).columns[HEALTH]
    array([1., 0.])
    array([1. , 0.5])
    """

    def __init__(self, policy: OutlierPolicy | None = None) -> None:
        self.policy = OutlierPolicy() if policy is None else policy
        self._stays: dict[int, _Stay] = {}  # by generation
        self._out: Mapping[int, float] = {}  # generation -> until; replaced as a whole
        self._members = Membership()
        self._version = -1
        self._clock = -inf
        self._look_at = nan  # when the rates are looked at next; NaN before the first event

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (HEALTH,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does it read, and which way is better?"""
        return (Reads(INFLIGHT_REQUESTS, "lower"),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[OutlierReceipt]:
        """Return everybody's health."""
        health, out = np.ones(len(endpoints)), self._out
        if out:
            inflight = endpoints[INFLIGHT_REQUESTS]
            for position, generation in enumerate(endpoints.generations.tolist()):
                until = out.get(generation)
                if until is not None:
                    open_ = cycle.now >= until and inflight[position] < self.policy.trials
                    health[position] = 0.5 if open_ else 0.0
        return Produced({HEALTH: health}, OutlierReceipt(endpoints.members, endpoints.version))

    def commit(self, receipt: OutlierReceipt, slot: int, *, now: float) -> None:
        """Look at the rates if it is time; whom the request went to is on the pool's books."""
        self._meet(receipt)
        self._tick(now)

    def settled(self, receipt: OutlierReceipt, settlement: Settlement, slot: int) -> None:
        """Learn how a request ended."""
        self._meet(receipt)
        now = self._tick(settlement.settled_at)
        well = settlement.outcome == "completed"
        ill = settlement.outcome == "expired" or (
            settlement.outcome == "failed" and settlement.reason not in self.policy.forgiven
        )
        generation = self._whose(receipt.members, settlement.endpoint, slot)
        if generation is None or not (well or ill):
            return
        stay = self._stays.get(generation, _Stay())
        if not isnan(stay.until):
            if settlement.reserved_at >= stay.until:
                self._try(generation, stay, now, well=well)
            return
        if ill:
            stay = stay._replace(failures=stay.failures + 1, failed_at=now)
        elif settlement.reserved_at >= stay.failed_at:
            stay = stay._replace(failures=0)  # else it was there before: a server that dies may yet end what it has
        stay = stay._replace(succeeded=stay.succeeded + well, ended=stay.ended + 1)
        self._stays[generation] = stay
        if 0 < self.policy.consecutive_failures <= stay.failures:
            self._eject(generation, now)

    @property
    def ejections(self) -> tuple[Ejection, ...]:
        """Who is ejected or on trial now, in the order of joining?"""
        names = dict(zip(self._members.generations.tolist(), self._members.names, strict=True))
        return tuple(
            Ejection(names[generation], stay.times, stay.until, stay.trials)
            for generation, stay in sorted(self._stays.items())
            if not isnan(stay.until)
        )

    def check(self) -> None:
        """Is what is remembered consistent? For tests: `AssertionError` where it is not."""
        living = set(self._members.generations.tolist())
        assert self._stays.keys() <= living, "somebody who left is remembered"
        assert dict(self._out) == {g: stay.until for g, stay in self._stays.items() if not isnan(stay.until)}
        for stay in self._stays.values():
            assert 0 <= stay.succeeded <= stay.ended
            assert stay.failures >= 0
            if isnan(stay.until):
                assert stay.times >= 0
                assert stay.trials == 0
            else:
                assert stay.times >= 1
                assert 0 <= stay.trials < self.policy.trial_successes
                assert stay.failures == stay.succeeded == stay.ended == 0

    # -- inside ------------------------------------------------------------------------------------

    def _meet(self, receipt: OutlierReceipt) -> None:
        """Forget who left, when a newer snapshot tells of other members."""
        if receipt.members is self._members or receipt.version < self._version:
            return
        self._members, self._version = receipt.members, receipt.version
        living = set(receipt.members.generations.tolist())
        if not self._stays.keys() <= living:
            self._stays = {generation: stay for generation, stay in self._stays.items() if generation in living}
            self._note()

    def _whose(self, members: Membership, endpoint: str, slot: int) -> int | None:
        """Return the stay that a request ended on; None where it moved to one that the decision did not know."""
        position = members.positions.get(endpoint)
        if position is None or members.stays[position][0] != slot:
            return None
        generation = members.stays[position][1]
        return generation if generation in self._stays or generation in self._members.generations else None

    def _tick(self, now: float) -> float:
        """Return the time, which never goes back; look at the rates if an interval is over."""
        self._clock = now = max(now, self._clock)
        if isnan(self._look_at):
            self._look_at = now + self.policy.interval
        elif now >= self._look_at:
            self._look_at = now + self.policy.interval
            self._look(now)
        return now

    def _look(self, now: float) -> None:
        """Compare the rates of the interval that is over, and begin another."""
        rates = {
            generation: (stay.succeeded / stay.ended, stay.ended)
            for generation, stay in self._stays.items()
            if stay.ended  # none while ejected or on trial
        }
        self._stays = {
            generation: stay._replace(succeeded=0, ended=0, times=max(0, stay.times - 1)) if isnan(stay.until) else stay
            for generation, stay in self._stays.items()
        }
        for generation in self._outliers(rates):
            self._eject(generation, now)

    def _outliers(self, rates: Mapping[int, tuple[float, int]]) -> list[int]:
        """Return whose rate is too far from the others', or too low, the lowest first."""
        policy, found = self.policy, dict[int, float]()
        told = {g: rate for g, (rate, ended) in rates.items() if ended >= policy.stdev_request_volume}
        if policy.stdev_factor > 0 and told and len(told) >= policy.stdev_minimum_hosts:
            mean = fsum(told.values()) / len(told)
            deviation = sqrt(fsum((rate - mean) ** 2 for rate in told.values()) / len(told))
            limit = mean - policy.stdev_factor * deviation
            found |= {g: rate for g, rate in told.items() if rate < limit - _NEAR}
        told = {g: rate for g, (rate, ended) in rates.items() if ended >= policy.failure_request_volume}
        if policy.failure_share is not None and len(told) >= policy.failure_minimum_hosts:
            found |= {g: rate for g, rate in told.items() if 1.0 - rate >= policy.failure_share - _NEAR}
        return sorted(found, key=lambda generation: (found[generation], generation))

    def _try(self, generation: int, stay: _Stay, now: float, *, well: bool) -> None:
        """Learn how a request ended that was sent to a server on trial."""
        if not well:
            self._eject(generation, now, again=True)
        elif stay.trials + 1 < self.policy.trial_successes:
            self._stays[generation] = stay._replace(trials=stay.trials + 1)
        else:
            self._stays[generation] = _Stay(times=stay.times)
            self._note()

    def _eject(self, generation: int, now: float, *, again: bool = False) -> None:
        """Leave a server alone, unless as many as may be are left alone already."""
        if not again and len(self._out) >= self.policy.most(len(self._members.names)):
            return
        times = self._stays[generation].times + 1
        self._stays[generation] = _Stay(times=times, until=now + self.policy.ejection_time(times))
        self._note()

    def _note(self) -> None:
        self._out = {generation: stay.until for generation, stay in self._stays.items() if not isnan(stay.until)}
