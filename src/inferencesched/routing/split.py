"""Which of several weighted targets gets this request?

Three strategies. `RandomSplit` is the reference's: independent draws; its error goes with the root of the number, and a conversation is torn
apart, and its cached prompt with it. `SmoothSplit` is exact: after n requests each target has its share of n to less than one
request. `StickySplit` goes by a key: a conversation keeps its target, and raising one weight moves keys to that target only.

``pick`` changes nothing but the generator; ``commit`` says that a pick was kept.
"""

from collections.abc import Mapping
from math import inf, log
from typing import Final, Protocol, final

import numpy as np
import xxhash

from inferencesched.errors import InvalidInputError, UnknownNameError

_TO_UNIT: Final = 2.0**-64


class WeightedSplit(Protocol):
    """Which target is it?"""

    def pick(self, key: str, rng: np.random.Generator) -> str:
        """Return the target of a request with this key; changes nothing but the generator."""
        ...

    def commit(self, name: str) -> None:
        """Say that a request went to this target."""
        ...


def checked_weights(weights: Mapping[str, float], parameter: str = "weights") -> dict[str, float]:
    """Return the targets that can be chosen, in the order given.

    Errors: `InvalidInputError` for no target, a weight that is negative or no number, and a sum of 0.
    """
    if not weights:
        raise InvalidInputError(parameter, dict(weights), "at least one target")
    for name, weight in weights.items():
        if not 0 <= weight < inf:
            raise InvalidInputError(f"{parameter}[{name!r}]", weight, "a finite number of at least 0")
    if not any(weights.values()):
        raise InvalidInputError(parameter, dict(weights), "a sum above 0")
    return {name: float(weight) for name, weight in weights.items() if weight}


@final
class RandomSplit:
    """Which target does chance choose? Each request by itself: the reference's way. Cost: 1 us.

    >>> RandomSplit({"a": 9, "b": 1}).pick("", np.random.default_rng(7))
    'a'
    """

    __slots__ = ("_bounds", "_names", "_total", "weights")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = checked_weights(weights)
        self._names = tuple(self.weights)
        self._bounds = np.cumsum(tuple(self.weights.values())).tolist()
        self._total = self._bounds[-1]

    def pick(self, key: str, rng: np.random.Generator) -> str:
        """Return a target, each with its share of chance."""
        if len(self._names) == 1:
            return self._names[0]
        drawn = rng.random() * self._total
        for name, bound in zip(self._names, self._bounds, strict=True):
            if drawn < bound:
                return name
        return self._names[-1]

    def commit(self, name: str) -> None:
        """Take note of nothing."""


@final
class SmoothSplit:
    """Which target is furthest behind its share? Exact over every run of requests: smooth weighted round robin.

    Of those that have not had their share of the requests with this one, the one gets it whose next is due first, at ``(c + 1) /
    share`` for one that had c. Law: after every commit ``abs(c - n * w / sum(w)) < 1``, for any weights, where each pick is committed before the next one. Of k picks
    that are all made before any is committed, all are the same target: commit one by one, or use another split. Cost: 1 us for 4.
    Source: Tijdeman, The chairman assignment problem (1980).

    >>> split = SmoothSplit({"a": 2, "b": 1})
    >>> order = []
    >>> for _ in range(6):
    ...     order.append(split.pick("", np.random.default_rng(0)))
    ...     split.commit(order[-1])
    >>> "".join(order)
    'aabaab'
    """

    __slots__ = ("_counts", "_number", "_shares", "weights")

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = checked_weights(weights)
        total = sum(self.weights.values())
        self._shares = {name: weight / total for name, weight in self.weights.items()}
        self._counts = dict.fromkeys(self.weights, 0)
        self._number = 0

    def pick(self, key: str, rng: np.random.Generator) -> str:
        """Return the target that is furthest behind its share."""
        best, soonest, number = "", inf, self._number + 1
        for name, share in self._shares.items():
            count = self._counts[name]
            if count >= number * share:
                continue  # it has had all that it may have by now
            due = (count + 1) / share
            if due < soonest:
                best, soonest = name, due
        return best or max(self._shares, key=lambda name: number * self._shares[name] - self._counts[name])

    def commit(self, name: str) -> None:
        """Count a request. Errors: `UnknownNameError`."""
        if name not in self._counts:
            raise UnknownNameError("name", name, sorted(self._counts))
        self._counts[name] += 1
        self._number += 1

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests went where?"""
        return dict(self._counts)


@final
class StickySplit:
    """Which target does this key belong to? Weighted rendezvous hashing: no state, the same in every process.

    Each target draws ``-w / ln u`` from a hash of key and target, and the greatest draw has the key. Shares go to the weights;
    raising one weight moves keys to that target only, taking a target out moves its own keys only. A request without a key is drawn
    by chance. `seed` makes splits of the same targets independent. Cost: 1 us for 4 targets.
    Source: Schindelhauer and Schomaker, Weighted distributed hash tables (2005).

    >>> split = StickySplit({"gemma": 90, "gemma-new": 10})
    >>> len({split.pick("conversation-1", np.random.default_rng(seed)) for seed in range(9)})
    1
    """

    __slots__ = ("_chance", "_draws", "seed", "weights")

    def __init__(self, weights: Mapping[str, float], *, seed: int = 0) -> None:
        self.weights = checked_weights(weights)
        self.seed = seed
        self._draws = tuple(
            (name, weight, xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"), seed))
            for name, weight in self.weights.items()
        )
        self._chance = RandomSplit(self.weights)

    def pick(self, key: str, rng: np.random.Generator) -> str:
        """Return the target of this key; without one, chance's."""
        if len(self._draws) == 1:
            return self._draws[0][0]
        if not key:
            return self._chance.pick(key, rng)
        text, best, most = key.encode("utf-8", "surrogatepass"), "", -1.0
        for name, weight, seed in self._draws:
            unit = (xxhash.xxh3_64_intdigest(text, seed) + 0.5) * _TO_UNIT
            draw = -weight / log(unit) if unit < 1.0 else inf
            if draw > most:
                best, most = name, draw
        return best

    def commit(self, name: str) -> None:
        """Take note of nothing."""
