"""What do a filter and a scorer promise? The two ask each candidate the same way, so they share most checks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import numpy as np

from inferencesched._typing import BoolArray, FloatArray
from inferencesched.framework import CycleState, Explains, Filter, PartialScorer, Scorer
from inferencesched.testing._calls import (
    answered,
    better,
    close,
    columns_for,
    drew,
    heard,
    no_global_chance,
    reads_of,
    same,
    unchanged,
)
from inferencesched.testing.failure import Check
from inferencesched.testing.scenes import Scene

_SLACK: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Subject:
    """Which plug-in is asked, by which method, on which scenes?"""

    plugin: object
    method: str
    scenes: tuple[Scene, ...]

    def ask(self, check: Check, scene: Scene, cycle: CycleState | None = None) -> Any:
        """Return the plug-in's answer to a scene."""
        cycle = scene.cycle() if cycle is None else cycle
        endpoints = scene.endpoints()
        return answered(check, self.did(scene), lambda: self._call(scene, endpoints, cycle))

    def did(self, scene: Scene) -> str:
        """Return what is done, in words."""
        return f"{self.method}() of {len(scene.names)} endpoints, scene {scene.name!r}"

    def _call(self, scene: Scene, endpoints: Any, cycle: CycleState) -> Any:
        if self.method == "filter":
            return cast(Filter, self.plugin).filter(scene.request, endpoints, cycle)
        return cast(Scorer, self.plugin).score(scene.request, endpoints, cycle)

    def called_with(self, check: Check, scene: Scene) -> None:
        """Ask once, and fail if an input is changed by it."""
        endpoints, cycle = scene.endpoints(), scene.cycle()
        with unchanged(check, self.did(scene), request=scene.request, endpoints=endpoints):
            answered(check, self.did(scene), lambda: self._call(scene, endpoints, cycle))
        if endpoints.matrix.flags.writeable:
            check.fail(self.did(scene), "the snapshot was made writeable", "a snapshot that nobody can write to")


def shape(check: Check, subject: Subject) -> None:
    """The answer is an array with one entry for each candidate."""
    for scene in subject.scenes:
        answer = subject.ask(check, scene)
        expected = f"a numpy array of shape ({len(scene.names)},)"
        if not isinstance(answer, np.ndarray):
            check.fail(subject.did(scene), f"a {type(answer).__name__}", expected)
        if answer.shape != (len(scene.names),):
            check.fail(subject.did(scene), f"shape {answer.shape}", expected)


def dtype(check: Check, subject: Subject) -> None:
    """A filter says bool, a scorer float64."""
    expected = np.dtype(np.bool_ if subject.method == "filter" else np.float64)
    for scene in subject.scenes:
        answer = np.asarray(subject.ask(check, scene))
        if answer.dtype != expected:
            check.fail(subject.did(scene), str(answer.dtype), str(expected))


def in_range(check: Check, subject: Subject) -> None:
    """Scores are 0 to 1."""
    for scene in subject.scenes:
        scores = np.asarray(subject.ask(check, scene), dtype=np.float64)
        for name, score in zip(scene.names, scores.tolist(), strict=False):
            if score < 0.0 or score > 1.0:
                check.fail(subject.did(scene), f"{score} for {name!r}", "0 to 1")


def no_nan(check: Check, subject: Subject) -> None:
    """No score is NaN, whatever is unknown."""
    for scene in subject.scenes:
        scores = np.asarray(subject.ask(check, scene), dtype=np.float64)
        for name, score in zip(scene.names, scores.tolist(), strict=False):
            if score != score:
                check.fail(subject.did(scene), f"NaN for {name!r}", "a number: 0 where the scorer has no word")


def inputs(check: Check, subject: Subject) -> None:
    """Request and snapshot are as they were."""
    for scene in subject.scenes:
        subject.called_with(check, scene)


def repeatable(check: Check, subject: Subject) -> None:
    """Equal questions get equal answers, whatever was asked in between: there is no memory."""
    first = [np.array(subject.ask(check, scene)) for scene in subject.scenes]
    for scene, before in reversed(list(zip(subject.scenes, first, strict=True))):
        again = subject.ask(check, scene)
        if not same(before, np.asarray(again)):
            check.fail(f"{subject.did(scene)}, twice", f"{before} and {again}", "the same: state is a producer's")


def chance(check: Check, subject: Subject) -> None:
    """Chance comes from the cycle's generator."""
    for scene in subject.scenes:
        with no_global_chance(check, subject.did(scene)):
            subject.ask(check, scene)


def order(check: Check, subject: Subject) -> None:
    """Endpoints in another order get the same, each its own. Who draws by chance is let off."""
    for scene in subject.scenes:
        cycle = scene.cycle()
        answer = np.asarray(subject.ask(check, scene, cycle))
        if drew(cycle.rng, scene.seed):
            continue
        turned = np.random.default_rng(3).permutation(len(scene.servers)).tolist()
        other = scene.reordered(turned)
        again = np.asarray(subject.ask(check, other))
        _compare(check, subject, scene, answer, other, again, "the same for each endpoint, in any order")


def remainder(check: Check, subject: Subject) -> None:
    """What filters left of a larger pool is judged as a pool of its own: nobody looks behind the snapshot."""
    for scene in subject.scenes:
        if scene.kept is not None:
            answer, alone = np.asarray(subject.ask(check, scene)), scene.alone()
            again = np.asarray(subject.ask(check, alone))
            _compare(check, subject, scene, answer, alone, again, "the same as in a pool of the candidates alone")


def _compare(check: Check, subject: Subject, scene: Scene, answer: Any, other: Scene, again: Any, allowed: str) -> None:
    if len(answer) != len(scene.names) or len(again) != len(other.names):
        check.fail(subject.did(other), f"{len(again)} entries", f"{len(other.names)}")
    places = [other.names.index(name) for name in scene.names]
    if not close(answer, again[places]):
        got = "; ".join(
            f"{name}: {one} and {two}"
            for name, one, two in zip(scene.names, answer.tolist(), again[places].tolist(), strict=True)
            if one != two
        )
        check.fail(f"{subject.did(scene)}, then {other.name!r}", got, allowed)


def one_endpoint(check: Check, subject: Subject) -> None:
    """A single candidate is judged like any other."""
    _only(check, subject, [scene for scene in subject.scenes if len(scene.names) == 1])


def unknown(check: Check, subject: Subject) -> None:
    """Nothing known of anybody is no reason to fall over."""
    _only(check, subject, [scene for scene in subject.scenes if "unknown" in scene.name or "never" in scene.name])


def _only(check: Check, subject: Subject, scenes: list[Scene]) -> None:
    these = Subject(subject.plugin, subject.method, tuple(scenes))
    shape(check, these)
    if subject.method == "score":
        no_nan(check, these)
        in_range(check, these)


def monotone(check: Check, subject: Subject) -> None:
    """What it declares to be better never makes an endpoint fare worse: its own score, and who overtakes it."""
    for read in reads_of(subject.plugin):
        if not read.better:
            continue
        for scene in subject.scenes:
            before = np.asarray(subject.ask(check, scene), dtype=np.float64)
            for place, name in enumerate(scene.names):
                value = scene.value(name, read.signal)
                if value != value:
                    continue
                for improved in better(read, value, scene):
                    changed = scene.with_value(name, read.signal, improved)
                    after = np.asarray(subject.ask(check, changed), dtype=np.float64)
                    done = f"{subject.did(scene)}; {read.signal.name} of {name!r} from {value:g} to {improved:g}"
                    _no_worse(check, done, scene.names, place, before, after)


def _no_worse(
    check: Check, done: str, names: tuple[str, ...], place: int, before: FloatArray, after: FloatArray
) -> None:
    if after[place] < before[place] - _SLACK:
        check.fail(done, f"{before[place]:g}, then {after[place]:g}", "no less: it declares that this is better")
    passed = (before[place] > before + _SLACK) & (after[place] < after - _SLACK)
    if passed.any():
        check.fail(
            done, f"it was overtaken by {names[int(np.argmax(passed))]!r}", "still ahead of those it was ahead of"
        )


def complete(check: Check, subject: Subject) -> None:
    """Columns that it does not declare are none of its business. Asked of those who declare any."""
    if not reads_of(subject.plugin):
        return

    def ask(scene: Scene) -> Any:
        return np.asarray(subject.ask(check, scene))

    for scene in subject.scenes:
        if name := heard(subject.plugin, scene, ask(scene), ask, close):
            check.fail(f"{subject.did(scene)}; {name} changed", "another answer", f"the same, or {name} in `reads`")


def optional(check: Check, subject: Subject) -> None:
    """A column that it does not require may be missing from the pool."""
    spare = [read.signal for read in reads_of(subject.plugin) if not read.required]
    for scene in subject.scenes if columns_for(object(), spare) else ():
        subject.ask(check, scene.without(spare))


def scored(check: Check, subject: Subject) -> None:
    """Whom a `PartialScorer` has no word on scores 0."""
    plugin = subject.plugin
    if not isinstance(plugin, PartialScorer):
        return
    for scene in subject.scenes:
        scores: FloatArray = np.asarray(subject.ask(check, scene))
        endpoints, cycle = scene.endpoints(), scene.cycle()
        did = f"scored() of scene {scene.name!r}"
        word: BoolArray = answered(check, did, partial(plugin.scored, scene.request, endpoints, cycle))
        if not isinstance(word, np.ndarray) or word.dtype != np.bool_ or word.shape != scores.shape:
            check.fail(did, repr(word), f"bool[{len(scores)}]")
        if (scores[~word] != 0.0).any():
            check.fail(did, f"False where the score is {scores[~word].max():g}", "True, or a score of 0")


def reasons(check: Check, subject: Subject) -> None:
    """A filter that explains itself has a word for everybody it drops."""
    plugin = subject.plugin
    if not isinstance(plugin, Explains):
        return
    for scene in subject.scenes:
        kept: BoolArray = np.asarray(subject.ask(check, scene))
        for i in np.flatnonzero(~kept).tolist():
            did = f"why_dropped() of {scene.names[i]!r}, scene {scene.name!r}"
            endpoints, cycle = scene.endpoints(), scene.cycle()
            words = answered(check, did, partial(plugin.why_dropped, scene.request, endpoints, cycle, i))
            if not isinstance(words, str) or not words.strip():
                check.fail(did, repr(words), "a sentence, or a few words")


_BOTH: Final[dict[str, Callable[[Check, Subject], None]]] = {
    "shape": shape,
    "dtype": dtype,
    "inputs": inputs,
    "repeatable": repeatable,
    "chance": chance,
    "order": order,
    "remainder": remainder,
    "one-endpoint": one_endpoint,
    "unknown": unknown,
    "monotone": monotone,
    "undeclared": complete,
    "optional": optional,
}
FILTER_CHECKS: Final = {**_BOTH, "reasons": reasons}
SCORER_CHECKS: Final = {**_BOTH, "range": in_range, "nan": no_nan, "scored": scored}
