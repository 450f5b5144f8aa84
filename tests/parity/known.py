"""Which components of llm-d's router does the library not have yet? Their cases are counted by themselves."""

NOT_YET: frozenset[str] = frozenset()
