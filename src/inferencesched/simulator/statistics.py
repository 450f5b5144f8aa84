"""How sure is a mean over seeds, and what is the mean of ratios?"""

from collections.abc import Sequence
from math import isfinite, nan, sqrt
from typing import Final, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.errors import InvalidInputError

#: Student's t, two-sided 95 %, for 1 to 30 degrees of freedom (any table; here to three decimals). Beyond: the normal quantile, corrected.
_T95: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

#: The same without bound: the normal distribution's.
NORMAL95: Final = 1.959964


class Estimate(NamedTuple):
    """What is the mean, and how far from it may the truth be? ``half`` is half of the 95 % interval; NaN where one value tells nothing of that."""

    mean: float
    half: float
    values: int

    @property
    def low(self) -> float:
        """Where does the interval begin?"""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Where does it end?"""
        return self.mean + self.half


def t95(freedom: int) -> float:
    """How many standard errors wide is half of a 95 % interval, for so many degrees of freedom?

    Beyond 30 by the first terms of the Cornish-Fisher expansion (Abramowitz and Stegun 26.7.5): right to three decimals.

    >>> t95(4), round(t95(60), 3)
    (2.776, 2.0)
    """
    if freedom < 1:
        raise InvalidInputError("freedom", freedom, "an integer of at least 1")
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = NORMAL95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def estimate(values: Sequence[float] | FloatArray) -> Estimate:
    """What do these values, one a seed, say of the mean? NaN if there are none, or one of them is.

    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, half=2.484..., values=3)
    """
    numbers = np.asarray(values, dtype=np.float64)
    count = len(numbers)
    if not count:
        return Estimate(nan, nan, 0)
    mean = float(numbers.mean())
    if count == 1:
        return Estimate(mean, nan, 1)
    return Estimate(mean, t95(count - 1) * float(numbers.std(ddof=1)) / sqrt(count), count)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """By which share do ours differ from theirs, seed by seed? ``ours / theirs - 1``, its mean and interval.

    Seeds differ more from each other than policies do: compare like with like. Errors: `InvalidInputError` for lengths that differ.
    """
    if len(ours) != len(theirs):
        raise InvalidInputError("theirs", f"{len(theirs)} values", f"{len(ours)}, one for each of ours")
    return estimate(np.asarray(ours, dtype=np.float64) / np.asarray(theirs, dtype=np.float64) - 1.0)


def geometric(ratios: Sequence[float] | FloatArray) -> float:
    """What is the mean of these ratios, as ratios go? All above 0.

    >>> geometric([0.5, 2.0])
    1.0
    """
    numbers = np.asarray(ratios, dtype=np.float64)
    if not len(numbers) or not all(isfinite(each) and each > 0 for each in numbers.tolist()):
        raise InvalidInputError("ratios", numbers.tolist()[:9], "finite numbers above 0, at least one")
    return float(np.exp(np.log(numbers).mean()))
