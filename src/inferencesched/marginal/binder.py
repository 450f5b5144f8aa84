"""When is a request sent, and where, if it can wait at the gateway until a server is about to be free?"""

from collections.abc import Callable
from functools import cache
from math import isfinite, nan
from typing import Any, Final, NamedTuple, final

import numpy as np
from sortedcontainers import SortedKeyList

from inferencesched._kernels import marginal as kernels
from inferencesched._typing import BoolArray, FloatArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    PREFIX_TOKENS,
    Endpoints,
)
from inferencesched.errors import InvalidInputError, finite_time, whole_number
from inferencesched.framework import CycleState, ProfileResult, SchedulingResult, Target
from inferencesched.marginal.cost import MarginalCost
from inferencesched.members import Membership
from inferencesched.normalize import known
from inferencesched.pool import InferencePool
from inferencesched.producers.forecast import TimingModel
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Reservation, Settlement
from inferencesched.scheduler import DEFAULT_PROFILE, Scheduler

#: How fast running means forget: about the last hundred requests count.
_FORGET: Final = 0.01


class Held:
    """Who waits, since when (seconds), and what was known of its prefix when that was asked last?"""

    __slots__ = ("allowed", "asked", "cached", "key", "least", "members", "number", "receipts", "request", "since")

    def __init__(self, request: InferenceRequest, since: float, number: int) -> None:
        self.request = request
        self.since = since
        self.number = number
        self.key = 0.0
        self.asked = nan
        self.members: Membership | None = None  # of whom it was asked
        self.least = 0.0
        self.cached: FloatArray = np.zeros(0)
        self.allowed: BoolArray = np.zeros(0, dtype=np.bool_)
        self.receipts: tuple[object, ...] = ()


class Sent(NamedTuple):
    """Which request goes where now? ``order`` is its place in the engine's line, for engines that take priorities: least first."""

    request: InferenceRequest
    reservation: Reservation
    order: float
    waited: float


class _Server:
    """What has one server of ours still to compute?"""

    __slots__ = ("anchor", "generation", "pending")

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.pending: list[tuple[Reservation, float]] = []  # until its first token; ms of passes
        self.anchor = 0.0  # since when the first of them is being computed, seconds

    def drain(self, now: float) -> float:
        """Return how long it will still take, ms."""
        left = [
            pair
            for pair in self.pending
            if pair[0].settlement is None and pair[0].first_token_at != pair[0].first_token_at
        ]
        if len(left) != len(self.pending):
            gone = [r for r, _ in self.pending if r.settlement is not None or r.first_token_at == r.first_token_at]
            ends = [r.first_token_at if r.first_token_at == r.first_token_at else now for r in gone]
            self.anchor = max(self.anchor, *ends)
            self.pending = left
        if not left:
            return 0.0
        return max(0.0, sum(took for _, took in left) - (now - self.anchor) * 1e3)


@final
class LateBinder:
    """Which of the requests that wait should go now, and where?

    Requests wait in order of ``n + patience * since`` (n: tokens that the best server would have to compute; ms), so that short ones go first and
    nobody starves. At every `step` the first `window` of them are planned together, each where `cost` is least given those before it:
    the longest first while few wait, the shortest first in a backlog. Those whose server has no more than `width` mean prompts (and
    `slack` tokens) left to compute, and room for their KV cache, are sent, in the order in which they wait; the others are planned again later.

    Parameters
    ----------
    scheduler: whose producers know the prefixes, and whose (single) profile's filters say who may; its scorers and picker have no say.
    timing: how long the servers' passes take. A step time whose prefill is half the truth costs some 10 % of p90 TTFT.
    max_tokens, kv_tokens: of a pass, and of a server's KV cache where a server does not say (``KV_BLOCKS``).
    refresh: seconds for which a prefix match is taken to be as it was. output: tokens an answer has until some have ended.

    The caller submits, steps at arrivals, first tokens and ends (`step` is cheap when nobody waits), sends what it is told, and
    settles the reservations. Time is the caller's, in seconds; nothing is drawn by chance but ties of none. Not safe from several threads
    at once. Cost: 25 us a request where it is sent at once, and a plan of the window at each step in which somebody waits.

    >>> from inferencesched import InferencePool, MaxScorePicker, SchedulingProfile
    >>> from inferencesched.prefix import ApproximatePrefixProducer
    >>> from inferencesched.simulator import timing
    >>> pool = InferencePool()
    >>> pool.join("a"); pool.join("b")
    >>> prefix = ApproximatePrefixProducer(block_size=64, seed=1)
    >>> scheduler = Scheduler(SchedulingProfile(MaxScorePicker()), producers=(prefix,))
    >>> binder = LateBinder(scheduler, timing("llama-3.1-8b-h100"))
    >>> for i, tokens in enumerate((8000, 500, 9000)):
    ...     binder.submit(InferenceRequest(request_id=f"r-{i}", input_tokens=tokens), now=0.0)
    >>> [(sent.request.request_id, sent.reservation.endpoint) for sent in binder.step(pool, now=0.0)]
    [('r-1', 'b'), ('r-0', 'b'), ('r-2', 'a')]
    """

    def __init__(
        self,
        scheduler: Scheduler,
        timing: TimingModel,
        cost: MarginalCost | None = None,
        *,
        window: int = 32,
        patience: float = 0.5,
        width: float = 1.0,
        slack: float = 0.0,
        max_tokens: int = 8_192,
        kv_tokens: int = 1_048_576,
        refresh: float = 0.05,
        output: float = 200.0,
    ) -> None:
        if len(scheduler.profiles) != 1:
            raise InvalidInputError("scheduler.profiles", list(scheduler.profiles), "one profile")
        for name, value in (
            ("patience", patience),
            ("width", width),
            ("slack", slack),
            ("refresh", refresh),
            ("output", output),
        ):
            if not (isfinite(value) and value >= 0):
                raise InvalidInputError(name, value, "a finite number of at least 0")
        self.scheduler: Final = scheduler
        self.cost: Final = MarginalCost() if cost is None else cost
        self.window: Final = whole_number("window", window, low=1)
        self.patience, self.width, self.slack, self.refresh = patience, width, slack, refresh
        self.max_tokens: Final = whole_number("max_tokens", max_tokens, low=1)
        self.kv_tokens: Final = whole_number("kv_tokens", kv_tokens, low=1)
        self.kind, self._timing = timing.parameters()
        self._weights = self.cost.weights()
        self._filters = next(iter(scheduler.profiles.values())).filters
        self._held: SortedKeyList[Held, tuple[float, int]] = SortedKeyList(key=lambda held: (held.key, held.number))
        self._by_name: dict[str, Held] = {}
        self._fresh: list[Held] = []  # submitted since the last step: their prefixes are not known yet
        self._servers: dict[int, _Server] = {}
        self._count = 0
        #: Running means: tokens of an answer, tokens of a prompt that had to be computed, share of prompts that was cached.
        self.output, self.uncached, self.reuse = output, nan, 0.0
        self._costs, self._plan, self._book = _kernels()

    def __len__(self) -> int:
        """How many wait?"""
        return len(self._by_name)

    def submit(self, request: InferenceRequest, *, now: float) -> None:
        """Have a request wait. Errors: `InvalidInputError` for an id that waits already, or a prompt of unknown length."""
        finite_time(now)
        if request.request_id in self._by_name:
            raise InvalidInputError("request_id", request.request_id, "the id of a request that does not wait already")
        if request.prompt_tokens is None:
            raise InvalidInputError("input_tokens", None, "a known length: what is not known cannot be planned")
        held = Held(request, now, self._count)
        self._count += 1
        self._by_name[request.request_id] = held
        self._fresh.append(held)

    def withdraw(self, request_id: str) -> bool:
        """Let somebody wait no more, who went away or may not; return whether it waited."""
        held = self._by_name.pop(request_id, None)
        if held is None:
            return False
        if held in self._fresh:
            self._fresh.remove(held)
        else:
            self._held.remove(held)
        return True

    def step(self, pool: InferencePool, *, now: float) -> list[Sent]:
        """Book those who should go now, and say where. Errors: those of the scheduler's producers; nobody is lost by one."""
        finite_time(now)
        if not self._by_name:
            return []
        sent: list[Sent] = []
        with pool.lock:
            endpoints = pool.snapshot()
            if not len(endpoints):
                return sent
            state = self._state(endpoints, now)
            while self._fresh:
                held = self._fresh[0]
                self._ask(held, endpoints, now)
                self._fresh.pop(0)
                self._held.add(held)
            while self._held:
                gone = self._send(pool, endpoints, state, now)
                sent += gone
                if not gone:
                    break
        return sent

    # -- one round ----------------------------------------------------------------------------------------

    def _send(self, pool: InferencePool, endpoints: Endpoints, state: FloatArray, now: float) -> list[Sent]:
        """Plan those who wait longest by their key, and book those of them who may go."""
        first: list[Held] = list(self._held[: self.window])
        for held in first:
            if held.members is not endpoints.members or now - held.asked > self.refresh:
                self._held.remove(held)
                self._ask(held, endpoints, now)
                self._held.add(held)
        prompts = np.array([float(held.request.prompt_tokens or 0) for held in first])
        least = np.array([held.least for held in first])
        shortest = np.argsort(least, kind="stable")
        longest_first = len(self._held) <= 2 * len(endpoints)
        order = np.ascontiguousarray(shortest[::-1]) if longest_first else shortest
        cached = np.array([held.cached for held in first])
        allowed = np.array([held.allowed for held in first])
        target = np.empty(len(first), dtype=np.int64)
        self._plan(
            self.kind, self._timing, float(self.max_tokens), self._weights, self.output, self.reuse,
            prompts, cached, allowed, state.copy(), order, target,
        )  # fmt: skip
        usual = self.uncached if self.uncached == self.uncached else float(least.mean())
        most = self.width * usual + self.slack
        sent = []
        for r in range(len(first)):  # in the order of the key: whoever waited long is short by then
            w = int(target[r])
            if w < 0 or state[kernels.QUEUED, w] > most:
                continue
            after = state[kernels.BLOCKS, w] + prompts[r] + self.output
            if after > state[kernels.ROOM, w] and state[kernels.REQUESTS, w] > 0:
                continue
            sent.append(self._go(first[r], w, pool, endpoints, state, now))
        return sent

    def _go(self, held: Held, w: int, pool: InferencePool, endpoints: Endpoints, state: FloatArray, now: float) -> Sent:
        """Book one request at one server."""
        request, prompt = held.request, float(held.request.prompt_tokens or 0)
        passes = kernels.prefill_ms(
            self.kind, self._timing, float(self.max_tokens), max(1.0, prompt - held.cached[w]), float(held.cached[w]),
            state[kernels.CONTEXT, w], state[kernels.REQUESTS, w], state[kernels.ROOM, w],
        )  # fmt: skip
        name, (slot, generation), address = endpoints.identity(w)
        target = Target(name, slot, generation, 1.0, max(0, int(prompt - held.cached[w])), address)
        result = SchedulingResult(
            request, DEFAULT_PROFILE, {DEFAULT_PROFILE: ProfileResult((target,))}, endpoints.version, held.receipts
        )
        reservation = self.scheduler.reserve(result, pool, now=now)
        reservation.listeners = (*reservation.listeners, self._settled)
        server = self._server(slot, generation)
        if not server.pending:
            server.anchor = now
        server.pending.append((reservation, passes))
        self._book(state, w, prompt, float(held.cached[w]), self.output, passes)
        del self._by_name[request.request_id]
        self._held.remove(held)
        uncached = prompt - float(held.cached[w])
        self.uncached = (
            uncached if self.uncached != self.uncached else self.uncached + _FORGET * (uncached - self.uncached)
        )
        share = float(held.cached[held.allowed].max()) / prompt if prompt else 0.0
        self.reuse += _FORGET * (min(1.0, share) - self.reuse)
        return Sent(request, reservation, held.key, now - held.since)

    def _settled(self, settlement: Settlement) -> None:
        """Learn how long answers are."""
        tokens = settlement.output_tokens if settlement.usage is None else settlement.usage.output_tokens
        if settlement.outcome == "completed" and tokens:
            self.output += _FORGET * (tokens - self.output)

    # -- what is known --------------------------------------------------------------------------------------

    def _ask(self, held: Held, endpoints: Endpoints, now: float) -> None:
        """Find out where a request's prefix is, and who may take it."""
        cycle = CycleState(now, _NO_CHANCE, endpoints.sequence)
        known_of, held.receipts = self.scheduler.produce(held.request, endpoints, cycle)
        prompt = float(held.request.prompt_tokens or 0)
        held.cached = np.minimum(known(known_of[PREFIX_TOKENS]), prompt)
        held.allowed = np.ones(len(endpoints), dtype=np.bool_)
        if self._filters:
            kept = known_of
            for plugin in self._filters:
                kept = kept.where(plugin.filter(held.request, kept, cycle))
            held.allowed = np.isin(endpoints.slots, kept.slots)
        held.asked, held.members = now, endpoints.members
        best = float(held.cached[held.allowed].max()) if held.allowed.any() else 0.0
        held.least = max(1.0, prompt - best)
        held.key = held.least + self.patience * held.since * 1e3

    def _state(self, endpoints: Endpoints, now: float) -> FloatArray:
        """Return what the servers have to do, ``float64[6, E]``."""
        state = np.empty((6, len(endpoints)))
        state[kernels.REQUESTS] = endpoints[INFLIGHT_REQUESTS]
        state[kernels.CONTEXT] = endpoints[CONTEXT_TOKENS]
        state[kernels.BLOCKS] = state[kernels.CONTEXT] + self.output * state[kernels.REQUESTS]
        state[kernels.QUEUED] = endpoints[INFLIGHT_TOKENS]
        room = endpoints[KV_BLOCKS] * endpoints[KV_BLOCK_SIZE]
        state[kernels.ROOM] = np.where(room > 0, room, float(self.kv_tokens))
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        state[kernels.DRAIN] = [self._server(slot, generation).drain(now) for slot, generation in stays]
        return state

    def _server(self, slot: int, generation: int) -> _Server:
        server = self._servers.get(slot)
        if server is None or server.generation != generation:
            server = self._servers[slot] = _Server(generation)
        return server


#: Prefixes are looked up, not drawn.
_NO_CHANCE: Final = np.random.default_rng(0)


@cache
def _kernels() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return kernels.costs, kernels.plan, kernels.book
