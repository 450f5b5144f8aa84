"""What comes out of a configuration?"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from inferencesched.config.decode import one_of
from inferencesched.config.document import Remark
from inferencesched.config.registry import Registry
from inferencesched.config.spec import PluginSpec
from inferencesched.config.workbench import Kept, Workbench
from inferencesched.errors import ConfigError, DependencyError, InvalidInputError
from inferencesched.framework import (
    Assigner,
    DataProducer,
    Filter,
    Picker,
    ProfileHandler,
    SchedulingProfile,
    Scorer,
    WeightedScorer,
)
from inferencesched.handlers.disaggregated import DisaggProfileHandler
from inferencesched.handlers.joint import JointDisaggHandler
from inferencesched.handlers.single import SingleProfileHandler
from inferencesched.handlers.stages import StageNames
from inferencesched.producers.named import NamedProducer
from inferencesched.scheduler import Scheduler
from inferencesched.staleness import StalePolicy

D = TypeVar("D")


class Member(NamedTuple):
    """Which plug-in is in a profile, and where does it say so?"""

    name: str
    path: str
    weight: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded(Generic[D]):
    """What comes out of a configuration?

    ``document`` is what was said and ``effective`` what that means with all defaults; both can be compared and written. ``plugins``
    are the plug-ins by name, ``types`` where they come from; ``profiles``, ``handler``, ``producers``, ``assigner``, ``admitters`` and ``stages`` what a gateway is
    made of, ``created`` the producers that were made because somebody reads what they fill. ``warnings`` are about what is deprecated or has no effect, ``notes`` about what was
    assumed and what is left to the gateway (`Remark`). Nothing here changes.
    """

    document: D
    effective: D
    registry: Registry
    plugins: Mapping[str, object]
    types: Mapping[str, PluginSpec]
    profiles: Mapping[str, SchedulingProfile]
    handler: ProfileHandler
    producers: tuple[DataProducer[Any], ...]
    assigner: Assigner | None
    admitters: tuple[object, ...]
    stages: tuple[object, ...]
    computing: tuple[str, ...]
    stale: StalePolicy
    feature_gates: Mapping[str, bool]
    created: tuple[str, ...]
    warnings: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    again: Callable[[Kept], "Loaded[D]"]

    def scheduler(self, *, stale: StalePolicy | None = None) -> Scheduler:
        """Return the scheduler; each call returns one with the same producers. `stale` takes the place of the configuration's."""
        return Scheduler(
            self.profiles,
            handler=self.handler,
            producers=self.producers,
            stale=self.stale if stale is None else stale,
            assigner=self.assigner,
            computing=self.computing,
        )

    def carrying(self, old: Scheduler) -> "Loaded[D]":
        """Return the same configuration with the producers of a running scheduler, where they are set up in the same way.

        What they know is kept; those of another type or with other parameters start anew. `old` goes on as it is.
        """
        return self.again(Running(old))


class Running:
    """Which producers does a scheduler have, for a new one to keep? (a `Kept`)"""

    def __init__(self, scheduler: Scheduler) -> None:
        self._left = [
            (each.name, each.producer) if isinstance(each, NamedProducer) else ("", each)
            for each in scheduler.producers
        ]

    def instead_of(self, spec: PluginSpec, name: str, made: DataProducer[Any]) -> DataProducer[Any]:
        """Return a producer of the scheduler that was set up as `made` was, each at most once; `made` if there is none."""
        if spec.read is None:
            return made
        said = spec.read(made)
        alike = [i for i, (_, each) in enumerate(self._left) if type(each) is type(made) and spec.read(each) == said]
        if not alike:
            return made
        # one that has its name; else one that had no need of any
        chosen = min(alike, key=lambda i: (self._left[i][0] != name, self._left[i][0] != ""))
        return self._left.pop(chosen)[1]


def profile_of(bench: Workbench, name: str, members: Iterable[Member], path: str) -> SchedulingProfile:
    """Return a profile of these plug-ins; their types say what they are in it, and one may be two things.

    Errors: `ConfigError` for a second picker, for none, and for a name that is not there.
    """
    filters: list[Filter] = []
    scorers: list[WeightedScorer] = []
    pickers: list[tuple[str, Picker]] = []
    for member in members:
        instance = bench.plugin(member.name, member.path, "filter", "scorer", "picker")
        if instance.is_a("filter"):
            filters.append(instance.plugin)
        if instance.is_a("scorer"):
            scorers.append(_weighted(instance.plugin, member))
        elif member.weight is not None:
            bench.remarks.append(
                Remark("ignored", member.path, member.name, "has a weight, and is no scorer: the weight has no effect")
            )
        if instance.is_a("picker"):
            if pickers:
                raise ConfigError(member.path, member.name, f"one picker in a profile: {pickers[0][0]} is one")
            pickers.append((member.name, instance.plugin))
        if not instance.is_a("filter", "scorer", "picker"):
            words = "is no filter, scorer or picker: it has no part in a profile"
            bench.remarks.append(Remark("ignored", member.path, member.name, words))
    if not pickers:
        raise ConfigError(path, name, one_of("", bench.registry.names("picker"), "a profile with a picker, "))
    return SchedulingProfile(pickers[0][1], tuple(scorers), tuple(filters))


def _weighted(scorer: Scorer, member: Member) -> WeightedScorer:
    try:
        return WeightedScorer(scorer, 1.0 if member.weight is None else member.weight)
    except InvalidInputError as error:
        raise ConfigError(f"{member.path.rpartition('.')[0]}.{error.parameter}", error.value, error.allowed) from error


def handler_of(bench: Workbench, profiles: Mapping[str, SchedulingProfile], path: str) -> ProfileHandler:
    """Return the one handler; `ConfigError` for none, for several, and for a single-profile one of several profiles."""
    handlers = bench.of_kind("profile-handler")
    if not handlers:
        known = bench.registry.names("profile-handler")
        raise ConfigError(
            path, sorted(profiles), one_of("", known, "one profile, or a profile handler among the plug-ins, ")
        )
    if len(handlers) > 1:
        raise ConfigError(handlers[1].path, handlers[1].name, f"one profile handler: {handlers[0].name} is one")
    if isinstance(handlers[0].plugin, SingleProfileHandler) and len(profiles) > 1:
        raise ConfigError(handlers[0].path, handlers[0].name, f"a handler that chooses between {sorted(profiles)}")
    handler: ProfileHandler = handlers[0].plugin
    stages = _stages_of(handler)
    if stages is not None and stages.decode not in profiles:
        words = f"takes its answer from the profile {stages.decode!r}, which is not there: it refuses every request"
        bench.remarks.append(Remark("ignored", handlers[0].path, handlers[0].name, words))
    return handler


def assigner_of(bench: Workbench) -> Assigner | None:
    """Return who decides several requests together, None for nobody; `ConfigError` for two."""
    assigners = bench.of_kind("assigner")
    if len(assigners) > 1:
        raise ConfigError(assigners[1].path, assigners[1].name, f"one assigner: {assigners[0].name} is one")
    return assigners[0].plugin if assigners else None


def checked(loaded: Loaded[D]) -> Loaded[D]:
    """Return it if a scheduler can be made of it; `ConfigError` where a column has no producer or producers go in a circle."""
    try:
        loaded.scheduler()
    except DependencyError as error:
        raise ConfigError("$", error.value, f"{error.allowed} ({error.parameter})") from error
    return loaded


def computing_of(handler: ProfileHandler) -> tuple[str, ...]:
    """Return the profiles whose target computes the prompt beside the primary's: the handler's prefill stage."""
    stages = _stages_of(handler)
    return ("prefill",) if stages is None else (stages.prefill,)


def _stages_of(handler: ProfileHandler) -> StageNames | None:
    """Return the profiles of a handler that has stages."""
    if isinstance(handler, DisaggProfileHandler):
        return handler.profiles
    return handler.stages.profiles if isinstance(handler, JointDisaggHandler) else None
