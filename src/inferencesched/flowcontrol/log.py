"""What was decided, and would it be decided again?

A `RecordedController` is a `FlowController` that writes down every call and every answer; `replay` makes the same calls on a
fresh controller and writes its answers down the same way. Equal bytes are equal decisions: the controller has no clock and
no chance of its own. The log is MessagePack, an array a call: ``[call, now, arguments, answer]``, each behind its length in four
bytes, the least significant first.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar, final

import msgspec
import numpy as np

from inferencesched.endpoints import Endpoints, Layout, Signal
from inferencesched.errors import InferenceSchedError, InvalidInputError, UnknownNameError
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.events import Displace, Event, Rejection
from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.members import Adapters, Membership, Residency
from inferencesched.request import Usage

_ITEM: Final = tuple(name for name in QueueItem.__struct_fields__ if name != "request")
T = TypeVar("T")
_HEAD: Final = 4
#: Calls about a ticket, whose number is the first of what was said.
_OF_TICKETS: Final = ("cancel", "dispatched", "completed", "revoked", "revoke_failed")
_CALLS: Final = ("submit", "observe", "step", "shutdown", "next_wakeup", "desire", *_OF_TICKETS)


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Which call was made, when, with what, and what was answered? Arguments and answers are plain values."""

    name: str
    now: float
    said: list[Any]
    answer: Any


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Call).decode


@final
class RecordedController:
    """Which calls were made, and what was answered? The methods of `FlowController`, and `log`.

    What a caller hung on a `QueueItem` (``request``) is not written down, nor is anything of a prompt: ids, sizes and times
    are. Cost: some 3 us a call, and 100 bytes.

    >>> recorded = RecordedController(FlowController())
    >>> ticket = recorded.submit(QueueItem(request_id="r-1"), now=1.0)
    >>> _ = recorded.step(now=1.0)
    >>> recorded.completed(ticket, now=2.0)
    >>> replay(recorded.log(), FlowController) == recorded.log()
    True
    """

    __slots__ = ("_calls", "controller")

    def __init__(self, controller: FlowController) -> None:
        self.controller = controller
        self._calls: list[bytes] = []

    def log(self) -> bytes:
        """Return all calls so far, one behind the other."""
        return b"".join(self._calls)

    def submit(self, item: QueueItem, now: float) -> Ticket | Rejection:
        """Queue a request: `FlowController.submit`."""
        said = [getattr(item, name) for name in _ITEM]
        return self._told("submit", now, said, lambda: self.controller.submit(item, now), _submitted)

    def cancel(self, ticket: Ticket, now: float) -> bool:
        """Take back a request: `FlowController.cancel`."""
        return self._told("cancel", now, [ticket.number], lambda: self.controller.cancel(ticket, now), _same)

    def step(self, now: float) -> list[Event]:
        """Say what happens now: `FlowController.step`."""
        return self._told("step", now, [], lambda: self.controller.step(now), _events)

    def next_wakeup(self, now: float) -> float | None:
        """When does `step` have something to do by itself: `FlowController.next_wakeup`."""
        return self._told("next_wakeup", now, [], lambda: self.controller.next_wakeup(now), _same)

    def shutdown(self, now: float) -> list[Event]:
        """Let nobody in any more: `FlowController.shutdown`."""
        return self._told("shutdown", now, [], lambda: self.controller.shutdown(now), _events)

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Learn what is known of the servers: `FlowController.observe`."""
        signals = [[s.name, s.unit, s.default, s.freshness, s.low, s.high] for s in endpoints.layout.signals]
        labels = [dict(endpoints.labels(i)) for i in range(len(endpoints))]
        said = [list(endpoints.names), labels, signals, np.ascontiguousarray(endpoints.matrix).tobytes()]
        self._told("observe", now, said, lambda: self.controller.observe(endpoints, now), _same)

    def dispatched(self, ticket: Ticket, endpoint: str, now: float) -> None:
        """Say to which server a request went: `FlowController.dispatched`."""
        said = [ticket.number, endpoint]
        self._told("dispatched", now, said, lambda: self.controller.dispatched(ticket, endpoint, now), _same)

    def completed(self, ticket: Ticket, usage: Usage | None = None, *, now: float) -> None:
        """Say that a server is done with a request: `FlowController.completed`."""
        said = [ticket.number, None if usage is None else list(usage)]
        self._told("completed", now, said, lambda: self.controller.completed(ticket, usage, now=now), _same)

    def revoked(self, ticket: Ticket, *, now: float, requeue: bool = False) -> bool:
        """Say that a server stopped working on a request: `FlowController.revoked`."""
        said = [ticket.number, requeue]
        return self._told(
            "revoked", now, said, lambda: self.controller.revoked(ticket, now=now, requeue=requeue), _same
        )

    def revoke_failed(self, ticket: Ticket, *, now: float) -> None:
        """Say that a server would not stop: `FlowController.revoke_failed`."""
        self._told("revoke_failed", now, [ticket.number], lambda: self.controller.revoke_failed(ticket, now=now), _same)

    def desire(self, priorities: Collection[int], now: float) -> None:
        """Say which priorities objectives have: `FlowController.desire`."""
        said = sorted(priorities)
        self._told("desire", now, said, lambda: self.controller.desire(said, now), _same)

    def check(self) -> None:
        """Assert that everything adds up: `FlowController.check`."""
        self.controller.check()

    def _told(self, call: str, now: float, said: list[Any], make: Callable[[], T], written: Callable[[T], object]) -> T:
        """Make a call and write it down, also where it is refused: a refusal is an answer."""
        try:
            answer = make()
        except InferenceSchedError as error:
            self._write(Call(call, now, said, [type(error).__name__, str(error)]))
            raise
        self._write(Call(call, now, said, written(answer)))
        return answer

    def _write(self, call: Call) -> None:
        body = _encode(call)
        self._calls.append(len(body).to_bytes(_HEAD, "little") + body)


def calls(log: bytes) -> Iterator[Call]:
    """Walk the calls of a log, with what was answered.

    Errors: `InvalidInputError` for bytes that are no log.
    """
    at = 0
    while at < len(log):
        size = int.from_bytes(log[at : at + _HEAD], "little")
        body = log[at + _HEAD : at + _HEAD + size]
        try:
            if len(body) < size or not size:
                raise msgspec.DecodeError("cut short")
            call = _decode(body)
        except msgspec.DecodeError as error:
            where = f"byte {at} of {len(log)}"
            raise InvalidInputError("log", where, f"calls as `RecordedController` writes them ({error})") from error
        yield call
        at += _HEAD + size


def replay(log: bytes, make: Callable[[], FlowController]) -> bytes:
    """Make all calls of a log again, on a fresh controller; return its log: equal bytes are equal decisions.

    Errors: `InvalidInputError` for bytes that are no log, and for a ticket that the new controller never gave.
    """
    again = RecordedController(make())
    tickets: dict[int, Ticket] = {}

    def usage(said: list[int | None] | None) -> Usage | None:
        return None if said is None else Usage(*said)

    for call in calls(log):
        now, said = call.now, call.said
        if call.name not in _CALLS:
            raise UnknownNameError("log", call.name, _CALLS)
        if call.name in _OF_TICKETS and said[0] not in tickets:
            allowed = f"one of the {len(tickets)} that this controller gave"
            raise InvalidInputError("log", f"ticket {said[0]}", allowed)
        with suppress(InferenceSchedError):
            match call.name:
                case "submit":
                    answer = again.submit(QueueItem(**dict(zip(_ITEM, said, strict=True))), now)
                    if isinstance(answer, Ticket):
                        tickets[answer.number] = answer
                case "observe":
                    again.observe(_snapshot(*said), now)
                case "step":
                    again.step(now)
                case "shutdown":
                    again.shutdown(now)
                case "next_wakeup":
                    again.next_wakeup(now)
                case "cancel":
                    again.cancel(tickets[said[0]], now)
                case "dispatched":
                    again.dispatched(tickets[said[0]], said[1], now)
                case "completed":
                    again.completed(tickets[said[0]], usage(said[1]), now=now)
                case "desire":
                    again.desire(said, now)
                case "revoke_failed":
                    again.revoke_failed(tickets[said[0]], now=now)
                case _:
                    again.revoked(tickets[said[0]], now=now, requeue=said[1])
    return again.log()


def _snapshot(names: list[str], labels: list[dict[str, str]], signals: list[list[Any]], matrix: bytes) -> Endpoints:
    """Return the endpoints that a log tells of; slots and generations are made up."""
    layout = Layout(Signal(*signal) for signal in signals)
    numbers = np.frombuffer(matrix, dtype=np.float64).reshape(len(layout.signals), len(names)).copy()
    stays = tuple((i, i + 1) for i in range(len(names)))
    members = Membership(tuple(names), stays, tuple(labels))
    return Endpoints(numbers, layout, members, Residency(tuple(Adapters() for _ in names)), 0, 0)


def _submitted(answer: Ticket | Rejection) -> list[Any]:
    if isinstance(answer, Ticket):
        return ["ticket", answer.number, answer.cost, answer.expires_at]
    return ["rejection", answer.outcome.value, answer.retry_after, answer.wait, answer.detail]


def _events(events: list[Event]) -> list[list[Any]]:
    return [_event(event) for event in events]


def _event(event: Event) -> list[Any]:
    ticket = event.ticket
    outcome = None if ticket.outcome is None else ticket.outcome.value
    said = [type(event).__name__, ticket.number, outcome]
    if isinstance(event, Displace):
        said.append(event.by.number)
    return said


def _same(answer: object) -> object:
    return answer
