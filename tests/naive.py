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
