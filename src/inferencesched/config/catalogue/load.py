"""Scorers and filters of load, by the names of llm-d's router."""

from inferencesched.config.spec import Need, Nothing, Parameters, PluginSpec, Workshop
from inferencesched.endpoints import PREFIX_TOKENS
from inferencesched.scorers.load import (
    QueueScorer,
    TokenLoadScorer,
)


class TokenLoadParameters(Parameters, frozen=True, kw_only=True, rename="camel"):
    """``queueThresholdTokens``: where an endpoint's load counts as full; 0 or less is the default, as in llm-d."""

    queue_threshold_tokens: float = 4194304.0


def _token_load(parameters: TokenLoadParameters, workshop: Workshop) -> TokenLoadScorer:
    threshold = parameters.queue_threshold_tokens
    return TokenLoadScorer(threshold) if threshold > 0 else TokenLoadScorer()


SPECS = (
    PluginSpec("queue-scorer", ("scorer",), Nothing, lambda p, w: QueueScorer(), QueueScorer, lambda s: Nothing()),
    PluginSpec(
        "token-load-scorer",
        ("scorer",),
        TokenLoadParameters,
        _token_load,
        TokenLoadScorer,
        lambda s: TokenLoadParameters(queue_threshold_tokens=s.queue_threshold_tokens),
        lambda p: (Need(PREFIX_TOKENS, "approx-prefix-cache-producer", required=False),),
    ),
)
