"""How many blocks of a prompt does each endpoint hold, where the share is not enough?"""

from typing import Final, final

import numpy as np

from inferencesched.endpoints import Endpoints, Signal
from inferencesched.framework import CycleState, Produced
from inferencesched.prefix.precise import PrecisePrefixProducer
from inferencesched.prefix.producer import ApproximatePrefixProducer, PrefixReceipt
from inferencesched.request import InferenceRequest
from inferencesched.signals import CACHED_BLOCKS, READABLE_BLOCKS


@final
class BlockCounts:
    """How many blocks of the prompt does each endpoint hold, and how many of them can another server read?

    Fills what `producer` fills, and ``CACHED_BLOCKS``; over a `PrecisePrefixProducer`, which knows tiers, also
    ``READABLE_BLOCKS``: those of the host's memory, from the first on without a gap. A prompt of which no hashes are
    known has unknown counts. What a `P2PSource` reads; it takes the place of the producer that it is made of.

    Cost: that of the producer, and with tiers some us for each endpoint that holds part of the prompt.
    """

    def __init__(self, producer: ApproximatePrefixProducer | PrecisePrefixProducer) -> None:
        self.producer: Final = producer

    def __repr__(self) -> str:
        return f"BlockCounts({self.producer!r})"

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill?"""
        if isinstance(self.producer, PrecisePrefixProducer):
            return (*self.producer.produces, CACHED_BLOCKS, READABLE_BLOCKS)
        return (*self.producer.produces, CACHED_BLOCKS)

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[PrefixReceipt]:
        """Return the producer's columns and the counts, and its receipt."""
        columns, receipt = self.producer.produce(request, endpoints, cycle)
        hashed = receipt.hashes is not None
        unknown = np.full(len(endpoints), np.nan)
        counts = {CACHED_BLOCKS: receipt.matched.astype(np.float64) if hashed else unknown}
        if isinstance(self.producer, PrecisePrefixProducer):
            readable = self.producer.host_blocks(receipt)
            counts[READABLE_BLOCKS] = readable.astype(np.float64) if hashed else unknown
        return Produced({**columns, **counts}, receipt)

    def commit(self, receipt: PrefixReceipt, slot: int, *, now: float) -> None:
        """Let the producer learn where the prompt went."""
        self.producer.commit(receipt, slot, now=now)
