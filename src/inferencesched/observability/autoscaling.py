"""How many servers would be right?

Demand counts what waits and what is being served: a queue in front of the servers holds their load at its limit, so that the servers' own
metrics say no more than that they are full. The formula and its rules are the Horizontal Pod Autoscaler's, as pure functions.

Source: Kubernetes documentation, "Horizontal Pod Autoscaling", algorithm details; llm-d's guides to autoscaling.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, nan
from typing import Any, Final, NamedTuple, final

from inferencesched.endpoints import INFLIGHT_REQUESTS, INFLIGHT_TOKENS, Endpoints
from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.controller import FlowController
from inferencesched.observability.events import Ended, Event, Refused

TOLERANCE: Final = 0.1


def desired_replicas(
    current: int, metric: float, target: float, *, ready: int | None = None, tolerance: float = TOLERANCE
) -> int:
    """Return the replicas that would bring a metric of all of them together to `target` each, ``ceil(metric / target)``.

    `metric` is the sum over replicas. Within `tolerance` of what there is, nothing changes; `ready` are those of `current` that the metric
    is of: the others are taken to need nothing when more are wanted, and the target when fewer are, so that neither direction is
    overdone. Errors: `InvalidInputError`.

    >>> desired_replicas(2, 400.0, 100.0), desired_replicas(2, 205.0, 100.0), desired_replicas(2, 100.0, 100.0)
    (4, 2, 1)
    """
    if current < 0:
        raise InvalidInputError("current", current, "an integer of at least 0")
    if not 0 < target < inf:
        raise InvalidInputError("target", target, "a finite number above 0")
    if not 0 <= metric < inf:
        raise InvalidInputError("metric", metric, "a finite number of at least 0")
    if not current:
        return ceil(metric / target) if metric else 0
    counted = current if ready is None else ready
    if not 0 <= counted <= current:
        raise InvalidInputError("ready", ready, f"0 to {current}")
    if not counted:
        return current
    ratio = metric / counted / target
    if abs(ratio - 1.0) <= tolerance:
        return current
    if counted < current:
        missing = 0.0 if ratio > 1.0 else (current - counted) * target
        again = (metric + missing) / current / target
        if abs(again - 1.0) <= tolerance or (again > 1.0) != (ratio > 1.0):
            return current
        return ceil(again * current - 1e-9)
    return ceil(ratio * counted - 1e-9)


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """How quickly do replicas follow?

    Parameters
    ----------
    least, most: replicas at any time; `least` 0 lets a pool that nobody asks go to zero.
    tolerance: deviations from the target that change nothing.
    up_window, down_window: seconds: of all that was recommended in the last so many, going up takes the least, going down the greatest.
    """

    least: int = 1
    most: int = 100
    tolerance: float = TOLERANCE
    up_window: float = 0.0
    down_window: float = 300.0

    def __post_init__(self) -> None:
        if self.least < 0:
            raise InvalidInputError("least", self.least, "an integer of at least 0")
        if self.most < max(1, self.least):
            raise InvalidInputError("most", self.most, f"an integer of at least {max(1, self.least)}")
        for name in ("tolerance", "up_window", "down_window"):
            value = getattr(self, name)
            if not 0 <= value < inf:
                raise InvalidInputError(name, value, "a finite number of at least 0")


class ScalingSignal(NamedTuple):
    """What does an autoscaler need to know of one pool, and what would be right?

    ``demand_tokens_per_s`` is prompt and output that came in the last window, and what waits or is being computed spread over it;
    ``oldest_wait_s`` is 0 where nobody waits; rates are shares of the requests that ended in the window, NaN where none did.
    """

    pool: str
    now: float
    replicas: int
    recommended_replicas: int
    demand_tokens_per_s: float
    backlog_requests: int
    backlog_tokens: int
    inflight_requests: int
    inflight_tokens: int
    saturation_by_stage: Mapping[str, float]
    oldest_wait_s: float
    shed_rate: float
    slo_violation_rate: float


@final
class Autoscaler:
    """How many servers would be right for a pool? Listens to the director's events, and looks at queue and servers when asked.

    Parameters
    ----------
    pool: whose events count.
    target: tokens a second that one server is to carry.
    policy: how quickly it follows.
    window: seconds over which demand and rates are taken.
    slo_ttft: seconds to the first token that are a violation; None counts none.

    A pool without servers, in whose queue somebody waits, is recommended one at least, at once. Cost: 1 us an event.

    >>> scaler = Autoscaler("llama", target=1000.0)
    >>> scaler.recommend(now=0.0, ready=2, demand=2500.0)
    3
    >>> scaler.recommend(now=10.0, ready=3, demand=500.0), scaler.recommend(now=400.0, ready=3, demand=500.0)
    (3, 1)
    """

    __slots__ = ("_advice", "_came", "_ends", "policy", "pool", "slo_ttft", "target", "window")

    def __init__(
        self,
        pool: str,
        *,
        target: float,
        policy: ScalingPolicy | None = None,
        window: float = 60.0,
        slo_ttft: float | None = None,
    ) -> None:
        for name, value in (("target", target), ("window", window)):
            if not 0 < value < inf:
                raise InvalidInputError(name, value, "a finite number above 0")
        self.pool = pool
        self.target = target
        self.policy = ScalingPolicy() if policy is None else policy
        self.window = window
        self.slo_ttft = slo_ttft
        self._came: deque[tuple[float, int]] = deque()  # when, and tokens
        self._ends: deque[tuple[float, bool, bool]] = deque()  # when, shed, late
        self._advice: deque[tuple[float, int]] = deque()

    def emit(self, event: Event) -> None:
        """Take note of what happened to a request of this pool."""
        if isinstance(event, Ended):
            if event.labels.pool == self.pool:
                late = self.slo_ttft is not None and event.ttft is not None and event.ttft > self.slo_ttft
                self._ends.append((event.at, False, late))
                used = (event.usage.input_tokens or 0) + (event.usage.output_tokens or 0)
                self._came.append((event.at, used))
        elif isinstance(event, Refused) and event.labels.pool == self.pool:
            self._ends.append((event.at, event.status in (429, 503), False))

    def signal(
        self,
        endpoints: Endpoints,
        controller: FlowController | None = None,
        *,
        now: float,
        saturation: Mapping[str, float] | None = None,
    ) -> ScalingSignal:
        """Return the signal, and remember what it recommends. `saturation` is by stage, of the pool's detector."""
        self._forget(now)
        waiting = waiting_tokens = 0
        oldest = 0.0
        for band in () if controller is None else controller.bands:
            waiting += band.requests
            waiting_tokens += band.tokens
            if band.oldest is not None:
                oldest = max(oldest, now - band.oldest.enqueued_at)
        inflight = int(endpoints[INFLIGHT_REQUESTS].sum()) if len(endpoints) else 0
        computing = int(endpoints[INFLIGHT_TOKENS].sum()) if len(endpoints) else 0
        served = sum(tokens for _, tokens in self._came)
        demand = (served + waiting_tokens + computing) / self.window
        ended = len(self._ends)
        ready = len(endpoints)
        advice = self.recommend(now=now, ready=ready, demand=demand, waiting=waiting)
        return ScalingSignal(
            self.pool,
            now,
            ready,
            advice,
            demand,
            waiting,
            waiting_tokens,
            inflight,
            computing,
            dict(saturation or {}),
            oldest,
            sum(shed for _, shed, _ in self._ends) / ended if ended else nan,
            sum(late for _, _, late in self._ends) / ended if ended else nan,
        )

    def recommend(self, *, now: float, ready: int, demand: float, waiting: int = 0) -> int:
        """Return the replicas that would be right, by the formula, the tolerance, the windows and the bounds."""
        policy = self.policy
        wanted = desired_replicas(ready, demand, self.target, tolerance=policy.tolerance)
        if not ready and waiting:
            wanted = max(1, wanted)
        wanted = min(policy.most, max(policy.least, wanted))
        self._advice.append((now, wanted))
        longest = max(policy.up_window, policy.down_window)
        while self._advice[0][0] < now - longest:
            self._advice.popleft()
        if not ready:
            return wanted
        up = min((n for at, n in self._advice if at >= now - policy.up_window), default=wanted)
        down = max((n for at, n in self._advice if at >= now - policy.down_window), default=wanted)
        settled = min(max(ready, up), down) if up <= down else wanted
        return min(policy.most, max(policy.least, settled))

    def _forget(self, now: float) -> None:
        since = now - self.window
        while self._came and self._came[0][0] < since:
            self._came.popleft()
        while self._ends and self._ends[0][0] < since:
            self._ends.popleft()


def recommended(several: Iterable[int]) -> int:
    """Return what several metrics recommend together: the greatest. Errors: `InvalidInputError` for none."""
    counts = list(several)
    if not counts:
        raise InvalidInputError("several", counts, "at least one recommendation")
    return max(counts)


def external_metrics(signal: ScalingSignal, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return a signal as the items of a Kubernetes ``ExternalMetricValueList``, which HPA and KEDA read.

    >>> from inferencesched.pool import InferencePool
    >>> signal = Autoscaler("llama", target=1000.0).signal(InferencePool().snapshot(), now=0.0)
    >>> external_metrics(signal, ["recommended_replicas"])["items"][0]["value"]
    '1'
    """
    values = {
        name: value
        for name, value in signal._asdict().items()
        if isinstance(value, (int, float)) and isfinite(value) and name != "now" and (not names or name in names)
    }
    return {
        "kind": "ExternalMetricValueList",
        "apiVersion": "external.metrics.k8s.io/v1beta1",
        "items": [
            {
                "metricName": name,
                "metricLabels": {"inference_pool": signal.pool},
                "value": str(value) if isinstance(value, int) else f"{round(value * 1000)}m",
            }
            for name, value in values.items()
        ],
    }
