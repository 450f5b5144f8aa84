"""How is a plug-in called under supervision? Every warning is an error, every error is told, every change is seen."""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from inferencesched.endpoints import OBSERVED_AT, STANDARD_SIGNALS, Endpoints, Signal
from inferencesched.framework import Reader, Reads
from inferencesched.request import InferenceRequest
from inferencesched.testing.failure import Check
from inferencesched.testing.scenes import Scene

#: Which exceptions mean that a plug-in broke something: all but those that end a program.
Broken = Exception


def answered(check: Check, done: str, call: Callable[[], Any]) -> Any:
    """Return what a call returns; a `Check` fails on whatever it raises or warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call()
        except Broken as error:
            check.fail(done, f"{type(error).__name__}: {error}", "an answer, without errors and warnings", error)


def reads_of(plugin: object) -> tuple[Reads, ...]:
    """Return which columns a plug-in says that it reads; none if it does not say."""
    said: object = plugin.reads if isinstance(plugin, Reader) else ()
    return tuple(read for read in said if isinstance(read, Reads)) if isinstance(said, tuple) else ()


def columns_for(plugin: object, signals: Sequence[Signal]) -> tuple[Signal, ...]:
    """Return the columns that a pool must have beside the standard ones."""
    standard = {signal.name for signal in STANDARD_SIGNALS}
    wanted = (*signals, *(read.signal for read in reads_of(plugin)))
    return tuple({signal.name: signal for signal in wanted if signal.name not in standard}.values())


def fingerprint(thing: object) -> object:
    """Return something that differs if a request, a snapshot or an array does."""
    if isinstance(thing, np.ndarray):
        return str(thing.dtype), thing.shape, thing.tobytes()
    if isinstance(thing, Endpoints):
        stays = thing.slots.tobytes(), thing.generations.tobytes()
        labels = tuple(tuple(thing.labels(i).items()) for i in range(len(thing)))
        return fingerprint(thing.matrix), thing.names, stays, labels, thing.version, thing.sequence
    if isinstance(thing, InferenceRequest):
        return tuple((name, fingerprint(value)) for name, value in msgspec.structs.asdict(thing).items())
    return repr(thing)


@contextmanager
def unchanged(check: Check, done: str, **inputs: object) -> Iterator[None]:
    """Fail if one of the inputs is another after the block."""
    before = {name: fingerprint(thing) for name, thing in inputs.items()}
    yield
    for name, thing in inputs.items():
        if fingerprint(thing) != before[name]:
            check.fail(done, f"{name} was changed", "inputs that are as they were")


@contextmanager
def no_global_chance(check: Check, done: str) -> Iterator[None]:
    """Fail if the block draws from a generator that belongs to the whole process."""
    before = _global_states()
    yield
    after = _global_states()
    for name, one, other in zip(("random", "numpy.random"), before, after, strict=True):
        if one != other:
            check.fail(done, f"a draw from {name}'s global generator", "draws from cycle.rng only")


def _global_states() -> tuple[object, object]:
    """Return the states of the two generators that everybody shares."""
    _, key, place, *_ = np.random.get_state(legacy=True)  # noqa: NPY002  # it is the global one that is watched
    return random.getstate(), (np.asarray(key).tobytes(), place)


def same(one: Any, other: Any) -> bool:
    """Are two answers equal, to the last bit and NaN included?"""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(one == other)


def close(one: Any, other: Any) -> bool:
    """Are two answers equal, but for what sums in another order differ by?"""
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True))
    return same(one, other)


def drew(rng: np.random.Generator, seed: int) -> bool:
    """Has this generator been drawn from since it was seeded?"""
    return repr(rng.bit_generator.state) != repr(np.random.default_rng(seed).bit_generator.state)


def undeclared(plugin: object, scene: Scene) -> tuple[Signal, ...]:
    """Return the columns that a plug-in does not say it reads. When servers were heard of is anybody's to ask."""
    declared = {read.signal.name for read in reads_of(plugin)}
    return tuple(s for s in scene.signals if s.name not in declared and s.name != OBSERVED_AT.name)


def better(read: Reads, value: float, scene: Scene) -> list[float]:
    """Return values of a signal that are better than this one, as the plug-in understands better."""
    others = [scene.value(server.name, read.signal) for server in scene.servers]
    known = sorted({other for other in others if other == other})
    if read.better == "lower":
        bound = read.signal.low if read.signal.low > -np.inf else value - 10.0
        found = [(value + bound) / 2, bound, *known]
        return [x for x in found if read.signal.low <= x < value]
    bound = read.signal.high if read.signal.high < np.inf else 2.0 * abs(value) + 10.0
    found = [(value + bound) / 2, bound, *known]
    return [x for x in found if value < x <= read.signal.high]


def heard(
    plugin: object, scene: Scene, answer: object, ask: Callable[[Scene], object], agree: Callable[[Any, Any], bool]
) -> str:
    """Return the name of an undeclared column that an answer depends on; empty where it depends on none."""
    strangers = undeclared(plugin, scene)

    def differs(signals: Sequence[Signal]) -> bool:
        return not agree(answer, ask(scene.with_signals(signals, np.random.default_rng(5))))

    if not differs(strangers):
        return ""
    return next((signal.name for signal in strangers if differs([signal])), " and ".join(s.name for s in strangers))
