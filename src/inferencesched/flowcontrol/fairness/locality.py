"""Who finds most of its prompt cached, of those that have not had their share yet? Deficit longest prefix match, DLPM.

Source: Cao et al., "Locality-aware Fair Scheduling in LLM Serving" (arXiv 2501.14312).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from math import floor, isfinite, nan
from typing import Final, final

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.fairness.order import FlowHeap
from inferencesched.flowcontrol.flows import Flow, FlowOrder, Ticket

#: How many tokens of a ticket's prompt are cached nowhere? NaN where nobody knows: then all of them.
Uncached = Callable[[Ticket], float]
#: The same by server, for the servers that may take it.
UncachedByServer = Callable[[Ticket], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class DeficitLongestPrefix:
    """Whose head finds most of its prompt cached, of the flows that have a balance left? DLPM.

    Each flow has a balance. What it is charged is taken off: the cost without the prompt's cached tokens. Flows with a balance
    above 0 may go, the head with most tokens cached first. When nobody who waits has any left, everybody who waits is given
    ``quantum`` times the weight, as often as it takes.

    Parameters
    ----------
    uncached: how many of a ticket's prompt tokens are not cached, asked when it might go, and again each time: as fresh as
        the index behind it. It must not change anything.
    quantum: more of it is more locality and less fairness: near 0 it is `VirtualTokenCounter`, infinite plain longest prefix.
    prompt: what a prompt token costs, as in the controller's `CostModel`.
    look: how many flows with a balance are asked for the cached tokens of their heads, at most: the cost of a pick.

    Bound: with U the greatest charge, and w the least weight, services (without cached tokens) differ by 2 (U / w + quantum)
    at most, over any time in which both wait: a balance stays above -U and at most at quantum times the weight, and both get
    as many quanta. Whichever of those with a balance is taken does not matter for it.

    What it charges it writes to `Ticket.cost`; for the settlement to agree, let the cost model not count cached tokens either:
    ``TokenCost(cached=0.0)``.
    Inside a flow the band's ordering decides: `LongestPrefix` does there what this does between flows.
    Cost of a pick: ``look`` calls of ``uncached``; O(log F) when a flow's balance changes sign.
    """

    uncached: Uncached
    quantum: float = 4096.0
    prompt: float = 1.0
    look: int = 32

    def __post_init__(self) -> None:
        _check(self.quantum, self.prompt, self.look)

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _PrefixOrder(self.uncached, self.quantum, self.prompt, self.look)


def _check(quantum: float, prompt: float, look: int) -> None:
    if not (isfinite(quantum) and quantum > 0):
        raise InvalidInputError("quantum", quantum, "a finite number above 0")
    if not (isfinite(prompt) and prompt >= 0):
        raise InvalidInputError("prompt", prompt, "a finite number of at least 0")
    whole_number("look", look, 1)


def cached_tokens(ticket: Ticket, uncached: float) -> float:
    """How many of a ticket's prompt tokens need no work? Within what it has; none where nobody knows."""
    tokens = ticket.item.input_tokens
    return tokens - min(max(uncached, 0.0), tokens) if uncached == uncached else 0.0


def _charge(ticket: Ticket, cost: float, saved: float) -> float:
    """Write what a ticket is charged, and return it."""
    ticket.cost = max(0.0, cost - saved)
    return ticket.cost


@final
class _PrefixOrder(FlowHeap):
    """``counter`` is a flow's balance after the round ``tag``; the heap holds who has none left, by the round that ends that.

    A round is one quantum for everybody who waits. They are counted, and paid to a flow when it is looked at.
    """

    __slots__ = ("_look", "_picked", "_prompt", "_quantum", "_ready", "_round", "_saved", "_uncached")

    rule = "most cached, of those with a balance"

    def __init__(self, uncached: Uncached, quantum: float, prompt: float, look: int) -> None:
        super().__init__()
        self._uncached = uncached
        self._quantum = quantum
        self._prompt = prompt
        self._look = look
        self._ready: dict[Flow, None] = {}
        self._round = 0
        self._picked: Ticket | None = None  # whose cached tokens `_saved` is worth
        self._saved = 0.0

    def arrived(self, flow: Flow, now: float) -> None:
        flow.tag = self._round
        flow.counter = min(flow.counter, self._quantum * flow.weight)
        self._place(flow)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        while True:
            found: Ticket | None = None
            most = -1.0
            for flow in islice((each for each in self._ready if each not in passed), self._look):
                head = flow.queue.head()
                if head is None:
                    continue
                cached = cached_tokens(head, self._uncached(head))
                if cached > most or (cached == most and found is not None and head.number < found.number):
                    found, most = head, cached
            if found is not None:
                self._picked, self._saved = found, most * self._prompt
                return found.flow
            if not self._refill():
                return None

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, and their balances: who has one by cached tokens, then the others by when they have one.

        Asks for the cached tokens of all their heads.
        """
        owing = sorted(entry for entry in self._entries if entry[2].entry == entry[1])
        rounds = [(self._round, flow) for flow in self._ready]
        rounds += [(max(self._round, due), flow) for due, _, flow in owing]
        places = []
        for place, (due, flow) in enumerate(rounds):
            head = flow.queue.head()
            if head is not None:
                beyond = due == self._round and place >= self._look
                places.append((due, beyond, -cached_tokens(head, self._uncached(head)), head.number, flow))
        return [(flow, self._balance(flow)) for *_, flow in sorted(places, key=lambda place: place[:-1])]

    def _balance(self, flow: Flow) -> float:
        """Return what is left of a flow's share, with the quanta that it has not been given yet."""
        rounds, share = self._round - flow.tag, self._quantum * flow.weight
        return max(flow.counter, min(share, flow.counter + rounds * share)) if rounds else flow.counter

    def served(self, flow: Flow, cost: float, now: float) -> None:
        ticket, self._picked = self._picked, None
        if ticket is not None and ticket.flow is flow:
            cost = _charge(ticket, cost, self._saved)
        self._pay(flow, cost)
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        if flow in self._ready or flow.entry:
            self._pay(flow, correction)
            self._place(flow)
        else:
            flow.counter -= correction

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is not None:
            self._place(flow)
            return
        self._pay(flow, 0.0)
        self._ready.pop(flow, None)
        self._drop(flow)

    def _pay(self, flow: Flow, cost: float) -> None:
        """Take a cost off a balance, after the quanta that it has not been given yet."""
        flow.counter, flow.tag = self._balance(flow) - cost, self._round

    def _place(self, flow: Flow) -> None:
        """Put a flow that waits among those that may go, or among those that have to wait for rounds."""
        self._pay(flow, 0.0)
        if flow.counter > 0:
            self._drop(flow)
            self._ready[flow] = None
        else:
            self._ready.pop(flow, None)
            self._again(flow, self._round + floor(-flow.counter / (self._quantum * flow.weight)) + 1)

    def _refill(self) -> bool:
        """Let as many rounds pass as it takes until somebody may go; False where nobody is left who waits for it."""
        due = self._least()
        if due is None:
            return False
        self._round = max(self._round, due)
        while (flow := self._owing(self._round)) is not None:
            self._pay(flow, 0.0)
            self._drop(flow)
            self._ready[flow] = None
        return True

    def _owing(self, due: int) -> Flow | None:
        """Return a flow that has a balance again by this round."""
        least = self._least()
        return self._entries[0][2] if least is not None and least <= due else None


@dataclass(frozen=True, slots=True)
class DoubleDeficitLongestPrefix:
    """Which flow goes, and to which server, so that both shares and caches are kept? Double deficit longest prefix match, D2LPM.

    As `DeficitLongestPrefix`, with a balance for each flow on each server: a flow keeps to the server where its prefixes
    are cached until its balance there is spent, and then tries the next. When no flow that waits has a balance on any of its
    head's servers, everybody is given ``quantum`` on each.

    Parameters
    ----------
    uncached: how many of a ticket's prompt tokens are not cached, for each server that may take it.
    prefer: told of a ticket, when it is dispatched, on which server it was counted: a wish for who chooses the server.
    quantum, prompt, look: as in `DeficitLongestPrefix`; the quantum is for one server.

    Bound: 2 S (U / w + quantum) with S servers. A flow that stops waiting begins anew, with nothing: its balances take room only
    while it waits. What a completion corrects is divided among the servers that the flow has a balance on.
    Cost of a pick: ``look`` calls of ``uncached``, and the servers that it names.
    """

    uncached: UncachedByServer
    prefer: Callable[[Ticket, str], None] | None = None
    quantum: float = 4096.0
    prompt: float = 1.0
    look: int = 32

    def __post_init__(self) -> None:
        _check(self.quantum, self.prompt, self.look)

    def start(self) -> FlowOrder:
        """Return the state of one band."""
        return _ServerOrder(self)


_NOWHERE: Final[Mapping[str, float]] = {"": nan}  # no server is named: it is counted on one without a name


@final
class _ServerOrder(FlowHeap):
    """``tag`` is the round in which a flow began to wait; ``_pairs`` holds balances that have changed since, and after which round."""

    __slots__ = ("_pairs", "_picked", "_policy", "_ready", "_round", "_saved", "_server")

    rule = "most cached, of those with a balance at a server"

    def __init__(self, policy: DoubleDeficitLongestPrefix) -> None:
        super().__init__()
        self._policy = policy
        self._ready: dict[Flow, None] = {}
        self._pairs: dict[Flow, dict[str, tuple[float, int]]] = {}
        self._round = 0
        self._picked: Ticket | None = None
        self._server = ""
        self._saved = 0.0

    def arrived(self, flow: Flow, now: float) -> None:
        flow.tag = self._round
        self._pairs[flow] = {}
        self._put(flow, self._round + 1)

    def pick(self, now: float, passed: Collection[Flow] = ()) -> Flow | None:
        while True:
            best: tuple[float, int, float, str] | None = (
                None  # least first: most cached, first come, most balance, name
            )
            found: Ticket | None = None
            spent: list[tuple[Flow, float]] = []
            looked = 0
            for flow in self._ready:
                head = None if flow in passed else flow.queue.head()
                if head is None:
                    continue
                servers = self._policy.uncached(head) or _NOWHERE
                balances = {server: self._balance(flow, server) for server in servers}
                most = max(balances.values())
                if most <= 0:
                    spent.append((flow, most))
                    continue
                for server, balance in balances.items():
                    if balance > 0:
                        place = (-cached_tokens(head, servers[server]), head.number, -balance, server)
                        if best is None or place < best:
                            best, found = place, head
                looked += 1
                if looked >= self._policy.look:
                    break
            for flow, most in spent:
                self._owe(flow, most)
            if best is not None and found is not None:
                self._picked, self._saved, self._server = found, -best[0] * self._policy.prompt, best[3]
                return found.flow
            if not self._refill():
                return None

    def ranking(self, now: float) -> list[tuple[Flow, float]]:
        """Return the flows that wait, and their greatest balances: who has one by cached tokens, then the others, near enough.

        Asks for the cached tokens of all their heads.
        """
        due = {flow: key for key, number, flow in self._entries if flow.entry == number}
        places = []
        for flow in self._pairs:
            head = flow.queue.head()
            if head is not None:
                servers = self._policy.uncached(head) or _NOWHERE
                balances = {server: self._balance(flow, server) for server in servers}
                most = max(balances.values())
                cached = max(
                    (cached_tokens(head, servers[s]) for s, left in balances.items() if left > 0 and flow not in due),
                    default=-1.0,
                )
                places.append((due.get(flow, 0), cached < 0, -cached, head.number, flow, most))
        return [(flow, most) for *_, flow, most in sorted(places, key=lambda place: place[:4])]

    def served(self, flow: Flow, cost: float, now: float) -> None:
        ticket, self._picked = self._picked, None
        if ticket is not None and ticket.flow is flow:
            balance = self._balance(flow, self._server) - _charge(ticket, cost, self._saved)
            self._pairs[flow][self._server] = (balance, self._round)
            if self._policy.prefer is not None and self._server:
                self._policy.prefer(ticket, self._server)
        self.changed(flow, now)

    def settled(self, flow: Flow, correction: float, now: float) -> None:
        pairs = self._pairs.get(flow)
        if pairs:
            share = correction / len(pairs)
            for server in pairs:
                pairs[server] = (self._balance(flow, server) - share, self._round)
            self._ready[flow] = None
            self._drop(flow)

    def changed(self, flow: Flow, now: float) -> None:
        if flow.queue.head() is None:
            self._ready.pop(flow, None)
            self._pairs.pop(flow, None)
            self._drop(flow)
        elif flow.entry:  # another head may go to other servers
            self._drop(flow)
            self._ready[flow] = None

    def _balance(self, flow: Flow, server: str) -> float:
        """Return what is left of a flow's share on a server."""
        balance, since = self._pairs[flow].get(server, (0.0, int(flow.tag)))
        if since == self._round:
            return balance
        share = self._policy.quantum * flow.weight
        return max(balance, min(share, balance + (self._round - since) * share))

    def _owe(self, flow: Flow, most: float) -> None:
        """Let a flow wait for the round in which its greatest balance is above 0 again."""
        del self._ready[flow]
        self._put(flow, self._round + floor(-most / (self._policy.quantum * flow.weight)) + 1)

    def _refill(self) -> bool:
        """Let as many rounds pass as it takes until somebody may go; False where nobody is left who waits for it."""
        due = self._least()
        if due is None:
            return False
        self._round = max(self._round, due)
        while (least := self._least()) is not None and least <= self._round:
            flow = self._entries[0][2]
            self._drop(flow)
            self._ready[flow] = None
        return True
