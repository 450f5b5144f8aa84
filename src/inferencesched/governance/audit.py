"""Who asked what, what was decided, and what is kept of it?

A record a request, typed, written when it ended. Of its texts a record keeps nothing, a keyed hash (so that equal ones can be found, and
none can be guessed), or the text after redaction; never the text as it was. Where records go is an `AuditSink`.
"""

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Literal, Protocol, final

import msgspec

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.governance.verdicts import Block, Context, Guard, Redact
from inferencesched.observability.events import Ended, Event, Labels, Received, Refused, Started

Texts = Literal["none", "hash", "redacted"]
_HIDDEN = "[withheld]"


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is kept of one request?

    Times are seconds on the caller's clock; what is unknown is None. ``outcome`` and ``code`` are as in the events; ``prompt`` and
    ``answer`` are hashes or redacted texts, as the auditor was told, ``guards`` the rules that matched.
    """

    request_id: str
    received_at: float
    ended_at: float
    outcome: str
    code: str = ""
    status: int | None = None
    tenant: str = ""
    subject: str = ""
    fairness_id: str = ""
    model: str = ""
    target: str = ""
    pool: str = ""
    priority: int = 0
    endpoint: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    guards: tuple[str, ...] = ()
    prompt: str = ""
    answer: str = ""


class AuditSink(Protocol):
    """Where do records go?"""

    def write(self, record: AuditRecord) -> None:
        """Keep a record."""
        ...


@final
class Auditor:
    """What is kept of a request? Listens to the director's events, and is told texts by the gateway.

    Parameters
    ----------
    sink: where records go.
    texts: ``none``, ``hash`` (HMAC-SHA-256 under `secret`), or ``redacted`` (what the guards leave of it; a text that they block, or that
        they fail on, is withheld).
    secret: the key of the hashes, at least 16 bytes.
    guards: who redacts.
    most: how many requests may be open; the oldest one's record is then written as ``lost``.

    A record is written once, when the request ended or was refused. Cost: 2 us an event, and the guards' own.

    >>> class Kept(list):
    ...     write = list.append
    >>> kept = Kept()
    >>> auditor = Auditor(kept, texts="hash", secret=b"of the gateway's own")
    >>> auditor.emit(Received("r-1", Labels("llama", tenant="acme"), 20, 1.0))
    >>> auditor.prompt("r-1", ["my secret"])
    >>> auditor.emit(Refused("r-1", Labels("llama", tenant="acme"), "rate_limited", 429, "ResourceExhausted", 1.5))
    >>> kept[0].outcome, kept[0].tenant, len(kept[0].prompt), "secret" in kept[0].prompt
    ('rate_limited', 'acme', 64, False)
    """

    __slots__ = ("_guards", "_open", "_secret", "_sink", "_texts", "most")

    def __init__(
        self,
        sink: AuditSink,
        *,
        texts: Texts = "none",
        secret: bytes = b"",
        guards: Sequence[Guard] = (),
        most: int = 100_000,
    ) -> None:
        if texts not in ("none", "hash", "redacted"):
            raise UnknownNameError("texts", texts, ("none", "hash", "redacted"))
        if texts == "hash" and len(secret) < 16:
            raise InvalidInputError("secret", f"{len(secret)} bytes", "at least 16 bytes, where texts are hashed")
        if texts == "redacted" and not guards:
            raise InvalidInputError("guards", guards, "at least one guard, where texts are redacted")
        if most < 1:
            raise InvalidInputError("most", most, "an integer of at least 1")
        self._sink = sink
        self._texts = texts
        self._secret = secret
        self._guards = tuple(guards)
        self._open: dict[str, AuditRecord] = {}
        self.most = most

    def __len__(self) -> int:
        """How many requests have no record yet?"""
        return len(self._open)

    def emit(self, event: Event) -> None:
        """Take note of what happened to a request."""
        if isinstance(event, Received):
            if len(self._open) >= self.most:
                oldest = self._open.pop(next(iter(self._open)))
                self._sink.write(msgspec.structs.replace(oldest, outcome="lost"))
            self._open[event.request_id] = self._begun(event.request_id, event.labels, event.at)
        elif isinstance(event, Started):
            self._change(event.request_id, endpoint=event.endpoint, pool=event.labels.pool)
        elif isinstance(event, Refused):
            record = self._closed(event.request_id, event.labels, event.at)
            self._sink.write(
                msgspec.structs.replace(
                    record, ended_at=event.at, outcome=event.outcome, code=event.code, status=event.status
                )
            )
        elif isinstance(event, Ended):
            record = self._closed(event.request_id, event.labels, event.at)
            usage = event.usage
            self._sink.write(
                msgspec.structs.replace(
                    record,
                    ended_at=event.at,
                    outcome=event.outcome,
                    code=event.code,
                    endpoint=event.endpoint,
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    cached_tokens=usage.cached_tokens,
                )
            )

    def prompt(self, request_id: str, texts: Sequence[str], rules: Sequence[str] = ()) -> None:
        """Say what was asked, and which guards' rules matched. Nothing of a request that is not open."""
        self._change(request_id, rules, prompt=self._kept(texts, "request"))

    def answer(self, request_id: str, texts: Sequence[str], rules: Sequence[str] = ()) -> None:
        """Say what was answered, and which guards' rules matched."""
        self._change(request_id, rules, answer=self._kept(texts, "response"))

    # -- inside --------------------------------------------------------------------------------------

    def _closed(self, request_id: str, labels: Labels, at: float) -> AuditRecord:
        record = self._open.pop(request_id, None)
        return self._begun(request_id, labels, at) if record is None else record

    @staticmethod
    def _begun(request_id: str, labels: Labels, at: float) -> AuditRecord:
        return AuditRecord(
            request_id=request_id,
            received_at=at,
            ended_at=at,
            outcome="",
            tenant=labels.tenant,
            fairness_id=labels.fairness_id,
            model=labels.model,
            target=labels.target,
            pool=labels.pool,
            priority=labels.priority,
        )

    def _change(self, request_id: str, guards: Sequence[str] = (), **fields: str) -> None:
        record = self._open.get(request_id)
        if record is not None:
            rules = tuple(dict.fromkeys((*record.guards, *guards)))
            changed: Mapping[str, object] = {**fields, "guards": rules}
            self._open[request_id] = msgspec.structs.replace(record, **changed)

    def _kept(self, texts: Sequence[str], phase: Literal["request", "response"]) -> str:
        if self._texts == "none":
            return ""
        if self._texts == "hash":
            digest = hmac.new(self._secret, digestmod=sha256)
            for text in texts:
                said = text.encode("utf-8", "surrogatepass")
                digest.update(len(said).to_bytes(8, "little") + said)
            return digest.hexdigest()
        left = tuple(texts)
        for guard in self._guards:
            try:
                verdict = guard.check(left, Context(phase))
            except Exception:  # noqa: BLE001  a guard that fails: what it has not seen is not written
                return _HIDDEN
            if isinstance(verdict, Block):
                return _HIDDEN
            if isinstance(verdict, Redact):
                left = verdict.texts
        return "\n".join(left)
