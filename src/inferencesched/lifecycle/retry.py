"""May a request that failed at one server be tried at another?

Only before the client has seen a byte of an answer: after that, two answers would be mixed. And only while that helps: retries are a
bounded share of requests, so that an outage does not double the load on what is left.
"""

from collections.abc import Collection
from math import inf
from typing import Final, final

from inferencesched.errors import InvalidInputError, whole_number

#: Failures after which another server may do better. Words of the gateway's; any other is final.
RETRYABLE: Final = frozenset({"connect", "reset", "timeout", "unavailable", "overloaded", "endpoint_left"})
#: Failures at which no server has had the request: trying another one adds no load, and costs nothing of the budget.
FREE: Final = frozenset({"connect"})


@final
class RetryPolicy:
    """When is another endpoint tried?

    Parameters
    ----------
    attempts: at most, the first one included.
    budget: retries a request on average, in the long run; None is no limit.
    burst: retries that may be made at once beyond that.
    retryable: the failures that are worth it.
    free: those that cost nothing of the budget.

    The budget is a token bucket that requests fill and retries empty: with 0.2, an outage adds at most a fifth to the load.
    Deciding changes nothing; `spent` says that one was made, `asked` that a request came. Source of the budget: the retry budgets of
    Finagle and Linkerd.

    >>> policy = RetryPolicy(attempts=3)
    >>> policy.may_retry(attempt=1, first_byte_sent=False, idempotent=True, failure="connect", now=0.0)
    True
    >>> policy.may_retry(attempt=1, first_byte_sent=True, idempotent=True, failure="connect", now=0.0)
    False
    """

    __slots__ = ("_tokens", "attempts", "budget", "burst", "free", "retryable")

    def __init__(
        self,
        attempts: int = 3,
        *,
        budget: float | None = 0.2,
        burst: float = 10.0,
        retryable: Collection[str] = RETRYABLE,
        free: Collection[str] = FREE,
    ) -> None:
        self.attempts = whole_number("attempts", attempts, 1)
        if budget is not None and not 0 <= budget < inf:
            raise InvalidInputError("budget", budget, "retries a request of at least 0, or None")
        if not 0 <= burst < inf:
            raise InvalidInputError("burst", burst, "a finite number of at least 0")
        self.budget = budget
        self.burst = burst
        self.retryable = frozenset(retryable)
        self.free = frozenset(free)
        self._tokens = float(burst)

    @property
    def left(self) -> float:
        """How many retries may be made now?"""
        return inf if self.budget is None else self._tokens

    def may_retry(self, *, attempt: int, first_byte_sent: bool, idempotent: bool, failure: str, now: float) -> bool:
        """Return whether a request whose `attempt` (from 1 on) failed may be tried elsewhere; changes nothing."""
        if first_byte_sent or not idempotent or attempt >= self.attempts or failure not in self.retryable:
            return False
        return self.budget is None or failure in self.free or self._tokens >= 1.0

    def asked(self, now: float) -> None:
        """Say that a request came: it earns its part of a retry."""
        if self.budget is not None:
            self._tokens = min(self.burst, self._tokens + self.budget)

    def spent(self, now: float, failure: str) -> None:
        """Say that a retry was made, after that failure."""
        if self.budget is not None and failure not in self.free:
            self._tokens -= 1.0
