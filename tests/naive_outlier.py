"""Outlier detection from a diary: every stay keeps all that happened to it, and everything is counted anew."""

import math
import statistics


class Stay:
    """One endpoint from joining to leaving."""

    def __init__(self):
        # "well", "ill", or "look" where an interval ended, each with when it was sent and when it ended; emptied by an ejection and by recovery
        self.diary = []
        self.times = 0
        self.until = None
        self.trials = 0

    def failures(self):
        """How many are ill since the last that was sent after all the ill before it, and went well?"""
        endings = [entry for entry in self.diary if entry[0] != "look"]
        for i in range(len(endings) - 1, -1, -1):
            word, sent, _ = endings[i]
            if word == "well" and all(sent >= ended for before, _, ended in endings[:i] if before == "ill"):
                return sum(entry[0] == "ill" for entry in endings[i + 1 :])
        return sum(entry[0] == "ill" for entry in endings)

    def interval(self):
        """What ended since the last look."""
        words = [entry[0] for entry in self.diary]
        looks = [i for i, word in enumerate(words) if word == "look"]
        return words[looks[-1] + 1 :] if looks else words


class Doctor:
    """Who is healthy? Told of members as decisions see them, of the time, and of endings."""

    def __init__(self, policy):
        self.policy = policy
        self.stays = {}  # generation -> Stay
        self.seen = (-1, [])  # version, generations
        self.clock = -math.inf
        self.next_look = None

    def meet(self, version, generations):
        if version > self.seen[0]:
            self.seen = (version, list(generations))
            for gone in set(self.stays) - set(generations):
                del self.stays[gone]

    def out(self):
        return [g for g, stay in self.stays.items() if stay.until is not None]

    def tick(self, now):
        self.clock = max(self.clock, now)
        if self.next_look is None:
            self.next_look = self.clock + self.policy.interval
        elif self.clock >= self.next_look:
            self.next_look = self.clock + self.policy.interval
            self.look()

    def look(self):
        p = self.policy
        rates = {}
        for generation, stay in self.stays.items():
            endings = stay.interval()
            if stay.until is None and endings:
                rates[generation] = (endings.count("well") / len(endings), len(endings))
            if stay.until is None:
                stay.diary.append(("look", self.clock, self.clock))
                stay.times = max(0, stay.times - 1)
        bad = {}
        told = {g: rate for g, (rate, n) in rates.items() if n >= p.stdev_request_volume}
        if p.stdev_factor > 0 and len(told) >= p.stdev_minimum_hosts:
            limit = statistics.fmean(told.values()) - p.stdev_factor * statistics.pstdev(told.values())
            bad |= {g: rate for g, rate in told.items() if rate < limit - 1e-9}
        told = {g: rate for g, (rate, n) in rates.items() if n >= p.failure_request_volume}
        if p.failure_share is not None and len(told) >= p.failure_minimum_hosts:
            bad |= {g: rate for g, rate in told.items() if 1 - rate > p.failure_share - 1e-9}
        for generation in sorted(bad, key=lambda g: (bad[g], g)):
            self.eject(generation)

    def eject(self, generation, again=False):
        p, members = self.policy, len(self.seen[1])
        most = 0 if members < 2 else max(1, math.floor(p.max_ejected * members + 1e-9))
        if again or len(self.out()) < most:
            stay = self.stays[generation]
            stay.times += 1
            lasts = min(p.base_ejection_time * stay.times, max(p.base_ejection_time, p.max_ejection_time))
            stay.until, stay.trials, stay.diary = self.clock + lasts, 0, []

    def ended(self, generation, well, reserved_at):
        stay = self.stays.setdefault(generation, Stay())
        if stay.until is None:
            stay.diary.append(("well" if well else "ill", reserved_at, self.clock))
            if self.policy.consecutive_failures and stay.failures() >= self.policy.consecutive_failures:
                self.eject(generation)
        elif reserved_at >= stay.until:
            if not well:
                self.eject(generation, again=True)
            else:
                stay.trials += 1
                if stay.trials == self.policy.trial_successes:
                    stay.until, stay.trials, stay.diary = None, 0, []

    def health(self, generation, now, inflight):
        stay = self.stays.get(generation)
        if stay is None or stay.until is None:
            return 1.0
        return 0.5 if now >= stay.until and inflight < self.policy.trials else 0.0
