"""What were several requests booked as, without making a record of each before somebody asks?

`Scheduler.schedule_many` decides and books hundreds at once; a `Reservation` costs more than its decision. A `Bookings` is
a sequence of them that makes each when it is first looked at. The pool's books know all of them from the start.
"""

from collections.abc import Callable, Sequence
from typing import final, overload

from inferencesched._typing import IntArray
from inferencesched.members import Membership
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Books, Reservation


@final
class Bookings(Sequence[Reservation]):
    """Where was each of several requests sent? The `Reservation`s, in order; made by `InferencePool.book`.

    Indexing, slicing and iterating make what is looked at; the same object every time. Safe from any thread.
    """

    __slots__ = ("_make", "made", "now", "requests", "start", "table", "unmade")

    def __init__(
        self,
        make: Callable[["Bookings", int], Reservation],
        requests: tuple[InferenceRequest, ...],
        table: IntArray,
        start: int,
        now: float,
    ) -> None:
        self._make = make
        self.requests = requests
        self.table = table  # as `_kernels.profile.fold` wrote it
        self.start = start
        self.now = now
        self.made: list[Reservation | None] = [None] * len(requests)
        self.unmade = len(requests)

    def __len__(self) -> int:
        return len(self.requests)

    @overload
    def __getitem__(self, index: int) -> Reservation: ...
    @overload
    def __getitem__(self, index: slice) -> list[Reservation]: ...
    def __getitem__(self, index: int | slice) -> Reservation | list[Reservation]:
        """Return one reservation, or several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        made = self.made[index]
        return self._make(self, index % len(self.made)) if made is None else made

    def make(self, index: int, books: Books, members: Membership) -> Reservation:
        """Make one record; for the pool, under its lock, whose members are those of the booking still."""
        length, _, position, tokens, picked_before = self.table[index].tolist()
        endpoint, (slot, generation), _ = members.identities[position]
        made = self.made[index] = Reservation(
            books,
            number=self.start + index,
            request_id=self.requests[index].request_id,
            endpoint=endpoint,
            position=position,
            slot=slot,
            generation=generation,
            tokens=tokens,
            context_tokens=length,
            picked_before=float(picked_before),
            now=self.now,
        )
        self.unmade -= 1
        return made

    def __repr__(self) -> str:
        return f"Bookings({len(self)} from {self.start})"
