"""What a gateway runs and this library only reads, checks and writes, by the names of llm-d's router (snapshot of August 2026).

Tokenizing, admission, sources, extractors, parsers, discovery, and the policies of flow control. Parameters are kept as they are.
"""

from typing import Final

from inferencesched.config.spec import Kind, Opaque, PluginSpec, Stability, Workshop


class Held:
    """What stands for a plug-in that the gateway runs? Its parameters, untouched."""

    __slots__ = ("parameters",)

    def __init__(self, parameters: Opaque) -> None:
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"Held({self.parameters.values})"


def held(name: str, *kinds: Kind, stability: Stability = "beta", instead: str = "") -> PluginSpec:
    """Return the entry of a type that is kept as data.

    >>> held("my-parser", "parser").kinds
    ('inert', 'parser')
    """
    return PluginSpec(name, ("inert", *kinds), Opaque, _hold, stability=stability, instead=instead)


def _hold(parameters: Opaque, workshop: Workshop) -> Held:
    return Held(parameters)


SPECS: Final = (
    held("token-producer"),
    held("tokenizer", stability="deprecated", instead="token-producer"),
    held("disaggregated-set-rollout", stability="alpha"),
    held("metrics-data-source", "source"),
    held("models-data-source", "source"),
    held("dcgm-data-source", "source", stability="alpha"),
    held("k8s-notification-source", "source"),
    held("endpoint-notification-source", "source"),
    held("multicluster-metrics-data-source", "source", stability="alpha"),
    held("core-metrics-extractor", "extractor"),
    held("models-data-extractor", "extractor"),
    held("topology-extractor", "extractor", stability="alpha"),
    held("dcgm-extractor", "extractor", stability="alpha"),
    held("multicluster-metrics-extractor", "extractor", stability="alpha"),
    held("openai-parser", "parser"),
    held("anthropic-parser", "parser"),
    held("vllmhttp-parser", "parser"),
    held("vllmgrpc-parser", "parser"),
    held("sglanghttp-parser", "parser"),
    held("vertexai-parser", "parser"),
    held("passthrough-parser", "parser"),
    held("file-discovery", "discovery"),
)
