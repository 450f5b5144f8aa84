"""What may be chosen of how the queue works, beside fairness and ordering?

Protocols that the controller calls, and the plainest policy of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from inferencesched.endpoints import Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.flows import Band, FlowQueue, QueueItem, Ticket
from inferencesched.flowcontrol.queue import FifoQueue
from inferencesched.request import Usage


class Gate(Protocol):
    """How full is the pool, as far as is known now? 1.0 is full."""

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Learn what the servers say."""
        ...

    def level(self, now: float) -> float:
        """Return the saturation; dispatches since the last observation count."""
        ...

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """A request went; `Ticket.endpoint` may be known later (`FlowController.dispatched`)."""
        ...

    def finished(self, ticket: Ticket, now: float) -> None:
        """A dispatched request has ended, whichever way."""
        ...


@runtime_checkable
class RequestAwareGate(Protocol):
    """May this very request go? Optional, beside `Gate`: where a subset of the servers is full, and others are not."""

    def admits(self, ticket: Ticket, ceiling: float, now: float) -> bool:
        """Return whether the servers that could take it are below the ceiling."""
        ...


@runtime_checkable
class PlacedGate(Protocol):
    """Which server did a request go to? Optional, beside `Gate`: for gates that count server by server."""

    def placed(self, ticket: Ticket, now: float) -> None:
        """A dispatched request has been given to `Ticket.endpoint`; called by `FlowController.dispatched`."""
        ...


class UsageLimitPolicy(Protocol):
    """Up to which saturation may each band dispatch?"""

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """Return a ceiling for each priority, greatest priority first; a band goes while the saturation is below its own."""
        ...


class BandPolicy(Protocol):
    """Which band goes next, of those that may and have something waiting?"""

    def pick(self, bands: Sequence[Band], now: float) -> Band:
        """Return one of `bands`; they come with the greatest priority first, and there is at least one."""
        ...

    def served(self, band: Band, cost: float, now: float) -> None:
        """One of the band's requests was dispatched for this cost."""
        ...


class Reclaimer(Protocol):
    """Whom to take back from the servers for a band that is kept waiting?"""

    def reclaim(
        self, band: Band, level: float, ceiling: float, inflight: Mapping[int, Ticket], now: float
    ) -> Sequence[Ticket]:
        """Return who should be revoked now: tickets in flight that were not revoked before, unless that `failed`."""
        ...

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """A request went to a server."""
        ...

    def failed(self, ticket: Ticket, now: float) -> None:
        """A server would not stop working on a request that was to be revoked."""
        ...

    def finished(self, ticket: Ticket, now: float) -> None:
        """A dispatched request has ended: revoked, completed, or lapsed."""
        ...

    def next_wakeup(self, now: float) -> float:
        """Return when it may have something to say again; inf for never."""
        ...


class CostModel(Protocol):
    """What is a flow charged for a request?"""

    def estimate(self, item: QueueItem) -> float:
        """Return what it is charged when it is dispatched."""
        ...

    def actual(self, item: QueueItem, usage: Usage) -> float:
        """Return what it came to cost, as the server counts it."""
        ...


@dataclass(frozen=True, slots=True)
class FirstCome:
    """Who came first? llm-d's ``fcfs-ordering-policy``."""

    def queue(self) -> FlowQueue:
        """Return the empty queue of one flow."""
        return FifoQueue()


@dataclass(frozen=True, slots=True)
class OpenGate:
    """What if nothing is ever full? Then everything goes at once, in order."""

    def observe(self, endpoints: Endpoints, now: float) -> None:
        """Learn nothing."""

    def level(self, now: float) -> float:
        """Return that the pool is empty of work."""
        return 0.0

    def dispatched(self, ticket: Ticket, now: float) -> None:
        """Note nothing."""

    def finished(self, ticket: Ticket, now: float) -> None:
        """Note nothing."""


@dataclass(frozen=True, slots=True)
class StaticLimit:
    """Is the ceiling the same for all bands? llm-d's ``static-usage-limit-policy``."""

    ceiling: float = 1.0

    def __post_init__(self) -> None:
        if not self.ceiling > 0:
            raise InvalidInputError("ceiling", self.ceiling, "a number above 0")

    def ceilings(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """Return one ceiling for all."""
        return [self.ceiling] * len(priorities)


@dataclass(frozen=True, slots=True)
class StrictBands:
    """Does the greatest priority always go first? A lower band goes only when no higher one has anything that may."""

    def pick(self, bands: Sequence[Band], now: float) -> Band:
        """Return the first."""
        return bands[0]

    def served(self, band: Band, cost: float, now: float) -> None:
        """Note nothing."""


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What does a token cost? ``prompt`` an input token, ``output`` an output token: 1 and 2, as VTC has it.

    ``cached`` is what an input token costs that the server says it had cached; None is as much as any other. Let it be 0 beside
    `DeficitLongestPrefix`, which charges no cached tokens.

    Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). A request without any tokens costs 1.
    """

    prompt: float = 1.0
    output: float = 2.0
    cached: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("prompt", self.prompt), ("output", self.output), ("cached", self.cached)):
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidInputError(name, value, "a finite number of at least 0")

    def estimate(self, item: QueueItem) -> float:
        """Return the cost of the tokens that are known and expected."""
        return self.prompt * item.input_tokens + self.output * item.output_tokens or 1.0

    def actual(self, item: QueueItem, usage: Usage) -> float:
        """Return the cost of the tokens that the server counted; what it did not count is as expected."""
        prompt = item.input_tokens if usage.input_tokens is None else usage.input_tokens
        output = item.output_tokens if usage.output_tokens is None else usage.output_tokens
        cost = self.prompt * prompt + self.output * output
        if self.cached is not None and usage.cached_tokens:
            cost += (self.cached - self.prompt) * min(usage.cached_tokens, prompt)
        return cost or 1.0
