"""How much work does a request bring an endpoint, and when is that work done?

The pool books what is in flight itself (`InferencePool.reserve`): one request, and the prompt tokens that are not
cached, given back at the first token. Here is what else llm-d's ``inflight-load-producer`` knows: its formulas, its rules
of release for who books by hand, and a producer that counts output that is still to come.
"""

from dataclasses import dataclass
from math import floor, isfinite
from typing import Literal, NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import INFLIGHT_TOKENS, PREFIX_TOKENS, Endpoints, Signal
from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.framework import CycleState, Produced, Reads, SchedulingResult
from inferencesched.normalize import known
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement
from inferencesched.signals import UNCACHED_TOKENS, of_producer


def uncached_tokens(input_tokens: int, matched_blocks: int = 0, total_blocks: int = 0, block_size: int = 0) -> int:
    """How much of a prompt must be computed? The blocks that were not matched, and what is behind the last block.

    ``max(0, total - matched) * block_size + max(0, input - total * block_size)``, as llm-d counts it: a last block that
    is not full counts whole. Without blocks it is all of the prompt.

    >>> uncached_tokens(100, matched_blocks=4, total_blocks=6, block_size=16)
    36
    """
    return max(0, total_blocks - matched_blocks) * block_size + max(0, input_tokens - total_blocks * block_size)


def estimated_output_tokens(
    input_tokens: int, ratio: float = 1.5, *, client_cap: int | None = None, operator_cap: int | None = None
) -> int:
    """How many tokens will the answer have, to go by the question?

    ``round(input * ratio)``, halves up, at most both caps; a client's cap below 0 is none. An empty prompt is 0.

    >>> estimated_output_tokens(5), estimated_output_tokens(100, client_cap=30, operator_cap=80)
    (8, 30)
    """
    if input_tokens <= 0:
        return 0
    estimate = floor(input_tokens * ratio + 0.5)
    if client_cap is not None and client_cap >= 0:
        estimate = min(estimate, client_cap)
    return estimate if operator_cap is None else min(estimate, operator_cap)


@dataclass(frozen=True, slots=True)
class LoadEstimate:
    """How many tokens does a request count for, and when do they stop counting?

    By default its uncached prompt, until the first token. With `add_estimated_output_tokens` its likely output too
    (`estimated_output_tokens` with `output_ratio`, at most `max_estimated_output_tokens`). `at_first_token` is llm-d's
    rule for who books each stage with `InferencePool.reserve`. Source: llm-d router's ``inflight-load-producer``.

    >>> LoadEstimate(add_estimated_output_tokens=True).tokens(36, input_tokens=100)
    186
    """

    add_estimated_output_tokens: bool = False
    output_ratio: float = 1.5
    max_estimated_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.output_ratio) and self.output_ratio >= 0):
            raise InvalidInputError("output_ratio", self.output_ratio, "a finite number of at least 0")
        if self.max_estimated_output_tokens is not None:
            whole_number("max_estimated_output_tokens", self.max_estimated_output_tokens)

    def output(self, input_tokens: int, client_cap: int | None = None) -> int:
        """Return how many output tokens count; 0 where none do."""
        if not self.add_estimated_output_tokens:
            return 0
        return estimated_output_tokens(
            input_tokens, self.output_ratio, client_cap=client_cap, operator_cap=self.max_estimated_output_tokens
        )

    def tokens(self, uncached: int, *, input_tokens: int, client_cap: int | None = None) -> int:
        """Return how many tokens a dispatch counts for, of a prompt of which so many are `uncached`."""
        return uncached + self.output(input_tokens, client_cap)

    def at_first_token(self, profile: str) -> Literal["settle", "tokens", "nothing"]:
        """Return what the first token ends of a stage's booking.

        ``settle``: all of it, for the stage "prefill", whose work is done. ``tokens``: its tokens
        (`Reservation.first_token`). ``nothing``: the output is still to come, and llm-d holds the prompt as long.
        """
        if profile == "prefill":
            return "settle"
        return "nothing" if self.add_estimated_output_tokens else "tokens"


class BySlot:
    """What is the sum of each endpoint, by slot? A slot that was handed to another endpoint starts at 0."""

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: FloatArray = np.zeros((2, 0))  # generation and sum; one array, so that a reader sees one state

    def add(self, slot: int, generation: int, amount: float) -> None:
        """Add to an endpoint's sum; an endpoint that has lost the slot since is left out."""
        table = self._table
        if slot >= table.shape[1]:
            self._table = table = np.hstack([table, np.zeros((2, slot + 1 - table.shape[1]))])
        if generation > table[0, slot]:
            table[:, slot] = (generation, 0.0)
        if generation == table[0, slot]:
            table[1, slot] = max(0.0, table[1, slot] + amount)

    def column(self, endpoints: Endpoints) -> FloatArray:
        """Return the sums of the candidates, ``float64[E]``."""
        table, slots = self._table, endpoints.slots
        sums = np.zeros(len(slots))
        met = slots < table.shape[1]
        here = slots[met]
        sums[met] = np.where(table[0, here] == endpoints.generations[met], table[1, here], 0.0)
        return sums


class InflightReceipt(NamedTuple):
    """What has to be remembered of a request that is sent? ``output`` are the tokens its answer is taken to have."""

    request_id: str
    output: int


@final
class InflightLoadProducer:
    """What would this request bring each endpoint, and what output have we still to expect of each?

    Fills ``UNCACHED_TOKENS``: the prompt less ``PREFIX_TOKENS`` (cycle; unknown covers nothing), and its likely output
    where `estimate` adds that. Then it fills ``INFLIGHT_TOKENS`` too: the pool's own count (prompts until their first
    token) and the likely output of whom we have sent, until they are settled. A prompt of unknown length counts 0.

    Parameters
    ----------
    estimate: what counts; by default prompts only, and then this producer has no state.
    prefix_producer: which of several producers of ``PREFIX_TOKENS``.

    llm-d holds prompt and output together to the end in this mode, and counts output for a prefill server too; here
    the prompt is given back at the first token, as its later versions do, and output is the primary target's. Cost:
    10 us at 64 endpoints. Source: llm-d router's ``inflight-load-producer``.
    """

    def __init__(self, estimate: LoadEstimate | None = None, *, prefix_producer: str = "") -> None:
        self.estimate = LoadEstimate() if estimate is None else estimate
        self.prefix_producer = prefix_producer
        self._prefix = of_producer(PREFIX_TOKENS, prefix_producer)
        self._output = BySlot()
        # by receipt, which is held so that no other has its id: slot, generation of each time it was booked
        self._open: dict[int, tuple[InflightReceipt, list[tuple[int, int]]]] = {}

    def __repr__(self) -> str:
        named = f", prefix_producer={self.prefix_producer!r}" if self.prefix_producer else ""
        return f"InflightLoadProducer({self.estimate!r}{named})"

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        adds = self.estimate.add_estimated_output_tokens
        return (UNCACHED_TOKENS, INFLIGHT_TOKENS) if adds else (UNCACHED_TOKENS,)

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns?"""
        return (Reads(self._prefix, required=bool(self.prefix_producer)),)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[InflightReceipt]:
        """Return the columns, and the likely output."""
        tokens = request.prompt_tokens or 0
        output = self.estimate.output(tokens, request.max_output_tokens)
        uncached = np.maximum(0.0, tokens - known(endpoints[self._prefix]))
        columns: dict[Signal, FloatArray] = {UNCACHED_TOKENS: uncached + output}
        if self.estimate.add_estimated_output_tokens:
            columns[INFLIGHT_TOKENS] = endpoints[INFLIGHT_TOKENS] + self._output.column(endpoints)
        return Produced(columns, InflightReceipt(request.request_id, output))

    def commit(self, receipt: InflightReceipt, slot: int, *, now: float) -> None:
        """Nothing yet: `decided` says whose answer it is."""

    def decided(self, receipt: InflightReceipt, result: SchedulingResult, *, now: float) -> None:
        """Expect the output of the primary profile's target."""
        if receipt.output:
            target = result.target
            self._output.add(target.slot, target.generation, receipt.output)
            self._open.setdefault(id(receipt), (receipt, []))[1].append((target.slot, target.generation))

    def settled(self, receipt: InflightReceipt, settlement: Settlement, slot: int) -> None:
        """Expect it no longer, however it ended."""
        _, stays = self._open.get(id(receipt), (receipt, []))
        if stays:
            where, generation = stays.pop()
            self._output.add(where, generation, -receipt.output)
            if not stays:
                del self._open[id(receipt)]
