"""Who asks, and what may they have?

What a client says of itself in headers is a wish. Who it is, what it pays and how urgent it may be come from what was verified: an API
key, or the claims of a token that the gateway checked. Source of the headers' order: llm-d-router, ``agentidentity``.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Protocol, final

from inferencesched.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from inferencesched.governance.meters import Identity
from inferencesched.routing.headers import FAIRNESS_ID, header

DEFAULT_FLOW: Final = "default-flow"
#: Where agents say which session they are, the first that is there counts.
SESSION_HEADERS: Final = ("x-claude-code-session-id", "x-session-affinity", "session-id", "session_id")
_DIGEST: Final = 32


class IdentityPolicy(Protocol):
    """Who asks?"""

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return who asks. `headers` have lower-case names; `claims` were verified by the gateway.

        Errors: `UnauthenticatedError`, `ForbiddenError`.
        """
        ...


def agent_session(headers: Mapping[str, str] | None, additional: Sequence[str] = ()) -> str | None:
    """Return which session an agent says it is, None where it says nothing. `additional` headers come first.

    >>> agent_session({"session_id": "old", "x-claude-code-session-id": "abc"})
    'abc'
    """
    for name in (*(each.lower() for each in additional), *SESSION_HEADERS):
        said = (headers or {}).get(name, "")
        if said:
            return said
    return None


def fairness_id(headers: Mapping[str, str], additional: Sequence[str] = ()) -> str:
    """Return in whose name a request queues, as the reference has it: the header's word, else the agent's session, else all together.

    >>> fairness_id({"x-llm-d-inference-fairness-id": "me", "session-id": "s"}), fairness_id({})
    ('me', 'default-flow')
    """
    return header(headers, FAIRNESS_ID) or agent_session(headers, additional) or DEFAULT_FLOW


def _within(tenant: str, headers: Mapping[str, str]) -> str:
    """Return a tenant's flow, or a part of it that the client names: ``tenant/part``. Nobody leaves their own tenant."""
    part = header(headers, FAIRNESS_ID)
    return f"{tenant}/{part}" if part and part != tenant else tenant


@dataclass(frozen=True, slots=True)
class TrustingHeaders:
    """Who asks, where the headers are believed? For a gateway behind a proxy that sets them itself; as the reference does.

    >>> TrustingHeaders().identify({"x-llm-d-inference-fairness-id": "me"}, None, now=0.0).fairness_id
    'me'
    """

    additional_session_headers: tuple[str, ...] = ()

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return the flow that the headers name."""
        return Identity(fairness_id=fairness_id(headers, self.additional_session_headers))


@dataclass(frozen=True, slots=True)
class Anonymous:
    """Who asks, where nobody is known? One tenant for all, whose priority is bounded whatever a header asks for."""

    tenant: str = "anonymous"
    max_priority: int = 0

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return that tenant."""
        return Identity(self.tenant, _within(self.tenant, headers), self.max_priority)


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Whose key is it? ``expires_at`` is seconds on the caller's clock, None is never."""

    tenant: str
    max_priority: int | None = 0
    subject: str = ""
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if not self.tenant:
            raise InvalidInputError("tenant", self.tenant, "a name")


@final
class ApiKeys:
    """Whose API key is it? ``Authorization: Bearer KEY``, or ``x-api-key``.

    Parameters
    ----------
    holders: key -> who has it. Only digests are kept, BLAKE2b of 32 bytes under `pepper`.
    pepper: a secret of the gateway's; with it, a list of digests is of no use to whoever gets hold of it.
    required: without a key, or with an unknown one, nobody gets in; else they are `otherwise`.

    A key is looked up by its digest, in a time that tells nothing of how much of a key was right: whoever guesses chooses the key, but not
    its digest. The digest found is compared once more in constant time (`hmac.compare_digest`). Cost: 2 us.

    >>> keys = ApiKeys({"sk-secret": KeyHolder("acme", max_priority=10)}, pepper=b"gateway")
    >>> keys.identify({"authorization": "Bearer sk-secret"}, None, now=0.0).tenant
    'acme'
    >>> keys.identify({"authorization": "Bearer sk-guess"}, None, now=0.0)
    Traceback (most recent call last):
    ...
    inferencesched.errors.UnauthenticatedError: unknown API key
    """

    __slots__ = ("_holders", "_pepper", "otherwise", "required")

    def __init__(
        self,
        holders: Mapping[str, KeyHolder],
        *,
        pepper: bytes = b"",
        required: bool = True,
        otherwise: IdentityPolicy | None = None,
    ) -> None:
        if len(pepper) > 64:
            raise InvalidInputError("pepper", f"{len(pepper)} bytes", "at most 64 bytes")
        self._pepper = pepper
        self._holders = {self.digest(key): holder for key, holder in holders.items()}
        if not all(holders):
            raise InvalidInputError("holders", "", "keys that are not empty")
        self.required = required
        self.otherwise: IdentityPolicy = Anonymous() if otherwise is None else otherwise

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._holders)} keys)"

    def digest(self, key: str) -> bytes:
        """Return what is kept of a key."""
        return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST, key=self._pepper).digest()

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return the key's holder. Errors: `UnauthenticatedError` for no key, an unknown or an expired one."""
        key = _key_of(headers)
        if not key:
            if self.required:
                raise UnauthenticatedError("no API key")
            return self.otherwise.identify(headers, claims, now=now)
        digest = self.digest(key)
        holder = self._holders.get(digest)
        known = next((each for each in self._holders if each == digest), digest) if holder is not None else digest
        if not hmac.compare_digest(known, digest) or holder is None:
            raise UnauthenticatedError("unknown API key")
        if holder.expires_at is not None and now >= holder.expires_at:
            raise UnauthenticatedError("expired API key")
        return Identity(
            holder.tenant, _within(holder.tenant, headers), holder.max_priority, holder.subject or holder.tenant, True
        )


def _key_of(headers: Mapping[str, str]) -> str:
    scheme, _, said = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and said:
        return said.strip()
    return headers.get("x-api-key", "").strip()


@dataclass(frozen=True, slots=True)
class ClaimsIdentity:
    """Who is it, by the claims of a token that the gateway verified?

    Parameters
    ----------
    tenant, subject: the claims that name them; a dot goes into an object.
    groups: the claim that lists groups.
    priorities: group -> the highest priority that its members may have; a member of several has the greatest.
    max_priority: of everybody else.
    allowed: tenants that may come in; empty is all.

    >>> policy = ClaimsIdentity(priorities={"ops": 10})
    >>> policy.identify({}, {"tenant": "acme", "sub": "ada", "groups": ["ops"]}, now=0.0)
    Identity(tenant='acme', fairness_id='acme', max_priority=10, subject='ada', verified=True)
    """

    tenant: str = "tenant"
    subject: str = "sub"
    groups: str = "groups"
    priorities: Mapping[str, int] = field(default_factory=dict)
    max_priority: int = 0
    allowed: frozenset[str] = frozenset()

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return who the claims say it is. Errors: `UnauthenticatedError` without them, `ForbiddenError` for another tenant."""
        if claims is None:
            raise UnauthenticatedError("no verified claims")
        tenant, subject = _claim(claims, self.tenant), _claim(claims, self.subject)
        if not isinstance(tenant, str) or not tenant:
            raise UnauthenticatedError(f"no claim {self.tenant!r}")
        if self.allowed and tenant not in self.allowed:
            raise ForbiddenError(f"tenant {tenant!r} may not use this gateway")
        groups = _claim(claims, self.groups)
        named = [groups] if isinstance(groups, str) else groups if isinstance(groups, (list, tuple)) else []
        allowed = [self.priorities[group] for group in named if isinstance(group, str) and group in self.priorities]
        who = subject if isinstance(subject, str) else ""
        return Identity(tenant, _within(tenant, headers), max(allowed, default=self.max_priority), who, True)


def _claim(claims: Mapping[str, object], name: str) -> object:
    found: object = claims
    for part in (name,) if name in claims else name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
