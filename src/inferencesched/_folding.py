"""How are many requests decided and booked in one call of one kernel?

The answer is that of `Scheduler.schedule_and_reserve`, request after request, to the last bit and the last draw.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from inferencesched._fusion import FOLD_ROWS, Program, folder, single_folder
from inferencesched._typing import BoolArray, FloatArray, IntArray
from inferencesched.bookings import Bookings
from inferencesched.endpoints import Endpoints
from inferencesched.errors import finite_time
from inferencesched.framework import DataProducer
from inferencesched.pool import InferencePool
from inferencesched.prefix.producer import ApproximatePrefixProducer
from inferencesched.request import InferenceRequest
from inferencesched.staleness import StalePolicy


def foldable(
    compiled: bool, program: Program, producers: Sequence[DataProducer[Any]]
) -> tuple[Program, ApproximatePrefixProducer | None] | None:
    """Return what `folded` takes for a profile: its program, and its one producer; None where it cannot be folded."""
    if not compiled or len(producers) > 1:
        return None
    if not producers:
        return program, None
    (producer,) = producers
    return (program, producer) if isinstance(producer, ApproximatePrefixProducer) else None


def folded(
    program: Program,
    prefixes: ApproximatePrefixProducer | None,
    stale: StalePolicy,
    requests: tuple[InferenceRequest, ...],
    pool: InferencePool,
    now: float,
    rng: np.random.Generator,
) -> Bookings | None:
    """Decide all and book them; None where somebody may be refused, or excluded: then they go one by one.

    With a prefix producer each prompt is looked up before its decision, and remembered behind it. For the scheduler, which
    holds the pool's lock. Errors: `InvalidInputError` for a time that is none, or hashes that are none.
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
    matrix = endpoints.matrix.copy()
    if prefixes is None:
        fold, code, at, ties = folder(), program.code_of(endpoints.layout), 0, 0
        while at < len(requests):
            nth = int(rng.random() * ties) if ties else -1
            at, ties = fold(matrix, FOLD_ROWS, masks, code, table, endpoints.sequence, at, nth)
    else:
        _with_prefixes(program, prefixes, requests, endpoints, matrix, masks, table, now, rng)
    return pool.book(requests, table, matrix[FOLD_ROWS[:4]], now=now)


def _with_prefixes(
    program: Program,
    prefixes: ApproximatePrefixProducer,
    requests: tuple[InferenceRequest, ...],
    endpoints: Endpoints,
    matrix: FloatArray,
    masks: BoolArray,
    table: IntArray,
    now: float,
    rng: np.random.Generator,
) -> None:
    """Decide one after the other, each prompt looked up before and remembered behind; write matrix and table."""
    fold, sequence, slots = single_folder(), endpoints.sequence, endpoints.slots
    code = program.code_of(endpoints.layout)
    size = prefixes.block_size
    with prefixes.sitting(endpoints, now) as sitting:
        owned, look_up, remember, rows = sitting.owned, sitting.look_up, sitting.remember, FOLD_ROWS
        settled, places, insert = sitting.settled, sitting.slots, prefixes.index.insert
        hits: list[bool] = []
        try:
            for k, request in enumerate(requests):
                hashes = look_up(request)
                blocks = -1 if hashes is None else len(hashes)
                held = sitting.depths
                place, ties, hit = fold(
                    matrix, rows, masks, code, table, held, slots, owned, blocks, size, sequence, k, -1
                )
                if ties > 1:
                    nth = int(rng.random() * ties)
                    place, _, hit = fold(
                        matrix, rows, masks, code, table, held, slots, owned, blocks, size, sequence, k, nth
                    )
                if hashes is not None:
                    if blocks:
                        hits.append(hit)
                    if place in settled:
                        insert(places[place], hashes)
                    else:
                        remember(hashes, place)
        finally:
            sitting.count(hits)


def _adapters(requests: tuple[InferenceRequest, ...], endpoints: Endpoints, table: IntArray) -> BoolArray:
    """Number the requests' adapters in the table; return where each runs, then where each waits, ``bool[2 A, E]``."""
    numbers: dict[str, int] = {}
    table[:, 1] = [numbers.setdefault(request.adapter or request.model, len(numbers)) for request in requests]
    masks = np.stack([endpoints.residency(name) for name in numbers], axis=1)
    return masks.reshape(2 * len(numbers), len(endpoints))
