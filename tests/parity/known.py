"""Which components of llm-d's router does the library not have yet? Their cases are counted by themselves."""

NOT_YET = frozenset(
    (
        "conditional-decode-gate",
        "core-metrics-extractor",
        "latency-slo-admitter",
        "probabilistic-admitter",
        "token-producer",
    )
)
