"""What else do published rules count: blocks in flight, requests since the last look, how much a server holds?"""

import threading
from bisect import bisect_left
from typing import Final, NamedTuple, final

import numpy as np

from inferencesched.endpoints import OBSERVED_AT, Endpoints, Signal
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement

#: How many different prompt blocks a server would have in flight with this request.
ACTIVE_BLOCKS: Final = Signal("active_blocks", "blocks", freshness="cycle")
#: How many requests were sent to a server since it was read last.
SENT_SINCE: Final = Signal("sent_since", "requests", freshness="cycle")
#: How many blocks we take a server to hold.
HELD_BLOCKS: Final = Signal("held_blocks", "blocks", freshness="cycle")


class BlocksReceipt(NamedTuple):
    """Which prompt is it, and whose stays were its candidates?"""

    hashes: tuple[int, ...]
    extra: int
    endpoints: Endpoints

    def stay(self, slot: int) -> tuple[int, int]:
        """Return a candidate's slot and generation."""
        position = self.endpoints.slots.tolist().index(slot)
        return slot, int(self.endpoints.generations[position])


@final
class ActiveBlocksProducer:
    """How many different blocks of prompts does each server have in flight, this one's included?

    Fills ``ACTIVE_BLOCKS``. Prompts share blocks by their hashes; a prompt without hashes shares none. A request's blocks count from
    its booking to its end. Safe from any thread. Cost: a search in the prompt for each server, and a dict entry a block at
    booking and end. Source: Dynamo's ``ActiveSequences``, ``lib/kv-router``.
    """

    def __init__(self, *, block_size: int = 64) -> None:
        self.block_size: Final = whole_number("block_size", block_size, low=1)
        self._held: dict[tuple[int, int], dict[int, int]] = {}  # by stay: block -> requests
        self._plain: dict[tuple[int, int], int] = {}  # by stay: blocks of prompts without hashes
        # where each receipt's prompt was booked; the receipt is held, so that no other has its id
        self._booked: dict[int, tuple[BlocksReceipt, list[tuple[int, int]]]] = {}
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (ACTIVE_BLOCKS,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[BlocksReceipt]:
        """Return the column, and the prompt."""
        hashes = () if request.block_hashes is None else tuple(request.block_hashes.tolist())
        extra = 0 if hashes else (request.prompt_tokens or 0) // self.block_size
        column = np.full(len(endpoints), float(extra + len(hashes)))
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        with self._lock:
            for i, stay in enumerate(stays):
                there = self._held.get(stay)
                if there:
                    # a chained hash is there only with all before it: the first that is not is the end of what is shared
                    shared = bisect_left(hashes, 1, key=lambda block: block not in there)
                    column[i] += len(there) - shared
                column[i] += self._plain.get(stay, 0)
        return Produced({ACTIVE_BLOCKS: column}, BlocksReceipt(hashes, extra, endpoints))

    def commit(self, receipt: BlocksReceipt, slot: int, *, now: float) -> None:
        """Count the prompt's blocks where it went."""
        stay = receipt.stay(slot)
        with self._lock:
            self._booked.setdefault(id(receipt), (receipt, []))[1].append(stay)
            there = self._held.setdefault(stay, {})
            for block in receipt.hashes:
                there[block] = there.get(block, 0) + 1
            if receipt.extra:
                self._plain[stay] = self._plain.get(stay, 0) + receipt.extra

    def settled(self, receipt: BlocksReceipt, settlement: Settlement, slot: int) -> None:
        """Count them no more; who was never booked, or has ended before, changes nothing."""
        stay = receipt.stay(slot)
        with self._lock:
            _, stays = self._booked.get(id(receipt), (receipt, []))
            if stay not in stays:
                return
            stays.remove(stay)
            if not stays:
                del self._booked[id(receipt)]
            there = self._held.get(stay, {})
            for block in receipt.hashes:
                left = there[block] - 1
                if left:
                    there[block] = left
                else:
                    del there[block]
            if not there:
                self._held.pop(stay, None)
            if receipt.extra:
                self._plain[stay] -= receipt.extra
                if not self._plain[stay]:
                    del self._plain[stay]


@final
class SentSinceProducer:
    """How many requests did we send to each server since it was read last?

    Fills ``SENT_SINCE``: what a scraped queue cannot know yet. Safe from any thread.
    Source: the local count of vLLM's data-parallel clients.
    """

    def __init__(self) -> None:
        self._sent: dict[tuple[int, int], tuple[float, int]] = {}  # by stay: read when, and how many since
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (SENT_SINCE,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[Endpoints]:
        """Return the column."""
        stays = zip(
            endpoints.slots.tolist(), endpoints.generations.tolist(), endpoints[OBSERVED_AT].tolist(), strict=True
        )
        with self._lock:
            counts = [float(self._since((slot, generation), read)) for slot, generation, read in stays]
        return Produced({SENT_SINCE: np.array(counts)}, endpoints)

    def commit(self, receipt: Endpoints, slot: int, *, now: float) -> None:
        """Count one more."""
        position = receipt.slots.tolist().index(slot)
        stay, read = receipt.stay(position), float(receipt[OBSERVED_AT][position])
        with self._lock:
            self._sent[stay] = (read, self._since(stay, read) + 1)

    def _since(self, stay: tuple[int, int], read: float) -> int:
        before, count = self._sent.get(stay, (read, 0))
        return count if before == read else 0


@final
class HeldBlocksProducer:
    """How much do we take each server to hold? ``HELD_BLOCKS``, the size of its part of a prefix index.

    SGLang's and SMG's "tree size". Source: ``sgl-router``, ``cache_aware``.
    """

    def __init__(self, prefix: ApproximatePrefixProducer) -> None:
        self.prefix: Final = prefix

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (HELD_BLOCKS,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[None]:
        """Return the column."""
        index = self.prefix.index
        held = [index.blocks(slot) if slot < index.endpoints else 0 for slot in endpoints.slots.tolist()]
        return Produced({HELD_BLOCKS: np.array(held, dtype=np.float64)}, None)

    def commit(self, receipt: None, slot: int, *, now: float) -> None:
        """Nothing to learn: the prefix producer does."""
