"""Of what is a director made, and what becomes of a request when a part of it fails?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from inferencesched.errors import InvalidInputError, UnknownNameError
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.framework import Admitter, PreRequest, Screener
from inferencesched.governance.meters import Identity
from inferencesched.pool import InferencePool
from inferencesched.scheduler import Scheduler

OnError = Literal["open", "closed"]


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What becomes of a request when a plug-in of the gateway's raises something that is no refusal?

    ``closed`` refuses it with a `StageFailedError` (500), ``open`` goes on as if the plug-in were not there. Either way a
    `PluginFailed` event names stage and plug-in. By default nobody gets past identity, limits, screeners and checks that
    failed, while one that only sheds load may be missing. Guards have a policy each of their own.
    """

    identity: OnError = "closed"
    tokenizer: OnError = "open"
    meter: OnError = "closed"
    screener: OnError = "closed"
    admitter: OnError = "open"
    pre_request: OnError = "closed"
    split: OnError = "closed"
    mirror: OnError = "open"

    def __post_init__(self) -> None:
        for stage in self.__slots__:
            if getattr(self, stage) not in get_args(OnError):
                raise UnknownNameError(stage, getattr(self, stage), get_args(OnError))


@dataclass(frozen=True, slots=True, eq=False)
class ServingPool:
    """What decides for one InferencePool?

    Parameters
    ----------
    pool: its endpoints.
    scheduler: who chooses among them.
    controller: who says when; None lets everything go at once.
    models: the base models it serves, for a director without routes; empty is any.
    screeners, admitters, pre_request: who may deny, and where.
    """

    pool: InferencePool
    scheduler: Scheduler
    controller: FlowController | None = None
    models: frozenset[str] = frozenset()
    screeners: tuple[Screener, ...] = field(default=())
    admitters: tuple[Admitter, ...] = field(default=())
    pre_request: tuple[PreRequest, ...] = field(default=())

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, Any], ...] = (
            ("screeners", Screener),
            ("admitters", Admitter),
            ("pre_request", PreRequest),
        )
        for name, kind in kinds:
            for i, plugin in enumerate(getattr(self, name)):
                if not isinstance(plugin, kind):
                    raise InvalidInputError(f"{name}[{i}]", plugin, f"a {kind.__name__}")


class Identifies(Protocol):
    """Who asks? `governance.identity` has those that are needed."""

    def identify(self, headers: Mapping[str, str], claims: Mapping[str, object] | None, *, now: float) -> Identity:
        """Return who asks; `UnauthenticatedError` or `ForbiddenError` where they may not."""
        ...


class Retries(Protocol):
    """May a request be tried at another endpoint? `lifecycle.retry` has one."""

    def may_retry(self, *, attempt: int, first_byte_sent: bool, idempotent: bool, failure: str, now: float) -> bool:
        """Return whether it may; changes nothing."""
        ...

    def asked(self, now: float) -> None:
        """Say that a request came."""
        ...

    def spent(self, now: float, failure: str) -> None:
        """Say that it was tried again, after that failure."""
        ...
