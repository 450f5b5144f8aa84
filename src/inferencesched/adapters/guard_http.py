"""What does a service say of a prompt, or of an answer? A guard that asks over HTTP, by a transport that the gateway brings.

The shape is Google Cloud Model Armor's ``sanitizeUserPrompt`` and ``sanitizeModelResponse`` (REST reference, v1). The library opens no
connection itself: `Transport` is a function, with whatever client, pool and timeout the gateway has.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, final

import msgspec

from inferencesched.errors import UpstreamError
from inferencesched.governance.verdicts import ALLOW, Block, Context, Verdict

#: url, body, headers -> status, body.
Transport = Callable[[str, bytes, Mapping[str, str]], tuple[int, bytes]]
_FOUND: Final = "MATCH_FOUND"


class _Result(msgspec.Struct, rename="camel"):
    filter_match_state: str
    filter_results: dict[str, Any] = {}
    invocation_result: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    sanitization_result: _Result


_DECODER: Final = msgspec.json.Decoder(_Answer)


@final
class ModelArmor:
    """What does a Model Armor template say?

    Parameters
    ----------
    transport: who asks.
    template: the template's URL, ``https://modelarmor.LOCATION.rep.googleapis.com/v1/projects/P/locations/L/templates/T``.
    token: the access token, asked for each time; None sends none.

    A match blocks, by the name of the filter that found it. Errors, which are the chain's to judge (`Guarded.on_error`): `UpstreamError`
    for another status than 200 or an answer that is none, and whatever the transport raises.
    """

    __slots__ = ("_template", "_token", "_transport", "name")

    def __init__(
        self,
        transport: Transport,
        template: str,
        *,
        token: Callable[[], str] | None = None,
        name: str = "model-armor",
    ) -> None:
        self.name = name
        self._transport = transport
        self._template = template.rstrip("/")
        self._token = token

    def check(self, texts: Sequence[str], context: Context) -> Verdict:
        """Return what the service says of all texts together."""
        verb, field = (
            ("sanitizeUserPrompt", "userPromptData")
            if context.phase == "request"
            else ("sanitizeModelResponse", "modelResponseData")
        )
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token()}"
        body = msgspec.json.encode({field: {"text": "\n".join(texts)}})
        status, answer = self._transport(f"{self._template}:{verb}", body, headers)
        if status != 200:
            raise UpstreamError(f"{self.name} answered {status}")
        try:
            result = _DECODER.decode(answer).sanitization_result
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise UpstreamError(f"{self.name} answered what cannot be read") from error
        if result.filter_match_state != _FOUND:
            return ALLOW
        rule = next((name for name, found in result.filter_results.items() if _FOUND in repr(found)), "match")
        return Block(self.name, rule)
