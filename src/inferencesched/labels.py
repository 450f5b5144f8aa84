"""Which value of a label does each endpoint have?

Labels change when endpoints come and go, decisions are made all the time: so the values of one label become a column of small
integers, once, and a plug-in looks up a table of what each value is worth to it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from inferencesched._typing import IndexArray


class LabelColumn(NamedTuple):
    """Which value of one label does each endpoint have?

    ``values`` are the distinct ones; ``codes``, ``intp[E]``, are places among them, -1 where an endpoint has no such label.
    A table of one entry for each value, and one more for those without, is looked up as ``table[codes]``.

    >>> column_of([{"zone": "b"}, {}, {"zone": "b"}, {"zone": "a"}], "zone")
    LabelColumn(values=('b', 'a'), codes=array([ 0, -1,  0,  1]))
    """

    values: tuple[str, ...]
    codes: IndexArray


def column_of(labels: Sequence[Mapping[str, str]], key: str) -> LabelColumn:
    """Return the values of the label `key`, read-only."""
    found = [each.get(key) for each in labels]
    values = tuple(dict.fromkeys(value for value in found if value is not None))
    places = {value: place for place, value in enumerate(values)}
    codes: IndexArray = np.array([-1 if value is None else places[value] for value in found], dtype=np.intp)
    codes.flags.writeable = False
    return LabelColumn(values, codes)
