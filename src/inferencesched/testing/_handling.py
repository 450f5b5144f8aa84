"""What do a profile handler and an assigner promise?"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, Final, Protocol, runtime_checkable

from inferencesched.errors import RequestRefusedError
from inferencesched.framework import (
    ProfileHandler,
    ProfileResult,
    SchedulingProfile,
    SchedulingResult,
    StagedHandler,
    Target,
)
from inferencesched.pickers.score import MaxScorePicker
from inferencesched.testing._calls import Broken, no_global_chance, unchanged
from inferencesched.testing.failure import Check, CheckFailure
from inferencesched.testing.scenes import REQUESTS, Scene


def profiles_of(handler: object) -> tuple[str, ...]:
    """Return the profiles that a handler names in its parameters called ``..profile..``; "default" if none.

    Such a parameter is a name, or a table of names; one that is a handler itself is asked the same.
    """
    return tuple(dict.fromkeys(_names(handler))) or ("default",)


def _names(handler: object) -> Iterator[str]:
    for each in fields(handler) if is_dataclass(handler) else ():
        value = getattr(handler, each.name)
        if "profile" in each.name and isinstance(value, str) and value:
            yield value
        elif "profile" in each.name and is_dataclass(value):
            yield from (name for part in fields(value) if isinstance(name := getattr(value, part.name), str))
        elif isinstance(value, ProfileHandling):
            yield from _names(value)


@runtime_checkable
class ProfileHandling(Protocol):
    """Is it a handler of profiles?"""

    def process_results(self, *arguments: Any) -> Any:
        """See `ProfileHandler`."""
        ...


@dataclass(frozen=True, slots=True)
class Walk:
    """Which profiles succeed, for which request, on which endpoints?"""

    scene: Scene
    outcome: tuple[tuple[str, bool], ...]

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {'finds one' if ok else 'fails'}" for name, ok in self.outcome)
        return f"scene {self.scene.name!r} where {ends}"


@dataclass(frozen=True, slots=True)
class Handling:
    """Which handler is asked, about which profiles?"""

    plugin: ProfileHandler
    names: tuple[str, ...]
    scenes: tuple[Scene, ...]

    def walks(self) -> Iterator[Walk]:
        """Walk every scene, with every profile's success and failure."""
        for i, scene in enumerate(self.scenes):
            ends = list(product((True, False), repeat=len(self.names)))
            for found in ends if i < len(REQUESTS) else ends[:1]:
                yield Walk(scene, tuple(zip(self.names, found, strict=True)))

    def run(self, check: Check, walk: Walk) -> tuple[SchedulingResult | None, list[list[str]]]:
        """Return what the handler makes of a request, None where it refuses it, and the profiles of each round."""
        profiles = MappingProxyType({name: SchedulingProfile(MaxScorePicker()) for name in self.names})
        cycle = walk.scene.cycle()._replace(candidates=walk.scene.endpoints())
        results: dict[str, ProfileResult | None] = {}
        rounds: list[list[str]] = []
        ends = dict(walk.outcome)
        seen = MappingProxyType(results)
        with unchanged(check, f"pick() of {walk}", request=walk.scene.request, candidates=cycle.candidates):
            try:
                while True:
                    chosen = self.plugin.pick(walk.scene.request, profiles, seen, cycle)
                    self._check_pick(check, walk, chosen, profiles, results)
                    if not chosen:
                        break
                    rounds.append(list(chosen))
                    if isinstance(self.plugin, StagedHandler):
                        self._check_peer(check, walk, chosen, results)
                    for name in chosen:
                        results.setdefault(name, _targets(walk.scene, len(results)) if ends[name] else None)
                answer = self.plugin.process_results(walk.scene.request, seen, cycle)
            except RequestRefusedError:
                return None, rounds
            except CheckFailure:
                raise
            except Broken as error:
                allowed = "an answer, or a RequestRefusedError"
                check.fail(f"asked it for {walk}", f"{type(error).__name__}: {error}", allowed, error)
        if not isinstance(answer, SchedulingResult):
            check.fail(f"process_results() of {walk}", repr(answer), "a SchedulingResult")
        return answer, rounds

    @staticmethod
    def _check_pick(
        check: Check, walk: Walk, chosen: object, profiles: Mapping[str, Any], done: Mapping[str, Any]
    ) -> None:
        allowed = f"a mapping of some of {sorted(profiles)} to those very profiles, at least one that has not run"
        if not isinstance(chosen, Mapping):
            check.fail(f"pick() of {walk}", repr(chosen), allowed)
        if any(profiles.get(name) is not profile for name, profile in chosen.items()):
            check.fail(f"pick() of {walk}", repr(dict(chosen)), allowed)
        if chosen and all(name in done for name in chosen):
            check.fail(f"pick() of {walk}, after {sorted(done)}", f"{sorted(chosen)} again", allowed)

    def _check_peer(self, check: Check, walk: Walk, chosen: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        assert isinstance(self.plugin, StagedHandler)
        peer = self.plugin.peer(chosen, MappingProxyType(dict(results)))
        known = [target for result in results.values() if result for target in result.targets]
        if peer is not None and peer not in known:
            check.fail(f"peer() of {walk}", repr(peer), "a target of an earlier profile, or None")


def _targets(scene: Scene, place: int) -> ProfileResult:
    endpoints = scene.endpoints()
    count = len(endpoints)
    order = [(place + i) % count for i in range(min(3, count))]
    return ProfileResult(
        tuple(
            Target(endpoints.name(i), *endpoints.stay(i), 1.0 / (1 + k), 10, endpoints.address(i))
            for k, i in enumerate(order)
        )
    )


def ends(check: Check, handling: Handling) -> None:
    """It asks for profiles that exist, each round for one that has not run, and comes to an end."""
    for walk in handling.walks():
        handling.run(check, walk)


def primary(check: Check, handling: Handling) -> None:
    """The answer that counts is one that ran; with every profile a success, one that found somebody."""
    for walk in handling.walks():
        result, rounds = handling.run(check, walk)
        if result is None:
            if rounds and all(found for _, found in walk.outcome):
                check.fail(f"asked it for {walk}", "a refusal", "an answer: every profile that ran found an endpoint")
            continue
        if result.primary not in result.profiles:
            check.fail(
                f"process_results() of {walk}", f"primary {result.primary!r}", f"one of {sorted(result.profiles)}"
            )
        if all(found for _, found in walk.outcome) and result.profiles[result.primary] is None:
            check.fail(f"process_results() of {walk}", f"primary {result.primary!r}, which failed", "one that did not")


def kept(check: Check, handling: Handling) -> None:
    """The result is about the request, and about profiles of the scheduler; headers are lower-case words."""
    for walk in handling.walks():
        result, _ = handling.run(check, walk)
        if result is None:
            continue
        done = f"process_results() of {walk}"
        if result.request.request_id != walk.scene.request.request_id:
            check.fail(done, f"request {result.request.request_id!r}", repr(walk.scene.request.request_id))
        if not result.profiles.keys() <= set(handling.names):
            check.fail(done, f"profiles {sorted(result.profiles)}", f"some of {sorted(handling.names)}")
        for name, value in result.headers.items():
            if not isinstance(name, str) or not isinstance(value, str) or name != name.lower():
                check.fail(done, f"header {name!r}: {value!r}", "lower-case names, and strings")


def repeatable(check: Check, handling: Handling) -> None:
    """Equal questions get equal answers: there is no memory."""
    walks = list(handling.walks())
    first = [_said(handling.run(check, walk)) for walk in walks]
    for walk, before in reversed(list(zip(walks, first, strict=True))):
        again = _said(handling.run(check, walk))
        if again != before:
            check.fail(f"asked it for {walk}, twice", f"{before} and {again}", "the same")


def _said(answer: tuple[SchedulingResult | None, list[list[str]]]) -> object:
    result, rounds = answer
    if result is None:
        return None, rounds
    return result.primary, dict(result.profiles), dict(result.headers), rounds


def chance(check: Check, handling: Handling) -> None:
    """Chance comes from the cycle's generator."""
    for walk in handling.walks():
        with no_global_chance(check, f"asked it for {walk}"):
            handling.run(check, walk)


def one_endpoint(check: Check, handling: Handling) -> None:
    """A single candidate serves every stage, or the request is refused."""
    alone = tuple(scene for scene in handling.scenes if len(scene.names) == 1)
    ends(check, Handling(handling.plugin, handling.names, alone))


HANDLER_CHECKS: Final[dict[str, Callable[[Check, Handling], None]]] = {
    "ends": ends,
    "primary": primary,
    "result": kept,
    "repeatable": repeatable,
    "chance": chance,
    "one-endpoint": one_endpoint,
}
