"""Which servers compute the prompt, encode its pictures, and answer?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from inferencesched.errors import FilteredOutError, InvalidInputError, PluginError, UnknownNameError
from inferencesched.framework import (
    CycleState,
    ProfileResult,
    Reader,
    Reads,
    SchedulingProfile,
    SchedulingResult,
    Target,
)
from inferencesched.handlers.data_parallel import RANK_HEADER, at_port, checked_port
from inferencesched.handlers.deciders import DisaggregationDecider
from inferencesched.handlers.stages import StageLabel, StageNames, address_of, stage_headers, stage_label, target_of
from inferencesched.request import InferenceRequest

StageOrder = Literal["decode-first", "prefill-first"]


@dataclass(frozen=True, slots=True)
class DisaggProfileHandler:
    """Which stages of this request get a server of their own, and which server?

    ``decode-first``: the decode profile runs; then the encode profile where `encode_decider` says so; then the prefill
    profile where `prefill_decider` says so, with the decode server as its ``cycle.peer``. ``prefill-first``: the prefill
    profile always runs, then encode where its decider says so (no decode server is known yet), then decode with the
    prefill server as its peer; a decider for prefill is refused, as it would be asked about nothing.
    A stage without a profile or a decider does not run. One that finds nobody costs the request that stage only; decode finding
    nobody is `FilteredOutError` (429). Each decider is asked once.

    Parameters
    ----------
    profiles: which profile chooses for which stage.
    prefill_decider, encode_decider: whether the stage is worth its hop; None is never.
    stage_order: which of decode and prefill is chosen knowing the other.
    primary_port: above 0, decode's addresses are at this port, as with `DataParallelProfileHandler`.

    The decode profile is the primary one. ``headers`` say where the other stages are (`stage_headers`).
    Reads what its deciders read. Cost, beside the profiles': 5 us. Source: llm-d router's ``disagg-profile-handler``.

    >>> import numpy as np
    >>> import inferencesched as isched
    >>> pool = isched.InferencePool()
    >>> for name, address in (("p-0", "10.0.0.1:8000"), ("d-0", "10.0.0.2:8000")):
    ...     pool.join(name, address=address)
    >>> profile = isched.SchedulingProfile(isched.MaxScorePicker())
    >>> handler = DisaggProfileHandler(prefill_decider=isched.AlwaysDecider())
    >>> scheduler = isched.Scheduler({"decode": profile, "prefill": profile}, handler=handler)
    >>> request = isched.InferenceRequest(request_id="r-1", input_tokens=700)
    >>> result = scheduler.schedule(request, pool.snapshot(), now=0.0, rng=np.random.default_rng(7))
    >>> handler.label(result), sorted(result.profiles)
    ('prefill-decode', ['decode', 'prefill'])

    Both servers are booked, and the prefill server's booking ends when the first token is there:

    >>> booked = scheduler.reserve_stages(result, pool, now=0.0)
    >>> pool.ledger().inflight_requests
    2
    >>> booked["prefill"].complete(now=0.4).outcome
    'completed'
    >>> booked["decode"].first_token(now=0.4)
    >>> pool.ledger().inflight_requests
    1
    """

    profiles: StageNames = field(default_factory=StageNames)
    prefill_decider: DisaggregationDecider | None = None
    encode_decider: DisaggregationDecider | None = None
    stage_order: StageOrder = "decode-first"
    primary_port: int = 0

    def __post_init__(self) -> None:
        if self.stage_order not in get_args(StageOrder):
            raise UnknownNameError("stage_order", self.stage_order, get_args(StageOrder))
        if self.stage_order == "prefill-first" and self.prefill_decider is not None:
            allowed = "None: prefill-first always runs prefill, before there is a decode server to ask about"
            raise InvalidInputError("prefill_decider", self.prefill_decider, allowed)
        checked_port("primary_port", self.primary_port)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Those of its deciders."""
        deciders: tuple[object, ...] = (self.prefill_decider, self.encode_decider)
        return tuple(read for decider in deciders if isinstance(decider, Reader) for read in decider.reads)

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return the profile of the next stage."""
        name = self._next(request, profiles, results, cycle)
        return {name: profiles[name]} if name is not None and name in profiles else {}

    def peer(
        self, profiles: Mapping[str, SchedulingProfile], results: Mapping[str, ProfileResult | None]
    ) -> Target | None:
        """Return the decode server for prefill, or the prefill server for decode, whichever was chosen before."""
        later, earlier = self.profiles.prefill, self.profiles.decode
        if self.stage_order == "prefill-first":
            later, earlier = earlier, later
        return target_of(results, earlier) if later in profiles else None

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return decode's result and those of the other stages that did not fail, with the headers for all of them."""
        names = self.profiles
        if names.decode not in results:
            raise PluginError(self, f"results of {sorted(results)}", f"one of a profile named {names.decode!r}")
        decode = results[names.decode]
        if decode is None or not decode.targets:
            raise FilteredOutError(
                f"failed to find available decode workers: profile {names.decode!r} has none for {request.request_id!r}"
            )
        headers = stage_headers(results, names.prefill, names.encode)
        kept = {names.decode: decode}
        for name in (names.prefill, names.encode):
            picked = results.get(name)
            if picked is not None:
                kept[name] = picked
        if self.primary_port:
            headers[RANK_HEADER] = address_of(decode.target)
            kept[names.decode] = at_port(decode, self.primary_port)
        return SchedulingResult(request, names.decode, kept, headers=headers)

    def label(self, result: SchedulingResult) -> StageLabel:
        """Return which stages of a decision have a server of their own: a label for metrics and records."""
        prefill, encode = (target_of(result.profiles, name) for name in (self.profiles.prefill, self.profiles.encode))
        return stage_label(prefill=prefill is not None, encode=encode is not None)

    def _next(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> str | None:
        """Return the profile of the next stage, None when all have run."""
        names = self.profiles
        if self.stage_order == "prefill-first":
            if names.prefill in profiles and names.prefill not in results:
                return names.prefill
            if names.decode in results:
                return None
            encode = names.encode in profiles and names.encode not in results
            return names.encode if encode and _wanted(self.encode_decider, request, None, cycle) else names.decode
        if names.decode not in results:
            return names.decode
        target = target_of(results, names.decode)
        if target is None or names.prefill in results:
            return None
        encode = names.encode in profiles and names.encode not in results
        if encode and _wanted(self.encode_decider, request, target, cycle):
            return names.encode
        prefill = names.prefill in profiles
        return names.prefill if prefill and _wanted(self.prefill_decider, request, target, cycle) else None


def _wanted(
    decider: DisaggregationDecider | None, request: InferenceRequest, target: Target | None, cycle: CycleState
) -> bool:
    return decider is not None and decider.decide(request, target, cycle)
