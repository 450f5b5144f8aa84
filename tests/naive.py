"""Slow, obvious twins of what is compiled or incremental. Plain Python numbers, no numpy tricks."""

import math


def inverse_minmax(values):
    known = [v for v in values if not math.isnan(v)]
    return [
        math.nan if math.isnan(v) else 1.0 if max(known) == min(known) else (max(known) - v) / (max(known) - min(known))
        for v in values
    ]


def minmax(values):
    known = [v for v in values if not math.isnan(v)]
    return [
        math.nan if math.isnan(v) else 1.0 if max(known) == min(known) else (v - min(known)) / (max(known) - min(known))
        for v in values
    ]


def best_of(totals, picked):
    """Every position that has the highest total and, of those, was picked least recently."""
    top = max(totals)
    tied = [i for i, total in enumerate(totals) if total == top]
    oldest = min(picked[i] for i in tied)
    return [i for i in tied if picked[i] == oldest]


def score_of(scorer, endpoint, everybody, prompt_tokens):
    """What one of the library's scorers says of one endpoint: dicts of plain numbers, the formula as the books have it.

    `endpoint` and each of `everybody` map a signal's name to its value.
    """
    name = type(scorer).__name__

    def value(signal):
        return endpoint[signal]

    def unknown(signal):
        return math.isnan(endpoint[signal])

    if name in ("QueueScorer", "RunningRequestsScorer"):
        signal = "waiting_queue_size" if name == "QueueScorer" else "running_requests"
        if unknown(signal):
            return 0.0
        known = [other[signal] for other in everybody if not math.isnan(other[signal])]
        low, high = min(known), max(known)
        return 1.0 if low == high else (high - value(signal)) / (high - low)
    if name == "KvCacheUtilizationScorer":
        return 0.0 if unknown("kv_cache_usage") else 1.0 - value("kv_cache_usage")
    if name == "PrefixCacheScorer":
        share = 0.0 if unknown("prefix_match") else value("prefix_match")
        tokens = 0.0 if unknown("prefix_tokens") else value("prefix_tokens")
        weight = scorer.match_length_weight
        return weight * min(1.0, tokens / scorer.match_length_scale_tokens) ** 2 + (1.0 - weight) * share
    if name == "TokenLoadScorer":
        if unknown("inflight_tokens"):
            return 0.0
        matched = 0.0 if unknown("prefix_tokens") else value("prefix_tokens")
        load = value("inflight_tokens") + max(0.0, (prompt_tokens or 0) - matched)
        return 1.0 - min(load, scorer.queue_threshold_tokens) / scorer.queue_threshold_tokens
    if name == "ActiveRequestScorer":
        if unknown("inflight_requests"):
            return 0.0
        if value("inflight_requests") <= scorer.idle_threshold:
            return 1.0
        most = max([1.0, *(o["inflight_requests"] for o in everybody if not math.isnan(o["inflight_requests"]))])
        return (most - value("inflight_requests")) / most * scorer.max_busy_score
    raise LookupError(name)


def lora_score(running, waiting, capacity, adapter):
    """The tiers of LoRA affinity, tested in the reference's order; no report is worst."""
    if adapter in running:
        return 1.0
    if len(running) + len(waiting) < capacity:
        return 0.8
    return 0.6 if adapter in waiting else 0.0


class Books:
    """What a pool must have on its books: plain dicts, recounted from scratch at every question."""

    def __init__(self):
        self.names = []
        self.open = {}  # number -> [endpoint, tokens owed, context]
        self.reserved = self.settled = 0
        self.reserved_tokens = self.settled_tokens = 0

    def reserve(self, number, endpoint, tokens, context):
        self.open[number] = [endpoint, tokens, context]
        self.reserved += 1
        self.reserved_tokens += tokens

    def first_token(self, number):
        self.settled_tokens += self.open[number][1]
        self.open[number][1] = 0

    def progress(self, number, tokens):
        self.open[number][2] += tokens

    def move(self, number, endpoint):
        self.open[number][0] = endpoint

    def settle(self, number):
        self.first_token(number)
        self.settled += 1
        del self.open[number]

    def leave(self, name):
        self.names.remove(name)
        gone = [number for number, (endpoint, _, _) in self.open.items() if endpoint == name]
        for number in gone:
            self.settle(number)
        return gone

    def columns(self):
        """Requests, tokens and context by endpoint, in order of joining."""
        return [
            [sum(pick(entry) for entry in self.open.values() if entry[0] == name) for name in self.names]
            for pick in (lambda e: 1, lambda e: e[1], lambda e: e[2])
        ]
