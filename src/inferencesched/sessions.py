"""Whose conversation is this, and which endpoint has it?

Two strategies. The client brings the endpoint's name along, in a token that the last response gave it (`EncodedEndpoint`, no
state here); or it brings a session's name, and a producer remembers which endpoint that was bound to (`BoundSession`).
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.framework import Reads, SchedulingResult
from inferencesched.request import InferenceRequest
from inferencesched.signals import SESSION_BOUND, of_producer

TOKEN_HEADER: Final = "x-session-token"
SESSION_HEADER: Final = "x-session-id"
#: The request attribute that `InferenceRequest.session_id` is.
SESSION_ATTRIBUTE: Final = "SessionID"

_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SessionSource:
    """Where does a request say which session it belongs to?

    In exactly one place: a `header`, a `cookie`, or an `attribute` of the request that the gateway found out (``SessionID`` is
    ``request.session_id``). Blanks round a value do not count, and nothing but blanks is none.
    Source: llm-d router's ``session-id-producer``, and the sources of its session affinity.
    Errors: `InvalidInputError` unless exactly one is named.

    >>> cookie = SessionSource(cookie="session")
    >>> cookie.session(InferenceRequest(request_id="r", headers={"cookie": "theme=dark; session= abc "}))
    'abc'
    """

    header: str = ""
    cookie: str = ""
    attribute: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", self.header.strip().lower())
        object.__setattr__(self, "cookie", self.cookie.strip())
        if sum(map(bool, (self.header, self.cookie, self.attribute))) != 1:
            raise InvalidInputError("source", self.named, "exactly one of header, cookie and attribute")

    @property
    def named(self) -> dict[str, str]:
        """Which places are named? For a source that is made, one."""
        places = {"header": self.header, "cookie": self.cookie, "attribute": self.attribute}
        return {place: name for place, name in places.items() if name}

    def session(self, request: InferenceRequest) -> str:
        """Return the session's name; empty is none."""
        if self.header:
            return request.headers.get(self.header, "").strip()
        if self.cookie:
            return _cookie(request.headers.get("cookie", ""), self.cookie).strip()
        if self.attribute == SESSION_ATTRIBUTE and request.session_id:
            return request.session_id.strip()
        value = request.attributes.get(self.attribute)
        return value.strip() if isinstance(value, str) else ""

    def identified(self, request: InferenceRequest) -> InferenceRequest:
        """Return the request with its ``session_id``, for a gateway to do as requests come in; as it is without a session."""
        session = self.session(request)
        return msgspec.structs.replace(request, session_id=session) if session else request


def session_of(request: InferenceRequest, sources: Iterable[SessionSource]) -> str:
    """Which session does a request belong to? What the first source says that says anything; empty is none."""
    return next((session for source in sources if (session := source.session(request))), "")


def _cookie(header: str, name: str) -> str:
    for pair in header.split(";"):
        key, equals, value = pair.strip().partition("=")
        if equals and key == name:
            return value
    return ""


def session_token(endpoint: str) -> str:
    """Which token names an endpoint? Base64 of ``namespace/name``, as llm-d's router writes it.

    A name without a namespace has an empty one.

    >>> session_token("default/pod1"), session_token("pod-b")
    ('ZGVmYXVsdC9wb2Qx', 'L3BvZC1i')
    """
    return b64encode((endpoint if "/" in endpoint else f"/{endpoint}").encode()).decode("ascii")


def endpoint_of_token(token: str) -> str:
    """Whose token is it? Empty for one that is none: a client wrote it, and may say anything.

    >>> endpoint_of_token("L3BvZC1i"), endpoint_of_token("garbage-token")
    ('pod-b', '')
    """
    token = token.replace("\r", "").replace("\n", "")
    if len(token) % 4 or _BASE64.fullmatch(token) is None:
        return ""
    try:
        text = b64decode(token).decode()
    except ValueError:
        return ""
    return text.removeprefix("/") if "/" in text else ""


class SessionStrategy(Protocol):
    """How is it known which endpoint has a session?"""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        ...

    def bound(self, request: InferenceRequest, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``: 1 where the session is, 0 where it is not, NaN where nobody knows of any."""
        ...

    def response_headers(self, result: SchedulingResult | None, served: str) -> Mapping[str, str]:
        """Return what to set on the response, which the endpoint `served` has given."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedEndpoint:
    """Does the client bring the endpoint's name along?

    In a request header, as the token that `response_headers` puts on every response. With a `profile`, the token names what that
    profile picked (the prefill server, say) instead of who served. No state, so nothing is lost with the gateway, and a client
    can ask for any endpoint that may take its request. Source: llm-d router's strategy ``encoded_endpoint_header``.

    >>> EncodedEndpoint().response_headers(None, "default/pod1")
    {'x-session-token': 'ZGVmYXVsdC9wb2Qx'}
    """

    header: str = TOKEN_HEADER
    profile: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", self.header.strip().lower() or TOKEN_HEADER)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? None: the request."""
        return ()

    def bound(self, request: InferenceRequest, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``."""
        token = request.headers.get(self.header, "")
        return place_of_session(endpoints, endpoint_of_token(token) if token else "")

    def response_headers(self, result: SchedulingResult | None, served: str) -> Mapping[str, str]:
        """Return the token's header; nothing where nobody served, or the profile picked nobody."""
        endpoint = served
        if self.profile:
            picked = None if result is None else result.profiles.get(self.profile)
            endpoint = picked.target.endpoint if picked is not None and picked.targets else ""
        return {self.header: session_token(endpoint)} if endpoint else {}


@dataclass(frozen=True, slots=True)
class BoundSession:
    """Does a producer remember which endpoint the session was bound to?

    Reads ``SESSION_BOUND`` (cycle, never stale), of the `SessionBindingProducer` of that name. The session's name stays the
    client's: nothing is set on responses. Source: llm-d router's strategy ``session_id``.
    """

    producer: str = ""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which column, and which way is better?"""
        return (Reads(of_producer(SESSION_BOUND, self.producer), "higher"),)

    def bound(self, request: InferenceRequest, endpoints: Endpoints) -> FloatArray:
        """Return ``float64[E]``."""
        return endpoints[of_producer(SESSION_BOUND, self.producer)]

    def response_headers(self, result: SchedulingResult | None, served: str) -> Mapping[str, str]:
        """Return nothing."""
        return {}


def place_of_session(endpoints: Endpoints, endpoint: str) -> FloatArray:
    """Return a column for one endpoint's name: 1 there, 0 elsewhere; NaN for all where the name is empty."""
    if not endpoint:
        return np.full(len(endpoints), np.nan)
    column = np.zeros(len(endpoints), dtype=np.float64)
    place = endpoints.members.positions.get(endpoint)
    if place is not None:
        column[place if endpoints.positions is None else endpoints.positions == place] = 1.0
    return column
