"""Is what comes out of a change the same traffic, but for the change?"""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencesched.errors import InvalidInputError
from inferencesched.simulator import Tenant, Traffic, Workload, generate, read_mooncake
from inferencesched.simulator.tenancy import ANYBODY
from inferencesched.simulator.transforms import jitter, mix, repeat, restart_sessions, tag, thin
from inferencesched.simulator.workload import Precedence
from tests.shared import shared

COLUMNS = ("arrival", "input_tokens", "output_tokens", "blocks", "offsets")
TENANTS = (Tenant("chat", share=3.0, priority=1), Tenant("batch"))


@st.composite
def workloads(draw, most=8, tenants=True):
    """Prompts over a tree of blocks, arrivals with ties, some in conversations; output tokens say which request it is."""
    names, rows, waits = {}, [], []
    now = 0.0
    for i in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0.0, 0.0, 1.5, 40.0]))
        path, ids = (), []
        for _ in range(draw(st.integers(0, 4))):
            path = (*path, draw(st.integers(0, 1)))
            ids.append(names.setdefault(path, len(names)))
        rows.append((now, 64 * len(ids) + draw(st.integers(1, 63)), i, ids))
        waits.append(draw(st.sets(st.integers(0, i - 1), max_size=2)) if i else set())
    arrival, inputs, outputs, ids = zip(*rows, strict=True)
    workload = Workload.of("drawn", arrival, inputs, outputs, ids, block_size=64)
    if draw(st.booleans()):
        think = [draw(st.floats(0, 100)) if wait else 0.0 for wait in waits]
        workload = replace(workload, precedence=Precedence.of(waits, think))
    if tenants and draw(st.booleans()):
        workload = workload.tagged(TENANTS, seed=draw(st.integers(0, 9)))
    workload.validate()
    return workload


def row(workload, i):
    return workload.blocks[workload.offsets[i] : workload.offsets[i + 1]].tolist()


def common(workload, labels):
    """How many leading blocks any two requests share, by their labels."""
    rows = [row(workload, i) for i in range(len(workload))]
    found = {}
    for i in range(len(workload)):
        for j in range(i + 1, len(workload)):
            same = 0
            while same < min(len(rows[i]), len(rows[j])) and rows[i][same] == rows[j][same]:
                same += 1
            assert not set(rows[i][same:]) & set(rows[j][same:]), "what is shared is a prefix"
            found[frozenset([labels[i], labels[j]])] = same
    return found


def waits(workload, labels):
    if workload.precedence is None:
        return None
    own = workload.precedence
    return {
        labels[i]: ({labels[place] for place in own.waits_for(i).tolist()}, own.think[i]) for i in range(len(workload))
    }


def same(one, other):
    for column in COLUMNS:
        assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
    assert (one.block_size, one.tenants) == (other.block_size, other.tenants)
    assert (one.tenant is None) == (other.tenant is None)
    assert one.tenant is None or one.tenant.tolist() == other.tenant.tolist()
    labels = range(len(one))
    assert waits(one, labels) == waits(other, labels)


# --- thin --------------------------------------------------------------------------------------------------------


@given(workloads(), st.integers(0, 99))
def test_all_of_it_is_itself(workload, seed):
    same(thin(workload, 1.0, seed), workload)


@given(workloads(), st.floats(0.01, 1.0), st.integers(0, 99))
def test_conversations_stay_or_go_whole(workload, share, seed):
    less = thin(workload, share, seed)
    less.validate()
    kept = less.output_tokens.tolist()
    assert kept == sorted(kept)
    session = workload.sessions().tolist()
    assert {session[i] for i in kept}.isdisjoint(session[i] for i in range(len(session)) if i not in kept)
    whole = common(workload, range(len(workload)))
    assert common(less, kept) == {pair: whole[pair] for pair in whole if pair <= set(kept)}
    for i, place in enumerate(kept):
        assert row(less, i) == row(workload, place)
    if workload.precedence is not None:
        before = waits(workload, range(len(workload)))
        assert waits(less, kept) == {place: before[place] for place in kept}


@given(workloads(), st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(0, 99))
def test_a_larger_share_keeps_what_a_smaller_one_keeps(workload, one, other, seed):
    fewer, more = (thin(workload, share, seed).output_tokens.tolist() for share in sorted((one, other)))
    assert set(fewer) <= set(more)


def test_the_share_is_the_share():
    workload = generate(Traffic(requests=4000), seed=1)
    assert len(thin(workload, 0.3, seed=2)) == pytest.approx(1200, abs=4 * 29)
    assert thin(workload, 0.3, 2).arrival.tolist() != thin(workload, 0.3, 3).arrival.tolist()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(InvalidInputError, match="^share: "):
        thin(generate(Traffic(requests=3)), share)


# --- mix ---------------------------------------------------------------------------------------------------------


@given(st.lists(workloads(most=5), min_size=1, max_size=3))
def test_a_mix_holds_all_and_shares_nothing_between(parts):
    mixed = mix(*parts)
    mixed.validate()
    assert len(mixed) == sum(len(part) for part in parts)
    for column in ("input_tokens", "output_tokens"):
        assert getattr(mixed, column).sum() == sum(getattr(part, column).sum() for part in parts)
    assert len(mixed.blocks) == sum(len(part.blocks) for part in parts)
    expected = sorted(  # stable: by time, then by workload, then by place
        (float(part.arrival[i]), p, i) for p, part in enumerate(parts) for i in range(len(part))
    )
    assert mixed.arrival.tolist() == [time for time, _, _ in expected]
    labels = [(p, i) for _, p, i in expected]
    assert mixed.output_tokens.tolist() == [i for _, i in labels]
    whole = {}
    for p, part in enumerate(parts):
        whole |= {frozenset((p, i) for i in pair): length for pair, length in common(part, range(len(part))).items()}
    assert common(mixed, labels) == {
        frozenset([one, other]): whole.get(frozenset([one, other]), 0)
        for k, one in enumerate(labels)
        for other in labels[k + 1 :]
    }
    if any(part.precedence is not None for part in parts):
        after = waits(mixed, labels)
        for p, part in enumerate(parts):
            before = waits(part, range(len(part))) or {i: (set(), 0.0) for i in range(len(part))}
            for i, (places, think) in before.items():
                assert after[p, i] == ({(p, place) for place in places}, think)
    else:
        assert mixed.precedence is None
    if any(part.tenant is not None for part in parts):
        for k, (p, i) in enumerate(labels):
            part = parts[p]
            whose = ANYBODY if part.tenant is None else part.tenants[part.tenant[i]]
            assert mixed.tenants[mixed.tenant[k]] == whose
    else:
        assert mixed.tenant is None


@given(workloads())
def test_a_mix_of_one_is_itself(workload):
    same(mix(workload), workload)


def test_what_cannot_be_mixed():
    traffic = generate(Traffic(requests=3))
    with pytest.raises(InvalidInputError, match="^workloads: "):
        mix()
    with pytest.raises(InvalidInputError, match="^block_size: "):
        mix(traffic, traffic.in_blocks(16))
    with pytest.raises(InvalidInputError, match="^tenants: "):
        mix(traffic.tagged([Tenant("a")]), traffic.tagged([Tenant("a", slo_ttft=1.0)]))
    with pytest.raises(InvalidInputError, match="^weight of tenant 'a': "):
        mix(traffic.tagged([Tenant("a")]), traffic.tagged([Tenant("a", priority=1, weight=2.0)]))


def test_lengths_alone_go_with_any_block_size():
    lengths = Workload.of("lengths", [0.0], [100], [1], [[]], block_size=512)
    traffic = generate(Traffic(requests=3))
    assert mix(lengths, traffic).block_size == mix(traffic, lengths).block_size == 64
    assert mix(lengths, lengths).block_size == 512


# --- jitter ------------------------------------------------------------------------------------------------------


@given(workloads(), st.integers(0, 99))
def test_arrivals_stay_within_their_tick(workload, seed):
    spread = jitter(workload, seed)
    spread.validate()
    same(replace(spread, arrival=workload.arrival), workload)
    times = np.unique(workload.arrival)
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    for before, after in zip(workload.arrival, spread.arrival, strict=True):
        later = times[times > before]
        assert before <= after <= (min(later[0], before + usual) if len(later) else before + usual)


def test_ticks_are_filled_evenly():
    ticks = Workload.of(
        "ticks", np.repeat([0.0, 3000.0, 9000.0], 2000), [1] * 6000, [1] * 6000, [[]] * 6000, block_size=1
    )
    spread = jitter(ticks, seed=3).arrival
    # the median of the gaps is 4500: the first tick lasts 3000, the others 4500
    counts = np.bincount((spread // 1500).astype(int))
    assert counts[[0, 1]] == pytest.approx([1000, 1000], abs=100)
    assert counts[[2, 3, 4]] == pytest.approx([667, 667, 667], abs=100)
    assert counts[[6, 7, 8]] == pytest.approx([667, 667, 667], abs=100)
    assert counts[5] == 0 and len(counts) == 9
    assert jitter(ticks, 3).arrival.tolist() == spread.tolist() != jitter(ticks, 4).arrival.tolist()


# --- tag ---------------------------------------------------------------------------------------------------------


@given(workloads(tenants=False), st.integers(0, 99))
def test_a_conversation_is_one_tenants(workload, seed):
    tagged = tag(workload, TENANTS, seed)
    tagged.validate()
    assert tagged.tenants == TENANTS
    whose = {}
    for session, tenant in zip(workload.sessions().tolist(), tagged.tenant.tolist(), strict=True):
        assert whose.setdefault(session, tenant) == tenant
    same(replace(tagged, tenants=(), tenant=None), workload)
    if workload.precedence is None:
        assert tagged.tenant.tolist() == workload.tagged(TENANTS, seed=seed).tenant.tolist()


def test_tenants_get_their_share_of_conversations():
    pairs = Workload.of("pairs", [0.0] * 4000, [1] * 4000, [1] * 4000, [[]] * 4000, block_size=1)
    talk = Precedence.of([[] if i < 2000 else [i - 2000] for i in range(4000)], [0.0] * 4000)
    counts = Counter(tag(replace(pairs, precedence=talk), TENANTS, seed=1).tenant.tolist())
    assert counts[0] == pytest.approx(3000, abs=160) and counts[0] % 2 == 0


def test_tenants_are_checked():
    with pytest.raises(InvalidInputError, match="^tenants: "):
        tag(generate(Traffic(requests=3)), [])


# --- repeat ------------------------------------------------------------------------------------------------------


@given(workloads(), st.integers(1, 3), st.integers(0, 99))
def test_copies_follow_each_other(workload, times, seed):
    longer = repeat(workload, times, seed)
    longer.validate()
    count = len(workload)
    assert len(longer) == times * count and longer.name == workload.name
    same(longer.head(count), replace(workload, tenants=longer.tenants))
    gaps = np.diff(workload.arrival)
    own = common(workload, range(count))
    for copy in range(times):
        part = slice(copy * count, (copy + 1) * count)
        assert longer.output_tokens[part].tolist() == list(range(count))
        assert np.diff(longer.arrival[part]) == pytest.approx(gaps, abs=1e-6)
        if copy:
            seam = longer.arrival[copy * count] - longer.arrival[copy * count - 1]
            assert not len(gaps) or np.isclose(gaps, seam, atol=1e-6).any()
    labels = [(i // count, i % count) for i in range(times * count)]
    for pair, length in common(longer, labels).items():
        (one, i), (other, j) = sorted(pair)
        assert length == (own[frozenset([i, j])] if one == other else 0)


@pytest.mark.parametrize("times", [0, -1, 1.5])
def test_times_are_counted(times):
    with pytest.raises(InvalidInputError, match="^times: "):
        repeat(generate(Traffic(requests=3)), times)


# --- restart_sessions --------------------------------------------------------------------------------------------


@given(workloads(), st.floats(0.01, 100.0), st.integers(0, 99))
def test_conversations_move_as_a_whole(workload, rate, seed):
    moved = restart_sessions(workload, rate, seed)
    moved.validate()
    labels = moved.output_tokens.tolist()
    assert sorted(labels) == list(range(len(workload)))
    assert common(moved, labels) == common(workload, range(len(workload)))
    assert waits(moved, labels) == waits(workload, range(len(workload)))
    session = workload.sessions()
    shifts, begins = {}, {}
    for i, place in enumerate(labels):
        assert row(moved, i) == row(workload, place)
        assert workload.tenant is None or moved.tenant[i] == workload.tenant[place]
        shift = moved.arrival[i] - workload.arrival[place]
        assert shifts.setdefault(session[place], shift) == pytest.approx(shift, abs=1e-6)
        begins.setdefault(session[place], moved.arrival[i])
    assert list(begins) == sorted(begins), "in the order in which they began"
    later = restart_sessions(replace(workload, arrival=workload.arrival + 1e6), rate, seed)
    assert later.arrival == pytest.approx(moved.arrival, abs=1e-6), "when they began does not matter any more"


def test_they_begin_as_a_poisson_process():
    pairs = Workload.of("pairs", [0.0] * 8000, [1] * 8000, [1] * 8000, [[]] * 8000, block_size=1)
    talk = Precedence.of([[] if i < 4000 else [i - 4000] for i in range(8000)], [0.0] * 8000)
    begins = np.unique(restart_sessions(replace(pairs, precedence=talk), 5.0, seed=1).arrival)
    gaps = np.diff(begins)
    assert len(begins) == 4000
    assert gaps.mean() == pytest.approx(200.0, rel=0.06) and gaps.std() == pytest.approx(200.0, rel=0.08)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_a_rate(rate):
    with pytest.raises(InvalidInputError, match="^rate: "):
        restart_sessions(generate(Traffic(requests=3)), rate)


# --- all of them -------------------------------------------------------------------------------------------------

ALL = [
    lambda w, seed: thin(w, 0.5, seed),
    jitter,
    lambda w, seed: tag(w, TENANTS, seed),
    lambda w, seed: repeat(w, 2, seed),
    lambda w, seed: restart_sessions(w, 1.0, seed),
]


@pytest.mark.parametrize("change", ALL)
def test_a_seed_is_a_whole_number_and_decides(change):
    workload = generate(Traffic(requests=50), seed=1)
    before = [getattr(workload, column).tobytes() for column in COLUMNS]
    one, again = change(workload, 7), change(workload, 7)
    assert [getattr(one, column).tobytes() for column in COLUMNS] == [
        getattr(again, column).tobytes() for column in COLUMNS
    ]
    assert [getattr(workload, column).tobytes() for column in COLUMNS] == before, "what goes in stays as it is"
    for seed in (-1, 0.5):
        with pytest.raises(InvalidInputError, match="^seed: "):
            change(workload, seed)


@pytest.mark.parametrize("change", [*ALL, lambda w, _: mix(w, w)])
def test_nothing_of_nothing(change):
    nothing = Workload.of("nothing", [], [], [], [], block_size=64)
    for empty in (nothing, replace(nothing, precedence=Precedence.of([], []))):
        assert len(change(empty, 1)) == 0


def test_a_whole_trace_is_spread_over_its_ticks():
    workload = read_mooncake(shared("traces/mooncake_conversation.jsonl"))
    assert len(np.unique(workload.arrival)) < 1300
    spread = jitter(workload, seed=1)
    assert len(np.unique(spread.arrival)) == len(workload) and (spread.arrival - workload.arrival).max() < 3000.0
