"""What does a picker promise?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.framework import CycleState, Picker, StochasticPicker
from inferencesched.testing._calls import (
    answered,
    drew,
    heard,
    no_global_chance,
    reads_of,
    same,
    unchanged,
)
from inferencesched.testing.failure import Check
from inferencesched.testing.scenes import Scene


class Vote(NamedTuple):
    """Which totals does the picker see, over which endpoints?"""

    name: str
    totals: FloatArray
    scene: Scene


@dataclass(frozen=True, slots=True)
class Choice:
    """Which picker is asked, on which scenes?"""

    plugin: Picker
    scenes: tuple[Scene, ...]

    def votes(self) -> Iterator[Vote]:
        """Walk every scene with totals that are distinct, equal, tied at the top, negative, huge, and zero."""
        for scene in self.scenes:
            count = len(scene.names)
            distinct: FloatArray = np.random.default_rng(count).permutation(count) / 2.0 + 0.25
            yield Vote("distinct totals", distinct, scene)
            yield Vote("equal totals", np.full(count, 1.5), scene)
            yield Vote("a tie at the top", np.minimum(distinct, max(0.25, (count - 2) / 2)), scene)
            yield Vote("negative totals", distinct - 100.0, scene)
            yield Vote("huge totals", distinct * 1e300, scene)
            yield Vote("no totals", np.zeros(count), scene)

    def ask(self, check: Check, vote: Vote, cycle: CycleState | None = None) -> Any:
        """Return the picks."""
        endpoints = vote.scene.endpoints()
        cycle = vote.scene.cycle() if cycle is None else cycle
        return answered(check, self.did(vote), lambda: self.plugin.pick(vote.totals.copy(), endpoints, cycle))

    def did(self, vote: Vote) -> str:
        """Return what is done, in words."""
        return f"pick() of {len(vote.totals)} endpoints, {vote.name}, scene {vote.scene.name!r}"

    def first(self, check: Check, vote: Vote, cycle: CycleState | None = None) -> str:
        """Return who is picked first, by name."""
        return vote.scene.names[int(self.ask(check, vote, cycle)[0])]


def shape(check: Check, choice: Choice) -> None:
    """Picks are an array of at least one position."""
    for vote in choice.votes():
        picks = choice.ask(check, vote)
        if not isinstance(picks, np.ndarray) or picks.ndim != 1 or not len(picks):
            check.fail(choice.did(vote), repr(picks), "a 1-D numpy array of at least one position")


def dtype(check: Check, choice: Choice) -> None:
    """Positions are whole numbers of numpy's own size for them."""
    for vote in choice.votes():
        picks = np.asarray(choice.ask(check, vote))
        if picks.dtype != np.intp:
            check.fail(choice.did(vote), str(picks.dtype), "intp")


def positions(check: Check, choice: Choice) -> None:
    """Picks are distinct positions of candidates."""
    for vote in choice.votes():
        picks = np.asarray(choice.ask(check, vote)).tolist()
        if min(picks) < 0 or max(picks) >= len(vote.totals) or len(set(picks)) != len(picks):
            check.fail(choice.did(vote), repr(picks), f"distinct positions below {len(vote.totals)}")


def inputs(check: Check, choice: Choice) -> None:
    """Totals and snapshot are as they were."""
    for vote in choice.votes():
        totals, endpoints, cycle = vote.totals.copy(), vote.scene.endpoints(), vote.scene.cycle()
        with unchanged(check, choice.did(vote), totals=totals, endpoints=endpoints):
            answered(check, choice.did(vote), partial(choice.plugin.pick, totals, endpoints, cycle))


def repeatable(check: Check, choice: Choice) -> None:
    """Equal questions with an equally seeded generator get equal answers: there is no cursor."""
    votes = list(choice.votes())
    first = [np.array(choice.ask(check, vote)) for vote in votes]
    for vote, before in reversed(list(zip(votes, first, strict=True))):
        again = np.asarray(choice.ask(check, vote))
        if not same(before, again):
            check.fail(f"{choice.did(vote)}, twice", f"{before} and {again}", "the same")


def chance(check: Check, choice: Choice) -> None:
    """Chance comes from the cycle's generator."""
    for vote in choice.votes():
        with no_global_chance(check, choice.did(vote)):
            choice.ask(check, vote)


def order(check: Check, choice: Choice) -> None:
    """Without a tie the same endpoints are picked in any order. Who draws, or goes by turns, is let off."""
    for vote in choice.votes():
        if vote.name not in ("distinct totals", "negative totals") or len(vote.totals) < 2:
            continue
        cycle = vote.scene.cycle()
        picks = np.asarray(choice.ask(check, vote, cycle)).tolist()
        later = vote.scene.cycle()
        turn = np.asarray(choice.ask(check, vote, later._replace(sequence=later.sequence + 1))).tolist()
        if drew(cycle.rng, vote.scene.seed) or turn != picks:
            continue
        turned = np.random.default_rng(3).permutation(len(vote.scene.servers)).tolist()
        scene = vote.scene.reordered(turned)
        totals = np.array([vote.totals[vote.scene.names.index(name)] for name in scene.names])
        other = Vote(vote.name, totals, scene)
        again = [scene.names[i] for i in np.asarray(choice.ask(check, other)).tolist()]
        if again != [vote.scene.names[i] for i in picks]:
            names = [vote.scene.names[i] for i in picks]
            check.fail(f"{choice.did(vote)}, and reordered", f"{names} and {again}", "the same, in any order")


def one_endpoint(check: Check, choice: Choice) -> None:
    """A single candidate is picked."""
    for vote in choice.votes():
        if len(vote.totals) == 1 and np.asarray(choice.ask(check, vote)).tolist() != [0]:
            check.fail(choice.did(vote), repr(choice.ask(check, vote)), "[0]")


def monotone(check: Check, choice: Choice) -> None:
    """A better total never costs an endpoint the pick, the draws being the same."""
    for vote in choice.votes():
        if vote.name == "huge totals":
            continue
        name = choice.first(check, vote)
        place = vote.scene.names.index(name)
        for more in (0.01, 0.6, 1000.0):
            totals = vote.totals.copy()
            totals[place] += more
            other = choice.first(check, Vote(vote.name, totals, vote.scene))
            if other != name:
                done = f"{choice.did(vote)}; {more:g} more for {name!r}, which it had picked"
                check.fail(done, f"it picks {other!r}", "still the same: a better total never costs the pick")


def complete(check: Check, choice: Choice) -> None:
    """Columns that it does not declare are none of its business. Asked of those who declare any."""
    if not reads_of(choice.plugin):
        return
    for vote in choice.votes():

        def ask(scene: Scene, vote: Vote = vote) -> Any:
            return np.asarray(choice.ask(check, vote._replace(scene=scene)))

        if name := heard(choice.plugin, vote.scene, ask(vote.scene), ask, same):
            check.fail(f"{choice.did(vote)}; {name} changed", "other picks", f"the same, or {name} in `reads`")


def propensities(check: Check, choice: Choice) -> None:
    """A `StochasticPicker` tells with which probability it picks whom, and so it picks: 2,000 draws are counted."""
    plugin = choice.plugin
    if not isinstance(plugin, StochasticPicker):
        return
    counted = 0
    for vote in choice.votes():
        done = f"propensities() of {len(vote.totals)} endpoints, {vote.name}, scene {vote.scene.name!r}"
        endpoints = vote.scene.endpoints()
        told: FloatArray = answered(check, done, partial(plugin.propensities, vote.totals.copy(), endpoints))
        if not isinstance(told, np.ndarray) or told.shape != vote.totals.shape or told.dtype != np.float64:
            check.fail(done, repr(told), f"float64[{len(vote.totals)}]")
        if not (told >= 0.0).all() or abs(float(told.sum()) - 1.0) > 1e-9:
            check.fail(done, f"{told}", "probabilities that sum to 1")
        if not told[int(choice.ask(check, vote)[0])] > 0.0:
            check.fail(done, f"{told}, and {choice.first(check, vote)!r} is picked", "a probability above 0 for it")
        if counted < 3:  # distinct totals, equal ones, and a tie at the top
            counted += 1
            _frequencies(check, choice, vote, told)


def _frequencies(check: Check, choice: Choice, vote: Vote, told: FloatArray) -> None:
    rng, draws, found = np.random.default_rng(17), 2_000, np.zeros(len(told))
    endpoints, cycle = vote.scene.endpoints(), vote.scene.cycle()._replace(rng=rng)
    for _ in range(draws):
        found[choice.plugin.pick(vote.totals.copy(), endpoints, cycle)[0]] += 1.0
    slack = 5.0 * np.sqrt(told * (1.0 - told) / draws) + 1e-9
    if (np.abs(found / draws - told) > slack).any():
        got = f"frequencies {(found / draws).round(3)}"
        check.fail(f"{choice.did(vote)}, {draws} times", got, f"the propensities {told.round(3)}, within 5 sigma")


PICKER_CHECKS: Final[dict[str, Callable[[Check, Choice], None]]] = {
    "shape": shape,
    "dtype": dtype,
    "positions": positions,
    "inputs": inputs,
    "repeatable": repeatable,
    "chance": chance,
    "order": order,
    "one-endpoint": one_endpoint,
    "monotone": monotone,
    "undeclared": complete,
    "propensities": propensities,
}
