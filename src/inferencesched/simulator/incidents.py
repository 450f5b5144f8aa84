"""What happens to a fleet while it serves: servers that differ, fail, come back, are drained, and are added when there is more to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Literal, get_args

from inferencesched.errors import InvalidInputError, UnknownNameError, not_negative, whole_number
from inferencesched.observability.autoscaling import Autoscaler, ScalingPolicy
from inferencesched.simulator.engine import StepTime

What = Literal["fail", "join", "drain"]


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
        not_negative("at_ms", self.at_ms, " of ms")
        whole_number("server", self.server)
        if self.what not in get_args(What):
            raise UnknownNameError("what", self.what, get_args(What))


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Who says how many servers there are, and how soon does that come true? The gateway's own `Autoscaler`, on requests in flight.

    ``target`` requests in flight a server are right; ``policy`` has the bounds, the tolerance and the windows. It looks every ``every_ms``; a new server joins after
    ``boot_ms``, one too many is drained. ``first`` are there at the beginning.

    >>> Autoscaling(target=10.0).policy.down_window
    300.0
    """

    target: float
    first: int = 1
    every_ms: float = 15_000.0
    boot_ms: float = 60_000.0
    policy: ScalingPolicy = field(default_factory=ScalingPolicy)

    def __post_init__(self) -> None:
        whole_number("first", self.first, low=1)
        not_negative("boot_ms", self.boot_ms, " of ms")
        if not (isfinite(self.every_ms) and self.every_ms > 0):
            raise InvalidInputError("every_ms", self.every_ms, "a finite number of ms above 0")
        self.autoscaler(1)  # what it refuses is refused now

    def autoscaler(self, servers: int) -> Autoscaler:
        """Return a new one, for at most so many servers."""
        most = min(servers, self.policy.most)
        bounds = replace(self.policy, most=most, least=min(most, self.policy.least))
        return Autoscaler("simulated", target=self.target, policy=bounds)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How long do a prompt's keys and values take from one server to another? ``latency_ms``, and ``token_ms`` for each token that is not there yet.

    The default is a fast network: 25 GB/s and the 128 KiB a token of an 8 B model with grouped attention. Sources: BLIS (25 GB/s, 0.05 ms), llm-d's
    inference simulator (about 3 us a token).
    """

    latency_ms: float = 0.05
    token_ms: float = 0.00524

    def __post_init__(self) -> None:
        not_negative("latency_ms", self.latency_ms, " of ms")
        not_negative("token_ms", self.token_ms, " of ms")

    def ms(self, tokens: int) -> float:
        """Return how long so many tokens take."""
        return self.latency_ms + self.token_ms * tokens
