"""When is a request sent, and where, if it can wait at the gateway until a server is about to be free?"""

from collections.abc import Callable
from functools import cache
from math import isfinite, nan
from typing import Any, Final, NamedTuple, final

import numpy as np
from sortedcontainers import SortedKeyList

from inferencesched._kernels import marginal as kernels
from inferencesched._kernels._compile import entry
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
from inferencesched.errors import InvalidInputError, UnknownNameError, finite_time, whole_number
from inferencesched.framework import CycleState, ProfileResult, SchedulingResult, Target
from inferencesched.marginal.cost import MarginalCost
from inferencesched.marginal.explain import BindingExplanation, CostParts
from inferencesched.members import Membership
from inferencesched.pool import InferencePool
from inferencesched.producers.forecast import TimingModel
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Reservation, Settlement
from inferencesched.scheduler import DEFAULT_PROFILE, Scheduler

#: How fast running means forget: about the last hundred requests count.
_FORGET: Final = 0.01


class Held:
    """Who waits, since when (seconds), and what was known of its prefix when that was asked last?"""

    __slots__ = (
        "allowed",
        "asked",
        "best",
        "cached",
        "key",
        "least",
        "members",
        "number",
        "prompt",
        "receipts",
        "request",
        "since",
    )

    def __init__(self, request: InferenceRequest, since: float, number: int) -> None:
        self.request = request
        self.since = since
        self.number = number
        self.key = 0.0
        self.asked = nan
        self.members: Membership | None = None  # of whom it was asked
        self.least = self.best = 0.0
        self.prompt = float(request.prompt_tokens or 0)
        self.cached: FloatArray = np.zeros(0)
        self.allowed: BoolArray = np.zeros(0, dtype=np.bool_)
        self.receipts: tuple[object, ...] = ()


class Sent(NamedTuple):
    """Which request goes where now? ``order`` is its place in the engine's line, for engines that take priorities: least first."""

    request: InferenceRequest
    reservation: Reservation
    order: float
    waited: float


class _Books:
    """What has each server of ours still to compute, by slot? Rows of the kernel's, and the reservations behind them."""

    __slots__ = ("pending", "rows")

    def __init__(self) -> None:
        self.rows: FloatArray = np.zeros((4, 8))
        self.rows[kernels.STAY] = -1.0
        self.pending: list[list[tuple[Reservation, float]]] = [[] for _ in range(8)]

    def room(self, slots: int) -> None:
        """See to it that there is room for so many slots."""
        have = self.rows.shape[1]
        if slots > have:
            more = np.zeros((4, max(slots, 2 * have) - have))
            more[kernels.STAY] = -1.0
            self.rows = np.ascontiguousarray(np.concatenate([self.rows, more], axis=1))
            self.pending += [[] for _ in range(more.shape[1])]

    def revise(self, slot: int, generation: int, queued: float, now: float) -> None:
        """Strike out whose first token came, or who ended; `queued` is what the pool says is in flight there."""
        row = self.rows[:, slot]
        left, ends = [], [row[kernels.ANCHOR]]
        for pair in self.pending[slot]:
            reservation = pair[0]
            first = reservation.first_token_at
            if reservation.generation != generation:
                continue
            if first == first:
                ends.append(first)
            elif reservation.settlement is not None:
                ends.append(now)
            else:
                left.append(pair)
        self.pending[slot] = left
        row[kernels.PENDING] = sum(took for _, took in left)
        row[kernels.ANCHOR] = max(ends)
        row[kernels.TOKENS] = queued
        row[kernels.STAY] = generation

    def add(self, slot: int, reservation: Reservation, took: float, now: float) -> None:
        """Enter somebody who was just sent there."""
        row = self.rows[:, slot]
        if not self.pending[slot]:
            row[kernels.ANCHOR] = now
        self.pending[slot].append((reservation, took))
        row[kernels.PENDING] += took
        row[kernels.TOKENS] += reservation.tokens


@final
class LateBinder:
    """Which of the requests that wait should go now, and where?

    Requests wait in order of ``n + patience * since`` (n: tokens that the best server would have to compute; ms), so that short ones go first and
    nobody starves. At every `step` the first `window` of them are planned together, each where `cost` is least given those before it:
    the longest first while few wait, the shortest first in a backlog. Those whose server has not much left to compute, and
    room for their KV cache, are sent, in the order in which they wait; the others are planned again later. Not much is `width` mean prompts, or, where
    prompts are short, `slack` times the tokens that cost as much as beginning a pass does: what rides along there is nearly free.

    Parameters
    ----------
    scheduler: whose producers know the prefixes, and whose (single) profile's filters say who may; its scorers and picker have no say.
    timing: how long the servers' passes take. A step time whose prefill is half the truth costs some 10 % of p90 TTFT.
    max_tokens, kv_tokens: of a pass, and of a server's KV cache where a server does not say (``KV_BLOCKS``).
    refresh: seconds for which a prefix match is taken to be as it was. output: tokens an answer has until some have ended.

    The caller submits, steps at arrivals, first tokens and ends (`step` is cheap when nobody waits), sends what it is told, and
    settles the reservations. Time is the caller's, in seconds; nothing is drawn by chance but ties of none. Not safe from several threads
    at once. Cost: some 40 us a request where it is sent at once, and a plan of the window at each step in which somebody waits.

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
        slack: float = 8.0,
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
        self._most = float(max_tokens)
        self.kind, self._timing = timing.parameters()
        self._weights = self.cost.weights()
        self._fixed = kernels.fixed_tokens(self.kind, self._timing)
        self._filters = next(iter(scheduler.profiles.values())).filters
        self._held: SortedKeyList[Held, tuple[float, int]] = SortedKeyList(key=lambda held: (held.key, held.number))
        self._by_name: dict[str, Held] = {}
        self._fresh: list[Held] = []  # submitted since the last step: their prefixes are not known yet
        self._books = _Books()
        self._count = 0
        self._known: tuple[Membership, BoolArray] | None = None  # whose endpoints these are, and all of them
        #: Running means: tokens of an answer, tokens of a prompt that had to be computed, share of prompts that was cached.
        self.output, self.uncached, self.reuse = output, nan, 0.0
        self._doubtful, self._observe, self._cost_of, self._plan = _compiled()

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
            if not self._held and len(self._fresh) == 1:  # the only one: it need not be put in line to be looked at
                held = self._fresh[0]
                self._ask(held, endpoints, now)
                w, took = self._cheapest(held, state)
                if w >= 0 and not self._waits_for(held, w, state, self._widest([held])):
                    sent.append(self._go(held, w, took, pool, endpoints, state, now))
                else:
                    self._held.add(held)
                self._fresh.pop()
                return sent
            while self._fresh:
                held = self._fresh[0]
                self._ask(held, endpoints, now)
                self._fresh.pop(0)
                self._held.add(held)
            went: list[Held] = []
            try:
                while self._held and self._send(pool, endpoints, state, now, sent, went):
                    pass
            except BaseException:
                # who was booked in this step is told to nobody: as if it had not been
                for held, each in zip(reversed(went), reversed(sent), strict=True):
                    pool.withdraw(each.reservation)
                    self._by_name[held.request.request_id] = held
                    self._held.add(held)
                raise
        return sent

    def explain(self, request_id: str, pool: InferencePool, *, now: float) -> BindingExplanation:
        """Why does this request wait, and what would it cost at each server now? Changes nothing that decides.

        Errors: `UnknownNameError` for a request that does not wait.
        """
        finite_time(now)
        held = self._by_name.get(request_id)
        if held is None:
            raise UnknownNameError("request_id", request_id, list(self._by_name))
        with pool.lock:
            endpoints = pool.snapshot()
            state = self._state(endpoints, now)
            seen = Held(held.request, held.since, held.number)
            self._ask(seen, endpoints, now)
        most = self._widest([seen])
        servers, parts = [], np.empty(5)
        for w, (name, allowed) in enumerate(zip(endpoints.names, seen.allowed.tolist(), strict=True)):
            kernels.parts_at(
                self.kind, self._timing, self._most, self._weights, self.output, self.reuse, seen.prompt,
                float(seen.cached[w]), seen.best, state, w, parts,
            )  # fmt: skip
            why = self._waits_for(seen, w, state, most) if allowed else "filters"
            own, stall, decode, duplicate, barrier = parts.tolist()
            servers.append(
                CostParts(
                    name,
                    own,
                    stall,
                    decode,
                    duplicate,
                    barrier,
                    int(seen.cached[w]),
                    int(state[kernels.QUEUED, w]),
                    why,
                )
            )
        servers.sort(key=lambda each: (each.waits_for == "filters", each.cost))
        ahead = sum(other.key < seen.key for other in self._held)
        return BindingExplanation(request_id, now - held.since, seen.key, ahead, tuple(servers))

    # -- one round ----------------------------------------------------------------------------------------

    def _send(
        self,
        pool: InferencePool,
        endpoints: Endpoints,
        state: FloatArray,
        now: float,
        sent: list[Sent],
        went: list[Held],
    ) -> bool:
        """Plan those who wait longest by their key, and book those of them who may go; return whether anybody did."""
        before = len(sent)
        first: list[Held] = list(self._held[: self.window])
        for held in first:
            if held.members is not endpoints.members or now - held.asked > self.refresh:
                self._held.remove(held)
                self._ask(held, endpoints, now)
                self._held.add(held)
        targets = [self._cheapest(first[0], state)[0]] if len(first) == 1 else self._planned(first, state)
        most = self._widest(first)
        for held, w in zip(
            first, targets, strict=True
        ):  # in the order of the key: whoever waited long is short by then
            if w >= 0 and not self._waits_for(held, w, state, most):
                took = self._passes(held.prompt, float(held.cached[w]), state[:, w])
                sent.append(self._go(held, w, took, pool, endpoints, state, now))
                self._held.remove(held)
                went.append(held)
        return len(sent) > before

    def _widest(self, first: list[Held]) -> float:
        """Return how many prompt tokens a server may still have to compute when it is sent one more prompt."""
        usual = self.uncached if self.uncached == self.uncached else sum(held.least for held in first) / len(first)
        return max(self.width * usual, self.slack * self._fixed)

    def _waits_for(self, held: Held, w: int, state: FloatArray, most: float) -> str:
        """Return what a request would have to wait for at a server; nothing where it may go."""
        if state[kernels.QUEUED, w] > most:
            return "prefill"
        after = state[kernels.BLOCKS, w] + held.prompt + self.output
        return "kv" if after > state[kernels.ROOM, w] and state[kernels.REQUESTS, w] > 0 else ""

    def _cheapest(self, held: Held, state: FloatArray) -> tuple[int, float]:
        """Return where one request costs least, -1 for nowhere, and how long its passes take there, ms."""
        out = np.empty((2, state.shape[1]))
        least: int = self._cost_of(
            self.kind, self._timing, self._most, self._weights, self.output, self.reuse, held.prompt, held.cached,
            state, held.allowed, out[0], out[1],
        )  # fmt: skip
        return least, float(out[1, least]) if least >= 0 else 0.0

    def _planned(self, first: list[Held], state: FloatArray) -> list[int]:
        """Return where each would go, all seen together."""
        least = np.array([held.least for held in first])
        order = np.argsort(least, kind="stable")
        if len(self._held) <= 2 * state.shape[1]:
            order = np.ascontiguousarray(order[::-1])
        target = np.empty(len(first), dtype=np.int64)
        self._plan(
            self.kind, self._timing, self._most, self._weights, self.output, self.reuse,
            np.array([held.prompt for held in first]), np.array([held.cached for held in first]),
            np.array([held.allowed for held in first]), state.copy(), order, target,
        )  # fmt: skip
        targets: list[int] = target.tolist()
        return targets

    def _go(
        self, held: Held, w: int, took: float, pool: InferencePool, endpoints: Endpoints, state: FloatArray, now: float
    ) -> Sent:
        """Book one request at one server; who calls takes it out of the line, once it is booked."""
        request, prompt, cached = held.request, held.prompt, float(held.cached[w])
        name, (slot, generation), address = endpoints.identity(w)
        target = Target(name, slot, generation, 1.0, max(0, int(prompt - cached)), address)
        profiles = {DEFAULT_PROFILE: ProfileResult((target,))}
        result = SchedulingResult(request, DEFAULT_PROFILE, profiles, endpoints.version, held.receipts)
        reservation = self.scheduler.reserve(result, pool, now=now)
        reservation.listeners = (*reservation.listeners, self._settled)
        self._books.add(slot, reservation, took, now)
        kernels.book(state, w, prompt, cached, self.output, took)
        del self._by_name[request.request_id]
        uncached = prompt - cached
        before = self.uncached
        self.uncached = uncached if before != before else before + _FORGET * (uncached - before)
        share = held.best / prompt if prompt else 0.0
        self.reuse += _FORGET * (min(1.0, share) - self.reuse)
        return Sent(request, reservation, held.key, now - held.since)

    def _passes(self, prompt: float, cached: float, state: FloatArray) -> float:
        """Return how long a server's passes for a prompt take, ms."""
        return kernels.added_ms(
            self.kind, self._timing, self._most, max(1.0, prompt - cached), cached, state[kernels.QUEUED],
            state[kernels.CONTEXT], state[kernels.REQUESTS], state[kernels.ROOM],
        )  # fmt: skip

    def _settled(self, settlement: Settlement) -> None:
        """Learn how long answers are."""
        tokens = settlement.output_tokens if settlement.usage is None else settlement.usage.output_tokens
        if settlement.outcome == "completed" and tokens:
            self.output += _FORGET * (tokens - self.output)

    # -- what is known --------------------------------------------------------------------------------------

    def _ask(self, held: Held, endpoints: Endpoints, now: float) -> None:
        """Find out where a request's prefix is, and who may take it."""
        cycle = CycleState(now, _NO_CHANCE, endpoints.sequence)
        held.allowed = self._everybody(endpoints)
        if len(self.scheduler.producers) == 1 and not self._filters:
            produced = self.scheduler.producers[0].produce(held.request, endpoints, cycle)
            column, held.receipts = produced.columns[PREFIX_TOKENS], (produced.receipt,)
        else:
            told, held.receipts = self.scheduler.produce(held.request, endpoints, cycle)
            column, kept = told[PREFIX_TOKENS], told
            for plugin in self._filters:
                kept = kept.where(plugin.filter(held.request, kept, cycle))
            if len(kept) < len(endpoints):
                held.allowed = np.isin(endpoints.slots, kept.slots)
        held.cached = np.fmin(np.fmax(column, 0.0), held.prompt)  # unknown is nothing
        held.asked, held.members = now, endpoints.members
        if held.allowed is self._everybody(endpoints):
            held.best = float(held.cached.max())
        else:
            held.best = float(held.cached.max(where=held.allowed, initial=0.0))
        held.least = max(1.0, held.prompt - held.best)
        held.key = held.least + self.patience * held.since * 1e3

    def _everybody(self, endpoints: Endpoints) -> BoolArray:
        """Return ``bool[E]``, all of them; the same array as long as they are the same."""
        if self._known is None or self._known[0] is not endpoints.members:
            self._known = (endpoints.members, np.ones(len(endpoints), dtype=np.bool_))
        return self._known[1]

    def _state(self, endpoints: Endpoints, now: float) -> FloatArray:
        """Return what the servers have to do, ``float64[6, E]``."""
        slots, generations, queued = endpoints.slots, endpoints.generations, endpoints[INFLIGHT_TOKENS]
        if self._known is None or self._known[0] is not endpoints.members:
            self._books.room(int(slots.max()) + 1)
            self._everybody(endpoints)
        state = np.empty((6, len(endpoints)))
        doubted = np.empty(len(endpoints), dtype=np.int64)
        books = self._books
        for w in doubted[: self._doubtful(queued, slots, generations, books.rows, doubted)].tolist():
            books.revise(int(slots[w]), int(generations[w]), float(queued[w]), now)
        self._observe(
            endpoints[INFLIGHT_REQUESTS], endpoints[CONTEXT_TOKENS], queued, endpoints[KV_BLOCKS],
            endpoints[KV_BLOCK_SIZE], slots, books.rows, now, self.output, float(self.kv_tokens), state,
        )  # fmt: skip
        return state


#: Prefixes are looked up, not drawn.
_NO_CHANCE: Final = np.random.default_rng(0)


@cache
def _compiled() -> tuple[Callable[..., Any], ...]:
    """Return the kernels for arrays as they come here: `doubtful`, `observe`, `costs` and `plan`."""
    row, state = np.zeros(2), np.zeros((6, 2))
    slots, numbers, mask = np.zeros(2, dtype=np.intp), np.zeros(2, dtype=np.int64), np.ones(2, dtype=np.bool_)
    one = 1.0
    many = np.zeros((2, 2))
    return (
        entry(kernels.doubtful, row, slots, numbers, state, numbers),
        entry(kernels.observe, row, row, row, row, row, slots, state, one, one, one, state),
        entry(kernels.costs, 1, row, one, row, one, one, one, row, state, mask, row, row),
        entry(kernels.plan, 1, row, one, row, one, one, row, many, many > 0, state, numbers, numbers),
    )
