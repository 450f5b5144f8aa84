"""What the producers of cold prompts, encoder caches, sources and bursts do, said as plainly as it can be."""

from collections import Counter, OrderedDict


class Tenants:
    """Whose is each slot's memory? Told at every commit who was in the pool then."""

    def __init__(self):
        self.owners, self.newest = {}, -1

    def commit(self, receipt, slot):
        """Return the slots to forget, and whether the commit counts."""
        endpoints, forget = receipt.endpoints, []
        if endpoints.version >= self.newest:
            self.newest = endpoints.version
            stays = {generation for _, generation in endpoints.members.stays}
            forget = [slot for slot, owner in self.owners.items() if owner not in stays]
            for each in forget:
                del self.owners[each]
        stay = dict(zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)).get(slot)
        if stay is None or self.owners.get(slot, stay) > stay:
            return forget, False
        if self.owners.get(slot, stay) != stay:
            forget.append(slot)
        self.owners[slot] = stay
        return forget, True

    def owns(self, slot, generation):
        return self.owners.get(slot) == generation


class Cold:
    """Slots in the order of their last cold prompt."""

    def __init__(self, size):
        self.size, self.order, self.tenants = size, [], Tenants()

    def commit(self, receipt, slot):
        if not receipt.cold:
            return
        forget, counts = self.tenants.commit(receipt, slot)
        self.order = [each for each in self.order if each not in forget]
        if counts:
            self.order = [*(each for each in self.order if each != slot), slot][-self.size :]

    def ranks(self, endpoints):
        here = [
            slot
            for slot in self.order
            if any(s == slot and self.tenants.owns(s, g) for s, g in endpoints.members.stays)
        ]
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        return [here.index(s) if s in here and self.tenants.owns(s, g) else -1 for s, g in stays]


def cold_scores(hits, ranks):
    """`hits` and `ranks` by candidate; -1 is never."""
    if any(hits):
        return [0.5] * len(ranks)
    if len(ranks) <= 1:
        return [1.0] * len(ranks)
    never = [i for i, rank in enumerate(ranks) if rank < 0]
    places = [never.index(i) if i in never else len(never) + rank for i, rank in enumerate(ranks)]
    return [max(0.0, 1 - place / (len(ranks) - 1)) for place in places]


class Encoders:
    """An LRU of hashes for each slot."""

    def __init__(self, entries):
        self.entries, self.held, self.tenants = entries, {}, Tenants()

    def commit(self, receipt, slot):
        if not receipt.items:
            return
        forget, counts = self.tenants.commit(receipt, slot)
        for each in forget:
            self.held.pop(each, None)
        if counts:
            lru = self.held.setdefault(slot, OrderedDict())
            for each in receipt.items:
                lru[each] = None
                lru.move_to_end(each)
            while len(lru) > self.entries:
                lru.popitem(last=False)

    def shares(self, media, endpoints):
        sizes = {}
        for each in media:
            sizes.setdefault(each.hash, each.size)
        if not sum(sizes.values()):
            return [None] * len(endpoints)
        stays = zip(endpoints.slots.tolist(), endpoints.generations.tolist(), strict=True)
        return [
            sum(size for each, size in sizes.items() if self.tenants.owns(s, g) and each in self.held.get(s, ()))
            / sum(sizes.values())
            for s, g in stays
        ]


def source_shares(blocks, queues):
    """By name: with which chance is each endpoint the source? `queues` None is unknown."""
    most = max(blocks.values(), default=0)
    near = {name for name, count in blocks.items() if count >= 1 and count >= most - 1}
    told = [queues[name] for name in near if queues[name] is not None]
    weights = {name: 1 / (1 + (queues[name] if queues[name] is not None else max(told, default=0))) for name in near}
    return {name: weights[name] / sum(weights.values()) for name in sorted(near)}


def common(one, other):
    """How many leading blocks do two prompts share?"""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def burst(prompts, running, *, cap=None, least=0, by="requests"):
    """Where does each prompt (a tuple of chained blocks) go? `running` by name of endpoint; None shares nothing."""
    places = [None] * len(prompts)
    times = Counter(prompt for prompt in prompts if prompt)
    units = [prompt for prompt, count in times.items() if count > 1]
    for prompt, count in times.items():
        near = [other for i, other in enumerate(prompts) if other != prompt and common(prompt, other) >= least]
        if count == 1 and least and near:
            units.append(prompt)
    first = {prompt: prompts.index(prompt) for prompt in units}
    units.sort(key=lambda prompt: (times[prompt] == 1, -len(prompt), first[prompt]))
    total = sum(times[prompt] if by == "requests" else len(prompt) for prompt in units)
    share = -(-total // len(running)) if running else 0
    load, holds = dict.fromkeys(running, 0), {name: [] for name in running}

    def order(name):
        return (load[name], float("inf") if running[name] is None else running[name], name)

    for prompt in units:
        members = [i for i, each in enumerate(prompts) if each == prompt]
        shared = {name: max((common(prompt, each) for each in holds[name]), default=0) for name in running}
        taken = dict.fromkeys(running, 0)
        preferred = [name for name in running if least and shared[name] >= least and load[name] < share]
        while members:
            free = [name for name in running if cap is None or taken[name] < cap]
            if preferred:
                name = min(preferred, key=lambda name: (-shared[name], order(name)))
            else:
                name = min(free or running, key=order)
            count = len(members) if cap is None else max(1, cap - taken[name])
            for i in members[:count]:
                places[i] = name
            taken[name] += len(members[:count])
            load[name] += len(members[:count]) if by == "requests" else len(prompt) - shared[name]
            members, preferred = members[count:], []
        for name in running:
            if taken[name]:
                holds[name].append(prompt)
    return places
