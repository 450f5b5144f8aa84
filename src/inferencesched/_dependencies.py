"""Which producer runs before which, and does every plug-in get what it reads?"""

from collections.abc import Iterable
from typing import Any

from inferencesched.endpoints import STANDARD_SIGNALS
from inferencesched.errors import DependencyError
from inferencesched.framework import DataProducer, Reader, SchedulingProfile


def plugins_of(profile: SchedulingProfile) -> tuple[object, ...]:
    """Return all that a profile is made of."""
    return (*profile.filters, *(weighted.scorer for weighted in profile.scorers), profile.picker)


def in_order(producers: Iterable[DataProducer[Any]], readers: Iterable[object]) -> tuple[DataProducer[Any], ...]:
    """Return the producers, each behind those whose columns it reads, else as given.

    Errors: `DependencyError` where two fill the same column, where producers wait for each other, or where a plug-in
    requires a column made for one decision (``cycle``) that no producer fills; the standard ones may stay unknown.
    """
    given = tuple(producers)
    fills: dict[str, DataProducer[Any]] = {}
    for producer in given:
        for signal in producer.produces:
            if signal.name in fills:
                raise DependencyError(
                    "producers", signal.name, f"one producer of it: {fills[signal.name]!r} is another"
                )
            fills[signal.name] = producer
    standard = {signal.name for signal in STANDARD_SIGNALS}
    for reader in (*given, *readers):
        for signal, _, required in reader.reads if isinstance(reader, Reader) else ():
            missing = signal.name not in fills and signal.name not in standard
            if missing and required and signal.freshness == "cycle":
                raise DependencyError(
                    "producers", list(fills), f"one that fills {signal.name!r}, which {reader!r} reads"
                )
    after = {
        id(producer): [
            id(fills[read.signal.name])
            for read in (producer.reads if isinstance(producer, Reader) else ())
            if read.signal.name in fills
        ]
        for producer in given
    }
    ordered: list[DataProducer[Any]] = []
    waiting = list(given)
    while waiting:
        left = {id(each) for each in waiting}
        ready = next((each for each in waiting if not left & set(after[id(each)])), None)
        if ready is None:
            raise DependencyError("producers", [repr(each) for each in waiting], "none that wait for each other")
        ordered.append(ready)
        waiting = [each for each in waiting if each is not ready]
    return tuple(ordered)
