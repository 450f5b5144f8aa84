"""Where a key belongs, as the papers say it: plain numbers, one endpoint after the other, xxhash itself."""

import math

import xxhash


def height(key, name, weight):
    """-w / ln(u), u from xxh3_64 of the key's eight bytes and of the eight of the name's own hash."""
    identity = xxhash.xxh3_64_intdigest(name.encode())
    draw = xxhash.xxh3_64_intdigest(key.to_bytes(8, "little") + identity.to_bytes(8, "little"))
    return -weight / math.log((draw // 2**12 + 0.5) / 2**52)


def preference(key, weights):
    """Names, the key's own first; `weights` by name, NaN is nobody's word and counts as 1."""
    told = {name: 1.0 if math.isnan(weight) else weight for name, weight in weights.items()}
    if not any(told.values()):
        told = dict.fromkeys(told, 1.0)
    return sorted(told, key=lambda name: (-height(key, name, told[name]), xxhash.xxh3_64_intdigest(name.encode())))


def with_room(loads, weights, balance):
    """The names that one more request would not carry over the bound; for equal weights load + 1 <= ceil((1 + e) m / n)."""
    known = [name for name, load in loads.items() if not math.isnan(load)]
    if not known:
        return set(loads)
    told = {name: 1.0 if math.isnan(weights[name]) else weights[name] for name in known}
    if not any(told.values()):
        told = dict.fromkeys(told, 1.0)
    everything = sum(loads[name] for name in known) + 1
    return {name for name in known if loads[name] < (1 + balance) * everything * told[name] / sum(told.values())}
