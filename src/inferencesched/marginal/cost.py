"""What does one request more cost everybody?"""

from dataclasses import astuple, dataclass
from math import isfinite

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class MarginalCost:
    """How much does each part of what a request costs count? All parts are ms.

    With w a server, P the passes that its uncached prompt takes there (decodes riding along), I its prompt tokens, h those cached, B requests in
    flight, K the tokens they attend to, k what a pass gets longer for each of those, o the output expected, c what a prompt token costs::

        own (drain + P)                     until the request's own first token
        + stall B P                         for which those in flight stand still
        + o k (K + others B I)              decoding: we read their keys and values, they ours, every pass
        + (duplicate + crowding R / (1 - R)) (h_best - h) c (1 + B)     a prefix computed twice; R: how much of prompts is cached, of late
        + barrier max(0, u - barrier_at) / (1 - barrier_at)             a KV cache that will be full: share u

    Source: ours; the term o k B I and its reasons are in docs/explanation/marginal.md. `stall` and `others` are 1 in the sum of everybody's
    latencies; less has those who wait for a first token come before those who have theirs.

    >>> MarginalCost().own
    15.0
    """

    own: float = 15.0
    stall: float = 0.25
    others: float = 0.25
    duplicate: float = 3.0
    crowding: float = 2.0
    barrier: float = 10_000.0
    barrier_at: float = 0.8

    def __post_init__(self) -> None:
        for name in ("own", "stall", "others", "duplicate", "crowding", "barrier"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise InvalidInputError(name, value, "a finite number of at least 0")
        if not 0 <= self.barrier_at < 1:
            raise InvalidInputError("barrier_at", self.barrier_at, "at least 0 and below 1")

    def weights(self) -> FloatArray:
        """Return them in the kernel's order, ``float64[7]``."""
        return np.array(astuple(self))
