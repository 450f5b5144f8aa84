"""Does one port serve all ranks of a data-parallel server?

Each rank of such a server is an endpoint at a port of its own. Requests go to the server's first port all the same, and a
header tells the proxy behind it which rank was chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from inferencesched.errors import FilteredOutError, InvalidInputError, PluginError
from inferencesched.framework import CycleState, ProfileResult, SchedulingProfile, SchedulingResult
from inferencesched.handlers.addresses import with_port
from inferencesched.handlers.stages import address_of
from inferencesched.request import InferenceRequest

#: Which rank was chosen, as ``host:port``.
RANK_HEADER: Final = "x-data-parallel-host-port"


def checked_port(parameter: str, port: int) -> int:
    """Return the port; `InvalidInputError` for what is none."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise InvalidInputError(parameter, port, "a port, 0 to 65535")
    return port


def at_port(picked: ProfileResult, port: int) -> ProfileResult:
    """Return what was picked, with every address at this port.

    >>> from inferencesched.framework import Target
    >>> at_port(ProfileResult((Target("ep-3", 3, 1, 1.0, 0, "10.0.0.1:8003"),)), 8000).target.address
    '10.0.0.1:8000'
    """
    return ProfileResult(
        tuple(target._replace(address=with_port(address_of(target), port)) for target in picked.targets)
    )


@dataclass(frozen=True, slots=True)
class DataParallelProfileHandler:
    """Which rank of a data-parallel server is it, where all share one port?

    Runs the one profile there is. The result's addresses are all at `primary_port`; ``x-data-parallel-host-port``
    says where the chosen one really is. Reads addresses. Where ranks can be reached at their own ports, no handler is needed.
    Source: llm-d router's ``data-parallel-profile-handler``.
    """

    primary_port: int = 8000

    def __post_init__(self) -> None:
        checked_port("primary_port", self.primary_port)

    def pick(
        self,
        request: InferenceRequest,
        profiles: Mapping[str, SchedulingProfile],
        results: Mapping[str, ProfileResult | None],
        cycle: CycleState,
    ) -> Mapping[str, SchedulingProfile]:
        """Return the one profile, once; nothing where there are more or fewer."""
        return profiles if len(profiles) == 1 and not results else {}

    def process_results(
        self, request: InferenceRequest, results: Mapping[str, ProfileResult | None], cycle: CycleState
    ) -> SchedulingResult:
        """Return the one result; `PluginError` for more or fewer, `FilteredOutError` where it failed."""
        if len(results) != 1:
            raise PluginError(self, f"{len(results)} profile results", "exactly one with this handler")
        (name, picked), *_ = results.items()
        if picked is None or not picked.targets:
            raise FilteredOutError(f"profile {name!r} found no endpoint for request {request.request_id!r}")
        headers = {RANK_HEADER: address_of(picked.target)}
        return SchedulingResult(request, name, {name: at_port(picked, self.primary_port)}, headers=headers)
