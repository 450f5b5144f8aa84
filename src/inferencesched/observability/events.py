"""What happened to a request? Typed records, in the order of a request's life.

::

    Received --> [Rewritten] --> [Enqueued --> Dequeued] --> [Scheduled] --> Started --> [FirstToken] --> [OutputTokens ...] --> Ended
        `----------------------------- Refused (ends it before a server had it) ------------------------------'

Every `Received` is followed by exactly one `Refused` or `Ended`. Times are seconds on the caller's clock; what is unknown is
None, never 0. Whoever listens is an `EventSink`; it must not raise, and must not keep the caller waiting.
"""

from typing import NamedTuple, Protocol

from inferencesched.request import Usage


class Labels(NamedTuple):
    """By what are a request's figures told apart? Cardinality is capped by whoever keeps the figures.

    ``model`` is what the client asked for, ``target`` what is served; ``pool`` the InferencePool's name, empty before it is known.
    """

    model: str = ""
    target: str = ""
    fairness_id: str = ""
    priority: int = 0
    pool: str = ""
    tenant: str = ""


class Received(NamedTuple):
    """A request came and could be read. ``size_bytes`` is the body's, ``kind`` its API's (`BodyKind`), empty where nobody said."""

    request_id: str
    labels: Labels
    size_bytes: int
    at: float
    kind: str = ""


class Rewritten(NamedTuple):
    """A model name was replaced, by the named InferenceModelRewrite."""

    request_id: str
    rewrite: str
    model: str
    target: str


class Enqueued(NamedTuple):
    """It waits in the flow controller."""

    request_id: str
    labels: Labels
    size_bytes: int
    at: float


class Dequeued(NamedTuple):
    """It waits no more: ``outcome`` is the `QueueOutcome`'s value, ``waited`` seconds."""

    request_id: str
    labels: Labels
    size_bytes: int
    outcome: str
    waited: float


class Scheduled(NamedTuple):
    """The scheduler was asked. ``endpoint`` is empty, and ``outcome`` the refusal's, where it chose nobody ("success" otherwise).

    ``seconds`` is what the decision cost, None where nobody measured; ``prompt_tokens`` and ``cached_tokens`` are what it believed.
    """

    request_id: str
    labels: Labels
    outcome: str
    endpoint: str
    address: str
    seconds: float | None
    prompt_tokens: int | None
    cached_tokens: int | None


class Started(NamedTuple):
    """It was handed to a server. ``attempt`` counts from 1."""

    request_id: str
    labels: Labels
    endpoint: str
    attempt: int
    at: float


class FirstToken(NamedTuple):
    """Its first token came, ``ttft`` seconds after it was received."""

    request_id: str
    labels: Labels
    endpoint: str
    streaming: bool
    ttft: float


class OutputTokens(NamedTuple):
    """More tokens came, ``gap`` seconds after the ones before."""

    request_id: str
    labels: Labels
    tokens: int
    gap: float


class Refused(NamedTuple):
    """It ended before any server had it. ``outcome`` is the error's, ``status`` the client's; ``code`` llm-d's word."""

    request_id: str
    labels: Labels
    outcome: str
    status: int
    code: str
    at: float


class Ended(NamedTuple):
    """It ended after a server had it.

    ``outcome`` is one of ``completed``, ``cancelled`` (its client went), ``failed`` (its server did), ``blocked`` (a guard cut it),
    ``revoked``, ``lapsed``; ``code`` is empty for what ended well, else llm-d's word. ``duration`` and ``ttft`` run from when it was
    received; ``size_bytes`` is the response's.
    """

    request_id: str
    labels: Labels
    endpoint: str
    outcome: str
    code: str
    streaming: bool
    usage: Usage
    duration: float
    ttft: float | None
    size_bytes: int | None
    at: float


class PluginFailed(NamedTuple):
    """A plug-in of the gateway's raised. ``refused`` says whether that refused the request, ``error`` is the exception's type."""

    request_id: str
    labels: Labels
    stage: str
    plugin: str
    error: str
    refused: bool


Event = (
    Received
    | Rewritten
    | Enqueued
    | Dequeued
    | Scheduled
    | Started
    | FirstToken
    | OutputTokens
    | Refused
    | Ended
    | PluginFailed
)


class EventSink(Protocol):
    """Who listens?"""

    def emit(self, event: Event) -> None:
        """Take note of what happened; never raises, never waits."""
        ...


class Sinks:
    """Which several sinks hear the same? In order."""

    __slots__ = ("_sinks",)

    def __init__(self, *sinks: EventSink) -> None:
        self._sinks = sinks

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        for sink in self._sinks:
            sink.emit(event)
