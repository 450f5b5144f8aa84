"""Which headers does a gateway read and set, and what were they called before?

Names are lower case. A name of the reference may have a deprecated alias: the current name wins where both are there.
Source: llm-d-router, pkg/epp/metadata/consts.go (snapshot of August 2026); Envoy endpoint picker protocol v1.0.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: Which server gets it: ``host:port``, with fallbacks behind commas, best first.
DESTINATION: Final = "x-gateway-destination-endpoint"
#: Which server had it, set by the proxy on the way back.
DESTINATION_SERVED: Final = "x-gateway-destination-endpoint-served"
#: Which servers the proxy allows: metadata of the Envoy protocol, a list of ``host[:port]``.
SUBSET: Final = "x-gateway-destination-endpoint-subset"
MODEL_NAME: Final = "x-gateway-model-name"
OBJECTIVE: Final = "x-llm-d-inference-objective"
FAIRNESS_ID: Final = "x-llm-d-inference-fairness-id"
MODEL_REWRITE: Final = "x-llm-d-model-name-rewrite"
SLO_TTFT_MS: Final = "x-llm-d-slo-ttft-ms"
SLO_TPOT_MS: Final = "x-llm-d-slo-tpot-ms"
TTL: Final = "x-llm-d-inference-ttl"
DROPPED_REASON: Final = "x-llm-d-request-dropped-reason"
REQUEST_ID: Final = "x-request-id"
PREFER: Final = "prefer"
RETRY_AFTER: Final = "retry-after"

_ALIASES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        OBJECTIVE: (OBJECTIVE, "x-gateway-inference-objective"),
        FAIRNESS_ID: (FAIRNESS_ID, "x-gateway-inference-fairness-id"),
        MODEL_REWRITE: (MODEL_REWRITE, "x-gateway-model-name-rewrite"),
        SLO_TTFT_MS: (SLO_TTFT_MS, "x-slo-ttft-ms"),
        SLO_TPOT_MS: (SLO_TPOT_MS, "x-slo-tpot-ms"),
    }
)


def aliases(name: str) -> tuple[str, ...]:
    """Return the names under which a header may come, the current one first, in lower case.

    >>> aliases("X-LLM-D-SLO-TTFT-MS")
    ('x-llm-d-slo-ttft-ms', 'x-slo-ttft-ms')
    >>> aliases("X-Request-Id")
    ('x-request-id',)
    """
    name = name.lower()
    return _ALIASES.get(name, (name,))


def header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header's value under its current name, or else under its deprecated one; None where it is missing.

    `headers` have lower-case names. A current name that is there wins, even with an empty value.

    >>> header({"x-gateway-inference-objective": "chat"}, OBJECTIVE)
    'chat'
    """
    known = _ALIASES.get(name)
    if known is None:
        known = aliases(name)
    for each in known:
        value = headers.get(each)
        if value is not None:
            return value
    return None
