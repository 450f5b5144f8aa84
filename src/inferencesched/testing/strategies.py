"""Which pools, snapshots and requests may come along? Strategies for property tests; needs hypothesis (extra ``testing``).

They draw what the library can meet: unknown and stale servers, labels, LoRA adapters in every state, columns of your own, what
filters left of a larger pool, reservations in flight, slots that were used before::

    from hypothesis import given
    from inferencesched.testing import strategies

    @given(strategies.requests(), strategies.endpoints(signals=(MINE,)), strategies.cycles())
    def test_it_never_falls_over(request, endpoints, cycle):
        scores = MyScorer().score(request, endpoints, cycle)
        assert ((scores >= 0) & (scores <= 1)).all()
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite, nan
from typing import Final

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from inferencesched.endpoints import (
    LAST_PICKED,
    LORA_ACTIVE,
    LORA_CAPACITY,
    LORA_LOADED,
    LORA_SLOTS,
    LORA_WAITING,
    OBSERVED_AT,
    STANDARD_SIGNALS,
    Endpoints,
    Freshness,
    Signal,
)
from inferencesched.framework import CycleState
from inferencesched.members import Adapters
from inferencesched.pool import InferencePool
from inferencesched.request import InferenceRequest, MediaItem, Usage
from inferencesched.testing.scenes import COUNTED, NOW, Scene, Server, forgotten, natural, natural_servers

#: What names are drawn from: adapters, and the label values that plug-ins are likely to look at.
ADAPTERS: Final = ("a", "b", "c")
LABELS: Final = {
    "zone": ("eu", "us"),
    "llm-d.ai/role": ("prefill", "decode", "prefill-decode", "encode"),
    "topology.kubernetes.io/zone": ("z1", "z2"),
    "kubernetes.io/hostname": ("node-1", "node-2"),
}


def values(signal: Signal, *, unknown: bool = True) -> SearchStrategy[float]:
    """Which values may a signal have? Its bounds and what lies between; NaN unless it is the pool's own word."""
    low = signal.low if isfinite(signal.low) else -1e6
    high = signal.high if isfinite(signal.high) else 1e6
    if signal.unit in COUNTED:
        found = st.integers(int(low), int(min(high, 1_000.0))).map(float)
    else:
        found = st.floats(low, high) | st.sampled_from([low, (low + high) / 2, high])
    return found | st.just(nan) if unknown and signal.freshness != "local" else found


@st.composite
def adapters(draw: DrawFn) -> Adapters:
    """Which LoRA adapters may a server run, have waiting, have loaded?"""
    running = draw(st.frozensets(st.sampled_from(ADAPTERS), max_size=2))
    waiting = draw(st.frozensets(st.sampled_from(ADAPTERS), max_size=2))
    loaded = running | draw(st.frozensets(st.sampled_from(ADAPTERS), max_size=1))
    offloaded = draw(st.frozensets(st.sampled_from(ADAPTERS))) - loaded
    return Adapters(running, waiting, draw(st.integers(0, 4)), loaded, offloaded, draw(st.integers(0, 4)))


def labels() -> SearchStrategy[dict[str, str]]:
    """Which labels may an endpoint carry? Some of `LABELS`."""
    some = st.fixed_dictionaries({}, optional={key: st.sampled_from(found) for key, found in LABELS.items()})
    return some.map(dict)


@st.composite
def requests(draw: DrawFn) -> InferenceRequest:
    """What may be asked? Of unknown length, with tokens or hashes, of a session, with objectives, pictures and headers."""
    tokens = draw(st.none() | st.integers(0, 200).map(lambda count: np.arange(count, dtype=np.uint32)))
    hashes = st.integers(0, 9).map(lambda count: np.arange(1, count + 1, dtype=np.uint64))
    word = st.sampled_from(["", "s-1", "s-2"])
    headers = st.dictionaries(
        st.sampled_from(["x-session-id", "x-zone", "x-custom"]), st.sampled_from(["s-1", "eu", ""])
    )
    return InferenceRequest(
        request_id=f"r-{draw(st.integers(0, 99))}",
        model=draw(st.sampled_from(["", "llama", *ADAPTERS])),
        adapter=draw(st.sampled_from(["", *ADAPTERS])),
        tokens=tokens,
        input_tokens=None if tokens is not None else draw(st.none() | st.integers(0, 100_000)),
        block_hashes=draw(st.none() | hashes),
        max_output_tokens=draw(st.none() | st.integers(0, 4_096)),
        priority=draw(st.integers(-1, 2)),
        fairness_id=draw(word),
        tenant=draw(word),
        deadline=draw(st.none() | st.floats(NOW, NOW + 60.0)),
        headers=draw(headers),
        session_id=draw(word),
        slo_ttft=draw(st.none() | st.floats(0.01, 10.0)),
        slo_tpot=draw(st.none() | st.floats(0.001, 1.0)),
        media=tuple(draw(st.lists(st.builds(MediaItem, st.integers(1, 5), st.integers(1, 9)), max_size=3))),
    )


@st.composite
def scenes(
    draw: DrawFn, *, signals: Sequence[Signal] = (), min_size: int = 1, max_size: int = 8, unknown: bool = True
) -> Scene:
    """Which request may meet which endpoints? A `Scene`, which can also be reordered and changed one value at a time."""
    count = draw(st.integers(min_size, max_size))
    names = {signal.name for signal in STANDARD_SIGNALS}
    every = (*STANDARD_SIGNALS, *(signal for signal in signals if signal.name not in names))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    servers = natural_servers(count, every, rng)
    if unknown:
        servers = forgotten(servers, every, draw(st.sampled_from([0.0, 0.3, 1.0])), rng)
        never = draw(st.sets(st.integers(0, count - 1), max_size=2))
        servers = tuple(_set(server, OBSERVED_AT, -inf) if i in never else server for i, server in enumerate(servers))
    for _ in range(draw(st.integers(0, 4))):  # a few values at which formulas turn
        i, signal = draw(st.integers(0, count - 1)), draw(st.sampled_from(every))
        if signal.name not in _OWN:
            changed = _set(servers[i], signal, draw(values(signal, unknown=unknown)))
            servers = (*servers[:i], changed, *servers[i + 1 :])
    kept = draw(st.none() | st.sets(st.integers(0, count - 1), min_size=min_size))
    return Scene(
        "drawn",
        draw(requests()),
        servers,
        every,
        None if kept is None else tuple(f"ep-{i}" for i in sorted(kept)),
        draw(st.integers(0, 1_000)),
        draw(st.sampled_from(["", "ep-0", "gone"])),
        draw(st.integers(0, 2**32 - 1)),
    )


def _set(server: Server, signal: Signal, value: float) -> Server:
    return replace(server, values={**server.values, signal.name: value})


#: Columns that tell of something else: a value by itself would be a lie.
_OWN: Final = {
    signal.name
    for signal in (LORA_ACTIVE, LORA_WAITING, LORA_CAPACITY, LORA_LOADED, LORA_SLOTS, LAST_PICKED, OBSERVED_AT)
}


def endpoints(
    *, signals: Sequence[Signal] = (), min_size: int = 1, max_size: int = 8, unknown: bool = True
) -> SearchStrategy[Endpoints]:
    """Which snapshots may a plug-in see?

    `signals` are columns beside the standard ones; without `unknown` every value is known and every server was heard of.
    Half of them are what filters left of a larger pool.
    """
    return scenes(signals=signals, min_size=min_size, max_size=max_size, unknown=unknown).map(Scene.endpoints)


@st.composite
def cycles(draw: DrawFn) -> CycleState:
    """When may a decision be made, with which draws, after how many commits? Times fit `endpoints` and `pools`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    peer = draw(st.sampled_from(["", "ep-0", "gone"]))
    return CycleState(NOW + draw(st.floats(0.0, 10.0)), rng, draw(st.integers(0, 1_000)), peer)


@st.composite
def pools(
    draw: DrawFn,
    *,
    signals: Sequence[Signal] = (),
    min_size: int = 1,
    max_size: int = 8,
    unknown: bool = True,
    reservations: bool = True,
) -> InferencePool:
    """Which pools may a gateway keep? Observed and not, with reservations in flight and settled, and slots used before.

    The last event is at 1,000 s at the latest: decide from then on, as `cycles` does.
    """
    pool = InferencePool(signals=tuple(signals))
    count = draw(st.integers(min_size, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    every = (*STANDARD_SIGNALS, *signals)
    if draw(st.booleans()):
        pool.join("left-before")
    share = draw(st.sampled_from([0.0, 0.3, 1.0])) if unknown else 0.0

    def told(freshness: Freshness) -> dict[Signal, float]:
        found = [signal for signal in every if signal.freshness == freshness and signal.name not in _OWN]
        return {signal: natural(signal, rng) if rng.random() >= share else nan for signal in found}

    for i in range(count):
        address = draw(st.sampled_from(["", f"10.0.0.{i}:8000"]))
        pool.join(f"ep-{i}", labels=draw(labels()), values=told("static"), address=address)
        if not unknown or draw(st.integers(0, 4)):
            at = NOW - draw(st.sampled_from([0.0, 0.5, 1.9, 2.1, 10.0]))
            pool.observe(f"ep-{i}", told("scraped"), now=at, adapters=draw(st.none() | adapters()))
    if "left-before" in pool.names:
        pool.leave("left-before")
        if draw(st.booleans()):
            pool.join("came-later")
    if reservations:
        _reserve(draw, pool)
    return pool


def _reserve(draw: DrawFn, pool: InferencePool) -> None:
    """Book some requests, of which some go on and some end."""
    places = draw(st.lists(st.sampled_from(pool.names), max_size=5))
    for number, name in enumerate(places):
        tokens = draw(st.integers(0, 5_000))
        reservation = pool.reserve(
            name, request_id=f"booked-{number}", tokens=tokens, context_tokens=tokens, now=NOW - 5.0
        )
        stage = draw(st.sampled_from(["booked", "streaming", "completed", "failed"]))
        if stage in ("streaming", "completed"):
            reservation.first_token(now=NOW - 4.0)
            reservation.progress(draw(st.integers(1, 100)), now=NOW - 3.0)
        if stage == "completed":
            reservation.complete(Usage(tokens, 100), now=NOW - 2.0)
        if stage == "failed":
            reservation.fail(now=NOW - 2.0)
