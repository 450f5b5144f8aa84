"""What if two producers fill the same columns?

Then each fills columns of its own name (`of_producer`), and one of them the plain ones too. A configuration sees to that by
itself.
"""

from collections.abc import Collection
from typing import Any, Final, Generic, TypeVar

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Endpoints, Signal
from inferencesched.errors import InvalidInputError
from inferencesched.framework import (
    CycleState,
    DataProducer,
    DecisionListener,
    OutcomeListener,
    Produced,
    Reader,
    Reads,
    SchedulingResult,
)
from inferencesched.request import InferenceRequest
from inferencesched.reservation import Settlement
from inferencesched.signals import of_producer

R = TypeVar("R")


class NamedProducer(Generic[R]):
    """Under which names does this producer fill its columns?

    Made by `named_producer`. What the producer knows stays its own: two of these may share it, as an old and a new scheduler
    do. Columns are not copied; a mapping a cycle is made for them.
    """

    __slots__ = ("_columns", "_fills", "_reads", "name", "producer")

    def __init__(
        self, producer: DataProducer[R], name: str, plain: Collection[Signal], named: Collection[Signal]
    ) -> None:
        self.producer: Final = producer
        self.name: Final = name
        self._columns: dict[Signal, tuple[Signal, ...]] = {}
        for signal in producer.produces:
            own = (signal,) if signal in plain else ()
            theirs = (of_producer(signal, name),) if signal in named else ()
            self._columns[signal] = tuple(dict.fromkeys((*own, *theirs)))
        self._fills = tuple(column for columns in self._columns.values() for column in columns)
        self._reads: tuple[Reads, ...] = producer.reads if isinstance(producer, Reader) else ()

    @property
    def produces(self) -> tuple[Signal, ...]:
        """Which columns does it fill, by the names that they have here?"""
        return self._fills

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Which columns does the producer itself read?"""
        return self._reads

    def produce(self, request: InferenceRequest, endpoints: Endpoints, cycle: CycleState) -> Produced[R]:
        """Return what the producer found, under these names."""
        produced = self.producer.produce(request, endpoints, cycle)
        columns: dict[Signal, FloatArray] = {}
        for signal, column in produced.columns.items():
            # what the producer did not declare goes through as it is: whoever asked will refuse it
            for name in self._columns.get(signal, (signal,)):
                columns[name] = column
        return Produced(columns, produced.receipt)

    def commit(self, receipt: R, slot: int, *, now: float) -> None:
        """Tell the producer."""
        self.producer.commit(receipt, slot, now=now)

    def __repr__(self) -> str:
        return f"{self.producer!r} as {self.name!r}"


class _Listening(NamedProducer[R]):
    """What if the producer listens to how requests end?"""

    __slots__ = ()

    def settled(self, receipt: Any, settlement: Settlement, slot: int) -> None:
        """Tell the producer."""
        listener = self.producer
        assert isinstance(listener, OutcomeListener)  # `named_producer` asked
        listener.settled(receipt, settlement, slot)


class _Deciding(NamedProducer[R]):
    """What if the producer listens to decisions?"""

    __slots__ = ()

    def decided(self, receipt: Any, result: SchedulingResult, *, now: float) -> None:
        """Tell the producer."""
        listener = self.producer
        assert isinstance(listener, DecisionListener)  # `named_producer` asked
        listener.decided(receipt, result, now=now)


class _Both(_Listening[R], _Deciding[R]):
    """What if it listens to both?"""

    __slots__ = ()


#: By whether a producer hears how requests end, and whether it hears of decisions.
_KINDS: Final[dict[tuple[bool, bool], type[NamedProducer[Any]]]] = {
    (False, False): NamedProducer,
    (True, False): _Listening,
    (False, True): _Deciding,
    (True, True): _Both,
}


def named_producer(
    producer: DataProducer[R],
    name: str,
    *,
    plain: Collection[Signal] | None = None,
    named: Collection[Signal] | None = None,
) -> NamedProducer[R]:
    """Under which names shall this producer fill its columns?

    `plain` are those that it fills under the signals' own names, None for all of them; `named` those that it fills under
    ``of_producer(signal, name)``, None for all of them. What is in neither is left out.

    >>> from inferencesched import ApproximatePrefixProducer
    >>> named_producer(ApproximatePrefixProducer(), "eu", plain=()).produces
    (Signal('prefix_match@eu'), Signal('prefix_tokens@eu'))
    """
    if not name:
        raise InvalidInputError("name", name, "the name of a producer, not empty")
    kind: type[NamedProducer[R]] = _KINDS[isinstance(producer, OutcomeListener), isinstance(producer, DecisionListener)]
    fills = producer.produces
    return kind(producer, name, fills if plain is None else plain, fills if named is None else named)
