"""How fast may a tenant use a model?

Token buckets, kept as the time at which each is full again (the generic cell rate algorithm): a bucket of capacity c and rate r that has v
left is full in ``(c - v) / r``. Requests are counted one by one; tokens are reserved before the request goes, prompt and expected output, and
settled when it is known what it used: more is a debt that the next ones wait for, less is given back, never more than was reserved.

Law: in any time t, at most ``capacity + rate * t`` is reserved. `retry_after` is exact for a client that is alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, NamedTuple, final

from inferencesched.errors import InvalidInputError, RateLimitedError
from inferencesched.governance.meters import Identity

_SLACK: Final = 1e-9  # of a bucket: what additions of seconds may be off by


@dataclass(frozen=True, slots=True)
class Limit:
    """How much, how fast? ``amount`` every ``per`` seconds, of which ``burst`` at once (``amount`` unless said otherwise)."""

    amount: float
    per: float = 60.0
    burst: float | None = None

    def __post_init__(self) -> None:
        for name in ("amount", "per"):
            value = getattr(self, name)
            if not 0 < value < inf:
                raise InvalidInputError(name, value, "a finite number above 0")
        if self.burst is not None and not 0 < self.burst < inf:
            raise InvalidInputError("burst", self.burst, "a finite number above 0, or None")

    @property
    def capacity(self) -> float:
        """How much may be taken at once?"""
        return self.amount if self.burst is None else self.burst


@dataclass(frozen=True, slots=True)
class RateRule:
    """Whom does a limit hold for? An empty `tenant` is every tenant, each by itself; `model` is a name, a prefix with ``*`` behind it, or ``*``."""

    requests: tuple[Limit, ...] = ()
    tokens: tuple[Limit, ...] = ()
    tenant: str = ""
    model: str = "*"

    def __post_init__(self) -> None:
        if not self.requests and not self.tokens:
            raise InvalidInputError("requests", self.requests, "at least one limit, of requests or of tokens")
        if "*" in self.model[:-1]:
            raise InvalidInputError("model", self.model, "a name, or a prefix with * behind it")

    def covers(self, tenant: str, model: str) -> bool:
        """Return whether it holds for them."""
        named = model == self.model or (self.model.endswith("*") and model.startswith(self.model[:-1]))
        return named and self.tenant in ("", tenant)

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """Which of several counts? The tenant's own, then the very model, then the longest prefix."""
        return bool(self.tenant), not self.model.endswith("*"), len(self.model)


class Grant(NamedTuple):
    """What was reserved, and where? ``meter`` is None where no rule holds."""

    meter: "_Meter | None"
    tokens: int


@final
class _Bucket:
    """One limit of one tenant: `full` is the time at which it is full again, `step` the seconds that one takes, `room` those of all of it."""

    __slots__ = ("full", "limit", "room", "step", "what")

    def __init__(self, what: str, limit: Limit | None) -> None:
        self.what = what
        self.limit = limit
        self.full = -inf
        self.step = 0.0 if limit is None else limit.per / limit.amount
        self.room = inf if limit is None else limit.capacity * self.step


@final
class _Meter:
    """The buckets of one tenant and one rule: the first of each kind, which most rules have, and the others."""

    __slots__ = ("key", "more", "requests", "tokens")

    def __init__(self, rule: RateRule, key: tuple[str, int]) -> None:
        self.key = key
        requests = [_Bucket("requests", limit) for limit in rule.requests or (None,)]
        tokens = [_Bucket("tokens", limit) for limit in rule.tokens or (None,)]
        self.requests, self.tokens = requests[0], tokens[0]
        self.more = (*requests[1:], *tokens[1:])

    def all(self) -> tuple[_Bucket, ...]:
        """Return every bucket."""
        return self.requests, self.tokens, *self.more


@final
class RateLimiter:
    """Is a tenant within its rate?

    Parameters
    ----------
    rules: of those that hold for tenant and model, one counts: the tenant's own before everybody's, the very model before the longest prefix.
    most: how many tenants' buckets are kept. Beyond that, those that are full again are forgotten, which changes nothing; where
        none is, the one that is full soonest.

    All limits of a rule hold at once; a request that passes one of them takes nothing of the others. Models that share a rule share its
    buckets. Not safe from several threads. Cost: 2 us for `reserve` and `settle` together with two limits.
    Errors of `reserve`: `RateLimitedError`, with the seconds until it would fit; inf (400) for what never fits.

    >>> limiter = RateLimiter([RateRule(requests=(Limit(2, per=1.0),), tokens=(Limit(1000, per=60.0),))])
    >>> who = Identity("acme")
    >>> grant = limiter.reserve(who, "llama", 900, now=0.0)
    >>> limiter.reserve(who, "llama", 400, now=0.0)
    Traceback (most recent call last):
    ...
    inferencesched.errors.RateLimitedError: tokens of acme: 400 of 100 left of 1000 every 60 s
    >>> limiter.settle(grant, 300, now=1.0)
    >>> limiter.reserve(who, "llama", 400, now=1.0).tokens
    400
    """

    __slots__ = ("_meters", "_rules", "_which", "most")

    def __init__(self, rules: Sequence[RateRule], *, most: int = 100_000) -> None:
        if most < 1:
            raise InvalidInputError("most", most, "an integer of at least 1")
        self._rules = tuple(sorted(rules, key=lambda rule: rule.rank, reverse=True))
        self._which: dict[tuple[str, str], _Meter | None] = {}
        self._meters: dict[tuple[str, int], _Meter] = {}
        self.most = most

    def __len__(self) -> int:
        """How many tenants' buckets are kept?"""
        return len(self._meters)

    def reserve(self, identity: Identity, model: str, tokens: int, *, now: float) -> Grant:
        """Take one request and so many tokens. Errors: as above, and nothing is taken."""
        try:
            meter = self._which[identity[0], model]
        except KeyError:
            meter = self._find(identity.tenant, model, now)
        if meter is None:
            return _FREE
        requests, counts = meter.requests, meter.tokens
        # what would be the time at which it is full again? Further off than all of it takes is more than is left
        at_requests = now + requests.step if requests.full <= now else requests.full + requests.step
        at_tokens = now + tokens * counts.step if counts.full <= now else counts.full + tokens * counts.step
        if at_requests - now > requests.room or at_tokens - now > counts.room or meter.more:
            self._look(meter, identity.tenant, tokens, now)
            for bucket in meter.more:
                bucket.full = max(bucket.full, now) + (1 if bucket.what == "requests" else tokens) * bucket.step
        requests.full = at_requests
        counts.full = at_tokens
        return _grant(Grant, (meter, tokens))  # type: ignore[no-any-return]

    def settle(self, receipt: Grant, tokens: int | None, *, now: float) -> None:
        """Charge what it used: more than reserved is a debt, less is given back. None: the reservation stands."""
        meter, reserved = receipt
        if meter is None or tokens is None or tokens == reserved:
            return
        bucket, more = meter.tokens, tokens - reserved
        # a bucket is never more than full: what is given back to a full one is gone
        bucket.full = now + more * bucket.step if bucket.full <= now else bucket.full + more * bucket.step
        if meter.more:
            for other in meter.more:
                if other.what == "tokens":
                    other.full = max(other.full, now) + more * other.step

    def cancel(self, receipt: Grant, *, now: float) -> None:
        """Give back the tokens and the request: no server had it."""
        meter = receipt.meter
        if meter is not None:
            for bucket in meter.all():
                count = 1 if bucket.what == "requests" else receipt.tokens
                bucket.full = max(bucket.full, now) - count * bucket.step

    def left(self, identity: Identity, model: str, *, now: float) -> Mapping[str, float]:
        """Return what is left now, of requests and of tokens: the least of each, below 0 in debt; inf without a limit."""
        meter = self._which.get((identity.tenant, model)) or self._find(identity.tenant, model, now)
        found = {"requests": inf, "tokens": inf}
        for bucket in () if meter is None else meter.all():
            found[bucket.what] = min(found[bucket.what], _left(bucket, now))
        return found

    def check(self) -> None:
        """Raise `AssertionError` unless every bucket is reachable and none is kept beyond the limit."""
        assert len(self._meters) <= self.most
        for meter in self._which.values():
            assert meter is None or self._meters.get(meter.key) is meter

    # -- inside --------------------------------------------------------------------------------------

    @staticmethod
    def _look(meter: _Meter, tenant: str, tokens: int, now: float) -> None:
        """Refuse what does not fit, by the limit that has to be waited for longest. What additions of seconds may be off by does not count."""
        longest, refusal = _SLACK * max(1.0, abs(now)), None
        for bucket in meter.all():
            limit = bucket.limit
            if limit is None:
                continue
            need = 1 if bucket.what == "requests" else tokens
            rule = f"{bucket.what} of {tenant or 'everybody'}"
            if need > limit.capacity:
                raise RateLimitedError(rule, f"{need:g} of at most {limit.capacity:g} at once", inf)
            wait = max(bucket.full, now) + need * bucket.step - now - bucket.room
            if wait > longest:
                detail = f"{need:g} of {_left(bucket, now):g} left of {limit.amount:g} every {limit.per:g} s"
                longest, refusal = wait, (rule, detail)
        if refusal is not None:
            raise RateLimitedError(*refusal, longest)

    def _find(self, tenant: str, model: str, now: float) -> _Meter | None:
        found = next((i for i, rule in enumerate(self._rules) if rule.covers(tenant, model)), None)
        if len(self._which) >= 4 * self.most:
            self._which.clear()  # names that clients made up: they are found again
        if found is None:
            self._which[tenant, model] = None
            return None
        key = (tenant, found)
        meter = self._meters.get(key)
        if meter is None:
            if len(self._meters) >= self.most:
                self._forget(now)
            meter = self._meters[key] = _Meter(self._rules[found], key)
        self._which[tenant, model] = meter
        return meter

    def _forget(self, now: float) -> None:
        """Make room: forget who is full again, else who is full soonest."""
        when = {key: max(bucket.full for bucket in meter.all()) for key, meter in self._meters.items()}
        gone = {key for key, at in when.items() if at <= now} or {min(when, key=lambda key: when[key])}
        for key in gone:
            del self._meters[key]
        self._which = {names: meter for names, meter in self._which.items() if meter is None or meter.key not in gone}


def _left(bucket: _Bucket, now: float) -> float:
    limit = bucket.limit
    return inf if limit is None else limit.capacity - max(0.0, bucket.full - now) / bucket.step


_grant: Final[Any] = tuple.__new__
_FREE: Final = Grant(None, 0)
