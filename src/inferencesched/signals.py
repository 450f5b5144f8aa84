"""Which columns do the catalogue's plug-ins share, beside the standard ones?

A column of freshness ``cycle`` is filled by a producer for one decision, one of freshness ``scraped`` by the gateway, in a
pool that was made with it: ``InferencePool(signals=(MULTICLUSTER_QUEUE_SIZE,))``.
"""

from math import inf
from typing import Final

from inferencesched.endpoints import Signal

#: 1 where the request's session is bound to the endpoint, 0 where to another one; NaN where to none.
SESSION_BOUND: Final = Signal("session_bound", "flag", freshness="cycle", high=1.0)
#: What a model of the servers foretells, seconds.
PREDICTED_TTFT: Final = Signal("predicted_ttft", "s", freshness="cycle")
PREDICTED_TPOT: Final = Signal("predicted_tpot", "s", freshness="cycle")
#: The objective less the prediction, seconds: below 0 it would be missed.
TTFT_HEADROOM: Final = Signal("ttft_headroom", "s", freshness="cycle", low=-inf)
TPOT_HEADROOM: Final = Signal("tpot_headroom", "s", freshness="cycle", low=-inf)
#: What the request would bring an endpoint: prompt tokens that are not cached there and, if asked for, its likely output.
UNCACHED_TOKENS: Final = Signal("uncached_tokens", "tokens", freshness="cycle")
#: Which share of the request's pictures, videos and sounds an endpoint's encoder cache holds, by size.
ENCODER_MATCH: Final = Signal("encoder_match", "fraction", freshness="cycle", high=1.0)
#: Place in the order of last use for a cold prompt, the longest ago first; -1 never.
COLD_RANK: Final = Signal("cold_rank", "rank", freshness="cycle", low=-1.0)
#: How many leading blocks of the prompt an endpoint has, counted without tiers' weights.
CACHED_BLOCKS: Final = Signal("cached_blocks", "blocks", freshness="cycle")
#: How many of them lie where another server can read them, in the host's memory; NaN where nobody tells tiers apart.
READABLE_BLOCKS: Final = Signal("readable_blocks", "blocks", freshness="cycle")
#: 1 healthy, 0.5 on trial after an ejection, 0 ejected.
HEALTH: Final = Signal("health", "fraction", freshness="cycle", high=1.0)
#: How many requests a server runs at once; what is there beyond waits.
MAX_RUNNING: Final = Signal("max_running", "requests", freshness="static")
#: What another cluster says of a whole pool that stands behind one endpoint.
MULTICLUSTER_QUEUE_SIZE: Final = Signal("multicluster_queue_size", "requests")
MULTICLUSTER_KV_CACHE_USAGE: Final = Signal("multicluster_kv_cache_usage", "fraction", high=1.0)


def of_producer(signal: Signal, producer: str) -> Signal:
    """Return the column that one of several producers of a signal fills; the signal itself without a name.

    >>> of_producer(ENCODER_MATCH, "mm-2")
    Signal('encoder_match@mm-2')
    """
    if not producer:
        return signal
    return Signal(f"{signal.name}@{producer}", signal.unit, signal.default, signal.freshness, signal.low, signal.high)
