"""What would the same traffic be like if there were less of it, more of it, or two kinds at once?

Functions from `Workload` to `Workload`, deterministic in their arguments. None changes which requests share a block: ids are
kept, or moved so that those of two workloads, or of two copies, never meet.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Final

import numpy as np

from inferencesched._typing import FloatArray, IntArray
from inferencesched.errors import InvalidInputError, not_negative, whole_number
from inferencesched.simulator.tenancy import ANYBODY, Tenant, draw
from inferencesched.simulator.workload import Precedence, Workload, gathered

#: What tells the draws of one function from those of another with the same seed.
_THIN: Final = 0x7417
_JITTER: Final = 0x7177
_REPEAT: Final = 0x43E9
_RESTART: Final = 0x4E57


def thin(workload: Workload, share: float, seed: int = 0) -> Workload:
    """What if only a share of them came? Each conversation stays with probability `share`, whole.

    Without a known precedence every request is a conversation of its own. What a smaller share keeps a larger one keeps, too;
    1.0 keeps everything. Errors: `InvalidInputError` for a share outside (0, 1].

    >>> three = Workload.of("toy", [0.0, 1.0, 2.0], [64, 64, 64], [1, 1, 1], [[0], [0], [1]], block_size=64)
    >>> len(thin(three, 1.0)), len(thin(three, 0.5, seed=1))
    (3, 1)
    """
    if not 0 < share <= 1:
        raise InvalidInputError("share", share, "above 0, at most 1")
    session = workload.sessions()
    lots = np.random.default_rng((whole_number("seed", seed), _THIN)).random(int(session.max(initial=-1)) + 1)
    return _picked(workload, np.flatnonzero(lots[session] < share))


def mix(*workloads: Workload) -> Workload:
    """What if all of these came at once? Their requests in the order of arrival, at a tie those of the first workload first.

    Their blocks are kept apart: nothing is shared between them. They must have one block size, those that have blocks at all.
    Tenants stay; who had none where others have is anybody's. Errors: `InvalidInputError` for no workloads, for two block
    sizes (`Workload.in_blocks` changes one), and for a tenant that is not the same in two of them.
    """
    if not workloads:
        raise InvalidInputError("workloads", (), "at least one")
    sizes = {each.block_size for each in workloads if len(each.blocks)} or {workloads[0].block_size}
    if len(sizes) > 1:
        raise InvalidInputError("block_size", sorted(sizes), "one size in all workloads that have blocks")
    names, tenant = _joined_tenants(workloads)
    fresh = np.cumsum([0, *(int(each.blocks.max(initial=-1)) + 1 for each in workloads)])
    joined = Workload(
        " + ".join(each.name for each in workloads),
        np.concatenate([each.arrival for each in workloads]),
        np.concatenate([each.input_tokens for each in workloads]),
        np.concatenate([each.output_tokens for each in workloads]),
        np.concatenate([each.blocks + begin for each, begin in zip(workloads, fresh, strict=False)]),
        _appended([each.offsets for each in workloads]),
        sizes.pop(),
        names,
        tenant,
        _joined_precedence(workloads),
    )
    mixed = _picked(joined, np.argsort(joined.arrival, kind="stable"))
    mixed.validate()
    return mixed


def jitter(workload: Workload, seed: int = 0) -> Workload:
    """What if they came when they came, and not all at the tick of the trace's clock?

    Arrivals of the same moment are spread evenly over the time up to the next one, or over the median of those times where that
    is shorter, by lot and in their order: Mooncake's clock ticks every 3 s, and a hundred requests come with it. Requests keep
    their places.

    >>> ticks = Workload.of("toy", [0.0, 0.0, 3000.0], [1, 1, 1], [1, 1, 1], [[], [], []], block_size=64)
    >>> jitter(ticks, seed=1).arrival.round().tolist()
    [1017.0, 2172.0, 4146.0]
    """
    times = np.unique(workload.arrival)
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    widths = np.append(np.minimum(gaps, usual), usual)
    tick = np.searchsorted(times, workload.arrival)
    rng = np.random.default_rng((whole_number("seed", seed), _JITTER))
    late = rng.random(len(workload)) * widths[tick] if len(workload) else np.empty(0)
    order = np.lexsort((late, tick))  # within each tick; ticks themselves stay where they are
    arrival = workload.arrival + late[order]
    return replace(workload, arrival=np.minimum(arrival, np.append(times[1:], np.inf)[tick]) if len(gaps) else arrival)


def tag(workload: Workload, tenants: Sequence[Tenant], seed: int = 0) -> Workload:
    """Whose is each conversation? Given to tenants by lot, in proportion to their shares, so that nobody changes hands midway.

    As `Workload.tagged` where no precedence is known, with the same draws. Errors: as `tenancy.draw`.
    """
    session = workload.sessions()
    drawn = draw(tenants, int(session.max(initial=-1)) + 1, seed=seed)
    return replace(workload, tenants=tuple(tenants), tenant=drawn[session])


def with_adapters(
    workload: Workload, adapters: Sequence[str], *, skew: float = 1.0, base: float = 0.0, seed: int = 0
) -> Workload:
    """Which LoRA adapter does each conversation need? The n-th in proportion to ``1 / n ** skew``, by lot; a share of `base` needs none.

    Errors: `InvalidInputError` for no adapters, one twice, or a skew or share that cannot be.

    >>> from inferencesched.simulator import Traffic, generate
    >>> with_adapters(generate(Traffic(requests=6), seed=1), ["sql", "law"], seed=3).adapter.tolist()
    [1, 0, 0, 1, 0, 0]
    """
    if not adapters or len(set(adapters)) != len(adapters) or "" in adapters:
        raise InvalidInputError("adapters", list(adapters), "at least one name, each once")
    not_negative("skew", skew)
    if not 0 <= base <= 1:
        raise InvalidInputError("base", base, "0 to 1")
    session = workload.sessions()
    rng, count = np.random.default_rng((whole_number("seed", seed), 11)), int(session.max(initial=-1)) + 1
    weights = 1.0 / np.arange(1, len(adapters) + 1) ** skew
    drawn = rng.choice(len(adapters), size=count, p=weights / weights.sum())
    drawn = np.where(rng.random(count) < base, -1, drawn).astype(np.int64)
    return replace(workload, adapters=tuple(adapters), adapter=drawn[session])


def repeat(workload: Workload, times: int, seed: int = 0) -> Workload:
    """What if the same went on, so many times over? Copies one after the other, each finding nothing of the one before.

    The time from the last arrival of one to the first of the next is drawn from the workload's own gaps between arrivals. Its
    first copy is the workload itself. Errors: `InvalidInputError` for no times.
    """
    whole_number("times", times, low=1)
    rng = np.random.default_rng((whole_number("seed", seed), _REPEAT))
    gaps = np.diff(workload.arrival)
    copies, begin = [workload], 0.0
    for _ in range(times - 1):
        if len(workload):
            begin += float(workload.arrival[-1] - workload.arrival[0])
        begin += float(rng.choice(gaps)) if len(gaps) else 0.0
        copies.append(replace(workload, arrival=workload.arrival + begin))
    return replace(mix(*copies), name=workload.name)


def restart_sessions(workload: Workload, rate: float, seed: int = 0) -> Workload:
    """What if conversations began at this rate? Their first arrivals become a Poisson process of `rate` a second.

    All else of a conversation moves with its first request. They begin in the order in which they did; requests are sorted by
    their new arrivals. In a closed loop that sets the load, as all but roots come when they come. Without a known precedence
    every request is a conversation of its own. Errors: `InvalidInputError` for a rate that is not finite and above 0.
    """
    if not (isfinite(rate) and rate > 0):
        raise InvalidInputError("rate", rate, "a finite number of sessions a second, above 0")
    session = workload.sessions()
    _, first = np.unique(session, return_index=True)
    rng = np.random.default_rng((whole_number("seed", seed), _RESTART))
    begins = np.cumsum(rng.exponential(1e3 / rate, size=len(first)))
    arrival = begins[session] + (workload.arrival - workload.arrival[first][session])
    order = np.argsort(arrival, kind="stable")
    moved = _picked(workload, order, arrival[order])
    moved.validate()
    return moved


def _picked(workload: Workload, order: IntArray, arrival: FloatArray | None = None) -> Workload:
    """Return the requests at these places, in this order, with these new arrivals if there are any."""
    offsets, index = gathered(workload.offsets, order)
    return replace(
        workload,
        arrival=workload.arrival[order] if arrival is None else arrival,
        input_tokens=workload.input_tokens[order],
        output_tokens=workload.output_tokens[order],
        blocks=workload.blocks[index],
        offsets=offsets,
        tenant=None if workload.tenant is None else workload.tenant[order],
        adapter=None if workload.adapter is None else workload.adapter[order],
        precedence=None if workload.precedence is None else workload.precedence.taken(order),
    )


def _appended(offsets: Sequence[IntArray]) -> IntArray:
    """Return the offsets of ragged columns that are put one behind the other."""
    begins = np.cumsum([0, *(int(each[-1]) for each in offsets)])
    whole: IntArray = np.concatenate([each[:-1] + begin for each, begin in zip(offsets, begins, strict=False)])
    return np.append(whole, begins[-1])


def _joined_precedence(workloads: Sequence[Workload]) -> Precedence | None:
    if all(each.precedence is None for each in workloads):
        return None
    none = np.empty(0, dtype=np.int64)
    each_own = [
        Precedence(none, np.zeros(len(each) + 1, dtype=np.int64), np.zeros(len(each)))
        if each.precedence is None
        else each.precedence
        for each in workloads
    ]
    begins = np.cumsum([0, *(len(each) for each in workloads)])
    return Precedence(
        np.concatenate([own.places + begin for own, begin in zip(each_own, begins, strict=False)]),
        _appended([own.offsets for own in each_own]),
        np.concatenate([own.think for own in each_own]),
    )


def _joined_tenants(workloads: Sequence[Workload]) -> tuple[tuple[Tenant, ...], IntArray | None]:
    if all(each.tenant is None for each in workloads):
        return (), None
    place: dict[Tenant, int] = {}
    columns = []
    for each in workloads:
        own = (ANYBODY,) if each.tenant is None else each.tenants
        now = np.array([place.setdefault(tenant, len(place)) for tenant in own], dtype=np.int64)
        columns.append(now[np.zeros(len(each), dtype=np.int64) if each.tenant is None else each.tenant])
    draw(tuple(place), 0)  # refuses what contradicts itself
    return tuple(place), np.concatenate(columns)
