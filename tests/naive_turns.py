"""The slow twins of fairness policies: whose turn is it, of the flows of one band? Everything is looked up anew.

``candidates`` are those of which any may go next; a ``band`` is a `NaiveBand` of `naive_flow`.
"""


class Strict:
    """The first of all heads."""

    def __init__(self, band):
        self.band = band

    def candidates(self, passed):
        flows = [flow for flow in self.band.waiting_flows() if flow not in passed]
        return [min(flows, key=lambda flow: self.band.twin.key(flow.queue()[0]))] if flows else []

    def arrived(self, flow):
        pass

    def served(self, flow, cost):
        pass

    def settled(self, flow, correction):
        pass

    def changed(self, flow):
        pass


class Turns(Strict):
    """The next id behind the last one."""

    last = None

    def candidates(self, passed):
        flows = sorted(self.band.waiting_flows(), key=lambda flow: flow.id)
        if self.last is not None and self.last in self.band.flows:
            flows.sort(key=lambda flow: flow.id <= self.last)
        return [flow for flow in flows if flow not in passed][:1]

    def served(self, flow, cost):
        self.last = flow.id


class Counters(Strict):
    """The least counter; who comes is lifted to the least of those that wait, or to where the band was when it emptied."""

    floor = 0.0

    def candidates(self, passed):
        flows = [flow for flow in self.band.waiting_flows() if flow not in passed]
        return [flow for flow in flows if flow.counter == min(f.counter for f in flows)]

    def arrived(self, flow):
        others = [other.counter for other in self.band.waiting_flows() if other is not flow]
        self.floor = max([self.floor, min(others, default=0.0)])
        flow.counter = max(flow.counter, min(others, default=self.floor))

    def served(self, flow, cost):
        flow.counter += cost / flow.weight
        self.changed(flow)

    def settled(self, flow, correction):
        flow.counter += correction / flow.weight

    def changed(self, flow):
        if not flow.queue() and not self.band.waiting_flows():
            self.floor = max(self.floor, flow.counter)


class StartTimes(Strict):
    """The least start tag of a head, which becomes the time."""

    time = 0.0

    def candidates(self, passed):
        flows = [flow for flow in self.band.waiting_flows() if flow not in passed]
        return [flow for flow in flows if flow.tag == min(f.tag for f in flows)]

    def arrived(self, flow):
        flow.tag = max(flow.counter, self.time)

    def served(self, flow, cost):
        self.time = max(self.time, flow.tag)
        flow.counter = flow.tag = flow.tag + cost / flow.weight

    def settled(self, flow, correction):
        flow.counter += correction / flow.weight
        if flow.queue():
            flow.tag = max(self.time, flow.tag + correction / flow.weight)


class Deficits(Strict):
    """Turn by turn, a quantum each; who has given up keeps the place until its turn comes, and nothing saved."""

    def __init__(self, band):
        super().__init__(band)
        self.turns = []

    def begin(self):
        if self.turns:
            self.turns[0].counter += self.quantum(self.turns[0])

    def quantum(self, flow):
        return self.band.twin.setting.quantum * flow.weight

    def candidates(self, passed):
        refused = 0
        while self.turns and refused < len(self.turns):
            flow = self.turns[0]
            queue = flow.queue()
            if not queue:
                self.leave()
                continue
            if flow in passed:
                flow.counter = max(0.0, flow.counter - self.quantum(flow))
                refused += 1
            elif queue[0].cost <= flow.counter:
                return [flow]
            else:
                refused = 0
            self.turns.append(self.turns.pop(0))
            self.begin()
        return []

    def leave(self):
        self.turns.pop(0).counter = 0.0
        self.begin()

    def arrived(self, flow):
        if flow not in self.turns:
            flow.counter = 0.0
            self.turns.append(flow)
            if len(self.turns) == 1:
                self.begin()

    def served(self, flow, cost):
        flow.counter -= cost
        if not flow.queue():
            self.leave()

    def settled(self, flow, correction):
        if flow.queue():
            flow.counter -= correction

    def changed(self, flow):
        if not flow.queue():
            flow.counter = 0.0


FAIRNESS = {"strict": Strict, "rr": Turns, "vtc": Counters, "sfq": StartTimes, "drr": Deficits}
