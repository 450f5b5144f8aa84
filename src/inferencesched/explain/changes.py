"""What is the smallest change of one signal that would have flipped the choice?

Found by deciding again: the same request, the same draws, one value of one endpoint changed.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from math import isfinite
from typing import Any, Final

import numpy as np

from inferencesched._fusion import plain_scores, plain_totals
from inferencesched._running import check_picks, kept_by, target_at
from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import PluginError, RequestRefusedError
from inferencesched.explain.record import Change
from inferencesched.framework import CycleState, DataProducer, ProfileResult, Reader
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler

#: What can only be counted: a change of it is a whole number.
COUNTED: Final = frozenset({"requests", "tokens", "blocks", "adapters", "rank", "flag", "commits"})
#: What is not counted is found to this share of the signal's reach.
PRECISION: Final = 1e-6
#: How far beyond its reach a signal without an end is followed.
BEYOND: Final = 1024.0


class World:
    """What would have been picked if one value had been another?

    `considered` are the candidates before the producers, `produced` after them; `started` is the cycle with the generator as the
    producers found it, `rng` as the profiles did. Draws are repeated. Producers that declare to read what changed are asked
    again; the others' columns stand.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        request: InferenceRequest,
        considered: Endpoints,
        produced: Endpoints,
        started: CycleState,
        rng: np.random.Generator,
    ) -> None:
        self.scheduler = scheduler
        self.request = request
        self.considered = considered
        self.produced = produced
        self.started = started
        self._rng = rng
        self._drawing = deepcopy(rng)
        self._state: Any = rng.bit_generator.state

    def winner(self, profile: str, signal: Signal, endpoint: str, value: float) -> str | None:
        """Return whom the profile would have picked with this value.

        None where the request would have been refused, or a plug-in would have broken its contract.
        """
        endpoints = self._changed(signal, self.produced.names.index(endpoint), value)
        self._drawing.bit_generator.state = self._state
        cycle = self.started._replace(rng=self._drawing)
        try:
            result = self.scheduler.run_profiles(
                self.request, endpoints, cycle, lambda name, cycle: self._run(name, endpoints, cycle)
            )
        except (RequestRefusedError, PluginError):
            return None
        picked = result.profiles.get(profile)
        return picked.target.endpoint if picked is not None and picked.targets else None

    def _changed(self, signal: Signal, position: int, value: float) -> Endpoints:
        """Return the snapshot after the producers, with one value changed before or among them."""
        producers = self.scheduler.producers
        if not any(signal.name in _reads(producer) for producer in producers):
            return _with(self.produced, signal, position, value)
        endpoints, changed = self.considered, {signal.name}
        if not any(signal in producer.produces for producer in producers):
            endpoints = _with(endpoints, signal, position, value)
        for producer in producers:
            columns: Mapping[Signal, FloatArray] = self._columns(producer)
            if changed & _reads(producer):
                cycle = self.started._replace(rng=deepcopy(self.started.rng))
                columns = producer.produce(self.request, endpoints, cycle).columns
                changed |= {filled.name for filled in columns}
            endpoints = endpoints.with_columns(columns)
            if signal in columns:
                endpoints = _with(endpoints, signal, position, value)
        return endpoints

    def _columns(self, producer: DataProducer[Any]) -> dict[Signal, FloatArray]:
        return {each: self.produced[each] for each in producer.produces if each.name in self.produced.layout.rows}

    def _run(self, name: str, endpoints: Endpoints, cycle: CycleState) -> ProfileResult | None:
        profile = self.scheduler.profiles[name]
        for plugin in profile.filters:
            endpoints = kept_by(plugin, self.request, endpoints, cycle)
            if not len(endpoints):
                return None
        totals = plain_totals(profile.scorers, plain_scores(profile.scorers, self.request, endpoints, cycle))
        picks = profile.picker.pick(totals, endpoints, cycle)
        check_picks(profile.picker, picks, len(endpoints))
        return ProfileResult(tuple(target_at(self.request, endpoints, i, float(totals[i])) for i in picks.tolist()))


def _with(endpoints: Endpoints, signal: Signal, position: int, value: float) -> Endpoints:
    column = endpoints[signal].copy()
    column[position] = value
    return endpoints.with_columns({signal: column})


def _reads(producer: DataProducer[Any]) -> set[str]:
    return {read.signal.name for read in producer.reads} if isinstance(producer, Reader) else set()


def changes(world: World, profile: str, winner: str, runner_up: str, reads: Mapping[Signal, str]) -> tuple[Change, ...]:
    """Return the nearest flip by each signal of the winner and of the runner-up, the smallest first.

    `reads` maps the columns that the choice depends on to which way is better, empty where nobody declares it. Values that
    are unknown are left as they are.
    """
    found = []
    for signal, better in reads.items():
        if signal.name not in world.produced.layout.rows:
            continue
        declared = world.produced.layout.signals[world.produced.layout.rows[signal.name]]
        for endpoint, gains in ((winner, False), (runner_up, True)):
            change = _nearest(world, profile, winner, declared, endpoint, better, gains)
            if change is not None:
                found.append(change)
    return tuple(sorted(found, key=lambda change: (change.size, change.signal, change.endpoint)))


def _nearest(
    world: World, profile: str, winner: str, signal: Signal, endpoint: str, better: str, gains: bool
) -> Change | None:
    """Return the nearest value of one endpoint's signal that flips the choice; None where none was found."""
    column = world.produced[signal]
    before = float(column[world.produced.names.index(endpoint)])
    if not isfinite(before):
        return None
    known = column[np.isfinite(column)]
    bounded = isfinite(signal.low) and isfinite(signal.high)
    reach = signal.high - signal.low if bounded else max(1.0, float(np.abs(known).max()))
    if reach == 0.0:
        return None
    counted = signal.unit in COUNTED and before == round(before)
    step = 1.0 if counted else PRECISION * reach

    def to(distance: float, sign: int) -> float:
        value = before + sign * (max(1.0, float(round(distance))) if counted else distance)
        return min(max(value, signal.low), signal.high)

    def flips(value: float) -> bool:
        return world.winner(profile, signal, endpoint, value) not in (winner, None)

    signs = (-1, 1) if not better else (1,) if (better == "higher") == gains else (-1,)
    best: tuple[float, float] | None = None
    for sign in signs:
        far = to(BEYOND * reach, sign)
        if better and not flips(far):
            continue
        tried = before
        for distance in _distances(reach, bounded, [abs(float(other) - before) for other in known]):
            value = to(distance, sign)
            if value == tried:
                continue
            if flips(value):
                near, hit = _between(tried, value, step, counted, flips)
                if best is None or abs(hit - before) < abs(best[1] - before):
                    best = near, hit
                break
            tried = value
    if best is None:
        return None
    near, hit = best
    other = world.winner(profile, signal, endpoint, hit)
    assert other is not None  # it flips there
    return Change(endpoint, signal.name, signal.unit, before, hit, near, abs(hit - before) / reach, other, bool(better))


def _distances(reach: float, bounded: bool, others: list[float]) -> list[float]:
    """Return how far to look, nearest first: a ladder, and round the other candidates' values, where ranks change."""
    ladder = [reach * 2.0**-k for k in range(12)]
    if not bounded:
        ladder += [reach * 2.0**k for k in range(1, 11)]
    places = [distance for other in others for distance in (other, other * (1 + 1e-9) + 1e-9 * reach) if distance > 0.0]
    return sorted({*ladder, *places})


def _between(
    near: float, hit: float, step: float, counted: bool, flips: Callable[[float], bool]
) -> tuple[float, float]:
    """Return the last value that does not flip and the first that does, at most a step apart."""
    while abs(hit - near) > step:
        middle = (near + hit) / 2.0
        if counted:
            middle = float(np.floor(middle))
        if middle in (near, hit):
            break
        if flips(middle):
            hit = middle
        else:
            near = middle
    return near, hit
