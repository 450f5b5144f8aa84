"""Filters by labels and roles, by the names of llm-d's router."""

from typing import Any, Final

import msgspec

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.filters.labels import (
    ROLE_LABEL,
    DecodeFilter,
    EncodeFilter,
    LabelFilter,
    LabelRequirement,
    LabelSelectorFilter,
    Operator,
    PrefillFilter,
)


class RoleParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``label``: which label tells the role; llm-d's own unless given (its filters take no parameters)."""

    label: str = ROLE_LABEL


class LabelParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``label``; ``validValues``: which values pass; ``allowsNoLabel``: whether an endpoint without it passes."""

    label: str
    valid_values: tuple[str, ...] = ()
    allows_no_label: bool = False


class RequirementParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``key``, ``operator`` and ``values`` of one label, as in a selector of Kubernetes."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class SelectorParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``matchLabels`` and ``matchExpressions``, a selector of Kubernetes."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: tuple[RequirementParameters, ...] = ()


def _label(p: LabelParameters, workshop: Workshop) -> LabelFilter:
    return LabelFilter(p.label, p.valid_values, p.allows_no_label)


def _selector(p: SelectorParameters, workshop: Workshop) -> LabelSelectorFilter:
    expressions = (LabelRequirement(each.key, each.operator, each.values) for each in p.match_expressions)
    return LabelSelectorFilter(tuple(p.match_labels.items()), tuple(expressions))


def _read_label(plugin: LabelFilter) -> LabelParameters:
    return LabelParameters(label=plugin.label, valid_values=plugin.values, allows_no_label=plugin.allow_missing)


def _read_selector(plugin: LabelSelectorFilter) -> SelectorParameters:
    return SelectorParameters(
        match_labels=dict(plugin.match_labels),
        match_expressions=tuple(
            RequirementParameters(key=each.key, operator=each.operator, values=each.values)
            for each in plugin.match_expressions
        ),
    )


def _role(name: str, made: type[DecodeFilter] | type[PrefillFilter] | type[EncodeFilter]) -> PluginSpec:
    def build(p: RoleParameters, workshop: Workshop) -> object:
        return made(p.label)

    def read(plugin: Any) -> msgspec.Struct:
        return RoleParameters(label=plugin.label)

    return PluginSpec(name, ("filter",), RoleParameters, build, made, read)


SPECS: Final = (
    _role("decode-filter", DecodeFilter),
    _role("prefill-filter", PrefillFilter),
    _role("encode-filter", EncodeFilter),
    PluginSpec(
        "label-selector-filter", ("filter",), SelectorParameters, _selector, LabelSelectorFilter, _read_selector
    ),
    PluginSpec(
        "by-label-selector",
        ("filter",),
        SelectorParameters,
        _selector,
        LabelSelectorFilter,
        _read_selector,
        stability="deprecated",
        instead="label-selector-filter",
    ),
    PluginSpec(
        "by-label",
        ("filter",),
        LabelParameters,
        _label,
        LabelFilter,
        _read_label,
        stability="deprecated",
        instead="label-selector-filter",
    ),
)
