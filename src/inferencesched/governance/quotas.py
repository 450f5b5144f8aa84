"""How much may a tenant use in a day, a month, or any thirty days?

Calendar quotas begin anew on the hour, the day or the month of a fixed offset from UTC. Rolling quotas look at the last so many seconds, in
windows: what is older than the oldest window no longer counts, so that an answer is at most one window's use too strict, never too lax.

A request reserves its tokens in the window in which it comes, and settles there, whenever it ends. Law: used = settled + reserved, in each
window and in sum. Windows are counters in a `QuotaStore`, which may be shared by several gateways.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Final, Literal, NamedTuple, Protocol, final, get_args

from inferencesched.errors import InvalidInputError, QuotaExceededError, UnknownNameError
from inferencesched.governance.meters import Identity

Period = Literal["hour", "day", "month"]
Kind = Literal["requests", "tokens"]
_DAY: Final = 86_400
_SECONDS: Final = {"hour": 3600, "day": _DAY}


@dataclass(frozen=True, slots=True)
class Quota:
    """How much of what, in which time?

    Parameters
    ----------
    amount: at most.
    kind: of ``requests``, or of ``tokens``.
    period: a calendar period; "" for a rolling one.
    window: seconds of a rolling one.
    parts: in how many windows those are counted: the fewer, the cheaper, and the stricter at most by one part.
    offset: seconds east of UTC, for calendar periods.
    tenant, model: for whom; empty is everybody, each by themselves, and every model together.
    """

    amount: int
    kind: Kind = "tokens"
    period: Period | Literal[""] = "day"
    window: float = 0.0
    parts: int = 24
    offset: int = 0
    tenant: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise InvalidInputError("amount", self.amount, "an integer of at least 0")
        if self.kind not in get_args(Kind):
            raise UnknownNameError("kind", self.kind, get_args(Kind))
        if self.period:
            if self.period not in get_args(Period):
                raise UnknownNameError("period", self.period, get_args(Period))
        elif not 0 < self.window < inf:
            raise InvalidInputError("window", self.window, "seconds above 0, where there is no period")
        if self.parts < 1:
            raise InvalidInputError("parts", self.parts, "an integer of at least 1")

    def current(self, now: float) -> int:
        """Return the number of the window that `now` (seconds since the epoch) is in."""
        if not self.period:
            return int(now * self.parts // self.window)
        local = now + self.offset
        if self.period == "month":
            at = datetime.fromtimestamp(local, UTC)
            return at.year * 12 + at.month - 1
        return int(local // _SECONDS[self.period])

    def windows(self, current: int) -> range:
        """Return the windows that count: of a calendar period the current one, of a rolling one the last parts and the current."""
        return range(current, current + 1) if self.period else range(current - self.parts, current + 1)

    def ends(self, window: int) -> float:
        """Return when a window no longer counts, seconds since the epoch.

        >>> Quota(1, period="month").ends(Quota(1, period="month").current(1_700_000_000.0))  # 2023-12-01
        1701388800.0
        """
        if not self.period:
            return (window + self.parts + 1) * self.window / self.parts
        if self.period == "month":
            year, month = divmod(window + 1, 12)
            return datetime(year, month + 1, 1, tzinfo=UTC).timestamp() - self.offset
        return float((window + 1) * _SECONDS[self.period] - self.offset)


class QuotaStore(Protocol):
    """Where are the counters? Each call is atomic; a name is a string of the meter's."""

    def used(self, name: str, windows: Sequence[int]) -> Sequence[int]:
        """Return the counters of these windows, 0 for unknown ones."""
        ...

    def add(self, changes: Sequence[tuple[str, int, int]], expires_at: float) -> None:
        """Add to several counters, ``(name, window, amount)``, all or none. None of them is asked for after `expires_at`."""
        ...


@final
class MemoryQuotas:
    """Counters in this process. Those that have expired go when `sweep` says so."""

    __slots__ = ("_counts", "_expires")

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        self._expires: dict[tuple[str, int], float] = {}

    def __len__(self) -> int:
        """How many counters are kept?"""
        return len(self._counts)

    def used(self, name: str, windows: Sequence[int]) -> list[int]:
        """Return the counters of these windows, 0 for unknown ones."""
        counts = self._counts
        return [counts.get((name, window), 0) for window in windows]

    def add(self, changes: Sequence[tuple[str, int, int]], expires_at: float) -> None:
        """Add to several counters."""
        for name, window, amount in changes:
            key = (name, window)
            self._counts[key] = self._counts.get(key, 0) + amount
            self._expires[key] = max(expires_at, self._expires.get(key, -inf))

    def sweep(self, now: float) -> int:
        """Forget counters that nobody asks for any more; return how many."""
        gone = [key for key, at in self._expires.items() if at <= now]
        for key in gone:
            del self._counts[key], self._expires[key]
        return len(gone)


class QuotaGrant(NamedTuple):
    """What was reserved in which counters? ``(name, window, kind)`` each."""

    tenant: str
    tokens: int
    places: tuple[tuple[str, int, Kind], ...]
    expires_at: float


@final
class Quotas:
    """Has a tenant anything left?

    Parameters
    ----------
    quotas: all that hold for tenant and model count together.
    store: where the counters are; in memory unless said otherwise.
    on_error: what becomes of a request when the store fails: ``closed`` lets the store's error through, ``open`` lets the request pass
        without taking anything; `failures` counts them.

    What is reserved is all or nothing. What is used beyond a reservation is a debt in its window, less is given back, never more than
    reserved. `now` is seconds since the epoch. Errors of `reserve`: `QuotaExceededError` with the seconds until the quota that is used up
    has room again (exact for calendar periods, and for rolling ones if nobody else uses it meanwhile); inf (400) for what never fits.
    Cost: 3 us for `reserve` and `settle` of one calendar quota in memory.

    >>> quotas = Quotas([Quota(1000, period="hour")])
    >>> grant = quotas.reserve(Identity("acme"), "llama", 800, now=7200.0)
    >>> quotas.reserve(Identity("acme"), "llama", 300, now=7230.0)
    Traceback (most recent call last):
    ...
    inferencesched.errors.QuotaExceededError: tokens an hour of acme: 300 of 200 left of 1000
    >>> quotas.settle(grant, 100, now=7260.0)
    >>> quotas.left(Identity("acme"), "llama", now=7260.0)
    [900]
    """

    __slots__ = ("_named", "failures", "on_error", "quotas", "store")

    def __init__(
        self,
        quotas: Sequence[Quota],
        store: QuotaStore | None = None,
        *,
        on_error: Literal["open", "closed"] = "closed",
    ) -> None:
        if on_error not in ("open", "closed"):
            raise UnknownNameError("on_error", on_error, ("open", "closed"))
        self.quotas = tuple(quotas)
        self.store: QuotaStore = MemoryQuotas() if store is None else store
        self.on_error = on_error
        self.failures = 0
        self._named = tuple((quota, _span(quota)) for quota in self.quotas)

    def reserve(self, identity: Identity, model: str, tokens: int, *, now: float) -> QuotaGrant:
        """Take one request and so many tokens. Errors: as above, and nothing is taken."""
        tenant = identity.tenant
        places: list[tuple[str, int, Kind]] = []
        changes: list[tuple[str, int, int]] = []
        expires_at = now
        try:
            for quota, span in self._named:
                if quota.tenant not in ("", tenant) or quota.model not in ("", model):
                    continue
                name, current = _counter(quota, span, tenant), quota.current(now)
                need = 1 if quota.kind == "requests" else tokens
                windows = quota.windows(current)
                used = self.store.used(name, windows)
                if sum(used) + need > quota.amount:
                    raise self._exceeded(quota, span, tenant, need, used, windows, now)
                places.append((name, current, quota.kind))
                changes.append((name, current, need))
                expires_at = max(expires_at, quota.ends(current))
            if changes:
                self.store.add(changes, expires_at)
        except QuotaExceededError:
            raise
        except Exception:
            self.failures += 1
            if self.on_error == "closed":
                raise
            return QuotaGrant(tenant, tokens, (), now)
        return QuotaGrant(tenant, tokens, tuple(places), expires_at)

    def settle(self, receipt: QuotaGrant, tokens: int | None, *, now: float) -> None:
        """Charge what it used, in the windows in which it was reserved. None: the reservation stands."""
        if tokens is not None and tokens != receipt.tokens:
            more = tokens - receipt.tokens
            self._add([(name, window, more) for name, window, kind in receipt.places if kind == "tokens"], receipt)

    def cancel(self, receipt: QuotaGrant, *, now: float) -> None:
        """Give all of it back."""
        self._add(
            [(name, window, -1 if kind == "requests" else -receipt.tokens) for name, window, kind in receipt.places],
            receipt,
        )

    def left(self, identity: Identity, model: str, *, now: float) -> list[int]:
        """Return what is left of each quota that holds, in order; below 0 in debt."""
        return [
            quota.amount
            - sum(self.store.used(_counter(quota, span, identity.tenant), quota.windows(quota.current(now))))
            for quota, span in self._named
            if quota.tenant in ("", identity.tenant) and quota.model in ("", model)
        ]

    # -- inside --------------------------------------------------------------------------------------

    def _add(self, changes: list[tuple[str, int, int]], receipt: QuotaGrant) -> None:
        if not changes:
            return
        try:
            self.store.add(changes, receipt.expires_at)
        except Exception:
            self.failures += 1
            if self.on_error == "closed":
                raise

    @staticmethod
    def _exceeded(
        quota: Quota, span: str, tenant: str, need: int, used: Sequence[int], windows: range, now: float
    ) -> QuotaExceededError:
        total, wait = sum(used), inf
        if need <= quota.amount:
            for window, count in zip(windows, used, strict=True):
                total -= count
                if total + need <= quota.amount:
                    wait = quota.ends(window) - now
                    break
        rule = f"{quota.kind} {span} of {tenant or 'everybody'}"
        left = quota.amount - sum(used)
        return QuotaExceededError(rule, f"{need} of {left} left of {quota.amount}", wait)


def _span(quota: Quota) -> str:
    return (
        f"an {quota.period}"
        if quota.period == "hour"
        else f"a {quota.period}"
        if quota.period
        else f"in {quota.window:g} s"
    )


def _counter(quota: Quota, span: str, tenant: str) -> str:
    return f"{tenant}|{quota.model}|{quota.kind}|{span}|{quota.parts if not quota.period else quota.offset}"
