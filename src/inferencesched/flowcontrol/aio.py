"""How does a request wait in an event loop? The flow controller for asyncio.

::

    async with controller.admit(item) as admission:
        answer = await forward(request)  # its turn has come
        admission.usage = Usage(answer.prompt_tokens, answer.completion_tokens)

The controller stays a state machine: this module brings it the clock, a future for each request that waits, and one timer for
the time that `FlowController.next_wakeup` names. No task of its own, no polling.
"""

import time
from asyncio import AbstractEventLoop, CancelledError, Future, Task, TimerHandle, current_task, get_running_loop, sleep
from collections.abc import Awaitable, Callable
from math import inf
from types import TracebackType
from typing import Any, Final, Self, TypeVar, final

from inferencesched.endpoints import Endpoints
from inferencesched.errors import QueueRevokedError, whole_number
from inferencesched.flowcontrol.admission import Admission, Controller, Desk
from inferencesched.flowcontrol.explain import FlowExplanation
from inferencesched.flowcontrol.flows import QueueItem

T = TypeVar("T")

#: Seconds until a timer tries again after a policy has raised in it.
_AGAIN: Final = 1.0


@final
class AsyncAdmission(Admission):
    """What is a request while its turn comes, and while it is served? Made by `AsyncFlowController.admit`, for ``async with``."""

    __slots__ = ("_cancelling", "_future", "_shell", "_task")

    def __init__(self, shell: "AsyncFlowController", item: QueueItem) -> None:
        super().__init__(item)
        self._shell = shell
        self._future: Future[None] | None = None
        self._task: Task[Any] | None = None
        self._cancelling = 0

    def dispatched(self, endpoint: str) -> None:
        """Say to which server it went. Errors: `TicketError` unless it is in flight."""
        self._shell._placed(self, endpoint)

    async def __aenter__(self) -> Self:
        if not self._shell._begun(self):
            await self._shell._turn_of(self)
        self._task = task = current_task()
        self._cancelling = 0 if task is None else task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._revoking:
            self._shell._settle(self)
            return
        mine = task is None or task.uncancel() <= self._cancelling  # nobody but us has cancelled it
        taken = mine and isinstance(error, CancelledError)
        self._shell._settle(self, stopped=error is not None, requeue=taken)
        if error is None:
            try:
                await sleep(0)  # a cancellation that has not come yet comes here, before the block is left
            except CancelledError:
                if not mine:
                    raise
        elif taken:
            raise self._refusal() from error

    def _wake(self) -> None:
        future = self._future
        if future is not None and not future.done():
            future.set_result(None)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel("its place at the server is wanted for another request")


@final
class AsyncFlowController:
    """How does a request wait in an event loop until it may go?

    Parameters
    ----------
    controller: the state machine; nobody else calls it meanwhile. A `RecordedController` keeps a log of it all.
    clock: seconds, never going back: the clock of every deadline that an item names.

    A request that may go at once goes without a future. One that is cancelled while it waits frees its place at once; where that
    meets its dispatch, it is as if it had not been dispatched: its flow is not charged, and another goes instead. Whatever is
    raised in the block, the request is completed. Where a request should be taken back from its server (`Revoke`), the block
    is cancelled as `asyncio.timeout` does it, and `QueueRevokedError` comes out of it.

    Errors of `admit`: `QueueRejectedError`, `QueueEvictedError` and `QueueRevokedError`, which know the client's status and headers; and
    what a policy raises, in the call that met it (in a timer it goes to the loop's exception handler, and is tried
    again after a second).

    For one event loop at a time, and called in it. Cost: some 20 us for one request, the controller's 7 in it.

    >>> import asyncio
    >>> from inferencesched.flowcontrol import FlowController, QueueItem
    >>> async def main():
    ...     controller = AsyncFlowController(FlowController())
    ...     async with controller.admit(QueueItem(request_id="r-1")) as admission:
    ...         admission.dispatched("ep-0")
    ...     return admission.ticket.outcome.value
    >>> asyncio.run(main())
    'completed'
    """

    __slots__ = ("_desk", "_due", "_loop", "_timer")

    def __init__(self, controller: Controller, clock: Callable[[], float] = time.monotonic) -> None:
        self._desk: Desk[AsyncAdmission] = Desk(controller, clock)
        self._loop: AbstractEventLoop | None = None
        self._timer: TimerHandle | None = None
        self._due = inf

    @property
    def controller(self) -> Controller:
        """Which controller is it around?"""
        return self._desk.controller

    def now(self) -> float:
        """What time is it? For deadlines, and for `explain`."""
        return self._desk.now()

    def __len__(self) -> int:
        """How many requests wait?"""
        return len(self._desk.waiting)

    def admit(self, item: QueueItem) -> AsyncAdmission:
        """Return what waits for a request's turn: ``async with controller.admit(item) as admission``."""
        return AsyncAdmission(self, item)

    async def serve(self, item: QueueItem, body: Callable[[AsyncAdmission], Awaitable[T]], *, requeues: int = 3) -> T:
        """Call `body` when a request's turn comes, and return its answer; again if it was taken back too early.

        Taken back before `Admission.streamed` was set, it waits again, where it was in its flow, up to `requeues` times.
        Errors: as of `admit`.
        """
        whole_number("requeues", requeues)
        admission = self.admit(item)
        while True:
            admission._again = requeues > 0
            try:
                async with admission:
                    return await body(admission)
            except QueueRevokedError:
                if not admission._requeued:
                    raise
            requeues -= 1

    def observe(self, endpoints: Endpoints) -> None:
        """Say what is known of the servers: whoever may go now goes."""
        self._desk.observe(endpoints)
        self._arm()

    def shutdown(self) -> None:
        """Let nobody in any more, and everybody out who waits, with `QueueEvictedError`; what is in flight may complete."""
        self._desk.shutdown()

    def explain(self, admission: AsyncAdmission) -> FlowExplanation:
        """Return why a request waits, or how it ended. Errors: `TicketError` for one that was never queued."""
        return self._desk.explain(admission)

    # -- inside ------------------------------------------------------------------------------------

    def _begun(self, admission: AsyncAdmission) -> bool:
        """Queue a request, or let it go on waiting that was taken back; return whether it has been let go already."""
        loop = get_running_loop()
        if loop is not self._loop:
            self._loop, self._timer, self._due = loop, None, inf
        if admission._requeued:
            return False
        if self._desk.submit(admission):
            return not admission._revoking
        self._arm()
        return False

    async def _turn_of(self, admission: AsyncAdmission) -> None:
        """Wait until a request has been let go, or raise how it was refused."""
        ticket, admission._requeued = admission.ticket, False
        if ticket.outcome is None:
            loop = self._loop
            assert loop is not None  # it has begun
            admission._future = loop.create_future()
            try:
                await admission._future
            except BaseException:
                self._desk.leave(admission)
                self._arm()
                raise
            finally:
                admission._future = None
        if admission._revoking:  # between its dispatch and now
            self._settle(admission, stopped=True, requeue=True)
            raise admission._refusal()
        if ticket.number not in self._desk.flying:
            raise admission._refusal()

    def _settle(self, admission: AsyncAdmission, *, stopped: bool = False, requeue: bool = False) -> None:
        try:
            self._desk.settle(admission, stopped=stopped, requeue=requeue)
        finally:
            self._arm()

    def _placed(self, admission: AsyncAdmission, endpoint: str) -> None:
        self._desk.placed(admission, endpoint)
        self._arm()

    def _arm(self) -> None:
        """See to it that the controller steps when it has something to do by itself."""
        loop, desk = self._loop, self._desk
        if not desk.waiting or loop is None or loop.is_closed():
            return
        now = desk.now()
        at = desk.controller.next_wakeup(now)
        if at is not None and at < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = at
            self._timer = loop.call_at(at + (loop.time() - now), self._ring)

    def _ring(self) -> None:
        """Step when the time has come. The timer may be of a request that has gone meanwhile, or a moment early."""
        self._timer, self._due = None, inf
        try:
            self._desk.on_time()
        except BaseException:
            loop = self._loop
            assert loop is not None  # it has called this
            self._due = self._desk.now() + _AGAIN
            self._timer = loop.call_later(_AGAIN, self._ring)
            raise
        self._arm()
