"""Saturation as one would write it down: no sums kept, no heaps, nothing remembered but what happened."""

from math import exp2, floor, inf, nan

import numpy as np


def known(value):
    return value == value


def aggregate(name, loads, weights, share):
    """The load of all, of lists without gaps."""
    if name == "mean":
        return sum(loads) / len(loads)
    if name == "weighted":
        return sum(w * x for w, x in zip(weights, loads, strict=True)) / sum(weights)
    if name == "max":
        return max(loads)
    ordered, at = sorted(loads), share * (len(loads) - 1)
    low = floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def utilization(waiting, usage, depth=5.0, threshold=0.8):
    """One server's load; NaN where neither is known."""
    parts = [value for value in (waiting / depth, usage / threshold) if known(value)]
    return max(parts) if parts else nan


def judged(loads, ages, stale):
    """What counts of each load, NaN for what does not."""
    old = [not age <= stale.after for age in ages]
    assume = stale.assume
    if assume == "ignore" and not any(known(x) and not o for x, o in zip(loads, old, strict=True)):
        assume = "last"
    counts = []
    for load, age, is_old in zip(loads, ages, old, strict=True):
        if assume == "saturated":
            counts.append(1.0 if is_old or not known(load) else load)
        elif not is_old:
            counts.append(load)
        elif assume == "ignore":
            counts.append(nan)
        else:
            left = exp2((stale.after - age) / stale.half_life) if age < inf else 0.0
            counts.append(stale.toward + (load - stale.toward) * left)
    return counts


class NaiveGate:
    """A `SaturationGate` over utilization that goes through everything that ever happened, each time it is asked."""

    def __init__(self, stale, name, share, lag, slots, by_stage):
        self.stale, self.name, self.share = stale, name, share
        self.lag, self.slots, self.by_stage = lag, slots, by_stage
        self.servers = []  # of the last observation: dicts
        self.before = {}  # all that was ever seen, by generation
        self.log = []  # every request at every server: dicts

    def observe(self, rows, now):
        """Rows are dicts: name, generation, told, waiting, running, usage, weight, role."""
        self.servers = []
        for row in rows:
            old = self.before.get(row["generation"], {"seen": -inf, "most": nan, "queued": False})
            server = {**row, "seen": old["seen"], "most": old["most"], "queued": old["queued"] or row["waiting"] > 0}
            if known(row["running"]):
                server["most"] = row["running"] if not known(old["most"]) else max(old["most"], row["running"])
            if row["told"] > old["seen"]:
                server["seen"] = row["told"]
                for entry in self.log:
                    if entry["generation"] == row["generation"]:
                        came = entry["kind"] == "sent" and entry["at"] + self.lag <= row["told"]
                        went = entry["kind"] == "done" and entry["at"] - self.lag <= row["told"]
                        entry["shown"] |= came or went
            self.before[row["generation"]] = server
            self.servers.append(server)

    def since(self, server):
        """Requests and tokens, what came less what went, that its reading does not show."""
        mine = [e for e in self.log if e["generation"] == server["generation"] and not e["shown"] and not e["void"]]
        sign = {"sent": 1, "done": -1}
        return sum(sign[e["kind"]] for e in mine), sum(sign[e["kind"]] * e["tokens"] for e in mine)

    def load(self, server):
        requests, tokens = self.since(server)
        waiting, usage = server["waiting"], server["usage"]
        slots = self.slots
        if slots is None:
            slots = server["most"] if server["queued"] else 2 * server["most"]
        if known(waiting):
            free = max(0.0, slots - server["running"]) if waiting == 0 else 0.0
            free = free if known(free) else 0.0
            waiting = max(0.0, waiting + (max(0.0, requests - free) if requests > 0 else requests))
        if known(usage) and server["kv_tokens"] > 0:
            usage = max(0.0, usage + tokens / server["kv_tokens"])
        return utilization(waiting, usage)

    def stages(self):
        """Lists of positions: who is of each stage."""
        everybody = list(range(len(self.servers)))
        if not self.by_stage:
            return [everybody] if everybody else []
        both = {"both"}
        prefill = [i for i in everybody if self.servers[i]["role"] in {"prefill"} | both]
        decode = [i for i in everybody if self.servers[i]["role"] in {"decode", ""} | both]
        return [stage for stage in (prefill, decode) if stage] or ([everybody] if everybody else [])

    def counts(self, stage, now):
        """Position -> what counts, of a stage's servers that count."""
        loads = [self.load(self.servers[i]) for i in stage]
        ages = [now - self.servers[i]["told"] for i in stage]
        return {i: c for i, c in zip(stage, judged(loads, ages, self.stale), strict=True) if known(c)}

    def level(self, now):
        levels = []
        for stage in self.stages():
            counts = self.counts(stage, now)
            if counts:
                weights = [self.servers[i]["weight"] for i in counts]
                levels.append(aggregate(self.name, list(counts.values()), weights, self.share))
        return max(levels) if levels else 1.0

    def present(self, server):
        there = server["waiting"] + server["running"]
        return (there if known(there) else server["inflight"]) + self.since(server)[0]

    def least(self, now):
        """The generations at which a request counts until it is told where it went."""
        chosen = []
        for stage in self.stages():
            counts = self.counts(stage, now)
            if counts:
                place = min(counts, key=lambda i: (counts[i], self.present(self.servers[i]), i))
                if self.servers[place]["generation"] not in chosen:
                    chosen.append(self.servers[place]["generation"])
        return chosen

    def add(self, kind, number, generation, tokens, now):
        self.log.append(
            {
                "kind": kind,
                "number": number,
                "generation": generation,
                "tokens": tokens,
                "at": now,
                "shown": False,
                "void": False,
                "here": kind == "sent",
            }
        )

    def dispatched(self, number, tokens, now):
        for generation in self.least(now):
            self.add("sent", number, generation, tokens, now)

    def here(self, number):
        return [e for e in self.log if e["number"] == number and e["here"]]

    def placed(self, number, name, tokens, now):
        place = next((i for i, server in enumerate(self.servers) if server["name"] == name), None)
        if place is None:
            return
        mine = [stage for stage in self.stages() if place in stage]
        there = {server["generation"]: i for i, server in enumerate(self.servers)}
        for entry in self.here(number):
            at = there.get(entry["generation"])
            if at == place or at is None or any(at in stage for stage in mine) or not self.of_any_stage(at):
                entry["void"] = entry["void"] or not entry["shown"]
                entry["here"] = False
        self.add("sent", number, self.servers[place]["generation"], tokens, now)

    def of_any_stage(self, place):
        return any(place in stage for stage in self.stages())

    def finished(self, number, tokens, now):
        present = {server["generation"]: server for server in self.servers}
        for entry in self.here(number):
            entry["here"] = False
            if not entry["shown"]:
                entry["void"] = True
            elif entry["generation"] in present and now - self.lag >= present[entry["generation"]]["seen"]:
                self.add("done", number, entry["generation"], tokens, now)


def soft_opens(saturations):
    """How often is a gated band open, after each call? The whole part of the sum of the shares."""
    total, opens = 0.0, []
    for s in saturations:
        total += (1 - s) / s if 0.5 <= s < 1 else 0.0
        opens.append(floor(total + 1e-9))
    return opens


def holdback(low, high, domain, priorities):
    """Ceilings by the formula of each domain."""
    count = len(priorities)
    if count == 1 or (domain == "value" and priorities[0] == priorities[-1]):
        return [high] * count
    if domain == "rank":
        return list(np.linspace(high, low, count))
    return [low + (p - priorities[-1]) / (priorities[0] - priorities[-1]) * (high - low) for p in priorities]
