"""Which keys does an explanation have as plain data?

What `Explanation.to_dict` returns, version 1: lists, dicts, strings, booleans and numbers, ready for JSON. A number that is unknown or not
finite is None. Keys are added without a new version; a key that goes or changes its meaning makes one.
"""

from typing import Final, Literal, TypedDict

#: What ``version`` says.
VERSION: Final = 1

#: What let one endpoint win: the best total; of equal totals the one not picked for longest; a draw; the picker's own rule, whatever
#: the totals; the handler, which chose otherwise than the profile; or nothing, where there was nobody else.
Rule = Literal["only candidate", "highest total", "least recently picked", "drawn", "picker", "handler"]

#: Where somebody was dropped: by the caller, by the policy for servers not heard of, by a filter.
StageName = Literal["exclude", "staleness", "filter"]


class ScoreRecord(TypedDict):
    """What does one scorer say of one candidate?

    ``score`` is raw, 0 to 1; ``weighted`` is what it adds to the total; ``normalized`` is that as a share of the sum of all weights'
    sizes, so that it can be compared between profiles. ``scored`` is False where the score of 0 stands for "not known".
    """

    scorer: str
    score: float | None
    weighted: float | None
    normalized: float | None
    scored: bool


class CandidateRecord(TypedDict):
    """Who was a candidate to the end? ``age`` is seconds since the last observation, None for never."""

    endpoint: str
    total: float | None
    age: float | None
    stale: bool
    scores: list[ScoreRecord]


class WeightRecord(TypedDict):
    """Which scorer counts how much? At ``flips_at`` the runner-up would have drawn level, None where no weight does that."""

    scorer: str
    weight: float
    flips_at: float | None


class DropRecord(TypedDict):
    """Who was dropped where, by what and why? ``read`` are the values that the filter read of the endpoint, by signal."""

    endpoint: str
    stage: StageName
    by: str
    reason: str
    read: dict[str, float | None]


class SignalRecord(TypedDict):
    """Which column was read by whom, how fresh is it, and what did it say? By candidate; ages are seconds.

    ``freshness`` is ``scraped``, ``local``, ``static`` or ``cycle``. A scraped value is as old as the candidate's last
    observation, a local one and one made for this decision are 0 s old, a static one has no age.
    """

    signal: str
    unit: str
    freshness: str
    better: str
    readers: list[str]
    values: dict[str, float | None]
    ages: dict[str, float | None]


class ChangeRecord(TypedDict):
    """Which change of one value would have flipped the choice, and to whom?

    At ``after`` it flips, at ``short_of`` it does not yet; between the two lies at most the resolution. ``size`` is the change as a share of
    the signal's reach. ``declared`` says that every reader declares which way is better; else a nearer flip may have been missed.
    """

    endpoint: str
    signal: str
    unit: str
    before: float
    after: float
    short_of: float
    size: float
    winner: str
    declared: bool


class FailedRecord(TypedDict):
    """Which profile kept nobody?"""

    profile: str
    dropped: list[DropRecord]


class ProfileRecord(TypedDict):
    """What decided in one profile?"""

    profile: str
    endpoint: str
    picked: list[str]
    rule: Rule
    runner_up: str | None
    margin: float | None
    tie: bool
    weights: list[WeightRecord]
    candidates: list[CandidateRecord]
    signals: list[SignalRecord]
    dropped: list[DropRecord]
    changes: list[ChangeRecord]


class ExplanationRecord(ProfileRecord):
    """What decided? The profile whose answer counted (or that was asked for), the ``others`` that ran, and those that ``failed``."""

    version: int
    request_id: str
    now: float
    others: list[ProfileRecord]
    failed: list[FailedRecord]
