"""Which endpoint should take this request?

``schedule`` is pure: it reads a request, a snapshot, a time and a generator, and changes none but the generator.
``reserve`` commits. ``schedule_and_reserve`` does both under the pool's lock, so that a burst cannot herd onto the
endpoint that looked idle to all of it. The stages: exclusion, staleness, producers, then for each profile filters,
scorers, picker.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from sys import float_info
from types import MappingProxyType
from typing import Any, Final, final

import numpy as np

from inferencesched._dependencies import in_order, plugins_of
from inferencesched._folding import foldable, folded
from inferencesched._fusion import PICKED_ROW, PREFIX_TOKENS_ROW, Program, decider, folder, single_folder, weigher
from inferencesched._running import ProfileRunner, record
from inferencesched.endpoints import Endpoints
from inferencesched.errors import (
    AdmissionDeniedError,
    FilteredOutError,
    InvalidInputError,
    NoEndpointsError,
    PluginError,
    ProduceError,
    RequestRefusedError,
    finite_time,
)
from inferencesched.framework import (
    Admitter,
    Assigner,
    Configuration,
    CycleState,
    DataProducer,
    DecisionListener,
    OutcomeListener,
    ProfileHandler,
    ProfileResult,
    SchedulingProfile,
    SchedulingResult,
    StagedHandler,
    Target,
    WeightedScorer,
)
from inferencesched.handlers.single import SingleProfileHandler
from inferencesched.pickers.score import MaxScorePicker
from inferencesched.pool import InferencePool
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Reservation, Settlement
from inferencesched.scorers import KvCacheUtilizationScorer, PrefixCacheScorer, QueueScorer
from inferencesched.staleness import StalePolicy

DEFAULT_PROFILE: Final = "default"

_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def default_profile() -> SchedulingProfile:
    """Which profile does the reference use when nothing is configured? Prefix 3, queue 2, KV 2, best total."""
    return SchedulingProfile(
        picker=MaxScorePicker(),
        scorers=(
            WeightedScorer(PrefixCacheScorer(), 3.0),
            WeightedScorer(QueueScorer(), 2.0),
            WeightedScorer(KvCacheUtilizationScorer(), 2.0),
        ),
    )


@final
class Scheduler:
    """Whom would these policies pick, and what does picking them cost?

    Parameters
    ----------
    profiles: one `SchedulingProfile`, or several by name.
    handler: which profiles run and whose answer counts; one profile needs none.
    producers: what must be known before scoring (prefix matches, ...), in order.
    stale: what is assumed of servers not heard of lately.
    computing: beside the primary profile, the profiles whose target computes the prompt: the producers are told of it.
    assigner: how several requests are decided jointly; None plans them one after another (see `assign`).

    A scheduler holds parameters only (and its producers): share it between threads, and without producers also between
    pools (what a producer knows is about the endpoints of one pool).
    Cost with four everyday scorers: 1.5 us at 8 endpoints, 4 us at 1,024; `schedule_and_reserve` 7 and 13 us.
    Refusals are typed: `NoEndpointsError` (503) where there is nobody to choose from, `FilteredOutError` (429) where the
    filters keep nobody.

    >>> from inferencesched import InferencePool, InferenceRequest, Scheduler, WAITING_QUEUE_SIZE, default_profile
    >>> pool = InferencePool()
    >>> for name, queue in (("ep-0", 4.0), ("ep-1", 0.0)):
    ...     pool.join(name)
    ...     pool.observe(name, {WAITING_QUEUE_SIZE: queue}, now=10.0)
    >>> scheduler = Scheduler(default_profile())
    >>> request = InferenceRequest(request_id="r-1", input_tokens=700)
    >>> rng = np.random.default_rng(7)
    >>> scheduler.schedule(request, pool.snapshot(), now=10.1, rng=rng).endpoint
    'ep-1'
    >>> with scheduler.schedule_and_reserve(request, pool, now=10.1, rng=rng) as reservation:
    ...     pool.ledger().inflight_requests
    1
    >>> pool.ledger().inflight_requests
    0
    """

    def __init__(
        self,
        profiles: SchedulingProfile | Mapping[str, SchedulingProfile],
        *,
        handler: ProfileHandler | None = None,
        producers: Sequence[DataProducer[Any]] = (),
        stale: StalePolicy | None = None,
        assigner: Assigner | None = None,
        computing: Collection[str] = ("prefill",),
    ) -> None:
        named = {DEFAULT_PROFILE: profiles} if isinstance(profiles, SchedulingProfile) else dict(profiles)
        if not named:
            raise InvalidInputError("profiles", profiles, "at least one profile")
        if handler is None and len(named) > 1:
            raise InvalidInputError("handler", None, f"a ProfileHandler, to choose between {sorted(named)}")
        self.profiles: Mapping[str, SchedulingProfile] = MappingProxyType(named)
        self.handler: ProfileHandler = SingleProfileHandler() if handler is None else handler
        plugins = (plugin for profile in named.values() for plugin in plugins_of(profile))
        self.producers = in_order(producers, (self.handler, *plugins))
        self._declared = tuple(frozenset(producer.produces) for producer in self.producers)
        self.stale = StalePolicy() if stale is None else stale
        self.assigner = assigner
        self.computing = tuple(computing)
        self._listening: tuple[tuple[int, OutcomeListener[Any]], ...] = tuple(
            (i, producer) for i, producer in enumerate(self.producers) if isinstance(producer, OutcomeListener)
        )
        self._deciding: tuple[tuple[int, DecisionListener[Any]], ...] = tuple(
            (i, producer) for i, producer in enumerate(self.producers) if isinstance(producer, DecisionListener)
        )
        self._staged = self.handler if isinstance(self.handler, StagedHandler) else None
        self._runners = {name: ProfileRunner(profile) for name, profile in named.items()}
        alone = len(named) == 1 and type(self.handler) is SingleProfileHandler
        self._alone: tuple[str, ProfileRunner] | None = next(iter(self._runners.items())) if alone else None
        trusting = self.stale.assume == "trust"
        self._patience = float_info.max if trusting else self.stale.after
        self._leaving_out_unseen = trusting or self.stale.assume == "worst"
        self._compiled: tuple[str, Program, Callable[..., tuple[int, int, float, int]]] | None = None
        if self._alone is not None and not self.producers and self._alone[1].compiled:
            self._compiled = (self._alone[0], self._alone[1].program, decider())
        self._batched = (
            None if self._alone is None else foldable(self._alone[1].compiled, self._alone[1].program, self.producers)
        )

    def schedule(
        self,
        request: InferenceRequest,
        endpoints: Endpoints,
        *,
        now: float,
        rng: np.random.Generator,
        exclude: Collection[str] = (),
        admitters: Sequence[Admitter] = (),
    ) -> SchedulingResult:
        """Who should take it? Pure: equal arguments, an equally seeded `rng` included, give an equal answer.

        `exclude` names endpoints not to try (again); `admitters` are asked in order, with what the producers found out, before
        any profile runs. Errors: `RequestRefusedError` (`AdmissionDeniedError` of the first admitter that denies), `PluginError`.
        """
        if exclude or not endpoints.seen_since(now - self._patience, self._leaving_out_unseen):
            endpoints = self.candidates(request, endpoints, now, exclude)
        compiled = self._compiled
        if compiled is not None and not admitters:
            # what `ProfileRunner.run` does, for a profile of which every part is in the kernel
            name, program, decide = compiled
            tokens = request.input_tokens
            if tokens is None:
                tokens = request.prompt_tokens or 0
            masks = endpoints.residency(request.adapter or request.model) if program.loras else program.NO_MASKS
            matrix, extra = endpoints.matrix, program.NO_EXTRA
            code = program.code if program.fixed else program.code_of(endpoints.layout)
            best, ties, total, owed = decide(matrix, extra, masks, code, tokens, PICKED_ROW, PREFIX_TOKENS_ROW, 0)
            if ties != 1:
                if not ties:
                    raise NoEndpointsError(f"no endpoint for request {request.request_id!r}: the pool is empty")
                nth = int(rng.random() * ties)
                best, _, total, owed = decide(matrix, extra, masks, code, tokens, PICKED_ROW, PREFIX_TOKENS_ROW, nth)
            at = best if endpoints.positions is None else endpoints.positions[best]
            endpoint, (slot, generation), address = endpoints.members.identities[at]
            target = record(Target, (endpoint, slot, generation, total, owed, address))
            profiles = {name: record(ProfileResult, ((target,),))}
            return record(SchedulingResult, (request, name, profiles, endpoints.version, (), _NO_HEADERS))  # type: ignore[no-any-return]
        if not len(endpoints):
            raise NoEndpointsError(f"no endpoint for request {request.request_id!r}: the pool is empty")
        cycle = CycleState(now, rng, endpoints.sequence)
        endpoints, receipts = self.produce(request, endpoints, cycle)
        for admitter in admitters:
            denial = admitter.admit(request, endpoints, cycle)
            if denial is not None:
                raise AdmissionDeniedError(type(admitter).__name__, denial.reason, status=denial.status)
        if self._alone is not None:
            name, runner = self._alone
            result = runner.run(request, endpoints, cycle)
            if result is None:
                raise self.refusal(request, name, f"{len(endpoints)} candidates")
            return SchedulingResult(request, name, {name: result}, endpoints.version, receipts)
        decided = self.run_profiles(
            request, endpoints, cycle, lambda name, cycle: self._runners[name].run(request, endpoints, cycle)
        )
        return decided._replace(version=endpoints.version, receipts=receipts)

    def with_config(self, new: "Configuration[Scheduler]") -> "Scheduler":
        """Return the scheduler of a new configuration; producers that are set up as they were go on, with what they know."""
        return new.carrying(self).scheduler()

    def warmup(self) -> None:
        """Is everything compiled that this scheduler's decisions call? It is after this; changes nothing else.

        A compiled profile's kernels, and those that a profile falls back to. `inferencesched.warmup` does so for all
        that a gateway may use. Cost: seconds the first time on a machine, milliseconds from the disk cache.
        """
        for compile_ in (decider, weigher, folder, single_folder):
            compile_()

    def reserve(self, result: SchedulingResult, pool: InferencePool, *, now: float) -> Reservation:
        """Book the decision and tell the producers; the next snapshot sees it.

        What is booked is the primary profile's target; `reserve_stages` books those of the other profiles too. Producers
        are told of the primary target, and of those of the profiles in `computing`; who listens for outcomes
        (`OutcomeListener`) hears of the primary's.
        Errors, and nothing is booked: `EndpointGoneError` if the endpoint left since, `InvalidInputError` for a result
        of other producers than these, and whatever a producer's ``commit`` or ``decided`` raises. Producers before it in order
        have learnt of the request then; those that were told of the decision, and listen, hear that it was withdrawn.
        """
        target, request = result.target, result.request
        if len(result.receipts) != len(self.producers):
            allowed = f"one for each of {len(self.producers)} producers: a result of this scheduler's `schedule`"
            raise InvalidInputError("result.receipts", len(result.receipts), allowed)
        with pool.lock:
            reservation = pool.reserve(
                target.endpoint,
                request_id=request.request_id,
                tokens=target.tokens,
                context_tokens=request.prompt_tokens or 0,
                now=now,
                generation=target.generation,
            )
            heard: set[int] = set()
            try:
                for slot in self._told(result) if self.producers and len(result.profiles) > 1 else (target.slot,):
                    for producer, receipt in zip(self.producers, result.receipts, strict=True):
                        producer.commit(receipt, slot, now=now)
                for i, decider in self._deciding:
                    decider.decided(result.receipts[i], result, now=now)
                    heard.add(i)
            except BaseException:
                reservation.listeners = self._ears(result, reservation, heard)
                pool.withdraw(reservation)
                raise
            if self._listening:
                reservation.listeners = self._ears(result, reservation)
            return reservation

    def _ears(
        self, result: SchedulingResult, reservation: Reservation, who: Collection[int] | None = None
    ) -> tuple[Callable[[Settlement], None], ...]:
        """Return what tells those who listen, all or some of them, how the reservation ended."""
        return tuple(
            _hears(listener, result.receipts[i], reservation)
            for i, listener in self._listening
            if who is None or i in who
        )

    def _told(self, result: SchedulingResult) -> list[int]:
        """Return the slots whose endpoints will hold the prompt, the primary target's first, each once."""
        slots = {result.target.slot: None}
        for name in self.computing:
            picked = result.profiles.get(name)
            if picked is not None and picked.targets:
                slots[picked.target.slot] = None
        return list(slots)

    def reserve_stages(self, result: SchedulingResult, pool: InferencePool, *, now: float) -> Mapping[str, Reservation]:
        """Book the targets of all profiles that found one, by profile; the primary's is what `reserve` would return.

        Each is settled by itself: a prefill server's at its first token, say. Errors: those of `reserve`, for any of
        the targets; then nothing is booked.
        """
        request, booked = result.request, {}
        with pool.lock:
            try:
                for name, picked in result.profiles.items():
                    if name != result.primary and picked is not None and picked.targets:
                        target = picked.target
                        booked[name] = pool.reserve(
                            target.endpoint,
                            request_id=request.request_id,
                            tokens=target.tokens,
                            context_tokens=request.prompt_tokens or 0,
                            now=now,
                            generation=target.generation,
                        )
                booked[result.primary] = self.reserve(result, pool, now=now)
            except BaseException:
                for reservation in reversed(booked.values()):
                    pool.withdraw(reservation)
                raise
        return MappingProxyType(booked)

    def schedule_and_reserve(
        self,
        request: InferenceRequest,
        pool: InferencePool,
        *,
        now: float,
        rng: np.random.Generator,
        exclude: Collection[str] = (),
    ) -> Reservation:
        """Decide on the pool's present state and book it, with nobody in between."""
        with pool.lock:
            result = self.schedule(request, pool.snapshot(), now=now, rng=rng, exclude=exclude)
            return self.reserve(result, pool, now=now)

    def schedule_many(
        self, requests: Sequence[InferenceRequest], pool: InferencePool, *, now: float, rng: np.random.Generator
    ) -> Sequence[Reservation | RequestRefusedError]:
        """Decide and book several, in order, with nobody in between; a refusal takes its request's place.

        Defined as the fold of `schedule_and_reserve`: each decision sees those before it. Any other error (a plug-in's)
        withdraws all that was booked here, so that no booking is left without its `Reservation`, and is raised.
        Cost: where all of a profile is compiled, under 1 us a request at 64 endpoints: one kernel decides all,
        and each `Reservation` is made when it is looked at (`Bookings`).
        """
        answers: list[Reservation | RequestRefusedError] = []
        with pool.lock:
            if self._batched is not None and len(requests) > 1:
                bookings = folded(*self._batched, self.stale, tuple(requests), pool, now, rng)
                if bookings is not None:
                    return bookings
            try:
                for request in requests:
                    try:
                        answers.append(self.schedule_and_reserve(request, pool, now=now, rng=rng))
                    except RequestRefusedError as refusal:
                        answers.append(refusal)
            except BaseException:
                with ExitStack() as undone:  # the newest first; all of them, whatever a listener raises
                    for answer in answers:
                        if isinstance(answer, Reservation):
                            undone.callback(pool.withdraw, answer)
                raise
        return answers

    def assign(
        self,
        requests: Sequence[InferenceRequest],
        endpoints: Endpoints,
        *,
        now: float,
        rng: np.random.Generator,
    ) -> list[SchedulingResult]:
        """Who should take which, seen together? Pure; the caller reserves, and decides how long to wait for a burst.

        Without an `Assigner` the requests are planned one after another, each seeing the load (not the cached
        prefixes) that those before it would bring: what `schedule_many` would do without producers. An `Assigner` sees those
        endpoints that `stale` leaves, as it leaves them; the producers are asked about each request, to learn where it went
        when it is booked.
        Errors: those of `schedule`, for any of the requests; `PluginError` for an assigner that does not answer each.
        """
        if self.assigner is not None:
            if requests and len(endpoints):
                endpoints = self.candidates(requests[0], endpoints, now, ())
            cycle = CycleState(now, rng, endpoints.sequence)
            answers = list(self.assigner.assign(requests, endpoints, cycle))
            if [answer.request.request_id for answer in answers] != [request.request_id for request in requests]:
                raise PluginError(
                    self.assigner, f"{len(answers)} results", f"one for each of {len(requests)}, in order"
                )
            if not self.producers:
                return answers
            return [
                answer
                if answer.receipts  # it was decided by this scheduler
                else answer._replace(receipts=self.produce(answer.request, endpoints, cycle)[1])
                for answer in answers
            ]
        results = []
        for request in requests:
            result = self.schedule(request, endpoints, now=now, rng=rng)
            target = result.target
            position = int(np.flatnonzero(endpoints.generations == target.generation)[0])
            endpoints = endpoints.booked(position, tokens=target.tokens, context_tokens=request.prompt_tokens or 0)
            results.append(result)
        return results

    # -- the stages, one by one: `explain` walks the same ones -------------------------------------

    def candidates(
        self, request: InferenceRequest, endpoints: Endpoints, now: float, exclude: Collection[str]
    ) -> Endpoints:
        """Return who may be considered at all: not excluded, and as fresh as the policy asks."""
        finite_time(now)
        if exclude:
            if isinstance(exclude, str):
                raise InvalidInputError("exclude", exclude, "a collection of names, not one name")
            endpoints = endpoints.where(np.array([name not in exclude for name in endpoints.names], dtype=np.bool_))
        if not len(endpoints):
            raise NoEndpointsError(f"no endpoint for request {request.request_id!r}, {len(exclude)} excluded")
        return self.stale.apply(endpoints, now)

    def produce(
        self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState
    ) -> tuple[Endpoints, tuple[object, ...]]:
        """Return the snapshot with the producers' columns, and their receipts."""
        receipts: tuple[object, ...] = ()
        for producer, declared in zip(self.producers, self._declared, strict=True):
            produced = producer.produce(request, endpoints, cycle)
            if not produced.columns.keys() <= declared:
                names = sorted(signal.name for signal in produced.columns)
                raise ProduceError(producer, str(names), str(sorted(signal.name for signal in producer.produces)))
            try:
                endpoints = endpoints.with_columns(produced.columns, sound=produced.sound)
            except InvalidInputError as error:
                raise ProduceError(producer, f"{error.parameter}: {error.value}", error.allowed) from error
            receipts = (*receipts, produced.receipt)
        return endpoints, receipts

    @staticmethod
    def refusal(request: InferenceRequest, profile: str, dropped: str) -> FilteredOutError:
        """Return the error for a request whose candidates were all filtered out."""
        return FilteredOutError(f"the filters of {profile!r} kept nobody for request {request.request_id!r}: {dropped}")

    def run_profiles(
        self,
        request: InferenceRequest,
        endpoints: Endpoints,
        cycle: CycleState,
        run: Callable[[str, CycleState], ProfileResult | None],
    ) -> SchedulingResult:
        """Return what the handler makes of the profiles it asks for; `run` runs one of them by name.

        The handler sees the candidates as ``cycle.candidates``. A `StagedHandler` says with whom the profiles will work:
        they see its name as ``cycle.peer``. A handler that names no profile is asked why (`ProfileHandler.process_results`).
        """
        informed = cycle._replace(candidates=endpoints)
        results: dict[str, ProfileResult | None] = {}
        while chosen := self.handler.pick(request, self.profiles, MappingProxyType(results), informed):
            if all(name in results for name in chosen):
                raise PluginError(self.handler, f"{sorted(chosen)} again", "profiles that have not run yet")
            peer = None if self._staged is None else self._staged.peer(chosen, MappingProxyType(results))
            stage = cycle if peer is None else cycle._replace(peer=peer.endpoint)
            for name in chosen:
                if name not in self._runners:
                    raise PluginError(self.handler, repr(name), f"one of {sorted(self._runners)}")
                results[name] = run(name, stage)
        result = self.handler.process_results(request, MappingProxyType(results), informed)
        if not results:
            raise PluginError(self.handler, "no profile", f"at least one of {sorted(self._runners)}")
        if result.profiles.get(result.primary) is None:
            if any(picked is not None for picked in results.values()) and result.primary not in results:
                raise PluginError(self.handler, f"{result.primary!r} as primary", f"one of {sorted(results)}")
            raise self.refusal(request, ", ".join(results), "no targets for the primary profile")
        return result


def _hears(listener: OutcomeListener[Any], receipt: object, reservation: Reservation) -> Callable[[Settlement], None]:
    """Return what tells a listener how a reservation ended, with what it noted when that was made."""
    return lambda settlement: listener.settled(receipt, settlement, reservation.slot)
