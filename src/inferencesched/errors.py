"""What can go wrong, and whose fault is it?

::

    InferenceSchedError
     |
     |-- InvalidInputError (ValueError)          the caller's fault: nothing has changed
     |    |-- UnknownNameError (LookupError)     a policy, timing, signal or endpoint nobody knows
     |    |-- DuplicateEndpointError             an endpoint name used twice
     |    |-- DependencyError                      producers that miss, double or wait for each other
     |    |-- ConfigError                          a configuration: names the path, what was found, and what is allowed
     |    |    `-- ConfigFileError                 one in a file: names file and line
     |    |-- UnknownParentError                 a suffix of blocks whose parent is not in the index
     |    |-- SnapshotError                      a prefix index's snapshot that is broken, or of another version or seed
     |    |-- DeltaError                         what another gateway said that cannot be read
     |    |-- KVEventError                       an engine's KV event that cannot be read: names the place
     |    |-- ManifestError                      a Kubernetes-style manifest: names kind, object and field
     |    |-- MetricsPageError                   a server's metrics page on which nothing is known
     |    `-- TraceError                         a line of a trace file: names file and line
     |
     |-- PluginError                             the plug-in's fault
     |    |-- ScoreError                         wrong shape, dtype, NaN or outside [0, 1]
     |    |-- FilterError                        not a bool[E]
     |    |-- ProduceError                       columns that it did not declare, or that their signals do not allow
     |    `-- PickError                          not positions of the candidates
     |
     |-- RequestRefusedError                     terminal for one request: has an outcome and a status
     |    |-- NoEndpointsError                   503  the pool is empty, or everything was excluded
     |    |-- UnknownProfileError                400  it asks for a scheduling profile that is not there
     |    |-- UnreadableHeaderError              400  a header of its client's is no number (InvalidInputError too)
     |    |-- FilteredOutError                   429  every candidate was filtered out
     |    |-- BodyError                          400  its body cannot be read (InvalidInputError too); 413 where it is too large
     |    |-- UnauthenticatedError               401  nobody knows who asks
     |    |-- ForbiddenError                     403  it is known who asks, and that they may not
     |    |-- GuardBlockedError                  403  a guard will not let it, or its answer, pass
     |    |-- UnroutedError                      404  no route, pool or model of this name
     |    |-- PreconditionFailedError            412  `Prefer: if-available`, and nothing of it is cached
     |    |-- LimitedError                       429  over a rate limit or a quota: has Retry-After; 400 where it never fits
     |    |    |-- RateLimitedError
     |    |    `-- QuotaExceededError
     |    |-- AdmissionDeniedError               429  an admitter plug-in denies it
     |    |-- StageFailedError                   500  a plug-in of the gateway's raised, and its policy is to refuse
     |    |-- UpstreamError                      502  its server failed, and it may not be tried elsewhere
     |    `-- QueueRefusedError                       flow control would not have it: has headers, Retry-After, a wait
     |         |-- QueueRejectedError                 it was never queued
     |         |-- QueueEvictedError                  it left the queue without going to a server
     |         `-- QueueRevokedError                  it was taken back from its server, or given up
     |
     |-- TicketError                             a flow-control ticket that is not in flight (any more)
     |
     `-- ReservationError                        the booking is not there any more
          |-- EndpointGoneError                  503  the endpoint left (or was replaced) in between
          `-- AlreadySettledError                     settled before; names how

An error is raised before anything changes. Messages name the parameter, the value and what was allowed.
"""

from collections.abc import Mapping
from math import ceil, inf, isfinite
from types import MappingProxyType
from typing import Any, ClassVar, Final

import numpy as np

#: HTTP status -> llm-d's code, which is also the label `error_code` of its metrics (llm-d-router, pkg/common/error/error.go).
CODES: Final[Mapping[int, str]] = MappingProxyType(
    {
        400: "BadRequest",
        401: "Unauthorized",
        403: "Forbidden",
        404: "NotFound",
        412: "PreconditionFailed",
        413: "BadRequest",
        429: "ResourceExhausted",
        500: "Internal",
        502: "ServiceUnavailable",
        503: "ServiceUnavailable",
    }
)


class InferenceSchedError(Exception):
    """Is this error one of ours? The root of the tree."""


class InvalidInputError(InferenceSchedError, ValueError):
    """Which parameter was wrong, what was its value, and what was allowed?

    >>> raise InvalidInputError("servers", 0, "an integer of at least 1")
    Traceback (most recent call last):
    ...
    inferencesched.errors.InvalidInputError: servers: got 0, allowed: an integer of at least 1
    """

    def __init__(self, parameter: str, value: object, allowed: str) -> None:
        self.parameter = parameter
        self.value = value
        self.allowed = allowed
        super().__init__(f"{parameter}: got {value!r}, allowed: {allowed}")


class UnknownNameError(InvalidInputError, LookupError):
    """Which name is unknown, and which names exist?"""

    def __init__(self, parameter: str, value: object, known: "list[str] | tuple[str, ...] | str") -> None:
        allowed = known if isinstance(known, str) else "one of " + ", ".join(known)
        super().__init__(parameter, value, allowed)


class DuplicateEndpointError(InvalidInputError):
    """Which endpoint name was joined a second time?"""


class DependencyError(InvalidInputError):
    """Which column has no producer, or two, or which producers wait for each other?"""


class ConfigError(InvalidInputError):
    """Where in a configuration is the mistake, what was found there, and what is allowed?

    ``parameter`` is the whole path, as in ``$.plugins[2].parameters.lruSize``.
    """


class ConfigFileError(ConfigError):
    """In which file and on which line is the mistake?

    ``path`` and ``line`` say so; the rest is as in `ConfigError`.
    """

    def __init__(self, path: str, line: int, parameter: str, value: object, allowed: str) -> None:
        super().__init__(f"{path}:{line}: {parameter}", value, allowed)
        self.path = path
        self.line = line


class UnknownParentError(InvalidInputError, LookupError):
    """Which parent block is not in the prefix index?"""


class SnapshotError(InvalidInputError):
    """What is wrong with this snapshot of a prefix index: its bytes, its version, or the seed of its hashes?"""


class DeltaError(InvalidInputError):
    """Are these bytes what another gateway did? Not: another program's, another version's, or cut off."""


class KVEventError(InvalidInputError):
    """What in an engine's KV event cannot be read, and what was allowed there?"""


class ManifestError(InvalidInputError):
    """Which field of which manifest is wrong, and what is allowed there?

    ``parameter`` is the whole path, as in ``InferenceObjective default/chat: $.spec.priority``.
    """


class MetricsPageError(InvalidInputError):
    """Why does a server's metrics page say nothing? It is cut off, too large, or holds none of the known names."""


class TraceError(InvalidInputError):
    """Which line of which trace file could not be read?

    ``lines_read`` says how many requests before it were good; ``workload`` holds them (a `Workload`), so that a
    broken line never costs the lines before it.
    """

    workload: Any

    def __init__(
        self, path: str, line: int, parameter: str, value: object, allowed: str, *, lines_read: int = 0
    ) -> None:
        super().__init__(f"{path}:{line}: {parameter}", value, allowed)
        self.path = path
        self.line = line
        self.lines_read = lines_read


class PluginError(InferenceSchedError):
    """Which plug-in broke its contract, and how?"""

    def __init__(self, plugin: object, returned: str, allowed: str) -> None:
        self.plugin = plugin
        super().__init__(f"{plugin!r} returned {returned}, allowed: {allowed}")


class ScoreError(PluginError):
    """Which scorer returned something other than float64[E] in [0, 1]?"""


class FilterError(PluginError):
    """Which filter returned something other than bool[E]?"""


class ProduceError(PluginError):
    """Which producer returned columns that it did not declare, or that their signals do not allow?"""


class PickError(PluginError):
    """Which picker returned something other than positions of its candidates?"""


class RequestRefusedError(InferenceSchedError):
    """Why may this request not go, and what does its client see?

    ``outcome`` is a low-cardinality metric label, ``status`` the HTTP status, ``headers`` are the response's, in lower case.
    """

    outcome: str = "refused"
    status: int = 503
    headers: Mapping[str, str] = MappingProxyType({})

    @property
    def code(self) -> str:
        """What do llm-d's router and its metrics call the status?

        >>> NoEndpointsError("nobody").code
        'ServiceUnavailable'
        """
        return CODES.get(self.status, "Unknown")


class NoEndpointsError(RequestRefusedError):
    """Was there nobody to choose from? HTTP 503."""

    outcome: str = "no_endpoints"
    status: int = 503
    headers: Mapping[str, str] = MappingProxyType({"x-llm-d-request-dropped-reason": "rejected-no-endpoints"})


class UnknownProfileError(RequestRefusedError):
    """Which scheduling profile does the request ask for that is not there? HTTP 400: its client can mend it."""

    outcome: str = "unknown_profile"
    status: int = 400


class UnreadableHeaderError(RequestRefusedError, InvalidInputError):
    """Which header of the client's cannot be read? HTTP 400: it refuses that one request, whoever else is in its batch."""

    outcome: str = "unreadable_header"
    status: int = 400


class FilteredOutError(RequestRefusedError):
    """Did the filters refuse every candidate? HTTP 429, as the reference answers."""

    outcome: str = "filtered_out"
    status: int = 429


class BodyError(RequestRefusedError, InvalidInputError):
    """What in a request's body cannot be read? HTTP 400, or 413 where it is too large."""

    outcome: str = "bad_body"
    status: int = 400

    def __init__(self, parameter: str, value: object, allowed: str, *, status: int = 400) -> None:
        super().__init__(parameter, value, allowed)
        self.status = status


class UnauthenticatedError(RequestRefusedError):
    """Whose credentials are missing or wrong? HTTP 401."""

    outcome: str = "unauthenticated"
    status: int = 401


class ForbiddenError(RequestRefusedError):
    """Who asks for what they may not have? HTTP 403."""

    outcome: str = "forbidden"
    status: int = 403


class GuardBlockedError(RequestRefusedError):
    """Which guard will not let a request, or its answer, pass, and by which rule? HTTP 403.

    ``guard`` and ``rule`` are low-cardinality names; the matched text is never in the message.
    """

    outcome: str = "guard_blocked"
    status: int = 403

    def __init__(self, guard: str, rule: str, detail: str = "") -> None:
        self.guard = guard
        self.rule = rule
        super().__init__(f"blocked by {guard}: {rule}" + (f": {detail}" if detail else ""))


class UnroutedError(RequestRefusedError):
    """Which route, pool or model does not exist? HTTP 404."""

    outcome: str = "unrouted"
    status: int = 404


class PreconditionFailedError(RequestRefusedError):
    """Which condition of the client's does not hold? HTTP 412."""

    outcome: str = "precondition_failed"
    status: int = 412


class LimitedError(RequestRefusedError):
    """Over which limit is a request, and after how many seconds would it fit?

    HTTP 429 with ``Retry-After``; 400 where ``retry_after`` is inf: it is larger than the limit ever allows.
    """

    outcome: str = "limited"
    status: int = 429

    def __init__(self, rule: str, detail: str, retry_after: float) -> None:
        self.rule = rule
        self.detail = detail
        self.retry_after = retry_after
        if isfinite(retry_after):
            self.headers = MappingProxyType({"retry-after": str(max(1, ceil(retry_after)))})
        else:
            self.status = 400
        super().__init__(f"{rule}: {detail}")


class RateLimitedError(LimitedError):
    """Over which rate limit is a request?"""

    outcome: str = "rate_limited"


class QuotaExceededError(LimitedError):
    """Which quota is used up?"""

    outcome: str = "quota_exceeded"


class AdmissionDeniedError(RequestRefusedError):
    """Which admitter denies a request, and why? HTTP 429, or whatever the admitter says."""

    outcome: str = "admission_denied"
    status: int = 429

    def __init__(self, admitter: str, reason: str, *, status: int = 429) -> None:
        self.admitter = admitter
        self.reason = reason
        self.status = status
        super().__init__(f"{admitter}: {reason}")


class StageFailedError(RequestRefusedError):
    """Which plug-in raised on the way, where the policy is to refuse then? HTTP 500."""

    outcome: str = "stage_failed"
    status: int = 500


class UpstreamError(RequestRefusedError):
    """How did the server fail that a request was sent to, where it is not tried elsewhere? HTTP 502."""

    outcome: str = "upstream_failed"
    status: int = 502


class QueueRefusedError(RequestRefusedError):
    """How did a request end in the flow controller's queue, and what does its client see?

    ``outcome`` is the value of a `QueueOutcome`, ``status`` and ``headers`` are the response's; ``retry_after`` is seconds until it
    is worth another try (inf: it is not), ``wait`` what it would have had to wait (NaN where nobody can tell), ``detail`` which
    limit was met. `inferencesched.flowcontrol.refusal` makes them.
    """

    def __init__(
        self,
        request_id: str,
        *,
        outcome: str,
        status: int,
        headers: Mapping[str, str],
        retry_after: float,
        wait: float,
        detail: str,
    ) -> None:
        self.request_id = request_id
        self.outcome = outcome
        self.status = status
        self.headers = headers
        self.retry_after = retry_after
        self.wait = wait
        self.detail = detail
        super().__init__(f"request {request_id!r}: {outcome}" + (f": {detail}" if detail else ""))


class QueueRejectedError(QueueRefusedError):
    """Why was a request not queued at all? HTTP 429, 503 or 500."""


class QueueEvictedError(QueueRefusedError):
    """Why did a request leave the queue without going to a server? HTTP 429, 503 or 500."""


class QueueRevokedError(QueueRefusedError):
    """Why was a request taken back from its server, or given up? HTTP 429 or 500."""


class TicketError(InferenceSchedError):
    """Which ticket of the flow controller is not in flight, and what is it instead?"""


class ReservationError(InferenceSchedError):
    """Which reservation can no longer be made or settled?"""

    outcome: ClassVar[str] = "reservation_lost"
    status: ClassVar[int] = 503


class EndpointGoneError(ReservationError):
    """Which endpoint left, or was replaced by a namesake, since the decision? HTTP 503: decide again."""

    outcome: ClassVar[str] = "endpoint_gone"
    status: ClassVar[int] = 503


class AlreadySettledError(ReservationError):
    """Which reservation was settled before, and how?"""

    outcome: ClassVar[str] = "already_settled"
    status: ClassVar[int] = 500


def code_of(error: BaseException) -> str:
    """What does llm-d's router call this error? ``Unknown`` for one that is no refusal.

    >>> code_of(NoEndpointsError("nobody")), code_of(ValueError())
    ('ServiceUnavailable', 'Unknown')
    """
    return error.code if isinstance(error, RequestRefusedError) else "Unknown"


def status_of(code: str) -> int:
    """Which HTTP status has a code of llm-d's router? 500 for an unknown one.

    >>> status_of("ResourceExhausted"), status_of("BadRequest")
    (429, 400)
    """
    return next((status for status, known in CODES.items() if known == code and status not in (413, 502)), 500)


def reference_text(code: str, message: str) -> str:
    """How does llm-d's router write an error? For logs that somebody reads side by side.

    >>> reference_text("Internal", "unexpected condition")
    'inference error: Internal - unexpected condition'
    """
    return f"inference error: {code} - {message}"


def whole_number(parameter: str, value: object, low: int = 0) -> int:
    """Return the value as an int; `InvalidInputError` for anything but a whole number of at least `low`."""
    if isinstance(value, (int, np.integer)) and value >= low:
        return int(value)
    raise InvalidInputError(parameter, value, f"an integer of at least {low}")


def not_negative(parameter: str, value: float, unit: str = "") -> float:
    """Return the value; `InvalidInputError` for anything but a finite number (of a unit, as " of ms") of at least 0."""
    if 0 <= value < inf:
        return value
    raise InvalidInputError(parameter, value, f"a finite number{unit} of at least 0")


def duration(parameter: str, value: float) -> float:
    """Return the value; `InvalidInputError` for anything but a finite number of seconds above 0."""
    if 0 < value < inf:
        return value
    raise InvalidInputError(parameter, value, "a finite number of seconds above 0")


def finite_time(now: float) -> float:
    """Return the time; `InvalidInputError` for NaN and infinity, which would freeze whatever is measured from it."""
    if isfinite(now):
        return now
    raise InvalidInputError("now", now, "a finite number of seconds")
