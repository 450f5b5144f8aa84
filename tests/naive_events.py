"""Slow, obvious twin of the applier of KV events: whole prompts instead of chains, everything recounted when asked.

An engine's block is remembered with the whole prompt up to its end: tokens, domain, and the extra keys of every token.
"""

from collections import Counter
from typing import NamedTuple

import msgspec
import xxhash

SEED = 1337
TIERS = ("device", "host", "disk", "external")


class Known(NamedTuple):
    """A block of the engine: the names of all blocks up to it, each with its size, and the prompt that they make."""

    names: tuple
    sizes: tuple
    tokens: tuple
    extras: tuple  # a tuple of extra keys for each token
    lora: str
    salt: str


class Endpoint:
    def __init__(self, own):
        self.own = own
        self.known = {}
        self.copies = Counter()  # (name, tier, group)
        self.counts = Counter()

    def store(self, names, parent, tokens, size, tier="device", group=None, lora="", salt="", extras=None):
        if parent is None:
            prompt = Known((), (), (), (), lora, salt)
        elif parent in self.known:
            prompt = self.known[parent]
        else:
            self.counts["unknown_parent"] += 1
            return
        for i, name in enumerate(names):
            mine = tuple((extras or [()] * len(names))[i])
            prompt = Known(
                (*prompt.names, name),
                (*prompt.sizes, size),
                prompt.tokens + tuple(tokens[i * size : (i + 1) * size]),
                prompt.extras + (mine,) * size,
                prompt.lora,
                prompt.salt,
            )
            self.known[name] = prompt
            self.count(name, tier, group)

    def place(self, names, tier, group=None):
        """Blocks known already lie on one more tier."""
        for name in names:
            if name in self.known:
                self.count(name, tier, group)
            else:
                self.counts["unknown_block"] += 1

    def count(self, name, tier, group):
        self.counts["duplicates" if self.copies[name, tier, group] else "stored"] += 1
        self.copies[name, tier, group] += 1

    def remove(self, names, tier="device", group=None):
        for name in names:
            if self.copies[name, tier, group]:
                self.copies[name, tier, group] -= 1
                self.counts["removed"] += 1
                self.tidy()
            else:
                self.counts["unknown_removal"] += 1

    def clear(self, tier=None):
        self.counts["cleared"] += 1
        for name, there, group in list(self.copies):
            if tier in (None, there):
                self.copies[name, there, group] = 0
        self.tidy()

    def tidy(self):
        """Known is what is held, and what is before it."""
        self.copies = +self.copies
        needed = {name for held, _, _ in self.copies for name in self.known[held].names}
        self.known = {name: prompt for name, prompt in self.known.items() if name in needed}

    def on(self, name):
        return {tier for held, tier, _ in self.copies if held == name}

    def own_blocks(self, counted):
        """Return the own blocks held on any of these tiers."""
        found = set()
        for prompt in self.known.values():
            chain = own_hashes(prompt, self.own)
            for block, name in enumerate(chain):
                first, behind, begin, held = block * self.own, (block + 1) * self.own, 0, True
                for engine_name, size in zip(prompt.names, prompt.sizes, strict=True):
                    if begin < behind and begin + size > first:
                        held &= bool(self.on(engine_name) & set(counted))
                    begin += size
                if held:
                    found.add(name)
        return found


def own_hashes(prompt, own):
    """The recurrence as it is written down: extra keys, each once, behind the tokens of each block that has them."""
    local_seed = SEED
    for name, number in ((prompt.lora, 0), (prompt.salt, 1)):
        if name:
            local_seed = (local_seed + xxhash.xxh3_64(name.encode(), number).intdigest()) % 2**64
    chain = []
    for i in range(0, len(prompt.tokens) - own + 1, own):
        raw = b"".join(token.to_bytes(4, "little") for token in prompt.tokens[i : i + own])
        once = []
        for keys in prompt.extras[i : i + own]:
            once += [key for key in keys if key not in once]
        for key in once:
            raw += xxhash.xxh3_64(msgspec.msgpack.encode(key)).intdigest().to_bytes(8, "little")
        local = xxhash.xxh3_64(raw, local_seed).intdigest()
        both = b"".join(value.to_bytes(8, "little") for value in (chain[-1], local)) if chain else b""
        chain.append(xxhash.xxh3_64(both, SEED).intdigest() if chain else local)
    return chain
