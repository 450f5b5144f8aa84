"""How is a kernel compiled, and which kernels exist?

Rules of the cellar:

* this package is the only place that imports numba;
* a kernel is a plain function: arrays and scalars in, arrays and scalars out;
* never ``fastmath``: under it ``x != x`` is false for NaN, and a broken scorer could win unseen;
* no explicit signatures (a read-only array is another numba type), so callers coerce dtypes;
* no kernel calls a kernel of another module: numba's disk cache does not see edits in other files. The instructions
  at the end of this module, which Python has no operator for, are the exception: they never change.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numpy as np
from numba.core import types
from numba.extending import intrinsic

P = ParamSpec("P")
R = TypeVar("R")

#: Every kernel by qualified name, for tests that bound options and signatures.
KERNELS: dict[str, Any] = {}

OPTIONS = {"nogil": True, "fastmath": False, "boundscheck": False, "error_model": "numpy"}


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile lazily, cached on disk where a directory is writable and in memory where none is."""
    try:
        compiled = numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # numba found no writable place for its cache: a read-only install
        compiled = numba.njit(cache=False, **OPTIONS)(function)
    KERNELS[f"{function.__module__}.{function.__qualname__}"] = compiled
    return cast(Callable[P, R], compiled)


def _fold_product(_context: Any, _a: Any, _b: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = arguments[0].type
        wide = type(word)(128)
        product = builder.mul(builder.zext(arguments[0], wide), builder.zext(arguments[1], wide))
        high = builder.lshr(product, wide(64))
        return builder.xor(builder.trunc(product, word), builder.trunc(high, word))

    return types.uint64(types.uint64, types.uint64), build


def _swap_bytes(_context: Any, _a: Any) -> Any:
    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), build


#: Multiply two uint64 to 128 bits and xor the halves: one instruction and a xor, where Python has four products.
fold_product: Callable[[np.uint64, np.uint64], np.uint64] = intrinsic(_fold_product)
#: Reverse the eight bytes of a uint64.
swap_bytes: Callable[[np.uint64], np.uint64] = intrinsic(_swap_bytes)
