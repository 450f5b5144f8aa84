"""A slow, obvious twin of the simulated servers: lists, dicts and a pass at a time, from the written rules.

Only how long a pass takes is asked elsewhere (`step_ms`, which tests/test_engine.py holds to the formulas), so that
times can be compared bit for bit.
"""

from collections import OrderedDict
from math import inf, nan

from inferencesched.simulator.engine import step_ms


class Request:
    def __init__(self, place, inputs, outputs, blocks, config):
        self.place = place
        self.inputs = inputs
        self.outputs = outputs
        # names of the full blocks of the prompt that the trace names; without prefix caching nobody looks for them
        self.shared = list(blocks[: inputs // config.block_size]) if config.prefix_caching else []
        self.generated = 0
        self.computed = 0
        self.chunk = 0
        self.decoding = False
        self.full = []  # names of the full blocks it holds
        self.partial = False  # and one more, not full
        self.server = None
        self.admissions = []  # (cached tokens, known tokens)
        self.preemptions = 0
        self.tokens_at = []
        self.finish = nan
        self.adapter = 0  # none
        self.given = 0  # tokens whose keys and values another server sends

    @property
    def known(self):
        """Tokens that must be computed before the next one can be generated."""
        return self.inputs + self.generated

    @property
    def first_token(self):
        return self.tokens_at[0] if self.tokens_at else nan

    def name(self, j):
        """What its block j holds: the trace says it of prompts; nobody else has what was generated here."""
        return self.shared[j] if j < len(self.shared) else ("own", self.place, j)


class Server:
    def __init__(self, config, timing):
        self.config = config
        self.timing = timing
        self.waiting = []
        self.running = []
        self.holders = {}  # name of a held full block -> how many requests hold it
        self.cached = OrderedDict()  # names of full blocks that nobody holds, least recently used first
        self.end = None  # when the present pass ends
        self.ready = None  # when the next pass may start
        self.passes = 0
        self.evictions = 0
        self.slots = {}  # adapter -> when it was last begun or ended with
        self.loads = 0
        self.host = OrderedDict()  # evicted blocks, least recently used first
        self.fetched = 0

    # -- blocks --

    @property
    def room(self):
        """Blocks that can be had: free ones, and cached ones that may be evicted."""
        return self.config.kv_blocks - len(self.holders) - sum(r.partial for r in self.running)

    def known_block(self, name):
        return name in self.holders or name in self.cached

    def hits(self, request):
        """How many leading blocks are cached, so that at least one token is left to compute."""
        count = 0
        if self.config.prefix_caching:
            while count < (request.known - 1) // self.config.block_size and self.known_block(request.name(count)):
                count += 1
        return count

    def needs(self, request, length):
        """How many blocks must be had for this request to hold `length` tokens? Those that others hold are shared."""
        size = self.config.block_size
        new = [request.name(j) for j in range(len(request.full), length // size)]
        return sum(name not in self.holders for name in new) + (length % size > 0) - request.partial

    def hold(self, request, name):
        self.cached.pop(name, None)
        self.holders[name] = self.holders.get(name, 0) + 1
        request.full.append(name)

    def grow(self, request, length):
        """Hold blocks up to `length` tokens; what is full can be found by others from now on."""
        request.partial = False
        for j in range(len(request.full), length // self.config.block_size):
            self.hold(request, request.name(j))
            self.evict()
        request.partial = length % self.config.block_size > 0
        self.evict()

    def evict(self):
        """Forget the least recently used blocks until everything fits."""
        while len(self.cached) > self.room:
            self.keep(self.cached.popitem(last=False)[0])
            self.evictions += 1
        assert self.room >= 0

    def keep(self, name):
        if self.config.host_blocks:
            self.host.pop(name, None)
            self.host[name] = None
            while len(self.host) > self.config.host_blocks:
                self.host.popitem(last=False)

    def runs_with(self, adapter):
        return any(each.adapter == adapter for each in self.running)

    def finds_memory(self, adapter):
        """Is its adapter loaded, or can it be?"""
        if not self.config.adapter_slots or not adapter or adapter in self.slots:
            return True
        return len(self.slots) < self.config.adapter_slots or not all(map(self.runs_with, self.slots))

    def load(self, adapter, now):
        if not self.config.adapter_slots or not adapter:
            return 0.0
        took = 0.0
        if adapter not in self.slots:
            if len(self.slots) == self.config.adapter_slots:
                idle = [each for each in self.slots if not self.runs_with(each)]
                del self.slots[min(idle, key=self.slots.get)]
            took = self.config.adapter_ms
            self.loads += 1
        self.slots[adapter] = now
        return took

    def leave(self, request, now):
        if request.adapter in self.slots:
            self.slots[request.adapter] = now

    def fetch(self, request, hits):
        """How many blocks go on after those found, here or in the host's memory? And how many have to be fetched?"""
        more = fetched = 0
        while self.config.host_blocks and hits + more < (request.known - 1) // self.config.block_size:
            name = request.name(hits + more)
            if name in self.host:
                self.keep(name)
            elif not self.known_block(name):
                break
            more += 1
            fetched += not self.known_block(name)
        self.fetched += fetched
        return more, fetched

    def crash(self):
        """Forget everything; return who can be sent again, and who is lost."""
        members = [*self.running, *self.waiting]
        for request in members:
            request.full, request.partial, request.computed, request.chunk, request.decoding = [], False, 0, 0, False
            if not request.tokens_at:
                request.server, request.admissions = None, []
        evictions, passes, loads, fetched = self.evictions, self.passes, self.loads, self.fetched
        self.__init__(self.config, self.timing)
        self.evictions, self.passes, self.loads, self.fetched = evictions, passes, loads, fetched
        return [r.place for r in members if not r.tokens_at], [r.place for r in members if r.tokens_at]

    def release(self, request):
        """Give its blocks back, the last one first: a tail is evicted before what it continues."""
        while request.full:
            name = request.full.pop()
            self.holders[name] -= 1
            if not self.holders[name]:
                del self.holders[name]
                self.cached[name] = None
        request.partial = False

    # -- passes --

    def start(self, now):
        budget = self.config.max_tokens
        chunks, lengths = [], []  # what the pass computes, for its duration
        preempted, beside = False, 0.0
        for request in list(self.running):
            if request not in self.running:
                continue  # thrown out for somebody before it
            wanted = min(request.known - request.computed, budget)
            while wanted and self.needs(request, request.computed + wanted) > self.room:
                victim = self.running.pop()
                self.release(victim)
                self.leave(victim, now)
                victim.computed = 0
                victim.decoding = False
                victim.preemptions += 1
                self.waiting.insert(0, victim)
                preempted = True
                if victim is request:
                    wanted = 0
            if wanted:
                budget -= wanted
                self.schedule(request, wanted, chunks, lengths)
        at = 0
        while at < len(self.waiting) and not preempted and budget and len(self.running) < self.config.max_sequences:
            request = self.waiting[at]
            if not self.finds_memory(request.adapter):
                at += 1
                continue
            names = [request.name(j) for j in range(self.hits(request))]
            cached = len(names) * self.config.block_size
            remainder = -(-(request.known - cached) // self.config.block_size)
            if remainder > self.room - sum(name in self.cached for name in names):
                break
            beside += self.load(request.adapter, now)
            self.running.append(self.waiting.pop(at))
            for name in names:
                self.hold(request, name)
            more, fetched = self.fetch(request, len(names))
            for _ in range(fetched):
                beside += self.config.block_ms
            cached += more * self.config.block_size
            if request.given:
                cached = max(cached, min(request.given, request.known - 1))
            else:
                request.admissions.append((cached, request.known))
            request.computed = cached
            wanted = min(request.known - cached, budget)
            budget -= wanted
            self.schedule(request, wanted, chunks, lengths)
        self.ready = None
        self.end = now + (
            step_ms(self.timing, prefill=tuple(chunks), decode=tuple(lengths), config=self.config) + beside
        )
        self.passes += 1

    def schedule(self, request, tokens, chunks, lengths):
        request.chunk = tokens
        self.grow(request, request.computed + tokens)
        if request.decoding:
            lengths.append(request.known)
        else:
            chunks.append((request.computed, tokens))

    def finish_pass(self):
        """Return what happened: (time, kind, place)."""
        now, events = self.end, []
        for request in list(self.running):
            request.computed += request.chunk
            if request.chunk and request.computed == request.known:
                request.generated += 1
                request.decoding = True
                request.tokens_at.append(now)
                if len(request.tokens_at) == 1:
                    events.append((now, "first token", request.place))
                if request.generated >= request.outputs:
                    request.finish = now
                    events.append((now, "finished", request.place))
                    self.running.remove(request)
                    self.release(request)
                    self.leave(request, now)
            request.chunk = 0
        self.end = None
        self.ready = now if self.running or self.waiting else None
        return events

    def run(self, until):
        """Make the passes that start before `until`, and end those that end by then."""
        events = []
        while True:
            if self.end is not None and self.end <= until:
                events += self.finish_pass()
            elif self.end is None and self.ready is not None and self.ready < until:
                self.start(self.ready)
            else:
                return events

    def enqueue(self, request, now):
        self.waiting.append(request)
        if self.end is None and self.ready is None:
            self.ready = now

    def signals(self):
        """Waiting, running, and the share of blocks that are held."""
        return float(len(self.waiting)), float(len(self.running)), 1.0 - self.room / self.config.kv_blocks


class Fleet:
    def __init__(self, servers, config, timing, rows):
        """`rows` are (input tokens, output tokens, block names)."""
        self.servers = [Server(config, timing) for _ in range(servers)]
        self.requests = [Request(i, *row, config) for i, row in enumerate(rows)]
        self.signals = [(nan, nan, nan)] * servers
        self.regret_blocks = 0

    def advance(self, until, samples):
        events = []
        for s, server in enumerate(self.servers):
            if samples[s] == samples[s]:
                events += server.run(samples[s])
                self.signals[s] = server.signals()
            events += server.run(until)
        return sorted(events, key=lambda event: event[0])

    def enqueue(self, place, server, now):
        request = self.requests[place]
        overlaps = [each.hits(request) for each in self.servers]
        self.regret_blocks += max(overlaps) - overlaps[server]
        request.server = server
        self.servers[server].enqueue(request, now)

    def next_end(self):
        return min((server.end for server in self.servers if server.end is not None), default=inf)
