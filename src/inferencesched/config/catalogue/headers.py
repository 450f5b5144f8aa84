"""What a request header decides, by the names of llm-d's router."""

from typing import Final

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.errors import InvalidInputError
from inferencesched.filters.headers import SELECTION_HEADER, HeaderEndpointFilter
from inferencesched.scorers.headers import HeaderLabelAffinityScorer


class HeaderLabelParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``headerName``: whose value; ``labelKey``: of which label it has to be the value."""

    header_name: str
    label_key: str


class HeaderEndpointParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``headerName``: which header names addresses; llm-d's own unless given (its filter takes no parameters)."""

    header_name: str = SELECTION_HEADER


def _label(p: HeaderLabelParameters, workshop: Workshop) -> HeaderLabelAffinityScorer:
    for name, value in (("headerName", p.header_name), ("labelKey", p.label_key)):
        if not value:
            raise InvalidInputError(name, value, "text, not empty: it is required")
    return HeaderLabelAffinityScorer(p.header_name, p.label_key)


def _read_label(plugin: HeaderLabelAffinityScorer) -> HeaderLabelParameters:
    return HeaderLabelParameters(header_name=plugin.header, label_key=plugin.label)


def _endpoint(p: HeaderEndpointParameters, workshop: Workshop) -> HeaderEndpointFilter:
    return HeaderEndpointFilter(p.header_name)


def _read_endpoint(plugin: HeaderEndpointFilter) -> HeaderEndpointParameters:
    return HeaderEndpointParameters(header_name=plugin.header)


SPECS: Final = (
    PluginSpec(
        "header-label-affinity-scorer",
        ("scorer",),
        HeaderLabelParameters,
        _label,
        HeaderLabelAffinityScorer,
        _read_label,
        stability="alpha",
    ),
    PluginSpec(
        "header-based-testing-filter",
        ("filter",),
        HeaderEndpointParameters,
        _endpoint,
        HeaderEndpointFilter,
        _read_endpoint,
    ),
)
