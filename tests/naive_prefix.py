"""Slow, obvious twins of block hashing and of the prefix index: a loop over the xxhash package, and dicts of sets."""

import struct
from collections import OrderedDict

import xxhash

SEED = 1337


def block_hashes(tokens, block_size, *, seed=SEED, model="", lora="", salt="", tenant=""):
    """The recurrence as it is written down, a block at a time."""
    local_seed = seed
    for name, number in ((lora, 0), (salt, 1), (model, 2), (tenant, 3)):
        if name:
            local_seed = (local_seed + xxhash.xxh3_64(name.encode(), number).intdigest()) % 2**64
    chain = []
    for i in range(0, len(tokens) - block_size + 1, block_size):
        raw = b"".join(struct.pack("<I", token) for token in tokens[i : i + block_size])
        local = xxhash.xxh3_64(raw, local_seed).intdigest()
        chain.append(xxhash.xxh3_64(struct.pack("<QQ", chain[-1], local), seed).intdigest() if chain else local)
    return chain


class PrefixIndex:
    """What an index must answer: a set of hashes an endpoint, least recently used first, and nothing clever.

    `parents` remembers where every hash ever seen hangs; what is *known* is recounted at every question: the blocks
    somebody holds, and all blocks before those.
    """

    def __init__(self, endpoints, capacity=None):
        self.capacity = capacity
        self.limits = {}
        self.held = [OrderedDict() for _ in range(endpoints)]
        self.parents = {}

    def known(self):
        found = set()
        for held in self.held:
            for block in held:
                found.update(self.chain_to(block))
        return found

    def chain_to(self, block):
        chain = []
        while block is not None:
            chain.append(block)
            block = self.parents[block]
        return chain[::-1]

    def insert(self, slot, hashes, start=0):
        """Hold hashes[start:], and touch the whole chain, the tail first: it is the first to go."""
        held = self.held[slot]
        if start >= len(hashes):
            hashes = [block for block in hashes if block in self.known()]
        for parent, block in zip([None, *hashes], hashes, strict=False):
            self.parents[block] = parent
        for block in hashes[start:]:
            held.setdefault(block)
        for block in reversed(hashes):
            if block in held:
                held.move_to_end(block)
        self.shed(slot)

    def shed(self, slot):
        """Return how many had to go."""
        gone, most = 0, self.limits.get(slot) or self.capacity
        while most is not None and len(self.held[slot]) > most:
            self.held[slot].popitem(last=False)
            gone += 1
        return gone

    def limit(self, slot, capacity):
        self.limits[slot] = capacity
        return self.shed(slot)

    def insert_after(self, slot, parent, hashes):
        if parent not in self.known():
            raise LookupError(parent)
        if hashes:
            before = self.chain_to(parent)
            self.insert(slot, [*before, *hashes], start=len(before))

    def remove(self, slot, hashes):
        """Return how many were there."""
        there = [block for block in dict.fromkeys(hashes) if block in self.held[slot]]
        for block in there:
            del self.held[slot][block]
        return len(there)

    def clear(self, slot):
        self.held[slot].clear()

    def grow(self, endpoints):
        self.held += [OrderedDict() for _ in range(endpoints - len(self.held))]

    def match(self, hashes):
        depths = []
        for held in self.held:
            depth = 0
            while depth < len(hashes) and hashes[depth] in held:
                depth += 1
            depths.append(depth)
        return depths
