"""Does the request itself say which profile decides?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from inferencesched.errors import FilteredOutError, InvalidInputError, PluginError, UnknownProfileError
from inferencesched.framework import CycleState, ProfileResult, SchedulingProfile, SchedulingResult
from inferencesched.request import InferenceRequest

_NAMED = 80  # of a header's value, so many characters appear in an error


@dataclass(frozen=True, slots=True)
class HeaderProfileHandler:
    """Which profile does the request's header name?

    The header's value without the space round it; `default_profile` where it is missing or blank; where there is one
    profile only, that one. Reads the request's headers. A name that no profile has is `UnknownProfileError` (400), which
    says what was asked for; a profile that finds nobody is `FilteredOutError` (429).
    Source: llm-d router's ``header-profile-handler``, whose messages its scheduler never lets out.
    """

    header_name: str = "epp-profile"
    default_profile: str = "decode"

    def __post_init__(self) -> None:
        if not self.header_name or self.header_name != self.header_name.strip().lower():
            raise InvalidInputError("header_name", self.header_name, "a header's name in lower case")
        if not self.default_profile.strip():
            raise InvalidInputError("default_profile", self.default_profile, "a profile's name")

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return the profile that is asked for, once."""
        name = next(iter(profiles)) if len(profiles) == 1 else self._asked(request) or self.default_profile
        return {name: profiles[name]} if name in profiles and name not in results else {}

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return the one result; without any, the error says which profile was asked for."""
        if not results:
            raise self._unknown(request)
        if len(results) > 1:
            allowed = f"one: this handler is intended to run a single profile per request, got {len(results)}"
            raise PluginError(self, f"results of {sorted(results)}", allowed)
        (name, result), *_ = results.items()
        if result is None:
            raise FilteredOutError(
                f"failed to run scheduler profile {name!r}: no endpoint for request {request.request_id!r}"
            )
        return SchedulingResult(request, name, results)

    def _asked(self, request: InferenceRequest) -> str:
        return request.headers.get(self.header_name, "").strip()

    def _unknown(self, request: InferenceRequest) -> UnknownProfileError:
        header, asked = json.dumps(self.header_name), self._asked(request)
        if asked:
            value = json.dumps(asked[:_NAMED])
            return UnknownProfileError(f"no scheduling profile configured for {header} header value {value}")
        return UnknownProfileError(f"missing {header} header, and no scheduling profile is {self.default_profile!r}")
