"""Who has attained least service lately?"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import inf, isfinite, log2
from typing import final

from inferencesched.errors import InvalidInputError
from inferencesched.flowcontrol.fairness.order import FlowHeap
from inferencesched.flowcontrol.flows import Flow, FlowOrder, Ticket


@dataclass(frozen=True, slots=True)
class LeastAttainedService:
    """Which flow has had least service lately, and has waited longest? llm-d's ``program-aware-fairness``, strategy ``las``.

    The greatest ``service * (1 - s) + head_wait * w`` goes, with s a flow's service and w the wait of its head, both scaled to
    what they range over among the flows that wait: least 0, greatest 1, and 0.5 where all are equal. Ties go to the head that
    came first. Service is what a flow was charged, divided by its weight; it halves every ``half_life`` seconds.

    Parameters
    ----------
    service, head_wait: what either counts for.
    half_life: seconds; 0 is no decay.
    idle_ttl: a flow of which nothing waited or was in flight for so many seconds begins anew. The controller may forget it
        before (``flow_ttl``, ``most_idle``), which comes to the same.

    Charged when dispatched and settled when completed: llm-d charges at completion alone, and a flow can send a whole burst
    before it is charged anything. No bound all the same: who was away has credit until the others' service has decayed.

    Cost of a pick: O(F), since all waits grow; with ``head_wait=0`` O(log F): everybody decays alike, so the order of two flows
    changes only when one of them is charged, and ``log2(s) + t / half_life`` of a service s at time t is a key that stays.

    >>> from inferencesched.flowcontrol import FlowController, PriorityBand
    >>> controller = FlowController(default=PriorityBand(0, fairness=LeastAttainedService(head_wait=0.0)))
    """

    service: float = 0.8
    head_wait: float = 0.2
    half_life: float = 60.0
    idle_ttl: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in (("service", self.service), ("head_wait", self.head_wait), ("half_life", self.half_life)):
            if not (isfinite(value) and value >= 0):
                raise InvalidInputError(name, value, "a finite number of at least 0")
        if not self.idle_ttl >= 0:
            raise InvalidInputError("idle_ttl", self.idle_ttl, "seconds of at least 0")

    def attained(self, flow: Flow, now: float) -> float:
        """Return the service that a flow of such a band has now, decayed."""
        return _Attained(self.half_life, self.idle_ttl).at(flow, now)

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        attained = _Attained(self.half_life, self.idle_ttl)
        if self.service > 0 and not self.head_wait:
            return _LeastOrder(attained)
        return _ScoreOrder(attained, self.service, self.head_wait)


def scaled(value: float, least: float, most: float) -> float:
    """Where does a value stand in a range? 0 at its least, 1 at its most, 0.5 where the range is a point.

    >>> scaled(2.0, 0.0, 10.0), scaled(7.0, 7.0, 7.0)
    (0.2, 0.5)
    """
    return (value - least) / (most - least) if most > least else 0.5


@final
class _Attained:
    """How much service has a flow? ``counter`` is what it had at the time ``tag``."""

    __slots__ = ("half_life", "idle_ttl")

    def __init__(self, half_life: float, idle_ttl: float) -> None:
        self.half_life = half_life
        self.idle_ttl = idle_ttl

    def at(self, flow: Flow, now: float) -> float:
        """Return a flow's service now."""
        if not self.half_life or now <= flow.tag or not flow.counter:
            return flow.counter
        return float(flow.counter * 2.0 ** ((flow.tag - now) / self.half_life))

    def add(self, flow: Flow, cost: float, now: float) -> None:
        """Charge a flow, or give back what it was charged too much; what has decayed meanwhile is not given back."""
        flow.counter = max(0.0, self.at(flow, now) + cost / flow.weight)
        flow.tag = now

    def begin(self, flow: Flow, now: float) -> None:
        """Let a flow begin anew that was idle for too long."""
        if now - flow.idle_since >= self.idle_ttl:
            flow.counter = 0.0


@final
class _ScoreOrder:
    """The score as llm-d has it: every pick reads every flow that waits."""

    __slots__ = ("_attained", "_flows", "_head_wait", "_service")

    rule = "little service lately and a long wait"

    def __init__(self, attained: _Attained, service: float, head_wait: float) -> None:
        self._attained = attained
        self._service = service
        self._head_wait = head_wait
        self._flows: dict[Flow, None] = {}

    def arrived(self, flow: Flow, now: float) -> None:
        self._attained.begin(flow, now)
        self._flows[flow] = None

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        heads = [(flow, head) for flow in self._flows if flow not in passed and (head := flow.queue.head()) is not None]
        if len(heads) < 2:
            return heads[0][0] if heads else None
        best, best_score, best_number = None, -inf, 0
        for flow, number, score in self._scores(heads, now):
            if score > best_score or (score == best_score and number < best_number):
                best, best_score, best_number = flow, score, number
        return best

    def _scores(self, heads: list[tuple[Flow, Ticket]], now: float) -> Iterator[tuple[Flow, int, float]]:
        """Walk flows with their heads' numbers and their scores."""
        services = [self._attained.at(flow, now) for flow, _ in heads]
        waits = [now - head.enqueued_at for _, head in heads]
        least, most = min(services, default=0.0), max(services, default=0.0)
        shortest, longest = min(waits, default=0.0), max(waits, default=0.0)
        for (flow, head), service, wait in zip(heads, services, waits, strict=True):
            score = self._service * (1.0 - scaled(service, least, most))
            score += self._head_wait * scaled(wait, shortest, longest)
            yield flow, head.number, score

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, the greatest score first, and their service. O(F log F)."""
        heads = [(flow, head) for flow in self._flows if (head := flow.queue.head()) is not None]
        scores = sorted(self._scores(heads, now), key=lambda scored: (-scored[2], scored[1]))
        return [(flow, self._attained.at(flow, now)) for flow, _, _ in scores]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self._attained.add(flow, cost, now)
        if flow.queue.head() is None:
            del self._flows[flow]

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        self._attained.add(flow, correction, now)

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is None:
            self._flows.pop(flow, None)


@final
class _LeastOrder(FlowHeap):
    """The same without waits: a heap by decayed service, in a form that does not change while it decays."""

    __slots__ = ("_attained",)

    rule = "the least service lately"

    def __init__(self, attained: _Attained) -> None:
        super().__init__()
        self._attained = attained

    def arrived(self, flow: Flow, now: float) -> None:
        self._attained.begin(flow, now)
        self.changed(flow, now)

    def _number_of(self, flow: Flow, now: float) -> float:
        return self._attained.at(flow, now)

    def served(self, flow: Flow, cost: float, now: float) -> None:
        self._attained.add(flow, cost, now)
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        self._attained.add(flow, correction, now)
        if flow.entry:
            self.changed(flow, now)

    def changed(self, flow: Flow, now: float) -> None:
        head = flow.queue.head()
        if head is None:
            self._drop(flow)
            return
        service, half_life = flow.counter, self._attained.half_life
        if half_life:
            service = log2(service) + flow.tag / half_life if service else -inf
        self._again(flow, (service, head.number))
