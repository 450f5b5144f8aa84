"""What are plug-ins checked on? Made-up pools and requests, the same in every run.

A `Scene` is a description, so that the same endpoints can be looked at in another order, or as the rest of a larger pool, or
with one value changed. `scenes` gives the standard ones for a set of signals.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import inf, isfinite, isinf, nan
from types import MappingProxyType
from typing import Final

import numpy as np

from inferencesched._typing import FloatArray
from inferencesched.endpoints import (
    INFLIGHT_REQUESTS,
    LAST_PICKED,
    LORA_ACTIVE,
    LORA_CAPACITY,
    LORA_LOADED,
    LORA_SLOTS,
    LORA_WAITING,
    OBSERVED_AT,
    STANDARD_SIGNALS,
    Endpoints,
    Layout,
    Signal,
)
from inferencesched.framework import CycleState
from inferencesched.members import Adapters, Membership, Residency
from inferencesched.request import InferenceRequest, MediaItem

NOW: Final = 1000.0
#: What numbers look natural, by unit; others are 0 to 100.
_REACH: Final[Mapping[str, float]] = MappingProxyType(
    {"requests": 20.0, "tokens": 20_000.0, "s": 10.0, "blocks": 1_000.0, "adapters": 4.0, "tokens/s": 20_000.0}
)
#: What can only be counted.
COUNTED: Final = frozenset({"requests", "tokens", "blocks", "adapters", "rank", "flag", "commits"})


@dataclass(frozen=True, slots=True)
class Server:
    """What is known of one endpoint of a scene? ``values`` is by signal name; what is not there is unknown."""

    name: str
    slot: int
    generation: int
    values: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    adapters: Adapters = field(default_factory=Adapters)


@dataclass(frozen=True, slots=True)
class Scene:
    """Which request meets which endpoints, when?

    ``kept`` names those that earlier filters left; None is all of them, and then the snapshot is not compressed.
    """

    name: str
    request: InferenceRequest
    servers: tuple[Server, ...]
    signals: tuple[Signal, ...] = STANDARD_SIGNALS
    kept: tuple[str, ...] | None = None
    sequence: int = 20
    peer: str = ""
    seed: int = 7
    _matrix: list[FloatArray] = field(init=False, repr=False, compare=False, default_factory=list)

    def endpoints(self) -> Endpoints:
        """Return the snapshot, newly made."""
        layout = Layout(self.signals)
        if not self._matrix:
            rows = [[server.values.get(signal.name, nan) for server in self.servers] for signal in self.signals]
            self._matrix.append(np.array(rows).reshape(len(self.signals), len(self.servers)))
        members = Membership(
            tuple(server.name for server in self.servers),
            tuple((server.slot, server.generation) for server in self.servers),
            tuple(server.labels for server in self.servers),
            tuple(f"{server.name}.example:8000" for server in self.servers),
        )
        residency = Residency(tuple(server.adapters for server in self.servers))
        endpoints = Endpoints(self._matrix[0].copy(), layout, members, residency, 40, self.sequence)
        if self.kept is None:
            return endpoints
        return endpoints.where(np.array([server.name in self.kept for server in self.servers], dtype=np.bool_))

    def cycle(self) -> CycleState:
        """Return the decision's time and chance: equally seeded each time."""
        return CycleState(NOW, np.random.default_rng(self.seed), self.sequence, self.peer)

    @property
    def names(self) -> tuple[str, ...]:
        """Who are the candidates, in order?"""
        return tuple(server.name for server in self.servers if self.kept is None or server.name in self.kept)

    def reordered(self, order: Sequence[int]) -> "Scene":
        """Return the same with the servers in another order."""
        return replace(self, name=f"{self.name}, reordered", servers=tuple(self.servers[i] for i in order))

    def alone(self) -> "Scene":
        """Return the same with those that filters dropped gone from the pool altogether."""
        servers = tuple(server for server in self.servers if server.name in self.names)
        return replace(self, name=f"{self.name}, in a pool of their own", servers=servers, kept=None)

    def with_value(self, name: str, signal: Signal, value: float) -> "Scene":
        """Return the same with one value of one endpoint changed."""
        servers = tuple(
            replace(server, values={**server.values, signal.name: value}) if server.name == name else server
            for server in self.servers
        )
        return replace(self, servers=servers)

    def value(self, name: str, signal: Signal) -> float:
        """Return what one endpoint has there; NaN is unknown."""
        return next(server.values.get(signal.name, nan) for server in self.servers if server.name == name)

    def with_signals(self, signals: Iterable[Signal], rng: np.random.Generator) -> "Scene":
        """Return the same with these columns filled anew."""
        drawn = tuple(signals)
        servers = tuple(
            replace(server, values={**server.values, **{s.name: natural(s, rng) for s in drawn}})
            for server in self.servers
        )
        names = {signal.name for signal in self.signals}
        return replace(self, servers=servers, signals=(*self.signals, *(s for s in drawn if s.name not in names)))

    def without(self, signals: Iterable[Signal]) -> "Scene":
        """Return the same in a pool that lacks these columns; the standard ones stay."""
        gone = {signal.name for signal in signals} - {signal.name for signal in STANDARD_SIGNALS}
        return replace(self, signals=tuple(signal for signal in self.signals if signal.name not in gone))


def natural(signal: Signal, rng: np.random.Generator) -> float:
    """Return a value that the signal may well have."""
    if signal.name == OBSERVED_AT.name:
        return NOW - float(rng.uniform(0.0, 3.0))
    if isfinite(signal.high) and isfinite(signal.low):
        value = float(rng.choice([signal.low, signal.high, *rng.uniform(signal.low, signal.high, 3)]))
    elif isinf(signal.low):
        value = min(float(rng.normal(0.0, 5.0)), signal.high)
    else:
        value = signal.low + float(rng.uniform(0.0, _REACH.get(signal.unit, 100.0)))
    return float(round(value)) if signal.unit in COUNTED else value


def _adapters(rng: np.random.Generator) -> Adapters:
    def some(names: str, most: int) -> frozenset[str]:
        return frozenset(rng.choice(list(names), size=int(rng.integers(0, most + 1)), replace=False).tolist())

    running = some("abcd", 2)
    waiting = some("abcd", 2) - running
    loaded = running | some("abcd", 1)
    return Adapters(running, waiting, int(rng.integers(1, 5)), loaded, some("abcd", 2) - loaded, len(loaded) + 1)


def natural_servers(count: int, signals: Sequence[Signal], rng: np.random.Generator) -> tuple[Server, ...]:
    """Return so many endpoints of which everything is known, ``ep-0`` and on."""
    slots = rng.permutation(count + 2)[:count]
    picked = rng.permutation(20)[:count] - 1
    return tuple(_server(i, int(slots[i]), float(picked[i]), signals, rng) for i in range(count))


def _server(i: int, slot: int, picked: float, signals: Sequence[Signal], rng: np.random.Generator) -> Server:
    adapters = _adapters(rng)
    values = {signal.name: natural(signal, rng) for signal in signals}
    values[LAST_PICKED.name] = picked
    values[LORA_ACTIVE.name] = float(len(adapters.running))
    values[LORA_WAITING.name] = float(len(adapters.waiting))
    values[LORA_CAPACITY.name] = float(adapters.capacity)
    values[LORA_LOADED.name] = float(len(adapters.loaded))
    values[LORA_SLOTS.name] = float(adapters.slots)
    labels = {
        "zone": ("eu", "us", "eu")[i % 3],
        "llm-d.ai/role": ("prefill", "decode", "prefill-decode", "both", "encode")[i % 5],
        "topology.kubernetes.io/zone": ("z1", "z2")[i % 2],
        "kubernetes.io/hostname": f"node-{i // 2}",
    }
    return Server(f"ep-{i}", slot, slot + 100, values, labels if i != 4 else {}, adapters)


def forgotten(
    servers: Iterable[Server], signals: Iterable[Signal], share: float, rng: np.random.Generator
) -> tuple[Server, ...]:
    """Return the servers with this share of what is not the pool's own word unknown."""
    foreign = [signal for signal in signals if signal.freshness != "local"]
    return tuple(
        replace(server, values={**server.values, **{s.name: nan for s in foreign if rng.random() < share}})
        for server in servers
    )


def _extreme(servers: Sequence[Server], signals: Iterable[Signal], low: bool) -> tuple[Server, ...]:
    """Return the servers at their signals' bounds: all at the lower ones, or every other one at the upper ones."""
    bound = {}
    for signal in signals:
        if signal.name not in (LAST_PICKED.name, OBSERVED_AT.name):
            ceiling = signal.high if isfinite(signal.high) else 1e9
            bound[signal.name] = (signal.low if isfinite(signal.low) else -1e9) if low else ceiling
    return tuple(
        replace(server, values={**server.values, **bound}) if low or i % 2 == 0 else server
        for i, server in enumerate(servers)
    )


#: What is asked: by word only, of known and unknown length, with everything, with nothing but a name.
REQUESTS: Final = (
    InferenceRequest(request_id="known-length", model="llama", input_tokens=700),
    InferenceRequest(request_id="bare"),
    InferenceRequest(
        request_id="everything",
        model="llama",
        adapter="a",
        tokens=np.arange(512, dtype=np.uint32),
        max_output_tokens=128,
        priority=1,
        fairness_id="tenant-1",
        objective="chat",
        tenant="t",
        deadline=NOW + 30.0,
        headers={
            "x-session-token": "ZXAtMQ==",
            "x-session-id": "s-1",
            "x-zone": "eu",
            "test-epp-endpoint-selection": "ep-1",
        },
        session_id="s-1",
        slo_ttft=0.5,
        slo_tpot=0.05,
        media=(MediaItem(11, 3), MediaItem(12, 1, "audio")),
    ),
    InferenceRequest(request_id="empty-prompt", model="b", tokens=np.zeros(0, dtype=np.uint32), session_id="s-2"),
    InferenceRequest(request_id="long", model="c", input_tokens=200_000, priority=-1, slo_ttft=1e-6),
)


#: Pools that meet two requests.
_OFTEN: Final = frozenset({"some unknown", "what filters left", "one of many"})


@lru_cache(maxsize=64)
def scenes(signals: tuple[Signal, ...] = ()) -> tuple[Scene, ...]:
    """Return the standard scenes, in pools that have these columns beside the standard ones.

    Seven endpoints that are known, partly known, unknown, alike, extreme; one endpoint, known and unknown; what filters left
    of a larger pool; a pool without labels and adapters; a peer that is there and one that is not. Every request meets the
    usual pool, and each other pool one or two of them.
    """
    known = {signal.name for signal in STANDARD_SIGNALS}
    every = (*STANDARD_SIGNALS, *(signal for signal in signals if signal.name not in known))
    rng = np.random.default_rng(11)
    usual = natural_servers(7, every, rng)
    larger = natural_servers(12, every, rng)
    one = natural_servers(1, every, rng)
    alike = tuple(
        Server(s.name, s.slot, s.generation, {**usual[0].values, LAST_PICKED.name: -1.0}, usual[0].labels)
        for s in usual
    )
    unknown = forgotten(usual, every, 1.0, np.random.default_rng(0))
    unheard = tuple(
        replace(server, values={**server.values, OBSERVED_AT.name: -inf, INFLIGHT_REQUESTS.name: 0.0})
        for server in unknown
    )
    bare = tuple(replace(server, labels={}, adapters=Adapters()) for server in usual)
    pools: tuple[tuple[str, tuple[Server, ...], tuple[str, ...] | None, str], ...] = (
        ("some unknown", forgotten(usual, every, 0.4, np.random.default_rng(1)), None, ""),
        ("all unknown", unknown, None, ""),
        ("never observed", unheard, None, ""),
        ("all alike", alike, None, ""),
        ("all at their least", _extreme(usual, every, low=True), None, ""),
        ("half at their most", _extreme(usual, every, low=False), None, ""),
        ("one endpoint", one, None, ""),
        ("one unknown endpoint", forgotten(one, every, 1.0, np.random.default_rng(2)), None, ""),
        ("what filters left", larger, ("ep-1", "ep-4", "ep-6", "ep-7", "ep-11"), ""),
        ("one of many", forgotten(larger, every, 0.4, np.random.default_rng(3)), ("ep-5",), ""),
        ("no labels, no adapters", bare, None, ""),
        ("a peer", usual, None, "ep-3"),
        ("a peer that left", usual, None, "gone"),
    )
    found = [Scene(f"usual, {request.request_id}", request, usual, every) for request in REQUESTS]
    for i, (name, servers, kept, peer) in enumerate(pools):
        found += [
            Scene(f"{name}, {request.request_id}", request, servers, every, kept, 20 + i, peer, i)
            for request in (REQUESTS[i % len(REQUESTS)], REQUESTS[(i + 2) % len(REQUESTS)])[: 1 + (name in _OFTEN)]
        ]
    return tuple(found)
