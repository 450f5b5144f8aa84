"""Why does a request wait, or where would it go, and what would it cost there?"""

from typing import NamedTuple


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
