"""In-flight eviction, slowly: everything is looked at anew each time."""

from math import ceil


class NaiveReclaimer:
    """Knows of every revocation when it was issued, and when it ended; asks the whole history each time."""

    def __init__(self, most, grace, timeout, below=0):
        self.most, self.grace, self.timeout, self.below = most, grace, timeout, below
        self.flying = []  # tickets in the order of dispatch
        self.history = []  # [ticket, issued at, ended at or None, failed]

    def dispatched(self, ticket, now):
        self.flying.append(ticket)

    def finished(self, ticket, now):
        if ticket in self.flying:
            self.flying.remove(ticket)
        for entry in self.history:
            if entry[0] is ticket and entry[2] is None and now < entry[1] + self.timeout:
                entry[2] = now

    def failed(self, ticket, now):
        for entry in list(self.history):
            if entry[0] is ticket and entry[2] is None and now < entry[1] + self.timeout:
                self.history.remove(entry)
                self.flying.append(ticket)

    def ready_at(self):
        ends = [
            (issued + self.timeout if ended is None else ended) + self.grace for _, issued, ended, _ in self.history
        ]
        return max(ends, default=float("-inf"))

    def reclaim(self, band, level, ceiling, inflight, now):
        evictable = [ticket for ticket in self.flying if ticket.item.priority < self.below]
        # of those dispatched at one time, the later arrival first
        evictable.sort(key=lambda ticket: (ticket.item.priority, -ticket.dispatched_at, -ticket.number))
        victims = [ticket for ticket in evictable if ticket.item.priority < band.priority]
        blocked = band.requests and ceiling > 0 and level >= ceiling
        if not blocked or not victims or now < self.ready_at():
            return []
        credit = level / len(self.flying)
        count = min(max(1, ceil((level - ceiling) / credit - 1e-9)), self.most, len(evictable))
        taken = victims[:count]
        for ticket in taken:
            self.flying.remove(ticket)
            self.history.append([ticket, now, None, False])
        return taken

    def next_wakeup(self, now):
        at = self.ready_at()
        return at if at > now else float("inf")
