"""What does a server answer, piece by piece?

Bytes come as the network cuts them: in the middle of an event, of a line, of a letter. `ResponseReader` takes them as they come and says
what may be passed on, how many tokens were in it, and, in the end, what the server says it used. Server-sent events (WHATWG HTML, "Server-sent
events") and plain JSON; chat, completions, responses, messages and the engines' own generate.
"""

from typing import Any, Final, NamedTuple, final

import msgspec

from inferencesched.errors import UpstreamError, whole_number
from inferencesched.request import Usage
from inferencesched.routing.body import BodyKind
from inferencesched.routing.body.splice import spliced_model

MAX_EVENT: Final = 8 << 20
_DONE: Final = b"[DONE]"
_NOTHING: Final = Usage()
#: Whose streams say why they end.
_REASONED: Final = frozenset({"chat", "completions"})


class Progress(NamedTuple):
    """What came with some bytes?

    ``out`` may be passed on now; ``tokens`` counts the pieces of the answer that were in it (an engine sends one token a piece, mostly;
    the usage at the end is the server's own count), ``text`` is what they say. ``done`` says that the answer has ended as it should,
    ``error`` that the server told of an error, in the middle of an answer that had begun well.
    """

    out: bytes = b""
    tokens: int = 0
    text: str = ""
    done: bool = False
    error: str = ""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cached_tokens: int | None = None


class _Call(msgspec.Struct):
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Call | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    # of a message's events
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class _Response(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    status: str | None = None


class _Meta(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class _Event(msgspec.Struct):
    """What any of them says, in one shape; whatever else is in it is not looked at."""

    model: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    type: str | None = None
    delta: str | _Delta | None = None
    message: Any = None
    response: _Response | None = None
    content: Any = None
    output: Any = None
    text: str | None = None
    meta_info: _Meta | None = None
    stop_reason: str | None = None
    object: Any = None
    code: Any = None


_EVENT: Final = msgspec.json.Decoder(_Event)
_MESSAGE: Final = msgspec.json.Decoder(_Response)


@final
class ResponseReader:
    r"""What does a server answer?

    Parameters
    ----------
    kind: of the request's body.
    streaming: whether events are expected; else one JSON document.
    model, served_model: where they differ, the served name is given back as the client's, by splicing: nothing else is touched.
    max_event: bytes of one event, or of a document whose model is rewritten, that are held at most.

    Law: however the bytes are cut, `out` in sum, counts and usage are the same; without rewriting `out` is what came.
    Cost: 4 us an event. Errors: `UpstreamError` for an event that is too long.

    >>> reader = ResponseReader("chat", streaming=True)
    >>> progress = reader.feed(b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n')
    >>> progress.tokens, progress.text, progress.done
    (1, 'Hi', True)
    """

    __slots__ = (
        "_held",
        "_kind",
        "_lines",
        "_max_event",
        "_model",
        "_rest",
        "_rewrites",
        "_seen_text",
        "_served",
        "_started",
        "_streaming",
        "done",
        "error",
        "finish_reason",
        "tokens",
        "usage",
    )

    def __init__(
        self,
        kind: BodyKind,
        *,
        streaming: bool,
        model: str = "",
        served_model: str = "",
        max_event: int = MAX_EVENT,
    ) -> None:
        self._kind = kind
        self._streaming = streaming
        self._model = model
        self._served = served_model
        self._rewrites = bool(model) and bool(served_model) and model != served_model
        self._max_event = whole_number("max_event", max_event, 1)
        self._rest = b""  # of a line that has not ended
        self._held: list[bytes] = []  # the lines of an event that has not ended
        self._lines: list[bytes] = []  # what its data lines say
        self._started = False
        self._seen_text = ""
        self.usage = _NOTHING
        self.finish_reason = ""
        self.tokens = 0
        self.done = False
        self.error = ""

    @property
    def cut_short(self) -> bool:
        """Has a stream ended well without saying why? So end those of a vLLM whose engine has died: ``[DONE]`` and no finish reason."""
        return self._streaming and self.done and not self.finish_reason and self._kind in _REASONED

    def feed(self, chunk: bytes) -> Progress:
        """Take some bytes, and say what came with them."""
        if not self._streaming:
            return self._document(chunk)
        data = self._rest + chunk if self._rest else chunk
        out: list[bytes] = []
        texts: list[str] = []
        before, at = self.tokens, 0
        while True:
            end = data.find(b"\n", at)
            if end < 0:
                break
            line = data[at : end + 1]
            at = end + 1
            self._line(line, out, texts)
        self._rest = data[at:]
        if len(self._rest) + sum(map(len, self._held)) > self._max_event:
            raise UpstreamError(f"an event of more than {self._max_event} bytes")
        passed = b"".join(out) if self._rewrites else chunk
        return Progress(passed, self.tokens - before, "".join(texts), self.done, self.error)

    def finish(self) -> Progress:
        """Say that there is no more. A stream that ends without its end, or a document that is cut off, is an error."""
        before = self.tokens
        texts: list[str] = []
        out: list[bytes] = []
        if self._streaming:
            if self._rest:
                self._line(self._rest, out, texts)
                self._rest = b""
            self._dispatch(out, texts)
            if not self._rewrites:
                out.clear()
            if not self.done and not self.error:
                self.error = "the stream ended before its end"
        else:
            document = b"".join(self._held)
            self._held = []
            self._data(document, texts)
            if self._rewrites:
                out.append(self._spliced(document))
            if not self.error:
                self.done = True
        return Progress(b"".join(out), self.tokens - before, "".join(texts), self.done, self.error)

    # -- lines -----------------------------------------------------------------------------------------

    def _line(self, line: bytes, out: list[bytes], texts: list[str]) -> None:
        said = line.rstrip(b"\r\n")
        if not self._started:
            self._started = True
            said = said.removeprefix(b"\xef\xbb\xbf")
        self._held.append(line)
        if not said:
            self._dispatch(out, texts)
        elif said.startswith(b"data:"):
            self._lines.append(said[6:] if said[5:6] == b" " else said[5:])

    def _dispatch(self, out: list[bytes], texts: list[str]) -> None:
        """An event has ended: read it, and let its lines go."""
        held, lines, self._held, self._lines = self._held, self._lines, [], []
        if lines:
            data = lines[0] if len(lines) == 1 else b"\n".join(lines)
            if data.strip() == _DONE:
                self.done = self.done or not self.error
            else:
                model = self._data(data, texts)
                if self._rewrites and model == self._served:
                    held = [self._line_with(line, data) for line in held] if len(lines) == 1 else held
        out += held

    def _line_with(self, line: bytes, data: bytes) -> bytes:
        at = line.find(data) if line.startswith((b"data:", b"\xef\xbb\xbfdata:")) else -1
        return line if at < 0 else line[:at] + self._spliced(data) + line[at + len(data) :]

    def _spliced(self, data: bytes) -> bytes:
        """Return the JSON with the client's model in the place of the served one."""
        try:
            event = _EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return data
        if event.model == self._served:
            return spliced_model(data, self._served, self._model)
        return data

    # -- data ------------------------------------------------------------------------------------------

    def _document(self, chunk: bytes) -> Progress:
        self._held.append(chunk)
        if sum(map(len, self._held)) > self._max_event:
            raise UpstreamError(f"an answer of more than {self._max_event} bytes")
        return Progress(b"" if self._rewrites else chunk)

    def _data(self, data: bytes, texts: list[str]) -> str | None:
        """Read one event, or the whole document; return the model that it names."""
        try:
            event = _EVENT.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self.error = self.error or "an answer that is no JSON of its API"
            return None
        if event.error is not None or event.type in ("error", "response.failed"):
            self.error = self.error or _short(event.error)
        if event.usage is not None:
            self._used(event.usage)
        if event.choices:
            for choice in event.choices:
                self._choice(choice, texts)
        elif self._kind == "messages":
            self._of_messages(event, data, texts)
        elif self._kind == "responses":
            self._of_responses(event, texts)
        elif self._kind == "sglang_generate" and event.meta_info is not None:
            self._of_sglang(event, texts)
        return event.model

    def _choice(self, choice: _Choice, texts: list[str]) -> None:
        delta = choice.delta or choice.message
        said = choice.text or ""
        if delta is not None:
            said += delta.content or delta.reasoning_content or delta.reasoning or delta.refusal or ""
            for call in delta.tool_calls or ():
                said += (call.function.arguments or "") if call.function is not None else ""
        if choice.token_ids:
            self.tokens += len(choice.token_ids)
        elif said:
            self.tokens += 1
        if said:
            texts.append(said)
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason

    def _of_messages(self, event: _Event, data: bytes, texts: list[str]) -> None:
        if event.type == "message_start":
            try:
                started = _MESSAGE.decode(msgspec.json.encode(event.message))
            except (msgspec.MsgspecError, UnicodeError):
                return
            if started.usage is not None:
                self._used(started.usage)
        elif event.type == "content_block_delta" and isinstance(event.delta, _Delta):
            said = event.delta.text or event.delta.thinking or event.delta.partial_json or ""
            if said:
                self.tokens += 1
                texts.append(said)
        elif event.type == "message_delta" and isinstance(event.delta, _Delta):
            self.finish_reason = event.delta.stop_reason or self.finish_reason
        elif event.type == "message_stop":
            self.done = True
        elif event.type == "message" and isinstance(event.content, list):
            for block in event.content:
                said = block.get("text") or block.get("thinking") or "" if isinstance(block, dict) else ""
                if isinstance(said, str) and said:
                    self.tokens += 1
                    texts.append(said)
            self.finish_reason = event.stop_reason or self.finish_reason

    def _of_responses(self, event: _Event, texts: list[str]) -> None:
        if isinstance(event.delta, str) and event.delta:
            self.tokens += 1
            texts.append(event.delta)
        if event.response is not None and event.response.usage is not None:
            self._used(event.response.usage)
        if event.type in ("response.completed", "response.incomplete"):
            self.done = True
            self.finish_reason = event.type.removeprefix("response.")
        if isinstance(event.output, list):
            for item in event.output:
                for part in (item.get("content") or ()) if isinstance(item, dict) else ():
                    said = part.get("text") if isinstance(part, dict) else None
                    if isinstance(said, str) and said:
                        self.tokens += 1
                        texts.append(said)

    def _of_sglang(self, event: _Event, texts: list[str]) -> None:
        """Each event has the whole text so far, and the counts so far."""
        meta, text = event.meta_info, event.text or ""
        assert meta is not None  # asked by the caller
        new = text.removeprefix(self._seen_text)
        self._seen_text = text
        if new:
            texts.append(new)
        if meta.completion_tokens is not None:
            self.tokens = max(self.tokens, meta.completion_tokens)
        elif new:
            self.tokens += 1
        self.usage = Usage(meta.prompt_tokens, meta.completion_tokens, meta.cached_tokens)

    def _used(self, said: _Usage) -> None:
        """Take note of what the server says it used; what a later event does not say stays."""
        known = self.usage
        prompt = said.prompt_tokens if said.prompt_tokens is not None else said.input_tokens
        details = said.prompt_tokens_details or said.input_tokens_details
        cached = details.cached_tokens if details is not None else said.cached_tokens
        if said.cache_read_input_tokens is not None:
            # Anthropic counts what was cached beside the input, not in it
            cached = said.cache_read_input_tokens
            if prompt is not None:
                prompt += cached + (said.cache_creation_input_tokens or 0)
        output = said.completion_tokens if said.completion_tokens is not None else said.output_tokens
        self.usage = Usage(
            known.input_tokens if prompt is None else prompt,
            known.output_tokens if output is None else output,
            known.cached_tokens if cached is None else cached,
        )


def _short(error: Any) -> str:
    said = error.get("message") or error.get("type") if isinstance(error, dict) else error
    text = said if isinstance(said, str) and said else "the server told of an error"
    return text[:200]
