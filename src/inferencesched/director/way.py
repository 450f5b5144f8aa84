"""What is known of one request on its way to a decision?

Filled stage by stage; whatever refuses it gives back what was taken so far.
"""

from collections.abc import Mapping
from typing import Any, Final, final

from inferencesched.director.stages import ServingPool
from inferencesched.flowcontrol.flows import Ticket
from inferencesched.governance.meters import Identity, Meter
from inferencesched.observability.events import Labels
from inferencesched.request import InferenceRequest
from inferencesched.routing.body import RequestBody
from inferencesched.routing.objectives import ModelChoice
from inferencesched.routing.routes import RouteMatch

NOBODY: Final = Identity()
_UNKNOWN: Final = Labels()


@final
class Lane:
    """A pool by its name, with the number of those that wait there."""

    __slots__ = ("name", "serving", "waiting")

    def __init__(self, name: str, serving: ServingPool) -> None:
        self.name = name
        self.serving = serving
        self.waiting = 0


@final
class Way:
    """One request, from its bytes to its decision. ``subset`` is what the proxy allows, None for everybody."""

    __slots__ = (
        "body",
        "choice",
        "headers",
        "identity",
        "input_tokens",
        "key",
        "labels",
        "lane",
        "match",
        "output_tokens",
        "priority",
        "receipts",
        "received_at",
        "request",
        "request_id",
        "size_bytes",
        "streaming",
        "subset",
        "ticket",
        "trail",
        "upstream",
    )

    lane: Lane
    body: RequestBody
    choice: ModelChoice
    request: InferenceRequest

    def __init__(
        self, request_id: str, headers: Mapping[str, str], size_bytes: int, subset: Any, received_at: float
    ) -> None:
        self.request_id = request_id
        self.headers = headers
        self.size_bytes = size_bytes
        self.subset = subset
        self.received_at = received_at
        self.identity = NOBODY
        self.labels = _UNKNOWN
        self.match: RouteMatch | None = None
        self.receipts: list[tuple[Meter[Any], Any]] = []
        self.ticket: Ticket | None = None
        self.streaming = False
        self.key = ""
        self.input_tokens: int | None = None
        self.output_tokens = 0
        self.priority = 0
        self.upstream = b""
        self.trail: list[tuple[str, str]] = []

    def settle_meters(self, tokens: int | None, now: float) -> None:
        """Charge what it used. All meters are told; then the first error is raised."""
        receipts, self.receipts = self.receipts, []
        broken: list[BaseException] = []
        for meter, receipt in receipts:
            try:
                meter.settle(receipt, tokens, now=now)
            except BaseException as error:  # noqa: BLE001  told once all are charged
                broken.append(error)
        if broken:
            raise broken[0]
