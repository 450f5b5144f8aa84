"""Is what the pages say of outcomes what the code says?"""

import re
from math import inf, isnan, nan
from pathlib import Path

import pytest

from inferencesched.errors import (
    InvalidInputError,
    QueueEvictedError,
    QueueRefusedError,
    QueueRejectedError,
    QueueRevokedError,
    RequestRefusedError,
)
from inferencesched.flowcontrol import (
    DROPPED_REASON_HEADER,
    RETRY_AFTER_HEADER,
    Capacity,
    Cause,
    FlowController,
    OpenGate,
    QueueItem,
    QueueOutcome,
    infer_outcome,
    outcomes,
    refusal,
)

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "outcomes.md").read_text(encoding="utf-8")


def table(text, head):
    """Return the rows of the table with this first column, without ticks."""
    _, _, behind = text.partition(f"| {head} |")
    rows = behind.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().strip("`") for cell in row.strip().strip("|").split("|")] for row in rows]


def row(outcome):
    kind = ""
    if outcome.refused:
        kind = type(refusal(outcome, "r")).__name__
    status = "" if outcome.status is None else str(outcome.status)
    retry = "yes" if outcome.retryable else ""
    return [outcome.value, status, outcome.code, outcome.reason, retry, outcome.reference, kind]


def test_the_page_has_every_outcome_as_it_is():
    assert table(PAGE, "outcome") == [row(outcome) for outcome in QueueOutcome]


def test_the_module_says_the_same():
    said = table(outcomes.__doc__, "outcome")
    names = [name.strip() for cells in said for name in cells[0].split(",")]
    assert names == [outcome.value for outcome in QueueOutcome]
    for cells in said:
        value, status, _, reason, retry, reference, _ = row(QueueOutcome(cells[0]))
        assert cells == [value, status, reason, reference, retry]


def test_causes():
    assert table(PAGE, "cause") == [
        [
            cause.name,
            cause.value,
            infer_outcome(cause, queued=False).value,
            infer_outcome(cause, queued=True).value,
        ]
        for cause in Cause
    ]
    assert infer_outcome(None, queued=True) is infer_outcome((), queued=True) is QueueOutcome.EVICTED_OTHER
    assert infer_outcome({Cause.CAPACITY, Cause.TTL}, queued=False) is QueueOutcome.REJECTED_TTL


@pytest.mark.parametrize(
    ("cause", "queued", "outcome"),
    [
        (Cause.TTL, True, QueueOutcome.EVICTED_NO_ENDPOINTS),
        (Cause.TTL, False, QueueOutcome.REJECTED_NO_ENDPOINTS),
        (Cause.CAPACITY, False, QueueOutcome.REJECTED_NO_ENDPOINTS),
        (Cause.CAPACITY, True, QueueOutcome.EVICTED_DISPLACED),
        (Cause.CANCELLED, True, QueueOutcome.EVICTED_CANCELLED),
        (Cause.SHUTDOWN, True, QueueOutcome.EVICTED_SHUTDOWN),
    ],
)
def test_an_empty_pool(cause, queued, outcome):
    assert infer_outcome(cause, queued, empty=True) is outcome


@pytest.mark.parametrize("outcome", QueueOutcome)
def test_what_a_client_sees_hangs_together(outcome):
    if not outcome.refused:
        assert (outcome.status, outcome.reason, outcome.headers(5.0)) == (None, "", {})
        with pytest.raises(InvalidInputError, match="outcome"):
            refusal(outcome, "r")
        return
    error = refusal(outcome, "r", retry_after=2.5, wait=1.5, detail="why")
    assert isinstance(error, QueueRefusedError) and isinstance(error, RequestRefusedError)
    kinds = {QueueRejectedError: outcome.rejected, QueueEvictedError: outcome.evicted}
    kinds[QueueRevokedError] = not any(kinds.values())
    assert [kind for kind, fits in kinds.items() if fits] == [type(error)]
    assert (error.outcome, error.status, error.request_id, error.wait) == (outcome.value, outcome.status, "r", 1.5)
    assert error.headers.get(DROPPED_REASON_HEADER, "") == outcome.reason
    assert (RETRY_AFTER_HEADER in error.headers) == outcome.retryable == (error.retry_after < inf)
    assert str(error) == f"request 'r': {outcome.value}: why"


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (3599.5, "3600")])
def test_retry_after_is_whole_seconds(seconds, said):
    assert QueueOutcome.EVICTED_TTL.headers(seconds)[RETRY_AFTER_HEADER] == said


@pytest.mark.parametrize("seconds", [inf, nan, -1.0])
def test_nobody_can_tell_when(seconds):
    assert RETRY_AFTER_HEADER not in QueueOutcome.EVICTED_TTL.headers(seconds)


class Valve(OpenGate):
    """A gate that lets one through each time."""

    left = 0

    def level(self, now):
        return 0.0 if Valve.left else 1.0

    def dispatched(self, ticket, now):
        Valve.left -= 1


def test_a_wait_is_estimated_from_how_many_are_before_and_how_fast_they_go():
    controller = FlowController(gate=Valve(), capacity=Capacity(requests=20))
    Valve.left = 0
    for i in range(20):
        controller.submit(QueueItem(request_id=f"{i}"), now=0.0)
    unknown = controller.submit(QueueItem(request_id="first"), now=0.0)
    assert isnan(unknown.wait) and unknown.error().headers[RETRY_AFTER_HEADER] == "1"
    for i in range(10):  # one every two seconds
        Valve.left = 1
        assert len(controller.step(now=2.0 * i)) == 1
    for i in range(10):
        controller.submit(QueueItem(request_id=f"more-{i}"), now=18.0)
    late = controller.submit(QueueItem(request_id="late"), now=18.0)
    assert late.wait == pytest.approx(2.0 * 21)
    error = late.error()
    assert error.headers == {DROPPED_REASON_HEADER: "rejected-saturated", RETRY_AFTER_HEADER: "42"}
    assert (error.status, error.detail) == (429, "20 of 20 requests wait in all")
    expired = controller.step(now=60.0)[0].error()
    assert isinstance(expired, QueueEvictedError) and int(expired.headers[RETRY_AFTER_HEADER]) >= 20
    assert re.fullmatch(r"request '\d+': evicted_ttl", str(expired))
