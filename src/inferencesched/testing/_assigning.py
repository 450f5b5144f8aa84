"""What do an assigner and a decider promise?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from inferencesched.framework import Assigner, CycleState, SchedulingResult, Target
from inferencesched.request import InferenceRequest
from inferencesched.testing._calls import answered, fingerprint, no_global_chance, unchanged
from inferencesched.testing.failure import Check
from inferencesched.testing.scenes import REQUESTS, Scene

# -- assigners ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assigning:
    """Which assigner is asked, on which scenes?"""

    plugin: Assigner
    scenes: tuple[Scene, ...]

    def ask(self, check: Check, scene: Scene, requests: Sequence[InferenceRequest] = REQUESTS) -> Any:
        """Return its results."""
        endpoints, cycle = scene.endpoints(), scene.cycle()
        with unchanged(check, self.did(scene), endpoints=endpoints, requests=[fingerprint(each) for each in requests]):
            return answered(check, self.did(scene), lambda: self.plugin.assign(requests, endpoints, cycle))

    @staticmethod
    def did(scene: Scene) -> str:
        """Return what is done, in words."""
        return f"assign() of {len(REQUESTS)} requests, scene {scene.name!r}"


def one_each(check: Check, assigning: Assigning) -> None:
    """Every request has its result, in order."""
    for scene in assigning.scenes:
        found = [result.request.request_id for result in assigning.ask(check, scene)]
        if found != [request.request_id for request in REQUESTS]:
            check.fail(assigning.did(scene), repr(found), "a result for each request, in their order")
    for scene in assigning.scenes[:1]:
        if nothing := list(assigning.ask(check, scene, ())):
            check.fail("assign() of no requests", repr(nothing), "no results")


def candidates(check: Check, assigning: Assigning) -> None:
    """Targets are candidates, each with its own slot and generation."""
    for scene in assigning.scenes:
        endpoints = scene.endpoints()
        stays = {endpoints.name(i): endpoints.stay(i) for i in range(len(endpoints))}
        for result in assigning.ask(check, scene):
            target = result.target
            if stays.get(target.endpoint) != (target.slot, target.generation):
                check.fail(assigning.did(scene), repr(target), f"one of {sorted(stays)}, its slot and generation")


def assigned_again(check: Check, assigning: Assigning) -> None:
    """Equal questions get equal answers."""
    first = [_targets_of(assigning.ask(check, scene)) for scene in assigning.scenes]
    for scene, before in reversed(list(zip(assigning.scenes, first, strict=True))):
        again = _targets_of(assigning.ask(check, scene))
        if again != before:
            check.fail(f"{assigning.did(scene)}, twice", f"{before} and {again}", "the same")


def _targets_of(results: Sequence[SchedulingResult]) -> list[tuple[str, str]]:
    return [(result.request.request_id, result.target.endpoint) for result in results]


def assigned_by_chance(check: Check, assigning: Assigning) -> None:
    """Chance comes from the cycle's generator."""
    for scene in assigning.scenes:
        with no_global_chance(check, assigning.did(scene)):
            assigning.ask(check, scene)


ASSIGNER_CHECKS: Final[dict[str, Callable[[Check, Assigning], None]]] = {
    "one-each": one_each,
    "candidates": candidates,
    "repeatable": assigned_again,
    "chance": assigned_by_chance,
}


# -- deciders ----------------------------------------------------------------------------------------------------------


class Decides(Protocol):
    """Shall a stage run on a server of its own? See `inferencesched.handlers.DisaggregationDecider`."""

    def decide(self, request: InferenceRequest, target: Target | None, cycle: CycleState) -> bool:
        """Return True to run the stage."""
        ...


class Question(NamedTuple):
    """Which decode server was chosen, in which scene? None where none was."""

    scene: Scene
    place: int | None

    def __str__(self) -> str:
        where = "no target" if self.place is None else repr(self.scene.names[self.place])
        return f"decide() with {where}, scene {self.scene.name!r}"


@dataclass(frozen=True, slots=True)
class Deciding:
    """Which decider is asked, on which scenes?"""

    plugin: Decides
    scenes: tuple[Scene, ...]

    def questions(self) -> Iterator[Question]:
        """Walk every scene without a target, with its first candidate, and with its last."""
        for scene in self.scenes:
            yield from (Question(scene, place) for place in (None, 0, len(scene.names) - 1))

    def ask(self, check: Check, question: Question) -> Any:
        """Return its answer."""
        scene, place = question
        endpoints = scene.endpoints()
        cycle = scene.cycle()._replace(candidates=endpoints)
        target = None
        if place is not None:
            slot, generation = endpoints.stay(place)
            target = Target(endpoints.name(place), slot, generation, 1.0, 10, endpoints.address(place))
        with unchanged(check, str(question), request=scene.request, candidates=endpoints):
            return answered(check, str(question), partial(self.plugin.decide, scene.request, target, cycle))


def yes_or_no(check: Check, deciding: Deciding) -> None:
    """The answer is a bool, whether there is a target or not."""
    for question in deciding.questions():
        answer = deciding.ask(check, question)
        if not isinstance(answer, bool):
            check.fail(str(question), repr(answer), "True or False")


def decided_again(check: Check, deciding: Deciding) -> None:
    """Equal questions get equal answers."""
    questions = list(deciding.questions())
    first = [deciding.ask(check, question) for question in questions]
    for question, before in reversed(list(zip(questions, first, strict=True))):
        again = deciding.ask(check, question)
        if again != before:
            check.fail(f"{question}, twice", f"{before} and {again}", "the same")


def decided_by_chance(check: Check, deciding: Deciding) -> None:
    """Chance comes from the cycle's generator."""
    for question in deciding.questions():
        with no_global_chance(check, str(question)):
            deciding.ask(check, question)


DECIDER_CHECKS: Final[dict[str, Callable[[Check, Deciding], None]]] = {
    "answer": yes_or_no,
    "repeatable": decided_again,
    "chance": decided_by_chance,
}
