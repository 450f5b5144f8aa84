"""What happens to a fleet while it serves: servers that differ, fail, come back, are drained, and are added when there is more to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Final, Literal, get_args

from inferencesched.errors import InvalidInputError, UnknownNameError, whole_number
from inferencesched.simulator.engine import StepTime

What = Literal["fail", "join", "drain"]


def _ms(**values: float) -> None:
    """Refuse what is no time."""
    for name, value in values.items():
        if not (isfinite(value) and value >= 0):
            raise InvalidInputError(name, value, "a finite number of ms of at least 0")


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """Which servers are alike? So many, with this step time and so many KV blocks (None: the cluster's), and these labels.

    >>> ServerGroup(2, labels={"llm-d.ai/role": "prefill"}).servers
    2
    """

    servers: int
    timing: StepTime | None = None
    kv_blocks: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("servers", self.servers, low=1)
        if self.kv_blocks is not None:
            whole_number("kv_blocks", self.kv_blocks, low=1)


@dataclass(frozen=True, slots=True)
class Incident:
    """What happens to which server, when? ``fail`` loses its requests and its cache, ``join`` brings it, empty, ``drain`` has it end what it has and leave.

    A server whose first incident is to join is not there before. Errors: `InvalidInputError`, `UnknownNameError`.

    >>> Incident(60_000.0, 3, "fail").what
    'fail'
    """

    at_ms: float
    server: int
    what: What

    def __post_init__(self) -> None:
        _ms(at_ms=self.at_ms)
        whole_number("server", self.server)
        if self.what not in get_args(What):
            raise UnknownNameError("what", self.what, get_args(What))


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """How many servers should there be? As Kubernetes' horizontal autoscaler has it, by requests in flight a server.

    ``target`` requests in flight a server are right, and within ``tolerance`` of that nothing changes; else ``ceil(in flight / target)`` servers are wanted,
    of at least ``least`` and at most as many as the cluster has. It looks every ``every_ms``; a new server joins after ``boot_ms``; fewer are wanted only if all looks of the last
    ``settle_ms`` wanted fewer. ``first`` are there at the beginning. Source: kubernetes.io, Horizontal Pod Autoscaling, whose defaults these are, but for ``boot_ms``.

    >>> scaling = Autoscaling(target=10.0)
    >>> scaling.wanted(in_flight=35, ready=3, most=8), scaling.wanted(in_flight=32, ready=3, most=8)
    (4, 3)
    """

    target: float
    first: int = 1
    least: int = 1
    every_ms: float = 15_000.0
    boot_ms: float = 60_000.0
    settle_ms: float = 300_000.0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not (isfinite(self.target) and self.target > 0):
            raise InvalidInputError("target", self.target, "a finite number of requests above 0")
        whole_number("least", self.least, low=1)
        whole_number("first", self.first, low=self.least)
        _ms(boot_ms=self.boot_ms, settle_ms=self.settle_ms)
        if not (isfinite(self.every_ms) and self.every_ms > 0):
            raise InvalidInputError("every_ms", self.every_ms, "a finite number of ms above 0")
        if not 0 <= self.tolerance < 1:
            raise InvalidInputError("tolerance", self.tolerance, "0 to below 1")

    def wanted(self, in_flight: int, ready: int, most: int) -> int:
        """Return how many servers this look wants."""
        if ready and abs(in_flight / ready / self.target - 1.0) <= self.tolerance:
            return ready
        return min(most, max(self.least, ceil(in_flight / self.target)))


@dataclass(frozen=True, slots=True)
class Transfer:
    """How long do a prompt's keys and values take from one server to another? ``latency_ms``, and ``token_ms`` for each token that is not there yet.

    The default is a fast network: 25 GB/s and the 128 KiB a token of an 8 B model with grouped attention. Sources: BLIS (25 GB/s, 0.05 ms), llm-d's
    inference simulator (about 3 us a token).
    """

    latency_ms: float = 0.05
    token_ms: float = 0.00524

    def __post_init__(self) -> None:
        _ms(latency_ms=self.latency_ms, token_ms=self.token_ms)

    def ms(self, tokens: int) -> float:
        """Return how long so many tokens take."""
        return self.latency_ms + self.token_ms * tokens


#: Which servers are there, if nobody says.
ALIKE: Final[tuple[ServerGroup, ...]] = ()
