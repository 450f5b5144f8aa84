"""How much is a cached prefix worth that lies partly in slower memory?

A block on the device serves at once, one in the host's memory has to be copied first. So blocks of the prefix are
weighed: each counts as the fastest place that it lies in. After llm-d's `LongestPrefixScorer` and the counts by tier
beside it (llm-d-router, pkg/kvcache/kvblock_scorer.go and preciseprefixcache/utils.go), with one difference: a sum of
weights stays what it is, where llm-d cuts off its fraction, so that one block in the host's memory counts as 0.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray, HashArray, IntArray
from inferencesched.errors import InvalidInputError
from inferencesched.prefix.kv_records import Tier

#: A flag beside those of `Tier`: the block was sent there, and no event has confirmed it yet.
SPECULATIVE: Final = 16
#: The rows of `TierMatch.by_tier`.
FLAGS: Final = (Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.EXTERNAL, SPECULATIVE)
#: llm-d's weights, where nothing else is said; what is not named counts as the device.
WEIGHTS: Final[Mapping[int, float]] = {Tier.DEVICE: 1.0, Tier.HOST: 0.8}
_ANY: Final = 2 * SPECULATIVE - 1


class TierMatch(NamedTuple):
    """How much of a prompt, or of several, does each endpoint hold, and where?

    ``total`` blocks were asked for. ``cached``, int64[E], is how many of the first ones an endpoint holds without a gap,
    wherever they lie; ``by_tier``, int64[5, E], the same for each of `FLAGS` by itself: what lies in two places counts
    in both. ``weighted``, float64[E], is the sum of the weights of the ``cached`` ones.
    """

    total: int
    cached: IntArray
    by_tier: IntArray
    weighted: FloatArray

    def tiers(self, endpoint: int) -> dict[int, int]:
        """How many has each place of this endpoint? Without the places that have none."""
        counts = self.by_tier[:, endpoint].tolist()
        return {flag: count for flag, count in zip(FLAGS, counts, strict=True) if count}


def tier_match(
    flags: Sequence[HashArray], weights: Mapping[int, float] = WEIGHTS, *, unnamed: float = 1.0
) -> TierMatch:
    """How much of these prompts does each endpoint hold, and what is it worth?

    `flags` has for each prompt ``uint64[E, B]``: where each endpoint holds each of the prompt's blocks, as flags of
    `Tier` and `SPECULATIVE` (`KVEventApplier.tiers_of` gives one row). `weights` are those of the flags; one that is not
    among them counts as `unnamed`.

    Cost: a few passes over the flags. Errors: `InvalidInputError` for arrays that do not fit each other, flags that are
    none, and weights that are negative or not finite.

    >>> flags = np.array([[1, 3, 2, 0, 1], [0, 1, 1, 1, 1]], dtype=np.uint64)
    >>> match = tier_match([flags], {Tier.DEVICE: 1.0, Tier.HOST: 0.5})
    >>> match.cached.tolist(), match.weighted.tolist(), match.tiers(0)
    ([3, 0], [2.5, 0.0], {<Tier.DEVICE: 1>: 2})
    """
    worth = _worth(tuple(sorted((int(flag), float(weight)) for flag, weight in weights.items())), float(unnamed))
    endpoints = _endpoints(flags)
    rows = np.array([_ANY, *(int(flag) for flag in FLAGS)], dtype=np.uint64)
    depths = np.zeros((len(rows), endpoints), dtype=np.int64)
    weighted = np.zeros(endpoints)
    for each in flags:
        here = np.stack([_leading((each & row) != 0) for row in rows])
        depths += here
        leading = np.arange(each.shape[1]) < here[0][:, None]
        weighted += np.where(leading, worth[each.astype(np.intp)], 0.0).sum(axis=1)
    return TierMatch(sum(each.shape[1] for each in flags), depths[0], depths[1:], weighted)


def _leading(held: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> IntArray:
    """Return for each row how many True it begins with."""
    gap = np.argmin(held, axis=1) if held.shape[1] else np.zeros(len(held), dtype=np.int64)
    return np.where(held.all(axis=1), held.shape[1], gap).astype(np.int64)


def _endpoints(flags: Sequence[HashArray]) -> int:
    for i, each in enumerate(flags):
        if each.ndim != 2 or each.dtype != np.uint64 or len(each) != len(flags[0]):
            shape = f"{each.dtype} of shape {each.shape}"
            raise InvalidInputError(f"flags[{i}]", shape, "uint64[E, B], with the same E for each prompt")
        if each.size and int(each.max()) > _ANY:
            raise InvalidInputError(f"flags[{i}]", int(each.max()), f"flags of Tier and SPECULATIVE, at most {_ANY}")
    return len(flags[0]) if flags else 0


@cache
def _worth(weights: tuple[tuple[int, float], ...], unnamed: float) -> FloatArray:
    """Return what a block is worth for each combination of flags, float64[32]."""
    known = dict(weights)
    for flag, weight in (*weights, (0, unnamed)):
        if not 0.0 <= weight < np.inf:
            raise InvalidInputError("weights" if flag else "unnamed", weight, "finite numbers of at least 0")
        if flag and flag not in FLAGS:
            raise InvalidInputError("weights", flag, "one flag of Tier, or SPECULATIVE")
    each = [known.get(int(flag), unnamed) for flag in FLAGS]
    table = [
        max((w for bit, w in zip(FLAGS, each, strict=True) if flags & bit), default=0.0) for flags in range(_ANY + 1)
    ]
    worth = np.array(table)
    worth.setflags(write=False)
    return worth
