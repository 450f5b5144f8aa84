"""What do the array names in our signatures mean?

Shapes are written in docstrings as ``float64[E]``: dtype, then one letter an axis.
``E`` is endpoints, ``S`` signals, ``K`` scorers, ``B`` blocks, ``T`` tokens.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]
IndexArray: TypeAlias = NDArray[np.intp]
IntArray: TypeAlias = NDArray[np.int64]
DepthArray: TypeAlias = NDArray[np.int32]
HashArray: TypeAlias = NDArray[np.uint64]
TokenArray: TypeAlias = NDArray[np.uint32]
