"""Does everything in a pool's books add up? What `InferencePool.check` asserts."""

from collections.abc import Sequence
from math import inf, isnan

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    CONTEXT_TOKENS,
    INFLIGHT_REQUESTS,
    INFLIGHT_TOKENS,
    LAST_PICKED,
    OBSERVED_AT,
    Layout,
)
from inferencesched.members import Membership, Residency
from inferencesched.reservation import Ledger, Reservation


def audit(
    members: Membership,
    residency: Residency,
    layout: Layout,
    matrix: FloatArray,
    open_: Sequence[Reservation],
    ledger: Ledger,
    oldest: tuple[float, float] | None,
) -> None:
    """Assert every relation between members, columns and reservations."""
    count = len(members.names)
    assert matrix.shape == (len(layout.signals), count)
    assert len(set(members.names)) == count == len(members.labels) == len(residency.adapters) == len(members.addresses)
    assert list(zip(members.slots.tolist(), members.generations.tolist(), strict=True)) == list(members.stays)
    assert len(set(members.slots.tolist())) == count == len(set(members.generations.tolist()))
    expected = np.zeros((3, count))
    owed_in_all = 0
    for reservation in open_:
        assert reservation.settlement is None
        assert members.names[reservation.position] == reservation.endpoint
        assert members.generations[reservation.position] == reservation.generation
        owed = reservation.tokens if isnan(reservation.first_token_at) else 0
        owed_in_all += owed
        expected[:, reservation.position] += (1, owed, reservation.context_tokens + reservation.output_tokens)
    booked = [layout.row(signal) for signal in (INFLIGHT_REQUESTS, INFLIGHT_TOKENS, CONTEXT_TOKENS)]
    assert np.array_equal(matrix[booked], expected)
    assert ledger.inflight_tokens == owed_in_all
    assert ledger.inflight_requests == len(open_)
    assert ledger.reserved_requests == ledger.settled_requests + ledger.inflight_requests
    assert ledger.reserved_tokens == ledger.settled_tokens + ledger.inflight_tokens
    assert (matrix[layout.row(LAST_PICKED)] < ledger.reserved_requests).all()
    seen = matrix[layout.row(OBSERVED_AT)]
    assert oldest in (None, (seen.min(initial=inf), seen[seen > -inf].min(initial=inf)))
