"""Is there one profile only?"""

from collections.abc import Mapping
from dataclasses import dataclass

from inferencesched.errors import FilteredOutError, PluginError
from inferencesched.framework import CycleState, ProfileResult, SchedulingProfile, SchedulingResult
from inferencesched.request import InferenceRequest


@dataclass(frozen=True, slots=True)
class SingleProfileHandler:
    """Does one profile decide alone? Runs it once; its answer is the answer."""

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return every profile until all have run."""
        return {} if len(results) == len(profiles) else profiles

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return the one result; `PluginError` for more or fewer, `FilteredOutError` where it failed."""
        if len(results) != 1:
            raise PluginError(self, f"{len(results)} profile results", "exactly one with this handler")
        (name, result), *_ = results.items()
        if result is None:
            raise FilteredOutError(f"profile {name!r} found no endpoint for request {request.request_id!r}")
        return SchedulingResult(request, name, results)
