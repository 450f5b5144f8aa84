"""The scorer and filter of context lengths, by its name in llm-d's router."""

from typing import Final

from inferencesched.config.spec import Parameters, PluginSpec, Workshop
from inferencesched.scorers.context import CONTEXT_LABEL, ContextLengthAware


class ContextLengthParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``label``: which label tells the range; ``enableFiltering``: whether it filters too."""

    label: str = CONTEXT_LABEL
    enable_filtering: bool = False


def _build(p: ContextLengthParameters, workshop: Workshop) -> ContextLengthAware:
    return ContextLengthAware(p.label, p.enable_filtering)


def _read(plugin: ContextLengthAware) -> ContextLengthParameters:
    return ContextLengthParameters(label=plugin.label, enable_filtering=plugin.filtering)


SPECS: Final = (
    PluginSpec(
        "context-length-aware", ("filter", "scorer"), ContextLengthParameters, _build, ContextLengthAware, _read
    ),
)
