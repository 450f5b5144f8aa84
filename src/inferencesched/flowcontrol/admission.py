"""What do the shells have in common, whatever it is that waits in them?

A shell hands every call to the controller, and lets it step: always after a request came, after everything else where
something waits. What the step says it tells those whom it concerns. So the same calls at the same times are the same decisions,
by hand, in an event loop, or from threads.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from math import inf
from typing import Final, Generic, TypeVar

from inferencesched.endpoints import Endpoints
from inferencesched.errors import QueueRefusedError, TicketError
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.flowcontrol.events import Dispatch, Event, Rejection, Revoke
from inferencesched.flowcontrol.explain import FlowExplanation, explain
from inferencesched.flowcontrol.flows import QueueItem, Ticket
from inferencesched.flowcontrol.log import RecordedController
from inferencesched.flowcontrol.outcomes import QueueOutcome, refusal
from inferencesched.request import Usage

#: What a shell may be put around.
Controller = FlowController | RecordedController

_DISPATCHED: Final = QueueOutcome.DISPATCHED
#: Seconds after which a request that was taken back is worth another try: what is said where no rate is known.
_RETRY_REVOKED: Final = 1.0


class Admission:
    """What has a gateway in its hands of a request that was let go?

    ``ticket`` is its place in the controller, there once it was queued. The gateway says ``usage``, the tokens that the server
    counted, before the end of the block, where it knows them; and ``streamed``, once the client has seen a token: such a request
    is never served twice. For one block: who wants to be let in again asks again.
    """

    ticket: Ticket

    __slots__ = ("_again", "_asked", "_requeued", "_retry_after", "_revoking", "item", "streamed", "ticket", "usage")

    def __init__(self, item: QueueItem) -> None:
        self.item = item
        self.usage: Usage | None = None
        self.streamed = False
        self._asked = False
        self._again = False  # may it wait again, if it is taken back?
        self._requeued = False  # it was taken back, and waits again, or has been let go again
        self._revoking = False  # a server should stop working on it
        self._retry_after = inf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ticket if self._asked else self.item.request_id!r})"

    @property
    def revoked(self) -> bool:
        """Should the server stop working on it? Its place is wanted for somebody else."""
        return self._revoking

    @abstractmethod
    def dispatched(self, endpoint: str) -> None:
        """Say to which server it went. Errors: `TicketError` unless it is in flight."""

    @abstractmethod
    def _wake(self) -> None:
        """Let whoever waits for it go on: it was let go, or is refused."""

    @abstractmethod
    def _stop(self) -> None:
        """Let whoever is at work on it stop."""

    def _refusal(self) -> QueueRefusedError:
        """Return how the queue refused it."""
        outcome = self.ticket.outcome
        if outcome is None or outcome is _DISPATCHED or outcome is QueueOutcome.COMPLETED:
            outcome = QueueOutcome.REVOKED  # it was taken back, and waits again
        return refusal(outcome, self.item.request_id, retry_after=self._retry_after)


A = TypeVar("A", bound=Admission)


def _goes(ticket: Ticket) -> bool:
    """Is it in flight, as far as the controller knows?"""
    return ticket.outcome is _DISPATCHED


class Desk(Generic[A]):
    """Who waits for which ticket, and who has been let go? What the shells hand their calls to.

    It knows no waiting itself. Cost: some 2 us a request beside the controller's.
    """

    __slots__ = ("_clock", "_last", "controller", "flying", "waiting")

    def __init__(self, controller: Controller, clock: Callable[[], float]) -> None:
        self.controller = controller
        self._clock = clock
        self._last = -inf
        self.waiting: dict[int, A] = {}  # by the ticket's number
        self.flying: dict[int, A] = {}

    def now(self) -> float:
        """Return the time; a clock that goes back stands still."""
        now = self._clock()
        if now < self._last:
            return self._last
        self._last = now
        return now

    def submit(self, admission: A) -> bool:
        """Ask for a request; return whether it goes at once.

        Errors: a `QueueRejectedError` where it was not queued; what a policy raises, and then it does not wait.
        """
        if admission._asked:
            raise TicketError(f"request {admission.item.request_id!r} has been asked for before: ask for it anew")
        now = self.now()
        answer = self.controller.submit(admission.item, now)
        if isinstance(answer, Rejection):
            raise answer.error()
        admission._asked = True
        admission.ticket = answer
        self.waiting[answer.number] = admission
        try:
            self.tell(self.controller.step(now))
        except BaseException:
            self._give_up(admission, now)
            raise
        return answer.outcome is _DISPATCHED

    def step(self, now: float) -> None:
        """Let the controller step, where something waits."""
        if self.waiting:
            self.tell(self.controller.step(now))

    def tell(self, events: Iterable[Event]) -> None:
        """Tell everybody what concerns them. What nobody here waits for any more was given back before."""
        for event in events:
            number = event.ticket.number
            if isinstance(event, Dispatch):
                admission = self.waiting.pop(number, None)
                if admission is not None:
                    self.flying[number] = admission
                    admission._wake()
            elif isinstance(event, Revoke):
                admission = self.flying.get(number)
                if admission is not None and not admission._revoking:
                    admission._revoking, admission._retry_after = True, _RETRY_REVOKED
                    admission._stop()
            else:
                admission = self.waiting.pop(number, None)
                if admission is not None:
                    admission._retry_after = event.retry_after
                    admission._wake()

    def on_time(self) -> None:
        """Let the controller step, if its time has come."""
        now = self.now()
        at = self.controller.next_wakeup(now)
        if at is not None and at <= now:
            self.step(now)

    def leave(self, admission: A) -> None:
        """Take back a request whose client went while it waited. One that has just been let go is as if it never had been."""
        now = self.now()
        self._give_up(admission, now)
        self.step(now)

    def _give_up(self, admission: A, now: float) -> None:
        ticket = admission.ticket
        self.waiting.pop(ticket.number, None)
        self.flying.pop(ticket.number, None)
        if _goes(ticket):
            self._revoke(ticket, now, requeue=True)
        if ticket.waiting:
            self.controller.cancel(ticket, now)

    def _revoke(self, ticket: Ticket, now: float, *, requeue: bool) -> None:
        """Say that a server stopped; where a policy raises, the ticket has ended all the same."""
        try:
            self.controller.revoked(ticket, now=now, requeue=requeue)
        except BaseException:
            if _goes(ticket):
                self.controller.completed(ticket, now=now)
            elif ticket.waiting:
                self.controller.cancel(ticket, now)
            raise

    def settle(self, admission: A, *, stopped: bool = False, requeue: bool = False) -> None:
        """Say that a server is done with a request, or has stopped working on it because it should.

        With `requeue` a stopped one waits again, where that was asked for and its client has seen nothing of it.
        """
        ticket = admission.ticket
        self.flying.pop(ticket.number, None)
        if not _goes(ticket):
            return  # nobody said in time how it ended: it has lapsed
        now = self.now()
        if stopped:
            self._revoke(ticket, now, requeue=requeue and admission._again and not admission.streamed)
            if ticket.waiting:
                self.waiting[ticket.number] = admission
                admission._requeued, admission._revoking = True, False
        else:
            try:
                self.controller.completed(ticket, admission.usage, now=now)
            except BaseException:
                if _goes(ticket):  # a cost model that fails, or a usage that is none
                    self.controller.completed(ticket, now=now)
                raise
        self.step(now)

    def observe(self, endpoints: Endpoints) -> None:
        """Tell the controller what is known of the servers."""
        now = self.now()
        self.controller.observe(endpoints, now)
        self.step(now)

    def placed(self, admission: A, endpoint: str) -> None:
        """Tell the controller where a request went."""
        now = self.now()
        self.controller.dispatched(admission.ticket, endpoint, now)
        self.step(now)

    def explain(self, admission: A) -> FlowExplanation:
        """Say why a request waits, or how it ended."""
        if not admission._asked:
            raise TicketError(f"request {admission.item.request_id!r} was never queued")
        return explain(self.controller, admission.ticket, self.now())

    def shutdown(self) -> None:
        """Let nobody in any more, and everybody out who waits."""
        self.tell(self.controller.shutdown(self.now()))
