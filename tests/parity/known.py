"""Which components of llm-d's router does the library not have yet? Their cases are counted by themselves."""

NOT_YET = frozenset(
    (
        "burst-prefix-cache-producer",
        "conditional-decode-gate",
        "core-metrics-extractor",
        "latency-slo-admitter",
        "mm-embeddings-cache-producer",
        "mm-embeddings-cache-scorer",
        "multicluster-kv-cache-utilization-scorer",
        "multicluster-queue-scorer",
        "no-hit-lru-scorer",
        "p2p-source-producer",
        "probabilistic-admitter",
        "token-producer",
    )
)
