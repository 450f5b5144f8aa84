"""How does a request wait in a thread? The flow controller for threads.

::

    with controller.admit(item) as admission:
        answer = forward(request)  # its turn has come
        admission.usage = Usage(answer.prompt_tokens, answer.completion_tokens)

The controller stays a state machine: this module brings it the clock, one lock, and an event for each thread that waits. No
thread of its own: one of those that wait keeps the time, and lets the controller step when `FlowController.next_wakeup` says so.
"""

import threading
import time
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Protocol, Self, TypeVar, final

from inferencesched.endpoints import Endpoints
from inferencesched.errors import QueueRevokedError, whole_number
from inferencesched.flowcontrol.admission import Admission, Controller, Desk
from inferencesched.flowcontrol.explain import FlowExplanation
from inferencesched.flowcontrol.flows import QueueItem

T = TypeVar("T")


class WakeEvent(Protocol):
    """What does a thread sleep on? `threading.Event`, or one of a test that has a time of its own."""

    def set(self) -> None:
        """Wake whoever waits, or is about to."""
        ...

    def clear(self) -> None:
        """Let the next `wait` sleep again."""
        ...

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until it is set, or for so many seconds."""
        ...


@final
class ThreadAdmission(Admission):
    """What is a request while its turn comes, and while it is served? Made by `ThreadedFlowController.admit`, for ``with``."""

    __slots__ = ("_event", "_on_revoke", "_shell")

    def __init__(self, shell: "ThreadedFlowController", item: QueueItem) -> None:
        super().__init__(item)
        self._shell = shell
        self._event: WakeEvent | None = None
        self._on_revoke: Callable[[], object] | None = None

    def dispatched(self, endpoint: str) -> None:
        """Say to which server it went. Errors: `TicketError` unless it is in flight."""
        self._shell._placed(self, endpoint)

    def check(self) -> None:
        """Raise `QueueRevokedError` where a server should stop working on it. A thread cannot be stopped: it has to ask."""
        if self._revoking:
            raise self._refusal()

    def on_revoke(self, call: Callable[[], object]) -> None:
        """Make a call when a server should stop working on it: close the connection, say. At once where it should already.

        Another thread makes it, perhaps after the block has ended; it must not raise.
        """
        self._shell._on_revoke(self, call)

    def cancel(self) -> bool:
        """Take it back, from any thread: its client has gone. True where it waited; whoever waits for it gets `QueueEvictedError`."""
        return self._shell._cancel(self)

    def __enter__(self) -> Self:
        if not self._shell._begun(self):
            self._shell._turn_of(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = self._revoking and isinstance(error, Exception)
        self._shell._settle(self, stopped=self._revoking and error is not None, requeue=taken)
        if taken and not isinstance(error, QueueRevokedError):
            raise self._refusal() from error

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    def _stop(self) -> None:
        if self._on_revoke is not None:
            self._shell._calls.append(self._on_revoke)


@final
class ThreadedFlowController:
    """How does a request wait in a thread until it may go?

    Parameters
    ----------
    controller: the state machine; nobody else calls it meanwhile. A `RecordedController` keeps a log of it all.
    clock: seconds, never going back: the clock of every deadline that an item names.
    event: what makes the thing that a thread sleeps on.

    A request that may go at once goes without an event. Whatever is raised in the block, the request is completed. Where it
    should be taken back from its server (`Revoke`), `Admission.revoked` turns True, `ThreadAdmission.on_revoke` makes its call, and what is then raised in the
    block comes out as `QueueRevokedError`; a block that ends well has ended well.

    Errors of `admit`: `QueueRejectedError`, `QueueEvictedError` and `QueueRevokedError`, which know the client's status and headers; and
    what a policy raises, in the call that met it: that of whoever keeps the time, where the time had come.

    From any thread. Cost: some 15 us for a request that goes at once, the controller's 7 in it; a wait costs two switches of threads.

    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> controller = ThreadedFlowController(FlowController())
    >>> with controller.admit(QueueItem(request_id="r-1")) as admission:
    ...     admission.dispatched("ep-0")
    >>> admission.ticket.outcome.value
    'completed'
    """

    __slots__ = ("_calls", "_desk", "_due", "_keeper", "_lock", "_make_event")

    def __init__(
        self,
        controller: Controller,
        clock: Callable[[], float] = time.monotonic,
        event: Callable[[], WakeEvent] = threading.Event,
    ) -> None:
        self._desk: Desk[ThreadAdmission] = Desk(controller, clock)
        self._lock = threading.Lock()
        self._make_event = event
        self._keeper: ThreadAdmission | None = None  # who keeps the time
        self._due = inf  # until when it sleeps
        self._calls: list[Callable[[], object]] = []  # to be made without the lock

    @property
    def controller(self) -> Controller:
        """Which controller is it around?"""
        return self._desk.controller

    def now(self) -> float:
        """What time is it? For deadlines."""
        with self._lock:
            return self._desk.now()

    def __len__(self) -> int:
        """How many requests wait?"""
        return len(self._desk.waiting)

    def admit(self, item: QueueItem) -> ThreadAdmission:
        """Return what waits for a request's turn: ``with controller.admit(item) as admission``."""
        return ThreadAdmission(self, item)

    def serve(self, item: QueueItem, body: Callable[[ThreadAdmission], T], *, requeues: int = 3) -> T:
        """Call `body` when a request's turn comes, and return its answer; again if it was taken back too early.

        Taken back before `Admission.streamed` was set, it waits again, where it was in its flow, up to `requeues` times.
        Errors: as of `admit`.
        """
        whole_number("requeues", requeues)
        admission = self.admit(item)
        while True:
            admission._again = requeues > 0
            try:
                with admission:
                    return body(admission)
            except QueueRevokedError:
                if not admission._requeued:
                    raise
            requeues -= 1

    def observe(self, endpoints: Endpoints) -> None:
        """Say what is known of the servers: whoever may go now goes."""
        self._locked(lambda: self._desk.observe(endpoints))

    def shutdown(self) -> None:
        """Let nobody in any more, and everybody out who waits, with `QueueEvictedError`; what is in flight may complete."""
        self._locked(self._desk.shutdown)

    def explain(self, admission: ThreadAdmission) -> FlowExplanation:
        """Return why a request waits, or how it ended. Errors: `TicketError` for one that was never queued."""
        with self._lock:
            return self._desk.explain(admission)

    # -- inside ------------------------------------------------------------------------------------

    def _locked(self, call: Callable[[], T]) -> T:
        """Make a call of the desk's: one at a time, and then see to the time, and call whoever should stop."""
        calls: list[Callable[[], object]] = []
        try:
            with self._lock:
                try:
                    return call()
                finally:
                    if self._calls:
                        calls, self._calls = self._calls, calls
                    self._retime()
        finally:
            for each in calls:
                each()

    def _begun(self, admission: ThreadAdmission) -> bool:
        """Queue a request, or let it go on waiting that was taken back; return whether it has been let go already."""
        if admission._requeued:
            return False

        def submit() -> bool:
            going = self._desk.submit(admission)
            if not going:
                admission._event = self._make_event()
            return going and not admission._revoking

        return self._locked(submit)

    def _turn_of(self, admission: ThreadAdmission) -> None:
        """Wait until a request has been let go, or raise how it was refused."""
        ticket, admission._requeued = admission.ticket, False
        event = admission._event
        if event is None:
            event = admission._event = self._make_event()
        try:
            while True:
                with self._lock:
                    if ticket.outcome is not None:
                        break
                    event.clear()
                    timeout = self._keep_time(admission)
                event.wait(timeout)
                if self._keeper is admission:
                    self._locked(self._desk.on_time)
        except BaseException:
            self._locked(lambda: self._desk.leave(admission))
            raise
        finally:
            with self._lock:
                self._hand_over(admission)
        if admission._revoking:  # between its dispatch and now
            self._settle(admission, stopped=True, requeue=True)
            raise admission._refusal()
        if ticket.number not in self._desk.flying:
            raise admission._refusal()

    def _keep_time(self, admission: ThreadAdmission) -> float | None:
        """Return for how many seconds to sleep: whoever keeps the time until something is to be done, the others for good."""
        if self._keeper is None:
            self._keeper = admission
        if self._keeper is not admission:
            return None
        now = self._desk.now()
        at = self._desk.controller.next_wakeup(now)
        self._due = inf if at is None else at
        return None if at is None else at - now

    def _hand_over(self, admission: ThreadAdmission) -> None:
        """Let another thread keep the time, now that this one waits no more."""
        if self._keeper is admission:
            self._keeper = None
        if self._keeper is None:
            other = next(iter(self._desk.waiting.values()), None)
            if other is not None:
                other._wake()

    def _retime(self) -> None:
        """Wake whoever keeps the time where there is something to do earlier than it knows."""
        keeper = self._keeper
        if keeper is not None and self._desk.waiting:
            at = self._desk.controller.next_wakeup(self._desk.now())
            if at is not None and at < self._due:
                keeper._wake()

    def _cancel(self, admission: ThreadAdmission) -> bool:
        def leave() -> bool:
            waited = admission._asked and admission.ticket.number in self._desk.waiting
            if waited:
                self._desk.leave(admission)
                admission._wake()
            return waited

        return self._locked(leave)

    def _on_revoke(self, admission: ThreadAdmission, call: Callable[[], object]) -> None:
        def remember() -> None:
            admission._on_revoke = call
            if admission._revoking:
                admission._stop()

        self._locked(remember)

    def _settle(self, admission: ThreadAdmission, *, stopped: bool = False, requeue: bool = False) -> None:
        self._locked(lambda: self._desk.settle(admission, stopped=stopped, requeue=requeue))

    def _placed(self, admission: ThreadAdmission, endpoint: str) -> None:
        self._locked(lambda: self._desk.placed(admission, endpoint))
