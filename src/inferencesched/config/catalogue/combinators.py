"""Filters of filters, scorers of scorers. What they are made of is named, and built first."""

from typing import Annotated, Any, TypeVar

import msgspec

from inferencesched.config.spec import Parameters, PluginRef, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError
from inferencesched.filters.combinators import AllOf, AnyOf, AtLeast, Not, Prefer
from inferencesched.framework import Filter, Scorer
from inferencesched.scorers.combinators import Lexicographic

P = TypeVar("P")
Some = Annotated[tuple[PluginRef, ...], msgspec.Meta(min_length=1)]


class OneFilter(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``filter``: the name of a filter."""

    filter: PluginRef


class Filters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``filters``: the names of one or more."""

    filters: Some


class AtLeastParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``scorer``: the name of a scorer; ``minimum``: the least score that passes."""

    scorer: PluginRef
    minimum: float


class LexicographicParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``scorers``: the names of one or more, what counts most first; ``resolution``: what is less different is equal."""

    scorers: Some
    resolution: float = 0.01


def _filter(name: str, workshop: Workshop) -> Filter:
    return _of_kind(Filter, "filter", name, workshop)  # type: ignore[type-abstract]


def _scorer(name: str, workshop: Workshop) -> Scorer:
    return _of_kind(Scorer, "scorer", name, workshop)  # type: ignore[type-abstract]


def _of_kind(kind: type[P], word: str, name: str, workshop: Workshop) -> P:
    """Return the plug-in of that name; `InvalidInputError` for one of another kind."""
    plugin = workshop.plugin(name)
    if not isinstance(plugin, kind):
        raise InvalidInputError(word, name, f"the name of a {word}: this is {plugin!r}")
    return plugin


def _at_least(p: AtLeastParameters, workshop: Workshop) -> AtLeast:
    return AtLeast(_scorer(p.scorer, workshop), p.minimum)


def _lexicographic(p: LexicographicParameters, workshop: Workshop) -> Lexicographic:
    return Lexicographic(tuple(_scorer(name, workshop) for name in p.scorers), p.resolution)


def _filters(p: Filters, workshop: Workshop) -> tuple[Filter, ...]:
    return tuple(_filter(name, workshop) for name in p.filters)


def _one(plugin: Any) -> OneFilter:
    return OneFilter(filter="")


def _several(plugin: Any) -> Filters:
    return Filters(filters=())


SPECS = (
    PluginSpec(
        "prefer-filter",
        ("filter",),
        OneFilter,
        lambda p, w: Prefer(_filter(p.filter, w)),
        Prefer,
        _one,
        origin="own",
        parts=lambda plugin: {"filter": plugin.wanted},
    ),
    PluginSpec(
        "not-filter",
        ("filter",),
        OneFilter,
        lambda p, w: Not(_filter(p.filter, w)),
        Not,
        _one,
        origin="own",
        parts=lambda plugin: {"filter": plugin.refused},
    ),
    PluginSpec(
        "all-of-filter",
        ("filter",),
        Filters,
        lambda p, w: AllOf(_filters(p, w)),
        AllOf,
        _several,
        origin="own",
        parts=lambda plugin: {"filters": plugin.filters},
    ),
    PluginSpec(
        "any-of-filter",
        ("filter",),
        Filters,
        lambda p, w: AnyOf(_filters(p, w)),
        AnyOf,
        _several,
        origin="own",
        parts=lambda plugin: {"filters": plugin.filters},
    ),
    PluginSpec(
        "at-least-filter",
        ("filter",),
        AtLeastParameters,
        _at_least,
        AtLeast,
        lambda plugin: AtLeastParameters(scorer="", minimum=plugin.minimum),
        origin="own",
        parts=lambda plugin: {"scorer": plugin.scorer},
    ),
    PluginSpec(
        "lexicographic-scorer",
        ("scorer",),
        LexicographicParameters,
        _lexicographic,
        Lexicographic,
        lambda plugin: LexicographicParameters(scorers=(), resolution=plugin.resolution),
        origin="own",
        parts=lambda plugin: {"scorers": plugin.scorers},
    ),
)
