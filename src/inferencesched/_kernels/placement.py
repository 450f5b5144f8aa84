"""Where a key's draw falls for each endpoint, compiled."""

import numpy as np

from inferencesched._kernels._compile import kernel
from inferencesched._kernels.hashing import U16, _sixteen
from inferencesched._typing import FloatArray, HashArray

#: 52 bits and a half: the draw is above 0 and below 1, without rounding.
TWELVE, SCALE, NO_SEED = np.uint64(12), 2.0**-52, np.uint64(0)


@kernel
def heights(key: np.uint64, identities: HashArray, weights: FloatArray) -> FloatArray:
    """Return ``-w / ln(u)`` by endpoint; identities uint64[E], weights float64[E] of at least 0 -> float64[E].

    u is xxh3_64 of the key's and the identity's little-endian bytes, its upper 52 bits, as a number between 0 and 1.
    """
    out = np.empty(identities.shape[0])
    for i in range(identities.shape[0]):
        draw = _sixteen(key, identities[i], U16, NO_SEED) >> TWELVE
        out[i] = -weights[i] / np.log((np.float64(draw) + 0.5) * SCALE)
    return out
