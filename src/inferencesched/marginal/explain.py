"""Why does a request wait, or where would it go, and what would it cost there?"""

from typing import NamedTuple

from inferencesched._kernels import marginal as kernels
from inferencesched._typing import FloatArray
from inferencesched.marginal.cost import MarginalCost


class CostParts(NamedTuple):
    """What would a request cost at one server, ms by part, and could it go there now? The parts add up to the cost it is planned by.

    ``queued`` is the prompt tokens that the server still has to compute, ``cached`` those of this prompt that it has. ``waits_for`` is empty where the
    request could go, else ``prefill`` (the server has too much to compute), ``kv`` (no room in its cache) or ``filters`` (it may not go there).
    """

    endpoint: str
    own: float
    stall: float
    decode: float
    duplicate: float
    barrier: float
    cached: int
    queued: int
    waits_for: str

    @property
    def cost(self) -> float:
        """What do the parts add up to?"""
        return self.own + self.stall + self.decode + self.duplicate + self.barrier


class BindingExplanation(NamedTuple):
    """Why does this request wait? Its servers, the cheapest first; those that it may not go to come last.

    ``key`` is its place in line, ms, and ``ahead`` how many stand before it.
    """

    request_id: str
    waited: float
    key: float
    ahead: int
    servers: tuple[CostParts, ...]

    def __str__(self) -> str:
        lines = [f"{self.request_id}: waits for {self.waited:.3f} s, {self.ahead} ahead of it"]
        lines.append(
            f"{'server':16} {'cost':>9} {'own':>9} {'stall':>9} {'decode':>9} {'twice':>9} {'kv':>9} {'cached':>8} waits for"
        )
        for each in self.servers:
            parts = (each.cost, each.own, each.stall, each.decode, each.duplicate, each.barrier)
            figures = " ".join(f"{part:9,.0f}" for part in parts)
            lines.append(f"{each.endpoint:16} {figures} {each.cached:8,} {each.waits_for or '-'}")
        return "\n".join(lines)


def parts_of(
    kind: int,
    timing: FloatArray,
    most: float,
    cost: MarginalCost,
    output: float,
    reuse: float,
    prompt: float,
    cached: float,
    best: float,
    state: FloatArray,
) -> tuple[float, float, float, float, float]:
    """Return what a request costs at one server, of state ``float64[6]``: own, stall, decode, duplicate, barrier. As the kernel sums them."""
    requests, context, room = (float(state[row]) for row in (kernels.REQUESTS, kernels.CONTEXT, kernels.ROOM))
    queued = float(state[kernels.QUEUED])
    own = kernels.added_ms(kind, timing, most, max(1.0, prompt - cached), cached, queued, context, requests, room)
    slope = kernels.slope_ms(kind, timing, context, room)
    stick = cost.duplicate + cost.crowding * reuse / (1.0 - min(reuse, 0.95))
    full = float(state[kernels.BLOCKS]) / room
    return (
        cost.own * (float(state[kernels.DRAIN]) + own),
        cost.stall * requests * own,
        output * slope * (context + cost.others * requests * prompt),
        stick * (best - cached) * kernels.per_token_ms(kind, timing) * (1.0 + requests),
        cost.barrier * max(0.0, full - cost.barrier_at) / (1.0 - cost.barrier_at),
    )
