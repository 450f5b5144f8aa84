"""Who fetches blocks from whom, by the names of llm-d's router."""

from typing import Final

from inferencesched.config.spec import Need, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_TOKENS
from inferencesched.producers.p2p import P2PSource
from inferencesched.signals import CACHED_BLOCKS, of_producer

_APPROXIMATE: Final = "approx-prefix-cache-producer"
_PREFILL: Final = "prefill"


class P2PSourceParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``minCachedTokenDelta``: how many tokens more a source must have. ``prefillProfileName``: whose target computes.

    ``prefixMatchInfoProducerName``: whose counts are read.
    """

    min_cached_token_delta: int = 1
    prefill_profile_name: str = _PREFILL
    prefix_match_info_producer_name: str = ""


def _source(parameters: P2PSourceParameters, workshop: Workshop) -> P2PSource:
    return P2PSource(
        parameters.min_cached_token_delta,
        parameters.prefill_profile_name or _PREFILL,
        parameters.prefix_match_info_producer_name,
    )


def _read(source: P2PSource) -> P2PSourceParameters:
    return P2PSourceParameters(
        min_cached_token_delta=source.min_cached_token_delta,
        prefill_profile_name=source.prefill_profile_name,
        prefix_match_info_producer_name=source.producer,
    )


def _needs(parameters: P2PSourceParameters) -> tuple[Need, ...]:
    name = parameters.prefix_match_info_producer_name
    return tuple(Need(of_producer(signal, name), _APPROXIMATE) for signal in (CACHED_BLOCKS, PREFIX_TOKENS))


SPECS = (
    PluginSpec(
        "p2p-source-producer",
        ("producer",),
        P2PSourceParameters,
        _source,
        P2PSource,
        _read,
        _needs,
        stability="alpha",
    ),
)
