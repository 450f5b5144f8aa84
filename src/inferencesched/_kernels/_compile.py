"""How is a kernel compiled, and which kernels exist?

Rules of the cellar:

* this package is the only place that imports numba;
* a kernel is a plain function: arrays and scalars in, arrays and scalars out;
* never ``fastmath``: under it ``x != x`` is false for NaN, and a broken scorer could win unseen;
* no explicit signatures (a read-only array is another numba type), so callers coerce dtypes;
* no kernel calls a kernel of another module: numba's disk cache does not see edits in other files.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba

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
