"""Slow, obvious twins of limits: a bucket that is filled drop by drop, exactly."""

from fractions import Fraction


class NaiveBucket:
    """`amount` every `per` seconds, `capacity` at once; exact."""

    def __init__(self, amount, per, capacity):
        self.rate = Fraction(amount) / Fraction(per)
        self.capacity = Fraction(capacity)
        self.left = self.capacity
        self.at = None

    def fill(self, now):
        now = Fraction(now)
        if self.at is not None:
            self.left = min(self.capacity, self.left + self.rate * (now - self.at))
        self.at = now

    def fits(self, need, now):
        self.fill(now)
        return need <= self.left

    def take(self, need, now):
        self.fill(now)
        self.left = min(self.capacity, self.left - need)

    def wait(self, need, now):
        self.fill(now)
        return max(Fraction(0), (need - self.left) / self.rate)
