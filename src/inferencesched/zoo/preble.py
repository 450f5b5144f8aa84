"""Exploit the cache, or explore where load is least? Preble's E2, as a producer of each server's cost and a scorer."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    KV_BLOCK_SIZE,
    KV_BLOCKS,
    PREFIX_TOKENS,
    Endpoints,
    Signal,
)
from inferencesched.errors import InvalidInputError
from inferencesched.framework import CycleState, Produced, Reads
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.zoo.costs import cost_of, finite, uncached

#: What a request would cost a server, with all that it was sent of late: seconds.
PREBLE_LOAD: Final = Signal("preble_load", "s", freshness="cycle")


#: Over how many seconds a hit rate is taken where the load is what is in flight.
_HIT_WINDOW: Final = 180.0


class PrebleReceipt(NamedTuple):
    """What would the request bring each server, seconds, and which stays are they?"""

    endpoints: Endpoints
    work: FloatArray
    missed: FloatArray


class _History:
    """What did one server get of late?"""

    __slots__ = ("prompt", "sent", "tokens", "work")

    def __init__(self) -> None:
        self.sent: deque[tuple[float, float, float, float]] = deque()  # when, seconds of work, tokens missed and asked
        self.work = self.tokens = self.prompt = 0.0


@final
class PrebleProducer:
    """What would the request cost each server: ``L + M + P`` seconds?

    L: the work sent there in the last `window` seconds: the prefill of what was missed, and `output` tokens of decoding for each
    request; with a window of 0, what of it is in flight (``INFLIGHT_TOKENS``, ``INFLIGHT_REQUESTS``). M: the prefill of what has to be evicted for it, times how likely that is wanted again, for which the server's share of
    cached tokens of late stands. P: the prefill of what is missed now. Prefill is at `prefill` tokens a second, decoding at
    `decode` for one request.

    Fills ``PREBLE_LOAD``. Safe from any thread. Source: Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM
    Serving" (ICLR 2025), algorithm 1; its hit rates by tree node are one rate a server here.
    """

    def __init__(
        self, *, window: float = 180.0, prefill: float = 40_000.0, decode: float = 1_000.0, output: float = 250.0
    ) -> None:
        finite("window", window)
        for name, value in (("prefill", prefill), ("decode", decode)):
            if not value > 0:
                raise InvalidInputError(name, value, "a number above 0")
        finite("output", output)
        self.window, self.prefill, self.decode, self.output = window, prefill, decode, output
        self._histories: dict[tuple[int, int], _History] = {}
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (PREBLE_LOAD,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        plain = (Reads(PREFIX_TOKENS, "higher", required=False), Reads(KV_BLOCKS), Reads(KV_BLOCK_SIZE))
        return plain if self.window else (*plain, Reads(INFLIGHT_TOKENS), Reads(INFLIGHT_REQUESTS))

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[PrebleReceipt]:
        """Return the column."""
        missed = uncached(request, endpoints)
        room = endpoints[KV_BLOCKS] * endpoints[KV_BLOCK_SIZE]
        column = missed / self.prefill
        if not self.window:
            column += known(endpoints[INFLIGHT_TOKENS]) / self.prefill
            column += known(endpoints[INFLIGHT_REQUESTS]) * self.output / self.decode
        with self._lock:
            stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
            for i, stay in enumerate(stays):
                history = self._histories.get(stay)
                if history is None:
                    continue
                work, tokens, prompt = self._recent(history, cycle.now - (self.window or _HIT_WINDOW))
                evicted = max(0.0, min(float(missed[i]), tokens + float(missed[i]) - float(room[i])))
                hit = 1.0 - tokens / prompt if prompt else 0.0
                column[i] += (work if self.window else 0.0) + (
                    evicted * hit / self.prefill if evicted == evicted else 0.0
                )
        work_here = missed / self.prefill + self.output / self.decode
        return Produced({PREBLE_LOAD: column}, PrebleReceipt(endpoints, work_here, missed))

    def commit(self, receipt: PrebleReceipt, slot: int, *, now: float) -> None:
        """Remember what it brought the server it went to."""
        endpoints = receipt.endpoints
        position = endpoints.slots.tolist().index(slot)
        missed = float(receipt.missed[position])
        prompt = missed + float(known(endpoints[PREFIX_TOKENS])[position])
        with self._lock:
            history = self._histories.setdefault(endpoints.stay(position), _History())
            while history.sent and history.sent[0][0] < now - (self.window or _HIT_WINDOW):
                _, work, tokens, asked = history.sent.popleft()
                history.work, history.tokens, history.prompt = (
                    history.work - work,
                    history.tokens - tokens,
                    history.prompt - asked,
                )
            entry = (now, float(receipt.work[position]), missed, prompt)
            history.sent.append(entry)
            history.work, history.tokens, history.prompt = (
                history.work + entry[1],
                history.tokens + missed,
                history.prompt + prompt,
            )

    def _recent(self, history: _History, since: float) -> tuple[float, float, float]:
        """Return work, missed tokens and prompt tokens since then; what is older is only passed over here."""
        work, tokens, prompt = history.work, history.tokens, history.prompt
        for at, old_work, old_tokens, old_prompt in history.sent:
            if at >= since:
                break
            work, tokens, prompt = work - old_work, tokens - old_tokens, prompt - old_prompt
        return max(0.0, work), max(0.0, tokens), max(0.0, prompt)


@dataclass(frozen=True, slots=True)
class PrebleScorer:
    """Who has the prefix, if it is more than half the prompt; else who costs least?

    Exploit if ``h > I - h`` for the longest match h: the server with it, of several the one with least ``PREBLE_LOAD``, unless the loads
    in flight are uneven by more than `imbalance` (most over least requests) and the server is the fullest. Else explore: least
    ``PREBLE_LOAD``. Source: as `PrebleProducer`.
    """

    imbalance: float = 2.0

    def __post_init__(self) -> None:
        finite("imbalance", self.imbalance, 1)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns? Which way is better depends on the case."""
        return (Reads(PREFIX_TOKENS), Reads(PREBLE_LOAD), Reads(INFLIGHT_REQUESTS))

    def score(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> FloatArray:
        """Return ``float64[E]``."""
        cached, cost, load = known(endpoints[PREFIX_TOKENS]), endpoints[PREBLE_LOAD], endpoints[INFLIGHT_REQUESTS]
        best = float(cached.max())
        if best > (request.prompt_tokens or 0) - best:
            holders = cached == best
            heavy = float(np.fmax.reduce(load)) > self.imbalance * max(1.0, float(np.fmin.reduce(load)))
            if not (heavy and (load[holders] == np.fmax.reduce(load)).all()):
                return np.where(holders, 0.5 + 0.5 * cost_of(np.where(holders, cost, np.nan)), 0.0)
        return cost_of(cost)
