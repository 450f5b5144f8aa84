"""A slow, obvious twin of the registry: every observation is kept, and counted when somebody asks."""

from collections import defaultdict


class NaiveRegistry:
    def __init__(self):
        self.numbers = defaultdict(float)
        self.observed = defaultdict(list)

    def add(self, name, labels, value):
        self.numbers[name, labels] += value

    def observe(self, name, labels, value):
        self.observed[name, labels].append(value)

    def bucket(self, name, labels, bound):
        return sum(value <= bound for value in self.observed[name, labels])
