"""What did the director decide, and what waits?"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from inferencesched.director.life import RequestLife
from inferencesched.errors import RequestRefusedError
from inferencesched.flowcontrol.flows import Ticket
from inferencesched.framework import SchedulingResult
from inferencesched.request import InferenceRequest

FORWARDED: Final = "forwarded"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Mirrored(NamedTuple):
    """Where should a copy of the request go, whose answer nobody waits for? Nothing is booked for it."""

    pool: str
    endpoint: str
    address: str


class Waiting(NamedTuple):
    """Why is there no decision yet? It waits in the queue of `pool`; `Director.step` or `Director.cancel` answers `ticket`."""

    request_id: str
    pool: str
    ticket: Ticket


class Decision(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """May it go, and where? The one answer to each request.

    ``status`` is 200 where it is forwarded, and the client's HTTP status where it is refused; ``outcome`` is ``forwarded`` or the
    refusal's low-cardinality name. ``error`` is the typed refusal.

    Forwarded: send ``body`` to ``address``, with ``headers`` set (an empty value says "remove"), to one of ``fallbacks`` (addresses,
    best first) should it refuse before the first byte; say to ``life`` what happens. ``mirrors`` get a copy.
    Refused: answer with ``status``, ``headers`` and ``message``.
    """

    request_id: str
    status: int
    outcome: str
    headers: Mapping[str, str] = _NOTHING
    pool: str = ""
    endpoint: str = ""
    address: str = ""
    fallbacks: tuple[str, ...] = ()
    body: bytes = b""
    mirrors: tuple[Mirrored, ...] = ()
    request: InferenceRequest | None = None
    result: SchedulingResult | None = None
    life: RequestLife | None = None
    error: RequestRefusedError | None = None
    trail: tuple[tuple[str, str], ...] = ()

    @property
    def forwarded(self) -> bool:
        """May it go?"""
        return self.error is None

    @property
    def message(self) -> str:
        """What may the client be told? Empty for what is forwarded."""
        return "" if self.error is None else str(self.error)

    def explain(self) -> str:
        """Return how it came to this, a line a stage.

        Why this endpoint and no other is `inferencesched.explain`'s to say, from ``result``.
        """
        lines = [f"request {self.request_id!r}: {self.outcome}, HTTP {self.status}"]
        lines += [f"  {stage}: {what}" for stage, what in self.trail]
        if self.error is not None:
            lines.append(f"  refused: {self.error}")
        elif self.result is not None:
            target = self.result.target
            others = f", then {', '.join(self.fallbacks)}" if self.fallbacks else ""
            lines.append(f"  endpoint: {self.endpoint} at {self.address} (score {target.score:.4g}){others}")
            prompt = None if self.request is None else self.request.input_tokens
            if prompt is not None:
                lines.append(f"  prompt: {prompt - target.tokens} of {prompt} tokens expected in its cache")
        return "\n".join(lines)
