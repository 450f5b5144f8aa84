"""What does a data producer promise?

A producer has state, so every check makes its own: ``make()`` returns a new one. Each check is a small history of decisions,
bookings and endings on made-up pools.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import Signal
from inferencesched.framework import (
    CycleState,
    DataProducer,
    DecisionListener,
    OutcomeListener,
    Produced,
    ProfileResult,
    SchedulingResult,
    Target,
)
from inferencesched.request import InferenceRequest, Usage
from inferencesched.reservation import Settlement
from inferencesched.testing._calls import answered, close, drew, heard, no_global_chance, reads_of, same, unchanged
from inferencesched.testing.failure import Check
from inferencesched.testing.scenes import NOW, REQUESTS, Scene

OUTCOMES: Final = ("completed", "failed", "expired", "endpoint_left", "withdrawn")


@dataclass(frozen=True, slots=True)
class Making:
    """Which producer is made anew for each check, and which scenes does it see?"""

    make: Callable[[], DataProducer[Any]]
    scenes: tuple[Scene, ...]

    def ask(
        self, check: Check, producer: DataProducer[Any], scene: Scene, cycle: CycleState | None = None
    ) -> Produced[Any]:
        """Return what it produces, held to its form."""
        endpoints, cycle = scene.endpoints(), scene.cycle() if cycle is None else cycle
        with unchanged(check, did(scene), request=scene.request, endpoints=endpoints):
            produced = answered(check, did(scene), lambda: producer.produce(scene.request, endpoints, cycle))
        if not isinstance(produced, Produced) or not isinstance(produced.columns, Mapping):
            check.fail(did(scene), repr(produced), "Produced(columns, receipt)")
        return produced

    def book(self, check: Check, producer: DataProducer[Any], scene: Scene, place: int = 0, late: float = 0.5) -> Any:
        """Decide and commit to one of the candidates; return the receipt."""
        receipt = self.ask(check, producer, scene).receipt
        self.commit(check, producer, receipt, scene, place, late)
        return receipt

    def commit(
        self, check: Check, producer: DataProducer[Any], receipt: Any, scene: Scene, place: int, late: float = 0.5
    ) -> None:
        """Commit a receipt to one of the candidates of the scene that it is from."""
        endpoints = scene.endpoints()
        slot, generation = endpoints.stay(place)
        done = f"commit() to {endpoints.name(place)!r} of scene {scene.name!r}"
        answer = answered(check, done, lambda: producer.commit(receipt, slot, now=NOW + late))
        if answer is not None:
            check.fail(done, repr(answer), "None")
        if isinstance(producer, DecisionListener):
            target = Target(endpoints.name(place), slot, generation, 1.0, 10, endpoints.address(place))
            result = SchedulingResult(scene.request, "default", MappingProxyType({"default": ProfileResult((target,))}))
            answered(
                check,
                f"decided() for {endpoints.name(place)!r} of scene {scene.name!r}",
                lambda: producer.decided(receipt, result, now=NOW + late),
            )


def did(scene: Scene) -> str:
    """Return what is done, in words."""
    return f"produce() for {len(scene.names)} endpoints, scene {scene.name!r}"


def held(columns: Mapping[Signal, Any]) -> dict[str, FloatArray]:
    """Return the columns by name, copied."""
    return {signal.name: np.array(column, dtype=np.float64) for signal, column in columns.items()}


def differing(one: Mapping[str, FloatArray], other: Mapping[str, FloatArray]) -> str:
    """Return what is not the same in two sets of columns, in words; empty where all is."""
    if one.keys() != other.keys():
        return f"columns {sorted(one)} and {sorted(other)}"
    return "; ".join(f"{name}: {one[name]} and {other[name]}" for name in one if not same(one[name], other[name]))


def declared(check: Check, making: Making) -> None:
    """It fills the columns that it declares, and no others; what it declares stays."""
    producer = making.make()
    before = answered(check, "produces", lambda: producer.produces)
    if not isinstance(before, tuple) or not all(isinstance(each, Signal) for each in before):
        check.fail("produces", repr(before), "a tuple of Signals")
    if len({each.name for each in before}) != len(before):
        check.fail("produces", repr(before), "each signal once")
    for scene in making.scenes:
        columns = making.ask(check, producer, scene).columns
        strangers = sorted(each.name for each in set(columns) - set(before))
        if strangers:
            check.fail(did(scene), f"columns {strangers}", f"some of {sorted(each.name for each in before)}")
        if producer.produces != before:
            check.fail("produces, later", repr(producer.produces), repr(before))


def columns(check: Check, making: Making) -> None:
    """Columns are float64[E], of numbers that their signals allow, or NaN."""
    producer = making.make()
    for round_ in range(2):
        for i, scene in enumerate(making.scenes):
            produced = making.ask(check, producer, scene)
            for signal, column in produced.columns.items():
                _column(check, scene, signal, column)
            if round_ == 0:
                making.commit(check, producer, produced.receipt, scene, i % len(scene.names))


def _column(check: Check, scene: Scene, signal: Signal, column: object) -> None:
    count = len(scene.names)
    if not isinstance(column, np.ndarray) or column.shape != (count,) or column.dtype != np.float64:
        got = f"{column.dtype}{list(column.shape)}" if isinstance(column, np.ndarray) else repr(column)
        check.fail(did(scene), f"{signal.name}: {got}", f"float64[{count}]")
    with np.errstate(invalid="ignore"):
        wrong = ~np.isnan(column) & ~((column >= signal.low) & (column <= signal.high) & np.isfinite(column))
    if wrong.any():
        where = scene.names[int(np.argmax(wrong))]
        got = f"{signal.name}: {column[wrong][0]} for {where!r}"
        check.fail(did(scene), got, f"{signal.low} to {signal.high}, or NaN for unknown")


def inputs(check: Check, making: Making) -> None:
    """Request and snapshot are as they were."""
    producer = making.make()
    for scene in making.scenes:
        making.ask(check, producer, scene)


def reads_only(check: Check, making: Making) -> None:
    """`produce` changes nothing: whatever is asked in between, the answer is the same until something is committed."""
    producer = making.make()
    for i, scene in enumerate(making.scenes[:6]):
        making.book(check, producer, scene, i % len(scene.names))
    first = [held(making.ask(check, producer, scene).columns) for scene in making.scenes]
    for scene, before in reversed(list(zip(making.scenes, first, strict=True))):
        after = held(making.ask(check, producer, scene).columns)
        if words := differing(before, after):
            check.fail(f"{did(scene)}, twice", words, "the same: only commit() and settled() change anything")


def determined(check: Check, making: Making) -> None:
    """Two producers with the same history answer alike."""
    told = []
    for producer in (making.make(), making.make()):
        for i, scene in enumerate(making.scenes):
            making.book(check, producer, scene, i % len(scene.names))
        told.append([held(making.ask(check, producer, scene).columns) for scene in making.scenes])
    for scene, one, other in zip(making.scenes, *told, strict=True):
        if words := differing(one, other):
            check.fail(f"{did(scene)}, of two with the same history", words, "the same")


def chance(check: Check, making: Making) -> None:
    """Chance comes from the cycle's generator."""
    producer = making.make()
    for scene in making.scenes:
        with no_global_chance(check, did(scene)):
            making.book(check, producer, scene)


def order(check: Check, making: Making) -> None:
    """Endpoints in another order get the same, each its own. Who draws by chance is let off."""
    producer = making.make()
    for i, scene in enumerate(making.scenes[:5]):
        making.book(check, producer, scene, i % len(scene.names))
    for scene in making.scenes:
        cycle = scene.cycle()
        before = held(making.ask(check, producer, scene, cycle).columns)
        if drew(cycle.rng, scene.seed):
            continue
        other = scene.reordered(np.random.default_rng(3).permutation(len(scene.servers)).tolist())
        _compare(check, making, producer, scene, before, other, "the same for each endpoint, in any order")


def remainder(check: Check, making: Making) -> None:
    """What is left of a larger pool is looked at as a pool of its own."""
    producer = making.make()
    for scene in making.scenes:
        if scene.kept is not None:
            making.book(check, producer, scene)
            before = held(making.ask(check, producer, scene).columns)
            _compare(check, making, producer, scene, before, scene.alone(), "the same as in a pool of the candidates")


def _compare(
    check: Check,
    making: Making,
    producer: DataProducer[Any],
    scene: Scene,
    before: Mapping[str, FloatArray],
    other: Scene,
    allowed: str,
) -> None:
    places = [other.names.index(name) for name in scene.names]
    after = held(making.ask(check, producer, other).columns)
    for name, column in before.items():
        again = after[name][places]
        if not close(column, again):
            check.fail(f"{did(scene)}, then {other.name!r}", f"{name}: {column} and {again}", allowed)


def one_endpoint(check: Check, making: Making) -> None:
    """A pool of one is a pool."""
    columns(check, Making(making.make, tuple(scene for scene in making.scenes if len(scene.names) == 1)))


def unknown(check: Check, making: Making) -> None:
    """Nothing known of anybody is no reason to fall over."""
    chosen = [scene for scene in making.scenes if "unknown" in scene.name or "never" in scene.name]
    columns(check, Making(making.make, tuple(chosen)))


def commits(check: Check, making: Making) -> None:
    """Receipts are committed in any order, to any candidate, long after they were made."""
    producer = making.make()
    receipts = [(scene, making.ask(check, producer, scene).receipt) for scene in making.scenes]
    for i, (scene, receipt) in enumerate(reversed(receipts)):
        making.commit(check, producer, receipt, scene, i % len(scene.names), late=100.0 + i)
        making.commit(check, producer, receipt, scene, (i + 1) % len(scene.names), late=100.0 + i)
    for scene in making.scenes:
        making.ask(check, producer, scene)


def _renewed(scene: Scene) -> Scene:
    """Return the scene after its first endpoint left: another has its slot, and a further one a slot never used."""
    first, *rest = scene.servers
    successor = replace(first, name="successor", generation=first.generation + 1000)
    fresh = replace(first, name="newcomer", slot=50, generation=first.generation + 1001)
    return replace(scene, name=f"{scene.name}, its first replaced", servers=(successor, *rest, fresh))


def _two_strangers(check: Check, making: Making, producer: DataProducer[Any], scene: Scene, done: str) -> None:
    """Fail if the one who got a used slot looks other than the one who got a new one."""
    renewed = _renewed(scene)
    for name, column in held(making.ask(check, producer, renewed).columns).items():
        old, new = column[0], column[-1]
        if not (old == new or (old != old and new != new)):
            got = f"{name}: {old:g} for the endpoint in the used slot, {new:g} for its twin in a new one"
            check.fail(done, got, "the same: a slot's past is not its new owner's")


def _usual(making: Making) -> list[Scene]:
    return [scene for scene in making.scenes if scene.name.startswith("usual")]


def slots(check: Check, making: Making) -> None:
    """A slot that goes to another endpoint takes nothing along."""
    for scene in _usual(making):
        producer = making.make()
        making.book(check, producer, scene)
        making.book(check, producer, scene)
        _two_strangers(check, making, producer, scene, f"{did(scene)}, after its first endpoint was replaced")


def after_leaving(check: Check, making: Making) -> None:
    """A commit that comes when its endpoint has left neither fails nor gives its successor what is not there."""
    for scene in _usual(making):
        producer = making.make()
        receipt = making.ask(check, producer, scene).receipt
        making.book(check, producer, _renewed(scene), place=1)
        making.commit(check, producer, receipt, scene, 0)
        _two_strangers(
            check, making, producer, scene, f"commit() to an endpoint that was replaced, scene {scene.name!r}"
        )


def settled(check: Check, making: Making) -> None:
    """A listener takes every ending, of endpoints that left as well, and answers afterwards."""
    producer = making.make()
    if not isinstance(producer, OutcomeListener):
        return
    for i, scene in enumerate(making.scenes):
        for outcome in OUTCOMES:
            receipt = making.book(check, producer, scene, i % len(scene.names))
            slot, _ = scene.endpoints().stay(i % len(scene.names))
            if i % 2:
                making.book(check, producer, _renewed(scene))
            for settlement in _endings(scene, scene.names[i % len(scene.names)], outcome):
                done = f"settled() as {outcome!r}, scene {scene.name!r}"
                with no_global_chance(check, done):
                    answered(check, done, partial(producer.settled, receipt, settlement, slot))
        for signal, column in making.ask(check, producer, scene).columns.items():
            _column(check, scene, signal, column)


def _endings(scene: Scene, name: str, outcome: str) -> list[Settlement]:
    def ending(first: float, tokens: int, usage: Usage | None) -> Settlement:
        return Settlement(scene.request.request_id, name, outcome, "", 10, tokens, NOW, first, NOW + 2.0, usage)

    if outcome != "completed":
        return [ending(nan, 0, None)]
    return [ending(NOW + 0.5, 32, Usage(scene.request.prompt_tokens, 32, 0)), ending(nan, 0, None)]


def complete(check: Check, making: Making) -> None:
    """Columns that it does not declare to read are none of its business. Asked of those who declare any."""
    if not reads_of(making.make()):
        return
    for scene in making.scenes:
        producer = making.make()

        def ask(scene: Scene, producer: DataProducer[Any] = producer) -> dict[str, FloatArray]:
            return held(making.ask(check, producer, scene).columns)

        if name := heard(producer, scene, ask(scene), ask, lambda one, other: not differing(one, other)):
            check.fail(f"{did(scene)}; {name} changed", "other columns", f"the same, or {name} in `reads`")


def refuses_nothing(check: Check, making: Making) -> None:
    """Every kind of request is answered."""
    producer = making.make()
    scene = making.scenes[0]
    every = (*REQUESTS, InferenceRequest(request_id="hashes", block_hashes=np.arange(9, dtype=np.uint64)))
    for request in every:
        making.book(check, producer, replace(scene, name=f"usual, {request.request_id}", request=request))


PRODUCER_CHECKS: Final[dict[str, Callable[[Check, Making], None]]] = {
    "declared": declared,
    "columns": columns,
    "requests": refuses_nothing,
    "inputs": inputs,
    "produce-changes-nothing": reads_only,
    "repeatable": determined,
    "chance": chance,
    "order": order,
    "remainder": remainder,
    "one-endpoint": one_endpoint,
    "unknown": unknown,
    "commit": commits,
    "slots": slots,
    "after-leaving": after_leaving,
    "settled": settled,
    "undeclared": complete,
}
