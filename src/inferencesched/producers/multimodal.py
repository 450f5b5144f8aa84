"""Which endpoint has encoded these pictures already?

An encoder turns a picture, a video or a sound into embeddings, which the server keeps for a while. What was sent to an
endpoint is taken to be there, least recently sent first out. What `inferencesched.scorers.multimodal` scores by.
"""

import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple, final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import whole_number
from inferencesched.framework import CycleState, Produced
from inferencesched.producers.tenancy import Tenancy
from inferencesched.request import InferenceRequest, MediaItem
from inferencesched.signals import ENCODER_MATCH

#: What llm-d takes an item to need in a server's cache, MiB.
_MEBIBYTES_AN_ITEM = 2
_DEFAULT_MEBIBYTES = 4096


def entries_of(mebibytes: int) -> int:
    """How many items does a server's encoder cache of this size hold? One for each 2 MiB, at least one.

    0 or less stands for the default, 4,096 MiB. Source: llm-d router's ``cacheSizeInMBPerServer``.

    >>> entries_of(4096), entries_of(5), entries_of(1), entries_of(0)
    (2048, 2, 1, 2048)
    """
    return max(1, (mebibytes if mebibytes > 0 else _DEFAULT_MEBIBYTES) // _MEBIBYTES_AN_ITEM)


def unique_items(media: Iterable[MediaItem]) -> dict[int, int]:
    """Which contents does a prompt show, and how large are they? Each once, by hash; the first of a hash tells its size.

    >>> unique_items((MediaItem(7), MediaItem(9, size=3), MediaItem(7)))
    {7: 1, 9: 3}
    """
    found: dict[int, int] = {}
    for item in media:
        found.setdefault(item.hash, item.size)
    return found


class EncoderReceipt(NamedTuple):
    """Which items has the prompt, by hash, and who could have got them?"""

    items: Mapping[int, int]
    endpoints: Endpoints


@final
class EncoderCacheProducer:
    """Which share of a prompt's pictures, videos and sounds was sent to each endpoint before?

    Fills ``ENCODER_MATCH``: by size, 0 to 1, each content counted once a request; unknown for a request without any.

    Parameters
    ----------
    entries: how many items one endpoint is taken to hold, whatever their sizes; `entries_of` makes it of a cache's size.

    Items are remembered when the request is booked, for the primary target and for those that compute the prompt
    (`Scheduler`'s ``computing``: name the encoders' profile there if they are servers of their own). Looking up does not
    make an item younger. An endpoint that left is forgotten, and who gets its slot begins with nothing. Safe from any
    thread, for one pool. Memory: some 250 bytes an item and endpoint. Cost: some 5 us, and 0.1 us an item and holder.
    Source: llm-d router's ``mm-embeddings-cache-producer``, where every item has the size 1.

    >>> from inferencesched.pool import InferencePool
    >>> pool, producer = InferencePool(), EncoderCacheProducer(entries=2)
    >>> pool.join("a"); pool.join("b")
    >>> cycle = CycleState(0.0, np.random.default_rng(0), 0)
    >>> seen = InferenceRequest(request_id="1", media=(MediaItem(7), MediaItem(8)))
    >>> producer.commit(producer.produce(seen, pool.snapshot(), cycle).receipt, 1, now=0.0)
    >>> request = InferenceRequest(request_id="2", media=(MediaItem(8), MediaItem(9)))
    >>> producer.produce(request, pool.snapshot(), cycle).columns[ENCODER_MATCH]
    array([0. , 0.5])
    """

    def __init__(self, *, entries: int = 2048) -> None:
        self.entries = whole_number("entries", entries, low=1)
        self._tenancy = Tenancy()
        self._held: dict[int, dict[int, None]] = {}  # by slot: hashes, the longest ago sent first
        self._holders: dict[int, set[int]] = {}  # by hash: slots
        self._lock = threading.Lock()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        return (ENCODER_MATCH,)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[EncoderReceipt]:
        """Return the column, and what `commit` needs."""
        items = unique_items(request.media) if request.media else {}
        receipt, whole = EncoderReceipt(items, endpoints), sum(items.values())
        if whole <= 0:
            return Produced({ENCODER_MATCH: np.full(len(endpoints), np.nan)}, receipt)
        with self._lock:
            sizes: FloatArray = np.zeros(len(self._tenancy))
            for each, size in items.items():
                for slot in self._holders.get(each, ()):
                    sizes[slot] += size
            owned = self._tenancy.owned(endpoints)
        return Produced(
            {ENCODER_MATCH: np.where(owned, sizes[np.where(owned, endpoints.slots, 0)], 0.0) / whole}, receipt
        )

    def commit(self, receipt: EncoderReceipt, slot: int, *, now: float) -> None:
        """Remember that the items went to `slot`."""
        if not receipt.items:
            return
        with self._lock:
            for gone in self._tenancy.departed(receipt.endpoints):
                self._forget(gone)
            may, anew = self._tenancy.claim(slot, receipt.endpoints)
            if not may:
                return
            if anew:
                self._forget(slot)
            held = self._held.setdefault(slot, {})
            for each in receipt.items:
                held.pop(each, None)
                held[each] = None
                self._holders.setdefault(each, set()).add(slot)
            while len(held) > self.entries:
                self._drop(next(iter(held)), slot)

    def holds(self, item: int, endpoints: Endpoints) -> tuple[str, ...]:
        """Return which of these endpoints are taken to hold an item, by name."""
        with self._lock:
            owned, slots = self._tenancy.owned(endpoints), self._holders.get(item, set())
            return tuple(endpoints.name(i) for i in np.flatnonzero(owned).tolist() if int(endpoints.slots[i]) in slots)

    def check(self) -> None:
        """Is what is remembered consistent? For tests: `AssertionError` where it is not."""
        assert all(0 < len(held) <= self.entries for held in self._held.values())
        assert all(self._tenancy.owner(slot) >= 0 for slot in self._held)
        pairs = {(each, slot) for slot, held in self._held.items() for each in held}
        assert pairs == {(each, slot) for each, slots in self._holders.items() for slot in slots}
        assert all(self._holders.values())

    def _forget(self, slot: int) -> None:
        for each in list(self._held.get(slot, ())):
            self._drop(each, slot)
        self._held.pop(slot, None)

    def _drop(self, item: int, slot: int) -> None:
        del self._held[slot][item]
        holders = self._holders[item]
        holders.discard(slot)
        if not holders:
            del self._holders[item]
