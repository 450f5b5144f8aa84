"""Which revision of a pool's servers does a request go to?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from inferencesched._typing import BoolArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import UnknownNameError
from inferencesched.framework import CycleState
from inferencesched.request import InferenceRequest
from inferencesched.routing.rollout import pick, shares
from inferencesched.routing.split import StickySplit

REVISION_HEADER: Final = "x-disagg-revision"
REVISION_LABEL: Final = "disaggregatedset.x-k8s.io/revision"
ROLE_LABEL: Final = "llm-d.ai/role"
Mode = Literal["sum", "max-role", "disabled"]


@dataclass(frozen=True, slots=True)
class RolloutScreener:
    """Which revision does a request go to, while another one comes up?

    Parameters
    ----------
    mode: ``sum`` and ``max-role`` share the traffic by what is ready (`routing.rollout.shares`); ``disabled`` takes everybody.
    required: the roles that a revision must have somebody for; one that lacks any gets nothing.
    header: a request that names a revision there goes to that one, or nowhere: the way back of a conversation, and of a test.
    label, role_label: where an endpoint says its revision and its role.
    sticky: a session keeps its revision while shares change as little as can be; without a session, or without this, chance.

    Servers count where they are in the pool: those that are not ready do not belong there. No revision that is complete: nobody.
    """

    mode: Mode = "sum"
    required: tuple[str, ...] = ("prefill", "decode")
    header: str = REVISION_HEADER
    label: str = REVISION_LABEL
    role_label: str = ROLE_LABEL
    sticky: bool = True

    def __post_init__(self) -> None:
        if self.mode not in ("sum", "max-role", "disabled"):
            raise UnknownNameError("mode", self.mode, ("sum", "max-role", "disabled"))

    def counts(self, endpoints: Endpoints) -> dict[str, dict[str, int]]:
        """Return how many servers each revision has for each role. Who says no role decodes; one that does both is of both."""
        found: dict[str, dict[str, int]] = {}
        for i in range(len(endpoints)):
            labels = endpoints.labels(i)
            revision = labels.get(self.label, "")
            if not revision:
                continue
            roles = found.setdefault(revision, {})
            role = labels.get(self.role_label, "") or "decode"
            for each in ("prefill", "decode") if role in ("both", "prefill-decode") else (role,):
                roles[each] = roles.get(each, 0) + 1
        return found

    def parts(self, endpoints: Endpoints) -> Mapping[str, float]:
        """Return each revision's part of the traffic."""
        if self.mode == "disabled":
            return {}
        return shares(self.counts(endpoints), self.required, self.mode)

    def screen(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> BoolArray:
        """Return the servers of one revision, ``bool[E]``; draws only where there are several to choose from."""
        pinned = request.headers.get(self.header, "").strip()
        parts = self.parts(endpoints)
        if self.mode == "disabled":
            return endpoints.label(self.label, pinned) if pinned else np.ones(len(endpoints), dtype=np.bool_)
        if pinned:
            chosen: str | None = pinned if pinned in parts else None
        elif len(parts) < 2:
            chosen = next(iter(parts), None)
        elif self.sticky and request.session_id:
            chosen = StickySplit(parts).pick(request.session_id, cycle.rng)
        else:
            chosen = pick(parts, float(cycle.rng.random()))
        if chosen is None:
            return np.zeros(len(endpoints), dtype=np.bool_)
        return endpoints.label(self.label, chosen)

    def response_headers(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return what the answer should carry, so that the next turn comes back to the revision of the server with these labels."""
        revision = labels.get(self.label, "")
        return {self.header: revision} if revision else {}
