"""How does a gateway wait for a decision in an event loop?

A shell of one future a request that waits, and one timer for the time that `Director.next_wakeup` names: no task of its own, no
polling. It brings the director its clock and its generator.
"""

import time
from asyncio import AbstractEventLoop, Future, Handle, TimerHandle, get_running_loop
from collections.abc import Callable, Collection, Mapping
from typing import Final, final

import numpy as np

from inferencesched.director.decision import Decision
from inferencesched.director.director import Director
from inferencesched.director.life import RequestLife

#: Seconds until a timer tries again after a plug-in has raised in it.
_AGAIN: Final = 1.0


@final
class AsyncDirector:
    """How does a request wait for its decision?

    Parameters
    ----------
    director: nobody else calls it meanwhile, but for looking at it.
    rng: its only source of chance.
    clock: seconds, never going back; the clock of every `now` of a life (`now`).
    on_revoke: told of each life whose place at its server is wanted; stop it and say `RequestLife.revoked`.

    For one event loop at a time, and called in it. A request that may go at once goes without a future. One whose task is cancelled
    while it waits frees its place, its limits and its quotas at once; one that is cancelled in the moment of its release ends as
    cancelled. Cost: some 10 us for a request that waits, beside the director's.

    >>> import asyncio
    >>> from inferencesched import InferencePool, Scheduler, default_profile
    >>> from inferencesched.director import Director, ServingPool
    >>> pool = InferencePool()
    >>> pool.join("ep-0")
    >>> async def main():
    ...     shell = AsyncDirector(Director({"llama": ServingPool(pool, Scheduler(default_profile()))}), np.random.default_rng(7))
    ...     decision = await shell.decide(b'{"model": "llama", "prompt": "Hello"}', {}, path="/v1/completions")
    ...     decision.life.complete(now=shell.now())
    ...     return decision.endpoint
    >>> asyncio.run(main())
    'ep-0'
    """

    __slots__ = ("_clock", "_due", "_last", "_loop", "_on_revoke", "_rng", "_soon", "_timer", "_waiting", "director")

    def __init__(
        self,
        director: Director,
        rng: np.random.Generator,
        clock: Callable[[], float] = time.monotonic,
        on_revoke: Callable[[RequestLife], object] | None = None,
    ) -> None:
        self.director = director
        self._rng = rng
        self._clock = clock
        self._on_revoke = on_revoke
        self._last = float("-inf")
        self._waiting: dict[str, Future[Decision]] = {}
        self._loop: AbstractEventLoop | None = None
        self._timer: TimerHandle | None = None
        self._due = float("inf")
        self._soon: Handle | None = None
        director.on_change = self._change

    def now(self) -> float:
        """What time is it? A clock that goes back stands still."""
        self._last = now = max(self._last, self._clock())
        return now

    def __len__(self) -> int:
        """How many requests wait?"""
        return len(self._waiting)

    async def decide(
        self,
        body: bytes,
        headers: Mapping[str, str],
        *,
        path: str = "/v1/chat/completions",
        claims: Mapping[str, object] | None = None,
        subset: Collection[str] | None = None,
    ) -> Decision:
        """Return the decision on a request, once there is one. Arguments as of `Director.decide`."""
        loop = get_running_loop()
        if loop is not self._loop:
            self._loop, self._timer, self._due, self._soon = loop, None, float("inf"), None
        answer = self.director.decide(
            body, headers, now=self.now(), rng=self._rng, path=path, claims=claims, subset=subset
        )
        if isinstance(answer, Decision):
            self._arm()
            return answer
        future: Future[Decision] = loop.create_future()
        self._waiting[answer.request_id] = future
        self._arm()
        try:
            return await future
        except BaseException:
            self._waiting.pop(answer.request_id, None)
            if self.director.cancel(answer.ticket, self.now()) is None and future.done() and not future.cancelled():
                life = future.result().life
                if life is not None:  # it went in the moment in which its client did
                    life.cancel(now=self.now())
            raise

    def retry(self, life: RequestLife, failure: str) -> Decision:
        """Try another endpoint after a failure, or say that it is not tried: `Director.retry` at this moment."""
        return self.director.retry(life, failure, now=self.now(), rng=self._rng)

    def observe(self, pool: str) -> None:
        """Tell a pool's queue that its servers were observed: whoever may go now goes."""
        self.director.observe(pool, self.now())

    def shutdown(self) -> None:
        """Let nobody in any more, and answer everybody who waits; what is at a server may end."""
        self._answer(self.director.shutdown(self.now()))

    # -- inside --------------------------------------------------------------------------------------

    def _change(self) -> None:
        """Step in this turn of the loop, once for all that happens in it."""
        if self._waiting and self._soon is None and self._loop is not None and not self._loop.is_closed():
            self._soon = self._loop.call_soon(self._step)

    def _step(self) -> None:
        self._soon = None
        self._answer(self.director.step(self.now(), self._rng))
        self._arm()

    def _answer(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            future = self._waiting.pop(decision.request_id, None)
            if future is not None and not future.done():
                future.set_result(decision)
            elif decision.life is not None:  # its client went in the same turn of the loop
                decision.life.cancel(now=self.now())
        if self._on_revoke is not None:
            for life in self.director.revocations():
                self._on_revoke(life)

    def _arm(self) -> None:
        """See to it that the director steps when it has something to do by itself."""
        loop = self._loop
        if not self._waiting or loop is None or loop.is_closed():
            return
        now = self.now()
        at = self.director.next_wakeup(now)
        if at is not None and at <= now:
            self._change()
        elif at is not None and at < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = at
            self._timer = loop.call_at(at + (loop.time() - now), self._ring)

    def _ring(self) -> None:
        """Step when the time has come; where a plug-in raises, again in a second, and the loop's exception handler is told."""
        self._timer, self._due = None, float("inf")
        try:
            self._step()
        except BaseException:
            loop = self._loop
            assert loop is not None  # it has called this
            self._due = self.now() + _AGAIN
            self._timer = loop.call_later(_AGAIN, self._ring)
            raise
