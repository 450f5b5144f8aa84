"""Why this endpoint? The stages of `Scheduler.schedule`, walked the plain way, with notes."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np

from inferencesched._fusion import plain_scores, plain_totals
from inferencesched._running import check_picks, kept_by, target_at
from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import LAST_PICKED, Endpoints, Signal
from inferencesched.errors import FilteredOutError, InvalidInputError, UnknownNameError
from inferencesched.explain.changes import World, changes
from inferencesched.explain.record import Change, Drop, Explanation, Reading
from inferencesched.explain.schema import Rule
from inferencesched.framework import (
    CycleState,
    Explains,
    Filter,
    PartialScorer,
    Picker,
    ProfileResult,
    Reader,
    Reads,
    SchedulingProfile,
    SchedulingResult,
)
from inferencesched.pickers.score import MaxScorePicker
from inferencesched.request import InferenceRequest
from inferencesched.scheduler import Scheduler


class Stage(NamedTuple):
    """What did one filter see, and what was left?"""

    plugin: Filter
    before: Endpoints
    left: Endpoints


@dataclass(slots=True)
class Ran:
    """What happened in one profile? ``kept`` is None where the filters kept nobody."""

    cycle: CycleState
    stages: list[Stage] = field(default_factory=list)
    kept: Endpoints | None = None
    scores: FloatArray = field(default_factory=lambda: np.empty((0, 0)))
    totals: FloatArray = field(default_factory=lambda: np.empty(0))
    picks: tuple[int, ...] = ()
    rng: np.random.Generator | None = None  # as the picker found it


@dataclass(slots=True)
class Case:
    """What is remembered of a decision, to explain it later?"""

    scheduler: Scheduler
    request: InferenceRequest
    world: World
    gone: tuple[Drop, ...]
    age: Mapping[str, float]
    ran: dict[str, Ran] = field(default_factory=dict)
    result: SchedulingResult | None = None


class ExplainedDecision(SchedulingResult):  # a tuple's subclass has no other place for its notes
    """Where should this request go, and why? A `SchedulingResult` that can `explain` itself; made by `decide`."""

    _case: Case | None = None

    def explain(self, *, profile: str | None = None, search: bool = True) -> Explanation:
        """Why there? `profile` names one of several (default: the one whose answer counted).

        What producers found is as it was when this was decided, whatever they have learnt since. `search` looks for the single
        values that would have flipped it, which is most of the cost: some 6 ms with three scorers, 0.5 ms without. Errors: `UnknownNameError` for
        a profile that did not run; `InvalidInputError` for a copy made by ``_replace``, which has no notes.
        """
        if self._case is None:
            raise InvalidInputError("decision", "a copy without notes", "a decision as `decide` returned it")
        return explained(self._case, profile, search=search)


def decide(
    scheduler: Scheduler,
    request: InferenceRequest,
    endpoints: Endpoints,
    *,
    now: float,
    rng: np.random.Generator,
    exclude: Collection[str] = (),
) -> ExplainedDecision:
    """Who should take it, in a way that can be explained? What `Scheduler.schedule` returns, equal to it, with notes.

    For the decisions that somebody will ask about: `Scheduler.schedule` takes no notes, and costs nothing for them. `reserve`
    takes either. Errors: those of `schedule`; where the filters kept nobody, the error says who was dropped by what.
    Cost: some 0.2 ms, for the notes.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, WAITING_QUEUE_SIZE, default_profile
    >>> pool = InferencePool()
    >>> for name, queue in (("ep-0", 4.0), ("ep-1", 0.0)):
    ...     pool.join(name)
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=10.0)
    >>> request, rng = InferenceRequest(request_id="r-1", input_tokens=700), np.random.default_rng(7)
    >>> result = decide(Scheduler(default_profile()), request, pool.snapshot(), now=10.5, rng=rng)
    >>> result.endpoint, result.explain().rule
    ('ep-1', 'highest total')
    """
    case = _walked(scheduler, request, endpoints, now, rng, exclude)
    result = case.result
    assert result is not None  # else the walk had raised
    decision = ExplainedDecision(*result)
    decision._case = case
    return decision


def explain(
    scheduler: Scheduler,
    request: InferenceRequest,
    endpoints: Endpoints,
    *,
    now: float,
    rng: np.random.Generator,
    exclude: Collection[str] = (),
    profile: str | None = None,
    search: bool = True,
) -> Explanation:
    """Why does `Scheduler.schedule` answer as it does, with these very arguments?

    Give it a generator in the state that `schedule` had; it draws from it as `schedule` does. `profile` names one
    of several (default: the one whose answer counted); `search` looks for the values that would have flipped it. Errors: those
    of `schedule`, and `UnknownNameError` for a profile that did not run. Cost: some 6 ms with three scorers, 0.5 ms
    without `search`; decisions that nobody asks about cost nothing.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, WAITING_QUEUE_SIZE, default_profile
    >>> pool = InferencePool()
    >>> for name, queue in (("ep-0", 4.0), ("ep-1", 0.0)):
    ...     pool.join(name)
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=10.0)
    >>> request = InferenceRequest(request_id="r-1", input_tokens=700)
    >>> print(explain(Scheduler(default_profile()), request, pool.snapshot(), now=10.5, rng=np.random.default_rng(7)))
    request 'r-1', profile 'default': 'ep-1'
    decided by the highest total; runner-up 'ep-0', margin 2
      ep-1: 2 = 3*0.000 PrefixCacheScorer() + 2*1.000 QueueScorer() + 2*0.000 KvCacheUtilizationScorer() (0.500 s old)
      ep-0: 0 = 3*0.000 PrefixCacheScorer() + 2*0.000 QueueScorer() + 2*0.000 KvCacheUtilizationScorer() (0.500 s old)
      prefix_match (cycle, read by PrefixCacheScorer()): ep-1 unknown, ep-0 unknown
      waiting_queue_size requests (scraped, read by QueueScorer()): ep-1 0, ep-0 4
      kv_cache_usage (scraped, read by KvCacheUtilizationScorer()): ep-1 unknown, ep-0 unknown
      last_picked commits (local, read by MaxScorePicker()): ep-1 -1, ep-0 -1
    it would flip if QueueScorer() weighed 0
    it would flip to 'ep-0' if waiting_queue_size of 'ep-1' were 5 requests (it is 0)
    """
    if profile is not None and profile not in scheduler.profiles:
        raise UnknownNameError("profile", profile, list(scheduler.profiles))
    case = _walked(scheduler, request, endpoints, now, rng, exclude, profile)
    return explained(case, profile, search=search)


def _walked(
    scheduler: Scheduler,
    request: InferenceRequest,
    endpoints: Endpoints,
    now: float,
    rng: np.random.Generator,
    exclude: Collection[str],
    profile: str | None = None,
) -> Case:
    """Decide, and take notes; a refusal says who was dropped by what."""
    gone = [Drop(endpoint, "exclude", "exclude") for endpoint in endpoints.names if endpoint in exclude]
    before = endpoints.names
    age = dict(zip(before, endpoints.age(now).tolist(), strict=True))
    endpoints = scheduler.candidates(request, endpoints, now, exclude)
    left = {*endpoints.names, *(drop.endpoint for drop in gone)}
    gone += [_unheard(scheduler, name, age[name]) for name in before if name not in left]
    started = deepcopy(rng)
    cycle = CycleState(now, rng, endpoints.sequence)
    produced, receipts = scheduler.produce(request, endpoints, cycle)
    world = World(scheduler, request, endpoints, produced, cycle._replace(rng=started), deepcopy(rng))
    case = Case(scheduler, request, world, tuple(gone), age)

    def run(name: str, cycle: CycleState) -> ProfileResult | None:
        return _profile_run(case, scheduler.profiles[name], name, produced, cycle)

    try:
        decided = scheduler.run_profiles(request, produced, cycle, run)
    except FilteredOutError as refusal:
        drained = [name for name, ran in case.ran.items() if ran.kept is None]
        wanted = next(iter(drained), None) if profile is None else profile
        if wanted not in drained:
            raise
        raise scheduler.refusal(request, wanted, _causes(case, wanted)) from refusal
    case.result = decided._replace(version=produced.version, receipts=receipts)
    return case


def _unheard(scheduler: Scheduler, name: str, age: float) -> Drop:
    reason = "never observed" if age == inf else f"observed {age:.3f} s ago, more than {scheduler.stale.after:g} s"
    return Drop(name, "staleness", "staleness", reason)


def _profile_run(
    case: Case, profile: SchedulingProfile, name: str, endpoints: Endpoints, cycle: CycleState
) -> ProfileResult | None:
    """Run one profile the plain way, and note what it saw."""
    ran = case.ran[name] = Ran(cycle)
    for plugin in profile.filters:
        left = kept_by(plugin, case.request, endpoints, cycle)
        ran.stages.append(Stage(plugin, endpoints, left))
        endpoints = left
        if not len(endpoints):
            return None
    ran.kept = endpoints
    ran.scores = plain_scores(profile.scorers, case.request, endpoints, cycle)
    ran.totals = plain_totals(profile.scorers, ran.scores)
    ran.rng = deepcopy(cycle.rng)
    picks = profile.picker.pick(ran.totals.copy(), endpoints, cycle)
    check_picks(profile.picker, picks, len(endpoints))
    ran.picks = tuple(picks.tolist())
    return ProfileResult(tuple(target_at(case.request, endpoints, i, float(ran.totals[i])) for i in ran.picks))


def explained(case: Case, profile: str | None, *, search: bool) -> Explanation:
    """Return what is to be said of one profile of a case, the others beside it."""
    result = case.result
    assert result is not None  # a case without one was refused
    wanted = result.primary if profile is None else profile
    told = {name: _told(case, name, ran, search) for name, ran in case.ran.items() if ran.kept is not None}
    if wanted not in told:
        if wanted in case.ran:
            raise case.scheduler.refusal(case.request, wanted, _causes(case, wanted))
        ran = ", ".join(case.ran)
        raise UnknownNameError("profile", wanted, f"one that ran for {case.request.request_id!r}: {ran}")
    failed = tuple((name, _drops(case, ran)) for name, ran in case.ran.items() if ran.kept is None)
    return told[wanted].beside(tuple(each for name, each in told.items() if name != wanted), failed)


def _told(case: Case, name: str, ran: Ran, search: bool) -> Explanation:
    """Return what one profile's notes say."""
    kept, scores, totals = ran.kept, ran.scores, ran.totals
    assert kept is not None
    assert case.result is not None
    profile = case.scheduler.profiles[name]
    answer = case.result.profiles.get(name)
    names = kept.names
    picked = tuple(names[i] for i in ran.picks) if answer is None else tuple(t.endpoint for t in answer.targets)
    own = picked[0] == names[ran.picks[0]]
    winner = names.index(picked[0]) if picked[0] in names else ran.picks[0]
    runner = _runner_up(totals, winner)
    labels = labelled([label_of(weighted.scorer) for weighted in profile.scorers])
    weights = tuple(weighted.weight for weighted in profile.scorers)
    margin = 0.0 if runner is None else float(totals[winner] - totals[runner])
    flips: dict[str, float] = {}
    if runner is not None:
        for label, weight, row in zip(labels, weights, scores, strict=True):
            lead = float(row[winner] - row[runner])
            if lead != 0.0:
                flips[label] = weight - margin / lead
    found: tuple[Change, ...] = ()
    if search and runner is not None:
        found = changes(case.world, name, picked[0], names[runner], read_by(case.scheduler, profile))
    age = np.array([case.age[endpoint] for endpoint in names])
    return Explanation(
        request_id=case.request.request_id,
        profile=name,
        now=ran.cycle.now,
        picked=picked,
        rule=_rule(ran, profile.picker, own),
        candidates=names,
        scorers=labels,
        weights=weights,
        scores=scores,
        scored=_scored(case, ran, profile),
        totals=totals,
        age=age,
        stale=_stale(case, age),
        drops=_drops(case, ran),
        readings=_readings(case, ran, profile, age),
        runner_up=None if runner is None else names[runner],
        margin=margin,
        tie=runner is not None and bool(totals[winner] == totals[runner]),
        flips=flips,
        changes=found,
    )


def _rule(ran: Ran, picker: Picker, own: bool) -> Rule:
    """Return what let the winner win. A picker that draws, or picks the same whatever the totals, does not go by them."""
    totals, kept = ran.totals, ran.kept
    assert kept is not None
    assert ran.rng is not None
    if len(kept) == 1:
        return "only candidate"
    if not own:
        return "handler"
    winner = ran.picks[0]
    tied = totals == totals.max()
    best = type(picker) is MaxScorePicker
    if not best:
        rng = deepcopy(ran.rng)
        before = str(rng.bit_generator.state)
        turned = picker.pick(-totals, kept, ran.cycle._replace(rng=rng))
        if str(rng.bit_generator.state) != before:
            return "drawn"
        if not tied[winner] or int(turned[0]) == winner:
            return "picker"
    if int(tied.sum()) == 1:
        return "highest total"
    waited = kept[LAST_PICKED][tied]
    longest = kept[LAST_PICKED][winner] == waited.min() and int((waited == waited.min()).sum()) == 1
    return "least recently picked" if longest else "drawn" if best else "picker"


def _scored(case: Case, ran: Ran, profile: SchedulingProfile) -> BoolArray:
    """Return whom each scorer has a word on, bool[K, E]."""
    assert ran.kept is not None
    scored = np.ones(ran.scores.shape, dtype=np.bool_)
    for k, weighted in enumerate(profile.scorers):
        if isinstance(weighted.scorer, PartialScorer):
            cycle = ran.cycle._replace(rng=deepcopy(ran.rng or ran.cycle.rng))
            scored[k] = weighted.scorer.scored(case.request, ran.kept, cycle)
    return scored


def _stale(case: Case, age: FloatArray) -> BoolArray:
    """Return whose scraped signals were not believed, bool[E]."""
    policy = case.scheduler.stale
    believed = policy.assume == "trust"
    return np.zeros(len(age), dtype=np.bool_) if believed else age > policy.after


def _drops(case: Case, ran: Ran) -> tuple[Drop, ...]:
    """Return who was dropped before and by the profile's filters, in order."""
    found = list(case.gone)
    for plugin, before, left in ran.stages:
        stayed = set(left.names)
        for i, name in enumerate(before.names):
            if name not in stayed:
                found.append(
                    Drop(name, "filter", repr(plugin), _reason(case, ran, plugin, before, i), _read(plugin, before, i))
                )
    return tuple(found)


def _reason(case: Case, ran: Ran, plugin: Filter, before: Endpoints, i: int) -> str:
    if not isinstance(plugin, Explains):
        return ""
    return plugin.why_dropped(case.request, before, ran.cycle._replace(rng=deepcopy(ran.cycle.rng)), i)


def _read(plugin: object, endpoints: Endpoints, i: int) -> tuple[tuple[str, float], ...]:
    known = (read.signal for read in reads_of(plugin) if read.signal.name in endpoints.layout.rows)
    return tuple((signal.name, float(endpoints[signal][i])) for signal in known)


def _causes(case: Case, profile: str) -> str:
    return "; ".join(f"{drop.endpoint}: {drop.by}" for drop in _drops(case, case.ran[profile]))


def _readings(case: Case, ran: Ran, profile: SchedulingProfile, age: FloatArray) -> tuple[Reading, ...]:
    """Return what every column said that the profile's plug-ins declare to read, each once."""
    kept = ran.kept
    assert kept is not None
    found: dict[str, tuple[Signal, list[str], list[str]]] = {}
    for plugin in plugins_in(profile):
        for read in reads_of(plugin):
            if read.signal.name in kept.layout.rows:
                signal = kept.layout.signals[kept.layout.rows[read.signal.name]]
                _, readers, better = found.setdefault(signal.name, (signal, [], []))
                readers.append(label_of(plugin))
                better.append(read.better)
    ages = {"scraped": age, "static": np.full(len(age), nan)}
    now = np.zeros(len(age))
    return tuple(
        Reading(
            signal.name,
            signal.unit,
            signal.freshness,
            better[0] if len(set(better)) == 1 else "",
            tuple(readers),
            kept[signal].copy(),
            ages.get(signal.freshness, now),
        )
        for signal, readers, better in found.values()
    )


def reads_of(plugin: object) -> tuple[Reads, ...]:
    """Return what a plug-in says that it reads; nothing if it does not say."""
    return plugin.reads if isinstance(plugin, Reader) else ()


def plugins_in(profile: SchedulingProfile) -> tuple[object, ...]:
    """Return all that a profile is made of."""
    return (*profile.filters, *(weighted.scorer for weighted in profile.scorers), profile.picker)


def read_by(scheduler: Scheduler, profile: SchedulingProfile) -> dict[Signal, str]:
    """Return the columns that a profile's choice depends on, and which way is better for whoever wants to be picked.

    ``lower`` or ``higher`` where every reader declares it, a negative weight turning it round; empty where one does not. What
    the producers read counts too, of which nothing is declared.
    """
    ways: dict[Signal, set[str]] = {}
    turned = {"lower": "higher", "higher": "lower", "": ""}
    weighed: list[tuple[Any, bool]] = [(weighted.scorer, weighted.weight < 0) for weighted in profile.scorers]
    for plugin, around in (
        *weighed,
        *((each, False) for each in (*profile.filters, profile.picker, scheduler.handler)),
    ):
        for read in reads_of(plugin):
            ways.setdefault(read.signal, set()).add(turned[read.better] if around else read.better)
    for producer in scheduler.producers:
        for read in reads_of(producer):
            ways.setdefault(read.signal, set()).add("")
    return {signal: next(iter(found)) if len(found) == 1 else "" for signal, found in ways.items()}


def _runner_up(totals: FloatArray, winner: int) -> int | None:
    """Return the best position beside the winner."""
    if len(totals) == 1:
        return None
    others = totals.copy()
    others[winner] = -inf
    return int(np.argmax(others))


def label_of(plugin: object) -> str:
    """Return the plug-in's repr, without the parameters that were left as they come."""
    if not is_dataclass(plugin):
        return repr(plugin)
    told = {f.name: repr(getattr(plugin, f.name)) for f in fields(plugin) if f.repr}
    chosen = [f"{f.name}={told[f.name]}" for f in fields(plugin) if f.name in told and told[f.name] != repr(f.default)]
    return f"{type(plugin).__name__}({', '.join(chosen)})"


def labelled(names: list[str]) -> tuple[str, ...]:
    """Return the names, numbered where one occurs twice."""
    return tuple(
        name if names.count(name) == 1 else f"{name} #{names[: i + 1].count(name)}" for i, name in enumerate(names)
    )
