"""How are many requests decided and booked in one call of one kernel?

The answer is that of `Scheduler.schedule_and_reserve`, request after request, to the last bit and the last draw.
"""

import numpy as np

from inferencesched._fusion import FOLD_ROWS, Program, folder
from inferencesched._typing import BoolArray, IntArray
from inferencesched.bookings import Bookings
from inferencesched.endpoints import Endpoints
from inferencesched.errors import finite_time
from inferencesched.pool import InferencePool
from inferencesched.request import InferenceRequest
from inferencesched.staleness import StalePolicy


def folded(
    program: Program,
    stale: StalePolicy,
    requests: tuple[InferenceRequest, ...],
    pool: InferencePool,
    now: float,
    rng: np.random.Generator,
) -> Bookings | None:
    """Decide all and book them; None where somebody may be refused, or excluded: then they go one by one.

    For the scheduler, which holds the pool's lock. Errors: `InvalidInputError` for a time that is none.
    """
    endpoints = pool.snapshot()
    finite_time(now)
    if not len(endpoints) or stale.assume == "exclude":
        return None
    endpoints = stale.apply(endpoints, now)
    table = np.zeros((len(requests), 5), dtype=np.int64)
    table[:, 0] = [
        request.prompt_tokens or 0 if (length := request.input_tokens) is None else length for request in requests
    ]
    masks = _adapters(requests, endpoints, table) if program.loras else program.NO_MASKS
    matrix, fold, at, ties = endpoints.matrix.copy(), folder(), 0, 0
    while at < len(requests):
        nth = int(rng.random() * ties) if ties else -1
        at, ties = fold(matrix, FOLD_ROWS, masks, program.code, table, endpoints.sequence, at, nth)
    return pool.book(requests, table, matrix[FOLD_ROWS[:4]], now=now)


def _adapters(requests: tuple[InferenceRequest, ...], endpoints: Endpoints, table: IntArray) -> BoolArray:
    """Number the requests' adapters in the table; return where each runs, then where each waits, ``bool[2 A, E]``."""
    numbers: dict[str, int] = {}
    table[:, 1] = [numbers.setdefault(request.adapter or request.model, len(numbers)) for request in requests]
    masks = np.stack([endpoints.residency(name) for name in numbers], axis=1)
    return masks.reshape(2 * len(numbers), len(endpoints))
