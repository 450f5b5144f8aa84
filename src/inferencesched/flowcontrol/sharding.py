"""How many flows can ids that clients invent come to? As many as there are queues.

Source of the algorithm: Kubernetes, API Priority and Fairness (shuffle sharding), whose defaults these are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log2

import msgspec
from xxhash import xxh3_128_intdigest

from inferencesched.errors import InvalidInputError, whole_number
from inferencesched.flowcontrol.flows import Band, QueueItem

#: How many requests of a flow, by its id, wait now?
Waiting = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ShuffleSharding:
    """Which queue takes a flow, where ids are not to be trusted? The shortest of the few that its id is dealt.

    An id is hashed to a hand of ``hand`` out of ``queues``; a request goes to the one of them in which the fewest wait, the first dealt of several.
    So any number of ids makes ``queues`` flows at most, and a client that fills its whole hand meets another's whole hand by a chance of
    one in ``queues`` over ``hand``: with 64 and 8 one in 4,426,165,368. Requests of one id may wait in several queues: they are then in order
    in each, and fairness is between queues.

    Parameters
    ----------
    queues, hand: how many, and how many of them each id may use.
    seed: another one deals other hands: keep it to yourself, so that nobody can choose ids with a given hand.
    prefix: what the names of the queues begin with.

    The same id and seed get the same hand on every machine and in every run. Cost: one hash and ``hand`` look-ups.

    >>> from inferencesched.flowcontrol import FlowController
    >>> controller, sharding = FlowController(), ShuffleSharding(queues=64, hand=8)
    >>> sharding.hand_of("tenant-a")
    (1, 45, 36, 9, 34, 11, 8, 47)
    >>> item = QueueItem(request_id="r-1", flow="tenant-a")
    >>> for _ in range(3):
    ...     controller.submit(sharding.assign(item, controller.bands), now=0.0)
    Ticket('r-1' of shard-1:0, waiting)
    Ticket('r-1' of shard-45:0, waiting)
    Ticket('r-1' of shard-36:0, waiting)
    """

    queues: int = 64
    hand: int = 8
    seed: int = 0
    prefix: str = "shard-"

    def __post_init__(self) -> None:
        whole_number("queues", self.queues, 1)
        whole_number("hand", self.hand, 1)
        whole_number("seed", self.seed, 0)
        if self.hand > self.queues:
            raise InvalidInputError("hand", self.hand, f"at most queues, {self.queues}")
        if self.hand * log2(self.queues) > 96:  # of 128 bits: what is left over keeps every hand equally likely
            raise InvalidInputError("hand", self.hand, f"at most {int(96 / log2(self.queues))} of {self.queues} queues")

    def hand_of(self, flow: str) -> tuple[int, ...]:
        """Return the queues that an id is dealt, all different, in the order in which they were dealt."""
        rest = xxh3_128_intdigest(flow.encode("utf-8", "surrogatepass"), self.seed & 0xFFFF_FFFF_FFFF_FFFF)
        dealt: list[int] = []
        for left in range(self.queues, self.queues - self.hand, -1):
            rest, card = divmod(rest, left)
            for taken in sorted(dealt):  # the card-th of those that are left
                card += card >= taken
            dealt.append(card)
        return tuple(dealt)

    def name(self, queue: int) -> str:
        """Return the flow id of a queue."""
        return f"{self.prefix}{queue}"

    def choose(self, flow: str, waiting: Waiting) -> str:
        """Return the flow id of the queue that takes a request: the shortest of its hand."""
        return min(map(self.name, self.hand_of(flow)), key=waiting)

    def assign(self, item: QueueItem, bands: Iterable[Band]) -> QueueItem:
        """Return the request with the flow id of its queue, the shortest in its band; its own id is the caller's to keep.

        `bands` are the controller's (`FlowController.bands`), whose flows are then named by this alone.
        """
        flows = next((band.flows for band in bands if band.priority == item.priority), {})
        chosen = self.choose(item.flow, lambda name: len(flows[name]) if name in flows else 0)
        return msgspec.structs.replace(item, flow=chosen)
